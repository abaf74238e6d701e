"""The mean of adapters: by hand, against the dense mean in float64, and against peft's own combination."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from finetune.errors import InputError
from finetune.model.average import Averaged, Lora, average, check_alike, differences, product_norm, read_lora, truncated


def _base() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=64,
        initializer_range=0.2,
    )
    return LlamaForCausalLM(config).eval()


def _adapter(folder: Path, seed: int, **settings: Any) -> Path:
    """A LoRA with random factors, saved by peft."""
    config = LoraConfig(task_type="CAUSAL_LM", **{"r": 4, "lora_alpha": 8, "target_modules": "all-linear", **settings})
    model = get_peft_model(_base(), config)
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data.normal_(std=0.3) if "lora" in name else parameter.data.add_(torch.randn_like(parameter))
    model.save_pretrained(str(folder), save_embedding_layers=False)
    return folder


def _loaded(folder: Path) -> PeftModel:
    return PeftModel.from_pretrained(_base(), folder)


def _write(folder: Path, result: Averaged) -> Path:
    folder.mkdir()
    save_file(dict(result.tensors), folder / "adapter_model.safetensors", metadata={"format": "pt"})
    result.config.save_pretrained(str(folder))
    return folder


def _delta(model: PeftModel, layer: str) -> Tensor:
    """What peft's loaded adapter adds to a layer, dense, float64; zero where it has none."""
    module = model.get_base_model().get_submodule(layer)
    if not hasattr(module, "lora_A"):
        return torch.zeros(module.weight.shape, dtype=torch.float64)
    b, a = module.lora_B["default"].weight.double(), module.lora_A["default"].weight.double()
    return module.scaling["default"] * b @ a


def _layers() -> list[str]:
    return [name for name, module in _base().named_modules() if isinstance(module, torch.nn.Linear)]


