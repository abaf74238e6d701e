"""The recipes that the project carries."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from finetune.plan.estimate import estimate
from finetune.recipe.checks import check_files
from finetune.recipe.load import LoadedRecipe, load_recipe

PAPERS = ("llama2-chat/7b", "llama2-chat/13b", "llama2-chat/70b", "llama3-instruct/8b", "llama3-instruct/70b")


def test_every_recipe_loads(root: Path) -> None:
    recipes = sorted((root / "recipes").rglob("*.yaml"))
    assert recipes, "no recipe was found: this test would prove nothing"
    names = []
    for path in recipes:
        loaded = load_recipe(path)
        names.append(loaded.recipe.name)
        schema = path.read_text(encoding="utf-8").partition("$schema=")[2].partition("\n")[0].strip()
        assert schema, f"{path.name} does not tell editors where the schema is"
        assert (path.parent / schema).is_file(), f"{path.name} points editors to {schema}, which is not there"
    assert len(set(names)) == len(names), "two recipes would share one run folder"
    assert {str(path.relative_to(root / "recipes").with_suffix("")) for path in recipes} >= set(PAPERS)


@pytest.fixture(scope="module")
def papers(root: Path) -> dict[str, LoadedRecipe]:
    return {name: load_recipe(root / "recipes" / f"{name}.yaml") for name in PAPERS}


@pytest.mark.parametrize("name", PAPERS)
def test_a_papers_recipe_lacks_nothing_but_its_data(name: str, papers: dict[str, LoadedRecipe], root: Path) -> None:
    loaded = papers[name]
    problems = check_files(loaded.recipe, loaded.folder, loaded.source)
    files = [problem.message.removeprefix("no such file or folder: ") for problem in problems]
    assert files and all(Path(file).parent == loaded.folder / "data" for file in files)
    assert f"| {len(loaded.recipe.stages)} |" in (root / "recipes" / "README.md").read_text(encoding="utf-8")
    about = (root / "recipes" / "README.md").read_text(encoding="utf-8").partition(f"`{loaded.folder.name}/data/`")[2]
    for file in files:
        first = re.sub(r"-\d\.jsonl$", "-1.jsonl", Path(file).name)
        assert f"`{first}`" in about, f"recipes/README.md does not say what {first} holds"


SHAPES = {  # hidden size, layers, heads, key-value heads, feed-forward width, words
    "llama2-chat/7b": (4096, 32, 32, 32, 11008, 32000),
    "llama2-chat/13b": (5120, 40, 40, 40, 13824, 32000),
    "llama2-chat/70b": (8192, 80, 64, 8, 28672, 32000),
    "llama3-instruct/8b": (4096, 32, 32, 8, 14336, 128256),
    "llama3-instruct/70b": (8192, 80, 64, 8, 28672, 128256),
}


@pytest.mark.parametrize("name", PAPERS)
def test_it_fits_on_the_gpu_that_the_readme_names(name: str, papers: dict[str, LoadedRecipe], root: Path) -> None:
    [line] = [
        line for line in (root / "recipes" / "README.md").read_text().splitlines() if f"| `{name}.yaml` |" in line
    ]
    [gigabytes] = re.findall(r"(\d+) GB \|$", line)
    keys = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size")
    config = dict(zip((*keys, "vocab_size"), SHAPES[name], strict=True))
    recipe = papers[name].recipe
    needs = [estimate(config, recipe.model, recipe.adapter, stage).memory for stage in recipe.stages.values()]
    assert 0.4 < max(needs) / (float(gigabytes) * 1e9) < 1


@pytest.mark.parametrize(("size", "kl"), [("7b", 0.01), ("13b", 0.01), ("70b", 0.005)])
def test_llama_2s_numbers(papers: dict[str, LoadedRecipe], size: str, kl: float) -> None:
    """Llama 2, sections 3.1 to 3.2.3: five rounds on the base, PPO on top of the last."""
    stages = papers[f"llama2-chat/{size}"].recipe.stages
    rounds = [f"{kind}.{number}" for number in range(1, 6) for kind in ("helpful", "safe", "best", "tuned")]
    assert list(stages) == ["sft", *rounds, "ppo"]
    ppo, sft, best, judge = stages["ppo"], stages["tuned.5"], stages["best.5"], stages["safe.5"]
    assert (ppo.start_from, ppo.reward, ppo.safety.reward) == ("tuned.5", "helpful.5", "safe.5")
    assert (ppo.kl, ppo.rollouts, ppo.train.batch_size, ppo.clip_range, ppo.passes) == (kl, 512, 64, 0.2, 1)
    assert (ppo.safety.threshold, ppo.whiten_scores, ppo.train.weight_decay, ppo.train.betas) == (
        0.15, True, 0.1, (0.9, 0.95),
    )  # fmt: skip
    assert 200 <= ppo.iterations <= 400 and ppo.train.schedule == "constant" and ppo.train.max_grad_norm == 1.0
    assert (sft.start_from, sft.train.epochs, sft.train.batch_size, sft.train.weight_decay) == (None, 2.0, 64, 0.1)
    assert (best.policy, best.reward, best.safety.reward) == ("tuned.4", "helpful.5", "safe.5")
    assert best.earlier == ["best.1", "best.2", "best.3", "best.4"] and 1.2 <= best.temperature <= 1.3
    assert (judge.start_from, judge.train.epochs, judge.train.batch_size, judge.train.warmup) == (
        "tuned.4",
        1,
        512,
        0.03,
    )
    assert judge.margin == "llama2-small" and len(judge.data) == 6


@pytest.mark.parametrize("size", ["8b", "70b"])
def test_llama_3s_numbers(papers: dict[str, LoadedRecipe], size: str) -> None:
    """Llama 3, section 4.1: six rounds of reward model, rejection sampling, fine-tuning, DPO, averaging."""
    stages = papers[f"llama3-instruct/{size}"].recipe.stages
    kinds = [stage.kind for stage in stages.values()]
    assert kinds == ["sft", *(["reward", "reject", "sft", "dpo", "dpo", "average"] * 6)]
    judge, best, sft, dpo, mean = (stages[f"{name}.6"] for name in ("judge", "best", "sft", "dpo_a", "mean"))
    assert (judge.start_from, judge.margin, len(judge.data)) == (None, "none", 6), "all comparisons so far"
    assert best.policy == "mean.5" and stages["best.1"].policy == "seed" and 10 <= best.samples <= 30
    assert sft.start_from is None and [entry.stage for entry in sft.data[1:]] == [f"best.{n}" for n in range(1, 7)]
    assert (dpo.beta, dpo.nll_weight, dpo.mask_format_tokens, dpo.train.learning_rate) == (0.1, 0.2, True, 1e-5)
    assert [entry.path for entry in dpo.data] == ["data/clear-6.jsonl"], "only the newest comparisons"
    assert mean.of == ["dpo_a.6", "dpo_b.6"]


@pytest.mark.parametrize(("small", "large"), [(PAPERS[0], PAPERS[1]), (PAPERS[0], PAPERS[2]), (PAPERS[3], PAPERS[4])])
def test_sizes_differ_only_where_they_must(papers: dict[str, LoadedRecipe], small: str, large: str) -> None:
    one, other = (papers[name].recipe.model_dump(mode="json") for name in (small, large))
    differing = {path[-1] for path in different(one, other)}
    assert differing <= {"name", "base", "kl", "micro_batch_size", "rows_at_once"}
    assert {"name", "base"} <= differing


def different(one: Any, other: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return [found for key in one for found in different(one[key], other[key], (*path, key))]
    return [] if one == other else [path]
