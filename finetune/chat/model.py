"""Finished runs ready to answer: their adapters beside each other on one base, and the base itself.

Prompts are rendered and tokenised as in training, answers are written by `model/generation.py`. What is asked again
with the same settings is answered the same, alone or among others, but for rounding (generation.py says where).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from transformers import LlamaForCausalLM

from finetune.data.answers import answer_text
from finetune.data.encode import encode_prompt
from finetune.data.prepare_prompts import Prompt
from finetune.data.sources import content_key
from finetune.data.tokenizer import Tokenizer
from finetune.engine import loop
from finetune.errors import InputError
from finetune.families.base import Family
from finetune.families.detect import resolve
from finetune.model.adapter import add_adapter, open_adapter
from finetune.model.base import choose_device, choose_precision, describe, load_base
from finetune.model.generation import Generated, Sampling, Stream, generate
from finetune.plan.base_files import locate_base
from finetune.plan.manifest import check_files, read_manifest
from finetune.plan.run_base import find_base
from finetune.recipe.settings import ModelSettings
from finetune.shapes import Completion, Dialog, Origin

BASE = "base"
"""The name of the base without any adapter."""
ROWS_AT_ONCE = 32
_NOT_WRITERS = {
    "reward": "scores answers and writes none: `finetune eval` scores a file with it",
    "reject": "holds sampled rows, not a model: ask its policy, or what was trained on the rows",
}

Say = Callable[[str], None]
Asked = Dialog | Completion


@dataclass(frozen=True)
class Answering:
    """How answers are drawn. temperature 0 = greedy. samples: answers to each prompt. seed: of their draws."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    max_new_tokens: int = 256
    samples: int = 1
    seed: int = 0


@dataclass(frozen=True)
class Reply:
    """finished: the model ended it by itself, else max_new_tokens did. tokens: of the answer, with its stop token."""

    text: str
    finished: bool
    prompt_tokens: int
    tokens: int


@dataclass(frozen=True)
class Piece:
    """A part of the answer that `name` is writing. reply: the whole of it, with the last piece."""

    name: str
    text: str
    reply: Reply | None = None


