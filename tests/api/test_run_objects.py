"""Runs as objects: what the folder holds, as lists, tables and pictures."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from api_chain import Chain

import finetune as ft
from finetune.api.rows import Rows
from finetune.cli.main import main
from finetune.errors import InputError
from finetune.plan.evaluations import Evaluation, keep_evaluation


def test_the_same_folders_as_the_command(chain: Chain, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`finetune run` on the saved recipe finds everything done, in the folders that ft.run made."""
    saved = chain.recipe.save(tmp_path / "mine.yaml")
    assert main(["run", str(saved), "--runs", str(chain.runs)]) == 0
    assert capsys.readouterr().out.count("already done, nothing to do") == len(chain.results) == 6
    assert main(["show", str(saved), "--runs", str(chain.runs), "--json"]) == 0
    shown = {stage["name"]: stage["path"] for stage in json.loads(capsys.readouterr().out)}
    assert shown == {name: os.fspath(run) for name, run in chain.results.items()}


def test_results(chain: Chain) -> None:
    results = chain.results
    assert list(results) == ["sft", "helpful", "best", "sft2", "ppo", "dpo"] == list(chain.recipe.stages)
    with pytest.raises(KeyError, match="no finished run of 'sff'; there are sft"):
        results["sff"]
    assert "Run sft (sft, " in repr(results) and "held-out loss" in results._repr_html_()


def test_walking_a_part(chain: Chain) -> None:
    assert ft.run(chain.recipe, chain.runs, until="helpful").keys() == chain.results.keys(), "all that are done"
    with pytest.raises(InputError, match="no stage is of kind grpo; there are dpo, ppo"):
        ft.run(chain.recipe, chain.runs, kinds="grpo")
    with pytest.raises(InputError, match="did you mean 'helpful'"):
        ft.run(chain.recipe, chain.runs, until="helpfull")


def test_an_answer_with_a_line_separator_is_one_row(tmp_path: Path) -> None:
    rows = [{"answer": "one\u2028two\u0085three"}, {"answer": "four"}]
    path = tmp_path / "samples.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    assert [*Rows.read(path)] == rows


def test_a_run(chain: Chain) -> None:
    run = chain.results["sft"]
    assert (run.name, run.kind, run.recipe_name) == ("sft", "sft", "tiny")
    assert run.fingerprint == run.manifest["fingerprint"] and run.folder.name == f"sft-{run.fingerprint[:12]}"
    assert run.metrics["steps"] == 12 and run.data["train_rows"] == 19
    assert ft.open_run(run) is run and ft.open_run(run.folder).fingerprint == run.fingerprint
    assert run.check() is run
    assert run.summary in repr(run) and str(run.folder) in repr(run)
    page = run._repr_html_()
    assert "On rows that it was not trained on the loss fell" in page and page.count("<svg") >= 2


def test_the_log(chain: Chain) -> None:
    log = chain.results["sft"].log
    assert log[0]["step"] == 0 and log[-1]["step"] == 12 and isinstance(log[:2], ft.api.Log)
    steps, losses = zip(*log.line("loss"), strict=True)
    assert steps == tuple(range(1, 13)) and losses[0] > losses[-1]
    assert list(log.frame()["loss"].dropna()) == list(losses)
    with pytest.raises(InputError, match="the log has no 'lose'; it has held_out_loss, epoch, loss"):
        log.line("lose")
    assert "the last of" in log._repr_html_()


def test_plots(chain: Chain, tmp_path: Path) -> None:
    plot = chain.results["ppo"].plot("reward", "kl")
    assert list(plot.lines) == ["reward", "kl"] and len(plot.lines["reward"]) == 2
    saved = plot.save(tmp_path / "plot.svg").read_text()
    assert saved.startswith("<svg") and saved in plot._repr_html_()
    assert repr(chain.results["sft"].plot()).startswith("sft: loss and held out loss: loss ")
    with pytest.raises(InputError, match="the log has no 'reward'"):
        chain.results["sft"].plot("reward")


def test_samples_and_rows(chain: Chain) -> None:
    ppo, best = chain.results["ppo"].samples, chain.results["best"]
    assert {"step", "prompt", "answer", "reward"} <= set(ppo[0])
    assert len(ppo.frame()) == len(ppo) > 0
    assert len(best.rows) == best.metrics["kept"] == 24 and best.rows[0]["messages"]
    page = best.samples._repr_html_()
    assert "What is 0?" in page and "10 of 24 rows" in page
    assert len(chain.results["sft"].samples) == 0


def test_evaluations(chain: Chain) -> None:
    run = chain.results["sft2"]
    assert run.evaluations == []
    kept = Evaluation("loss", {"name": "x"}, {}, {"loss": 1.5})
    file = keep_evaluation(run.folder, kept)
    assert [(found.task, found.results) for found in run.evaluations] == [("loss", {"loss": 1.5})]
    file.unlink()


def test_open_run_by_recipe(chain: Chain, tmp_path: Path) -> None:
    assert ft.open_run(chain.recipe, "dpo", runs=chain.runs).folder == chain.folder("dpo")
    saved = chain.recipe.save(tmp_path / "mine.yaml")
    assert ft.open_run(saved, "dpo", runs=chain.runs).folder == chain.folder("dpo")
    with pytest.raises(InputError, match="say which stage; done are sft, helpful"):
        ft.open_run(saved, runs=chain.runs)
    with pytest.raises(InputError, match="no stage 'dop'"):
        ft.open_run(saved, "dop", runs=chain.runs)
    with pytest.raises(InputError, match="stage dpo of recipe tiny is not finished"):
        ft.open_run(saved, "dpo", runs=tmp_path)
    with pytest.raises(InputError, match="belongs to a recipe"):
        ft.open_run(chain.folder("dpo"), "dpo")


def test_a_folder_that_is_no_run(chain: Chain, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such run"):
        ft.open_run(tmp_path / "gone")
    (tmp_path / "sft-0.part").mkdir()
    with pytest.raises(InputError, match="is not finished"):
        ft.open_run(tmp_path / "sft-0.part")


def test_a_report(chain: Chain, tmp_path: Path) -> None:
    page = ft.report(chain.recipe, tmp_path / "report.html", answers=False, runs=chain.runs)
    assert "tiny" in page.read_text() and not [*tmp_path.glob("*.part")]
    assert ft.report(chain.results["dpo"], tmp_path / "r.html", answers=False, against=chain.results["ppo"]).is_file()
    with pytest.raises(InputError, match="is a finished run, whose files do not change"):
        ft.report(chain.results["dpo"], chain.folder("dpo") / "report.html", answers=False)
    with pytest.raises(InputError, match=r"no stage of recipe tiny is finished"):
        ft.report(chain.recipe, tmp_path / "report.html", runs=tmp_path)
