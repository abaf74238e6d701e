"""The reject stage on a tiny policy: what it writes, what later stages read of it, and what it says."""

from __future__ import annotations

import json
from itertools import combinations

import numpy as np
import pytest
from reject_lab import PROMPTS, reject_lab, reject_stage
from stage_recipes import dpo_stage, reward_stage, sft_stage, write_jsonl

from finetune.cli.main import main
from finetune.errors import InputError, RecipeError

__all__ = ["reject_lab"]

FIELDS = {"text", "score", "parts", "ids", "tokens", "logprob", "finished", "temperature"}


@pytest.fixture(scope="module")
def chain(reject_lab):
    """Both sorts of rows, and stages that learn from them, in one recipe."""
    few = {"max_steps": 2, "batch_size": 4, "micro_batch_size": 2}
    return reject_lab.run(
        {
            "best": reject_stage(),
            "pairs": reject_stage(keep="pairs"),
            "sft2": sft_stage(data=[{"stage": "best"}, {"path": "questions.jsonl"}], train=few),
            "reward2": reward_stage(data=[{"stage": "pairs"}], train=few),
            "dpo": dpo_stage(data=[{"stage": "pairs"}], start_from="sft", train=few),
            "again": reject_stage(prompts=[{"stage": "best"}]),
        }
    )


def test_every_sample_is_written(chain):
    lines = chain.lines()
    assert [line["prompt"] for line in lines] == [row["prompt"] for row in PROMPTS]
    assert [line["origin"] for line in lines] == [f"prompts.jsonl:{number}" for number in range(1, 25)]
    assert lines[6]["columns"] == {"answer": "#### 6", "safety": True}
    samples = [sample for line in lines for sample in line["samples"]]
    assert len(samples) == 24 * 4 and all(set(sample) - {"kept", "lost"} == FIELDS for sample in samples)
    for sample in samples:
        assert sample["tokens"] == len(sample["ids"]) <= 12 and sample["logprob"] < 0 and sample["temperature"] == 1.0
        assert sample["finished"] or sample["tokens"] == 12
        assert sample["parts"] == {"reward": sample["score"]}
    metrics = chain.manifest()["metrics"]
    assert metrics["samples"] == 96 and metrics["prompts"] == 24
    assert metrics["tokens"] == sum(sample["tokens"] for sample in samples)
    assert metrics["finished"] == sum(sample["finished"] for sample in samples) / 96
    assert metrics["score"] == pytest.approx(np.mean([sample["score"] for sample in samples]))
    lost = [sample["lost"] for sample in samples if "lost" in sample]
    assert metrics["lost"] == {why: lost.count(why) for why in sorted(set(lost))} and "unfinished" in lost


def test_the_best_finished_answer_of_each_prompt_becomes_a_row(chain):
    expected = []
    for line in chain.lines():
        finished = [s for s in line["samples"] if s["finished"] and s["text"].strip()]
        if finished:
            best = max(finished, key=lambda sample: sample["score"])
            turns = [{"role": "user", "content": line["prompt"]}, {"role": "assistant", "content": best["text"]}]
            expected.append({"messages": turns})
    assert chain.lines("rows.jsonl") == expected
    metrics = chain.manifest()["metrics"]
    assert metrics["kept"] == metrics["kept_prompts"] == len(expected) == chain.manifest()["proof"]["rows"]


def test_pairs_are_the_best_against_the_worst(chain):
    rows = iter(chain.lines("rows.jsonl", "pairs"))
    for line in chain.lines(stage="pairs"):
        usable = [s for s in line["samples"] if s["finished"] and s["text"].strip()]
        scores = [sample["score"] for sample in usable]
        if len({sample["text"] for sample in usable}) < 2 or max(scores) == min(scores):
            continue
        row = next(rows)
        best, worse = (max(usable, key=lambda s: s["score"]), min(usable, key=lambda s: s["score"]))
        assert row["prompt"] == [{"role": "user", "content": line["prompt"]}]
        assert row["chosen"] == [{"role": "assistant", "content": best["text"]}]
        assert row["rejected"] == [{"role": "assistant", "content": worse["text"]}]
        assert row["margin"] == pytest.approx(best["score"] - worse["score"])
    assert next(rows, None) is None


