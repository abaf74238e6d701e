"""Rounds and the plan: what was done in rounds is found again, however they are written. No torch anywhere here."""

import json

import pytest

from finetune.plan.plan import make_plan
from finetune.recipe.load import recipe_from_dict

ROWS = [{"path": "rows.jsonl"}]
JUDGE = {"checker": {"kind": "finished"}, "prompts": ROWS}


@pytest.fixture
def folder(tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    config = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    (base / "config.json").write_text(json.dumps({**config, "vocab_size": 100, "intermediate_size": 128}))
    (base / "tokenizer.json").write_text("{}")
    (base / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a"}\n')
    return tmp_path


def folders(folder, stages):
    made = make_plan(recipe_from_dict({"name": "x", "model": {"base": "base"}, "stages": stages}, folder), folder)
    return {stage.name: stage.folder.name for stage in made.stages}, {stage.name: stage.inputs for stage in made.stages}


def in_rounds(repeat):
    best = {"kind": "reject", "policy": {"first": "sft", "then": "more"}, "earlier": "all", **JUDGE}
    more = {"kind": "sft", "data": [*ROWS, {"stage": "best", "rounds": "all"}]}
    return {"sft": {"kind": "sft", "data": ROWS}, "loop": {"repeat": repeat, "stages": {"best": best, "more": more}}}


def test_rounds_and_the_same_written_out_share_their_folders(folder):
    by_hand = {
        "sft": {"kind": "sft", "data": ROWS},
        "best.1": {"kind": "reject", "policy": "sft", **JUDGE},
        "more.1": {"kind": "sft", "data": [*ROWS, {"stage": "best.1"}]},
        "best.2": {"kind": "reject", "policy": "more.1", "earlier": ["best.1"], **JUDGE},
        "more.2": {"kind": "sft", "data": [*ROWS, {"stage": "best.1"}, {"stage": "best.2"}]},
    }
    assert folders(folder, in_rounds(2)) == folders(folder, by_hand)
    assert folders(folder, in_rounds(2))[1]["more.2"] == ("best.1", "best.2")


def test_more_rounds_repeat_nothing(folder):
    (two, _), (three, _) = folders(folder, in_rounds(2)), folders(folder, in_rounds(3))
    assert {name: three[name] for name in two} == two
    assert set(three) - set(two) == {"best.3", "more.3"}


def test_a_change_in_one_round_leaves_the_rounds_before(folder):
    changed = in_rounds(3)
    changed["loop"]["stages"]["best"]["samples"] = {"round": [16, 8, 16]}
    (before, _), (after, _) = folders(folder, in_rounds(3)), folders(folder, changed)
    assert [name for name in before if before[name] == after[name]] == ["sft", "best.1", "more.1"]
