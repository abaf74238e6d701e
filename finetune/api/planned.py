"""The plan of a recipe as a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.engine.progress import duration
from finetune.notebook.page import boxed, heading
from finetune.plan.estimate import GIB
from finetune.plan.manifest import read_manifest
from finetune.plan.pace import Pace
from finetune.plan.plan import Plan as MadePlan
from finetune.plan.plan import make_plan
from finetune.plan.reasons import why
from finetune.recipe.load import LoadedRecipe
from finetune.reports.pieces import table

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, repr=False)
class Plan:
    """Every stage, in order: what it reads, whether it is done, why it would run, and what it would need.

    made: the engine's own plan, with fingerprints and folders. rows: one dict a stage, with the keys stage, kind,
    reads, state ("done", "started", "to do"), why, folder, memory_gib and disk_gib (upper bounds), seconds (None where
    no finished stage did the same work).
    """

    made: MadePlan
    rows: Sequence[dict[str, Any]]

    @classmethod
    def of(cls, loaded: LoadedRecipe, runs: Path) -> Plan:
        """Plan a recipe below `runs`. Raises InputError."""
        made = make_plan(loaded, runs)
        pace = Pace.of(made)
        rows = []
        for stage in made.stages:
            manifest = read_manifest(stage.folder) if stage.state == "done" else None
            rows.append(
                {
                    "stage": stage.name,
                    "kind": stage.kind,
                    "reads": list(stage.inputs),
                    "state": stage.state,
                    "why": why(made, stage),
                    "memory_gib": stage.estimate.memory / GIB,
                    "disk_gib": stage.estimate.disk / GIB,
                    "seconds": pace.expected(stage.settings) if manifest is None else manifest.get("seconds"),
                    "folder": stage.part if stage.state == "started" else stage.folder,
                }
            )
        return cls(made, rows)

    @property
    def done(self) -> bool:
        """Whether there is nothing left to run."""
        return all(row["state"] == "done" for row in self.rows)

    def frame(self) -> pandas.DataFrame:
        """The rows as a pandas table.

        recipe.plan().frame()[["stage", "state", "memory_gib"]]
        """
        import pandas

        return pandas.DataFrame(list(self.rows))

    def _summary(self) -> str:
        base, recipe = self.made.base, self.made.recipe
        at = f" at {base.revision[:12]}" if base.revision else ""
        counts = Counter(str(row["state"]) for row in self.rows)
        states = ", ".join(f"{counts[state]} {state}" for state in ("done", "started", "to do") if counts[state])
        return f"base {base.name}{at}, {recipe.model.load_in}, seed {recipe.seed}; {states}"

    def __repr__(self) -> str:
        lines = [f"{self.made.recipe.name}: {self._summary()}"]
        for row in self.rows:
            reads = f", reads {', '.join(row['reads'])}" if row["reads"] else ""
            lines.append(f"  {row['stage']} ({row['kind']}{reads}): {row['state']}{_needs(row)}")
            lines += [f"    why: {reason}" for reason in row["why"]]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        cells = [
            (
                row["stage"],
                row["kind"],
                ", ".join(row["reads"]) or None,
                row["state"],
                "; ".join(row["why"]) or None,
                f"{row['memory_gib']:.2f}",
                f"{row['disk_gib']:.2f}",
                None if row["seconds"] is None else duration(row["seconds"]),
            )
            for row in self.rows
        ]
        headings = ["stage", "kind", "reads", "state", "why", "memory, GiB", "disk, GiB", "time"]
        note = "memory and disk are upper bounds; time is of a finished stage of the same work, where there is one"
        return boxed(
            heading(self.made.recipe.name, self._summary()), table(headings, cells, caption=note, numeric=(5, 6, 7))
        )


def _needs(row: dict[str, Any]) -> str:
    if row["state"] == "done":
        return "" if row["seconds"] is None else f" in {duration(row['seconds'])}"
    about = "" if row["seconds"] is None else f", about {duration(row['seconds'])}"
    return f", up to {row['memory_gib']:.2f} GiB memory, {row['disk_gib']:.2f} GiB disk{about}"
