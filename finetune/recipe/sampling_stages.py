"""Stages that sample answers and have them scored: reject, ppo, and TRL's grpo and rloo."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, StrictBool, model_validator

from finetune.recipe.data_settings import DataSource, HeldOut
from finetune.recipe.settings import Settings, Text
from finetune.recipe.train_settings import TrainSettings


class SafetyReward(Settings):
    """A second reward model for safety, combined with the first as in Llama 2 (section 3.2.3)."""

    reward: Text
    """The reward stage above, or reward adapter folder, that scores safety."""
    threshold: Annotated[float, Field(gt=0, lt=1)] = 0.15
    """The safety score counts where it is below this, as a probability sigmoid(score); elsewhere `reward` counts."""
    column: Text = "safety"
    """Column of the prompt rows that marks safety prompts with true: there the safety score always counts."""


class NumberChecker(Settings):
    """Passes where the answer's number is the row's: GSM8K's rule."""

    kind: Literal["number"]
    """Exact number: the one after the last `####`, or else the last number in the text."""
    column: Text = "answer"
    """Column of the prompt rows that holds the right number, or a text that ends with it."""


class RegexChecker(Settings):
    """Passes where a regular expression is found in the answer."""

    kind: Literal["regex"]
    """Regular expression, in Python's syntax."""
    pattern: Text
    """Searched for in the answer; anchor it with ^ and $ to match the whole."""
    ignore_case: StrictBool = False
    """Upper and lower case are the same."""

    @model_validator(mode="after")
    def _compiles(self) -> RegexChecker:
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ValueError(f"pattern is not a regular expression: {error}") from error
        return self


class JsonChecker(Settings):
    """Passes where the answer is valid JSON."""

    kind: Literal["json"]
    """The whole answer, white space aside, parses as JSON."""
    keys: list[Text] = []
    """Keys that the answer, an object, has to have. Empty = any JSON value."""


class FinishedChecker(Settings):
    """Passes where the answer ends by itself."""

    kind: Literal["finished"]
    """The model wrote its stop token within max_new_tokens."""


class FunctionChecker(Settings):
    """A Python function, given by name to `run_recipe(…, functions={name: function})`. Not from the command line."""

    kind: Literal["function"]
    """The score is what the function returns."""
    name: Text
    """Name under which the function is given."""
    version: Annotated[int, Field(ge=1)] = 1
    """Raise it when the function changes: the code itself is not part of the stage's fingerprint."""


Checker = Annotated[
    NumberChecker | RegexChecker | JsonChecker | FinishedChecker | FunctionChecker, Field(discriminator="kind")
]


class ScoredStage(Settings):
    """What stages that sample answers and score them share. Exactly one of reward and checker."""

    prompts: Annotated[list[DataSource], Field(min_length=1)]
    """Where the prompts come from: rows of conversations, whose last answer is cut off, or of the format `prompt`;
    docs/data.md."""
    reward: Text | None = None
    """The reward stage above, or a reward adapter folder, that scores the answers."""
    safety: SafetyReward | None = None
    """A second reward model, for safety."""
    checker: Checker | None = None
    """A rule that scores the answers: 1 passes, 0 fails."""
    max_new_tokens: Annotated[int, Field(ge=1)] = 256
    """Longest answer in tokens. One that has not stopped by then is cut, and counts as unfinished."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Sample from the likeliest tokens that together have this probability. 1 = all."""
    top_k: Annotated[int, Field(ge=0)] = 0
    """Sample from this many likeliest tokens. 0 = all."""
    rows_at_once: Annotated[int, Field(ge=1)] = 64
    """Answers that are written side by side: memory for speed. Does not change the answers but for rounding."""

    @model_validator(mode="before")
    @classmethod
    def _own_defaults(cls, values: Any) -> Any:
        """A section that names some of its keys keeps this stage's defaults of the others: `train: {max_steps: 9}`."""
        if not isinstance(values, dict):
            return values
        own = {key: field.default for key, field in cls.model_fields.items() if isinstance(field.default, Settings)}
        given = {key: values[key] for key in own if isinstance(values.get(key), dict)}
        return {**values, **{key: {**own[key].model_dump(exclude_unset=True), **given[key]} for key in given}}

    @model_validator(mode="after")
    def _one_judge(self) -> ScoredStage:
        if (self.reward is None) == (self.checker is None):
            found = "none" if self.reward is None else "both"
            raise ValueError(f"needs exactly one of reward and checker; has {found}")
        if self.safety is not None and self.reward is None:
            raise ValueError("safety is a second reward model: it needs reward, the first")
        if self.safety is not None and self.safety.reward == self.reward:
            raise ValueError(f"safety.reward is {self.reward}, as reward is: two reward models are combined")
        return self


