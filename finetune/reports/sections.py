"""Sections of a report that every run has: what was trained, on which data, where, and how to make it again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from finetune.reports.bars import length_bars
from finetune.reports.pieces import Html, code, facts, join, note, number, table, text
from finetune.reports.read import FinishedRun
from finetune.reports.words import capital, counted, few_held_out, figures, kind_in_words, lasted, result


@dataclass(frozen=True)
class Section:
    """A part of a page under a heading. id: what the table of contents leads to. level: of the heading, 2 or 3."""

    id: str
    title: str
    body: Html
    level: int = 2


def lead(run: FinishedRun) -> Html:
    """The first words of a page: what this is, and what came out of it."""
    about = run.manifest
    base = str((about.get("base") or {}).get("name", "an unknown base"))
    data = about.get("data") or {}
    rows = data.get("train_rows", data.get("prompts"))
    of = {"reject": "prompt", "ppo": "prompt", "grpo": "prompt", "rloo": "prompt", "reward": "comparison"}
    words = [counted(rows, of.get(run.kind, "row"))] if isinstance(rows, int) else []
    words += [lasted(about["seconds"])] if about.get("seconds") is not None else []
    return Html(
        f'<p class="lead">{text(capital(kind_in_words(about)))} on {text(base)}: {", ".join(words)}. '
        f"<strong>{text(result(about))}</strong></p>"
    )


def tiles(run: FinishedRun) -> Html:
    """The few figures that matter, large."""
    shown = [
        f'<div class="tile"><span class="ft-quiet">{text(capital(figure.name))}</span>'
        f'<span class="value">{text(str(figure))}</span>'
        f'<span class="ft-quiet">{text(figure.unit or figure.within)}</span></div>'
        for figure in figures(run.manifest)
    ]
    return Html(f'<div class="tiles">{"".join(shown)}</div>' if shown else "")


def notes(run: FinishedRun) -> Html:
    """What the run warned of, that it was measured on too little, and what is wrong with its files."""
    warned = run.manifest.get("warnings") or ()
    few = few_held_out(run.manifest)
    warned = [*warned, *([f"{run.stage}: {few}"] if few else [])]
    return join([*(note(str(warning)) for warning in warned), *(note(f"{run.stage}: {line}") for line in run.notes)])


def what(run: FinishedRun) -> Html:
    """The facts of a run that people look up."""
    return facts(known(run))


def known(run: FinishedRun) -> list[tuple[str, object]]:
    """Those facts by name, as far as the manifest has them."""
    about = run.manifest
    base, family = about.get("base") or {}, about.get("family") or {}
    resolved, adapter = about.get("resolved") or {}, (about.get("recipe") or {}).get("adapter") or {}
    model = (about.get("recipe") or {}).get("model") or {}
    metrics = about.get("metrics") or {}
    steps = metrics.get("steps")
    pairs: list[tuple[str, object]] = [
        ("kind", kind_in_words(about)),
        ("base", " at commit ".join(str(part) for part in (base.get("name"), base.get("revision")) if part)),
        ("loaded in", model.get("load_in")),
        ("template", family.get("template")),
    ]
    if "adapter_config.json" in (about.get("files") or {}):
        pairs.append(("adapter", _adapter(adapter, resolved)))
    if steps is not None:
        stopped = ", stopped early" if metrics.get("stopped_early") else ""
        pairs.append(("steps", f"{steps:,}{stopped}"))
    if resolved.get("learning_rate") is not None:
        pairs.append(("learning rate, highest", resolved["learning_rate"]))
    if metrics.get("tokens") and metrics.get("seconds"):
        speed = metrics["tokens"] / max(metrics["seconds"], 1e-9)
        pairs.append(("tokens seen", f"{metrics['tokens']:,}, {number(speed)} a second"))
    pairs += [("finished", about.get("finished")), ("fingerprint", Html(f"<code>{text(run.fingerprint[:12])}</code>"))]
    return [(name, value) for name, value in pairs if value not in (None, "")]


def data(run: FinishedRun) -> Html:
    """Sources, counts, what was left out and why, lengths, and how much of it was trained."""
    found = run.manifest.get("data") or {}
    if not found:
        return Html('<p class="ft-quiet">The manifest says nothing of data.</p>')
    sources = [
        (_source_name(source, held_out), source.get("format"), source.get("rows"), source.get("used"))
        for held_out in (False, True)
        for source in found.get("held_out_sources" if held_out else "sources") or ()
    ]
    parts = [table(("source", "format", "rows", "used"), sources, caption="Sources", numeric=(2, 3))] if sources else []
    drawn = [length_bars(found.get("lengths")) or ""]
    if found.get("trained_tokens") is not None and found.get("tokens"):
        drawn.append(_mask(found["trained_tokens"], found["tokens"]))
    counts = join([facts(_counts(found)), _left_out(found)])
    parts.append(Html(f'<div class="grid"><div>{counts}</div><div>{join(drawn)}</div></div>'))
    return join(parts)


def environment(run: FinishedRun) -> Html:
    """Hardware and the libraries' versions."""
    found = run.manifest.get("environment") or {}
    libraries = found.get("libraries") or {}
    resolved = run.manifest.get("resolved") or {}
    pairs = [
        ("hardware", found.get("hardware")),
        ("computed on", " in ".join(str(resolved[key]) for key in ("device", "compute") if resolved.get(key))),
        ("system", found.get("system")),
        ("Python", found.get("python")),
        *libraries.items(),
    ]
    return facts((name, value) for name, value in pairs if value not in (None, ""))


