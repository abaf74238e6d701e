"""The recipe language: what a recipe may say, with the unit and meaning of every key.

Strict (no coercion of strings to numbers), frozen, and closed: an unknown key is an error. The field descriptions
are the reference; the JSON schema that editors use is generated from them (`make schema`).
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from finetune.recipe.average_stage import AverageStage
from finetune.recipe.learning_stages import DpoStage, RewardStage, SftStage, trl_adapter_problem
from finetune.recipe.sampling_stages import GrpoStage, PpoStage, RejectStage, RlooStage
from finetune.recipe.settings import AdapterSettings, ModelSettings, Name, Settings, TrackSettings

Stage = Annotated[
    SftStage | RewardStage | DpoStage | RejectStage | PpoStage | GrpoStage | RlooStage | AverageStage,
    Field(discriminator="kind"),
]


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
    """Where metrics go besides metrics.jsonl in the run folder."""
    stages: Annotated[dict[Name, Stage], Field(min_length=1)]
    """The stages, each named by you; a stage reads only stages above it. A group of them can run in rounds."""

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
            by_trl = stage.kind in ("grpo", "rloo") or getattr(stage, "engine", None) == "trl"
            if by_trl and getattr(stage, "start_from", None) is None:
                reason = trl_adapter_problem(
                    stage.kind, self.adapter.dropout, self.adapter.init, bool(self.adapter.modules_to_save)
                )
                if reason:
                    raise ValueError(f"stages.{name} is trained by TRL, but adapter.{reason}")
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
