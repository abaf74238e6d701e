"""What was probably meant: hints for keys, values and kinds that the recipe language does not have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, get_args, get_origin, get_type_hints

from pydantic import BaseModel

from finetune.recipe.learning_stages import DpoLoss
from finetune.recipe.positions import KeyPath, plain_scalar, value_at
from finetune.recipe.schema import Recipe, Stage
from finetune.recipe.source import Source
from finetune.recipe.words import alternatives, did_you_mean, is_section, kinds_of, members, suggest, unwrap

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


def known_kinds() -> dict[str, type[BaseModel]]:
    """Stage kinds of this version: name → section."""
    return kinds_of(Stage)


def is_of_another_tool(data: Mapping[str, Any]) -> bool:
    """Whether a file is no recipe at all, but a configuration of Axolotl, LLaMA-Factory, torchtune or TRL."""
    if "stages" in data:
        return False
    names_base = "base_model" in data or "model_name_or_path" in data
    return names_base or any(isinstance(part, Mapping) and "_component_" in part for part in data.values())


def kind_hint(kind: str) -> str | None:
    """What was probably meant by a kind that there is not."""
    plain = kind.lower().replace("-", "_")
    if plain in get_args(DpoLoss):
        return f"{plain} is a loss of dpo stages: write kind: dpo, loss: {plain}"
    if meant := _OTHER_KINDS.get(plain):
        return f"did you mean '{meant}'?"
    return did_you_mean(kind, known_kinds())


def unknown_key_hint(path: KeyPath, section: type[BaseModel], data: Mapping[str, Any], source: Source) -> str:
    """What was probably meant by a key that its section does not have, or what the section knows."""
    key = str(path[-1])
    allowed = tuple(section.model_fields)
    if close := suggest(key, allowed, 0.75):
        return f"did you mean '{close}'?"
    wanted = _OTHER_TOOLS.get(key.lower().replace("-", "_"), key)
    for likely in (wanted, _OTHER_STAGES.get(wanted)):
        if likely in allowed:
            return f"did you mean '{likely}'?"
    if key in ("repeat", "stages", "round", "rounds", "first", "then"):
        return "rounds are for groups of stages; docs/rounds.md"
    if homes := _homes(wanted, path, data, source):
        return f"'{wanted}' belongs to {homes[0]}" if wanted == key else f"did you mean '{wanted}' of {homes[0]}?"
    if close := suggest(key, allowed):
        return f"did you mean '{close}'?"
    given = value_at(data, path[:-1])
    free = [name for name in allowed if not isinstance(given, Mapping) or name not in given]
    return f"this section knows: {', '.join(free or allowed)}"


def _homes(key: str, path: KeyPath, data: Mapping[str, Any], source: Source) -> list[str]:
    """Sections that have the key, the nearest first: of the same stage, of the recipe, of stages of other kinds."""
    in_stage = path[0] == "stages" and len(path) > 2
    name = str(path[1]) if in_stage else "<stage>"
    own = value_at(data, ("stages", name, "kind")) if in_stage else None
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


def value_hint(path: KeyPath, expected: Any, section: type[BaseModel], value: Any) -> str | None:
    """What to write in place of a wrong value."""
    choices = alternatives(expected)
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
        if of_kind := kinds_of(expected).get(value):
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
    field = section.model_fields.get(str(path[-1]))
    if value is None and field is not None and not field.is_required():
        return "remove the key to take its default"
    return None


def _needed(section: type[BaseModel]) -> list[str]:
    return [key for key, field in section.model_fields.items() if field.is_required()]


def _keys_of(choices: list[Any]) -> set[str]:
    return {key for choice in choices if is_section(choice) for key in choice.model_fields}
