"""What PPO learns from an iteration's answers: the micro-batches of its steps, and the losses of policy and value.

Letters: N answer tokens of a batch, T tokens of a layout.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from finetune.engine import loop
from finetune.engine.batches import TokenBatch
from finetune.engine.token_logprobs import Hidden
from finetune.errors import ProofError
from finetune.model.actor_critic import VALUE
from finetune.model.adapter import ADAPTER
from finetune.numerics.logprobs import entropies, logprobs
from finetune.numerics.ppo import kl_k3, policy_loss, value_loss
from finetune.recipe.sampling_stages import PpoStage

_ROUNDING_ON_GPU = 1e-3
"""Nats: on a GPU the same forward may choose another order of sums when gradients are wanted. On a CPU it does not."""


@dataclass(frozen=True)
class PpoBatch:
    """One forward pass of the update. tokens of all answers, [N] each: old_logps, old_values (when sampled),
    advantages, targets (of the value). first: of the iteration's first minibatch, where the ratio is 1."""

    answers: TokenBatch
    old_logps_N: Tensor
    old_values_N: Tensor
    advantages_N: Tensor
    targets_N: Tensor
    first: bool

    @property
    def units(self) -> int:
        return self.answers.units

    @property
    def tokens(self) -> int:
        return self.answers.tokens

    @property
    def rows(self) -> tuple[int, ...]:
        return self.answers.rows

    def to(self, device: torch.device) -> PpoBatch:
        names = ("old_logps_N", "old_values_N", "advantages_N", "targets_N")
        moved = {name: getattr(self, name).to(device) for name in names}
        return replace(self, answers=self.answers.to(device), **moved)


def policy_objective(
    model: nn.Module, batch: PpoBatch, *, stage: PpoStage, decoder: nn.Module, head: nn.Module, hidden: Hidden
) -> loop.Loss:
    """PPO's clipped policy loss, less the entropy bonus, summed over the batch's tokens. model: the ActorCritic."""
    model.act_as(ADAPTER)
    answers = batch.answers
    hidden_ND = hidden(decoder, answers.ids_T, answers.layout).index_select(0, answers.predict_N)
    logps_N = logprobs(hidden_ND, answers.labels_N, head)
    log_ratio_N = (logps_N - batch.old_logps_N).detach()
    if batch.first and (off := log_ratio_N.abs().max().item()) > (_ROUNDING_ON_GPU if logps_N.is_cuda else 0.0):
        raise ProofError(
            f"in the iteration's first minibatch a token's log-probability is off by {off:.3g} nats from when it was "
            "sampled, where 0 is right: nothing was learnt from it. This is a defect; please report the recipe"
        )
    loss = policy_loss(logps_N, batch.old_logps_N, batch.advantages_N, stage.clip_range)
    total = loss.losses.sum()
    metrics = {
        "policy_loss": loss.losses.sum().detach(),
        "clip_fraction": loss.clipped.sum(),
        "update_kl": kl_k3(-log_ratio_N).sum(),
    }
    if stage.entropy_weight:
        total = total - stage.entropy_weight * entropies(hidden_ND, head).sum()
    return loop.Loss(total, metrics)


def value_objective(
    model: nn.Module, batch: PpoBatch, *, stage: PpoStage, decoder: nn.Module, hidden: Hidden
) -> loop.Loss:
    """The clipped value loss summed over the batch's tokens. model: the ActorCritic."""
    model.act_as(VALUE)
    answers = batch.answers
    values_N = model.values(hidden(decoder, answers.ids_T, answers.layout), answers.predict_N)
    loss = value_loss(values_N, batch.old_values_N, batch.targets_N, stage.value_clip_range)
    sums = {"value_loss": loss.losses.sum().detach(), "value_clip_fraction": loss.clipped.sum()}
    return loop.Loss(loss.losses.sum(), sums)
