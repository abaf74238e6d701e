"""Whose configuration is this? Told by keys that only one of the tools has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetune.errors import InputError

TOOLS = {"axolotl": "Axolotl", "llama-factory": "LLaMA-Factory", "torchtune": "torchtune", "trl": "TRL"}
"""What --from takes → the tool's name as people write it."""
_AXOLOTL = (
    "base_model",
    "micro_batch_size",
    "sequence_len",
    "num_epochs",
    "val_set_size",
    "sample_packing",
    "lora_target_linear",
)
_LLAMA_FACTORY = (
    "finetuning_type", "stage", "template", "cutoff_len", "lora_rank", "lora_target", "dataset_dir", "pref_beta",
    "pref_loss", "quantization_bit", "max_samples", "val_size", "reward_model_type", "infer_backend", "export_dir",
)  # fmt: skip
_TRL = (
    "dataset_name", "use_peft", "lora_r", "lora_target_modules", "dataset_config", "dataset_train_split", "datasets",
    "dataset_mixer", "dataset_mixture",
    "model_revision", "per_device_train_batch_size", "beta", "loss_type", "max_length",
)  # fmt: skip


def tool_of(values: Mapping[str, Any], source: str) -> tuple[str, str]:
    """(a key of TOOLS, the keys that told). Raises InputError where no tool's keys are there."""
    if "stages" in values and "model" in values:
        raise InputError(f"{source} is a recipe of finetune already: `finetune check {source}`")
    if components := [key for key, value in values.items() if isinstance(value, Mapping) and "_component_" in value]:
        return "torchtune", f"_component_ in {_some(components)}"
    if "base_model" in values:
        return "axolotl", _some([key for key in _AXOLOTL if key in values])
    if "model_name_or_path" in values or "stage" in values:
        own = [key for key in _LLAMA_FACTORY if key in values]
        if own:
            return "llama-factory", _some(own)
    if found := [key for key in ("model_name_or_path", *_TRL) if key in values]:
        return "trl", _some(found)
    keys = ", ".join(list(values)[:8]) + (", …" if len(values) > 8 else "")
    raise InputError(
        f"{source}: of which tool this is cannot be told from its keys ({keys}). Read are configurations of "
        f"{', '.join(TOOLS.values())}: say whose it is with --from"
    )


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:4])
