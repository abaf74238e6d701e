"""Preparing comparisons: groups and their tokens, what is left out and why, the split by prompt, real files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import tiny_llama3_tokenizer, tiny_spm_tokenizer

from finetune.data import policy
from finetune.data.encode import encode_prompt
from finetune.data.group import SAME_TEXT, SAME_TOKENS
from finetune.data.prepare_preference import HELD_OUT_PROMPT, Comparisons, PreparedComparisons, prepare_comparisons
from finetune.data.tokenizer import Tokenizer
from finetune.errors import DataError, InputError
from finetune.families.base import Family
from finetune.families.detect import FAMILIES
from finetune.families.tools_as_text import call_text
from finetune.recipe.learning_stages import PreferenceStage
from finetune.recipe.settings import ModelSettings
from finetune.shapes import RATINGS, Dialog, Message, ToolCall

Prepare = Callable[..., PreparedComparisons]


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
        said: list[str] | None = None,
        refuse: bool = True,
        judged: bool = False,
        slices: tuple[str, ...] = (),
        tokenizer: Tokenizer = tokenizer,
        **stage: Any,
    ) -> PreparedComparisons:
        values = {"data": data or [{"path": "d.jsonl"}], "held_out": {"fraction": 0.0}, **stage}
        return prepare_comparisons(
            PreferenceStage.model_validate(values),
            slices=slices,
            judged=judged,
            model=ModelSettings(base="b", max_length=max_length, system=system),
            seed=1,
            locate=lambda path: folder / path,
            stage_outputs={},
            family=family,
            tokenizer=tokenizer,
            cache=cache,
            say=(said if said is not None else []).append,
            refuse=refuse,
        )

    return call


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def pair(prompt: str, chosen: str = "Paris", rejected: str = "Rome", **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **more}


def texts(found: Comparisons, group: int, tokenizer: Tokenizer) -> list[tuple[str, str]]:
    """(prompt, answer) of every row of a group, special tokens by name."""
    split = []
    for row in found.group(group):
        ids, cut = found.rows.row(row)[0].tolist(), int(found.prompt_lengths[row])
        split.append((tokenizer.decode(ids[:cut]), tokenizer.decode(ids[cut:])))
    return split


def prompts(found: Comparisons | None) -> set[bytes]:
    if found is None:
        return set()
    return {found.rows.row(r)[0][: found.prompt_lengths[r]].tobytes() for r in range(len(found.rows))}


def test_groups_their_tokens_and_what_is_known_of_them(tmp_path: Path, prepare: Prepare, tokenizer: Tokenizer) -> None:
    rows = [
        pair("Capital of France?", edited="It is Paris", margin=0.5, topic="maps", good=True),
        pair("Capital of Italy?", "Rome", "Paris", rating="Slightly better", topic=None),
    ]
    write(tmp_path / "d.jsonl", rows)
    found = prepare(tmp_path, slices=("topic", "good")).train
    asked = "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nCapital of {}?<|eot_id|>"
    asked += "<|start_header_id|>assistant<|end_header_id|>\n\n"
    assert texts(found, 0, tokenizer) == [
        (asked.format("France"), f"{answer}<|eot_id|>") for answer in ("It is Paris", "Paris", "Rome")
    ]
    assert texts(found, 1, tokenizer) == [
        (asked.format("Italy"), f"{answer}<|eot_id|>") for answer in ("Rome", "Paris")
    ]
    assert found.starts.tolist() == [0, 3, 5] and len(found) == 2
    assert found.lengths.tolist() == [int(found.rows.lengths[:3].sum()), int(found.rows.lengths[3:].sum())]
    assert found.margins[0] == 0.5 and np.isnan(found.margins[1])
    assert found.ratings.tolist() == [-1, RATINGS.index("slightly_better")] and found.desirable.tolist() == [-1, -1]
    assert {name: values.tolist() for name, values in found.extra.items()} == {
        "topic": ["maps", ""],
        "good": ["true", ""],
    }
    assert [found.origin_of(group) for group in range(2)] == [0, 1]
    assert found.pairs("all").tolist() == [[0, 0, 1], [0, 0, 2], [0, 1, 2], [1, 3, 4]]
    assert found.pairs("top").tolist() == [[0, 0, 1], [0, 0, 2], [1, 3, 4]]
    other = found.select(np.array([1]))
    assert texts(other, 0, tokenizer) == texts(found, 1, tokenizer) and other.extra["topic"].tolist() == [""]


@pytest.mark.parametrize("name", ["llama2", "llama3", "llama3.1", "alpaca", "vicuna", "plain"])
def test_only_the_answer_and_its_stop_token_are_scored(
    name: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, prepare: Prepare, tokenizer: Tokenizer
) -> None:
    if not name.startswith("llama3"):
        tokenizer = Tokenizer.load(tiny_spm_tokenizer(tmp_path_factory.mktemp("spm")))
    family = FAMILIES[name]
    write(tmp_path / "d.jsonl", [pair("Capital of France? ")])
    found = prepare(tmp_path, family=family, tokenizer=tokenizer).train
    for row, answer in zip(found.group(0), ("Paris", "Rome"), strict=True):
        ids, trained = found.rows.row(row)
        cut = int(found.prompt_lengths[row])
        assert trained.tolist() == [0] * cut + [1] * (len(ids) - cut)
        assert tokenizer.decode(ids[cut:].tolist(), skip_special=True).strip() == answer
        assert tokenizer.token_text(int(ids[-1])) in family.stop_tokens
        marks = set(tokenizer.special_tokens.values())
        assert found.row_format(row).tolist() == [int(token in marks) for token in ids.tolist()]
        assert found.row_format(row)[-1] == 1 and not found.row_format(row)[cut:-1].any()
    if family.is_chat and name != "alpaca":  # there `:` and the answer's first letters can be one token
        asked = Dialog((Message("user", "Capital of France? "),))
        assert encode_prompt(asked, family, tokenizer) == found.rows.row(0)[0][: found.prompt_lengths[0]].tolist()


def test_earlier_answers_of_the_prompt_are_not_scored(tmp_path: Path, prepare: Prepare, tokenizer: Tokenizer) -> None:
    turns = [{"role": r, "content": c} for r, c in (("user", "a"), ("assistant", "b"), ("user", "c"))]
    write(tmp_path / "d.jsonl", [{"prompt": turns, "chosen": "d", "rejected": "e"}])
    found = prepare(tmp_path, system="s").train
    (asked, chosen), (same, rejected) = texts(found, 0, tokenizer)
    assert (chosen, rejected) == ("d<|eot_id|>", "e<|eot_id|>") and asked == same
    assert "system<|end_header_id|>\n\ns<|eot_id|>" in asked and "\n\nb<|eot_id|>" in asked


def test_what_compares_nothing_is_counted_and_left_out(tmp_path: Path, prepare: Prepare) -> None:
    rows = [
        pair("1", "Paris", " Paris\n"),
        pair("2", "a b", "ab"),
        pair("3", "Paris", "Rome"),
        {"prompt": "4", "answers": ["Paris", "Rome", "Paris ", "Rome!"]},
        {"prompt": "5", "answers": ["Paris", " Paris", "Pa ris"]},
        pair("6", "Paris", "word " * 200),
        {"prompt": "7", "answers": ["Paris", "word " * 200, "Rome"]},
    ]
    write(tmp_path / "p.jsonl", [row for row in rows if "chosen" in row])
    write(tmp_path / "r.jsonl", [row for row in rows if "answers" in row])
    said: list[str] = []
    prepared = prepare(tmp_path, [{"path": "p.jsonl"}, {"path": "r.jsonl"}], max_length=60, said=said)
    assert prepared.dropped == [SAME_TEXT, SAME_TEXT, None, policy.TOO_LONG, None, SAME_TEXT, None]
    assert prepared.train.sizes.tolist() == [2, 3, 2]
    assert prepared.comparisons.sizes.tolist() == [2, 2, 2, 2, 3, 3, 2]
    assert prepared.report.rows == 7 and prepared.report.train_rows == 3
    assert prepared.report.dropped[SAME_TEXT].rows == 3
    assert prepared.report.dropped[SAME_TEXT].first[0].startswith("p.jsonl:1: ")
    assert prepared.report.dropped_answers == {SAME_TEXT: 1, policy.TOO_LONG: 1}
    assert any(line.startswith("left out of rankings of three and more: 1 answers, longer than") for line in said)
    assert json.loads(json.dumps(prepared.report.to_json()))["dropped_answers"][SAME_TEXT] == 1


def test_answers_that_are_the_same_tokens_are_told(tmp_path: Path, prepare: Prepare) -> None:
    # A tool call, and the same written out.
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "f", "arguments": {"x": 1}}]}
    written = {"role": "assistant", "content": call_text(ToolCall("f", {"x": 1}))}
    write(tmp_path / "d.jsonl", [pair("q", [call], [written]), pair("r")])
    prepared = prepare(tmp_path, refuse=False)
    assert prepared.dropped == [SAME_TOKENS, None]


def test_too_long_error_stops_with_the_first_rows(tmp_path: Path, prepare: Prepare) -> None:
    write(tmp_path / "d.jsonl", [pair("1"), pair("2", "word " * 200), pair("3", rejected="word " * 300)])
    with pytest.raises(DataError, match=r"d\.jsonl:2: has [\d,]+ tokens, more than model.max_length 60") as caught:
        prepare(tmp_path, max_length=60, too_long="error")
    assert "2 of 3 rows cannot be used" in str(caught.value) and "d.jsonl:3" in str(caught.value)
    with pytest.raises(DataError, match="no row is left to train on: of 3 rows"):
        prepare(tmp_path, max_length=8)


def test_duplicates(tmp_path: Path, prepare: Prepare) -> None:
    write(tmp_path / "d.jsonl", [pair("1"), pair("1"), pair("1", "Rome", "Paris"), pair("1", margin=1)])
    assert prepare(tmp_path).report.duplicates == 1 and len(prepare(tmp_path).train) == 4
    assert prepare(tmp_path, duplicates="drop").dropped == [None, policy.DUPLICATE, None, None]


def test_judged_answers(tmp_path: Path, prepare: Prepare, tokenizer: Tokenizer) -> None:
    rows = [{"prompt": str(n), "completion": "Paris", "label": n % 3 > 0} for n in range(6)]
    write(tmp_path / "d.jsonl", [*rows, {"prompt": "6", "completion": "word " * 200, "label": True}])
    prepared = prepare(tmp_path, judged=True, max_length=60)
    assert prepared.train.desirable.tolist() == [0, 1, 1, 0, 1, 1] and prepared.train.sizes.tolist() == [1] * 6
    assert prepared.dropped[6] == policy.TOO_LONG and prepared.train.pairs("all").shape == (0, 3)
    with pytest.raises(DataError, match="dpo stages with loss: kto"):
        prepare(tmp_path)


def test_bad_rows_are_listed_with_line_and_field(tmp_path: Path, prepare: Prepare) -> None:
    (tmp_path / "d.jsonl").write_text(
        '{"prompt": "q", "chosen": "a", "rejected": "b"}\n{"prompt": "q", "chosen": 1, "rejected": "b"}\nnonsense\n'
    )
    with pytest.raises(DataError) as caught:
        prepare(tmp_path)
    first, second, third = str(caught.value).splitlines()
    assert first.endswith("d.jsonl:2: field 'chosen': should be text, a message or a list of messages, is a number (1)")
    assert "d.jsonl:3: not valid JSON" in second and third == "2 of 3 rows cannot be used"


def test_rows_that_the_template_has_no_form_for(tmp_path: Path, prepare: Prepare) -> None:
    turns = [{"role": r, "content": "x"} for r in ("user", "user")]
    write(tmp_path / "d.jsonl", [pair("1"), {"prompt": turns, "chosen": "a", "rejected": "b"}])
    with pytest.raises(DataError) as caught:
        prepare(tmp_path, family=FAMILIES["alpaca"].on("llama3"))
    assert "d.jsonl:2" in str(caught.value) and "alternate" in str(caught.value)
    assert "\n" not in str(caught.value)  # one row, though both of its answers have no form


def test_slices_must_be_there(tmp_path: Path, prepare: Prepare) -> None:
    write(tmp_path / "d.jsonl", [pair("1", topic="x")])
    with pytest.raises(InputError, match=r"no row has a column 'topics'.*did you mean 'topic'"):
        prepare(tmp_path, slices=("topics",))


def test_weights_and_order(tmp_path: Path, prepare: Prepare) -> None:
    write(tmp_path / "a.jsonl", [pair(f"a{n}") for n in range(4)])
    write(tmp_path / "b.jsonl", [pair(f"b{n}") for n in range(4)])
    prepared = prepare(tmp_path, [{"path": "a.jsonl", "weight": 2.0}, {"path": "b.jsonl", "weight": 0.5}])
    first, second = prepared.epoch_order(0), prepared.epoch_order(1)
    assert prepared.report.epoch_rows == len(first) == 10 and first.tolist() != second.tolist()
    assert sorted(g for g in first if g < 4) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert {g for order in (first, second) for g in order if g >= 4} == {4, 5, 6, 7}
    assert str(prepared.origin_of(5)) == "b.jsonl:2"


def test_the_cache_gives_the_same(tmp_path: Path, prepare: Prepare) -> None:
    write(tmp_path / "d.jsonl", [pair(str(n)) for n in range(20)])
    said: list[str] = []
    made = prepare(tmp_path, cache=tmp_path / "cache", held_out={"fraction": 0.2})
    again = prepare(tmp_path, cache=tmp_path / "cache", held_out={"fraction": 0.2}, said=said)
    assert "tokens: 40 distinct rows found in the cache" in said
    assert made.train.rows.ids.tolist() == again.train.rows.ids.tolist()
    assert made.train.rows.starts.tolist() == again.train.rows.starts.tolist()
    write(tmp_path / "d.jsonl", [pair(str(n)) for n in reversed(range(20))])
    said.clear()
    prepare(tmp_path, cache=tmp_path / "cache", said=said)
    assert "tokens: 40 distinct rows found in the cache" in said


def test_held_out_files_take_their_prompts_with_them(tmp_path: Path, prepare: Prepare) -> None:
    write(tmp_path / "d.jsonl", [pair("1"), pair("2"), pair("1", "London", "Berlin"), pair("3")])
    chat = [{"role": "user", "content": " 1"}]
    write(tmp_path / "h.jsonl", [{"chosen": [*chat, {"role": "assistant", "content": "Oslo"}],
                                  "rejected": [*chat, {"role": "assistant", "content": "Bern"}]}])  # fmt: skip
    prepared = prepare(tmp_path, held_out={"data": [{"path": "h.jsonl"}]})
    assert prepared.dropped == [HELD_OUT_PROMPT, None, HELD_OUT_PROMPT, None]
    assert prepared.held_out is not None and str(prepared.origins[prepared.held_out.origin_of(0)]) == "h.jsonl:1"


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(
        st.tuples(st.sampled_from("abcdefgh"), st.sampled_from(["", " ", "\n"]), st.integers(0, 9), st.booleans()),
        min_size=2,
        max_size=40,
    ),
    fraction=st.sampled_from([0.1, 0.3, 0.6]),
    max_rows=st.integers(1, 12),
)
def test_no_prompt_is_on_both_sides(
    rows: list[tuple[str, str, int, bool]], fraction: float, max_rows: int, prepare: Prepare, tmp_path: Path
) -> None:
    def value(prompt: str, space: str, n: int, chat: bool) -> dict[str, Any]:
        if not chat:
            return pair(prompt + space, f"good {n}", f"bad {n}")
        asked = {"role": "user", "content": prompt + space}
        answers = [[asked, {"role": "assistant", "content": f"{word} {n}"}] for word in ("good", "bad")]
        return {"chosen": answers[0], "rejected": answers[1]}

    write(tmp_path / "d.jsonl", [value(*row) for row in rows])
    prepared = prepare(tmp_path, held_out={"fraction": fraction, "max_rows": max_rows}, refuse=False)
    held = len(prepared.held_out or [])
    assert not prompts(prepared.train) & prompts(prepared.held_out)
    assert len(prepared.train) + held == len(rows) and held <= max(1, max_rows)
    assert prepared.dropped.count(None) == len(rows)


@pytest.mark.parametrize(
    ("name", "format_", "rows", "comparisons", "pairs"),
    [
        ("dpo_en.json", "sharegpt_pairs", 200, 200, 200),
        ("hh_rlhf_harmless.jsonl", "hh", 400, 399, 399),
        ("oasst_trees.jsonl", "oasst", 70, 146, 507),
        ("alpaca_eval_judged.jsonl", "alpaca_eval", 400, 394, 394),
        ("kto_en.json", "judged", 200, 200, 0),
    ],
)
@pytest.mark.parametrize("base", ["llama3", "llama3.1", "llama2", "stories260K"])
def test_real_files(
    shared: Path, prepare: Prepare, name: str, format_: str, rows: int, comparisons: int, pairs: int, base: str
) -> None:
    folder = {"stories260K": "models/stories260K", "llama2": "tokenizers/llama2"}.get(base, "tokenizers/llama3")
    said: list[str] = []
    prepared = prepare(
        shared / "data",
        [{"path": name}],
        tokenizer=Tokenizer.load(shared / folder),
        family=FAMILIES["llama2" if base == "stories260K" else base],
        max_length=16384,
        judged=format_ == "judged",
        held_out={"fraction": 0.1},
        said=said,
    )
    assert prepared.report.sources[0].format == f"{format_} (detected)" and f"{name}: {rows:,} rows" in said[0]
    assert len(prepared.comparisons) == comparisons == prepared.dropped.count(None)
    assert len(prepared.comparisons.pairs("all")) == pairs
    assert prepared.held_out is not None and not prompts(prepared.train) & prompts(prepared.held_out)
    assert len(prepared.train) + len(prepared.held_out) == comparisons
    found = prepared.comparisons
    assert ((found.prompt_lengths > 1) & (found.prompt_lengths < found.rows.lengths)).all()
    for row in range(0, len(found.rows), 37):
        _, trained = found.rows.row(row)
        assert not trained[: found.prompt_lengths[row]].any() and trained[found.prompt_lengths[row]] == trained[-1] == 1
        assert found.row_format(row)[-1] == 1
