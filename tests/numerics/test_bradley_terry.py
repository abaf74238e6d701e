import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from finetune.numerics.bradley_terry import LLAMA2_MARGINS, pair_loss, ranking_loss, ranking_pairs
from finetune.shapes import RATINGS

score = st.floats(-20, 20, width=32)


def test_by_hand():
    # equal scores: -log(1/2). A gap of ln 3: sigmoid = 3/4. A gap of ln 3 with margin ln 3: back to 1/2.
    chosen, rejected = torch.tensor([0.7, math.log(3), math.log(3)]), torch.tensor([0.7, 0.0, 0.0])
    margin = torch.tensor([0.0, 0.0, math.log(3)])
    loss = pair_loss(chosen, rejected, margin)
    assert loss.tolist() == pytest.approx([math.log(2), math.log(4 / 3), math.log(2)])


def test_centring_by_hand():
    # scores 1 and 2 (sum 3) with weight 0.01: 0.09 more
    plain = pair_loss(torch.tensor([1.0]), torch.tensor([2.0]))
    centred = pair_loss(torch.tensor([1.0]), torch.tensor([2.0]), centring=0.01)
    assert plain.item() == pytest.approx(math.log1p(math.e))
    assert (centred - plain).item() == pytest.approx(0.09)


@pytest.mark.parametrize(("gap", "loss"), [(200.0, 0.0), (-200.0, 200.0)])
def test_far_apart_is_finite(gap, loss):
    chosen = torch.tensor([gap], requires_grad=True)
    result = pair_loss(chosen, torch.zeros(1))
    result.sum().backward()
    assert result.item() == pytest.approx(loss)
    assert chosen.grad.item() == pytest.approx(-1.0 if gap < 0 else 0.0)


@given(score, score, st.floats(0, 3, width=32))
def test_gradient_pulls_apart(chosen, rejected, margin):
    """d/dr_c = -sigmoid(m - gap), d/dr_r its opposite: the sum of a pair's scores does not move without centring."""
    chosen_P, rejected_P = (torch.tensor([value], requires_grad=True) for value in (chosen, rejected))
    pair_loss(chosen_P, rejected_P, torch.tensor([margin])).sum().backward()
    assert chosen_P.grad.item() == pytest.approx(-1 / (1 + math.exp(chosen - rejected - margin)), rel=1e-4, abs=1e-8)
    assert chosen_P.grad.item() == -rejected_P.grad.item()


@given(score, score)
def test_two_orders_are_the_two_outcomes_of_one_coin(a, b):
    """exp(-loss) is the probability of an order, so the two orders' add up to 1."""
    a, b = torch.tensor([a], dtype=torch.float64), torch.tensor([b], dtype=torch.float64)
    assert (torch.exp(-pair_loss(a, b)) + torch.exp(-pair_loss(b, a))).item() == pytest.approx(1.0)


def test_margins_of_llama2():
    small, large = LLAMA2_MARGINS["llama2-small"], LLAMA2_MARGINS["llama2-large"]
    assert [small[rating] for rating in RATINGS] == pytest.approx([1, 2 / 3, 1 / 3, 0])
    assert [large[rating] for rating in RATINGS] == [3, 2, 1, 0]
    assert small["slightly_better"] == pytest.approx(1 / 3)


def test_pairs_of_a_ranking():
    assert ranking_pairs(2, "all") == ranking_pairs(2, "top") == [(0, 1)]
    assert ranking_pairs(4, "all") == [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    assert ranking_pairs(4, "top") == [(0, 1), (0, 2), (0, 3)]
    with pytest.raises(ValueError, match="at least two"):
        ranking_pairs(1, "all")


@given(st.integers(2, 12))
def test_number_of_pairs(count):
    assert len(set(ranking_pairs(count, "all"))) == count * (count - 1) // 2
    assert len(set(ranking_pairs(count, "top"))) == count - 1


def test_ranking_by_hand():
    # gaps ln 3 (0 over 1), ln 3 + 0 (0 over 2), 0 (1 over 2): losses ln 4/3, ln 4/3, ln 2
    scores = torch.tensor([math.log(3), 0.0, 0.0])
    assert ranking_loss(scores).item() == pytest.approx((2 * math.log(4 / 3) + math.log(2)) / 3)
    assert ranking_loss(scores, "top").item() == pytest.approx(math.log(4 / 3))


def test_margin_of_a_ranking():
    scores = torch.tensor([2.0, 1.0, 0.5])
    each = ranking_loss(scores, margin=torch.tensor([0.5, 0.5, 0.5]))
    assert ranking_loss(scores, margin=0.5).item() == each.item() > ranking_loss(scores).item()
    two = pair_loss(scores[:1], scores[1:2], torch.tensor([0.25]), centring=0.1)
    assert ranking_loss(scores[:2], margin=0.25, centring=0.1).item() == pytest.approx(two.item())


def test_ranking_gradient_orders_the_answers():
    scores = torch.zeros(4, requires_grad=True)
    ranking_loss(scores).backward()
    # with equal scores each of the 6 pairs pulls by 1/2: the best wins 3, loses 0; the next 2 to 1; …
    assert scores.grad.tolist() == pytest.approx([-3 / 12, -1 / 12, 1 / 12, 3 / 12])
