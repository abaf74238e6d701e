"""Loading a base: every way to hold it, and the bitsandbytes trap on CPUs with AVX512-BF16."""

import copy
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from finetune.errors import BaseModelError, InputError
from finetune.model import adapter
from finetune.model.base import choose_precision, describe, keep_bitsandbytes_exact, load_base
from finetune.model.ragged import Layout, ragged_hidden
from finetune.recipe.settings import AdapterSettings

CPU = torch.device("cpu")
LENGTHS = [12, 30, 7]


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


def ids():
    return torch.randint(0, 128, (sum(LENGTHS),), generator=torch.Generator().manual_seed(1))


def gradients(base, model):
    model.zero_grad()
    hidden = ragged_hidden(base.model, ids(), Layout.of_rows(LENGTHS))
    base.lm_head(hidden).float().logsumexp(-1).sum().backward()
    return {name: p.grad.clone() for name, p in adapter.trainable(model).items()}


@pytest.mark.parametrize("load_in", ["nf4", "int8", "bf16", "fp32"])
def test_every_way_to_hold_it_trains_saves_and_reloads_exactly(checkpoint, tmp_path, load_in):
    precision = choose_precision(load_in, "auto", CPU)
    base = load_base(checkpoint, precision, CPU)
    assert load_in in describe(base, precision, CPU)
    settings = AdapterSettings(rank=4)
    model = adapter.new_adapter(base, settings, seed=5)
    before = adapter.state(model)
    optimizer = torch.optim.AdamW(adapter.trainable(model).values(), lr=1e-2)
    for _ in range(2):
        gradients(base, model)
        optimizer.step()
    after = adapter.state(model)
    assert all(not torch.equal(before[name], after[name]) for name in before), "a parameter did not move"
    (tmp_path / "out").mkdir()
    adapter.save_adapter(model, settings, tmp_path / "out", tmp_path, base_name="org/base", revision="abc")
    proof = adapter.prove_reload(model, tmp_path / "out", ids(), LENGTHS)
    assert proof["max_abs_difference"] == 0.0 and proof["rows"] == 3
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "org/base" and config["revision"] == "abc"


def test_nf4_gradients_survive_an_evaluation(checkpoint):
    """Fails without keep_bitsandbytes_exact on a CPU with AVX512-BF16: the gradient is then off by more than half."""
    base = load_base(checkpoint, choose_precision("nf4", "fp32", CPU), CPU)
    model = adapter.new_adapter(base, AdapterSettings(rank=4, init="gaussian"), seed=5)
    for parameter in adapter.trainable(model).values():
        torch.nn.init.normal_(parameter, std=0.1)
    model.train()
    before = gradients(base, model)
    model.eval()
    with torch.no_grad():
        ragged_hidden(base.model, ids(), Layout.of_rows(LENGTHS))
    model.train()
    after = gradients(base, model)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_int8_computes_the_same_in_eval_mode_as_in_training(checkpoint):
    """bitsandbytes' own layer does not, on a CPU: a reference in eval mode would be off from its policy."""
    base = load_base(checkpoint, choose_precision("int8", "fp32", CPU), CPU)
    found = {}
    with torch.no_grad():
        for training in (True, False, True):
            base.train(training)
            found.setdefault(training, []).append(ragged_hidden(base.model, ids(), Layout.of_rows(LENGTHS)))
    assert torch.equal(found[True][0], found[False][0])
    assert torch.equal(found[True][0], found[True][1])


def test_the_trap_is_what_we_think_it_is(checkpoint):
    """The workaround in reverse: with bitsandbytes' flag left on, the same evaluation spoils the gradients."""
    import bitsandbytes

    base = load_base(checkpoint, choose_precision("nf4", "bf16", CPU), CPU)
    linears = [m for m in base.modules() if isinstance(m, bitsandbytes.nn.Linear4bit)]
    assert linears and all(m.support_avx512bf16_for_cpu is False for m in linears)
    from bitsandbytes.functional import has_avx512bf16

    if not has_avx512bf16():
        pytest.skip("this CPU has no AVX512-BF16: bitsandbytes does not repack here")
    model = adapter.new_adapter(base, AdapterSettings(rank=4), seed=5)
    for parameter in adapter.trainable(model).values():
        torch.nn.init.normal_(parameter, std=0.1)
    with torch.autocast("cpu", torch.bfloat16):
        before = gradients(base, model)
    for module in linears:
        module.support_avx512bf16_for_cpu = True
    model.eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        ragged_hidden(base.model, ids(), Layout.of_rows(LENGTHS))
    model.train()
    with torch.autocast("cpu", torch.bfloat16):
        after = gradients(base, model)
    error = sum((after[n] - before[n]).norm() ** 2 for n in before) ** 0.5
    assert error > 0.1 * sum(g.norm() ** 2 for g in before.values()) ** 0.5


