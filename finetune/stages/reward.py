"""Reward models: a scalar head on the last token of an answer, trained on comparisons.

Loss of a pair: -log sigmoid(r_better - r_worse - margin) + centring (r_better + r_worse)^2 (Bradley-Terry; Llama 2,
eq. 1 and 2). A ranking of more answers is one example whose loss is the mean over its pairs, and its answers are
computed in one row with the prompt once, as Llama 3 did. The score is read at the answer's last token, its stop token.
Deviations from Llama 2: LoRA instead of all weights; the head starts near 0 rather than from the language model's.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from finetune.data.comparisons import Comparisons
from finetune.data.prepare_preference import PreparedComparisons, prepare_comparisons
from finetune.engine import loop, session
from finetune.engine.comparison_work import comparison_work, proof_rows
from finetune.engine.comparisons import ComparisonBatch
from finetune.engine.job import Job, Outcome
from finetune.engine.shown import pair_rows
from finetune.engine.token_logprobs import Hidden, hidden_function
from finetune.errors import InputError
from finetune.model.reward import RewardModel, add_head, new_head, prove_head
from finetune.numerics.bradley_terry import LLAMA2_MARGINS, pair_loss
from finetune.recipe.learning_stages import RewardStage
from finetune.reports.calibration import ScoredPairs, reward_report
from finetune.reports.pictures import reward_pictures
from finetune.shapes import RATINGS, Origin

RATE_FACTOR = 1 / 3
"""Of the automatic learning rate of SFT: 1e-4 for an 8B model, TRL's default for reward models with LoRA."""


def run(stage: RewardStage, job: Job) -> Outcome:
    """Train adapter and head, prove them, and report on the held-out comparisons. Writes into `job.out`."""
    words = session.open_words(job)
    data = prepare_comparisons(
        stage,
        slices=stage.slices,
        judged=False,
        model=job.model,
        seed=job.seed,
        locate=job.locate,
        stage_outputs=job.inputs,
        family=words.resolved.family,
        tokenizer=words.tokenizer,
        cache=job.cache,
        say=job.say,
    )
    session.check_words(job, int(data.comparisons.rows.ids.max(initial=0)), data.report.lengths.longest)
    session.check_early_stop(stage.train, data.held_out is not None)
    check_margins(stage.margin, data)
    opened = session.open_session(job, stage.train, stage.start_from)
    head = new_head(job.base.hidden_size, job.seed, opened.device)
    hidden, margins = hidden_function(stage.train.layout), partial(pair_margins, stage.margin)
    work = comparison_work(
        data,
        stage,
        partial(reward_objective, decoder=opened.base.model, hidden=hidden, centring=stage.centring),
        margins=margins,
    )
    if stage.engine == "trl":
        from finetune.stages.trl_engine import train_reward  # only now: TRL and transformers' Trainer take seconds

        opened, trained, resolved = train_reward(stage, job, opened, words, data, head, margins, RATE_FACTOR)
        model = RewardModel(opened.model, head)
    else:
        model = RewardModel(opened.model, head)
        trained, resolved = session.run_loop(job, opened, model, work, stage.train, rate_factor=RATE_FACTOR)
    session.save(job, opened, words)
    add_head(job.out, head)
    ids_T, lengths = proof_rows(data)
    with loop.autocast(opened.device, opened.precision.compute):
        proof = prove_head(model, job.out, ids_T.to(opened.device), lengths, fresh=session.fresh_base(job, opened))
        job.say(
            f"proof: the reward model, loaded again, gives the trained scores (off by {proof['max_abs_difference']:g})"
        )
        report = {}
        if data.held_out is not None:
            pairs = score_pairs(model, opened.base.model, data.held_out, work.held_out, stage, opened.device)
            report = reward_report(pairs)
            order = data.held_out.pairs(stage.ranked)
            rows = pair_rows(data.held_out, order, pairs.chosen, pairs.rejected, words.tokenizer)
            job.tracking.samples("held_out_pairs", trained.steps, rows)
            for name, content in reward_pictures(pairs, report).items():
                (job.out / name).write_bytes(content)
            job.say(
                f"held out: accuracy {report['accuracy']:.3f} over {report['pairs']} pairs, "
                f"calibration error {report['calibration']['ece']:.3f}, mean gap {report['mean_gap']:.2f}"
            )
    return Outcome(
        metrics=trained.metrics(),
        data=data.report.to_json(),
        family=session.describe_family(words),
        resolved=resolved,
        proof=proof,
        extra={"held_out_report": report},
    )


