"""The saved Jinja template, rendered by transformers, gives the ids that `render` gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from finetune.data.encode import Encoded, encode, encode_prompt
from finetune.data.tokenizer import Tokenizer
from finetune.families.base import Family
from finetune.families.detect import FAMILIES
from finetune.shapes import Completion, Dialog, Message, ToolCall

CHAT = [name for name, family in FAMILIES.items() if family.is_chat]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Wetter für eine Stadt",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CALL = Message("assistant", "", (ToolCall("get_weather", {"city": "Zürich", "days": 2}),))

DIALOGS = {
    "one_turn": Dialog((Message("user", "What is the capital of France?"), Message("assistant", "Paris."))),
    "system": Dialog(
        (Message("system", "Be brief."), Message("user", "Who are you?"), Message("assistant", "A llama."))
    ),
    "empty_system": Dialog((Message("system", ""), Message("user", "Hi"), Message("assistant", "Hello"))),
    "turns": Dialog(
        (
            Message("user", "Eins ä 🦙"),
            Message("assistant", "Zwei\n\nDrei"),
            Message("user", "123456"),
            Message("assistant", "def f(x):\n    return x"),
        )
    ),
    "context": Dialog((Message("user", "Sum up.", context="A long text."), Message("assistant", "Short."))),
    "padded": Dialog((Message("user", "trailing  "), Message("assistant", "answer "))),
    "tools": Dialog(
        (
            Message("system", "Be helpful."),
            Message("user", "Weather?"),
            CALL,
            Message("tool", '{"temp": 21}'),
            Message("assistant", "21 degrees."),
        ),
        (WEATHER,),
    ),
    "tool_says_text": Dialog(
        (Message("user", "Weather?"), CALL, Message("tool", "21 °C"), Message("assistant", "Warm.")), (WEATHER,)
    ),
    "call_with_words": Dialog(
        (Message("user", "Weather?"), Message("assistant", "Let me look.", CALL.tool_calls)), (WEATHER,)
    ),
}
MANY_CALLS = Dialog(
    (
        Message("user", "Both?"),
        Message("assistant", "", (ToolCall("get_weather", {"city": "A"}), ToolCall("get_weather", {"city": "B"}))),
        Message("tool", "1"),
        Message("tool", "2"),
        Message("assistant", "1 and 2."),
    ),
    (WEATHER,),
)
BUILTIN = Dialog(
    (
        Message("system", "Search first."),
        Message("user", "Who won?"),
        Message("assistant", "", (ToolCall("brave_search", {"query": "who won"}),)),
        Message("tool", '{"top": "us"}'),
        Message("assistant", "", (ToolCall("code_interpreter", {"code": "print(1)"}),)),
        Message("tool", "1"),
        Message("assistant", "We did."),
    ),
    ({"name": "brave_search"}, {"type": "code_interpreter"}),
)
CASES = [
    *((template, name, dialog) for template in CHAT for name, dialog in DIALOGS.items()),
    *((template, "many_calls", MANY_CALLS) for template in CHAT if "dated" not in template),
    *((t, "builtin", BUILTIN) for t in CHAT if t.startswith("llama3.") and t != "llama3.2-dated"),
]


def as_huggingface(message: Message) -> dict[str, Any]:
    raw: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.context:
        raw["context"] = message.context
    if message.tool_calls:
        raw["tool_calls"] = [
            {"type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    return raw


def by_jinja(folder: Path, family: Family, dialog: Dialog, *, prompt: bool) -> list[int]:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder).apply_chat_template(
        [as_huggingface(message) for message in dialog.messages],
        tools=list(dialog.tools) or None,
        chat_template=family.chat_template(),
        add_generation_prompt=prompt,
        tokenize=True,
        return_dict=True,
    )["input_ids"]


def kind_of(family: Family) -> str:
    return "bpe" if family.bos == "<|begin_of_text|>" else "spm"


@pytest.mark.parametrize(
    ("template", "name", "dialog"), CASES, ids=lambda value: value if isinstance(value, str) else ""
)
def test_jinja_gives_the_ids_of_render(
    template: str,
    name: str,
    dialog: Dialog,
    tokenizers: dict[str, Tokenizer],
    tokenizer_folders: dict[str, Path],
) -> None:
    family = FAMILIES[template]
    tokenizer, folder = tokenizers[kind_of(family)], tokenizer_folders[kind_of(family)]
    [trained] = encode([dialog], family, tokenizer)
    assert isinstance(trained, Encoded), trained
    assert by_jinja(folder, family, dialog, prompt=False) == trained.input_ids

    asked = Dialog(dialog.messages[:-1], dialog.tools)
    prompt = encode_prompt(asked, family, tokenizer)
    assert by_jinja(folder, family, asked, prompt=True) == prompt
    assert trained.input_ids[: len(prompt)] == prompt, "generation must begin where training began"
    assert not any(trained.trained[len(asked_only(asked, family, tokenizer)) : len(prompt)])
    assert trained.trained[len(prompt) :] == [1] * (len(trained.input_ids) - len(prompt))


def asked_only(asked: Dialog, family: Family, tokenizer: Tokenizer) -> list[int]:
    [encoded] = encode([asked], family, tokenizer)
    assert isinstance(encoded, Encoded)
    return encoded.input_ids


@pytest.mark.parametrize("template", ["alpaca", "plain"])
def test_text_templates_on_llama_3_use_its_own_tokens(
    template: str, tokenizers: dict[str, Tokenizer], tokenizer_folders: dict[str, Path]
) -> None:
    """The tokenizer's eos_token is <|eot_id|>; the template must still write <|end_of_text|>."""
    family = FAMILIES[template].on("llama3.1")
    [encoded] = encode([Completion("Name a city", "Rome")], family, tokenizers["bpe"])
    assert isinstance(encoded, Encoded)
    end = tokenizers["bpe"].id_of("<|end_of_text|>")
    assert encoded.input_ids[-1] == end
    dialog = Dialog((Message("user", "Name a city"), Message("assistant", "Rome")))
    assert by_jinja(tokenizer_folders["bpe"], family, dialog, prompt=False) == encoded.input_ids


