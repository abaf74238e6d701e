"""What is proven of a merged folder before it is finished: that it answers as the base with its adapters did.

The folder is loaded by plain transformers and asked the same rows as the model it is made of; at every position the
distribution of the next token is compared: KL divergence (merged from trained, in nats) and how often the likeliest
token is the same. Reward models are compared by their scores. Legend: T positions of a row, V words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.utils import logging as transformers_logging

from finetune.errors import ProofError
from finetune.model.adapter import ADAPTER, open_adapter
from finetune.model.base import Precision, load_base
from finetune.model.reward import open_reward
from finetune.release.merge_weights import Merging
from finetune.release.tensors import read_places

Rows = Sequence[Sequence[int]]
KL_ROUNDING = {torch.float32: 1e-6, torch.float16: 0.01, torch.bfloat16: 0.01}
"""Mean KL, in nats a token, that rounding to a dtype and computing in it may cost. Measured on stories260K, trained in
nf4: 0 in float32 (the largest position 3e-7); a bf16 checkpoint 5e-5 computed in float32, 1e-3 in bf16."""
KL_QUANTISED = 0.1
"""Mean KL that a merge into the original weights may have from the adapter on its 4-bit or int8 base: what quantising
the base changes. Our choice; the smaller a model, the more NF4 changes it (0.2 nats on the 260,032 parameters of
stories260K), and beyond this the adapter was made for other weights than it would stand on."""
SCORE_ROUNDING = {torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.05}
"""The same for a reward, relative to the largest score (at least 1)."""
SCORE_QUANTISED = 0.25
"""As KL_QUANTISED, for a reward."""
_SPARE_MEMORY = 0.8
_PROBES = 24


@dataclass(frozen=True)
class Difference:
    """Of a model's answers from another's, over all positions of the rows. KL in nats a token; top1: a share."""

    mean_kl: float
    max_kl: float
    top1: float

    def __str__(self) -> str:
        return f"mean KL {self.mean_kl:.3g}, largest {self.max_kl:.3g} nats a token, top-1 agreement {self.top1:.2%}"


@dataclass(frozen=True)
class ScoreDifference:
    """The largest difference of scores, relative to the largest score (at least 1)."""

    largest: float

    def __str__(self) -> str:
        return f"scores differ by {self.largest:.3g} of the largest"


@torch.no_grad()
def log_probs(model: nn.Module, rows: Rows) -> list[Tensor]:
    """[T, V] float32 log-probabilities of each row."""
    device = next(model.parameters()).device
    return [
        model(input_ids=torch.tensor([list(row)], device=device), use_cache=False)
        .logits[0]
        .float()
        .log_softmax(-1)
        .cpu()
        for row in rows
    ]


@torch.no_grad()
def class_scores(model: nn.Module, rows: Rows) -> list[Tensor]:
    """[1] score of each row, of a transformers sequence classifier."""
    device = next(model.parameters()).device
    return [
        model(input_ids=torch.tensor([list(row)], device=device), use_cache=False).logits[0].float().cpu()
        for row in rows
    ]


def differ(reference: Sequence[Tensor], found: Sequence[Tensor]) -> Difference | ScoreDifference:
    """Compare log-probabilities, or scores, row by row. A value that is not finite makes the difference infinite."""
    if reference[0].ndim == 1:
        theirs, ours = torch.cat(list(reference)), torch.cat(list(found))
        largest = float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1))
        return ScoreDifference(largest if largest == largest else float("inf"))
    kls, same = [], []
    for theirs, ours in zip(reference, found, strict=True):
        p = theirs.double()
        kls.append((p.exp() * (p - ours.double())).sum(-1))
        same.append(theirs.argmax(-1) == ours.argmax(-1))
    kl = torch.cat(kls)
    if not torch.isfinite(kl).all():
        return Difference(float("inf"), float("inf"), 0.0)
    return Difference(max(float(kl.mean()), 0.0), max(float(kl.max()), 0.0), float(torch.cat(same).float().mean()))


def as_trained(base: Path, run: Path, precision: Precision, device: torch.device, rows: Rows, reward: bool) -> Any:
    """What the adapter of `run` answers on its base, held in `precision`: log-probabilities or scores of the rows."""
    model = load_base(base, precision, device)
    with torch.no_grad(), torch.autocast(device.type, precision.compute, enabled=precision.compute != torch.float32):
        if not reward:
            return log_probs(open_adapter(model, run).eval(), rows)
        scorer = open_reward(model, run)
        found = []
        for row in rows:
            ids = torch.tensor([list(row)], device=device)
            hidden = scorer.adapted.get_base_model().model(input_ids=ids, use_cache=False).last_hidden_state[0]
            found.append(scorer.scores(hidden, torch.tensor([len(row) - 1], device=device)).cpu())
        return found


def together(
    base: Path, runs: Sequence[Path], weights: Sequence[float], precision: Precision, device: torch.device, rows: Rows
) -> list[Tensor]:
    """Log-probabilities of the base with several LoRA adapters at once, each at its weight, by peft, nothing merged."""
    adapted = open_adapter(load_base(base, precision, device), runs[0])
    names = [ADAPTER, *(f"part-{index}" for index in range(1, len(runs)))]
    for name, run in zip(names[1:], runs[1:], strict=True):
        adapted.load_adapter(str(run), adapter_name=name)
    adapted.base_model.set_adapter(names)
    for module in adapted.modules():
        for name, weight in zip(names, weights, strict=True):
            if isinstance(module, LoraLayer) and name in module.scaling:
                module.scaling[name] *= weight
    with torch.no_grad(), torch.autocast(device.type, precision.compute, enabled=precision.compute != torch.float32):
        return log_probs(adapted.eval(), rows)


def load_merged(folder: Path, reward: bool, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """A merged folder by plain transformers. Raises ProofError where it lacks weights or has too many."""
    transformers_logging.disable_progress_bar()
    kind = AutoModelForSequenceClassification if reward else AutoModelForCausalLM
    model, report = kind.from_pretrained(
        folder, dtype=dtype, local_files_only=True, trust_remote_code=False, output_loading_info=True
    )
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report[problem]:
            raise ProofError(f"{folder}, loaded by transformers, has {problem}: {sorted(report[problem])[0]}")
    return model.to(device).eval()


@torch.no_grad()
def refill(model: nn.Module, merging: Merging, *, exact: bool) -> None:
    """Give a loaded merged model the weights of `merging`, computed anew; exact: not rounded to the files' dtypes."""
    weights = dict(model.named_parameters())
    for name, entry in merging.entries.items():
        value = merging.value(name)
        weights[name].copy_(value if exact else value.to(entry.dtype))


