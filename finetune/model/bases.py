"""The base in memory, shared by the stages of one process: loaded once, handed on without the last stage's adapters."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # a Job is made before torch is imported
    import torch
    from transformers import LlamaForCausalLM

    from finetune.model.base import Precision


class Bases:
    """At most one base at a time: asking for another lets the last one go."""

    def __init__(self) -> None:
        self._held: _Held | None = None

    def forget(self) -> None:
        """Let the base go: somebody else's trainer was on it."""
        self._held = None

    def get(self, folder: Path, precision: Precision, device: torch.device) -> LlamaForCausalLM:
        """The base of `folder`, frozen, in eval mode, without any adapter; loaded only where it is not held.

        Raises BaseModelError as load_base does.
        """
        from finetune.model.base import load_base

        key = (folder.resolve(), precision, device)
        if self._held is not None and self._held.key == key and (model := self._held.clean()) is not None:
            return model
        self._held = None  # before the next one is loaded: never two in memory
        model = load_base(folder, precision, device)
        self._held = _Held(key, model, _modules(model), _versions(model))
        return model


@dataclass
class _Held:
    """modules: of the bare model by name. versions: how often each weight was written to when it was loaded."""

    key: tuple[Any, ...]
    model: LlamaForCausalLM
    modules: dict[str, Any]
    versions: dict[str, tuple[int, int]]

    def clean(self) -> LlamaForCausalLM | None:
        """The model with its own modules in place again; None where a weight was changed (pissa and olora do that)."""
        for name, module in self.modules.items():
            if not name:
                continue  # the model itself
            parent_name, _, child = name.rpartition(".")
            parent = self.modules[parent_name]
            if parent._modules.get(child) is not module:
                parent._modules[child] = module
        if _modules(self.model).keys() != self.modules.keys() or _versions(self.model) != self.versions:
            return None
        for name in ("peft_config", "_hf_peft_config_loaded"):
            if name in vars(self.model):  # the class has defaults of its own
                delattr(self.model, name)
        if self.model.is_gradient_checkpointing:
            self.model.gradient_checkpointing_disable()
        for hook in ("_require_grads_hook", "_require_grads_hooks"):
            if hasattr(self.model, hook):
                return None
        self.model.requires_grad_(False)
        self.model.eval()
        return self.model


def _modules(model: torch.nn.Module) -> dict[str, Any]:
    return {name: module for name, module in model.named_modules() if name} | {"": model}


def _versions(model: torch.nn.Module) -> dict[str, tuple[int, int]]:
    """Address and write count of every weight: training an adapter changes neither."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return {name: (tensor.data_ptr(), tensor._version) for name, tensor in tensors}
