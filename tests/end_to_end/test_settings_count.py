"""Every field of a recipe counts: changing it changes what comes out, and a field without such a check fails here.

Most checks are one short training in this process, by the command itself; each distinct recipe is run once.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import QUESTIONS, Run, write_jsonl

from finetune.recipe import data_settings, schema, settings, train_settings

SECTIONS = (
    schema.Recipe,
    schema.ModelSettings,
    schema.AdapterSettings,
    schema.TrackSettings,
    settings.WandbSettings,
    data_settings.DataSource,
    data_settings.HeldOut,
    train_settings.TrainSettings,
    schema.SftStage,
)
COMMIT = "1" * 40
"""A hub revision that is a whole commit is taken at its word: no network."""

T, A, M, S = "stages.sft.train.", "adapter.", "model.", "stages.sft."


@dataclass(frozen=True)
class Seen:
    """One command: exit code, all that it printed, the forward passes of training, and the folder that it left."""

    code: int
    printed: str
    forwards: tuple[tuple[int, ...], ...] = ()  # shape of the ids, of each decoder call in training
    blocks: int = 0  # calls of a feed-forward block in training, in the forward pass or again in the backward pass
    folder: Path | None = None

    @property
    def manifest(self) -> Mapping[str, Any]:
        assert self.code == 0 and self.folder is not None, self.printed
        content: Mapping[str, Any] = json.loads((self.folder / "manifest.json").read_text(encoding="utf-8"))
        return content

    @property
    def bits(self) -> str:
        """sha256 of the trained weights."""
        return str(self.manifest["files"]["adapter_model.safetensors"]["sha256"])

    @property
    def peft(self) -> Mapping[str, Any]:
        assert self.folder is not None
        content: Mapping[str, Any] = json.loads((self.folder / "adapter_config.json").read_text(encoding="utf-8"))
        return content

    @property
    def steps(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl that are training steps."""
        return [line for line in self.lines if "loss" in line]

    @property
    def measured(self) -> list[int]:
        """The steps at which held-out loss was measured."""
        return [line["step"] for line in self.lines if "held_out_loss" in line]

    @property
    def lines(self) -> list[dict[str, Any]]:
        assert self.folder is not None
        text = (self.folder / "metrics.jsonl").read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines()]


@dataclass
class Lab:
    """Runs recipes that are the same but for some values, each once."""

    root: Path
    base: Path
    done: dict[str, Seen] = field(default_factory=dict)

    def recipe(self, changes: Mapping[str, Any], folder: Path) -> Path:
        content: dict[str, Any] = {
            "name": "count",
            "model": {"base": str(self.base), "load_in": "fp32", "max_length": 64},
            "adapter": {"rank": 4, "alpha": 8},
            "stages": {
                "sft": {
                    "kind": "sft",
                    "data": [{"path": str(self.root / "questions.jsonl")}],
                    "held_out": {"fraction": 0.2},
                    "train": {"max_steps": 3, "batch_size": 4, "micro_batch_size": 4, "learning_rate": 0.01},
                }
            },
        }
        for key, value in changes.items():
            *path, last = key.split(".")
            section = content
            for part in path:
                section = section.setdefault(part, {})
            section[last] = value
        path_ = folder / "recipe.yaml"
        path_.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
        return path_

    def run(self, changes: Mapping[str, Any] | None = None, *, interrupt_in_step: int | None = None) -> Seen:
        """`finetune sft`. interrupt_in_step: Ctrl-C while this step (from 1) is trained, of one forward pass each."""
        key = json.dumps([changes, interrupt_in_step], sort_keys=True)
        if key not in self.done:
            folder = self.root / f"run{len(list(self.root.glob('run*')))}"
            folder.mkdir()
            with self.counted(interrupt_in_step) as (forwards, blocks):
                code, printed = command("sft", self.recipe(changes or {}, folder), "--runs", folder / "runs")
            found = [path for path in folder.glob("runs/*/sft-*") if path.is_dir()]
            self.done[key] = Seen(code, printed, tuple(forwards), len(blocks), found[-1] if found else None)
        return self.done[key]

    def plan(self, changes: Mapping[str, Any] | None = None) -> str:
        """What `finetune plan` prints: folders, by fingerprint, and estimates."""
        folder = self.root / "plans"
        folder.mkdir(exist_ok=True)
        code, printed = command("plan", self.recipe(changes or {}, folder), "--runs", self.root / "none")
        assert code == 0, printed
        return printed

    @contextlib.contextmanager
    def counted(self, interrupt_in_step: int | None) -> Iterator[tuple[list[tuple[int, ...]], list[int]]]:
        """Count forward passes by torch's own global hook."""
        from torch.nn.modules.module import register_module_forward_pre_hook
        from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaMLP

        forwards: list[tuple[int, ...]] = []
        blocks: list[int] = []

        def look(module: Any, args: Any) -> None:
            if module.training and isinstance(module, LlamaMLP):
                blocks.append(1)
            if module.training and isinstance(module, LlamaDecoderLayer) and module.self_attn.layer_idx == 0:
                forwards.append(tuple(args[0].shape[:2]))
                if len(forwards) == interrupt_in_step:
                    os.kill(os.getpid(), signal.SIGINT)

        hook = register_module_forward_pre_hook(look)
        try:
            yield forwards, blocks
        finally:
            hook.remove()


