"""Speed of `finetune sft` beside a plain Hugging Face loop and TRL's SFTTrainer: `python tests/bench/sft_speed.py`.

Same base, LoRA start, rows, masks, order, updates of 8 rows, AdamW, constant rate and clipping for all, one process and
one thread each, in turns (A B C A B C …), so that a change of the machine's load meets everybody. Ours is the command
as a user runs it, tokenising included; the others are given tokens. Nobody saves or evaluates between steps.

Clock, CPU seconds and peak memory are taken as watch.py says. Step 1 is left out of every speed. tokens = all but
padding; trained = those that a loss is computed on.
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

BATCH = 8
TOOLS = ("ours", "plain", "trl")
VARIANTS = ("ours", "ours-padded", "ours-micro2", "ours-bf16", "ours-bf16-weights", "ours-nf4")
SETTINGS = {  # what a variant of ours sets on the recipe
    "ours": [],
    "ours-padded": ["stages.sft.train.layout=padded"],
    "ours-micro2": ["stages.sft.train.micro_batch_size=2"],
    "ours-bf16": ["model.compute=bf16"],
    "ours-bf16-weights": ["model.load_in=bf16"],
    "ours-nf4": ["model.load_in=nf4"],
}
TARGETS = (  # (what, other tool, better is, factor)
    ("trained_per_second", "trl", "at least", 3.0),
    ("trained_per_second", "plain", "at least", 1.8),
    ("first_step_seconds", "trl", "at most", 0.5),
    ("peak_mib", "trl", "at most", 0.6),
)
RECIPE = """name: bench
seed: 17
model: {{base: ./base, load_in: fp32, compute: {compute}, template: alpaca, max_length: 1024, device: cpu}}
adapter: {{rank: 16, alpha: 32, dropout: 0.0, targets: all-linear}}
stages:
  sft:
    kind: sft
    data: [{{path: ./train.json}}]
    held_out: {{fraction: 0.0}}
    train: {{max_steps: {steps}, learning_rate: 2.0e-4, batch_size: 8, micro_batch_size: 8, schedule: constant,
            warmup: 0, checkpoint_every: 1000000}}
"""


@dataclass(frozen=True)
class Measured:
    """One run of one tool. Speeds: steps 2 to the last. load: the machine's 1-minute average when it began."""

    tool: str
    trained_per_second: float
    tokens_per_second: float
    trained_per_cpu_second: float
    first_step_seconds: float
    first_step_cpu_seconds: float
    whole_seconds: float
    peak_mib: float
    losses: list[float]
    load: float


