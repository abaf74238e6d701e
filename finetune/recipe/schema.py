"""The recipe language: what a recipe may say, with the unit and meaning of every key.

Strict (no coercion of strings to numbers), frozen, and closed: an unknown key is an error. The field descriptions
are the reference; the JSON schema that editors use is generated from them (`make schema`).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, StrictBool, model_validator

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Text = Annotated[str, Field(min_length=1)]
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]

DataFormat = Literal[
    "auto",
    "alpaca", "sharegpt", "messages", "prompt_completion", "text",
    "pairs", "sharegpt_pairs", "hh", "ranked", "oasst", "alpaca_eval", "judged",
]  # fmt: skip
DATA_FORMATS: tuple[str, ...] = get_args(DataFormat)
Template = Literal[
    "auto", "plain", "alpaca", "vicuna", "llama2", "llama3", "llama3.1", "llama3.2", "llama3.3",
    "llama3.1-dated", "llama3.2-dated", "llama3.3-dated",
]  # fmt: skip


class Settings(BaseModel):
    """Base of every recipe section: closed, frozen, strict."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class ModelSettings(Settings):
    """The base: which checkpoint, how it is held, and how a conversation becomes text."""

    base: Text
    """The checkpoint to start from: a folder (relative to the recipe) or a hub id such as meta-llama/Llama-2-7b-hf."""
    revision: Text | None = None
    """Branch, tag or commit of a hub base. Resolved to a commit, printed and recorded. Not used for a folder."""
    load_in: Literal["nf4", "int8", "bf16", "fp32"] = "nf4"
    """How the base's weights are held: nf4 (4-bit NormalFloat, double-quantised), int8, bf16 or fp32."""
    compute: Literal["auto", "bf16", "fp32"] = "auto"
    """Precision of the matrix products. auto = bf16 on a GPU that has it, fp32 on a CPU (bf16 there is a choice)."""
    template: Template = "auto"
    """Chat template. auto = the one of the family that is detected from the base's config and tokenizer. The dated ones
    are those of the hub's instruct models, with dates in the system header; docs/families.md."""
    system: str | None = None
    """System prompt given to every conversation that has none of its own. null = none."""
    max_length: Annotated[int, Field(ge=8)] = 4096
    """Longest example, in tokens, prompt and answer together. What is longer follows the stage's too_long policy."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train. auto = the GPU if there is one."""


class AdapterSettings(Settings):
    """The LoRA adapter."""

    rank: Annotated[int, Field(ge=1, le=4096)] = 64
    """LoRA rank r: width of the low-rank update."""
    alpha: Annotated[float, Field(gt=0)] = 32.0
    """LoRA scale: the update is multiplied by alpha / rank (alpha / sqrt(rank) with rslora)."""
    dropout: Fraction = 0.0
    """Dropout probability on the input of the LoRA branch."""
    targets: Text | Annotated[list[Text], Field(min_length=1)] = "all-linear"
    """all-linear (every linear layer but the head), a list of module names (q_proj, …), or a regex of full names."""
    rslora: StrictBool = False
    """Rank-stabilised scaling alpha / sqrt(rank) (Kalajdzievski 2023)."""
    dora: StrictBool = False
    """Weight-decomposed LoRA (Liu et al. 2024)."""
    init: Literal["default", "gaussian", "orthogonal", "pissa", "olora"] = "default"
    """Initial LoRA weights. default: A uniform, B zero. pissa, olora, orthogonal: bf16 or fp32 bases only."""
    modules_to_save: list[Text] = []
    """Modules trained in full and saved with the adapter, such as lm_head or embed_tokens."""


class WandbSettings(Settings):
    """Weights & Biases."""

    project: Text
    """Weights & Biases project."""
    mode: Literal["online", "offline"] = "online"
    """offline writes to the run folder and sends nothing; `wandb sync` can upload it later."""
    entity: str | None = None
    """Team or user; null = the account's own. The key comes from `wandb login` or WANDB_API_KEY, never from here."""
    tags: list[Text] = []
    """Tags of the wandb run."""


class TrackSettings(Settings):
    """Where metrics are sent besides the run folder."""

    wandb: WandbSettings | None = None
    """Send metrics to Weights & Biases. Absent = nothing is sent anywhere; metrics.jsonl is written in any case."""


