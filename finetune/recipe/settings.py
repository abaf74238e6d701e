"""What every recipe section is made of, and the sections that all stages share: model, adapter, tracking."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Text = Annotated[str, Field(min_length=1)]
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]

Template = Literal[
    "auto", "plain", "alpaca", "vicuna", "llama2", "llama3", "llama3.1", "llama3.2", "llama3.3",
    "llama3.1-dated", "llama3.2-dated", "llama3.3-dated",
]  # fmt: skip


MOST_SAMPLES = 1000
"""Rows of a table of samples that a tracker can be given: more, nobody reads."""


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
    samples: Annotated[int, Field(ge=0, le=MOST_SAMPLES)] = 0
    """Rows of each table of samples: held-out answers, kept answers, scored pairs. They are texts of your data and of
    the model, so 0, the default, sends none."""
    artifacts: Literal["none", "outputs"] = "none"
    """outputs uploads what each stage made (the adapter with its tokenizer, or the kept rows) as an artifact, linked to
    those it was made from. That is publishing to the project: none, the default, uploads no weights and no rows."""


class TrackSettings(Settings):
    """Where metrics go besides metrics.jsonl in the run folder."""

    wandb: WandbSettings | None = None
    """Send metrics to Weights & Biases. Absent = nothing is sent anywhere; metrics.jsonl is written in any case."""
    tensorboard: StrictBool = False
    """Write event files for TensorBoard into the run folder. Nothing is sent. Needs finetune[tensorboard]."""