@dataclass
class ChatModel:
    """names: whom one can ask, the base last. system: put before conversations that have none, as in training.

    room: most tokens of prompt and answer together. family.is_chat says whether conversations have a form here; where
    they have none, only a Completion can be asked. Several threads may use it: they take turns, a token at a time.
    """

    names: tuple[str, ...]
    family: Family
    tokenizer: Tokenizer
    system: str | None
    room: int
    base: LlamaForCausalLM
    _adapted: PeftModel | None
    _peft_names: Mapping[str, str]
    _stop_ids: frozenset[int]
    _device: torch.device
    _compute: torch.dtype
    _lock: threading.Lock

    def prompt(self, asked: Asked) -> Prompt:
        """What is asked, as tokens up to where the answer begins. Raises RenderError where the template has no form."""
        ids = np.array(encode_prompt(asked, self.family, self.tokenizer, self.system), dtype=np.int64)
        if len(ids) >= self.room:
            raise InputError(
                f"the prompt has {len(ids):,} tokens and leaves no room for an answer: {self.room:,} is the most for "
                "both. Begin a new conversation, or ask something shorter"
            )
        key = int.from_bytes(content_key(asked)[:8], "little")
        return Prompt(ids, asked, key, Origin("asked", 0))

    def answer(self, asked: Sequence[Asked], name: str, settings: Answering | None = None) -> list[list[Reply]]:
        """`samples` answers of `name` to each prompt, in their order. Raises InputError and RenderError."""
        settings = settings or Answering()
        prompts = [self.prompt(each) for each in asked]
        if not prompts:
            return []
        written: list[list[Generated]] = [[] for _ in prompts]
        rooms = [min(settings.max_new_tokens, self.room - len(prompt.ids)) for prompt in prompts]
        for room in sorted(set(rooms)):  # nearly always one
            chosen = [index for index, own in enumerate(rooms) if own == room]
            with self._lock, self._active(name), loop.autocast(self._device, self._compute):
                found = generate(
                    self.base,
                    [prompts[index].ids for index in chosen],
                    settings.samples,
                    self._sampling(settings, room),
                    keys=[prompts[index].key for index in chosen],
                    rows_at_once=ROWS_AT_ONCE,
                )
            for index, answers in zip(chosen, found, strict=True):
                written[index] = answers
        return [
            [self._reply(prompt, answer) for answer in answers]
            for prompt, answers in zip(prompts, written, strict=True)
        ]

    def stream(self, asked: Asked, names: Sequence[str], settings: Answering | None = None) -> Iterator[Piece]:
        """One answer of each of `names`, written side by side, piece by piece. Raises InputError at once.

        Pieces end where letters end: a letter of several tokens comes whole.
        """
        settings = settings or Answering()
        prompt = self.prompt(asked)
        for name in names:
            self._check(name)
        sampling = self._sampling(settings, min(settings.max_new_tokens, self.room - len(prompt.ids)))
        return self._pieces(prompt, {name: Stream(self.base, prompt.ids, sampling, key=prompt.key) for name in names})

    def _pieces(self, prompt: Prompt, streams: dict[str, Stream]) -> Iterator[Piece]:
        told = dict.fromkeys(streams, "")
        while streams:
            for name, stream in list(streams.items()):
                with self._lock, self._active(name), loop.autocast(self._device, self._compute):
                    answer = stream.step()
                if answer is not None:
                    del streams[name]
                    reply = self._reply(prompt, answer)
                    rest = reply.text[len(told[name]) :] if reply.text.startswith(told[name]) else ""
                    yield Piece(name, rest, reply)
                    continue
                text = answer_text(prompt, np.array(stream.ids, np.int64), False, self.family, self.tokenizer)
                if len(text) > len(told[name]) and not text.endswith("\N{REPLACEMENT CHARACTER}"):
                    yield Piece(name, text[len(told[name]) :])
                    told[name] = text

    def _reply(self, prompt: Prompt, answer: Generated) -> Reply:
        text = answer_text(prompt, answer.ids, answer.finished, self.family, self.tokenizer)
        return Reply(text, answer.finished, len(prompt.ids), len(answer.ids))

    def _sampling(self, settings: Answering, max_new_tokens: int) -> Sampling:
        return Sampling(
            temperatures=(settings.temperature,),
            max_new_tokens=max_new_tokens,
            stop_ids=self._stop_ids,
            top_p=settings.top_p,
            top_k=settings.top_k,
            seed=settings.seed,
        )

    def _check(self, name: str) -> None:
        if name not in self.names:
            raise InputError(f"nobody here is called '{name}'; there are {', '.join(self.names)}")

    def _active(self, name: str) -> AbstractContextManager[object]:
        self._check(name)
        if self._adapted is None:
            return nullcontext()
        if name == BASE:
            return self._adapted.disable_adapter()
        self._adapted.set_adapter(self._peft_names[name])
        return nullcontext()


