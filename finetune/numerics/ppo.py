"""The arithmetic of proximal policy optimisation, as pure functions.

Tokens of all answers stand end to end: N tokens of B answers, `lengths` says how many of N each answer has. Sources:
PPO (Schulman et al. 2017, arXiv:1707.06347), GAE (Schulman et al. 2016, arXiv:1506.02438, eq. 16), RLHF's token
rewards and the adaptive KL weight (Ziegler et al. 2019, arXiv:1909.08593, section 2.2), Llama 2 (arXiv:2307.09288,
section 3.2.3), KL estimators (Schulman, "Approximating KL divergence", 2020).

Letters: N tokens, B answers, L longest answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

SMALL = 1e-8
"""Added to a deviation that is divided by, so that equal numbers whiten to 0."""
KL_STEP = 0.1
KL_ERROR = 0.2
"""Ziegler et al.: the KL weight moves by 0.1 of the relative error, which counts as 0.2 at most."""


class Clipped(NamedTuple):
    """losses: [N]. clipped: [N] bool, where the clipped term is the one that counts."""

    losses: Tensor
    clipped: Tensor


def shaped_scores(
    scores_B: Tensor, finished_B: Tensor, *, whiten: bool, clip: float | None, no_stop_penalty: float
) -> Tensor:
    """[B] what each answer earns: its score, whitened over the batch if asked, less the penalty where the answer was
    cut, clipped to ±clip. finished_B: bool."""
    shaped = whitened(scores_B) if whiten else scores_B
    shaped = shaped - no_stop_penalty * (~finished_B).to(shaped.dtype)
    return shaped if clip is None else shaped.clamp(-clip, clip)


def whitened(values: Tensor) -> Tensor:
    """Shifted and scaled to mean 0 and (population) deviation 1; equal values become exactly 0."""
    centred = values - values.mean()
    if values.numel() == 0 or bool(values.max() == values.min()):
        return torch.zeros_like(values)
    return centred / (centred.square().mean().sqrt() + SMALL)


def token_rewards(earned_B: Tensor, log_ratios_N: Tensor, kl: float, lengths: Sequence[int]) -> Tensor:
    """[N] reward of every token: -kl times its log-ratio to the reference, and at an answer's last token what the
    answer earned. log_ratios_N: log-probability under the policy minus that under the reference, in nats."""
    rewards_N = -kl * log_ratios_N
    ends = torch.tensor(lengths, device=rewards_N.device).cumsum(0) - 1
    rewards_N[ends] += earned_B.to(rewards_N.dtype)
    return rewards_N


def gae(
    rewards_N: Tensor, values_N: Tensor, lengths: Sequence[int], *, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Generalised advantages [N] and what the value should have been, advantage + value [N].

    values_N[t] is the value of the state before token t; after an answer's last token it is 0, whether the answer
    stopped or was cut. A_t = sum over l of (gamma lam)^l (r_{t+l} + gamma V_{t+l+1} - V_{t+l}).
    """
    rewards_BL, values_BL = _rows(rewards_N, lengths), _rows(values_N, lengths)
    advantages_BL = torch.zeros_like(rewards_BL)
    later = next_value = torch.zeros_like(rewards_BL[:, 0])
    for t in range(rewards_BL.shape[1] - 1, -1, -1):  # padding beyond an answer's end has reward and value 0
        delta = rewards_BL[:, t] + gamma * next_value - values_BL[:, t]
        later = delta + gamma * lam * later
        advantages_BL[:, t] = later
        next_value = values_BL[:, t]
    advantages_N = _flat(advantages_BL, lengths)
    return advantages_N, advantages_N + values_N


def discounted_returns(rewards_N: Tensor, lengths: Sequence[int], gamma: float) -> Tensor:
    """[N] sum of an answer's rewards from each token on, discounted by gamma a token."""
    rewards_BL = _rows(rewards_N, lengths)
    returns_BL = torch.zeros_like(rewards_BL)
    later = torch.zeros_like(rewards_BL[:, 0])
    for t in range(rewards_BL.shape[1] - 1, -1, -1):
        later = rewards_BL[:, t] + gamma * later
        returns_BL[:, t] = later
    return _flat(returns_BL, lengths)


