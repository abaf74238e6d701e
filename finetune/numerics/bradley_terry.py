"""The Bradley-Terry loss of reward models: a better answer scores higher, by the odds that people prefer it.

P(a beats b) = sigmoid(r_a - r_b) (Bradley and Terry 1952). Scores r are in nats of log-odds and have no zero of their
own: adding a constant to all scores of a prompt changes nothing, which is what `centring` is for.

Letters: P pairs, K answers of one ranking. Scores are float32 (a bfloat16 difference of two scores near 8 is exact to
1/32 only): cast them before, not here.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

from torch import Tensor
from torch.nn.functional import logsigmoid

from finetune.shapes import RATINGS

Pairs = Literal["all", "top"]

LLAMA2_MARGINS: Mapping[str, Mapping[str, float]] = MappingProxyType(
    {
        "llama2-small": MappingProxyType(dict(zip(RATINGS, (1.0, 2 / 3, 1 / 3, 0.0), strict=True))),
        "llama2-large": MappingProxyType(dict(zip(RATINGS, (3.0, 2.0, 1.0, 0.0), strict=True))),
    }
)
"""m(r) of Llama 2's eq. (2), in nats, by the rating of a pair (Touvron et al. 2023, arXiv:2307.09288, appendix, table
of the two margin variants). The paper does not say which of the two the released models used."""


def pair_loss(chosen_P: Tensor, rejected_P: Tensor, margin_P: Tensor | None = None, centring: float = 0.0) -> Tensor:
    """Loss of each pair: -log sigmoid(r_c - r_r - m) + centring (r_c + r_r)^2, in nats.

    chosen_P, rejected_P: [P] scores of the better and the worse answer. margin_P: [P] by how much the better one should
    lead; None = 0. centring: weight of the term that keeps scores around 0, at least 0.
    Returns [P]. The loss of a batch is the mean over its pairs; that is what TRL's RewardTrainer computes, whose
    `center_rewards_coefficient` is `centring`.

    Source: Llama 2 (arXiv:2307.09288) eq. (1) and, with the margin, eq. (2); centring: Eisenstein et al. 2023
    (arXiv:2312.09244) eq. (2). Deviations: none.
    """
    gap_P = chosen_P - rejected_P
    loss_P = -logsigmoid(gap_P if margin_P is None else gap_P - margin_P)
    return loss_P if centring == 0 else loss_P + centring * (chosen_P + rejected_P).square()


def ranking_pairs(count: int, which: Pairs) -> list[tuple[int, int]]:
    """The (better, worse) index pairs of a ranking of `count` answers, best first.

    all: each of the count (count - 1) / 2 pairs (InstructGPT, arXiv:2203.02155, section 3.5). top: the best against
    each of the others, count - 1 pairs. Two answers make the same single pair either way.
    """
    if count < 2:
        raise ValueError(f"a ranking needs at least two answers, not {count}")
    last_better = count - 1 if which == "all" else 1
    return [(better, worse) for better in range(last_better) for worse in range(better + 1, count)]


def ranking_loss(
    scores_K: Tensor, which: Pairs = "all", margin: Tensor | float | None = None, centring: float = 0.0
) -> Tensor:
    """Loss of one ranking: the mean of `pair_loss` over its pairs, in nats.

    scores_K: [K] scores, best answer first. margin: one number for all pairs, or one for each, in the order of
    `ranking_pairs`. Returns [] (a scalar).

    The mean is over pairs, so every ranking weighs the same however long it is (InstructGPT eq. 1 divides by K choose 2
    for this reason); the mean over the rankings of a batch is then the mean over pairs when all have two answers.
    """
    pairs = ranking_pairs(len(scores_K), which)
    better, worse = ([pair[side] for pair in pairs] for side in (0, 1))
    chosen_P = scores_K[better]
    margin_P = None if margin is None else chosen_P.new_zeros(len(pairs)) + margin
    return pair_loss(chosen_P, scores_K[worse], margin_P, centring).mean()
