"""Rounds run: Llama 3's way and Llama 2's in small, each round on what the one before has made."""

from __future__ import annotations

from typing import Any

from stage_recipes import Walk, dpo_stage, reward_stage, sft_stage, train, walk, write_recipe

__all__ = ["walk", "write_recipe"]

SHORT = {"train": train(max_steps=1), "held_out": {"fraction": 0.0}}
SAMPLING = {
    "prompts": [{"path": "questions.jsonl", "take": 6}],
    "max_new_tokens": 4,
    "unfinished": "keep",
    "samples": 2,
}


def llama_3(repeat: int = 2) -> dict[str, Any]:
    more_each_round = {"round": [9 + number for number in range(repeat)]}
    group = {
        "judge": reward_stage(**{**SHORT, "data": [{"path": "pairs.jsonl", "take": more_each_round}]}),
        "best": {"kind": "reject", "policy": {"first": "seed", "then": "mean"}, "reward": "judge", **SAMPLING},
        "sft": sft_stage(data=[{"path": "questions.jsonl"}, {"stage": "best", "rounds": "all"}], **SHORT),
        "one": dpo_stage(start_from="sft", **SHORT),
        "two": dpo_stage(start_from="sft", beta=0.3, **SHORT),
        "mean": {"kind": "average", "of": ["one", "two"]},
    }
    return {"seed": sft_stage(**SHORT), "rounds": {"repeat": repeat, "stages": group}}


def test_each_round_goes_on_from_the_one_before_and_none_is_repeated(walk: Walk) -> None:
    done = walk(llama_3())
    assert list(done.folders) == ["seed", *(f"{s}.{n}" for n in (1, 2) for s in llama_3()["rounds"]["stages"])]
    assert set(done.manifest("best.1")["inputs"]) == {"seed", "judge.1"}
    assert set(done.manifest("best.2")["inputs"]) == {"mean.1", "judge.2"}
    assert set(done.manifest("mean.2")["inputs"]) == {"one.2", "two.2"}
    kept = [done.manifest(f"best.{number}")["metrics"]["kept"] for number in (1, 2)]
    assert min(kept) > 0
    rows = [[source["rows"] for source in done.manifest(f"sft.{n}")["data"]["sources"]] for n in (1, 2)]
    assert rows == [[24, kept[0]], [24, *kept]], "the second round learns from what both have kept"
    samples = [(done.folders[f"best.{number}"] / "samples.jsonl").read_text() for number in (1, 2)]
    assert samples[0] != samples[1], "the policies differ"

    again = walk(llama_3(3))
    assert {name: again.folders[name] for name in done.folders} == dict(done.folders)
    ran = [line.partition(":")[0] for line in again.said.splitlines() if ": done: " in line]
    assert ran == [f"{stage}.3" for stage in llama_3()["rounds"]["stages"]], "only the third round was to do"
    by_hand = again.manifest("mean.3")["recipe"]["stages"]
    assert by_hand["best.3"]["policy"] == "mean.2" and "rounds" not in by_hand


def test_llama_2_restarts_from_the_base_on_the_best_of_all_rounds(walk: Walk) -> None:
    prompts = {"prompts": [{"path": "questions.jsonl", "take": {"round": [4, 6]}}]}
    group = {
        "best": {
            "kind": "reject",
            "policy": {"first": "sft", "then": "tuned"},
            "checker": {"kind": "regex", "pattern": "."},
            "earlier": "all",
            **SAMPLING,
            **prompts,
        },
        "tuned": sft_stage(data=[{"path": "questions.jsonl"}, {"stage": "best"}], **SHORT),
    }
    done = walk({"sft": sft_stage(**SHORT), "v": {"repeat": 2, "stages": group}})
    assert set(done.manifest("best.2")["inputs"]) == {"tuned.1", "best.1"}
    assert done.manifest("best.2")["metrics"]["earlier"] == 8, "four prompts' two answers compete again"
    assert set(done.manifest("tuned.2")["inputs"]) == {"best.2"}, "no adapter of an earlier round"
