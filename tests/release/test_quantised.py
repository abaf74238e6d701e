"""4-bit exports: the packed layouts by hand, and what auto-round writes read, loaded and compared."""

from __future__ import annotations

import importlib.util
import json
import shutil

import pytest
import torch
from release_lab import manifest_of
from safetensors.torch import load_file, save_file
from stage_recipes import write_jsonl
from test_gguf import checkpoint

from finetune.cli.main import main
from finetune.durable import describe_files
from finetune.errors import InputError, ProofError
from finetune.release import quantised
from finetune.release.merge_proof import load_merged, log_probs
from finetune.release.packed import unpack

HAS_AUTO_ROUND = importlib.util.find_spec("auto_round") is not None
HAS_KERNELS = importlib.util.find_spec("auto_round_kernel") is not None
needs_auto_round = pytest.mark.skipif(not HAS_AUTO_ROUND, reason="needs auto-round (pip install finetune[quantise])")
ROWS = [list(range(3, 40)), [1, 5, 9, 200, 300]]


def run(capsys, *args):
    capsys.readouterr()
    code = main([str(arg) for arg in args])
    printed = capsys.readouterr()
    return code, printed.out + printed.err


@pytest.fixture(scope="module")
def merged(lab, tmp_path_factory):
    from release_lab import run_of

    place = tmp_path_factory.mktemp("merged") / "sft"
    assert main(["merge", str(run_of(lab, "plain", "sft")), "--out", str(place)]) == 0
    return place


def int32(nibbles):
    """Eight 4-bit numbers, the lowest bits first, as an int32."""
    value = sum(nibble << (4 * place) for place, nibble in enumerate(nibbles))
    return value - 2**32 if value >= 2**31 else value


def test_awq_layout_by_hand():
    """Two inputs, one group; outputs 0 to 7 lie in the order 0, 2, 4, 6, 1, 3, 5, 7."""
    rows = ([15, 1, 2, 3, 4, 5, 6, 7], [8, 9, 10, 11, 12, 13, 14, 15])
    packed = [[int32([row[i] for i in (0, 2, 4, 6, 1, 3, 5, 7)])] for row in rows]
    parts = {
        "qweight": torch.tensor(packed, dtype=torch.int32),
        "qzeros": torch.tensor([[int32([0, 2, 4, 6, 1, 3, 5, 7])]], dtype=torch.int32),  # zero point = output
        "scales": torch.tensor([[0.5, 1, 1, 1, 1, 1, 1, 2]], dtype=torch.float16),
    }
    found = unpack(parts, "awq", 2)
    assert found.weight_OI.T.tolist() == [[7.5, 0, 0, 0, 0, 0, 0, 0], [4, 8, 8, 8, 8, 8, 8, 16]]
    assert found.step_OI[:, 0].tolist() == [0.5, 1, 1, 1, 1, 1, 1, 2]


def test_gptq_layout_by_hand():
    """Eight inputs in two groups, eight outputs; a zero point of 8 is held as 7."""
    columns = [[i, 15 - i, *[8] * 6] for i in range(8)]
    parts = {
        "qweight": torch.tensor([[int32([row[o] for row in columns]) for o in range(8)]], dtype=torch.int32),
        "qzeros": torch.full((2, 1), int32([7] * 8), dtype=torch.int32),
        "scales": torch.tensor([[1.0] * 8, [0.5] * 8], dtype=torch.float16),
    }
    weight_OI = unpack(parts, "gptq", 4).weight_OI
    assert weight_OI[0].tolist() == [-8, -7, -6, -5, -2, -1.5, -1, -0.5]
    assert weight_OI[1].tolist() == [7, 6, 5, 4, 1.5, 1, 0.5, 0] and not weight_OI[2:].any()
    mixed = {**parts, "g_idx": torch.tensor([1, 0, 1, 0, 1, 0, 1, 0])}
    assert unpack(mixed, "gptq", 4).weight_OI[0].tolist() == [-4, -7, -3, -5, -2, -3, -1, -1]
    with pytest.raises(ProofError, match="do not fit"):
        unpack({**parts, "scales": parts["scales"][:1]}, "gptq", 4)
    with pytest.raises(ProofError, match="inputs of groups"):
        unpack({**mixed, "g_idx": torch.full((8,), 2)}, "gptq", 4)


