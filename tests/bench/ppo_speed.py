"""Where PPO's time goes, and its update beside a padded, unshared one: `python tests/bench/ppo_speed.py`.

A random LLaMA with 25M parameters in its blocks and 32,000 words; prompts of 32 to 384 tokens, four answers to each, of
geometric lengths (a set of stop tokens). `ragged` is the stage as it is: no padding, a prompt once for its answers.
`padded` is the same stage with `train.layout: padded`: every answer a row of its own with its prompt, padded to the
longest of its micro-batch, rows of like length together. Sampling and scoring are the same in both.

One process a run, in turns. CPU seconds by phase, of all iterations but the first. Parity: reward, KL and losses of
both are compared.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import yaml
from assets import SHAPE, SMALL, WORDS, write_base, write_tokenizer
from watch import environment

SAMPLES, MEAN = 4, 80
TARGET = 1.8
LAYOUTS = ("ragged", "padded")
PHASES = ("sampling", "scoring", "comparing", "update")


def main() -> int:
    options = _options()
    if options.worker:
        _work(options)
        return 0
    runs: dict[str, list[dict[str, Any]]] = {layout: [] for layout in LAYOUTS}
    with tempfile.TemporaryDirectory(prefix="finetune-bench-") as name:
        options.folder = Path(name)
        _assets(options)
        for turn in range(options.rounds):
            for layout in LAYOUTS:
                load = os.getloadavg()[0]
                result = _start(layout, options) | {"load": round(load, 1)}
                runs[layout].append(result)
                print(f"round {turn + 1} {layout:7} {json.dumps(result['cpu'])} load {result['load']}", flush=True)
    print(_report(runs, options))
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rollouts", type=int, default=32, help="answers in an iteration")
    parser.add_argument("--iterations", type=int, default=3, help="the first is not measured")
    parser.add_argument("--longest", type=int, default=128, help="tokens at which an answer is cut")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--small", action="store_true", help="a tiny model, to try the benchmark itself")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def _assets(options: argparse.Namespace) -> None:
    folder, random = options.folder, np.random.default_rng(5)
    write_tokenizer(folder / "base", None)
    write_base(folder / "base", SMALL if options.small else SHAPE)
    # Words of the tokenizer that are not among the stop tokens of _work.
    words = [f"w{i}" for i in range(WORDS // MEAN + 10, WORDS - 3)]
    count = options.rollouts // SAMPLES * options.iterations
    lengths = np.exp(np.linspace(np.log(32), np.log(384), count)).astype(int)
    rows = [{"prompt": " ".join(random.choice(words, n))} for n in random.permutation(lengths)]
    pairs = [{"prompt": "w9000", "chosen": f" w{9001 + i}", "rejected": f" w{9100 + i}"} for i in range(4)]
    for name, content in (("prompts", rows), ("pairs", pairs)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
    for layout in LAYOUTS:
        recipe = {
            "name": layout,
            "model": {"base": "base", "load_in": "fp32", "max_length": 1024, "template": "plain"},
            "adapter": {"rank": 16, "alpha": 32},
            "stages": {
                "helpful": {
                    "kind": "reward",
                    "data": [{"path": "pairs.jsonl"}],
                    "held_out": {"fraction": 0},
                    "train": {"max_steps": 1, "batch_size": 4},
                },
                "ppo": {
                    "kind": "ppo",
                    "prompts": [{"path": "prompts.jsonl"}],
                    "held_out": {"fraction": 0},
                    "reward": "helpful",
                    "rollouts": options.rollouts,
                    "samples": SAMPLES,
                    "iterations": options.iterations,
                    "max_new_tokens": options.longest,
                    "train": {"batch_size": 16, "micro_batch_size": 8, "learning_rate": 1e-5, "layout": layout},
                },
            },
        }
        (folder / f"{layout}.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")


def _start(layout: str, options: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, __file__, "--worker", layout, "--folder", str(options.folder)]
    variables = environment(options.threads)
    process = subprocess.run(command, env=variables, stdout=subprocess.PIPE, text=True, cwd=options.folder)
    if process.returncode != 0:
        raise SystemExit(f"{layout} failed ({process.returncode})")
    return json.loads(process.stdout.splitlines()[-1])


def _work(options: argparse.Namespace) -> None:
    """One run of the stage; the phases' CPU seconds are taken around the engine's own functions."""
    from finetune.engine import loop, session
    from finetune.engine import ppo as engine
    from finetune.execute import run_recipe
    from finetune.recipe.load import load_recipe
    from finetune.stages import ppo as stage

    spent: dict[str, list[float]] = {phase: [] for phase in PHASES}

    def timed(phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            began = time.process_time()
            result = function(*args, **kwargs)
            spent[phase].append(time.process_time() - began)
            return result

        return run

    engine.Iterations.sample = timed("sampling", engine.Iterations.sample)
    engine.Iterations._compare = timed("comparing", engine.Iterations._compare)
    open_judge = stage.open_judge
    stage.open_judge = lambda *args: timed("scoring", open_judge(*args))
    session.stop_ids = lambda words: frozenset(range(2, 2 + WORDS // MEAN))
    one_step, update = loop._one_step, timed("update", loop._one_step)
    # The reward stage's steps, before anything is sampled, do not count.
    loop._one_step = lambda *args: (update if spent["sampling"] else one_step)(*args)
    loaded = load_recipe(options.folder / f"{options.worker}.yaml")
    runs = options.folder / "runs" / str(time.time_ns())
    plan = run_recipe(loaded, runs, lambda line: None)
    log = [json.loads(line) for line in (plan.stage("ppo").folder / "metrics.jsonl").read_text().splitlines()]
    steps = len(log) // len(spent["sampling"])
    cpu = {phase: round(sum(times[1:] if phase != "update" else times[steps:]), 2) for phase, times in spent.items()}
    keys = ("reward", "kl", "policy_loss", "value_loss", "answer_tokens")
    print(json.dumps({"cpu": cpu, "parity": [[line.get(key) for key in keys] for line in log], "steps": steps}))


def _report(runs: dict[str, list[dict[str, Any]]], options: argparse.Namespace) -> str:
    loads = [run["load"] for measured in runs.values() for run in measured]
    lines = [
        "",
        f"{options.iterations - 1} iterations of {options.rollouts} answers, {SAMPLES} to a prompt, in "
        f"{runs['ragged'][0]['steps']} steps each; {options.threads} thread(s), load {min(loads)} to {max(loads)}",
        "",
        "| median CPU seconds | sampling | scoring | comparing | update | all |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    values = {layout: {p: median(r["cpu"][p] for r in measured) for p in PHASES} for layout, measured in runs.items()}
    for layout, cpu in values.items():
        cells = [f"{cpu[phase]:.1f}" for phase in PHASES] + [f"{sum(cpu.values()):.1f}"]
        lines.append(f"| {layout} | " + " | ".join(cells) + " |")
    ratios = [f"{values['padded'][p] / max(values['ragged'][p], 1e-9):.2f}" for p in PHASES]
    whole = sum(values["padded"].values()) / sum(values["ragged"].values())
    lines.append("| padded / ragged | " + " | ".join([*ratios, f"{whole:.2f}"]) + " |")
    ours, theirs = (
        np.array([[v or 0.0 for v in line] for line in runs[layout][0]["parity"]], dtype=float) for layout in LAYOUTS
    )
    steps = runs["ragged"][0]["steps"]
    off = float(np.abs(ours[:steps] - theirs[:steps]).max())
    lines += ["", f"parity: reward, KL and losses of the first iteration within {off:.1e}"]
    lines += [f"update: target {TARGET}x, measured {float(ratios[-1]):.2f}x"]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
