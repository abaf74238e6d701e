"""Why a stage runs: every sort of change, in the recipe's words. No training: manifests are written by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune.plan import plan as plan_module
from finetune.plan.manifest import write_manifest
from finetune.plan.plan import Plan, PlannedStage, make_plan
from finetune.plan.reasons import why
from finetune.recipe.load import recipe_from_dict

CONFIG = {
    "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 100,
    "intermediate_size": 128,
}  # fmt: skip
Data = dict[str, Any]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("base", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(CONFIG))
        (tmp_path / name / "model.safetensors").write_bytes(name.encode())
    for name in ("demo", "more", "pairs", "prompts", "extra"):
        (tmp_path / f"{name}.jsonl").write_text(f'{{"text": "{name}"}}\n')
    for name in ("adapter", "adapter2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_model.safetensors").write_bytes(name.encode())
        (tmp_path / name / "adapter_config.json").write_text("{}")
    return tmp_path


def recipe() -> Data:
    return {
        "name": "chat",
        "model": {"base": "base"},
        "stages": {
            "sft": {
                "kind": "sft",
                "data": [{"path": "demo.jsonl"}, {"path": "more.jsonl"}],
                "held_out": {"data": [{"path": "extra.jsonl"}]},
                "train": {"learning_rate": 1e-4},
            },
            "helpful": {"kind": "reward", "start_from": "sft", "data": [{"path": "pairs.jsonl"}]},
            "best": {"kind": "reject", "policy": "sft", "reward": "helpful", "prompts": [{"path": "prompts.jsonl"}]},
            "sft2": {"kind": "sft", "start_from": "adapter", "data": [{"stage": "best"}]},
            "mean": {"kind": "average", "of": ["sft", "sft2"]},
        },
    }


def planned(folder: Path, data: Data) -> Plan:
    return make_plan(recipe_from_dict(data, folder), folder / "runs")


def finish(plan: Plan, *, at: str = "2026-01-01T00:00:00+00:00", only: tuple[str, ...] = ()) -> None:
    """Manifests of finished runs, with what reasons need of them."""
    for stage in plan.stages:
        if only and stage.name not in only:
            continue
        stage.folder.mkdir(parents=True)
        manifest = {
            "stage": stage.name,
            "kind": stage.kind,
            "finished": at,
            "fingerprint": stage.fingerprint,
            "settings": stage.settings.model_dump(mode="json"),
            "made_of": stage.made_of,
            "base": {"name": plan.base.name, "revision": plan.base.revision, "digest": plan.base.digest},
            "inputs": {name: plan.stage(name).fingerprint for name in stage.inputs},
            "files": {},
        }
        write_manifest(stage.folder, manifest)


def reasons(folder: Path, change: Callable[[Data], Any], stage: str) -> list[str]:
    """Why a stage would run after a change of the recipe (or of files), everything having been done before."""
    finish(planned(folder, recipe()))
    data = recipe()
    change(data)
    plan = planned(folder, data)
    return why(plan, plan.stage(stage))


def stage_of(data: Data, name: str) -> Data:
    stage: Data = data["stages"][name]
    return stage


@pytest.mark.parametrize(
    ("change", "stage", "expected"),
    [
        (
            lambda d: stage_of(d, "sft")["train"].update(learning_rate=2.0),
            "sft",
            ["train.learning_rate 0.0001 -> 2.0"],
        ),
        (lambda d: stage_of(d, "sft").update(too_long="error"), "sft", ["too_long drop -> error"]),
        (lambda d: stage_of(d, "sft")["train"].update(max_steps=7), "sft", ["train.max_steps null -> 7"]),
        (lambda d: stage_of(d, "sft")["train"].update(betas=[0.9, 0.95]), "sft", ["train.betas[1] 0.999 -> 0.95"]),
        (lambda d: d.update(seed=18), "sft", ["seed 17 -> 18"]),
        (lambda d: d["model"].update(load_in="bf16"), "sft", ["model.load_in nf4 -> bf16"]),
        (lambda d: d["model"].update(system="Be kind.\nAlways."), "sft", ['model.system null -> "Be kind.\\nAlways."']),
        (lambda d: d["model"].update(base="other"), "sft", ["model.base base -> other"]),
        (
            lambda d: d.update(adapter={"rank": 8, "dora": True}),
            "sft",
            ["adapter.rank 64 -> 8", "adapter.dora false -> true"],
        ),
        (lambda d: d.update(adapter={"targets": ["q_proj"]}), "sft", ['adapter.targets all-linear -> ["q_proj"]']),
        (lambda d: stage_of(d, "sft")["data"][0].update(take=5), "sft", ["data[0].take null -> 5"]),
        (
            lambda d: stage_of(d, "sft")["data"][0].update(path="pairs.jsonl"),
            "sft",
            ["data[0] demo.jsonl -> pairs.jsonl"],
        ),
        (lambda d: stage_of(d, "sft")["data"].pop(0), "sft", ["data: demo.jsonl was removed, or taken otherwise"]),
        (
            lambda d: stage_of(d, "sft")["data"].append({"path": "pairs.jsonl"}),
            "sft",
            ["data: pairs.jsonl was added, or taken otherwise"],
        ),
        (
            lambda d: stage_of(d, "sft")["data"].append({"path": "demo.jsonl"}),
            "sft",
            ["data: a source is given more often"],
        ),
        (
            lambda d: stage_of(d, "sft")["held_out"]["data"][0].update(path="more.jsonl"),
            "sft",
            ["held_out.data[0] extra.jsonl -> more.jsonl"],
        ),
        (
            lambda d: d["stages"].update(sft2={"kind": "dpo", "data": [{"path": "pairs.jsonl"}]}),
            "sft2",
            ["kind sft -> dpo"],
        ),
        (lambda d: stage_of(d, "sft2").update(start_from="adapter2"), "sft2", ["start_from adapter -> adapter2"]),
        (lambda d: stage_of(d, "sft2").update(start_from="sft"), "sft2", ["start_from adapter -> sft"]),
        (lambda d: stage_of(d, "sft2").update(start_from=None), "sft2", ["start_from adapter -> null"]),
        (
            lambda d: stage_of(d, "sft2").update(data=[{"path": "demo.jsonl"}]),
            "sft2",
            ["data[0] stage best -> demo.jsonl"],
        ),
        (lambda d: stage_of(d, "mean").update(of=["sft", "sft2", "adapter"]), "mean", None),
    ],
)
def test_a_changed_setting_is_named(folder: Path, change: Any, stage: str, expected: list[str] | None) -> None:
    if expected is None:
        expected = ['of ["sft", "sft2"] -> ["sft", "sft2", "adapter"]']
    assert reasons(folder, change, stage) == expected


@pytest.mark.parametrize(
    ("path", "stage", "expected"),
    [
        ("demo.jsonl", "sft", ["data[0]: the content of demo.jsonl changed"]),
        ("extra.jsonl", "sft", ["held_out.data[0]: the content of extra.jsonl changed"]),
        ("prompts.jsonl", "best", ["prompts[0]: the content of prompts.jsonl changed"]),
        ("base/model.safetensors", "sft", ["model.base: the content of base changed"]),
        ("adapter/adapter_model.safetensors", "sft2", ["start_from: the content of adapter changed"]),
    ],
)
def test_changed_content_is_named(folder: Path, path: str, stage: str, expected: list[str]) -> None:
    assert reasons(folder, lambda _: (folder / path).write_text('{"text": "new"}\n'), stage) == expected


def test_a_change_above_is_traced_to_where_it_was_made(folder: Path) -> None:
    finish(planned(folder, recipe()))
    data = recipe()
    stage_of(data, "sft")["train"]["learning_rate"] = 2e-4
    plan = planned(folder, data)
    cause = "sft: train.learning_rate 0.0001 -> 0.0002"
    assert why(plan, plan.stage("helpful")) == [f"stage sft, which it reads (start_from), changed ({cause})"]
    assert why(plan, plan.stage("best")) == [
        f"stage helpful, which it reads (reward), changed ({cause})",
        f"stage sft, which it reads (policy), changed ({cause})",
    ]
    assert why(plan, plan.stage("sft2")) == [f"stage best, which it reads (data[0]), changed ({cause})"]
    assert why(plan, plan.stage("mean"))[0] == f"stage sft, which it reads (of[0]), changed ({cause})"


def test_what_counts_for_all_stages_is_not_said_again_as_a_cause(folder: Path) -> None:
    assert reasons(folder, lambda d: d.update(seed=18), "helpful") == [
        "seed 17 -> 18",
        "stage sft, which it reads (start_from), changed",
    ]


def test_many_causes_are_cut(folder: Path) -> None:
    def change(data: Data) -> None:
        stage_of(data, "sft")["train"].update(max_steps=1, batch_size=4, schedule="linear", warmup=0.5, epochs=3.0)

    (reason,) = reasons(folder, change, "helpful")
    assert reason.startswith("stage sft, which it reads (start_from), changed (sft: train.epochs 2.0 -> 3.0; ")
    assert reason.endswith(" and 2 more)")


def test_a_data_set_of_the_hub_names_both_commits(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def with_hub(revision: str) -> Data:
        data = recipe()
        stage_of(data, "sft")["data"][0] = {"hub": "org/name", "revision": revision}
        return data

    finish(planned(folder, with_hub("1" * 40)))
    plan = planned(folder, with_hub("2" * 40))
    assert why(plan, plan.stages[0]) == [f"data[0]: org/name changed: commit {'1' * 40} -> {'2' * 40}"]


def test_new_rules_and_new_keys_of_another_version(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = planned(folder, recipe())
    old = json.loads(json.dumps(before.stages[0].made_of))
    del old["stage"]["too_long"]
    old["stage"]["colour"] = "red"
    old["rules"] = plan_module.RULES - 1
    other = before.stages[0].folder.with_name("sft-0123456789ab")
    other.mkdir(parents=True)
    base = {"name": "base", "revision": None, "digest": before.base.digest}
    settings = before.stages[0].settings.model_dump(mode="json")
    manifest = {"stage": "sft", "finished": "2026", "settings": settings, "made_of": old, "base": base, "inputs": {}}
    write_manifest(other, manifest)
    assert why(before, before.stages[0]) == [
        f"this version of finetune reads settings otherwise (rules {plan_module.RULES - 1} -> {plan_module.RULES})",
        "colour red (this version does not have this key)",
        "too_long drop (an earlier version did not have this key)",
    ]
    write_manifest(other, {"stage": "sft", "finished": "2026"})
    assert why(before, before.stages[0]) == [
        "the run of 2026 is by an older version, which did not record what it was made of"
    ]


def test_never_run_done_and_interrupted(folder: Path) -> None:
    plan = planned(folder, recipe())
    stage = plan.stages[0]
    assert why(plan, stage) == ["never run"]
    (stage.part / "work" / "checkpoints" / "step-00000012").mkdir(parents=True)
    (stage.part / "work" / "checkpoints" / "step-00000007").mkdir()
    (stage.part / "work" / "checkpoints" / "step-00000099.part").mkdir()
    plan = planned(folder, recipe())
    words = "another run of the same settings was interrupted: goes on from"
    assert why(plan, plan.stages[0]) == [f"{words} its checkpoint of step 12"]
    for name in ("step-00000012", "step-00000007"):
        (stage.part / "work" / "checkpoints" / name).rmdir()
    assert why(plan, plan.stages[0]) == [f"{words} what it left"]
    finish(plan, only=("sft",))
    plan = planned(folder, recipe())
    assert why(plan, plan.stages[0]) == []


def test_the_newest_finished_run_is_compared_and_none_of_a_longer_name(folder: Path) -> None:
    def with_rate(rate: float) -> Data:
        data = recipe()
        stage_of(data, "sft")["train"]["learning_rate"] = rate
        data["stages"]["sft-2"] = {"kind": "sft", "data": [{"path": "demo.jsonl"}]}
        return data

    finish(planned(folder, with_rate(1.0)), at="2026-02-01T00:00:00+00:00", only=("sft",))
    finish(planned(folder, with_rate(2.0)), at="2026-01-01T00:00:00+00:00", only=("sft",))
    finish(planned(folder, with_rate(3.0)), at="2026-03-01T00:00:00+00:00", only=("sft-2",))
    plan = planned(folder, with_rate(4.0))
    assert why(plan, plan.stages[0]) == ["train.learning_rate 1.0 -> 4.0"]


def test_a_broken_manifest_explains_nothing(folder: Path) -> None:
    plan = planned(folder, recipe())
    broken: PlannedStage = plan.stages[0]
    other = broken.folder.with_name("sft-0123456789ab")
    other.mkdir(parents=True)
    (other / "manifest.json").write_text("{")
    assert why(plan, broken) == ["never run"]
