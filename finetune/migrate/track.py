"""Trackers that transformers' `report_to` names, as LLaMA-Factory and TRL have it."""

from __future__ import annotations

from finetune.migrate.account import Section
from finetune.migrate.draft import Draft


def by_report_to(draft: Draft, theirs: Section) -> None:
    """wandb, whose project stands in the environment there, and TensorBoard."""
    named = set(theirs.words("report_to"))
    if named & {"wandb", "all"}:
        path = ("track", "wandb", "project")
        project = theirs.text("project")
        draft.put(path, project or "huggingface", "default of transformers; WANDB_PROJECT may have said otherwise")
        draft.also(theirs, "report_to", path)
        draft.also(theirs, "project", path)
    if "tensorboard" in named:
        draft.put(("track", "tensorboard"), True)
        draft.also(theirs, "report_to", ("track", "tensorboard"))
