"""What a run is and what came out of it, in words that a person reads first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from finetune.reports.pieces import number

KINDS = {
    "sft": "supervised fine-tuning",
    "reward": "reward model",
    "reject": "rejection sampling",
    "dpo": "preference optimisation (DPO)",
    "ppo": "policy optimisation (PPO)",
    "grpo": "policy optimisation (GRPO)",
    "rloo": "policy optimisation (RLOO)",
    "average": "average of adapters",
    "merged": "merged model",
    "gguf": "GGUF export",
    "ollama": "Ollama export",
    "vllm": "vLLM export",
}
ONLINE = ("ppo", "grpo", "rloo")
"""Kinds that learn from a reward of what they have just written."""


@dataclass(frozen=True)
class Figure:
    """One result. before: where it was when the stage began, None where there is no such thing."""

    name: str
    before: float | None
    after: float
    unit: str = ""
    interval: tuple[float, float] | None = None
    """The ends of the 95 % interval of `after`, where the run has measured one."""

    def __str__(self) -> str:
        return self.told(self.after) if self.before is None else f"{self.told(self.before)} → {self.told(self.after)}"

    @property
    def within(self) -> str:
        """Its interval in words, empty where there is none."""
        if self.interval is None:
            return ""
        return f"95 % interval {self.told(self.interval[0])} to {self.told(self.interval[1])}"

    @property
    def whole(self) -> str:
        """The figure with its interval."""
        return f"{self} ({self.within})" if self.interval else str(self)

    def told(self, value: float) -> str:
        """A value of this figure as text: shares as percentages."""
        return percent(value) if self.name.endswith("accuracy") else number(value)


def kind_in_words(manifest: Mapping[str, Any]) -> str:
    kind = str(manifest.get("kind", "run"))
    return KINDS.get(kind, kind)


def kind_in_short(manifest: Mapping[str, Any]) -> str:
    """As `kind_in_words`, but the well-known abbreviation where there is one."""
    kind = str(manifest.get("kind", "run"))
    return kind.upper() if kind in ("dpo", *ONLINE) else kind_in_words(manifest)


def capital(words: str) -> str:
    return words[:1].upper() + words[1:]


def lasted(seconds: float) -> str:
    """How long, in words: 4 s, 1 min 59 s, 2 h 5 min."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours:,} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def figures(manifest: Mapping[str, Any]) -> list[Figure]:
    """The few results that say whether the stage did its work, the most telling first."""
    return [figure for figure in _figures(manifest) if figure is not None]


def _figures(manifest: Mapping[str, Any]) -> Iterator[Figure | None]:
    kind, metrics = manifest.get("kind"), manifest.get("metrics") or {}
    report = manifest.get("held_out_report") or {}
    first, last = metrics.get("first_held_out_metrics") or {}, metrics.get("held_out_metrics") or {}
    if kind in ("reward", "dpo"):
        after = report.get("accuracy", last.get("accuracy"))
        ends = (report["low"], report["high"]) if {"accuracy", "low", "high"} <= set(report) else None
        yield _figure("held-out accuracy", first.get("accuracy"), after, interval=ends)
    if kind in ONLINE:
        for name, shown, unit in (
            ("reward", "reward", ""),
            ("kl", "KL", "nats an answer"),
            ("answer_tokens", "answer length", "tokens"),
        ):
            if metrics.get(f"held_out_{name}_after") is not None:
                before, after = metrics.get(f"held_out_{name}_before"), metrics[f"held_out_{name}_after"]
                yield _figure(f"held-out {shown}", before, after, unit)
            else:
                yield _figure(shown, metrics.get(f"{name}_first"), metrics.get(f"{name}_last"), unit)
    elif kind == "reject":
        curve = sorted((metrics.get("best_of") or {}).items(), key=lambda point: int(point[0]))
        if curve:
            yield _figure(f"score, 1 to {curve[-1][0]} samples", curve[0][1], curve[-1][1])
        yield _figure("rows kept", None, metrics.get("kept"))
    else:
        yield _figure("held-out loss", metrics.get("first_held_out"), metrics.get("held_out"), _loss_unit(manifest))
        if metrics.get("held_out") is None:
            yield _figure("training loss", metrics.get("first_loss"), metrics.get("last_loss"), _loss_unit(manifest))
    if kind == "dpo":
        yield _figure("held-out margin", first.get("margin"), last.get("margin"))
    if kind == "reward" and report:
        yield _figure("calibration error", None, report["calibration"]["ece"])


