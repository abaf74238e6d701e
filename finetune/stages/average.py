"""Average adapters: one adapter whose change to the base is the weighted mean of theirs.

Llama 3 averages the models of runs with other data and hyperparameters after every stage (section 4.1.5; Izmailov et
al. 2019, Wortsman et al. 2022, Li et al. 2022). Here the models are a base and LoRA adapters, so the mean of the models
is the base and the mean of what the adapters add: computed exactly, as an adapter of the summed rank
(model/average.py), unless `rank` asks for less. Whole weights (modules_to_save, a reward model's head) are averaged
as they are. Deviation: none; but the mean of models is not the mean of their outputs, so the scores of averaged reward
models are not the mean of their scores.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, set_peft_model_state_dict
from safetensors.torch import save as pack_tensors
from torch import Tensor, nn

from finetune.data.save_tokenizer import save_tokenizer
from finetune.durable import require_space, write_bytes
from finetune.engine import loop, session
from finetune.engine.job import Job, Outcome
from finetune.errors import InputError, ProofError
from finetune.model import adapter
from finetune.model.average import Averaged, Lora, average, check_alike, differences, read_lora
from finetune.model.base import choose_device, choose_precision, describe
from finetune.model.ragged import Layout, ragged_hidden
from finetune.model.reward import open_reward
from finetune.plan.manifest import read_manifest
from finetune.recipe.average_stage import AverageStage

_DELTA_LIMIT = 1e-6
"""Relative: float32 rounding of the factors is 1e-7."""
_OUTPUT_LIMIT = {torch.float32: 1e-4, torch.bfloat16: 0.1}
"""Relative to the largest output: the adapters side by side and their mean sum in another order, which bf16 rounds to
3 digits at every layer. What is on disk has been compared closely before; this finds what peft would read otherwise."""
_PROOF_ROWS, _PROOF_TOKENS = 4, 32


def run(stage: AverageStage, job: Job) -> Outcome:
    """Write the mean adapter with tokenizer and template into `job.out`, and prove it on the base."""
    words = session.open_words(job)
    folders = [job.inputs.get(name) or job.locate(name) for name in stage.of]
    for name, folder in zip(stage.of, folders, strict=True):
        _check_base(job, name, folder)
    adapters = [read_lora(folder) for folder in folders]
    check_alike(adapters)
    given = stage.weights or [1.0] * len(adapters)
    weights = [weight / sum(given) for weight in given]
    result = average(adapters, weights, stage.rank)
    _tell(job, stage, adapters, weights, result)
    size = sum(tensor.numel() * tensor.element_size() for tensor in result.tensors.values())
    require_space(job.out, size + 32 * 2**20, f"stage {job.name}")
    _write(job, result)
    save_tokenizer(job.base.folder, words.tokenizer, words.resolved, job.out)
    saved = read_lora(job.out)
    proof = {**_prove_deltas(saved, adapters, weights, result), **_prove_outputs(job, saved, adapters, weights, result)}
    return Outcome(
        metrics={"adapters": len(adapters), "rank": result.config.r, "distance": result.distance},
        data={"of": [{"name": name, "weight": weight} for name, weight in zip(stage.of, weights, strict=True)]},
        family=session.describe_family(words),
        resolved={
            "rank": result.config.r,
            "alpha": result.config.lora_alpha,
            "weights": weights,
            "distances": dict(result.distances),
            "revision": job.base.revision,
        },
        proof=proof,
    )


def _check_base(job: Job, name: str, folder: Path) -> None:
    """An adapter is the difference to its own base. Raises InputError where the manifest names another."""
    manifest = read_manifest(folder)
    if manifest is None:
        job.say(
            f"{folder} has no manifest: whether it was trained on {job.base.name} cannot be checked, only its shapes"
        )
    elif manifest["base"]["digest"] != job.base.digest:
        raise InputError(
            f"of: {name} ({folder}) was trained on another base ({manifest['base']['name']}): average adapters of "
            f"{job.base.name}"
        )


def _tell(job: Job, stage: AverageStage, adapters: Sequence[Lora], weights: Sequence[float], result: Averaged) -> None:
    shares = ", ".join(
        f"{name} {weight:.4g} (rank {one.config.r})"
        for name, one, weight in zip(stage.of, adapters, weights, strict=True)
    )
    job.say(f"mean of {len(adapters)} adapters: {shares}")
    exact = "exact" if result.distance == 0.0 else f"off the mean by {result.distance:.3g} of its size (Frobenius norm)"
    job.say(f"result: rank {result.config.r}, alpha {result.config.lora_alpha:g}, {exact}")
    if stage.rank is not None and not any(result.distances.values()):
        job.say(f"rank {stage.rank} leaves nothing out")
    if len({one.config.lora_dropout for one in adapters}) > 1:
        job.say(f"their dropouts differ: training that starts from the mean has {result.config.lora_dropout:g}")
    if adapters[0].is_reward:
        job.say("reward models: weights and heads are averaged; its scores are not the mean of their scores")


def _write(job: Job, result: Averaged) -> None:
    write_bytes(job.out / "adapter_model.safetensors", pack_tensors(dict(result.tensors), metadata={"format": "pt"}))
    result.config.save_pretrained(str(job.out))
    path = job.out / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(config["target_modules"], list):
        config["target_modules"].sort()  # peft holds a set, whose order is chance
    name = job.base.name if job.base.revision else str(job.base.folder)
    config |= {"base_model_name_or_path": name, "revision": job.base.revision}
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _prove_deltas(
    saved: Lora, adapters: Sequence[Lora], weights: Sequence[float], result: Averaged
) -> dict[str, float | int]:
    """What is on disk against the mean in float64, layer by layer. Raises ProofError."""
    found = differences(saved, adapters, weights, result.distances)
    worst = max(found, key=lambda name: found[name] if found[name] == found[name] else float("inf"))
    if not found[worst] <= _DELTA_LIMIT:
        raise ProofError(f"the mean of {worst} is off by {found[worst]:.3g} of its size; nothing was released")
    return {"layers": len(found), "max_delta_difference": found[worst]}


@torch.no_grad()
def _prove_outputs(
    job: Job, saved: Lora, adapters: Sequence[Lora], weights: Sequence[float], result: Averaged
) -> dict[str, Any]:
    """The saved adapter, loaded by peft, against all adapters side by side on the base, each at its weight.

    Exact means must agree up to rounding; of smaller ranks the difference is recorded. Raises ProofError.
    """
    device = choose_device(job.model.device)
    precision = choose_precision(job.model.load_in, job.model.compute, device)
    base = job.bases.get(job.base.folder, precision, device)
    job.say(f"base: {job.base.name}: {describe(base, precision, device)}")
    head: nn.Linear | None = None
    if saved.is_reward:
        opened = open_reward(base, job.out)
        model, head = opened.adapted, opened.score
    else:
        model = adapter.open_adapter(base, job.out)
    model.eval()
    generator = torch.Generator().manual_seed(job.seed)
    ids_T = torch.randint(0, int(job.base.config["vocab_size"]), (_PROOF_ROWS * _PROOF_TOKENS,), generator=generator)
    lengths = [_PROOF_TOKENS] * _PROOF_ROWS
    with loop.autocast(device, precision.compute):
        found = _outputs(model, head, ids_T.to(device), lengths)
        _side_by_side(model, adapters, weights)
        wanted = _outputs(model, head, ids_T.to(device), lengths)
    if not (torch.isfinite(found).all() and torch.isfinite(wanted).all()):
        raise ProofError(f"the mean adapter gives values that are not finite; nothing was released ({job.out})")
    difference, size = (found - wanted).abs().max().item(), wanted.abs().max().item()
    if result.distance == 0.0 and not difference <= _OUTPUT_LIMIT[precision.compute] * size:
        raise ProofError(
            f"the mean adapter, loaded again, is off by {difference:.3g} from the adapters side by side (largest value "
            f"{size:.3g}); nothing was released"
        )
    what = "scores" if saved.is_reward else "logits"
    job.say(f"proof: loaded by peft, its {what} are off by {difference:.2g} from all adapters at once (of {size:.2g})")
    return {"rows": len(lengths), "max_abs_difference": difference, "largest": size, "what": what}


def _side_by_side(model: PeftModel, adapters: Sequence[Lora], weights: Sequence[float]) -> None:
    """Every adapter active at its weight, the mean's LoRA at 0; its whole weights stay, as they have no sum in peft."""
    names = []
    for index, (one, weight) in enumerate(zip(adapters, weights, strict=True)):
        name = f"part-{index}"
        config = LoraConfig(
            **{
                key: getattr(one.config, key)
                for key in ("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "target_modules")
            },
            exclude_modules=one.config.exclude_modules,
            layers_to_transform=one.config.layers_to_transform,
            layers_pattern=one.config.layers_pattern,
            task_type="CAUSAL_LM",
            inference_mode=True,
        )
        model.add_adapter(name, config)
        tensors = {}
        for layer, (a, b) in one.factors.items():
            tensors[f"base_model.model.{layer}.lora_A.weight"] = a
            tensors[f"base_model.model.{layer}.lora_B.weight"] = b
        loaded = set_peft_model_state_dict(model, tensors, adapter_name=name)
        if loaded.unexpected_keys:
            raise InputError(f"{one.folder} does not fit this base: it has no place for {loaded.unexpected_keys[0]}")
        for module in model.modules():
            scaling = getattr(module, "scaling", None)
            if isinstance(scaling, dict) and name in scaling:
                scaling[name] *= weight
        names.append(name)
    for module in model.modules():
        scaling = getattr(module, "scaling", None)
        if isinstance(scaling, dict) and adapter.ADAPTER in scaling:
            scaling[adapter.ADAPTER] = 0.0
    model.base_model.set_adapter([adapter.ADAPTER, *names], inference_mode=True)
    model.eval()


def _outputs(model: PeftModel, head: nn.Linear | None, ids_T: Tensor, lengths: list[int]) -> Tensor:
    """[B, V] logits, or [B, 1] scores, in float32, at the last token of every row."""
    inner = model.get_base_model()
    hidden_TD = ragged_hidden(inner.model, ids_T, Layout.of_rows(lengths))
    last_BD = hidden_TD[torch.tensor(lengths, device=hidden_TD.device).cumsum(0) - 1]
    if head is None:
        return inner.lm_head(last_BD).float().cpu()
    with torch.autocast(ids_T.device.type, enabled=False):
        return head(last_BD.float()).cpu()