def test_later_stages_learn_from_the_rows(chain):
    """Each reads rows.jsonl and nothing else of the folder."""
    kept = chain.manifest("best")["metrics"]["kept"]
    (from_stage, from_file) = chain.manifest("sft2")["data"]["sources"]
    assert from_stage["rows"] == kept and from_stage["format"] == "messages (detected)" and from_file["rows"] == 24
    pairs = chain.manifest("pairs")["metrics"]["kept"]
    for stage in ("reward2", "dpo"):
        (source,) = chain.manifest(stage)["data"]["sources"]
        assert source["rows"] == pairs and source["format"] == "pairs (detected)"
    assert chain.manifest("again")["metrics"]["prompts"] == kept
    assert chain.lines(stage="again")[0]["columns"] == {"answer": chain.kept()[0][0]["text"]}


def test_best_of_k_is_the_mean_over_all_subsets(chain):
    metrics = chain.manifest()["metrics"]
    for k in (1, 2, 4):
        means = [
            np.mean([max(subset) for subset in combinations([s["score"] for s in line["samples"]], k)])
            for line in chain.lines()
        ]
        assert metrics["best_of"][str(k)] == pytest.approx(np.mean(means))
    assert list(metrics["best_of"]) == ["1", "2", "4"] and metrics["kl_bound"]["1"] == 0.0
    assert metrics["best_of"]["1"] < metrics["best_of"]["2"] < metrics["best_of"]["4"]
    assert b"<svg" in (chain.folders["best"] / "best_of.svg").read_bytes()


