"""The ragged forward equals the padded one: hidden states and every LoRA gradient, to 1e-5 relative in float32."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from finetune.model import ragged


def tiny(kv_heads=2, seed=0, **changes):
    torch.manual_seed(seed)
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        vocab_size=97,
        max_position_embeddings=256,
        **changes,
    )
    model = LlamaForCausalLM(config)
    peft = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    ragged.install(model)
    return model, peft


def forward_and_gradients(model, peft, hidden, ids, lengths):
    peft.zero_grad()
    states = hidden(model.model, ids, lengths)
    direction = torch.randn(states.shape, generator=torch.Generator().manual_seed(3))
    (states * direction).sum().backward()
    return states.detach(), {name: p.grad.clone() for name, p in peft.named_parameters() if p.requires_grad}


def relative(a, b):
    return ((a - b).norm() / b.norm().clamp_min(1e-12)).item()


@settings(max_examples=20, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=7),
    kv_heads=st.sampled_from([1, 2, 4]),
    seed=st.integers(0, 1000),
    recompute=st.booleans(),
)
def test_equals_the_padded_forward(lengths, kv_heads, seed, recompute):
    model, peft = tiny(kv_heads, seed)
    peft.train()
    if recompute:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    ids = torch.randint(0, 97, (sum(lengths),))
    flat, flat_gradients = forward_and_gradients(model, peft, ragged.ragged_hidden, ids, lengths)
    wide, wide_gradients = forward_and_gradients(model, peft, ragged.padded_hidden, ids, lengths)
    assert relative(flat, wide) < 1e-5
    # A row of one token gives attention no choice, so q and k get no gradient: compared in absolute size there.
    scale = max(g.norm().item() for g in wide_gradients.values())
    for name, gradient in wide_gradients.items():
        assert (flat_gradients[name] - gradient).norm() < 1e-5 * max(gradient.norm().item(), 1e-2 * scale), name


@pytest.mark.parametrize("rope", [{"rope_type": "default", "rope_theta": 1e4}, {
    "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}])  # fmt: skip
def test_each_row_equals_the_row_alone(rope):
    model, _peft = tiny(rope_parameters=rope)
    model.eval()
    lengths = [5, 1, 33, 12]
    ids = torch.randint(0, 97, (sum(lengths),))
    together = ragged.ragged_hidden(model.model, ids, lengths).split(lengths)
    for row, states in zip(ids.split(lengths), together, strict=True):
        alone = model.model(input_ids=row[None], use_cache=False).last_hidden_state[0]
        assert relative(states, alone) < 1e-5


def test_no_document_sees_another():
    model, _peft = tiny()
    model.eval()
    lengths = [7, 20, 9]
    ids = torch.randint(0, 97, (sum(lengths),))
    before = ragged.ragged_hidden(model.model, ids, lengths)
    changed = ids.clone()
    changed[7:27] = (changed[7:27] + 1) % 97
    after = ragged.ragged_hidden(model.model, changed, lengths)
    assert torch.equal(before[:7], after[:7]) and torch.equal(before[27:], after[27:])
    assert not torch.equal(before[7:27], after[7:27])


def test_ordinary_forwards_are_transformers_own():
    model, _peft = tiny()
    model.eval()
    ids = torch.randint(0, 97, (2, 11))
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    installed = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    model.set_attn_implementation("sdpa")
    assert torch.equal(installed, model(input_ids=ids, attention_mask=mask, use_cache=False).logits)


def test_lengths_have_to_cover_the_tokens():
    model, _peft = tiny()
    with pytest.raises(ValueError, match="sum to 5"):
        ragged.ragged_hidden(model.model, torch.zeros(6, dtype=torch.long), [2, 3])


def test_no_mask_of_tokens_by_tokens_is_built():
    """16K tokens: a T x T mask alone would take 256 MiB as booleans and 1 GiB as floats."""
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            for value in result if isinstance(result, tuple | list) else (result,):
                if isinstance(value, torch.Tensor):
                    largest = max(largest, value.numel())
            return result

    model, _peft = tiny()
    model.eval()
    lengths = [64] * 256
    with torch.no_grad(), Watch():
        ragged.ragged_hidden(model.model, torch.zeros(16384, dtype=torch.long), lengths)
    assert 0 < largest <= 16384 * 97  # nothing wider than [T, vocabulary], far below T x T
