"""What is asked of vLLM. It runs on no machine of ours, so what it answers is not tested."""

import importlib.util
import json

import pytest

from finetune.engine.vllm_engine import engine_settings, open_vllm, request_settings
from finetune.errors import InputError
from finetune.model.generation import Sampling

SAMPLING = Sampling((0.7, 1.2), 50, frozenset({5, 2}), top_p=0.9, top_k=40, seed=3)


def adapter(folder, **config):
    (folder / "adapter_config.json").write_text(json.dumps({"r": 24} | config), encoding="utf-8")
    return folder


def test_the_adapter_is_loaded_beside_a_base_in_four_bits(tmp_path):
    settings = engine_settings(tmp_path / "base", adapter(tmp_path), "nf4")
    assert settings["quantization"] == "bitsandbytes" and settings["dtype"] == "bfloat16"
    assert settings["enable_lora"] and settings["max_lora_rank"] == 32
    assert not settings["trust_remote_code"] and settings["logprobs_mode"] == "raw_logprobs"
    bare = engine_settings(tmp_path / "base", None, "fp32")
    assert "quantization" not in bare and "enable_lora" not in bare and bare["dtype"] == "float32"
    assert engine_settings(tmp_path, adapter(tmp_path, rank_pattern={"q_proj": 65}), "bf16")["max_lora_rank"] == 128


def test_what_vllm_cannot_hold_is_refused(tmp_path):
    with pytest.raises(InputError, match="4 bits"):
        engine_settings(tmp_path, None, "int8")
    with pytest.raises(InputError, match="DoRA"):
        engine_settings(tmp_path, adapter(tmp_path, use_dora=True), "nf4")
    with pytest.raises(InputError, match="rank 513"):
        engine_settings(tmp_path, adapter(tmp_path, r=513), "nf4")


def test_every_answer_is_a_request_with_its_own_seed():
    requests = request_settings(2, 3, SAMPLING, [2**64 - 1, 7])
    assert [index for index, _ in requests] == [0, 0, 0, 1, 1, 1]
    assert [settings["temperature"] for _, settings in requests] == [0.7, 1.2, 0.7] * 2
    seeds = [settings["seed"] for _, settings in requests]
    assert len(set(seeds)) == 6 and all(0 <= seed < 2**63 for seed in seeds)
    assert [settings["seed"] for _, settings in request_settings(1, 3, SAMPLING, [7])] == seeds[3:]
    first = requests[0][1]
    assert (first["top_p"], first["top_k"], first["max_tokens"], first["stop_token_ids"]) == (0.9, 40, 50, [2, 5])
    with pytest.raises(ValueError, match="as many keys"):
        request_settings(2, 1, SAMPLING, [1])


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="says what happens where vLLM is absent")
def test_without_vllm_the_error_says_how_to_get_it(tmp_path):
    with pytest.raises(InputError, match="pip install vllm"):
        open_vllm(tmp_path, None, "bf16")
