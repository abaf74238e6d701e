"""What was measured of a run, as notebooks show it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from finetune.notebook.page import boxed, heading
from finetune.plan.evaluations import Evaluation
from finetune.reports.pieces import table
from finetune.reports.results import told
from finetune.reports.words import counted

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, repr=False)
class Measured(Evaluation):
    """An evaluation of a run, as it is kept in its folder.

    found = ft.evaluate(results["sft"], "loss", data="held_out.jsonl")
    found.results["loss"], found.rows[0], found.frame()
    """

    @classmethod
    def of(cls, evaluation: Evaluation) -> Measured:
        """The same evaluation, with a picture."""
        return cls(**{field.name: getattr(evaluation, field.name) for field in fields(evaluation)})

    def frame(self) -> pandas.DataFrame:
        """What was measured of each row, as a pandas table."""
        import pandas

        return pandas.DataFrame(list(self.rows))

    def __repr__(self) -> str:
        figures = ", ".join(f"{name} {value}" for name, value in told(self.results))
        return f"{self._title()}: {figures}"

    def _repr_html_(self) -> str:
        settings = [(name.replace("_", " "), value) for name, value in self.settings.items() if _is_short(value)]
        return boxed(
            heading(self._title()),
            table(("figure", "value"), told(self.results), caption="shares are in [0, 1]; in brackets 95 % intervals"),
            table(("setting", "value"), settings) if settings else "",
        )

    def _title(self) -> str:
        against = f" against {self.against['name']}" if self.against else ""
        on = f" on {self.data['name']}" if self.data.get("name") else ""
        return f"{self.task.replace('_', ' ')}{against}{on}, {counted(len(self.rows), 'row')}"


def _is_short(value: Any) -> bool:
    return value is not None and not isinstance(value, Mapping | list)
