"""`engine: trl`: TRL's own trainers, as they are, on a stage's base, adapter, tokens and masks.

Only public extension points are used: datasets that are tokenised already, a data collator, the `optimizers` argument
(our optimiser and learning rates, step for step), a callback for metrics, signals and the last step's measurement.
Loss and gradient, accumulation, clipping, mixed precision, measuring and checkpoints are TRL's and transformers'.
docs/trl.md says what differs from `engine: finetune`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import get_peft_model
from torch import Tensor, nn
from transformers import LlamaForCausalLM, LlamaForSequenceClassification

from finetune.data.comparisons import Comparisons
from finetune.data.prepare import PreparedSft
from finetune.data.prepare_preference import PreparedComparisons
from finetune.engine import loop, session
from finetune.engine.batches import Rows, collate
from finetune.engine.interrupt import stop_on_signals
from finetune.engine.job import Job
from finetune.engine.tracking import MetricsFile
from finetune.errors import InputError, InterruptedRunError
from finetune.model import adapter
from finetune.recipe.learning_stages import DpoStage, RewardStage, SftStage, trl_adapter_problem
from finetune.recipe.train_settings import TrainSettings
from finetune.stages.trl_checkpoints import newest_checkpoint
from finetune.stages.trl_follow import Follow, Plan, progress_of
from finetune.stages.trl_setup import arguments, lent_to_trl, optimiser, refuse_trained_head, require_trl, trl_tokenizer

IGNORED = -100
"""A label that transformers' losses leave out."""


def train_sft(
    stage: SftStage, job: Job, opened: session.Session, words: session.Words, data: PreparedSft
) -> tuple[loop.Trained, dict[str, Any]]:
    """Train the session's adapter with TRL's SFTTrainer."""
    trl = require_trl()
    refuse_trained_head(opened)
    ragged = stage.train.layout == "ragged" and "layout" in stage.train.model_fields_set

    def columns(rows: Rows) -> dict[str, list[Any]]:
        taken = [rows.row(index) for index in range(len(rows))]
        return {
            "input_ids": [ids.tolist() for ids, _ in taken],
            "labels": [np.where(trained.astype(bool), ids, IGNORED).tolist() for ids, trained in taken],
        }

    return _run(
        _Training(
            trainer=trl.SFTTrainer,
            config=partial(trl.SFTConfig, remove_unused_columns=not ragged),
            model=opened.model,
            train=columns(data.train),
            held_out=None if data.held_out is None else columns(data.held_out),
            collator=ragged_rows if ragged else None,
            epoch_order=data.epoch_order,
            tokens=data.train.lengths,
            units=np.array([int(data.train.row(i)[1][1:].astype(bool).sum()) for i in range(len(data.train))]),
            unit="trained tokens",
        ),
        stage.train,
        job,
        opened,
        words,
    )


def train_reward(
    stage: RewardStage,
    job: Job,
    opened: session.Session,
    words: session.Words,
    data: PreparedComparisons,
    head: nn.Linear,
    margins: Callable[[Comparisons], NDArray[np.float64] | None],
    rate_factor: float,
) -> tuple[session.Session, loop.Trained, dict[str, Any]]:
    """Train adapter and head with TRL's RewardTrainer.

    It trains a sequence classifier: one is put together from the base's decoder and the head, with the same LoRA
    weights on it, and afterwards taken apart. Returns the session with the trained adapter; `head` is changed in place.
    """
    trl = require_trl()
    lora = opened.lora
    _refuse(trl_adapter_problem("reward", lora.lora_dropout, opened.settings.init, bool(lora.modules_to_save)), job)
    _refuse_rankings(data, job)

    def columns(part: Comparisons) -> dict[str, list[Any]]:
        pairs = [part.group(group) for group in range(len(part))]
        own = margins(part)
        return {
            "chosen_ids": [part.rows.row(better)[0].tolist() for better, _ in pairs],
            "rejected_ids": [part.rows.row(worse)[0].tolist() for _, worse in pairs],
            **({} if own is None else {"margin": own.tolist()}),
        }

    classifier = _as_classifier(opened, head)
    trained, resolved = _run(
        _Training(
            trainer=trl.RewardTrainer,
            config=partial(trl.RewardConfig, center_rewards_coefficient=stage.centring or None, disable_dropout=False),
            model=classifier,
            train=columns(data.train),
            held_out=None if data.held_out is None else columns(data.held_out),
            collator=None,
            epoch_order=data.epoch_order,
            tokens=data.train.lengths,
            units=np.ones(len(data.train), dtype=np.int64),
            unit="comparisons",
            rate_factor=rate_factor,
        ),
        stage.train,
        job,
        opened,
        words,
    )
    return _from_classifier(opened, classifier, head), trained, resolved


