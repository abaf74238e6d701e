"""What judges sampled answers: a reward model on the same base, two of them combined, or a checker.

A reward model scores the sampled tokens themselves, prompt and answer, at the last of them, as `finetune eval` scores a
row. Answers to one prompt share its forward, and a forward takes a bounded number of tokens, the longest first.

Legend: N answers, B answers of one forward, T tokens laid out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel
from torch import nn

from finetune.data.prepare_prompts import Prompt
from finetune.engine import loop
from finetune.engine.batches import collate
from finetune.engine.checkers import Check, Function, check_of, wanted_number
from finetune.engine.job import Job
from finetune.errors import DataError, DivergedError, InputError
from finetune.model.base import Precision
from finetune.model.ragged import ragged_hidden
from finetune.model.reward import RewardModel, attach
from finetune.numerics.combine import combine
from finetune.plan.manifest import read_manifest
from finetune.recipe.sampling_stages import NumberChecker, ScoredStage

__all__ = ["Answer", "Function", "Judge", "Scores", "check_columns", "open_judge"]

BATCH_TOKENS = 8192
"""Tokens of one forward pass: enough to fill a GPU, and without gradients below 1 GiB of activations on a 70B base."""

REWARD, SAFETY, PREFIX = "reward", "safety", "judge-"
"""Names of the two scores in the records, and, behind the prefix, of the adapters."""


@dataclass(frozen=True)
class Answer:
    """A sampled answer to a prompt. ids: [n] int64, the stop token included. text: without special tokens."""

    prompt: Prompt
    ids: NDArray[np.int64]
    text: str
    finished: bool


@dataclass(frozen=True)
class Scores:
    """total: [N] float64, what counts. parts: each judge's own scores by its name ("reward", "safety", the checker's
    kind), [N] float64, for the records."""

    total: NDArray[np.float64]
    parts: Mapping[str, NDArray[np.float64]]


Judge = Callable[[Sequence[Answer]], Scores]
"""Scores in the order of the answers. Raises InputError (a function that fails, a column that is not there), and
DivergedError where a reward model's score is not finite."""


def open_judge(stage: ScoredStage, job: Job, model: PeftModel | None, precision: Precision) -> Judge:
    """The stage's judge. Reward models are attached, frozen, to the base that `model` is on, under names of their own;
    after every call the adapter that was active is active again, its weights as trainable as they were.

    model: None is enough for a checker. Answers to one prompt that stand side by side share the prompt's forward.
    Raises InputError where a reward adapter does not fit, or a function was not given.
    """
    if stage.checker is not None:
        return _checked(stage.checker.kind, check_of(stage.checker, job.functions))
    assert stage.reward is not None and model is not None  # the schema: exactly one of reward and checker
    helpfulness = _open_reward(stage.reward, REWARD, job, model, precision)
    if stage.safety is None:
        return lambda answers: _alone(helpfulness(answers))
    safety = _open_reward(stage.safety.reward, SAFETY, job, model, precision)
    column, threshold = stage.safety.column, stage.safety.threshold

    def judge(answers: Sequence[Answer]) -> Scores:
        parts = {REWARD: helpfulness(answers), SAFETY: safety(answers)}
        marked = np.array([_is_safety(answer.prompt, column) for answer in answers], dtype=np.bool_)
        return Scores(combine(parts[REWARD], parts[SAFETY], marked, threshold), parts)

    return judge


def _checked(kind: str, check: Check) -> Judge:
    def judge(answers: Sequence[Answer]) -> Scores:
        found = [check(answer.prompt, answer.text, answer.finished) for answer in answers]
        total = np.array(found, dtype=np.float64)
        return Scores(total, {kind: total})

    return judge


def _alone(scores: NDArray[np.float64]) -> Scores:
    return Scores(scores, {REWARD: scores})


def check_columns(stage: ScoredStage, prompts: Sequence[Prompt]) -> None:
    """Whether the judge will find what it reads of the rows: told before anything is sampled. Raises InputError."""
    if isinstance(stage.checker, NumberChecker):
        for prompt in prompts:
            wanted_number(prompt, stage.checker.column)
    if stage.safety is not None:
        for prompt in prompts:
            _is_safety(prompt, stage.safety.column)
        named = "column" in stage.safety.model_fields_set
        if named and not any(stage.safety.column in prompt.columns for prompt in prompts):
            raise InputError(
                f"safety.column: no prompt has a column '{stage.safety.column}' (the first has "
                f"{', '.join(prompts[0].columns) or 'none'}); remove the key where no prompt is marked"
            )


