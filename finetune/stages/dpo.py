"""Direct preference optimisation: learn from comparisons without a reward model in between.

Losses, each with its paper and its deviations: finetune/numerics/preference.py. The policy is the adapter that is
trained; the reference is the adapter the stage starts from, frozen beside it on the same base, or the bare base. Both
answers to a prompt are computed in one row, the prompt once. A ranking of more than two answers counts as one example,
the mean over its pairs. Llama 3's additions are `nll_weight` (the negative log-likelihood of the best answers, averaged
over all their tokens in a step) and `mask_format_tokens` (header and end tokens out of the preference loss, not out of
the NLL). KTO learns from single answers; its baseline is estimated in each micro-batch, as in TRL, and is 0 where a
micro-batch has one answer.

While policy = reference every log-ratio is 0, so the first loss is known (ln 2 for sigmoid): checked before every run.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from finetune.data.prepare_preference import PreparedComparisons, prepare_comparisons
from finetune.engine import loop, session
from finetune.engine.comparison_work import comparison_work, proof_rows
from finetune.engine.comparisons import ComparisonBatch
from finetune.engine.job import Job, Outcome
from finetune.engine.reference import Logprobs, add_reference, once_ahead, starts_as_base, with_every_batch
from finetune.engine.token_logprobs import Hidden, hidden_function, token_logprobs
from finetune.errors import ProofError
from finetune.numerics.preference import (
    PAIR_LOSSES,
    Knobs,
    PairLogps,
    implicit_rewards,
    kto,
    kto_baseline,
    needs_reference,
)
from finetune.plan.plan import adapter_digest
from finetune.recipe.learning_stages import DpoStage

RATE_FACTOR = 1 / 40
"""Of the automatic learning rate of SFT: 7e-6 for an 8B model. Zephyr's QLoRA recipes have 2e-4 and 5e-6."""
FALL = 0.1
"""Nats per token: by so much the best answers' held-out log-probability may fall before the user is warned."""


