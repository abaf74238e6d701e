from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.errors import RecipeError
from finetune.recipe.load import check_recipe, load_recipe, recipe_from_dict

Write = Callable[[str], Path]

KINDS = "sft, reward, dpo, reject, ppo, grpo, rloo, average"

GOOD = """\
name: chat
model:
  base: org/model
stages:
  sft:
    kind: sft
    data:
      - path: rows.jsonl
    train:
      learning_rate: 2e-4
"""


def told(path: Path | str, *overrides: str) -> list[str]:
    """Each line of the message, without the file's name and the colon after it."""
    with pytest.raises(RecipeError) as raised:
        load_recipe(path, overrides)
    assert raised.value.exit_code == 2
    lines = str(raised.value).splitlines()
    assert len(lines) == len(raised.value.problems)
    assert all(line.startswith(f"{path}:") for line in lines)
    return [line.removeprefix(f"{path}:").strip() for line in lines]


def test_a_good_recipe_is_complete(write: Write) -> None:
    path = write(GOOD)
    loaded = load_recipe(path)
    assert loaded.path == path and loaded.folder == path.parent and loaded.overrides == ()
    assert loaded.recipe.stages["sft"].train.learning_rate == 2e-4
    assert loaded.recipe.model_dump(mode="json")["stages"]["sft"]["train"]["batch_size"] == 16
    check_recipe(loaded)


def test_the_contract_shape_loads(write: Write) -> None:
    loaded = load_recipe(
        write("""\
# yaml-language-server: $schema=../finetune/recipe/schema.json
name: llama2-chat-7b
seed: 17
model:
  base: meta-llama/Llama-2-7b-hf
  revision: null
  load_in: nf4
  template: auto
  max_length: 4096
adapter: {rank: 64, alpha: 32, dropout: 0.0, targets: all-linear}
track: {wandb: {project: chat, mode: online}}
stages:
  sft:
    kind: sft
    data: [{path: ../datasets/demo.jsonl}, {hub: org/name, split: train, take: 20000, weight: 0.5}]
    train: {epochs: 2, learning_rate: 2.0e-4, batch_size: 64, micro_batch_size: 4, betas: [0.9, 0.95]}
  again: {kind: sft, start_from: sft, data: [{path: rows.jsonl}]}
""")
    )
    assert loaded.recipe.stages["sft"].train.betas == (0.9, 0.95)
    assert loaded.recipe.stages["sft"].train.epochs == 2.0
    assert list(loaded.recipe.stages) == ["sft", "again"]


