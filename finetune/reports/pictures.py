"""Pictures of a reward model on its held-out pairs, drawn with matplotlib.

Figures are built as objects, never through pyplot, and every setting is matplotlib's default plus STYLE for the time of
the drawing, so neither a matplotlibrc nor a notebook's style changes them and they change nothing outside. The same
numbers give the same bytes (one version of matplotlib): no dates, fixed ids. An SVG carries its own paper and ink and
swaps them in dark mode by a media query; a PNG is dark ink on white paper. The data's colours are legible on both.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html import escape
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np

from finetune.reports.calibration import Floats, ScoredPairs

Format = Literal["svg", "png"]

PAPER, INK, FAINT = "#ffffff", "#24292f", "#d0d7de"
DARK = {PAPER: "#0d1117", INK: "#e6edf3", FAINT: "#3d444d"}
"""What each colour of the light picture becomes in dark mode."""
CHOSEN, REJECTED = "#1f83c4", "#d9702a"
"""Blue and orange: apart for colour-blind eyes, and at least 3:1 against both papers."""

STYLE: dict[str, Any] = {
    "figure.facecolor": PAPER, "savefig.facecolor": PAPER, "axes.facecolor": "none",
    "text.color": INK, "axes.labelcolor": INK, "xtick.labelcolor": INK, "ytick.labelcolor": INK,
    "axes.edgecolor": FAINT, "xtick.color": FAINT, "ytick.color": FAINT, "grid.color": FAINT,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True,
    "grid.linewidth": 0.6, "axes.titlelocation": "left", "axes.titlesize": 12, "axes.titleweight": "bold",
    "axes.titlepad": 12.0, "axes.labelsize": 10, "xtick.labelsize": 9, "ytick.labelsize": 9,
    "figure.constrained_layout.w_pad": 0.14, "figure.constrained_layout.h_pad": 0.12,
    "legend.frameon": False, "legend.fontsize": 9, "font.family": ["DejaVu Sans"],
    "svg.hashsalt": "finetune", "svg.fonttype": "path", "text.parse_math": False,
}  # fmt: skip

MOST_POINTS = 2000
"""Answers drawn in a scatter; of more, evenly spaced ones are drawn and the picture says so."""
LONGEST_NAME = 28
"""Characters of a slice's value that are drawn."""


def available() -> bool:
    """Whether matplotlib is installed (it is one of the package's dependencies)."""
    return find_spec("matplotlib") is not None


def reward_pictures(pairs: ScoredPairs, report: dict[str, Any], *, format: Format = "svg") -> dict[str, bytes]:
    """All pictures of a reward model: {file name: content}, for the caller to write.

    pairs: the held-out pairs; report: `calibration.reward_report` of them. Always reliability, scores and length; one
    accuracy picture for the ratings and one for each column of slices, where there are any.
    """
    chosen, rejected = np.asarray(pairs.chosen, np.float64), np.asarray(pairs.rejected, np.float64)
    lengths = np.asarray(pairs.chosen_tokens), np.asarray(pairs.rejected_tokens)
    pictures = {
        f"reliability.{format}": reliability(report, format=format),
        f"scores.{format}": scores(chosen, rejected, format=format),
        f"length.{format}": score_by_length(chosen, rejected, *lengths, report, format=format),
    }
    if report["by_rating"]:
        pictures[f"accuracy_by_rating.{format}"] = accuracy_by_slice(report, None, format=format)
    for number, column in enumerate(report["by_slice"], start=1):
        # numbered, because a column's name need not be a file's name
        pictures[f"accuracy_by_slice_{number}.{format}"] = accuracy_by_slice(report, column, format=format)
    return pictures