Temperature = Annotated[float, Field(gt=0)]


class TemperatureSearch(Settings):
    """Try several temperatures on a few prompts, and sample the rest at the best."""

    candidates: Annotated[list[Temperature], Field(min_length=2)]
    """The temperatures to try."""
    prompts: Annotated[int, Field(ge=1)] = 32
    """On how many prompts. The best has the highest mean over prompts of the best of `samples` scores."""


class RejectStage(ScoredStage):
    """Rejection sampling: many answers to each prompt, scored, the best kept as rows for sft, or pairs for dpo.
    docs/rejection.md."""

    kind: Literal["reject"]
    """Rejection sampling (best of k)."""
    policy: Text | None = None
    """The stage above, or adapter folder, whose answers are sampled. null = the bare base."""
    samples: Annotated[int, Field(ge=1)] = 16
    """Answers to each prompt, k. Llama 3 used 10 to 30."""
    temperature: Temperature | Annotated[list[Temperature], Field(min_length=1)] = 1.0
    """Sampling temperature; of a list each answer takes the next. Llama 2 found 1.2 to 1.3 best for 10 to 100."""
    temperature_search: TemperatureSearch | None = None
    """Find the temperature on a few prompts first. Not together with temperature."""
    keep: Literal["best", "above", "pairs"] = "best"
    """best: the best_n answers of each prompt. above: all with at least `threshold`. pairs: the best against the worst,
    as a comparison for dpo and reward stages."""
    best_n: Annotated[int, Field(ge=1)] = 1
    """How many answers of each prompt keep: best keeps."""
    threshold: float | None = None
    """Only answers with at least this score are kept (of pairs: the better one). A checker's pass is 1."""
    min_gap: Annotated[float, Field(ge=0)] = 0.0
    """With keep: pairs, the least difference of the two scores. Equal scores never make a pair."""
    duplicates: Literal["drop", "keep"] = "drop"
    """The same answer to the same prompt again: drop it, or keep each."""
    unfinished: Literal["drop", "keep"] = "drop"
    """Answers cut at max_new_tokens: never keep them (of pairs: neither side), or treat them as the others."""
    earlier: list[Text] = []
    """Reject stages above whose samples compete too, scored anew by this stage's judge: Llama 2 keeps the best of all
    rounds. Prompts that only they have are kept as well."""
    engine: Literal["finetune", "vllm"] = "finetune"
    """What samples: finetune itself, or vLLM with the adapter loaded beside the base (where it is installed)."""

    @model_validator(mode="after")
    def _keys_fit(self) -> RejectStage:
        if self.temperature_search is not None and "temperature" in self.model_fields_set:
            raise ValueError("temperature_search finds the temperature: remove temperature")
        owners = {"best_n": "best", "min_gap": "pairs"}
        for key, keep in owners.items():
            if key in self.model_fields_set and self.keep != keep:
                raise ValueError(f"{key} belongs to keep: {keep}; keep: {self.keep} does not read it")
        if self.best_n > self.samples and not self.earlier:
            raise ValueError(f"best_n {self.best_n} is more than samples {self.samples}, the answers of a prompt")
        if isinstance(self.temperature, list) and len(self.temperature) > self.samples:
            raise ValueError(
                f"temperature has {len(self.temperature)} entries, but samples is {self.samples}: each answer takes one"
            )
        if self.keep == "above" and self.threshold is None:
            raise ValueError("keep above needs threshold, the least score")
        if self.keep == "pairs" and self.samples < 2 and not self.earlier:
            raise ValueError("samples 1 makes no pairs: keep pairs needs two answers or more")
        return self


