"""Rejection sampling: k answers of the policy to each prompt, scored, the best kept as rows for the next stage.

Llama 2 (section 3.2.3) samples K answers at a temperature found for each model, scores them with the newest reward
model, and trains the next model on the best of each prompt, after V3 on the best of all rounds so far; Llama 3 (section
4.2.2) samples 10 to 30. keep: best does that; above keeps every answer from a threshold on; pairs sets the best against
the worst, for preference learning.
Deviations: the sampled tokens are scored as they are, not their text tokenised again; a checker may stand in for the
reward model; answers that did not end by themselves are never kept unless the recipe says so. Rows are text, and how
many give other tokens than were sampled is counted (proof.tokens_differ).

Prompts go in chunks that depend on the settings alone, each appended to a journal when it is sampled and scored, so a
stage that is killed goes on with the next chunk, and ends in the same bytes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from finetune.data.answers import answer_text
from finetune.data.convert_prompts import prompt_fields
from finetune.data.mix import generator
from finetune.data.prepare_prompts import Prompt
from finetune.engine import session
from finetune.engine.earlier import SAMPLES, Pool, open_pool
from finetune.engine.interrupt import stop_on_signals
from finetune.engine.job import Job, Outcome
from finetune.engine.progress import memory_gib
from finetune.engine.prompts import check_prompts, open_prompts
from finetune.engine.rejection import Kept, prove_rows, write_results
from finetune.engine.rewards import Answer, Judge, open_judge
from finetune.engine.sampler import Sampler, open_sampler
from finetune.engine.sampling_journal import Journal, open_journal
from finetune.engine.selection import Candidate, choose
from finetune.engine.shown import kept_rows
from finetune.engine.tracking import MetricsFile
from finetune.errors import InterruptedRunError
from finetune.model.generation import Generated, Sampling
from finetune.numerics.best_of import BestOf, best_of_curve
from finetune.recipe.sampling_stages import FunctionChecker, RejectStage
from finetune.reports.best_of import best_of_picture
from finetune.shapes import Completion, Dialog

BATCHES_IN_CHUNK = 4
"""A chunk is sampled in about so many batches of `rows_at_once`: few enough to lose little, enough to fill them."""


@dataclass(frozen=True)
class Task:
    """The same from chunk to chunk. own: the stage's prompts; others: those that only earlier stages have."""

    stage: RejectStage
    job: Job
    words: session.Words
    own: Sequence[Prompt]
    others: Sequence[Prompt]
    pool: Pool
    sampler: Sampler
    judge: Judge
    stop_ids: frozenset[int]

    def sampling(self, temperatures: Sequence[float], *, search: bool) -> Sampling:
        """The draws of a search are others than those of the answers that are kept, and a stage that has earlier ones
        draws anew. (The recipe's own seed is below 2**32.)"""
        stage = self.stage
        seed = self.job.seed + 2**32 * (2 * len(stage.earlier) + search)
        return Sampling(
            tuple(temperatures), stage.max_new_tokens, self.stop_ids, top_p=stage.top_p, top_k=stage.top_k, seed=seed
        )

    def answer(self, prompt: Prompt, one: Generated) -> Answer:
        text = answer_text(prompt, one.ids, one.finished, self.words.resolved.family, self.words.tokenizer)
        return Answer(prompt, one.ids, text, one.finished)


def run(stage: RejectStage, job: Job) -> Outcome:
    """Sample, score, keep. Writes samples.jsonl, rows.jsonl, best_of.svg and metrics.jsonl into `job.out`."""
    words = session.open_words(job)
    prompts = open_prompts(stage, None, job, words)
    pool = open_pool(stage.earlier, job, words)
    known = {prompt.key for prompt in prompts.train}
    others = [prompt for prompt in pool.prompts if prompt.key not in known]
    everything = [*prompts.train, *others]
    check_prompts(stage, job, everything)
    sampler = open_sampler(stage, job)
    judge = open_judge(stage, job, sampler.model, sampler.precision)
    task = Task(stage, job, words, prompts.train, others, pool, sampler, judge, session.stop_ids(words))

    journal, searched = _sample(task)
    lines = journal.read()
    tried = [line["metrics"] for line in islice(lines, searched)]
    kept = write_results(
        lines,
        stage,
        job.out,
        own=prompts.train,
        others=others,
        family=words.resolved.family,
        tokenizer=words.tokenizer,
        system=job.model.system,
    )
    job.tracking.samples("kept", journal.done, kept_rows(job.out / SAMPLES))
    curve = best_of_curve(kept.own_scores)
    is_rule = stage.checker is not None and not isinstance(stage.checker, FunctionChecker)
    picture = best_of_picture(curve, prompts=len(kept.own_scores), score="pass rate" if is_rule else "score")
    (job.out / "best_of.svg").write_bytes(picture)
    proof = prove_rows(kept, stage, job.name, job.out)
    temperatures = best_temperature(tried) if tried else _given(stage)
    _tell(job, kept, curve, tried, temperatures)
    return Outcome(
        metrics=kept.metrics(curve),
        data=prompts.report,
        family=session.describe_family(words),
        resolved={
            "temperature": temperatures,
            "prompts_per_chunk": chunk_size(stage),
            "device": sampler.device.type,
            "compute": str(sampler.precision.compute).removeprefix("torch."),
            "revision": job.base.revision,
            **({"temperature_search": tried} if tried else {}),
        },
        proof=proof,
    )


