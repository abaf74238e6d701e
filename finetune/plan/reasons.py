"""Why a stage is to be run: what has changed since its last finished run, in the recipe's own words.

Both runs' `made_of` are compared (plan.py): it holds all that a result depends on. The names of files and stages, which
it leaves out, are taken from the settings that a manifest keeps beside it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from finetune.errors import InputError
from finetune.plan.manifest import read_manifest
from finetune.plan.plan import Plan, PlannedStage
from finetune.recipe.positions import KeyPath, key_path_text

_SHOWN_CAUSES = 3
"""So many causes further up are named with a changed stage; the plan shows each stage's own."""
_LONGEST_VALUE = 60
"""Letters of a value that are shown."""


@dataclass(frozen=True)
class Change:
    """One difference. stage: the input stage that changed, where the change lies further up."""

    text: str
    stage: str | None = None


def why(plan: Plan, stage: PlannedStage) -> list[str]:
    """Why the stage will run, most general first; empty where it is done."""
    if stage.state == "done":
        return []
    if stage.state == "started":
        # step-00000012, or TRL's checkpoint-12; one that is being written ends in .part
        names = [path.name.rpartition("-")[2] for path in (stage.part / "work" / "checkpoints").glob("*-*")]
        steps = [int(name) for name in names if name.isdigit()]
        where = f"its checkpoint of step {max(steps)}" if steps else "what it left"
        return [f"another run of the same settings was interrupted: goes on from {where}"]
    earlier = last_finished(stage)
    if earlier is None:
        return ["never run"]
    if "made_of" not in earlier:
        return [f"the run of {earlier['finished']} is by an older version, which did not record what it was made of"]
    own = list(changes(plan, stage, earlier))
    known = {change.text for change in own}
    reasons = []
    for change in own:
        causes = [] if change.stage is None else _causes(plan, change.stage, earlier)
        causes = [cause for cause in causes if cause.partition(": ")[2] not in known]
        more = f" and {len(causes) - _SHOWN_CAUSES} more" if len(causes) > _SHOWN_CAUSES else ""
        reasons.append(change.text + (f" ({'; '.join(causes[:_SHOWN_CAUSES])}{more})" if causes else ""))
    return reasons


def last_finished(stage: PlannedStage) -> dict[str, Any] | None:
    """The manifest of the newest other finished run of a stage of this name, of this recipe."""
    found = []
    for folder in stage.folder.parent.glob(f"{stage.name}-*"):
        try:
            manifest = read_manifest(folder) if folder != stage.folder and folder.suffix != ".part" else None
        except InputError:  # of a later version, or broken: not what explains anything
            continue
        if manifest is not None and manifest.get("stage") == stage.name:
            found.append(manifest)
    return max(found, key=lambda manifest: str(manifest.get("finished", "")), default=None)


def changes(plan: Plan, stage: PlannedStage, earlier: Mapping[str, Any]) -> Iterator[Change]:
    """All differences between an earlier run, given by its manifest, and the stage as it is planned."""
    old, new = earlier["made_of"], stage.made_of
    if old["rules"] != new["rules"]:
        yield Change(f"this version of finetune reads settings otherwise (rules {old['rules']} -> {new['rules']})")
    if old["seed"] != new["seed"]:
        yield Change(f"seed {old['seed']} -> {new['seed']}")
    if old["base"] != new["base"]:
        yield Change(_base_change(plan, earlier["base"]))
    for section in ("model", "adapter"):
        yield from _differences((section,), old[section], new[section], {}, {})
    was, now = earlier["settings"], stage.settings.model_dump(mode="json")
    if was["kind"] != now["kind"]:
        yield Change(f"kind {was['kind']} -> {now['kind']}")
    else:
        yield from _differences((), old["stage"], new["stage"], was, now)


def _base_change(plan: Plan, was: Mapping[str, Any]) -> str:
    if was["name"] != plan.base.name:
        return f"model.base {was['name']} -> {plan.base.name}"
    if was["revision"] != plan.base.revision:
        return f"model.base {was['name']}: commit {was['revision']} -> {plan.base.revision}"
    return f"model.base: the content of {was['name']} changed"