Rate = Literal["auto"] | Annotated[float, Field(gt=0)]


class PpoStage(ScoredStage):
    """Proximal policy optimisation against a reward model or a checker; policy, reference, reward and value are
    adapters and heads on one base. docs/ppo.md."""

    kind: Literal["ppo"]
    """Proximal policy optimisation."""
    start_from: Text | None = None
    """An earlier stage, or an adapter folder, to go on from; frozen, it is the reference too. null = the base."""
    held_out: HeldOut = HeldOut(max_rows=64)
    """Prompts that are never trained on: answered before, every sample_every iterations, and after."""
    temperature: Temperature = 1.0
    """Sampling temperature. The log-probabilities of the update are those of temperature 1."""
    samples: Annotated[int, Field(ge=1)] = 1
    """Answers to each prompt in an iteration."""
    rollouts: Annotated[int, Field(ge=1)] = 512
    """Answers in one iteration: rollouts / samples prompts. Llama 2: 512."""
    iterations: Annotated[int, Field(ge=1)] | None = None
    """How often answers are sampled and learnt from. null = train.epochs passes over the prompts. Llama 2: 200-400."""
    passes: Annotated[int, Field(ge=1)] = 1
    """Passes over an iteration's answers, each in optimiser steps of train.batch_size answers. Llama 2: 1."""
    kl: Annotated[float, Field(ge=0)] = 0.01
    """Weight of the penalty on each token's log-probability ratio to the reference. Llama 2: 0.01 (7B, 13B), 0.005."""
    target_kl: Annotated[float, Field(gt=0)] | None = None
    """Adapt the weight so that an answer's KL to the reference stays near this, in nats. null = fixed."""
    max_kl: Annotated[float, Field(gt=0)] = 100.0
    """Stop when the mean KL of an answer to the reference exceeds this, in nats; what was before it is kept."""
    clip_range: Annotated[float, Field(gt=0)] = 0.2
    """How far from 1 a token's probability ratio to the sampling policy earns. Llama 2: 0.2."""
    value_clip_range: Annotated[float, Field(gt=0)] | None = 0.2
    """How far a value may move from its old one in one iteration and still earn. null = as far as it likes."""
    value_learning_rate: Rate = "auto"
    """Peak learning rate of the value adapter and head. auto = that of reward stages."""
    gamma: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Discount for each token."""
    gae_lambda: Annotated[float, Field(ge=0, le=1)] = 0.95
    """Lambda of generalised advantage estimation."""
    entropy_weight: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the entropy bonus."""
    whiten_scores: StrictBool = True
    """Scores are shifted and scaled to mean 0 and deviation 1 in each iteration, as in Llama 2."""
    whiten_advantages: StrictBool = True
    """The same for the advantages of an iteration's tokens; never scaled up beyond the spread of the returns."""
    clip_score: Annotated[float, Field(gt=0)] | None = None
    """Scores beyond this, after whitening, are cut to it, on both sides. null = not cut."""
    no_stop_penalty: Annotated[float, Field(ge=0)] = 1.0
    """Subtracted from the score of an answer that was cut at max_new_tokens."""
    sample_every: Annotated[int, Field(ge=1)] = 10
    """Iterations between answers to the held-out prompts, which are measured and written to samples.jsonl."""
    train: TrainSettings = TrainSettings(
        epochs=1.0, batch_size=64, schedule="constant", warmup=0.0, betas=(0.9, 0.95), weight_decay=0.1
    )
    """The update: batch_size answers in one optimiser step. Defaults are Llama 2's, the rate aside."""

    @model_validator(mode="after")
    def _keys_fit(self) -> PpoStage:
        for key, instead in (
            ("max_steps", "iterations"),
            ("eval_every", "sample_every"),
            ("early_stop", "max_kl, iterations"),
        ):
            if getattr(self.train, key) is not None:
                raise ValueError(f"train.{key} is not read by ppo: it has {instead}")
        if self.rollouts % self.samples:
            raise ValueError(f"rollouts {self.rollouts} has to be a multiple of samples {self.samples}")
        if self.train.batch_size % self.samples:
            raise ValueError(
                f"train.batch_size {self.train.batch_size} has to be a multiple of samples {self.samples}: the answers "
                "to a prompt stay together"
            )
        if self.train.batch_size > self.rollouts:
            raise ValueError(
                f"train.batch_size {self.train.batch_size} is more than rollouts {self.rollouts}, the answers of an "
                "iteration"
            )
        if self.target_kl is not None and self.kl == 0:
            raise ValueError("target_kl adapts kl by factors: kl has to be above 0")
        if self.target_kl is not None and self.target_kl >= self.max_kl:
            raise ValueError(f"target_kl {self.target_kl:g} is not below max_kl {self.max_kl:g}, where training stops")
        if self.whiten_scores and self.rollouts == 1:
            raise ValueError(
                "rollouts 1 leaves nothing to whiten: every score would be 0; more, or whiten_scores false"
            )
        if "sample_every" in self.model_fields_set and self.held_out.fraction == 0 and not self.held_out.data:
            raise ValueError("sample_every needs held-out prompts to answer; held_out.fraction is 0")
        if self.iterations is not None and "epochs" in self.train.model_fields_set and self.train.epochs != 1.0:
            raise ValueError("train.epochs is not read where iterations is given")
        return self


