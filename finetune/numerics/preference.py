"""Losses of direct preference learning (DPO and its relatives), from log-probabilities of whole answers.

Every loss of pairs is a pure function [P] -> [P] in PAIR_LOSSES; the loss of a batch is the mean over its pairs. KTO
learns from single answers and has its own two functions. What a loss is given says what it needs: `needs_reference`.

Letters: P pairs, N single answers. c: chosen, r: rejected. log pi, log ref: log-probability of all tokens of an answer
under the policy and the reference, summed, in nats, float32. |y|: scored tokens of an answer.
    ratio = log pi - log ref        delta = ratio_c - ratio_r        mean ratio = ratio / |y|
Oracle: TRL 1.16, which every loss here equals unless its docstring says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import log

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, relu

SURE = -1e-6
"""Largest mean log-probability that the odds ratio is computed of: above it 1 - p is lost in float32 (eps 1.2e-7)."""


@dataclass(frozen=True)
class PairLogps:
    """What the losses of pairs are computed from.

    chosen_P, rejected_P: [P] log pi, with gradient. ref_chosen_P, ref_rejected_P: [P] log ref, without; None for a loss
    that needs no reference. chosen_tokens_P, rejected_tokens_P: [P] |y|, the number of terms in each sum.
    An answer without scored tokens has log-probability 0 and counts as one token (TRL's clamp).
    """

    chosen_P: Tensor
    rejected_P: Tensor
    ref_chosen_P: Tensor | None
    ref_rejected_P: Tensor | None
    chosen_tokens_P: Tensor
    rejected_tokens_P: Tensor

    def ratios(self) -> tuple[Tensor, Tensor]:
        """log pi - log ref of chosen and rejected, [P] each."""
        if self.ref_chosen_P is None or self.ref_rejected_P is None:
            raise ValueError("this loss needs the reference's log-probabilities; see needs_reference")
        return self.chosen_P - self.ref_chosen_P, self.rejected_P - self.ref_rejected_P

    def delta(self) -> Tensor:
        """ratio_c - ratio_r, [P]: how much more than the reference the policy prefers the chosen answer, in nats."""
        chosen_P, rejected_P = self.ratios()
        return chosen_P - rejected_P

    def mean_delta(self) -> Tensor:
        """ratio_c / |y_c| - ratio_r / |y_r|, [P], in nats per token."""
        chosen_P, rejected_P = self.ratios()
        return chosen_P / self.chosen_tokens_P.clamp(min=1) - rejected_P / self.rejected_tokens_P.clamp(min=1)

    def mean_logps(self) -> tuple[Tensor, Tensor]:
        """log pi / |y| of chosen and rejected, [P] each, in nats per token."""
        return (
            self.chosen_P / self.chosen_tokens_P.clamp(min=1),
            self.rejected_P / self.rejected_tokens_P.clamp(min=1),
        )


@dataclass(frozen=True)
class Knobs:
    """Settings of the losses; the recipe's keys of a dpo stage (docs/preference.md)."""

    beta: float = 0.1
    """Strength of the pull to the reference, per nat. orpo: weight of the odds ratio. Above 0."""
    label_smoothing: float = 0.0
    """Assumed share of pairs that are the wrong way round, in [0, 0.5)."""
    simpo_margin: float = 0.5
    """simpo's gamma, in units of beta times nats per token."""


def sigmoid(logps: PairLogps, knobs: Knobs) -> Tensor:
    """DPO: -log sigmoid(beta delta). ln 2 while policy = reference.

    Rafailov et al. 2023 (arXiv:2305.18290) eq. (7). With label smoothing e it is conservative DPO (Mitchell 2023):
    -(1 - e) log sigmoid(beta delta) - e log sigmoid(-beta delta), smallest at beta delta = log((1 - e) / e).
    Deviation: TRL 1.16 has no smoothing on `sigmoid` (it reads the setting for other losses only); equal at e = 0.
    """
    logits_P = knobs.beta * logps.delta()
    e = knobs.label_smoothing
    return -logsigmoid(logits_P) if e == 0 else -(1 - e) * logsigmoid(logits_P) - e * logsigmoid(-logits_P)


def hinge(logps: PairLogps, knobs: Knobs) -> Tensor:
    """max(0, 1 - beta delta). 1 while policy = reference; no gradient once beta delta > 1.

    SLiC-HF's loss (Zhao et al. 2023, arXiv:2305.10425) on DPO's rewards, as in RSO (Liu et al. 2023, arXiv:2309.06657).
    """
    return relu(1 - knobs.beta * logps.delta())


def ipo(logps: PairLogps, knobs: Knobs) -> Tensor:
    """(mean delta - 1 / (2 beta))^2, where beta is the paper's tau. 1 / (4 beta^2) while policy = reference.

    Azar et al. 2023 (arXiv:2310.12036) eq. (17). Deviation, the same as TRL's (confirmed to TRL by the authors): ratios
    are means over an answer's tokens, not sums, so beta means the same for short and long answers.
    """
    return (logps.mean_delta() - 1 / (2 * knobs.beta)).square()


def robust(logps: PairLogps, knobs: Knobs) -> Tensor:
    """(-(1 - e) log sigmoid(beta delta) + e log sigmoid(-beta delta)) / (1 - 2 e), with e the label smoothing.

    Chowdhury et al. 2024 (rDPO, arXiv:2403.00409): an unbiased estimate of `sigmoid` on clean labels when a
    share e of the labels is flipped. Equals `sigmoid` at e = 0. Unlike it, a loss can be negative.
    """
    e, logits_P = knobs.label_smoothing, knobs.beta * logps.delta()
    return (-(1 - e) * logsigmoid(logits_P) + e * logsigmoid(-logits_P)) / (1 - 2 * e)


def sigmoid_norm(logps: PairLogps, knobs: Knobs) -> Tensor:
    """Length-normalised DPO: -log sigmoid(beta mean delta). ln 2 while policy = reference.

    Tulu 3 (Lambert et al. 2024, arXiv:2411.15124); beta is per nat per token and so larger: Tulu 3 used 5.
    """
    return -logsigmoid(knobs.beta * logps.mean_delta())


def simpo(logps: PairLogps, knobs: Knobs) -> Tensor:
    """-log sigmoid(beta (log pi(c) / |c| - log pi(r) / |r|) - gamma). No reference.

    Meng et al. 2024 (arXiv:2405.14734) eq. (6); the paper's beta is 2 to 10 and gamma / beta 0.1 to 0.8. TRL has it in
    its experimental CPOTrainer (loss_type simpo, cpo_alpha 0).
    """
    chosen_P, rejected_P = logps.mean_logps()
    return -logsigmoid(knobs.beta * (chosen_P - rejected_P) - knobs.simpo_margin)


def orpo(logps: PairLogps, knobs: Knobs) -> Tensor:
    """The odds ratio's part of ORPO: -beta log sigmoid(log odds(c) - log odds(r)), odds(p) = p / (1 - p). No reference.

    p is the mean-token probability exp(log pi / |y|). Hong et al. 2024 (arXiv:2403.07691) eqs. (4) and (7); beta is
    the paper's lambda. The whole loss is this plus `nll` of the chosen answers with weight 1: the caller adds it.
    Deviations: mean log-probabilities are capped at SURE, so an answer of probability 1 has finite odds and gradient 0
    where TRL's experimental ORPOTrainer has NaN. TRL's own NLL also covers the prompt and so differs from `nll`, which
    is the paper's log p(y|x).
    """
    chosen_P, rejected_P = (mean_P.clamp(max=SURE) for mean_P in logps.mean_logps())
    log_odds_P = (chosen_P - rejected_P) - (_log1mexp(chosen_P) - _log1mexp(rejected_P))
    return -knobs.beta * logsigmoid(log_odds_P)


def _log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(x)) for x <= SURE, without cancellation (Maechler 2012: the branches meet at -ln 2)."""
    return torch.where(x > -log(2), torch.log(-torch.expm1(x)), torch.log1p(-torch.exp(x)))


@dataclass(frozen=True)
class PairLoss:
    """A loss of pairs and what it needs.

    function: [P] losses. reference: needs log ref. smoothing: reads label_smoothing. nll: the chosen answers' NLL
    belongs to it with weight 1, whatever the recipe's nll_weight adds. start: its value while policy = reference, None
    where it has no fixed one.
    """

    function: Callable[[PairLogps, Knobs], Tensor]
    reference: bool = True
    smoothing: bool = False
    nll: bool = False
    start: Callable[[Knobs], float] | None = None


def _ln2(_: Knobs) -> float:
    return log(2)


PAIR_LOSSES: dict[str, PairLoss] = {
    "sigmoid": PairLoss(sigmoid, smoothing=True, start=_ln2),
    "hinge": PairLoss(hinge, start=lambda _: 1.0),
    "ipo": PairLoss(ipo, start=lambda knobs: 1 / (4 * knobs.beta**2)),
    "robust": PairLoss(robust, smoothing=True, start=_ln2),
    "sigmoid_norm": PairLoss(sigmoid_norm, start=_ln2),
    "simpo": PairLoss(simpo, reference=False),
    "orpo": PairLoss(orpo, reference=False, nll=True),
}


def needs_reference(loss: str) -> bool:
    """Whether a loss of the recipe (`DpoStage.loss`, kto included) is computed against reference log-probabilities."""
    return loss == "kto" or PAIR_LOSSES[loss].reference


def first_loss(loss: str, knobs: Knobs) -> float | None:
    """The loss of every pair while the policy still is the reference; None where that is no fixed number.

    Rounding apart this is exact, so a run whose first loss differs has wrong log-probabilities. None for simpo and orpo
    (no reference) and for kto, whose answers each start at half their weight.
    """
    start = None if loss == "kto" else PAIR_LOSSES[loss].start
    return None if start is None else start(knobs)


def kto_mismatch(count: int) -> list[int]:
    """For each of `count` prompts the index of the answer it is paired with for KTO's baseline: the one before it.

    [count - 1, 0, 1, …], TRL's order. One answer alone can only be paired with itself, and two neighbours with the same
    prompt are not mismatched at all: a batch needs at least two, and neighbours with different prompts.
    """
    if count < 2:
        raise ValueError("KTO's baseline needs at least two answers in a batch: set train.batch_size to 2 or more")
    return [count - 1, *range(count - 1)]


def kto_baseline(mismatched_N: Tensor, ref_mismatched_N: Tensor) -> Tensor:
    """z0: an estimate of KL(policy || reference) from mismatched answers, in nats, a scalar without gradient.

    mismatched_N, ref_mismatched_N: [N] log pi(y_j | x_i) and log ref(y_j | x_i), summed over the tokens of y_j, where
    j = kto_mismatch(N)[i]: each prompt with another prompt's answer. Needs no gradient: compute it under no_grad.
    z0 = max(0, mean of log pi - log ref) over one batch; with several processes take the mean of all of them first.

    Ethayarajh et al. 2024 (arXiv:2402.01306) section 4.1, where the answer comes from the next row instead of the one
    before. TRL's batch for this is the micro-batch of one device.
    """
    return (mismatched_N - ref_mismatched_N).detach().mean().clamp(min=0)


def kto(
    logps_N: Tensor,
    ref_N: Tensor,
    desirable_N: Tensor,
    baseline: Tensor | float,
    beta: float,
    weights: tuple[float, float] = (1.0, 1.0),
) -> Tensor:
    """KTO loss of each answer, [N].

    Desirable: w_D (1 - sigmoid(beta (ratio - z0))); undesirable: w_U (1 - sigmoid(beta (z0 - ratio))).

    logps_N, ref_N: [N] log pi and log ref. desirable_N: [N] bool. baseline: z0 of `kto_baseline`. weights: (w_D, w_U).
    Returns [N], each in (0, weight), half the weight while policy = reference; a batch's loss is the mean over answers.

    Ethayarajh et al. 2024 (arXiv:2402.01306) section 4.1. TRL's KTOTrainer returns the same values with all desirable
    answers first; here they stay in the order of the batch.
    """
    gain_N = beta * (logps_N - ref_N - baseline)
    sign_N = torch.where(desirable_N, 1.0, -1.0)
    weight_N = torch.where(desirable_N, weights[0], weights[1]).to(gain_N.dtype)
    return weight_N * torch.sigmoid(-sign_N.to(gain_N.dtype) * gain_N)


def nll(chosen_P: Tensor, chosen_tokens_P: Tensor, batch_tokens: Tensor | float | None = None) -> Tensor:
    """Negative log-likelihood of chosen answers, in nats per token, a scalar: -sum of log pi / sum of tokens.

    chosen_P, chosen_tokens_P: [P]. The mean is over tokens, so long answers weigh more. batch_tokens: chosen tokens of
    the whole batch when these P pairs are a part of it; the parts' values then add up to the batch's.

    TRL's `sft` in DPOConfig(loss_type=["sigmoid", "sft"], loss_weights=[1, w]) is this with one micro-batch as the
    batch; Llama 3 (arXiv:2407.21783) section 4.1.4 adds it with weight 0.2.
    """
    return -chosen_P.sum() / (chosen_tokens_P.sum() if batch_tokens is None else batch_tokens)


@dataclass(frozen=True)
class Rewards:
    """Implicit rewards of P pairs, without gradient, in units of beta times nats: what is logged."""

    chosen_P: Tensor
    rejected_P: Tensor

    @property
    def margin_P(self) -> Tensor:
        """[P] chosen minus rejected."""
        return self.chosen_P - self.rejected_P

    @property
    def accuracy_P(self) -> Tensor:
        """[P] 1 where the chosen answer has the higher reward, 0 where the lower, 1/2 for a tie.

        TRL counts a tie as wrong, and so reports 0 % before the first step, when all are ties; this says 50 %, chance.
        """
        return (torch.sign(self.margin_P) + 1) / 2


def implicit_rewards(loss: str, logps: PairLogps, beta: float) -> Rewards:
    """beta (log pi - log ref) of both answers; beta log pi / |y| for simpo and orpo, which have no reference.

    Rafailov et al. 2023 eq. (5) without the part that cancels in a pair. The same quantities as TRL logs: summed over
    tokens for ipo and sigmoid_norm too, although those losses use means.
    """
    chosen_P, rejected_P = logps.ratios() if needs_reference(loss) else logps.mean_logps()
    return Rewards(beta * chosen_P.detach(), beta * rejected_P.detach())
