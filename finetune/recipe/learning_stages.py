"""Stages that learn from rows: sft, reward, dpo."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import Field, StrictBool, model_validator

from finetune.recipe.data_settings import DataSource, HeldOut
from finetune.recipe.settings import Settings, Text
from finetune.recipe.train_settings import Engine, TrainSettings, refuse_for_trl


class SftStage(Settings):
    """Supervised fine-tuning on conversations, prompts with completions, or plain text."""

    kind: Literal["sft"]
    """What the stage does."""
    data: Annotated[list[DataSource], Field(min_length=1)]
    """Where the training rows come from; several sources are mixed."""
    start_from: Text | None = None
    """An earlier stage of this recipe, or an adapter folder, to go on from. null = a fresh adapter on the base."""
    held_out: HeldOut = HeldOut()
    """Rows kept apart to measure on."""
    too_long: Literal["drop", "truncate", "error"] = "drop"
    """Examples over model.max_length: leave out and list, cut the last answer's end, or stop. Prompts are never cut."""
    duplicates: Literal["keep", "drop"] = "keep"
    """Exact duplicate rows are counted in any case; drop uses each once."""
    loss_on: Literal["answers", "all"] = "answers"
    """answers: only assistant turns and their stop token are trained. all: prompts too."""
    allow_unusual_mask: StrictBool = False
    """Train although under 1 % or all of the tokens of a chat format would be trained."""
    train: TrainSettings = TrainSettings()
    """How long, how fast and in which portions to train."""
    engine: Engine = "finetune"
    """What trains: finetune's own loop, or trl: TRL's trainer as it is (pip install 'finetune[trl]'; docs/trl.md)."""

    @model_validator(mode="after")
    def _early_stop_measures(self) -> SftStage:
        if self.train.early_stop is not None and self.held_out.fraction == 0 and not self.held_out.data:
            raise ValueError("train.early_stop needs held-out rows to measure on; held_out.fraction is 0")
        return self

    @model_validator(mode="after")
    def _engine_can(self) -> SftStage:
        if self.engine == "trl":
            refuse_for_trl(self.train)
        return self


class PreferenceStage(Settings):
    """What stages that learn from comparisons share."""

    data: Annotated[list[DataSource], Field(min_length=1)]
    """Where the comparisons come from; several sources are mixed."""
    start_from: str | None = None
    """An earlier stage of this recipe, or an adapter folder, to go on from. null = a fresh adapter on the base."""
    held_out: HeldOut = HeldOut()
    """Comparisons kept apart to measure on; those that share a prompt are kept on one side."""
    too_long: Literal["drop", "error"] = "drop"
    """Comparisons with an answer over model.max_length: leave out (counted, listed), or stop."""
    duplicates: Literal["keep", "drop"] = "keep"
    """Exact duplicates are counted in any case; drop uses each once."""
    ranked: Literal["all", "top"] = "all"
    """Rankings of three and more answers: every pair in them, or the best against each of the others."""
    train: TrainSettings = TrainSettings()
    """How long, how fast and in which portions to train."""
    engine: Engine = "finetune"
    """What trains: finetune's own loop, or trl: TRL's trainer as it is (pip install 'finetune[trl]'; docs/trl.md)."""

    @model_validator(mode="after")
    def _engine_can(self) -> PreferenceStage:
        if self.engine == "trl":
            refuse_for_trl(self.train)
            if self.train.layout == "ragged" and "layout" in self.train.model_fields_set:
                raise ValueError(
                    "train.layout ragged belongs to engine finetune here: TRL's reward and DPO trainers need each "
                    "answer as a row of its own. (On an sft stage engine trl can run on it.)"
                )
            if "ranked" in self.model_fields_set:
                raise ValueError("ranked belongs to engine finetune: TRL learns from pairs only")
        return self


class RewardStage(PreferenceStage):
    """A reward model: a scalar head on the last token, trained on comparisons (Bradley-Terry)."""

    kind: Literal["reward"]
    """A reward model."""
    margin: Literal["none", "llama2-small", "llama2-large", "column"] = "none"
    """Margin in the loss: by a pair's rating as in Llama 2 (1, 2/3, 1/3, 0 or 3, 2, 1, 0), or the rows' own column."""
    centring: Annotated[float, Field(ge=0)] = 0.0
    """Weight of (sum of a pair's scores)^2, which keeps scores around 0. TRL's center_rewards_coefficient."""
    slices: list[str] = []
    """Columns of the rows to report held-out accuracy by."""