def result(manifest: Mapping[str, Any]) -> str:
    """The main result, in a sentence or two."""
    kind, metrics = manifest.get("kind"), manifest.get("metrics") or {}
    found = {figure.name.removeprefix("held-out "): figure for figure in figures(manifest)}
    held_out = any(figure.name.startswith("held-out") for figure in figures(manifest))
    if kind == "reward" and (report := manifest.get("held_out_report")):
        return (
            f"Of {counted(report['pairs'], 'held-out pair')} it gives the better answer the higher score in "
            f"{percent(report['accuracy'])} (95 % interval {percent(report['low'])} to {percent(report['high'])}); "
            f"the mean gap is {number(report['mean_gap'])}."
        )
    if kind in ONLINE and "reward" in found:
        where = "on held-out prompts " if held_out else ""
        told = f"The mean reward {where}{_moved(found['reward'])}"
        if "KL" in found:
            told += f", {number(found['KL'].after)} nats an answer away from where it started"
        return f"{told}."
    if kind == "reject" and metrics.get("best_of"):
        best = figures(manifest)[0]
        samples, kept = max(metrics["best_of"], key=int), metrics.get("kept", 0)
        return (
            f"One sampled answer scores {number(best.before or 0.0)} on average, the best of {samples} scores "
            f"{number(best.after)}. {counted(kept, 'row')} {'was' if kept == 1 else 'were'} kept of "
            f"{counted(metrics.get('prompts', 0), 'prompt')}."
        )
    if kind == "average":
        return f"The mean of {metrics.get('adapters', 'several')} adapters; nothing was trained."
    if kind == "dpo" and "accuracy" in found:
        loss = f"; the held-out loss {_moved(found['loss'])}" if "loss" in found else ""
        return (
            f"In {percent(found['accuracy'].after)} of the held-out comparisons it favours the better answer more than "
            f"its reference does{loss}."
        )
    if "loss" in found:
        return f"On rows that it was not trained on the loss {_moved(found['loss'])} {_loss_unit(manifest)}."
    if "training loss" in found:
        return (
            f"The training loss {_moved(found['training loss'])} {_loss_unit(manifest)}; nothing was held out, so "
            "whether it learnt more than its rows is not known."
        )
    return "No result is recorded."


FEW = 20
"""Rows held out of which fewer say little: even of 20, a share of one half has a 95 % interval of 30 % to 70 %."""


def few_held_out(manifest: Mapping[str, Any]) -> str | None:
    """What a reader has to know where a stage held out something, but fewer than FEW."""
    data, kind = manifest.get("data") or {}, manifest.get("kind")
    rows = data.get("held_out_rows") or data.get("held_out_prompts")
    count = rows or (manifest.get("held_out_report") or {}).get("pairs") or 0
    if not 0 < count < FEW:
        return None
    name = "prompt" if kind in ONLINE else "comparison" if kind in ("reward", "dpo") else "row"
    return (
        f"only {counted(count, name)} {'was' if count == 1 else 'were'} held out: with fewer than {FEW} the held-out "
        "figures say little, and other rows may give quite others"
    )


def _figure(
    name: str, before: Any, after: Any, unit: str = "", *, interval: tuple[float, float] | None = None
) -> Figure | None:
    if not isinstance(after, int | float):
        return None
    return Figure(name, float(before) if isinstance(before, int | float) else None, float(after), unit, interval)


def _moved(figure: Figure) -> str:
    """What a figure did: fell from … to …."""
    if figure.before is None:
        return f"is {number(figure.after)}"
    if number(figure.before) == number(figure.after):
        return f"stayed at {number(figure.after)}"
    return (
        f"{'fell' if figure.after < figure.before else 'rose'} from {number(figure.before)} to {number(figure.after)}"
    )


def _loss_unit(manifest: Mapping[str, Any]) -> str:
    return "nats a token" if manifest.get("kind") == "sft" else ""


def percent(share: float) -> str:
    """A share in [0, 1] as 97.4 %."""
    return f"{100 * share:.1f} %"


def counted(count: int, name: str) -> str:
    """How many of what: 1 pair, 1,204 pairs."""
    return f"{count:,} {name}" if count == 1 else f"{count:,} {name}s"
