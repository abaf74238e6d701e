"""`finetune eval` beyond loss and score, as typed; tests/stages/test_score.py has those two."""

from __future__ import annotations

import json

import pytest

from finetune.cli.eval_answers import answer_lines
from finetune.cli.eval_shown import in_one_line, plain, shown
from finetune.cli.main import main
from finetune.plan.evaluations import Evaluation


@pytest.fixture
def evaluated(lab, capsys):
    """`evaluated("--stage", "dpo", …)` -> (exit code, what stdout had, what stderr had)."""

    def run(*args):
        capsys.readouterr()
        code = main(["eval", str(lab.recipe), "--runs", str(lab.runs), *map(str, args)])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


def test_a_win_rate_between_stages_of_a_recipe(evaluated, lab, tmp_path):
    """Stages by name, on dpo's own held-out rows; a table for people, JSON for scripts, rows for both."""
    asks = ("--stage", "dpo", "--task", "win_rate", "--against", "sft", "--judge", "reward", "--max-new-tokens", 6)
    code, out, _ = evaluated(*asks, "--out", tmp_path / "rows.jsonl")
    assert code == 0 and "prompts: 8 of its own held-out rows" in out
    assert "win rate, a tie is half a win  " in out and "8 prompts: " in out and "kept in " in out
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert len(rows) == 8 and {"prompt", "dpo", "sft", "scores", "outcome"} <= set(rows[0])
    code, out, err = evaluated(*asks, "--json")
    found = json.loads(out)
    assert code == 0 and found["task"] == "win_rate" and found["win_rate_low"] <= found["win_rate"]
    wins = sum(row["outcome"] == "win" for row in rows) + sum(row["outcome"] == "tie" for row in rows) / 2
    assert found["win_rate"] == wins / 8 and "answers of dpo" in err


def test_drawn_answers_and_a_limit(evaluated, lab):
    asks = (
        "--stage",
        "sft",
        "--task",
        "reward",
        "--judge",
        "reward",
        "--data",
        lab.folder / "questions.jsonl",
        "--json",
    )
    more = ("--limit", 3, "--samples", 2, "--temperature", 1, "--seed", 4, "--max-new-tokens", 4)
    code, out, _ = evaluated(*asks, *more)
    assert code == 0 and json.loads(out)["names"] == ["sft"]
    assert evaluated(*asks, *more)[1] == out  # seeded
    assert evaluated(*asks, *more[:-4], "--seed", 5, "--max-new-tokens", 4)[1] != out


def test_an_address_needs_a_model_and_options_their_task(evaluated, lab):
    data = ("--data", lab.folder / "questions.jsonl")
    asks = ("--stage", "dpo", "--task", "win_rate", "--against", "base")
    assert "which model at that address" in evaluated(*asks, "--judge", "http://127.0.0.1:1/v1")[2]
    assert "belongs to a --judge that is an address" in evaluated(*asks, "--judge", "reward", "--judge-model", "x")[2]
    code, _, err = evaluated("--stage", "dpo", *data, "--tie", 0.5)
    assert code == 2 and "--tie belongs to task win_rate; loss does not read it" in err
    code, _, err = evaluated("--stage", "dpo", *data, "--temperature", 1)
    assert code == 2 and "--temperature" in err
    assert "task loss needs --data" in evaluated("--stage", "dpo")[2]
    assert "--against" in evaluated("--stage", "reward", "--data", lab.folder / "pairs.jsonl", "--against", "base")[2]


def test_the_help_lists_every_option_once_in_sections(capsys):
    assert main(["eval", "--help"]) == 0
    text = capsys.readouterr().out
    for section in ("What is measured", "How answers are drawn", "Comparing", "Output", "Other"):
        assert f"\n{section}:" in text
    assert text.count("\n  --judge RUN") == text.count("\n  --base FOLDER") == text.count("--help") == 1


def test_answers_are_printed_to_be_read(evaluated):
    code, out, _ = evaluated("--stage", "sft", "--task", "answers", "--limit", 2, "--max-new-tokens", 4)
    assert code == 0 and "\n\n1. prompt\n     " in out and "\n\n2. prompt\n" in out
    parts = [out.index(f"\n   {name}\n     ") for name in ("expected", "base", "sft")]
    assert parts == sorted(parts) and "2 rows in " in out


def test_printed_answers_are_wrapped_cut_and_obeyed_by_no_terminal():
    row = {"prompt": "Ask?", "base": "word " * 60 + "\n\n- a list", "sft": "\x1b[2J", "messages": [{}, {}]}
    lines = answer_lines(Evaluation("answers", {}, {}, {"names": ["base", "sft"]}, [row] * 14), 50)
    assert max(map(len, lines)) <= 50 and "12. prompt" in lines and "13. prompt" not in lines
    assert "     - a list" in lines and "\x1b" not in "".join(lines) and "     \ufffd[2J" in lines
    assert "   (after 1 turn before it)" in lines and lines[-2] == "2 more in the evaluation: --out writes all"
    assert "" in lines[3:15]  # an empty line of an answer stays one
    assert sum(line.count("word") for line in lines) == 12 * 60
    wide = Evaluation("answers", {}, {}, {"names": ["a"]}, [{"prompt": "q", "a": "\u6f22\u5b57" * 40}])
    assert max(len(line) for line in answer_lines(wide, 50)) == 5 + 22  # each takes two of the 45 columns
    assert "     (nothing)" in answer_lines(Evaluation("answers", {}, {}, {"names": ["a"]}, [{"prompt": "", "a": ""}]))


def test_one_of_something_is_said_as_one():
    results = {"loss": {"value": 1.0, "low": 1.0, "high": 1.0}, "perplexity": None, "tokens": 1, "rows": 1}
    assert shown(Evaluation("loss", {"name": "a"}, {}, results, [{}]))[0].endswith("over 1 token of 1 row")
    assert in_one_line(Evaluation("answers", {"name": "a"}, {}, {"names": ["base"]}, [{}])).endswith(
        "1 prompt answered by base"
    )


def test_one_line_of_an_evaluation():
    interval = {"value": 0.573, "low": 0.493, "high": 0.649}
    against = {"name": "chat/sft", "fingerprint": "0"}
    found = Evaluation("win_rate", {"name": "held-out rows of dpo"}, {}, {"win_rate": interval}, (), against)
    assert in_one_line(found) == "win_rate against chat/sft on held-out rows of dpo: 57.3% (49.3% to 64.9%)"
    found = Evaluation("loss", {"name": "a.jsonl"}, {}, {"loss": {"value": 1.0, "low": 0.9, "high": 1.2}})
    assert in_one_line(found) == "loss on a.jsonl: 1.0000 (0.9000 to 1.2000)"
    assert plain({"loss": interval, "rows": 3}) == {"loss": 0.573, "loss_low": 0.493, "loss_high": 0.649, "rows": 3}
