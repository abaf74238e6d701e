"""The stage that makes one adapter of several: average."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from finetune.recipe.settings import Settings, Text


class AverageStage(Settings):
    """The weighted mean of adapters, as Llama 3 averages models at every stage. Exact unless `rank` asks for less."""

    kind: Literal["average"]
    """Averages adapters."""
    of: Annotated[list[Text], Field(min_length=2)]
    """Stages above, or adapter folders: all adapters that write text, or all reward models, on this recipe's base."""
    weights: list[Annotated[float, Field(gt=0)]] | None = None
    """Weight of each, scaled to a sum of 1. null = equal."""
    rank: Annotated[int, Field(ge=1)] | None = None
    """LoRA rank of the result. null = the sum of their ranks, which is exact; less = the nearest of that rank, whose
    distance is told and recorded."""

    @model_validator(mode="after")
    def _as_many(self) -> AverageStage:
        if twice := [name for name in self.of if self.of.count(name) > 1]:
            raise ValueError(f"of names {twice[0]} twice: give it more weight with weights")
        if self.weights is not None and len(self.weights) != len(self.of):
            raise ValueError(f"weights has {len(self.weights)} entries, but there are {len(self.of)} adapters")
        return self
