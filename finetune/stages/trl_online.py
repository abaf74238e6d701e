"""Stages of kind grpo and rloo: TRL's GRPOTrainer and RLOOTrainer, as they are, on our base, adapter, prompts, rewards.

GRPO (Shao et al. 2024, "DeepSeekMath") compares the answers to a prompt with each other: an answer's advantage is its
reward less the group's mean, over the group's deviation. RLOO (Ahmadian et al. 2024) takes the mean of the others. What
TRL 1.16 makes of both (GRPO's loss is its default, dapo; one update of each batch) is TRL's; docs/trl.md.

Only public extension points are used: a reward function, `optimizers`, a callback, and the `processing_class`, which
is the saved tokenizer that gives our ids of a prompt where TRL asks for them. TRL writes the answers with transformers'
`generate`, all of a step side by side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from finetune.data.answers import answer_text
from finetune.data.mix import generator
from finetune.data.prepare_prompts import Prompt
from finetune.engine import loop, session
from finetune.engine.interrupt import stop_on_signals
from finetune.engine.job import Job, Outcome
from finetune.engine.prompts import check_prompts, open_prompts, proof_prompts
from finetune.engine.rewards import Answer, Judge, open_judge
from finetune.engine.tracking import MetricsFile
from finetune.errors import InputError, InterruptedRunError
from finetune.recipe.learning_stages import trl_adapter_problem
from finetune.recipe.sampling_stages import GrpoStage, RlooStage
from finetune.stages.trl_checkpoints import newest_checkpoint
from finetune.stages.trl_follow import Follow, Plan, progress_of
from finetune.stages.trl_setup import (
    arguments,
    lent_to_trl,
    optimiser,
    refuse_trained_head,
    require_trl,
    trl_tokenizer,
)

RATE_FACTOR = 1 / 30
"""Of the automatic learning rate of SFT: 1e-5 for an 8B model, ten times (LoRA) TRL's default of 1e-6."""


def run(stage: GrpoStage | RlooStage, job: Job) -> Outcome:
    """Train the adapter with TRL and prove it. Writes PEFT files, tokenizer, template and metrics into `job.out`."""
    trl = require_trl(f"kind {stage.kind}")
    words = session.open_words(job)
    prompts = open_prompts(stage, None, job, words)
    check_prompts(stage, job, prompts.train)
    opened = session.open_session(job, stage.train, stage.start_from)
    _refuse_adapter(stage, opened)
    judge = open_judge(stage, job, opened.model, opened.precision)
    order = prompt_stream(len(prompts.train), stage, job.seed)
    online = _Online(stage, job, opened, words, prompts.train, order, judge)
    job.say(
        f"{online.trainer.__name__} of TRL {trl.__version__}, as it is (docs/trl.md): {stage.samples} answers to each "
        f"of {online.prompts_each} prompts in a step"
    )
    with lent_to_trl(job, opened.model):
        trained, resolved = session.run_trainer(
            job, opened, opened.model, online.plan.steps, stage.train, online.train, rate_factor=RATE_FACTOR
        )
    opened.model.set_adapter("default")
    if "ref" in opened.model.peft_config:  # TRL's copy of the adapter as it began
        opened.model.delete_adapter("ref")
    session.save(job, opened, words)
    proof = session.prove(job, opened, *proof_prompts(prompts.train))
    return Outcome(
        metrics=_metrics(trained, MetricsFile(job.work / "metrics.jsonl").read()),
        data=prompts.report,
        family=session.describe_family(words),
        resolved={**resolved, "engine": f"trl {trl.__version__}"},
        proof=proof,
        extra={"warnings": trained.warnings},
    )


def prompt_stream(count: int, stage: GrpoStage | RlooStage, seed: int) -> NDArray[np.int64]:
    """Which of `count` prompts each step takes, one step's after the other's; passes go on without a gap, each in an
    order of its own, and the last step is filled up from the next pass."""
    each = stage.train.batch_size // stage.samples
    steps = stage.train.max_steps or max(1, math.ceil(stage.train.epochs * count / each - 1e-9))
    passes = range(math.ceil(steps * each / count))
    orders = [generator(seed, f"{stage.kind} prompts", number).permutation(count) for number in passes]
    return np.concatenate(orders)[: steps * each].astype(np.int64)


class PromptTokenizer(PreTrainedTokenizerFast):
    """The tokenizer, which is given prompts by their number, and gives our ids of them.

    Text would not do: the ids of special tokens, and of a text's first word, depend on what stands around them.
    """

    prompts: Sequence[Prompt] = ()

    def __call__(self, text: Sequence[str], **_: Any) -> dict[str, list[list[int]]]:
        return {"input_ids": [self.prompts[int(number)].ids.tolist() for number in text]}


