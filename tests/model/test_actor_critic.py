"""Two trained models on one base: switching keeps both trainable, and a pass in training is one in evaluation."""

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from finetune.model import ragged
from finetune.model.actor_critic import VALUE, add_value
from finetune.model.adapter import ADAPTER, new_adapter, trainable
from finetune.model.ragged import Layout, ragged_hidden
from finetune.recipe.settings import AdapterSettings

IDS, LAYOUT = torch.arange(12) % 7, Layout.of_rows([5, 7])


def actor_critic(**settings):
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=16,
        initializer_range=0.2, attention_dropout=0.5,
    )  # fmt: skip
    base = LlamaForCausalLM(config).requires_grad_(False)
    ragged.install(base)
    adapted = new_adapter(base, AdapterSettings(rank=2, **settings), seed=3)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(4))
    return add_value(adapted, None)


@torch.no_grad()
def hidden(model):
    return ragged_hidden(model.adapted.get_base_model().model, IDS, LAYOUT)


@pytest.mark.parametrize("saved", [[], ["lm_head", "embed_tokens"]])
def test_switching_keeps_both_trainable_and_apart(saved):
    model = actor_critic(modules_to_save=saved)
    model.act_as(VALUE)
    assert model.value_weights and model.policy_weights
    names = set(trainable(model))
    model.act_as(ADAPTER)
    assert set(trainable(model)) == names
    assert {id(p) for p in trainable(model).values()} == {id(p) for p in (*model.policy_weights, *model.value_weights)}
    policy = hidden(model)
    with torch.no_grad():
        for parameter in model.value_weights:
            parameter += 1.0
    assert torch.equal(hidden(model), policy)
    model.act_as(VALUE)
    assert not torch.equal(hidden(model), policy)


@pytest.mark.parametrize("dora", [False, True])
def test_no_dropout_is_left_to_take_another_way_in_training(dora):
    """A dropout of 0 would be one: DoRA then multiplies by the dequantised weight, not by the layer. The base's own
    dropout is out too."""
    model = actor_critic(dora=dora, dropout=0.3)
    assert not any(isinstance(module, nn.Dropout) for module in model.modules())
    assert torch.equal(hidden(model.train()), hidden(model.eval()))