DpoLoss = Literal["sigmoid", "hinge", "ipo", "robust", "sigmoid_norm", "simpo", "orpo", "kto"]
_DPO_LOSSES: tuple[str, ...] = get_args(DpoLoss)


class DpoStage(PreferenceStage):
    """Direct preference optimisation and its relatives, against the frozen adapter the stage starts from."""

    kind: Literal["dpo"]
    """Direct preference optimisation."""
    loss: DpoLoss = "sigmoid"
    """The preference loss; docs/preference.md has each with its paper."""
    beta: Annotated[float, Field(gt=0)] = 0.1
    """Strength of the pull to the reference (orpo: weight of the odds ratio)."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Share of comparisons taken to be the wrong way round (sigmoid, robust)."""
    simpo_margin: Annotated[float, Field(ge=0)] = 0.5
    """simpo's target margin gamma, in units of beta times mean log-probability."""
    kto_weights: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] = (1.0, 1.0)
    """kto's weights of desirable and undesirable answers."""
    nll_weight: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the chosen answers' negative log-likelihood, averaged over their tokens. Llama 3 used 0.2."""
    mask_format_tokens: StrictBool = False
    """Keep header and end tokens of both answers out of the preference loss, as Llama 3 did."""
    reference: Literal["auto", "ahead", "batch"] = "auto"
    """When the reference's log-probabilities are computed: once ahead and cached, or with every batch. auto = what
    is cheaper: ahead where rows are seen more than once."""

    @model_validator(mode="before")
    @classmethod
    def _weights_from_list(cls, values: Any) -> Any:
        """YAML has lists, not tuples; strict mode would refuse them."""
        if isinstance(values, dict) and isinstance(values.get("kto_weights"), list):
            return {**values, "kto_weights": tuple(values["kto_weights"])}
        return values

    @model_validator(mode="after")
    def _settings_of_the_loss(self) -> DpoStage:
        """A key that the loss does not read is an error: it would do nothing."""
        owners = {
            "label_smoothing": ("sigmoid", "robust"),
            "simpo_margin": ("simpo",),
            "kto_weights": ("kto",),
            "nll_weight": tuple(name for name in _DPO_LOSSES if name != "kto"),
            "ranked": tuple(name for name in _DPO_LOSSES if name != "kto"),
            "reference": tuple(name for name in _DPO_LOSSES if name not in ("simpo", "orpo", "kto")),
        }
        for key, losses in owners.items():
            if key in self.model_fields_set and self.loss not in losses:
                raise ValueError(f"{key} belongs to loss {', '.join(losses)}; loss {self.loss} does not read it")
        if self.engine == "trl":
            self._trl_can()
        if self.loss == "kto" and self.train.micro_batch_size < 2:
            raise ValueError("loss kto estimates its baseline within a micro-batch: train.micro_batch_size 2 or more")
        return self

    def _trl_can(self) -> None:
        if self.loss not in ("sigmoid", "hinge", "ipo", "robust", "sigmoid_norm"):
            raise ValueError(
                f"loss {self.loss} belongs to engine finetune: TRL's DPOTrainer does not have it, and the other "
                "trainers of TRL are not connected here"
            )
        if self.label_smoothing and self.loss != "robust":
            raise ValueError(
                f"label_smoothing with loss {self.loss} belongs to engine finetune: TRL reads it for robust"
            )
        if self.mask_format_tokens:
            raise ValueError("mask_format_tokens belongs to engine finetune: TRL scores all tokens of an answer")
        if "reference" in self.model_fields_set and self.reference != "batch":
            raise ValueError(
                f"reference {self.reference} belongs to engine finetune: engine trl computes it with every batch"
            )


def trl_adapter_problem(kind: str, dropout: float, init: str, modules_to_save: bool) -> str | None:
    """Why TRL's trainer of this kind cannot train such an adapter; None = it can."""
    if kind == "dpo" and dropout > 0:
        return "dropout is not 0: TRL's DPO trains without dropout; use dropout 0, or engine finetune"
    online = kind in ("grpo", "rloo")
    if online and dropout > 0:
        return f"dropout is not 0: TRL's {kind} trainer would write the answers with dropout on; use dropout 0"
    if online and modules_to_save:
        return f"modules_to_save is more than TRL's {kind} trainer can train: it is given LoRA weights only"
    if kind != "sft" and init in ("pissa", "olora"):
        return f"init {init} changes the base, which TRL's {kind} trainer would do twice; use init default"
    if kind == "reward" and modules_to_save:
        return "modules_to_save is for engine finetune: with TRL's reward trainer only LoRA weights and the head train"
    return None