def open_chat(runs: Mapping[str, Path], *, base: str | None = None, say: Say) -> ChatModel:
    """Load the base once and put the runs' adapters on it. runs: at least one; the names are what they answer to.

    A run is the folder of a finished stage, or alone: a merged folder, or a plain folder of a LLaMA in Hugging Face
    form, which then is the base. base: where the runs' base is, if it is not where they had it. Raises InputError and
    BaseModelError: no run, runs of different bases or templates, reward models.
    """
    if BASE in runs:
        raise InputError(f"'{BASE}' is the name of the bare base; give the run another one")
    manifests = {name: _manifest(folder) for name, folder in runs.items()}
    adapters = {name: folder for name, folder in runs.items() if (folder / "adapter_config.json").is_file()}
    if len(adapters) < len(runs) and len(runs) > 1:
        whole = next(name for name in runs if name not in adapters)
        raise InputError(
            f"{runs[whole]} is a whole model: it stands alone. Beside each other stand adapters of one base; compare "
            "the runs that it was merged from"
        )
    first = next(iter(runs))
    if adapters:
        manifest = manifests[first]
        if manifest is None:
            raise InputError(f"{runs[first]} is an adapter without a manifest.json: not the folder of a finished run")
        for name, other in manifests.items():
            _check_alike(runs[first], manifest, runs[name], other)
        model, files = find_base(runs[first], manifest, base, say)
        template = manifest["family"]["template"]
        system = manifest["recipe"]["model"]["system"]
    else:
        model = ModelSettings(base=str(runs[first]), load_in="bf16" if torch.cuda.is_available() else "fp32")
        files = locate_base(model, Path(), weights=True)
        template, system = model.template, None
    tokenizer = Tokenizer.load(files.folder)
    resolved = resolve(
        files.config, tokenizer.special_tokens, template, base_name=files.name, base_chat_template=files.chat_template
    )
    device = choose_device(model.device)
    precision = choose_precision(model.load_in, model.compute, device)
    loaded = load_base(files.folder, precision, device)
    say(f"base: {files.name}: {describe(loaded, precision, device)}")
    adapted, peft_names = None, {}
    for number, (name, folder) in enumerate(adapters.items()):
        if adapted is None:
            adapted = open_adapter(loaded, folder)
            peft_names[name] = str(adapted.active_adapter)
        else:
            peft_names[name] = f"run{number}"
            add_adapter(adapted, folder, peft_names[name])
        say(f"{name}: {folder}")
    if adapted is not None:
        adapted.requires_grad_(False).eval()
    return ChatModel(
        names=(*adapters, BASE),
        family=resolved.family,
        tokenizer=tokenizer,
        system=system,
        room=_room(files.config, model, bool(adapters)),
        base=loaded,
        _adapted=adapted,
        _peft_names=peft_names,
        _stop_ids=frozenset(
            index for token in resolved.family.eos_tokens if (index := tokenizer.id_of(token)) is not None
        ),
        _device=device,
        _compute=precision.compute,
        _lock=threading.Lock(),
    )


def _manifest(folder: Path) -> dict[str, Any] | None:
    """A run's manifest, its files checked; None for a whole model that is not of ours. Raises InputError."""
    if (manifest := read_manifest(folder)) is not None:
        if why := _NOT_WRITERS.get(manifest["kind"]):
            raise InputError(f"{folder} {why}")
        check_files(folder, manifest)
    elif not (folder / "config.json").is_file() and not (folder / "adapter_config.json").is_file():
        raise InputError(f"{folder} is neither a finished run nor a model: no manifest.json, no config.json")
    return manifest


def _check_alike(first: Path, manifest: Mapping[str, Any], folder: Path, other: Mapping[str, Any] | None) -> None:
    if other is None:
        raise InputError(f"{folder} is an adapter without a manifest.json: not the folder of a finished run")
    if other["base"]["digest"] != manifest["base"]["digest"]:
        raise InputError(
            f"{first} and {folder} have different bases ({manifest['base']['name']}, {other['base']['name']}): only "
            "adapters of one base stand beside each other"
        )
    for what, of in (("template", "family"), ("load_in", "model")):
        a, b = ((m["family"] if of == "family" else m["recipe"]["model"])[what] for m in (manifest, other))
        if a != b:
            raise InputError(f"{first} was trained with {what} {a}, {folder} with {b}: compare them one at a time")


def _room(config: Mapping[str, Any], model: ModelSettings, trained: bool) -> int:
    """The positions the base was made for; where it does not say, what the run was trained with."""
    positions = config.get("max_position_embeddings")
    return int(positions) if positions else (model.max_length if trained else 4096)
