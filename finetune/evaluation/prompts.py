"""What a run is asked: the prompts of a file, or the rows that its own stage held out, found again by its manifest.

A stage's split is made of its settings, its seed and the content of its rows, so preparing its data once more gives the
rows it was measured on. Where the data lies is not in the manifest, only its digests are: the places that it can have
are tried, and what has other digests is not taken.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import Any, get_args

import numpy as np
from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from finetune.data.gather import gather
from finetune.data.prepare import prepare_sft
from finetune.data.prepare_preference import prepare_comparisons
from finetune.data.prepare_prompts import prepare_prompts
from finetune.data.sources import READ_EXAMPLES, READ_JUDGED, READ_PROMPTS, READ_RANKINGS, content_key, read_source
from finetune.data.tokenizer import Tokenizer
from finetune.errors import DataError, InputError
from finetune.families.detect import resolve
from finetune.families.tools_as_text import with_context
from finetune.plan.base_files import BaseFiles, read_json
from finetune.plan.digest import source_digest
from finetune.plan.run_base import find_base
from finetune.recipe.checks import located
from finetune.recipe.data_settings import DataFormat, DataSource, HeldOut
from finetune.recipe.learning_stages import DpoStage, RewardStage, SftStage
from finetune.recipe.schema import Stage
from finetune.recipe.settings import ModelSettings
from finetune.shapes import Completion, Dialog, Example, Message

Asked = Dialog | Completion
Say = Callable[[str], None]


@dataclass(frozen=True)
class Prompts:
    """name, digest: of where they come from, for the record. columns: the rows' other columns. format: as which a file
    was read, where it was told: the same file asks other things as another format. expected: the rows' own
    answers, None where one has none; empty where they were not looked for."""

    name: str
    digest: str
    asked: Sequence[Asked]
    columns: Sequence[Mapping[str, Any]]
    format: DataFormat = "auto"
    expected: Sequence[str | None] = ()

    def __len__(self) -> int:
        return len(self.asked)

    @property
    def record(self) -> dict[str, Any]:
        told = {} if self.format == "auto" else {"format": self.format}
        return {"name": self.name, "digest": self.digest, "rows": len(self), **told}

    def first(self, limit: int | None) -> Prompts:
        """The first `limit`, all where it is None."""
        return self._of(range(len(self))[:limit])

    def spread(self, limit: int) -> Prompts:
        """`limit` of them at even distances: rows of one kind often stand together."""
        if limit >= len(self):
            return self
        return self._of([round(place) for place in np.linspace(0, len(self) - 1, limit)])

    def _of(self, chosen: Sequence[int]) -> Prompts:
        return replace(
            self,
            asked=[self.asked[i] for i in chosen],
            columns=[self.columns[i] for i in chosen],
            expected=[self.expected[i] for i in chosen] if self.expected else (),
        )


def read_prompts(path: Path, *, data_format: DataFormat = "auto", say: Say) -> Prompts:
    """All rows of a file as prompts, last answers cut off. Raises DataError."""
    source = DataSource(path=str(path), format=data_format)
    found = read_source(source, READ_PROMPTS, locate=Path, stage_outputs={}, say=say)
    asked = [row.example for row in found.rows if isinstance(row.example, Dialog | Completion)]
    return Prompts(path.name, found.digest, asked, [row.extra for row in found.rows], data_format)


def own_prompts(
    run: Path, manifest: Mapping[str, Any], base: str | None, say: Say, *, limit: int | None = None
) -> Prompts:
    """The prompts of the rows that the run's stage held out, else of all its rows, which is said.

    base: where the run's base is, if it moved. limit: how many the caller takes of them, for what is said.
    Raises InputError where the data is not found any more.
    """
    if "settings" not in manifest or manifest["kind"] == "average":
        raise InputError(f"{run} ({manifest['kind']}) has no held-out rows of its own: give prompts with --data")
    stage = _stage(manifest["settings"])
    model, files = find_base(run, manifest, base, _nothing)
    folder = _data_folder(run, manifest, stage, files)
    split, measured = _held_out(run, manifest, stage, model, files, folder), "held-out rows"
    if not split:
        split, measured = _all_prompts(run, manifest, stage, folder), "rows, for nothing was held out: it has seen them"
    found = [(prompt, _answer(example)) for example in split if (prompt := _prompt(example)) is not None]
    prompts = [prompt for prompt, _ in found]
    if not prompts:
        raise InputError(f"the rows of {run} are plain text without prompts: give prompts with --data")
    some = f"{limit:,} of its own {len(prompts):,}" if limit is not None and limit < len(prompts) else None
    say(f"prompts: {some or f'{len(prompts):,} of its own'} {measured}")
    content = json.dumps([repr(prompt) for prompt in prompts])
    name = f"{measured.split(',')[0]} of {manifest['stage']}"
    return Prompts(
        name,
        f"sha256:{sha256(content.encode()).hexdigest()}",
        prompts,
        [{}] * len(prompts),
        expected=[text for _, text in found],
    )


def _stage(settings: Mapping[str, Any]) -> Any:
    """The stage's settings of a manifest as they were read of the recipe: with what it said, and not the defaults that
    were written out, which some kinds refuse as said."""
    kinds = {get_args(kind.model_fields["kind"].annotation)[0]: kind for kind in get_args(get_args(Stage)[0])}
    kind: type[BaseModel] = kinds[settings["kind"]]
    usual = {
        name: to_jsonable_python(field.get_default(call_default_factory=True))
        for name, field in kind.model_fields.items()
        if name != "kind" and not field.is_required()
    }
    return kind.model_validate({name: v for name, v in settings.items() if name not in usual or v != usual[name]})


def _held_out(
    run: Path, manifest: Mapping[str, Any], stage: Any, model: ModelSettings, base: BaseFiles, folder: Path
) -> Sequence[Example]:
    tokenizer = Tokenizer.load(base.folder)
    family = resolve(base.config, tokenizer.special_tokens, manifest["family"]["template"]).family
    given: dict[str, Any] = {
        "model": model,
        "seed": manifest["recipe"]["seed"],
        "locate": partial(located, folder),
        "stage_outputs": _outputs(run, manifest),
        "family": family,
        "tokenizer": tokenizer,
        "say": _nothing,
    }
    if isinstance(stage, RewardStage | DpoStage):
        judged = isinstance(stage, DpoStage) and stage.loss == "kto"
        compared = prepare_comparisons(stage, slices=[], judged=judged, cache=None, refuse=False, **given)
        if compared.held_out is None:
            return []
        reading = READ_JUDGED if judged else READ_RANKINGS
        rows = {row.origin: row.comparison.prompt for row in _rows(reading, stage, given)}
        origins = dict.fromkeys(compared.origins[number] for number in compared.held_out.rows.origin)
        prompts = [rows[origin] for origin in origins]
        return list({content_key(prompt): prompt for prompt in prompts}.values())  # two comparisons of one prompt
    if isinstance(stage, SftStage):
        prepared = prepare_sft(stage, cache=None, refuse=False, **given)
        if prepared.held_out is None:
            return []
        examples = {row.origin: row.example for row in _rows(READ_EXAMPLES, stage, given)}
        return [examples[prepared.origins[number]] for number in prepared.held_out.origin]
    held_out = getattr(stage, "held_out", None)
    found = prepare_prompts(stage.prompts, held_out, max_new_tokens=stage.max_new_tokens, **given)
    return [prompt.example for prompt in found.held_out]


def _rows(reading: Any, stage: Any, given: Mapping[str, Any]) -> Iterator[Any]:
    """All rows of a stage, held-out files among them."""
    names = ("seed", "locate", "stage_outputs", "say")
    taken, apart, _ = gather(reading, stage.data, stage.held_out, **{name: given[name] for name in names})
    return chain(taken.rows, apart.rows)


def _all_prompts(run: Path, manifest: Mapping[str, Any], stage: Any, folder: Path) -> Sequence[Example]:
    given = {
        "seed": manifest["recipe"]["seed"],
        "locate": partial(located, folder),
        "stage_outputs": _outputs(run, manifest),
        "say": _nothing,
    }
    if isinstance(stage, RewardStage | DpoStage):
        judged = isinstance(stage, DpoStage) and stage.loss == "kto"
        rows = _rows(READ_JUDGED if judged else READ_RANKINGS, stage, given)
        return [row.comparison.prompt for row in rows]
    if isinstance(stage, SftStage):
        return [row.example for row in _rows(READ_EXAMPLES, stage, given)]
    taken, _, _ = gather(READ_PROMPTS, stage.prompts, HeldOut(fraction=0.0), **given)
    return [row.example for row in taken.rows]


def _prompt(example: Example) -> Asked | None:
    """What is asked: without the last answer; None for plain text."""
    if isinstance(example, Completion):
        return replace(example, completion="")
    if not isinstance(example, Dialog):
        return None
    messages = list(example.messages)
    while messages and messages[-1].role == "assistant":
        messages.pop()
    if not messages or messages[-1].role not in ("user", "tool"):
        return None
    return Dialog(tuple(replace(message, trained=None) for message in messages), example.tools)


def _answer(example: Example) -> str | None:
    """The row's own last answer, what `_prompt` leaves out; None where it has none in words."""
    if isinstance(example, Completion):
        return example.completion or None
    if not isinstance(example, Dialog) or len(example.messages) < 2:
        return None
    last = example.messages[-1]
    return last.content or None if last.role == "assistant" and example.messages[-2].role != "assistant" else None