def test_several_errors_at_once_with_their_lines(write: Write) -> None:
    path = write("""\
name: my chat
model:
  lode_in: nf4
adapter:
  rank: abc
  dora: yes
stages:
  sft:
    kind: sft
    data: [{pth: rows.jsonl}]
    train:
      learning_rat: 2e-4
      epochs: '2'
      betas: [0.9]
      schedule: cosin
      epochs: 3
""")
    assert told(path) == [
        "1: name: expected a name of up to 64 letters, digits, '.', '_' and '-'; found text 'my chat'",
        "2: model.base: missing key: section model, which begins here, needs it (text)",
        "3: model.lode_in: unknown key (did you mean 'load_in'?)",
        "5: adapter.rank: expected a whole number of at least 1 and at most 4096; found text 'abc'",
        "6: adapter.dora: expected true or false; found text 'yes' (write true, without quotes)",
        "10: stages.sft.data[0].pth: unknown key (did you mean 'path'?)",
        "12: stages.sft.train.learning_rat: unknown key (did you mean 'learning_rate'?)",
        "13: stages.sft.train.epochs: expected a number above 0; found text '2' (remove the quotes)",
        "14: stages.sft.train.betas: expected a list of 2, each a number of at least 0 and below 1; found a list of 1",
        "15: stages.sft.train.schedule: expected one of cosine, linear, constant; found text 'cosin' "
        "(did you mean 'cosine'?)",
        "16: stages.sft.train.epochs: duplicate key: 'epochs' is already on line 13",
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("lr: 2e-4", "lr: unknown key (did you mean 'learning_rate'?)"),
        ("warmup_ratio: 0.1", "warmup_ratio: unknown key (did you mean 'warmup'?)"),
        ("rank: 8", "rank: unknown key ('rank' belongs to adapter)"),
        ("lora_alpha: 8", "lora_alpha: unknown key (did you mean 'alpha' of adapter?)"),
        ("held_out: {}", "held_out: unknown key ('held_out' belongs to stages.sft)"),
        ("epochs: 1", "epochs: duplicate key: 'epochs' is already on line 10"),
        ("batch_size: 8.5", "batch_size: expected a whole number of at least 1; found 8.5"),
        ("batch_size: 1e1", "batch_size: expected a whole number of at least 1; found 10.0 (write 10)"),
        ("batch_size: 1_000", "batch_size: expected a whole number of at least 1; found text '1_000' (write 1000)"),
        ("batch_size: true", "batch_size: expected a whole number of at least 1; found true"),
        ("learning_rate: fast", "learning_rate: expected auto or a number above 0; found text 'fast'"),
        ("learning_rate: '2e-4'", "learning_rate: expected auto or a number above 0; found text '2e-4' "
         "(remove the quotes)"),
        ("learning_rate: .inf", "learning_rate: expected auto or a number above 0; found inf"),
        ("learning_rate: .nan", "learning_rate: expected auto or a number above 0; found nan"),
        ("learning_rate: -1", "learning_rate: expected auto or a number above 0; found -1"),
        ("betas: 0.9", "betas: expected a list of 2, each a number of at least 0 and below 1; found 0.9"),
        ("betas: [0.9, 1]", "betas: expected a list of 2, each a number of at least 0 and below 1; found a list of 2"),
        ("max_grad_norm: 0", "max_grad_norm: expected a number above 0 or null; found 0"),
        ("schedule:", "schedule: expected one of cosine, linear, constant; found nothing (null) "
         "(remove the key to take its default)"),
        ("micro_batch_size: 99", "micro_batch_size: 99 is more than batch_size 16: a micro-batch is a part of a batch"),
    ],
)  # fmt: skip
def test_one_wrong_line(write: Write, line: str, message: str) -> None:
    path = write(GOOD.replace("learning_rate: 2e-4", f"epochs: 1\n      {line}"))
    assert told(path) == [f"11: stages.sft.train.{message}"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("kind: sft", "kind: gppo", f"6: stages.sft.kind: unknown kind 'gppo'; this version knows: {KINDS} "
         "(did you mean 'ppo'?)"),
        ("kind: sft", "kind: stf", f"6: stages.sft.kind: unknown kind 'stf'; this version knows: {KINDS} "
         "(did you mean 'sft'?)"),
        ("kind: sft", "kind: 3", f"6: stages.sft.kind: unknown kind 3; this version knows: {KINDS}"),
        ("kind: sft", "knd: sft", "5: stages.sft.kind: missing key: stage sft, which begins here, needs it "
         f"({KINDS}) (is 'knd' meant to be 'kind'?)"),
        ("- path: rows.jsonl", "- rows.jsonl", "8: stages.sft.data[0]: expected a section; found text 'rows.jsonl' "
         "(write {path: rows.jsonl})"),
        ("\n      - path: rows.jsonl", " rows.jsonl", "7: stages.sft.data: expected a list of at least one "
         "entry, each a "
         "section; found text 'rows.jsonl' (write [{path: rows.jsonl}])"),
        ("- path:", "  path:", "7: stages.sft.data: expected a list of at least one entry, each a section; found a "
         "section with path (a list has '- ' before each entry)"),
        ("\n      - path: rows.jsonl", " []", "7: stages.sft.data: expected a list of at least one entry, "
         "each a section; "
         "found an empty list"),
        ("path: rows.jsonl", "{path: a, hub: b}", "8: stages.sft.data[0]: needs exactly one of path, hub, "
         "stage; has path "
         "and hub"),
        ("path: rows.jsonl", "{hub: a/b, format: share-gpt}", "8: stages.sft.data[0].format: expected one of "
         "auto, alpaca, "
         "sharegpt, messages, prompt_completion, text, prompt, pairs, sharegpt_pairs, hh, "
         "ranked, oasst, alpaca_eval, judged; found text 'share-gpt' (did you mean 'sharegpt'?)"),
        ("path: rows.jsonl", "{hub: a/b, streaming: true}", "8: stages.sft.data[0].streaming: needs hub and "
         "take: a stream "
         "has no length to plan with"),
        ("base: org/model", "base: 3", "3: model.base: expected text; found 3 (put it in quotes: '3')"),
        ("base: org/model", "base: ''", "3: model.base: expected text; found empty text"),
        ("base: org/model", "base: org/model\n  load_in: NF-4",
         "4: model.load_in: expected one of nf4, int8, bf16, fp32; found text 'NF-4' (did you mean 'nf4'?)"),
        ("base: org/model", "base: org/model\nadapter: {targets: [q_proj, 3]}", "4: adapter.targets[1]: expected text; "
         "found 3 (put it in quotes: '3')"),
        ("base: org/model", "base: org/model\nadapter: {targets: 3}", "4: adapter.targets: expected text or a "
         "list of at "
         "least one entry, each text; found 3 (put it in quotes: '3')"),
        ("base: org/model", "base: org/model\nadapter:", "4: adapter: expected a section; found nothing (null) "
         "(indent its entries under it, or remove the key)"),
        ("base: org/model", "base: org/model\ntrack: {wandb: true}", "4: track.wandb: expected a section or "
         "null; found "
         "true"),
        ("name: chat\n", "", "1: name: missing key: a recipe needs it (a name of up to 64 letters, "
         "digits, '.', '_' and '-')"),
        ("  sft:\n", "  my stage:\n", "5: stages.my stage: expected a name of up to 64 letters, digits, '.', '_' and "
         "'-' as the key"),
    ],
)  # fmt: skip
def test_one_wrong_place(write: Write, old: str, new: str, message: str) -> None:
    text = GOOD.replace(old, new)
    assert text != GOOD
    assert told(write(text)) == [message]


