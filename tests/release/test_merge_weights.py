"""The merge formulas, tensor by tensor, against peft's own merge and against numbers one can do by hand."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import merge_utils
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from finetune.errors import BaseModelError, InputError, ProofError
from finetune.model.base import Precision, load_base
from finetune.release import combine
from finetune.release.lora import Update, open_lora
from finetune.release.merge_weights import How, check_finite, plan_merge
from finetune.release.tensors import Entry, checkpoint_files, read_places, write_file, write_index

PLAIN = How("original", "linear", (1.0,), 0.5, None, 0, torch.float32, torch.device("cpu"))
CONFIG = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 96,
    "initializer_range": 0.2,
}


def model(**changes):
    torch.manual_seed(1)
    return LlamaForCausalLM(LlamaConfig(**{**CONFIG, **changes})).eval()


def adapted(base, folder, seed=0, **settings):
    """A LoRA adapter with random weights, saved in `folder`; returns the peft model."""
    torch.manual_seed(seed)
    settings = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **settings}
    peft_model = get_peft_model(base, LoraConfig(**settings))
    with torch.no_grad():
        for name, parameter in peft_model.named_parameters():
            if parameter.requires_grad:
                change = torch.randn(parameter.shape) * 0.1
                parameter.copy_(parameter + change if "magnitude" in name or "modules" in name else change)
    peft_model.save_pretrained(folder, save_embedding_layers=False)
    return peft_model.eval()


def merged_files(base_folder, loras, how, out):
    config = json.loads((base_folder / "config.json").read_text())
    merging = plan_merge(base_folder, config, loras, how)
    out.mkdir()
    for file, entries in merging.files.items():
        write_file(out / file, entries, merging.rounded)
    if len(merging.files) > 1:
        write_index(out, merging.files)
    (out / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": merging.tied}))
    return merging


IDS = torch.arange(40).reshape(2, 20)


@pytest.mark.parametrize(
    ("settings", "tied"),
    [
        ({}, False),
        ({"use_rslora": True}, False),
        ({"use_dora": True}, False),
        ({"rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 8}, "alpha_pattern": {"v_proj": 32}}, False),
        ({"target_modules": ["q_proj", "lm_head"]}, False),
        ({"modules_to_save": ["lm_head"]}, False),
        ({"modules_to_save": ["embed_tokens", "norm"]}, False),
        ({}, True),
    ],
    ids=["lora", "rslora", "dora", "patterns", "head-lora", "head", "embedding", "tied"],
)
def test_a_merge_is_what_peft_merges(tmp_path, settings, tied):
    model(tie_word_embeddings=tied).save_pretrained(tmp_path / "base", max_shard_size="60KB")
    peft_model = adapted(LlamaForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "adapter", **settings)
    merging = merged_files(tmp_path / "base", [open_lora(tmp_path / "adapter")], PLAIN, tmp_path / "merged")
    assert len(merging.files) > 1 and merging.tied == tied
    theirs = peft_model.merge_and_unload()
    ours, report = LlamaForCausalLM.from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    for name, weight in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], weight, rtol=0, atol=1e-6)
    assert (
        (ours.state_dict()["model.layers.0.self_attn.q_proj.weight"])
        .ne(load_base_weight(tmp_path / "base", "model.layers.0.self_attn.q_proj.weight"))
        .any()
    )


def load_base_weight(folder, name):
    return {n: p for file in checkpoint_files(folder) for n, p in read_places(file).items()}[name].read()


@pytest.mark.parametrize(
    "settings",
    [
        {"modules_to_save": ["lm_head"]},
        {"modules_to_save": ["embed_tokens"]},
        {"modules_to_save": ["embed_tokens", "lm_head"]},
        {"target_modules": ["v_proj", "lm_head"]},
    ],
    ids=["head", "embedding", "both", "head-lora"],
)
def test_a_tied_head_that_was_trained_stands_alone(tmp_path, settings):
    """What base and adapter say together is said by the merged model, whichever of the two was trained."""
    model(tie_word_embeddings=True).save_pretrained(tmp_path / "base")
    adapted(LlamaForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "adapter", **settings)
    as_trained = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "adapter")
    merging = merged_files(tmp_path / "base", [open_lora(tmp_path / "adapter")], PLAIN, tmp_path / "merged")
    assert not merging.tied
    ours = LlamaForCausalLM.from_pretrained(tmp_path / "merged").eval()
    with torch.no_grad():
        torch.testing.assert_close(ours(IDS).logits, as_trained.eval()(IDS).logits, rtol=1e-4, atol=1e-4)


def test_both_trained_alike_stay_tied(tmp_path):
    model(tie_word_embeddings=True).save_pretrained(tmp_path / "base")
    adapted(model(tie_word_embeddings=True), tmp_path / "adapter", modules_to_save=["embed_tokens", "lm_head"])
    from safetensors.torch import save_file

    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    tensors["base_model.model.lm_head.weight"] = tensors["base_model.model.model.embed_tokens.weight"].clone()
    save_file(tensors, tmp_path / "adapter" / "adapter_model.safetensors")
    merging = merged_files(tmp_path / "base", [open_lora(tmp_path / "adapter")], PLAIN, tmp_path / "merged")
    assert merging.tied and "lm_head.weight" not in merging.entries


@pytest.mark.parametrize("checkpoint", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
def test_dequantised_values_are_those_of_the_loaded_base(tmp_path, checkpoint, compute):
    """Bit for bit, for every tensor: what load_base(nf4) computes with."""
    model().to(checkpoint).save_pretrained(tmp_path / "base")
    adapted(model(), tmp_path / "adapter", target_modules=["q_proj"])
    how = replace(PLAIN, into="dequantised", compute=compute)
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    merging = plan_merge(tmp_path / "base", config, [open_lora(tmp_path / "adapter")], how)
    held = load_base(tmp_path / "base", Precision("nf4", compute), torch.device("cpu")).dequantize().state_dict()
    assert merging.entries.keys() == held.keys()
    for name in merging.entries:
        assert torch.equal(merging.base_value(name), held[name].float()), name


def two(tmp_path, **settings):
    base = tmp_path / "base"
    model().save_pretrained(base)
    for index in (0, 1):
        adapted(model(), tmp_path / str(index), seed=index + 1, **settings)
    config = json.loads((base / "config.json").read_text())
    loras = [open_lora(tmp_path / "0"), open_lora(tmp_path / "1")]
    return config, loras


def peft_changes(tmp_path, name):
    """Each adapter's change of a tensor, by peft."""
    module = name.removesuffix(".weight")
    return [
        PeftModel.from_pretrained(model(), tmp_path / str(i)).get_submodule(f"base_model.model.{module}")
        for i in (0, 1)
    ]


