"""From a finished journal of rejection sampling to its files: all samples, the rows that were kept, and the figures."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from finetune.data.answers import answer_row, pair_row, same_tokens_again
from finetune.data.prepare_prompts import Prompt
from finetune.data.sources import READ_EXAMPLES, READ_RANKINGS, STAGE_ROWS, read_source
from finetune.data.tokenizer import Tokenizer
from finetune.engine.earlier import SAMPLES
from finetune.errors import InputError, ProofError
from finetune.families.base import Family
from finetune.numerics.best_of import BestOf
from finetune.recipe.data_settings import DataSource
from finetune.recipe.sampling_stages import RejectStage
from finetune.shapes import Completion, Dialog, Ranking


@dataclass
class Kept:
    """What the journal holds, counted. own_scores: [k] of each of the stage's
    prompts. texts: what each row says. differ: kept answers whose text gives other tokens than were sampled."""

    prompts: int = 0
    kept_prompts: int = 0
    samples: int = 0
    tokens: int = 0
    seconds: float = 0.0
    finished: int = 0
    earlier: int = 0
    kept_earlier: int = 0
    prompts_earlier: int = 0
    differ: int = 0
    lost: Counter[str] = field(default_factory=Counter)
    own_scores: list[NDArray[np.float64]] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    texts: list[tuple[str, ...]] = field(default_factory=list)

    def metrics(self, curve: Sequence[BestOf]) -> dict[str, Any]:
        """For the manifest. seconds: of sampling and scoring, in all sessions."""
        earlier = {
            "earlier": self.earlier,
            "kept_earlier": self.kept_earlier,
            "prompts_earlier": self.prompts_earlier,
        }
        return {
            "prompts": self.prompts,
            "samples": self.samples,
            "tokens": self.tokens,
            "seconds": round(self.seconds, 3),
            "tokens_per_second": round(self.tokens / max(self.seconds, 1e-9), 1),
            "finished": self.finished / max(1, self.samples),
            "score": float(np.mean(self.own_scores)),
            "kept": len(self.texts),
            "kept_prompts": self.kept_prompts,
            "kept_score": float(np.mean(self.scores)),
            "lost": dict(sorted(self.lost.items())),
            "best_of": {str(point.k): point.mean for point in curve},
            "best_of_error": {str(point.k): point.error for point in curve},
            "kl_bound": {str(point.k): point.kl for point in curve},
            **(earlier if self.earlier else {}),
        }


def write_results(
    lines: Iterator[Mapping[str, Any]],
    stage: RejectStage,
    out: Path,
    *,
    own: Sequence[Prompt],
    others: Sequence[Prompt],
    family: Family,
    tokenizer: Tokenizer,
    system: str | None,
) -> Kept:
    """Write samples.jsonl and rows.jsonl into `out`. lines: the journal's chunks.

    own: the stage's prompts. others: those that only earlier stages have. Raises InputError where nothing is kept.
    """
    kept = Kept()
    prompts = {prompt.key: prompt for prompt in (*own, *others)}
    own_keys = {prompt.key for prompt in own}
    with (
        (out / SAMPLES).open("w", encoding="utf-8") as samples,
        (out / STAGE_ROWS).open("w", encoding="utf-8") as rows,
    ):
        for line in lines:
            kept.seconds += line["seconds"]
            kept.tokens += line["tokens"]
            chosen: list[tuple[Prompt, list[Mapping[str, Any]]]] = []
            for entry in line["entries"]:
                key = int(entry["key"], 16)
                _put(samples, entry)
                _count(kept, entry, key in own_keys)
                best = [sample for sample in entry["samples"] if "kept" in sample]
                chosen.append((prompts[key], sorted(best, key=lambda sample: sample["kept"])))
            for row in _rows(kept, chosen, stage.keep == "pairs", family):
                _put(rows, row)
            flat = [(prompt, sample) for prompt, best in chosen for sample in best]
            same = same_tokens_again(
                [prompt for prompt, _ in flat],
                [sample["text"] for _, sample in flat],
                [np.array(sample["ids"], dtype=np.int64) for _, sample in flat],
                family,
                tokenizer,
                system,
            )
            kept.differ += same.count(False)
    if not kept.texts:
        raise InputError(_nothing_kept(stage, kept))
    return kept


def _rows(
    kept: Kept, chosen: Sequence[tuple[Prompt, Sequence[Mapping[str, Any]]]], is_pairs: bool, family: Family
) -> Iterator[dict[str, Any]]:
    """The rows that a chunk gives, noted in `kept`."""
    for prompt, best in chosen:
        if is_pairs and best:
            better, worse = best
            kept.texts.append((better["text"], worse["text"]))
            kept.scores.append(better["score"])
            yield pair_row(prompt, better["text"], worse["text"], better["score"] - worse["score"], family)
        elif not is_pairs:
            for sample in best:
                kept.texts.append((sample["text"],))
                kept.scores.append(sample["score"])
                yield answer_row(prompt, sample["text"], family)


def _count(kept: Kept, entry: Mapping[str, Any], is_own: bool) -> None:
    drawn = [sample for sample in entry["samples"] if "from" not in sample]
    if is_own:
        kept.prompts += 1
        kept.own_scores.append(np.array([sample["score"] for sample in drawn]))
    else:
        kept.prompts_earlier += 1
    kept.samples += len(drawn)
    kept.finished += sum(sample["finished"] for sample in drawn)
    kept.earlier += len(entry["samples"]) - len(drawn)
    best = [sample for sample in entry["samples"] if "kept" in sample]
    kept.kept_prompts += bool(best)
    kept.kept_earlier += sum("from" in sample for sample in best)
    kept.lost.update(sample["lost"] for sample in entry["samples"] if "lost" in sample)


def _put(file: TextIO, value: Mapping[str, Any]) -> None:
    file.write(json.dumps(value, ensure_ascii=False) + "\n")


def _nothing_kept(stage: RejectStage, kept: Kept) -> str:
    """Why, in the scores, and what to change."""
    scores = np.concatenate(kept.own_scores)
    lost = "".join(f"; {count:,} {why}" for why, count in sorted(kept.lost.items()))
    ways = []
    if stage.threshold is not None:
        ways.append(f"lower threshold (now {stage.threshold:g})")
    if stage.keep == "pairs":
        ways.append(f"lower min_gap (now {stage.min_gap:g})" if stage.min_gap else "raise temperature or samples")
    if kept.lost["unfinished"]:
        ways.append(f"raise max_new_tokens (now {stage.max_new_tokens}), or set unfinished: keep")
    return (
        f"no answer is kept of {kept.samples:,} to {kept.prompts:,} prompts: scores from {scores.min():.4g} to "
        f"{scores.max():.4g}, mean {scores.mean():.4g}{lost}. To keep some: {'; '.join(ways) or 'other prompts'}"
    )


def prove_rows(kept: Kept, stage: RejectStage, name: str, out: Path) -> dict[str, Any]:
    """Read the rows as a later stage will, and compare what they say with what was kept. Raises ProofError."""
    source = DataSource(stage=name)
    texts: list[tuple[str, ...]] = []
    if stage.keep == "pairs":
        ranked = read_source(source, READ_RANKINGS, locate=Path, stage_outputs={name: out}, say=lambda line: None)
        for compared in ranked.rows:
            assert isinstance(compared.comparison, Ranking)
            texts.append(tuple(answer[-1].content for answer in compared.comparison.answers))
    else:
        read = read_source(source, READ_EXAMPLES, locate=Path, stage_outputs={name: out}, say=lambda line: None)
        for row in read.rows:
            said = row.example
            if isinstance(said, Dialog):
                texts.append((said.messages[-1].content,))
            else:
                assert isinstance(said, Completion)  # what answer_row writes
                texts.append((said.completion,))
    if texts != kept.texts:
        raise ProofError(f"{out / STAGE_ROWS}, read again, does not say what was kept; nothing was released")
    return {"rows": len(texts), "tokens_differ": kept.differ}
