"""Readers: what each file type gives, and how each kind of damage is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from finetune.data.readers import Fault, RawRow, read_file
from finetune.errors import DataError


def rows(path: Path) -> list[RawRow | Fault]:
    return list(read_file(path, path.name))


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_jsonl_counts_lines_from_one_and_skips_blank_ones(tmp_path: Path) -> None:
    found = rows(write(tmp_path, "a.jsonl", '{"text": "one"}\n\n  \n{"text": "two\u2028three"}'))
    assert [(str(row.origin), row.values) for row in found if isinstance(row, RawRow)] == [
        ("a.jsonl:1", {"text": "one"}),
        ("a.jsonl:4", {"text": "two\u2028three"}),
    ]


def test_jsonl_hands_on_each_bad_line_and_goes_on(tmp_path: Path) -> None:
    content = b'{"text": "ok"}\n{"text": "cut\n[1]\n"word"\n{"text": "\xff"}\n{"text": "ok"}\n'
    found = rows(write(tmp_path, "a.jsonl", content))
    faults = [row for row in found if isinstance(row, Fault)]
    assert [fault.origin.line for fault in faults] == [2, 3, 4, 5]
    assert "not valid JSON" in faults[0].reason and "column" in faults[0].reason
    assert "this is a list" in faults[1].reason
    assert "this is text" in faults[2].reason
    assert faults[3].reason == "not UTF-8: byte 0xff at position 11"
    assert len(found) == 6


def test_jsonl_that_is_an_array_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.jsonl:1: holds a JSON array.*name it \.json"):
        rows(write(tmp_path, "a.jsonl", '[{"text": "a"}]'))


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".txt"])
def test_byte_order_marks(tmp_path: Path, suffix: str) -> None:
    content = {".jsonl": '{"text": "é"}', ".json": '[{"text": "é"}]', ".csv": "text\né", ".txt": "é"}[suffix]
    (row,) = rows(write(tmp_path, f"a{suffix}", b"\xef\xbb\xbf" + content.encode()))
    assert isinstance(row, RawRow) and row.values == {"text": "é"}
    with pytest.raises(DataError, match="UTF-16; save the file as UTF-8"):
        rows(write(tmp_path, f"b{suffix}", content.encode("utf-16")))


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".txt", ".parquet"])
def test_an_empty_file_is_an_error(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(DataError, match=rf"a\{suffix}: the file is empty"):
        rows(write(tmp_path, f"a{suffix}", ""))


def test_json_array_or_object_with_data(tmp_path: Path) -> None:
    values = [{"text": "a"}, {"text": "b"}]
    for name, content in (("a.json", values), ("b.json", {"version": 1, "data": values})):
        found = rows(write(tmp_path, name, json.dumps(content)))
        assert [(row.origin.row, row.values) for row in found if isinstance(row, RawRow)] == [
            (0, values[0]),
            (1, values[1]),
        ]
    (fault,) = rows(write(tmp_path, "c.json", "[7]"))
    assert isinstance(fault, Fault) and "a number (7)" in fault.reason


def test_json_lines_under_the_name_json(tmp_path: Path) -> None:
    found = rows(write(tmp_path, "a.json", '{"text": "a"}\n{"text": "b"}\n'))
    assert [str(row.origin) for row in found] == ["a.json:1", "a.json:2"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"text": "a"},\n {"text": }]', r"a\.json:2: not valid JSON: .* at column 11"),
        ('{"rows": []}', r"holds one object \(with rows\)"),
        ("3", "found a number"),
        (b'[{"text":\n"\xfc"}]', r"a\.json:2: not UTF-8 \(byte 0xfc\)"),
        ("[" * 200_000, "not valid JSON|nested too deeply"),
    ],
)
def test_broken_json(tmp_path: Path, content: str | bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        rows(write(tmp_path, "a.json", content))


def test_csv_rows_know_the_line_they_begin_on(tmp_path: Path) -> None:
    found = rows(write(tmp_path, "a.csv", 'q,a\r\n"two\nlines",1\nx,"say ""hi"""\n\nshort\n'))
    assert [(row.origin.line, row.values) for row in found if isinstance(row, RawRow)] == [
        (2, {"q": "two\nlines", "a": "1"}),
        (4, {"q": "x", "a": 'say "hi"'}),
    ]
    (fault,) = [row for row in found if isinstance(row, Fault)]
    assert (fault.origin.line, fault.reason) == (6, "has 1 cells, the first line names 2 columns")


def test_csv_cells_may_be_longer_than_the_library_allows_by_default(tmp_path: Path) -> None:
    (row,) = rows(write(tmp_path, "a.csv", f"text\n{'x' * 200_000}\n"))
    assert isinstance(row, RawRow) and len(row.values["text"]) == 200_000


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("\na,b\n", "first line should name the columns"),
        ("a,a\n1,2\n", "two columns are named 'a'"),
        ('a,b\n1,2\n"open,2\n', r"a\.csv:3: not valid CSV"),
    ],
)
def test_broken_csv(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        rows(write(tmp_path, "a.csv", content))


def test_parquet(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    values = [{"messages": [{"role": "user", "content": "a"}]}, {"messages": None}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(values), tmp_path / "a.parquet")
    found = rows(tmp_path / "a.parquet")
    assert [(row.origin.row, row.values) for row in found if isinstance(row, RawRow)] == [
        (0, values[0]),
        (1, values[1]),
    ]
    with pytest.raises(DataError, match="not a Parquet file"):
        rows(write(tmp_path, "b.parquet", "PAR1 no"))


def test_a_text_file_is_one_document(tmp_path: Path) -> None:
    (row,) = rows(write(tmp_path, "a.txt", "First.\n\nSecond.\r\n"))
    assert isinstance(row, RawRow) and row.values == {"text": "First.\n\nSecond."}
