"""Measuring finished runs end to end: figures recomputed from the rows, kept in the run, and nothing paid for twice."""

from __future__ import annotations

import json
import shutil

import pytest
from fake_judge import always_first, fake_judge, longer
from stage_recipes import PAIRS, QUESTIONS, write_jsonl

from finetune.chat.model import Answering
from finetune.errors import InputError
from finetune.evaluation import judge as judging
from finetune.evaluation import writing
from finetune.evaluation.judge import RemoteJudge
from finetune.evaluation.measurement import Measurement
from finetune.evaluation.tasks import evaluate, usual_answering
from finetune.plan.evaluations import FOLDER, read_evaluations

SHORT = Answering(max_new_tokens=8)
FEW = [{"prompt": f"What is {n}?"} for n in range(10)]


@pytest.fixture
def said():
    lines: list[str] = []
    return lines


@pytest.fixture
def few(tmp_path):
    return write_jsonl(tmp_path / f"{tmp_path.name}.jsonl", FEW)


def kept(run, task, data):
    """What is kept of a task on a file; tests share the runs."""
    return [found for found in read_evaluations(run) if found.task == task and found.data["name"] == data.name]


def mean(values):
    return sum(values) / len(values)


def test_loss_beside_the_base_and_beside_another_run(lab, tmp_path, said):
    """The base's loss is what transformers says; the difference is that of the two; a run is no better than itself."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    rows = [{**row, "completion": row["completion"] + " Yes." * index} for index, row in enumerate(QUESTIONS[:6])]
    run, data = lab.run("sft"), write_jsonl(tmp_path / "unequal.jsonl", rows)
    found = evaluate(run, "loss", data=data, against="base", say=said.append)
    alone = evaluate(run, "loss", data=data, say=said.append)
    results = found.results
    assert results["loss"] == alone.results["loss"]
    assert found.against == {"name": "base", "fingerprint": "base"}
    assert results["difference"]["value"] == pytest.approx(
        results["loss"]["value"] - results["theirs"]["value"], abs=1e-9
    )
    assert results["difference"]["high"] < 0  # it was trained on such rows
    assert results["loss"]["low"] <= results["loss"]["value"] <= results["loss"]["high"]
    base = json.loads((run / "adapter_config.json").read_text())["base_model_name_or_path"]
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(run)
    total, tokens = 0.0, 0
    for row in rows:
        turns = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}]
        asked = tokenizer.apply_chat_template(turns[:1], add_generation_prompt=True)["input_ids"]
        whole = tokenizer.apply_chat_template(turns)["input_ids"]
        with torch.no_grad():
            logps = model(torch.tensor([whole])).logits[0].log_softmax(-1)
        total -= sum(logps[i - 1, whole[i]].item() for i in range(len(asked), len(whole)))
        tokens += len(whole) - len(asked)
    assert tokens == results["tokens"] and total / tokens == pytest.approx(results["theirs"]["value"], rel=1e-4)
    itself = evaluate(run, "loss", data=data, against=run, say=said.append).results["difference"]
    assert (itself["low"], itself["value"], itself["high"]) == (0.0, 0.0, 0.0)
    assert len(kept(run, "loss", data)) == 3


def test_reward_of_a_run_and_of_its_base(lab, few, said):
    """Scores are those that `score` gives the same answers in a file; several samples count by their mean."""
    run, judge = lab.run("dpo"), lab.run("reward")
    answering = Answering(max_new_tokens=8, temperature=1.0, samples=2, seed=3)
    found = evaluate(run, "reward", data=few, judge=judge, against="base", answering=answering, say=said.append)
    ours, theirs = ([mean(row["scores"][name]) for row in found.rows] for name in ("dpo", "base"))
    assert found.results["reward"]["value"] == pytest.approx(mean(ours))
    assert found.results["difference"]["value"] == pytest.approx(mean(ours) - mean(theirs))
    assert found.settings["judge"]["kind"] == "reward" and len(found.rows[0]["dpo"]) == 2
    rows = [
        {"messages": [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": text}]}
        for row in found.rows
        for text in row["dpo"]
        if text
    ]
    file = write_jsonl(few.parent / "answers.jsonl", rows)
    again = evaluate(judge, "score", data=file, say=said.append)
    wanted = [score for row in found.rows for text, score in zip(row["dpo"], row["scores"]["dpo"], strict=True) if text]
    assert [row["score"] for row in again.rows] == pytest.approx(wanted, abs=1e-4)


def test_a_kill_between_the_run_and_its_base_loses_no_answer(lab, few, said, monkeypatch):
    given = {"judge": lab.run("reward"), "against": "base", "data": few, "answering": SHORT, "say": said.append}
    whole = evaluate(lab.run("dpo"), "reward", **given)
    note = Measurement.note

    def killed(self, kind, entry):
        if entry["name"] == "base":
            raise KeyboardInterrupt
        note(self, kind, entry)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Measurement, "note", killed)
        evaluate(lab.run("dpo"), "reward", **given)
    again = evaluate(lab.run("dpo"), "reward", **given)
    assert any("answers to 10 prompts are there already" in line for line in said)
    assert again.results == whole.results and again.rows == whole.rows


def test_win_rate_by_a_reward_model(lab, few, said):
    run, other, judge = lab.run("dpo"), lab.run("sft"), lab.run("reward")
    found = evaluate(run, "win_rate", data=few, judge=judge, against=other, answering=SHORT, say=said.append)
    outcomes = [
        "tie" if ours == theirs else "win" if ours > theirs else "loss"
        for ours, theirs in (row["scores"] for row in found.rows)
    ]
    assert [row["outcome"] for row in found.rows] == outcomes
    assert found.results["win_rate"]["value"] == (outcomes.count("win") + outcomes.count("tie") / 2) / len(FEW)
    assert found.against is not None and found.against["name"] == "lab/sft"
    same = evaluate(run, "win_rate", data=few, judge=judge, against=run, answering=SHORT, say=said.append).results
    assert same["ties"] == len(FEW) and same["win_rate"]["value"] == 0.5
    wide = evaluate(run, "win_rate", data=few, judge=judge, against=other, tie=1e6, answering=SHORT, say=said.append)
    assert wide.results["ties"] == len(FEW)
    assert len(kept(run, "win_rate", few)) == 3 and not list((run / FOLDER).glob("*.part"))


def test_win_rate_by_a_language_model_survives_a_kill(lab, few, said, monkeypatch):
    """Killed once while answering and once while judging: no answer is written and no verdict asked for twice."""
    monkeypatch.setattr(judging, "WAIT_SECONDS", 0.01)
    monkeypatch.setattr(writing, "_BATCHES_IN_CHUNK", 1)
    monkeypatch.setattr(writing, "ROWS_AT_ONCE", 4)
    run, other = lab.run("dpo"), lab.run("sft")
    write, asked = writing.ChatModel.answer, []

    def counted(self, prompts, name, settings=None):
        if len(asked) == 2 and not (run / "again").exists():
            (run / "again").touch()
            raise KeyboardInterrupt
        asked.append((name, len(prompts)))
        return write(self, prompts, name, settings)

    monkeypatch.setattr(writing.ChatModel, "answer", counted)
    with fake_judge(longer, fail=lambda number: 500 if number >= 3 else None) as judge:

        def measure():
            return evaluate(
                run, "win_rate", data=few, judge=RemoteJudge(judge.url, "m"), against=other, answering=SHORT,
                say=said.append,
            )  # fmt: skip

        with pytest.raises(KeyboardInterrupt):
            measure()
        with pytest.raises(Exception, match="failed 6 times"):
            measure()
        assert not [each for each in kept(run, "win_rate", few) if each.settings["judge"]["kind"] == "openai"]
        judge.fail = lambda number: None
        found = measure()
    (run / "again").unlink()
    assert sum(count for _, count in asked) == 2 * len(FEW)
    different = [row for row in found.rows if row["dpo"] != row["sft"]]
    assert len(judge.asked) == 2 * len(different) and found.results["identical"] == len(FEW) - len(different)
    for row in different:
        ours, theirs = len(row["dpo"]), len(row["sft"])
        assert row["outcome"] == ("win" if ours > theirs else "loss" if ours < theirs else "tie")
    assert found.settings["judge"]["prompt"]["instructions"].startswith("You compare two answers")
    assert not list((run / FOLDER).glob("*.part"))


def test_a_judge_with_a_bias_for_a_place_says_so(lab, few, said):
    with fake_judge(always_first) as judge:
        remote = RemoteJudge(judge.url, "m")
        found = evaluate(
            lab.run("dpo"), "win_rate", data=few, judge=remote, against="base", answering=SHORT, say=said.append
        ).results
    assert found["ties"] == len(FEW) and found["first"] == 1.0 and found["inconsistent"]["value"] == 1.0


def test_the_same_measurement_replaces_the_old_one(lab, few, said):
    run = lab.run("sft")
    first = evaluate(run, "answers", data=few, limit=3, answering=SHORT, say=said.append)
    again = evaluate(run, "answers", data=few, limit=3, answering=SHORT, say=said.append)
    assert first.rows == again.rows and first.file_name == again.file_name
    other = evaluate(run, "answers", data=few, limit=4, answering=SHORT, say=said.append)
    assert [row["prompt"] for row in other.rows] == [FEW[index]["prompt"] for index in (0, 3, 6, 9)]
    assert len(kept(run, "answers", few)) == 2


def test_ifeval_and_gsm8k_end_to_end(lab, tmp_path, said):
    """What an untrained model happens to follow, recounted from the rows."""
    instructions = [["punctuation:no_comma"], ["punctuation:no_comma", "keywords:existence"]]
    rows = [
        {
            "prompt": f"Say {n}.",
            "instruction_id_list": instructions[n % 2],
            # As the hub's file has them: every argument, null where it is not the instruction's.
            "kwargs": [{"keywords": ["xyzzy"] if n % 2 else None, "num_words": None} for _ in instructions[n % 2]],
        }
        for n in range(6)
    ]
    run = lab.run("sft")
    told = write_jsonl(tmp_path / "told.jsonl", rows)
    found = evaluate(run, "ifeval", data=told, answering=SHORT, say=said.append)
    strict = [row["strict"] for row in found.rows]
    assert all(len(one) == 1 + n % 2 for n, one in enumerate(strict)) and not any(one[-1] for one in strict[1::2])
    assert found.results["prompt_strict"]["value"] == sum(map(all, strict)) / 6
    assert found.results["instruction_strict"]["value"] == pytest.approx(sum(map(sum, strict)) / 9)
    assert found.results["by_kind"]["keywords:existence"] == {"value": 0.0, "instructions": 3}
    rows[3]["kwargs"][1]["keywords"] = None
    with pytest.raises(InputError, match=r"told.jsonl:4.*needs keywords"):
        evaluate(run, "ifeval", data=write_jsonl(told, rows), say=said.append)

    problems = [{"question": f"What is {n} and {n}?", "answer": f"It is {2 * n}.\n#### {2 * n}"} for n in range(5)]
    data = write_jsonl(tmp_path / "problems.jsonl", problems)
    train = write_jsonl(tmp_path / "train.jsonl", [{"question": "1+1?", "answer": "#### 2"}])
    found = evaluate(run, "gsm8k", data=data, examples=train, shots=1, answering=SHORT, say=said.append)
    right = [row["said"] == row["wanted"] for row in found.rows]
    assert [row["right"] for row in found.rows] == right and found.results["accuracy"]["value"] == sum(right) / 5
    with pytest.raises(InputError, match="has a problem that is asked"):
        evaluate(run, "gsm8k", data=data, examples=data, shots=1, say=said.append)
    with pytest.raises(InputError, match="has 1 problems, --shots asks for 2"):
        evaluate(run, "gsm8k", data=data, examples=train, shots=2, say=said.append)


def test_what_does_not_go_together_is_refused(lab, tmp_path, few, said):
    run, judge = lab.run("sft"), lab.run("reward")
    problems = write_jsonl(tmp_path / "problems.jsonl", [{"question": "1 + 1?", "answer": "#### 2"}])

    def refused(told, target, task, **options):
        with pytest.raises(InputError, match=told):
            evaluate(target, task, say=said.append, **options)

    refused("no task 'los' .*'loss'", run, "los")
    refused("task loss needs --data", run, "loss")
    refused("task win_rate needs --against: base, or the run", run, "win_rate", judge=judge)
    refused("task win_rate needs --judge: a reward model's run", run, "win_rate", against="base")
    refused("--judge belongs to task reward, win_rate; ifeval", run, "ifeval", data=few, judge=judge)
    refused("--shots belongs to task gsm8k, lm_eval", run, "loss", data=few, shots=1)
    refused("--format says how --data is written", run, "reward", judge=judge, data_format="prompt")
    refused("--examples are solved problems", run, "gsm8k", data=problems, examples=problems)
    refused("--samples belongs to task reward", run, "ifeval", data=few, answering=Answering(samples=2))
    refused("--task score", judge, "loss", data=few)
    refused("--task loss", run, "score", data=few)
    refused("is a reward model: it scores answers", judge, "answers")
    refused("a judge is a reward model's run", run, "reward", data=few, judge=run, answering=SHORT)
    refused("no manifest.json", few.parent, "answers")
    assert usual_answering("ifeval").max_new_tokens == 1280 and usual_answering("gsm8k", seed=2).seed == 2
    assert not list((judge / FOLDER).glob("*.part"))


def test_a_merged_model_answers_and_has_no_base_beside_it(lab, tmp_path, few, said):
    """As good as the run that it was made from, which has another place for its loss and its rows."""
    from finetune.cli.main import main

    run, judge, merged = lab.run("dpo"), lab.run("reward"), tmp_path / "merged"
    assert main(["merge", str(run), "--out", str(merged)]) == 0
    found = evaluate(merged, "win_rate", data=few, judge=judge, against=run, answering=SHORT, say=said.append)
    assert all(row["merged"] == row["dpo"] for row in found.rows) and found.results["ties"] == len(FEW)
    with pytest.raises(InputError, match="whole model without a base beside it"):
        evaluate(merged, "win_rate", data=few, judge=judge, against="base", answering=SHORT, say=said.append)
    with pytest.raises(InputError, match="no held-out rows of its own: give prompts with --data"):
        evaluate(merged, "answers", say=said.append)
    with pytest.raises(InputError, match="the run that it was made from"):
        evaluate(merged, "loss", data=few, say=said.append)


def test_a_prompt_without_room_for_an_answer_is_named_before_anything_is_answered(lab, tmp_path, said):
    rows = [{"prompt": "What is 1?"}, {"prompt": "Why? " * 300}]
    data = write_jsonl(tmp_path / "long.jsonl", rows)
    with pytest.raises(InputError, match=r"prompt 2 of 2 \('Why\? .*at most 256 tokens"):
        evaluate(lab.run("sft"), "answers", data=data, answering=SHORT, say=said.append)
    assert not any(line.startswith("answers of") for line in said)


def test_a_run_that_is_not_whole_is_not_measured(lab, tmp_path, few, said):
    broken = tmp_path / "sft-broken"
    shutil.copytree(lab.run("sft"), broken)
    weights = bytearray((broken / "adapter_model.safetensors").read_bytes())
    weights[-1] ^= 1
    (broken / "adapter_model.safetensors").write_bytes(weights)
    with pytest.raises(InputError, match="sha256"):
        evaluate(broken, "answers", data=few, say=said.append)


def test_evaluations_do_not_trouble_the_rest(lab, few, said, capsys):
    """`verify` does not call them unknown files, `show` lists them, and the run is still done for `run`."""
    from finetune.cli.main import main

    run = lab.run("sft")
    evaluate(run, "answers", data=few, limit=3, answering=SHORT, say=said.append)
    assert main(["verify", str(run)]) == 0
    assert "does not know" not in capsys.readouterr().out
    assert main(["show", str(lab.recipe), "--runs", str(lab.runs)]) == 0
    assert f"  answers on {few.name}: 3 prompts answered by base, sft" in capsys.readouterr().out
    assert main(["plan", str(lab.recipe), "--runs", str(lab.runs)]) == 0
    assert len(PAIRS) == 40 and "to do" not in capsys.readouterr().out
