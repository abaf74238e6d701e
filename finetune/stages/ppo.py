"""Proximal policy optimisation: learn to write what the reward model, or a checker, scores highly.

Each iteration samples answers, scores them, and takes PPO's clipped steps on them (Schulman et al. 2017) with GAE and a
penalty on each token's log-ratio to the reference (Ziegler et al. 2019), by Llama 2's rules where the recipe is silent
(section 3.2.3): scores whitened, two reward models combined, AdamW (0.9, 0.95), one pass. Policy, reference, reward and
value are adapters and heads on one base. Deviations: LoRA instead of all weights; the value model has an adapter of its
own, starts as the reward model on the scale of the whitened scores, and its gradient is clipped apart; advantages are
never scaled up beyond the spread of the returns (numerics/ppo.py); the answers to one prompt stay in one minibatch and
share its forward; dropout is off, so that a ratio is 1 until something is learnt; an answer that was cut earns 1 less
(no_stop_penalty); AdamW's eps is 1e-8, not 1e-5.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.data.convert_prompts import prompt_fields
from finetune.engine import loop, session
from finetune.engine.job import Job, Outcome
from finetune.engine.optim import default_learning_rate
from finetune.engine.ppo import Iterations
from finetune.engine.ppo_update import policy_objective, value_objective
from finetune.engine.prompts import check_prompts, open_prompts, proof_prompts
from finetune.engine.reference import add_reference
from finetune.engine.rewards import Answer, open_judge
from finetune.engine.shown import answer_rows
from finetune.engine.token_logprobs import hidden_function
from finetune.engine.tracking import MetricsFile, Tracking
from finetune.errors import InputError
from finetune.model.actor_critic import add_value
from finetune.model.adapter import ADAPTER
from finetune.recipe.sampling_stages import PpoStage
from finetune.shapes import Completion, Dialog

RATE_FACTOR = 1 / 30
"""Of the automatic learning rate of SFT: 1e-5 for an 8B model, ten times (LoRA) Llama 2's 1e-6."""
VALUE_RATE_FACTOR = 1 / 3
"""As reward stages have it."""
SAMPLES = "samples.jsonl"


def run(stage: PpoStage, job: Job) -> Outcome:
    """Train the policy, prove it. Writes PEFT files, tokenizer, template, metrics, held-out answers into `job.out`."""
    if stage.start_from is None and job.adapter.init in ("pissa", "olora"):
        raise InputError(
            f"adapter.init {job.adapter.init} changes the base, on which the reward model was not trained: start ppo "
            "from an sft stage, or use init default"
        )
    words = session.open_words(job)
    prompts = open_prompts(stage, stage.held_out, job, words)
    check_prompts(stage, job, (*prompts.train, *prompts.held_out))
    opened = session.open_session(job, stage.train, stage.start_from)
    add_reference(opened.model, opened.start)
    reward = None if stage.reward is None else (job.inputs.get(stage.reward) or job.locate(stage.reward))
    judge = open_judge(stage, job, opened.model, opened.precision)  # first: it says what a reward model lacks
    model = add_value(opened.model, reward)
    kept = MetricsFile(job.work / SAMPLES)
    cycle = Iterations(
        stage,
        model,
        judge,
        prompts.train,
        prompts.held_out,
        family=words.resolved.family,
        tokenizer=words.tokenizer,
        stop_ids=session.stop_ids(words),
        seed=job.seed,
        device=opened.device,
        compute=opened.precision.compute,
        hidden=hidden_function(stage.train.layout),
        keep_samples=partial(_keep_samples, kept, job.tracking),
    )
    job.say(
        f"{cycle.iterations()} iterations of {stage.rollouts} answers ({stage.samples} to a prompt), each learnt from "
        f"in {cycle.steps} steps"
    )
    work, value_rate = _work(stage, job, opened, cycle)
    is_auto = " (auto)" if stage.value_learning_rate == "auto" else ""
    job.say(f"value model: learning rate {value_rate:.3g}{is_auto}; thrown away at the end")
    trained, resolved = session.run_loop(job, opened, model, work, stage.train, rate_factor=RATE_FACTOR)
    last = cycle.measure_held_out(trained.steps)
    warnings = [*trained.warnings, *_far_at_the_end(stage, last)]
    for warning in warnings[len(trained.warnings) :]:
        job.say(warning)
    model.act_as(ADAPTER)
    session.save(job, opened, words)
    proof = session.prove(job, opened, *proof_prompts(prompts.held_out or prompts.train))
    metrics = _metrics(trained, cycle, MetricsFile(job.work / "metrics.jsonl").read(), last)
    (job.out / SAMPLES).write_bytes((job.work / SAMPLES).read_bytes() if (job.work / SAMPLES).is_file() else b"")
    return Outcome(
        metrics=metrics,
        data=prompts.report,
        family=session.describe_family(words),
        resolved={**resolved, "value_learning_rate": value_rate},
        proof=proof,
        extra={"warnings": warnings},
    )


