"""Prompts from files: rendered to where the answer begins, each once, split, with every row accounted for."""

from __future__ import annotations

import json

import pytest
from tiny import tiny_llama3_tokenizer, tiny_spm_tokenizer

from finetune.data.prepare_prompts import prepare_prompts
from finetune.data.tokenizer import Tokenizer
from finetune.errors import DataError, InputError
from finetune.families.detect import FAMILIES
from finetune.recipe.data_settings import DataSource, HeldOut
from finetune.recipe.settings import ModelSettings


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return Tokenizer.load(tiny_llama3_tokenizer(tmp_path_factory.mktemp("bpe")))


@pytest.fixture
def prepare(tmp_path, tokenizer):
    def call(rows, held_out=None, *, system=None, max_length=128, new=8, seed=1, family="llama3", said=None, **source):
        (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        sources = source.pop("sources", [{"path": "d.jsonl", **source}])
        return prepare_prompts(
            [DataSource(**one) for one in sources],
            held_out,
            max_new_tokens=new,
            model=ModelSettings(base="b", max_length=max_length, system=system),
            seed=seed,
            locate=lambda path: tmp_path / path,
            stage_outputs={},
            family=FAMILIES[family],
            tokenizer=tokenizer,
            say=(said if said is not None else []).append,
        )

    return call


def questions(count):
    return [{"prompt": f"What is {number}?", "safety": number % 2 == 0} for number in range(count)]


def test_a_prompt_ends_where_the_answer_begins(prepare, tokenizer):
    (prompt,) = prepare([{"prompt": "What is it?", "safety": True}], system="Be brief.").train
    shown = tokenizer.decode(prompt.ids)
    assert shown.endswith("What is it?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n")
    assert shown.count("Be brief.") == 1 and prompt.columns == {"safety": True} and str(prompt.origin) == "d.jsonl:1"
    assert prompt.key < 2**64 and prompt.ids.dtype == "int64"


def test_the_key_depends_on_the_content_alone(prepare):
    both = prepare(questions(2)).train
    assert prepare(questions(2)[1:], system="Be brief.", seed=7).train[0].key == both[1].key != both[0].key


def test_equal_prompts_count_once_in_whatever_format(prepare):
    rows = [{"prompt": "a"}, {"prompt": "b"}, {"prompt": "a", "safety": True}]
    found = prepare(rows)
    assert [str(prompt.origin) for prompt in found.train] == ["d.jsonl:1", "d.jsonl:2"]
    assert found.report["duplicates"] == 1 and found.report["rows"] == 3 and found.report["prompts"] == 2
    rows = [{"prompt": "a"}, {"prompt": [{"role": "user", "content": "a"}]}]
    assert len(prepare(rows).train) == 1


def test_prompts_without_room_for_an_answer_are_left_out_and_listed(prepare):
    said = []
    rows = [*questions(2), {"prompt": "What is " + "very " * 40 + "long?"}]
    longest = max(len(prompt.ids) for prompt in prepare(rows[:2]).train)
    found = prepare(rows, max_length=longest + 8, said=said)
    assert len(found.train) == 2
    ((reason, lost),) = found.report["dropped"].items()
    assert "max_new_tokens" in reason and lost["rows"] == 1 and lost["first"][0].startswith("d.jsonl:3: ")
    assert any("left out: 1 prompts" in line and "d.jsonl:3" in line for line in said)
    with pytest.raises(InputError, match=r"lower max_new_tokens \(now 9\)"):
        prepare(rows, max_length=longest + 8, new=9)
    with pytest.raises(InputError, match=r"no prompt is left: of 3 rows .*Raise model\.max_length \(now 9\)"):
        prepare(rows, max_length=9)


def test_held_out_prompts_are_never_trained_on(prepare):
    rows = [*questions(20), *questions(20)]
    found = prepare(rows, HeldOut(fraction=0.25, max_rows=4))
    keys = [prompt.key for prompt in found.train], [prompt.key for prompt in found.held_out]
    assert len(keys[0]) == 16 and len(keys[1]) == 4 and not set(keys[0]) & set(keys[1])
    assert len(set(keys[0])) == 16
    assert [p.key for p in prepare(rows, HeldOut(fraction=0.25, max_rows=4), seed=2).held_out] != keys[1]
    assert len(prepare(rows).held_out) == 0
    # Of 20 distinct rows a quarter are 5, and max_rows allows them.
    assert len(prepare(rows, HeldOut(fraction=0.25, max_rows=9)).held_out) == 5


def test_held_out_files(prepare, tmp_path):
    asked = ({"messages": [{"role": "user", "content": text}]} for text in ("What is 3?", "Else?"))
    (tmp_path / "h.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    found = prepare(questions(5), HeldOut(data=[DataSource(path="h.jsonl")]))
    assert len(found.train) == 4 and len(found.held_out) == 2
    assert found.report["dropped"]["equal to a held-out row"]["first"][0].startswith("d.jsonl:4")
    assert [source["used"] for source in found.report["held_out_sources"]] == [2]


def test_take_draws_with_the_seed_and_weight_is_refused(prepare):
    some = [prompt.key for prompt in prepare(questions(20), take=5).train]
    assert len(some) == 5 and some != [prompt.key for prompt in prepare(questions(20), take=5, seed=2).train]
    with pytest.raises(InputError, match=r"prompts: weight 2 has no meaning there"):
        prepare(questions(3), weight=2.0)


def test_the_row_that_is_wrong_is_named(prepare, tmp_path):
    with pytest.raises(DataError, match=r"d\.jsonl:2: field 'prompt': is empty"):
        prepare([{"prompt": "a"}, {"prompt": ""}])
    rows = [{"prompt": "a"}, {"prompt": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}]
    with pytest.raises(DataError, match=r"d\.jsonl:2: turn 2 is user after user"):
        prepare(rows, family="llama2")


def test_columns_are_announced_as_such(prepare):
    said = []
    prepare(questions(2), said=said)
    assert said[0] == "d.jsonl: 2 rows, format prompt (detected); columns: safety"


def test_a_completion_base_gets_the_bare_prompt(tmp_path_factory, tmp_path):
    spm = Tokenizer.load(tiny_spm_tokenizer(tmp_path_factory.mktemp("spm")))
    (tmp_path / "d.jsonl").write_text('{"prompt": "Once upon"}\n')
    found = prepare_prompts(
        [DataSource(path="d.jsonl")],
        None,
        max_new_tokens=4,
        model=ModelSettings(base="b", max_length=64),
        seed=1,
        locate=lambda path: tmp_path / path,
        stage_outputs={},
        family=FAMILIES["plain"],
        tokenizer=spm,
        say=lambda line: None,
    )
    assert spm.decode(found.train[0].ids) == "<s> Once upon"
