"""TRL's DPOTrainer and KTOTrainer, and its experimental ORPO and CPO trainers, are the oracle of the dpo stage.

TRL tokenises texts as it does; our side learns from the very ids that it made. Two references are compared: the bare
base under a policy that is away from it already, so that no term of a loss is at its start, and the adapter that the
policy starts from, as in the stage.

ORPO: TRL's own NLL covers the prompt's tokens too, where the paper's and ours cover the answer's. Rows whose prompt is
the first token alone have no prompt token to predict, so both agree on them, and the odds ratio is compared with it.

Measured (torch 2.13, trl 1.16, one thread): first losses apart by at most 1.1e-6 relative, the gradient of any
one parameter by 4.2e-6; over ten steps losses by 1.1e-6, the way that weights went by 3e-6.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trl_oracle as oracle
from trl_oracle import Followed

from finetune.data.comparisons import Comparisons
from finetune.engine.comparison_work import comparison_work
from finetune.engine.reference import add_reference, with_every_batch
from finetune.engine.token_logprobs import hidden_function
from finetune.model import adapter
from finetune.numerics.preference import Knobs
from finetune.recipe.data_settings import DataSource
from finetune.recipe.learning_stages import DpoStage
from finetune.stages.dpo import dpo_objective

PAIRS = 6
Folders = tuple[Path, Path]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    base = oracle.make_base(tmp_path_factory.mktemp("base"))
    return base, oracle.make_adapter(base, tmp_path_factory.mktemp("adapter"))


def _ours(
    folders: Folders,
    data: Comparisons,
    out: Path,
    *,
    steps: int = 1,
    layout: str = "ragged",
    batch: int = PAIRS,
    micro: int | None = None,
    reference: str = "base",
    **settings: Any,
) -> Followed:
    """The stage's objective and work. reference: the bare base, or the adapter that the policy starts from."""
    base = oracle.our_base(folders[0])
    model = adapter.open_adapter(base, folders[1])
    add_reference(model, folders[1] if reference == "start" else None)
    train = oracle.train_settings(steps, batch, layout, micro)
    stage = DpoStage(kind="dpo", data=[DataSource(path="none")], train=train, **settings)
    hidden = hidden_function(layout)
    in_batch = with_every_batch(model, base.model, base.lm_head, hidden)
    objective = partial(
        dpo_objective,
        stage=stage,
        knobs=Knobs(beta=stage.beta, label_smoothing=stage.label_smoothing, simpo_margin=stage.simpo_margin),
        decoder=base.model,
        head=base.lm_head,
        hidden=hidden,
        reference=in_batch,
        held_out_reference=in_batch,
        mismatched=in_batch,
    )
    work = comparison_work(oracle.prepared(data), stage, objective, judged=stage.loss == "kto")
    return oracle.train_ours(model, work, train, out)


def _their_dpo(
    folders: Folders,
    out: Path,
    *,
    rows: int = PAIRS,
    steps: int = 1,
    batch: int = PAIRS,
    reference: str = "base",
    **more: Any,
) -> tuple[Any, Comparisons]:
    """TRL's trainer, ready to train, and the tokens it made of the texts."""
    from datasets import Dataset
    from transformers import LlamaForCausalLM
    from trl import DPOConfig, DPOTrainer

    bare = None
    if reference == "base":
        bare = LlamaForCausalLM.from_pretrained(folders[0], dtype="float32", attn_implementation="sdpa")
    trainer = DPOTrainer(
        oracle.their_model(*folders, LlamaForCausalLM),
        bare,
        oracle.their_config(DPOConfig, out, steps, batch, **more),
        train_dataset=Dataset.from_list(oracle.texts(rows)),
        processing_class=oracle.tokenizer_of(folders[0]),
    )
    groups = [
        [(row["prompt_ids"], row[f"{side}_ids"]) for side in ("chosen", "rejected")] for row in trainer.train_dataset
    ]
    return trainer, oracle.comparisons(groups)