def test_an_initialisation_that_needs_the_weights_names_its_line(write: Write) -> None:
    [message] = told(write(GOOD.replace("stages:", "adapter:\n  init: pissa\nstages:")))
    assert message.startswith("5: adapter.init: pissa reads the base's weights")


def test_a_stage_of_unknown_kind_hides_nothing_of_the_others(write: Write) -> None:
    text = GOOD + "      epoch: 1\n  kto: {kind: kto, start_from: sft, bta: 0.1, data: [{path: pairs.jsonl}]}\n"
    assert told(write(text)) == [
        "11: stages.sft.train.epoch: unknown key (did you mean 'epochs'?)",
        f"12: stages.kto.kind: unknown kind 'kto'; this version knows: {KINDS} "
        "(kto is a loss of dpo stages: write kind: dpo, loss: kto)",
    ]


STAGES = "name: x\nmodel: {base: org/model}\nstages:\n"
SFT = "kind: sft, data: [{path: rows.jsonl}]"


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        (f"  one: {{{SFT}}}\n  two: {{{SFT}, start_from: oen}}\n",
         "5: stages.two.start_from: 'oen' is neither a stage above nor an adapter folder (did you mean 'one'?)"),
        (f"  one: {{{SFT}, start_from: two}}\n  two: {{{SFT}}}\n",
         "4: stages.one.start_from: stage 'two' stands below; a stage reads only stages above it (move it up)"),
        (f"  one: {{{SFT}, start_from: one}}\n", "4: stages.one.start_from: stage one cannot read itself"),
        (f"  one: {{{SFT}, start_from: best}}\n",
         "4: stages.one.start_from: 'best' is neither a stage above nor an adapter folder (none is above)"),
        ("  one: {kind: sft, data: [{path: rows.jsonl}, {stage: best}]}\n",
         "4: stages.one.data[1].stage: 'best' is no stage above (none is above)"),
        (f"  one: {{kind: reward, data: [{{path: rows.jsonl}}]}}\n  two: {{{SFT}, start_from: one}}\n",
         "5: stages.two.start_from: stage one (reward) gives a reward model, not an "
         "adapter that writes text (no stage above does)"),
        (f"  one: {{{SFT}}}\n  two: {{kind: sft, data: [{{stage: one}}]}}\n",
         "5: stages.two.data[0].stage: stage one (sft) gives an adapter that writes text, not rows "
         "(no stage above does)"),
        (f"  one: {{{SFT}, held_out: {{data: [{{stage: two}}]}}}}\n  two: {{{SFT}}}\n",
         "4: stages.one.held_out.data[0].stage: stage 'two' stands below; a stage reads only stages above it "
         "(move it up)"),
    ],
)  # fmt: skip
def test_a_stage_reads_only_stages_above(write: Write, stages: str, message: str) -> None:
    assert told(write(STAGES + stages)) == [message]


def test_a_stage_comes_before_a_folder_of_its_name(write: Write) -> None:
    path = write(
        STAGES + "  one: {kind: reward, data: [{path: rows.jsonl}]}\n" + f"  two: {{{SFT}, start_from: one}}\n"
    )
    (path.parent / "one").mkdir()
    [message] = told(path)
    assert "stage one (reward) gives a reward model" in message
    other = write(STAGES + f"  two: {{{SFT}, start_from: ./one}}\n")
    assert load_recipe(other).recipe.stages["two"].start_from == "./one"


