"""Which curves a run's log gives: what belongs on common axes, in the order in which people ask for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetune.report.curves import curve
from finetune.report.pieces import Html, join, number, text
from finetune.report.words import ONLINE

Log = Sequence[Mapping[str, Any]]


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
    main = [drawn for chart in MAIN if (drawn := _draw(chart, log, manifest))]
    if manifest.get("kind") in ONLINE and (drawn := _reward_by_kl(log, manifest)):
        main.insert(2, drawn)
    others = (*MORE, *_others(log))
    rest = [drawn for chart in others if (drawn := _draw(chart, log, manifest))]
    same = [told for chart in (*MAIN, *others) if (told := _unchanged(chart, log, manifest))]
    return join(main), join([*rest, *([note] if (note := _same_line(same)) else [])])


def over_each_other(logs: Mapping[str, tuple[Log, Mapping[str, Any]]]) -> Html:
    """The main curves of several runs over common axes: what was held out where there is such a line, else the other.

    logs: by the run's name, its log and manifest.
    """
    drawn = []
    for chart in MAIN:
        for key, called in reversed(chart.keys):
            lines = {name: points(key, log, manifest) for name, (log, manifest) in logs.items()}
            if sum(len(line) > 1 for line in lines.values()) == len(lines):
                about = f" ({called})" if len(chart.keys) > 1 else ""
                drawn.append(curve(lines, title=chart.title + about, x="step", y=chart.y, from_zero=chart.from_zero))
                break
    return join(drawn)


def points(key: str, log: Log, manifest: Mapping[str, Any]) -> list[tuple[float, float]]:
    """(step, value) of every line that has the value; what was measured after the last step is the last of them."""
    found = [(_number(line["step"]), _number(line[key])) for line in log if "step" in line and key in line]
    kept = [(step, value) for step, value in found if step is not None and value is not None]
    metrics = manifest.get("metrics") or {}
    after, steps = _number(metrics.get(f"{key}_after")), _number(metrics.get("steps"))
    if kept and after is not None and steps is not None and kept[-1][0] <= steps:
        # PPO's last measurement comes after its last step, and is in the manifest alone
        kept.append((steps + 1, after))
    return kept


def _draw(chart: Chart, log: Log, manifest: Mapping[str, Any]) -> Html | None:
    lines = {name: found for key, name in chart.keys if (found := points(key, log, manifest))}
    if not any(len(found) > 1 for found in lines.values()) or _is_flat(lines):
        return None
    return curve(lines, title=chart.title, x="step", y=chart.y, from_zero=chart.from_zero)


def _is_flat(lines: Mapping[str, Sequence[tuple[float, float]]]) -> bool:
    return len({value for line in lines.values() for _, value in line}) == 1


def _unchanged(chart: Chart, log: Log, manifest: Mapping[str, Any]) -> str:
    """The name and value of what never changed."""
    lines = {name: found for key, name in chart.keys if (found := points(key, log, manifest))}
    if not lines or not _is_flat(lines):
        return ""
    return f"{chart.title.lower()} {number(next(iter(lines.values()))[0][1])}"


def _same_line(same: Sequence[str]) -> Html | None:
    return Html(f'<p class="ft-quiet">The same at every step: {text(", ".join(same))}.</p>') if same else None


def _reward_by_kl(log: Log, manifest: Mapping[str, Any]) -> Html | None:
    """What the reward was bought for: over-optimisation is a curve that goes right without going up."""
    pairs = [(_number(line.get("kl")), _number(line.get("reward"))) for line in log]
    line = [(kl, reward) for kl, reward in pairs if kl is not None and reward is not None]
    if len(line) < 2:
        return None
    return curve({"iterations": line}, title="Reward against KL", x="KL to the reference (nats)", y="mean score")


def _others(log: Log) -> Iterator[Chart]:
    """Numbers that a log has under names of its own, such as TRL's."""
    names = dict.fromkeys(key for line in log for key in line)
    others = [
        key
        for key in names
        if key not in _KNOWN and not key.startswith(("seconds_", "held_out_")) and _number_anywhere(key, log)
    ]
    for key in others[:_REST]:
        title = key.replace("_", " ").replace("/", ": ")
        yield Chart(title[:1].upper() + title[1:], "as logged", ((key, title), (f"held_out_{key}", "held out")))


def _number_anywhere(key: str, log: Log) -> bool:
    return any(_number(line.get(key)) is not None for line in log)


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
