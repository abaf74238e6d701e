"""The recipe language for editors (schema.json) and for readers (docs/recipe.md), generated from schema.py.

`python -m finetune.recipe.json_schema` writes both; a test says when they are not current.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from finetune.recipe.group_schema import GROUP_DOCS, add_groups
from finetune.recipe.hints import known_kinds
from finetune.recipe.schema import Recipe
from finetune.recipe.words import describe, is_section, kinds_of, members, unwrap

SCHEMA_PATH = Path(__file__).with_name("schema.json")
DOCS_PATH = Path(__file__).parents[2] / "docs" / "recipe.md"
"""Only in a checkout; an installed package has no docs folder."""

_DOCS_HEAD = """# Recipe reference

Every key of a recipe. Generated from `finetune/recipe/schema.py` by `make schema`: change it there.

An unknown key, a wrong type or a missing key is an error with file, line and key path. Paths are relative to the
recipe. `--set key.path=value` changes one value from the command line (`--set stages.sft.train.epochs=1`,
`--set adapter.targets=[q_proj,v_proj]`). Text is YAML 1.2: `2e-4` is a number, `yes` and `on` are text.
"""


def schema_text() -> str:
    schema = Recipe.model_json_schema()
    add_groups(schema)
    _tidy(schema)
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "finetune recipe"}
    return json.dumps({**head, **schema}, indent=1, ensure_ascii=False) + "\n"


def docs_text() -> str:
    first: dict[type[BaseModel], str] = {}
    text = _DOCS_HEAD
    for path, section in _sections(Recipe, ""):
        if section in first and path.endswith(")"):
            continue  # a kind of a section in a stage, such as a checker: told with the first
        if section in first:
            text += f"\n## {path}\n\nThe keys of {first[section]}.\n"
        else:
            first[section] = path
            text += f"\n{_section(path, section)}"
    return f"{text}\n{GROUP_DOCS}"


def _tidy(value: Any) -> None:
    """Drop pydantic's titles, which only repeat the key, and the source's line breaks in descriptions; close the
    sections whose keys are names."""
    if isinstance(value, list):
        for entry in value:
            _tidy(entry)
    elif isinstance(value, dict):
        if isinstance(value.get("title"), str):
            del value["title"]
        if isinstance(value.get("description"), str):
            value["description"] = " ".join(value["description"].split())
        if "patternProperties" in value:
            value["additionalProperties"] = False
        for entry in value.values():
            _tidy(entry)


def _sections(section: type[BaseModel], path: str) -> Iterator[tuple[str, type[BaseModel]]]:
    """The section and those inside it, each with its key path, in the order of the schema."""
    yield path, section
    for key, annotation in _keys(section).items():
        inside = f"{path}.{key}" if path else key
        if key == "stages":
            for kind, stage in known_kinds().items():
                yield from _sections(stage, f"stages.NAME (kind: {kind})")
            continue
        inner, _ = unwrap(members(annotation)[0])
        for kind, of_kind in kinds_of(annotation).items():
            yield from _sections(of_kind, f"{inside} (kind: {kind})")
        if is_section(inner):
            yield from _sections(inner, inside)
        elif get_origin(inner) is list and is_section(entry := unwrap(get_args(inner)[0])[0]):
            yield from _sections(entry, f"{inside}[]")


def _section(path: str, section: type[BaseModel]) -> str:
    lines = [f"## {path or 'top level'}", ""]
    if section is not Recipe:
        lines += [" ".join(inspect.cleandoc(section.__doc__ or "").split()), ""]
    lines += ["| key | value | default | meaning |", "|---|---|---|---|"]
    for key, annotation in _keys(section).items():
        field = section.model_fields[key]
        meaning = " ".join((field.description or "").split())
        cells = (f"`{key}`", describe(annotation), _default(field.default), meaning)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _default(default: Any) -> str:
    if default is PydanticUndefined:
        return "required"
    if isinstance(default, BaseModel):
        usual = type(default).model_fields
        own = {
            key: value for key, value in default.model_dump(mode="json").items() if _differs(usual[key], default, key)
        }
        return "its defaults" + (f", but `{json.dumps(own)}`" if own else "")
    return f"`{default if isinstance(default, str) else json.dumps(default)}`"


def _differs(field: FieldInfo, default: BaseModel, key: str) -> bool:
    return not field.is_required() and getattr(default, key) != field.default


def _keys(section: type[BaseModel]) -> dict[str, Any]:
    hints = get_type_hints(section, include_extras=True)
    return {key: hints[key] for key in section.model_fields}


def main() -> None:
    SCHEMA_PATH.write_text(schema_text(), encoding="utf-8")
    if DOCS_PATH.parent.is_dir():
        DOCS_PATH.write_text(docs_text(), encoding="utf-8")


if __name__ == "__main__":
    main()