def _outputs(run: Path, manifest: Mapping[str, Any]) -> dict[str, Path]:
    """Folders of the runs that this one read, by stage: they lie beside it."""
    return {name: run.absolute().parent / f"{name}-{print_[:12]}" for name, print_ in manifest["inputs"].items()}


def _data_folder(run: Path, manifest: Mapping[str, Any], stage: Any, base: BaseFiles) -> Path:
    """Where the recipe stood: the first place where the data has the digests of the manifest. Raises InputError."""
    sources: Sequence[DataSource] = [
        *(stage.prompts if hasattr(stage, "prompts") else stage.data),
        *(stage.held_out.data if hasattr(stage, "held_out") else []),
    ]
    files = [source for source in sources if source.path is not None]
    recorded = {entry["digest"] for key in ("sources", "held_out_sources") for entry in manifest["data"][key]}
    for folder in (places := _places(run, manifest, base)):
        try:
            if all(source_digest(source, partial(located, folder)) in recorded for source in files):
                return folder
        except DataError:  # no such file there
            continue
    shown = ", ".join(str(source.path) for source in files)
    raise InputError(
        f"the data that {run} was trained on ({shown}) is not found, or is not the same any more (looked from "
        f"{', '.join(map(str, places[:3]))}): give prompts with --data"
    )


