"""Which of two runs answers better: each prompt's two answers before a judge, a reward model or a language model."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Literal

from finetune.chat.model import Answering
from finetune.data.convert_prompts import message_fields
from finetune.engine.progress import make_progress
from finetune.errors import InputError
from finetune.evaluation.judge import AT_ONCE, RemoteJudge, open_remote
from finetune.evaluation.measurement import Measurement, identity
from finetune.evaluation.prompts import Asked
from finetune.evaluation.reward import asked_fields, prompts_for, replies_for, scores_of, sides_of, unfinished
from finetune.evaluation.scorer import opened_judge
from finetune.evaluation.verdicts import Judged, agreed, by_scores, read_verdict, win_rate_results
from finetune.plan.evaluations import Evaluation
from finetune.recipe.data_settings import DataFormat
from finetune.shapes import Completion

Say = Callable[[str], None]
Pair = tuple[str, str]
Place = tuple[int, int]
"""(prompt, 0 where ours is shown first, 1 where theirs is)."""


def win_rate(
    run: Path,
    judge: Path | RemoteJudge,
    *,
    against: Path | Literal["base"],
    data: Path | None = None,
    base: str | None = None,
    data_format: DataFormat = "auto",
    limit: int | None = None,
    answering: Answering | None = None,
    tie: float = 0.0,
    say: Say,
) -> Evaluation:
    """Task `win_rate`: how often the run's answer beats the other's. verdicts.py has the rules and the figures.

    tie: for a reward model, scores so close or closer tie. base: of the runs that answer. Raises InputError and its
    kinds, FinetuneError where a judge fails; what was answered and judged until then is kept for the next attempt.
    """
    settings = answering or Answering()
    sides = sides_of(run, against)
    ask = None
    if isinstance(judge, RemoteJudge):
        if tie:
            raise InputError("--tie is a margin of scores: it belongs to a reward model as the judge")
        ask, record = open_remote(judge, say=say), judge.record()
    else:
        record = {"kind": "reward", **identity(judge, opened_judge(judge)), "tie": tie}
    prompts = prompts_for(run, data, data_format, base, limit, say)
    measurement, found = replies_for("win_rate", run, sides, prompts, settings, record, base, say)
    ours, theirs = (found[name] for name in sides.names)
    rows: list[dict[str, Any]] = []
    for index, prompt in enumerate(prompts.asked):
        texts = {name: found[name][index][0].text for name in sides.names}
        rows.append({**asked_fields(prompt), **texts})
    lengths = [(ours[i][0].tokens, theirs[i][0].tokens) for i in range(len(prompts))]
    results: dict[str, Any] = {}
    if ask is None:
        assert isinstance(judge, Path)
        scores = scores_of(judge, prompts, found, sides.names, say)
        pairs = list(zip(*(scores[name] for name in sides.names), strict=True))
        judged = [Judged(by_scores(mine[0], other[0], tie), (), lengths[i]) for i, (mine, other) in enumerate(pairs)]
        for row, (mine, other) in zip(rows, pairs, strict=True):
            row["scores"] = [mine[0], other[0]]
    else:
        texts_of = [(ours[i][0].text, theirs[i][0].text) for i in range(len(prompts))]
        replies = verdicts_of(prompts.asked, texts_of, ask, measurement)
        judged = []
        for index, (row, own) in enumerate(zip(rows, replies, strict=True)):
            orders = tuple(read_verdict(text) for text in own)
            outcome = agreed(orders[0], orders[1]) if orders else "tie"
            judged.append(Judged(outcome, orders, lengths[index]))
            row |= {"orders": list(orders), "judge": own}
        results["identical"] = sum(not own for own in replies)
    for row, each in zip(rows, judged, strict=True):
        row["outcome"] = each.outcome
    results = win_rate_results(judged) | results | {"names": list(sides.names)}
    results |= {"unfinished": unfinished(ours), "their_unfinished": unfinished(theirs)}
    return measurement.keep(results, rows)


def verdicts_of(
    asked: Sequence[Asked], texts: Sequence[Pair], ask: Callable[[str, str, str], str], measurement: Measurement
) -> list[list[str]]:
    """The judge's two replies on every pair, ours first and theirs first; none where both answers are the same."""
    found: dict[Place, str] = {}
    for entry in measurement.recall("verdict"):
        found[entry["row"], entry["order"]] = entry["reply"]
    places = [(row, order) for row, (ours, theirs) in enumerate(texts) if ours != theirs for order in (0, 1)]

    def judged(place: Place) -> str:
        row, order = place
        first, second = texts[row] if order == 0 else texts[row][::-1]
        return ask(conversation(asked[row]), first, second)

    with closing(make_progress("verdicts", len(places), len(found))) as shown:
        for place, reply in _several(judged, [place for place in places if place not in found]):
            measurement.note("verdict", {"row": place[0], "order": place[1], "reply": reply})
            found[place] = reply
            shown.update({"step": len(found)})
    return [
        [found[row, order] for order in (0, 1)] if ours != theirs else [] for row, (ours, theirs) in enumerate(texts)
    ]


def _several(work: Callable[[Place], str], places: Sequence[Place]) -> Iterator[tuple[Place, str]]:
    """work of every place, AT_ONCE at a time, as they come. After one has failed no new one is begun, those under way
    still come, and then its error is raised."""
    left, results = SimpleQueue[Place](), SimpleQueue[tuple[Place, str | BaseException] | None]()
    for place in places:
        left.put(place)
    failed = threading.Event()

    def worker() -> None:
        while not failed.is_set():
            try:
                place = left.get_nowait()
            except Empty:
                break
            try:
                results.put((place, work(place)))
            except BaseException as error:  # raised again by the thread that waits
                failed.set()
                results.put((place, error))
        results.put(None)

    workers = min(AT_ONCE, len(places))
    for _ in range(workers):
        threading.Thread(target=worker, daemon=True).start()  # Ctrl-C does not wait for a slow judge
    wrong: BaseException | None = None
    while workers:
        if (result := results.get()) is None:
            workers -= 1
        elif isinstance(result[1], BaseException):
            wrong = wrong or result[1]
        else:
            yield result[0], result[1]
    if wrong is not None:
        raise wrong


def conversation(asked: Asked) -> str:
    """What the judge reads of a prompt: the question, or the turns by who speaks."""
    if isinstance(asked, Completion):
        return asked.prompt
    turns = message_fields(asked.messages)
    if len(turns) == 1:
        return str(turns[0]["content"])
    return "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in turns)
