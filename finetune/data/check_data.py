"""Before anything is trained: do the local files of every stage hold what that stage reads?

Looks at the beginning of each file and at its format alone: a malformed row further on is told when its stage reads it.
Hub data sets and rows that an earlier stage will write are not looked at.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from finetune.data.fitting import EXAMPLES, JUDGED, PROMPTS, RANKINGS, Kind
from finetune.data.formats import LOOK_AT_ROWS, known_format
from finetune.data.readers import RawRow, read_file
from finetune.errors import DataError, Problem, RecipeError
from finetune.plan.digest import data_files
from finetune.recipe.data_settings import DataSource
from finetune.recipe.learning_stages import DpoStage, PreferenceStage, SftStage
from finetune.recipe.load import LoadedRecipe
from finetune.recipe.references import row_sources
from finetune.recipe.schema import Stage
from finetune.recipe.source import told_once

_LARGEST_JSON = 16 * 2**20
"""Bytes of a .json file, which can only be read as a whole, that a check may take the time for: about 0.2 s."""


def check_data(loaded: LoadedRecipe) -> None:
    """Raise RecipeError with every source whose files are of a format that its stage does not read."""
    problems: list[Problem] = []
    for name, stage in loaded.recipe.stages.items():
        for keys, source in row_sources(stage):
            if source.path is not None and (message := _wrong(source, _kind_read(stage), loaded)):
                problems.append(loaded.source.problem(("stages", name, *keys), message))
    if problems:
        raise RecipeError(sorted(told_once(problems), key=lambda problem: problem.line or 0), loaded.source.name)


def _kind_read(stage: Stage) -> Kind:
    if isinstance(stage, SftStage):
        return EXAMPLES
    if isinstance(stage, PreferenceStage):
        return JUDGED if isinstance(stage, DpoStage) and stage.loss == "kto" else RANKINGS
    return PROMPTS


def _wrong(source: DataSource, kind: Kind, loaded: LoadedRecipe) -> str | None:
    """What is wrong with the beginning of the source's files."""
    assert source.path is not None
    try:
        for file in data_files(loaded.locate(source.path)):
            rows = [row for row in islice(_beginning(file), LOOK_AT_ROWS) if isinstance(row, RawRow)]
            if rows:  # else it is damaged or empty, which its stage tells better
                known_format(source.format, source.fields, rows, str(file), kind)
    except DataError as error:
        return str(error)
    return None


def _beginning(file: Path) -> Iterator[object]:
    if file.suffix.lower() == ".json" and file.stat().st_size > _LARGEST_JSON:
        return iter(())
    return _until_unreadable(file)


def _until_unreadable(file: Path) -> Iterator[object]:
    try:
        yield from read_file(file, file.name)
    except DataError:
        return
