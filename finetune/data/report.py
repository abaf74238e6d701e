"""What became of the data: counts for the user, the manifest and `finetune inspect`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class SourceReport:
    """digest: see finetune.plan.digest. rows: in the files. used: trained on or held out."""

    source: str
    format: str
    digest: str
    rows: int
    used: int


@dataclass(frozen=True)
class Dropped:
    """Rows left out for one reason; first: where the first few stand, and how long they are in tokens."""

    rows: int
    first: tuple[str, ...]


@dataclass(frozen=True)
class Lengths:
    """Rows by length in tokens: counts[i] rows have edges[i] <= length < edges[i + 1]."""

    edges: tuple[int, ...]
    counts: tuple[int, ...]
    longest: int


@dataclass(frozen=True)
class DataReport:
    """rows: read and taken. duplicates: exact ones among them, beyond the first. truncated: rows used that were cut.

    tokens, trained_tokens, lengths: of the training rows, each counted once whatever its weight; a row's first token
    is never trained. epoch_rows: rows of one epoch, with weights.
    Of comparisons, a row is one of them with all its answers, and lengths are of its answers, each with the prompt.
    dropped_answers: answers left out, by reason, of rankings that are used with those that remain.
    """

    sources: tuple[SourceReport, ...]
    held_out_sources: tuple[SourceReport, ...]
    rows: int
    duplicates: int
    dropped: Mapping[str, Dropped]
    truncated: int
    train_rows: int
    held_out_rows: int
    epoch_rows: int
    tokens: int
    trained_tokens: int
    lengths: Lengths
    dropped_answers: Mapping[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As plain data, for a manifest."""
        return asdict(self)

    def lines(self) -> list[str]:
        """The report in a few lines for a terminal."""
        duplicates = f", {self.duplicates:,} of them exact duplicates" if self.duplicates else ""
        lines = [f"data: {self.rows:,} rows{duplicates}; {self.train_rows:,} train, {self.held_out_rows:,} held out"]
        for reason, dropped in self.dropped.items():
            shown = "; ".join([*dropped.first[:3], *(["…"] if dropped.rows > 3 else [])])
            lines.append(f"left out: {dropped.rows:,} rows, {reason} ({shown})")
        for reason, answers in self.dropped_answers.items():
            lines.append(f"left out of rankings of three and more: {answers:,} answers, {reason}")
        if self.truncated:
            lines.append(f"cut at the end: {self.truncated:,} rows")
        share = self.trained_tokens / max(1, self.tokens)
        lines.append(
            f"tokens: {self.tokens:,}, {share:.1%} of them trained; longest row {self.lengths.longest:,}"
            + (f"; {self.epoch_rows:,} rows an epoch" if self.epoch_rows != self.train_rows else "")
        )
        return lines


def length_histogram(lengths: NDArray[np.int64]) -> Lengths:
    """Bins that double: 1-15, 16-31, 32-63 … tokens, up to the longest row."""
    if len(lengths) == 0:
        return Lengths((0, 16), (0,), 0)
    longest = int(lengths.max())
    edges = [0, 16]
    while edges[-1] <= longest:
        edges.append(edges[-1] * 2)
    counts, _ = np.histogram(lengths, bins=edges)
    return Lengths(tuple(edges), tuple(int(count) for count in counts), longest)


def dropped_by_reason(reasons: Sequence[str | None], shown: Sequence[str], first: int) -> dict[str, Dropped]:
    """Rows by the reason they were left out, None = used. shown: what each row is called."""
    places: dict[str, list[int]] = {}
    for row, reason in enumerate(reasons):
        if reason is not None:
            places.setdefault(reason, []).append(row)
    return {reason: Dropped(len(rows), tuple(shown[row] for row in rows[:first])) for reason, rows in places.items()}