def _work(stage: PpoStage, job: Job, opened: session.Session, cycle: Iterations) -> tuple[loop.Work[Any], float]:
    """The loop's work, and the peak learning rate of the value model."""
    base, hidden, lora = opened.base, hidden_function(stage.train.layout), opened.lora
    automatic = default_learning_rate(job.base.hidden_size, lora.lora_alpha, lora.r, lora.use_rslora)
    rate = RATE_FACTOR * automatic if stage.train.learning_rate == "auto" else stage.train.learning_rate
    value_rate = VALUE_RATE_FACTOR * automatic if stage.value_learning_rate == "auto" else stage.value_learning_rate
    work = loop.Work[Any](
        objective=partial(policy_objective, stage=stage, decoder=base.model, head=base.lm_head, hidden=hidden),
        more=[partial(value_objective, stage=stage, decoder=base.model, hidden=hidden)],
        step_batches=cycle.step_batches,
        total_steps=cycle.iterations() * cycle.steps,
        steps_per_epoch=max(1, round(len(cycle.train_prompts) / cycle.prompts_each * cycle.steps)),
        held_out=(),
        name_rows=cycle.name_rows,
        unit="answer tokens",
        cycle=cycle,
        groups=[(cycle.model.policy_weights, 1.0), (cycle.model.value_weights, value_rate / rate)],
    )
    return work, value_rate


def _far_at_the_end(stage: PpoStage, last: Mapping[str, float]) -> list[str]:
    """max_kl stops before an iteration; what the last one learnt is seen on the held-out prompts only."""
    if (kl := last.get("held_out_kl", 0.0)) <= stage.max_kl:
        return []
    return [
        f"after the last iteration the mean KL of a held-out answer to the reference is {kl:.1f} nats, over max_kl "
        f"{stage.max_kl:g}, and these weights are kept: run fewer iterations, with a larger kl or a lower learning rate"
    ]


def _keep_samples(
    file: MetricsFile, tracking: Tracking, step: int, answers: Sequence[Answer], scores: NDArray[np.float64]
) -> None:
    """Held-out answers, one a line: the prompt as a row of the format `prompt` has it, where it stood, and what was
    answered. What a killed session wrote of this step and later is dropped first."""
    tracking.samples("held_out_answers", step, answer_rows(answers, scores))
    file.rewind(step - 1)
    for answer, score in zip(answers, scores, strict=True):
        assert isinstance(answer.prompt.example, Dialog | Completion)  # what prompts are made of
        file.write(
            {
                "step": step,
                "origin": str(answer.prompt.origin),
                **prompt_fields(answer.prompt.example),
                "answer": answer.text,
                "reward": round(float(score), 6),
                "tokens": len(answer.ids),
                "finished": answer.finished,
            }
        )


def _metrics(
    trained: loop.Trained, cycle: Iterations, log: Sequence[Mapping[str, Any]], last: Mapping[str, float]
) -> dict[str, Any]:
    """The loop's, and for reward, KL, length and share of finished answers the first and the last iteration's mean and
    the held-out prompts' before and after."""
    iterations = [entry for entry in log if "reward" in entry]
    held_out = [entry for entry in log if "held_out_reward" in entry]
    named = ("reward", "kl", "entropy", "answer_tokens", "finished")
    metrics = trained.metrics() | {"iterations": trained.steps // cycle.steps}
    for key in named:
        metrics[f"{key}_first"], metrics[f"{key}_last"] = iterations[0].get(key), iterations[-1].get(key)
    if held_out:
        for key in (key for key in last if key.removeprefix("held_out_") in named):
            metrics[f"{key}_before"], metrics[f"{key}_after"] = held_out[0][key], last[key]
    return metrics
