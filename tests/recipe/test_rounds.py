"""Groups of stages written out round by round, against flat recipes written by hand."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.errors import RecipeError
from finetune.recipe.checks import check_files
from finetune.recipe.load import load_recipe, recipe_from_dict
from finetune.recipe.positions import read_yaml

Write = Callable[[str], Path]

HEAD = "name: x\nmodel: {base: org/model}\nstages:\n"


def flat(text: str, *overrides: str) -> dict[str, Any]:
    """The stages of a recipe, groups written out, as they would have been written by hand."""
    loaded = recipe_from_dict(read_yaml(HEAD + text).value, overrides=overrides)
    stages = loaded.recipe.model_dump(mode="json", exclude_unset=True)["stages"]
    for stage in stages.values():
        stage.pop("train", None)
    return stages


def by_hand(text: str) -> dict[str, Any]:
    """A recipe without groups, in the same form."""
    assert "repeat" not in text
    return flat(text)


def same(text: str, expected: str, *overrides: str) -> None:
    found, wanted = flat(text, *overrides), by_hand(expected)
    assert list(found) == list(wanted), "the same stages in the same order"
    assert found == wanted


LLAMA2 = """\
  sft: {kind: sft, data: [{path: demos.jsonl}]}
  rlhf:
    repeat: 3
    stages:
      helpful: {kind: reward, start_from: {first: sft, then: ppo}, data: [{path: {round: [a, b, c]}, rounds: all}]}
      best:
        kind: reject
        policy: {first: sft, then: ppo}
        reward: helpful
        prompts: [{path: {round: [p1, p2, p3]}}]
        temperature: {round: [1.0, 1.2, 1.3]}
        earlier: all
      sft2: {kind: sft, data: [{path: demos.jsonl}, {stage: best}]}
      ppo: {kind: ppo, start_from: sft2, reward: helpful, prompts: [{path: p}]}
  last: {kind: dpo, start_from: ppo, data: [{path: pairs.jsonl}]}
"""


def test_llama_2() -> None:
    """Fine-tuning restarts from the base in each round; rewards and samples come from the round before's policy."""
    same(
        LLAMA2,
        """\
  sft: {kind: sft, data: [{path: demos.jsonl}]}
  helpful.1: {kind: reward, start_from: sft, data: [{path: a}]}
  best.1: {kind: reject, policy: sft, reward: helpful.1, prompts: [{path: p1}], temperature: 1.0, earlier: []}
  sft2.1: {kind: sft, data: [{path: demos.jsonl}, {stage: best.1}]}
  ppo.1: {kind: ppo, start_from: sft2.1, reward: helpful.1, prompts: [{path: p}]}
  helpful.2: {kind: reward, start_from: ppo.1, data: [{path: a}, {path: b}]}
  best.2: {kind: reject, policy: ppo.1, reward: helpful.2, prompts: [{path: p2}], temperature: 1.2, earlier: [best.1]}
  sft2.2: {kind: sft, data: [{path: demos.jsonl}, {stage: best.2}]}
  ppo.2: {kind: ppo, start_from: sft2.2, reward: helpful.2, prompts: [{path: p}]}
  helpful.3: {kind: reward, start_from: ppo.2, data: [{path: a}, {path: b}, {path: c}]}
  best.3:
    kind: reject
    policy: ppo.2
    reward: helpful.3
    prompts: [{path: p3}]
    temperature: 1.3
    earlier: [best.1, best.2]
  sft2.3: {kind: sft, data: [{path: demos.jsonl}, {stage: best.3}]}
  ppo.3: {kind: ppo, start_from: sft2.3, reward: helpful.3, prompts: [{path: p}]}
  last: {kind: dpo, start_from: ppo.3, data: [{path: pairs.jsonl}]}
""",
    )


