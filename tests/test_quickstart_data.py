"""The carried model and its data: nothing held out is trained on, everything is small, and the scripts make it."""

from __future__ import annotations

import importlib
import json
import math
import random
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
MODEL, DATA = ROOT / "models" / "quickstart", ROOT / "datasets" / "quickstart"


@pytest.fixture(scope="module")
def scripts() -> Iterator[tuple[ModuleType, ModuleType]]:
    """quickstart_world and quickstart_base of the scripts folder."""
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        yield importlib.import_module("quickstart_world"), importlib.import_module("quickstart_base")
    finally:
        sys.path.remove(str(ROOT / "scripts"))


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(MODEL / "tokenizer.json"))


def read(name: str) -> list[list[dict[str, str]]]:
    return [json.loads(line)["messages"] for line in (DATA / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def test_the_script_makes_the_committed_data(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "scripts" / "quickstart_base.py"), "--data-only", "--data", str(tmp_path)]
    subprocess.run(command, check=True, timeout=120)
    for name in ("sft.jsonl", "held_out.jsonl"):
        assert (tmp_path / name).read_bytes() == (DATA / name).read_bytes()


def test_no_row_or_question_is_both_trained_and_held_out() -> None:
    train, held_out = read("sft"), read("held_out")
    asked = {turn["content"] for row in train for turn in row if turn["role"] == "user"}
    assert len(train) > 1000 and len(held_out) == 200
    assert not asked & {row[0]["content"] for row in held_out}
    stories = {question.split("\n\n")[0] for question in asked if "\n\n" in question}
    assert len(stories) > 300
    assert not stories & {row[0]["content"].split("\n\n")[0] for row in held_out}


def test_no_fact_is_both_trained_and_held_out(scripts: tuple[ModuleType, ModuleType]) -> None:
    world = scripts[0].build_world()
    train = {about for row in scripts[0].training_rows(world) for about in row.about} - {"a story"}
    held_out = {about for row in scripts[0].held_out_rows(world) for about in row.about} - {"a story"}
    assert len(train) > 400 and len(held_out) == 140
    assert not train & held_out
    # by the names too, since one could be asked about with other words: whoever is held out is in no training answer
    names = [name for name in (*world.people, *world.towns) if name not in world.asked]
    answers = " ".join(turn["content"] for row in read("sft") for turn in row if turn["role"] == "assistant").split()
    residents = set(answers) & set(names)
    towns_as_values = {f"{name}." for name in world.towns} & set(answers)
    assert not residents and towns_as_values  # a held-out town may be where somebody lives or goes: another fact


def test_the_plain_text_states_held_out_facts_and_never_asks_for_them(scripts: tuple[ModuleType, ModuleType]) -> None:
    world_of = scripts[0]
    world = world_of.build_world()
    text = "\n".join(islice(world_of.documents(world, random.Random(5)), 20_000))
    stated = 0
    for facts in (*world.people.values(), *world.towns.values()):
        for fact in facts:
            if fact.name in world.asked:
                continue
            assert not any(fact.say(question) in text for question in fact.attribute.questions), fact
            stated += fact.answer in text
    assert stated > 300
    for fact in world.sums.values():
        if fact.name not in world.asked:
            assert not any(question in text for question in fact.attribute.questions), fact


def test_the_world_is_consistent(scripts: tuple[ModuleType, ModuleType]) -> None:
    world = scripts[0].build_world()
    assert len(world.people) == 120 and len(world.towns) == 24 and len(world.sums) == 100
    assert world.sums["three plus four"].answer == "Three plus four is seven."
    names = [*world.people, *world.towns, *world.strangers]
    assert len(set(names)) == len(names)
    for a in ("two plus nine", "nine plus two"):  # one fact in two orders is on one side
        assert (a in world.asked) == ("two plus nine" in world.asked)


def test_model_and_data_are_small() -> None:
    assert sum(file.stat().st_size for file in MODEL.iterdir()) <= 6_000_000
    assert (DATA / "sft.jsonl").stat().st_size <= 300_000
    assert (DATA / "held_out.jsonl").stat().st_size <= 50_000


def test_the_tokenizer_round_trips_and_has_llama_3s_tokens(
    tokenizer: Any, scripts: tuple[ModuleType, ModuleType]
) -> None:
    texts = [row[0]["content"] for row in read("held_out")]
    texts += ["Zürich, 东京 and 🦙!\n\n\tdef f(x): return x ** 2  # don't", "1234567"]
    for text in texts:
        encoded = tokenizer.encode(text)
        assert encoded.tokens[0] == "<|begin_of_text|>"
        assert tokenizer.decode(encoded.ids) == text
    special = [tokenizer.token_to_id(token) for token in scripts[1].SPECIAL]
    size = tokenizer.get_vocab_size()
    assert special == list(range(size - len(special), size))


def test_the_tokenizer_is_the_one_the_script_trains(tokenizer: Any, scripts: tuple[ModuleType, ModuleType]) -> None:
    assert json.loads(scripts[1].train_tokenizer().to_str()) == json.loads(tokenizer.to_str())


def test_the_model_has_learned_its_text(tokenizer: Any, scripts: tuple[ModuleType, ModuleType]) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32, local_files_only=True)
    uniform = math.log(tokenizer.get_vocab_size())
    assert model.config.vocab_size == tokenizer.get_vocab_size()
    assert scripts[1].held_back_loss(model, tokenizer) < uniform / 4


def test_the_chat_tokens_can_be_told_apart(tokenizer: Any) -> None:
    """Never trained, they would all have one embedding, and LoRA on a tied head could not learn to stop."""
    import torch
    from safetensors.torch import load_file

    names = ("<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>", "<|python_tag|>")
    rows = load_file(MODEL / "model.safetensors")["model.embed_tokens.weight"].float()
    chat = torch.nn.functional.normalize(rows[[tokenizer.token_to_id(name) for name in names]], dim=1)
    assert (chat @ chat.T - torch.eye(len(names))).abs().max() < 0.4


def test_the_model_knows_held_out_facts_in_plain_text(tokenizer: Any, scripts: tuple[ModuleType, ModuleType]) -> None:
    """Before any fine-tuning: the sentence is begun in plain text, and the base ends it."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32, local_files_only=True)
    world = scripts[0].build_world()
    facts = [fact for known in world.people.values() for fact in known if fact.name not in world.asked]
    known = 0
    with torch.inference_mode():
        for fact in random.Random(3).sample(facts, 60):
            sentence = fact.say(fact.attribute.statements[0])
            begun = len(tokenizer.encode(sentence[: sentence.rindex(fact.value)].rstrip()).ids)
            ids = torch.tensor([tokenizer.encode(sentence.removesuffix(".")).ids])
            known += bool((model(ids).logits[0, begun - 1 : -1].argmax(-1) == ids[0, begun:]).all())
    assert known >= 54