def main() -> int:
    options = _options()
    tools = list(options.tools or (VARIANTS if options.variants else TOOLS))
    runs: list[Measured] = []
    with tempfile.TemporaryDirectory(prefix="finetune-bench-") as name:
        folder = Path(name)
        variables = environment(options.threads)
        compute = "bf16" if options.dtype == "bf16" else "auto"
        (folder / "recipe.yaml").write_text(RECIPE.format(steps=options.rows // BATCH, compute=compute), "utf-8")
        texts = shared("data/alpaca_en.json")
        make = [sys.executable, BENCH / "assets.py", folder, "--rows", str(options.rows)]
        make += ["--shared", texts] if texts else []
        subprocess.run(make + (["--small"] if options.small else []), env=variables, check=True)
        rows = [json.loads(line) for line in (folder / "tokens.jsonl").read_text("utf-8").splitlines()]
        if len(rows) != options.rows:
            raise SystemExit(f"{options.rows} rows were asked for, but there are only {len(rows)}")
        for turn in range(options.rounds):
            for tool in tools:
                work = folder / f"{tool}-{turn}"
                work.mkdir()
                runs.append(_measure(tool, folder, work, options, variables, rows))
                print(f"round {turn + 1} {_line(runs[-1])}", flush=True)
    result = _result(runs, tools, rows, options, real=texts is not None)
    print(_report(result, runs, tools))
    if options.json is not None:
        options.json.write_text(json.dumps(result | {"runs": [asdict(run) for run in runs]}, indent=1) + "\n", "utf-8")
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", type=int, default=64, help="training rows, a multiple of 8; 8 make a step")
    parser.add_argument("--rounds", type=int, default=3, help="how often each tool runs")
    parser.add_argument("--threads", type=int, default=1, help="threads of every tool")
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32", help="matrix products of every tool")
    parser.add_argument("--variants", action="store_true", help="ours in several settings instead of the others")
    parser.add_argument("--tools", nargs="+", choices=[*TOOLS, "trl-padding-free", *VARIANTS[1:]], help="just these")
    parser.add_argument("--small", action="store_true", help="a tiny model, to try the benchmark itself")
    parser.add_argument("--json", type=Path, help="write everything measured to this file")
    options = parser.parse_args()
    if options.rows % BATCH or options.rows < 2 * BATCH:
        parser.error("--rows has to be a multiple of 8, and at least 16: the first step is not measured")
    return options


def _command(tool: str, folder: Path, work: Path, options: argparse.Namespace) -> tuple[list[Any], Callable[[], Any]]:
    """What to run, and a function that gives the file of step lines as soon as there is one."""
    if tool.startswith("ours"):
        command: list[Any] = [Path(sys.executable).with_name("finetune"), "sft", folder / "recipe.yaml", "--runs", work]
        for setting in SETTINGS[tool]:
            command += ["--set", setting]
        return command, lambda: next(work.glob("bench/sft-*.part/work/metrics.jsonl"), None)
    steps_file = work / "steps.jsonl"
    command = [sys.executable, BENCH / "peers.py", tool, folder, steps_file, "--steps", str(options.rows // BATCH)]
    command += ["--bf16"] if options.dtype == "bf16" else []
    return command, lambda: steps_file if steps_file.exists() else None


def _measure(
    tool: str,
    folder: Path,
    work: Path,
    options: argparse.Namespace,
    variables: dict[str, str],
    rows: Sequence[dict[str, list[int]]],
) -> Measured:
    command, find_lines = _command(tool, folder, work, options)
    seen = watch(command, find_lines, work / "log.txt", variables)
    if len(seen.losses) != options.rows // BATCH:
        raise SystemExit(f"{tool} took {len(seen.losses)} steps, not {options.rows // BATCH}")
    measured = rows[BATCH:]
    trained = sum(sum(row["trained"][1:]) for row in measured)
    seconds = seen.clock[-1] - seen.clock[0]
    return Measured(
        tool=tool,
        trained_per_second=trained / seconds,
        tokens_per_second=sum(len(row["ids"]) for row in measured) / seconds,
        trained_per_cpu_second=trained / (seen.cpu[-1] - seen.cpu[0]),
        first_step_seconds=seen.clock[0],
        first_step_cpu_seconds=seen.cpu[0],
        whole_seconds=seen.whole_seconds,
        peak_mib=seen.peak_mib,
        losses=seen.losses,
        load=seen.load,
    )


def _result(
    runs: Sequence[Measured],
    tools: Sequence[str],
    rows: Sequence[dict[str, list[int]]],
    options: argparse.Namespace,
    *,
    real: bool,
) -> dict[str, Any]:
    """Medians over rounds, ratios of ours to the others, loss differences, and what it was measured on."""
    figures = ("trained_per_second", "tokens_per_second", "trained_per_cpu_second")
    figures += ("first_step_seconds", "first_step_cpu_seconds", "whole_seconds", "peak_mib")
    medians = {
        tool: {name: median(getattr(run, name) for run in runs if run.tool == tool) for name in figures}
        for tool in tools
    }
    first = tools[0]
    losses = {tool: next(run.losses for run in runs if run.tool == tool) for tool in tools}
    lengths = [len(row["ids"]) for row in rows]
    batches = [lengths[i : i + BATCH] for i in range(0, len(lengths), BATCH)]
    cells = sum(max(batch) * len(batch) for batch in batches)
    return {
        "medians": medians,
        "ratios": {t: {n: medians[first][n] / medians[t][n] for n in figures} for t in tools[1:]},
        "losses": losses,
        "largest_loss_difference": {
            t: max(abs(a - b) for a, b in zip(losses[first], losses[t], strict=True)) for t in tools[1:]
        },
        "targets": [
            {
                "what": f"{what} of ours / {other}",
                "wanted": f"{better} {factor}",
                "is": medians["ours"][what] / medians[other][what],
            }
            for what, other, better, factor in TARGETS
            if {"ours", other} <= set(tools)
        ],
        "data": {
            "rows": len(rows),
            "text": "real (alpaca_en)" if real else "made up",
            "tokens": sum(lengths),
            "trained": sum(sum(row["trained"][1:]) for row in rows),
            "longest": max(lengths),
            "padding_of_batches_of_8": 1 - sum(lengths) / cells,
        },
        "settings": {"rounds": options.rounds, "threads": options.threads, "dtype": options.dtype},
        "machine": {
            **machine(),
            "load": [round(run.load, 1) for run in runs],
        },
    }


def _line(run: Measured) -> str:
    return (
        f"{run.tool:18} {run.trained_per_second:7.0f} trained/s {run.tokens_per_second:7.0f} tokens/s "
        f"{run.trained_per_cpu_second:7.0f} trained/CPU-s  first step {run.first_step_seconds:5.1f} s "
        f"({run.first_step_cpu_seconds:.1f} CPU)  peak {run.peak_mib:6.0f} MiB  "
        f"last loss {run.losses[-1]:.5f}  load {run.load:.1f}"
    )


def _report(result: dict[str, Any], runs: Sequence[Measured], tools: Sequence[str]) -> str:
    data, machine, settings = result["data"], result["machine"], result["settings"]
    loads = machine["load"]
    lines = [
        "",
        f"{data['rows']} rows, {data['text']}: {data['tokens']:,} tokens, {data['trained']:,} trained, longest "
        f"{data['longest']}; batches of 8 in this order are {data['padding_of_batches_of_8']:.0%} padding",
        f"{settings['rounds']} rounds in turns, {settings['threads']} thread(s) each, {settings['dtype']}; "
        f"{machine['cores']} cores ({machine['cpu']}), load {min(loads)} to {max(loads)}",
        "",
        "| median | trained/s | tokens/s | trained/CPU-s | first step, s | its CPU-s | whole command, s | peak MiB |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    names = list(next(iter(result["medians"].values())))
    for tool in tools:
        values = result["medians"][tool]
        cells = (f"{values[n]:.1f}" if n.endswith("seconds") else f"{values[n]:,.0f}" for n in names)
        lines.append(f"| {tool} | {' | '.join(cells)} |")
    for tool in tools[1:]:
        ratios = (f"{result['ratios'][tool][n]:.2f}" for n in names)
        lines.append(f"| {tools[0]} / {tool} | {' | '.join(ratios)} |")
    lines += ["", f"| loss of step | {' | '.join(tools)} |", f"|---|{'---:|' * len(tools)}"]
    for step, row in enumerate(zip(*(result["losses"][tool] for tool in tools), strict=True), 1):
        lines.append(f"| {step} | {' | '.join(f'{loss:.6f}' for loss in row)} |")
    differences = (f"{t} {d:.2e}" for t, d in result["largest_loss_difference"].items())
    lines += [f"largest difference from {tools[0]}: {', '.join(differences) or 'nothing to compare'}", ""]
    lines += [f"target: {t['what']}: {t['wanted']}; is {t['is']:.2f}" for t in result["targets"]]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
