"""Answers by vLLM, where it is installed: the base loaded by vLLM beside ours, the adapter on it and not merged.

NOT RUN by its authors: vLLM needs a GPU and pins its own torch. It was written against the documentation and sources of
vLLM 0.11 to 0.33 (offline `LLM.generate`, `SamplingParams`, `LoRARequest`, bitsandbytes in flight), and its tests check
what is asked of vLLM, not what vLLM answers.

It differs from `finetune.model.generation.generate`: vLLM's random numbers are its own, so the same seed gives other
answers; it may round differently from one batch to the next; nf4 is bitsandbytes' 4 bits as vLLM quantises them.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.errors import InputError
from finetune.model.base import LoadIn
from finetune.model.generation import Generated, Sampling

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM can be told as max_lora_rank (vllm.config.lora.MaxLoRARanks)."""


Write = Callable[[Sequence[NDArray[np.integer]], int, Sampling, Sequence[int]], list[list[Generated]]]
"""(prompts, samples, sampling, keys) -> answers, as `generate` gives them."""


def open_vllm(
    base_folder: Path, adapter_folder: Path | None, load_in: LoadIn, *, memory_share: float | None = None
) -> Write:
    """Load the base in vLLM once, and return what writes with it: arguments and answers as of `generate`.

    adapter_folder: a saved PEFT adapter, None = the base itself. memory_share: of the GPU's memory that vLLM may fill,
    None = its own choice. InputError: vLLM is not installed, or an int8 base, a rank or an adapter with more than LoRA
    in it, which it cannot hold.
    """
    engine = engine_settings(base_folder, adapter_folder, load_in)
    if memory_share is not None:
        engine["gpu_memory_utilization"] = memory_share
    if importlib.util.find_spec("vllm") is None:
        raise InputError(
            "vLLM is not installed: pip install vllm (in an environment of its own where its torch differs), or use "
            "the engine that needs nothing more"
        )
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("DO_NOT_TRACK", "1")
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    model = LLM(**engine)
    policy = None if adapter_folder is None else LoRARequest("policy", 1, str(adapter_folder))

    def write(
        prompts: Sequence[NDArray[np.integer]], samples: int, sampling: Sampling, keys: Sequence[int]
    ) -> list[list[Generated]]:
        requests = request_settings(len(prompts), samples, sampling, keys)
        outputs = model.generate(
            [{"prompt_token_ids": np.asarray(prompts[index]).tolist()} for index, _ in requests],
            [SamplingParams(**settings) for _, settings in requests],
            lora_request=policy,
            use_tqdm=False,
        )
        answers: list[list[Generated]] = [[] for _ in prompts]
        for (index, settings), output in zip(requests, outputs, strict=True):
            answers[index].append(_generated(output.outputs[0], settings["temperature"], sampling.stop_ids))
        return answers

    return write


def engine_settings(base_folder: Path, adapter_folder: Path | None, load_in: LoadIn) -> dict[str, Any]:
    """Arguments of vllm.LLM. No tokenizer: tokens go in and tokens come out. Raises InputError."""
    if load_in == "int8":
        raise InputError("vLLM quantises to 4 bits while loading, not to 8: use load_in nf4, bf16 or fp32")
    settings: dict[str, Any] = {
        "model": str(base_folder),
        "skip_tokenizer_init": True,
        "dtype": "float32" if load_in == "fp32" else "bfloat16",
        "trust_remote_code": False,
        "generation_config": "vllm",  # not the base's own temperature and top_p
        "logprobs_mode": "raw_logprobs",  # before temperature, top_k and top_p
    }
    if load_in == "nf4":
        settings["quantization"] = "bitsandbytes"
    if adapter_folder is not None:
        config = json.loads((adapter_folder / "adapter_config.json").read_text(encoding="utf-8"))
        if config.get("use_dora") or config.get("modules_to_save"):
            raise InputError(
                f"{adapter_folder} has DoRA or modules_to_save in it, which vLLM cannot load as an adapter"
            )
        highest = max([config["r"], *(config.get("rank_pattern") or {}).values()])
        if highest > RANKS[-1]:
            raise InputError(f"{adapter_folder} has rank {highest}; vLLM takes {RANKS[-1]} at most")
        settings |= {"enable_lora": True, "max_loras": 1}
        settings["max_lora_rank"] = next(rank for rank in RANKS if rank >= highest)
    return settings


def request_settings(
    prompts: int, samples: int, sampling: Sampling, keys: Sequence[int]
) -> list[tuple[int, dict[str, Any]]]:
    """(prompt, arguments of vllm.SamplingParams) of every answer: each is a request of its own, since a seed and a
    temperature belong to a request; vLLM's prefix cache computes their prompt once."""
    if len(keys) != prompts:
        raise ValueError(f"{prompts} prompts need as many keys, not {len(keys)}")
    requests = []
    for index in range(prompts):
        for sample in range(samples):
            digest = hashlib.blake2b(struct.pack("<qQQ", sampling.seed, keys[index], sample), digest_size=8).digest()
            settings = {
                "temperature": sampling.temperatures[sample % len(sampling.temperatures)],
                "top_p": sampling.top_p,
                "top_k": sampling.top_k,  # 0 is off there too
                "seed": int.from_bytes(digest, "little") >> 1,  # 63 bits: torch's generators take signed ones
                "max_tokens": sampling.max_new_tokens,
                "stop_token_ids": sorted(sampling.stop_ids),
                "ignore_eos": True,  # stop_token_ids alone decide
                "logprobs": 0,  # of the drawn token and no other
                "detokenize": False,
            }
            requests.append((index, settings))
    return requests


def _generated(completion: Any, temperature: float, stop_ids: frozenset[int]) -> Generated:
    """vLLM's CompletionOutput as ours; its token_ids hold the stop token, its logprobs one dict a token."""
    ids = list(completion.token_ids)
    logps = [at[token].logprob for at, token in zip(completion.logprobs, ids, strict=True)]
    finished = bool(ids) and ids[-1] in stop_ids
    return Generated(np.array(ids, np.int64), np.array(logps, np.float32), finished, temperature)