def train_dpo(
    stage: DpoStage,
    job: Job,
    opened: session.Session,
    words: session.Words,
    data: PreparedComparisons,
    rate_factor: float,
) -> tuple[loop.Trained, dict[str, Any]]:
    """Train the session's adapter with TRL's DPOTrainer, which makes the reference itself: a copy of that adapter."""
    trl = require_trl()
    lora = opened.lora
    _refuse(trl_adapter_problem("dpo", lora.lora_dropout, opened.settings.init, bool(lora.modules_to_save)), job)
    _refuse_rankings(data, job)
    refuse_trained_head(opened)
    losses = [stage.loss, "sft"] if stage.nll_weight else [stage.loss]
    trained, resolved = _run(
        _Training(
            trainer=trl.DPOTrainer,
            config=partial(
                trl.DPOConfig,
                beta=stage.beta,
                label_smoothing=stage.label_smoothing,
                loss_type=losses,
                loss_weights=[1.0, stage.nll_weight][: len(losses)],
                remove_unused_columns=False,
            ),
            model=opened.model,
            train=pair_columns(data.train),
            held_out=None if data.held_out is None else pair_columns(data.held_out),
            collator=pair_batch,
            epoch_order=data.epoch_order,
            tokens=data.train.lengths,
            units=np.ones(len(data.train), dtype=np.int64),
            unit="comparisons",
            rate_factor=rate_factor,
        ),
        stage.train,
        job,
        opened,
        words,
    )
    opened.model.set_adapter(adapter.ADAPTER)
    opened.model.delete_adapter("ref")
    return trained, resolved


def ragged_rows(examples: Sequence[dict[str, list[int]]]) -> dict[str, Any]:
    """Rows end to end for the ragged forward: TRL's trainer hands the layout through to the attention function."""
    rows = _Examples(examples)
    batch = collate(rows, range(len(rows)))
    labels_T = torch.full_like(batch.ids_T, IGNORED)
    labels_T[batch.predict_N + 1] = batch.labels_N  # transformers shifts labels itself; rows share nothing here
    return {
        "input_ids": batch.ids_T[None],
        "labels": labels_T[None],
        "position_ids": batch.layout.positions(batch.ids_T.device),
        "attention_mask": torch.zeros(1, 1, 1, 1, dtype=torch.bool),
        "ragged": batch.layout,
    }


