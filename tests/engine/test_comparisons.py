"""Batches of comparisons: by hand, on shared prompts and on whole rows, and cut into micro-batches."""

from functools import partial

import numpy as np
import pytest
import torch
from comparison_lab import comparisons, prepared, random_comparisons, shaken, tiny_model

from finetune.engine.comparison_work import comparison_work, proof_rows
from finetune.engine.comparisons import collate_groups, with_mismatched, with_step_shares
from finetune.engine.reference import add_reference, with_every_batch
from finetune.engine.token_logprobs import token_logprobs
from finetune.model.ragged import padded_hidden, ragged_hidden
from finetune.model.reward import RewardModel, new_head
from finetune.numerics.preference import Knobs
from finetune.recipe.learning_stages import DpoStage, RewardStage
from finetune.stages.dpo import dpo_objective
from finetune.stages.reward import batch_scores, reward_objective

DATA = [{"path": "rows.jsonl"}]


def two_groups():
    """A pair and a ranking of three. 9 is a format token; the row of [1, 2] + [7, 9] is ids 1 2 7 9."""
    return comparisons(
        [([1, 2], [[7, 9], [8]]), ([1, 3, 4], [[5, 9], [5, 6, 9], [6]])], formatted=[9, 1], margins=[0.25, 0.5]
    )


def test_a_batch_by_hand():
    batch = collate_groups(two_groups(), [1, 0], ranked="all", margins=np.array([0.25, 0.5]))
    # Group 1: prompt 1 3 4 once, and what its answers share: 5 9 | 5 6 9 | 6. Then group 0: 1 2 once, 7 9 | 8.
    # Rows of the batch: 0 to 2 are group 1's (rows 2 to 4 of the data), 3 and 4 are group 0's.
    assert batch.groups == (1, 0) and batch.rows == (1, 0) and batch.units == 2
    assert batch.answers.rows == (2, 3, 4, 0, 1)
    assert batch.answers.ids_T.tolist() == [1, 3, 4, 5, 9, 5, 6, 9, 6, 1, 2, 7, 9, 8]
    assert batch.tokens == (5 + 6 + 4) + (4 + 3), "a padless forward without sharing would compute so many"
    assert batch.answers.labels_N.tolist() == [5, 9, 5, 6, 9, 6, 7, 9, 8]
    assert batch.answers.ids_T[batch.answers.predict_N].tolist() == [4, 5, 4, 5, 6, 4, 2, 7, 2]
    assert batch.answers.row_N.tolist() == [0, 0, 1, 1, 1, 2, 3, 3, 4] and batch.counts == [2, 3, 1, 2, 1]
    assert batch.answers.ids_T[batch.answers.last_B].tolist() == [9, 9, 6, 9, 8]
    # (first, second), (first, third), (second, third) of the ranking, then the pair.
    assert list(zip(batch.better_P.tolist(), batch.worse_P.tolist(), strict=True)) == [(0, 1), (0, 2), (1, 2), (3, 4)]
    assert batch.share_P.tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 1])
    assert batch.margin_P.tolist() == [0.5, 0.5, 0.5, 0.25]
    assert batch.best_B.tolist() == [True, False, False, True, False]
    assert batch.content_N.tolist() == [True, False, True, True, False, True, True, False, True]
    assert not batch.desirable_B.any()


def test_the_best_against_the_rest():
    batch = collate_groups(two_groups(), [1], ranked="top")
    assert list(zip(batch.better_P.tolist(), batch.worse_P.tolist(), strict=True)) == [(0, 1), (0, 2)]
    assert batch.share_P.tolist() == [0.5, 0.5] and batch.margin_P.tolist() == [0, 0]