def reliability(report: dict[str, Any], *, format: Format = "svg") -> bytes:
    """Reliability diagram: accuracy against confidence (both in [0.5, 1]), pairs in each bin below."""
    found = report["calibration"]
    rows = [row for row in found["bins"] if row["pairs"]]
    width = found["bins"][0]["high"] - found["bins"][0]["low"]
    title = "Reliability: confidence and accuracy"

    def draw(figure: Any) -> None:
        top, below = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
        top.plot([0.5, 1], [0.5, 1], color=INK, linewidth=1, linestyle=(0, (4, 3)), label="calibrated")
        at, accuracy = [row["confidence"] for row in rows], [row["accuracy"] for row in rows]
        for row in rows:
            x = row["confidence"]
            top.plot([x, x], [row["accuracy_low"], row["accuracy_high"]], color=CHOSEN, linewidth=1.5, alpha=0.55)
        top.plot(at, accuracy, "o-", color=CHOSEN, linewidth=1.8, markersize=6, label="this model (95 % intervals)")
        top.set(
            xlim=(0.49, 1.01), ylim=(min(0.45, *(row["accuracy_low"] - 0.02 for row in rows)), 1.02), title=title,
            ylabel="accuracy",
        )  # fmt: skip
        top.legend(loc="upper left")
        note(top, f"accuracy {_percent(report['accuracy'])}\nECE {found['ece']:.3f}")
        middles = [(row["low"] + row["high"]) / 2 for row in found["bins"]]
        below.bar(middles, [row["pairs"] for row in found["bins"]], width * 0.9, color=CHOSEN, alpha=0.8)
        below.set(xlabel="confidence: sigmoid of the gap between the two scores", ylabel="pairs")
        below.grid(False, axis="x")
        _percent_axis(top.yaxis)
        _percent_axis(below.xaxis)
        _counts_axis(below.yaxis)

    return render(draw, title, format, (5.6, 5.4))


def scores(chosen: Floats, rejected: Floats, *, format: Format = "svg") -> bytes:
    """Histogram of the scores of chosen and of rejected answers, [P] each, in nats."""
    edges = np.histogram_bin_edges(
        np.concatenate([chosen, rejected]), bins=min(40, max(8, int(len(chosen) ** 0.5) * 2))
    )
    title = "Scores of better and worse answers"

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for values, colour, name in ((rejected, REJECTED, "rejected"), (chosen, CHOSEN, "chosen")):
            axes.hist(values, edges, color=colour, alpha=0.45, label=f"{name}, mean {values.mean():+.2f}")
            axes.hist(values, edges, color=colour, histtype="step", linewidth=1.6)
            axes.axvline(values.mean(), 0, 0.86, color=colour, linewidth=1.2, linestyle=(0, (4, 3)))
        axes.set(title=title, xlabel="score (nats)", ylabel="answers")
        axes.set_ymargin(0.2)
        axes.autoscale_view()
        axes.legend(loc="upper left", ncols=2)
        axes.grid(False, axis="x")
        _counts_axis(axes.yaxis)

    return render(draw, title, format, (6.4, 3.8))


