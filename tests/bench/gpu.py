"""The GPU side: first whether it is right, then how fast it is. `python tests/bench/gpu.py` on a machine with CUDA.

Checks, each a measured number beside its limit: the ragged forward against the padded one (float32, bf16, nf4: hidden
states and every LoRA gradient), an evaluation that leaves 4-bit gradients alone, a resumed run against an uninterrupted
one bit for bit, generation (transformers' and ours) against scoring, PPO's first ratio. Then the engine's own loop on
random weights of a real LLaMA shape: tokens a second, peak memory, and the share of the card's bf16 peak (MFU).

MFU counts 4 FLOP for every weight a token meets: 2 forward, 2 for the gradient that passes through a frozen weight;
blocks for every token, head for trained ones. LoRA's own products, attention scores and recomputation are not counted.

`--dry` runs all of it on a CPU with a tiny shape, to show that the program works; its speeds mean nothing.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from finetune.data.store import TokenRows, pack
from finetune.engine import loop
from finetune.engine.batches import collate
from finetune.engine.token_logprobs import token_logprobs
from finetune.model import adapter
from finetune.model.base import LoadIn, choose_precision, load_base
from finetune.model.generation import Sampling, generate
from finetune.model.ragged import Layout, lay_out, padded_hidden, ragged_hidden
from finetune.recipe.settings import AdapterSettings
from finetune.recipe.train_settings import TrainSettings
from finetune.stages.sft import sft_work

PEAK_FLOPS = 989e12
"""bf16, dense, of one H100 SXM or H200, by NVIDIA's data sheet."""

_LLAMA3 = {"vocab_size": 128256, "rms_norm_eps": 1e-5, "max_position_embeddings": 8192, "num_key_value_heads": 8}
SHAPES: dict[str, dict[str, Any]] = {  # widths from the models' own config.json; RoPE does not change the cost
    "tiny": {
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "initializer_range": 0.2,
    },
    "llama3.2-1b": _LLAMA3
    | {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "tie_word_embeddings": True,
    },
    "llama3.1-8b": _LLAMA3
    | {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32},
}
MIXES = {  # name: (mean, longest) tokens of log-normal lengths; equal = all rows that long
    "instructions": (170, 1024),
    "long answers": (800, 4096),
    "full 4096": (4096, 4096),
}
DRY_MIXES = {"instructions": (24, 64)}


@dataclass(frozen=True)
class Check:
    name: str
    measured: float
    limit: float

    @property
    def right(self) -> bool:
        return self.measured <= self.limit


@dataclass(frozen=True)
class Speed:
    """tokens_per_second: median over steps, the first two left out; None where memory did not suffice."""

    shape: str
    load_in: str
    mix: str
    recompute: bool
    micro_batch: int
    tokens_per_second: float | None
    trained_per_second: float | None
    peak_gib: float
    mfu: float | None


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--dry", action="store_true", help="tiny shape, on a CPU")
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=["llama3.2-1b", "llama3.1-8b"])
    parser.add_argument("--load-in", nargs="+", choices=["nf4", "bf16"], default=["nf4", "bf16"])
    parser.add_argument("--steps", type=int, default=12, help="steps of every speed, the first two not counted")
    parser.add_argument("--rank", type=int, default=64, help="LoRA rank, on all linear layers")
    parser.add_argument("--checks-only", action="store_true")
    parser.add_argument("--json", type=Path, help="write everything measured to this file")
    options = parser.parse_args()
    if not options.dry and not torch.cuda.is_available():
        print("torch sees no GPU here; --dry runs the same program on a CPU with a tiny model", file=sys.stderr)
        return 2
    device = torch.device("cpu" if options.dry else "cuda")
    shapes, mixes = (["tiny"], DRY_MIXES) if options.dry else (options.shapes, MIXES)
    checks: list[Check] = []
    speeds: list[Speed] = []
    with tempfile.TemporaryDirectory(prefix="finetune-gpu-") as name:
        folder = Path(name)
        tiny = _write_base(folder / "checks", SHAPES["tiny"], torch.float32, device)
        for load_in in ("fp32", "bf16", "nf4"):
            checks += check_ragged(tiny, load_in, device)
        checks += [*check_evaluation(tiny, device), *check_resume(tiny, folder / "resume", device)]
        checks += [*check_generation(tiny, device), *check_sampling(tiny, device), *check_first_ratio(tiny, device)]
        print(checks_table(checks), flush=True)
        for shape in shapes if not options.checks_only else []:
            base = _write_base(folder / "base", SHAPES[shape], torch.bfloat16, device)
            for load_in in options.load_in:
                speeds += measure_speeds(base, shape, load_in, mixes, folder / "work", options, device)
            shutil.rmtree(base)
    print(speeds_table(speeds, device))
    if options.json is not None:
        found = {
            "checks": [asdict(c) for c in checks],
            "speeds": [asdict(s) for s in speeds],
            "torch": torch.__version__,
        }
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0 if all(check.right for check in checks) else 1