def test_llama_3() -> None:
    """Every round goes on from the round before's average; a stage of two seeds of data is averaged in each."""
    same(
        """\
  llama3:
    repeat: 2
    stages:
      judge: {kind: reward, data: [{path: {round: [a, b]}, rounds: all}]}
      best: {kind: reject, policy: {first: null, then: mean}, reward: judge, prompts: [{path: p}]}
      sft: {kind: sft, start_from: {first: null, then: mean}, data: [{stage: best, take: 9, weight: 0.5, rounds: all}]}
      one: {kind: dpo, start_from: sft, data: [{path: {round: [a, b]}}]}
      two: {kind: dpo, start_from: sft, beta: 0.2, data: [{path: {round: [a, b]}}]}
      mean: {kind: average, of: [one, two], weights: {round: [[1, 1], [2, 1]]}}
""",
        """\
  judge.1: {kind: reward, data: [{path: a}]}
  best.1: {kind: reject, policy: null, reward: judge.1, prompts: [{path: p}]}
  sft.1: {kind: sft, start_from: null, data: [{stage: best.1, take: 9, weight: 0.5}]}
  one.1: {kind: dpo, start_from: sft.1, data: [{path: a}]}
  two.1: {kind: dpo, start_from: sft.1, beta: 0.2, data: [{path: a}]}
  mean.1: {kind: average, of: [one.1, two.1], weights: [1, 1]}
  judge.2: {kind: reward, data: [{path: a}, {path: b}]}
  best.2: {kind: reject, policy: mean.1, reward: judge.2, prompts: [{path: p}]}
  sft.2:
    kind: sft
    start_from: mean.1
    data: [{stage: best.1, take: 9, weight: 0.5}, {stage: best.2, take: 9, weight: 0.5}]
  one.2: {kind: dpo, start_from: sft.2, data: [{path: b}]}
  two.2: {kind: dpo, start_from: sft.2, beta: 0.2, data: [{path: b}]}
  mean.2: {kind: average, of: [one.2, two.2], weights: [2, 1]}
""",
    )


SFT = "  sft: {kind: sft, data: [{path: d}]}\n"
JUDGE = "checker: {kind: finished}, prompts: [{path: p}]"
BEST = f"      best: {{kind: reject, policy: {{first: sft, then: more}}, {JUDGE}}}\n"
MORE = "      more: {kind: sft, data: [{path: d}, {stage: best}]}\n"


def group(*stages: str, repeat: object = 2) -> str:
    return f"{SFT}  loop:\n    repeat: {repeat}\n    stages:\n{''.join(stages)}"


@pytest.mark.parametrize(
    ("entry", "first", "second"),
    [
        ("{stage: best}", "{stage: best.1}", "{stage: best.2}"),
        ("{stage: best, rounds: all}", "{stage: best.1}", "{stage: best.1}, {stage: best.2}"),
        ("{stage: best, rounds: earlier}", "", "{stage: best.1}"),
        ("{stage: after, rounds: all}", "", "{stage: after.1}"),
        ("{stage: after, rounds: earlier}", "", "{stage: after.1}"),
        ("{stage: {first: null, then: after}}", "", "{stage: after.1}"),
        ("{stage: {first: seed, then: after}}", "{stage: seed}", "{stage: after.1}"),
        ("{path: {round: [a, b]}, rounds: all}", "{path: a}", "{path: a}, {path: b}"),
        ("{path: {round: [a, b]}, rounds: earlier}", "", "{path: a}"),
        ("{round: [{path: a}, {stage: best}]}", "{path: a}", "{stage: best.2}"),
        ("{stage: best, take: {round: [3, 5]}, rounds: all}", "{stage: best.1, take: 3}",
         "{stage: best.1, take: 3}, {stage: best.2, take: 5}"),
        ("{stage: {round: [best, seed]}}", "{stage: best.1}", "{stage: seed}"),
        ("{stage: seed, take: {round: [3, 5]}}", "{stage: seed, take: 3}", "{stage: seed, take: 5}"),
        ("{stage: best.1}", "{stage: best.1}", "{stage: best.1}"),
        ("{path: x}", "{path: x}", "{path: x}"),
    ],
)  # fmt: skip
def test_entries_of_a_row_list(entry: str, first: str, second: str) -> None:
    text = (
        f"  seed: {{kind: reject, {JUDGE}}}\n  loop:\n    repeat: 2\n    stages:\n"
        f"      best: {{kind: reject, policy: {{first: null, then: sft}}, {JUDGE}}}\n"
        f"      sft: {{kind: sft, start_from: {{first: null, then: sft}}, data: [{entry}, {{path: d}}]}}\n"
        f"      after: {{kind: reject, policy: sft, {JUDGE}}}\n"
    )
    stages = flat(text)
    for number, entries in ((1, first), (2, second)):
        wanted = read_yaml(f"[{entries}{', ' if entries else ''}{{path: d}}]").value
        assert stages[f"sft.{number}"]["data"] == wanted


