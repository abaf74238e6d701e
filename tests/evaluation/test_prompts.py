"""A run's own held-out rows, found again from its manifest: those that its stage measured, wherever one stands."""

from __future__ import annotations

import json
import shutil

import pytest
import yaml
from stage_recipes import PAIRS, QUESTIONS, reward_stage, sft_stage, write_jsonl

from finetune.chat.model import Answering
from finetune.errors import InputError
from finetune.evaluation.answers import asked_row, write_answers
from finetune.evaluation.prompts import own_prompts, question, read_prompts
from finetune.evaluation.reported import asked_again
from finetune.evaluation.tasks import evaluate
from finetune.families.base import as_dialog
from finetune.plan.manifest import read_manifest
from finetune.shapes import Completion, Dialog, Message


def own(run, said=None):
    lines = said if said is not None else []
    manifest = read_manifest(run)
    return own_prompts(run, manifest, None, lines.append)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Found from the run and its base alone, not from where one stands."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def test_a_question_has_alpacas_separate_input():
    assert question(Dialog((Message("user", "Translate.", context="Bonjour"),))) == "Translate.\n\nBonjour"
    assert question(Dialog((Message("user", "Translate."),))) == "Translate."


def test_a_run_is_asked_some_of_its_rows_and_keeps_what_they_answer_themselves(lab):
    said: list[str] = []
    found = write_answers(lab.run("sft"), limit=2, answering=Answering(max_new_tokens=2), say=said.append)
    assert "prompts: 2 of its own 6 held-out rows" in said
    own_answers = {row["prompt"]: row["completion"] for row in QUESTIONS}
    assert [row["expected"] for row in found.rows] == [own_answers[row["prompt"]] for row in found.rows]
    assert len(found.rows) == 2 and found.results["names"][-1] == "sft"
    compared = write_answers(lab.run("dpo"), limit=20, answering=Answering(max_new_tokens=2), say=said.append)
    assert "prompts: 8 of its own held-out rows" in said
    assert all("expected" not in row for row in compared.rows)  # of two answers neither is the row's own


def test_one_file_read_as_two_formats_is_two_measurements(tmp_path):
    """Else the second would go on with the answers to the first one's prompts, and replace its results."""
    turns = [{"role": "user", "content": "What is 7?"}]
    file = write_jsonl(tmp_path / "x.jsonl", [{"prompt": "What is 3?", "completion": "It", "messages": turns}])
    first, second = (
        read_prompts(file, data_format=name, say=lambda line: None) for name in ("prompt_completion", "messages")
    )
    assert question(first.asked[0]) == "What is 3?" and question(second.asked[0]) == "What is 7?"
    assert first.record != second.record


@pytest.mark.parametrize("turns", [1, 3])
def test_what_was_asked_can_be_asked_again(tmp_path, turns):
    """A report of two runs asks the second one what the rows of the first say."""
    call = {"name": "add", "description": "Add.", "parameters": {"type": "object", "properties": {}}}
    messages = (Message("user", "What is 3?"), Message("assistant", "It is 3."), Message("user", "And 4?"))[:turns]
    for tools in ((), ({"type": "function", "function": call},)):
        asked = Dialog(messages, tools)
        file = write_jsonl(tmp_path / "again.jsonl", [asked_again(asked_row(asked))])
        found = read_prompts(file, say=lambda line: None).asked[0]
        assert (as_dialog(found, answered=False) if isinstance(found, Completion) else found) == asked


def test_of_an_sft_stage_the_rows_whose_loss_it_measured(lab, tmp_path):
    run = lab.run("sft")
    asked = {question(prompt) for prompt in own(run).asked}
    rows = [row for row in QUESTIONS if row["prompt"] in asked]
    assert len(rows) == len(asked) == json.loads((run / "manifest.json").read_text())["data"]["held_out_rows"] == 6
    found = evaluate(run, "loss", data=write_jsonl(tmp_path / "held_out.jsonl", rows), say=lambda line: None)
    assert found.results["loss"]["value"] == pytest.approx(read_manifest(run)["metrics"]["held_out"], rel=1e-5)


def test_of_a_preference_stage_the_prompts_of_its_comparisons(lab):
    said: list[str] = []
    found = own(lab.run("dpo"), said)
    assert len(found) == read_manifest(lab.run("dpo"))["data"]["held_out_rows"] == 8
    assert said[-1] == "prompts: 8 of its own held-out rows" and found.name == "held-out rows of dpo"
    assert {question(prompt) for prompt in found.asked} < {row["prompt"] for row in PAIRS}
    assert own(lab.run("dpo")).digest == found.digest != own(lab.run("sft")).digest


def test_other_kinds_of_stages(tmp_path, tiny_base):
    """A separate file, none held out, and stages that sample; the base and the recipe moved together."""
    from finetune.cli.walk import walk

    folder = tmp_path / "before"
    (folder / "recipes").mkdir(parents=True)
    shutil.copytree(tiny_base, folder / "models/tiny")
    write_jsonl(folder / "questions.jsonl", QUESTIONS)
    write_jsonl(folder / "pairs.jsonl", PAIRS[:20])
    write_jsonl(folder / "others.jsonl", PAIRS[20:])
    data, separate = [{"path": "../questions.jsonl"}], {"data": [{"path": "../others.jsonl"}], "max_rows": 5}
    sampling = {"reward": "helpful", "prompts": data, "max_new_tokens": 4}
    recipe = {
        "name": "kinds",
        "model": {"base": "../models/tiny", "load_in": "fp32", "max_length": 128},
        "adapter": {"rank": 2, "alpha": 4},
        "stages": {
            "none": sft_stage(data=data, held_out={"fraction": 0.0}),
            "helpful": reward_stage(data=[{"path": "../pairs.jsonl"}], held_out=separate),
            "ppo": {
                **{"kind": "ppo", "start_from": "none", "rollouts": 4, "iterations": 1, "passes": 1},
                **sampling,
                "held_out": {"fraction": 0.25, "max_rows": 4},
                "train": {"batch_size": 4, "learning_rate": 0.001},
            },
        },
    }
    (folder / "recipes/kinds.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    walk(folder / "recipes/kinds.yaml", (), tmp_path / "runs", kinds=None)

    def run(stage):
        (found,) = (tmp_path / "runs/kinds").glob(f"{stage}-*")
        return found

    said: list[str] = []
    assert len(own(run("none"), said)) == len(QUESTIONS) and "it has seen them" in said[-1]
    assert len(own(run("helpful"))) == 5
    assert len(own(run("ppo"))) == 4
    lines = (folder / "questions.jsonl").read_text().splitlines(keepends=True)
    (folder / "questions.jsonl").write_text("".join(lines[1:]))
    with pytest.raises(InputError, match=r"questions.jsonl.*is not the same any more.*--data"):
        own(run("none"))