# What is right


def check_ragged(base: Path, load_in: LoadIn, device: torch.device) -> list[Check]:
    """Hidden states and LoRA gradients of pairs with a common beginning: ragged, and ragged with the beginning computed
    once, against padded. Relative 2-norms; of the gradients the worst parameter counts."""
    model, inner, compute = _adapted(base, load_in, device)
    random = np.random.default_rng(4)
    rows = [np.array(ids) for ids, _ in _rows(6, 60, 120, vocabulary=512)]
    rows += [np.concatenate([row[: len(row) // 2], random.integers(0, 512, 30)]) for row in rows]
    whole = lay_out(rows, [[i] for i in range(12)])
    shared = lay_out(rows, [[i, i + 6] for i in range(6)])
    ways = {"padded": (padded_hidden, whole), "ragged": (ragged_hidden, whole), "shared": (ragged_hidden, shared)}
    states, gradients = {}, {}
    for way, (hidden, laid) in ways.items():
        model.zero_grad()
        with loop.autocast(device, compute):
            states_UD = hidden(inner.model, torch.from_numpy(laid.ids).to(device), laid.layout)
        states_TD = states_UD[torch.from_numpy(np.concatenate(laid.where)).to(device)].float()
        direction_TD = torch.randn(states_TD.shape, generator=torch.Generator().manual_seed(1)).to(device)
        (states_TD * direction_TD).sum().backward()
        states[way], gradients[way] = states_TD.detach(), _gradients(model)
    exact = compute == torch.float32
    how = f"{load_in}, computed in {str(compute).removeprefix('torch.')}"
    checks = []
    for way, name in (("ragged", "ragged"), ("shared", "ragged, beginnings shared")):
        off = _relative(states[way], states["padded"])
        worst = max(_relative(gradients[way][n], gradients["padded"][n]) for n in gradients["padded"])
        # float32: rounding alone. bf16 has 8 bits (4e-3) a product, summed along two ways through two layers.
        checks.append(Check(f"{name} = padded, hidden states, {how}", off, 1e-5 if exact else 3e-2))
        checks.append(Check(f"{name} = padded, LoRA gradients, {how}", worst, 1e-5 if exact else 1e-1))
    return checks


def check_evaluation(base: Path, device: torch.device) -> list[Check]:
    """A 4-bit base gives the same gradients after an evaluation as before (bitsandbytes may repack its weights)."""
    model, inner, compute = _adapted(base, "nf4", device)
    ids_T, layout = _flat([ids for ids, _ in _rows(6, 40, 100, vocabulary=512)], device)

    def gradients() -> dict[str, torch.Tensor]:
        model.zero_grad()
        model.train()
        with loop.autocast(device, compute):
            ragged_hidden(inner.model, ids_T, layout).float().square().sum().backward()
        return _gradients(model)

    before = gradients()
    model.eval()
    with torch.no_grad(), loop.autocast(device, compute):
        ragged_hidden(inner.model, ids_T, layout)
    after = gradients()
    smallest = min(gradient.norm().item() for gradient in before.values())
    worst = max(_relative(after[name], before[name]) for name in before)
    return [
        Check("nf4: LoRA gradients after an evaluation = before", worst, 1e-3),
        Check("nf4: parameters without a gradient", float(smallest == 0.0 or not math.isfinite(smallest)), 0.0),
    ]


def check_resume(base: Path, folder: Path, device: torch.device) -> list[Check]:
    """Six steps at once, and six steps of which the last three were taken again from the checkpoint of step 3."""
    rows = _rows(48, 30, 100, vocabulary=512)
    settings = TrainSettings(
        batch_size=8, micro_batch_size=4, max_steps=6, checkpoint_every=3, keep_checkpoints=2, schedule="linear"
    )
    straight = _train(base, "nf4", rows, settings, folder, device)
    shutil.rmtree(folder / "checkpoints" / "step-00000006")
    resumed = _train(base, "nf4", rows, settings, folder, device)
    worst = max((straight[name] - resumed[name]).abs().max().item() for name in straight)
    return [Check("resumed = uninterrupted, largest difference of a weight", worst, 0.0)]


def check_generation(base: Path, device: torch.device) -> list[Check]:
    """Greedy generation, by transformers on left-padded prompts, picks what the ragged forward scores highest."""
    model, inner, _ = _adapted(base, "bf16" if device.type == "cuda" else "fp32", device)
    model.eval()
    prompts = [row[0] for row in _rows(4, 20, 40, vocabulary=512)]
    longest, new = max(map(len, prompts)), 8
    ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts], device=device)
    keep = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=device)
    with torch.no_grad():
        out = inner.generate(
            input_ids=ids, attention_mask=keep, max_new_tokens=new, min_new_tokens=new, do_sample=False, pad_token_id=0
        )
        whole = [row[longest - len(p) :].tolist() for row, p in zip(out, prompts, strict=True)]
        ids_T, layout = _flat(whole, device)
        rows = ragged_hidden(inner.model, ids_T, layout).split(layout.lengths)
        regret = 0.0
        for hidden_TD, generated in zip(rows, whole, strict=True):
            logits = inner.lm_head(hidden_TD[-new - 1 : -1]).float()
            chosen = logits.gather(1, torch.tensor(generated[-new:], device=device)[:, None]).squeeze(1)
            regret = max(regret, ((logits.amax(-1) - chosen) / logits.std(-1)).max().item())
    # 0 in exact arithmetic; in bf16 two near-equal words may change places.
    return [Check("generated words fall short of the best, in deviations of the logits", regret, 0.1)]


def check_sampling(base: Path, device: torch.device) -> list[Check]:
    """Our own sampling, prompts computed once and rows leaving: greedy answers pick what the ragged forward scores
    highest, and the log-probabilities it keeps are the forward's."""
    _, inner, compute = _adapted(base, "nf4", device)
    prompts = [np.array(row[0]) for row in _rows(6, 20, 40, vocabulary=512)]
    sampling = Sampling((0.0, 1.0), 24, frozenset({1}), seed=5)
    with torch.no_grad(), loop.autocast(device, compute):
        answers = generate(inner, prompts, 2, sampling, keys=range(6), rows_at_once=5)
    whole = [np.concatenate([prompt, one.ids]) for prompt, many in zip(prompts, answers, strict=True) for one in many]
    flat = [one for many in answers for one in many]
    ids_T, layout = _flat([row.tolist() for row in whole], device)
    regret = off = 0.0
    with torch.no_grad(), loop.autocast(device, compute):
        rows = ragged_hidden(inner.model, ids_T, layout).split(layout.lengths)
        for hidden_TD, one in zip(rows, flat, strict=True):
            count = len(one.ids)
            logits = inner.lm_head(hidden_TD[-count - 1 : -1]).float()
            chosen = logits.gather(1, torch.from_numpy(one.ids).to(device)[:, None]).squeeze(1)
            logps = (chosen - logits.logsumexp(-1)).cpu().numpy()
            off = max(off, float(np.abs(logps - one.logps).max()))
            if one.temperature == 0:
                regret = max(regret, ((logits.amax(-1) - chosen) / logits.std(-1)).max().item())
    exact = compute == torch.float32
    return [
        Check("our greedy words fall short of the best, in deviations of the logits", regret, 1e-4 if exact else 0.1),
        Check("kept log-probabilities = the ragged forward's, nats", off, 1e-4 if exact else 0.2),
    ]


def check_first_ratio(base: Path, device: torch.device) -> list[Check]:
    """PPO's first ratio: a token's log-probability without and with gradients, on the same micro-batch."""
    _, inner, compute = _adapted(base, "nf4", device)
    batch = collate(pack(_rows(8, 30, 100, vocabulary=512)), range(8)).to(device)
    with loop.autocast(device, compute):
        with torch.no_grad():
            before_N = token_logprobs(batch, inner.model, inner.lm_head, ragged_hidden)
        now_N = token_logprobs(batch, inner.model, inner.lm_head, ragged_hidden)
    off = (now_N.detach() - before_N).abs().max().item()
    return [Check("log-probabilities with gradients = without, nats", off, 1e-3 if device.type == "cuda" else 0.0)]


# How fast it is


def measure_speeds(
    base: Path,
    shape: str,
    load_in: LoadIn,
    mixes: dict[str, tuple[int, int]],
    folder: Path,
    options: argparse.Namespace,
    device: torch.device,
) -> list[Speed]:
    """Every mix of lengths, without and with recomputed activations, at micro-batches of about 16K tokens."""
    speeds = []
    for mix, (mean, longest) in mixes.items():
        for recompute in (False, True):
            micro = max(1, 16384 // mean) if not options.dry else 4
            rows = _rows(micro * options.steps, mean, longest, vocabulary=SHAPES[shape]["vocab_size"])
            settings = TrainSettings(
                batch_size=micro,
                micro_batch_size=micro,
                max_steps=options.steps,
                checkpoint_every=10**6,
                gradient_checkpointing=recompute,
            )
            if device.type == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            shutil.rmtree(folder, ignore_errors=True)
            tokens = trained = mfu = None
            try:
                _train(base, load_in, rows, settings, folder, device, rank=options.rank)
            except torch.cuda.OutOfMemoryError:
                pass  # a result too: the table says that it does not fit
            else:
                lines = [line for line in loop.MetricsFile(folder / "metrics.jsonl").read() if "loss" in line][2:]
                tokens = float(np.median([line["tokens"] / line["seconds"] for line in lines]))
                trained = float(np.median([line["trained"] / line["seconds"] for line in lines]))
                blocks, head = _matrix_weights(SHAPES[shape])
                mfu = 4 * (blocks * tokens + head * trained) / PEAK_FLOPS
            speeds.append(Speed(shape, load_in, mix, recompute, micro, tokens, trained, loop.memory_gib(device), mfu))
            print(_speed_line(speeds[-1]), file=sys.stderr, flush=True)
    return speeds


def _matrix_weights(shape: dict[str, Any]) -> tuple[int, int]:
    """Weights in the blocks' linear layers, and in the head."""
    width, kv = shape["hidden_size"], shape["num_key_value_heads"]
    kv_width = width // shape["num_attention_heads"] * kv
    layer = 2 * width * width + 2 * width * kv_width + 3 * width * shape["intermediate_size"]
    return layer * shape["num_hidden_layers"], width * shape["vocab_size"]


def checks_table(checks: Sequence[Check]) -> str:
    lines = ["| check | measured | limit | |", "|---|---:|---:|---|"]
    lines += [f"| {c.name} | {c.measured:.2g} | {c.limit:.2g} | {'right' if c.right else 'WRONG'} |" for c in checks]
    return "\n".join(lines)


def speeds_table(speeds: Sequence[Speed], device: torch.device) -> str:
    where = torch.cuda.get_device_name() if device.type == "cuda" else "CPU, dry: speeds mean nothing"
    lines = [f"\n{where}, torch {torch.__version__}; MFU of {PEAK_FLOPS / 1e12:.0f} TFLOP/s\n"]
    lines += ["| shape | base | lengths | recompute | rows | tokens/s | trained/s | peak GiB | MFU |"]
    lines += ["|---|---|---|---|---:|---:|---:|---:|---:|"]
    return "\n".join(lines + [_speed_line(speed) for speed in speeds])


def _speed_line(s: Speed) -> str:
    head = f"| {s.shape} | {s.load_in} | {s.mix} | {'yes' if s.recompute else 'no'} | {s.micro_batch} |"
    if s.tokens_per_second is None or s.trained_per_second is None or s.mfu is None:
        return f"{head} does not fit | | {s.peak_gib:.1f} | |"
    return f"{head} {s.tokens_per_second:,.0f} | {s.trained_per_second:,.0f} | {s.peak_gib:.1f} | {s.mfu:.1%} |"


# Shared


def _write_base(folder: Path, shape: dict[str, Any], dtype: torch.dtype, device: torch.device) -> Path:
    torch.manual_seed(0)
    config = LlamaConfig(**{"tie_word_embeddings": False, **shape})
    with device:
        torch.set_default_dtype(dtype)
        model = LlamaForCausalLM(config)
        torch.set_default_dtype(torch.float32)
    model.save_pretrained(folder)
    return folder


def _adapted(base: Path, load_in: LoadIn, device: torch.device) -> tuple[Any, Any, torch.dtype]:
    """(peft model, the LLaMA inside, compute dtype) with LoRA weights of which none is zero."""
    precision = choose_precision(load_in, "auto", device)
    inner = load_base(base, precision, device)
    model = adapter.new_adapter(inner, AdapterSettings(rank=8), seed=3)
    with torch.no_grad():
        for name, parameter in adapter.trainable(model).items():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    model.train()
    return model, inner, precision.compute


def _train(
    base: Path,
    load_in: LoadIn,
    rows: list[tuple[list[int], list[int]]],
    settings: TrainSettings,
    folder: Path,
    device: torch.device,
    *,
    rank: int = 8,
) -> dict[str, torch.Tensor]:
    """Train with the engine's loop and the stage's work; returns the trained weights."""
    precision = choose_precision(load_in, "auto", device)
    inner = load_base(base, precision, device)
    model = adapter.new_adapter(inner, AdapterSettings(rank=rank), seed=3)
    if settings.gradient_checkpointing:
        inner.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    data: TokenRows = pack(rows)
    order: Callable[[int], np.ndarray] = lambda epoch: np.arange(len(rows))  # noqa: E731  # one line says it
    work = sft_work(
        SimpleNamespace(train=data, held_out=None, epoch_order=order),  # type: ignore[arg-type]  # all that it reads
        settings,
        inner.model,
        inner.lm_head,
        settings.max_steps or 1,
    )
    folder.mkdir(parents=True, exist_ok=True)
    loop.train(
        model,
        work,
        settings,
        peak_rate=1e-4,
        accelerator=loop.make_accelerator(device),
        compute=precision.compute,
        folder=folder,
        title=f"{load_in}",
    )
    return adapter.state(model)


def _rows(count: int, mean: int, longest: int, *, vocabulary: int) -> list[tuple[list[int], list[int]]]:
    """Rows of log-normal length, the first third of each a prompt that is not trained."""
    random = np.random.default_rng(7)
    spread = 0.0 if mean == longest else 0.8
    lengths = np.clip(random.lognormal(math.log(mean) - spread**2 / 2, spread, count), 4, longest).astype(int)
    return [(random.integers(0, vocabulary, n).tolist(), [0] * (n // 3) + [1] * (n - n // 3)) for n in lengths.tolist()]


def _flat(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[torch.Tensor, Layout]:
    return torch.tensor([i for ids in rows for i in ids], device=device), Layout.of_rows([len(ids) for ids in rows])


def _gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A parameter without a gradient counts as zero: it shows in a check, and does not stop the others."""
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad.detach().clone()
        for name, p in adapter.trainable(model).items()
    }


def _relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm().clamp_min(1e-12)).item()


if __name__ == "__main__":
    sys.exit(main())
