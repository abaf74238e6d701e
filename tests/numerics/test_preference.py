import math
import os
from dataclasses import replace
from types import SimpleNamespace
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck

from finetune.numerics.preference import (
    PAIR_LOSSES,
    Knobs,
    PairLogps,
    first_loss,
    implicit_rewards,
    kto,
    kto_baseline,
    kto_mismatch,
    needs_reference,
    nll,
)
from finetune.recipe.learning_stages import DpoStage

LN2 = math.log(2)
WITH_REFERENCE = [name for name, loss in PAIR_LOSSES.items() if loss.reference]


def logps(chosen, rejected, ref=(None, None), tokens=(1, 1), dtype=torch.float32, grad=False):
    """One pair (or lists for several) as PairLogps."""
    values = [None if v is None else torch.tensor([v] if isinstance(v, float | int) else v, dtype=dtype)
              for v in (chosen, rejected, *ref)]  # fmt: skip
    counts = [torch.tensor([n] if isinstance(n, int) else n) for n in tokens]
    if grad:
        for value in values[:2]:
            value.requires_grad_()
    return PairLogps(*values, *counts)


def value(loss, pair, **knobs):
    return PAIR_LOSSES[loss].function(pair, Knobs(**knobs)).tolist()


# chosen: -10 against the reference's -12 (ratio 2) over 4 tokens; rejected: -9 against -8 (ratio -1) over 2 tokens.
# delta 3; mean delta 2/4 + 1/2 = 1; mean log-probabilities -2.5 and -4.5.
PAIR = logps(-10.0, -9.0, (-12.0, -8.0), (4, 2))


def minus_log_sigmoid(x):
    return math.log1p(math.exp(-x))


@pytest.mark.parametrize(
    ("loss", "knobs", "expected"),
    [
        ("sigmoid", {"beta": 0.5}, minus_log_sigmoid(1.5)),
        ("sigmoid", {"beta": math.log(3) / 3}, math.log(4 / 3)),  # beta delta = ln 3, sigmoid = 3/4
        # cDPO with e = 1/4: 3/4 ln(4/3) + 1/4 ln 4
        ("sigmoid", {"beta": math.log(3) / 3, "label_smoothing": 0.25}, 0.75 * math.log(4 / 3) + 0.25 * math.log(4)),
        ("hinge", {"beta": 0.1}, 0.7),
        ("hinge", {"beta": 0.5}, 0.0),
        ("ipo", {"beta": 0.1}, 16.0),  # (1 - 5)^2
        ("ipo", {"beta": 0.5}, 0.0),
        # (3/4 ln(4/3) - 1/4 ln 4) / (1/2)
        ("robust", {"beta": math.log(3) / 3, "label_smoothing": 0.25}, 1.5 * math.log(4 / 3) - 0.5 * math.log(4)),
        ("sigmoid_norm", {"beta": math.log(3)}, math.log(4 / 3)),  # mean delta 1
        ("simpo", {"beta": 2.0, "simpo_margin": 1.0}, minus_log_sigmoid(2 * (-2.5 + 4.5) - 1)),
        ("simpo", {"beta": 2.0, "simpo_margin": 4.0}, LN2),  # the gap is exactly the target margin
    ],
)
def test_by_hand(loss, knobs, expected):
    assert value(loss, PAIR, **knobs) == pytest.approx([expected], rel=1e-5, abs=1e-6)


def test_orpo_by_hand():
    # probabilities per token 1/2 (odds 1) and 1/4 (odds 1/3), whatever the lengths: odds ratio 3, sigmoid(ln 3) = 3/4
    pair = logps(3 * math.log(0.5), 5 * math.log(0.25), tokens=(3, 5))
    assert value("orpo", pair, beta=0.1) == pytest.approx([0.1 * math.log(4 / 3)])


def test_orpo_of_a_certain_answer_is_finite():
    pair = logps([0.0, -1e-8, -80.0], [-2.0, -2.0, -2.0], tokens=([1, 1, 1], [1, 1, 1]), grad=True)
    loss = PAIR_LOSSES["orpo"].function(pair, Knobs())
    loss.sum().backward()
    assert torch.isfinite(loss).all() and torch.isfinite(pair.chosen_P.grad).all()
    assert 0 < loss[0].item() < 1e-6 and loss[2].item() == pytest.approx(
        0.1 * (80 + math.log(1 / (math.e**2 - 1))), 1e-4
    )


