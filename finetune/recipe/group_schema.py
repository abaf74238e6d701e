"""Groups of stages in the JSON schema: what pydantic does not know, because groups are written out before it looks.

In a group every value may be `{round: [one for each round]}`, a name `{first, then}`, an entry of rows may say
`rounds`. So each section that a stage is made of gets a second definition, whose name ends in `InGroup`.
"""

from __future__ import annotations

import copy
from typing import Any

from finetune.recipe.references import REFERENCE_KEYS
from finetune.recipe.rounds import MAX_ROUNDS

_BY_ROUND = {
    "description": "A value for each round of the group.",
    "type": "object",
    "properties": {"round": {"description": "One value for each round.", "type": "array", "minItems": 1}},
    "required": ["round"],
    "additionalProperties": False,
}
_FIRST_THEN = {
    "description": "A stage that differs between the first round and later ones.",
    "type": "object",
    "properties": {
        "first": {
            "description": "In round 1: a stage above the group, an adapter folder, or null.",
            "type": ["string", "null"],
        },
        "then": {"description": "In later rounds: this stage, of the round before.", "type": "string"},
    },
    "required": ["first", "then"],
    "additionalProperties": False,
}
_REPEAT = "How many rounds. Each runs all stages of the group; see docs/rounds.md."
_STAGES = "The stages of one round. Round 2 of the stage best is best.2; from below, best is the last round's."
_ROUNDS = (
    "all: the entry as it is in this round and in all earlier ones, such as {stage: best, rounds: all}. earlier: "
    "without this round. Below a group: all its rounds."
)


def add_groups(schema: dict[str, Any]) -> None:
    """Let each of `stages` be a stage or a group, in the JSON schema that pydantic made. Changes it in place."""
    definitions = schema["$defs"]
    names = schema["properties"]["stages"]["patternProperties"]
    [(pattern, stage)] = names.items()
    inside = _renamed(stage)
    for name in _reachable(stage, definitions):
        definitions[f"{name}InGroup"] = _in_group(name, definitions[name])
    row = definitions["DataSource"]["properties"]
    row["rounds"] = definitions["DataSourceInGroup"]["properties"]["rounds"] = {
        "description": _ROUNDS,
        "enum": ["all", "earlier"],
    }
    definitions |= {"ByRound": _BY_ROUND, "FirstThen": _FIRST_THEN}
    definitions["Group"] = {
        "description": "Stages that run several times, each round on what the round before has made.",
        "type": "object",
        "properties": {
            "repeat": {"description": _REPEAT, "type": "integer", "minimum": 1, "maximum": MAX_ROUNDS},
            "stages": {
                "description": _STAGES,
                "type": "object",
                "minProperties": 1,
                "patternProperties": {pattern: inside},
            },
        },
        "required": ["repeat", "stages"],
        "additionalProperties": False,
    }
    is_group = {"not": {"required": ["kind"]}, "anyOf": [{"required": ["repeat"]}, {"required": ["stages"]}]}
    names[pattern] = {"if": is_group, "then": {"$ref": "#/$defs/Group"}, "else": stage}


def _reachable(value: Any, definitions: dict[str, Any]) -> list[str]:
    """Names of all definitions that the schema refers to, and those refer to."""
    found: dict[str, None] = {}
    open_values = [value]
    while open_values:
        here = open_values.pop()
        if isinstance(here, dict):
            name = str(here.get("$ref", "")).removeprefix("#/$defs/")
            if name and name not in found:
                found[name] = None
                open_values.append(definitions[name])
            open_values += here.values()
        elif isinstance(here, list):
            open_values += here
    return list(found)


def _renamed(value: Any) -> Any:
    """References to the definitions of the same name for groups."""
    if isinstance(value, list):
        return [_renamed(entry) for entry in value]
    if isinstance(value, dict):
        return {
            key: f"{entry}InGroup" if key == "$ref" else _renamed(entry) if key != "mapping" else _mapped(entry)
            for key, entry in value.items()
        }
    return value


def _mapped(mapping: dict[str, str]) -> dict[str, str]:
    return {kind: f"{name}InGroup" for kind, name in mapping.items()}


def _in_group(name: str, section: dict[str, Any]) -> dict[str, Any]:
    """A section as it may stand in a group."""
    section = _renamed(copy.deepcopy(section))
    for key, value in section.get("properties", {}).items():
        if key == "kind":
            continue
        about = {word: value.pop(word) for word in ("description", "default") if word in value}
        more: list[dict[str, Any]] = [{"$ref": "#/$defs/ByRound"}]
        if _names_a_stage(name, key):
            more.append({"$ref": "#/$defs/FirstThen"})
        if key == "of":
            value["items"] = {"anyOf": [value["items"], {"$ref": "#/$defs/FirstThen"}]}
        if key == "earlier":
            more.append({"const": "all"})
        section["properties"][key] = {**about, "anyOf": [value, *more]}
    return section


def _names_a_stage(section: str, key: str) -> bool:
    return (key,) in REFERENCE_KEYS or (section, key) in (("SafetyReward", "reward"), ("DataSource", "stage"))
