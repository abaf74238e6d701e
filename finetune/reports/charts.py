"""Which curves a run's log gives: what belongs on common axes, in the order in which people ask for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetune.reports.curves import curve
from finetune.reports.pieces import Html, join, number, text
from finetune.reports.words import ONLINE

Log = Sequence[Mapping[str, Any]]
Columns = Mapping[str, Sequence[tuple[float, float]]]


@dataclass(frozen=True)
class Chart:
    """keys: the log's names, each with what the line is called."""

    title: str
    y: str
    keys: tuple[tuple[str, str], ...]
    from_zero: bool = False


def _two(title: str, y: str, key: str, trained: str = "trained on") -> Chart:
    return Chart(title, y, ((key, trained), (f"held_out_{key}", "held out")))


MAIN = (
    _two("Loss", "loss", "loss"),
    _two("Reward", "mean score", "reward", "sampled"),
    Chart("Score of samples", "mean score", (("score", "all"), ("best", "best of each prompt"))),
    _two("KL to the reference", "nats an answer", "kl", "sampled"),
    _two("Accuracy on comparisons", "share", "accuracy"),
    _two("Gap of scores", "better minus worse", "gap"),
    _two("Margin of implicit rewards", "better minus worse", "margin"),
    _two("Answer length", "tokens", "answer_tokens", "sampled"),
    Chart("Entropy", "nats a token", (("entropy", "sampled"),)),
    Chart("Learning rate", "rate", (("learning_rate", "learning rate"),)),
    Chart("Speed", "tokens a second", (("tokens_per_second", "tokens a second"),), True),
    Chart("Peak memory", "GiB", (("memory_gib", "memory"),), True),
)
MORE = (
    Chart("Implicit rewards", "reward", (("reward_chosen", "better answers"), ("reward_rejected", "worse answers"))),
    Chart("Parts of the loss", "loss", (("policy_loss", "policy"), ("value_loss", "value"), ("nll", "likelihood"))),
    Chart("Clipped", "share of tokens", (("clip_fraction", "policy"), ("value_clip_fraction", "value"))),
    Chart("Variance that the value model explains", "share", (("explained_variance", "explained"),)),
    _two("Finished answers", "share", "finished", "sampled"),
    Chart("Gradient norm", "before clipping", (("grad_norm", "norm"),)),
    Chart(
        "Speed of each phase",
        "tokens a second",
        (("speed_sampling", "sampling"), ("speed_scoring", "scoring"), ("speed_comparing", "comparing")),
    ),
)
_KNOWN = {key for chart in (*MAIN, *MORE) for key, _ in chart.keys} | {"step", "epoch", "seconds", "tokens", "trained"}
_REST = 12
"""Charts of other names that a log has, at most."""


def charts(log: Log, manifest: Mapping[str, Any]) -> tuple[Html, Html]:
    """(the curves that most people look for, the others), each empty where the log has none. What stays the same all
    through is told in a line of words."""
    found = columns(log, manifest)
    main = [drawn for chart in MAIN if (drawn := _draw(chart, found))]
    if manifest.get("kind") in ONLINE and (drawn := _reward_by_kl(log)):
        main.insert(2, drawn)
    others = (*MORE, *_others(found))
    rest = [drawn for chart in others if (drawn := _draw(chart, found))]
    same = [told for chart in (*MAIN, *others) if (told := _unchanged(chart, found))]
    return join(main), join([*rest, *([note] if (note := _same_line(same)) else [])])


def over_each_other(logs: Mapping[str, tuple[Log, Mapping[str, Any]]]) -> Html:
    """The main curves of several runs over common axes: what was held out where there is such a line, else the other.

    logs: by the run's name, its log and manifest.
    """
    found = {name: columns(log, manifest) for name, (log, manifest) in logs.items()}
    drawn = []
    for chart in MAIN:
        for key, called in reversed(chart.keys):
            lines = {name: column.get(key, []) for name, column in found.items()}
            if all(len(line) > 1 for line in lines.values()):
                about = f" ({called})" if len(chart.keys) > 1 else ""
                drawn.append(curve(lines, title=chart.title + about, x="step", y=chart.y, from_zero=chart.from_zero))
                break
    return join(drawn)


def columns(log: Log, manifest: Mapping[str, Any]) -> Columns:
    """By each name of the log (step, value) of every line that has a number under it; what was measured after the last
    step, which is in the manifest alone, is the last of them."""
    found: dict[str, list[tuple[float, float]]] = {}
    for line in log:
        step = _number(line.get("step"))
        if step is None:
            continue
        for key, value in line.items():
            if (known := _number(value)) is not None:
                found.setdefault(key, []).append((step, known))
    metrics = manifest.get("metrics") or {}
    steps = _number(metrics.get("steps"))
    for key, points in found.items():
        after = _number(metrics.get(f"{key}_after"))
        if after is not None and steps is not None and points[-1][0] <= steps:
            points.append((steps + 1, after))
    return found


def _draw(chart: Chart, found: Columns) -> Html | None:
    lines = _lines(chart, found)
    if not any(len(line) > 1 for line in lines.values()) or _is_flat(lines):
        return None
    return curve(lines, title=chart.title, x="step", y=chart.y, from_zero=chart.from_zero)


def _lines(chart: Chart, found: Columns) -> Columns:
    return {name: found[key] for key, name in chart.keys if key in found}


def _is_flat(lines: Columns) -> bool:
    return len({value for line in lines.values() for _, value in line}) == 1


def _unchanged(chart: Chart, found: Columns) -> str:
    """The name and value of what never changed."""
    lines = _lines(chart, found)
    if not lines or not _is_flat(lines):
        return ""
    return f"{chart.title.lower()} {number(next(iter(lines.values()))[0][1])}"


def _same_line(same: Sequence[str]) -> Html | None:
    return Html(f'<p class="ft-quiet">The same at every step: {text(", ".join(same))}.</p>') if same else None


def _reward_by_kl(log: Log) -> Html | None:
    """What the reward was bought for: over-optimisation is a curve that goes right without going up."""
    pairs = [(_number(line.get("kl")), _number(line.get("reward"))) for line in log]
    line = [(kl, reward) for kl, reward in pairs if kl is not None and reward is not None]
    if len(line) < 2:
        return None
    return curve({"iterations": line}, title="Reward against KL", x="KL to the reference (nats)", y="mean score")


def _others(found: Columns) -> Iterator[Chart]:
    """Numbers that a log has under names of its own, such as TRL's."""
    others = [key for key in found if key not in _KNOWN and not key.startswith(("seconds_", "held_out_"))]
    for key in others[:_REST]:
        title = key.replace("_", " ").replace("/", ": ")
        yield Chart(title[:1].upper() + title[1:], "as logged", ((key, title), (f"held_out_{key}", "held out")))


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