def test_references_are_told_together_with_the_schema(write: Write) -> None:
    messages = told(write(STAGES + f"  one: {{{SFT}, start_from: gone, too_lng: drop}}\n"))
    assert len(messages) == 2 and {"too_lng" in messages[0], "too_lng" in messages[1]} == {True, False}


def test_files_that_are_no_recipe(write: Write, tmp_path: Path) -> None:
    path = write("")
    assert told(path)[0].startswith("the file is empty; a recipe needs name, model and stages (`finetune init`")
    assert told(write("# only a comment\n"))[0].startswith("the file is empty")
    assert told(write("- 1\n")) == ["1: expected a section with name, model and stages; found a list of 1"]
    assert told(write("name:chat\n")) == [
        "1: expected a section with name, model and stages; found text 'name:chat' (put a space after each ':')"
    ]
    assert told(write("name: chat\nstages:\n\tsft:\n")) == ["3: not valid YAML: a tab cannot indent YAML (use spaces)"]
    assert told(tmp_path / "recipes.yaml") == [f"no such file (did you mean '{path}'?)"]
    assert told(tmp_path / "data")[0].startswith("no such file")
    assert told(tmp_path) == [f"this is a folder; give the recipe file (it holds {path})"]
    path.write_bytes(b"name: x\nbase: \xff\n")
    assert told(path) == ["2: not UTF-8 text"]
    path.write_bytes(b"x" * (5 * 2**20))
    assert told(path) == ["5 MiB are too much for a recipe; is this a data file?"]


def test_a_byte_order_mark_is_no_part_of_the_recipe(write: Write) -> None:
    path = write(GOOD)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert load_recipe(path).recipe.name == "chat"


@pytest.mark.parametrize(
    ("override", "get", "value"),
    [
        ("stages.sft.train.epochs=1", lambda r: r.stages["sft"].train.epochs, 1.0),
        ("stages.sft.train.learning_rate=1e-5", lambda r: r.stages["sft"].train.learning_rate, 1e-5),
        ("adapter.targets=[q_proj, v_proj]", lambda r: r.adapter.targets, ["q_proj", "v_proj"]),
        ("adapter={rank: 4}", lambda r: r.adapter.rank, 4),
        ("adapter.rank = 8", lambda r: r.adapter.rank, 8),
        ("track.wandb.project=chat", lambda r: r.track.wandb.project, "chat"),
        ("model.revision=null", lambda r: r.model.revision, None),
        ("model.revision='1.0'", lambda r: r.model.revision, "1.0"),
        ("model.system=Answer: briefly # please", lambda r: r.model.system, "Answer: briefly # please"),
        ("model.system=a=b", lambda r: r.model.system, "a=b"),
        ("stages.sft.data[0].take=5", lambda r: r.stages["sft"].data[0].take, 5),
        ("stages.sft.data.0.take=5", lambda r: r.stages["sft"].data[0].take, 5),
        ("stages.two={kind: sft, data: [{path: a.jsonl}]}", lambda r: list(r.stages), ["sft", "two"]),
    ],
)
def test_set_changes_one_value(write: Write, override: str, get: Callable[[Any], Any], value: object) -> None:
    loaded = load_recipe(write(GOOD), [override])
    assert get(loaded.recipe) == value
    assert loaded.overrides == (override,)


def test_set_reaches_stage_names_with_dots_and_the_last_one_counts(write: Write) -> None:
    path = write(GOOD.replace("  sft:", "  sft.v2:"))
    loaded = load_recipe(path, ["stages.sft.v2.train.epochs=1", "stages.sft.v2.train.epochs=3"])
    assert loaded.recipe.stages["sft.v2"].train.epochs == 3.0


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stages.sft.train.epochs=abc", "stages.sft.train.epochs: expected a number above 0; found text 'abc' "
         "(given by --set stages.sft.train.epochs=abc)"),
        ("stages.sft.train.epoch=1", "stages.sft.train.epoch: unknown key (given by --set stages.sft.train.epoch=1; "
         "did you mean 'epochs'?)"),
        ("stages.sft.trian.epochs=1", "stages.sft.trian: unknown key (given by --set stages.sft.trian.epochs=1; "
         "did you mean 'train'?)"),
        ("stages.stf.train.epochs=1", "--set stages.stf.train.epochs=1: there is no stage 'stf' (did you mean 'sft'?)"),
        ("seed", "--set seed: expected key.path=value, such as stages.sft.train.epochs=1"),
        ("=1", "--set =1: expected key.path=value, such as stages.sft.train.epochs=1"),
        ("name.x=1", "--set name.x=1: name is text 'chat', not a section"),
        ("stages.sft.data[7].take=1", "--set stages.sft.data[7].take=1: stages.sft.data is a list with entries 0 to 0; "
         "'7' is none of them"),
        ("adapter.targets=[a", "--set adapter.targets=[a: not valid YAML: a '[' or '{' is not closed, or a "
         "comma is missing"),
        ("model=", "model: expected a section; found nothing (null) (given by --set model=; "
         "indent its entries under it, or remove the key)"),
    ],
)  # fmt: skip
def test_a_wrong_set_is_named(write: Write, override: str, message: str) -> None:
    assert told(write(GOOD), override) == [message]