@pytest.mark.parametrize("loss", WITH_REFERENCE)
@pytest.mark.parametrize("knobs", [Knobs(), Knobs(beta=2.0), Knobs(label_smoothing=0.2)])
def test_first_loss(loss, knobs):
    """While policy = reference every pair has the loss that a run checks at its start."""
    chosen, rejected = torch.tensor([-3.0, -400.0, -0.1]), torch.tensor([-70.0, -2.0, -0.1])
    tokens = torch.tensor([3, 200, 1])
    same = PairLogps(chosen, rejected, chosen, rejected, tokens, tokens.flip(0))
    at_start = PAIR_LOSSES[loss].function(same, knobs)
    assert at_start.tolist() == pytest.approx([first_loss(loss, knobs)] * 3, rel=1e-6)
    expected = {"hinge": 1.0, "ipo": 1 / (4 * knobs.beta**2)}
    assert first_loss(loss, knobs) == pytest.approx(expected.get(loss, LN2))


def test_what_needs_a_reference():
    names = get_args(DpoStage.model_fields["loss"].annotation)
    assert {name for name in names if not needs_reference(name)} == {"simpo", "orpo"}
    assert {*PAIR_LOSSES, "kto"} == set(names)  # every loss of the recipe, and no other
    assert [first_loss(name, Knobs()) for name in ("simpo", "orpo", "kto")] == [None] * 3
    without = replace(PAIR, ref_chosen_P=None, ref_rejected_P=None)
    for name in PAIR_LOSSES:
        if needs_reference(name):
            with pytest.raises(ValueError, match="needs the reference"):
                value(name, without)
        else:
            assert value(name, without) == value(name, PAIR)


@pytest.mark.parametrize("loss", PAIR_LOSSES)
def test_gradients_raise_the_chosen_and_lower_the_rejected(loss):
    pair = logps(-10.0, -9.0, (-10.5, -9.0), (4, 2), grad=True)
    PAIR_LOSSES[loss].function(pair, Knobs(label_smoothing=0.1)).sum().backward()
    assert pair.chosen_P.grad.item() < 0 < pair.rejected_P.grad.item()


def test_dpo_gradient_by_hand():
    pair = logps(-10.0, -9.0, (-10.0, -9.0), grad=True)
    PAIR_LOSSES["sigmoid"].function(pair, Knobs(beta=0.1)).sum().backward()
    assert pair.chosen_P.grad.item() == pytest.approx(-0.05)  # -beta sigmoid(0)


@pytest.mark.parametrize("loss", PAIR_LOSSES)
def test_gradient_is_that_of_the_value(loss):
    torch.manual_seed(0)
    chosen, rejected = (torch.randn(5, dtype=torch.float64).sub(6).requires_grad_() for _ in range(2))
    ref_chosen, ref_rejected = (torch.randn(5, dtype=torch.float64) - 6 for _ in range(2))
    tokens = torch.tensor([1, 2, 3, 4, 5]), torch.tensor([5, 1, 2, 2, 9])

    def run(chosen_P, rejected_P):
        pair = PairLogps(chosen_P, rejected_P, ref_chosen, ref_rejected, *tokens)
        return PAIR_LOSSES[loss].function(pair, Knobs(label_smoothing=0.1))

    assert gradcheck(run, (chosen, rejected))


ratio = st.floats(-30, 30, width=32)


@given(ratio, st.floats(0.0, 0.4))
def test_robust_is_dpo_without_the_noise(delta, e):
    """If a share e of the labels is flipped, robust's expectation is the clean sigmoid loss (what it is made for)."""
    knobs = Knobs(beta=0.3, label_smoothing=e)
    right, wrong = (
        PAIR_LOSSES["robust"].function(logps(d, 0.0, (0.0, 0.0), dtype=torch.float64), knobs) for d in (delta, -delta)
    )
    clean = value("sigmoid", logps(delta, 0.0, (0.0, 0.0), dtype=torch.float64), beta=0.3)
    assert ((1 - e) * right + e * wrong).tolist() == pytest.approx(clean, rel=1e-6, abs=1e-9)