def score_by_length(
    chosen: Floats,
    rejected: Floats,
    chosen_tokens: Any,
    rejected_tokens: Any,
    report: dict[str, Any],
    *,
    format: Format = "svg",
) -> bytes:
    """Score (nats) against answer length (tokens), one point for each answer; all inputs [P].

    The axis of lengths is logarithmic where the longest answer is more than 20 times the shortest.
    """
    title = "Score and answer length"
    step = max(1, -(-2 * len(chosen) // MOST_POINTS))
    drawn = 2 * len(range(0, len(chosen), step))
    lengths = np.maximum(np.concatenate([chosen_tokens, rejected_tokens]), 1)
    wide = lengths.max() > 20 * lengths.min()

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for tokens, values, colour, name in (
            (rejected_tokens, rejected, REJECTED, "rejected"),
            (chosen_tokens, chosen, CHOSEN, "chosen"),
        ):
            at = np.maximum(np.asarray(tokens)[::step], 1)
            axes.scatter(at, values[::step], s=14, color=colour, alpha=0.65, linewidths=0, label=name)
        if wide:
            axes.set_xscale("log")
            axes.xaxis.set_minor_formatter(lambda value, _: "")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.set(title=title, xlabel="answer length (tokens)", ylabel="score (nats)")
        axes.set_ymargin(0.16)
        axes.autoscale_view()
        axes.legend(loc="upper left", ncols=2, markerscale=1.6, handletextpad=0.2)
        length = report["length"]
        lines = [
            f"Spearman {_signed(length['answers']['spearman'])}, within pairs {_signed(length['pairs']['spearman'])}"
        ]
        if drawn < 2 * len(chosen):
            lines.append(f"{drawn:,} of {2 * len(chosen):,} answers drawn")
        note(axes, "\n".join(lines))

    return render(draw, title, format, (6.4, 3.8))


def accuracy_by_slice(report: dict[str, Any], column: str | None, *, format: Format = "svg") -> bytes:
    """Accuracy for each value of a column of `by_slice`, or for each rating (column None), with 95 % intervals."""
    groups: dict[str, dict[str, Any]] = report["by_rating"] if column is None else report["by_slice"][column]
    title = f"Accuracy by {'rating' if column is None else _short(column)}"

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for row, found in enumerate(groups.values()):
            axes.barh(row, found["accuracy"], 0.62, color=CHOSEN, alpha=0.8, linewidth=0)
            axes.plot([found["low"], found["high"]], [row, row], color=INK, linewidth=1.2, solid_capstyle="butt")
            axes.text(1.02, row, f"{_percent(found['accuracy'])} of {found['pairs']:,}", va="center", fontsize=9)
        axes.axvline(0.5, color=INK, linewidth=1, linestyle=(0, (1, 2)))
        axes.axvline(report["accuracy"], color=REJECTED, linewidth=1.2, linestyle=(0, (4, 3)))
        axes.set_yticks(
            range(len(groups)), [_short(name.replace("_", " ") if column is None else name) for name in groups]
        )
        axes.set(title=title, xlim=(0, 1), ylim=(len(groups) - 0.4, -0.6))
        axes.set_xlabel(f"accuracy (dashed: all pairs, {_percent(report['accuracy'])}; dotted: chance)")
        axes.grid(False, axis="y")
        axes.tick_params(axis="y", length=0)
        _percent_axis(axes.xaxis)

    return render(draw, title, format, (6.4, 1.5 + 0.36 * len(groups)))


@contextmanager
def _own_settings() -> Iterator[None]:
    """matplotlib's defaults and STYLE inside, whatever was set before again outside."""
    import matplotlib.style

    with matplotlib.style.context(["default", STYLE]):
        yield


def render(draw: Callable[[Any], None], title: str, format: Format, inches: tuple[float, float]) -> bytes:
    """A picture that `draw` draws on a figure, in the house's style, dark mode and all."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    file = io.BytesIO()
    with _own_settings(), warnings.catch_warnings():
        # DejaVu Sans has no Chinese, say: such letters of a slice's name are drawn as boxes
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = Figure(figsize=inches, layout="constrained")
        draw(figure)
        if format == "svg":
            metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
            FigureCanvasSVG(figure).print_svg(file, metadata=metadata)
            return _in_dark_too(file.getvalue().decode(), title).encode()
        figure.set_dpi(160)
        FigureCanvasAgg(figure).print_png(file, metadata={"Software": None, "Title": title})
        return file.getvalue()


def _in_dark_too(svg: str, title: str) -> str:
    """Give an SVG a name for screen readers and colours for dark mode."""
    rules = " ".join(
        f'[style*="{kind}: {light}"] {{ {kind}: {dark} !important }}'
        for light, dark in DARK.items()
        for kind in ("fill", "stroke")
    )
    head = f"<title>{escape(title)}</title>\n <style>@media (prefers-color-scheme: dark) {{ {rules} }}</style>\n"
    start = svg.index(">", svg.index("<svg")) + 1
    return f"{svg[:start]}\n {head}{svg[start:].lstrip()}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _signed(value: float | None) -> str:
    return "undefined" if value is None else f"{value:+.2f}"


def _short(name: str) -> str:
    """A name that fits: one line, no control characters (an XML file may not hold them)."""
    name = "".join(letter if letter.isprintable() else " " for letter in name)
    name = " ".join(name.split()) or "(empty)"
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"


def _percent_axis(axis: Any) -> None:
    axis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")


def _counts_axis(axis: Any) -> None:
    """Whole numbers, and few."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(4, integer=True))


def note(axes: Any, text: str) -> None:
    """Text in the lower right corner."""
    axes.annotate(
        text, (1, 0), (-6, 8), xycoords="axes fraction", textcoords="offset points", ha="right", va="bottom",
        fontsize=9, color=INK,
    )  # fmt: skip
