"""Which stages of a plan a command is about: all, those of a kind, up to one, from one on."""

from __future__ import annotations

from collections.abc import Collection

from finetune.errors import InputError
from finetune.plan.plan import Plan, PlannedStage
from finetune.recipe.words import did_you_mean


def choose(
    plan: Plan, *, kinds: Collection[str] | None = None, until: str | None = None, begin: str | None = None
) -> list[PlannedStage]:
    """The stages to walk, in the recipe's order.

    kinds: those of these kinds and what they read. until: all up to and including this one. begin: this one and all
    below it, where all above it are done. Raises InputError on an unknown name, and where something above is not done.
    """
    if kinds is not None:
        return plan.needed_for({stage.name for stage in plan.stages if stage.kind in kinds})
    names = [stage.name for stage in plan.stages]
    last = len(names) - 1 if until is None else _place(names, until, "--until")
    first = 0 if begin is None else _place(names, begin, "--from")
    if first > last:
        raise InputError(f"--from {begin} comes after --until {until} in the recipe: nothing lies between them")
    if missing := [stage.name for stage in plan.stages[:first] if stage.state != "done"]:
        verb = "is" if len(missing) == 1 else "are"
        raise InputError(
            f"--from {begin}: {', '.join(missing)} above it {verb} not done. `finetune run` without --from does what "
            "is missing and repeats nothing; `finetune plan` says why a stage is to be run"
        )
    return list(plan.stages[first : last + 1])


def _place(names: list[str], name: str, option: str) -> int:
    if name not in names:
        hint = did_you_mean(name, names) or f"it has {', '.join(names)}"
        raise InputError(f"{option}: the recipe has no stage {name!r}; {hint}")
    return names.index(name)
