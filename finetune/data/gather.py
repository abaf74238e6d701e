"""What every preparation of data shares: the rows of all sources, what `take` leaves of them, and their tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic

import numpy as np
from numpy.typing import NDArray

from finetune.data.mix import Mix, take_rows
from finetune.data.readers import Fault
from finetune.data.report import SourceReport
from finetune.data.sources import R, Reading, SourceRows, bad_rows, read_source
from finetune.data.store import TokenRows
from finetune.data.tokenizer import Tokenizer
from finetune.data.tokens import EncodeErrors, tokenise
from finetune.errors import InputError
from finetune.families.base import Family
from finetune.recipe.data_settings import DataSource, HeldOut
from finetune.shapes import Example, Origin


@dataclass(frozen=True)
class Taken(Generic[R]):
    """Rows of several sources after `take`, in the order of the files.

    keys: of their content. source_of: the source of each. numbers: int64, their place before `take`.
    """

    sources: tuple[SourceRows[R], ...]
    rows: tuple[R, ...]
    keys: tuple[bytes, ...]
    source_of: NDArray[np.int64]
    numbers: NDArray[np.int64]

    @property
    def places(self) -> dict[str, str]:
        return {name: place for source in self.sources for name, place in source.places.items()}

    def mix(self, trained_on: NDArray[np.bool_], seed: int) -> Mix:
        """The order of the rows that are trained on, by the weights of their sources."""
        source_of = self.source_of[trained_on]
        return Mix(
            tuple(np.flatnonzero(source_of == index).astype(np.int64) for index in range(len(self.sources))),
            tuple(source.source.weight for source in self.sources),
            seed,
        )

    def source_reports(self, used: NDArray[np.bool_]) -> tuple[SourceReport, ...]:
        counts = [int(np.count_nonzero(used & (self.source_of == index))) for index in range(len(self.sources))]
        return tuple(
            SourceReport(s.label, s.format, s.digest, len(s.rows) + len(s.skipped), count)
            for s, count in zip(self.sources, counts, strict=True)
        )


def gather(
    reading: Reading[R],
    data: Sequence[DataSource],
    held_out: HeldOut,
    *,
    seed: int,
    locate: Callable[[str], Path],
    stage_outputs: Mapping[str, Path],
    say: Callable[[str], None],
) -> tuple[Taken[R], Taken[R], list[Origin]]:
    """The rows of `data` and those of `held_out.data`, and where a row stands by its number. Raises DataError."""

    def read(sources: Sequence[DataSource], first: int) -> Taken[R]:
        found = tuple(read_source(s, reading, locate=locate, stage_outputs=stage_outputs, say=say) for s in sources)
        return _take(reading, found, seed, first)

    taken = read(data, 0)
    if weighted := [source for source in held_out.data if source.weight != 1.0]:
        raise InputError(f"held_out.data: weight {weighted[0].weight} has no meaning there, rows are measured once")
    apart = read(held_out.data, sum(len(source.rows) for source in taken.sources))
    return taken, apart, [row.origin for part in (taken, apart) for source in part.sources for row in source.rows]


def tokens_of(
    examples: Mapping[bytes, Example],
    owners: Iterable[tuple[bytes, Origin]],
    places: Mapping[str, str],
    family: Family,
    tokenizer: Tokenizer,
    *,
    loss_on: str,
    system: str | None,
    cache: Path | None,
    say: Callable[[str], None],
) -> tuple[TokenRows, dict[bytes, int]]:
    """Tokens of all distinct examples (by content), and where each is.

    examples: in an order that does not depend on the order of rows and sources, so that the cache does not either.
    owners: the rows that need an example, to name those whose examples have no form in the template. Raises DataError.
    """
    try:
        tokens = tokenise(examples, family, tokenizer, loss_on=loss_on, system=system, cache=cache, say=say)
    except EncodeErrors as found:
        faults: dict[int, Fault] = {}
        origins: dict[int, None] = {}
        for key, origin in owners:
            origins[id(origin)] = None
            if key in found.errors:
                faults.setdefault(id(origin), Fault(origin, str(found.errors[key])))
        raise bad_rows([*faults.values()], len(origins), places) from None
    return tokens, {key: index for index, key in enumerate(examples)}


def same_tokens(rows: TokenRows, held_out: TokenRows) -> NDArray[np.bool_]:
    """Rows that are token for token a held-out row, though their content differs (another format, a cut)."""
    same = np.zeros(len(rows), dtype=np.bool_)
    held = {held_out.row(row)[0].tobytes() for row in range(len(held_out))}
    for row in np.flatnonzero(np.isin(rows.lengths, held_out.lengths)):
        same[row] = rows.row(int(row))[0].tobytes() in held
    return same


def _take(reading: Reading[R], sources: tuple[SourceRows[R], ...], seed: int, offset: int) -> Taken[R]:
    rows: list[R] = []
    numbers: list[NDArray[np.int64]] = [np.zeros(0, dtype=np.int64)]
    source_of: list[int] = []
    for index, source in enumerate(sources):
        chosen = take_rows(len(source.rows), source.source.take, seed, source.digest)
        rows += [source.rows[row] for row in chosen]
        numbers.append(chosen + offset)
        source_of += [index] * len(chosen)
        offset += len(source.rows)
    keys = tuple(reading.key(row) for row in rows)
    return Taken(sources, tuple(rows), keys, np.array(source_of, dtype=np.int64), np.concatenate(numbers))
