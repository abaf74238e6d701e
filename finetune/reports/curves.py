"""Curves as inline SVG of our own: small, light and dark by STYLE (style.py), readable at phone width.

Lines differ by dash and by the form of their points too, not by colour alone. A line of many points is thinned to what
the picture can show, each stretch by its lowest and highest value, so that no spike is lost.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

from finetune.reports.pieces import Html, number, text

Points = Sequence[tuple[float, float]]
Place = Callable[[tuple[float, float]], tuple[float, float]]
"""From values to where they stand in the picture."""

WIDTH, LEFT, RIGHT, BELOW = 420, 52, 12, 42
"""Of the picture and round the plot, in the units of the SVG's viewBox; text is 12 of them high."""
PLOT = 170
"""Height of the plot."""
DASHES = ("", "7 3", "2 3", "9 3 2 3")
MARKED = 32
"""A line of so many points or fewer has a mark at each."""
SMOOTHED = 100
"""A rough line of more points than this is drawn faint, with a moving average over it."""
_STRETCHES = 180
"""Stretches that a long line is thinned to, two points each."""
_FALLBACK = ("#1a6fb5", "#c05315", "#2c7a4b", "#7d4fa8")
"""Of lines where STYLE is not on the page: as in its light half."""


def curve(lines: Mapping[str, Points], *, title: str, x: str, y: str, from_zero: bool = False) -> Html:
    """Lines of (x, y) points over common axes. x, y: names of the axes, with units. from_zero: 0 is on the y axis.

    Values that are not finite are left out, and the picture says how many. No points at all: a picture that says so.
    """
    given = {name: sorted((float(a), float(b)) for a, b in points) for name, points in lines.items()}
    kept = {
        name: [point for point in points if math.isfinite(point[0]) and math.isfinite(point[1])]
        for name, points in given.items()
    }
    lost = sum(len(points) for points in given.values()) - sum(len(points) for points in kept.values())
    kept = {name: points for name, points in kept.items() if points}
    legend, top = _legend(kept) if len(kept) > 1 or any(map(_is_long, kept.values())) else ("", 34)
    top += 16 if lost else 0
    height = top + PLOT + BELOW
    inside = [f'<text x="{LEFT}" y="16" font-weight="600">{text(title)}</text>', legend]
    if lost:
        inside.append(f'<text class="ft-quiet" x="{LEFT}" y="{top - 10}">{lost:,} values are not finite</text>')
    if kept:
        inside += _plot(kept, top, x, y, from_zero)
    else:
        inside.append(f'<text class="ft-quiet" x="{LEFT}" y="{top + PLOT / 2:.0f}">no values</text>')
    told = text(f"{title}: {_told(kept, x)}")
    return Html(
        f'<svg class="ft-curve" viewBox="0 0 {WIDTH} {height:.0f}" width="{WIDTH}" height="{height:.0f}" role="img" '
        f'aria-label="{told}" font-size="12" fill="currentColor" xmlns="http://www.w3.org/2000/svg">'
        f"<title>{text(title)}</title>{''.join(inside)}</svg>"
    )


