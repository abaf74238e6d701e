"""Samples of earlier reject stages, which compete with new ones: found by their prompt, read when they are needed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from finetune.data.convert_prompts import prompt_of
from finetune.data.prepare_prompts import Prompt, make_prompt
from finetune.engine.job import Job
from finetune.engine.rewards import Answer
from finetune.engine.session import Words
from finetune.errors import InputError
from finetune.shapes import Origin

SAMPLES = "samples.jsonl"
"""Every prompt of a reject stage with all its samples, one prompt a line."""


@dataclass(frozen=True)
class Pool:
    """prompts: of all earlier stages, each once, the first stage's first. where: by a prompt's key, (stage, file,
    offset of its line) of each stage that has it."""

    prompts: Sequence[Prompt]
    where: dict[int, list[tuple[str, Path, int]]]

    def samples(self, prompt: Prompt) -> list[tuple[str, Answer, dict[str, Any]]]:
        """(stage, answer, its record) of every sample that the earlier stages drew themselves."""
        found = []
        for stage, path, offset in self.where.get(prompt.key, ()):
            with path.open("rb") as file:
                file.seek(offset)
                entry = json.loads(file.readline())
            for sample in entry["samples"]:
                if "from" not in sample:  # what a stage took over itself is the other's
                    ids = np.array(sample["ids"], dtype=np.int64)
                    found.append((stage, Answer(prompt, ids, sample["text"], sample["finished"]), sample))
        return found


def open_pool(stages: Sequence[str], job: Job, words: Words) -> Pool:
    """Find the prompts of earlier stages. Raises InputError where one has no samples."""
    prompts: dict[int, Prompt] = {}
    where: dict[int, list[tuple[str, Path, int]]] = {}
    for name in stages:
        path = job.inputs[name] / SAMPLES
        if not path.is_file():
            raise InputError(f"earlier: stage '{name}' has no {SAMPLES} in {path.parent}")
        with path.open("rb") as file:
            offset = 0
            for number, line in enumerate(file, start=1):
                entry = json.loads(line)
                origin = Origin(f"stage {name}", line=number)
                prompt = make_prompt(
                    prompt_of(entry),
                    origin,
                    entry["columns"],
                    words.resolved.family,
                    words.tokenizer,
                    job.model.system,
                )
                prompts.setdefault(prompt.key, prompt)
                where.setdefault(prompt.key, []).append((name, path, offset))
                offset += len(line)
    return Pool(tuple(prompts.values()), where)