LOSSES = {
    "sigmoid": ({}, {"loss_type": ["sigmoid"]}),
    "hinge": ({}, {"loss_type": ["hinge"]}),
    "ipo": ({}, {"loss_type": ["ipo"]}),
    "robust": ({"label_smoothing": 0.1}, {"loss_type": ["robust"], "label_smoothing": 0.1}),
    "sigmoid_norm": ({"beta": 5.0}, {"loss_type": ["sigmoid_norm"], "beta": 5.0}),
    "sigmoid and nll": ({"nll_weight": 0.2}, {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.2]}),
}


@pytest.mark.parametrize("name", LOSSES)
def test_first_loss_and_every_lora_gradient(folders, tmp_path, name):
    our_settings, their_settings = LOSSES[name]
    trainer, data = _their_dpo(folders, tmp_path / "trl", **their_settings)
    theirs = oracle.train_theirs(trainer)
    for layout in ("ragged", "padded"):
        ours = _ours(folders, data, tmp_path / layout, layout=layout, loss=name.split()[0], **our_settings)
        assert ours.losses[0] == pytest.approx(theirs.losses[0], rel=1e-5)
        oracle.same_gradients(ours, theirs)


@pytest.mark.parametrize("settings", [{}, {"nll_weight": 0.2}], ids=["sigmoid", "sigmoid and nll"])
def test_the_cut_changes_nothing(folders, tmp_path, settings):
    """6 pairs in one forward pass, 3 x 2 or 2 x 4 + 2: the same, though their answers are of different lengths."""
    trainer, data = _their_dpo(
        folders, tmp_path / "trl", loss_type=["sigmoid", "sft"], loss_weights=[1.0, settings.get("nll_weight", 0.0)]
    )
    theirs = oracle.train_theirs(trainer)
    for micro in (6, 4, 2):
        ours = _ours(folders, data, tmp_path / str(micro), micro=micro, **settings)
        assert ours.losses[0] == pytest.approx(theirs.losses[0], rel=1e-5)
        oracle.same_gradients(ours, theirs)


@pytest.mark.parametrize("layout", ["ragged", "padded"])
@pytest.mark.parametrize("name", ["sigmoid", "ipo", "sigmoid and nll"])
def test_ten_steps_stay_together(folders, tmp_path, name, layout):
    """As the stage does it: the reference is the adapter that the policy starts from, so the first loss is known."""
    our_settings, their_settings = LOSSES[name]
    start = adapter.state(adapter.open_adapter(oracle.our_base(folders[0]), folders[1]))
    trainer, data = _their_dpo(
        folders, tmp_path / "trl", rows=40, steps=10, batch=4, reference="start", **their_settings
    )
    theirs = oracle.train_theirs(trainer)
    ours = _ours(
        folders,
        data,
        tmp_path / "ours",
        steps=10,
        batch=4,
        layout=layout,
        micro=2,
        reference="start",
        loss=name.split()[0],
        **our_settings,
    )
    oracle.same_way(ours, theirs, start, steps=10)
    if name == "sigmoid":
        assert ours.losses[0] == pytest.approx(0.6931472, rel=1e-6)


def _their_kto(
    folders: Folders, out: Path, *, rows: int, steps: int, batch: int, reference: str, **more: Any
) -> tuple[Any, Comparisons]:
    from datasets import Dataset
    from transformers import LlamaForCausalLM
    from trl import KTOConfig, KTOTrainer

    answers = [
        {"prompt": row["prompt"], "completion": row["chosen"], "label": index % 3 != 1}
        for index, row in enumerate(oracle.texts(rows, seed=2))
    ]
    bare = None
    if reference == "base":
        bare = LlamaForCausalLM.from_pretrained(folders[0], dtype="float32", attn_implementation="sdpa")
    trainer = KTOTrainer(
        oracle.their_model(*folders, LlamaForCausalLM),
        bare,
        oracle.their_config(KTOConfig, out, steps, batch, **more),
        train_dataset=Dataset.from_list(answers),
        processing_class=oracle.tokenizer_of(folders[0]),
    )
    made = list(trainer.train_dataset)
    data = oracle.comparisons(
        [[(row["prompt_ids"], row["completion_ids"])] for row in made], desirable=[row["label"] for row in made]
    )
    return trainer, data


