"""`finetune eval`: the scores of a file are those of plain transformers and of the stage's own report."""

from __future__ import annotations

import json
import shutil

import pytest
from stage_recipes import PAIRS, QUESTIONS, RANKED, dpo_stage, reward_stage, sft_stage, write_jsonl

from finetune.cli.main import main


@pytest.fixture(scope="module")
def lab(tmp_path_factory, tiny_base):
    """Finished sft, reward and dpo runs of one recipe, whose base is a copy that can be moved."""
    import yaml

    from finetune.cli.walk import walk

    folder = tmp_path_factory.mktemp("lab")
    shutil.copytree(tiny_base, folder / "base")
    for name, rows in (("pairs", PAIRS), ("questions", QUESTIONS), ("ranked", RANKED)):
        write_jsonl(folder / f"{name}.jsonl", rows)
    held_out = {"data": [{"path": "pairs.jsonl"}]}
    (folder / "train.jsonl").write_text(json.dumps({"prompt": "Why?", "chosen": "It is.", "rejected": "No."}) + "\n")
    recipe = {
        "name": "lab",
        "model": {"base": "base", "load_in": "nf4", "max_length": 128, "system": "Be brief."},
        "adapter": {"rank": 4, "alpha": 8},
        "stages": {
            "sft": sft_stage(held_out={"data": [{"path": "questions.jsonl"}], "max_rows": 100}),
            "reward": reward_stage(
                data=[{"path": "train.jsonl"}], held_out=held_out, start_from="sft", slices=["topic"]
            ),
            "dpo": dpo_stage(),
        },
    }
    recipe["stages"]["sft"]["data"] = [{"path": "other.jsonl"}]
    write_jsonl(folder / "other.jsonl", [{"prompt": f"Is it {i}?", "completion": f"Yes, {i}."} for i in range(8)])
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    walk(folder / "recipe.yaml", (), folder / "runs", kinds=None)
    return folder


def run_of(lab, stage):
    (found,) = (lab / "runs" / "lab").glob(f"{stage}-*")
    return found


def manifest(lab, stage):
    return json.loads((run_of(lab, stage) / "manifest.json").read_text())


def evaluated(capsys, *args):
    """(exit code, summary) of `finetune eval … --json`."""
    capsys.readouterr()
    code = main(["eval", *map(str, args), "--json"])
    printed = capsys.readouterr()
    return code, json.loads(printed.out) if code == 0 else printed.err


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_report_of_the_stage_is_found_again(lab, tmp_path, capsys):
    """The reward stage was measured on pairs.jsonl: eval of that file gives the numbers of its manifest."""
    code, summary = evaluated(
        capsys,
        run_of(lab, "reward"),
        "--data",
        lab / "pairs.jsonl",
        "--slice",
        "topic",
        "--out",
        tmp_path / "out.jsonl",
    )
    assert code == 0
    theirs, ours = manifest(lab, "reward")["held_out_report"], summary["report"]
    assert ours["pairs"] == theirs["pairs"] == len(PAIRS) and ours["accuracy"] == theirs["accuracy"]
    assert ours["mean_gap"] == pytest.approx(theirs["mean_gap"], abs=1e-5)
    assert ours["by_slice"]["topic"]["odd"]["accuracy"] == theirs["by_slice"]["topic"]["odd"]["accuracy"]
    assert list(ours["by_rating"]) == list(theirs["by_rating"])
    written = lines(tmp_path / "out.jsonl")
    assert [row["row"] for row in written] == list(range(40)) and [row["line"] for row in written] == list(range(1, 41))
    gaps = [row["scores"][0] - row["scores"][1] for row in written]
    assert sum(gaps) / len(gaps) == pytest.approx(ours["mean_gap"], abs=1e-6)


