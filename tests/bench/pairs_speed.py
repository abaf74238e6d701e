"""Speed of `finetune dpo` and `finetune reward` beside TRL's trainers: `python tests/bench/pairs_speed.py`.

Same base, LoRA start, reward head, pairs, tokens, order, updates, AdamW, constant rate and clipping for both, one
process and one thread each, in turns, on two mixes: the lengths of dpo_en, and long prompts (768 tokens and 96 + 96 of
answers). Ours is the command as a user runs it, tokenising included; TRL is given tokens. DPO is the sigmoid loss, and
the reference's log-probabilities are made in every step on both sides: it is one epoch, where making them ahead gains
nothing. Nobody saves or evaluates between steps. Clock, CPU seconds and peak memory are taken as watch.py says. Step 1
is left out of every speed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from watch import BENCH, environment, machine, shared, watch

MIXES = ("dpo_en", "long")
KINDS = ("dpo", "reward")
SETTINGS = {  # what a variant of ours sets on the recipe, {kind} filled in
    "ours": [],
    "ours-micro1": ["stages.{kind}.train.micro_batch_size=1"],
    "ours-padded": ["stages.{kind}.train.layout=padded"],
    "ours-bf16": ["model.compute=bf16"],
}
MICRO_OF_TRL = {"trl": None, "trl-micro1": 1}
TARGETS = (  # (kind, what, ours to TRL's is, factor)
    ("dpo", "pairs_per_second", "at least", 4.0),
    ("dpo", "pairs_per_cpu_second", "at least", 4.0),
    ("dpo", "peak_mib", "at most", 0.4),
    ("reward", "pairs_per_second", "at least", 2.0),
    ("reward", "pairs_per_cpu_second", "at least", 2.0),
    ("reward", "peak_mib", "at most", 0.4),
)
FIGURES = ("pairs_per_second", "pairs_per_cpu_second", "first_step_cpu_seconds", "whole_cpu_seconds", "peak_mib")
RATE = 1e-4
RECIPE = """name: bench
seed: 17
model: {{base: ./base, load_in: fp32, compute: auto, template: alpaca, max_length: 1024, device: cpu}}
adapter: {{rank: 16, alpha: 32, dropout: 0.0, targets: all-linear}}
stages:
  dpo:
    kind: dpo
    data: [{{path: ./train.json}}]
    held_out: {{fraction: 0.0}}
    train: {{epochs: 1, learning_rate: {rate}, batch_size: {batch}, micro_batch_size: {batch}, schedule: constant,
            warmup: 0, checkpoint_every: 1000000}}
  reward:
    kind: reward
    data: [{{path: ./train.json}}]
    held_out: {{fraction: 0.0}}
    train: {{epochs: 1, learning_rate: {rate}, batch_size: {batch}, micro_batch_size: {batch}, schedule: constant,
            warmup: 0, checkpoint_every: 1000000}}
"""


@dataclass(frozen=True)
class Measured:
    """One run of one tool. Speeds: steps 2 to the last. load: the machine's 1-minute average when it began."""

    mix: str
    kind: str
    tool: str
    pairs_per_second: float
    pairs_per_cpu_second: float
    first_step_cpu_seconds: float
    whole_cpu_seconds: float
    peak_mib: float
    losses: list[float]
    load: float


