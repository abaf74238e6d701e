"""The ragged forward equals the padded one: hidden states and every LoRA gradient, to 1e-5 relative in float32."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from finetune.model import ragged
from finetune.model.ragged import Layout, lay_out


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
    states = hidden(model.model, ids, Layout.of_rows(lengths))
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
    together = ragged.ragged_hidden(model.model, ids, Layout.of_rows(lengths)).split(lengths)
    for row, states in zip(ids.split(lengths), together, strict=True):
        alone = model.model(input_ids=row[None], use_cache=False).last_hidden_state[0]
        assert relative(states, alone) < 1e-5


def test_no_document_sees_another():
    model, _peft = tiny()
    model.eval()
    lengths = [7, 20, 9]
    ids = torch.randint(0, 97, (sum(lengths),))
    before = ragged.ragged_hidden(model.model, ids, Layout.of_rows(lengths))
    changed = ids.clone()
    changed[7:27] = (changed[7:27] + 1) % 97
    after = ragged.ragged_hidden(model.model, changed, Layout.of_rows(lengths))
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


def test_the_layout_has_to_cover_the_tokens():
    model, _peft = tiny()
    with pytest.raises(ValueError, match="has 5 tokens"):
        ragged.ragged_hidden(model.model, torch.zeros(6, dtype=torch.long), Layout.of_rows([2, 3]))


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
        ragged.ragged_hidden(model.model, torch.zeros(16384, dtype=torch.long), Layout.of_rows(lengths))
    assert 0 < largest <= 16384 * 97  # nothing wider than [T, vocabulary], far below T x T


def families(prefixes, suffixes, seed):
    """Rows in groups: each group's rows share at least its prefix."""
    generator = np.random.default_rng(seed)
    rows, groups = [], []
    for prefix, own in zip(prefixes, suffixes, strict=False):
        shared = generator.integers(0, 97, prefix)
        groups.append(range(len(rows), len(rows) + len(own)))
        rows += [np.concatenate([shared, generator.integers(0, 97, length)]) for length in own]
    return rows, groups


@settings(max_examples=20, deadline=None)
@given(
    prefixes=st.lists(st.integers(0, 30), min_size=1, max_size=4),
    suffixes=st.lists(st.lists(st.integers(1, 20), min_size=1, max_size=4), min_size=4, max_size=4),
    kv_heads=st.sampled_from([1, 2, 4]),
    seed=st.integers(0, 1000),
    recompute=st.booleans(),
)
def test_shared_prefixes_equal_whole_rows(prefixes, suffixes, kv_heads, seed, recompute):
    model, peft = tiny(kv_heads, seed)
    peft.train()
    if recompute:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    rows, groups = families(prefixes, suffixes, seed)
    laid = lay_out(rows, groups)
    assert all((laid.ids[where] == row).all() for row, where in zip(rows, laid.where, strict=True))
    where = torch.from_numpy(np.concatenate(laid.where))
    whole = torch.from_numpy(np.concatenate(rows))
    lengths = [len(row) for row in rows]

    def shared_hidden(decoder, ids, layout):
        return ragged.ragged_hidden(decoder, torch.from_numpy(laid.ids), laid.layout)[where]

    flat, flat_gradients = forward_and_gradients(model, peft, shared_hidden, whole, lengths)
    wide, wide_gradients = forward_and_gradients(model, peft, ragged.padded_hidden, whole, lengths)
    assert relative(flat, wide) < 1e-5
    scale = max(g.norm().item() for g in wide_gradients.values())
    for name, gradient in wide_gradients.items():
        assert (flat_gradients[name] - gradient).norm() < 1e-5 * max(gradient.norm().item(), 1e-2 * scale), name


def test_prefixes_by_hand():
    a, b, c = np.array([1, 2, 3, 4]), np.array([1, 2, 9]), np.array([1, 2, 3, 4])
    laid = lay_out([a, b, c], [[0, 1], [2]])
    # a and b share 1 2; c belongs to no group with them and is whole.
    assert laid.ids.tolist() == [1, 2, 3, 4, 9, 1, 2, 3, 4]
    assert [w.tolist() for w in laid.where] == [[0, 1, 2, 3], [0, 1, 4], [5, 6, 7, 8]]
    assert [(s.start, s.length, s.prefix) for s in laid.layout.segments] == [
        (0, 2, None), (2, 2, 0), (4, 1, 0), (5, 4, None),
    ]  # fmt: skip
    assert laid.layout.positions(torch.device("cpu")).tolist() == [[0, 1, 2, 3, 2, 0, 1, 2, 3]]


def test_rows_that_are_alike_keep_a_token_each():
    laid = lay_out([np.array([5, 6, 7]), np.array([5, 6, 7]), np.array([5, 6, 7, 8])], [[0, 1, 2]])
    assert laid.layout.lengths == (2, 1, 1, 2)


def test_siblings_do_not_see_each_other():
    model, _peft = tiny()
    model.eval()
    prompt = np.arange(10)
    rows = [np.concatenate([prompt, [50, 51, 52]]), np.concatenate([prompt, [60, 61]])]
    changed = [np.concatenate([prompt, [70, 71, 72]]), rows[1]]
    before, after = (
        ragged.ragged_hidden(model.model, torch.from_numpy(laid.ids), laid.layout)
        for laid in (lay_out(rows, [[0, 1]]), lay_out(changed, [[0, 1]]))
    )
    assert torch.equal(before[:10], after[:10]) and torch.equal(before[13:], after[13:])
    assert not torch.equal(before[10:13], after[10:13])


def test_long_suffixes_go_in_blocks_of_queries():
    model, _peft = tiny()
    model.eval()
    generator = np.random.default_rng(0)
    prompt = generator.integers(0, 97, 40)
    rows = [np.concatenate([prompt, generator.integers(0, 97, n)]) for n in (ragged.QUERY_BLOCK + 300, 7)]
    laid = lay_out(rows, [[0, 1]])
    assert [len(blocks) for blocks in laid.layout.masks.values()] == [2, 1]
    hidden = ragged.ragged_hidden(model.model, torch.from_numpy(laid.ids), laid.layout)
    for row, where in zip(rows, laid.where, strict=True):
        alone = model.model(input_ids=torch.from_numpy(row)[None], use_cache=False).last_hidden_state[0]
        assert relative(hidden[torch.from_numpy(where)], alone) < 1e-5


def test_a_4bit_base_with_two_adapters(tmp_path):
    """Shared prefixes on nf4, with adapters switched by name: each gives what whole rows give."""
    from peft import LoraConfig as Config

    from finetune.model.base import choose_precision, load_base

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=97,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    cpu = torch.device("cpu")
    base = load_base(tmp_path, choose_precision("nf4", "fp32", cpu), cpu)
    peft = get_peft_model(base, Config(r=4, target_modules="all-linear", init_lora_weights=False))
    peft.add_adapter("other", Config(r=2, target_modules="all-linear", init_lora_weights=False))
    rows, groups = families([12, 5], [[3, 9, 1], [4, 4]], 1)
    laid = lay_out(rows, groups)
    results = {}
    for name in ("default", "other"):
        peft.set_adapter(name)
        shared = ragged.ragged_hidden(base.model, torch.from_numpy(laid.ids), laid.layout)
        results[name] = shared[torch.from_numpy(np.concatenate(laid.where))]
        whole = Layout.of_rows([len(row) for row in rows])
        padded = ragged.padded_hidden(base.model, torch.from_numpy(np.concatenate(rows)), whole)
        assert relative(results[name], padded) < 1e-5
    assert relative(results["default"], results["other"]) > 1e-2