Q = "model.layers.0.self_attn.q_proj.weight"


def test_linear_is_pefts_cat(tmp_path):
    config, loras = two(tmp_path)
    peft_model = PeftModel.from_pretrained(model(), tmp_path / "0", adapter_name="0")
    peft_model.load_adapter(tmp_path / "1", "1")
    peft_model.add_weighted_adapter(["0", "1"], [0.7, 0.6], "both", combination_type="cat")
    peft_model.set_adapter("both")
    theirs = peft_model.merge_and_unload().state_dict()
    for method in ("linear", "cat"):
        merging = plan_merge(tmp_path / "base", config, loras, replace(PLAIN, method=method, weights=(0.7, 0.6)))
        for name in merging.entries:
            torch.testing.assert_close(merging.value(name), theirs[name], rtol=0, atol=1e-6)


def test_svd_is_the_nearest_of_its_rank(tmp_path):
    config, loras = two(tmp_path)
    changes = [module.get_delta_weight("default").detach() for module in peft_changes(tmp_path, Q)]
    total = 0.5 * changes[0] + 0.5 * changes[1]
    u, values, v = torch.linalg.svd(total)
    for rank, kept in ((None, 4), (2, 2), (8, 8)):
        how = replace(PLAIN, method="svd", weights=(0.5, 0.5), rank=rank)
        merging = plan_merge(tmp_path / "base", config, loras, how)
        nearest = u[:, :kept] * values[:kept] @ v[:kept]
        torch.testing.assert_close(merging.value(Q) - merging.base_value(Q), nearest, rtol=0, atol=2e-6)
    updates = [lora.update(Q) for lora in loras]
    lost = combine.nearest_of_rank(updates, (0.5, 0.5), 2)[1]
    assert lost == pytest.approx(float(values[2:].norm() / values.norm()), rel=1e-3)


def test_ties_is_pefts(tmp_path):
    config, loras = two(tmp_path)
    changes = [module.get_delta_weight("default").detach() for module in peft_changes(tmp_path, Q)]
    how = replace(PLAIN, method="ties", weights=(0.7, 0.4), density=0.3)
    merging = plan_merge(tmp_path / "base", config, loras, how)
    theirs = merge_utils.ties(changes, torch.tensor([0.7, 0.4]), 0.3)
    torch.testing.assert_close(merging.value(Q) - merging.base_value(Q), theirs, rtol=0, atol=2e-6)


