"""The card: README.md of a release, from manifests alone. What no manifest says, it does not say."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from finetune.data.convert_prompts import prompt_text
from finetune.release.card_duties import duty_lines
from finetune.release.card_loading import loading_lines
from finetune.release.card_picture import picture_of
from finetune.release.lineage import Lineage, Manifest, Member

_HUB_DATA = re.compile(r"^hub:([\w.-]+/[\w.-]+)@")
_SAMPLE_LENGTH = 1200
"""Characters of a prompt or an answer that a card shows."""
_KINDS = {
    "sft": "supervised fine-tuning",
    "reward": "a reward model",
    "dpo": "direct preference optimisation",
    "ppo": "proximal policy optimisation",
    "grpo": "group relative policy optimisation",
    "rloo": "REINFORCE leave-one-out",
    "average": "an average of adapters",
    "reject": "answers sampled from a model and chosen by score (rejection sampling)",
    "merged": "a model merged with its adapter",
    "gguf": "a model exported to GGUF",
    "ollama": "a model exported for Ollama",
    "vllm": "a model exported for vLLM",
}


def write_card(
    manifest: Manifest, lineage: Lineage, samples: Sequence[Mapping[str, Any]], pictures: Sequence[str]
) -> str:
    """The card of a release as it will be published.

    manifest: the public one, with its `published` section. lineage: of public manifests. samples: rows of the run's
    samples.jsonl to show. pictures: files of the release to show.
    """
    published = manifest["published"]
    parts = [
        [f"# {published['name'].split('/')[-1]}", "", *_opening(manifest)],
        loading_lines(manifest),
        ["## Where it comes from", "", *picture_of(lineage), *_origins(manifest)],
        ["## Data", "", *_data(lineage)],
        _section("Settings", _settings(manifest, lineage)),
        _section("Results", [*_results(manifest), *_pictures(pictures)]),
        _section("Held-out samples", list(_samples(samples))),
        ["## Hardware and time", "", *_hardware(lineage)],
        _section("Proof", _proof(manifest)),
        ["## Limits", "", *_limits(manifest, lineage)],
        ["## Licence", "", *duty_lines(manifest)],
        [
            f"Made with finetune {manifest['environment']['libraries'].get('finetune', '')}".rstrip()
            + ". `manifest.json` says all of this to a machine."
        ],
    ]
    text = "\n\n".join("\n".join(part).rstrip("\n") for part in parts if part)
    return f"---\n{yaml.safe_dump(metadata(manifest, lineage), sort_keys=False, allow_unicode=True)}---\n\n{text}\n"


def metadata(manifest: Manifest, lineage: Lineage) -> dict[str, Any]:
    """The card's YAML, with the keys and values that the hub knows."""
    published, kind = manifest["published"], manifest["kind"]
    found: dict[str, Any] = dict(published["licence"])
    tags = ["finetune", *(["llama"] if published["terms"] else []), *_tags(manifest)]
    if kind == "reject":
        return {
            **found,
            "task_categories": ["text-generation"],
            "tags": [*tags, "synthetic"],
            "configs": [
                {"config_name": name.removesuffix(".jsonl"), "data_files": name, **({} if index else {"default": True})}
                for index, name in enumerate(published["rows"])
            ],
        }
    if bases := published["base_ids"]:
        found["base_model"] = bases[0] if len(bases) == 1 else bases
        found["base_model_relation"] = relation(manifest)
    found["library_name"] = {"adapter": "peft", "gguf": "gguf"}.get(published["format"], "transformers")
    found["pipeline_tag"] = "text-classification" if is_reward(manifest) else "text-generation"
    found["tags"] = tags
    if data := sorted({match[1] for _, source in _sources(lineage) if (match := _HUB_DATA.match(source["digest"]))}):
        found["datasets"] = data
    return found


def relation(manifest: Manifest) -> str:
    """The hub's word for what the release is to its base."""
    if manifest["published"]["format"] != "transformers":
        return {"adapter": "adapter", "gguf": "quantized"}[manifest["published"]["format"]]
    return "merge" if len(manifest.get("made_from", ())) > 1 else "finetune"


def is_reward(manifest: Manifest) -> bool:
    """Whether it scores answers instead of writing them."""
    made_from = manifest.get("made_from") or ()
    return manifest["kind"] == "reward" or any(is_reward(source) for source in made_from)


