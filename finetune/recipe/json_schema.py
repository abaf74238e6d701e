"""The recipe language for editors (schema.json), generated from schema.py. The page for readers is scripts/docs.py's.

`python -m finetune.recipe.json_schema` writes it; a test says when it is not current.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from finetune.recipe.group_schema import add_groups
from finetune.recipe.schema import Recipe

SCHEMA_PATH = Path(__file__).with_name("schema.json")


def schema_text() -> str:
    schema = Recipe.model_json_schema()
    add_groups(schema)
    _tidy(schema)
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "finetune recipe"}
    return json.dumps({**head, **schema}, indent=1, ensure_ascii=False) + "\n"


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


def main() -> None:
    SCHEMA_PATH.write_text(schema_text(), encoding="utf-8")


if __name__ == "__main__":
    main()