def test_the_group_is_the_largest_that_all_layers_allow(tmp_path):
    places = quantised._places(checkpoint(tmp_path / "m"))
    assert quantised._choose_group(places, None) == (64, [])
    assert quantised._choose_group(places, 32) == (32, [])
    with pytest.raises(InputError, match="the layers allow g64, g32"):
        quantised._choose_group(places, 128)
    odd = quantised._places(checkpoint(tmp_path / "odd", intermediate_size=172))
    group, kept = quantised._choose_group(odd, None)
    assert group == 64 and len(kept) == 6 and kept[0] == "model.layers.0.mlp.down_proj"
    tiny = checkpoint(tmp_path / "tiny", hidden_size=40, intermediate_size=40)
    with pytest.raises(InputError, match="multiples of 32"):
        quantised._choose_group(quantised._places(tiny), None)


@pytest.mark.skipif(HAS_AUTO_ROUND, reason="auto-round is installed here")
@pytest.mark.parametrize("form", ["awq", "gptq"])
def test_without_auto_round_it_says_what_is_needed(merged, tmp_path, capsys, form):
    code, said = run(capsys, "export", merged, "--to", form, "--out", tmp_path / "out")
    assert code == 2 and "auto-round" in said and "finetune[quantise]" in said and "q4_k_m" in said
    assert list(tmp_path.iterdir()) == []


@needs_auto_round
@pytest.mark.slow
@pytest.mark.parametrize("form", ["awq", "gptq"])
def test_rounding_to_nearest(merged, tmp_path, capsys, form):
    out = tmp_path / "out"
    code, said = run(capsys, "export", merged, "--to", form, "--type", "g32", "--out", out)
    assert code == 0 and "proof: " in said and "vllm serve" in said, said
    manifest = manifest_of(out)
    assert manifest["kind"] == form and manifest["made_from"] == [manifest_of(merged)]
    assert manifest["export"]["rounding"] == "nearest" and manifest["export"]["group"] == 32
    config, was = (json.loads((folder / "config.json").read_text()) for folder in (out, merged))
    assert config.pop("quantization_config")["quant_method"] == form
    assert {**config, "dtype": None} == {**was, "dtype": None}
    assert (out / "chat_template.jinja").read_bytes() == (merged / "chat_template.jinja").read_bytes()
    assert sorted(path.name for path in out.iterdir()) == sorted(["manifest.json", *manifest["files"]])
    held, weights = load_file(out / "model.safetensors"), load_file(merged / "model.safetensors")
    layers = [name.removesuffix(".qweight") for name in held if name.endswith(".qweight")]
    assert len(layers) == manifest["proof"]["layers"] == 7 * config["num_hidden_layers"]
    for layer in layers:
        parts = {part: held[f"{layer}.{part}"] for part in ("qweight", "qzeros", "scales")}
        found, weight_OI = unpack(parts, form, 32), weights[f"{layer}.weight"].float()
        # To the nearest: half a step, and 15 times the scale's rounding, which auto-round computes in bfloat16 (0.9 %
        # measured). A symmetric grid has no +8, so its end is cut.
        steps_OI = (found.weight_OI - weight_OI).abs() / found.step_OI
        assert steps_OI.max() < (0.64 if form == "awq" else 1.14)
        assert (steps_OI > 0.52).float().mean() < 0.05
    kernels = manifest["proof"]["kernels"]
    assert (kernels is not None) == HAS_KERNELS and (kernels is None or kernels["mean_kl"] < 1e-4)
    code, said = run(capsys, "verify", out)
    assert code == 0 and "sha256" in said, said


