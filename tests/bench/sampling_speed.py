"""Speed of sampling beside Hugging Face generate: `python tests/bench/sampling_speed.py`.

k = 8 answers to every prompt, by a random LLaMA with 25M parameters in its blocks and 32,000 words. Prompts have 32 to
384 tokens, spread evenly in the logarithm. Answers end when one of a set of stop tokens is drawn, so their lengths are
geometric, cut at --longest; Hugging Face's are made to end at the very same lengths by a logits processor that forbids
the stop token and then forces it. Both draw from the whole vocabulary at temperature 1, both get the prompts sorted by
length. Hugging Face generate: prompts padded on the left, num_return_sequences=8, its own defaults; how many prompts to
give to a call is tried out in the first round, and the best is what ours is compared with. Only ours keeps
log-probabilities.

One process a run, one thread each, in turns. tokens/s: of the answers alone. Parity: greedy answers of both are
compared, outside the clock.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from assets import SHAPE, SMALL, WORDS, write_base
from watch import environment, machine

SAMPLES, STOP, PAD = 8, 2, 0
TARGET = 1.4


def main() -> int:
    options = _options()
    if options.worker:
        _work(options)
        return 0
    runs: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory(prefix="finetune-bench-") as name:
        options.folder = Path(name)
        variables = environment(options.threads)
        _start("assets", options, variables)
        for turn in range(options.rounds):
            peers = [f"hf-{count}" for count in options.hf_prompts] if turn == 0 else [_best(runs)]
            for tool in ["ours", *peers]:
                load = os.getloadavg()[0]
                result = _start(tool, options, variables) | {"load": round(load, 1)}
                runs.setdefault(tool, []).append(result)
                print(f"round {turn + 1} {tool:6} {_line(result)}", flush=True)
    print(_report(runs, options))
    if options.json is not None:
        options.json.write_text(json.dumps({"runs": runs, "machine": machine()}, indent=1) + "\n", "utf-8")
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--mean", type=int, default=80, help="mean length of the answers, in tokens, were they not cut")
    parser.add_argument("--longest", type=int, default=192, help="tokens at which an answer is cut")
    parser.add_argument("--rows", type=int, default=64, help="answers that ours writes side by side")
    parser.add_argument("--hf-prompts", type=int, nargs="+", default=[1, 2, 4, 8], help="prompts of a call, to try")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32", help="weights and products of both")
    parser.add_argument("--small", action="store_true", help="a tiny model, to try the benchmark itself")
    parser.add_argument("--json", type=Path, help="write everything measured to this file")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def _start(tool: str, options: argparse.Namespace, variables: dict[str, str]) -> dict[str, Any]:
    """Run a worker in a process of its own; returns what it measured."""
    command = [sys.executable, __file__, "--worker", tool, "--folder", options.folder, "--dtype", options.dtype]
    for name in ("prompts", "mean", "longest", "rows", "threads"):
        command += [f"--{name}", getattr(options, name)]
    command += ["--small"] if options.small else []
    process = subprocess.run([str(part) for part in command], env=variables, stdout=subprocess.PIPE, text=True)
    if process.returncode != 0:
        raise SystemExit(f"{tool} failed ({process.returncode})")
    return json.loads(process.stdout.splitlines()[-1])


def _best(runs: dict[str, list[dict[str, Any]]]) -> str:
    """Hugging Face's best number of prompts a call, by CPU seconds: other work on the machine bears less on those."""
    return min((tool for tool in runs if tool != "ours"), key=lambda tool: runs[tool][0]["cpu_seconds"])


def _line(run: dict[str, Any]) -> str:
    return (
        f"{run['tokens'] / run['seconds']:6.0f} tokens/s {run['tokens'] / run['cpu_seconds']:6.0f} tokens/CPU-s  "
        f"prefill {run['prefill_seconds']:5.1f} s, the rest {run['seconds'] - run['prefill_seconds']:6.1f} s  "
        f"peak {run['peak_mib']:5.0f} MiB  load {run['load']}"
    )