def test_prompts_and_held_out_data_too() -> None:
    stages = flat(
        group(
            BEST.replace("{path: p}", "{path: p}, {stage: more2, rounds: earlier}"),
            MORE.replace("data", "held_out: {data: [{stage: best, rounds: earlier}]}, data"),
            f"      more2: {{kind: reject, policy: more, {JUDGE}}}\n",
        )
    )
    assert stages["best.1"]["prompts"] == [{"path": "p"}]
    assert stages["best.2"]["prompts"] == [{"path": "p"}, {"stage": "more2.1"}]
    assert stages["more.1"]["held_out"] == {"data": []}, "no row of earlier rounds yet"
    assert stages["more.2"]["held_out"] == {"data": [{"stage": "best.1"}]}


def test_from_below_and_from_another_group() -> None:
    stages = flat(
        group(BEST, MORE)
        + "  last: {kind: sft, start_from: more, data: [{stage: best}, {stage: best, rounds: all}, {stage: best.1}]}\n"
        + "  again:\n    repeat: 1\n    stages:\n"
        + "      end: {kind: dpo, start_from: more, data: [{stage: best, rounds: all}]}\n"
    )
    assert list(stages) == ["sft", "best.1", "more.1", "best.2", "more.2", "last", "end.1"]
    assert stages["last"]["start_from"] == stages["end.1"]["start_from"] == "more.2"
    names = [entry["stage"] for entry in stages["last"]["data"]]
    assert names == ["best.2", "best.1", "best.2", "best.1"]
    assert [entry["stage"] for entry in stages["end.1"]["data"]] == ["best.1", "best.2"]


def test_one_round() -> None:
    stages = flat(group(BEST, MORE, repeat=1))
    assert list(stages) == ["sft", "best.1", "more.1"]
    assert stages["best.1"]["policy"] == "sft" and stages["more.1"]["data"][1] == {"stage": "best.1"}


def test_nested_references_and_lists_of_names() -> None:
    stages = flat(
        group(
            "      a: {kind: reward, start_from: {first: sft, then: tuned}, data: [{path: d}]}\n",
            "      b: {kind: reward, start_from: {first: null, then: tuned}, data: [{path: d}]}\n",
            "      tuned: {kind: ppo, start_from: sft, reward: a, safety: {reward: b, threshold: {round: [0.1, 0.2]}}, "
            "prompts: [{path: p}]}\n",
            "      mean: {kind: average, of: [tuned, {first: sft, then: mean}]}\n",
        )
    )
    assert stages["tuned.2"]["safety"] == {"reward": "b.2", "threshold": 0.2}
    assert [stages[f"mean.{n}"]["of"] for n in (1, 2)] == [["tuned.1", "sft"], ["tuned.2", "mean.1"]]


def test_a_recipe_without_groups_is_left_as_it_is(write: Write) -> None:
    loaded = load_recipe(write(HEAD + SFT + "  more: {kind: sft, start_from: sft, data: [{path: d}]}\n"))
    assert loaded.source.origins == {}


