"""The average stage through the command: what it writes, what later stages make of it, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from stage_recipes import Walk, dpo_stage, reward_stage, sft_stage, train

from finetune.errors import InputError, RecipeError
from finetune.model.average import differences, read_lora
from finetune.stages import average as stage_module


def _average(*of: str, **changes: Any) -> dict[str, Any]:
    return {"kind": "average", "of": list(of), **changes}


def _two(**changes: Any) -> dict[str, Any]:
    """Two runs from one start, of other learning rates."""
    return {
        "one": sft_stage(train=train(max_steps=3)),
        "two": sft_stage(train=train(max_steps=3, learning_rate=0.02)),
        "mean": _average("one", "two", **changes),
    }


def test_writes_an_adapter_that_plain_peft_loads(walk: Walk, tiny_base: Path) -> None:
    from peft import PeftModel
    from transformers import AutoTokenizer, LlamaForCausalLM

    done = walk(_two(weights=[1, 3]))
    folder, manifest = done.folders["mean"], done.manifest("mean")
    assert {path.name for path in done.folders["one"].iterdir()} - {path.name for path in folder.iterdir()} == {
        "metrics.jsonl"
    }
    assert manifest["metrics"] == {"adapters": 2, "rank": 8, "distance": 0.0}
    assert manifest["resolved"]["weights"] == [0.25, 0.75]
    assert manifest["proof"]["max_delta_difference"] < 1e-6
    assert manifest["proof"]["max_abs_difference"] < 1e-4 * manifest["proof"]["largest"]
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (8, 16)
    assert config["base_model_name_or_path"] == str(tiny_base)
    ids = torch.tensor([AutoTokenizer.from_pretrained(folder)("What is the capital of Italy?")["input_ids"]])

    def delta(name: str) -> dict[str, torch.Tensor]:
        model = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(tiny_base), done.folders[name]).eval()
        with torch.no_grad():
            assert torch.isfinite(model(ids).logits).all()
        before = LlamaForCausalLM.from_pretrained(tiny_base).state_dict()
        return {key: value - before[key] for key, value in model.merge_and_unload().state_dict().items()}

    one, two, mean = delta("one"), delta("two"), delta("mean")
    for key, value in mean.items():
        torch.testing.assert_close(value, 0.25 * one[key] + 0.75 * two[key], rtol=1e-4, atol=1e-6)
    assert max(value.abs().max() for value in mean.values()) > 1e-3
    assert "exact" in done.said


def test_later_stages_go_on_from_it(walk: Walk) -> None:
    """A mean of a mean, then dpo from it at the summed rank: its reference is the mean, so the first loss is ln 2."""
    done = walk(
        {
            **_two(),
            "outer": _average("mean", "one"),
            "dpo": dpo_stage(start_from="outer"),
        }
    )
    assert len(load_file(done.folders["dpo"] / "adapter_model.safetensors")) == len(
        load_file(done.folders["one"] / "adapter_model.safetensors")
    )
    assert json.loads((done.folders["dpo"] / "adapter_config.json").read_text())["r"] == 12
    first = next(line for line in done.metrics("dpo") if "loss" in line)
    assert first["loss"] == pytest.approx(0.693147, abs=1e-5)
    parts = [read_lora(done.folders[name]) for name in ("one", "two")]
    assert max(differences(read_lora(done.folders["outer"]), parts, [0.75, 0.25], {}).values()) < 1e-6


@pytest.mark.parametrize("load_in", ["nf4", "bf16"])
def test_reward_models_and_a_smaller_rank_on_other_bases(walk: Walk, load_in: str) -> None:
    reward = {"train": train(max_steps=2)}
    done = walk(
        {
            "a": reward_stage(**reward),
            "b": reward_stage(train=train(max_steps=3)),
            "both": _average("a", "b"),
            "thin": _average("a", "b", rank=5),
        },
        {"model.load_in": load_in},
    )
    key = "base_model.model.score.weight"
    a, b, both, thin = (load_file(done.folders[name] / "adapter_model.safetensors") for name in done.folders)
    for mean in (both, thin):
        torch.testing.assert_close(mean[key], (a[key] + b[key]) / 2)
    assert {tensor.shape[0] for name, tensor in thin.items() if "lora_A" in name} == {5}
    told = done.manifest("thin")["metrics"]["distance"]
    assert 0 < told < 0.5
    assert f"off the mean by {told:.3g} of its size" in done.said
    assert "its scores are not the mean of their scores" in done.said
    assert done.manifest("both")["proof"]["what"] == "scores"
    config = json.loads((done.folders["thin"] / "adapter_config.json").read_text())
    assert (config["task_type"], config["modules_to_save"], config["r"]) == ("SEQ_CLS", ["score"], 5)


def test_rank_and_weights_count(walk: Walk) -> None:
    done = walk({**_two(), "weighted": _average("one", "two", weights=[2, 1]), "thin": _average("one", "two", rank=2)})
    assert len({done.weights(name) for name in ("mean", "weighted", "thin")}) == 3
    wide = walk({**_two(rank=8)}, runs="wide")
    assert wide.weights("mean") == done.weights("mean")
    assert "rank 8 leaves nothing out" in wide.said


def test_whole_weights_and_other_layers(walk: Walk, tmp_path: Path) -> None:
    """modules_to_save beside LoRA; and adapters on other layers, each of which is named in the result."""
    whole = walk(_two(), {"adapter.modules_to_save": ["lm_head"], "adapter.targets": ["q_proj", "v_proj"]})
    key = "base_model.model.lm_head.weight"
    one, two, mean = (load_file(whole.folders[name] / "adapter_model.safetensors")[key] for name in whole.folders)
    torch.testing.assert_close(mean, (one + two) / 2)
    assert not torch.equal(one, two)
    only = walk({"one": sft_stage()}, {"adapter.targets": ["q_proj", "up_proj"], "adapter.rank": 2}, runs="other")
    only.folders["one"].rename(tmp_path / "narrow")
    mixed = {"one": sft_stage(), "mean": _average("one", "./narrow"), "on": sft_stage(start_from="mean")}
    done = walk(mixed, {"adapter.targets": ["q_proj", "o_proj"]}, runs="mixed")
    ranks = {
        name.split(".")[-3]: len(a)
        for name, a in load_file(done.folders["on"] / "adapter_model.safetensors").items()
        if "lora_A" in name
    }
    assert ranks == {"q_proj": 6, "o_proj": 4, "up_proj": 2}


def test_an_adapter_of_another_base_is_refused(walk: Walk, tmp_path: Path) -> None:
    done = walk({"one": sft_stage()})
    manifest = done.folders["one"] / "manifest.json"
    other = tmp_path / "other"
    other.mkdir()
    for path in done.folders["one"].iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    content = json.loads(manifest.read_text())
    content["base"] |= {"digest": "sha256:0", "name": "another"}
    (other / "manifest.json").write_text(json.dumps(content))
    stages = {"one": sft_stage(), "mean": _average("one", "./other")}
    with pytest.raises(InputError, match=r"\./other .* was trained on another base \(another\)"):
        walk(stages)
    (other / "manifest.json").unlink()
    assert "cannot be checked, only its shapes" in " ".join(walk(stages).said.split())


def test_a_reward_model_and_a_writer_have_no_mean(walk: Walk, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="is a reward model and one is not"):
        walk({"one": sft_stage(), "judge": reward_stage(), "mean": _average("one", "judge")})
    done = walk({"judge": reward_stage(train=train(max_steps=1))})
    done.folders["judge"].rename(tmp_path / "judge")
    with pytest.raises(InputError, match=r"is a reward model and .* is not: they have no mean"):
        walk({"one": sft_stage(), "mean": _average("one", "./judge")})


def test_a_wrong_result_is_not_released(walk: Walk, monkeypatch: pytest.MonkeyPatch) -> None:
    """The proof reads what is on disk: one damaged weight there, and nothing is released."""
    from finetune.errors import ProofError

    write = stage_module._write

    def damaged(job: Any, result: Any) -> None:
        name = next(key for key in result.tensors if "lora_B" in key)
        tensors = {**result.tensors, name: result.tensors[name] * 1.001}
        write(job, type(result)(tensors, result.config, result.distance, result.distances))

    monkeypatch.setattr(stage_module, "_write", damaged)
    with pytest.raises(ProofError, match=r"is off by 0\.00\d+ of its size; nothing was released"):
        walk(_two())
