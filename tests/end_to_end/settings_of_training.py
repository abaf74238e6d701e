"""What settings of training and of an sft stage change."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
from settings_lab import A, Lab, M, S, T, other_bits, refused, source


def epochs(lab: Lab) -> None:
    steps = {
        passes: lab.run({T + "max_steps": None, T + "epochs": passes}).manifest["metrics"]["steps"]
        for passes in (0.5, 1)
    }
    rows = lab.run().manifest["data"]["train_rows"]
    whole = -(-rows // 4)
    assert steps == {0.5: -(-whole // 2), 1: whole}


def max_steps(lab: Lab) -> None:
    assert len(lab.run({T + "max_steps": 2}).steps) == 2


def rate(lab: Lab) -> None:
    assert other_bits(lab, T + "learning_rate", 0.02).steps[0]["learning_rate"] == 0.02
    assert lab.run({T + "learning_rate": "auto"}).manifest["resolved"]["learning_rate"] not in (0.01, 0.02)


def batch_size(lab: Lab) -> None:
    seen = other_bits(lab, T + "batch_size", 8)
    assert seen.steps[0]["tokens"] > 1.8 * lab.run().steps[0]["tokens"]


def micro_batch_size(lab: Lab) -> None:
    """More forward passes; the same losses."""
    whole, cut = lab.run(), lab.run({T + "micro_batch_size": 1})
    assert (len(whole.forwards), len(cut.forwards)) == (3, 12)
    assert [s["loss"] for s in cut.steps] == pytest.approx([s["loss"] for s in whole.steps], rel=1e-5)


def schedule(lab: Lab) -> None:
    rates = {
        kind: tuple(step["learning_rate"] for step in lab.run({T + "schedule": kind, T + "max_steps": 5}).steps)
        for kind in ("cosine", "linear", "constant")
    }
    assert len(set(rates.values())) == 3 and len(set(rates["constant"])) == 1


def warmup(lab: Lab) -> None:
    assert [step["learning_rate"] for step in lab.run({T + "warmup": 2}).steps][:2] == [0.005, 0.01]


def optimizer(lab: Lab) -> None:
    """8-bit states begin at 4,096 values a tensor, which rank 64 has here. Pages are a matter of GPUs."""
    large = {A + "rank": 64, A + "alpha": 64}
    other_bits(lab, T + "optimizer", "adamw_8bit", large)
    for kind in ("paged_adamw", "paged_adamw_8bit"):
        assert lab.run({T + "optimizer": kind}).code == 0


def betas(lab: Lab) -> None:
    other_bits(lab, T + "betas", [0.5, 0.9])


def weight_decay(lab: Lab) -> None:
    other_bits(lab, T + "weight_decay", 0.5)


def max_grad_norm(lab: Lab) -> None:
    tight, loose = lab.run({T + "max_grad_norm": 1e-6}), lab.run({T + "max_grad_norm": None})
    assert len({tight.bits, loose.bits, lab.run().bits}) == 3
    assert tight.steps[0]["grad_norm"] == loose.steps[0]["grad_norm"]  # as it was before the clipping


def gradient_checkpointing(lab: Lab) -> None:
    """Every layer runs once more in the backward pass, and the numbers stay."""
    kept, recomputed = lab.run(), lab.run({T + "gradient_checkpointing": True})
    assert (kept.blocks, recomputed.blocks) == (3 * 2, 3 * 2 * 2)  # steps, layers, passes
    assert recomputed.bits == kept.bits
    assert lab.plan({T + "gradient_checkpointing": True}) != lab.plan()


def layout(lab: Lab) -> None:
    """ragged: one row of all tokens. padded: a rectangle. The losses stay."""
    ragged, padded = lab.run(), lab.run({T + "layout": "padded"})
    assert {rows for rows, _ in ragged.forwards} == {1}
    assert {rows for rows, _ in padded.forwards} == {4}
    assert [s["loss"] for s in padded.steps] == pytest.approx([s["loss"] for s in ragged.steps], rel=1e-5)


def eval_every(lab: Lab) -> None:
    assert lab.run({T + "eval_every": 1}).measured == [0, 1, 2, 3]
    assert lab.run({T + "eval_every": 50}).measured == [0, 3]


def checkpoints_after_an_interrupt(lab: Lab, every: int, keep: int) -> list[str]:
    changes = {T + "max_steps": 20, T + "checkpoint_every": every, T + "keep_checkpoints": keep}
    seen = lab.run(changes, interrupt_in_step=5)
    assert seen.code == 130 and seen.folder is not None, seen.printed
    return sorted(path.name for path in (seen.folder / "work" / "checkpoints").iterdir())


def checkpoint_every(lab: Lab) -> None:
    assert checkpoints_after_an_interrupt(lab, 2, 3) == ["step-00000002", "step-00000004", "step-00000005"]
    assert checkpoints_after_an_interrupt(lab, 1, 3) == ["step-00000003", "step-00000004", "step-00000005"]


def keep_checkpoints(lab: Lab) -> None:
    assert checkpoints_after_an_interrupt(lab, 1, 1) == ["step-00000005"]


def early_stop(lab: Lab) -> None:
    """At a rate that makes things worse, the run ends early, and what it leaves is the best it measured."""
    far = {T + "max_steps": 12, T + "learning_rate": 30.0, T + "warmup": 0, T + "eval_every": 1}
    stopped = lab.run({**far, T + "early_stop": 2})
    metrics = stopped.manifest["metrics"]
    assert metrics["stopped_early"] and metrics["steps"] < 12
    assert metrics["best_step"] == metrics["steps"] - 2
    left = lab.run({S + "start_from": str(stopped.folder)}).manifest["metrics"]["first_held_out"]
    assert left == pytest.approx(metrics["best_held_out"], rel=1e-6)
    assert metrics["held_out"] == metrics["best_held_out"] < stopped.lines[-1]["held_out_loss"]
    assert not lab.run(far).manifest["metrics"]["stopped_early"]


def kind(lab: Lab) -> None:
    refused(lab, {S + "kind": "sftt"}, "stages.sft.kind", "did you mean 'sft'")


def data(lab: Lab) -> None:
    two = [{"path": str(lab.root / file)} for file in ("questions.jsonl", "others.jsonl")]
    assert lab.run({S + "data": two}).manifest["data"]["rows"] == 52


def start_from(lab: Lab) -> None:
    first = lab.run()
    second = lab.run({S + "start_from": str(first.folder)})
    assert second.manifest["metrics"]["first_held_out"] == pytest.approx(
        first.manifest["metrics"]["held_out"], rel=1e-6
    )


def too_long(lab: Lab) -> None:
    assert lab.run(source(lab, "long.jsonl")).manifest["data"]["dropped"]["longer than max_length"]["rows"] == 1
    cut = lab.run({**source(lab, "long.jsonl"), S + "too_long": "truncate"}).manifest["data"]
    assert cut["truncated"] == 1
    refused(lab, {**source(lab, "long.jsonl"), S + "too_long": "error"}, "long.jsonl:33")


def duplicates(lab: Lab) -> None:
    kept = lab.run(source(lab, "twice.jsonl")).manifest["data"]
    dropped = lab.run({**source(lab, "twice.jsonl"), S + "duplicates": "drop"}).manifest["data"]
    assert kept["duplicates"] == dropped["duplicates"] == 32
    assert kept["train_rows"] + kept["held_out_rows"] == 64
    assert dropped["train_rows"] + dropped["held_out_rows"] == 32


def loss_on(lab: Lab) -> None:
    everything = lab.run({S + "loss_on": "all"}).manifest["data"]
    assert everything["trained_tokens"] == everything["tokens"] - everything["train_rows"]
    assert lab.run().manifest["data"]["trained_tokens"] < everything["trained_tokens"] / 2


def allow_unusual_mask(lab: Lab) -> None:
    changes = {**source(lab, "talk.jsonl"), M + "max_length": 1024}
    refused(lab, changes, "would be trained", "allow_unusual_mask")
    assert lab.run({**changes, S + "allow_unusual_mask": True}).code == 0


def engine(lab: Lab) -> None:
    """TRL's trainer logs what ours does not, and calls the model by its own forward."""
    assert not any("mean_token_accuracy" in line for line in lab.run().lines)
    assert any("mean_token_accuracy" in line for line in lab.run({S + "engine": "trl"}).lines)