def test_row_sums_and_shares_of_a_step():
    parts = [collate_groups(two_groups(), [group], ranked="all") for group in (0, 1)]
    values = torch.arange(1.0, 7.0)  # group 1 has labels 5 9 | 5 6 9 | 6
    assert parts[1].row_sums(values).tolist() == [3, 12, 6]
    assert parts[1].row_sums(values, parts[1].content_N).tolist() == [1, 7, 6]
    shared = with_step_shares(parts)
    # The best answers have 2 + 2 tokens, the step 2 groups: sum x 2/4 / 2 units = the mean over the 4 tokens.
    assert [batch.step_share for batch in shared] == [0.5, 0.5]


def test_judged_answers_and_another_prompts_answer():
    data = comparisons([([1, 2], [[7, 9]]), ([3], [[8]]), ([4, 5], [[6, 6, 6]])], desirable=[1, 0, 1])
    batch = with_mismatched(collate_groups(data, [0, 1, 2], ranked="all"), data)
    assert batch.desirable_B.tolist() == [True, False, True] and len(batch.better_P) == 0
    # Each prompt with the answer before it: 1 2 | 6 6 6, 3 | 7 9, 4 5 | 8.
    other = batch.mismatched
    assert other.ids_T.tolist() == [1, 2, 6, 6, 6, 3, 7, 9, 4, 5, 8]
    assert other.labels_N.tolist() == [6, 6, 6, 7, 9, 8] and other.row_N.tolist() == [0, 0, 0, 1, 1, 2]
    assert with_mismatched(collate_groups(data, [0], ranked="all"), data).mismatched is None
    one, two = with_step_shares([collate_groups(data, [0], ranked="all"), collate_groups(data, [1, 2], ranked="all")])
    assert one.side_shares == two.side_shares == (3 / 2, 3 / 1), "2 desirable and 1 undesirable of 3"


def test_shared_prompts_and_whole_rows_give_the_same():
    data = random_comparisons(6, sizes=(2, 3, 4))
    base, model = tiny_model()
    shaken(model)
    head = new_head(32, 0, torch.device("cpu"))
    reward = RewardModel(model, head)
    found = []
    for share, hidden in ((True, ragged_hidden), (False, ragged_hidden), (False, padded_hidden)):
        batch = collate_groups(data, range(6), ranked="all", share=share)
        with torch.no_grad():
            logps = token_logprobs(batch.answers, base.model, base.lm_head, hidden)
            found.append((batch_scores(reward, batch, base.model, hidden), logps, len(batch.answers.ids_T)))
    (shared, shared_logps, fewer), *others = found
    for scores, logps, tokens in others:
        torch.testing.assert_close(scores, shared, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(logps, shared_logps, rtol=1e-5, atol=1e-5)
        assert fewer < tokens


def reward_parts(micro, **changes):
    base, model = tiny_model()
    shaken(model)
    reward = RewardModel(model, new_head(32, 0, torch.device("cpu")))
    train = {"batch_size": 8, "micro_batch_size": micro, "epochs": 1.0}
    stage = RewardStage.model_validate({"kind": "reward", "data": DATA, "train": train, **changes})
    objective = partial(reward_objective, decoder=base.model, hidden=ragged_hidden, centring=stage.centring)
    return reward, stage, objective


def dpo_parts(micro, **changes):
    base, model = tiny_model()
    add_reference(model, None)
    shaken(model)
    train = {"batch_size": 8, "micro_batch_size": micro, "epochs": 1.0}
    stage = DpoStage.model_validate({"kind": "dpo", "data": DATA, "train": train, **changes})
    reference = with_every_batch(model, base.model, base.lm_head, ragged_hidden)
    objective = partial(
        dpo_objective, stage=stage, knobs=Knobs(beta=stage.beta), decoder=base.model, head=base.lm_head,
        hidden=ragged_hidden, reference=reference, held_out_reference=reference, mismatched=reference,
    )  # fmt: skip
    return model, stage, objective


def step(parts, data):
    """(mean loss of the first step, metrics, gradients) as the loop computes them."""
    model, stage, objective = parts
    batches = comparison_work(prepared(data), stage, objective).step_batches(0)
    units = sum(batch.units for batch in batches)
    assert len(batches) == 8 // stage.train.micro_batch_size and units == 8
    total, metrics = 0.0, {}
    for batch in batches:
        loss = objective(model, batch)
        (loss.total / units).backward()
        total += loss.total.item() / units
        for name, value in loss.metrics.items():
            metrics[name] = metrics.get(name, 0.0) + value.item() / units
    return total, metrics, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    ("make", "changes"),
    [
        (reward_parts, {"centring": 0.01}),
        (reward_parts, {"ranked": "top"}),
        (dpo_parts, {}),
        (dpo_parts, {"nll_weight": 0.2, "mask_format_tokens": True}),
        (dpo_parts, {"loss": "orpo"}),
    ],
)
def test_the_cut_into_micro_batches_does_not_matter(make, changes):
    """Batch 8 = 2 x 4 = 4 x 2, to 1e-5: loss, everything logged, and every gradient."""
    data = random_comparisons(8, sizes=(2, 3, 2, 4))
    loss, metrics, gradients = step(make(8, **changes), data)
    assert gradients
    for micro in (4, 2):
        other, other_metrics, other_gradients = step(make(micro, **changes), data)
        assert other == pytest.approx(loss, rel=1e-5)
        assert other_metrics == pytest.approx(metrics, rel=1e-4, abs=1e-5)
        for name, gradient in gradients.items():
            torch.testing.assert_close(other_gradients[name], gradient, rtol=1e-4, atol=1e-5)