class TrlOnlineStage(ScoredStage):
    """What the stages that TRL's online trainers run share."""

    start_from: Text | None = None
    """An earlier stage, or an adapter folder, to go on from. null = a fresh adapter on the base."""
    temperature: Temperature = 1.0
    """Sampling temperature."""
    samples: Annotated[int, Field(ge=2)] = 8
    """Answers to each prompt, which are compared with each other."""
    train: TrainSettings = TrainSettings(epochs=1.0)
    """The update: batch_size answers in one optimiser step, a multiple of samples."""

    @model_validator(mode="after")
    def _trl_can(self) -> TrlOnlineStage:
        if "rows_at_once" in self.model_fields_set:
            raise ValueError("rows_at_once is not read here: TRL writes all train.batch_size answers of a step at once")
        for key in ("early_stop", "eval_every"):
            if getattr(self.train, key) is not None:
                raise ValueError(f"train.{key} is not read here: TRL's trainer is run without held-out rows")
        if self.train.layout == "ragged" and "layout" in self.train.model_fields_set:
            raise ValueError("train.layout ragged belongs to engine finetune: TRL computes padded rows here")
        if self.train.batch_size % self.train.micro_batch_size:
            raise ValueError(
                f"train.batch_size {self.train.batch_size} has to be a multiple of micro_batch_size "
                f"{self.train.micro_batch_size}: TRL adds up whole micro-batches"
            )
        if self.train.batch_size % self.samples:
            raise ValueError(f"train.batch_size {self.train.batch_size} has to be a multiple of samples {self.samples}")
        return self


class GrpoStage(TrlOnlineStage):
    """Group relative policy optimisation by TRL's GRPOTrainer, as it is. docs/trl.md."""

    kind: Literal["grpo"]
    """Group relative policy optimisation (TRL)."""
    kl: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the KL to the reference, GRPOConfig's beta. 0 = no reference."""


class RlooStage(TrlOnlineStage):
    """REINFORCE leave-one-out by TRL's RLOOTrainer, as it is. docs/trl.md."""

    kind: Literal["rloo"]
    """REINFORCE leave-one-out (TRL)."""
    kl: Annotated[float, Field(ge=0)] = 0.05
    """Weight of the KL to the reference, RLOOConfig's beta."""
