"""The dpo stage end to end: first losses, every loss, both ways to the reference, resuming, the fall of the chosen."""

from __future__ import annotations

import math

import pytest
import torch
from safetensors.torch import load
from stage_recipes import PAIRS, dpo_stage, sft_stage, train, write_jsonl

from finetune.errors import InputError, RecipeError

DATA_OF = {"kto": [{"path": "judged.jsonl"}]}


def losses(done, stage="dpo"):
    return [line["loss"] for line in done.metrics(stage) if "loss" in line]


@pytest.mark.parametrize("load_in", ["nf4", "fp32"])
def test_from_an_sft_stage(walk, load_in):
    done = walk(
        {"sft": sft_stage(), "dpo": dpo_stage(start_from="sft", reference="batch", train=train(max_steps=10))},
        {"model.load_in": load_in, "adapter.dropout": 0.1},
    )
    manifest = done.manifest("dpo")
    metrics = manifest["metrics"]
    before, after = done.metrics("dpo")[0], metrics["held_out_metrics"]
    assert metrics["first_held_out"] == pytest.approx(math.log(2), abs=1e-7), "dropout is off: exactly the reference"
    assert (before["held_out_kl"], before["held_out_margin"], before["held_out_accuracy"]) == (0, 0, 0.5)
    assert metrics["held_out"] < math.log(2) and after["accuracy"] > 0.5 and after["margin"] > 0 and after["kl"] > 0
    assert after["margin"] == pytest.approx(after["reward_chosen"] - after["reward_rejected"], abs=1e-5)
    assert manifest["inputs"] == {"sft": done.manifest("sft")["fingerprint"]}
    assert manifest["proof"]["max_abs_difference"] == 0 and manifest["warnings"] == []
    assert "every log-ratio is 0" in done.said
    policy, start = load(done.weights("dpo")), load(done.weights("sft"))
    assert policy.keys() == start.keys(), "the reference is not saved with it"
    assert all(not torch.equal(policy[name], start[name]) for name in policy)


START = {
    "sigmoid": math.log(2),
    "hinge": 1.0,
    "ipo": 25.0,
    "robust": math.log(2),
    "sigmoid_norm": math.log(2),
    "kto": 0.5,
}
"""While policy = reference; ipo 1 / (4 beta^2) with beta 0.1; kto half its weight."""


@pytest.mark.parametrize("loss", ["sigmoid", "hinge", "ipo", "robust", "sigmoid_norm", "simpo", "orpo", "kto"])
def test_every_loss_trains(walk, loss):
    stage = dpo_stage(loss=loss, train=train(max_steps=2), data=DATA_OF.get(loss, [{"path": "pairs.jsonl"}]))
    done = walk({"dpo": stage})
    found = losses(done)
    assert len(found) == 2 and all(math.isfinite(value) for value in found)
    if loss in START:
        assert found[0] == pytest.approx(START[loss], rel=1e-6)
    assert all(tensor.abs().max() > 0 for tensor in load(done.weights("dpo")).values()), "B was 0 and has moved"
    logged = done.metrics("dpo")[1]
    assert ("kl" in logged) == (loss not in ("simpo", "orpo")) and ("nll" in logged) == (loss == "orpo")
    assert ("logp_chosen" in logged) == (loss != "kto")


def test_ktos_weights(walk):
    """Half of each answer's weight at first; the file has desirable and undesirable ones in turn."""
    stage = dpo_stage(loss="kto", data=DATA_OF["kto"], kto_weights=[1.0, 3.0], train=train(max_steps=1, batch_size=24))
    first = losses(walk({"dpo": stage}))[0]
    assert 0.5 < first < 1.5 and first * 24 * 2 == pytest.approx(round(first * 24 * 2), abs=1e-4)