@given(ratio, ratio, ratio, ratio, st.integers(1, 50), st.integers(1, 50))
def test_invariants(chosen, rejected, ref_chosen, ref_rejected, chosen_tokens, rejected_tokens):
    pair = logps(chosen, rejected, (ref_chosen, ref_rejected), (chosen_tokens, rejected_tokens), torch.float64)
    swapped = PairLogps(pair.rejected_P, pair.chosen_P, pair.ref_rejected_P, pair.ref_chosen_P,
                        pair.rejected_tokens_P, pair.chosen_tokens_P)  # fmt: skip
    for name in ("sigmoid", "sigmoid_norm"):  # the two orders are the two outcomes of one coin
        total = sum(math.exp(-value(name, order, beta=0.7)[0]) for order in (pair, swapped))
        assert total == pytest.approx(1.0)
    smooth = [value("sigmoid", order, label_smoothing=0.5)[0] for order in (pair, swapped)]
    assert smooth[0] == pytest.approx(smooth[1])  # a coin-toss label says nothing about the order
    one = replace(pair, chosen_tokens_P=torch.ones(1), rejected_tokens_P=torch.ones(1))
    assert value("sigmoid_norm", one) == pytest.approx(value("sigmoid", one))
    assert value("simpo", one, simpo_margin=0.0) == pytest.approx(value("sigmoid", logps(
        chosen, rejected, (0.0, 0.0), dtype=torch.float64)))  # fmt: skip


@pytest.mark.parametrize("loss", ["sigmoid", "robust", "sigmoid_norm", "simpo"])
def test_limits(loss):
    far = logps([500.0, -500.0], [-500.0, 500.0], ([0.0, 0.0], [0.0, 0.0]), ([1, 1], [1, 1]))
    better, worse = value(loss, far, beta=1.0, simpo_margin=0.0)
    assert better == pytest.approx(0.0, abs=1e-6) and worse == pytest.approx(1000.0)


def test_an_answer_without_tokens_does_not_divide_by_zero():
    empty = logps(0.0, -3.0, (0.0, -3.0), (0, 2))
    for name in ("ipo", "sigmoid_norm", "simpo", "orpo"):
        assert math.isfinite(value(name, empty)[0])


def test_kto_by_hand():
    # beta 1, z0 = 1. Desirable with ratio 1 + ln 3: 1 - 3/4. Undesirable with the same ratio: 1 - 1/4, weighed by 2.
    policy, ref = torch.tensor([-5.0 + 1 + math.log(3)] * 2), torch.tensor([-5.0] * 2)
    result = kto(policy, ref, torch.tensor([True, False]), torch.tensor(1.0), 1.0, (1.0, 2.0))
    assert result.tolist() == pytest.approx([0.25, 1.5])


def test_kto_starts_at_half_its_weight_and_pulls_the_right_way():
    ref = torch.tensor([-5.0, -700.0, -1.0])
    policy = ref.clone().requires_grad_()
    desirable = torch.tensor([True, False, True])
    baseline = kto_baseline(policy, ref)
    assert baseline.item() == 0.0 and not baseline.requires_grad
    result = kto(policy, ref, desirable, baseline, 0.1, (1.0, 1.5))
    assert result.tolist() == pytest.approx([0.5, 0.75, 0.5])
    result.sum().backward()
    assert policy.grad.tolist() == pytest.approx([-0.025, 0.0375, -0.025])  # -/+ beta weight / 4


def test_kto_baseline_by_hand():
    ref = torch.tensor([-2.0, -4.0])
    assert kto_baseline(torch.tensor([-1.0, -2.0]), ref).item() == 1.5
    assert kto_baseline(torch.tensor([-9.0, -2.0]), ref).item() == 0.0  # an estimate below 0 is no divergence
    assert kto_mismatch(4) == [3, 0, 1, 2]
    with pytest.raises(ValueError, match="at least two"):
        kto_mismatch(1)


