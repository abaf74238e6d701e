"""A finished run on a file: the scores of a reward model, or the loss of any other adapter.

A reward model scores every answer at its last token, with the tokens of its training (the run's template and system
prompt, prompt and answer whole, the prompt of several answers computed once). Rows are prompts with one answer, or
comparisons, whose accuracy is reported as the stage reports its held-out pairs. Of an sft or dpo run the loss is
measured: the negative log-probability, in nats, of the tokens that its stage would train.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from finetune.data.comparisons import Comparisons
from finetune.data.fitting import EXAMPLES, JUDGED, RANKINGS, Kind, fitting, kind_of_format
from finetune.data.formats import LOOK_AT_ROWS
from finetune.data.gather import Taken, gather, tokens_of
from finetune.data.group import answer_reasons, group_answers, whole_answers
from finetune.data.readers import RawRow, read_file
from finetune.data.sources import READ_EXAMPLES, READ_JUDGED, READ_RANKINGS
from finetune.data.store import TokenRows
from finetune.data.tokenizer import Tokenizer
from finetune.engine import loop
from finetune.engine.batches import TokenBatch, collate
from finetune.engine.token_logprobs import token_logprobs
from finetune.errors import DataError, DivergedError, InputError
from finetune.families.base import Family
from finetune.families.detect import resolve
from finetune.model.adapter import open_adapter
from finetune.model.base import choose_device, choose_precision, describe, load_base
from finetune.model.ragged import ragged_hidden
from finetune.model.reward import open_reward
from finetune.plan.digest import data_files
from finetune.plan.manifest import check_files
from finetune.plan.run_base import find_base
from finetune.recipe.data_settings import DataFormat, DataSource, HeldOut
from finetune.reports.calibration import reward_report
from finetune.shapes import ComparisonRow, Dialog, Example, Origin, Row, Text
from finetune.stages.reward import pairs_of

BATCH_TOKENS = 8192
"""Tokens of one forward pass: enough to fill a GPU, and without gradients below 1 GiB of activations on a 70B base."""
_SAY_SECONDS = 10.0
_NO_LIMIT = 2**31

Say = Callable[[str], None]


@dataclass(frozen=True)
class Answers:
    """What a file holds for a run. rows: N sequences, prompt and answer whole, the answer trained.

    groups: for each row of the file (or each comparison of it) the places of its answers in `rows`, best first.
    origins: where each stands. comparisons: the same as comparisons, None where rows have one answer each.
    different: bool [N], answers that differ from the better ones of their comparison by more than white space.
    """

    rows: TokenRows
    groups: Sequence[range]
    origins: Sequence[Origin]
    comparisons: Comparisons | None
    different: NDArray[np.bool_]


@dataclass(frozen=True)
class Evaluation:
    """lines: one JSON object for each row of the file. summary: what they come to."""

    lines: Sequence[dict[str, Any]]
    summary: dict[str, Any]


def evaluate(
    folder: Path,
    manifest: Mapping[str, Any],
    data: Path,
    *,
    base: str | None = None,
    data_format: DataFormat = "auto",
    slices: Sequence[str] = (),
    limit: int | None = None,
    bare: bool = False,
    say: Say,
) -> Evaluation:
    """Score a file with the finished run in `folder`. base: a folder or hub id, None = where the run had it.

    slices: columns of comparisons to report accuracy by. limit: at most so many rows, drawn from the file. bare: the
    loss of the run's base without its adapter. Raises InputError and its kinds, DivergedError.
    """
    check_files(folder, manifest)
    is_reward = manifest["kind"] == "reward"
    model, files = find_base(folder, manifest, base, say)
    tokenizer = Tokenizer.load(files.folder)
    family = resolve(files.config, tokenizer.special_tokens, manifest["family"]["template"]).family
    answers = read_answers(data, data_format, manifest, family, tokenizer, slices=slices, limit=limit, say=say)
    longest = int(answers.rows.lengths.max())
    if longest > model.max_length:
        count = int((answers.rows.lengths > model.max_length).sum())
        say(
            f"{count:,} of {len(answers.rows):,} answers are longer, prompt included, than the {model.max_length:,} "
            f"tokens the run was trained with, up to {longest:,}: measured all the same"
        )
    device = choose_device(model.device)
    precision = choose_precision(model.load_in, model.compute, device)
    loaded = load_base(files.folder, precision, device)
    say(f"base: {files.name}: {describe(loaded, precision, device)}")
    with torch.no_grad(), loop.autocast(device, precision.compute):
        if is_reward:
            reward = open_reward(loaded, folder)
            decoder = loaded.model

            def scores_of(batch: TokenBatch) -> torch.Tensor:
                return reward.scores(ragged_hidden(decoder, batch.ids_T, batch.layout), batch.last_B)

            return _scored(answers, measure(answers, scores_of, device, say))
        writer = loaded if bare else open_adapter(loaded, folder).eval().get_base_model()
        decoder, head = writer.model, writer.lm_head

        def losses_of(batch: TokenBatch) -> torch.Tensor:
            logps_N = token_logprobs(batch, decoder, head, ragged_hidden)
            return torch.zeros(len(batch.rows), device=device).index_add(0, batch.row_N, -logps_N)

        return _losses(answers, measure(answers, losses_of, device, say))


def read_answers(
    path: Path,
    data_format: DataFormat,
    manifest: Mapping[str, Any],
    family: Family,
    tokenizer: Tokenizer,
    *,
    slices: Sequence[str],
    limit: int | None = None,
    say: Say,
) -> Answers:
    """The file's rows as tokens of the run's template. Raises DataError with file and line."""
    stage = manifest["recipe"]["stages"][manifest["stage"]]
    system = manifest["recipe"]["model"]["system"]
    is_reward = manifest["kind"] == "reward"
    kind = _kind(path, data_format) if is_reward else EXAMPLES
    source = DataSource(path=str(path), format=data_format, take=limit)

    def tokens(groups: Sequence[Sequence[tuple[bytes, Example]]], taken: Taken[Any]) -> tuple[TokenRows, Any]:
        return tokens_of(
            dict(sorted((key, example) for group in groups for key, example in group)),
            [(key, row.origin) for row, group in zip(taken.rows, groups, strict=True) for key, _ in group],
            taken.places,
            family,
            tokenizer,
            loss_on=stage.get("loss_on", "answers"),
            system=system,
            cache=None,
            say=say,
        )

    def ranges(sizes: Sequence[int]) -> list[range]:
        ends = np.cumsum(sizes).tolist()
        return [range(end - size, end) for end, size in zip(ends, sizes, strict=True)]

    if kind is EXAMPLES:
        taken, _, _ = gather(
            READ_EXAMPLES, [source], HeldOut(fraction=0.0), seed=0, locate=Path, stage_outputs={}, say=say
        )
        if is_reward:
            _check_answered(taken.rows)
        found, index_of = tokens([[(key, row.example)] for key, row in zip(taken.keys, taken.rows, strict=True)], taken)
        rows = found.select(np.array([index_of[key] for key in taken.keys], dtype=np.int64))
        origins = [row.origin for row in taken.rows]
        return Answers(rows, ranges([1] * len(rows)), origins, None, np.ones(len(rows), dtype=np.bool_))
    reading = READ_RANKINGS if kind is RANKINGS else READ_JUDGED
    compared, _, _ = gather(reading, [source], HeldOut(fraction=0.0), seed=0, locate=Path, stage_outputs={}, say=say)
    if not compared.rows:
        raise DataError("no row of it compares two answers", path=path)
    _check_columns(slices, compared.rows)
    groups = [whole_answers(row.comparison, family) for row in compared.rows]
    found, index_of = tokens(groups, compared)
    where = [[index_of[key] for key, _ in group] for group in groups]
    comparisons = group_answers(compared.rows, where, compared.numbers, found, tokenizer, slices)
    reasons = answer_reasons(comparisons, [row.comparison for row in compared.rows], _NO_LIMIT)
    different = np.array([why is None for why in reasons], dtype=np.bool_)
    origins = [row.origin for row in compared.rows]
    sizes = [len(group) for group in groups]
    return Answers(comparisons.rows, ranges(sizes), origins, comparisons if kind is RANKINGS else None, different)


def _kind(path: Path, data_format: DataFormat) -> Kind:
    """Rankings, judged answers or plain rows: what the file's first rows look like."""
    if data_format != "auto":
        return kind_of_format(data_format)
    rows = (row for file in data_files(path) for row in read_file(file, file.name) if isinstance(row, RawRow))
    fits = {name for row in islice(rows, LOOK_AT_ROWS) for name in fitting(row.values, {})}
    for kind in (RANKINGS, JUDGED):
        if fits & set(kind.formats):
            return kind
    return EXAMPLES