class DataSource(Settings):
    """Rows for a stage: exactly one of path, hub or stage."""

    model_config = ConfigDict(json_schema_extra={"oneOf": [{"required": [key]} for key in ("path", "hub", "stage")]})

    path: Text | None = None
    """A .jsonl, .json, .csv, .parquet or .txt file, or a folder of such files, relative to the recipe."""
    hub: Text | None = None
    """A data set on the Hugging Face Hub: org/name."""
    stage: Name | None = None
    """The output of an earlier stage of this recipe."""
    subset: Text | None = None
    """Configuration name of a hub data set."""
    split: Text = "train"
    """Split of a hub data set."""
    revision: Text | None = None
    """Branch, tag or commit of a hub data set."""
    streaming: StrictBool = False
    """Read a hub data set row by row without downloading it whole. Needs take."""
    format: DataFormat = "auto"
    """What a row looks like. auto = detected from the first rows and announced. The last seven are comparisons, which
    reward and dpo stages read; docs/data.md."""
    fields: dict[str, str] = {}
    """Other names of the format's fields: {prompt: question, completion: answer}."""
    take: Annotated[int, Field(ge=1)] | None = None
    """Use this many rows, drawn with the recipe's seed (streaming: the first ones). null = all."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """Share in the mix relative to the other sources: 0.5 uses half of the rows, 2.0 each row twice, in every epoch."""

    @model_validator(mode="after")
    def _one_place(self) -> DataSource:
        given = [key for key in ("path", "hub", "stage") if getattr(self, key) is not None]
        if len(given) != 1:
            raise ValueError(f"needs exactly one of path, hub, stage; has {' and '.join(given) or 'none'}")
        if self.streaming and (self.hub is None or self.take is None):
            raise ValueError("streaming needs hub and take: a stream has no length to plan with")
        for key in ("subset", "revision"):
            if getattr(self, key) is not None and self.hub is None:
                raise ValueError(f"{key} belongs to a hub data set")
        return self


class HeldOut(Settings):
    """Rows that are never trained on. Identical rows are kept on one side, so the two share no row."""

    fraction: Fraction = 0.05
    """Share of the rows to hold out. 0 = none."""
    max_rows: Annotated[int, Field(ge=1)] = 256
    """At most this many rows are held out."""
    data: list[DataSource] = []
    """Separate held-out files; the fraction is not used then. Training rows that equal one of them are removed."""


class TrainSettings(Settings):
    """The training loop: length, learning rate, batches, checkpoints."""

    epochs: Annotated[float, Field(gt=0)] = 2.0
    """Passes over the training rows. Not used where max_steps is given."""
    max_steps: Annotated[int, Field(ge=1)] | None = None
    """Stop after this many optimiser steps."""
    learning_rate: Literal["auto"] | Annotated[float, Field(gt=0)] = "auto"
    """Peak learning rate. auto = 5e-4 (2000 / hidden_size)^0.781, scaled to alpha 32 (docs/learning_rate.md)."""
    batch_size: Annotated[int, Field(ge=1)] = 16
    """Examples in one optimiser step."""
    micro_batch_size: Annotated[int, Field(ge=1)] = 4
    """Examples in one forward pass. Changes memory and speed, not the result."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Learning rate after the warm-up: down to 0 along a cosine or a line, or constant."""
    warmup: Annotated[float, Field(ge=0)] = 0.03
    """Linear warm-up: below 1 a share of all steps, from 1 on a number of steps."""
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw", "paged_adamw_8bit"] = "adamw"
    """AdamW by torch, or by bitsandbytes with 8-bit or pageable state (GPU memory; slower on a CPU)."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    """AdamW's decay rates of the first and second moment."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """AdamW's decoupled weight decay."""
    max_grad_norm: Annotated[float, Field(gt=0)] | None = 1.0
    """Clip the gradient to this 2-norm. null = no clipping."""
    gradient_checkpointing: StrictBool = False
    """Recompute activations in the backward pass: less memory, about a quarter more time."""
    layout: Literal["ragged", "padded"] = "ragged"
    """ragged: rows are laid end to end and no padding is computed. padded: the classic rectangle. Same numbers."""
    eval_every: Annotated[int, Field(ge=1)] | None = None
    """Steps between held-out losses. null = up to ten times in the run, fewer where there are many held-out rows for
    few steps. The loss before the first and after the last step is always measured."""
    checkpoint_every: Annotated[int, Field(ge=1)] | None = None
    """Steps between checkpoints. null = ten times in the run."""
    keep_checkpoints: Annotated[int, Field(ge=1)] = 2
    """How many checkpoints to keep while training. All are removed when the run is finished."""
    early_stop: Annotated[int, Field(ge=1)] | None = None
    """Stop when the held-out loss has not improved for this many measurements, and keep the best. null = never."""

    @model_validator(mode="before")
    @classmethod
    def _betas_from_list(cls, values: Any) -> Any:
        """YAML has lists, not tuples; strict mode would refuse them."""
        if isinstance(values, dict) and isinstance(values.get("betas"), list):
            return {**values, "betas": tuple(values["betas"])}
        return values

    @model_validator(mode="after")
    def _micro_divides(self) -> TrainSettings:
        if self.micro_batch_size > self.batch_size:
            raise ValueError(
                f"micro_batch_size {self.micro_batch_size} is more than batch_size {self.batch_size}: "
                "a micro-batch is a part of a batch"
            )
        return self


Engine = Literal["finetune", "trl"]


def _refuse_for_trl(train: TrainSettings) -> None:
    """What no trainer of TRL's can do. A key that its engine does not read is an error: it would do nothing."""
    if train.early_stop is not None:
        raise ValueError("train.early_stop belongs to engine finetune; with engine trl set max_steps or epochs")
    if train.batch_size % train.micro_batch_size:
        raise ValueError(
            f"with engine trl train.batch_size {train.batch_size} has to be a multiple of micro_batch_size "
            f"{train.micro_batch_size}: TRL adds up whole micro-batches"
        )


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
            _refuse_for_trl(self.train)
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
            _refuse_for_trl(self.train)
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


