"""What a reward model thinks of a run's answers, and of another run's or the base's answers to the same prompts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from finetune.chat.model import BASE, Answering
from finetune.data.convert_prompts import message_fields
from finetune.evaluation.answers import run_name
from finetune.evaluation.measurement import Measurement, identity, opened, opened_writer
from finetune.evaluation.prompts import Prompts, context, own_prompts, question, read_prompts
from finetune.evaluation.scorer import opened_judge, score_answers
from finetune.evaluation.writing import Replies, check_has_base, write_replies
from finetune.numerics.bootstrap import difference_interval, mean_interval
from finetune.plan.evaluations import Evaluation, Task
from finetune.recipe.data_settings import DataFormat

Say = Callable[[str], None]


@dataclass(frozen=True)
class Sides:
    """Who answers. folders: their runs by name. names: ours, then theirs if there are any. other: as evaluations name
    it, None where there is none."""

    folders: Mapping[str, Path]
    names: tuple[str, ...]
    other: Mapping[str, Any] | None


def sides_of(run: Path, against: Path | Literal["base"] | None) -> Sides:
    """Open the run and whom it is compared with. Raises InputError."""
    manifest = opened_writer(run)
    ours = run_name(run, manifest)
    if against is None:
        return Sides({ours: run}, (ours,), None)
    if against == "base":
        check_has_base(run)
        return Sides({ours: run}, (ours, BASE), {"name": BASE, "fingerprint": BASE})
    their_manifest = opened_writer(against)
    theirs = run_name(against, their_manifest)
    if theirs == ours:  # of two recipes, or of one before and after a change
        ours, theirs = run.absolute().name, against.absolute().name
    if theirs == ours:
        ours, theirs = str(run.absolute()), str(against.absolute())
    return Sides({ours: run, theirs: against}, (ours, theirs), identity(against, their_manifest))


def prompts_for(
    run: Path, data: Path | None, data_format: DataFormat, base: str | None, limit: int | None, say: Say
) -> Prompts:
    """The prompts of a file, or of the run's own held-out rows; the first `limit` of them. Raises InputError."""
    if data is not None:
        return read_prompts(data, data_format=data_format, say=say).first(limit)
    return own_prompts(run, opened(run), base, say, limit=limit).first(limit)


def replies_for(
    task: Task,
    run: Path,
    sides: Sides,
    prompts: Prompts,
    settings: Answering,
    judge: Mapping[str, Any],
    base: str | None,
    say: Say,
) -> tuple[Measurement, dict[str, Replies]]:
    """The measurement of a task that judges answers, and both sides' answers to the prompts. judge: its record."""
    measurement = Measurement(
        run,
        task,
        data=prompts.record,
        settings={**asdict(settings), "judge": judge},
        against=sides.other,
        say=say,
    )
    return measurement, write_replies(
        sides.folders, sides.names, prompts.asked, settings, measurement, base=base, say=say
    )


def mean_reward(
    run: Path,
    judge: Path,
    *,
    data: Path | None = None,
    against: Path | Literal["base"] | None = None,
    base: str | None = None,
    data_format: DataFormat = "auto",
    limit: int | None = None,
    answering: Answering | None = None,
    say: Say,
) -> Evaluation:
    """Task `reward`: the mean score of the run's answers by the reward run `judge`, with its interval over prompts.

    against: the difference too, ours minus theirs, prompt by prompt. Of several samples a prompt counts by their mean.
    base: of the runs that answer. Raises InputError and its kinds.
    """
    sides, settings = sides_of(run, against), answering or Answering()
    prompts = prompts_for(run, data, data_format, base, limit, say)
    record = {"kind": "reward", **identity(judge, opened_judge(judge))}
    measurement, found = replies_for("reward", run, sides, prompts, settings, record, base, say)
    scores = scores_of(judge, prompts, found, sides.names, say)
    means = {name: [sum(each) / len(each) for each in scores[name]] for name in sides.names}
    ours = sides.names[0]
    results: dict[str, Any] = {
        "reward": mean_interval(means[ours]).record(),
        "mean_tokens": mean_tokens(found[ours]),
        "unfinished": unfinished(found[ours]),
    }
    if len(sides.names) > 1:
        theirs = sides.names[1]
        results |= {
            "theirs": mean_interval(means[theirs]).record(),
            "difference": difference_interval(means[ours], means[theirs]).record(),
            "their_mean_tokens": mean_tokens(found[theirs]),
            "their_unfinished": unfinished(found[theirs]),
        }
    results["names"] = list(sides.names)
    rows = []
    for index, prompt in enumerate(prompts.asked):
        row = asked_fields(prompt)
        for name in sides.names:
            texts = [reply.text for reply in found[name][index]]
            row[name] = texts[0] if len(texts) == 1 else texts
        row["scores"] = {name: scores[name][index] for name in sides.names}
        rows.append(row)
    return measurement.keep(results, rows)


def scores_of(
    judge: Path, prompts: Prompts, found: Mapping[str, Replies], names: Sequence[str], say: Say
) -> dict[str, list[list[float]]]:
    """The scores of everyone's answers; those to one prompt share its forward."""
    texts = [[reply.text for name in names for reply in found[name][index]] for index in range(len(prompts))]
    together = score_answers(judge, prompts.asked, texts, say=say)
    samples = len(found[names[0]][0])
    return {
        name: [each[place * samples : (place + 1) * samples] for each in together] for place, name in enumerate(names)
    }


def asked_fields(prompt: Any) -> dict[str, Any]:
    """prompt, and messages where the conversation is longer than the question."""
    turns = context(prompt)
    return {"prompt": question(prompt), **({"messages": message_fields(turns)} if turns else {})}


def mean_tokens(replies: Replies) -> float:
    return sum(reply.tokens for each in replies for reply in each) / sum(map(len, replies))


def unfinished(replies: Replies) -> float:
    """Share of answers that max_new_tokens cut."""
    return sum(not reply.finished for each in replies for reply in each) / sum(map(len, replies))
