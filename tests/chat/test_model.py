"""Runs that answer: as plain transformers and peft do from the same folders, streamed as written at once."""

from __future__ import annotations

import itertools
import json
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from chat_lab import ASKED, LETTERS, PLAIN, SHORT, WARM, Lab, by_heart, questions, say_nothing, walk_in
from peft import PeftModel
from stage_recipes import write_jsonl
from transformers import AutoModelForCausalLM, AutoTokenizer

from finetune.chat.model import Answering, open_chat
from finetune.chat.turns import Turns
from finetune.data.prepare_prompts import Prompt
from finetune.errors import InputError
from finetune.families.base import RenderError
from finetune.shapes import Completion, Dialog, Message, Origin, Text

FOLLOWED = Dialog((*ASKED[0].messages, Message("assistant", "It is Rome."), Message("user", "What is 5?")))
WITH_SYSTEM = Dialog((Message("system", "You are a llama."), *ASKED[1].messages))
STOPS = ("<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "</s>")


def transformers_says(base: Path, run: Path | None, words: Path, dialogs, *, raw=None):
    """Greedy answers of plain transformers, with peft where there is a run. words: a folder with a tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(words)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if run is not None:
        model = PeftModel.from_pretrained(model, run)
    model.eval()
    said = []
    for dialog in dialogs:
        if raw is None:
            turns = [{"role": m.role, "content": m.content} for m in dialog.messages]
            ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt")["input_ids"]
        else:
            ids = tokenizer(raw, return_tensors="pt")["input_ids"]
        stops = [tokenizer.convert_tokens_to_ids(token) for token in STOPS]
        with torch.no_grad():
            out = model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=40, pad_token_id=0,
                eos_token_id=[stop for stop in stops if stop],
            )  # fmt: skip
        said.append(
            (out[0, ids.shape[1] :].tolist(), tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))
        )
    return said


def streamed(chat, asked, names, settings):
    """{(name, sample): (text of the pieces, reply)}, and the order in which names spoke."""
    texts, replies, order = {}, {}, []
    for piece in chat.stream(asked, names, settings):
        where = piece.name, piece.sample
        assert where not in replies, "a piece after the last one"
        assert piece.text or piece.reply
        texts[where] = texts.get(where, "") + piece.text
        order.append(piece.name)
        if piece.reply is not None:
            replies[where] = piece.reply
    assert set(texts) == set(replies)
    return {where: (texts[where], replies[where]) for where in texts}, order


def test_answers_are_those_of_transformers_and_peft(lab: Lab, chat) -> None:
    assert chat.names == ("letters", "plain", "base")
    dialogs = [*ASKED, FOLLOWED, WITH_SYSTEM]
    for name in chat.names:
        wanted = transformers_says(lab.base, lab.runs.get(name), lab.runs["plain"], dialogs)
        replies = [samples[0] for samples in chat.answer(dialogs, name, SHORT)]
        assert [reply.text for reply in replies] == [text.strip() for _, text in wanted]
        assert [reply.tokens for reply in replies] == [len(ids) for ids, _ in wanted]
    assert chat.answer(ASKED[:1], "letters", SHORT)[0][0].text == LETTERS
    reply = chat.answer(ASKED[:1], "plain", SHORT)[0][0]
    assert reply.text == PLAIN and reply.finished and reply.tokens < 40
    assert reply.prompt_tokens == len(chat.prompt(ASKED[0]).ids)


def test_the_base_answers_as_if_there_were_no_adapter(lab: Lab, chat) -> None:
    """Bit for bit: the logits too, after the adapters have spoken."""
    alone = open_chat({"bare": lab.base}, say=say_nothing)
    assert alone.names == ("bare",)
    ids = torch.from_numpy(chat.prompt(ASKED[0]).ids)[None]
    chat.answer(ASKED, "plain", SHORT)
    chat._speak_as("base")
    with torch.no_grad():
        through = chat.base(ids).logits
    with torch.no_grad():
        assert torch.equal(through, alone.base(ids).logits)
    for settings in (SHORT, WARM):
        assert chat.answer(ASKED, "base", settings) == alone.answer(ASKED, "bare", settings)


@pytest.mark.parametrize("settings", [SHORT, WARM, Answering(max_new_tokens=3)], ids=["greedy", "warm", "cut"])
def test_streams_are_the_answers(chat, settings: Answering) -> None:
    for asked in (*ASKED[:2], WITH_SYSTEM, Text("Once upon a time 日")):
        found, order = streamed(chat, asked, chat.names, settings)
        for name in chat.names:
            for sample, reply in enumerate(chat.answer([asked], name, settings)[0]):
                text, last = found[name, sample]
                assert last == reply and text == reply.text
        if settings.max_new_tokens > 3:
            assert order != sorted(order, key=chat.names.index), "one after the other, not side by side"


def test_letters_of_several_tokens_come_whole(chat) -> None:
    pieces = [piece.text for piece in chat.stream(ASKED[0], ["letters"], SHORT)]
    assert "".join(pieces) == LETTERS
    assert any("🦙" in piece for piece in pieces) and len(pieces) > 5
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)


def test_any_tokens_stream_to_their_text(chat) -> None:
    """Words drawn by chance, half letters among them: pieces never take back what was told."""
    random = np.random.default_rng(0)
    prompt = Prompt(np.array([1]), ASKED[0], 0, Origin("test"))
    for _ in range(300):
        ids = random.integers(0, 479, 30)
        told = ""
        for end in range(1, len(ids)):
            text = chat._text(prompt, ids[:end], False)
            if not text.endswith("\N{REPLACEMENT CHARACTER}") and len(text) > len(told):
                assert text.startswith(told)
                told = text
        assert chat._text(prompt, ids, False).startswith(told)


def test_drawn_answers_hang_on_the_seed_alone(chat) -> None:
    first = chat.answer(ASKED, "base", WARM)
    assert first == chat.answer(ASKED, "base", WARM)
    assert chat.answer(ASKED[1:2], "base", WARM) == first[1:2]
    assert len({reply.text for reply in first[0]}) == 3
    other = Answering(temperature=1.0, top_p=0.95, max_new_tokens=40, seed=5, samples=3)
    assert chat.answer(ASKED, "base", other) != first


def test_the_recipes_system_prompt_is_put_where_there_is_none(lab: Lab, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "rows.jsonl", questions([PLAIN]))
    stages = {"sft": by_heart("rows.jsonl", steps=1)}
    own = walk_in(tmp_path, lab.base, stages, {"system": "You are a llama."})
    said: list[str] = []
    chat = open_chat({"sft": own.runs["sft"], "plain": lab.runs["plain"]}, say=said.append)
    assert chat.system == "You are a llama."
    assert any("plain was trained with another system prompt than sft" in line for line in said)
    assert chat.prompt(ASKED[1]).ids.tolist() == chat.prompt(WITH_SYSTEM).ids.tolist()
    chat.system = None
    assert chat.prompt(ASKED[1]).ids.tolist() != chat.prompt(WITH_SYSTEM).ids.tolist()


@pytest.mark.parametrize("template", ["llama2", "alpaca", "plain"])
def test_a_sentencepiece_base(tmp_path: Path, spm_base: Path, template: str) -> None:
    """Spaces at the seam of prompt and answer, letters in bytes, and a template without conversations."""
    write_jsonl(tmp_path / "rows.jsonl", [{"prompt": f"What is {i}?", "completion": f" {LETTERS}"} for i in range(8)])
    lab = walk_in(tmp_path, spm_base, {"sft": by_heart("rows.jsonl", steps=60)}, {"template": template})
    chat = open_chat({"sft": lab.runs["sft"]}, say=say_nothing)
    asked = Completion("What is 3?", "")
    reply = chat.answer([asked], "sft", Answering(max_new_tokens=60))[0][0]
    assert reply.text == (LETTERS if chat.family.is_chat else f" {LETTERS}")
    pieces = [piece.text for piece in chat.stream(asked, ["sft"], Answering(max_new_tokens=60))]
    assert "".join(pieces) == reply.text and len(pieces) > 5
    if template == "plain":
        assert not chat.family.is_chat
        with pytest.raises(RenderError, match="no form for a conversation"):
            chat.stream(ASKED[0], ["sft"])
        ((_, wanted),) = transformers_says(spm_base, lab.runs["sft"], lab.runs["sft"], [None], raw="What is 3?")
        raw = chat.answer([Text("What is 3?")], "sft", SHORT)[0][0].text
        assert raw.strip() == wanted.strip()


def test_raw_text_goes_on_as_it_is(lab: Lab, chat) -> None:
    text = "Once upon a time there was"
    assert chat.prompt(Text(text)).ids.tolist() == [
        chat.tokenizer.id_of("<|begin_of_text|>"),
        *chat.tokenizer.encode_text(text),
    ]
    ((_, wanted),) = transformers_says(lab.base, None, lab.base, [None], raw=text)
    assert chat.answer([Text(text)], "base", SHORT)[0][0].text == wanted


def test_a_merged_folder_stands_alone(lab: Lab, chat, tmp_path: Path) -> None:
    from finetune.cli.main import main

    assert main(["merge", str(lab.runs["plain"]), "--out", str(tmp_path / "merged")]) == 0
    merged = open_chat({"merged": tmp_path / "merged"}, say=say_nothing)
    assert merged.names == ("merged",)
    assert merged.answer(ASKED[:1], "merged", SHORT)[0][0].text == PLAIN
    with pytest.raises(InputError, match="nobody here is called 'base'"):
        merged.answer(ASKED, "base")
    with pytest.raises(InputError, match="is a whole model: it stands alone"):
        open_chat({"a": lab.runs["plain"], "merged": tmp_path / "merged"}, say=say_nothing)


def test_threads_take_turns(lab: Lab, chat) -> None:
    """Each gets its own answers, whatever the others ask, and nobody waits for another's end."""
    names = (*chat.names, *chat.names)
    settings = [Answering(temperature=1.0, max_new_tokens=40, seed=seed) for seed in range(len(names))]
    wanted = [chat.answer(ASKED[:1], name, own)[0][0].text for name, own in zip(names, settings, strict=True)]
    found: dict[int, str] = {}
    spoke: list[int] = []

    def talk(number: int) -> None:
        text = ""
        for piece in chat.stream(ASKED[0], [names[number]], settings[number]):
            spoke.append(number)
            text += piece.text
        found[number] = text

    threads = [threading.Thread(target=talk, args=(number,)) for number in range(len(names))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [found[number] for number in range(len(names))] == wanted
    runs = sum(a != b for a, b in itertools.pairwise(spoke))
    assert runs > len(spoke) / 3, "one after the other instead of in turns"


def test_turns_go_to_who_has_waited_longest() -> None:
    turns, order, ready = Turns(), [], threading.Barrier(2)

    def take(name: str) -> None:
        ready.wait()
        for _ in range(20):
            with turns:
                order.append(name)
                threading.Event().wait(0.001)  # the other one comes to wait

    threads = [threading.Thread(target=take, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert order.count("a") == order.count("b") == 20
    middle = order[2:-2]
    assert all(a != b for a, b in itertools.pairwise(middle))


def test_a_place_goes_to_the_first_who_came() -> None:
    turns, order = Turns(places=2), []
    turns.take()
    turns.take()

    def take(name: int) -> None:
        turns.take()
        order.append(name)

    threads = []
    for name in range(4):
        threads.append(threading.Thread(target=take, args=(name,)))
        threads[-1].start()
        while turns.waiting <= name:
            time.sleep(0.001)
    assert turns.take(gave_up=lambda: True) is False and turns.waiting == 4
    for count in range(1, 5):
        turns.leave()
        threads[count - 1].join(10)
        assert order == list(range(count))


def test_an_interrupted_answer_leaves_the_model_as_it_was(chat) -> None:
    before = chat.answer(ASKED, "base", WARM)
    stream = chat.stream(ASKED[0], chat.names, SHORT)
    for _ in range(5):
        next(stream)
    stream.close()
    assert chat.answer(ASKED, "base", WARM) == before


def test_no_prompt_no_answer(chat) -> None:
    assert chat.answer([], "plain") == []


def test_what_cannot_be_asked(chat) -> None:
    with pytest.raises(InputError, match="nobody here is called 'paris'; there are letters, plain, base"):
        chat.answer(ASKED, "paris")
    with pytest.raises(InputError, match="nobody here is called 'paris'"):
        chat.stream(ASKED[0], ["plain", "paris"])
    with pytest.raises(InputError, match=r"the prompt has [\d,]+ tokens and leaves no room .* 256 is the most"):
        chat.stream(Dialog((Message("user", "What is it? " * 100),)), ["plain"])
    with pytest.raises(RenderError, match="must end with a user"):
        chat.stream(Dialog((*ASKED[0].messages, Message("assistant", "It"))), ["plain"])
    # and right at the edge: the room that is left, and not one token more
    long = Dialog((Message("user", "What is it? " * 40),))
    room = chat.room - len(chat.prompt(long).ids)
    reply = chat.answer([long], "base", Answering(max_new_tokens=1000))[0][0]
    assert reply.tokens <= room and 0 < room < 200


def test_what_cannot_be_opened(lab: Lab, tmp_path: Path, spm_base: Path) -> None:
    for stage, why in (("helpful", "scores answers and writes none"), ("best", "holds sampled rows, not a model")):
        with pytest.raises(InputError, match=why):
            open_chat({"it": lab.runs[stage]}, say=say_nothing)
    with pytest.raises(InputError, match="neither a finished run nor a model"):
        open_chat({"it": tmp_path}, say=say_nothing)
    with pytest.raises(InputError, match="'base' is the name of the bare base"):
        open_chat({"base": lab.runs["plain"]}, say=say_nothing)

    copy = shutil.copytree(lab.runs["plain"], tmp_path / "copy")
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["base"]["digest"] = "sha256:0"
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="have different bases"):
        open_chat({"a": lab.runs["plain"], "b": copy}, say=say_nothing)
    manifest["base"]["digest"] = json.loads((lab.runs["plain"] / "manifest.json").read_text())["base"]["digest"]
    manifest["family"]["template"] = "alpaca"
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=r"was trained with template llama3.1, .* with alpaca"):
        open_chat({"a": lab.runs["plain"], "b": copy}, say=say_nothing)
    (copy / "manifest.json").unlink()
    with pytest.raises(InputError, match="an adapter without a manifest"):
        open_chat({"b": copy}, say=say_nothing)
    (copy / "adapter_model.safetensors").write_bytes(b"")
    shutil.copy(lab.runs["plain"] / "manifest.json", copy)
    with pytest.raises(InputError, match=r"adapter_model.safetensors has 0 bytes"):
        open_chat({"b": copy}, say=say_nothing)
    with pytest.raises(InputError, match="is not the base that"):
        open_chat({"a": lab.runs["plain"]}, base=str(spm_base), say=say_nothing)
