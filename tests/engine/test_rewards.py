"""The judge: scores of the tokens that were sampled, equal to those of `finetune eval`, and a model left as it was."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from pydantic import TypeAdapter
from stage_recipes import PAIRS, QUESTIONS, reward_stage, sft_stage, tiny_base, write_jsonl

from finetune.cli.main import main
from finetune.data.encode import encode
from finetune.data.prepare_prompts import make_prompt
from finetune.engine import rewards
from finetune.engine.job import Job
from finetune.engine.rewards import Answer, check_columns, open_judge
from finetune.engine.session import Words, open_words
from finetune.errors import InputError
from finetune.execute import run_recipe
from finetune.model.adapter import open_adapter
from finetune.model.base import choose_device, choose_precision
from finetune.model.ragged import Layout, ragged_hidden
from finetune.recipe.load import load_recipe
from finetune.recipe.sampling_stages import RejectStage
from finetune.shapes import Completion, Dialog, Message, Origin

__all__ = ["tiny_base"]


@dataclass(frozen=True)
class Lab:
    folder: Path
    job: Job
    words: Words
    folders: dict[str, Path]

    def model(self):
        base = self.job.bases.get(self.job.base.folder, self.precision, torch.device("cpu"))
        return open_adapter(base, self.folders["sft"])

    @property
    def precision(self):
        return choose_precision("fp32", "auto", choose_device("cpu"))

    def answer(self, question: str, text: str, **columns: Any) -> Answer:
        """An answer as the template writes it, stop token included."""
        family, tokenizer = self.words.resolved.family, self.words.tokenizer
        prompt = make_prompt(Completion(question, ""), Origin("p", line=1), columns, family, tokenizer, None)
        dialog = Dialog((Message("user", question), Message("assistant", text)))
        (whole,) = encode([dialog], family, tokenizer)
        return Answer(prompt, np.array(whole.input_ids[len(prompt.ids) :]), text, True)


@pytest.fixture(scope="module")
def lab(tmp_path_factory, tiny_base):
    folder = tmp_path_factory.mktemp("judges")
    write_jsonl(folder / "pairs.jsonl", PAIRS)
    write_jsonl(folder / "questions.jsonl", QUESTIONS)
    swapped = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in PAIRS]
    write_jsonl(folder / "swapped.jsonl", swapped)
    recipe = {
        "name": "judges",
        "model": {"base": str(tiny_base), "load_in": "fp32", "max_length": 128},
        "adapter": {"rank": 4, "alpha": 8, "dropout": 0.2},
        "stages": {
            "sft": sft_stage(),
            "reward": reward_stage(start_from="sft"),
            "safety": reward_stage(data=[{"path": "swapped.jsonl"}]),
        },
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    loaded = load_recipe(path, ())
    plan = run_recipe(loaded, folder / "runs", say=lambda line: None)
    folders = {stage.name: stage.folder for stage in plan.stages}
    job = Job(
        name="reject",
        recipe_name="judges",
        fingerprint="0" * 64,
        seed=17,
        base=plan.base,
        model=plan.recipe.model,
        adapter=plan.recipe.adapter,
        inputs=folders,
        out=folder / "out",
        work=folder / "work",
        cache=folder / "cache",
        locate=loaded.locate,
        say=lambda line: None,
    )
    return Lab(folder, job, open_words(job), folders)


def stage(**settings: Any) -> RejectStage:
    settings.setdefault("prompts", [{"path": "questions.jsonl"}])
    return TypeAdapter(RejectStage).validate_python({"kind": "reject", **settings})


def evaluated(lab: Lab, run: str, rows: list[dict[str, str]], tmp_path: Path) -> list[float]:
    """The scores of `finetune eval`."""
    data, out = write_jsonl(tmp_path / "rows.jsonl", rows), tmp_path / "out.jsonl"
    assert main(["eval", str(lab.folders[run]), "--data", str(data), "--out", str(out)]) == 0
    return [json.loads(line)["score"] for line in out.read_text().splitlines()]


ROWS = [{"prompt": row["prompt"], "completion": row[side]} for row in PAIRS[:6] for side in ("chosen", "rejected")]


def answers_of(lab: Lab, **columns: Any) -> list[Answer]:
    return [lab.answer(row["prompt"], row["completion"], **columns) for row in ROWS]


def test_scores_are_those_of_eval(lab, tmp_path, monkeypatch):
    judge = open_judge(stage(reward="reward"), lab.job, lab.model(), lab.precision)
    answers = answers_of(lab)
    scores = judge(answers)
    expected = evaluated(lab, "reward", ROWS, tmp_path)
    assert scores.total == pytest.approx(expected, abs=1e-5) and scores.total.std() > 0.01
    assert list(scores.parts) == ["reward"] and scores.parts["reward"] is scores.total
    monkeypatch.setattr(rewards, "BATCH_TOKENS", 40)  # many small forwards
    assert judge(answers).total == pytest.approx(expected, abs=1e-5)
    assert judge(answers[::-1]).total == pytest.approx(expected[::-1], abs=1e-5)


def test_the_model_is_left_as_it_was(lab):
    model = lab.model()
    model.train()
    before = {name: (p.requires_grad, p.detach().clone()) for name, p in model.named_parameters()}
    ids = torch.arange(20, 40)

    def answers_now():
        model.eval()
        hidden = ragged_hidden(model.get_base_model().model, ids, Layout.of_rows([20]))
        model.train()
        return hidden.detach().clone()

    policy = answers_now()
    judge = open_judge(stage(reward="reward", safety={"reward": "safety"}), lab.job, model, lab.precision)
    first = judge(answers_of(lab)).total
    assert model.training and model.active_adapter == "default"
    assert torch.equal(answers_now(), policy)
    for name, parameter in model.named_parameters():
        if name in before:
            assert parameter.requires_grad == before[name][0] and torch.equal(parameter, before[name][1])
        else:
            assert ".judge-" in name and not parameter.requires_grad
    assert any(flag for flag, _ in before.values())
    # Dropout of 0.2 is not in it: the same answers get the same scores again.
    assert np.array_equal(judge(answers_of(lab)).total, first)


def test_two_reward_models_are_combined_as_in_llama_2(lab, tmp_path):
    helpful, safe = (np.array(evaluated(lab, run, ROWS, tmp_path)) for run in ("reward", "safety"))
    middle = float(1 / (1 + np.exp(-np.median(safe))))
    answers = [replace(a, prompt=replace(a.prompt, columns={"risky": i < 3})) for i, a in enumerate(answers_of(lab))]
    settings = stage(reward="reward", safety={"reward": "safety", "threshold": middle, "column": "risky"})
    scores = open_judge(settings, lab.job, lab.model(), lab.precision)(answers)
    counts = (safe < np.median(safe)) | (np.arange(len(safe)) < 3)
    assert 3 < counts.sum() < len(safe)
    assert scores.total == pytest.approx(np.where(counts, safe, helpful), abs=1e-5)
    assert scores.parts["reward"] == pytest.approx(helpful, abs=1e-5)
    assert scores.parts["safety"] == pytest.approx(safe, abs=1e-5)


def test_answers_side_by_side_share_their_prompt(lab):
    answers = answers_of(lab)
    ((rows, places),) = rewards.batches(answers)
    assert sorted(rows) == list(range(12)) and [len(place) for place in places] == [2] * 6
    for place in places:
        first, second = (rows[at] for at in place)
        assert answers[first].prompt.key == answers[second].prompt.key
    apart = [*answers[::2], *answers[1::2]]
    ((_, places),) = rewards.batches(apart)
    assert [len(place) for place in places] == [1] * 12


def test_checkers_need_no_model(lab):
    answers = [lab.answer("q", "It is 4.", answer=4), replace(lab.answer("q", "No 5.", answer=4), finished=False)]
    for checker, expected in (
        ({"kind": "number"}, [1.0, 0.0]),
        ({"kind": "finished"}, [1.0, 0.0]),
        ({"kind": "regex", "pattern": "5"}, [0.0, 1.0]),
    ):
        scores = open_judge(stage(checker=checker), lab.job, None, lab.precision)(answers)
        assert scores.total.tolist() == expected and list(scores.parts) == [checker["kind"]]
    job = replace(lab.job, functions={"length": lambda prompt, text: len(text)})
    rule = stage(checker={"kind": "function", "name": "length"})
    assert open_judge(rule, job, None, lab.precision)(answers).total.tolist() == [8.0, 5.0]
    with pytest.raises(InputError, match="no function 'length'"):
        open_judge(rule, lab.job, None, lab.precision)


def test_columns_are_checked_before_anything_is_sampled(lab):
    fine, bare = lab.answer("q", "a", answer=4, safety=True).prompt, lab.answer("q", "a").prompt
    number = stage(checker={"kind": "number"})
    check_columns(number, [fine])
    with pytest.raises(InputError, match=r"p:1: field 'answer': the checker compares with this column"):
        check_columns(number, [fine, bare])
    unnamed, named = ({"reward": "safety", **more} for more in ({}, {"column": "risky"}))
    check_columns(stage(reward="reward", safety=unnamed), [bare])
    with pytest.raises(InputError, match=r"no prompt has a column 'risky' \(the first has answer, safety\)"):
        check_columns(stage(reward="reward", safety=named), [fine, bare])
    with pytest.raises(InputError, match=r"field 'safety': should be true .* or false, is 'yes'"):
        check_columns(stage(reward="reward", safety=unnamed), [lab.answer("q", "a", safety="yes").prompt])


def test_what_is_no_reward_model_is_refused(lab, tmp_path):
    with pytest.raises(InputError, match="adapter without a reward head"):
        open_judge(stage(reward="sft"), lab.job, lab.model(), lab.precision)
    manifest = json.loads((lab.folders["reward"] / "manifest.json").read_text())
    manifest["base"]["digest"] = "sha256:other"
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="trained on another base"):
        open_judge(stage(reward=str(tmp_path)), lab.job, lab.model(), lab.precision)
