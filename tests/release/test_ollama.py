"""The Modelfile's template writes what the training template writes, for every family that has one."""

from __future__ import annotations

import json
import shutil
import subprocess

import jinja2
import pytest
from go_template import render

from finetune.errors import InputError
from finetune.families.detect import FAMILIES
from finetune.release.ollama import go_template, modelfile

CHATS = {
    "a question": [("user", "What is 3?")],
    "with system": [("system", "Be brief."), ("user", "What is 3?")],
    "turns": [("user", "Hello"), ("assistant", "Hi there."), ("user", "What is 3?")],
    "turns and system": [
        ("system", "Be brief.\nAnd kind."),
        ("user", "Hello"),
        ("assistant", "Hi."),
        ("user", "3?"),
        ("assistant", "It is 3."),
        ("user", "And 4?"),
    ],
}
GO = """package main
import ("encoding/json"; "os"; "text/template")
func main() {
	var cases []struct{ Template string; Data map[string]any }
	json.NewDecoder(os.Stdin).Decode(&cases)
	var out []string
	for _, c := range cases {
		t, err := template.New("t").Parse(c.Template)
		if err != nil { panic(err) }
		w := &buffer{}
		if err := t.Execute(w, c.Data); err != nil { panic(err) }
		out = append(out, string(w.b))
	}
	json.NewEncoder(os.Stdout).Encode(out)
}
type buffer struct{ b []byte }
func (w *buffer) Write(p []byte) (int, error) { w.b = append(w.b, p...); return len(p), nil }
"""


def ollama_data(chat):
    """What Ollama gives a template: the system message apart, and among the messages."""
    system = "\n\n".join(content for role, content in chat if role == "system")
    prompt = [content for role, content in chat if role == "user"][-1]
    return {
        "System": system,
        "Prompt": prompt,
        "Messages": [{"Role": role, "Content": content} for role, content in chat],
    }


def trained(family, chat):
    """The training template's text, without its first bos: Ollama writes that itself."""
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = json.dumps

    def stop(message):
        raise AssertionError(message)

    environment.globals["raise_exception"] = stop
    messages = [{"role": role, "content": content} for role, content in chat]
    text = environment.from_string(family.chat_template()).render(messages=messages, add_generation_prompt=True)
    assert text.startswith(family.bos)
    return text.removeprefix(family.bos)


CHATTING = [name for name, family in FAMILIES.items() if family.is_chat]


@pytest.mark.parametrize("name", CHATTING)
@pytest.mark.parametrize("chat", CHATS)
def test_the_template_writes_what_was_trained(name, chat):
    family = FAMILIES[name]
    assert render(go_template(family), ollama_data(CHATS[chat])) == trained(family, CHATS[chat])


def test_every_family_has_one():
    assert len(CHATTING) >= 9
    assert render(go_template(FAMILIES["plain"]), ollama_data(CHATS["a question"])) == "What is 3?"


@pytest.mark.parametrize("name", CHATTING)
def test_an_answer_that_was_begun_is_left_open(name):
    """Ollama continues a last assistant message: no stop token may stand behind it."""
    family = FAMILIES[name]
    text = render(go_template(family), ollama_data([("user", "Hello"), ("assistant", "It is")]))
    assert text.endswith("It is")


def test_go_itself_writes_the_same(tmp_path):
    go = shutil.which("go")
    if go is None:
        pytest.skip("needs Go's compiler (`go` on the PATH) to run Go's own text/template")
    (tmp_path / "main.go").write_text(GO)
    cases = [(FAMILIES[name], chat) for name in CHATTING for chat in CHATS.values()]
    cases += [(FAMILIES[name], [("user", "Hello"), ("assistant", "It is")]) for name in CHATTING]
    given = [{"Template": go_template(family), "Data": ollama_data(chat)} for family, chat in cases]
    done = subprocess.run(
        [go, "run", "main.go"], cwd=tmp_path, input=json.dumps(given), capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    for (family, chat), text in zip(cases, json.loads(done.stdout), strict=True):
        assert text == render(go_template(family), ollama_data(chat))


def test_a_modelfile(tmp_path):
    (tmp_path / "LICENSE").write_text("LLAMA 3.1 COMMUNITY LICENSE")
    settings = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "repetition_penalty": 1.1}
    (tmp_path / "generation_config.json").write_text(json.dumps(settings))
    text = modelfile(tmp_path, "chat-q8_0.gguf", FAMILIES["llama3.1"], "Be brief.")
    assert text.startswith('FROM ./chat-q8_0.gguf\nTEMPLATE """{{- range')
    for line in (
        'PARAMETER stop "<|eot_id|>"',
        'PARAMETER stop "<|eom_id|>"',
        'PARAMETER stop "<|end_of_text|>"',
        "PARAMETER temperature 0.6",
        "PARAMETER repeat_penalty 1.1",
        'SYSTEM """Be brief."""',
        'LICENSE """LLAMA 3.1 COMMUNITY LICENSE"""',
    ):
        assert line in text
    (tmp_path / "generation_config.json").write_text(json.dumps({**settings, "do_sample": False}))
    text = modelfile(tmp_path, "x.gguf", FAMILIES["llama2"], None)
    assert "temperature" not in text and "SYSTEM" not in text and 'stop "</s>"' in text
    with pytest.raises(InputError, match="system prompt"):
        modelfile(tmp_path, "x.gguf", FAMILIES["llama2"], 'a """ b')