class _Online:
    """One training: plan and trainer, and the reward of a step's answers."""

    def __init__(
        self,
        stage: GrpoStage | RlooStage,
        job: Job,
        opened: session.Session,
        words: session.Words,
        prompts: Sequence[Prompt],
        order: NDArray[np.int64],
        judge: Judge,
    ) -> None:
        self.stage, self.job, self.opened, self.words = stage, job, opened, words
        self.prompts, self.order, self.judge = prompts, order, judge
        self.prompts_each = stage.train.batch_size // stage.samples
        answers = len(order) * stage.samples
        # Tokens and units are known when the answers are written: _rewards fills them in.
        self.plan = Plan(
            steps=len(order) // self.prompts_each,
            batch_size=stage.train.batch_size,
            rows_per_epoch=len(prompts) * stage.samples,
            tokens=np.zeros(answers, dtype=np.int64),
            units=np.zeros(answers, dtype=np.int64),
        )
        self.stops = session.stop_ids(words)

    @property
    def trainer(self) -> Callable[..., Any]:
        trl = require_trl()
        found: Callable[..., Any] = trl.GRPOTrainer if self.stage.kind == "grpo" else trl.RLOOTrainer
        return found

    def config(self) -> Any:
        """The stage's settings under TRL's names."""
        trl, stage = require_trl(), self.stage
        return (trl.GRPOConfig if stage.kind == "grpo" else trl.RLOOConfig)(
            beta=stage.kl,
            num_generations=stage.samples,
            generation_batch_size=stage.train.batch_size,
            max_completion_length=stage.max_new_tokens,
            temperature=stage.temperature,
            top_p=stage.top_p,
            top_k=stage.top_k,
            shuffle_dataset=False,
            remove_unused_columns=False,
            **arguments(stage.train, self.job, self.opened, self.plan.steps),
        )

    def train(self, rate: float) -> loop.Trained:
        """Train from the newest whole checkpoint, where there is one."""
        from datasets import Dataset
        from transformers import PrinterCallback

        job, model, steps = self.job, self.opened.model, self.plan.steps
        found, warnings = newest_checkpoint(job.work / "checkpoints")
        step = 0 if found is None else found.step
        metrics_file = MetricsFile(job.work / "metrics.jsonl", job.tracking)
        metrics_file.rewind(step if found is not None else -1)
        tokenizer = trl_tokenizer(job, self.words, PromptTokenizer)
        tokenizer.prompts = self.prompts
        # TRL ends an answer at any stop token that the model's generation settings name.
        self.opened.base.generation_config.eos_token_id = sorted(self.stops)
        screen = job.progress(job.name, steps, step)
        with closing(screen), stop_on_signals() as stop:
            for warning in warnings:
                screen.note(warning)
            if found is not None:
                screen.note(f"resumed from the checkpoint of step {step}")
            trainer = self.trainer(
                model=model,
                reward_funcs=self._rewards,
                args=self.config(),
                train_dataset=Dataset.from_dict({"prompt": [str(number) for number in self.order]}),
                processing_class=tokenizer,
                callbacks=[Follow(self.plan, metrics_file, screen, stop, self.opened.device, measures=False)],
                optimizers=optimiser(model, self.stage.train, rate, steps),
            )
            trainer.remove_callback(PrinterCallback)
            trainer.train(resume_from_checkpoint=None if found is None else str(found.folder))
            done = trainer.state.global_step
            if stop.received and done < steps:
                raise InterruptedRunError(
                    f"stopped by {stop.received} after step {done} of {steps}; a checkpoint is saved. Run the same "
                    "command again to go on from there"
                )
        return loop.Trained(done, progress_of(metrics_file.read()), False, step, "answer tokens", warnings)

    def _rewards(
        self, prompts: Sequence[str], completion_ids: Sequence[Sequence[int]], trainer_state: Any, **given: Any
    ) -> list[float]:
        """A step's rewards; prompts: their numbers, each answer's. TRL logs the mean of every part."""
        answers = [
            _answer(self.prompts[int(number)], ids, self.stops, self.words)
            for number, ids in zip(prompts, completion_ids, strict=True)
        ]
        first = trainer_state.global_step * self.stage.train.batch_size
        lengths = np.array([len(answer.ids) for answer in answers])
        self.plan.units[first : first + len(answers)] = lengths
        self.plan.tokens[first : first + len(answers)] = lengths + [len(answer.prompt.ids) for answer in answers]
        scores = self.judge(answers)
        given["log_metric"]("finished", float(np.mean([answer.finished for answer in answers])))
        for name, values in scores.parts.items():
            given["log_metric"](f"score_{name}", float(values.mean()))
        return [float(score) for score in scores.total]


def _answer(prompt: Prompt, ids: Sequence[int], stops: frozenset[int], words: session.Words) -> Answer:
    finished = ids[-1] in stops
    written = np.array(ids, dtype=np.int64)
    text = answer_text(prompt, written, finished, words.resolved.family, words.tokenizer)
    return Answer(prompt, written, text, finished)


def _refuse_adapter(stage: GrpoStage | RlooStage, opened: session.Session) -> None:
    """What TRL cannot train of an adapter that a stage starts from; the schema looks at fresh ones."""
    refuse_trained_head(opened)
    lora = opened.lora
    problem = trl_adapter_problem(stage.kind, lora.lora_dropout, opened.settings.init, bool(lora.modules_to_save))
    if problem is not None:
        raise InputError(f"kind {stage.kind}: start_from {stage.start_from}: its adapter's {problem}")


def _metrics(trained: loop.Trained, log: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The training's, and rewards, finished answers, KL and lengths of the first and the last step."""
    lines = [line for line in log if "loss" in line]
    metrics = trained.metrics()
    names = {"reward": "reward", "finished": "finished", "kl": "kl", "answer_tokens": "completions/mean_length"}
    for name, theirs in names.items():
        if theirs in lines[0]:
            metrics |= {f"{name}_first": lines[0][theirs], f"{name}_last": lines[-1][theirs]}
    return metrics