def reward_objective(
    model: torch.nn.Module, batch: ComparisonBatch, *, decoder: torch.nn.Module, hidden: Hidden, centring: float
) -> loop.Loss:
    """Bradley-Terry loss summed over the batch's rankings, each the mean over its pairs."""
    scores_B = batch_scores(model, batch, decoder, hidden)
    better_P, worse_P = scores_B[batch.better_P], scores_B[batch.worse_P]
    losses_P = pair_loss(better_P, worse_P, batch.margin_P, centring)
    gaps_P = (better_P - worse_P).detach()
    return loop.Loss(
        (losses_P * batch.share_P).sum(),
        {
            "accuracy": (((torch.sign(gaps_P) + 1) / 2) * batch.share_P).sum(),
            "gap": (gaps_P * batch.share_P).sum(),
        },
    )


def batch_scores(model: torch.nn.Module, batch: ComparisonBatch, decoder: torch.nn.Module, hidden: Hidden) -> Tensor:
    """[B] scores of the batch's answers."""
    scores_B: Tensor = model.scores(hidden(decoder, batch.answers.ids_T, batch.answers.layout), batch.answers.last_B)
    return scores_B


def check_margins(kind: str, data: PreparedComparisons) -> None:
    """Every comparison must have what the recipe's `margin` reads. Raises InputError, naming the first that has not."""
    if kind == "none":
        return
    what = "margin of its own" if kind == "column" else f"rating ({', '.join(RATINGS)})"
    lacking: list[Origin] = []
    for part in (data.train, data.held_out):
        if part is not None:
            missing = np.isnan(part.margins) if kind == "column" else part.ratings < 0
            lacking += [data.origins[part.origin_of(int(group))] for group in np.flatnonzero(missing)]
    if lacking:
        total = len(data.train) + (0 if data.held_out is None else len(data.held_out))
        raise InputError(
            f"margin: {kind}, but {len(lacking):,} of {total:,} comparisons have no {what}, such as {lacking[0]}: give "
            "every row one, or train with margin: none"
        )


def pair_margins(kind: str, data: Comparisons) -> NDArray[np.float64] | None:
    """The margin of each comparison, [G], by the recipe's `margin`; what `check_margins` has let through."""
    if kind == "none":
        return None
    if kind == "column":
        return data.margins
    table = np.array([LLAMA2_MARGINS[kind][rating] for rating in RATINGS])
    return table[data.ratings]


@torch.no_grad()
def score_pairs(
    model: RewardModel,
    decoder: torch.nn.Module,
    data: Comparisons,
    batches: Sequence[ComparisonBatch],
    stage: RewardStage,
    device: torch.device,
) -> ScoredPairs:
    """Score all pairs of the batches' groups, with ratings, lengths of the answers and slices."""
    model.eval()
    hidden = hidden_function(stage.train.layout)
    scores = np.zeros(len(data.rows))
    for batch in batches:
        scores[list(batch.answers.rows)] = batch_scores(model, batch.to(device), decoder, hidden).cpu().numpy()
    return pairs_of(data, scores, stage.ranked)


def pairs_of(data: Comparisons, scores: NDArray[np.float64], ranked: Literal["all", "top"]) -> ScoredPairs:
    """The pairs of rankings for the report. scores: [N] of the answers, as `data.rows` has them."""
    pairs = data.pairs(ranked)
    groups, better, worse = pairs[:, 0], pairs[:, 1], pairs[:, 2]
    answers = data.rows.lengths - data.prompt_lengths
    ratings = [RATINGS[rating] if rating >= 0 else None for rating in data.ratings[groups]]
    return ScoredPairs(
        chosen=scores[better],
        rejected=scores[worse],
        chosen_tokens=answers[better],
        rejected_tokens=answers[worse],
        ratings=ratings if any(rating is not None for rating in ratings) else (),
        slices={name: [str(value) or None for value in values[groups]] for name, values in data.extra.items()},
    )