def thinned(points: Points, stretches: int = _STRETCHES) -> list[tuple[float, float]]:
    """At most two points for each stretch of x: its lowest and its highest, in their order; first and last stay."""
    if len(points) <= 2 * stretches:
        return list(points)
    kept = [points[0]]
    for at in range(stretches):
        piece = points[len(points) * at // stretches : len(points) * (at + 1) // stretches]
        ends = {min(piece, key=lambda point: point[1]), max(piece, key=lambda point: point[1])}
        kept += sorted(ends - {kept[-1]})
    return kept if kept[-1] == points[-1] else [*kept, points[-1]]


def moving_average(points: Points, width: int) -> list[tuple[float, float]]:
    """Means of y over the `width` points round each, fewer at the ends."""
    sums = [0.0]
    for _, value in points:
        sums.append(sums[-1] + value)
    half = width // 2
    found = []
    for at, (place, _) in enumerate(points):
        low, high = max(0, at - half), min(len(points), at + half + 1)
        found.append((place, (sums[high] - sums[low]) / (high - low)))
    return found


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers (1, 2, 2.5 or 5 times a power of ten apart) from `low` to `high`."""
    if not high > low:
        return [low]
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * 0.85)
    first = math.ceil(low / step - 1e-9)
    return [round(step * (first + at), 12) for at in range(int((high - step * first) / step + 1e-9) + 1)]


def _is_long(points: Points) -> bool:
    """Whether a line is long, and goes up and down so often that only its average can be followed."""
    if len(points) <= SMOOTHED:
        return False
    values = [value for _, value in points]
    travelled = sum(abs(after - before) for before, after in pairwise(values))
    return travelled > 4 * (max(values) - min(values))


def _range(values: Sequence[float], margin: float) -> tuple[float, float]:
    low, high = min(values), max(values)
    if low == high:
        spread = abs(low) * 0.1 or 1.0
        return low - spread, high + spread
    return low - (high - low) * margin, high + (high - low) * margin


def _plot(lines: Mapping[str, Points], top: float, x: str, y: str, from_zero: bool) -> list[str]:
    left, right = _range([point[0] for points in lines.values() for point in points], 0.02)
    values = [point[1] for points in lines.values() for point in points]
    low, high = _range([*values, 0.0] if from_zero else values, 0.05)
    bottom, across = top + PLOT, WIDTH - LEFT - RIGHT

    def place(point: tuple[float, float]) -> tuple[float, float]:
        return (
            LEFT + (point[0] - left) / (right - left) * across,
            bottom - (point[1] - low) / (high - low) * PLOT,
        )

    drawn = []
    for value in ticks(low, high):
        height = place((left, value))[1]
        drawn.append(
            f'<path class="ft-grid" d="M{LEFT} {height:.1f}H{WIDTH - RIGHT}" stroke="#d5dae0" fill="none"/>'
            f'<text class="ft-quiet" x="{LEFT - 6}" y="{height + 4:.1f}" text-anchor="end">{tick(value)}</text>'
        )
    for value in ticks(left, right):
        along = place((value, low))[0]
        drawn.append(
            f'<text class="ft-quiet" x="{along:.1f}" y="{bottom + 16:.1f}" text-anchor="middle">{tick(value)}</text>'
        )
    drawn.append(
        f'<text class="ft-quiet" x="{WIDTH - RIGHT}" y="{bottom + 34:.1f}" text-anchor="end">{text(x)}</text>'
        f'<text class="ft-quiet" x="{LEFT}" y="{bottom + 34:.1f}">{text("↑ " + y)}</text>'
    )
    for at, points in enumerate(lines.values()):
        drawn += _line(points, at, place)
    return drawn


def _line(points: Points, at: int, place: Place) -> list[str]:
    if _is_long(points):
        smooth = moving_average(points, max(3, len(points) // 30))
        return [_path(thinned(points), at, place, 0.8, 0.45), _path(thinned(smooth), at, place, 2.2, 1.0)]
    drawn = [_path(thinned(points), at, place, 1.8, 1.0)]
    if len(points) <= MARKED:
        drawn += [_mark(at, *place(point), f"{number(point[0])}: {number(point[1])}") for point in points]
    return drawn


def _path(points: Points, at: int, place: Place, width: float, opacity: float) -> str:
    joined = "L".join("{:.1f} {:.1f}".format(*place(point)) for point in points)
    dash = f' stroke-dasharray="{DASHES[at % 4]}"' if DASHES[at % 4] and opacity == 1.0 else ""
    return (
        f'<path class="ft-{at % 4 + 1}" d="M{joined}" fill="none" stroke="{_FALLBACK[at % 4]}" stroke-width="{width}" '
        f'stroke-linejoin="round" stroke-opacity="{opacity:g}"{dash}/>'
    )


def _mark(at: int, x: float, y: float, told: str = "") -> str:
    """A point: a disc, a square, a triangle or a diamond, by the line's number."""
    shapes = (
        f"M{x - 3:.1f} {y:.1f}a3 3 0 1 0 6 0a3 3 0 1 0 -6 0z",
        f"M{x - 2.7:.1f} {y - 2.7:.1f}h5.4v5.4h-5.4z",
        f"M{x:.1f} {y - 3.6:.1f}l3.5 6h-7z",
        f"M{x:.1f} {y - 4:.1f}l4 4l-4 4l-4 -4z",
    )
    title = f"<title>{text(told)}</title>" if told else ""
    return f'<path class="ft-{at % 4 + 1}" d="{shapes[at % 4]}" fill="currentColor" stroke="none">{title}</path>'


def _legend(lines: Mapping[str, Points]) -> tuple[str, float]:
    """The lines' names in rows that fit, and where the plot may begin."""
    drawn, along, down = [], float(LEFT), 34.0
    for at, (name, points) in enumerate(lines.items()):
        label = name if len(name) <= 44 else name[:43] + "…"
        if _is_long(points):
            label += ", with its moving average"
        room = 32 + 6.6 * len(label)
        if along > LEFT and along + room > WIDTH:
            along, down = float(LEFT), down + 16
        kind, colour = at % 4 + 1, _FALLBACK[at % 4]
        dash = f' stroke-dasharray="{DASHES[at % 4]}"' if DASHES[at % 4] else ""
        drawn.append(
            f'<path class="ft-{kind}" d="M{along:.0f} {down - 4:.0f}h22" stroke="{colour}" stroke-width="2"{dash}/>'
            + (_mark(at, along + 11, down - 4) if len(points) <= MARKED else "")
            + f'<text x="{along + 27:.0f}" y="{down:.0f}">{text(label)}</text>'
        )
        along += room + 6
    return "".join(drawn), down + 14


def tick(value: float) -> str:
    """A number at an axis, short: 1.5k, 20k, 3M, 2e-5, 0.25."""
    size = abs(value)
    for letter, unit in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if size >= unit and size < unit * 1000:
            return f"{value / unit:.4g}{letter}"
    if size and (size < 0.001 or size >= 1e15):
        mantissa, _, power = f"{value:.3e}".partition("e")
        return f"{float(mantissa):g}e{int(power)}"
    return f"{value:.4g}"


def _told(lines: Mapping[str, Points], x: str) -> str:
    """The picture in words, for who does not see it."""
    if not lines:
        return "no values"
    return "; ".join(
        f"{name} from {number(points[0][1])} to {number(points[-1][1])} over {len(points):,} points ({x} "
        f"{number(points[0][0])} to {number(points[-1][0])}), lowest {number(min(value for _, value in points))}, "
        f"highest {number(max(value for _, value in points))}"
        for name, points in lines.items()
    )
