"""The training loop: length, learning rate, batches, checkpoints; and what TRL's trainers cannot do of it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, StrictBool, model_validator

from finetune.recipe.settings import Fraction, Settings


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


def refuse_for_trl(train: TrainSettings) -> None:
    """What no trainer of TRL's can do. A key that its engine does not read is an error: it would do nothing."""
    if train.early_stop is not None:
        raise ValueError("train.early_stop belongs to engine finetune; with engine trl set max_steps or epochs")
    if train.batch_size % train.micro_batch_size:
        raise ValueError(
            f"with engine trl train.batch_size {train.batch_size} has to be a multiple of micro_batch_size "
            f"{train.micro_batch_size}: TRL adds up whole micro-batches"
        )