def command(*args: str | Path) -> tuple[int, str]:
    from finetune.cli.main import main

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        code = main([str(arg) for arg in args])
    return code, printed.getvalue()


@pytest.fixture(scope="module")
def lab(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    root = tmp_path_factory.mktemp("lab")
    write_jsonl(root / "questions.jsonl", QUESTIONS)
    write_jsonl(root / "twice.jsonl", [*QUESTIONS, *QUESTIONS])
    write_jsonl(root / "others.jsonl", [{"prompt": f"Who is {a}?", "completion": f"{a} is here."} for a in range(20)])
    write_jsonl(root / "named.jsonl", [{"ask": row["prompt"], "say": row["completion"]} for row in QUESTIONS])
    write_jsonl(root / "both.jsonl", [{**row, "text": row["prompt"]} for row in QUESTIONS])
    write_jsonl(root / "long.jsonl", [*QUESTIONS, {"prompt": "Count!", "completion": "1 2 3 4 5 6 7 8 9 " * 20}])
    talk = "Tell me, please. " * 40
    write_jsonl(root / "talk.jsonl", [{"prompt": f"{talk}{a}", "completion": "x"} for a in range(8)])
    return Lab(root, tiny_base)


# What the checks say


def other_bits(lab: Lab, key: str, value: Any, basis: Mapping[str, Any] | None = None) -> Seen:
    """The trained weights are others."""
    changed = lab.run({**(basis or {}), key: value})
    assert changed.bits != lab.run(basis).bits
    return changed


def refused(lab: Lab, changes: Mapping[str, Any], *words: str) -> None:
    seen = lab.run(changes)
    assert seen.code == 2
    assert all(word in seen.printed for word in words), seen.printed


def source(lab: Lab, name: str = "questions.jsonl", **values: Any) -> dict[str, Any]:
    return {S + "data": [{"path": str(lab.root / name), **values}]}


def hub(**values: Any) -> dict[str, Any]:
    return {S + "data": [{"hub": "org/rows", "revision": COMMIT, **values}]}


def hub_rows(lab: Lab, **values: Any) -> list[str]:
    """The rows of a data set as the `datasets` library reads it from a folder with two subsets, two splits each."""
    from finetune.data.prepare import prepare_sft
    from finetune.data.tokenizer import Tokenizer
    from finetune.families.llama3 import LLAMA3

    folder = lab.root / "hub"
    if not folder.is_dir():
        config = "configs:\n"
        for subset in ("easy", "hard"):
            for split in ("train", "test"):
                (folder / subset).mkdir(parents=True, exist_ok=True)
                rows = [{"prompt": f"{subset} {split} {a}", "completion": "yes"} for a in range(9)]
                write_jsonl(folder / subset / f"{split}.jsonl", rows)
            default = "  default: true\n" if subset == "easy" else ""
            config += f"- config_name: {subset}\n{default}  data_files:\n"
            config += "".join(f"  - split: {s}\n    path: {subset}/{s}.jsonl\n" for s in ("train", "test"))
        (folder / "README.md").write_text(f"---\n{config}---\n", encoding="utf-8")
    tokenizer = Tokenizer.load(lab.base)
    prepared = prepare_sft(
        schema.SftStage.model_validate({"kind": "sft", "data": [{"hub": "./hub", **values}]}),
        model=schema.ModelSettings(base=str(lab.base)),
        seed=17,
        locate=lambda path: lab.root / path,
        stage_outputs={},
        family=LLAMA3,
        tokenizer=tokenizer,
        cache=None,
        say=lambda line: None,
    )
    return [tokenizer.decode(prepared.rows.row(row)[0].tolist()) for row in range(len(prepared.rows))]


def name(lab: Lab) -> None:
    seen = lab.run({"name": "another"})
    assert seen.folder is not None and seen.folder.parent.name == "another"


def base(lab: Lab) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = lab.root / "other-base"
    shutil.copytree(lab.base, folder)
    torch.manual_seed(9)
    LlamaForCausalLM(LlamaConfig.from_pretrained(lab.base)).save_pretrained(folder)
    other_bits(lab, M + "base", str(folder))


def revision(lab: Lab) -> None:
    refused(lab, {M + "revision": "main"}, "model.revision", "a revision belongs to a hub base")


def load_in(lab: Lab) -> None:
    first = {kind: lab.run({M + "load_in": kind}).manifest["metrics"]["first_held_out"] for kind in ("nf4", "int8")}
    first["fp32"] = lab.run().manifest["metrics"]["first_held_out"]
    first["bf16"] = lab.run({M + "load_in": "bf16"}).manifest["metrics"]["first_held_out"]
    assert len(set(first.values())) == 4


def compute(lab: Lab) -> None:
    seen = other_bits(lab, M + "compute", "bf16")
    assert seen.manifest["resolved"]["compute"] == "bfloat16"


def template(lab: Lab) -> None:
    seen = other_bits(lab, M + "template", "alpaca")
    assert seen.folder is not None and "### Instruction" in (seen.folder / "chat_template.jinja").read_text()


def system(lab: Lab) -> None:
    changes = {M + "system": "Be brief.", M + "max_length": 128}
    assert lab.run(changes).manifest["data"]["tokens"] > lab.run().manifest["data"]["tokens"]


def max_length(lab: Lab) -> None:
    data = lab.run({M + "max_length": 32}).manifest["data"]
    assert data["dropped"]["longer than max_length"]["rows"] > 0 and data["lengths"]["longest"] == 32


def device(lab: Lab) -> None:
    import torch

    assert lab.run({M + "device": "cpu"}).manifest["resolved"]["device"] == "cpu"
    if torch.cuda.is_available():
        assert lab.run({M + "device": "cuda"}).manifest["resolved"]["device"] == "cuda"
    else:
        refused(lab, {M + "device": "cuda"}, "model.device is cuda")


def rank(lab: Lab) -> None:
    def count(seen: Seen) -> int:
        return int(seen.manifest["resolved"]["trainable_parameters"])

    assert count(lab.run({A + "rank": 8})) == 2 * count(lab.run())


def alpha(lab: Lab) -> None:
    assert other_bits(lab, A + "alpha", 16).peft["lora_alpha"] == 16


def dropout(lab: Lab) -> None:
    assert other_bits(lab, A + "dropout", 0.5).peft["lora_dropout"] == 0.5


def targets(lab: Lab) -> None:
    assert set(lab.run({A + "targets": ["q_proj", "o_proj"]}).peft["target_modules"]) == {"q_proj", "o_proj"}
    one_layer = lab.run({A + "targets": r".*\.0\..*_proj"}).manifest["resolved"]["trainable_parameters"]
    assert one_layer * 2 == lab.run().manifest["resolved"]["trainable_parameters"]


def rslora(lab: Lab) -> None:
    assert other_bits(lab, A + "rslora", True).peft["use_rslora"] is True


def dora(lab: Lab) -> None:
    assert other_bits(lab, A + "dora", True).peft["use_dora"] is True


def init(lab: Lab) -> None:
    bits = {kind: lab.run({A + "init": kind}).bits for kind in ("gaussian", "orthogonal", "pissa", "olora")}
    assert len({lab.run().bits, *bits.values()}) == 5


def modules_to_save(lab: Lab) -> None:
    from safetensors import safe_open

    seen = lab.run({A + "modules_to_save": ["lm_head"]})
    assert seen.folder is not None
    with safe_open(seen.folder / "adapter_model.safetensors", "pt") as file:
        assert [key for key in file.keys() if "lm_head" in key]  # noqa: SIM118  # it is no dict


def data_path(lab: Lab) -> None:
    report = lab.run(source(lab, "others.jsonl")).manifest["data"]
    assert report["rows"] == 20


def data_hub(lab: Lab) -> None:
    rows = hub_rows(lab)
    assert len(rows) == 9 and "easy train 0" in rows[0]
    assert lab.plan(hub()) != lab.plan()


def data_subset(lab: Lab) -> None:
    assert all("hard train" in row for row in hub_rows(lab, subset="hard"))
    assert lab.plan(hub(subset="hard")) != lab.plan(hub())


def data_split(lab: Lab) -> None:
    assert all("easy test" in row for row in hub_rows(lab, split="test"))
    assert lab.plan(hub(split="test")) != lab.plan(hub())


def data_revision(lab: Lab) -> None:
    assert lab.plan(hub(revision="2" * 40)) != lab.plan(hub())


def data_streaming(lab: Lab) -> None:
    """A stream's rows are its first; a take from a whole data set is drawn."""
    streamed, drawn = hub_rows(lab, streaming=True, take=4), hub_rows(lab, take=4)
    assert streamed == hub_rows(lab)[:4]
    assert len(drawn) == 4 and drawn != streamed
    refused(lab, hub(streaming=True), "streaming: needs hub and take")


def data_stage(lab: Lab) -> None:
    second = {"kind": "sft", "data": [{"stage": "sft"}]}
    refused(lab, {"stages.again": second}, "stages.again.data[0].stage", "gives an adapter that writes text, not rows")


def data_format(lab: Lab) -> None:
    named = {kind: lab.run(source(lab, "both.jsonl", format=kind)) for kind in ("text", "prompt_completion")}
    assert (
        named["text"].manifest["data"]["trained_tokens"]
        != (named["prompt_completion"].manifest["data"]["trained_tokens"])
    )


def data_fields(lab: Lab) -> None:
    refused(lab, source(lab, "named.jsonl"), "the format of its rows is not known")
    seen = lab.run(source(lab, "named.jsonl", fields={"prompt": "ask", "completion": "say"}))
    assert seen.manifest["data"]["tokens"] == lab.run().manifest["data"]["tokens"]


def data_take(lab: Lab) -> None:
    assert lab.run(source(lab, take=10)).manifest["data"]["rows"] == 10


def data_weight(lab: Lab) -> None:
    report = lab.run(source(lab, weight=2.0)).manifest["data"]
    assert report["epoch_rows"] == 2 * report["train_rows"]


def fraction(lab: Lab) -> None:
    rows = {share: lab.run({S + "held_out.fraction": share}).manifest["data"]["held_out_rows"] for share in (0.0, 0.5)}
    assert rows[0.0] == 0 and rows[0.5] == 16


def max_rows(lab: Lab) -> None:
    assert lab.run({S + "held_out.max_rows": 2}).manifest["data"]["held_out_rows"] == 2


def held_out_data(lab: Lab) -> None:
    report = lab.run({S + "held_out.data": [{"path": str(lab.root / "others.jsonl")}]}).manifest["data"]
    assert (report["train_rows"], report["held_out_rows"]) == (32, 20)


def epochs(lab: Lab) -> None:
    steps = {
        passes: lab.run({T + "max_steps": None, T + "epochs": passes}).manifest["metrics"]["steps"]
        for passes in (0.5, 1)
    }
    rows = lab.run().manifest["data"]["train_rows"]
    whole = -(-rows // 4)
    assert steps == {0.5: -(-whole // 2), 1: whole}


def max_steps(lab: Lab) -> None:
    assert len(lab.run({T + "max_steps": 2}).steps) == 2


def rate(lab: Lab) -> None:
    assert other_bits(lab, T + "learning_rate", 0.02).steps[0]["learning_rate"] == 0.02
    assert lab.run({T + "learning_rate": "auto"}).manifest["resolved"]["learning_rate"] not in (0.01, 0.02)


def batch_size(lab: Lab) -> None:
    seen = other_bits(lab, T + "batch_size", 8)
    assert seen.steps[0]["tokens"] > 1.8 * lab.run().steps[0]["tokens"]


def micro_batch_size(lab: Lab) -> None:
    """More forward passes; the same losses."""
    whole, cut = lab.run(), lab.run({T + "micro_batch_size": 1})
    assert (len(whole.forwards), len(cut.forwards)) == (3, 12)
    assert [s["loss"] for s in cut.steps] == pytest.approx([s["loss"] for s in whole.steps], rel=1e-5)


def schedule(lab: Lab) -> None:
    rates = {
        kind: tuple(step["learning_rate"] for step in lab.run({T + "schedule": kind, T + "max_steps": 5}).steps)
        for kind in ("cosine", "linear", "constant")
    }
    assert len(set(rates.values())) == 3 and len(set(rates["constant"])) == 1


def warmup(lab: Lab) -> None:
    assert [step["learning_rate"] for step in lab.run({T + "warmup": 2}).steps][:2] == [0.005, 0.01]


def optimizer(lab: Lab) -> None:
    """8-bit states begin at 4,096 values a tensor, which rank 64 has here. Pages are a matter of GPUs."""
    large = {A + "rank": 64, A + "alpha": 64}
    other_bits(lab, T + "optimizer", "adamw_8bit", large)
    for kind in ("paged_adamw", "paged_adamw_8bit"):
        assert lab.run({T + "optimizer": kind}).code == 0


def betas(lab: Lab) -> None:
    other_bits(lab, T + "betas", [0.5, 0.9])


def weight_decay(lab: Lab) -> None:
    other_bits(lab, T + "weight_decay", 0.5)


def max_grad_norm(lab: Lab) -> None:
    tight, loose = lab.run({T + "max_grad_norm": 1e-6}), lab.run({T + "max_grad_norm": None})
    assert len({tight.bits, loose.bits, lab.run().bits}) == 3
    assert tight.steps[0]["grad_norm"] == loose.steps[0]["grad_norm"]  # as it was before the clipping


def gradient_checkpointing(lab: Lab) -> None:
    """Every layer runs once more in the backward pass, and the numbers stay."""
    kept, recomputed = lab.run(), lab.run({T + "gradient_checkpointing": True})
    assert (kept.blocks, recomputed.blocks) == (3 * 2, 3 * 2 * 2)  # steps, layers, passes
    assert recomputed.bits == kept.bits
    assert lab.plan({T + "gradient_checkpointing": True}) != lab.plan()


def layout(lab: Lab) -> None:
    """ragged: one row of all tokens. padded: a rectangle. The losses stay."""
    ragged, padded = lab.run(), lab.run({T + "layout": "padded"})
    assert {rows for rows, _ in ragged.forwards} == {1}
    assert {rows for rows, _ in padded.forwards} == {4}
    assert [s["loss"] for s in padded.steps] == pytest.approx([s["loss"] for s in ragged.steps], rel=1e-5)


def eval_every(lab: Lab) -> None:
    assert lab.run({T + "eval_every": 1}).measured == [0, 1, 2, 3]
    assert lab.run({T + "eval_every": 50}).measured == [0, 3]


def checkpoints_after_an_interrupt(lab: Lab, every: int, keep: int) -> list[str]:
    changes = {T + "max_steps": 20, T + "checkpoint_every": every, T + "keep_checkpoints": keep}
    seen = lab.run(changes, interrupt_in_step=5)
    assert seen.code == 130 and seen.folder is not None, seen.printed
    return sorted(path.name for path in (seen.folder / "work" / "checkpoints").iterdir())


def checkpoint_every(lab: Lab) -> None:
    assert checkpoints_after_an_interrupt(lab, 2, 3) == ["step-00000002", "step-00000004", "step-00000005"]
    assert checkpoints_after_an_interrupt(lab, 1, 3) == ["step-00000003", "step-00000004", "step-00000005"]


def keep_checkpoints(lab: Lab) -> None:
    assert checkpoints_after_an_interrupt(lab, 1, 1) == ["step-00000005"]


def early_stop(lab: Lab) -> None:
    """At a rate that makes things worse, the run ends early, and what it leaves is the best it measured."""
    far = {T + "max_steps": 12, T + "learning_rate": 30.0, T + "warmup": 0, T + "eval_every": 1}
    stopped = lab.run({**far, T + "early_stop": 2})
    metrics = stopped.manifest["metrics"]
    assert metrics["stopped_early"] and metrics["steps"] < 12
    assert metrics["best_step"] == metrics["steps"] - 2
    left = lab.run({S + "start_from": str(stopped.folder)}).manifest["metrics"]["first_held_out"]
    assert left == pytest.approx(metrics["best_held_out"], rel=1e-6)
    assert metrics["held_out"] == metrics["best_held_out"] < stopped.lines[-1]["held_out_loss"]
    assert not lab.run(far).manifest["metrics"]["stopped_early"]


def kind(lab: Lab) -> None:
    refused(lab, {S + "kind": "sftt"}, "stages.sft.kind", "did you mean 'sft'")


def data(lab: Lab) -> None:
    two = [{"path": str(lab.root / file)} for file in ("questions.jsonl", "others.jsonl")]
    assert lab.run({S + "data": two}).manifest["data"]["rows"] == 52


def start_from(lab: Lab) -> None:
    first = lab.run()
    second = lab.run({S + "start_from": str(first.folder)})
    assert second.manifest["metrics"]["first_held_out"] == pytest.approx(
        first.manifest["metrics"]["held_out"], rel=1e-6
    )


def too_long(lab: Lab) -> None:
    assert lab.run(source(lab, "long.jsonl")).manifest["data"]["dropped"]["longer than max_length"]["rows"] == 1
    cut = lab.run({**source(lab, "long.jsonl"), S + "too_long": "truncate"}).manifest["data"]
    assert cut["truncated"] == 1
    refused(lab, {**source(lab, "long.jsonl"), S + "too_long": "error"}, "long.jsonl:33")


def duplicates(lab: Lab) -> None:
    kept = lab.run(source(lab, "twice.jsonl")).manifest["data"]
    dropped = lab.run({**source(lab, "twice.jsonl"), S + "duplicates": "drop"}).manifest["data"]
    assert kept["duplicates"] == dropped["duplicates"] == 32
    assert kept["train_rows"] + kept["held_out_rows"] == 64
    assert dropped["train_rows"] + dropped["held_out_rows"] == 32


def loss_on(lab: Lab) -> None:
    everything = lab.run({S + "loss_on": "all"}).manifest["data"]
    assert everything["trained_tokens"] == everything["tokens"] - everything["train_rows"]
    assert lab.run().manifest["data"]["trained_tokens"] < everything["trained_tokens"] / 2


def allow_unusual_mask(lab: Lab) -> None:
    changes = {**source(lab, "talk.jsonl"), M + "max_length": 1024}
    refused(lab, changes, "would be trained", "allow_unusual_mask")
    assert lab.run({**changes, S + "allow_unusual_mask": True}).code == 0


def wandb(lab: Lab) -> None:
    assert [path for path in (lab.run().folder or Path()).rglob("*wandb*")] == []
    assert wandb_files(lab)


def wandb_project(lab: Lab) -> None:
    assert any(b"the-project" in content for content in wandb_files(lab).values())


def wandb_entity(lab: Lab) -> None:
    assert any(b"the-team" in content for content in wandb_files(lab).values())


def wandb_tags(lab: Lab) -> None:
    assert any(b"the-tag" in content for content in wandb_files(lab).values())


def wandb_mode(lab: Lab) -> None:
    """offline needs no key and writes files; online asks for a key and, without one, ends before training.

    In a process of its own: in this one, wandb remembers the key that it was given.
    """
    assert any("offline-run" in name for name in wandb_files(lab))
    folder = lab.root / "online"
    folder.mkdir()
    recipe = lab.recipe({"track.wandb": {"project": "the-project"}}, folder)
    kept = {key: value for key, value in os.environ.items() if not key.startswith("WANDB")}
    env = {**kept, "HOME": str(folder), "NETRC": str(folder / "none"), "WANDB_BASE_URL": "http://127.0.0.1:9"}
    args = [sys.executable, "-m", "finetune.cli.main", "sft", str(recipe), "--runs", str(folder / "runs")]
    done = subprocess.run(args, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    assert "track.wandb" in done.stderr and "`wandb login`" in done.stderr and "mode: offline" in done.stderr
    assert "Traceback" not in done.stderr and "step 1/" not in done.stderr


def wandb_samples(lab: Lab) -> None:
    rows = [{"prompt": f"p{row}", "answer": f"a{row}"} for row in range(5)]
    assert [len(told(lab, rows, samples=most)["tables"]) for most in (0, 2)] == [0, 2]


def wandb_artifacts(lab: Lab) -> None:
    assert told(lab, [], artifacts="none")["artifacts"] == []
    [made] = told(lab, [], artifacts="outputs")["artifacts"]
    assert "adapter_model.safetensors" in made


def told(lab: Lab, rows: list[dict[str, str]], **values: Any) -> dict[str, list[Any]]:
    """What an offline run has after a table of `rows` and an end with the lab's run folder as what was made."""
    from finetune.engine.lineage import Lineage
    from finetune.engine.tracking import End
    from finetune.engine.wandb_file import read_records
    from finetune.engine.wandb_tracker import WandbTracker

    folder = lab.root / f"told{len(list(lab.root.glob('told*')))}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_DATA_DIR", str(lab.root / "artifacts"))
        tracker = WandbTracker(
            settings.WandbSettings(project="p", mode="offline", **values),
            Lineage("count", "sft", "sft", "f" * 64, "count-0", {}, {}, {}),
            {},
            folder,
            lambda line: None,
        )
        tracker.samples(0, "said", 1, rows)
        tracker.close(End("finished", {}, {}, lab.run().folder))
    [written] = folder.glob("wandb/offline-run-*/*.wandb")
    made = [record.artifact for record in read_records(written.read_bytes()) if record.HasField("artifact")]
    tables = [json.loads(path.read_text())["data"] for path in folder.rglob("*.table.json")]
    return {
        "tables": [row for table in tables for row in table],
        "artifacts": [[c.path for c in one.manifest.contents] for one in made if one.type != "run_table"],
    }


def tensorboard(lab: Lab) -> None:
    seen = lab.run({"track.tensorboard": True})
    assert seen.folder is not None and lab.run().folder is not None
    assert [path.name for path in seen.folder.glob("tensorboard/*")] == ["events.out.tfevents.0000"]
    assert not list((lab.run().folder or Path()).glob("tensorboard"))


SECRET = "5ec2e7" * 6 + "5ec2"
"""Looks like a Weights & Biases key: 40 hex digits."""
WANDB = {"project": "the-project", "entity": "the-team", "tags": ["the-tag"], "mode": "offline"}


def wandb_files(lab: Lab) -> Mapping[str, bytes]:
    """Files that a run with Weights & Biases leaves, interrupted and resumed; nothing of it was sent anywhere."""
    changes = {"track.wandb": WANDB, T + "max_steps": 6}
    key = "the wandb run"
    if key not in lab.done:
        with socket.create_server(("127.0.0.1", 0)) as server, pytest.MonkeyPatch.context() as patch:
            server.setblocking(False)
            patch.setenv("WANDB_API_KEY", SECRET)
            patch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
            folder = lab.root / "wandb"
            folder.mkdir()
            recipe = lab.recipe(changes, folder)
            with lab.counted(interrupt_in_step=3):
                assert command("sft", recipe, "--runs", folder / "runs")[0] == 130
            code, printed = command("sft", recipe, "--runs", folder / "runs")
            assert code == 0 and SECRET not in printed
            with pytest.raises(BlockingIOError):
                server.accept()
        [found] = (folder / "runs" / "count").iterdir()
        lab.done[key] = Seen(code, printed, folder=found)
    run = lab.done[key].folder
    assert run is not None
    return {str(path.relative_to(run)): path.read_bytes() for path in run.rglob("*") if path.is_file()}


def engine(lab: Lab) -> None:
    """TRL's trainer logs what ours does not, and calls the model by its own forward."""
    assert not any("mean_token_accuracy" in line for line in lab.run().lines)
    assert any("mean_token_accuracy" in line for line in lab.run({S + "engine": "trl"}).lines)


CHECKS: Mapping[str, Callable[[Lab], object]] = {
    "Recipe.name": name,
    "Recipe.seed": lambda lab: other_bits(lab, "seed", 18),
    "ModelSettings.base": base,
    "ModelSettings.revision": revision,
    "ModelSettings.load_in": load_in,
    "ModelSettings.compute": compute,
    "ModelSettings.template": template,
    "ModelSettings.system": system,
    "ModelSettings.max_length": max_length,
    "ModelSettings.device": device,
    "AdapterSettings.rank": rank,
    "AdapterSettings.alpha": alpha,
    "AdapterSettings.dropout": dropout,
    "AdapterSettings.targets": targets,
    "AdapterSettings.rslora": rslora,
    "AdapterSettings.dora": dora,
    "AdapterSettings.init": init,
    "AdapterSettings.modules_to_save": modules_to_save,
    "TrackSettings.wandb": wandb,
    "WandbSettings.project": wandb_project,
    "WandbSettings.mode": wandb_mode,
    "WandbSettings.entity": wandb_entity,
    "WandbSettings.tags": wandb_tags,
    "WandbSettings.samples": wandb_samples,
    "WandbSettings.artifacts": wandb_artifacts,
    "TrackSettings.tensorboard": tensorboard,
    "DataSource.path": data_path,
    "DataSource.hub": data_hub,
    "DataSource.stage": data_stage,
    "DataSource.subset": data_subset,
    "DataSource.split": data_split,
    "DataSource.revision": data_revision,
    "DataSource.streaming": data_streaming,
    "DataSource.format": data_format,
    "DataSource.fields": data_fields,
    "DataSource.take": data_take,
    "DataSource.weight": data_weight,
    "HeldOut.fraction": fraction,
    "HeldOut.max_rows": max_rows,
    "HeldOut.data": held_out_data,
    "TrainSettings.epochs": epochs,
    "TrainSettings.max_steps": max_steps,
    "TrainSettings.learning_rate": rate,
    "TrainSettings.batch_size": batch_size,
    "TrainSettings.micro_batch_size": micro_batch_size,
    "TrainSettings.schedule": schedule,
    "TrainSettings.warmup": warmup,
    "TrainSettings.optimizer": optimizer,
    "TrainSettings.betas": betas,
    "TrainSettings.weight_decay": weight_decay,
    "TrainSettings.max_grad_norm": max_grad_norm,
    "TrainSettings.gradient_checkpointing": gradient_checkpointing,
    "TrainSettings.layout": layout,
    "TrainSettings.eval_every": eval_every,
    "TrainSettings.checkpoint_every": checkpoint_every,
    "TrainSettings.keep_checkpoints": keep_checkpoints,
    "TrainSettings.early_stop": early_stop,
    "SftStage.kind": kind,
    "SftStage.data": data,
    "SftStage.start_from": start_from,
    "SftStage.too_long": too_long,
    "SftStage.duplicates": duplicates,
    "SftStage.loss_on": loss_on,
    "SftStage.allow_unusual_mask": allow_unusual_mask,
    "SftStage.engine": engine,
}
OF_OTHER_SECTIONS = {
    "Recipe.model",
    "Recipe.adapter",
    "Recipe.track",
    "Recipe.stages",
    "SftStage.held_out",
    "SftStage.train",
}
"""Fields that are sections: their own fields are checked one by one."""


def test_every_field_has_a_check() -> None:
    fields = {f"{section.__name__}.{key}" for section in SECTIONS for key in section.model_fields}
    assert fields == CHECKS.keys() | OF_OTHER_SECTIONS


@pytest.mark.slow
@pytest.mark.parametrize("setting", CHECKS)
def test_the_setting_counts(setting: str, lab: Lab) -> None:
    CHECKS[setting](lab)


@pytest.mark.slow
def test_the_same_recipe_gives_the_same_bits(lab: Lab) -> None:
    """What the other checks rest on: two runs that differ in nothing do not differ."""
    assert lab.run().bits == lab.run({"name": "another"}).bits


@pytest.mark.slow
def test_wandb_resumes_one_run_and_writes_no_key(lab: Lab) -> None:
    """Two sessions are two folders of one run id; the key that was in the environment is in no file of the run."""
    files = wandb_files(lab)
    sessions = {name.split("/")[1] for name in files if "/offline-run-" in f"/{name}"}
    assert len(sessions) == 2
    assert len({session.rsplit("-sft-", 1)[1] for session in sessions}) == 1
    assert [name for name, content in files.items() if SECRET.encode() in content] == []
    host = socket.gethostname().encode()
    assert [name for name, content in files.items() if len(host) > 3 and host in content] == []


@pytest.mark.slow
def test_no_key_is_written_without_wandb_either(recipe: Callable[..., Path], finetune: Run, tmp_path: Path) -> None:
    tokens = {"HF_TOKEN": "hf_" + "Abcdefgh" * 4, "WANDB_API_KEY": SECRET}
    with pytest.MonkeyPatch.context() as patch:
        for variable, token in tokens.items():
            patch.setenv(variable, token)
        ended = finetune("sft", recipe(), "--runs", tmp_path / "runs")
    assert ended.code == 0
    written = b"".join(path.read_bytes() for path in (tmp_path / "runs").rglob("*") if path.is_file())
    for token in tokens.values():
        assert token.encode() not in written and token not in ended.out + ended.err