def test_kto_saturates():
    """Far on the right side there is nothing to gain; far on the wrong side the loss stops at the weight."""
    ref, desirable = torch.zeros(4), torch.tensor([True, False, True, False])
    result = kto(torch.tensor([900.0, -900.0, -900.0, 900.0]), ref, desirable, 0.0, 1.0)
    assert result.tolist() == [0.0, 0.0, 1.0, 1.0]


def test_nll_is_a_mean_over_tokens():
    # 3 nats over 1 token and 3 nats over 5: 6 nats / 6 tokens, not the mean of 3 and 0.6
    chosen, tokens = torch.tensor([-3.0, -3.0]), torch.tensor([1, 5])
    assert nll(chosen, tokens).item() == 1.0
    parts = [nll(chosen[part], tokens[part], tokens.sum()) for part in (slice(0, 1), slice(1, 2))]
    assert sum(parts).item() == 1.0


def test_rewards():
    pairs = logps([-1.0, -3.0, -2.0], [-2.0, -2.0, -2.0], ([-2.0, -2.0, -2.0],) * 2, ([2] * 3, [4] * 3), grad=True)
    rewards = implicit_rewards("sigmoid", pairs, 0.5)
    assert rewards.chosen_P.tolist() == [0.5, -0.5, 0.0] and rewards.rejected_P.tolist() == [0.0, 0.0, 0.0]
    assert rewards.accuracy_P.tolist() == [1.0, 0.0, 0.5]
    assert rewards.margin_P.tolist() == [0.5, -0.5, 0.0] and not rewards.margin_P.requires_grad
    assert implicit_rewards("simpo", pairs, 2.0).chosen_P.tolist() == [-1.0, -3.0, -2.0]
    assert implicit_rewards("orpo", pairs, 2.0).rejected_P.tolist() == [-1.0, -1.0, -1.0]


@pytest.fixture(scope="module")
def trl():
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    pytest.importorskip("trl")
    from trl.experimental.cpo import CPOTrainer
    from trl.experimental.orpo import ORPOTrainer

    return SimpleNamespace(cpo=CPOTrainer, orpo=ORPOTrainer)


def batch():
    torch.manual_seed(1)
    tokens = torch.randint(1, 60, (2, 64))
    return PairLogps(*(-3 * torch.rand(2, 64) * tokens), None, None, *tokens)


def test_orpo_equals_trl(trl):
    """ORPOTrainer.odds_ratio_loss, TRL's own code, given what it reads of the trainer: its beta and device."""
    trainer = SimpleNamespace(beta=0.3, accelerator=SimpleNamespace(device=torch.device("cpu")))
    pair = batch()
    theirs, chosen, rejected, _, _ = trl.orpo.odds_ratio_loss(trainer, *pair.mean_logps())
    ours = PAIR_LOSSES["orpo"].function(pair, Knobs(beta=0.3))
    torch.testing.assert_close(ours, -theirs, rtol=1e-6, atol=1e-7)
    rewards = implicit_rewards("orpo", pair, 0.3)
    assert torch.equal(rewards.chosen_P, chosen) and torch.equal(rewards.rejected_P, rejected)


@pytest.mark.parametrize(
    ("loss", "smoothing"), [("simpo", 0.0), ("sigmoid", 0.0), ("sigmoid", 0.2), ("hinge", 0.0), ("ipo", 0.0)]
)
def test_equals_trl_cpo(trl, loss, smoothing):
    """CPOTrainer.cpo_loss is the same formulas without a reference (log ref = 0), and has cDPO's label smoothing."""
    trainer = SimpleNamespace(
        alpha=0.0, beta=1.5, simpo_gamma=0.5, label_smoothing=smoothing, loss_type=loss,
        accelerator=SimpleNamespace(device=torch.device("cpu")),
    )  # fmt: skip
    pair = batch()
    pair = replace(pair, ref_chosen_P=torch.zeros(64), ref_rejected_P=torch.zeros(64))
    given = pair.mean_logps() if loss in ("simpo", "ipo") else (pair.chosen_P, pair.rejected_P)
    expected, _, _ = trl.cpo.cpo_loss(trainer, *given)
    result = PAIR_LOSSES[loss].function(pair, Knobs(beta=1.5, simpo_margin=0.5, label_smoothing=smoothing))
    torch.testing.assert_close(result, expected, rtol=1e-6, atol=1e-6)
