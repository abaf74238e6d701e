"""TRL's RewardTrainer, as it is, is the oracle of the reward stage: same base, LoRA weights, head, pairs and order.

Measured (torch 2.13, trl 1.16, one thread): first losses apart by at most 1.3e-7 relative, the gradient of any
one parameter, the head's too, by 1.3e-6; over ten steps losses by 5e-7, the way that weights went by 1.5e-5.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import trl_oracle as oracle
from safetensors.torch import load_file
from trl_oracle import Followed

from finetune.data.comparisons import Comparisons
from finetune.engine.comparison_work import comparison_work
from finetune.engine.token_logprobs import hidden_function
from finetune.model import adapter
from finetune.model.reward import HEAD_KEY, RewardModel
from finetune.recipe.data_settings import DataSource
from finetune.recipe.learning_stages import RewardStage
from finetune.stages.reward import pair_margins, reward_objective

PAIRS = 6
COUNT = oracle.LORA_PARAMETERS + 1  # and the head


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    base = oracle.make_base(tmp_path_factory.mktemp("base"))
    return base, oracle.make_adapter(base, tmp_path_factory.mktemp("adapter"), head=True)


@pytest.fixture(scope="module")
def pairs() -> Comparisons:
    """Forty pairs of 2 to 90 tokens with a shared prompt, and a margin each."""
    random = np.random.default_rng(0)
    groups = []
    for _ in range(40):
        prompt = random.integers(0, 470, random.integers(1, 60)).tolist()
        answers = [random.integers(0, 470, random.integers(1, 30)).tolist() for _ in range(2)]
        groups.append([(prompt, answer) for answer in answers])
    return oracle.comparisons(groups, margins=random.uniform(0, 2, 40).round(2).tolist())


def _ours(
    folders: tuple[Path, Path],
    pairs: Comparisons,
    out: Path,
    *,
    steps: int,
    layout: str = "ragged",
    batch: int = PAIRS,
    micro: int | None = None,
    margin: str = "none",
    centring: float = 0.0,
) -> Followed:
    model = _our_model(folders)
    stage = RewardStage(
        kind="reward",
        data=[DataSource(path="none")],
        margin=margin,
        centring=centring,
        train=oracle.train_settings(steps, batch, layout, micro),
    )
    objective = partial(
        reward_objective,
        decoder=model.adapted.get_base_model().model,
        hidden=hidden_function(layout),
        centring=centring,
    )
    work = comparison_work(oracle.prepared(pairs), stage, objective, margins=partial(pair_margins, margin))
    return oracle.train_ours(model, work, stage.train, out)


def _our_model(folders: tuple[Path, Path]) -> RewardModel:
    """As the stage builds it; head and adapter are those of the saved reward adapter."""
    tensors = load_file(folders[1] / "adapter_model.safetensors")
    model = adapter.new_adapter(oracle.our_base(folders[0]), adapter.AdapterSettings(rank=4, alpha=8.0), seed=0)
    adapter.restore(
        model, {name: tensors[name.replace(".default.weight", ".weight")] for name in adapter.trainable(model)}
    )
    head = torch.nn.Linear(64, 1, bias=False)
    head.weight.data.copy_(tensors[HEAD_KEY])
    return RewardModel(model, head)


def _theirs(
    folders: tuple[Path, Path],
    pairs: Comparisons,
    out: Path,
    *,
    steps: int,
    batch: int = PAIRS,
    margin: bool = False,
    centring: float | None = None,
    accumulate: int = 1,
) -> Followed:
    from datasets import Dataset
    from transformers import LlamaForSequenceClassification
    from trl import RewardConfig, RewardTrainer

    rows = [
        {
            "chosen_ids": pairs.rows.row(chosen)[0].tolist(),
            "rejected_ids": pairs.rows.row(rejected)[0].tolist(),
            **({"margin": float(pairs.margins[group])} if margin else {}),
        }
        for group in range(len(pairs))
        for chosen, rejected in [pairs.group(group)]
    ]
    trainer = RewardTrainer(
        oracle.their_model(*folders, LlamaForSequenceClassification),
        oracle.their_config(
            RewardConfig,
            out,
            steps,
            batch,
            center_rewards_coefficient=centring,
            gradient_accumulation_steps=accumulate,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=oracle.tokenizer_of(folders[0]),
    )
    return oracle.train_theirs(trainer, _our_name)


def _our_name(name: str) -> str:
    return "score.weight" if ".score." in name else f"adapted.{name}"


@pytest.mark.parametrize(("margin", "centring"), [("none", 0.0), ("column", 0.0), ("none", 0.01), ("column", 0.05)])
def test_first_loss_and_every_gradient(folders, pairs, tmp_path, margin, centring):
    theirs = _theirs(folders, pairs, tmp_path / "trl", steps=1, margin=margin == "column", centring=centring or None)
    for layout in ("ragged", "padded"):
        ours = _ours(folders, pairs, tmp_path / layout, steps=1, layout=layout, margin=margin, centring=centring)
        assert ours.losses[0] == pytest.approx(theirs.losses[0], rel=1e-5)
        oracle.same_gradients(ours, theirs, count=COUNT)


def test_accumulation_changes_nothing(folders, pairs, tmp_path):
    """6 pairs = 3 x 2 on both sides: every pair weighs the same, however the step is cut."""
    theirs = _theirs(folders, pairs, tmp_path / "trl", steps=1, batch=2, accumulate=3, margin=True)
    ours = _ours(folders, pairs, tmp_path / "ours", steps=1, micro=2, margin="column")
    assert ours.losses[0] == pytest.approx(theirs.losses[0], rel=1e-5)
    oracle.same_gradients(ours, theirs, count=COUNT)


@pytest.mark.parametrize("layout", ["ragged", "padded"])
def test_ten_steps_stay_together(folders, pairs, tmp_path, layout):
    start = adapter.state(_our_model(folders))
    theirs = _theirs(folders, pairs, tmp_path / "trl", steps=10, batch=4, margin=True, centring=0.01)
    ours = _ours(
        folders, pairs, tmp_path / "ours", steps=10, batch=4, micro=2, layout=layout, margin="column", centring=0.01
    )
    oracle.same_way(ours, theirs, start, steps=10)