def _tags(manifest: Manifest) -> list[str]:
    kinds = [manifest["kind"], *(source["kind"] for source in manifest.get("made_from", ()))]
    return list(dict.fromkeys("reward-model" if kind == "reward" else kind for kind in kinds))


def _opening(manifest: Manifest) -> list[str]:
    published, kind = manifest["published"], manifest["kind"]
    base = " and ".join(published["base_names"])
    if kind == "reject":
        about = f"Rows that a model made from {base} wrote: {_KINDS[kind]}."
    elif published["format"] != "adapter":
        about = f"{_capital(_KINDS.get(kind, f'{kind} weights'))}, made from {base}: {' + '.join(_names(manifest))}."
    else:
        about = f"A LoRA adapter for {base}: {_KINDS.get(kind, kind)}."
    lines = [f"**{words}**" for words in published["built_with"]]
    return [*(line for words in lines for line in (words, "")), about]


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _names(manifest: Manifest) -> list[str]:
    return [str(source.get("name") or source["kind"]) for source in manifest.get("made_from", ())]


def _origins(manifest: Manifest) -> list[str]:
    base = manifest["base"]
    at = f", commit `{base['revision']}`" if base["revision"] else f", files `{base['digest']}`"
    lines = [f"- base: {base['name']}{at}"]
    if family := manifest.get("family"):
        stops = ", ".join(f"`{token}`" for token in family.get("stop_tokens", ()))
        lines.append(f"- chat template: {family['name']}" + (f"; an answer ends with {stops}" if stops else ""))
    if manifest.get("fingerprint"):
        lines.append(f"- fingerprint: `{manifest['fingerprint']}`")
    return lines


def _sources(lineage: Lineage) -> Iterator[tuple[Member, Mapping[str, Any]]]:
    for member in lineage.members:
        for source in (member.manifest.get("data") or {}).get("sources", ()):
            yield member, source


def _data(lineage: Lineage) -> list[str]:
    rows = [
        f"| {member.label} | {' | '.join(_shown(source[key]) for key in ('source', 'format', 'rows', 'used'))} | "
        f"`{source['digest']}` |"
        for member, source in _sources(lineage)
    ]
    if not rows:
        return ["The manifest names no data."]
    lines = ["| stage | source | format | rows | used | content |", "|---|---|---|---|---|---|", *rows]
    for member in lineage.members:
        data = member.manifest.get("data") or {}
        for reason, dropped in (data.get("dropped") or {}).items():
            lines.append(f"\n{member.label}: {_rows(dropped['rows'])} left out, {reason}.")
        if data.get("truncated"):
            lines.append(f"\n{member.label}: {_rows(data['truncated'])} cut at the end.")
        if "train_rows" in data and "tokens" in data:
            lines.append(
                f"\n{member.label}: {_rows(data['train_rows'])} and {data['tokens']:,} tokens to train on, "
                f"{data.get('trained_tokens', 0):,} of them with a loss; {_rows(data['held_out_rows'])} held out."
            )
    return lines


def _rows(count: int) -> str:
    return f"{count:,} row" if count == 1 else f"{count:,} rows"


def _settings(manifest: Manifest, lineage: Lineage) -> list[str]:
    lines = []
    for key, title in (
        ("resolved", "Resolved while it ran"),
        ("merge", "Merged so"),
        ("export", "Exported so"),
    ):
        if values := manifest.get(key):
            lines += [f"{title}:", "", *_table(values), ""]
    recipes = {json.dumps(r, sort_keys=True): r for m in lineage.members if (r := m.manifest.get("recipe"))}
    for recipe in recipes.values():
        text = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True, width=100)
        lines += [f"<details><summary>The recipe {recipe['name']}, with every default written out</summary>", ""]
        lines += ["```yaml", *text.splitlines(), "```", "", "</details>", ""]
    if overrides := manifest.get("overrides"):
        lines += ["Set on the command line: " + ", ".join(f"`{value}`" for value in overrides) + "."]
    return lines[:-1] if lines and not lines[-1] else lines


def _results(manifest: Manifest) -> list[str]:
    """A run's own metrics; of a merged or exported model those of the runs that it was made from."""
    if metrics := manifest.get("metrics"):
        return _table(metrics)
    lines: list[str] = []
    for source in manifest.get("made_from", ()):
        if found := _results(source):
            lines += (
                [f"Of {source['name']}, before it became this:", "", *found, ""] if source.get("metrics") else found
            )
    return lines


