"""Task `lm_eval`: tasks of EleutherAI's lm-evaluation-harness on a run, through its own model interface.

The harness brings questions, formats and metrics; here are the three things that it asks of a model. Log-likelihoods go
through the ragged forward, a question that several choices share is computed once; answers through generation.py. Words
become tokens as the harness' own Hugging Face model makes them, so figures are comparable with published ones.
An extra: `pip install 'finetune[lm-eval]'`. Most of its tasks read their data from the hub.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lm_eval import simple_evaluate, utils
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.tasks import TaskManager
from transformers import AutoTokenizer

from finetune.chat.model import ROWS_AT_ONCE, ChatModel, open_chat
from finetune.data.store import pack
from finetune.engine import loop
from finetune.engine.batches import TokenBatch
from finetune.errors import InputError
from finetune.evaluation.answers import run_name
from finetune.evaluation.measurement import Measurement, opened_writer
from finetune.model.generation import Sampling, generate
from finetune.model.ragged import ragged_hidden
from finetune.plan.evaluations import Evaluation
from finetune.plan.run_base import find_base
from finetune.shapes import Origin
from finetune.stages.score import Answers, measure

Say = Callable[[str], None]
Request = tuple[tuple[str, str], list[int], list[int]]
"""((context, continuation), the context's tokens, the continuation's)."""
_HEAD_ROWS = 256
_MAX_GEN_TOKS = 256
_DEVIATIONS = 1.96


class RunOfHarness(TemplateLM):
    """A run as the harness sees a model. tokenizer: transformers' own of the run, for texts with special tokens."""

    backend = "causal"

    def __init__(self, chat: ChatModel, name: str, tokenizer: Any, say: Say) -> None:
        super().__init__()
        self.chat, self.name, self.tokenizer, self.say = chat, name, tokenizer, say
        self.max_length = chat.room
        self._bos = int(chat.tokenizer.id_of(chat.family.bos) or 0)
        stops = (chat.tokenizer.id_of(token) for token in chat.family.eos_tokens)
        self._stop_ids = frozenset(index for index in stops if index is not None)

    @property
    def eot_token_id(self) -> int:
        return min(self._stop_ids)

    @property
    def prefix_token_id(self) -> int:
        return self._bos

    @property
    def tokenizer_name(self) -> str:
        return self.name

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return str(
            self.tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Tokens, the one that begins a text first unless it is there already, or none is asked for."""
        ids: list[int] = self.tokenizer.encode(string, add_special_tokens=False)
        begins = add_special_tokens is not False and ids[:1] != [self._bos]
        return [self._bos, *ids] if begins else ids

    def _loglikelihood_tokens(self, requests: Sequence[Request], **kwargs: Any) -> list[tuple[float, bool]]:
        """(log-probability in nats, whether every word of it is the likeliest) of each continuation; of what is too
        long the beginning is cut off."""
        rows: list[tuple[list[int], list[int]]] = []
        groups: list[range] = []
        for _, same in groupby(requests, key=lambda request: request[1]):
            first = len(rows)
            for _, context, continuation in same:
                ids = [*context, *continuation][-(self.max_length + 1) :]
                trained = [0] * (len(ids) - len(continuation)) + [1] * len(continuation)
                rows.append((ids, trained[-len(ids) :]))
            groups.append(range(first, len(rows)))
        nowhere = [Origin(self.name)] * len(groups)
        answers = Answers(pack(rows), groups, nowhere, None, np.ones(len(rows), dtype=np.bool_))
        greedy = np.ones(len(rows), dtype=np.bool_)
        model = self.chat.base

        def logps_of(batch: TokenBatch) -> torch.Tensor:
            hidden_ND = ragged_hidden(model.model, batch.ids_T, batch.layout).index_select(0, batch.predict_N)
            sums_B = torch.zeros(len(batch.rows), dtype=torch.float64, device=hidden_ND.device)
            likeliest_B = torch.ones(len(batch.rows), dtype=torch.bool)
            for start in range(0, len(hidden_ND), _HEAD_ROWS):
                part = slice(start, start + _HEAD_ROWS)
                labels, owners = batch.labels_N[part], batch.row_N[part]
                logits_NV = model.lm_head(hidden_ND[part]).float()
                logps_N = logits_NV.log_softmax(1).gather(1, labels[:, None])[:, 0]
                sums_B.index_add_(0, owners, logps_N.double())
                likeliest_B[owners[logits_NV.argmax(1) != labels].cpu()] = False
            greedy[list(batch.rows)] = likeliest_B.numpy()
            return sums_B

        with torch.no_grad(), loop.autocast(model.device, model.dtype):
            sums = measure(answers, logps_of, model.device, self.say)
        return [(float(total), bool(is_greedy)) for total, is_greedy in zip(sums, greedy, strict=True)]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-probability in nats of whole texts; long ones in windows that share nothing but one token."""
        windows: list[Request] = []
        owners = []
        for index, request in enumerate(requests):
            (text,) = request.args
            found = utils.get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            for context, continuation in map(utils.make_disjoint_window, found):
                windows.append((("", text), list(context), list(continuation)))
                owners.append(index)
        totals = [0.0] * len(requests)
        for owner, (total, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            totals[owner] += total
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Answers, cut where the first of the task's stop texts begins; those of one kind of request together."""
        found: dict[int, str] = {}
        kinds: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            kinds.setdefault(json.dumps(request.args[1], sort_keys=True, default=str), []).append(index)
        for number, indices in enumerate(kinds.values()):
            settings = dict(requests[indices[0]].args[1])
            room = int(settings.get("max_gen_toks") or settings.get("max_new_tokens") or _MAX_GEN_TOKS)
            room = min(room, self.max_length - 1)
            drawn = bool(settings.get("do_sample"))
            sampling = Sampling(
                temperatures=(float(settings.get("temperature", 1.0)) if drawn else 0.0,),
                max_new_tokens=room,
                stop_ids=self._stop_ids,
                top_p=float(settings.get("top_p", 1.0)),
                top_k=int(settings.get("top_k", 0)),
            )
            prompts = [self.tok_encode(requests[index].args[0])[-(self.max_length - room) :] for index in indices]
            self.say(f"{len(indices):,} answers of up to {room:,} tokens ({number + 1} of {len(kinds)} kinds)")
            model = self.chat.base
            with loop.autocast(model.device, model.dtype):
                written = generate(
                    model,
                    [np.array(ids, dtype=np.int64) for ids in prompts],
                    1,
                    sampling,
                    keys=indices,
                    rows_at_once=ROWS_AT_ONCE,
                )
            until = settings.get("until") or []
            for index, answers in zip(indices, written, strict=True):
                text = self.tokenizer.decode(answers[0].ids, skip_special_tokens=True)
                found[index] = _cut(text, [until] if isinstance(until, str) else until)
        return [found[index] for index in range(len(requests))]


def measure_with_harness(
    run: Path,
    tasks: Sequence[str],
    *,
    path: Path | None = None,
    shots: int = 0,
    in_chat: bool = False,
    base: str | None = None,
    limit: int | None = None,
    say: Say,
) -> Evaluation:
    """Run the harness' tasks and keep its figures. path: a folder of task files of the user's own. shots: 0 = as the
    task says. in_chat: questions in the run's chat template. limit: the first so many questions of each task.

    The intervals are the harness' standard errors times 1.96. Raises InputError for tasks that are not there.
    """
    began = time.monotonic()
    manifest = opened_writer(run)
    manager = TaskManager(include_path=None if path is None else str(path))
    if missing := [name for name in tasks if not manager.match_tasks([name])]:
        raise InputError(f"--lm-task: the harness has no task '{missing[0]}'; `lm_eval ls tasks` lists them")
    words = run if (run / "tokenizer_config.json").is_file() else find_base(run, manifest, base, _nothing)[1].folder
    tokenizer = AutoTokenizer.from_pretrained(words, local_files_only=True)
    name = run_name(run, manifest)
    lm = RunOfHarness(open_chat({name: run}, base=base, say=say), name, tokenizer, say)
    found = simple_evaluate(
        lm,
        tasks=list(tasks),
        num_fewshot=shots or None,
        limit=limit,
        task_manager=manager,
        apply_chat_template=in_chat,
        bootstrap_iters=1000,
        log_samples=True,
    )
    if found is None:
        raise InputError("the harness gave no results")
    results = {task: _figures(values) for task, values in found["results"].items()}
    rows = [_row(task, sample) for task, samples in found["samples"].items() for sample in samples]
    told = json.dumps([found["versions"], found["configs"]], sort_keys=True, default=str)
    measurement = Measurement(
        run,
        "lm_eval",
        data={
            "name": ", ".join(tasks),
            "digest": f"sha256:{hashlib.sha256(told.encode()).hexdigest()}",
            "rows": len(rows),
        },
        settings={"tasks": list(tasks), "shots": shots, "chat": in_chat, "limit": limit},
        say=say,
    )
    versions = {task: found["versions"].get(task) for task in results}
    return measurement.keep({"tasks": results, "versions": versions}, rows, began=began)


def _figures(values: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """The harness' "acc,none" and "acc_stderr,none" as figures with an interval, where it gives an error."""
    figures = {}
    for key, value in values.items():
        metric, _, way = key.partition(",")
        if not way or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        error = values.get(f"{metric}_stderr,{way}")
        name = metric if way == "none" else f"{metric} ({way})"
        figures[name] = {"value": float(value)}
        if isinstance(error, int | float):
            apart = _DEVIATIONS * float(error)
            figures[name] |= {"low": float(value) - apart, "high": float(value) + apart}
    return figures


def _row(task: str, sample: Mapping[str, Any]) -> dict[str, Any]:
    figures = {name: sample[name] for name in sample.get("metrics", ()) if isinstance(sample.get(name), int | float)}
    answer = json.dumps(sample.get("filtered_resps"), default=str)
    return {"task": task, "question": sample["doc_id"], "target": str(sample["target"]), "answer": answer, **figures}


def _cut(text: str, until: Sequence[str]) -> str:
    for stop in until:
        if stop:
            text = text.split(stop)[0]
    return text


def _nothing(line: str) -> None:
    """The base is announced when it is loaded."""