def test_double_quantisation_is_on(checkpoint):
    base = load_base(checkpoint, choose_precision("nf4", "auto", CPU), CPU)
    state = base.model.layers[0].self_attn.q_proj.weight.quant_state
    assert state.nested and state.quant_type == "nf4"


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_an_init_that_changes_the_base_is_saved_for_the_untouched_base(checkpoint, tmp_path, init):
    precision = choose_precision("fp32", "auto", CPU)
    base = load_base(checkpoint, precision, CPU)
    settings = AdapterSettings(rank=4, init=init)
    model = adapter.new_adapter(base, settings, seed=5)
    adapter.keep_initial(model, settings, tmp_path)
    optimizer = torch.optim.AdamW(adapter.trainable(model).values(), lr=1e-3)
    gradients(base, model)
    optimizer.step()
    (tmp_path / "out").mkdir()
    adapter.save_adapter(model, settings, tmp_path / "out", tmp_path, base_name="b", revision=None)
    proof = adapter.prove_reload(model, tmp_path / "out", ids(), LENGTHS, fresh=load_base(checkpoint, precision, CPU))
    assert proof["max_abs_difference"] < 1e-3


def test_a_damaged_adapter_is_not_proven(checkpoint, tmp_path):
    from finetune.errors import ProofError

    base = load_base(checkpoint, choose_precision("fp32", "auto", CPU), CPU)
    settings = AdapterSettings(rank=4)
    model = adapter.new_adapter(base, settings, seed=5)
    for parameter in adapter.trainable(model).values():
        torch.nn.init.normal_(parameter, std=0.1)
    adapter.save_adapter(model, settings, tmp_path, tmp_path, base_name="b", revision=None)
    weights = load_file(tmp_path / "adapter_model.safetensors")
    name = sorted(weights)[0]
    weights[name] = weights[name] + 0.01
    save_file(weights, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ProofError, match="nothing was released"):
        adapter.prove_reload(model, tmp_path, ids(), LENGTHS)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (AdapterSettings(targets=["q_proj", "z_proj"]), "'z_proj' names no linear layer"),
        (AdapterSettings(targets=r".*vision.*q_proj"), "matches no linear layer"),
        (AdapterSettings(targets=r"(unclosed"), "not a regular expression"),
        (AdapterSettings(modules_to_save=["score"]), "no module 'score'"),
    ],
)
def test_a_target_that_gets_nothing_is_an_error(checkpoint, settings, expected):
    base = load_base(checkpoint, choose_precision("fp32", "auto", CPU), CPU)
    with pytest.raises(InputError, match=expected.replace("(", r"\(")):
        adapter.new_adapter(base, settings, seed=1)


def test_targets_choose_what_is_trained(checkpoint):
    def adapted(targets, **more):
        base = load_base(checkpoint, choose_precision("fp32", "auto", CPU), CPU)
        model = adapter.new_adapter(base, AdapterSettings(rank=2, targets=targets, **more), seed=1)
        return adapter.trainable(model)

    assert len(adapted("all-linear")) == 2 * 7 * 2
    assert {name.split(".")[-4] for name in adapted(["q_proj", "v_proj"])} == {"q_proj", "v_proj"}
    assert all("layers.1." in name for name in adapted(r".*layers\.1\..*(q|k)_proj"))
    assert any("lm_head" in name for name in adapted("all-linear", modules_to_save=["lm_head"]))
    assert any("magnitude" in name for name in adapted("all-linear", dora=True))


def test_the_seed_alone_decides_the_first_weights(checkpoint):
    def first(seed, noise):
        base = load_base(checkpoint, choose_precision("fp32", "auto", CPU), CPU)
        torch.rand(noise)
        return adapter.state(adapter.new_adapter(base, AdapterSettings(rank=2), seed=seed))

    one, same, other = first(1, 1), first(1, 99), first(2, 1)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_a_checkpoint_with_missing_weights_is_refused(checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "cut")
    weights = load_file(tmp_path / "cut" / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "cut" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BaseModelError, match=r"lacks 1 weights, such as model\.layers\.1\.mlp\.up_proj"):
        load_base(tmp_path / "cut", choose_precision("fp32", "auto", CPU), CPU)


def test_a_truncated_checkpoint_is_refused(checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "cut")
    path = tmp_path / "cut" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(BaseModelError, match="could not be loaded"):
        load_base(tmp_path / "cut", choose_precision("fp32", "auto", CPU), CPU)


def test_keeping_bitsandbytes_exact_touches_nothing_else(checkpoint):
    base = load_base(checkpoint, choose_precision("fp32", "auto", CPU), CPU)
    weights = copy.deepcopy(base.state_dict())
    keep_bitsandbytes_exact(base)
    assert all(torch.equal(weights[name], value) for name, value in base.state_dict().items())
