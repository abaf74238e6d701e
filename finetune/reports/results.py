"""Sections that some runs have: answers, a reward model's held-out pairs, best of k, policy's samples, evaluations."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from html import unescape
from typing import Any

from finetune.plan.evaluations import Evaluation
from finetune.reports.curves import curve
from finetune.reports.pieces import Html, facts, join, number, samples, table, text
from finetune.reports.read import FinishedRun

SHOWN = 6
"""Samples that a section shows."""
BETWEEN = 3
"""Prompts whose answers are shown step by step."""
ANSWERS = 24
"""Prompts, at most, whose answers are shown where they are what the page is about, or in a box to be opened."""
LONGEST = 3000
"""Characters of a text that are shown."""


def picture(name: str, svg: str) -> Html:
    """A picture that a stage drew, as an image of its own: its styles and ids touch nothing else on the page."""
    title = re.search(r"<title>(.*?)</title>", svg, re.DOTALL)
    alt = unescape(title[1]).strip() if title else name
    bare = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    source = base64.b64encode(bare.encode()).decode()
    return Html(f'<figure class="picture"><img alt="{text(alt)}" src="data:image/svg+xml;base64,{source}"></figure>')


def answers(run: FinishedRun) -> Html:
    """What the base and the runs answered to the same prompts, by each evaluation of that, the newest first."""
    found = [evaluation for evaluation in run.evaluations if evaluation.task == "answers" and evaluation.rows]
    if not found:
        return Html("")
    newest, *older = reversed(found)
    marks = "In the last two the words that differ are marked: dotted in the earlier, with a line in the later."
    boxes = [box(f"{_drawn(one)}", _shown(one, ANSWERS)) for one in older]
    rest = box(f"{len(newest.rows) - SHOWN:,} more", _shown(newest, ANSWERS, SHOWN)) if len(newest.rows) > SHOWN else ""
    return join([Html(f"<p>{text(_drawn(newest))} {marks}</p>"), _shown(newest, SHOWN), rest, *boxes])


def _shown(evaluation: Evaluation, limit: int, begin: int = 0) -> Html:
    names = [str(name) for name in evaluation.results.get("names") or ()]
    return samples([answer_row(row, names) for row in evaluation.rows[begin : begin + limit]], limit=limit)


def box(title: str, body: str) -> Html:
    """What is folded until it is opened."""
    return Html(f"<details><summary>{text(title)}</summary>{body}</details>")


def answer_row(row: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """A row of an `answers` evaluation as a sample: what was asked, and each answer."""
    shown = {key: clip(row[key]) for key in ("prompt", "messages", "expected") if row.get(key)}
    return {**shown, **{name: clip(row[name]) for name in names if isinstance(row.get(name), str)}}


def clip(value: Any) -> Any:
    """A text, or the texts of messages, no longer than LONGEST."""
    if isinstance(value, str) and len(value) > LONGEST:
        return f"{value[:LONGEST]} … ({len(value) - LONGEST:,} more characters)"
    if isinstance(value, list):
        return [{**turn, "content": clip(turn.get("content"))} for turn in value if isinstance(turn, dict)]
    return value


def pairs(run: FinishedRun) -> Html:
    """A reward model on its held-out pairs: calibration, slices, what it owes to length."""
    report = run.manifest.get("held_out_report")
    if not isinstance(report, dict):
        return Html('<p class="ft-quiet">Nothing was held out, so how good it is was not measured.</p>')
    calibration, length = report["calibration"], report["length"]
    rows = [("all pairs", *_accuracy(report))]
    rows += [(f"rated {name.replace('_', ' ')}", *_accuracy(found)) for name, found in report["by_rating"].items()]
    for column, values in report["by_slice"].items():
        rows += [(f"{column}: {name}", *_accuracy(found)) for name, found in values.items()]
    return join(
        [
            facts(
                [
                    ("log loss", f"{number(report['log_loss'])} nats a pair"),
                    (
                        "calibration error",
                        f"{number(calibration['ece'])} (how far confidence is from accuracy; 0 is best)",
                    ),
                    ("Brier score", calibration["brier"]),
                    ("score of better answers", _spread(report["chosen"])),
                    ("score of worse answers", _spread(report["rejected"])),
                    ("ties", report["ties"]),
                    ("score and length", _correlation(length)),
                ]
            ),
            table(
                ("held-out pairs", "accuracy", "95 % interval", "pairs", "mean gap"),
                rows,
                caption="Accuracy, and where it is lower",
                numeric=(1, 2, 3, 4),
            ),
            Html(f'<div class="grid">{pictures(run)}</div>'),
        ]
    )


def pictures(run: FinishedRun) -> Html:
    """Every picture that the stage drew."""
    order = {name: at for at, name in enumerate(("reliability.svg", "scores.svg", "length.svg"))}
    names = sorted(run.pictures, key=lambda name: (order.get(name, len(order)), name))
    return join(picture(name, run.pictures[name]) for name in names)


def best_of(run: FinishedRun) -> Html:
    """Rejection sampling: what more samples bring, what was lost, and what was kept."""
    metrics = run.manifest.get("metrics") or {}
    curve_, errors, kl = (metrics.get(key) or {} for key in ("best_of", "best_of_error", "kl_bound"))
    rows = [
        (k, mean, None if errors.get(k) is None else f"± {number(1.96 * errors[k])}", kl.get(k))
        for k, mean in sorted(curve_.items(), key=lambda point: int(point[0]))
    ]
    drawn = pictures(run)
    if not drawn and len(rows) > 1:
        line = [(float(kl.get(k) or 0.0), float(mean)) for k, mean, *_ in rows]
        drawn = curve({"best of k": line}, title="Best of k", x="KL to the policy, at most (nats)", y="mean best score")
    lost = ", ".join(f"{count:,} {reason.replace('_', ' ')}" for reason, count in (metrics.get("lost") or {}).items())
    told = [
        ("prompts", metrics.get("prompts")),
        ("answers sampled", metrics.get("samples")),
        ("finished by themselves", _share(metrics.get("finished"))),
        ("kept", metrics.get("kept")),
        ("mean score of those kept", metrics.get("kept_score")),
        ("left out", lost or None),
    ]
    return join(
        [
            facts((name, value) for name, value in told if value is not None),
            Html(f'<div class="grid">{drawn}</div>') if drawn else "",
            table(("k", "mean best score", "95 %", "KL, at most (nats)"), rows, caption="Best of k", numeric=range(4))
            if rows
            else "",
        ]
    )


def kept(run: FinishedRun) -> Html:
    """Some of the kept rows; where the samples are there, each beside the one that scored lowest."""
    found = list(_kept_and_lowest(run.samples))
    if found:
        return samples(found, limit=SHOWN, mark=False)
    return samples([{"messages": clip(row["messages"])} for row in run.rows if "messages" in row], limit=SHOWN)


def _kept_and_lowest(lines: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    for line in lines:
        scored = [sample for sample in line.get("samples") or () if isinstance(sample.get("score"), int | float)]
        best = [sample for sample in scored if sample.get("kept") is not None]
        if not best:
            continue
        lowest = min(scored, key=lambda sample: float(sample["score"]))
        row = {"prompt": clip(line.get("prompt")), f"kept, score {number(best[0]['score'])}": clip(best[0]["text"])}
        if lowest is not best[0]:
            row[f"lowest of {len(scored)}, score {number(lowest['score'])}"] = clip(lowest["text"])
        yield row


def policy_samples(run: FinishedRun) -> Html:
    """A policy's answers to held-out prompts: its first beside its last, and of a few prompts all between."""
    by_prompt: dict[str, list[Mapping[str, Any]]] = {}
    for line in run.samples:
        if isinstance(line.get("answer"), str) and isinstance(line.get("step"), int):
            by_prompt.setdefault(json.dumps(line.get("prompt")), []).append(line)
    rows: list[dict[str, Any]] = []
    between: list[Html] = []
    for lines in by_prompt.values():
        prompt = clip(lines[0].get("prompt"))
        ordered = sorted(lines, key=lambda line: int(line["step"]))
        if ordered[0]["step"] != ordered[-1]["step"]:
            rows.append({"prompt": prompt, **{_when(line): clip(line["answer"]) for line in (ordered[0], ordered[-1])}})
            if len(ordered) > 2 and len(between) < BETWEEN:
                steps = [(line["step"], line.get("reward"), clip(line["answer"])) for line in ordered]
                name = prompt if isinstance(prompt, str) else str(prompt[-1]["content"])
                between.append(table(("step", "reward", "answer"), steps, caption=name, numeric=(0, 1)))
    if not rows:
        return Html('<p class="ft-quiet">The run kept no samples of different steps.</p>')
    return join([samples(rows, limit=SHOWN), *([box("Step by step", join(between))] if between else [])])