def whitened_advantages(advantages_N: Tensor, returns_N: Tensor) -> Tensor:
    """Advantages with mean 0, scaled to the deviation min(1, deviation of the returns / deviation of the advantages).

    returns_N: `discounted_returns`. Plain whitening would blow the value model's errors up to full size where answers
    hardly differ in what they earn. A value worse than a constant makes advantages that spread more than the returns;
    they are scaled down by as much, and where all returns are equal there is nothing to learn and all are 0.
    """
    if bool(returns_N.max() == returns_N.min()):
        return torch.zeros_like(advantages_N)
    spread = advantages_N.std(correction=0)
    return whitened(advantages_N) * (returns_N.std(correction=0) / (spread + SMALL)).clamp(max=1.0)


def policy_loss(logps_N: Tensor, old_logps_N: Tensor, advantages_N: Tensor, clip_range: float) -> Clipped:
    """PPO's clipped objective (eq. 7), negated: -min(r A, clip(r, 1 - c, 1 + c) A), r = exp(logp - old logp)."""
    ratio_N = (logps_N - old_logps_N).exp()
    plain_N = ratio_N * advantages_N
    clipped_N = ratio_N.clamp(1 - clip_range, 1 + clip_range) * advantages_N
    return Clipped(-torch.minimum(plain_N, clipped_N), (clipped_N < plain_N).detach())


def value_loss(values_N: Tensor, old_values_N: Tensor, targets_N: Tensor, clip_range: float | None) -> Clipped:
    """Half the squared error; with a range the larger of it and that of the value held within the range of its old one,
    so that a value gains nothing by moving further (PPO's reference implementation)."""
    plain_N = (values_N - targets_N).square()
    if clip_range is None:
        return Clipped(0.5 * plain_N, torch.zeros_like(plain_N, dtype=torch.bool))
    held_N = old_values_N + (values_N - old_values_N).clamp(-clip_range, clip_range)
    clipped_N = (held_N - targets_N).square()
    return Clipped(0.5 * torch.maximum(plain_N, clipped_N), (clipped_N > plain_N).detach())


def kl_k1(log_ratios: Tensor) -> Tensor:
    """Unbiased estimate of KL(policy || reference) from the policy's samples, element by element: log p - log q. Can be
    negative. log_ratios: log p - log q."""
    return log_ratios


def kl_k2(log_ratios: Tensor) -> Tensor:
    """(log p - log q)^2 / 2: biased, never negative, low variance."""
    return log_ratios.square() / 2


def kl_k3(log_ratios: Tensor) -> Tensor:
    """q / p - 1 - log(q / p): unbiased and never negative."""
    return (-log_ratios).exp() - 1 + log_ratios


def adapted_kl(weight: float, measured: float, target: float) -> float:
    """The next iteration's KL weight: weight (1 + 0.1 e), e = (measured - target) / target held within ±0.2."""
    error = (measured - target) / target
    return weight * (1 + KL_STEP * max(-KL_ERROR, min(KL_ERROR, error)))


def explained_variance(values_N: Tensor, targets_N: Tensor) -> float:
    """1 - Var(target - value) / Var(target): 1 = exact, 0 = no better than a constant. 0 where targets do not vary."""
    variance = targets_N.var(correction=0).item()
    return 0.0 if variance == 0.0 else 1.0 - (targets_N - values_N).var(correction=0).item() / variance


def _rows(values_N: Tensor, lengths: Sequence[int]) -> Tensor:
    return pad_sequence(list(values_N.split(list(lengths))), batch_first=True)


def _flat(values_BL: Tensor, lengths: Sequence[int]) -> Tensor:
    return torch.cat([row[:length] for row, length in zip(values_BL, lengths, strict=True)])
