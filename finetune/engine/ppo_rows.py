"""Sampled answers as rows, and which of them each step of an iteration learns from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finetune.engine.batches import TokenBatch, collate, micro_batches
from finetune.engine.rewards import Answer
from finetune.recipe.train_settings import TrainSettings


@dataclass(frozen=True)
class Sampled:
    """Answers as rows for `collate`: prompt and answer whole, the answer trained.

    each: answers to a prompt, which stand side by side.
    """

    answers: Sequence[Answer]
    each: int

    @property
    def lengths(self) -> NDArray[np.int64]:
        return np.array([len(answer.prompt.ids) + len(answer.ids) for answer in self.answers], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.answers)

    def row(self, index: int) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
        answer = self.answers[index]
        trained = np.ones(len(answer.prompt.ids) + len(answer.ids), dtype=np.uint8)
        trained[: len(answer.prompt.ids)] = 0
        return np.concatenate([answer.prompt.ids, answer.ids]), trained

    def collate(self, chosen: Sequence[int], layout: str) -> TokenBatch:
        """Chosen rows as a batch: answers to one prompt share it (ragged), or every row is whole (padded)."""
        if layout == "padded":
            return collate(self, chosen)
        groups: dict[int, list[int]] = {}
        for place, row in enumerate(chosen):
            groups.setdefault(row // self.each, []).append(place)
        return collate(self, chosen, list(groups.values()))


def cut_pass(rows: Sampled, train: TrainSettings, random: np.random.Generator) -> list[list[list[int]]]:
    """One pass over the answers: minibatches of micro-batches of rows.

    Prompts are shuffled; the answers to one stay together, and in a micro-batch where they have room.
    """
    order = random.permutation(len(rows) // rows.each)
    together = min(rows.each, train.micro_batch_size)
    prompts_each = train.batch_size // rows.each
    found = []
    for start in range(0, len(order), prompts_each):
        parts: list[list[int]] = []
        for prompt in order[start : start + prompts_each]:
            own = range(int(prompt) * rows.each, (int(prompt) + 1) * rows.each)
            parts += [list(own[at : at + together]) for at in range(0, len(own), together)]
        tokens = [
            len(rows.answers[part[0]].prompt.ids) + sum(len(rows.answers[row].ids) for row in part) for part in parts
        ]
        size = max(1, train.micro_batch_size // together)
        cut = micro_batches(range(len(parts)), tokens, size, balance=train.layout == "ragged")
        found.append([[row for index in group for row in parts[index]] for group in cut])
    return found