def told(results: Mapping[str, Any], inside: str = "") -> Iterator[tuple[str, str]]:
    """Results as (name, value): numbers with their intervals, what lies deeper under the names of both."""
    for name, value in results.items():
        called = f"{inside}{name.replace('_', ' ')}"
        if is_figure(value):
            yield called, number(value["value"]) + _interval(value)
        elif isinstance(value, Mapping):
            yield from told(value, f"{called}: ")
        elif is_number(value):
            yield called, str(text(value))
        elif isinstance(value, str):
            yield called, value


def is_figure(value: Any) -> bool:
    """Whether a result is a number with, or without, an interval."""
    return isinstance(value, Mapping) and is_number(value.get("value"))


def _interval(figure: Mapping[str, Any]) -> str:
    low, high = figure.get("low"), figure.get("high")
    return f" ({number(low)} to {number(high)})" if low is not None and high is not None else ""


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _drawn(evaluation: Evaluation) -> str:
    """How the answers were drawn, as a sentence."""
    settings, name = evaluation.settings, evaluation.data.get("name")
    temperature = settings.get("temperature")
    drawn = "Greedy answers" if not temperature else f"Answers drawn at temperature {number(float(temperature))}"
    most = f" of at most {settings['max_new_tokens']:,} tokens" if settings.get("max_new_tokens") else ""
    return f"{drawn}{most} to {name}." if name else f"{drawn}{most}."


def _accuracy(found: Mapping[str, Any]) -> tuple[object, ...]:
    interval = f"{_share(found['low'])} to {_share(found['high'])}"
    return _share(found["accuracy"]), interval, found["pairs"], found["mean_gap"]


def _spread(found: Mapping[str, Any]) -> str:
    return f"{number(found['mean'])}, deviation {number(found['deviation'])}"


def _correlation(length: Mapping[str, Any]) -> str:
    value = length["pairs"]["spearman"]
    return "undefined" if value is None else f"rank correlation of gap and difference in length {value:+.2f}"


def _share(value: Any) -> str | None:
    return f"{100 * value:.1f} %" if is_number(value) else None


def _when(line: Mapping[str, Any]) -> str:
    score = f", reward {number(line['reward'])}" if is_number(line.get("reward")) else ""
    return (f"after step {line['step']}" if line["step"] else "before") + score