def main() -> int:
    options = _options()
    runs: list[Measured] = []
    data: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="finetune-bench-") as name:
        texts = shared("data/dpo_en.json")
        variables = environment(options.threads)
        for mix in options.mixes:
            data[mix] = _make(Path(name) / mix, mix, options, texts, variables)
        for turn in range(options.rounds):
            for mix in options.mixes:
                for kind in options.kinds:
                    for tool in options.tools:
                        work = Path(name) / mix / f"{kind}-{tool}-{turn}"
                        work.mkdir()
                        runs.append(_measure(mix, kind, tool, work, options, variables))
                        print(f"round {turn + 1} {_line(runs[-1])}", flush=True)
    result = _result(runs, data, options, real=texts is not None)
    print(_report(result, options))
    if options.json is not None:
        options.json.write_text(json.dumps(result | {"runs": [asdict(run) for run in runs]}, indent=1) + "\n", "utf-8")
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--pairs", type=int, default=20, help="a multiple of --batch; one epoch over them is trained")
    parser.add_argument("--batch", type=int, default=4, help="pairs of one update, and of one forward pass")
    parser.add_argument("--rounds", type=int, default=3, help="how often each tool runs")
    parser.add_argument("--threads", type=int, default=1, help="threads of every tool")
    parser.add_argument("--mixes", nargs="+", choices=MIXES, default=list(MIXES))
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--tools", nargs="+", choices=[*SETTINGS, *MICRO_OF_TRL], default=["ours", "trl"])
    parser.add_argument("--small", action="store_true", help="a tiny model, to try the benchmark itself")
    parser.add_argument("--json", type=Path, help="write everything measured to this file")
    options = parser.parse_args()
    if options.pairs % options.batch or options.pairs < 2 * options.batch:
        parser.error("--pairs has to be a multiple of --batch, and two of it at least: the first step is not measured")
    return options


def _make(
    folder: Path, mix: str, options: argparse.Namespace, texts: Path | None, variables: dict[str, str]
) -> dict[str, Any]:
    """Base, texts and tokens of a mix; returns what is in them."""
    folder.mkdir()
    (folder / "recipe.yaml").write_text(RECIPE.format(batch=options.batch, rate=RATE), "utf-8")
    make: list[Any] = [sys.executable, BENCH / "pairs_assets.py", folder, mix, "--pairs", str(options.pairs)]
    make += ["--shared", texts] if texts else []
    subprocess.run(make + (["--small"] if options.small else []), env=variables, check=True)
    pairs = [json.loads(line) for line in (folder / "tokens.jsonl").read_text("utf-8").splitlines()]
    if len(pairs) != options.pairs:
        raise SystemExit(f"{options.pairs} pairs were asked for, but {mix} has only {len(pairs)}")
    prompts = [len(pair["prompt_ids"]) for pair in pairs]
    answers = [[len(pair[f"{side}_ids"]) for side in ("chosen", "rejected")] for pair in pairs]
    longest = [prompt + max(both) for prompt, both in zip(prompts, answers, strict=True)]
    cells = sum(2 * options.batch * max(longest[i : i + options.batch]) for i in range(0, options.pairs, options.batch))
    return {
        "pairs": len(pairs),
        "prompt_tokens": sum(prompts),
        "answer_tokens": sum(map(sum, answers)),
        "longest": max(longest),
        "padded_cells": cells,
    }


def _command(
    kind: str, tool: str, work: Path, options: argparse.Namespace
) -> tuple[list[Any], Callable[[], Path | None]]:
    """What to run, and a function that gives the file of step lines as soon as there is one."""
    folder = work.parent
    if tool in SETTINGS:
        finetune = Path(sys.executable).with_name("finetune")
        command: list[Any] = [finetune, kind, folder / "recipe.yaml", "--runs", work]
        for setting in SETTINGS[tool]:
            command += ["--set", setting.format(kind=kind)]
        return command, lambda: next(work.glob(f"bench/{kind}-*.part/work/metrics.jsonl"), None)
    steps_file = work / "steps.jsonl"
    micro = MICRO_OF_TRL[tool] or options.batch
    command = [sys.executable, BENCH / "pairs_peers.py", kind, folder, steps_file, "--batch", str(options.batch)]
    command += ["--micro", str(micro), "--rate", str(RATE)]
    return command, lambda: steps_file if steps_file.exists() else None


def _measure(
    mix: str, kind: str, tool: str, work: Path, options: argparse.Namespace, variables: dict[str, str]
) -> Measured:
    seen = watch(*_command(kind, tool, work, options), work / "log.txt", variables)
    if len(seen.losses) != options.pairs // options.batch:
        raise SystemExit(f"{tool} took {len(seen.losses)} steps, not {options.pairs // options.batch}")
    measured = options.pairs - options.batch
    return Measured(
        mix=mix,
        kind=kind,
        tool=tool,
        pairs_per_second=measured / (seen.clock[-1] - seen.clock[0]),
        pairs_per_cpu_second=measured / (seen.cpu[-1] - seen.cpu[0]),
        first_step_cpu_seconds=seen.cpu[0],
        whole_cpu_seconds=seen.whole_cpu_seconds,
        peak_mib=seen.peak_mib,
        losses=seen.losses,
        load=seen.load,
    )