def test_ktos_sides_are_means_over_their_answers(walk, tmp_path):
    """Whatever the cut: the rewards of both sides, at fixed weights, are the same for micro-batches of 2 and of 4.

    The baseline is a micro-batch's own, so the losses are not.
    """
    found = []
    for micro in (2, 4):
        stage = dpo_stage(loss="kto", data=DATA_OF["kto"], train=train(max_steps=2, micro_batch_size=micro, warmup=1))
        found.append(walk({"dpo": stage}).metrics("dpo"))
    one, other = ([line for line in lines if "loss" in line][1] for lines in found)
    for name in ("reward_chosen", "reward_rejected"):
        assert one[name] != 0 and one[name] == pytest.approx(other[name], rel=1e-4)


def test_the_reference_ahead_or_with_every_batch(walk):
    """The same losses and weights; and what one run computed ahead another finds."""
    stages = [{"dpo": dpo_stage(reference=reference, train=train(max_steps=6))} for reference in ("ahead", "batch")]
    ahead, batch = (walk(stage) for stage in stages)
    assert "once ahead" in ahead.said and "once ahead" not in batch.said
    assert losses(ahead) == pytest.approx(losses(batch), rel=1e-4)
    one, other = load(ahead.weights("dpo")), load(batch.weights("dpo"))
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-3, atol=1e-4)
    other_beta = walk({"dpo": dpo_stage(reference="ahead", beta=0.3, train=train(max_steps=1))})
    assert other_beta.said.count("answers found in the cache") == 2 and "once ahead" not in other_beta.said


def test_auto_goes_ahead_where_rows_are_seen_again(walk):
    seen_once = walk({"dpo": dpo_stage(train=train(max_steps=8))})
    seen_twice = walk({"dpo": dpo_stage(train=train(max_steps=9))})
    assert "once ahead" not in seen_once.said and "once ahead" in seen_twice.said


@pytest.mark.parametrize("changes", [{"dora": True}, {"init": "orthogonal"}, {"init": "pissa"}], ids=str)
def test_without_start_from_the_base_is_the_reference_for_adapters_of_every_kind(walk, changes):
    changes = {f"adapter.{key}": value for key, value in changes.items()}
    done = walk({"dpo": dpo_stage(train=train(max_steps=2))}, changes)
    assert losses(done)[0] == pytest.approx(math.log(2), abs=1e-7)


def test_settings_change_what_they_should(walk):
    """At equal first losses, one step of each setting leads somewhere else; the second loss differs."""
    base = losses(walk({"dpo": dpo_stage(train=train(max_steps=2))}))
    for changes in ({"mask_format_tokens": True}, {"beta": 0.2}):
        found = losses(walk({"dpo": dpo_stage(train=train(max_steps=2), **changes)}))
        assert found[0] == pytest.approx(base[0], abs=1e-6) and found[1] != pytest.approx(base[1], rel=1e-4)
    with_nll = walk({"dpo": dpo_stage(nll_weight=0.2, train=train(max_steps=2))})
    assert losses(with_nll)[0] == pytest.approx(base[0] + 0.2 * with_nll.metrics("dpo")[1]["nll"], rel=1e-5)


def test_rankings(walk):
    """All pairs of three answers or the best against the rest: one example a ranking, ln 2 at first, not the same."""
    found = {}
    for ranked in ("all", "top"):
        done = walk({"dpo": dpo_stage(data=[{"path": "ranked.jsonl"}], ranked=ranked)})
        found[ranked] = losses(done)
        assert done.manifest("dpo")["metrics"]["units"] == 16 and found[ranked][0] == pytest.approx(math.log(2))
    assert found["all"][-1] != pytest.approx(found["top"][-1], rel=1e-5)


@pytest.mark.parametrize("reference", ["ahead", "batch"])
def test_resumed_to_the_same_bits(walk, interrupted, reference):
    stage = dpo_stage(start_from="sft", reference=reference, train=train(max_steps=5, eval_every=2, checkpoint_every=2))
    stages, changes = {"sft": sft_stage(), "dpo": stage}, {"adapter.dropout": 0.1, "model.load_in": "nf4"}
    whole = walk(stages, changes, runs="whole")
    with interrupted(3):
        walk({"sft": sft_stage(), "dpo": stage}, changes)
    again = walk(stages, changes)
    assert "sft: already done" in again.said and "resumed from the checkpoint of step 3" in again.said
    assert ("answers found in the cache" in again.said) == (reference == "ahead")
    assert again.weights("dpo") == whole.weights("dpo") and again.metrics("dpo") == whole.metrics("dpo")


