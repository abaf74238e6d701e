"""Preparing a stage's data: splits, duplicates, policies, the cache and the report, on the real families."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_llama3_tokenizer, tiny_spm_tokenizer

from finetune.data import policy
from finetune.data.prepare import PreparedSft, prepare_sft
from finetune.data.store import TokenRows
from finetune.data.tokenizer import Tokenizer
from finetune.data.tokens import rendering_key
from finetune.errors import DataError, InputError
from finetune.families.base import Family
from finetune.families.detect import FAMILIES
from finetune.recipe.learning_stages import SftStage
from finetune.recipe.settings import ModelSettings

Prepare = Callable[..., PreparedSft]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.load(tiny_llama3_tokenizer(tmp_path_factory.mktemp("bpe")))


@pytest.fixture(scope="module")
def prepare(tokenizer: Tokenizer) -> Prepare:
    def call(
        folder: Path,
        data: list[dict[str, Any]] | None = None,
        *,
        family: Family = FAMILIES["llama3"],
        max_length: int = 512,
        system: str | None = None,
        cache: Path | None = None,
        seed: int = 1,
        said: list[str] | None = None,
        refuse: bool = True,
        tokenizer: Tokenizer = tokenizer,
        **stage: Any,
    ) -> PreparedSft:
        settings = SftStage.model_validate({"kind": "sft", "data": data or [{"path": "d.jsonl"}], **stage})
        return prepare_sft(
            settings,
            model=ModelSettings(base="b", max_length=max_length, system=system),
            seed=seed,
            locate=lambda path: folder / path,
            stage_outputs={},
            family=family,
            tokenizer=tokenizer,
            cache=cache,
            say=(said if said is not None else []).append,
            refuse=refuse,
        )

    return call


def pair(number: int, answer: str = "Paris") -> dict[str, str]:
    return {"instruction": f"What is the capital of {number}?", "output": f"{answer} {number}"}


def write(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def tokens(rows: TokenRows | None) -> list[tuple[int, ...]]:
    return [] if rows is None else [tuple(rows.row(i)[0].tolist()) for i in range(len(rows))]


def test_the_two_sides_share_no_row_and_make_up_the_whole(tmp_path: Path, prepare: Prepare) -> None:
    write(tmp_path / "d.jsonl", [pair(n % 40) for n in range(100)])
    prepared = prepare(tmp_path, held_out={"fraction": 0.2})
    train, held = tokens(prepared.train), tokens(prepared.held_out)
    assert held and not set(train) & set(held)
    assert len(train) + len(held) == 100
    assert prepared.report.duplicates == 60
    assert sorted(train + held) == sorted(tokens(prepared.rows))
    assert sorted([*prepared.train.origin, *prepared.held_out.origin]) == list(range(100))  # type: ignore[union-attr]
    assert str(prepared.origin_of(0)) == f"d.jsonl:{prepared.train.origin[0] + 1}"


def test_equal_tokens_from_different_formats_are_not_on_both_sides(tmp_path: Path, prepare: Prepare) -> None:
    write(tmp_path / "a.jsonl", [pair(n) for n in range(50)])
    write(
        tmp_path / "b.jsonl",
        [
            {"messages": [{"role": "user", "content": p["instruction"]}, {"role": "assistant", "content": p["output"]}]}
            for p in map(pair, range(50))
        ],
    )
    write(
        tmp_path / "c.jsonl", [{"prompt": pair(n)["instruction"], "completion": pair(n)["output"]} for n in range(50)]
    )
    prepared = prepare(tmp_path, [{"path": f"{n}.jsonl"} for n in "abc"], held_out={"fraction": 0.2})
    train, held = set(tokens(prepared.train)), set(tokens(prepared.held_out))
    assert len(held) > 10 and not train & held
    assert prepared.dropped.count(policy.HELD_OUT_COPY) > 0
    assert prepared.report.dropped[policy.HELD_OUT_COPY].rows == prepared.dropped.count(policy.HELD_OUT_COPY)


def test_duplicates_can_be_dropped_across_sources(tmp_path: Path, prepare: Prepare) -> None:
    write(tmp_path / "d.jsonl", [pair(1), pair(2), pair(1)])
    write(tmp_path / "e.jsonl", [pair(2), pair(3)])
    data = [{"path": "d.jsonl"}, {"path": "e.jsonl"}]
    kept = prepare(tmp_path, data, held_out={"fraction": 0.0})
    assert (kept.report.duplicates, len(kept.train), kept.held_out) == (2, 5, None)
    dropped = prepare(tmp_path, data, held_out={"fraction": 0.0}, duplicates="drop")
    assert dropped.dropped == [None, None, policy.DUPLICATE, policy.DUPLICATE, None]
    assert dropped.report.dropped[policy.DUPLICATE].first[0].startswith("d.jsonl:3: ")
    assert [source.used for source in dropped.report.sources] == [2, 1]


def test_separate_held_out_files(tmp_path: Path, prepare: Prepare) -> None:
    write(tmp_path / "d.jsonl", [pair(n) for n in range(10)])
    write(tmp_path / "held.jsonl", [pair(3), pair(7), pair(50)])
    held_out = {"data": [{"path": "held.jsonl"}]}
    prepared = prepare(tmp_path, held_out=held_out)
    assert (len(prepared.train), len(prepared.held_out or [])) == (8, 3)
    assert [row for row, why in enumerate(prepared.dropped) if why == policy.HELD_OUT_COPY] == [3, 7]
    assert prepared.report.held_out_sources[0].used == 3
    assert str(prepared.origins[prepared.held_out.origin[0]]) == "held.jsonl:1"  # type: ignore[union-attr]
    limited = prepare(tmp_path, held_out={**held_out, "max_rows": 1})
    assert (len(limited.train), len(limited.held_out or [])) == (8, 1)
    with pytest.raises(InputError, match=r"weight 2\.0 has no meaning"):
        prepare(tmp_path, held_out={"data": [{"path": "held.jsonl", "weight": 2.0}]})


def test_take_and_weight(tmp_path: Path, prepare: Prepare) -> None:
    write(tmp_path / "d.jsonl", [pair(n) for n in range(30)])
    write(tmp_path / "e.jsonl", [pair(n) for n in range(100, 120)])
    data = [{"path": "d.jsonl", "take": 10, "weight": 2.0}, {"path": "e.jsonl", "weight": 0.25}]
    prepared = prepare(tmp_path, data, held_out={"fraction": 0.0})
    assert (prepared.report.rows, len(prepared.train), prepared.report.epoch_rows) == (30, 30, 25)
    order = prepared.epoch_order(0)
    assert [int((order < 10).sum()), int((order >= 10).sum())] == [20, 5]
    numbers = prepared.rows.origin.tolist()
    assert numbers == sorted(numbers) and numbers[:10] != list(range(10)) and numbers[10:] == list(range(30, 50))
    swapped = prepare(tmp_path, data[::-1], held_out={"fraction": 0.0})
    assert set(tokens(swapped.train)) == set(tokens(prepared.train))


def test_long_rows_by_policy(tmp_path: Path, prepare: Prepare) -> None:
    long_answer, long_prompt = pair(1, "word " * 200), {"instruction": "word " * 200, "output": "Paris"}
    write(tmp_path / "d.jsonl", [pair(0), long_answer, long_prompt])
    none = {"fraction": 0.0}
    drop = prepare(tmp_path, max_length=100, held_out=none)
    assert drop.dropped == [None, policy.TOO_LONG, policy.TOO_LONG]
    assert drop.rows.lengths[1] > 100  # left out rows stay whole, so that they can be shown
    cut = prepare(tmp_path, max_length=100, held_out=none, too_long="truncate")
    assert cut.dropped == [None, None, policy.PROMPT_TOO_LONG]
    assert (cut.train.lengths.tolist()[1], cut.report.truncated) == (100, 1)
    ids, trained = cut.train.row(1)
    whole = drop.rows.row(1)
    assert ids.tolist() == whole[0].tolist()[:100] and trained.tolist() == whole[1].tolist()[:100]
    with pytest.raises(DataError, match=r"d\.jsonl:2: has [\d,]+ tokens, more than model.max_length 100") as error:
        prepare(tmp_path, max_length=100, held_out=none, too_long="error")
    assert "d.jsonl:3" in str(error.value) and "2 of 3 rows" in str(error.value)
    shown = prepare(tmp_path, max_length=100, held_out=none, too_long="error", refuse=False)
    assert shown.dropped == [None, policy.TOO_LONG, policy.TOO_LONG]


def test_with_all_tokens_trained_a_prompt_is_still_not_eaten(tmp_path: Path, prepare: Prepare) -> None:
    write(tmp_path / "d.jsonl", [pair(1, "word " * 200), {"instruction": "word " * 200, "output": "Paris"}])
    cut = prepare(tmp_path, max_length=100, held_out={"fraction": 0.0}, too_long="truncate", loss_on="all")
    assert cut.dropped == [None, policy.PROMPT_TOO_LONG]
    assert cut.train.row(0)[1].tolist() == [1] * 100


def test_rows_without_trained_tokens_are_left_out_and_listed(tmp_path: Path, prepare: Prepare) -> None:
    masked = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "weight": 0}]}
    answered = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    write(tmp_path / "d.jsonl", [answered, masked])
    prepared = prepare(tmp_path, held_out={"fraction": 0.0})
    assert prepared.dropped == [None, policy.NOTHING_TRAINED]
    assert prepared.report.dropped[policy.NOTHING_TRAINED].first[0].startswith("d.jsonl:2: ")


def test_nothing_left_is_an_error_that_says_why(tmp_path: Path, prepare: Prepare) -> None:
    (tmp_path / "book.txt").write_text("word " * 300)
    with pytest.raises(
        DataError, match=r"no row is left.*1 longer than max_length \(book\.txt: .*Raise model.max_length"
    ):
        prepare(tmp_path, [{"path": "book.txt"}], max_length=64)
    assert len(prepare(tmp_path, [{"path": "book.txt"}], max_length=64, refuse=False).train) == 0
    assert prepare(tmp_path, [{"path": "book.txt"}], max_length=64, too_long="truncate").train.lengths.tolist() == [64]


def test_an_unusual_mask_is_refused_unless_told(tmp_path: Path, prepare: Prepare) -> None:
    write(tmp_path / "d.jsonl", [{"instruction": "word " * 3000, "output": "a"}])
    with pytest.raises(InputError, match=r"only 2 of [\d,]+ tokens \(0\.0\d%\).*allow_unusual_mask"):
        prepare(tmp_path, max_length=100_000)
    assert len(prepare(tmp_path, max_length=100_000, allow_unusual_mask=True).train) == 1
    assert len(prepare(tmp_path, max_length=100_000, refuse=False).train) == 1

    family = FAMILIES["llama3"]

    def all_trained(own: Family, dialog: Any, prompt: bool) -> Any:
        return [replace(span, trained=True) for span in family.turns(own, dialog, prompt)]

    with pytest.raises(InputError, match="every token"):
        prepare(tmp_path, max_length=100_000, family=replace(family, turns=all_trained))
    assert len(prepare(tmp_path, max_length=100_000, loss_on="all").train) == 1
    (tmp_path / "t.txt").write_text("Plain text is all trained, as it should be.")
    assert len(prepare(tmp_path, [{"path": "t.txt"}]).train) == 1


def test_the_first_bad_rows_are_listed_and_all_are_counted(tmp_path: Path, prepare: Prepare) -> None:
    rows = [pair(n) for n in range(12)]
    for n in (1, 3, 4, 6, 8, 10):
        rows[n] = {"instruction": "q", "output": n}  # type: ignore[dict-item]
    path = write(tmp_path / "d.jsonl", rows)
    with path.open("a") as file:
        file.write("{broken\n")
    with pytest.raises(DataError) as error:
        prepare(tmp_path)
    lines = str(error.value).splitlines()
    assert lines[0] == f"{path}:2: field 'output': should be text, is a number (1)"
    assert [line.removeprefix(f"{path}:").split(":")[0] for line in lines[1:5]] == ["4", "5", "7", "9"]
    assert lines[5] == "7 of 13 rows cannot be used; the first 5 are listed"
    assert (error.value.line, error.value.field) == (2, "output")


def test_rows_that_the_template_has_no_form_for_are_listed_too(
    tmp_path: Path, prepare: Prepare, tokenizer: Tokenizer
) -> None:
    spm = Tokenizer.load(tiny_spm_tokenizer(tmp_path / "spm"))
    turns = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}, {"role": "assistant", "content": "c"}]
    path = write(tmp_path / "d.jsonl", [{"messages": turns[1:]}, {"messages": turns}])
    with pytest.raises(DataError, match=rf"{path}:2: "):
        prepare(tmp_path, family=FAMILIES["llama2"], tokenizer=spm)


def test_sources_of_every_kind(tmp_path: Path, prepare: Prepare) -> None:
    write(tmp_path / "folder" / "a.jsonl", [pair(1)])
    write(tmp_path / "folder" / "sub" / "b.jsonl", [{"text": "hello"}])
    (tmp_path / "folder" / "README.md").write_text("no data")
    write(tmp_path / "folder" / ".hidden" / "c.jsonl", [{"x": 1}])
    said: list[str] = []
    prepared = prepare(tmp_path, [{"path": "folder"}], held_out={"fraction": 0.0}, said=said)
    assert [str(origin) for origin in prepared.origins] == ["folder/a.jsonl:1", "folder/sub/b.jsonl:1"]
    assert said[0] == "folder: 2 rows, format alpaca (detected) and text (detected)"
    for path, message in (("nowhere.jsonl", "no such file or folder"), ("folder/README.md", "files of type '.md'")):
        with pytest.raises(DataError, match=message):
            prepare(tmp_path, [{"path": path}])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no data file"):
        prepare(tmp_path, [{"path": "empty"}])
    (tmp_path / "none.json").write_text("[]")
    with pytest.raises(DataError, match=r"none\.json: has no rows"):
        prepare(tmp_path, [{"path": "none.json"}])
    with pytest.raises(DataError, match="stage 'best' has no rows yet"):
        prepare(tmp_path, [{"stage": "best"}])


@pytest.mark.parametrize("streaming", [False, True])
def test_hub_data_sets_by_the_datasets_library(
    tmp_path: Path, prepare: Prepare, monkeypatch: pytest.MonkeyPatch, streaming: bool
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "hf"))
    write(tmp_path / "hub" / "train.jsonl", [pair(n) for n in range(6)])
    source = {"hub": "./hub", "streaming": streaming, "take": 4}
    prepared = prepare(tmp_path, [source], held_out={"fraction": 0.0})
    assert len(prepared.train) == 4
    assert str(prepared.origins[0]) == "./hub[train] row 0"
    if streaming:
        assert prepared.rows.origin.tolist() == [0, 1, 2, 3]
    with pytest.raises(DataError, match=r"\./hub\[test\]: could not be read by the datasets library.*test"):
        prepare(tmp_path, [{**source, "split": "test"}])
    with pytest.raises(DataError, match="no such folder"):
        prepare(tmp_path, [{**source, "hub": "./nowhere"}])


def test_the_cache_is_used_and_never_for_another_template_or_policy(tmp_path: Path, prepare: Prepare) -> None:
    write(tmp_path / "d.jsonl", [pair(n) for n in range(5)])
    write(tmp_path / "e.jsonl", [pair(n) for n in range(5)][::-1])
    cache = tmp_path / "cache"

    def entries_after(**settings: Any) -> int:
        prepare(tmp_path, cache=cache, **settings)
        return len(list(cache.iterdir()))

    first = tokens(prepare(tmp_path, cache=cache).rows)
    said: list[str] = []
    assert tokens(prepare(tmp_path, cache=cache, said=said).rows) == first
    assert "tokens: 5 distinct rows found in the cache" in said
    assert entries_after(data=[{"path": "e.jsonl"}]) == 1  # the same rows in another order
    assert entries_after(max_length=400) == 1  # whole rows are stored; the length is a view's business
    assert entries_after(system="Be kind.") == 2
    assert entries_after(loss_on="all") == 3
    assert entries_after(family=FAMILIES["llama3.1"]) == 4
    write(tmp_path / "d.jsonl", [pair(n) for n in range(6)])
    assert entries_after() == 5


def test_any_change_of_a_template_changes_the_key() -> None:
    family = FAMILIES["llama3"]

    def other(own: Family, dialog: Any, prompt: bool) -> Any:
        spans = family.turns(own, dialog, prompt)
        return [replace(span, text=span.text.replace("user", "User")) for span in spans]

    keys = {rendering_key(f) for f in (family, replace(family, turns=other), FAMILIES["llama3.1"])}
    assert len(keys) == 3
    assert rendering_key(replace(family)) == rendering_key(family)


def test_the_report_is_json_and_adds_up(tmp_path: Path, prepare: Prepare) -> None:
    write(tmp_path / "d.jsonl", [pair(n) for n in range(40)] + [pair(99, "word " * 300)])
    prepared = prepare(tmp_path, max_length=100)
    report = json.loads(json.dumps(prepared.report.to_json()))
    assert report["rows"] == 41 == report["train_rows"] + report["held_out_rows"] + 1
    assert report["dropped"] == {
        policy.TOO_LONG: {"rows": 1, "first": [prepared.report.dropped[policy.TOO_LONG].first[0]]}
    }
    assert sum(report["lengths"]["counts"]) == report["train_rows"]
    assert report["tokens"] == sum(map(len, tokens(prepared.train)))
    trained = [prepared.train.row(i)[1].tolist() for i in range(len(prepared.train))]
    assert report["trained_tokens"] == sum(map(sum, trained))
    assert report["sources"][0]["digest"].startswith("sha256:") and report["sources"][0]["used"] == 40


@pytest.mark.parametrize(
    ("name", "rows", "format_"),
    [
        ("alpaca_en.json", 700, "alpaca"),
        ("dolly.json", 1500, "alpaca"),
        ("sharegpt_dummy.json", 350, "sharegpt"),
        ("glaive_toolcall.json", 200, "sharegpt"),
        ("tinystories.jsonl", 800, "text"),
    ],
)
@pytest.mark.parametrize("base", ["llama3", "llama3.1", "llama2"])
def test_real_files(shared: Path, prepare: Prepare, name: str, rows: int, format_: str, base: str) -> None:
    folder = shared / "tokenizers" / ("llama2" if base == "llama2" else "llama3")
    prepared = prepare(
        shared / "data",
        [{"path": name, "take": 150}],
        tokenizer=Tokenizer.load(folder),
        family=FAMILIES[base],
        max_length=8192,
    )
    assert prepared.report.sources[0].rows == rows
    assert prepared.report.sources[0].format == f"{format_} (detected)"
    assert prepared.report.rows == 150 and not set(prepared.dropped) - {None, policy.HELD_OUT_COPY}
    assert 0.1 < prepared.report.trained_tokens / prepared.report.tokens <= 1


def test_where_a_file_lies_and_what_it_is_called_decides_nothing(tmp_path: Path, prepare: Prepare) -> None:
    """The fingerprint of a stage knows content only, so the rows must depend on content only."""
    rows = "".join(json.dumps({"text": f"row {number}"}) + "\n" for number in range(60))
    for path in ("here/d.jsonl", "there/deeper/e.jsonl"):
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).write_text(rows)
    one, other = (
        prepare(tmp_path, [{"path": path, "take": 20, "weight": 0.5}], held_out={"fraction": 0.2})
        for path in ("here/d.jsonl", "there/deeper/e.jsonl")
    )
    assert one.train.ids.tolist() == other.train.ids.tolist()
    assert one.held_out is not None and other.held_out is not None
    assert one.held_out.ids.tolist() == other.held_out.ids.tolist()
    assert [one.epoch_order(epoch).tolist() for epoch in (0, 1)] == [other.epoch_order(e).tolist() for e in (0, 1)]