def _result(
    runs: Sequence[Measured], data: dict[str, Any], options: argparse.Namespace, *, real: bool
) -> dict[str, Any]:
    """Of every mix and kind: medians over rounds, ratios of the first tool to the others, and how far losses differ."""
    tables = []
    for mix in options.mixes:
        for kind in options.kinds:
            own = [run for run in runs if (run.mix, run.kind) == (mix, kind)]
            medians = {
                tool: {name: median(getattr(run, name) for run in own if run.tool == tool) for name in FIGURES}
                for tool in options.tools
            }
            losses = {tool: next(run.losses for run in own if run.tool == tool) for tool in options.tools}
            first, *others = options.tools
            tables.append(
                {
                    "mix": mix,
                    "kind": kind,
                    "medians": medians,
                    "ratios": {t: {n: medians[first][n] / medians[t][n] for n in FIGURES} for t in others},
                    "losses": losses,
                    "largest_loss_difference": {
                        t: max(abs(a - b) for a, b in zip(losses[first], losses[t], strict=True)) for t in others
                    },
                }
            )
    return {
        "tables": tables,
        "data": data,
        "text": "real (dpo_en)" if real else "made up",
        "settings": {"rounds": options.rounds, "threads": options.threads, "batch": options.batch},
        "machine": {**machine(), "load": [round(run.load, 1) for run in runs]},
    }


def _line(run: Measured) -> str:
    return (
        f"{run.mix:7} {run.kind:7} {run.tool:12} {run.pairs_per_second:6.2f} pairs/s "
        f"{run.pairs_per_cpu_second:6.2f} pairs/CPU-s  first step {run.first_step_cpu_seconds:5.1f} CPU-s  "
        f"peak {run.peak_mib:6.0f} MiB  losses {run.losses[0]:.5f} to {run.losses[-1]:.5f}  load {run.load:.1f}"
    )


def _report(result: dict[str, Any], options: argparse.Namespace) -> str:
    machine, settings = result["machine"], result["settings"]
    lines = [
        "",
        f"{settings['rounds']} rounds in turns, {settings['threads']} thread(s) each, float32, {settings['batch']} "
        f"pairs an update; {machine['cores']} cores ({machine['cpu']}), "
        f"load {min(machine['load'])} to {max(machine['load'])}",
    ]
    for mix, found in result["data"].items():
        rows = found["prompt_tokens"] * 2 + found["answer_tokens"]
        lines.append(
            f"{mix}: {found['pairs']} pairs, prompts {found['prompt_tokens']:,} tokens, answers "
            f"{found['answer_tokens']:,}, longest row {found['longest']}; as rows padded in batches "
            f"{found['padded_cells']:,} cells, {1 - rows / found['padded_cells']:.0%} of them padding"
        )
    for table in result["tables"]:
        lines += [
            "",
            f"| {table['kind']}, {table['mix']} | pairs/s | pairs/CPU-s | first step, CPU-s | whole command, CPU-s | "
            "peak MiB |",
            "|---|---:|---:|---:|---:|---:|",
        ]
        for tool, values in table["medians"].items():
            shown = (f"{values[n]:.2f}" if "pairs" in n else f"{values[n]:,.1f}" for n in FIGURES)
            lines.append(f"| {tool} | {' | '.join(shown)} |")
        for tool, ratios in table["ratios"].items():
            lines.append(f"| {options.tools[0]} / {tool} | {' | '.join(f'{ratios[n]:.2f}' for n in FIGURES)} |")
        for tool, losses in table["losses"].items():
            lines.append(f"losses, {tool}: {' '.join(f'{loss:.6f}' for loss in losses)}")
        for tool, difference in table["largest_loss_difference"].items():
            lines.append(f"largest difference of {tool} from {options.tools[0]}: {difference:.2e}")
        for kind, what, better, factor in TARGETS:
            if kind == table["kind"] and options.tools[0] == "ours" and "trl" in table["ratios"]:
                lines.append(f"target: {what} of ours / trl: {better} {factor}; is {table['ratios']['trl'][what]:.2f}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