def test_set_reaches_into_groups() -> None:
    stages = flat(
        group(BEST, MORE),
        "stages.loop.repeat=3",
        "stages.loop.stages.best.samples=4",
        "stages.loop.stages.best.policy.first=null",
        "stages.loop.stages.more.data[0].take=7",
        "stages.loop.stages.best.temperature={round: [1, 2, 3]}",
    )
    assert [name for name in stages if name.startswith("more")] == ["more.1", "more.2", "more.3"]
    assert [stages[f"best.{n}"]["temperature"] for n in (1, 2, 3)] == [1, 2, 3]
    assert all(stages[f"best.{n}"]["samples"] == 4 for n in (1, 2, 3))
    assert stages["best.1"]["policy"] is None and stages["best.2"]["policy"] == "more.1"
    assert stages["more.2"]["data"][0] == {"path": "d", "take": 7}


def test_the_flat_recipe_is_a_recipe() -> None:
    loaded = recipe_from_dict(read_yaml(HEAD + LLAMA2).value)
    again = recipe_from_dict(loaded.recipe.model_dump(mode="json", exclude_unset=True))
    assert again.recipe == loaded.recipe


def told(text: str, write: Write, *overrides: str) -> list[str]:
    path = write(HEAD + text)
    with pytest.raises(RecipeError) as raised:
        loaded = load_recipe(path, overrides)
        raise RecipeError(check_files(loaded.recipe, loaded.folder, loaded.source), str(path))
    return [line.removeprefix(f"{path}:").strip() for line in str(raised.value).splitlines()]