def _table(values: Mapping[str, Any]) -> list[str]:
    rows = [f"| {name} | {_shown(value)} |" for name, value in _flat(values)]
    return ["| | |", "|---|---|", *rows] if rows else []


def _flat(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Numbers and words, nested ones under joined names; longer lists are left to the manifest."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name}.")
        elif isinstance(value, list):
            if len(value) <= 4 and not any(isinstance(item, Mapping | list) for item in value):
                yield f"{before}{name}", value
        elif value is not None:
            yield f"{before}{name}", value


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(_shown(item) for item in value)
    if isinstance(value, float):
        return f"{value:.6g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value).replace("|", "\\|")


def _pictures(pictures: Sequence[str]) -> list[str]:
    return [line for name in pictures for line in ("", f"![{name.rpartition('.')[0].replace('_', ' ')}]({name})")]


def _samples(samples: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for sample in samples:
        shown = {**sample, "prompt": prompt_text(sample["prompt"])} if "prompt" in sample else sample
        for key, value in shown.items():
            if key == "origin":  # where the prompt stood on the machine that trained
                continue
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            cut = f"{text[:_SAMPLE_LENGTH]} …" if len(text) > _SAMPLE_LENGTH else text
            if "\n" in cut or len(cut) > 60:
                fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", cut)), default=0))
                yield from (f"{key}:", fence, cut, fence)
            else:
                yield f"{key}: {cut}  "
        yield ""


def _hardware(lineage: Lineage) -> list[str]:
    lines = ["| | hardware | time | finished |", "|---|---|---|---|"]
    for member in lineage.members:
        manifest = member.manifest
        if environment := manifest.get("environment"):
            seconds = manifest.get("seconds")
            time = "" if seconds is None else f"{seconds:,.0f} s"
            lines.append(f"| {member.label} | {environment['hardware']} | {time} | {manifest.get('finished', '')} |")
    libraries = lineage.release.manifest["environment"]["libraries"]
    return [*lines, "", "Libraries: " + ", ".join(f"{name} {version}" for name, version in libraries.items()) + "."]


def _proof(manifest: Manifest) -> list[str]:
    proof = {key: value for key, value in (manifest.get("proof") or {}).items() if not key.startswith("last_row")}
    if not proof:
        return []
    if manifest["kind"] == "reject":
        first = "The rows were read again and compared with what was kept:"
        again = "it compares every file's sha256."
    else:
        first = "What was written was loaded again and compared with what was trained:"
        again = "it compares every file's sha256, loads the model and compares its answer with the recorded one."
    return [first, "", *_table(proof), "", f"`finetune verify` on a copy of this folder checks it: {again}"]


def _limits(manifest: Manifest, lineage: Lineage) -> list[str]:
    lines = []
    recipe = manifest.get("recipe") or {}
    if manifest["kind"] != "reject" and (length := (recipe.get("model") or {}).get("max_length")):
        lines.append(f"- Trained on up to {length:,} tokens, prompt and answer together.")
    if (load_in := (recipe.get("model") or {}).get("load_in")) in ("nf4", "int8"):
        lines.append(f"- Trained on the base held in {load_in}; on the base in another precision its answers differ.")
    if any((m.manifest.get("data") or {}).get("held_out_rows") == 0 for m in lineage.members):
        lines.append("- Not every stage had held-out rows: its figures there are those of the rows it was trained on.")
    if any(member.sampled for member in lineage.members):
        lines.append("- Part of the data was written by a model, with that model's errors.")
    if outside := [m.label for m in lineage.members if _starts_outside(m)]:
        lines.append(f"- {', '.join(outside)}: starts from an adapter of which no manifest is known.")
    lines.append(
        "- No manifest records a test of safety, bias or truthfulness; what the base's makers say of it holds here too."
    )
    return lines


def _starts_outside(member: Member) -> bool:
    stages = (member.manifest.get("recipe") or {}).get("stages") or {}
    start = (stages.get(member.manifest.get("stage")) or {}).get("start_from")
    return bool(start) and start not in (member.manifest.get("inputs") or {})


def _section(title: str, lines: list[str]) -> list[str]:
    return [f"## {title}", "", *lines] if lines else []
