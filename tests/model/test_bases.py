"""One base for all stages of a process: loaded once, and whatever a stage did to it, the next finds it as it was."""

import copy
import gc
import weakref
from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from finetune.engine.reference import add_reference
from finetune.model import adapter
from finetune.model import base as base_module
from finetune.model.actor_critic import add_value
from finetune.model.base import choose_precision, load_base
from finetune.model.bases import Bases
from finetune.model.ragged import Layout, ragged_hidden
from finetune.recipe.settings import AdapterSettings

CPU = torch.device("cpu")
LENGTHS = [12, 30, 7]
FP32 = choose_precision("fp32", "auto", CPU)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=128,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def loads(monkeypatch):
    """Every base that is loaded: was the one before it gone by then?"""
    seen = SimpleNamespace(count=0, alive=0, last=None)

    def counted(*args):
        seen.count += 1
        seen.alive += seen.last is not None and seen.last() is not None
        model = load_base(*args)
        seen.last = weakref.ref(model)
        return model

    monkeypatch.setattr(base_module, "load_base", counted)
    return seen


def learn(base, model, steps=2):
    """Two steps of training. Returns the adapter's weights afterwards."""
    ids_T = torch.randint(0, 128, (sum(LENGTHS),), generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.AdamW(adapter.trainable(model).values(), lr=1e-2)
    model.train()
    for _ in range(steps):
        hidden_TD = ragged_hidden(base.model, ids_T, Layout.of_rows(LENGTHS))
        base.lm_head(hidden_TD).float().logsumexp(-1).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return adapter.state(model)


def plain_stage(base):
    """What a stage computes: a fresh adapter with dropout, trained from a known random state."""
    model = adapter.new_adapter(base, AdapterSettings(rank=4, dropout=0.1), seed=5)
    torch.manual_seed(3)
    return learn(base, model)


def as_loaded(base):
    """Names of all modules, their attributes and hooks, flags, and which weights are trained or have gradients."""
    hidden = {"_parameters", "_buffers", "_modules"}
    attributes = {
        name: {key: value for key, value in vars(module).items() if key not in hidden and isinstance(value, bool | int)}
        for name, module in base.named_modules()
    }
    names = {
        name: {key: len(value) if "_hooks" in key else None for key, value in vars(module).items()}
        for name, module in base.named_modules()
    }
    weights = {name: (p.requires_grad, p.grad is None, p.dtype) for name, p in base.named_parameters()}
    return attributes, names, weights, base.config.to_dict()


def equal(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


STAGES = {
    "lora": {},
    "dora": {"dora": True},
    "orthogonal": {"init": "orthogonal"},
    "head trained whole": {"modules_to_save": ["lm_head"]},
    "embeddings trained whole": {"modules_to_save": ["embed_tokens"]},
    "some layers": {"targets": ["q_proj", "layers.1.mlp.down_proj"]},
}


@pytest.mark.parametrize(
    ("name", "load_in"), [*((name, "fp32") for name in STAGES), ("lora", "nf4"), ("dora", "nf4"), ("lora", "int8")]
)
def test_a_stage_leaves_nothing_behind(checkpoint, loads, name, load_in):
    precision = choose_precision(load_in, "auto", CPU)
    fresh = load_base(checkpoint, precision, CPU)
    before = as_loaded(fresh)
    expected = plain_stage(fresh)
    bases = Bases()
    base = bases.get(checkpoint, precision, CPU)
    model = adapter.new_adapter(base, AdapterSettings(rank=4, **STAGES[name]), seed=1)
    if name == "lora":
        base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        assert as_loaded(base)[1]["model.embed_tokens"]["_forward_hooks"] == 1, "transformers leaves a hook"
    learn(base, model)
    again = bases.get(checkpoint, precision, CPU)
    assert again is base
    assert as_loaded(again) == before
    assert equal(plain_stage(again), expected), "to the bit"
    assert loads.count == 1


def test_references_value_models_and_reloads_leave_nothing_behind(checkpoint, loads, tmp_path):
    """All that stages put on the base beside the adapter they train."""
    fresh = load_base(checkpoint, FP32, CPU)
    before = as_loaded(fresh)
    expected = plain_stage(fresh)
    bases = Bases()
    base = bases.get(checkpoint, FP32, CPU)
    settings = AdapterSettings(rank=4, dora=True)
    model = adapter.new_adapter(base, settings, seed=1)
    add_reference(model, None)
    add_value(model, None)
    learn(base, model)
    adapter.save_adapter(model, settings, tmp_path, tmp_path / "work", base_name="b", revision=None)
    adapter.prove_reload(model, tmp_path, torch.arange(sum(LENGTHS)), LENGTHS)
    base = bases.get(checkpoint, FP32, CPU)
    assert as_loaded(base) == before
    model = adapter.open_adapter(base, tmp_path)
    learn(base, model)
    base = bases.get(checkpoint, FP32, CPU)
    assert as_loaded(base) == before
    assert equal(plain_stage(base), expected)
    assert loads.count == 1


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_a_base_that_was_written_to_is_loaded_anew(checkpoint, loads, init):
    """Without `forget` too: pissa gives each layer a new weight, olora writes to it through `.data`."""
    expected = plain_stage(load_base(checkpoint, FP32, CPU))
    bases = Bases()
    base = bases.get(checkpoint, FP32, CPU)
    model = adapter.new_adapter(base, AdapterSettings(rank=4, init=init), seed=1)
    del base, model
    assert equal(plain_stage(bases.get(checkpoint, FP32, CPU)), expected)
    assert (loads.count, loads.alive) == (2, 0)


def changed_in_place(base):
    with torch.no_grad():
        base.model.layers[0].mlp.down_proj.weight.mul_(2)


def merged(base):
    model = adapter.new_adapter(base, AdapterSettings(rank=4), seed=1)
    learn(base, model)
    model.merge_and_unload()


def barely_changed(base):
    base.model.embed_tokens.weight.data[7, 3] += 1e-7


def configured(base):
    base.config.rms_norm_eps = 1.0


@pytest.mark.parametrize("change", [changed_in_place, barely_changed, merged, configured])
def test_what_cannot_be_taken_back_means_loading_anew(checkpoint, loads, change):
    bases = Bases()
    change(bases.get(checkpoint, FP32, CPU))
    again = bases.get(checkpoint, FP32, CPU)
    assert loads.count == 2
    assert equal(dict(again.named_parameters()), dict(load_base(checkpoint, FP32, CPU).named_parameters()))


def test_another_base_lets_the_last_one_go_first(checkpoint, loads):
    bases = Bases()
    for load_in in ("fp32", "nf4", "fp32"):
        base = bases.get(checkpoint, choose_precision(load_in, "auto", CPU), CPU)
        plain_stage(base)
        del base
    assert (loads.count, loads.alive) == (3, 0)


def test_the_last_stages_adapter_is_not_kept_in_memory(checkpoint):
    bases = Bases()
    base = bases.get(checkpoint, FP32, CPU)
    model = adapter.new_adapter(base, AdapterSettings(rank=4), seed=1)
    kept = [weakref.ref(model), *(weakref.ref(weight) for weight in adapter.trainable(model).values())]
    del model, base
    bases.get(checkpoint, FP32, CPU)
    gc.collect()
    assert not [ref for ref in kept if ref() is not None]


def test_a_forgotten_base_is_loaded_anew(checkpoint, loads):
    bases = Bases()
    bases.get(checkpoint, FP32, CPU)
    bases.forget()
    bases.get(checkpoint, FP32, CPU)
    assert (loads.count, loads.alive) == (2, 0)


def test_the_check_sees_differences(checkpoint):
    """That `as_loaded` and `plain_stage` would notice what the tests above rule out."""
    base = load_base(checkpoint, FP32, CPU)
    before, bits = as_loaded(base), plain_stage(copy.deepcopy(base))
    with torch.no_grad():
        base.model.layers[1].mlp.down_proj.weight[0, 0] += 1e-3
    assert not equal(plain_stage(base), bits)
    assert as_loaded(base) != before