def _check_answered(rows: Sequence[Row]) -> None:
    """A reward model scores answers: a row has to end with one. Raises DataError."""
    for row in rows:
        example = row.example
        if isinstance(example, Text):
            raise DataError("plain text has no answer to score: prompts with answers are needed", path=str(row.origin))
        if isinstance(example, Dialog) and example.messages[-1].role != "assistant":
            last = example.messages[-1].role
            raise DataError(f"the conversation ends with the {last}'s turn: no answer to score", path=str(row.origin))


def _check_columns(slices: Sequence[str], rows: Sequence[ComparisonRow]) -> None:
    there = {column for row in rows for column in row.extra}
    if missing := [column for column in slices if column not in there]:
        raise InputError(f"--slice: no row has a column '{missing[0]}'; there are {', '.join(sorted(there)) or 'none'}")


def measure(
    answers: Answers, function: Callable[[TokenBatch], torch.Tensor], device: torch.device, say: Say
) -> NDArray[np.float64]:
    """function of all answers, [N]; answers to one prompt share it."""
    values = np.zeros(len(answers.rows))
    began = said = time.monotonic()
    done = 0
    for rows, places in _batches(answers):
        batch = collate(answers.rows, rows, places).to(device)
        values[rows] = function(batch).float().cpu().numpy()
        done, now = done + len(rows), time.monotonic()
        if now - said > _SAY_SECONDS:
            said = now
            say(f"{done:,} of {len(values):,} answers, {done / (now - began):,.1f} a second")
    return values


