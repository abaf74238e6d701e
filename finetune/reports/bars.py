"""Bars as inline SVG: lengths of rows, accuracy of slices. Light and dark by STYLE; each has its number beside it."""

from __future__ import annotations

from collections.abc import Sequence

from finetune.reports.pieces import Html, text

WIDTH, ROW = 420, 22


def bars(entries: Sequence[tuple[str, float, str]], *, title: str) -> Html:
    """Bars from the left, one under the other. entries: (name, value >= 0, the value as text)."""
    names = max([len(name) for name, _, _ in entries] or [1])
    shown = max([len(told) for _, _, told in entries] or [1])
    left, right = 12 + min(150, 7 * names), 12 + min(150, 7 * shown)
    most = max([value for _, value, _ in entries] or [0.0]) or 1.0
    drawn = [f'<text x="0" y="16" font-weight="600">{text(title)}</text>']
    for at, (name, value, told) in enumerate(entries):
        top = 30 + ROW * at
        length = (WIDTH - left - right) * max(0.0, value) / most
        drawn.append(
            f'<text class="ft-quiet" x="{left - 8}" y="{top + 14}" text-anchor="end">{text(name)}</text>'
            f'<path class="ft-1" d="M{left} {top + 3}h{max(length, 0.5):.1f}v14h-{max(length, 0.5):.1f}z" '
            'fill="currentColor" stroke="none"/>'
            f'<text x="{left + length + 7:.1f}" y="{top + 14}">{text(told)}</text>'
        )
    height = 36 + ROW * len(entries)
    told = text(f"{title}: " + "; ".join(f"{name} {told}" for name, _, told in entries))
    return Html(
        f'<svg class="ft-curve" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img" '
        f'aria-label="{told}" font-size="12" fill="currentColor" xmlns="http://www.w3.org/2000/svg">'
        f"<title>{text(title)}</title>{''.join(drawn)}</svg>"
    )


def length_bars(lengths: object) -> Html | None:
    """Rows by length in tokens, of a manifest's `data.lengths`; None where there is nothing that can be drawn."""
    if not isinstance(lengths, dict):
        return None
    edges, counts = lengths.get("edges"), lengths.get("counts")
    if not isinstance(edges, list) or not isinstance(counts, list) or len(edges) != len(counts) + 1 or not any(counts):
        return None
    first = next(at for at, count in enumerate(counts) if count)
    entries = [
        (f"{max(edges[at], 1):,} to {edges[at + 1] - 1:,}", float(counts[at]), f"{counts[at]:,}")
        for at in range(first, len(counts))
    ]
    return bars(entries, title="Rows by length in tokens")