def test_a_set_repairs_what_the_file_has_wrong(write: Write) -> None:
    path = write(GOOD.replace("2e-4", "fast"))
    assert told(path) == ["10: stages.sft.train.learning_rate: expected auto or a number above 0; found text 'fast'"]
    assert load_recipe(path, ["stages.sft.train.learning_rate=1e-3"]).recipe.stages["sft"].train.learning_rate == 1e-3


def data(**sft: Any) -> dict[str, Any]:
    stage = {"kind": "sft", "data": [{"path": "rows.jsonl"}], **sft}
    return {"name": "chat", "model": {"base": "org/model"}, "stages": {"sft": stage}}


def test_a_dict_is_a_recipe_too_and_is_left_alone(tmp_path: Path) -> None:
    given = data(data=({"path": tmp_path / "rows.jsonl"},), train={"betas": (0.9, 0.95)})
    loaded = recipe_from_dict(given, folder=tmp_path, overrides=["seed=3"])
    assert loaded.recipe.seed == 3 and "seed" not in given
    assert loaded.path is None and loaded.locate("a/b") == tmp_path / "a/b"
    assert loaded.locate("~/a") == Path.home() / "a"
    with pytest.raises(RecipeError, match=r"^recipe: stages\.sft\.lodd_on: unknown key \(did you mean 'loss_on'\?\)$"):
        recipe_from_dict(data(lodd_on="all"))


_values = st.sampled_from([None, True, -1, 0, 3, 0.5, "", "abc", "2e-4", [], [3], ["a", None], {}, {"a": 1}])


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 10**6), _values), min_size=1, max_size=3))
def test_whatever_is_wrong_is_told_in_plain_words(changes: list[tuple[int, Any]]) -> None:
    """Any value anywhere: the recipe loads, or the message has none of pydantic's words and no key path twice."""
    complete = recipe_from_dict(data(train={}, held_out={}), folder=Path("/")).recipe.model_dump(mode="json")
    complete["track"]["wandb"] = {"project": "p"}
    for number, value in changes:
        places = list(_places(complete))
        if places:
            holder, key = places[number % len(places)]
            holder[key] = copy.deepcopy(value)  # the sampled lists and dicts are shared
    try:
        recipe_from_dict(complete, folder=Path("/"))
    except RecipeError as error:
        assert not re.search(
            r"Input should|Extra inputs|Field required|valid (string|dict|int)|Value error", str(error)
        )
        assert all(problem.message for problem in error.problems)
        paths = [problem.key_path for problem in error.problems]
        assert len(set(paths)) == len(paths)


def _places(value: Any) -> Any:
    keys = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(keys):
        yield value, key
        yield from _places(inner)


@given(st.text(max_size=30), st.integers(0, len(GOOD)), st.integers(0, 20))
def test_a_damaged_file_loads_or_ends_in_a_recipe_error(
    tmp_path_factory: pytest.TempPathFactory, junk: str, at: int, cut: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.yaml"
    path.write_bytes((GOOD[:at] + junk + GOOD[at + cut :]).encode("utf-8", "surrogatepass"))
    try:
        load_recipe(path)
    except RecipeError as error:
        assert all(problem.message for problem in error.problems)


@pytest.mark.parametrize(
    "theirs",
    [
        "base_model: meta-llama/Llama-3.2-1B\nnum_epochs: 1\n",
        "model_name_or_path: meta-llama/Llama-3.2-1B\nstage: sft\n",
        "model:\n  _component_: torchtune.models.llama3_2.lora_llama3_2_1b\n",
    ],
)
def test_another_tools_configuration_is_one_message(tmp_path: Path, theirs: str) -> None:
    path = tmp_path / "theirs.yaml"
    path.write_text(theirs, encoding="utf-8")
    with pytest.raises(RecipeError, match="finetune import") as caught:
        load_recipe(path)
    assert len(caught.value.problems) == 1
