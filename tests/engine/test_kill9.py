"""kill -9 for real: at random moments and inside saves; the final adapter is equal bit for bit."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from tiny import tiny_llama3_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

STEPS = 40


class Nursery:
    def __init__(self, log: Path) -> None:
        self.log = log
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("nursery.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def run(self, argv, *, kill_at=None, kill_after=None) -> int:
        """Exit status of `finetune argv`. kill_after: seconds until the child is sent SIGKILL from outside."""
        request = {"argv": [str(a) for a in argv], "kill_at": kill_at, "log": str(self.log)}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        child = int(self.process.stdout.readline())
        if kill_after is not None:
            timer = threading.Timer(kill_after, os.kill, (child, signal.SIGKILL))
            timer.start()
        status = int(self.process.stdout.readline())
        if kill_after is not None:
            timer.cancel()
        return status

    def close(self):
        self.process.stdin.close()
        self.process.wait()


@pytest.fixture
def nursery(tmp_path):
    nursery = Nursery(tmp_path / "log.txt")
    yield nursery
    nursery.close()


@pytest.fixture
def recipe(tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    tiny_llama3_tokenizer(base)
    words = len(json.loads((base / "tokenizer.json").read_text())["model"]["vocab"])
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=words + 64, max_position_embeddings=256,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(base)
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"What is {i}?"},
                {"role": "assistant", "content": f"It is {i} " * (i % 5 + 1)},
            ]
        }
        for i in range(60)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"""
name: killed
model: {{base: base, load_in: nf4, max_length: 256}}
adapter: {{rank: 4, dropout: 0.1}}
stages:
  sft:
    kind: sft
    data: [{{path: rows.jsonl}}]
    train:
      {{max_steps: {STEPS}, batch_size: 4, micro_batch_size: 2, checkpoint_every: 2, eval_every: 8, early_stop: 100}}