def _is_safety(prompt: Prompt, column: str) -> bool:
    """A row without the column, or with null there, is not marked. Raises DataError."""
    value = prompt.columns.get(column)
    if value is None or isinstance(value, bool):
        return bool(value)
    raise DataError(
        f"should be true (a safety prompt) or false, is {value!r:.60}", path=str(prompt.origin), field=column
    )


@dataclass(frozen=True)
class _Rows:
    """Prompt and answer of each, whole; nothing of them is predicted."""

    ids: Sequence[NDArray[np.int64]]
    lengths: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ids)

    def row(self, index: int) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
        return self.ids[index], np.zeros(len(self.ids[index]), dtype=np.uint8)


def _scores(
    answers: Sequence[Answer], model: PeftModel, name: str, head: nn.Linear, precision: Precision
) -> NDArray[np.float64]:
    """[N] float64: the scores that the reward adapter `name` and its head give."""
    whole = [np.concatenate([answer.prompt.ids, answer.ids]) for answer in answers]
    rows = _Rows(whole, np.array([len(ids) for ids in whole], dtype=np.int64))
    values = np.zeros(len(answers))
    device = head.weight.device
    decoder = model.get_base_model().model
    scored = RewardModel(model, head)
    with _active(model, name), torch.no_grad(), loop.autocast(device, precision.compute):
        for chosen, places in batches(answers):
            batch = collate(rows, chosen, places).to(device)
            found = scored.scores(ragged_hidden(decoder, batch.ids_T, batch.layout), batch.last_B)
            values[chosen] = found.float().cpu().numpy()
    if not np.isfinite(values).all():
        bad = answers[int(np.argmin(np.isfinite(values)))]
        raise DivergedError(
            f"the {name.removeprefix(PREFIX)} score of an answer to {bad.prompt.origin} is not finite: the reward "
            "model or the base is damaged"
        )
    return values


def batches(answers: Sequence[Answer]) -> Iterator[tuple[list[int], list[range]]]:
    """(answers of one forward, which of these share a prompt): up to BATCH_TOKENS, the longest first.

    Answers to one prompt that stand side by side are one group; a group too large for a forward is cut, and each part
    computes the prompt.
    """
    groups: list[tuple[int, list[int]]] = []  # (tokens, answers)
    for index, answer in enumerate(answers):
        tokens = len(answer.ids)
        if groups and index and answers[index - 1].prompt.key == answer.prompt.key:
            filled, members = groups[-1]
            if filled + tokens <= BATCH_TOKENS:
                groups[-1] = (filled + tokens, [*members, index])
                continue
        groups.append((len(answer.prompt.ids) + tokens, [index]))
    rows: list[int] = []
    places: list[range] = []
    filled = 0
    for tokens, members in sorted(groups, key=lambda group: (-group[0], group[1][0])):
        if rows and filled + tokens > BATCH_TOKENS:
            yield rows, places
            rows, places, filled = [], [], 0
        places.append(range(len(rows), len(rows) + len(members)))
        rows.extend(members)
        filled += tokens
    if rows:
        yield rows, places


Scorer = Callable[[Sequence[Answer]], NDArray[np.float64]]
"""answers -> [N] float64 of one reward model."""


def _open_reward(reference: str, part: str, job: Job, model: PeftModel, precision: Precision) -> Scorer:
    folder = job.inputs.get(reference) or job.locate(reference)
    _check_same_base(job, folder, part)
    name = PREFIX + part
    with _as_it_was(model):
        try:
            head = attach(model, folder, name)
        except ValueError as error:  # target modules that this base has not
            raise InputError(f"{folder}: the adapter does not fit this base: {error}") from error
    for parameter_name, parameter in model.named_parameters():
        if f".{name}." in parameter_name:
            parameter.requires_grad_(False)
    return lambda answers: _scores(answers, model, name, head, precision)


def _check_same_base(job: Job, folder: Path, part: str) -> None:
    manifest = read_manifest(folder)
    if manifest is not None and manifest["base"]["digest"] != job.base.digest:
        raise InputError(
            f"{part}: {folder} was trained on another base ({manifest['base']['name']}): its scores would mean nothing "
            f"on {job.base.name}"
        )


@contextmanager
def _active(model: PeftModel, name: str) -> Iterator[None]:
    """Within: the named adapter answers, in eval mode. After: what was active and trainable before."""
    was_training = model.training
    with _as_it_was(model):
        model.set_adapter(name, inference_mode=True)
        model.eval()
        try:
            yield
        finally:
            model.train(was_training)


@contextmanager
def _as_it_was(model: PeftModel) -> Iterator[None]:
    """After: the active adapter and every parameter's requires_grad as before; peft's set_adapter changes both."""
    active = model.active_adapter
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        yield
    finally:
        model.set_adapter(active)
        for parameter, is_trainable in flags:
            parameter.requires_grad_(is_trainable)