def chunk_size(stage: RejectStage) -> int:
    """Prompts of a chunk: a function of the settings alone."""
    return max(1, BATCHES_IN_CHUNK * stage.rows_at_once // stage.samples)


def _sample(task: Task) -> tuple[Journal, int]:
    """Sample and score all chunks that are not in the journal yet; the first lines of it are those of the search.

    Returns the journal, and how many lines the search has. Raises InterruptedRunError after Ctrl-C or SIGTERM.
    """
    stage, job = task.stage, task.job
    candidates = [] if stage.temperature_search is None else stage.temperature_search.candidates
    size = chunk_size(stage)
    prompts = [*task.own, *task.others]
    chunks = [prompts[start : start + size] for start in range(0, len(prompts), size)]
    total = len(candidates) + len(chunks)
    journal = open_journal(job.work, {"fingerprint": job.fingerprint, "lines": total, "prompts": len(prompts)})
    if journal.done:
        job.say(f"goes on after {journal.done} of {total} chunks that are sampled already")
    own = {prompt.key for prompt in task.own}
    job.tracking.begin({"samples": stage.samples})
    metrics_file = MetricsFile(job.work / "metrics.jsonl", job.tracking)
    metrics_file.rewind(journal.done)
    tried = [line["metrics"] for line in islice(journal.read(), len(candidates))]
    progress = job.progress(job.name, total, journal.done)
    try:
        with stop_on_signals() as stop:
            for index in range(journal.done, total):
                began = time.monotonic()
                if index < len(candidates):
                    line = _try(task, candidates[index])
                    tried.append(line["metrics"])
                else:
                    temperatures = best_temperature(tried) if tried else _given(stage)
                    line = _chunk(task, chunks[index - len(candidates)], own, temperatures)
                seconds = time.monotonic() - began
                line["seconds"] = seconds
                metrics = {
                    "step": index + 1,
                    **line["metrics"],
                    "tokens": line["tokens"],
                    "seconds": seconds,
                    "tokens_per_second": line["tokens"] / max(seconds, 1e-9),
                    "memory_gib": memory_gib(task.sampler.device),
                }
                metrics_file.write(metrics)  # before the journal: what a kill leaves here without its chunk is rewound
                journal.append(line)
                progress.update(metrics)
                if stop.received and index + 1 < total:
                    raise InterruptedRunError(
                        f"stopped by {stop.received} after chunk {index + 1} of {total}, which is saved. Run the same "
                        "command again to go on from there"
                    )
    finally:
        progress.close()
    return journal, len(candidates)


def _given(stage: RejectStage) -> list[float]:
    return list(stage.temperature) if isinstance(stage.temperature, list) else [stage.temperature]


def best_temperature(tried: Sequence[Mapping[str, Any]]) -> list[float]:
    """Of the candidates' figures; of equals the one that stands first."""
    return [float(max(tried, key=lambda one: one["best"])["temperature"])]


def _try(task: Task, temperature: float) -> dict[str, Any]:
    """One candidate of the temperature search."""
    stage, job = task.stage, task.job
    assert stage.temperature_search is not None
    count = min(stage.temperature_search.prompts, len(task.own))
    drawn = generator(job.seed, "temperature search").choice(len(task.own), count, replace=False)
    prompts = [task.own[int(index)] for index in np.sort(drawn)]
    written = task.sampler.write(prompts, stage.samples, task.sampling([temperature], search=True))
    answers = [task.answer(prompt, one) for prompt, many in zip(prompts, written, strict=True) for one in many]
    scores = task.judge(answers).total.reshape(count, stage.samples)
    return {
        "tokens": sum(len(answer.ids) for answer in answers),
        "metrics": {
            "temperature": temperature,
            "prompts": count,
            "score": float(scores.mean()),
            "best": float(scores.max(axis=1).mean()),
            "finished": sum(answer.finished for answer in answers) / len(answers),
        },
    }


def _chunk(task: Task, prompts: Sequence[Prompt], own: set[int], temperatures: Sequence[float]) -> dict[str, Any]:
    """Sample, score and choose for some prompts; those of earlier stages bring their samples with them."""
    mine = [prompt for prompt in prompts if prompt.key in own]
    written: Mapping[int, list[Generated]] = {}
    if mine:
        many = task.sampler.write(mine, task.stage.samples, task.sampling(temperatures, search=False))
        written = {prompt.key: answers for prompt, answers in zip(mine, many, strict=True)}
    answers: list[Answer] = []
    records: list[list[dict[str, Any]]] = []
    for prompt in prompts:
        found = []
        for one in written.get(prompt.key, ()):
            answers.append(task.answer(prompt, one))
            found.append(_record(one))
        for name, answer, record in task.pool.samples(prompt):
            answers.append(answer)
            kept = ("ids", "tokens", "logprob", "finished", "temperature")
            found.append({**{key: record[key] for key in kept}, "from": name})
        records.append(found)
    scores = task.judge(answers)
    entries, own_scores, at = [], [], 0
    for prompt, found in zip(prompts, records, strict=True):
        span = range(at, at + len(found))
        at += len(found)
        total = [float(scores.total[index]) for index in span]
        choice = choose(
            task.stage,
            [Candidate(answers[i].text, score, answers[i].finished) for i, score in zip(span, total, strict=True)],
        )
        samples = []
        for place, (index, record) in enumerate(zip(span, found, strict=True)):
            parts = {name: float(values[index]) for name, values in scores.parts.items()}
            sample = {"text": answers[index].text, "score": total[place], "parts": parts, **record}
            if place in choice.kept:
                sample["kept"] = choice.kept.index(place)
            if (why := choice.lost[place]) is not None:
                sample["lost"] = why
            samples.append(sample)
        entries.append(_entry(prompt, samples))
        if prompt.key in own:
            own_scores.append(total[: task.stage.samples])
    flat = [score for many in own_scores for score in many]
    drawn = [sample for entry in entries for sample in entry["samples"] if "from" not in sample]
    return {
        "tokens": sum(sample["tokens"] for sample in drawn),
        "metrics": {
            "prompts": len(prompts),
            "answers": len(answers),
            "score": float(np.mean(flat)) if flat else None,
            "best": float(np.mean([max(many) for many in own_scores])) if own_scores else None,
            "finished": sum(sample["finished"] for sample in drawn) / len(drawn) if drawn else None,
            "kept": sum("kept" in sample for entry in entries for sample in entry["samples"]),
        },
        "entries": entries,
    }


def _record(one: Generated) -> dict[str, Any]:
    """logprob: nats, of the whole answer at temperature 1. tokens: the stop token included."""
    return {
        "ids": one.ids.tolist(),
        "tokens": len(one.ids),
        "logprob": float(one.logps.astype(np.float64).sum()),
        "finished": one.finished,
        "temperature": one.temperature,
    }


def _entry(prompt: Prompt, samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A line of samples.jsonl."""
    example = prompt.example
    assert isinstance(example, (Dialog, Completion))  # what prompts are made of
    # Through text: a Parquet column may hold dates and the like, which a checker gets as they are.
    columns = json.loads(json.dumps(dict(prompt.columns), default=str))
    fields = prompt_fields(example)
    return {
        "key": f"{prompt.key:016x}", "origin": str(prompt.origin), **fields, "columns": columns, "samples": [*samples],
    }  # fmt: skip


def _tell(
    job: Job, kept: Kept, curve: Sequence[BestOf], tried: Sequence[Mapping[str, Any]], temperatures: Sequence[float]
) -> None:
    if tried:
        shown = ", ".join(f"{one['temperature']:g}: {one['best']:.4g}" for one in tried)
        job.say(f"temperature {temperatures[0]:g} is the best of those tried (mean best score at {shown})")
    best = ", ".join(f"{point.k}: {point.mean:.4g}" for point in curve)
    job.say(f"mean score of the best of k: {best}")
    lost = "".join(f"; {count:,} {why}" for why, count in sorted(kept.lost.items()))
    of = f" and {kept.earlier:,} earlier ones" if kept.earlier else ""
    job.say(f"kept {len(kept.texts):,} rows of {kept.samples:,} samples{of}, for {kept.kept_prompts:,} prompts{lost}")
    if kept.differ:
        job.say(f"{kept.differ:,} of the kept answers, as text, give other tokens than were sampled")
