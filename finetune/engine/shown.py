"""Rows of the sample tables that trackers show: what was asked, what was answered, and how it was judged."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.data.comparisons import Comparisons
from finetune.data.convert_prompts import prompt_fields, prompt_text
from finetune.data.tokenizer import Tokenizer
from finetune.engine.rewards import Answer
from finetune.shapes import Completion, Dialog

Row = dict[str, Any]


def answer_rows(answers: Sequence[Answer], scores: NDArray[np.float64]) -> Iterator[Row]:
    """Answers with their scores, in the order in which they are given."""
    for answer, score in zip(answers, scores, strict=True):
        assert isinstance(answer.prompt.example, Dialog | Completion)  # what prompts are made of
        asked = prompt_text(prompt_fields(answer.prompt.example)["prompt"])
        yield {"prompt": asked, "answer": answer.text, "reward": float(score), "tokens": len(answer.ids)}


def kept_rows(samples: Path) -> Iterator[Row]:
    """Of a reject stage's samples.jsonl: each prompt of which an answer was kept, with the best and the worst."""
    with samples.open(encoding="utf-8") as file:
        for line in file:
            entry = json.loads(line)
            kept = [sample for sample in entry["samples"] if sample.get("kept") == 0]
            if kept:
                worst = min(entry["samples"], key=lambda sample: sample["score"])
                yield {
                    "prompt": prompt_text(entry["prompt"]),
                    "kept": kept[0]["text"],
                    "score": kept[0]["score"],
                    "worst": worst["text"],
                    "worst_score": worst["score"],
                    "samples": len(entry["samples"]),
                }


def pair_rows(
    data: Comparisons, pairs: NDArray[np.int64], chosen: Sequence[float], rejected: Sequence[float], words: Tokenizer
) -> Iterator[Row]:
    """Comparisons as text, with the scores of both answers. pairs: [P, 3] as `Comparisons.pairs` gives them."""
    for (_, better, worse), score, other in zip(pairs, chosen, rejected, strict=True):
        ids = {row: data.rows.row(int(row))[0].tolist() for row in (better, worse)}
        start = {row: int(data.prompt_lengths[row]) for row in (better, worse)}
        yield {
            "prompt": words.decode(ids[better][: start[better]], skip_special=True),
            "chosen": words.decode(ids[better][start[better] :], skip_special=True),
            "rejected": words.decode(ids[worse][start[worse] :], skip_special=True),
            "chosen_score": float(score),
            "rejected_score": float(other),
            "right": bool(score > other),
        }
