"""A file measured with a run: its loss, or a reward model's scores; and the loss beside another run's or the base's."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from finetune.errors import InputError
from finetune.evaluation.measurement import Measurement, identity, opened, opened_writer
from finetune.evaluation.writing import free
from finetune.numerics.bootstrap import mean_interval
from finetune.plan.digest import source_digest
from finetune.plan.evaluations import Evaluation
from finetune.recipe.data_settings import DataFormat, DataSource
from finetune.stages import score

Say = Callable[[str], None]


def measure_file(
    run: Path,
    data: Path,
    *,
    against: Path | Literal["base"] | None = None,
    base: str | None = None,
    data_format: DataFormat = "auto",
    slices: Sequence[str] = (),
    limit: int | None = None,
    say: Say,
) -> Evaluation:
    """Task `score` for a reward model, `loss` for what writes; `stages/score.py` says how.

    loss: nats per token over all trained tokens, with its interval over rows. against: the difference, ours minus
    theirs, row by row: below 0 this run fits the file better. Raises InputError and its kinds, DivergedError.
    """
    began = time.monotonic()
    if (is_reward := opened(run)["kind"] == "reward") and against is not None:
        raise InputError("--against compares what writes answers; a reward model's scores have no common scale")
    manifest = _of_a_stage(run, is_reward)
    source = DataSource(path=str(data), format=data_format)
    record: dict[str, Any] = {"name": data.name, "digest": source_digest(source, Path)}
    settings: dict[str, Any] = {"format": data_format, "limit": limit, **({"slices": [*slices]} if slices else {})}
    given: dict[str, Any] = {"base": base, "data_format": data_format, "slices": slices, "limit": limit, "say": say}
    other: Mapping[str, Any] | None = None
    theirs: score.Evaluation | None = None
    if against is not None:
        folder = run if against == "base" else against
        their_manifest = _of_a_stage(folder, False)
        other = {"name": "base", "fingerprint": "base"} if against == "base" else identity(folder, their_manifest)
        say(f"against {other['name']}:")
        theirs = score.evaluate(folder, their_manifest, data, bare=against == "base", **given)
        free()
        say("the run itself:")
    found = score.evaluate(run, manifest, data, **given)
    record["rows"] = len(found.lines)
    measurement = Measurement(
        run, "score" if is_reward else "loss", data=record, settings=settings, against=other, say=say
    )
    if is_reward:
        return measurement.keep(_scores(found), found.lines, began=began)
    rows, results = list(found.lines), _loss(found)
    if theirs is not None:
        results |= _difference(found, theirs)
        rows = [{**row, "theirs": their["loss"]} for row, their in zip(rows, theirs.lines, strict=True)]
    return measurement.keep(results, rows, began=began)


def _of_a_stage(run: Path, is_reward: bool) -> dict[str, Any]:
    """The manifest of a stage's run, whose data settings say what is measured. Raises InputError."""
    manifest = opened(run) if is_reward else opened_writer(run)
    if "stage" not in manifest:
        raise InputError(f"{run} ({manifest['kind']}) is of no one stage: measure the run that it was made from")
    return manifest


def _loss(found: score.Evaluation) -> dict[str, Any]:
    losses, tokens = _columns(found.lines)
    # The value that the stage's own sum gave; the interval is over rows, each with the weight of its tokens.
    interval = mean_interval(losses, weights=tokens)
    loss = {"value": found.summary["loss"], "low": interval.low, "high": interval.high}
    return {**found.summary, "loss": loss}


def _difference(found: score.Evaluation, theirs: score.Evaluation) -> dict[str, Any]:
    (ours, tokens), (others, their_tokens) = _columns(found.lines), _columns(theirs.lines)
    if tokens != their_tokens:
        raise InputError(
            "the two runs make other tokens of the file (another template or tokenizer): their losses per token do "
            "not compare. Compare their answers: --task win_rate"
        )
    differences = [mine - other for mine, other in zip(ours, others, strict=True)]
    return {"theirs": _loss(theirs)["loss"], "difference": mean_interval(differences, weights=tokens).record()}


def _columns(lines: Sequence[Mapping[str, Any]]) -> tuple[list[float], list[int]]:
    """Loss and trained tokens of each row."""
    return [line["loss"] or 0.0 for line in lines], [line["tokens"] for line in lines]


def _scores(found: score.Evaluation) -> dict[str, Any]:
    """The mean's interval is over rows: the answers of one comparison belong together."""
    rows = [line["scores"] if "scores" in line else [line["score"]] for line in found.lines]
    interval = mean_interval([sum(row) / len(row) for row in rows], weights=[len(row) for row in rows])
    return {**found.summary, "mean": {"value": found.summary["mean"], "low": interval.low, "high": interval.high}}