def test_a_ranking_counts_as_one_example():
    """A pair and a ranking of three: the mean of the pair's loss and the mean of the ranking's three pairs."""
    data = random_comparisons(2, sizes=(2, 3))
    model, _, objective = reward_parts(8)
    batch = collate_groups(data, [0, 1], ranked="all")
    with torch.no_grad():
        a, b, x, y, z = batch_scores(model, batch, model.adapted.get_base_model().model, ragged_hidden).tolist()
    losses = [float(np.logaddexp(0, -(high - low))) for high, low in ((a, b), (x, y), (x, z), (y, z))]
    expected = losses[0] + sum(losses[1:]) / 3
    assert objective(model, batch).total.item() == pytest.approx(expected, rel=1e-5)
    assert batch.units == 2


def test_the_nll_is_a_mean_over_the_best_answers_tokens():
    """nll_weight adds w x (NLL of all best answers' tokens / their number), format tokens included."""
    data = random_comparisons(8, sizes=(2, 3))
    plain, _, _ = step(dpo_parts(4, mask_format_tokens=True), data)
    added, metrics, _ = step(dpo_parts(4, mask_format_tokens=True, nll_weight=0.5), data)
    model, _, _ = dpo_parts(4)
    base = model.get_base_model()
    batch = collate_groups(data, range(8), ranked="all")
    with torch.no_grad():
        logps = token_logprobs(batch.answers, base.model, base.lm_head, ragged_hidden)
    expected = -logps[batch.best_B[batch.answers.row_N]].mean().item()
    assert metrics["nll"] == pytest.approx(expected, rel=1e-5)
    assert added - plain == pytest.approx(0.5 * expected, rel=1e-4)


def test_batches_of_every_step_and_names():
    data = random_comparisons(10, sizes=(2, 3))
    _, stage, objective = reward_parts(4)
    work = comparison_work(prepared(data, random_comparisons(3, seed=9)), stage, objective)
    assert (work.total_steps, work.steps_per_epoch) == (2, 2)
    steps = [sorted(group for batch in work.step_batches(step) for group in batch.groups) for step in (0, 1)]
    assert steps == [list(range(8)), [8, 9]]
    assert work.name_rows([3, 4]) == "row 3, row 4"
    assert sorted(group for batch in work.held_out for group in batch.groups) == [0, 1, 2]
    ids, lengths = proof_rows(prepared(data))
    assert len(lengths) == 4 and len(ids) == sum(lengths)
