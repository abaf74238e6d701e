"""auto-round in a process of its own: `python -m finetune.release.auto_round_job JOB.json`, started by quantised.py.

Alone, because the library replaces functions of datasets and transformers when it is imported, and because only a new
process can be kept off the hub: huggingface_hub reads HF_HUB_OFFLINE once. The job is either to quantise a folder, or
to load one by transformers with auto-round's CPU kernels and answer rows.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from finetune.quiet import calm_libraries


def quantise(job: Mapping[str, Any]) -> None:
    """Round the linear layers of job's folder to 4 bits and write it below job["out"].

    Without blocks of tokens: rounding to nearest. With them: AutoRound (Cheng et al. 2023, arXiv:2309.05516), which
    learns for each weight whether it is rounded up or down, block by block, by signed gradient steps.
    """
    from auto_round import AutoRound
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, blocks = job["folder"], [torch.tensor([block]) for block in job["blocks"]]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", local_files_only=True)
    learned: dict[str, Any] = {
        "dataset": blocks,
        "nsamples": len(blocks),
        "seqlen": blocks[0].shape[1] if blocks else 1,
        "batch_size": min(8, len(blocks)),
    }
    AutoRound(
        model,
        tokenizer=AutoTokenizer.from_pretrained(folder, local_files_only=True),
        bits=4,
        group_size=job["group"],
        sym=job["symmetric"],
        iters=job["iterations"],
        disable_opt_rtn=True,  # plain rounding, whose error is half a step and can be checked
        enable_torch_compile=False,
        device_map="cuda:0" if torch.cuda.is_available() else "cpu",
        seed=job["seed"],
        **(learned if blocks else {}),
    ).quantize_and_save(output_dir=job["out"], format=job["format"])


def answer(job: Mapping[str, Any]) -> None:
    """[T, V] float32 log-probabilities of each row, by transformers and auto-round's kernels, into job["out"]."""
    import warnings
    from importlib import import_module

    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoRoundConfig

    from finetune.release.merge_proof import log_probs

    import_module("auto_round")  # its kernels become known to transformers

    # AutoRoundConfig says nothing but that auto-round loads it; bits and layout are the folder's own.
    warnings.filterwarnings("ignore", message="You passed `quantization_config`.*")
    model = AutoModelForCausalLM.from_pretrained(
        job["folder"],
        dtype=torch.float32,
        device_map="cpu",
        local_files_only=True,
        quantization_config=AutoRoundConfig(),
    ).eval()
    held = [type(module).__module__ for module in model.modules() if hasattr(module, "qweight")]
    kernels = sum(name.startswith("auto_round_kernel") for name in held)
    found = log_probs(model, job["rows"])
    save_file({str(i): logps_TV.contiguous() for i, logps_TV in enumerate(found)}, job["out"])
    Path(job["out"]).with_suffix(".json").write_text(json.dumps({"layers": kernels}), encoding="utf-8")


if __name__ == "__main__":
    calm_libraries()
    asked = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    {"quantise": quantise, "answer": answer}[asked["do"]](asked)
