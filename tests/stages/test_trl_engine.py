"""`engine: trl` through the command: the artefacts, metrics and proofs of engine finetune, close to its weights."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from stage_recipes import Walk, dpo_stage, reward_stage, sft_stage, train

from finetune.engine.tracking import Metrics, MetricsFile
from finetune.errors import InputError, InterruptedRunError, RecipeError
from finetune.recipe.load import load_recipe
from finetune.recipe.train_settings import TrainSettings
from finetune.stages.trl_engine import row_stream


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def _apart(one: Path, other: Path) -> float:
    """The largest difference of any weight, and all names and shapes equal."""
    mine, theirs = _weights(one), _weights(other)
    assert mine.keys() == theirs.keys()
    return max((mine[name] - theirs[name]).abs().max().item() for name in mine)


# 16 questions and 32 pairs are trained on: whole steps of 4, so that both engines cut the epochs alike.
SHORT = {"max_steps": 6, "batch_size": 4, "micro_batch_size": 4, "learning_rate": 0.005}
STAGES: dict[str, Any] = {
    "sft": sft_stage(train=train(max_steps=6), held_out={"fraction": 1 / 3}),
    "sft-ragged": sft_stage(train=train(max_steps=6, layout="ragged"), held_out={"fraction": 1 / 3}),
    "reward": reward_stage(train=SHORT, margin="column", centring=0.01),
    "dpo": dpo_stage(train=SHORT, loss="sigmoid", nll_weight=0.2),
    "robust": dpo_stage(train=SHORT, loss="robust", label_smoothing=0.1),
}


@pytest.mark.parametrize("name", STAGES)
def test_ends_where_engine_finetune_ends(walk: Walk, name: str) -> None:
    stage = STAGES[name]
    done = walk({"ours": stage, "trl": {**stage, "engine": "trl"}})
    ours, theirs = done.folders["ours"], done.folders["trl"]
    assert _apart(ours, theirs) < 1e-4
    moved = max(value.abs().max().item() for key, value in _weights(theirs).items() if "lora_B" in key)
    assert moved > 0.01
    assert {path.name for path in ours.iterdir()} == {path.name for path in theirs.iterdir()}
    one, other = done.metrics("ours"), done.metrics("trl")
    # TRL's held-out loss of sft and nll is a mean over batches of their means over tokens; ours is over all tokens.
    limit = {"held_out_loss": 0.01} if name in ("sft", "sft-ragged", "dpo") else {}
    for key in ("step", "epoch", "loss", "learning_rate", "trained", "tokens", "held_out_loss"):
        mine, found = ([line[key] for line in lines if key in line] for lines in (one, other))
        assert found == pytest.approx(mine, rel=limit.get(key, 1e-4)), key
    manifest = done.manifest("trl")
    assert manifest["resolved"]["engine"].startswith("trl 1.")
    assert manifest["proof"]["max_abs_difference"] == 0.0
    assert manifest["metrics"]["steps"] == 6
    assert manifest["metrics"]["unit"] == done.manifest("ours")["metrics"]["unit"]
    for key in ("tokens", "units", "first_loss", "last_loss", "best_step"):
        assert manifest["metrics"][key] == pytest.approx(done.manifest("ours")["metrics"][key], rel=1e-4), key


def test_goes_on_from_an_adapter(walk: Walk) -> None:
    """DPO's reference is then a copy of that adapter, so the first loss is ln 2, as it has to be."""
    stages = {"sft": sft_stage()}
    for engine in ("finetune", "trl"):
        stages[f"dpo-{engine}"] = dpo_stage(train=SHORT, start_from="sft", engine=engine)
        stages[f"reward-{engine}"] = reward_stage(train=SHORT, start_from="sft", engine=engine)
    done = walk(stages)
    for kind in ("dpo", "reward"):
        assert _apart(done.folders[f"{kind}-finetune"], done.folders[f"{kind}-trl"]) < 1e-4
        assert _weights(done.folders[f"{kind}-trl"]).keys() >= _weights(done.folders["sft"]).keys()
    first = next(line for line in done.metrics("dpo-trl") if "loss" in line)
    assert first["loss"] == pytest.approx(np.log(2), rel=1e-6)


@pytest.mark.parametrize("kind", ["sft", "reward", "dpo"])
def test_a_4bit_base_and_plain_peft_loads_the_result(walk: Walk, tiny_base: Path, kind: str) -> None:
    from peft import PeftModel
    from transformers import LlamaForCausalLM, LlamaForSequenceClassification

    stage = {"sft": sft_stage, "reward": reward_stage, "dpo": dpo_stage}[kind](engine="trl")
    done = walk({"one": stage}, {"model.load_in": "nf4"})
    assert done.manifest("one")["proof"]["max_abs_difference"] == 0.0
    assert {value.dtype for value in _weights(done.folders["one"]).values()} == {torch.float32}
    plain = LlamaForSequenceClassification if kind == "reward" else LlamaForCausalLM
    options = {"num_labels": 1} if kind == "reward" else {}
    model = PeftModel.from_pretrained(plain.from_pretrained(tiny_base, **options), done.folders["one"])
    saved, loaded = _weights(done.folders["one"]), dict(model.named_parameters())
    for name, value in saved.items():
        base, _, last = name.rpartition(".")
        place = f"{base}.modules_to_save.default.{last}" if ".score." in name else f"{base}.default.{last}"
        assert torch.equal(loaded[place], value), name


