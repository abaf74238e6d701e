"""A recipe's data source to rows: files, hub data sets and earlier stages, read in order, each row checked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Generic, TypeVar

from finetune.data.convert import to_example
from finetune.data.convert_comparisons import NoComparison, to_comparisons
from finetune.data.convert_prompts import to_prompt
from finetune.data.fields import RowFault
from finetune.data.fitting import EXAMPLES, JUDGED, PROMPTS, RANKINGS, Kind
from finetune.data.formats import Known, known_format, unused_columns
from finetune.data.readers import Fault, RawRow, read_file, row_of
from finetune.errors import DataError
from finetune.plan.digest import data_files, hub_commit, local_hub_folder, source_digest, source_label
from finetune.recipe.data_settings import DataSource
from finetune.shapes import ComparisonRow, Completion, Dialog, Example, Judged, Message, Origin, Ranking, Row, Text

LISTED_ROWS = 5
"""How many bad or dropped rows a message names; the rest are counted."""

STAGE_ROWS = "rows.jsonl"
"""What later stages read of a stage that writes rows; what else lies in its folder is for people."""


R = TypeVar("R", Row, ComparisonRow)


@dataclass(frozen=True)
class Reading(Generic[R]):
    """What is read of a file's rows. kind: the formats. noun: what `convert` makes of a row, none, one or several.

    key: of what a row says, equal for duplicates.
    """

    kind: Kind
    noun: str
    convert: Callable[[RawRow, Known], list[R]]
    key: Callable[[R], bytes]


def _examples(row: RawRow, known: Known) -> list[Row]:
    return [Row(to_example(row.values, known), row.origin)]


def _comparisons(row: RawRow, known: Known) -> list[ComparisonRow]:
    return [ComparisonRow(found, row.origin, extra) for found, extra in to_comparisons(row.values, known)]


def _prompts(row: RawRow, known: Known) -> list[Row]:
    prompt, columns = to_prompt(row.values, known)
    return [Row(prompt, row.origin, columns)]


def _example_key(row: Row) -> bytes:
    return content_key(row.example)


def _comparison_key(row: ComparisonRow) -> bytes:
    return content_key(row.comparison)


READ_EXAMPLES = Reading(EXAMPLES, "rows", _examples, _example_key)
READ_PROMPTS = Reading(PROMPTS, "prompts", _prompts, _example_key)
READ_RANKINGS = Reading(RANKINGS, "comparisons", _comparisons, _comparison_key)
READ_JUDGED = Reading(JUDGED, "answers", _comparisons, _comparison_key)


@dataclass(frozen=True)
class SourceRows(Generic[R]):
    """All rows of one source in the order of its files. format: as announced; several where files differ.

    places: where the files lie, by the name that origins have for them. skipped: rows of the files that are well
    formed and compare nothing, with the reason.
    """

    source: DataSource
    label: str
    format: str
    digest: str
    rows: Sequence[R]
    places: Mapping[str, str]
    skipped: Sequence[tuple[Origin, str]]


def read_source(
    source: DataSource,
    reading: Reading[R],
    *,
    locate: Callable[[str], Path],
    stage_outputs: Mapping[str, Path],
    say: Callable[[str], None],
) -> SourceRows[R]:
    """Read, detect the format, check and convert every row; a stream is read up to its `take`.

    locate: makes a path of the recipe absolute. stage_outputs: where the rows of earlier stages lie. say: gets
    one line on what was found. Raises DataError, for bad rows with the first few and their number.
    """
    label = source_label(source)
    rows: list[R] = []
    read = 0
    faults: list[Fault] = []
    skipped: list[tuple[Origin, str]] = []
    places: dict[str, str] = {}
    formats: dict[str, None] = {}
    notes: dict[str, None] = {}
    for shown, path, raw in _parts(source, label, locate, stage_outputs):
        read += len(raw)
        good = [row for row in raw if isinstance(row, RawRow)]
        part_faults = [row for row in raw if isinstance(row, Fault)]
        if good or not part_faults:
            known = known_format(source.format, source.fields, good, str(path), reading.kind)
            formats[known.name + (" (detected)" if known.detected else "")] = None
            for column in unused_columns(known, good):
                notes[column] = None
            part_faults += _convert(good, known, reading, rows, skipped)
            part_faults.sort(key=lambda fault: fault.origin.line or fault.origin.row or 0)
        faults += part_faults
        places[shown] = str(path)
    if faults:
        raise bad_rows(faults, read, places)
    made = f" ({len(rows):,} {reading.noun})" if len(rows) != read else ""
    say(
        f"{label}: {read:,} rows{made}, format {' and '.join(formats)}"
        + (f"; {'columns' if reading.kind is PROMPTS else 'fields not used'}: {', '.join(notes)}" if notes else "")
    )
    return SourceRows(source, label, " and ".join(formats), source_digest(source, locate), rows, places, skipped)


def bad_rows(faults: Sequence[Fault], total: int, places: Mapping[str, str]) -> DataError:
    """One error that names the first bad rows, each as file, line, field and reason, and counts the rest."""
    errors = [_error(fault, fault.reason, places) for fault in faults[:LISTED_ROWS]]
    message = faults[0].reason
    if len(faults) > 1:
        message += "".join(f"\n{error}" for error in errors[1:])
        message += f"\n{len(faults):,} of {total:,} rows cannot be used"
        message += f"; the first {LISTED_ROWS} are listed" if len(faults) > LISTED_ROWS else ""
    return _error(faults[0], message, places)


def content_key(content: Example | Ranking | Judged) -> bytes:
    """sha256 of what it says: equal for exact duplicates, whatever file and format they came in."""
    value: list[Any]
    if isinstance(content, Dialog):
        value = ["dialog", list(content.tools), *map(_turn, content.messages)]
    elif isinstance(content, Completion):
        value = ["completion", content.prompt, content.completion]
    elif isinstance(content, Text):
        value = ["text", content.text]
    else:
        answers = content.answers if isinstance(content, Ranking) else (content.answer,)
        value = ["comparison", content_key(content.prompt).hex(), [[*map(_turn, answer)] for answer in answers]]
        value += [content.margin, content.rating] if isinstance(content, Ranking) else [content.desirable]
    # default=str: Parquet has dates and the like inside tool descriptions.
    return hashlib.sha256(json.dumps(value, default=str).encode()).digest()


def _turn(message: Message) -> list[Any]:
    calls = [[call.name, call.arguments] for call in message.tool_calls]
    return [message.role, message.content, calls, message.context, message.trained]


def _error(fault: Fault, message: str, places: Mapping[str, str]) -> DataError:
    origin = fault.origin
    path = places.get(origin.source, origin.source)
    return DataError(message, path=path, line=origin.line, row=origin.row, field=fault.field)


def _convert(
    raw: Iterable[RawRow], known: Known, reading: Reading[R], rows: list[R], skipped: list[tuple[Origin, str]]
) -> list[Fault]:
    """Append what can be used to `rows` and what compares nothing to `skipped`; give back what is wrong."""
    faults = []
    for row in raw:
        try:
            rows += reading.convert(row, known)
        except RowFault as fault:
            faults.append(Fault(row.origin, fault.reason, fault.field))
        except NoComparison as nothing:
            skipped.append((row.origin, str(nothing)))
    return faults


def _parts(
    source: DataSource, label: str, locate: Callable[[str], Path], stage_outputs: Mapping[str, Path]
) -> Iterator[tuple[str, str | Path, list[RawRow | Fault]]]:
    """The files of a source, or a hub data set as one: (name in origins, place in errors, rows)."""
    if source.hub is not None:
        rows = list(_hub_rows(source, label, locate))
        if not rows:
            raise DataError("has no rows", path=label)
        yield label, label, rows
        return
    if source.stage is not None:
        if source.stage not in stage_outputs:
            raise DataError(f"stage '{source.stage}' has no rows yet: run it first", path=label)
        folder = stage_outputs[source.stage] / STAGE_ROWS
        if not folder.is_file():
            raise DataError(f"stage '{source.stage}' has written no rows for other stages", path=label)
    else:
        assert source.path is not None  # the schema: exactly one of path, hub, stage
        folder = locate(source.path)
    for file in data_files(folder):
        shown = label if file == folder else f"{label.rstrip('/')}/{file.relative_to(folder).as_posix()}"
        rows = list(read_file(file, shown))
        if not rows:
            raise DataError("has no rows", path=file)
        yield shown, file, rows


def _hub_rows(source: DataSource, label: str, locate: Callable[[str], Path]) -> Iterator[RawRow | Fault]:
    assert source.hub is not None
    folder = local_hub_folder(source.hub, locate)
    revision = None if folder else hub_commit(source.hub, source.revision)

    import datasets
    from datasets.exceptions import DatasetsError

    try:
        rows = datasets.load_dataset(
            str(folder.resolve()) if folder else source.hub,
            source.subset,
            split=source.split,
            revision=revision,
            streaming=source.streaming,
        )
        for index, row in enumerate(islice(rows, source.take) if source.streaming else rows):
            yield row_of(row, Origin(label, row=index))
    except (DatasetsError, OSError, ValueError, TypeError) as error:
        # `datasets` speaks of unknown splits and subsets, broken files and unreachable hosts in these four.
        cause = error.__cause__ or error
        raise DataError(f"could not be read by the datasets library: {cause}", path=label) from error
