"""The reward stage end to end: what it learns, writes and refuses, and that it resumes to the same bits."""

from __future__ import annotations

import hashlib
import math
import xml.etree.ElementTree as ElementTree

import pytest
import torch
from safetensors.torch import load_file
from stage_recipes import PAIRS, RANKED, reward_stage, sft_stage, train, write_jsonl

from finetune.errors import InputError, RecipeError
from finetune.model.reward import HEAD_KEY


@pytest.mark.parametrize("load_in", ["nf4", "fp32"])
def test_from_an_sft_stage_with_ratings(walk, load_in):
    """Ten steps learn an easy rule; the manifest tells all of it, and the pictures are pictures."""
    reward = reward_stage(
        start_from="sft", margin="llama2-small", centring=0.01, slices=["topic"], train=train(max_steps=10)
    )
    done = walk({"sft": sft_stage(), "reward": reward}, {"model.load_in": load_in, "adapter.dropout": 0.1})
    manifest, folder = done.manifest("reward"), done.folders["reward"]
    report = manifest["held_out_report"]
    assert report["accuracy"] >= 0.9 and report["pairs"] == 8 and report["mean_gap"] > 0
    assert set(report["by_slice"]["topic"]) == {"odd", "even"}
    assert sum(found["pairs"] for found in report["by_rating"].values()) == 8
    assert sum(found["pairs"] for found in report["calibration"]["bins"]) == 8
    assert manifest["metrics"]["held_out_metrics"]["accuracy"] == pytest.approx(report["accuracy"])
    assert manifest["metrics"]["held_out_metrics"]["gap"] == pytest.approx(report["mean_gap"], abs=1e-5)
    assert manifest["metrics"]["held_out"] < manifest["metrics"]["first_held_out"]
    assert manifest["metrics"]["unit"] == "comparisons" and manifest["metrics"]["units"] == 40
    assert manifest["proof"]["max_abs_difference"] == 0 and len(manifest["proof"]["scores"]) == 4
    pictures = sorted(folder.glob("*.svg"))
    assert len(pictures) >= 4
    for picture in pictures:
        assert ElementTree.parse(picture).getroot().tag.endswith("svg")
        assert picture.name in manifest["files"]
    weights = folder / "adapter_model.safetensors"
    assert manifest["files"][weights.name]["sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    tensors = load_file(weights)
    assert tensors[HEAD_KEY].shape == (1, 64)
    assert all(tensors[name].abs().max() > 0 for name in tensors)
    assert not torch.equal(tensors[name := next(iter(tensors))], load_file(done.folders["sft"] / weights.name)[name])
    assert "held out: accuracy" in done.said and "the reward model, loaded again" in done.said


def test_margins_enter_the_loss(walk, tmp_path):
    """The first held-out loss, scores being the same: larger with a margin, largest with llama2-large; a column of the
    ratings' values is the same as the ratings."""
    values = {"significantly_better": 1, "better": 2 / 3, "slightly_better": 1 / 3, "negligibly_better": 0}
    write_jsonl(tmp_path / "pairs2.jsonl", [{**row, "margin": values[row["rating"]]} for row in PAIRS])
    data = [{"path": "pairs2.jsonl"}]
    first = {}
    for margin in ("none", "llama2-small", "llama2-large", "column"):
        done = walk({"reward": reward_stage(margin=margin, data=data, train=train(max_steps=1))})
        first[margin] = done.metrics("reward")[0]["held_out_loss"]
    assert first["none"] < first["llama2-small"] < first["llama2-large"]
    assert first["column"] == pytest.approx(first["llama2-small"], rel=1e-6)
    # Every margin is 0.4: log(1 + exp(0.4 - gap)) against log(1 + exp(-gap)) lies between 0 and 0.4.
    assert 0 < first["llama2-large"] - first["none"] < 1.5 and math.isfinite(first["llama2-large"])


@pytest.mark.parametrize(
    ("margin", "field", "told"),
    [("llama2-small", "rating", "no rating (significantly_better"), ("column", "margin", "no margin of its own")],
)
def test_a_missing_margin_is_told_before_the_base_is_loaded(walk, tmp_path, margin, field, told):
    rows = [{key: value for key, value in row.items() if key != field or i != 6} for i, row in enumerate(PAIRS)]
    write_jsonl(tmp_path / "holes.jsonl", rows)
    with pytest.raises(InputError) as caught:
        walk({"reward": reward_stage(margin=margin, data=[{"path": "holes.jsonl"}])})
    assert told in str(caught.value) and "1 of 40" in str(caught.value) and "holes.jsonl:7" in str(caught.value)
    assert not list((tmp_path / "runs" / "tiny").glob("*")), "nothing is left of a run that never began"


def test_rankings_all_pairs_or_the_best_against_the_rest(walk):
    """Three answers a prompt: a step of 4 rankings counts 4; the report has 3 pairs or 2 for each ranking."""
    pairs, weights = {}, {}
    for ranked in ("all", "top"):
        done = walk({"reward": reward_stage(data=[{"path": "ranked.jsonl"}], ranked=ranked)})
        pairs[ranked], weights[ranked] = done.manifest("reward")["held_out_report"]["pairs"], done.weights("reward")
        assert done.manifest("reward")["metrics"]["units"] == 16
    held_out = round(len(RANKED) * 0.2)
    assert pairs == {"all": 3 * held_out, "top": 2 * held_out} and weights["all"] != weights["top"]


def test_without_held_out_comparisons_there_is_no_report(walk):
    done = walk({"reward": reward_stage(held_out={"fraction": 0.0}, train=train(max_steps=1))})
    assert done.manifest("reward")["held_out_report"] == {} and not list(done.folders["reward"].glob("*.svg"))


@pytest.mark.parametrize("changes", [{"dora": True}, {"init": "pissa"}, {"modules_to_save": ["embed_tokens"]}], ids=str)
def test_adapters_of_every_kind(walk, changes):
    done = walk(
        {"reward": reward_stage(train=train(max_steps=2))}, {f"adapter.{key}": value for key, value in changes.items()}
    )
    assert done.manifest("reward")["proof"]["max_abs_difference"] < 1e-4


def test_layouts_give_the_same(walk):
    found = []
    for layout in ("ragged", "padded"):
        done = walk({"reward": reward_stage(train=train(max_steps=3, layout=layout))})
        found.append([line["loss"] for line in done.metrics("reward") if "loss" in line])
    assert len(found[0]) == 3 and found[0] == pytest.approx(found[1], rel=1e-4)


def test_resumed_to_the_same_bits(walk, interrupted):
    """Interrupted after step 2 of 5, with dropout: weights, head and everything logged are those of the whole run."""
    stages = {"reward": reward_stage(train=train(max_steps=5, early_stop=9, eval_every=2, checkpoint_every=2))}
    changes = {"adapter.dropout": 0.1, "model.load_in": "nf4"}
    whole = walk(stages, changes, runs="whole")
    with interrupted(3):
        walk(stages, changes)
    again = walk(stages, changes)
    assert "resumed from the checkpoint of step 3" in again.said
    assert again.weights("reward") == whole.weights("reward")
    assert again.metrics("reward") == whole.metrics("reward")
    assert again.manifest("reward")["held_out_report"] == whole.manifest("reward")["held_out_report"]
    assert "already done" in walk(stages, changes).said


def test_a_reward_model_is_no_adapter_to_write_with(walk):
    with pytest.raises(InputError, match="gives a reward model, not an adapter that writes text"):
        walk({"reward": reward_stage(train=train(max_steps=1)), "again": sft_stage(start_from="reward")})


def test_what_a_reward_stage_does_not_have_is_refused(walk):
    with pytest.raises(RecipeError, match="beta"):
        walk({"reward": reward_stage(beta=0.1)})
    with pytest.raises(InputError, match="no row has a column 'topics'"):
        walk({"reward": reward_stage(slices=["topics"])})
    with pytest.raises(InputError, match="early_stop needs held-out"):
        walk({"reward": reward_stage(held_out={"fraction": 0.0}, train=train(early_stop=1))})