def _batches(answers: Answers) -> Iterator[tuple[list[int], list[range]]]:
    """(answers, which of them belong to one prompt): whole groups, the longest first, up to BATCH_TOKENS."""
    lengths = answers.rows.lengths
    sizes = [int(lengths[group.start : group.stop].sum()) for group in answers.groups]
    rows: list[int] = []
    places: list[range] = []
    filled = 0
    for index in sorted(range(len(sizes)), key=lambda index: (-sizes[index], index)):
        if rows and filled + sizes[index] > BATCH_TOKENS:
            yield rows, places
            rows, places, filled = [], [], 0
        places.append(range(len(rows), len(rows) + len(answers.groups[index])))
        rows.extend(answers.groups[index])
        filled += sizes[index]
    if rows:
        yield rows, places


def _scored(answers: Answers, scores: NDArray[np.float64]) -> Evaluation:
    _refuse_infinite(scores, answers, "score")
    lines = []
    for row, (group, origin) in enumerate(zip(answers.groups, answers.origins, strict=True)):
        found = [float(scores[answer]) for answer in group]
        value = {"score": found[0]} if answers.comparisons is None else {"scores": found}
        lines.append({"row": row, **_line(origin), **value})
    summary: dict[str, Any] = {
        "rows": len(lines),
        "answers": len(scores),
        "mean": float(scores.mean()),
        "deviation": float(scores.std()),
        "lowest": float(scores.min()),
        "highest": float(scores.max()),
    }
    if answers.comparisons is not None:
        # Answers that are alike compare nothing; they are scored, and left out of the accuracy, as in training.
        pairs = pairs_of(answers.comparisons.keep_rows(answers.different), scores[answers.different], "all")
        summary["alike"] = int((~answers.different).sum())
        summary["report"] = reward_report(pairs) if len(pairs.chosen) else {}
    return Evaluation(lines, summary)


def _losses(answers: Answers, losses: NDArray[np.float64]) -> Evaluation:
    _refuse_infinite(losses, answers, "loss")
    counts = answers.rows.trained_counts
    if not (tokens := int(counts.sum())):
        raise InputError("no token of the file is one that the run's stage would train: there is no loss to measure")
    lines = [
        {"row": row, **_line(origin), "loss": float(losses[row] / count) if count else None, "tokens": int(count)}
        for row, (origin, count) in enumerate(zip(answers.origins, counts, strict=True))
    ]
    mean = float(losses.sum() / tokens)
    # Above 700 nats a float has no place for the perplexity, and nobody a use.
    perplexity = math.exp(mean) if mean < 700 else None
    return Evaluation(lines, {"rows": len(lines), "tokens": tokens, "loss": mean, "perplexity": perplexity})


def _line(origin: Origin) -> dict[str, int]:
    return {} if origin.line is None else {"line": origin.line}


def _refuse_infinite(values: NDArray[np.float64], answers: Answers, what: str) -> None:
    if not np.isfinite(values).all():
        bad = int(np.argmin(np.isfinite(values)))
        group = next(index for index, group in enumerate(answers.groups) if bad in group)
        raise DivergedError(f"the {what} of {answers.origins[group]} is {values[bad]}: the run or its base is damaged")