@pytest.mark.parametrize("kind", ["sft", "reward", "dpo"])
def test_an_interrupted_run_goes_on(walk: Walk, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped by SIGTERM in step 5, the last checkpoint broken, and the same command again: as if uninterrupted."""
    make = {"sft": sft_stage, "reward": reward_stage, "dpo": dpo_stage}[kind]
    settings = train(max_steps=8, checkpoint_every=2, keep_checkpoints=3)
    stages = {"one": make(engine="trl", train=settings, held_out={"fraction": 0.2})}
    whole = walk(stages, runs="whole")

    write = MetricsFile.write

    def then_stop(self: MetricsFile, metrics: Metrics) -> None:
        write(self, metrics)
        if metrics["step"] == 4 and "loss" in metrics:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched, pytest.raises(InterruptedRunError, match="after step 5 of 8"):
        patched.setattr(MetricsFile, "write", then_stop)
        walk(stages, runs="cut")
    [folder] = (tmp_path / "cut").rglob("work/checkpoints")
    assert {path.name for path in folder.glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-4", "checkpoint-5"}
    state = (folder / "checkpoint-5/optimizer.pt").read_bytes()
    (folder / "checkpoint-5/optimizer.pt").write_bytes(state[: len(state) // 2])  # as a kill -9 leaves it
    resumed = walk(stages, runs="cut")
    assert "checkpoint checkpoint-5 is not whole (BadZipFile" in resumed.said
    assert "resumed from the checkpoint of step 4" in resumed.said
    assert resumed.weights("one") == whole.weights("one")
    assert [line["step"] for line in resumed.metrics("one")] == [line["step"] for line in whole.metrics("one")]
    assert resumed.manifest("one")["metrics"]["tokens"] == whole.manifest("one")["metrics"]["tokens"]


def test_rankings_are_refused(walk: Walk) -> None:
    with pytest.raises(InputError, match=r"engine trl learns from pairs, but .* such as ranked.jsonl"):
        walk({"one": reward_stage(engine="trl", data=[{"path": "ranked.jsonl"}])})


def test_bf16_leaves_later_stages_as_they_were(walk: Walk) -> None:
    """Mixed precision is the process's in accelerate: a stage after TRL's trains in its own again."""
    done = walk(
        {"trl": sft_stage(engine="trl"), "ours": sft_stage(start_from="trl"), "again": dpo_stage(engine="trl")},
        {"model.load_in": "bf16"},
    )
    losses = [line["loss"] for name in ("trl", "ours", "again") for line in done.metrics(name) if "loss" in line]
    assert np.isfinite(losses).all()
    assert done.manifest("trl")["resolved"]["compute"] == "bfloat16"


REFUSED = {
    "train.early_stop": sft_stage(train=train(early_stop=2), held_out={"fraction": 0.2}),
    "multiple of micro_batch_size 3": sft_stage(train=train(micro_batch_size=3)),
    "train.layout: ragged": reward_stage(train=train(layout="ragged")),
    "ranked": reward_stage(ranked="top"),
    "loss: kto": dpo_stage(loss="kto"),
    "loss: orpo": dpo_stage(loss="orpo"),
    "label_smoothing: with loss sigmoid": dpo_stage(label_smoothing=0.1),
    "mask_format_tokens": dpo_stage(mask_format_tokens=True),
    "reference: ahead": dpo_stage(reference="ahead"),
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_trl_cannot_do_is_refused_by_check(write_recipe, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        load_recipe(write_recipe({"one": {**REFUSED[words], "engine": "trl"}}))
    if "multiple" not in words:
        load_recipe(write_recipe({"one": REFUSED[words]}))


ADAPTERS = {
    "dropout": ({"adapter.dropout": 0.1}, dpo_stage),
    "init pissa": ({"adapter.init": "pissa"}, reward_stage),
    "modules_to_save": ({"adapter.modules_to_save": ["lm_head"]}, reward_stage),
}


@pytest.mark.parametrize("words", ADAPTERS)
def test_adapters_that_trl_cannot_train_are_refused(write_recipe, words: str) -> None:
    changes, make = ADAPTERS[words]
    with pytest.raises(RecipeError, match=f"is trained by TRL, but adapter.{words}"):
        load_recipe(write_recipe({"one": make(engine="trl")}, changes))
    load_recipe(write_recipe({"one": make()}, changes))
    load_recipe(write_recipe({"one": sft_stage(engine="trl")}, changes))


def test_rows_go_on_over_an_epochs_end() -> None:
    """Five rows in steps of 2: TRL is given two epochs as ten rows in our orders, without a gap."""
    orders = [np.array([3, 1, 4, 0, 2]), np.array([0, 1, 2, 3, 4]), np.array([4, 3, 2, 1, 0])]
    settings = TrainSettings(epochs=2, batch_size=2, micro_batch_size=2)
    assert row_stream(orders.__getitem__, settings).tolist() == [3, 1, 4, 0, 2, 0, 1, 2, 3, 4]
    cut = TrainSettings(max_steps=6, batch_size=2, micro_batch_size=2)
    assert row_stream(orders.__getitem__, cut).tolist() == [3, 1, 4, 0, 2, 0, 1, 2, 3, 4, 4, 3]


def test_names_of_trl_are_kept_in_the_metrics(walk: Walk) -> None:
    lines = walk({"one": sft_stage(engine="trl")}).metrics("one")
    trained = [line for line in lines if "loss" in line]
    assert len(trained) == 2 and all({"mean_token_accuracy", "entropy"} <= line.keys() for line in trained)