@dataclass(frozen=True)
class _Examples:
    """TRL's examples as rows."""

    examples: Sequence[dict[str, list[int]]]

    @property
    def lengths(self) -> NDArray[np.int64]:
        return np.array([len(example["input_ids"]) for example in self.examples])

    def __len__(self) -> int:
        return len(self.examples)

    def row(self, index: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        example = self.examples[index]
        return np.array(example["input_ids"]), np.array(example["labels"]) != IGNORED


def pair_columns(part: Comparisons) -> dict[str, list[Any]]:
    """Tokens and masks of both answers, as whole rows. TRL's DPO insists on texts to tokenise: these are empty."""
    pairs = [part.group(group) for group in range(len(part))]
    columns: dict[str, list[Any]] = {name: [""] * len(pairs) for name in ("prompt", "chosen", "rejected")}
    for side, name in enumerate(("chosen", "rejected")):
        rows = [part.rows.row(pair[side]) for pair in pairs]
        columns[f"{name}_tokens"] = [ids.tolist() for ids, _ in rows]
        columns[f"{name}_trained"] = [trained.astype(np.int64).tolist() for _, trained in rows]
    return columns


def pair_batch(examples: Sequence[dict[str, list[int]]]) -> dict[str, Tensor]:
    """What TRL's own collator for DPO makes, of our tokens: all chosen rows, then all rejected ones, padded."""

    def padded(kind: str) -> Tensor:
        rows = [torch.tensor(example[f"{side}_{kind}"]) for side in ("chosen", "rejected") for example in examples]
        return nn.utils.rnn.pad_sequence(rows, batch_first=True)

    lengths = torch.tensor([len(e[f"{side}_tokens"]) for side in ("chosen", "rejected") for e in examples])
    ids_BL = padded("tokens")
    mask_BL = (torch.arange(ids_BL.shape[1])[None] < lengths[:, None]).long()
    return {"input_ids": ids_BL, "attention_mask": mask_BL, "completion_mask": padded("trained")}


@dataclass(frozen=True)
class _Training:
    """What the kinds of stages differ in. train, held_out: columns of a dataset, one row each. units: of each row."""

    trainer: Callable[..., Any]
    config: Callable[..., Any]
    model: nn.Module
    train: dict[str, list[Any]]
    held_out: dict[str, list[Any]] | None
    collator: Callable[[Sequence[Any]], Any] | None
    epoch_order: Callable[[int], NDArray[np.int64]]
    tokens: NDArray[np.int64]
    units: NDArray[np.int64]
    unit: str
    rate_factor: float = 1.0


def _run(
    training: _Training, train: TrainSettings, job: Job, opened: session.Session, words: session.Words
) -> tuple[loop.Trained, dict[str, Any]]:
    """One training by TRL, from its newest whole checkpoint where there is one."""
    rows = row_stream(training.epoch_order, train)
    per_epoch = len(training.epoch_order(0))
    plan = Plan(
        steps=math.ceil(len(rows) / train.batch_size),
        batch_size=train.batch_size,
        rows_per_epoch=per_epoch,
        tokens=training.tokens[rows],
        units=training.units[rows],
    )
    job.say(f"engine trl: {training.trainer.__name__} of TRL {require_trl().__version__}, as it is; docs/trl.md")
    if per_epoch % train.batch_size and len(rows) > per_epoch:
        job.say(
            "a step that an epoch's rows do not fill is filled with rows of the next epoch (engine finetune does not)"
        )

    def trained_by_trl(rate: float) -> loop.Trained:
        return _train(training, train, job, opened, words, rows, plan, rate)

    with lent_to_trl(job, training.model):
        trained, resolved = session.run_trainer(
            job, opened, training.model, plan.steps, train, trained_by_trl, rate_factor=training.rate_factor
        )
    return trained, {**resolved, "engine": f"trl {require_trl().__version__}"}


def _train(
    training: _Training,
    train: TrainSettings,
    job: Job,
    opened: session.Session,
    words: session.Words,
    rows: NDArray[np.int64],
    plan: Plan,
    rate: float,
) -> loop.Trained:
    from datasets import Dataset
    from transformers import PrinterCallback

    found, warnings = newest_checkpoint(job.work / "checkpoints")
    step = 0 if found is None else found.step
    metrics_file = MetricsFile(job.work / "metrics.jsonl", job.tracking)
    metrics_file.rewind(step if found is not None else -1)
    screen = job.progress(job.name, plan.steps, step)
    with closing(screen), stop_on_signals() as stop:
        for warning in warnings:
            screen.note(warning)
        if found is not None:
            screen.note(f"resumed from the checkpoint of step {step}")
        held_out = None if training.held_out is None else Dataset.from_dict(training.held_out)
        follow = Follow(plan, metrics_file, screen, stop, opened.device, measures=held_out is not None)
        trainer = training.trainer(
            model=training.model,
            args=_arguments(training, train, job, opened, plan, first=found is None),
            data_collator=training.collator,
            train_dataset=Dataset.from_dict(training.train).select(rows),
            eval_dataset=held_out,
            processing_class=trl_tokenizer(job, words),
            callbacks=[follow],
            optimizers=optimiser(training.model, train, rate, plan.steps),
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train(resume_from_checkpoint=None if found is None else str(found.folder))
        done = trainer.state.global_step
        if stop.received and done < plan.steps:
            raise InterruptedRunError(
                f"stopped by {stop.received} after step {done} of {plan.steps}; a checkpoint is saved. Run the same "
                "command again to go on from there"
            )
    return loop.Trained(done, progress_of(metrics_file.read()), False, step, training.unit, warnings)


def _arguments(
    training: _Training, train: TrainSettings, job: Job, opened: session.Session, plan: Plan, *, first: bool
) -> Any:
    """The recipe's settings under TRL's names. first: training begins, so the held-out rows are measured before it."""
    measures = training.held_out is not None
    held_out_steps = len(next(iter(training.held_out.values()))) / train.batch_size if training.held_out else 0
    return training.config(
        max_length=None,  # rows come at their length
        eval_strategy="steps" if measures else "no",
        eval_steps=train.eval_every or math.ceil(max(plan.steps / 10, held_out_steps, 1)),
        eval_on_start=measures and first,
        **arguments(train, job, opened, plan.steps),
    )


def row_stream(epoch_order: Callable[[int], NDArray[np.int64]], train: TrainSettings) -> NDArray[np.int64]:
    """The rows of the whole training, epoch after epoch without a gap: TRL cuts them into batches as they come."""
    per_epoch = len(epoch_order(0))
    wanted = train.batch_size * train.max_steps if train.max_steps else math.ceil(train.epochs * per_epoch - 1e-9)
    epochs = [epoch_order(epoch) for epoch in range(math.ceil(wanted / per_epoch))]
    return np.concatenate(epochs)[:wanted]


def _as_classifier(opened: session.Session, head: nn.Linear) -> Any:
    """The base's decoder with its adapter's weights, and the head, as a sequence classifier under peft."""
    weights = adapter.state(opened.model)
    lora = copy.deepcopy(opened.lora)
    base = opened.model.unload()
    config = copy.deepcopy(base.config)
    config.num_labels = 1
    with torch.device("meta"):
        shell = LlamaForSequenceClassification(config)
    shell.model, shell.score = base.model, head
    shell.requires_grad_(False)
    lora.task_type, lora.modules_to_save, lora.init_lora_weights = "SEQ_CLS", ["score"], True
    classifier = get_peft_model(shell, lora, adapter_name=adapter.ADAPTER)
    adapter.restore(classifier, weights | {_score_name(classifier): head.weight.detach()})
    return classifier


def _from_classifier(opened: session.Session, classifier: Any, head: nn.Linear) -> session.Session:
    """The session with what was trained, as engine finetune would have left it."""
    weights = adapter.state(classifier)
    lora = copy.deepcopy(classifier.peft_config[adapter.ADAPTER])
    with torch.no_grad():
        head.weight.copy_(weights.pop(_score_name(classifier)))
    classifier.unload()
    base: LlamaForCausalLM = opened.base
    lora.task_type, lora.modules_to_save = "CAUSAL_LM", None
    model = get_peft_model(base, lora, adapter_name=adapter.ADAPTER)
    adapter.restore(model, weights)
    return replace(opened, model=model)


def _score_name(classifier: nn.Module) -> str:
    return next(name for name in adapter.trainable(classifier) if ".score." in name)


def _refuse(problem: str | None, job: Job) -> None:
    if problem is not None:
        raise InputError(f"stage {job.name} has engine trl, but its adapter's {problem}")


def _refuse_rankings(data: PreparedComparisons, job: Job) -> None:
    """TRL learns from pairs. Raises InputError, naming the first comparison of more answers."""
    for part in (data.train, data.held_out):
        if part is not None and (more := np.flatnonzero(part.sizes > 2)).size:
            first = data.origins[part.origin_of(int(more[0]))]
            raise InputError(
                f"stage {job.name}: engine trl learns from pairs, but {more.size:,} of {len(part):,} comparisons rank "
                f"three or more answers, such as {first}: use engine finetune, or give pairs"
            )
