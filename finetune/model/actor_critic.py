"""PPO's two trained models on one base: the policy, which is the run's adapter, and the value model beside it.

The value model is an adapter and a scalar head with a bias. It starts as the reward model, whose judgement of an answer
so far is a fair guess at what the whole will earn; where a checker judges, as a copy of the policy under a head of 0.
"""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor, nn

from finetune.model.adapter import ADAPTER
from finetune.model.reward import attach

VALUE = "value"


class ActorCritic(nn.Module):
    """adapted: base with the adapters. head: of the value model, [1, D] and a bias, float32.

    Activating one of the two leaves both trainable: peft's own switch would freeze the other.
    """

    def __init__(self, adapted: PeftModel, head: nn.Linear) -> None:
        super().__init__()
        self.adapted = adapted
        self.head = head
        named = list(adapted.named_parameters())
        self.policy_weights = [p for name, p in named if p.requires_grad and f".{VALUE}." not in name]
        self.value_weights = [p for name, p in named if f".{VALUE}." in name] + list(head.parameters())
        self.act_as(ADAPTER)

    def act_as(self, name: str) -> None:
        """Make ADAPTER (the policy) or VALUE the active adapter."""
        weights = (*self.policy_weights, *self.value_weights)
        if self.adapted.active_adapter == name and all(parameter.requires_grad for parameter in weights):
            return
        self.adapted.set_adapter(name)
        for parameter in weights:
            parameter.requires_grad_(True)

    def values(self, hidden_TD: Tensor, positions_N: Tensor) -> Tensor:
        """[N] float32 values of the states that end at positions_N of the T hidden states."""
        with torch.autocast(hidden_TD.device.type, enabled=False):
            values_N: Tensor = self.head(hidden_TD.index_select(0, positions_N).float()).squeeze(1)
        return values_N

    @torch.no_grad()
    def rescale_values(self, mean: float, deviation: float) -> None:
        """From here on the values are (what they were - mean) / deviation."""
        self.head.weight /= deviation
        self.head.bias.copy_((self.head.bias - mean) / deviation)


def add_value(adapted: PeftModel, reward: Path | None) -> ActorCritic:
    """Put the value model beside the policy, which is active and trainable. reward: the reward adapter to start from.

    Raises InputError where that does not fit the base.
    """
    head = nn.Linear(adapted.config.hidden_size, 1, device=adapted.device)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    if reward is not None:
        trained = [p for p in adapted.parameters() if p.requires_grad]
        source = attach(adapted, reward, VALUE)
        with torch.no_grad():
            head.weight.copy_(source.weight)
        for parameter in trained:
            parameter.requires_grad_(True)
    else:
        config = copy.deepcopy(adapted.peft_config[ADAPTER])
        config.init_lora_weights = True
        config.modules_to_save = [name for name in config.modules_to_save or [] if name != "lm_head"] or None
        weights = get_peft_model_state_dict(adapted, adapter_name=ADAPTER, save_embedding_layers=False)
        adapted.add_adapter(VALUE, config)
        own = {name: tensor for name, tensor in weights.items() if "lm_head" not in name or "lora_" in name}
        set_peft_model_state_dict(adapted, own, adapter_name=VALUE)
        adapted.set_adapter(ADAPTER)
    without_dropout(adapted)
    return ActorCritic(adapted, head)


def without_dropout(model: nn.Module) -> None:
    """Take every dropout out: the ratio of a policy to itself would be noise with it, as in TRL and trlX.

    A dropout of 0 would not do: before one, DoRA multiplies with the dequantised weight instead of by the layer, which
    on a GPU rounds otherwise than the reference in eval mode does.
    """
    for module in list(model.modules()):
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0  # from the base's config.json, where it is hardly ever anything else
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Dropout):
                setattr(module, name, nn.Identity())
