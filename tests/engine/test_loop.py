"""The loop on a tiny LLaMA: accumulation, resume to the same bits, early stop, NaN, signals."""

import json
import os
import signal
from functools import partial

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from finetune.engine import checkpoint, loop
from finetune.engine.batches import Schedule, collate, micro_batches
from finetune.errors import DivergedError, InterruptedRunError
from finetune.model import adapter, ragged
from finetune.recipe.settings import AdapterSettings
from finetune.recipe.train_settings import TrainSettings
from finetune.stages.sft import sft_objective

CPU = torch.device("cpu")
ROWS = 24


class Rows:
    """Rows of 3 to 30 random tokens, the later half of each trained."""

    def __init__(self):
        generator = np.random.default_rng(0)
        self.rows = []
        for length in generator.integers(3, 30, ROWS):
            ids = generator.integers(3, 61, length)
            self.rows.append((ids, (np.arange(length) >= length // 2).astype(np.uint8)))

    @property
    def lengths(self):
        return np.array([len(ids) for ids, _ in self.rows])

    def __len__(self):
        return ROWS

    def row(self, index):
        return self.rows[index]


def setting(dropout=0.1, **changes):
    """(model, work, settings) from nothing, the same every time."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=61,
    )  # fmt: skip
    base = LlamaForCausalLM(config).requires_grad_(False)
    ragged.install(base)
    model = adapter.new_adapter(base, AdapterSettings(rank=4, dropout=dropout), seed=3)
    settings = TrainSettings(**{"max_steps": 12, "batch_size": 8, "micro_batch_size": 4, "warmup": 0.0, **changes})
    data = Rows()
    schedule = Schedule(lambda epoch: np.random.default_rng(epoch).permutation(ROWS), ROWS, settings.batch_size, 12)

    def step_batches(step):
        rows = schedule.rows_of(step)
        parts = micro_batches(rows, data.lengths[rows], settings.micro_batch_size, balance=True)
        return [collate(data, part) for part in parts]

    work = loop.Work(
        objective=partial(sft_objective, decoder=base.model, head=base.lm_head, hidden=ragged.ragged_hidden),
        step_batches=step_batches,
        total_steps=settings.max_steps,
        steps_per_epoch=schedule.steps_per_epoch,
        held_out=[collate(data, range(4))],
        name_rows=lambda rows: ", ".join(f"row {row}" for row in rows),
    )
    torch.manual_seed(7)
    return model, work, settings


def train(folder, parts=None, compute=torch.float32, **changes):
    model, work, settings = parts or setting(**changes)
    folder.mkdir(exist_ok=True)
    accelerator = loop.make_accelerator(CPU)
    trained = loop.train(
        model, work, settings, peak_rate=1e-2, accelerator=accelerator, compute=compute, folder=folder, title="test"
    )
    return trained, adapter.state(model)


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def lines(folder):
    kept = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("seconds", "tokens_per_second", "memory_gib")} for line in kept]


def test_it_learns_and_every_parameter_moves(tmp_path):
    model, work, settings = setting()
    before = adapter.state(model)
    trained, after = train(tmp_path / "run", (model, work, settings))
    assert trained.steps == 12 and trained.progress.held_out < trained.progress.first_held_out
    assert all(not torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("micro", [1, 2, 3, 4])
def test_the_cut_into_micro_batches_does_not_matter(tmp_path, micro):
    """Batch 8 at once = 2 x 4 = 4 x 2 = 8 x 1, to 1e-5, in loss, gradient norm and weights."""
    whole, one = train(tmp_path / "whole", dropout=0.0, micro_batch_size=8, max_steps=4)
    cut, other = train(tmp_path / "cut", dropout=0.0, micro_batch_size=micro, max_steps=4)
    assert cut.progress.last_loss == pytest.approx(whole.progress.last_loss, rel=1e-5)
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-4, atol=1e-5)
    for first, second in zip(lines(tmp_path / "whole"), lines(tmp_path / "cut"), strict=True):
        assert second == pytest.approx(first, rel=1e-5)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("optimizer", ["adamw", "paged_adamw_8bit"])
def test_resume_ends_in_the_same_bits(tmp_path, optimizer, recompute):
    changes = {
        "optimizer": optimizer,
        "checkpoint_every": 1,
        "keep_checkpoints": 20,
        "gradient_checkpointing": recompute,
    }
    _, whole = train(tmp_path / "whole", **changes)
    for stop_after in (1, 5, 11):
        folder = tmp_path / f"cut{stop_after}"
        train(folder, **changes)
        for path in sorted((folder / "checkpoints").iterdir())[stop_after:]:
            path.rename(folder / path.name)  # as if killed right after checkpoint `stop_after`
        trained, resumed = train(folder, **changes)
        assert trained.resumed_from == stop_after
        assert same(whole, resumed)
        assert lines(folder) == lines(tmp_path / "whole")


def test_a_signal_saves_and_says_how_to_go_on(tmp_path):
    model, work, settings = setting(checkpoint_every=100)
    before = signal.getsignal(signal.SIGINT)  # a background job's shell may have set it to be ignored

    def interrupting(step):
        if step == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return work.step_batches(step)

    cut = loop.Work(**{**vars(work), "step_batches": interrupting})
    with pytest.raises(InterruptedRunError, match=r"after step 5 of 12.*same command again"):
        train(tmp_path / "cut", (model, cut, settings))
    trained, resumed = train(tmp_path / "cut", checkpoint_every=100)
    assert trained.resumed_from == 5
    assert same(resumed, train(tmp_path / "whole", checkpoint_every=100)[1])
    assert signal.getsignal(signal.SIGINT) is before


def test_a_loss_that_is_not_finite_names_its_rows_and_changes_nothing(tmp_path):
    model, work, settings = setting(checkpoint_every=1)
    seen = {}

    def poisoned(model, batch):
        loss = work.objective(model, batch)
        if len(seen) == 5:  # the sixth micro-batch: second of step 3
            seen["rows"], seen["weights"] = batch.rows, adapter.state(model)
            return loop.Loss(loss.total * float("nan"))
        seen[len(seen)] = True
        return loss

    bad = loop.Work(**{**vars(work), "objective": poisoned, "held_out": []})
    with pytest.raises(DivergedError, match="loss of step 3 is nan") as caught:
        train(tmp_path / "run", (model, bad, settings))
    assert all(f"row {row}" in str(caught.value) for row in seen["rows"])
    assert same(seen["weights"], adapter.state(model))
    assert checkpoint.newest_checkpoint(tmp_path / "run" / "checkpoints")[0].step == 2


def test_a_step_without_trained_tokens_is_an_error(tmp_path):
    model, work, settings = setting()
    work = loop.Work(**{**vars(work), "step_batches": lambda step: [collate(Rows(), [0])][:0], "held_out": []})
    with pytest.raises(DivergedError, match="no trained token"):
        train(tmp_path / "run", (model, work, settings))


def test_early_stop_keeps_the_best(tmp_path):
    model, work, settings = setting(early_stop=2, eval_every=1, schedule="constant", dropout=0.0)
    losses = iter([5.0, 4.0, 3.0, 3.5, 3.6, 9.0, 9.0])
    states = []

    def objective(model, batch):
        if torch.is_grad_enabled():
            return work.objective(model, batch)
        states.append(adapter.state(model))
        return loop.Loss(torch.tensor(next(losses) * batch.units))

    trained, final = train(tmp_path / "run", (model, loop.Work(**{**vars(work), "objective": objective}), settings))
    assert trained.stopped_early and trained.steps == 4
    assert (trained.progress.best_step, trained.progress.best_held_out) == (2, 3.0)
    assert same(final, states[2]) and trained.progress.held_out == 3.0
    # Interrupted after the end of training, before the run was finished: the best comes from the checkpoint.
    again, resumed = train(tmp_path / "run", early_stop=2, eval_every=1, schedule="constant", dropout=0.0)
    assert again.resumed_from == 4 and again.stopped_early and same(resumed, final)


def test_clipping_bounds_the_update(tmp_path):
    _, free = train(tmp_path / "free", dropout=0.0, max_steps=1, max_grad_norm=None)
    _, tight = train(tmp_path / "tight", dropout=0.0, max_steps=1, max_grad_norm=1e-12, optimizer="adamw")
    norm = lines(tmp_path / "free")[1]["grad_norm"]
    assert norm > 1e-3 and lines(tmp_path / "tight")[1]["grad_norm"] == pytest.approx(norm)
    assert not same(free, tight)


def test_bf16_stays_near_fp32(tmp_path):
    wide, _ = train(tmp_path / "wide", dropout=0.0, max_steps=3)
    narrow, _ = train(tmp_path / "narrow", dropout=0.0, max_steps=3, compute=torch.bfloat16)
    assert narrow.progress.last_loss == pytest.approx(wide.progress.last_loss, rel=1e-2)
    assert narrow.progress.last_loss != wide.progress.last_loss, "bf16 was not used"