@pytest.mark.parametrize("template", CHAT)
def test_jinja_refuses_what_render_refuses(template: str, tokenizer_folders: dict[str, Path]) -> None:
    from jinja2.exceptions import TemplateError

    family = FAMILIES[template]
    late_system = Dialog((Message("user", "a"), Message("assistant", "b"), Message("system", "c")))
    with pytest.raises(TemplateError, match="first message"):
        by_jinja(tokenizer_folders[kind_of(family)], family, late_system, prompt=False)


def test_dated_template_takes_its_arguments_from_jinja(
    tokenizers: dict[str, Tokenizer], tokenizer_folders: dict[str, Path]
) -> None:
    from transformers import AutoTokenizer

    from finetune.families.llama3_1 import dated

    family = dated("llama3.1", date="1 May 2026", tools_in_user=False)
    asked = Dialog(DIALOGS["tools"].messages[:2], (WEATHER,))
    text = AutoTokenizer.from_pretrained(tokenizer_folders["bpe"]).apply_chat_template(
        [as_huggingface(message) for message in asked.messages],
        tools=[WEATHER],
        chat_template=family.chat_template(),
        add_generation_prompt=True,
        tokenize=False,
        date_string="1 May 2026",
        tools_in_user_message=False,
    )
    assert text == tokenizers["bpe"].decode(encode_prompt(asked, family, tokenizers["bpe"]))
    assert "Today Date: 1 May 2026" in text
    assert text.index("get_weather") < text.index("<|start_header_id|>user")


def test_hand_written_llama3_and_llama2_texts(tokenizers: dict[str, Tokenizer]) -> None:
    dialog = DIALOGS["system"]
    [encoded] = encode([dialog], FAMILIES["llama3"], tokenizers["bpe"])
    assert isinstance(encoded, Encoded)
    assert tokenizers["bpe"].decode(encoded.input_ids) == (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nWho are you?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nA llama.<|eot_id|>"
    )
    [spans] = [FAMILIES["llama2"].render(dialog)]
    assert "".join(span.text for span in spans) == (
        "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nWho are you? [/INST] A llama. </s>"
    )


def test_tools_as_text_by_hand() -> None:
    dialog = Dialog(MANY_CALLS.messages, ({"name": "get_weather"},))
    spans = FAMILIES["llama2"].render(dialog)
    assert "".join(span.text for span in spans) == (
        '<s>[INST] <<SYS>>\nYou can call these functions:\n{"name": "get_weather"}\n\nTo call one, answer with JSON '
        'only: {"name": function name, "parameters": {argument name: value}}\n<</SYS>>\n\nBoth? [/INST] '
        '{"name": "get_weather", "parameters": {"city": "A"}}\n{"name": "get_weather", "parameters": {"city": "B"}} '
        "</s><s>[INST] Function result:\n1\n\nFunction result:\n2 [/INST] 1 and 2. </s>"
    )


@pytest.mark.parametrize("template", CHAT)
def test_real_tool_data_renders(template: str, shared: Path) -> None:
    rows = json.loads((shared / "data" / "glaive_toolcall.json").read_text(encoding="utf-8"))
    family, with_calls = FAMILIES[template], 0
    for row in rows:
        dialog = glaive(row)
        with_calls += any(message.tool_calls for message in dialog.messages)
        assert any(span.trained for span in family.render(dialog))
    assert with_calls > 50


def glaive(row: dict[str, Any]) -> Dialog:
    messages = []
    for turn in row["conversations"]:
        if turn["from"] == "function_call":
            call = json.loads(turn["value"])
            messages.append(Message("assistant", "", (ToolCall(call["name"], call["arguments"]),)))
        else:
            role = {"human": "user", "gpt": "assistant", "observation": "tool"}[turn["from"]]
            messages.append(Message(role, turn["value"]))  # type: ignore[arg-type]
    return Dialog(tuple(messages), tuple(json.loads(row["tools"])) if row["tools"] else ())


@pytest.mark.parametrize("template", CHAT)
def test_what_is_saved_gives_users_the_ids_of_training(
    template: str, tokenizers: dict[str, Tokenizer], tmp_path: Path
) -> None:
    """Nothing but the saved folder: the tokenizer, its pad and stop tokens, its template."""
    from transformers import AutoTokenizer

    family = FAMILIES[template]
    tokenizer = tokenizers[kind_of(family)]
    pad = next(token for token in family.pads if token in tokenizer.special_tokens)
    tokenizer.save(tmp_path, bos=family.bos, eos=family.stop_tokens[0], pad=pad, chat_template=family.chat_template())
    assert Tokenizer.load(tmp_path).fingerprint == tokenizer.fingerprint
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    dialog = DIALOGS["turns"]
    [encoded] = encode([dialog], family, tokenizer)
    assert isinstance(encoded, Encoded)
    messages = [as_huggingface(message) for message in dialog.messages]
    assert loaded.apply_chat_template(messages, tokenize=True, return_dict=True)["input_ids"] == encoded.input_ids
    assert loaded.pad_token_id == tokenizer.special_tokens[pad] != loaded.eos_token_id
    assert loaded.eos_token_id == tokenizer.special_tokens[family.stop_tokens[0]]