def test_a_fall_of_the_chosen_answers_is_told(walk, tmp_path):
    """Two of five comparisons the wrong way round and a much too high rate: both answers fall. Not otherwise."""
    swap = {"chosen": "rejected", "rejected": "chosen"}
    rows = [{swap.get(k, k) if i * 7 % 5 < 2 else k: v for k, v in row.items()} for i, row in enumerate(PAIRS)]
    write_jsonl(tmp_path / "noisy.jsonl", rows)
    steep = train(max_steps=8, learning_rate=0.1, schedule="constant", eval_every=100)
    done = walk({"dpo": dpo_stage(data=[{"path": "noisy.jsonl"}], reference="batch", train=steep)})
    (warning,) = done.manifest("dpo")["warnings"]
    assert (
        "chosen answers became less likely" in warning
        and "nll_weight" in warning
        and f"warning: {warning}" in done.said
    )
    metrics = done.manifest("dpo")["metrics"]
    fall = metrics["first_held_out_metrics"]["logp_chosen"] - metrics["held_out_metrics"]["logp_chosen"]
    assert f"{fall:.2f} nats per token" in warning and fall > 0.1
    data = [{"path": "noisy.jsonl"}]
    little = walk({"dpo": dpo_stage(data=data, reference="batch", nll_weight=0.001, train=steep)})
    (warning,) = little.manifest("dpo")["warnings"]
    assert "a larger nll_weight than 0.001, a larger beta" in warning, "what is set already is no advice"
    held = walk({"dpo": dpo_stage(nll_weight=1.0, train=train(max_steps=4))})
    assert held.manifest("dpo")["warnings"] == [] and "less likely" not in held.said


@pytest.mark.parametrize(
    ("loss", "key", "value"),
    [
        ("ipo", "label_smoothing", 0.1),
        ("sigmoid", "simpo_margin", 1.0),
        ("sigmoid", "kto_weights", [1.0, 2.0]),
        ("kto", "nll_weight", 0.2),
        ("kto", "ranked", "top"),
        ("kto", "reference", "ahead"),
        ("simpo", "reference", "batch"),
        ("orpo", "reference", "ahead"),
    ],
)
def test_a_setting_that_the_loss_does_not_read_is_refused(write_recipe, loss, key, value, capsys):
    from finetune.cli.main import main

    stage = dpo_stage(loss=loss, data=DATA_OF.get(loss, [{"path": "pairs.jsonl"}]), **{key: value})
    assert main(["check", str(write_recipe({"dpo": stage}))]) == 2
    said = capsys.readouterr().err
    assert key in said and f"loss {loss} does not read it" in said
    del stage[key]
    assert main(["check", str(write_recipe({"dpo": stage}))]) == 0


def test_data_of_the_wrong_kind(walk, tmp_path):
    with pytest.raises(InputError, match="loss: kto"):
        walk({"dpo": dpo_stage(data=[{"path": "judged.jsonl"}])})
    with pytest.raises(InputError, match="reward and dpo stages read"):
        walk({"dpo": dpo_stage(loss="kto")})
    with pytest.raises(InputError, match="prompt_completion, which sft stages read"):
        walk({"dpo": dpo_stage(data=[{"path": "questions.jsonl"}])})
    with pytest.raises(RecipeError, match="micro_batch_size 2 or more"):
        walk({"dpo": dpo_stage(loss="kto", data=DATA_OF["kto"], train=train(micro_batch_size=1))})
    write_jsonl(tmp_path / "alike.jsonl", [{**row, "rejected": row["chosen"] + " "} for row in PAIRS])
    with pytest.raises(InputError, match="differ at most by white space"):
        walk({"dpo": dpo_stage(data=[{"path": "alike.jsonl"}])})
