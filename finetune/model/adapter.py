"""LoRA adapters on a frozen base: made, saved so that plain peft loads them, and proven after saving."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from finetune.errors import InputError, ProofError
from finetune.model.ragged import Layout, ragged_hidden
from finetune.recipe.settings import AdapterSettings

ADAPTER = "default"
"""peft writes the adapter of this name into the folder itself, where every peft user looks for it."""

_CONFIG = "adapter_config.json"
_WEIGHTS = "adapter_model.safetensors"
_INITIAL = "initial"
"""Folder of the untrained adapter that pissa and olora need at save time."""


def peft_config(settings: AdapterSettings) -> LoraConfig:
    """The peft configuration of an adapter as the recipe describes it."""
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.rank,
        lora_alpha=int(settings.alpha) if settings.alpha == int(settings.alpha) else settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=settings.targets,
        use_rslora=settings.rslora,
        use_dora=settings.dora,
        init_lora_weights=True if settings.init == "default" else settings.init,
        modules_to_save=list(settings.modules_to_save) or None,
    )


def new_adapter(base: LlamaForCausalLM, settings: AdapterSettings, *, seed: int) -> PeftModel:
    """Put a fresh adapter on the base; its weights depend on the seed alone.

    InputError: a target that got none, a rank that pissa or olora cannot have on this base.
    """
    check_targets(base, settings)
    # Their factors have as many columns as the layer has dimensions at most, and peft fails only when it saves them.
    smallest = min(min(m.in_features, m.out_features) for m in base.modules() if isinstance(m, nn.Linear))
    if settings.init in ("pissa", "olora") and settings.rank > smallest:
        raise InputError(
            f"adapter.rank {settings.rank} is more than adapter.init {settings.init} can have on this base, whose "
            f"narrowest layer has {smallest} dimensions: use a smaller rank, or init default"
        )
    torch.manual_seed(seed)
    return get_peft_model(base, peft_config(settings), adapter_name=ADAPTER)


def open_adapter(base: LlamaForCausalLM, folder: Path) -> PeftModel:
    """Put a saved LoRA adapter (a folder of PEFT files in safetensors) on the base, trainable. Raises InputError."""
    config = _config_of_a_writer(folder)
    with _fitting(folder):
        return PeftModel.from_pretrained(base, folder, adapter_name=ADAPTER, is_trainable=True, config=config)


def add_adapter(model: PeftModel, folder: Path, name: str) -> None:
    """Load one more saved adapter beside those of the model, frozen; which one is active stays. Raises InputError.

    name: what `set_adapter` is told, without dots, which peft takes for a path.
    """
    _config_of_a_writer(folder)
    active = model.active_adapter
    with _fitting(folder):
        model.load_adapter(str(folder), adapter_name=name, is_trainable=False)
    model.set_adapter(active)


def read_adapter(folder: Path) -> tuple[dict[str, Tensor], LoraConfig]:
    """Weights, on the CPU, and configuration of an adapter folder. Raises InputError."""
    check_adapter_files(folder)
    try:
        return load_tensors((folder / _WEIGHTS).read_bytes()), LoraConfig.from_pretrained(str(folder))
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"the adapter in {folder} is damaged, or is no LoRA: {error}") from error


def check_adapter_files(folder: Path) -> None:
    """Raise InputError where a folder is no adapter at all."""
    if not (folder / _CONFIG).is_file() or not (folder / _WEIGHTS).is_file():
        raise InputError(f"{folder} holds no adapter: {_CONFIG} and {_WEIGHTS} are needed")


def _config_of_a_writer(folder: Path) -> LoraConfig:
    check_adapter_files(folder)
    try:
        config = LoraConfig.from_pretrained(str(folder))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{folder / _CONFIG} is not a LoRA adapter's configuration: {error}") from error
    if config.task_type == "SEQ_CLS":
        raise InputError(
            f"{folder} is a reward model, which scores answers: an adapter that writes text is needed here, such as "
            "the one that the reward model started from"
        )
    return config


@contextmanager
def _fitting(folder: Path) -> Iterator[None]:
    """What peft says of an adapter that does not fit, as one InputError."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="Found missing adapter keys")
            yield
    except (SafetensorError, RuntimeError, ValueError, UserWarning) as error:
        # A cut file, other shapes, target modules that this base lacks, weights that are not there.
        first = next((line.strip() for line in str(error).splitlines()[1:] if line.strip()), str(error))
        raise InputError(f"the adapter in {folder} does not fit this base, or is damaged: {first}") from error


def check_targets(base: nn.Module, settings: AdapterSettings) -> None:
    """Every requested target must match a linear layer, every module to save a module. Raises InputError."""
    names = [name for name, _ in base.named_modules()]
    linears = [name for name, module in base.named_modules() if isinstance(module, nn.Linear)]
    known = ", ".join(sorted({name.rsplit(".", 1)[-1] for name in linears}))
    if isinstance(settings.targets, str) and settings.targets != "all-linear":
        try:
            pattern = re.compile(settings.targets)
        except re.error as error:
            raise InputError(f"adapter.targets: {settings.targets!r} is not a regular expression: {error}") from error
        if not any(pattern.fullmatch(name) for name in linears):
            raise InputError(
                f"adapter.targets: {settings.targets!r} matches no linear layer. A regex has to match a full name, "
                f"such as {linears[0]}; a list takes the last parts: {known}"
            )
    if isinstance(settings.targets, list):
        for target in settings.targets:
            if not any(name == target or name.endswith("." + target) for name in linears):
                raise InputError(f"adapter.targets: {target!r} names no linear layer of this base; it has {known}")
    for module in settings.modules_to_save:
        if not any(name == module or name.endswith("." + module) for name in names):
            raise InputError(f"adapter.modules_to_save: this base has no module {module!r}")


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that training changes, by full name, in a fixed order."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def state(model: nn.Module) -> dict[str, Tensor]:
    """A detached CPU copy of every trainable parameter."""
    return {name: p.detach().to("cpu", copy=True) for name, p in trainable(model).items()}