HEAD_OF = (
    "a stage reads only stages above it (of the round before it is {first: a stage above the group or null, then: "
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (group(BEST.replace("{first: sft, then: more}", "more"), MORE),
         f"8: stages.loop.stages.best.policy: stage 'more' stands below in the round; {HEAD_OF}more}})"),
        (group(BEST.replace("{first: sft, then: more}", "{first: more, then: more}"), MORE),
         f"8: stages.loop.stages.best.policy.first: stage 'more' stands below in the round; {HEAD_OF}more}})"),
        (group(BEST, MORE.replace("sft,", "sft, start_from: more,")),
         f"9: stages.loop.stages.more.start_from: stage 'more' is this stage itself; {HEAD_OF}more}})"),
        (group(BEST, MORE.replace("stage: best", "stage: more")),
         f"9: stages.loop.stages.more.data[1].stage: stage 'more' is this stage itself; {HEAD_OF}more}})"),
        (group(BEST.replace("then: more", "then: moer"), MORE),
         "8: stages.loop.stages.best.policy.then: 'moer' is no stage of group loop: then names one of the round before "
         "(did you mean 'more'?)"),
        (group(BEST.replace("then: more", "then: sft"), MORE),
         "8: stages.loop.stages.best.policy.then: 'sft' is no stage of group loop: then names one of the round before "
         "(the stages are: best, more)"),
        (group(BEST.replace(", then: more", ""), MORE),
         "8: stages.loop.stages.best.policy: expected {first: name, then: name}; found a section with first "
         "(first: a stage above the group, or null; then: a stage of the group, of the round before)"),
        (group(BEST.replace("first: sft", "first: stf"), MORE),
         "8: stages.loop.stages.best.policy.first: 'stf' is neither a stage above nor an adapter folder "
         "(did you mean 'sft'?)"),
        (group(BEST.replace("then: more", "then: best"), MORE),
         "8: stages.loop.stages.best.policy.then: stage best (reject) gives a reject stage's samples, not an adapter "
         "that writes text (above, these do: sft, more)"),
        (group(BEST, MORE).replace("repeat: 2", "repeat: 0"),
         "6: stages.loop.repeat: expected a whole number of at least 1 and at most 100; found 0"),
        (group(BEST, MORE).replace("repeat: 2", "repeat: true"),
         "6: stages.loop.repeat: expected a whole number of at least 1 and at most 100; found true"),
        (group(BEST, MORE).replace("repeat: 2", "repeat: 1000000"),
         "6: stages.loop.repeat: expected a whole number of at least 1 and at most 100; found 1000000"),
        (group(BEST, MORE).replace("    repeat: 2\n", ""),
         "5: stages.loop.repeat: missing key: group loop, which begins here, needs it (how many rounds)"),
        (group(BEST, MORE).replace("repeat: 2", "repeat: 2\n    rounds: 2"),
         "7: stages.loop.rounds: unknown key (a group of stages knows: repeat, stages)"),
        (SFT + "  loop: {repeat: 2}\n",
         "5: stages.loop.stages: expected a section with the group's stages; found nothing (null)"),
        (SFT + "  loop: {repeat: 2, stages: {}}\n",
         "5: stages.loop.stages: expected a section with the group's stages; found an empty section"),
        (group("      in: {repeat: 2, stages: {}}\n"),
         "8: stages.loop.stages.in: a group cannot stand in a group: write one after the other"),
        (group(BEST.replace("best:", "sft:").replace("more", "sft")),
         "8: stages.loop.stages.sft: there is another 'sft' (line 4): names are unique over the whole recipe, those of "
         "rounds (name.1) and groups too"),
        (group(MORE.replace("more:", "loop:").replace(", {stage: best}", "")),
         "8: stages.loop.stages.loop: there is another 'loop' (line 5): names are unique over the whole recipe, those "
         "of rounds (name.1) and groups too"),
        (f"  best.2: {{kind: reject, {JUDGE}}}\n" + group(BEST, MORE),
         "9: stages.loop.stages.best: there is another 'best.2' (line 4): names are unique over the whole recipe, "
         "those of rounds (name.1) and groups too"),
        (group(BEST, MORE) + "  b:\n    repeat: 1\n    stages:\n      more: {kind: sft, data: [{path: d}]}\n",
         "13: stages.b.stages.more: there is another 'more' (line 9): names are unique over the whole recipe, those of "
         "rounds (name.1) and groups too"),
        (group(BEST.replace("{first: sft, then: more}", "sft"), MORE),
         "8: stages.loop.stages.best: does the same in rounds 1 and 2: nothing that it reads differs "
         "(put it above the group, or let it read the round before: {first: …, then: …})"),
        (group(BEST, MORE.replace("{path: d}, {stage: best}", "{stage: best, rounds: earlier}")),
         "9: stages.loop.stages.more.data: nothing is left in round 1: no earlier round is there yet "
         "(add a source that the first round has, such as a file)"),
        (group(BEST.replace("kind: reject", "kind: reject, samples: {round: [3]}"), MORE),
         "8: stages.loop.stages.best.samples: {round: …} needs a value for each of the 2 rounds of group loop; found a "
         "list of 1"),
        (group(BEST.replace("kind: reject", "kind: reject, samples: {round: []}"), MORE),
         "8: stages.loop.stages.best.samples: {round: …} needs a value for each of the 2 rounds of group loop; "
         "found an empty list"),
        (group(BEST.replace("kind: reject", "kind: reject, samples: {round: 3}"), MORE),
         "8: stages.loop.stages.best.samples: expected a whole number of at least 1; found a section with round "
         "(in a group of stages a value by round is {round: [v1, v2, …]}; docs/rounds.md)"),
        (group(BEST.replace("kind: reject", "kind: reject, samples: {round: [3, many]}"), MORE),
         "8: stages.loop.stages.best.samples.round[1]: expected a whole number of at least 1; found text 'many'"),
        (group(BEST.replace("kind: reject", "kind: reject, samples: {first: 3, then: 4}"), MORE),
         "8: stages.loop.stages.best.samples: expected a whole number of at least 1; found a section with first, then "
         "(in a group of stages a value by round is {round: [v1, v2, …]}; docs/rounds.md)"),
        (group(BEST, MORE.replace("stage: best", "stage: best, rounds: 2")),
         "9: stages.loop.stages.more.data[1].rounds: expected one of all, earlier; found 2"),
        (group(BEST, MORE.replace("stage: best", "stage: sft, rounds: all")),
         "9: stages.loop.stages.more.data[1].rounds: rounds belongs to a stage of a group; 'sft' is in no group "
         "(remove rounds)"),
        (group(BEST, MORE.replace("path: d", "path: d, rounds: all")),
         "9: stages.loop.stages.more.data[0].rounds: rounds belongs to an entry that differs by round "
         "(give stage: a stage of a group, or in a group path: {round: [a.jsonl, …]})"),
        (group(BEST, MORE) + "  last: {kind: sft, data: [{stage: best, rounds: earlier}, {path: d}]}\n",
         "10: stages.last.data[0].rounds: earlier is for the stages of group loop itself (write all, or remove "
         "rounds)"),
        (SFT + f"  best: {{kind: reject, policy: {{first: null, then: sft}}, {JUDGE}}}\n",
         "5: stages.best.policy: {first, then} belongs to a stage in a group, which has rounds"),
        (SFT + f"  best: {{kind: reject, samples: {{round: [1, 2]}}, {JUDGE}}}\n",
         "5: stages.best.samples: a value by round belongs to a stage in a group, which has rounds"),
        (SFT + f"  best: {{kind: reject, earlier: all, {JUDGE}}}\n",
         "5: stages.best.earlier: all means this stage's earlier rounds, and it is in no group (name the reject "
         "stages: [best])"),
        (SFT + "  more: {kind: sft, repeat: 2, data: [{path: d}]}\n",
         "5: stages.more.repeat: unknown key (rounds are for groups of stages; docs/rounds.md)"),
        ("  one: {kind: sft, start_from: more, data: [{path: d}]}\n" + group(BEST, MORE),
         "4: stages.one.start_from: stage 'more' stands below; a stage reads only stages above it (move it up)"),
        (group(BEST, MORE) + "  last: {kind: sft, start_from: moer, data: [{path: d}]}\n",
         "10: stages.last.start_from: 'moer' is neither a stage above nor an adapter folder (did you mean 'more'?)"),
        (group(BEST, MORE) + "  last: {kind: sft, start_from: zzz, data: [{path: d}]}\n",
         "10: stages.last.start_from: 'zzz' is neither a stage above nor an adapter folder "
         "(above are: sft, best, more)"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_once_where_it_was_written(write: Write, text: str, message: str) -> None:
    assert told(text, write) == [message]


def test_errors_of_the_schema_keep_the_users_keys(write: Write) -> None:
    text = group(
        BEST.replace("kind: reject", "kind: reject, sampels: 3"),
        MORE.replace("sft,", "sft, rank: 8, train: {learning_rat: 1, held_out: {}},").replace("data", "dta"),
        "      bad: {kind: bset}\n",
    )
    assert told(text, write) == [
        "8: stages.loop.stages.best.sampels: unknown key (did you mean 'samples'?)",
        "9: stages.loop.stages.more.data: missing key: section stages.loop.stages.more, which begins here, needs it "
        "(a list of at least one entry, each a section) (is 'dta' meant to be 'data'?)",
        "9: stages.loop.stages.more.train.learning_rat: unknown key (did you mean 'learning_rate'?)",
        "9: stages.loop.stages.more.train.held_out: unknown key ('held_out' belongs to stages.loop.stages.more)",
        "9: stages.loop.stages.more.rank: unknown key ('rank' belongs to adapter)",
        "9: stages.loop.stages.more.dta: unknown key (did you mean 'data'?)",
        "10: stages.loop.stages.bad.kind: unknown kind 'bset'; this version knows: sft, reward, dpo, reject, ppo, "
        "grpo, rloo, average",
    ]


def test_entries_keep_their_place_where_others_vanish_or_multiply(write: Write) -> None:
    data = "[{stage: best, rounds: earlier}, {path: [x]}, {stage: best, rounds: all}, {path: y, take: {round: [1, 0]}}]"
    text = group(BEST, f"      more: {{kind: sft, data: {data}}}\n")
    assert told(text, write) == [
        "9: stages.loop.stages.more.data[1].path: expected text or null; found a list of 1",
        "9: stages.loop.stages.more.data[3].take.round[1]: expected a whole number of at least 1 or null; found 0",
    ]


def test_files_are_told_once(write: Write) -> None:
    text = group(BEST.replace("path: p", "path: {round: [p1, rows.jsonl]}"), MORE)
    folder = write(HEAD).parent
    assert told(text, write) == [
        f"4: stages.sft.data[0].path: no such file or folder: {folder}/d",
        f"8: stages.loop.stages.best.prompts[0].path.round[0]: no such file or folder: {folder}/p1",
        f"9: stages.loop.stages.more.data[0].path: no such file or folder: {folder}/d",
    ]


def test_the_first_round_can_go_on_from_an_adapter_folder(write: Write) -> None:
    text = group(BEST.replace("path: p", "path: rows.jsonl").replace("first: sft", "first: ./gone"), MORE)
    path = write(HEAD + text.replace("path: d", "path: rows.jsonl"))
    loaded = load_recipe(path)
    assert [loaded.recipe.stages[f"best.{number}"].policy for number in (1, 2)] == ["./gone", "more.1"]
    [problem] = check_files(loaded.recipe, loaded.folder, loaded.source)
    assert (problem.key_path, problem.line) == ("stages.loop.stages.best.policy.first", 8)
    assert problem.message == f"no such adapter folder: {path.parent}/gone"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stages.loop.repeat=x", "stages.loop.repeat: expected a whole number of at least 1 and at most 100; found "
         "text 'x' (given by --set stages.loop.repeat=x)"),
        ("stages.best.samples=4", "--set stages.best.samples=4: there is no stage 'best' (it is in group loop: "
         "stages.loop.stages.best)"),
        ("stages.loop.stages.bst.samples=4", "--set stages.loop.stages.bst.samples=4: there is no stage 'bst' "
         "(did you mean 'best'?)"),
        ("stages.loop.stages.best.samples=0", "stages.loop.stages.best.samples: expected a whole number of at least 1; "
         "found 0 (given by --set stages.loop.stages.best.samples=0)"),
    ],
)  # fmt: skip
def test_a_wrong_set_into_a_group_is_named(write: Write, override: str, message: str) -> None:
    assert told(group(BEST, MORE), write, override) == [message]