"""
    )
    return path


def result(runs: Path):
    """(hash of the adapter's weights, logged steps without times) of the only finished run."""
    (folder,) = [path for path in (runs / "killed").iterdir() if path.is_dir()]
    assert not folder.name.endswith(".part") and not (folder / "work").exists()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    logged = [(line["step"], line.get("loss"), line.get("grad_norm"), line.get("held_out_loss")) for line in lines]
    return sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest(), logged


@pytest.mark.slow
def test_killed_at_least_twenty_times_the_adapter_is_the_same(nursery, recipe, tmp_path):
    assert nursery.run(["sft", recipe, "--runs", tmp_path / "whole"]) == 0, nursery.log.read_text()
    expected = result(tmp_path / "whole")
    assert [step for step, loss, *_ in expected[1] if loss is not None] == list(range(1, STEPS + 1))

    chance = random.Random(17)
    argv = ["sft", recipe, "--runs", tmp_path / "runs"]
    kills, inside_saves, attempts = 0, 0, 0
    # Killed in turn inside a save and from outside. A session that outlives its kill has finished the run: then the
    # finished folder is taken away and the next run starts from nothing.
    while kills < 22 or inside_saves < 10:
        attempts += 1
        assert attempts < 80, "the kills do not hit"
        inside = attempts % 2 == 0
        if inside:
            status = nursery.run(argv, kill_at=chance.randint(1, 60))
        else:
            status = nursery.run(argv, kill_after=chance.uniform(0.3, 3.0))
        assert status in (0, -signal.SIGKILL), nursery.log.read_text()[-3000:]
        if status == -signal.SIGKILL:
            kills += 1
            inside_saves += inside
        else:
            assert result(tmp_path / "runs") == expected
            (tmp_path / "runs").rename(tmp_path / f"finished-{attempts}")
    assert nursery.run(argv) == 0, nursery.log.read_text()[-3000:]
    assert result(tmp_path / "runs") == expected
    assert "resumed from the checkpoint" in nursery.log.read_text()


@pytest.mark.slow
def test_killed_at_every_durable_call_of_the_ending(nursery, recipe, tmp_path):
    """The last checkpoint, the adapter, the manifest and the rename: a kill at each call leaves all or nothing."""
    argv = ["sft", recipe, "--runs", tmp_path / "runs", "--set", "stages.sft.train.max_steps=2"]
    statuses = []
    for call in range(1, 200):
        statuses.append(nursery.run(argv, kill_at=call))
        folders = [path.name for path in (tmp_path / "runs" / "killed").iterdir() if path.is_dir()]
        finished = [name for name in folders if not name.endswith(".part")]
        assert all((tmp_path / "runs" / "killed" / name / "manifest.json").is_file() for name in finished)
        if finished:
            break
    else:
        pytest.fail("never finished")
    assert statuses.count(-signal.SIGKILL) >= 20, statuses
    assert nursery.run(argv) == 0
    again = result(tmp_path / "runs")
    fresh = ["sft", recipe, "--runs", tmp_path / "whole", "--set", "stages.sft.train.max_steps=2"]
    assert nursery.run(fresh) == 0
    assert again == result(tmp_path / "whole")


CHAIN_STEPS = 6
CHAIN = ("sft", "helpful", "best", "sft2", "ppo", "dpo", "mean")


@pytest.fixture
def chain(recipe, tmp_path):
    """sft → reward model → rejection sampling → sft on what was kept → ppo and dpo, and the mean of the two."""
    pairs = [
        {"prompt": f"What is {i}?", "chosen": f"It is {i}." * (i % 3 + 1), "rejected": f"No {i % 7}."}
        for i in range(40)
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    cut = "batch_size: 4, micro_batch_size: 2, checkpoint_every: 2"
    train = f"{{max_steps: {CHAIN_STEPS}, eval_every: 4, {cut}}}"
    prompts = "prompts: [{path: pairs.jsonl, take: 24}], max_new_tokens: 4"
    head, _, _ = recipe.read_text().partition("stages:")
    recipe.write_text(
        f"""{head}stages:
  sft: {{kind: sft, data: [{{path: rows.jsonl}}], train: {train}}}
  helpful: {{kind: reward, start_from: sft, data: [{{path: pairs.jsonl}}], train: {train}}}
  best: {{kind: reject, policy: sft, reward: helpful, samples: 2, rows_at_once: 4, unfinished: keep, {prompts}}}
  sft2: {{kind: sft, data: [{{stage: best}}], held_out: {{fraction: 0}}, train: {train}}}
  ppo: {{kind: ppo, start_from: sft2, reward: helpful, rollouts: 8, iterations: 3, train: {{{cut}}}, {prompts}}}
  dpo: {{kind: dpo, start_from: sft2, reference: ahead, data: [{{path: pairs.jsonl}}], train: {train}}}
  mean: {{kind: average, of: [ppo, dpo]}}
"""
    )
    return recipe


def finished(runs: Path) -> dict[str, tuple[str, int]]:
    """Of every finished stage: (hash of its weights, or of the rows it kept, and when its manifest was written)."""
    found = {}
    for folder in (runs / "killed").glob("*-*"):
        if (folder / "manifest.json").is_file() and not folder.name.endswith(".part"):
            results = [folder / name for name in ("adapter_model.safetensors", "rows.jsonl", "samples.jsonl")]
            content = b"".join(path.read_bytes() for path in results if path.is_file())
            found[folder.name.partition("-")[0]] = (
                sha256(content).hexdigest(),
                (folder / "manifest.json").stat().st_mtime_ns,
            )
    return found


@pytest.mark.slow
def test_a_chain_killed_at_least_thirty_times_ends_in_the_same_bits(nursery, chain, tmp_path):
    """Kills inside saves and from outside, in every stage; a stage that is finished is never run again."""
    assert nursery.run(["run", chain, "--runs", tmp_path / "whole"]) == 0, nursery.log.read_text()[-3000:]
    expected = {name: weights for name, (weights, _) in finished(tmp_path / "whole").items()}
    assert set(expected) == set(CHAIN)

    chance = random.Random(23)
    runs = tmp_path / "runs"
    argv = ["run", chain, "--runs", runs]
    kills, attempts, rounds = 0, 0, 0
    hit: dict[int, int] = {}  # kills by how many stages were finished then
    before: dict[str, tuple[str, int]] = {}
    while kills < 30 or rounds == 0:
        attempts += 1
        assert attempts < 100, "the kills do not hit, or nothing gets done"
        if attempts % 3:
            status = nursery.run(argv, kill_at=chance.randint(5, 45))
        else:
            status = nursery.run(argv, kill_after=chance.uniform(0.3, 2.0))
        assert status in (0, -signal.SIGKILL), nursery.log.read_text()[-3000:]
        after = finished(runs)
        assert before.items() <= after.items(), "a finished stage was run again"
        assert all(expected[name] == weights for name, (weights, _) in after.items())
        before = after
        if status == -signal.SIGKILL:
            kills += 1
            hit[len(after)] = hit.get(len(after), 0) + 1
        else:
            rounds += 1
            assert set(after) == set(expected)
            runs.rename(tmp_path / f"finished-{rounds}")
            before = {}
    assert len(hit) >= 5, f"kills in most of the seven stages: {hit}"
    assert nursery.run(argv) == 0, nursery.log.read_text()[-3000:]
    assert {name: weights for name, (weights, _) in finished(runs).items()} == expected
