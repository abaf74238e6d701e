"""pydantic's errors told in plain words: key path, line, what was expected, what was found, what was probably meant."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ValidationError

from finetune.errors import Problem
from finetune.recipe.learning_stages import DpoLoss
from finetune.recipe.positions import KeyPath, plain_scalar
from finetune.recipe.schema import Recipe, Stage
from finetune.recipe.source import Source
from finetune.recipe.words import describe, describe_value, did_you_mean, is_section, members, suggest, unwrap

_OTHER_TOOLS = {  # how other trainers call what a recipe calls …
    "lr": "learning_rate",
    "lr_scheduler_type": "schedule",
    "lr_scheduler": "schedule",
    "warmup_ratio": "warmup",
    "warmup_steps": "warmup",
    "num_train_epochs": "epochs",
    "num_epochs": "epochs",
    "per_device_train_batch_size": "micro_batch_size",
    "gradient_accumulation_steps": "batch_size",
    "optim": "optimizer",
    "base_model": "base",
    "model_name_or_path": "base",
    "sequence_len": "max_length",
    "cutoff_len": "max_length",
    "max_seq_length": "max_length",
    "load_in_4bit": "load_in",
    "load_in_8bit": "load_in",
    "chat_template": "template",
    "r": "rank",
    "lora_r": "rank",
    "lora_rank": "rank",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "target_modules": "targets",
    "lora_target_modules": "targets",
    "use_rslora": "rslora",
    "use_dora": "dora",
    "dataset": "data",
    "datasets": "data",
    "file": "path",
    "train_on_inputs": "loss_on",
    "val_set_size": "held_out",
    "early_stopping_patience": "early_stop",
    "num_generations": "samples",
    "num_samples": "samples",
    "num_return_sequences": "samples",
    "n": "samples",
    "k": "samples",
    "best_of": "samples",
    "response_length": "max_new_tokens",
    "max_completion_length": "max_new_tokens",
    "max_tokens": "max_new_tokens",
    "kl_coef": "kl",
    "init_kl_coef": "kl",
    "target": "target_kl",
    "cliprange": "clip_range",
    "epsilon": "clip_range",
    "cliprange_value": "value_clip_range",
    "lam": "gae_lambda",
    "lambda": "gae_lambda",
    "ent_coef": "entropy_weight",
    "entropy_coef": "entropy_weight",
    "whiten_rewards": "whiten_scores",
    "score_clip": "clip_score",
    "missing_eos_penalty": "no_stop_penalty",
    "num_ppo_epochs": "passes",
    "ppo_epochs": "passes",
    "num_iterations": "passes",
    "num_mini_batches": "batch_size",
    "mini_batch_size": "batch_size",
    "total_episodes": "iterations",
    "num_sample_generations": "sample_every",
    "reward_model": "reward",
    "reward_model_path": "reward",
    "value_lr": "value_learning_rate",
    "critic_learning_rate": "value_learning_rate",
    "reward_funcs": "checker",
    "adapters": "of",
    "vf_coef": "value_learning_rate",
}
_OTHER_STAGES = {"start_from": "policy", "policy": "start_from", "data": "prompts", "prompts": "data", "beta": "kl"}
"""How stages of another kind call the same."""
_OTHER_KINDS = {
    "rm": "reward",
    "reward_model": "reward",
    "reward_modeling": "reward",
    "rejection_sampling": "reject",
    "best_of_n": "reject",
    "rs": "reject",
    "finetune": "sft",
    "lora": "sft",
    "merge": "average",
    "mean": "average",
    "soup": "average",
}


@dataclass(frozen=True)
class _Place:
    """Where a pydantic location leads: `path` as in the file, without the labels of union members."""

    path: KeyPath
    expected: Any  # the annotation there; None for an unknown key
    section: type[BaseModel]  # the innermost section on the way
    choice: KeyPath | None = None  # the key path of a union on the way
    is_key: bool = False  # the key itself is wrong, not its value


def explain(
    error: ValidationError, data: Mapping[str, Any], source: Source, skip_stages: Container[str] = ()
) -> list[Problem]:
    """One problem for each thing that is wrong. `data` is what was validated."""
    details = [
        (_place(location), detail)
        for detail in error.errors(include_url=False)
        if not (len(location := detail["loc"]) > 1 and location[0] == "stages" and location[1] in skip_stages)
        or location[-1] == "[key]"
    ]
    deeper = {place.choice for place, _ in details if place.choice is not None and place.path != place.choice}
    problems: dict[tuple[Any, ...], Problem] = {}
    for place, detail in details:
        if place.choice is not None and place.path == place.choice and place.choice in deeper:
            continue  # one alternative fits but for an entry of it, which has a problem of its own
        key = (place.path, detail["msg"] if detail["type"] == "value_error" else "")
        problems.setdefault(key, _problem(place, detail, data, source))
    return list(problems.values())


def known_kinds() -> dict[str, type[BaseModel]]:
    """Stage kinds of this version: name → section."""
    return kinds_of(Stage)


def kinds_of(annotation: Any) -> dict[str, type[BaseModel]]:
    """The sections among the alternatives that differ by their `kind`: kind → section."""
    sections = [choice for choice in _alternatives(annotation) if is_section(choice) and "kind" in choice.model_fields]
    return {get_args(unwrap(get_type_hints(section)["kind"])[0])[0]: section for section in sections}


def kind_hint(kind: str) -> str | None:
    """What was probably meant by a kind that there is not."""
    plain = kind.lower().replace("-", "_")
    if plain in get_args(DpoLoss):
        return f"{plain} is a loss of dpo stages: write kind: dpo, loss: {plain}"
    if meant := _OTHER_KINDS.get(plain):
        return f"did you mean '{meant}'?"
    return did_you_mean(kind, known_kinds())


def allowed_keys(section: type[BaseModel]) -> tuple[str, ...]:
    return tuple(section.model_fields)


def _place(location: tuple[int | str, ...]) -> _Place:
    place = _Place((), Recipe, Recipe)
    rest = list(location)
    while rest and place.expected is not None:
        choices = members(place.expected)
        while len(choices) == 1 and choices[0] is not place.expected:  # a union in `… | None`
            place = replace(place, expected=choices[0])
            choices = members(place.expected)
        if len(choices) > 1:
            label = rest.pop(0)  # pydantic names the alternative it tried: 'list[str]', or the kind of a section
            if of_kind := kinds_of(place.expected).get(str(label)):
                place = replace(place, expected=of_kind)
                continue
            inside = next((choice for choice in choices if _has_inside(choice)), None)
            place = replace(place, expected=inside if rest else place.expected, choice=place.path)
            continue
        inner, _ = unwrap(choices[0])
        key = rest.pop(0)
        if rest == ["[key]"]:
            return replace(place, path=(*place.path, key), expected=get_args(inner)[0], is_key=True)
        if is_section(inner):
            expected = get_type_hints(inner, include_extras=True).get(str(key))
            place = replace(place, section=inner, expected=expected)
        elif get_origin(inner) is tuple:
            return place  # a wrong entry is told with the whole pair
        else:
            place = replace(place, expected=get_args(inner)[-1] if get_args(inner) else None)
        place = replace(place, path=(*place.path, key))
    return place


def _alternatives(annotation: Any) -> list[Any]:
    """The bare types of a union, and of the unions in it."""
    choices = members(annotation)
    if len(choices) == 1 and choices[0] is annotation:
        return [unwrap(annotation)[0]]
    return [bare for choice in choices for bare in _alternatives(choice)]


def _has_inside(annotation: Any) -> bool:
    inner, _ = unwrap(annotation)
    return get_origin(inner) in (list, dict, tuple) or is_section(inner)


def _problem(place: _Place, detail: Any, data: Mapping[str, Any], source: Source) -> Problem:
    match detail["type"]:
        case "extra_forbidden":
            return source.problem(place.path, "unknown key", _unknown_key_hint(place, data, source))
        case "missing" if place.path and get_origin(unwrap(place.expected)[0]) is not tuple:
            return _missing(place, data, source)
        case "value_error":
            message = str(detail["ctx"]["error"])
            first, _, rest = message.partition(" ")
            if named := _named(data, place.path, first):  # the message begins with the key that it is about
                return source.problem(named, rest)
            return source.problem(place.path, message)
        case "union_tag_invalid" | "union_tag_not_found":
            return _kind_problem(place, data, source)
    if place.expected is None:
        return source.problem(place.path, f"{detail['msg']}; found {describe_value(_at(data, place.path))}")
    if place.is_key:
        return source.problem(place.path, f"expected {describe(place.expected)} as the key")
    value = _at(data, place.path)
    message = f"expected {describe(place.expected)}; found {describe_value(value)}"
    return source.problem(place.path, message, _value_hint(place, value))


def _named(data: Any, path: KeyPath, dotted: str) -> KeyPath | None:
    """The key path below `path` that `dotted` names, if there is a value; stage names may hold dots."""
    if not dotted:
        return path if path and _at(data, path) is not None else None
    keys = dotted.split(".")
    here = _at(data, path)
    for length in range(len(keys), 0, -1):
        key = ".".join(keys[:length])
        if isinstance(here, Mapping) and here.get(key) is not None:
            return _named(data, (*path, key), ".".join(keys[length:]))
    return None


def _kind_problem(place: _Place, data: Mapping[str, Any], source: Source) -> Problem:
    """A section in a stage whose kind is not known, or missing."""
    kinds = kinds_of(place.expected)
    given = _at(data, place.path)
    known = ", ".join(kinds)
    if not isinstance(given, Mapping) or "kind" not in given:
        message = f"missing key: section {source.text(place.path)}, which begins here, needs it ({known})"
        return source.problem((*place.path, "kind"), message, at=place.path)
    kind = given["kind"]
    found = f"'{kind}'" if isinstance(kind, str) else describe_value(kind)
    hint = did_you_mean(kind, kinds) if isinstance(kind, str) else None
    return source.problem((*place.path, "kind"), f"unknown kind {found}; known are: {known}", hint)


def _missing(place: _Place, data: Mapping[str, Any], source: Source) -> Problem:
    *section, key = place.path
    given = _at(data, tuple(section))
    unknown = [name for name in given if name not in place.section.model_fields] if isinstance(given, Mapping) else []
    typo = suggest(str(key), [*unknown])
    where = f"section {source.text(tuple(section))}, which begins here, needs it" if section else "a recipe needs it"
    if section and isinstance(section[-1], int):
        where = "the entry that begins here needs it"
    hint = f"is '{typo}' meant to be '{key}'?" if typo else None
    return source.problem(place.path, f"missing key: {where} ({describe(place.expected)})", hint, at=tuple(section))


def _unknown_key_hint(place: _Place, data: Mapping[str, Any], source: Source) -> str:
    key = str(place.path[-1])
    allowed = allowed_keys(place.section)
    if close := suggest(key, allowed, 0.75):
        return f"did you mean '{close}'?"
    wanted = _OTHER_TOOLS.get(key.lower().replace("-", "_"), key)
    for likely in (wanted, _OTHER_STAGES.get(wanted)):
        if likely in allowed:
            return f"did you mean '{likely}'?"
    if key in ("repeat", "stages", "round", "rounds", "first", "then"):
        return "rounds are for groups of stages; docs/rounds.md"
    if homes := _homes(wanted, place, data, source):
        return f"'{wanted}' belongs to {homes[0]}" if wanted == key else f"did you mean '{wanted}' of {homes[0]}?"
    if close := suggest(key, allowed):
        return f"did you mean '{close}'?"
    given = _at(data, place.path[:-1])
    free = [name for name in allowed if not isinstance(given, Mapping) or name not in given]
    return f"this section knows: {', '.join(free or allowed)}"


def _homes(key: str, place: _Place, data: Mapping[str, Any], source: Source) -> list[str]:
    """Sections that have the key, the nearest first: of the same stage, of the recipe, of stages of other kinds."""
    in_stage = place.path[0] == "stages" and len(place.path) > 2
    name = str(place.path[1]) if in_stage else "<stage>"
    own = _at(data, ("stages", name, "kind")) if in_stage else None
    near: list[KeyPath] = []
    others: list[str] = []
    for kind, stage in known_kinds().items():
        if own in (None, kind):
            near += _inside(stage, key, ("stages", name))
        elif key in stage.model_fields:
            others.append(f"a stage of kind {kind}")
    close, top = [source.text(path) for path in near], [source.text(path) for path in _inside(Recipe, key, ())]
    return [*close, *top, *others] if in_stage else [*top, *close]


def _inside(section: type[BaseModel], key: str, path: KeyPath) -> Iterator[KeyPath]:
    """The section itself and sections in it, not entries of lists, that have the key."""
    if path and key in section.model_fields:
        yield path
    for name, annotation in get_type_hints(section, include_extras=True).items():
        inner, _ = unwrap(members(annotation)[0])
        if name in section.model_fields and is_section(inner):
            yield from _inside(inner, key, (*path, name))


def _value_hint(place: _Place, value: Any) -> str | None:
    choices = _alternatives(place.expected)
    origins = [get_origin(choice) or choice for choice in choices]
    wants_section = any(map(is_section, choices)) or dict in origins
    if isinstance(value, str):
        options = [option for choice in choices for option in get_args(choice) if isinstance(option, str)]
        if options and (close := suggest(value, options)):
            return f"did you mean '{close}'?"
        plain = plain_scalar(value.strip())
        digits = plain_scalar(value.replace("_", "").replace(",", ""))
        if int in origins or float in origins:
            if isinstance(plain, int | float) and not isinstance(plain, bool):
                return "remove the quotes"
            if isinstance(digits, int | float) and not isinstance(digits, bool):
                return f"write {digits}"
        if bool in origins:
            words = {"yes": "true", "on": "true", "y": "true", "no": "false", "off": "false", "n": "false"}
            word = {"true": "true", "false": "false", **words}.get(value.lower())
            return f"write {word}, without quotes" if word else None
        if "path" in _keys_of(choices):
            return f"write {{path: {value}}}"
        if list in origins and "path" in _keys_of([get_args(choice)[0] for choice in choices if get_args(choice)]):
            return f"write [{{path: {value}}}]"
        if of_kind := kinds_of(place.expected).get(value):
            return f"write {{{', '.join([f'kind: {value}', *(f'{key}: …' for key in _needed(of_kind)[1:])])}}}"
        if sections := [choice for choice in choices if is_section(choice) and len(_needed(choice)) == 1]:
            return f"write {{{_needed(sections[0])[0]}: {value}}}" if len(choices) == 1 else None
        if list in origins and not {int, float} & set(origins):
            return f"write [{value}]"
    if isinstance(value, float) and int in origins and value.is_integer():
        return f"write {int(value)}"
    if isinstance(value, int | float) and str in origins:
        return f"put it in quotes: '{value}'"
    if isinstance(value, Mapping) and {"first", "then", "round"} & set(value) and not wants_section:
        return "in a group of stages a value by round is {round: [v1, v2, …]}; docs/rounds.md"
    if isinstance(value, Mapping) and list in origins:
        return "a list has '- ' before each entry"
    if value is None and (wants_section or list in origins):
        return "indent its entries under it, or remove the key"
    field = place.section.model_fields.get(str(place.path[-1]))
    if value is None and field is not None and not field.is_required():
        return "remove the key to take its default"
    return None


def _needed(section: type[BaseModel]) -> list[str]:
    return [key for key, field in section.model_fields.items() if field.is_required()]


def _keys_of(choices: list[Any]) -> set[str]:
    return {key for choice in choices if is_section(choice) for key in choice.model_fields}


def _at(data: Any, path: KeyPath) -> Any:
    """The value at the key path, None where there is none."""
    for key in path:
        if isinstance(data, Mapping):
            data = data.get(key)
        else:
            data = data[key] if isinstance(data, list | tuple) and isinstance(key, int) and key < len(data) else None
    return data
