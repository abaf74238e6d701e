"""What Weights & Biases (offline) and TensorBoard have of real runs, read back by their own means."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stage_recipes import PAIRS, QUESTIONS, tiny_base
from tracked_lab import CHAIN, SECRET, Tracked, tracked
from wandb_records import sessions

__all__ = ["tiny_base", "tracked"]

pytestmark = pytest.mark.slow


def test_the_runs_end_as_they_should(tracked: Tracked) -> None:
    """The last: a finished run's files are as its manifest says, also once wandb's service has ended."""
    assert tracked.codes == [0, -9, 0, 130, 1, 0, -9, 0], tracked.printed
    assert "sft: already done, nothing to do" in tracked.printed


def test_nothing_is_sent_offline_and_the_key_is_in_no_file(tracked: Tracked) -> None:
    assert not tracked.contacted
    host = socket.gethostname()
    for path in (tracked.root / "runs").rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert SECRET.encode() not in content, path
            assert host not in path.name, path
    assert SECRET not in tracked.printed


@pytest.mark.parametrize("stage", CHAIN)
def test_each_stage_is_a_run_in_the_group_of_its_chain(tracked: Tracked, stage: str) -> None:
    session, manifest = tracked.session(f"chain/{stage}"), tracked.manifest(f"chain/{stage}")
    assert session.run.project == "the-project" and list(session.run.tags) == ["a-tag"]
    assert session.run.display_name == f"chain/{stage}" and session.run.job_type == CHAIN[stage]["kind"]
    assert session.run.run_id.startswith(f"{stage}-{manifest['fingerprint'][:12]}-")
    assert session.run.run_group == tracked.session("chain/sft").run.run_group
    assert session.run.run_group.startswith("chain-")
    assert session.ended == 0 and session.summary["ended"] == "finished"
    assert session.run.host == "-" and not session.run.git.remote_url
    assert str(tracked.root).encode() not in session.raw, "where it ran is nobody's business"


@pytest.mark.parametrize("stage", CHAIN)
def test_the_config_says_what_the_stage_was_made_of(tracked: Tracked, stage: str) -> None:
    config, manifest = tracked.session(f"chain/{stage}").config, tracked.manifest(f"chain/{stage}")
    assert config["settings"] == manifest["settings"]
    assert config["fingerprint"] == manifest["fingerprint"]
    assert config["base"] == {"name": "tiny", "revision": None, "digest": manifest["base"]["digest"]}
    assert config["resolved"] == manifest["resolved"]
    assert {name: value["fingerprint"] for name, value in config["inputs"].items()} == manifest["inputs"]
    for name, value in config["inputs"].items():
        assert value["wandb"]["run"] == tracked.session(f"chain/{name}").run.run_id
    if "data" in CHAIN[stage]:
        assert config["digests"]["data[0]"] == manifest["made_of"]["stage"]["data"][0]["content"]


@pytest.mark.parametrize("stage", [name for name in CHAIN if name != "mean"])
def test_wandb_has_the_lines_of_metrics_jsonl_over_our_steps(tracked: Tracked, stage: str) -> None:
    session = tracked.session(f"chain/{stage}")
    wanted = [{k: v for k, v in line.items() if v is not None} for line in tracked.lines(f"chain/{stage}")]
    assert session.lines == wanted and wanted
    assert session.steps["*"] == "step"
    assert session.summary["metrics"] == tracked.manifest(f"chain/{stage}")["metrics"]


def test_held_out_answers_kept_rows_and_scored_pairs_are_tables(tracked: Tracked) -> None:
    """Two rows each, as the recipe says."""
    answers = tracked.session("chain/ppo").table("held_out_answers")
    assert [(step, len(rows)) for step, rows in answers] == [(0, 2), (4, 2)]
    said = [json.loads(line) for line in (tracked.folders["chain/ppo"] / "samples.jsonl").read_text().splitlines()]
    first = [(line["answer"], line["reward"]) for line in said if line["step"] == 0][:2]
    assert [(row["answer"], round(row["reward"], 6)) for row in answers[0][1]] == first
    assert all(row["prompt"] in {question["prompt"] for question in QUESTIONS} for row in answers[0][1])

    [(step, kept)] = tracked.session("chain/best").table("kept")
    rows = [json.loads(line) for line in (tracked.folders["chain/best"] / "rows.jsonl").read_text().splitlines()]
    assert step == 1 and [row["kept"] for row in kept] == [row["messages"][-1]["content"] for row in rows[:2]]
    assert all(row["score"] >= row["worst_score"] for row in kept)

    [(step, pairs)] = tracked.session("chain/helpful").table("held_out_pairs")
    assert step == 2 and len(pairs) == 2
    for row in pairs:
        [pair] = [pair for pair in PAIRS if pair["prompt"] in row["prompt"]]
        assert (row["chosen"], row["rejected"]) == (pair["chosen"], pair["rejected"])
        assert row["right"] == (row["chosen_score"] > row["rejected_score"])


def test_outputs_are_artifacts_without_sampled_texts(tracked: Tracked) -> None:
    for stage in CHAIN:
        [made] = [a for a in tracked.session(f"chain/{stage}").artifacts if a.type != "run_table"]
        fingerprint = tracked.manifest(f"chain/{stage}")["fingerprint"]
        assert made.name == f"chain-{stage}" and set(made.aliases) == {"latest", fingerprint[:12]}
        files = {content.path for content in made.manifest.contents}
        assert made.type == ("rows" if stage == "best" else "adapter")
        assert ("rows.jsonl" if stage == "best" else "adapter_model.safetensors") in files
        assert not files & {"samples.jsonl", "metrics.jsonl", "manifest.json"}
    assert "dpo: wandb: offline, so the artifacts this stage is made from are named in its config only" in (
        tracked.printed
    )


def test_a_killed_run_goes_on_as_the_same_run_without_gap_or_double_points(tracked: Tracked) -> None:
    """Killed after step 5 with a checkpoint of step 3: of the steps that are done again, those are told again that
    wandb had not yet written."""
    killed, resumed = sessions(tracked.folders["killed/sft"])
    assert killed.run.run_id == resumed.run.run_id and killed.run.run_group == resumed.run.run_group
    assert killed.ended is None and resumed.ended == 0
    assert killed.lines and resumed.lines
    assert [row["_step"] for row in [*killed.history, *resumed.history]] == list(range(13)), "numbers of one run"
    clocks = {"seconds", "tokens_per_second", "memory_gib"}

    def results(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{k: v for k, v in line.items() if v is not None and k not in clocks} for line in lines]

    assert results([*killed.lines, *resumed.lines]) == results(tracked.lines("killed/sft"))
    assert results(scalars(tracked.folders["killed/sft"])) == results(rounded(tracked.lines("killed/sft")))


@pytest.mark.parametrize("name", ["online", "killed"])
def test_a_server_has_every_point_of_a_killed_run_once(tracked: Tracked, name: str) -> None:
    """As the run sent them, and as `wandb sync` sends the two folders of the offline one."""
    wandb = json.loads((tracked.folders[f"{name}/sft"] / "wandb" / "finetune.json").read_text())
    rows = tracked.server.rows[wandb["run"]]
    assert [row["_step"] for row in rows] == list(range(13))
    points = [(row["step"], row.get("loss", row.get("held_out_loss"))) for row in rows]
    assert points == [
        (line["step"], line.get("loss", line.get("held_out_loss"))) for line in tracked.lines(f"{name}/sft")
    ]
    told = tracked.server.runs[wandb["run"]]
    assert told["jobType"] == "sft" and told["groupName"].startswith(f"{name}-")
    made = [given["input"] for asked, given in tracked.server.asked if asked == "CreateArtifact"]
    assert f"{name}-sft" in {one["artifactCollectionName"] for one in made}


def test_only_what_should_is_sent(tracked: Tracked) -> None:
    """Runs that were offline and not synced are unknown to the server; of the machine it knows nothing. (`wandb sync`
    says which program it is itself.)"""
    assert {run.rsplit("-", 2)[0] for run in tracked.server.rows} == {"sft"} and len(tracked.server.rows) == 2
    sent = json.dumps([given for asked, given in tracked.server.asked])
    assert str(tracked.root) not in sent and SECRET not in sent
    programs = {given.get("program") for _, given in tracked.server.asked} - {None}
    assert "finetune" in programs and not any("tracked_runs" in program for program in programs)


def test_interrupted_and_failed_runs_say_so(tracked: Tracked) -> None:
    stopped, wild = tracked.session("stopped/sft"), tracked.session("wild/sft")
    assert stopped.ended == 130 and stopped.summary["ended"] == "interrupted"
    assert wild.ended == 1 and wild.summary["ended"] == "failed"
    assert stopped.lines == tracked.lines("stopped/sft")


def scalars(run: Path) -> list[dict[str, Any]]:
    """What TensorBoard reads in the event files, as lines of metrics.jsonl."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    lines = []
    for path in sorted((run / "tensorboard").iterdir()):
        for event in EventFileLoader(str(path)).Load():
            values = {value.tag: value for value in event.summary.value}
            if values and not any(value.metadata.plugin_data.plugin_name == "text" for value in values.values()):
                lines.append({"step": event.step} | {tag: value.tensor.float_val[0] for tag, value in values.items()})
    return lines


def rounded(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """As float32, which event files hold."""
    return [
        {k: v if k == "step" else float(np.float32(v)) for k, v in line.items() if isinstance(v, int | float)}
        for line in lines
    ]


@pytest.mark.parametrize("stage", [name for name in CHAIN if name != "mean"])
def test_tensorboard_reads_metrics_jsonl(tracked: Tracked, stage: str) -> None:
    assert scalars(tracked.folders[f"chain/{stage}"]) == rounded(tracked.lines(f"chain/{stage}"))


def test_tensorboard_finds_curves_and_texts(tracked: Tracked) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(tracked.folders["chain/ppo"] / "tensorboard")).Reload()
    assert {"loss", "reward", "kl", "held_out_reward"} <= set(found.Tags()["scalars"])
    [stage] = found.Tensors("stage")
    assert b'"fingerprint"' in stage.tensor_proto.string_val[0]
    tables = found.Tensors("samples/held_out_answers")
    assert [event.step for event in tables] == [0, 4]
    assert tables[0].tensor_proto.string_val[0].startswith(b"| prompt | answer | reward | tokens |\n| ---")