_names = st.sampled_from(["sft", "best", "more", "best.1", "loop", "", "gone"])
_references = _names | st.fixed_dictionaries({"first": st.none() | _names, "then": _names}) | st.none() | st.just([3])
_entries = st.fixed_dictionaries(
    {},
    optional={
        "stage": _references,
        "path": st.sampled_from(["d", {"round": ["a", "b"]}, {"round": ["a"]}]),
        "rounds": st.sampled_from(["all", "earlier", 3]),
        "round": st.sampled_from([[{"path": "a"}, {"stage": "best"}], []]),
    },
) | st.sampled_from([None, 3, {"round": [{"path": "a"}, None]}])


@settings(deadline=None)
@given(
    st.sampled_from([1, 2, 3, None]), _references, st.lists(_entries, max_size=3), st.sampled_from(["all", ["x"], 3])
)
def test_whatever_is_written_ends_in_a_recipe_or_in_plain_words(
    repeat: object, policy: object, data: object, earlier: object
) -> None:
    best = {"kind": "reject", "policy": policy, "checker": {"kind": "json"}, "prompts": data, "earlier": earlier}
    loop = {"repeat": repeat, "stages": {"best": best, "more": {"kind": "sft", "start_from": policy, "data": data}}}
    stages = {"sft": {"kind": "sft", "data": [{"path": "d"}]}, "loop": loop}
    try:
        loaded = recipe_from_dict({"name": "x", "model": {"base": "org/model"}, "stages": stages}, Path("/"))
    except RecipeError as error:
        assert not re.search(r"Input should|Extra inputs|Field required|valid (string|dict|int)", str(error))
        assert not re.search(r"(best|more)\.[23]", str(error)), "the user wrote no round's number"
        assert all(problem.key_path.partition("[")[0] for problem in error.problems)
    else:
        assert next(iter(loaded.recipe.stages)) == "sft" and "loop" not in loaded.recipe.stages


