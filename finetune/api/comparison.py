"""Two runs, the same questions: what they answer, side by side."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.api.answers import BASE, Prompt, load, named, prompt_fields
from finetune.api.recipe import PathLike
from finetune.api.runs import RunLike, as_run
from finetune.durable import rename_file, write_bytes
from finetune.notebook.page import boxed, heading
from finetune.reports.pieces import samples

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, repr=False)
class Comparison:
    """Answers to the same prompts. names: who answered. rows: one dict a prompt, with prompt or messages, and each
    one's answer under its name."""

    names: tuple[str, ...]
    rows: Sequence[dict[str, Any]]

    @property
    def same(self) -> int:
        """To how many prompts all answered the same."""
        return sum(len({row[name] for name in self.names}) == 1 for row in self.rows)

    def frame(self) -> pandas.DataFrame:
        """The rows as a pandas table.

        comparison.frame().to_csv("answers.csv")
        """
        import pandas

        return pandas.DataFrame(list(self.rows))

    def save(self, path: PathLike) -> Path:
        """Write one JSON object a prompt.

        comparison.save("answers.jsonl")
        """
        target = Path(path).expanduser()
        part = target.with_name(target.name + ".part")
        write_bytes(part, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in self.rows).encode())
        rename_file(part, target)
        return target

    def __repr__(self) -> str:
        lines = [self._summary()]
        for row in self.rows:
            asked = row.get("prompt") or row["messages"]
            asked = asked if isinstance(asked, str) else asked[-1]["content"]
            lines += ["", f"> {asked}", *(f"{name}: {row[name]}" for name in self.names)]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        shown = [
            {key: row[key] for key in ("prompt", "messages", *self.names) if row.get(key) is not None}
            for row in self.rows
        ]
        drawn = samples(shown, limit=50, neutral=BASE not in self.names)  # only beside the base one side is the later
        return boxed(heading(" and ".join(self.names), self._summary()), drawn)

    def _summary(self) -> str:
        return f"{len(self.rows):,} prompts, {self.same:,} answered alike by {' and '.join(self.names)}"


def compare(
    run_a: RunLike,
    run_b: RunLike,
    prompts: Sequence[Prompt],
    *,
    base: str | None = None,
    temperature: float = 0.0,
    max_new_tokens: int = 256,
    seed: int = 0,
) -> Comparison:
    """Ask two runs the same. run_b: a run, or "base" for the bare base of run_a.

    Adapters of one base share it in memory; others are loaded one after the other. Raises InputError.

        ft.compare(results["sft"], "base", ["What is the capital of France?"])
    """
    runs = named([run_a] if run_b == BASE else [run_a, run_b])
    names = (*runs, BASE) if run_b == BASE else tuple(runs)
    together = len({_place(run) for run in runs.values()}) == 1
    chat = load(runs, base=base) if together else None
    found = {
        name: (chat or load({name: runs[name]}, base=base)).answer(
            prompts, of=name, temperature=temperature, max_new_tokens=max_new_tokens, seed=seed
        )
        for name in names
    }
    rows = [
        {**prompt_fields(prompt), **{name: str(found[name][at]) for name in names}} for at, prompt in enumerate(prompts)
    ]
    return Comparison(names, rows)


def _place(run: RunLike) -> tuple[object, ...]:
    """What has to be equal for two runs to be in memory side by side."""
    run = as_run(run)
    if not (run.folder / "adapter_config.json").is_file():
        return (run.folder,)
    family: Mapping[str, Any] = run.manifest["family"]
    model: Mapping[str, Any] = run.manifest["recipe"]["model"]
    # A chat has one system prompt, and a run that was trained with another one would be asked with it.
    return run.manifest["base"]["digest"], family["template"], model["load_in"], model["system"]
