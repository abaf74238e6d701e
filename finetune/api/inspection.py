"""A stage's rows as the model will see them: tokens with their mask, lengths, and what is left out and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune.data.look import (
    LookedAt,
    Piece,
    Prepared,
    bracketed,
    choose_stage,
    finished_inputs,
    lengths_of,
    look_at,
    prepare_stage,
    rows_to_show,
    spoken,
)
from finetune.data.prepare_prompts import PreparedPrompts
from finetune.notebook.page import boxed, heading
from finetune.notebook.place import calm
from finetune.recipe.load import LoadedRecipe
from finetune.reports.pieces import Html, join, table, text

_BAR = 40
Pieces = Sequence[Piece]


@dataclass(frozen=True, repr=False)
class Inspection:
    """What a stage will train on.

    stage, kind: of what. rows: the rows that are shown. lengths: (from, to, how many) tokens of what is trained on.
    left_out: rows by the reason they are left out, each with where the first stand. said: the data in a few lines.
    """

    stage: str
    kind: str
    rows: Sequence[LookedAt]
    lengths: Sequence[tuple[int, int, int]]
    left_out: Mapping[str, tuple[int, Sequence[str]]]
    said: Sequence[str]
    _spoken: Sequence[Sequence[Pieces]]

    def __repr__(self) -> str:
        lines = [f"stage {self.stage} ({self.kind})", *self.said]
        most = max((count for _, _, count in self.lengths), default=0)
        lines += ["by length in tokens:"] if most else []
        lines += [
            f"  {low:>7,} - {high:<7,} {'█' * round(_BAR * count / most)} {count:,}"
            for low, high, count in self.lengths
        ]
        lines += ["", "⟦trained⟧ / not trained"] if self.rows else []
        for row, parts in zip(self.rows, self._spoken, strict=True):
            lines += ["", f"row {row.number}  {self._about(row)}"]
            for part, pieces in zip(row.parts, parts, strict=True):
                lines += [f"-- {part.name}: {len(part.ids):,} tokens"] if part.name and part.ids else []
                lines += [bracketed(pieces)] if part.ids else []
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        lost = [(why, rows, "; ".join(first[:3])) for why, (rows, first) in self.left_out.items()]
        return boxed(
            heading(f"{self.stage} ({self.kind})"),
            *(_line(line) for line in self.said if line.startswith(_MATTERS)),
            Html(f"<details><summary>how the rows were read</summary>{join(map(_line, self.said))}</details>"),
            table(("left out because", "rows", "the first"), lost, numeric=(1,)) if lost else "",
            _histogram(self.lengths),
            Html(f'<p><span style="{_TRAINED}">trained</span> <span class="ft-quiet">not trained</span></p>')
            if self.rows
            else "",
            *(self._row(row, parts) for row, parts in zip(self.rows, self._spoken, strict=True)),
        )

    def _row(self, row: LookedAt, parts: Sequence[Pieces]) -> Html:
        turns = [f'<div class="ft-turn"><span class="ft-name">row {row.number} · {text(self._about(row))}</span></div>']
        for part, pieces in zip(row.parts, parts, strict=True):
            if part.ids:
                name = f'<span class="ft-name">{text(part.name)}</span>' if part.name else ""
                turns.append(f'<div class="ft-turn">{name}<p class="ft-said">{_coloured(pieces)}</p></div>')
        return Html(f'<article class="ft-sample">{"".join(turns)}</article>')

    def _about(self, row: LookedAt) -> str:
        words = [row.where, f"{row.tokens:,} tokens, {row.trained:,} trained", row.about]
        words += [f"LEFT OUT: {row.left_out}"] if row.left_out else []
        return ", ".join(word for word in words if word)


_MATTERS = ("data:", "tokens:", "prompts:")
"""How the lines begin that everybody wants to see."""
_TRAINED = "background:var(--ft-after);border-radius:2px"


def inspect_stage(loaded: LoadedRecipe, name: str | None, count: int, runs: Path) -> Inspection:
    """Look at a stage's data. name: None = the first with data. Raises InputError."""
    calm()
    name, stage = choose_stage(loaded, name)
    lines: list[str] = []
    cache = runs / ".cache" if runs.is_dir() else None  # looking at data makes no folder for runs
    outputs = finished_inputs(loaded, stage, runs)
    prepared, tokenizer = prepare_stage(loaded, stage, stage_outputs=outputs, cache=cache, say=lines.append)
    rows = [look_at(prepared, row) for row in rows_to_show(prepared, count)]
    return Inspection(
        stage=name,
        kind=stage.kind,
        rows=rows,
        lengths=lengths_of(prepared),
        left_out=_left_out(prepared),
        said=lines,
        _spoken=[[list(spoken(part, tokenizer)) for part in row.parts] for row in rows],
    )


def _left_out(prepared: Prepared) -> dict[str, tuple[int, Sequence[str]]]:
    if isinstance(prepared, PreparedPrompts):
        return {why: (lost["rows"], lost["first"]) for why, lost in prepared.report["dropped"].items()}
    return {why: (lost.rows, lost.first) for why, lost in prepared.report.dropped.items()}


def _coloured(pieces: Pieces) -> Html:
    return Html("".join(map(_span, pieces)))


def _span(piece: Piece) -> str:
    style = ([_TRAINED] if piece.trained else []) + (["font-weight:600;font-size:.85em"] if piece.special else [])
    quiet = "" if piece.trained else ' class="ft-quiet"'
    return f'<span{quiet} style="{";".join(style)}">{text(piece.text)}</span>'


def _histogram(lengths: Sequence[tuple[int, int, int]]) -> Html:
    if not lengths:
        return Html("")
    most = max(count for _, _, count in lengths)
    bars = [
        (f"{low:,} - {high:,}", count, Html(f'<span style="{_bar(count / most)}"></span>'))
        for low, high, count in lengths
    ]
    return join([table(("tokens", "rows", ""), bars, caption="by length in tokens", numeric=(1,))])


def _line(line: str) -> Html:
    return Html(f'<p class="ft-quiet" style="margin:0">{text(line)}</p>')


def _bar(share: float) -> str:
    return f"display:inline-block;height:.8em;width:{12 * share:.2f}rem;background:var(--ft-1)"