_values = st.sampled_from(
    [None, True, -1, 0, 3, 0.5, "", "abc", "all", [], [3], ["a", None], {}, {"a": 1}, {"round": [1, None]},
     {"round": 3}, {"first": "sft", "then": "ppo"}, {"kind": "sft"}, "sft", "ppo", "best.2", [["sft"], {"kind": []}]]
)  # fmt: skip
_WHOLE = read_yaml(
    HEAD
    + """\
  sft: {kind: sft, data: [{path: d}], held_out: {fraction: 0.1, data: []}, train: {epochs: 1, betas: [0.9, 0.95]}}
  rlhf:
    repeat: 2
    stages:
      a: {kind: reward, start_from: {first: sft, then: mean}, data: [{path: {round: [a, b]}, rounds: all}]}
      b: {kind: reward, start_from: {first: sft, then: ppo}, data: [{path: d}], slices: [x]}
      best:
        kind: reject
        policy: {first: sft, then: ppo}
        checker: {kind: regex, pattern: x, ignore_case: true}
        prompts: [{path: p}]
        earlier: all
        temperature_search: {candidates: {round: [[1, 2], [2, 3]]}, prompts: 3}
      ppo:
        kind: ppo
        start_from: {first: sft, then: mean}
        reward: a
        safety: {reward: b, threshold: 0.2}
        prompts: [{stage: best, rounds: all}]
        train: {epochs: 1}
      grpo: {kind: grpo, start_from: ppo, checker: {kind: json, keys: [x]}, prompts: [{path: p}], train: {epochs: 1}}
      two: {kind: dpo, start_from: grpo, data: [{stage: best, rounds: earlier}, {path: d}], loss: kto}
      mean: {kind: average, of: [ppo, {first: sft, then: mean}], weights: [1, 2]}
  judges: {kind: average, of: [a, b.1]}
  last: {kind: reject, policy: mean, reward: judges, prompts: [{path: p}]}
"""
).value


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(st.integers(0, 10**6), _values), min_size=1, max_size=3))
def test_whatever_is_wrong_anywhere_is_told_in_plain_words(changes: list[tuple[int, Any]]) -> None:
    data = copy.deepcopy(_WHOLE)
    for number, value in changes:
        places = list(_places(data["stages"]))
        holder, key = places[number % len(places)]
        holder[key] = copy.deepcopy(value)
    try:
        recipe_from_dict(data, Path("/"))
    except RecipeError as error:
        assert not re.search(
            r"Input should|Extra inputs|Field required|[Vv]alid (string|dict|int|tuple)|Value error|NoneType",
            str(error),
        )
        told = [(problem.key_path, problem.message) for problem in error.problems]
        assert len(set(told)) == len(told) and all(message for _, message in told)


def test_the_whole_recipe_of_the_test_above_is_right() -> None:
    assert len(recipe_from_dict(_WHOLE, Path("/")).recipe.stages) == 17


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    keys = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(keys):
        yield value, key
        yield from _places(inner)


def test_the_examples_of_the_guide_load(root: Path) -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", (root / "docs" / "rounds.md").read_text(encoding="utf-8"), re.DOTALL)
    first, second = blocks
    assert list(flat(first.removeprefix("stages:\n")))[-4:] == ["best.3", "sft2.3", "ppo.3", "last"]
    assert len(flat("  seed: {kind: sft, data: [{path: d}]}\n" + second)) == 1 + 6 * 6