def answers(model: nn.Module, rows: Rows, reward: bool) -> list[Tensor]:
    return class_scores(model, rows) if reward else log_probs(model, rows)


def fits_in_memory(merging: Merging, compute: torch.dtype, device: torch.device) -> bool:
    """Whether a model of the merged size can be loaded here."""
    numel = sum(entry.size // entry.dtype.itemsize for entry in merging.entries.values())
    free = torch.cuda.mem_get_info()[0] if device.type == "cuda" else psutil.virtual_memory().available
    return numel * compute.itemsize < _SPARE_MEMORY * free


def prove_tensors(folder: Path, merging: Merging, seed: int) -> dict[str, Any]:
    """For models that do not fit: sampled tensors of the written files against base and adapter, by another way.

    Of a plain LoRA layer y = W x + s B (A x) is compared for random x, never forming B A; other tensors are computed
    again. Every tensor was checked for finite values when it was written. Raises ProofError.
    """
    written = {name: p for file in merging.files for name, p in read_places(folder / file).items()}
    changed = sorted(name for name in merging.entries if merging.changers(name))
    others = sorted(set(merging.entries) - set(changed))
    chosen = [*_spread(changed, _PROBES), *_spread(others, _PROBES // 4)]
    generator = torch.Generator().manual_seed(seed)
    worst = 0.0
    for name in chosen:
        found = written[name].read().float()
        update = _plain_update(merging, name)
        if update is None:
            expected, seen = merging.value(name).reshape(-1), found.reshape(-1)
        else:
            x_I = torch.randn(found.shape[1], generator=generator)
            expected = merging.base_value(name) @ x_I + update.scale * (update.b_OR @ (update.a_RI @ x_I))
            seen = found @ x_I
        off = float((expected - seen).norm() / expected.norm().clamp(min=1e-30))
        allowed = 4 * torch.finfo(merging.entries[name].dtype).eps
        if not off <= allowed:
            raise ProofError(
                f"{name} in {folder} differs from base and adapter by {off:.3g} of its size ({allowed:.3g} allowed for "
                "rounding); nothing was released"
            )
        worst = max(worst, off)
    return {"compared": "tensors", "tensors": len(chosen), "of": len(merging.entries), "largest_relative": worst}


def _plain_update(merging: Merging, name: str) -> Any:
    if len(merging.loras) == 1 and merging.how.weights == (1.0,) and name in merging.loras[0].updates:
        update = merging.loras[0].update(name)
        return None if update.lengths_O is not None else update
    return None


def _spread(names: Sequence[str], count: int) -> list[str]:
    if len(names) <= count:
        return list(names)
    return [names[index * (len(names) - 1) // (count - 1)] for index in range(count)]


def bound_of(merging: Merging, compute: torch.dtype) -> torch.dtype:
    """The coarsest dtype that a merged model is rounded to: it sets what difference is allowed."""
    dtypes = {entry.dtype for entry in merging.entries.values() if entry.dtype.is_floating_point} | {compute}
    return max(dtypes, key=lambda dtype: KL_ROUNDING.get(dtype, 0.0))


def allowed(dtype: torch.dtype, reward: bool) -> float:
    return (SCORE_ROUNDING if reward else KL_ROUNDING)[dtype]


def size(difference: Difference | ScoreDifference) -> float:
    """The figure that a bound speaks of."""
    return difference.mean_kl if isinstance(difference, Difference) else difference.largest


def to_json(difference: Difference | ScoreDifference) -> Mapping[str, float]:
    return asdict(difference)