@torch.no_grad()
def restore(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Copy weights that `state` made back. Raises KeyError or RuntimeError when names or shapes differ."""
    for name, parameter in trainable(model).items():
        parameter.copy_(weights[name])


def keep_initial(model: PeftModel, settings: AdapterSettings, folder: Path) -> None:
    """pissa and olora move part of the base into the adapter. To save an adapter for the untouched base, peft has to
    know where it started: the untrained adapter is written beside the run while it trains."""
    if settings.init in ("pissa", "olora"):
        config = model.peft_config[ADAPTER]
        mode, config.init_lora_weights = config.init_lora_weights, True
        _save(model, folder / _INITIAL)
        config.init_lora_weights = mode


def save_adapter(
    model: PeftModel,
    settings: AdapterSettings,
    folder: Path,
    work: Path,
    *,
    base_name: str,
    revision: str | None,
) -> None:
    """Write adapter_model.safetensors and adapter_config.json; base + this folder alone = the trained model.

    base_name, revision: what adapter_config.json says the base is. work: where `keep_initial` put the untrained one.
    A pissa or olora adapter is written as an ordinary LoRA of twice the rank, which peft computes from start and end.
    """
    convert = work / _INITIAL if settings.init in ("pissa", "olora") else None
    _save(model, folder, convert)
    if convert is not None:
        shutil.rmtree(convert)
    # Only now: while peft works, the base's name must be the local folder, or it asks the hub about it.
    path = folder / _CONFIG
    config = json.loads(path.read_text(encoding="utf-8"))
    config |= {"base_model_name_or_path": base_name, "revision": revision}
    if isinstance(config["target_modules"], list):  # a set in peft, whose order differs from process to process
        config["target_modules"].sort()
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _save(model: PeftModel, folder: Path, convert_from: Path | None = None) -> None:
    # save_embedding_layers=False: peft would otherwise ask the hub about the base's vocabulary, unasked by the user;
    # trained embeddings are in modules_to_save and are written in any case.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*save_embedding_layers.*")
        model.save_pretrained(
            str(folder),
            safe_serialization=True,
            selected_adapters=[ADAPTER],
            save_embedding_layers=False,
            path_initial_model_for_weight_conversion=None if convert_from is None else str(convert_from),
        )
    (folder / "README.md").unlink(missing_ok=True)  # peft's empty card; ours is written at publishing


@torch.no_grad()
def prove_reload(
    model: PeftModel,
    folder: Path,
    ids_T: Tensor,
    lengths: list[int],
    *,
    fresh: LlamaForCausalLM | None = None,
) -> dict[str, Any]:
    """Load the saved adapter and compare its logits with the trained model's on the given rows. Raises ProofError.

    It is loaded beside the trained one, on the same base, and has to be bit-equal. A pissa or olora run has changed its
    base, so it is loaded on a `fresh` one, where rounding is allowed for: 1e-3 of the largest logit, 2e-2 in bf16.
    Returns what the manifest records: rows, largest difference, and the last row's largest logits for `verify`.
    """
    model.eval()
    trained = _last_logits(model, ids_T, lengths)
    if not torch.isfinite(trained).all():
        raise ProofError(f"the trained adapter gives logits that are not finite; nothing was released ({folder})")
    if fresh is None:
        allowed = 0.0
        model.load_adapter(str(folder), adapter_name="reloaded", is_trainable=False)
        model.set_adapter("reloaded")
        reloaded = _last_logits(model, ids_T, lengths)
        model.set_adapter(ADAPTER)
        model.delete_adapter("reloaded")
    else:
        allowed = reload_rounding(fresh) * trained.abs().max().item()
        reloaded = _last_logits(PeftModel.from_pretrained(fresh, folder).eval(), ids_T, lengths)
    difference = (trained - reloaded).abs().max().item()
    if not difference <= allowed:
        raise ProofError(
            f"the adapter in {folder}, loaded again, differs from the trained one by {difference:.3g} in its logits "
            f"({allowed:.3g} allowed); nothing was released"
        )
    top = trained[-1].topk(min(8, trained.shape[1]))
    return {
        "rows": len(lengths),
        "max_abs_difference": difference,
        "last_row_ids": ids_T[-lengths[-1] :].tolist(),
        "last_row_top_ids": top.indices.tolist(),
        "last_row_top_logits": top.values.tolist(),
    }


def reload_rounding(fresh: LlamaForCausalLM) -> float:
    """What a pissa or olora adapter may be off by on a fresh base, relative to the largest output."""
    return 2e-2 if fresh.dtype == torch.bfloat16 else 1e-3


def _last_logits(model: PeftModel, ids_T: Tensor, lengths: list[int]) -> Tensor:
    """[B, V] float32 logits after the last token of every row."""
    inner = model.get_base_model()
    hidden_TD = ragged_hidden(inner.model, ids_T, Layout.of_rows(lengths))
    ends = torch.tensor(lengths, device=hidden_TD.device).cumsum(0) - 1
    return inner.lm_head(hidden_TD[ends]).float().cpu()