def test_ties_by_hand():
    """Trimmed to half: [4, -3, 0, 0] and [-1, 0, 0, 2]; signs of the sums 3, -3, 0, 2; kept 4, -3, nothing, 2."""
    changes = [torch.tensor([4.0, -3.0, 1.0, 0.5]), torch.tensor([-1.0, 0.2, 0.1, 2.0])]
    assert combine.ties(changes, (1.0, 1.0), 0.5).tolist() == [4.0, -3.0, 0.0, 2.0]
    assert combine.ties(changes, (0.5, 0.25), 0.5).tolist() == [2.0, -1.5, 0.0, 0.5]


def test_dare_drops_and_rescales():
    change = torch.ones(10_000)
    found = combine.dare([change], (1.0,), 0.25, "key")
    assert set(found.tolist()) == {0.0, 4.0}
    assert found.mean().item() == pytest.approx(1.0, abs=0.1)
    assert torch.equal(found, combine.dare([change], (1.0,), 0.25, "key"))
    assert not torch.equal(found, combine.dare([change], (1.0,), 0.25, "another"))


def test_slerp_by_hand():
    east, north = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 2.0])
    torch.testing.assert_close(combine.slerp(east, north, 0.5), torch.tensor([math.sqrt(2), math.sqrt(2)]))
    torch.testing.assert_close(combine.slerp(east, north, 1 / 3), 2 * torch.tensor([math.sqrt(3) / 2, 0.5]))
    torch.testing.assert_close(combine.slerp(east, 3 * east, 0.5), 2 * east)  # alike: a straight line
    assert combine.slerp(torch.zeros(2), north, 0.25).tolist() == [0.0, 0.5]


def test_several_dora_adapters_add_what_each_does(tmp_path):
    config, loras = two(tmp_path, use_dora=True)
    ends = []
    for index in (0, 1):
        alone = PeftModel.from_pretrained(model(), tmp_path / str(index)).merge_and_unload()
        ends.append(alone.state_dict()[Q] - model().state_dict()[Q])
    merging = plan_merge(tmp_path / "base", config, loras, replace(PLAIN, weights=(0.5, 0.5)))
    expected = model().state_dict()[Q] + 0.5 * ends[0] + 0.5 * ends[1]
    torch.testing.assert_close(merging.value(Q), expected, rtol=0, atol=2e-6)


def test_update_by_hand():
    """W = 1, A = [1, 2], B = [[1], [0]], scale 2: rows [1+2, 1+4] and [1, 1]."""
    update = Update(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0], [0.0]]), 2.0, None)
    assert update.apply(torch.ones(2, 2)).tolist() == [[3.0, 5.0], [1.0, 1.0]]
    lengths = replace(update, lengths_O=torch.tensor([2 * math.sqrt(34), math.sqrt(2)]))
    torch.testing.assert_close(lengths.apply(torch.ones(2, 2)), torch.tensor([[6.0, 10.0], [1.0, 1.0]]))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"peft_type": "LOHA"}, "peft_type"),
        ({"r": 5}, "rank 4"),
        ({"use_dora": True}, "use_dora"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"lora_alpha": None}, "lora_alpha"),
    ],
)
def test_a_damaged_or_unknown_adapter_config_is_refused(tmp_path, change, said):
    config, _ = two(tmp_path)
    path = tmp_path / "0" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(InputError, match=said):
        plan_merge(tmp_path / "base", config, [open_lora(tmp_path / "0")], PLAIN).value(Q)


def test_an_adapter_of_another_base_is_refused(tmp_path):
    model(hidden_size=32).save_pretrained(tmp_path / "other")
    config, loras = two(tmp_path)
    with pytest.raises(InputError, match="in the base it has"):
        plan_merge(tmp_path / "other", config, loras[:1], PLAIN)
    model(num_hidden_layers=1).save_pretrained(tmp_path / "short")
    with pytest.raises(InputError, match="does not have"):
        plan_merge(tmp_path / "short", config, loras[:1], PLAIN)


def test_cut_files_are_refused(tmp_path):
    two(tmp_path)
    path = tmp_path / "0" / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(InputError, match="cut or damaged"):
        open_lora(tmp_path / "0")
    path.write_bytes(b"PK")
    with pytest.raises(InputError, match="no safetensors file"):
        open_lora(tmp_path / "0")
    (tmp_path / "base" / "model.safetensors").unlink()
    with pytest.raises(BaseModelError, match="no checkpoint"):
        checkpoint_files(tmp_path / "base")


