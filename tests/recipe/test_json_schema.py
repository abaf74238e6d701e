from __future__ import annotations

import json
from typing import Any

from finetune.recipe.json_schema import SCHEMA_PATH, schema_text
from finetune.recipe.settings import ModelSettings


def test_the_committed_schema_is_current() -> None:
    assert SCHEMA_PATH.read_text(encoding="utf-8") == schema_text(), "run `make schema` and commit the result"


def test_every_section_is_closed_and_every_key_is_explained() -> None:
    schema = json.loads(schema_text())
    sections = {"recipe": schema, **schema["$defs"]}
    assert len(sections) >= 8
    for name, section in sections.items():
        assert section["additionalProperties"] is False, name
        assert section["description"], name
        for key, entry in section["properties"].items():
            target = schema["$defs"][entry["$ref"].rpartition("/")[2]] if "$ref" in entry else entry
            assert entry.get("description") or target.get("description"), f"{name}.{key}"
    assert schema["properties"]["stages"]["additionalProperties"] is False


def test_enums_defaults_and_bounds_are_those_of_the_language() -> None:
    definitions: dict[str, Any] = json.loads(schema_text())["$defs"]
    model = definitions["ModelSettings"]["properties"]
    assert model["load_in"]["enum"] == ["nf4", "int8", "bf16", "fp32"]
    assert model["load_in"]["default"] == ModelSettings(base="x").load_in
    assert definitions["SftStage"]["properties"]["kind"]["const"] == "sft"
    assert set(definitions["SftStage"]["required"]) == {"kind", "data"}
    assert definitions["TrainSettings"]["properties"]["batch_size"]["minimum"] == 1
    assert [entry["required"] for entry in definitions["DataSource"]["oneOf"]] == [["path"], ["hub"], ["stage"]]
