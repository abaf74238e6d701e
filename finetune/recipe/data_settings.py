"""Where the rows of a stage come from, and which of them are kept apart."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import ConfigDict, Field, StrictBool, model_validator

from finetune.recipe.settings import Fraction, Name, Settings, Text

DataFormat = Literal[
    "auto",
    "alpaca", "sharegpt", "messages", "prompt_completion", "text", "prompt",
    "pairs", "sharegpt_pairs", "hh", "ranked", "oasst", "alpaca_eval", "judged",
]  # fmt: skip
DATA_FORMATS: tuple[str, ...] = get_args(DataFormat)


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
