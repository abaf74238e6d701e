"""Before and after: what the run, the run it started from and the bare base answer to the same prompts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from finetune.chat.model import BASE, Answering
from finetune.data.convert_prompts import message_fields
from finetune.evaluation.measurement import Measurement, opened_writer
from finetune.evaluation.prompts import Asked, context, own_prompts, question, read_prompts
from finetune.evaluation.writing import write_replies
from finetune.plan.evaluations import Evaluation
from finetune.plan.manifest import read_manifest
from finetune.shapes import Dialog

Say = Callable[[str], None]


ROW_FIELDS = frozenset({"prompt", "messages", "tools", "expected", "scores", "judge", "orders", "outcome", "base"})
"""What a row of an evaluation has beside the answers, which stand under the names of those who gave them."""


def write_answers(
    run: Path,
    *,
    prompts: Path | None = None,
    limit: int = 12,
    base: str | None = None,
    answering: Answering | None = None,
    say: Say,
) -> Evaluation:
    """Ask all of them, and keep the answers in the run, as task `answers`.

    prompts: a file; None = the rows that the run's own stage held out (else those it trained on, which is said). limit:
    how many, spread over the file. answering: greedy where None. Rows: prompt (what is asked last), messages (the whole
    conversation where it is longer), tools where it has some, expected (the held-out row's own answer, where it
    has one), and by each name the answer. Raises InputError.
    """
    manifest = opened_writer(run)
    asked = read_prompts(prompts, say=say) if prompts else own_prompts(run, manifest, base, say, limit=limit)
    asked = asked.spread(limit)
    settings = answering or Answering()
    folders = {run_name(run, manifest): run}
    if (start := started_from(run, manifest)) is not None:
        folders = {run_name(*start): start[0], **folders}
    is_adapter = (run / "adapter_config.json").is_file()
    names = [*([BASE] if is_adapter else []), *folders]
    measurement = Measurement(run, "answers", data=asked.record, settings={**asdict(settings), "names": names}, say=say)
    found = write_replies(folders, names, asked.asked, settings, measurement, base=base, say=say)
    rows: list[dict[str, Any]] = []
    for index, prompt in enumerate(asked.asked):
        expected = asked.expected[index] if asked.expected else None
        own = {} if expected is None else {"expected": expected}
        rows.append({**asked_row(prompt), **own, **{name: found[name][index][0].text for name in names}})
    lengths = {name: sum(replies[0].tokens for replies in found[name]) / len(asked) for name in names}
    return measurement.keep({"names": names, "mean_tokens": lengths}, rows)


def asked_row(prompt: Asked) -> dict[str, Any]:
    """What was asked, as rows of task `answers` have it."""
    turns = context(prompt)
    row: dict[str, Any] = {"prompt": question(prompt), "messages": message_fields(turns) if turns else None}
    if isinstance(prompt, Dialog) and prompt.tools:
        row["tools"] = [dict(tool) for tool in prompt.tools]
    return row


def started_from(run: Path, manifest: dict[str, Any]) -> tuple[Path, dict[str, Any]] | None:
    """The run that this one's stage started from, where it lies beside it."""
    name = (manifest.get("settings") or {}).get("start_from")
    if name is None or name not in manifest["inputs"]:
        return None
    folder = run.absolute().parent / f"{name}-{manifest['inputs'][name][:12]}"
    start = read_manifest(folder)
    return None if start is None else (folder, start)


def run_name(run: Path, manifest: dict[str, Any]) -> str:
    """What a run is called in results: its stage, or its folder where a row has a field of the stage's name."""
    stage = str(manifest.get("stage") or run.name)
    return run.absolute().name if stage in ROW_FIELDS else stage
