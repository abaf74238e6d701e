"""Tokenised comparisons: the answers to one prompt stand together, best first, as whole rows of tokens.

Legend: G groups, N rows (answers), T stored tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from finetune.data.store import TokenRows


@dataclass(frozen=True)
class Comparisons:
    """G groups over N rows of tokens; a group holds the answers to one prompt, best first, or one judged answer.

    rows: N answers, each as its whole sequence (prompt + answer); trained = 1 on the answer's tokens, its stop token
    included. rows.origin: the group's number in the order of the files.
    starts: int64 [G + 1], group g is the rows starts[g]:starts[g + 1].
    prompt_lengths: int64 [N], tokens before the first one of the answer. Where a template puts prompt and answer into
    one text, the last of these can differ between the answers of a group.
    margins: float64 [G], the row's own margin, nan where it has none. ratings: int8 [G], index into RATINGS, -1 where
    it has none. desirable: int8 [G], 1 or 0 for judged answers (groups of one row), -1 for rankings.
    formatted: uint8 [T], aligned with rows.ids: 1 where the token is one of the template's special tokens (header
    marks, end tokens). The role word of a header is 0; it is never trained.
    extra: the columns that were asked for as slices -> [G] of str, "" where a row has no value.
    """

    rows: TokenRows
    starts: NDArray[np.int64]
    prompt_lengths: NDArray[np.int64]
    margins: NDArray[np.float64]
    ratings: NDArray[np.int8]
    desirable: NDArray[np.int8]
    formatted: NDArray[np.uint8]
    extra: Mapping[str, NDArray[np.str_]]

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def sizes(self) -> NDArray[np.int64]:
        """int64 [G], answers of each group."""
        return np.diff(self.starts)

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """int64 [G], tokens of each group, all its rows together."""
        so_far = np.concatenate([[0], np.cumsum(self.rows.lengths)]).astype(np.int64)
        return np.diff(so_far[self.starts])

    def group(self, index: int) -> range:
        """The rows of one group, best first."""
        return range(int(self.starts[index]), int(self.starts[index + 1]))

    def row_format(self, row: int) -> NDArray[np.uint8]:
        """`formatted` of one row, as a view of its length."""
        start = self.rows.starts[row]
        return self.formatted[start : start + self.rows.lengths[row]]

    def origin_of(self, index: int) -> int:
        """The number of a group in the order of the files."""
        return int(self.rows.origin[self.starts[index]])

    def pairs(self, ranked: Literal["all", "top"]) -> NDArray[np.int64]:
        """int64 [P, 3]: (group, better row, worse row) of every pair, or of the best against each of the others."""
        found = [
            (group, better, worse)
            for group in range(len(self))
            for better in (self.group(group) if ranked == "all" else self.group(group)[:1])
            for worse in range(better + 1, int(self.starts[group + 1]))
        ]
        return np.array(found, dtype=np.int64).reshape(-1, 3)

    def select(self, groups: NDArray[np.int64] | NDArray[np.bool_]) -> Comparisons:
        """Some groups (indices or a mask), in that order; no tokens are copied."""
        chosen = np.flatnonzero(groups) if groups.dtype == np.bool_ else groups
        sizes = self.sizes[chosen]
        starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        rows = np.arange(starts[-1]) - np.repeat(starts[:-1] - self.starts[chosen], sizes)
        return Comparisons(
            self.rows.select(rows),
            starts,
            self.prompt_lengths[rows],
            self.margins[chosen],
            self.ratings[chosen],
            self.desirable[chosen],
            self.formatted,
            {name: values[chosen] for name, values in self.extra.items()},
        )

    def keep_rows(self, kept: NDArray[np.bool_]) -> Comparisons:
        """Without some of the answers; kept: bool [N]. Groups stay, also those that have no answer left."""
        so_far = np.concatenate([[0], np.cumsum(kept)]).astype(np.int64)
        return Comparisons(
            self.rows.select(kept),
            so_far[self.starts],
            self.prompt_lengths[kept],
            self.margins,
            self.ratings,
            self.desirable,
            self.formatted,
            self.extra,
        )