def test_scores_are_those_of_eval(chain, reject_lab, tmp_path):
    """Where an answer's text gives the sampled tokens again, `finetune eval` scores it the same."""
    rows, scores = [], []
    for line in chain.lines():
        for sample in line["samples"]:
            if sample["finished"] and sample["text"].isascii() and sample["text"]:
                rows.append({"prompt": line["prompt"], "completion": sample["text"]})
                scores.append(sample["score"])
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    run = str(chain.folders["helpful"])
    assert main(["eval", run, "--data", str(data), "--out", str(tmp_path / "out.jsonl")]) == 0
    found = [json.loads(line)["score"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    same = np.isclose(found, scores, atol=1e-5)
    assert same.mean() > 0.5  # a policy this small splits words as no tokenizer does
    differ = chain.manifest()["proof"]["tokens_differ"]
    kept = [sample["score"] for samples in chain.kept() for sample in samples]
    kept_again = sum(np.isclose(score, found, atol=1e-5).any() for score in kept)
    assert kept_again >= len(kept) - differ


def test_metrics_of_every_chunk(chain):
    lines = chain.lines("metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2]  # 4 x 16 / 4 = 16 prompts a chunk
    assert [line["prompts"] for line in lines] == [16, 8]
    assert sum(line["kept"] for line in lines) == chain.manifest()["metrics"]["kept"]
    assert sum(line["tokens"] for line in lines) == chain.manifest()["metrics"]["tokens"]
    assert chain.manifest()["resolved"]["prompts_per_chunk"] == 16


def test_the_bare_base_stays_bare_beside_a_reward_model(reject_lab):
    ruled = reject_lab.reject(policy=None, checker={"kind": "finished"}, unfinished="keep")
    judged = reject_lab.reject(policy=None, unfinished="keep")
    ids = [[[sample["ids"] for sample in line["samples"]] for line in run.lines()] for run in (ruled, judged)]
    assert ids[0] == ids[1]
    assert ids[0] != [[sample["ids"] for sample in line["samples"]] for line in reject_lab.reject().lines()]


def test_two_reward_models(reject_lab):
    run = reject_lab.reject(safety={"reward": "safe", "threshold": 0.4})
    by_safety = 0
    for line in run.lines():
        for sample in line["samples"]:
            parts = sample["parts"]
            counts = line["columns"]["safety"] or 1 / (1 + np.exp(-parts["safety"])) < 0.4
            assert sample["score"] == (parts["safety"] if counts else parts["reward"])
            by_safety += counts
    assert 16 < by_safety < 96


def test_a_function_scores(reject_lab):
    stage = reject_stage(checker={"kind": "function", "name": "short"}, unfinished="keep")
    seen = []

    def short(prompt, text):
        seen.append(prompt.columns["answer"])
        return -len(text)

    run = reject_lab.run({"best": stage}, functions={"short": short})
    assert set(seen) == {row["answer"] for row in PROMPTS}
    for line in run.lines():
        assert [sample["score"] for sample in line["samples"]] == [-len(sample["text"]) for sample in line["samples"]]
    with pytest.raises(InputError, match=r"no function 'short' was given.*run_recipe"):
        reject_lab.run({"best": {**stage, "samples": 3}})


def test_nothing_kept_says_what_the_scores_were(reject_lab):
    with pytest.raises(InputError, match=r"no answer is kept of 96 to 24 prompts: scores from .* lower threshold"):
        reject_lab.reject(threshold=1e6)
    (part,) = [path for path in (reject_lab.folder / "runs" / "lab").glob("best-*.part")]
    assert (part / "work" / "journal.jsonl").is_file()


def test_a_prompt_that_lacks_the_column_is_named_before_anything_is_sampled(reject_lab):
    with pytest.raises(InputError, match=r"prompts\.jsonl:1: field 'right': the checker compares with this column"):
        reject_lab.reject(checker={"kind": "number", "column": "right"})


def test_what_the_checks_say(reject_lab):
    with pytest.raises(RecipeError, match=r"stages\.best\.policy: .*helpful \(reward\)"):
        reject_lab.reject(policy="helpful")
    with pytest.raises(RecipeError, match=r"stages\.best\.earlier.*: .*sft \(sft\)"):
        reject_lab.reject(earlier=["sft"])


def test_earlier_rounds_compete(reject_lab):
    """Scored anew by this stage's judge; prompts that only they have are kept as well."""
    write_jsonl(reject_lab.folder / "few.jsonl", PROMPTS[:4])
    run = reject_lab.run(
        {
            "first": reject_stage(checker={"kind": "regex", "pattern": "It"}),
            "best": reject_stage(prompts=[{"path": "few.jsonl"}], earlier=["first"], duplicates="keep"),
            "last": reject_stage(earlier=["first", "best"], duplicates="keep", reward="safe"),
        }
    )
    lines, first = run.lines(), {line["key"]: line for line in run.lines(stage="first")}
    assert len(lines) == 24 and len(first) == 24
    assert [len(line["samples"]) for line in lines] == [8] * 4 + [4] * 20
    for line in lines:
        old = [sample for sample in line["samples"] if "from" in sample]
        assert [sample["ids"] for sample in old] == [sample["ids"] for sample in first[line["key"]]["samples"]]
        assert {sample["from"] for sample in old} == {"first"}
        assert all(sample["score"] == sample["parts"]["reward"] for sample in old)
        assert line["columns"] == first[line["key"]]["columns"]
    new = [[sample["ids"] for sample in line["samples"] if "from" not in sample] for line in lines[:4]]
    assert new != [[sample["ids"] for sample in first[line["key"]]["samples"]] for line in lines[:4]]
    metrics = run.manifest()["metrics"]
    assert metrics["prompts"] == 4 and metrics["prompts_earlier"] == 20 and metrics["earlier"] == 96
    assert metrics["samples"] == 16 and metrics["kept"] > 4 and metrics["kept_earlier"] > 0
    # A third round counts the first one's samples once, though the second took them over.
    assert [len(line["samples"]) for line in run.lines(stage="last")] == [12] * 4 + [8] * 20


def test_the_best_temperature_is_found(reject_lab):
    run = reject_lab.reject(temperature_search={"candidates": [0.3, 1.0, 3.0], "prompts": 6})
    resolved = run.manifest()["resolved"]
    tried = resolved["temperature_search"]
    assert [one["temperature"] for one in tried] == [0.3, 1.0, 3.0] and {one["prompts"] for one in tried} == {6}
    best = max(tried, key=lambda one: one["best"])["temperature"]
    assert resolved["temperature"] == [best]
    assert {sample["temperature"] for line in run.lines() for sample in line["samples"]} == {best}
    assert any(f"temperature {best:g} is the best of those tried" in line for line in run.said)
    assert [line["step"] for line in run.lines("metrics.jsonl")] == [1, 2, 3, 4, 5]


def test_a_completion_base_gets_rows_of_prompt_and_completion(reject_lab):
    stage = reject_stage(policy=None, checker={"kind": "regex", "pattern": "z"}, unfinished="keep")
    few = {"max_steps": 1, "batch_size": 2, "micro_batch_size": 2}
    run = reject_lab.run(
        {
            "best": stage,
            "pairs": {**stage, "keep": "pairs"},
            "sft2": sft_stage(data=[{"stage": "best"}], train=few),
            "dpo": dpo_stage(data=[{"stage": "pairs"}], train=few),
        },
        {"template": "plain"},
        above=False,
    )
    rows, lines = run.lines("rows.jsonl"), run.lines()
    assert {tuple(row) for row in rows} == {("prompt", "completion")}
    texts = {(line["prompt"], sample["text"]) for line in lines for sample in line["samples"]}
    assert all((row["prompt"], row["completion"]) in texts for row in rows)
    assert run.manifest("sft2")["data"]["sources"][0]["format"] == "prompt_completion (detected)"