def _report(runs: dict[str, list[dict[str, Any]]], options: argparse.Namespace) -> str:
    best, ours = _best(runs), runs["ours"]
    lengths, loads = np.array(ours[0]["lengths"]), [run["load"] for measured in runs.values() for run in measured]
    same = [a == b for a, b in zip(ours[0]["greedy"], runs[best][0]["greedy"], strict=True)]
    lines = [
        "",
        f"{options.prompts} prompts of {min(ours[0]['prompts'])} to {max(ours[0]['prompts'])} tokens, {SAMPLES} "
        f"answers each of {lengths.min()} to {lengths.max()} tokens, {lengths.sum():,} in all",
        f"{options.threads} thread(s), {options.dtype}, load {min(loads)} to {max(loads)}",
        "",
        "| median | tokens/s | tokens/CPU-s | prefill, s | the rest, s | peak MiB |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    values = {}
    for tool, measured in runs.items():
        values[tool] = {
            "speed": median(r["tokens"] / r["seconds"] for r in measured),
            "cpu": median(r["tokens"] / r["cpu_seconds"] for r in measured),
            "prefill": median(r["prefill_seconds"] for r in measured),
            "rest": median(r["seconds"] - r["prefill_seconds"] for r in measured),
            "peak": median(r["peak_mib"] for r in measured),
        }
        values_of = values[tool].items()
        cells = [f"{value:.1f}" if name in ("prefill", "rest") else f"{value:,.0f}" for name, value in values_of]
        lines.append(f"| {tool} | {' | '.join(cells)} |")
    ratios = {name: values["ours"][name] / values[best][name] for name in values["ours"]}
    lines.append(f"| ours / {best} | {' | '.join(f'{ratio:.2f}' for ratio in ratios.values())} |")
    lines += [
        "",
        f"greedy answers equal: {sum(same)} of {len(same)} (words nearer to each other than rounding may swap)",
        f"target: tokens/CPU-s of ours / {best}: at least {TARGET}; is {ratios['cpu']:.2f}",
    ]
    return "\n".join(lines)


def _work(options: argparse.Namespace) -> None:
    """One process: make the base, or load it and sample."""
    if options.worker == "assets":
        write_base(options.folder / "base", SMALL if options.small else SHAPE)
        print("{}")
        return
    import resource

    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()

    torch.set_num_threads(options.threads)
    dtype = torch.bfloat16 if options.dtype == "bf16" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(options.folder / "base", dtype=dtype).eval()
    random = np.random.default_rng(0)
    lengths = np.exp(random.uniform(np.log(32), np.log(384), options.prompts)).astype(int)
    prompts = [random.integers(3, WORDS, length) for length in lengths]
    stops = frozenset(random.choice(np.arange(3, WORDS), WORDS // options.mean, replace=False).tolist())
    result = (_ours if options.worker == "ours" else _peer)(options, model, prompts, stops)
    result |= {
        "prompts": [len(prompt) for prompt in prompts],
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    print(json.dumps(result))


def _ours(options: argparse.Namespace, model: Any, prompts: list[Any], stops: frozenset[int]) -> dict[str, Any]:
    from finetune.model import generation, ragged
    from finetune.model.generation import Sampling

    ragged.install(model)
    keys = range(len(prompts))
    greedy = generation.generate(model, prompts[:4], 1, Sampling((0.0,), 24, frozenset()), keys=keys[:4])
    prefill = 0.0
    whole = generation.ragged_hidden

    def timed(*arguments: Any) -> Any:
        nonlocal prefill
        began = time.perf_counter()
        try:
            return whole(*arguments)
        finally:
            prefill += time.perf_counter() - began

    generation.ragged_hidden = timed
    began, cpu = time.perf_counter(), time.process_time()
    sampling = Sampling((1.0,), options.longest, stops, seed=1)
    answers = generation.generate(model, prompts, SAMPLES, sampling, keys=keys, rows_at_once=options.rows)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    lengths = [len(answer.ids) for samples in answers for answer in samples]
    (options.folder / "lengths.json").write_text(json.dumps(lengths), "utf-8")
    return {
        "tokens": sum(lengths),
        "lengths": lengths,
        "seconds": seconds,
        "cpu_seconds": cpu,
        "prefill_seconds": prefill,
        "greedy": [samples[0].ids.tolist() for samples in greedy],
    }


def _peer(options: argparse.Namespace, model: Any, prompts: list[Any], stops: frozenset[int]) -> dict[str, Any]:
    import torch
    from transformers import LogitsProcessor, LogitsProcessorList

    lengths = np.array(json.loads((options.folder / "lengths.json").read_text("utf-8"))).reshape(-1, SAMPLES)
    first_token: list[float] = []

    class End(LogitsProcessor):
        """Ends row r of a batch after its given number of tokens, and not before."""

        def __init__(self, wanted: Any, before: int) -> None:
            self.wanted, self.before = torch.tensor(wanted), before

        def __call__(self, ids: Any, scores: Any) -> Any:
            if ids.shape[1] == self.before:
                first_token.append(time.perf_counter())
            scores[:, STOP] = -torch.inf
            ends = self.wanted <= ids.shape[1] + 1 - self.before
            scores[ends] = -torch.inf
            scores[ends, STOP] = 0
            return scores

    def batch(indices: list[int]) -> tuple[Any, Any]:
        longest = max(len(prompts[i]) for i in indices)
        ids = torch.full((len(indices), longest), PAD)
        mask = torch.zeros_like(ids)
        for row, i in enumerate(indices):
            ids[row, longest - len(prompts[i]) :] = torch.from_numpy(prompts[i])
            mask[row, longest - len(prompts[i]) :] = 1
        return ids, mask

    greedy = []
    for i in range(4):
        ids, mask = batch([i])
        made = model.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=24, pad_token_id=PAD,
                              eos_token_id=WORDS)  # fmt: skip
        greedy.append(made[0, ids.shape[1] :].tolist())
    torch.manual_seed(0)
    count = int(options.worker.removeprefix("hf-"))
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    prefill = 0.0
    began, cpu = time.perf_counter(), time.process_time()
    for start in range(0, len(order), count):
        indices = order[start : start + count]
        ids, mask = batch(indices)
        ends = LogitsProcessorList([End(lengths[indices].flatten(), ids.shape[1])])
        call = time.perf_counter()
        made = model.generate(
            ids, attention_mask=mask, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, eos_token_id=STOP,
            pad_token_id=PAD, num_return_sequences=SAMPLES, max_new_tokens=options.longest, logits_processor=ends,
        )  # fmt: skip
        prefill += first_token[-1] - call
        written = (made[:, ids.shape[1] :] != PAD).sum(1)
        if not torch.equal(written, torch.from_numpy(lengths[indices].flatten())):
            raise SystemExit("answers of other lengths than were asked for")
    return {
        "tokens": int(lengths.sum()),
        "lengths": lengths.flatten().tolist(),
        "seconds": time.perf_counter() - began,
        "cpu_seconds": time.process_time() - cpu,
        "prefill_seconds": prefill,
        "greedy": greedy,
    }


if __name__ == "__main__":
    sys.exit(main())