def test_an_answer_has_the_same_score_whatever_row_it_stands_in(lab, tmp_path, capsys):
    """As a comparison, as prompt and completion, as messages with the system prompt in them, and as a judged row."""
    row = PAIRS[5]
    (question, answer) = {"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["chosen"]}
    ways = [
        row,
        {"prompt": row["prompt"], "completion": row["chosen"]},
        {"messages": [{"role": "system", "content": "Be brief."}, question, answer]},
        {"prompt": row["prompt"], "completion": row["chosen"], "label": True},
    ]
    found = []
    for way in ways:
        data = write_jsonl(tmp_path / "one.jsonl", [way])
        assert evaluated(capsys, run_of(lab, "reward"), "--data", data, "--out", tmp_path / "out.jsonl")[0] == 0
        (line,) = lines(tmp_path / "out.jsonl")
        found.append(line["score"] if "score" in line else line["scores"][0])
    assert found == pytest.approx([found[0]] * 4, abs=1e-5)
    other = write_jsonl(tmp_path / "one.jsonl", [{"prompt": row["prompt"], "completion": row["rejected"]}])
    assert evaluated(capsys, run_of(lab, "reward"), "--data", other)[1]["mean"] != pytest.approx(found[0], abs=1e-3)


def test_rankings_and_answers_that_are_alike(lab, tmp_path, capsys):
    data = write_jsonl(
        tmp_path / "ranked.jsonl",
        [
            *RANKED[:2],
            {"prompt": "Why?", "answers": ["So.", "So. ", "No."]},
            {"prompt": "And?", "answers": ["A", "A "]},
        ],
    )
    code, summary = evaluated(capsys, run_of(lab, "reward"), "--data", data, "--out", tmp_path / "out.jsonl")
    assert code == 0 and summary["answers"] == 3 + 3 + 3 + 2
    assert summary["alike"] == 2 and summary["report"]["pairs"] == 3 + 3 + 1
    assert [len(row["scores"]) for row in lines(tmp_path / "out.jsonl")] == [3, 3, 3, 2]


def test_the_loss_of_sft_and_dpo_runs(lab, tmp_path, capsys):
    """questions.jsonl was held out of sft: the same loss as its stage measured."""
    code, summary = evaluated(
        capsys, run_of(lab, "sft"), "--data", lab / "questions.jsonl", "--out", tmp_path / "o.jsonl"
    )
    assert code == 0 and summary["loss"] == pytest.approx(manifest(lab, "sft")["metrics"]["held_out"], rel=1e-5)
    rows = lines(tmp_path / "o.jsonl")
    assert sum(r["loss"] * r["tokens"] for r in rows) / sum(r["tokens"] for r in rows) == pytest.approx(summary["loss"])
    code, other = evaluated(capsys, run_of(lab, "dpo"), "--data", lab / "questions.jsonl")
    assert code == 0 and other["loss"] != pytest.approx(summary["loss"])


def test_a_recipe_finds_its_stage_and_the_terminal_reads_well(lab, capsys):
    assert main(["eval", str(lab / "recipe.yaml"), "--runs", str(lab / "runs"), "--stage", "reward", "--data",
                 str(lab / "pairs.jsonl")]) == 0  # fmt: skip
    said = capsys.readouterr().out
    assert "accuracy" in said and "over 40 pairs" in said and "significantly_better: accuracy" in said


def test_a_base_that_moved(lab, tmp_path, capsys):
    """Found nowhere: --base. Another base than the run's: refused, though its shapes fit."""
    data = lab / "pairs.jsonl"
    away = tmp_path / "away"
    (lab / "base").rename(away)
    try:
        code, said = evaluated(capsys, run_of(lab, "reward"), "--data", data)
        assert code == 2 and "--base" in said and str(lab / "base") in said
        code, summary = evaluated(capsys, run_of(lab, "reward"), "--data", data, "--base", away)
        assert code == 0 and summary["report"]["pairs"] == 40
        other = tmp_path / "other"
        shutil.copytree(away, other)
        (other / "config.json").write_text((other / "config.json").read_text() + "\n")
        code, said = evaluated(capsys, run_of(lab, "reward"), "--data", data, "--base", other)
        assert code == 2 and "not the base" in said
    finally:
        away.rename(lab / "base")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", ("the file is empty",)),
        ("{]\n", ("bad.jsonl:1",)),
        ('{"prompt": "a", "completion": "b"}\n{"prompt": "a"}\n', ("bad.jsonl:2", "completion")),
        ('{"text": "Once upon a time"}\n', ("bad.jsonl:1", "no answer to score")),
        ('{"question": "a", "answer": "b"}\n', ("format", "question, answer")),
        ('{"messages": [{"role": "user", "content": "a"}]}\n', ("bad.jsonl:1", "assistant")),
    ],
)
def test_bad_files(lab, tmp_path, capsys, content, told):
    (tmp_path / "bad.jsonl").write_text(content)
    code, said = evaluated(capsys, run_of(lab, "reward"), "--data", tmp_path / "bad.jsonl")
    assert code == 2 and all(word in said for word in told), said


def test_bad_runs(lab, tmp_path, capsys):
    data = lab / "pairs.jsonl"
    recipe = ["--runs", lab / "runs", "--data", data]
    assert "no such run" in evaluated(capsys, tmp_path / "none", "--data", data)[1]
    (tmp_path / "sft-1.part").mkdir()
    assert "is not finished" in evaluated(capsys, tmp_path / "sft-1.part", "--data", data)[1]
    assert "no manifest.json" in evaluated(capsys, tmp_path, "--data", data)[1]
    assert "done are sft, reward, dpo" in evaluated(capsys, lab / "recipe.yaml", *recipe)[1]
    assert "no stage 'rm'" in evaluated(capsys, lab / "recipe.yaml", "--stage", "rm", *recipe)[1]
    elsewhere = ["--runs", tmp_path / "empty", "--data", data]
    said = evaluated(capsys, lab / "recipe.yaml", "--stage", "reward", *elsewhere)[1]
    assert "not finished" in said and f"(looked in {tmp_path / 'empty'}, which does not exist; --runs" in said
    assert "--slice" in evaluated(capsys, run_of(lab, "sft"), "--data", lab / "questions.jsonl", "--slice", "topic")[1]
    assert "no row has a column" in evaluated(capsys, run_of(lab, "reward"), "--data", data, "--slice", "tpic")[1]
    assert "which reward and dpo stages read" in evaluated(capsys, run_of(lab, "sft"), "--data", data)[1]
    assert "--out" in evaluated(capsys, run_of(lab, "reward"), "--data", data, "--out", data)[1]
    broken = tmp_path / "broken"
    shutil.copytree(run_of(lab, "reward"), broken)
    weights = bytearray((broken / "adapter_model.safetensors").read_bytes())
    weights[-1] ^= 1
    (broken / "adapter_model.safetensors").write_bytes(weights)
    code, said = evaluated(capsys, broken, "--data", data)
    assert code == 2 and "sha256" in said
