import json
import os
import shutil
import subprocess
import sys

import pytest
from commands import finetune, recipe, tiny_base

from finetune.plan.evaluations import read_evaluations

__all__ = ["finetune", "recipe", "tiny_base"]  # fixtures


@pytest.fixture(scope="module")
def _cache():
    return {}


@pytest.fixture
def done(finetune, recipe, tmp_path, _cache, tiny_base):
    """A finished recipe of one sft stage: (its file, the folder of runs, the run's folder)."""
    path = recipe()
    if "runs" in _cache:
        shutil.copytree(_cache["runs"], tmp_path / "runs")
    else:
        assert finetune("sft", path, "--runs", tmp_path / "runs").code == 0
        _cache["runs"] = shutil.copytree(tmp_path / "runs", tiny_base.parent / "runs-for-reports")
    return path, tmp_path / "runs", next((tmp_path / "runs" / "tiny").glob("sft-*"))


def test_a_run_is_asked_once_and_its_page_lies_beside_it(finetune, done):
    _, _, run = done
    before = (run / "manifest.json").read_bytes()
    ended = finetune("report", run)
    place = run.with_name(f"report-{run.name}.html")
    assert ended.code == 0 and ended.out.startswith(f"{place}: ")
    content = place.read_text()
    assert "Answers before and after" in content and "<mark" in content
    (answers,) = read_evaluations(run)
    assert answers.results["names"] == ["base", "sft"]
    assert finetune("verify", run).code == 0 and (run / "manifest.json").read_bytes() == before
    again = finetune("report", run)
    assert again.code == 0 and "asking" not in again.err and place.read_text() == content


@pytest.mark.parametrize(("opener", "fails"), [(None, True), ("echo noise; echo noise >&2; exit 3", True),
                                               ('echo noise; echo "$1" > "$OPENED"', False)])  # fmt: skip
def test_opening_lets_no_noise_through_and_the_address_is_always_told(done, tmp_path, opener, fails):
    _, _, run = done
    programs = tmp_path / "programs"
    programs.mkdir()
    if opener is not None:
        for name in ("xdg-open", "open"):
            (programs / name).write_text(f"#!/bin/sh\n{opener}\n")
            (programs / name).chmod(0o755)
    code = "import sys; from finetune.cli.main import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "report", str(run), "--no-answers", "--open"]
    around = {**os.environ, "PATH": str(programs), "OPENED": str(tmp_path / "opened")}
    ended = subprocess.run(command, capture_output=True, text=True, env=around)
    address = run.with_name(f"report-{run.name}.html").resolve().as_uri()
    assert ended.returncode == 0 and ended.stdout.splitlines()[1:] == [address]
    assert ended.stderr.splitlines() == (["no browser could be opened here: open that address in one"] if fails else [])
    assert fails or (tmp_path / "opened").read_text().strip() == address


def test_a_recipes_page_without_answers_loads_no_model(finetune, done):
    path, runs, run = done
    ended = finetune("report", path, "--runs", runs, "--no-answers")
    assert ended.code == 0, ended.err
    content = (run.parent / "report.html").read_text()
    assert "1 finished stage on" in content and "Answers before and after" not in content
    assert not (run / "evaluations").exists() and not list(run.parent.glob("*.part"))


def test_two_runs_are_asked_the_same(finetune, done, recipe):
    path, runs, run = done
    changed = recipe({"stages.sft.train.learning_rate": 0.02}, "other.yaml")
    assert finetune("sft", changed, "--runs", runs).code == 0
    ended = finetune("report", path, "--against", changed, "--runs", runs)
    assert ended.code == 0, ended.err
    (place,) = run.parent.glob(f"report-{run.name}-against-sft-*.html")
    content = place.read_text()
    assert "train.learning_rate</td><td>0.01</td><td>0.02</td>" in content
    assert "Answers to the same prompts" in content
    one = finetune(
        "report", path, "--stage", "sft", "--against", changed, "--runs", runs, "--out", run.parent / "o.html"
    )
    assert one.code == 0 and "asking" not in one.err


def test_own_prompts_and_another_place(finetune, done, tmp_path):
    _, _, run = done
    (tmp_path / "ask.jsonl").write_text('{"prompt": "What is new?"}\n')
    ended = finetune("report", run, "--prompts", tmp_path / "ask.jsonl", "--out", tmp_path / "page.html")
    assert ended.code == 0 and "What is new?" in (tmp_path / "page.html").read_text()


def test_a_run_that_cannot_be_asked_has_a_page_that_says_so(finetune, done, tmp_path):
    _, _, run = done
    (tmp_path / "questions.jsonl").unlink()
    ended = finetune("report", run)
    assert ended.code == 0
    assert "it could not be asked: the data that" in run.with_name(f"report-{run.name}.html").read_text()


def test_wrong_input_is_one_message_and_writes_nothing(finetune, done, recipe, tmp_path):
    path, runs, run = done
    (tmp_path / "notes.txt").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    for args, said in (
        ((tmp_path / "nowhere",), "no such run or recipe"),
        ((runs,), "has no manifest.json"),
        ((path, "--runs", tmp_path / "none"), "no stage of"),
        ((path, "--stage", "dpo", "--runs", runs), "has no stage 'dpo'"),
        ((run, "--out", run / "page.html", "--no-answers"), "is a finished run"),
        ((run, "--out", tmp_path, "--no-answers"), "is a folder"),
        ((run, "--out", tmp_path / "no" / "page.html", "--no-answers"), "there is no folder"),
        ((run, "--out", tmp_path / "notes.txt", "--no-answers"), "is no page"),
        ((run, "--no-answers", "--prompts", path), "give one of them"),
        ((run, "--prompts", tmp_path / "none.jsonl"), "no such file"),
        ((run, "--against-stage", "x"), "give that too"),
    ):
        ended = finetune("report", *args)
        assert ended.code == 2 and said in ended.err, (args, ended.err)
        assert len(ended.err.strip().splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_broken_manifest_is_one_message(finetune, done):
    _, _, run = done
    (run / "manifest.json").write_text("{")
    ended = finetune("report", run)
    assert ended.code == 2 and "is not valid JSON" in ended.err


def test_a_page_without_answers_imports_no_torch(done):
    path, runs, run = done
    code = (
        "import sys; from finetune.cli.main import main\n"
        f"assert main(['report', {str(path)!r}, '--runs', {str(runs)!r}, '--no-answers']) == 0\n"
        f"assert main(['report', {str(run)!r}, '--against', {str(run)!r}, '--no-answers']) == 0\n"
        "assert not {'torch', 'transformers', 'matplotlib'} & set(sys.modules)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


def test_the_recipe_of_a_page_makes_the_same_run(finetune, done, tmp_path):
    """`How to make it again` holds: the recipe of the manifest, saved beside the first, has the same fingerprint."""
    import yaml

    path, runs, run = done
    manifest = json.loads((run / "manifest.json").read_text())
    (path.parent / "again.yaml").write_text(yaml.safe_dump(manifest["recipe"], sort_keys=False))
    shown = finetune("show", path.parent / "again.yaml", "--runs", runs, "--json")
    assert shown.code == 0, shown.err
    assert json.loads(shown.out)[0]["path"] == str(run)


def test_the_folder_one_stands_in(finetune, done, monkeypatch):
    _, _, run = done
    monkeypatch.chdir(run)
    assert finetune("report", ".", "--no-answers").code == 0
    assert run.with_name(f"report-{run.name}.html").is_file()
