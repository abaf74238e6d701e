"""The base in memory, shared by the stages of one process: loaded once, handed on without the last stage's adapters.

peft puts its layers where the base's stood and keeps those inside its own, and what trains leaves flags and hooks on
modules. All of that is taken back, module by module; where a weight itself was written to, the base is loaded anew.
"""

from __future__ import annotations

import gc
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # a Job is made before torch is imported
    import torch
    from transformers import LlamaForCausalLM

    from finetune.model.base import Precision

_TENSORS = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")
"""Attributes of a module that are looked at by content: children are put back, weights are compared."""


class Bases:
    """At most one base at a time: asking for another lets the last one go."""

    def __init__(self) -> None:
        self._held: _Held | None = None

    def forget(self) -> None:
        """Let the base go: a weight of it is about to change, or somebody else's trainer was on it."""
        self._held = None

    def get(self, folder: Path, precision: Precision, device: torch.device) -> LlamaForCausalLM:
        """The base of `folder`, frozen, in eval mode, without any adapter; loaded only where it is not held.

        The caller of the last `get` must be done with its model. Raises BaseModelError as load_base does.
        """
        from finetune.model.base import load_base

        key = (folder.resolve(), precision, device)
        if self._held is not None and self._held.key == key and self._held.clean():
            gc.collect()  # the last stage's adapters: peft's objects know each other, and go only so
            return self._held.model
        self._held = None  # before the next one is loaded: never two in memory
        gc.collect()
        model = load_base(folder, precision, device)
        self._held = _Held.of(key, model)
        return model


@dataclass
class _Held:
    """The model as it was when it was loaded. modules: all of them, by name. attributes, hooks: of each module.

    weights: shape, type and sum of the bits of each. config: its content.
    """

    key: tuple[Any, ...]
    model: LlamaForCausalLM
    modules: dict[str, torch.nn.Module]
    attributes: dict[str, dict[str, Any]]
    hooks: dict[str, dict[str, dict[Any, Any]]]
    weights: dict[str, tuple[Any, ...]]
    config: dict[str, Any]

    @classmethod
    def of(cls, key: tuple[Any, ...], model: LlamaForCausalLM) -> _Held:
        modules = dict(model.named_modules())
        attributes = {name: _attributes(module) for name, module in modules.items()}
        hooks = {name: _hooks(module) for name, module in modules.items()}
        return cls(key, model, modules, attributes, hooks, _weights(model), model.config.to_dict())

    def clean(self) -> bool:
        """Make the model what it was when it was loaded. False where that cannot be done."""
        for name, module in self.modules.items():
            parent, _, child = name.rpartition(".")
            if name and self.modules[parent]._modules.get(child) is not module:
                self.modules[parent]._modules[child] = module
        if dict(self.model.named_modules()).keys() != self.modules.keys() or _weights(self.model) != self.weights:
            return False
        for name, module in self.modules.items():
            own, was = vars(module), self.attributes[name]
            for added in _attributes(module).keys() - was.keys():
                del own[added]
            own.update(was)  # training mode, gradient checkpointing, what a layer notes of its first input
            for sort, hooks in self.hooks[name].items():
                own[sort].clear()
                own[sort].update(hooks)
        self.model.requires_grad_(False)
        return bool(self.model.config.to_dict() == self.config)


def _attributes(module: torch.nn.Module) -> dict[str, Any]:
    return {key: value for key, value in vars(module).items() if key not in _TENSORS and not _is_hooks(key, value)}


def _hooks(module: torch.nn.Module) -> dict[str, dict[Any, Any]]:
    """A copy of what is hooked to a module: torch keeps each sort of hook in a dict of its own."""
    return {key: dict(value) for key, value in vars(module).items() if _is_hooks(key, value)}


def _is_hooks(key: str, value: Any) -> bool:
    return "_hooks" in key and isinstance(value, dict)


def _weights(model: torch.nn.Module) -> dict[str, tuple[Any, ...]]:
    """Shape, type and sum of the bits of every weight and buffer.

    peft writes through `.data`, which neither moves a weight nor counts as a write, so only the content tells. A pass
    over 8B parameters in 4 bits takes about a second on a CPU.
    """
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return {name: (tensor.shape, tensor.dtype, _sum_of_bits(tensor.detach())) for name, tensor in tensors}


def _sum_of_bits(tensor: torch.Tensor) -> int:
    import torch

    flat = tensor.contiguous().view(-1).view(torch.uint8)
    whole = flat.numel() // 8 * 8  # read as int64, whose sum wraps round and needs no copy
    return int(flat[:whole].view(torch.int64).sum().item()) + int(flat[whole:].sum().item())