def run(stage: DpoStage, job: Job) -> Outcome:
    """Train the policy, prove it. Writes PEFT files, tokenizer, template and metrics into `job.out`."""
    train, judged = stage.train, stage.loss == "kto"
    words = session.open_words(job)
    data = prepare_comparisons(
        stage,
        slices=(),
        judged=judged,
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
    session.check_early_stop(train, data.held_out is not None)
    opened = session.open_session(job, train, stage.start_from)
    if stage.engine == "trl":
        from finetune.stages.trl_engine import train_dpo  # only now: TRL and transformers' Trainer take seconds

        trained, resolved = train_dpo(stage, job, opened, words, data, RATE_FACTOR)
    else:
        trained, resolved = _train(stage, job, opened, data)
    warnings = _warn_of_fall(trained, stage, job)
    session.save(job, opened, words)
    proof = session.prove(job, opened, *proof_rows(data))
    return Outcome(
        metrics=trained.metrics(),
        data=data.report.to_json(),
        family=session.describe_family(words),
        resolved=resolved,
        proof=proof,
        extra={"warnings": warnings},
    )


def _train(
    stage: DpoStage, job: Job, opened: session.Session, data: PreparedComparisons
) -> tuple[loop.Trained, dict[str, Any]]:
    """Reference and policy on the session's base, in the engine's loop."""
    train = stage.train
    add_reference(opened.model, opened.start)
    decoder, head, hidden = opened.base.model, opened.base.lm_head, hidden_function(train.layout)
    in_batch = with_every_batch(opened.model, decoder, head, hidden)
    knobs = Knobs(beta=stage.beta, label_smoothing=stage.label_smoothing, simpo_margin=stage.simpo_margin)
    make_work = partial(comparison_work, data, stage, judged=stage.loss == "kto")
    objective = partial(
        dpo_objective, stage=stage, knobs=knobs, decoder=decoder, head=head, hidden=hidden, mismatched=in_batch
    )
    work = make_work(partial(objective, reference=in_batch, held_out_reference=in_batch))
    if needs_reference(stage.loss):
        first = work.step_batches(0)[0].to(opened.device)
        with loop.autocast(opened.device, opened.precision.compute):
            check_start(opened.model, first, decoder, head, hidden, in_batch)
        job.say("reference: the policy starts as its own reference, every log-ratio is 0")
        if _ahead(stage, work):
            references = [
                once_ahead(
                    in_batch,
                    part.rows,
                    micro_batch_size=2 * train.micro_batch_size,
                    device=opened.device,
                    compute_dtype=opened.precision.compute,
                    cache=job.cache,
                    key=_reference_key(job, opened),
                    say=job.say,
                )
                for part in (data.train, data.held_out)
                if part is not None
            ]
            work = make_work(partial(objective, reference=references[0], held_out_reference=references[-1]))
    return session.run_loop(job, opened, opened.model, work, train, rate_factor=RATE_FACTOR)


def dpo_objective(
    model: torch.nn.Module,
    batch: ComparisonBatch,
    *,
    stage: DpoStage,
    knobs: Knobs,
    decoder: torch.nn.Module,
    head: torch.nn.Module,
    hidden: Hidden,
    reference: Logprobs,
    held_out_reference: Logprobs,
    mismatched: Logprobs,
) -> loop.Loss:
    """The preference loss summed over the batch's groups, plus the share of the step's NLL that falls to this batch."""
    logps_N = token_logprobs(batch.answers, decoder, head, hidden)
    keep_N = batch.content_N if stage.mask_format_tokens else None
    logps_B = batch.row_sums(logps_N, keep_N)
    tokens_B = batch.row_sums(torch.ones_like(logps_N), keep_N)
    ref_B, metrics = None, {}
    if needs_reference(stage.loss):
        ref_N = (reference if torch.is_grad_enabled() else held_out_reference)(batch.answers)
        ref_B = batch.row_sums(ref_N, keep_N)
        log_ratio_N = (ref_N - logps_N).detach()
        kl_N = log_ratio_N.exp() - 1 - log_ratio_N
        # Of the best answers: the others leave the policy's reach, and an estimate from them says nothing of its KL.
        metrics["kl"] = (batch.row_sums(kl_N) / torch.tensor(batch.counts, device=kl_N.device))[batch.best_B].sum()
    if stage.loss == "kto":
        assert ref_B is not None
        return _kto(stage, batch, model, logps_B, ref_B, metrics, decoder, head, hidden, mismatched)
    logps = PairLogps(
        logps_B[batch.better_P],
        logps_B[batch.worse_P],
        None if ref_B is None else ref_B[batch.better_P],
        None if ref_B is None else ref_B[batch.worse_P],
        tokens_B[batch.better_P],
        tokens_B[batch.worse_P],
    )
    kind = PAIR_LOSSES[stage.loss]
    total = (kind.function(logps, knobs) * batch.share_P).sum()
    weight = stage.nll_weight + (1.0 if kind.nll else 0.0)
    best_N = batch.best_B[batch.answers.row_N]
    if weight:
        nll_sum = -(logps_N * best_N).sum()
        total = total + weight * nll_sum * batch.step_share
        metrics["nll"] = nll_sum.detach() * batch.step_share
    rewards = implicit_rewards(stage.loss, logps, stage.beta)
    for name, value_P in {
        "reward_chosen": rewards.chosen_P,
        "reward_rejected": rewards.rejected_P,
        "margin": rewards.margin_P,
        "accuracy": rewards.accuracy_P,
    }.items():
        metrics[name] = (value_P * batch.share_P).sum()
    best = (
        batch.row_sums(logps_N.detach())[batch.best_B] / torch.tensor(batch.counts, device=logps_N.device)[batch.best_B]
    )
    metrics["logp_chosen"] = best.sum()
    return loop.Loss(total, metrics)


def _kto(
    stage: DpoStage,
    batch: ComparisonBatch,
    model: torch.nn.Module,
    logps_B: Tensor,
    ref_B: Tensor,
    metrics: dict[str, Tensor],
    decoder: torch.nn.Module,
    head: torch.nn.Module,
    hidden: Hidden,
    mismatched: Logprobs,
) -> loop.Loss:
    """KTO's loss summed over the batch's answers, with the baseline of this micro-batch."""
    baseline: Tensor | float = 0.0
    if batch.mismatched is not None:
        other = batch.mismatched
        counts = torch.bincount(other.row_N, minlength=len(other.last_B)).tolist()
        with torch.no_grad():
            policy_N, ref_N = token_logprobs(other, decoder, head, hidden), mismatched(other)
        sums = [torch.stack([part.sum() for part in values.split(counts)]) for values in (policy_N, ref_N)]
        baseline = kto_baseline(sums[0], sums[1])
        metrics["baseline"] = baseline * batch.units
    losses_B = kto(logps_B, ref_B, batch.desirable_B, baseline, stage.beta, stage.kto_weights)
    rewards_B = stage.beta * (logps_B - ref_B).detach()
    sides = (("reward_chosen", batch.desirable_B), ("reward_rejected", ~batch.desirable_B))
    for (name, side_B), share in zip(sides, batch.side_shares, strict=True):
        if side_B.any():  # a step may have none, and then has no such mean
            metrics[name] = rewards_B[side_B].sum() * share
    return loop.Loss(losses_B.sum(), metrics)


def check_start(
    model: torch.nn.Module,
    batch: ComparisonBatch,
    decoder: torch.nn.Module,
    head: torch.nn.Module,
    hidden: Hidden,
    reference: Logprobs,
) -> None:
    """Before training the policy is its own reference: every token's log-ratio is exactly 0. Raises ProofError."""
    was_training = model.training
    model.eval()
    with torch.no_grad():
        difference = (
            (token_logprobs(batch.answers, decoder, head, hidden) - reference(batch.answers)).abs().max().item()
        )
    model.train(was_training)
    if difference != 0.0:
        raise ProofError(
            f"before training, policy and reference differ by {difference:.3g} nats in a token's log-probability, "
            "where 0 is right: the first loss would not be what theory says. Was the adapter changed as it was loaded?"
        )


def _ahead(stage: DpoStage, work: loop.Work[ComparisonBatch]) -> bool:
    """Whether the reference is computed once ahead: when rows are seen more than once, unless told."""
    if stage.loss == "kto" or stage.reference == "batch":
        return False
    return stage.reference == "ahead" or work.total_steps > work.steps_per_epoch


def _reference_key(job: Job, opened: session.Session) -> list[str]:
    if opened.start is not None:
        start = adapter_digest(opened.start)
    elif starts_as_base(opened.model):
        start = "base"
    else:  # a copy of the fresh adapter
        start = f"{job.adapter.model_dump_json()} {job.seed}"
    precision = opened.precision
    return [job.base.digest, start, precision.load_in, str(precision.compute), opened.device.type]


def _warn_of_fall(trained: loop.Trained, stage: DpoStage, job: Job) -> list[str]:
    """DPO's classic failure: the gap grows while both answers, the chosen ones too, become less likely."""
    before, after = trained.progress.first_held_out_metrics, trained.progress.held_out_metrics
    if "logp_chosen" not in before or (fall := before["logp_chosen"] - after["logp_chosen"]) < FALL:
        return []
    set_now = stage.nll_weight
    pull = f"a larger nll_weight than {set_now:g}" if set_now else "nll_weight (Llama 3 used 0.2)"
    warning = (
        f"the held-out chosen answers became less likely: {fall:.2f} nats per token less than before training. The "
        f"loss only asks for a gap; {pull}, a larger beta or a lower learning rate hold them up"
    )
    job.say(f"warning: {warning}")
    return [warning]