ADAPTERS: dict[str, list[dict[str, Any]]] = {
    "alike": [{}, {}],
    "three": [{}, {"r": 2}, {"r": 3, "lora_alpha": 5}],
    "rslora": [{"use_rslora": True}, {"r": 8, "lora_alpha": 4}],
    "targets": [{"target_modules": ["q_proj", "v_proj"]}, {"target_modules": ["k_proj", "v_proj", "down_proj"]}],
    "subset": [{"target_modules": ["q_proj"]}, {}],
    "patterns": [
        {"rank_pattern": {"q_proj": 2, "layers.1.self_attn.v_proj": 6}, "alpha_pattern": {"v_proj": 3}},
        {"layers_to_transform": [1], "layers_pattern": "layers", "target_modules": ["q_proj", "v_proj"]},
    ],
    "wider than the layer": [{"r": 30}, {"r": 30}],
    "head": [{"target_modules": ["lm_head", "q_proj"]}, {"target_modules": ["q_proj"]}],
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_the_mean_loaded_by_peft_is_the_dense_mean(tmp_path: Path, name: str) -> None:
    folders = [_adapter(tmp_path / str(seed), seed, **settings) for seed, settings in enumerate(ADAPTERS[name])]
    weights = [0.5, 0.3, 0.2][: len(folders)] if len(folders) == 3 else [0.75, 0.25]
    adapters = [read_lora(folder) for folder in folders]
    check_alike(adapters)
    result = average(adapters, weights, None)
    mean, parts = _loaded(_write(tmp_path / "mean", result)), [_loaded(folder) for folder in folders]
    checked = 0
    for layer in _layers():
        wanted = sum(weight * _delta(part, layer) for weight, part in zip(weights, parts, strict=True))
        assert isinstance(wanted, Tensor)
        assert (_delta(mean, layer) - wanted).norm() <= 1e-6 * wanted.norm(), layer
        checked += bool(wanted.any())
    assert checked == len({layer for one in adapters for layer in one.factors})
    assert result.distance == 0.0
    expected = {
        layer: sum(len(one.factors[layer][0]) for one in adapters if layer in one.factors) for layer in _layers()
    }
    found = read_lora(tmp_path / "mean").factors
    assert {layer: len(a) for layer, (a, _) in found.items()} == {k: v for k, v in expected.items() if v}


def test_peft_combines_to_the_same_logits(tmp_path: Path) -> None:
    """peft's add_weighted_adapter("cat") is exact too, for adapters of one set of layers."""
    folders = [_adapter(tmp_path / "a", 1, r=3), _adapter(tmp_path / "b", 2, r=5, lora_alpha=20)]
    model = PeftModel.from_pretrained(_base(), folders[0], adapter_name="a")
    model.load_adapter(str(folders[1]), adapter_name="b")
    model.add_weighted_adapter(["a", "b"], [0.4, 0.6], "both", combination_type="cat")
    model.set_adapter("both")
    ids = torch.arange(40).reshape(2, 20)
    mean = _loaded(_write(tmp_path / "mean", average([read_lora(f) for f in folders], [0.4, 0.6], None)))
    with torch.no_grad():
        torch.testing.assert_close(mean(ids).logits, model(ids).logits, rtol=1e-4, atol=1e-4)
        assert (mean(ids).logits - _loaded(folders[0])(ids).logits).abs().max() > 0.1


def test_by_hand(tmp_path: Path) -> None:
    """1 x 1 layers: 3/4 of (alpha 2 / rank 1) * 3 * 5 and 1/4 of (alpha 6 / rank 2) * (1 * 2 + 4 * 7) = 45."""
    one = _hand(tmp_path, 2, [[5.0]], [[3.0]])
    other = _hand(tmp_path, 6, [[2.0], [7.0]], [[1.0, 4.0]])
    result = average([one, other], [0.75, 0.25], None)
    a, b = (result.tensors[f"base_model.model.x.lora_{letter}.weight"] for letter in "AB")
    assert a.tolist() == [[5.0], [2.0], [7.0]]
    # The result's scale is 0.75 * 2 + 0.25 * 3 = 2.25: alpha 6.75 at rank 3. B is w s / 2.25 times theirs.
    assert (result.config.r, result.config.lora_alpha) == (3, 6.75)
    assert b.flatten().tolist() == pytest.approx([0.75 * 2 * 3 / 2.25, 0.25 * 3 * 1 / 2.25, 0.25 * 3 * 4 / 2.25])
    assert 2.25 * float(b @ a) == pytest.approx(45.0)


def _hand(folder: Path, alpha: int, a: list[list[float]], b: list[list[float]]) -> Lora:
    config = LoraConfig(r=len(a), lora_alpha=alpha, target_modules=["x"], task_type="CAUSAL_LM")
    return Lora(folder, config, {"x": (torch.tensor(a), torch.tensor(b))}, {})


@pytest.mark.parametrize("rank", [1, 3, 7])
def test_a_smaller_rank_is_the_nearest(tmp_path: Path, rank: int) -> None:
    """The singular values of the dense mean say how near a matrix of that rank can be, and the result is that near."""
    folders = [_adapter(tmp_path / str(seed), seed, r=4) for seed in range(2)]
    adapters = [read_lora(folder) for folder in folders]
    result = average(adapters, [0.5, 0.5], rank)
    mean, parts = _loaded(_write(tmp_path / "mean", result)), [_loaded(folder) for folder in folders]
    left = whole = 0.0
    for layer in (layer for layer in _layers() if layer != "lm_head"):
        dense = sum(0.5 * _delta(part, layer) for part in parts)
        assert isinstance(dense, Tensor)
        singular = torch.linalg.svdvals(dense)
        best = float(singular[rank:].norm() / singular.norm())
        assert float((_delta(mean, layer) - dense).norm() / dense.norm()) == pytest.approx(best, rel=1e-5)
        assert result.distances[layer] == pytest.approx(best, rel=1e-9)
        left, whole = left + float(singular[rank:].norm()) ** 2, whole + float(dense.norm()) ** 2
    assert result.distance == pytest.approx((left / whole) ** 0.5, rel=1e-9)
    assert result.config.r == rank
    proof = differences(read_lora(tmp_path / "mean"), adapters, [0.5, 0.5], result.distances)
    assert 0 < max(proof.values()) < 1e-6


def test_a_direction_that_cancels_out_can_still_be_trained() -> None:
    a, b = torch.eye(2, 5, dtype=torch.float64), torch.zeros(4, 2, dtype=torch.float64)
    a_new, b_new, left_out = truncated(torch.cat([a, a]), torch.cat([b, b], dim=1), 2)
    assert left_out == 0.0 and float(b_new.abs().max()) == 0.0
    torch.testing.assert_close(a_new @ a_new.T, torch.eye(2, dtype=torch.float64))


def test_opposite_adapters_leave_nothing(tmp_path: Path) -> None:
    one = read_lora(_adapter(tmp_path / "a", 1))
    against = Lora(one.folder, one.config, {layer: (a, -b) for layer, (a, b) in one.factors.items()}, {})
    result = average([one, against], [0.5, 0.5], 2)
    saved = read_lora(_write(tmp_path / "mean", result))
    assert max(differences(saved, [one, against], [0.5, 0.5], result.distances).values()) < 1e-6
    assert max(product_norm(*pair) for pair in saved.factors.values()) < 1e-6


def test_a_mean_of_means(tmp_path: Path) -> None:
    a, b, c = (read_lora(_adapter(tmp_path / name, seed)) for seed, name in enumerate("abc"))
    inner = read_lora(_write(tmp_path / "inner", average([a, b], [0.5, 0.5], None)))
    outer = read_lora(_write(tmp_path / "outer", average([inner, c], [2 / 3, 1 / 3], None)))
    assert max(differences(outer, [a, b, c], [1 / 3] * 3, {}).values()) < 1e-6


def test_differences_see_a_wrong_weight(tmp_path: Path) -> None:
    adapters = [read_lora(_adapter(tmp_path / str(seed), seed)) for seed in range(2)]
    saved = read_lora(_write(tmp_path / "mean", average(adapters, [0.5, 0.5], None)))
    assert min(differences(saved, adapters, [0.501, 0.499], {}).values()) > 1e-4
    broken = {layer: (a, b.index_fill(1, torch.tensor([7]), 0.0)) for layer, (a, b) in saved.factors.items()}
    found = differences(Lora(saved.folder, saved.config, broken, {}), adapters, [0.5, 0.5], {})
    assert min(found.values()) > 1e-2


def test_whole_weights_are_averaged(tmp_path: Path) -> None:
    settings = {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}
    folders = [_adapter(tmp_path / str(seed), seed, **settings) for seed in range(2)]
    result = average([read_lora(folder) for folder in folders], [0.25, 0.75], None)
    key = "base_model.model.lm_head.weight"
    one, other = (load_file(folder / "adapter_model.safetensors")[key] for folder in folders)
    torch.testing.assert_close(result.tensors[key], 0.25 * one + 0.75 * other)
    mean = _loaded(_write(tmp_path / "mean", result))
    torch.testing.assert_close(mean.get_output_embeddings().weight, 0.25 * one + 0.75 * other)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "dora": ({"use_dora": True}, "has use_dora: only plain LoRA adapters"),
    "bias": ({"lora_bias": True}, "has lora_bias"),
    "biases": ({"bias": "all"}, "has bias: all"),
    "embedding": ({"target_modules": ["embed_tokens"]}, "no factor of a linear layer's LoRA"),
    "whole": ({"modules_to_save": ["lm_head"], "target_modules": ["q_proj"]}, "average adapters with the same modules"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_mean_is_refused(tmp_path: Path, name: str) -> None:
    settings, words = REFUSED[name]
    plain = read_lora(_adapter(tmp_path / "plain", 0))
    folder = _adapter(tmp_path / "other", 1, **settings)
    with pytest.raises(InputError, match=words):
        check_alike([plain, read_lora(folder)])


def test_other_shapes_and_damage_are_refused(tmp_path: Path) -> None:
    folder = _adapter(tmp_path / "a", 0)
    one = read_lora(folder)
    layer = next(iter(one.factors))
    a, b = one.factors[layer]
    other = Lora(tmp_path / "b", one.config, {**one.factors, layer: (a[:, :-1], b)}, {})
    with pytest.raises(InputError, match=r"has other dimensions in .*: not the same base"):
        check_alike([one, other])
    tensors = load_file(folder / "adapter_model.safetensors")
    name = next(iter(tensors))
    save_file({**tensors, name: tensors[name] * float("nan")}, folder / "adapter_model.safetensors")
    with pytest.raises(InputError, match="values that are not finite"):
        read_lora(folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "peft_type": "IA3"}))
    save_file(tensors, folder / "adapter_model.safetensors")
    with pytest.raises(InputError, match="is no LoRA adapter, its peft_type is IA3"):
        read_lora(folder)
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(InputError, match="holds no adapter"):
        read_lora(folder)