def _differences(path: KeyPath, old: Any, new: Any, was: Any, now: Any) -> Iterator[Change]:
    """old, new: parts of two `made_of`. was, now: the same parts of the settings, which have the names."""
    if old == new:
        return
    key = key_path_text(path)
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        if "content" in old and "content" in new:
            yield from _source_changes(path, old, new, was, now)
            return
        for name in dict.fromkeys([*old, *new]):
            inside = (*path, name)
            if name not in old:
                yield Change(f"{key_path_text(inside)} {_text(new[name])} (an earlier version did not have this key)")
            elif name not in new:
                yield Change(f"{key_path_text(inside)} {_text(old[name])} (this version does not have this key)")
            else:
                yield from _differences(inside, old[name], new[name], _at(was, name), _at(now, name))
    elif _is_rows(old) and _is_rows(new) and len(old) != len(new):
        yield from _rows_added_or_removed(path, old, new, was, now)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, (left, right) in enumerate(zip(old, new, strict=True)):
            yield from _differences((*path, index), left, right, _at(was, index), _at(now, index))
    elif _mark(old) and _mark(new) and was == now:
        yield _content_change(key, str(new), str(now))
    else:
        left, right = (old, new) if was is None and now is None else (was, now)
        yield Change(f"{key} {_text(left)} -> {_text(right)}")


def _source_changes(path: KeyPath, old: Any, new: Any, was: Any, now: Any) -> Iterator[Change]:
    """One entry of data, prompts or held_out.data: where its rows come from, and how they are taken."""
    key = key_path_text(path)
    if old["content"] != new["content"]:
        before, after = _source_name(was), _source_name(now)
        if before != after:
            yield Change(f"{key} {before} -> {after}")
        elif str(new["content"]).startswith("hub:"):
            commits = [
                str(content).rpartition("@")[2].partition("[")[0] for content in (old["content"], new["content"])
            ]
            yield Change(f"{key}: {after} changed: commit {commits[0]} -> {commits[1]}")
        else:
            yield _content_change(key, str(new["content"]), _at(now, "stage") or after)
    rest = [{name: value for name, value in entry.items() if name != "content"} for entry in (old, new)]
    yield from _differences(path, rest[0], rest[1], was, now)


def _content_change(key: str, mark: str, name: str) -> Change:
    """The same name, but other content. mark: what identifies the new content."""
    if mark.startswith("stage:"):
        return Change(f"stage {name}, which it reads ({key}), changed", stage=name)
    return Change(f"{key}: the content of {name} changed")


def _rows_added_or_removed(path: KeyPath, old: Any, new: Any, was: Any, now: Any) -> Iterator[Change]:
    key = key_path_text(path)
    for word, entries, others, names in (("removed", old, new, was), ("added", new, old, now)):
        for index, entry in enumerate(entries):
            if entry not in others:
                yield Change(f"{key}: {_source_name(_at(names, index))} was {word}, or taken otherwise")
    if all(entry in new for entry in old) and all(entry in old for entry in new):
        yield Change(f"{key}: a source is given {'more' if len(new) > len(old) else 'less'} often")


def _causes(plan: Plan, name: str, earlier: Mapping[str, Any]) -> list[str]:
    """What changed at the top of the chain that leads to an input stage: `stage: change`, each once."""
    stage = next((stage for stage in plan.stages if stage.name == name), None)
    used = earlier.get("inputs", {}).get(name)
    if stage is None or used is None:
        return []
    try:
        manifest = read_manifest(stage.folder.with_name(f"{name}-{used[:12]}"))
    except InputError:
        return []
    if manifest is None or "made_of" not in manifest:
        return []
    found: dict[str, None] = {}
    for change in changes(plan, stage, manifest):
        further = [] if change.stage is None else _causes(plan, change.stage, manifest)
        found |= dict.fromkeys(further or [f"{name}: {change.text}"])
    return list(found)


def _is_rows(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(entry, Mapping) and "content" in entry for entry in value)


def _mark(value: Any) -> bool:
    """Whether a value stands for a stage or an adapter folder by its content."""
    return isinstance(value, str) and value.startswith(("stage:", "adapter:"))


def _source_name(source: Any) -> str:
    """A source as the recipe names it."""
    for key in ("path", "hub", "stage"):
        if value := _at(source, key):
            return f"stage {value}" if key == "stage" else str(value)
    return "a source"


def _at(value: Any, key: str | int) -> Any:
    if isinstance(value, Mapping):
        return value.get(key)
    return value[key] if isinstance(value, list) and isinstance(key, int) and key < len(value) else None


def _text(value: Any) -> str:
    """A value as a recipe writes it, cut where it is long."""
    plain = isinstance(value, str) and value != "" and value == value.strip() and "\n" not in value
    text = str(value) if plain else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 1] + "…"
