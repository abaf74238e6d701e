"""`finetune sft`, `reward`, `reject` …: run the recipe's stages of one kind, and whatever they read that is not done.

The commands differ in their words alone, so one function makes them.
"""

from __future__ import annotations

from pathlib import Path

import click

from finetune.cli.options import recipe_options


def _command(kind: str, about: str, *more: str) -> click.Command:
    """The command for one stage kind. about: what its stages do. more: further examples after the plain one."""

    @recipe_options
    def run(recipe: Path, overrides: tuple[str, ...], runs: Path) -> None:
        from finetune.cli.walk import walk

        walk(recipe, overrides, runs, kinds={kind})

    text = (
        f"{about}\n\nRuns the recipe's stages of kind {kind}, and whatever they read that is not done; nothing else. "
        "What is done is not repeated; what was interrupted goes on from where it was.\n\n\b\nExample:\n"
    )
    examples = [f"finetune {kind} recipe.yaml", *more]
    return click.command(kind, help=text + "\n".join(f"  {example}" for example in examples))(run)


sft = _command(
    "sft",
    "Fine-tune on conversations, prompts with answers, or text; writes a proven adapter.",
    "finetune sft recipe.yaml --set stages.sft.train.epochs=1",
)
reward = _command("reward", "Train a reward model on comparisons: an adapter with a scalar head.")
reject = _command(
    "reject",
    "Rejection sampling: write many answers to each prompt, have them scored by a reward model or a checker, and keep "
    "the best as rows for sft, or the best and the worst as pairs for dpo.",
    "finetune reject recipe.yaml --set stages.best.samples=8",
)
dpo = _command("dpo", "Learn from comparisons directly: DPO and its relatives (ipo, simpo, orpo, kto …).")
ppo = _command(
    "ppo",
    "Proximal policy optimisation: learn from what a reward model or a checker says of the model's own answers. "
    "Policy, reference, reward and value share one base in memory.",
    "finetune ppo recipe.yaml --set stages.ppo.iterations=10",
)
grpo = _command(
    "grpo", "Group relative policy optimisation by TRL's own trainer: each answer against the others to its prompt."
)
rloo = _command("rloo", "REINFORCE leave-one-out by TRL's own trainer: each answer against the mean of the others.")
average = _command("average", "Average adapters into one, exactly unless the recipe asks for a lower rank.")