@pytest.mark.parametrize("layout", ["ragged", "padded"])
def test_kto_equals_trl(folders, tmp_path, layout):
    trainer, data = _their_kto(
        folders,
        tmp_path / "trl",
        rows=6,
        steps=1,
        batch=6,
        reference="base",
        desirable_weight=1.5,
        undesirable_weight=0.7,
    )
    theirs = oracle.train_theirs(trainer)
    ours = _ours(folders, data, tmp_path / "ours", layout=layout, loss="kto", kto_weights=(1.5, 0.7))
    assert ours.losses[0] == pytest.approx(theirs.losses[0], rel=1e-5)
    oracle.same_gradients(ours, theirs)


def test_ten_steps_of_kto(folders, tmp_path):
    start = adapter.state(adapter.open_adapter(oracle.our_base(folders[0]), folders[1]))
    trainer, data = _their_kto(folders, tmp_path / "trl", rows=40, steps=10, batch=4, reference="start")
    theirs = oracle.train_theirs(trainer)
    ours = _ours(folders, data, tmp_path / "ours", steps=10, batch=4, reference="start", loss="kto")
    oracle.same_way(ours, theirs, start, steps=10)


def _their_older(
    folders: Folders, out: Path, kinds: Callable[[], tuple[type, type]], rows: Sequence[dict[str, str]], **more: Any
) -> tuple[Any, Comparisons]:
    """TRL's experimental ORPO and CPO trainers, which share their data's form."""
    from datasets import Dataset
    from transformers import LlamaForCausalLM

    config, trainer_type = kinds()
    steps = more.pop("steps", 1)
    batch = more.pop("batch", PAIRS)
    trainer = trainer_type(
        oracle.their_model(*folders, LlamaForCausalLM),
        oracle.their_config(config, out, steps, batch, **more),
        train_dataset=Dataset.from_list(list(rows)),
        processing_class=oracle.tokenizer_of(folders[0]),
    )
    groups = []
    for row in trainer.train_dataset:
        pair = []
        for side in ("chosen", "rejected"):
            prompt = row[f"{side}_labels"].count(-100)
            pair.append((row[f"{side}_input_ids"][:prompt], row[f"{side}_input_ids"][prompt:]))
        groups.append(pair)
    return trainer, oracle.comparisons(groups)


def _orpo() -> tuple[type, type]:
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    return ORPOConfig, ORPOTrainer


def _cpo() -> tuple[type, type]:
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    return CPOConfig, CPOTrainer


@pytest.mark.parametrize("layout", ["ragged", "padded"])
def test_orpo_equals_trl(folders, tmp_path, layout):
    rows = oracle.texts(PAIRS, prompts=False)
    trainer, data = _their_older(folders, tmp_path / "trl", _orpo, rows, beta=0.3)
    assert set(data.prompt_lengths.tolist()) == {1}  # the first token alone: see the module's docstring
    theirs = oracle.train_theirs(trainer)
    ours = _ours(folders, data, tmp_path / "ours", layout=layout, loss="orpo", beta=0.3)
    assert ours.losses[0] == pytest.approx(theirs.losses[0], rel=1e-5)
    oracle.same_gradients(ours, theirs)


@pytest.mark.parametrize("layout", ["ragged", "padded"])
def test_simpo_equals_trl(folders, tmp_path, layout):
    rows = oracle.texts(PAIRS)
    trainer, data = _their_older(
        folders, tmp_path / "trl", _cpo, rows, loss_type="simpo", cpo_alpha=0.0, beta=2.0, simpo_gamma=0.7
    )
    theirs = oracle.train_theirs(trainer)
    ours = _ours(folders, data, tmp_path / "ours", layout=layout, loss="simpo", beta=2.0, simpo_margin=0.7)
    assert ours.losses[0] == pytest.approx(theirs.losses[0], rel=1e-5)
    oracle.same_gradients(ours, theirs)