def _places(run: Path, manifest: Mapping[str, Any], base: BaseFiles) -> list[Path]:
    """Folders that the recipe may have stood in."""
    found: dict[Path, None] = {}
    name = Path(manifest["recipe"]["model"]["base"])
    adapter = str((read_json(run / "adapter_config.json") or {}).get("base_model_name_or_path", ""))
    for there in (Path(adapter), base.folder):
        # `../models/x` that was found at /a/models/x was written in a folder of /a: all of these are tried.
        steps = tuple(part for part in name.parts if part != "..")
        if not name.is_absolute() and steps and there.parts[-len(steps) :] == steps:
            root, ups = Path(*there.parts[: -len(steps)]), len(name.parts) - len(steps)
            found.update(dict.fromkeys(sorted(root.glob("/".join("*" * ups))) if ups else [root]))
    for near in (Path.cwd(), *run.absolute().parents[1:4]):
        found.update(dict.fromkeys([near, near / "recipes"]))
    return [folder for folder in found if folder.is_dir()]


def _nothing(line: str) -> None:
    """What preparing says was said when the stage ran; the base is announced when it is loaded."""


def question(asked: Asked) -> str:
    """The last thing that is asked, for people; Alpaca's separate input behind it."""
    return asked.prompt if isinstance(asked, Completion) else with_context(asked.messages[-1])


def context(asked: Asked) -> Sequence[Message] | None:
    """The whole conversation where it is more than the question, else None."""
    return asked.messages if isinstance(asked, Dialog) and len(asked.messages) > 1 else None