@needs_auto_round
@pytest.mark.slow
def test_calibrated_on_rows_of_a_file(merged, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(quantised, "ITERATIONS", 4)
    rows = write_jsonl(tmp_path / "rows.jsonl", [{"prompt": f"Is it {i}?", "completion": "Yes."} for i in range(40)])
    out = tmp_path / "out"
    code, said = run(capsys, "export", merged, "--to", "gptq", "--prompts", tmp_path / "rows.jsonl", "--out", out)
    assert code == 0, (said, rows)
    made = manifest_of(out)
    assert made["export"]["rounding"] == "AutoRound" and made["export"]["calibration_tokens"] > 128
    assert run(capsys, "export", merged, "--to", "gptq", "--out", tmp_path / "nearest")[0] == 0
    first, second = (load_file(path / "model.safetensors") for path in (out, tmp_path / "nearest"))
    assert any(not torch.equal(first[name], second[name]) for name in first if name.endswith("qweight"))
    write_jsonl(tmp_path / "few.jsonl", [{"prompt": "Is it?", "completion": "Yes."}])
    code, said = run(
        capsys, "export", merged, "--to", "awq", "--prompts", tmp_path / "few.jsonl", "--out", tmp_path / "x"
    )
    assert code == 2 and "tokens; AutoRound needs at least 128" in said
    assert not (tmp_path / "x").exists() and not (tmp_path / "x.part").exists()


@needs_auto_round
@pytest.mark.slow
def test_what_was_damaged_is_refused(merged, tmp_path, capsys):
    """The proof, of a folder whose packed rows were turned round, whose head was changed, or that lacks a norm."""
    out = tmp_path / "out"
    assert run(capsys, "export", merged, "--to", "awq", "--out", out)[0] == 0
    group = manifest_of(out)["export"]["group"]
    held = load_file(out / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.qweight"
    norm = "model.layers.0.input_layernorm.weight"
    for change, words in (
        ({name: held[name].flip(0).contiguous()}, "q_proj, unpacked, is off by"),
        ({"lm_head.weight": held["lm_head.weight"] + 1}, "lm_head.weight was not to be quantised"),
        ({norm: None}, "not in both"),
    ):
        folder = tmp_path / "damaged"
        shutil.copytree(out, folder)
        changed = {key: value for key, value in {**held, **change}.items() if value is not None}
        save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ProofError, match=words):
            quantised.prove(merged, folder, "awq", group, ROWS)
        shutil.rmtree(folder)
    with pytest.raises(ProofError, match="inputs of groups"):
        quantised.prove(merged, out, "awq", group // 2, ROWS)


@needs_auto_round
@pytest.mark.skipif(not HAS_KERNELS, reason="needs auto-round-lib, whose kernels load the folder on a CPU")
@pytest.mark.slow
def test_the_kernels_read_the_packed_weights(merged, tmp_path, capsys):
    """One scale doubled in a copy: what the kernels answer is no longer what the whole folder's weights answer."""
    out, damaged = tmp_path / "out", tmp_path / "damaged"
    assert run(capsys, "export", merged, "--to", "awq", "--out", out)[0] == 0
    model = load_merged(merged, False, torch.float32, torch.device("cpu"))
    held, weights = load_file(out / "model.safetensors"), dict(model.named_parameters())
    layers = [name.removesuffix(".qweight") for name in held if name.endswith(".qweight")]
    with torch.no_grad():
        for layer in layers:
            parts = {part: held[f"{layer}.{part}"] for part in ("qweight", "qzeros", "scales")}
            weights[f"{layer}.weight"].copy_(unpack(parts, "awq", manifest_of(out)["export"]["group"]).weight_OI)
    ours = log_probs(model, ROWS)
    assert quantised._ask_kernels(out, ROWS, ours, len(layers))["mean_kl"] < 1e-6
    shutil.copytree(out, damaged)
    held["model.layers.1.mlp.up_proj.scales"] *= 2
    save_file(held, damaged / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ProofError, match=f"{len(layers)} of {len(layers)} layers are in 4 bits, and the answers"):
        quantised._ask_kernels(damaged, ROWS, ours, len(layers))
    with pytest.raises(ProofError, match=f"{len(layers)} of 99 layers"):
        quantised._ask_kernels(out, ROWS, ours, 99)


@needs_auto_round
@pytest.mark.slow
def test_a_model_that_four_bits_change_too_much_is_refused(merged, tmp_path, capsys):
    """A head that makes small differences large."""
    wild = tmp_path / "wild"
    shutil.copytree(merged, wild)
    weights = load_file(wild / "model.safetensors")
    weights["lm_head.weight"] *= 1000
    save_file(weights, wild / "model.safetensors", metadata={"format": "pt"})
    manifest = manifest_of(wild)
    manifest["files"] = describe_files(wild, leave_out=["manifest.json"])
    (wild / "manifest.json").write_text(json.dumps(manifest))
    code, said = run(capsys, "export", wild, "--to", "awq", "--out", tmp_path / "out")
    assert code == 1 and "4 bits" in said and "--prompts" in said, said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["wild"]
