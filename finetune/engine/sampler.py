"""What a stage that only samples needs: the base, the policy's frozen adapter on it, and a function that writes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel

from finetune.data.prepare_prompts import Prompt
from finetune.engine import loop
from finetune.engine.job import Job
from finetune.errors import InputError
from finetune.model import adapter
from finetune.model.base import Precision, choose_device, choose_precision, describe
from finetune.model.generation import Generated, Sampling, generate
from finetune.plan.manifest import read_manifest
from finetune.recipe.sampling_stages import RejectStage
from finetune.recipe.settings import AdapterSettings

Write = Callable[[Sequence[Prompt], int, Sampling], list[list[Generated]]]
"""(prompts, samples of each, sampling) -> answers, in the order of the prompts."""

VLLM_SHARE = 0.85
"""Of the GPU's free memory, with the reward models' base in place: the rest is for their forward passes."""


@dataclass(frozen=True)
class Sampler:
    """model: what reward models can be attached to, None where nothing needs one."""

    write: Write
    model: PeftModel | None
    device: torch.device
    precision: Precision


def open_sampler(stage: RejectStage, job: Job) -> Sampler:
    """Load the base and put the policy's adapter on it, all of it frozen. Raises InputError and BaseModelError.

    With vLLM the policy is there, and the base is held here only for the reward models.
    """
    device = choose_device(job.model.device)
    precision = choose_precision(job.model.load_in, job.model.compute, device)
    folder = None if stage.policy is None else (job.inputs.get(stage.policy) or job.locate(stage.policy))
    if folder is not None:
        _check_same_base(job, folder)
    job.say("policy: the bare base" if folder is None else f"policy: the adapter {folder}")
    in_vllm = stage.engine == "vllm"
    base, model = None, None
    if stage.reward is not None or not in_vllm:
        base = job.bases.get(job.base.folder, precision, device)
        job.say(f"base: {job.base.name}: {describe(base, precision, device)}")
        if folder is not None and not in_vllm:
            model = adapter.open_adapter(base, folder)
        elif stage.reward is not None:
            # peft holds adapters beside a first one: the smallest there is, which is off while the base writes.
            model = adapter.new_adapter(base, AdapterSettings(rank=1, alpha=1.0, targets=["q_proj"]), seed=0)
    if model is not None:
        model.requires_grad_(False).eval()
    if base is None or in_vllm:
        return Sampler(_in_vllm(job, folder, device), model, device, precision)
    ours = base

    def write(prompts: Sequence[Prompt], samples: int, sampling: Sampling) -> list[list[Generated]]:
        with _policy(model, folder), torch.no_grad(), loop.autocast(device, precision.compute):
            return generate(
                ours,
                [prompt.ids for prompt in prompts],
                samples,
                sampling,
                keys=[prompt.key for prompt in prompts],
                rows_at_once=stage.rows_at_once,
            )

    return Sampler(write, model, device, precision)


def _in_vllm(job: Job, folder: Path | None, device: torch.device) -> Write:
    from finetune.engine.vllm_engine import open_vllm  # only now: vLLM is optional, and takes seconds

    share = None
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        share = round(VLLM_SHARE * free / total, 2)
    writes = open_vllm(job.base.folder, folder, job.model.load_in, memory_share=share)

    def write(prompts: Sequence[Prompt], samples: int, sampling: Sampling) -> list[list[Generated]]:
        return writes([prompt.ids for prompt in prompts], samples, sampling, [prompt.key for prompt in prompts])

    return write


@contextmanager
def _policy(model: PeftModel | None, folder: Path | None) -> Iterator[None]:
    """Within: the policy writes. Without an adapter of its own that is the base, bit for bit."""
    if model is None or folder is not None:
        yield
        return
    with model.disable_adapter():
        yield


def _check_same_base(job: Job, folder: Path) -> None:
    manifest = read_manifest(folder)
    if manifest is not None and manifest["base"]["digest"] != job.base.digest:
        raise InputError(
            f"policy: {folder} was trained on another base ({manifest['base']['name']}): an adapter is the difference "
            f"to its own base. Sample with an adapter of {job.base.name}"
        )