CHECKS: Mapping[str, Callable[[Lab], object]] = {
    "TrainSettings.epochs": epochs,
    "TrainSettings.max_steps": max_steps,
    "TrainSettings.learning_rate": rate,
    "TrainSettings.batch_size": batch_size,
    "TrainSettings.micro_batch_size": micro_batch_size,
    "TrainSettings.schedule": schedule,
    "TrainSettings.warmup": warmup,
    "TrainSettings.optimizer": optimizer,
    "TrainSettings.betas": betas,
    "TrainSettings.weight_decay": weight_decay,
    "TrainSettings.max_grad_norm": max_grad_norm,
    "TrainSettings.gradient_checkpointing": gradient_checkpointing,
    "TrainSettings.layout": layout,
    "TrainSettings.eval_every": eval_every,
    "TrainSettings.checkpoint_every": checkpoint_every,
    "TrainSettings.keep_checkpoints": keep_checkpoints,
    "TrainSettings.early_stop": early_stop,
    "SftStage.kind": kind,
    "SftStage.data": data,
    "SftStage.start_from": start_from,
    "SftStage.too_long": too_long,
    "SftStage.duplicates": duplicates,
    "SftStage.loss_on": loss_on,
    "SftStage.allow_unusual_mask": allow_unusual_mask,
    "SftStage.engine": engine,
}
