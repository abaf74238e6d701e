"""A reward model's scores of answers, as text: it may have another base and another template than who wrote them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from finetune.data.answers import answered
from finetune.data.encode import Encoded, encode
from finetune.data.prepare_prompts import Prompt
from finetune.data.store import pack
from finetune.data.tokenizer import Tokenizer
from finetune.engine import loop
from finetune.engine.batches import TokenBatch
from finetune.errors import DivergedError, InputError
from finetune.evaluation.measurement import opened
from finetune.evaluation.prompts import Asked
from finetune.families.detect import resolve
from finetune.model.base import choose_device, choose_precision, describe, load_base
from finetune.model.ragged import ragged_hidden
from finetune.model.reward import open_reward
from finetune.plan.run_base import find_base
from finetune.shapes import Origin
from finetune.stages.score import Answers, measure

Say = Callable[[str], None]


def opened_judge(reward: Path) -> dict[str, Any]:
    """The manifest of a reward model's run. Raises InputError."""
    manifest = opened(reward)
    if manifest["kind"] not in ("reward", "average"):
        raise InputError(f"{reward} is a {manifest['kind']} run: a judge is a reward model's run, or an http address")
    return manifest


def score_answers(
    reward: Path, asked: Sequence[Asked], texts: Sequence[Sequence[str]], *, base: str | None = None, say: Say
) -> list[list[float]]:
    """The scores of each prompt's answers, by the finished reward run in `reward`.

    texts: for each prompt its answers; the prompt of several is computed once. An answer is scored as a finished turn,
    whether it was cut or not. base: of the reward model, if it moved. Raises InputError, DivergedError.
    """
    manifest = opened_judge(reward)
    model, files = find_base(reward, manifest, base, say)
    tokenizer = Tokenizer.load(files.folder)
    family = resolve(files.config, tokenizer.special_tokens, manifest["family"]["template"]).family
    nothing, nowhere = np.zeros(0, dtype=np.int64), Origin("answers")
    examples = [
        answered(Prompt(nothing, prompt, 0, nowhere), text, family)
        for prompt, answers in zip(asked, texts, strict=True)
        for text in answers
    ]
    rows = []
    for encoded in encode(examples, family, tokenizer, system=manifest["recipe"]["model"]["system"]):
        if not isinstance(encoded, Encoded):
            raise InputError(f"an answer has no form in the template of {reward}: {encoded}") from encoded
        rows.append((encoded.input_ids, encoded.trained))
    packed = pack(rows)
    ends = np.cumsum([len(answers) for answers in texts])
    groups = [range(int(end) - len(answers), int(end)) for end, answers in zip(ends, texts, strict=True)]
    longest = int(packed.lengths.max())
    if longest > model.max_length:
        count = int((packed.lengths > model.max_length).sum())
        say(f"{count:,} answers are longer than the {model.max_length:,} tokens that the reward model was trained with")
    device = choose_device(model.device)
    precision = choose_precision(model.load_in, model.compute, device)
    loaded = load_base(files.folder, precision, device)
    say(f"judge: {reward} on {files.name}: {describe(loaded, precision, device)}")
    scorer = open_reward(loaded, reward)
    decoder = loaded.model

    def scores_of(batch: TokenBatch) -> torch.Tensor:
        return scorer.scores(ragged_hidden(decoder, batch.ids_T, batch.layout), batch.last_B)

    origins = [Origin("prompt", row=index) for index in range(len(groups))]
    answers = Answers(packed, groups, origins, None, np.ones(len(rows), dtype=np.bool_))
    with torch.no_grad(), loop.autocast(device, precision.compute):
        scores: NDArray[np.float64] = measure(answers, scores_of, device, say)
    if not np.isfinite(scores).all():
        raise DivergedError(f"{reward} gives scores that are not finite: it or its base is damaged")
    return [scores[group.start : group.stop].tolist() for group in groups]