Stage = Annotated[SftStage | RewardStage | DpoStage, Field(discriminator="kind")]


def trl_adapter_problem(kind: str, dropout: float, init: str, modules_to_save: bool) -> str | None:
    """Why TRL's trainer of this kind cannot train such an adapter; None = it can."""
    if kind == "dpo" and dropout > 0:
        return "dropout is not 0: TRL's DPO trains without dropout; use dropout 0, or engine finetune"
    if kind != "sft" and init in ("pissa", "olora"):
        return f"init {init} changes the base, which TRL's {kind} trainer would do twice; use init default"
    if kind == "reward" and modules_to_save:
        return "modules_to_save is for engine finetune: with TRL's reward trainer only LoRA weights and the head train"
    return None


class Recipe(Settings):
    """One YAML file: a base, an adapter, and named stages from top to bottom."""

    name: Name
    """Name of the run folder under the runs directory."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 17
    """Seed of everything random: mixing, splits, order, adapter initialisation, dropout."""
    model: ModelSettings
    """The base and how it is held."""
    adapter: AdapterSettings = AdapterSettings()
    """The LoRA adapter that every stage trains."""
    track: TrackSettings = TrackSettings()
    """Where metrics are sent besides the run folder."""
    stages: Annotated[dict[Name, Stage], Field(min_length=1)]
    """The stages, each named by you; a stage reads only stages above it."""

    @model_validator(mode="after")
    def _init_fits(self) -> Recipe:
        """What peft cannot start from, or not turn into an adapter for the untouched base afterwards."""
        init = self.adapter.init
        if init == "orthogonal" and self.adapter.rank % 2:
            raise ValueError(f"adapter.init orthogonal needs an even rank, not {self.adapter.rank}")
        for key, given in (("dora", self.adapter.dora), ("modules_to_save", bool(self.adapter.modules_to_save))):
            if init in ("pissa", "olora") and given:
                raise ValueError(
                    f"adapter.init {init} cannot be combined with {key}: peft cannot write such an adapter for the "
                    "untouched base; use init default"
                )
        return self

    @model_validator(mode="after")
    def _trl_adapters(self) -> Recipe:
        """What TRL's trainers cannot do with the adapter of a stage that starts a fresh one."""
        for name, stage in self.stages.items():
            if stage.engine == "trl" and stage.start_from is None:
                reason = trl_adapter_problem(
                    stage.kind, self.adapter.dropout, self.adapter.init, bool(self.adapter.modules_to_save)
                )
                if reason:
                    raise ValueError(f"stages.{name} has engine trl, but adapter.{reason}")
        return self

    @model_validator(mode="after")
    def _across_keys(self) -> Recipe:
        if self.model.load_in == "bf16" and self.model.compute == "fp32":
            raise ValueError(
                "model.compute fp32 needs fp32, nf4 or int8 weights; with load_in bf16 use compute auto or bf16"
            )
        if self.adapter.init in ("pissa", "olora", "orthogonal") and self.model.load_in in ("nf4", "int8"):
            raise ValueError(
                f"adapter.init {self.adapter.init} reads the base's weights, which load_in {self.model.load_in} has "
                "quantised: use load_in bf16 or fp32, or init default or gaussian"
            )
        return self