def test_values_that_are_not_finite_are_named():
    with pytest.raises(ProofError, match=r"lm_head.weight .* float16"):
        check_finite("lm_head.weight", torch.tensor([1.0, 1e6]).to(torch.float16))
    check_finite("ids", torch.tensor([1, 2]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int64])
def test_files_are_what_the_library_reads(tmp_path, dtype):
    tensors = {"a.b": torch.arange(6).reshape(2, 3).to(dtype), "empty": torch.zeros(0, 4).to(dtype)}
    entries = [Entry(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()]
    write_file(tmp_path / "x.safetensors", entries, lambda entry: tensors[entry.name])
    theirs = load_file(tmp_path / "x.safetensors")
    ours = {name: place.read() for name, place in read_places(tmp_path / "x.safetensors").items()}
    for name, tensor in tensors.items():
        assert torch.equal(theirs[name], tensor) and torch.equal(ours[name], tensor)


MEMORY = """
import json, sys
from pathlib import Path
import torch
from finetune.release.lora import open_lora
from finetune.release.merge_weights import How, dequantised, plan_merge
from finetune.release.tensors import write_file
folder = Path(sys.argv[1])
how = How(sys.argv[2], "linear", (1.0,), 0.5, None, 0, torch.float32, torch.device("cpu"))
merging = plan_merge(folder / "base", json.loads((folder / "base" / "config.json").read_text()),
                     [open_lora(folder / "adapter")], how)
dequantised(torch.ones(64, 64) @ torch.ones(64, 64), torch.float32, torch.device("cpu"))  # libraries loaded
def status(key):
    line = next(line for line in open("/proc/self/status") if line.startswith(key))
    return int(line.split()[1]) * 1024
Path("/proc/self/clear_refs").write_text("5")  # the highest memory so far was the libraries': begin anew
before = status("VmRSS")
for file, entries in merging.files.items():
    write_file(folder / "out" / file, entries, merging.rounded)
print(json.dumps({"grown": status("VmHWM") - before}))
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the highest memory from Linux's /proc")
@pytest.mark.parametrize("into", ["original", "dequantised"])
def test_memory_stays_near_one_tensor_however_many_shards(tmp_path, subprocess_env, into):
    """Synthetic checkpoints of 2 and of 8 shards of 32 MiB, merged in a process each, by its highest memory."""
    size, rank, grown = 4096, 8, {}
    for layers in (2, 8):
        folder = tmp_path / str(layers)
        for name in ("base", "adapter", "out"):
            (folder / name).mkdir(parents=True)
        names = [f"model.layers.{i}.mlp.up_proj.weight" for i in range(layers)]
        files = {}
        for i, name in enumerate(names):
            file = f"model-{i + 1:05}-of-{layers:05}.safetensors"
            files[file] = [Entry(name, torch.bfloat16, (size, size))]
            write_file(folder / "base" / file, files[file], lambda entry: torch.full(entry.shape, 0.5).bfloat16())
        write_index(folder / "base", files)
        (folder / "base" / "config.json").write_text("{}")
        loras = [
            Entry(f"base_model.model.{name.removesuffix('.weight')}.lora_{part}.weight", torch.float32, shape)
            for name in names
            for part, shape in (("A", (rank, size)), ("B", (size, rank)))
        ]
        write_file(folder / "adapter" / "adapter_model.safetensors", loras, lambda entry: torch.ones(entry.shape))
        settings = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "bias": "none"}
        (folder / "adapter" / "adapter_config.json").write_text(json.dumps(settings))
        done = subprocess.run(
            [sys.executable, "-c", MEMORY, str(folder), into],
            capture_output=True,
            text=True,
            env=subprocess_env,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        grown[layers] = json.loads(done.stdout)["grown"]
        first = read_places(folder / "out" / next(iter(files)))[names[0]].read()
        assert torch.equal(first, torch.full((size, size), 0.5 + rank).bfloat16())  # ranks of 1 x 1, scale 1
    tensor = size * size * 4
    # In float32: base value, product, sum; the base's and the rounded copy in bf16. bitsandbytes takes some more.
    # Six more shards, held, would be 3 tensors in bf16, 6 in float32.
    most, more = {"original": (4.5, 0.5), "dequantised": (5.5, 1.0)}[into]
    assert grown[8] < most * tensor, grown
    assert grown[8] < grown[2] + more * tensor, grown
