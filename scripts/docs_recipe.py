"""docs/reference/recipe.md: every key of the recipe language, from the language itself, and an example of each."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, get_args, get_origin, get_type_hints

from docs_examples import EXAMPLES
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from finetune.recipe.hints import known_kinds
from finetune.recipe.rounds import MAX_ROUNDS
from finetune.recipe.schema import Recipe
from finetune.recipe.words import describe, is_section, kinds_of, members, unwrap

_HEAD = """# Recipe keys

Every key of a recipe: what it may hold, what it is when you do not write it, and what it means. How the language works
(paths, numbers, `--set`, references between stages) is in [the guide](../recipe.md), groups of stages in
[rounds](../rounds.md). This page is made from the recipe language by `scripts/docs.py`; a test says when it is old.
"""

_REPEAT = "How many rounds. Each runs all stages of the group."
_STAGES = "The stages of one round. Round 2 of the stage best is best.2; from below, best is the last round's."
_FIRST = "X in round 1: a stage above the group, a folder, or null. In later rounds Y of the round before."
_ROUNDS = (
    "all: the entry as it is in this round and in all earlier ones. earlier: without this round. Below the group, all: "
    "all its rounds."
)

_GROUPS = f"""## Groups of stages

One of `stages` may be a group that runs several times; [rounds](../rounds.md) is the guide. A group has no `kind`.

| key | value | default | meaning |
|---|---|---|---|
| `repeat` | a whole number of at least 1 and at most {MAX_ROUNDS} | required | {_REPEAT} |
| `stages` | a section | required | {_STAGES} |

What a stage in a group may say besides:

| where | value | meaning |
|---|---|---|
| any value | `{{round: [v1, v2, …]}}` | One value for each round. |
| the name of a stage | `{{first: X, then: Y}}` | {_FIRST} |
| an entry of data or prompts | `rounds: all` or `rounds: earlier` | {_ROUNDS} |
| `earlier` of reject | `all` | This stage's samples of all earlier rounds. |
"""


@dataclass
class Found:
    """A section of the language: the keys it stands under, in the order of the schema, and its kind if it has one."""

    section: type[BaseModel]
    keys: list[str] = field(default_factory=list)
    kind: str | None = None

    @property
    def title(self) -> str:
        """model, track.wandb, data and prompts, checker of kind number"""
        name = " and ".join(self.keys)
        return f"{name} of kind {self.kind}" if self.kind else name


def recipe_reference() -> str:
    """The whole page."""
    tops, inside = sections()
    titles = {of.section: of.title for of in (*tops.values(), *inside.values())}
    text = _HEAD + "\n" + _part("## top level", Recipe, titles, "top level")
    for of in tops.values():
        text += "\n" + _part(f"## {of.title}", of.section, titles, of.title)
    text += (
        "\n## stages\n\nA section for each stage, under a name of yours. What it may hold depends on its `kind`:\n\n"
    )
    text += "| kind | does |\n|---|---|\n"
    for kind, section in known_kinds().items():
        text += f"| [`{kind}`](#{anchor(f'kind {kind}')}) | {_about(section)} |\n"
    for kind, section in known_kinds().items():
        text += "\n" + _part(f"## kind: {kind}", section, titles, f"kind: {kind}")
    text += "\n## Sections inside stages\n"
    for of in inside.values():
        text += "\n" + _part(f"### {of.title}", of.section, titles, of.title)
    return f"{text}\n{_GROUPS}\n{_example('groups of stages')}"


def sections() -> tuple[dict[type[BaseModel], Found], dict[type[BaseModel], Found]]:
    """The sections beside `stages` (with those inside them), and the sections that stages are made of."""
    tops: dict[type[BaseModel], Found] = {}
    inside: dict[type[BaseModel], Found] = {}
    for key, annotation in keys_of(Recipe).items():
        if key != "stages":
            for of in _below(key, annotation, dotted=True):
                _add(tops, of)
    for section in known_kinds().values():
        for key, annotation in keys_of(section).items():
            for of in _below(key, annotation, dotted=False):
                _add(inside, of)
    return tops, inside


def _add(found: dict[type[BaseModel], Found], new: Found) -> None:
    known = found.setdefault(new.section, Found(new.section, [], new.kind))
    known.keys += [key for key in new.keys if key not in known.keys]


def _below(key: str, annotation: Any, dotted: bool) -> Iterator[Found]:
    """The sections that a key may hold, and those inside them. dotted: with the path to them (track.wandb)."""
    for kind, section in kinds_of(annotation).items():
        yield Found(section, [key], kind)
    section = held_by(annotation)
    if section is not None:
        yield Found(section, [key])
        for inner, of in keys_of(section).items():
            yield from _below(f"{key}.{inner}" if dotted else inner, of, dotted)


def held_by(annotation: Any) -> type[BaseModel] | None:
    """The section that a key holds, or that the entries of its list are."""
    inner, _ = unwrap(members(annotation)[0])
    if get_origin(inner) is list:
        inner = unwrap(get_args(inner)[0])[0]
    return inner if is_section(inner) else None


def keys_of(section: type[BaseModel]) -> dict[str, Any]:
    """key → annotation, in the order of the schema"""
    hints = get_type_hints(section, include_extras=True)
    return {key: hints[key] for key in section.model_fields}


def anchor(title: str) -> str:
    """The same in GitHub's pages and in the site's."""
    kept = "".join(sign for sign in title.lower() if sign.isalnum() or sign in " -_")
    return "-".join(kept.split())


def _about(section: type[BaseModel]) -> str:
    return _cell(" ".join(inspect.cleandoc(section.__doc__ or "").split()))


def _part(heading: str, section: type[BaseModel], titles: dict[type[BaseModel], str], example: str) -> str:
    lines = [heading, "", _about(section), "", "| key | value | default | meaning |", "|---|---|---|---|"]
    for key, annotation in keys_of(section).items():
        about = section.model_fields[key]
        meaning = " ".join((about.description or "").split())
        cells = (f"`{key}`", _value(annotation, titles), _default(about.default), meaning)
        lines.append("| " + " | ".join(map(_cell, cells)) + " |")
    return "\n".join(lines) + "\n\n" + _example(example)


def _value(annotation: Any, titles: dict[type[BaseModel], str]) -> str:
    """In words; where it is a section, a link to its table."""
    words = describe(annotation)
    section = held_by(annotation)
    if section in titles and (kinds := kinds_of(annotation)):
        links = [f"[{kind}](#{anchor(titles[of])})" for kind, of in kinds.items()]
        return f"a section of kind {', '.join(links)}" + (" or null" if words.endswith("or null") else "")
    return f"[{words}](#{anchor(titles[section])})" if section in titles else words


def _cell(text: str) -> str:
    """Text in a table; docs/x.md becomes a link from docs/reference/."""
    words = []
    for word in text.replace("|", "\\|").split(" "):
        bare = word.strip("().,;")
        if bare.startswith("docs/") and bare.endswith(".md"):
            word = word.replace(bare, f"[{bare.removeprefix('docs/').removesuffix('.md')}](../{bare[5:]})")
        words.append(word)
    return " ".join(words)


def _default(default: Any) -> str:
    if default is PydanticUndefined:
        return "required"
    if isinstance(default, BaseModel):
        usual = type(default).model_fields
        own = {
            key: value
            for key, value in default.model_dump(mode="json").items()
            if not usual[key].is_required() and getattr(default, key) != usual[key].default
        }
        return "its defaults" + (f", but `{json.dumps(own)}`" if own else "")
    return f"`{default if isinstance(default, str) else json.dumps(default)}`"


def _example(title: str) -> str:
    return f"```yaml\n{EXAMPLES[title].strip()}\n```\n"