def reproduce(runs: Sequence[FinishedRun]) -> Html:
    """How to make these runs again: commands, recipe, and what identifies every input."""
    last = runs[-1]
    recipe = last.manifest.get("recipe") or {}
    if not recipe:
        return Html('<p class="ft-quiet">The manifest has no recipe.</p>')
    until = f" --until {last.stage}" if last.stage in (recipe.get("stages") or {}) else ""
    commands = f"finetune check recipe.yaml\nfinetune run recipe.yaml{until}\nfinetune verify {last.folder}"
    libraries = (last.manifest.get("environment") or {}).get("libraries") or {}
    with_ = f"finetune {libraries['finetune']}" if "finetune" in libraries else "the same version of finetune"
    overrides = last.manifest.get("overrides") or ()
    written = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True, width=110)
    given = ", ".join(f"--set {entry}" for entry in overrides)
    return join(
        [
            Html(
                f"<p>Save the recipe below as <code>recipe.yaml</code> where the first one lay (its paths begin there) "
                f"and use {text(with_)}. Equal inputs have equal fingerprints, so what is done already is found.</p>"
            ),
            code(commands, title="Commands"),
            Html(f"<p>Given on the command line, and in the recipe below: <code>{text(given)}</code></p>")
            if given
            else "",
            Html(
                "<details><summary>The whole recipe, every default written out</summary>"
                f"{code(written, title='recipe.yaml')}</details>"
            ),
            table(("what", "identified by"), _identities(runs), caption="Inputs"),
        ]
    )


def _identities(runs: Sequence[FinishedRun]) -> list[tuple[object, object]]:
    found: dict[str, str] = {}
    for run in runs:
        base, content = run.manifest.get("base") or {}, run.manifest.get("data") or {}
        found.setdefault(f"base {base.get('name')}", str(base.get("digest")))
        for source in (*(content.get("sources") or ()), *(content.get("held_out_sources") or ())):
            if not str(source.get("digest", "")).startswith("stage:"):
                found.setdefault(f"data {source.get('source')}", str(source.get("digest")))
    for run in runs:
        for name, fingerprint in (run.manifest.get("inputs") or {}).items():
            found.setdefault(f"stage {name}", str(fingerprint))
        found[f"stage {run.stage}"] = run.fingerprint
    return [(name, Html(f"<code>{text(value)}</code>")) for name, value in found.items()]


def _adapter(adapter: Mapping[str, Any], resolved: Mapping[str, Any]) -> str:
    targets = adapter.get("targets")
    words = [f"rank {adapter['rank']}"] if "rank" in adapter else []
    words += [f"alpha {number(float(adapter['alpha']))}"] if "alpha" in adapter else []
    words += [targets if isinstance(targets, str) else ", ".join(targets)] if targets else []
    if resolved.get("trainable_parameters"):
        words.append(f"{resolved['trainable_parameters']:,} trained parameters")
    return ", ".join(words) or "LoRA"


def _source_name(source: Mapping[str, Any], held_out: bool) -> str:
    return f"{source.get('source', '?')}{' (held out)' if held_out else ''}"


def _counts(found: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    for name, key in (
        ("rows read", "rows"),
        ("exact duplicates", "duplicates"),
        ("rows trained on", "train_rows"),
        ("prompts", "prompts"),
        ("rows held out", "held_out_rows"),
        ("prompts held out", "held_out_prompts"),
        ("cut at the end", "truncated"),
        ("tokens", "tokens"),
    ):
        if found.get(key) is not None:
            yield name, found[key]
    longest = (found.get("lengths") or {}).get("longest")
    if longest is not None:
        yield "longest row", f"{longest:,} tokens"
    if found.get("epoch_rows") not in (None, found.get("train_rows")):
        yield "rows of an epoch", found["epoch_rows"]


def _left_out(found: Mapping[str, Any]) -> Html:
    rows: list[tuple[object, ...]] = []
    for reason, entry in (found.get("dropped") or {}).items():
        shown = list(entry.get("first") or ())[:3]
        rows.append((reason, entry.get("rows"), "; ".join(map(str, shown)) + (" …" if shown else "")))
    for reason, answers in (found.get("dropped_answers") or {}).items():
        rows.append((f"answers of rankings: {reason}", answers, ""))
    if not rows:
        return Html("<p>No row was left out.</p>")
    return table(("left out because", "rows", "for example"), rows, caption="Left out", numeric=(1,))


def _mask(trained: int, tokens: int) -> Html:
    """How much of the training rows counts in the loss, as one bar of two parts."""
    share = trained / max(1, tokens)
    told = text(f"{100 * share:.1f} % of the tokens are trained, {100 * (1 - share):.1f} % are only read")
    return Html(
        f'<figure class="mask"><figcaption>{told} ({trained:,} of {tokens:,})</figcaption>'
        f'<svg viewBox="0 0 100 4" width="100%" height="16" preserveAspectRatio="none" role="img" aria-label="{told}">'
        '<path class="read" d="M0 0h100v4h-100z"/>'
        f'<path class="trained" d="M0 0h{100 * share:.2f}v4h-{100 * share:.2f}z"/></svg></figure>'
    )
