"""PPO's arithmetic, on numbers worked by hand and against slow versions written from the papers' formulas."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from finetune.numerics import ppo
from finetune.numerics.logprobs import entropies, logprobs, logprobs_and_entropies


def test_gae_by_hand() -> None:
    # One answer of three tokens, reward 1 at its end, gamma 0.9, lambda 0.5.
    # Deltas: 0 + 0.9*0.4 - 0.2 = 0.16; 0 + 0.9*0.6 - 0.4 = 0.14; 1 + 0 - 0.6 = 0.4.
    # Advantages from the back: 0.4; 0.14 + 0.45*0.4 = 0.32; 0.16 + 0.45*0.32 = 0.304.
    rewards, values = torch.tensor([0.0, 0.0, 1.0]), torch.tensor([0.2, 0.4, 0.6])
    advantages, targets = ppo.gae(rewards, values, [3], gamma=0.9, lam=0.5)
    assert advantages.tolist() == pytest.approx([0.304, 0.32, 0.4])
    assert targets.tolist() == pytest.approx([0.504, 0.72, 1.0])


def test_lambda_one_is_the_return_less_the_value_and_lambda_zero_the_delta() -> None:
    rewards, values = torch.tensor([0.5, -1.0, 2.0]), torch.tensor([0.1, 0.2, 0.3])
    whole, _ = ppo.gae(rewards, values, [3], gamma=1.0, lam=1.0)
    assert whole.tolist() == pytest.approx([1.5 - 0.1, 1.0 - 0.2, 2.0 - 0.3])
    delta, _ = ppo.gae(rewards, values, [3], gamma=1.0, lam=0.0)
    assert delta.tolist() == pytest.approx([0.5 + 0.2 - 0.1, -1.0 + 0.3 - 0.2, 2.0 - 0.3])


def slow_gae(rewards: list[float], values: list[float], gamma: float, lam: float) -> list[float]:
    """Equation 16 of arXiv:1506.02438 as it stands: a double sum, in Python's floats."""
    count = len(rewards)
    deltas = [rewards[t] + gamma * (values[t + 1] if t + 1 < count else 0.0) - values[t] for t in range(count)]
    return [sum((gamma * lam) ** (k - t) * deltas[k] for k in range(t, count)) for t in range(count)]


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.97, 0.8), (1.0, 1.0), (0.5, 0.0)])
def test_gae_and_returns_of_many_answers_against_the_double_sum(gamma: float, lam: float) -> None:
    generator = torch.Generator().manual_seed(3)
    lengths = [1, 7, 3, 12, 1]
    total = sum(lengths)
    rewards = torch.randn(total, generator=generator, dtype=torch.float64)
    values = torch.randn(total, generator=generator, dtype=torch.float64)
    advantages, targets = ppo.gae(rewards, values, lengths, gamma=gamma, lam=lam)
    returns = ppo.discounted_returns(rewards, lengths, gamma)
    expected, expected_returns = [], []
    for r, v in zip(rewards.split(lengths), values.split(lengths), strict=True):
        expected += slow_gae(r.tolist(), v.tolist(), gamma, lam)
        expected_returns += [sum(gamma ** (k - t) * r[k].item() for k in range(t, len(r))) for t in range(len(r))]
    assert advantages.tolist() == pytest.approx(expected, rel=1e-12)
    assert targets.tolist() == pytest.approx((torch.tensor(expected, dtype=torch.float64) + values).tolist(), rel=1e-9)
    assert returns.tolist() == pytest.approx(expected_returns, rel=1e-12)


def test_whitened_by_hand() -> None:
    # Mean 2, deviations -1, 0, 1; population variance 2/3.
    assert ppo.whitened(torch.tensor([1.0, 2.0, 3.0])).tolist() == pytest.approx([-math.sqrt(1.5), 0.0, math.sqrt(1.5)])
    assert ppo.whitened(torch.tensor([0.1] * 7)).tolist() == [0.0] * 7


def test_scores_are_whitened_then_penalised_then_clipped() -> None:
    scores, finished = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([True, False, True])
    shaped = ppo.shaped_scores(scores, finished, whiten=True, clip=1.0, no_stop_penalty=0.5)
    assert shaped.tolist() == pytest.approx([-1.0, -0.5, 1.0])
    plain = ppo.shaped_scores(scores, finished, whiten=False, clip=None, no_stop_penalty=4.0)
    assert plain.tolist() == [1.0, -2.0, 3.0]


def test_token_rewards_by_hand() -> None:
    # Two answers of two and one tokens, KL weight 0.1.
    ratios = torch.tensor([0.5, -1.0, 2.0])
    rewards = ppo.token_rewards(torch.tensor([10.0, 20.0]), ratios, 0.1, [2, 1])
    assert rewards.tolist() == pytest.approx([-0.05, 10.1, 19.8])
    assert ratios.tolist() == [0.5, -1.0, 2.0]


def test_policy_loss_by_hand() -> None:
    # Ratios 2, 2, 0.5, 0.5, 1.1 and advantages of both signs, range 0.2. The lower of the two terms counts:
    # A=1: min(2, 1.2) = 1.2 clipped; A=-1: min(-2, -1.2) = -2; A=1: min(.5, .8) = .5; A=-1: min(-.5, -.8) clipped.
    ratios = torch.tensor([2.0, 2.0, 0.5, 0.5, 1.1])
    advantages = torch.tensor([1.0, -1.0, 1.0, -1.0, 3.0])
    old = torch.tensor([-3.0, -1.0, -2.0, -0.5, -4.0])
    loss = ppo.policy_loss(old + ratios.log(), old, advantages, 0.2)
    assert loss.losses.tolist() == pytest.approx([-1.2, 2.0, -0.5, 0.8, -3.3])
    assert loss.clipped.tolist() == [True, False, False, True, False]


def test_clipped_tokens_give_no_gradient_and_ratio_one_gives_minus_the_advantage() -> None:
    old = torch.tensor([-1.0, -1.0, -1.0])
    logps = torch.tensor([-1.0, -1.0 + math.log(1.5), -1.0 + math.log(0.5)], requires_grad=True)
    ppo.policy_loss(logps, old, torch.tensor([2.0, 1.0, -1.0]), 0.2).losses.sum().backward()
    assert logps.grad is not None
    assert logps.grad.tolist() == pytest.approx([-2.0, 0.0, 0.0])


def test_value_loss_by_hand() -> None:
    # Old value 0, target 1, range 0.2. New 0.1: plain (0.9)^2 both ways. New 0.5: plain .25, held at .2 -> .64 counts.
    # New -0.5: plain 2.25, held at -.2 -> 1.44: the plain one counts.
    new, old, target = torch.tensor([0.1, 0.5, -0.5]), torch.zeros(3), torch.ones(3)
    loss = ppo.value_loss(new, old, target, 0.2)
    assert loss.losses.tolist() == pytest.approx([0.405, 0.32, 1.125])
    assert loss.clipped.tolist() == [False, True, False]
    assert ppo.value_loss(new, old, target, None).losses.tolist() == pytest.approx([0.405, 0.125, 1.125])


def test_kl_estimators_agree_in_the_mean_with_the_exact_kl() -> None:
    p, q = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64), torch.tensor([0.4, 0.4, 0.2], dtype=torch.float64)
    ratios = (p / q).log()
    exact = (p * ratios).sum().item()
    assert (p * ppo.kl_k1(ratios)).sum().item() == pytest.approx(exact)
    assert (p * ppo.kl_k3(ratios)).sum().item() == pytest.approx(exact)
    assert (p * ppo.kl_k2(ratios)).sum().item() == pytest.approx(exact, rel=0.05)
    assert (ppo.kl_k3(ratios) >= 0).all()
    assert ppo.kl_k3(torch.tensor([math.log(2.0)])).item() == pytest.approx(0.5 - 1 + math.log(2.0))


def test_adaptive_kl_weight_by_hand() -> None:
    assert ppo.adapted_kl(0.1, 6.0, 6.0) == pytest.approx(0.1)
    assert ppo.adapted_kl(0.1, 6.6, 6.0) == pytest.approx(0.1 * 1.01)  # error 0.1
    assert ppo.adapted_kl(0.1, 60.0, 6.0) == pytest.approx(0.1 * 1.02)  # held at 0.2
    assert ppo.adapted_kl(0.1, 0.0, 6.0) == pytest.approx(0.1 * 0.98)


def test_explained_variance_by_hand() -> None:
    targets = torch.tensor([1.0, 2.0, 3.0])
    assert ppo.explained_variance(targets, targets) == 1.0
    assert ppo.explained_variance(torch.full((3,), 9.0), targets) == pytest.approx(0.0)
    assert ppo.explained_variance(-targets, targets) == pytest.approx(-3.0)
    assert ppo.explained_variance(targets, torch.ones(3)) == 0.0


def test_advantages_are_whitened_where_the_value_model_is_good() -> None:
    returns = torch.tensor([0.0, 4.0, -4.0, 0.0])
    advantages = torch.tensor([1.0, 3.0, 1.0, 3.0])
    assert ppo.whitened_advantages(advantages, returns).tolist() == pytest.approx([-1.0, 1.0, -1.0, 1.0])


def test_errors_of_the_value_model_are_not_blown_up() -> None:
    noise = torch.tensor([1.0, 3.0, 1.0, 3.0])
    nothing_to_learn = torch.full((4,), 0.7)
    assert ppo.whitened_advantages(noise, nothing_to_learn).tolist() == [0.0] * 4
    hardly = torch.tensor([0.1, -0.1, 0.1, -0.1])  # deviation 0.1, the advantages' is 1
    assert ppo.whitened_advantages(noise, hardly).tolist() == pytest.approx([-0.1, 0.1, -0.1, 0.1])


def test_entropies_against_torch_and_their_gradient() -> None:
    generator = torch.Generator().manual_seed(5)
    head = torch.nn.Linear(6, 11, bias=False)
    hidden = torch.randn(9, 6, generator=generator, requires_grad=True)
    found = entropies(hidden, head, chunk=4)
    expected = torch.distributions.Categorical(logits=head(hidden)).entropy()
    torch.testing.assert_close(found, expected)
    assert gradient(found.sum(), hidden) == pytest.approx(gradient(expected.sum(), hidden), abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_both_from_one_pass_are_what_each_gives_alone(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(6)
    head = torch.nn.Linear(6, 11, bias=False).requires_grad_(False).to(dtype)
    hidden = (3 * torch.randn(9, 6, generator=generator)).to(dtype)
    labels = torch.randint(11, (9,), generator=generator)
    logps, entropy = logprobs_and_entropies(hidden, labels, head, chunk=4)
    with_gradient = logprobs(hidden.clone().requires_grad_(True), labels, head, chunk=4)
    assert torch.equal(logps, with_gradient.detach()), "to the bit: PPO's first ratio is 1"
    torch.testing.assert_close(entropy, entropies(hidden, head), rtol=1e-4, atol=1e-5)
    trained = torch.nn.Linear(6, 11).to(dtype)
    for one, other in zip(
        logprobs_and_entropies(hidden, labels, trained),
        (logprobs(hidden, labels, trained), entropies(hidden, trained)),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def gradient(value: Tensor, of: Tensor) -> list[float]:
    (found,) = torch.autograd.grad(value, of)
    return found.flatten().tolist()
