"""Finished runs ready to answer: their adapters beside each other on one base, and the base itself.

Prompts are rendered and tokenised as in training, answers are written by `model/generation.py`. What is asked again
with the same settings is answered the same, alone or among others, but for rounding (generation.py says where).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel
from transformers import LlamaForCausalLM

from finetune.chat.turns import Turns
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
from finetune.shapes import Completion, Dialog, Origin, Text

BASE = "base"
"""The name of the base without any adapter."""
ROWS_AT_ONCE = 32
_NOT_WRITERS = {
    "reward": "scores answers and writes none: `finetune eval` scores a file with it",
    "reject": "holds sampled rows, not a model: ask its policy, or what was trained on the rows",
}

Say = Callable[[str], None]
Asked = Dialog | Completion | Text
"""What can be asked: a conversation, a prompt (of a chat family a question), or raw text to go on with as it is."""


class PromptTooLongError(InputError):
    """What is asked leaves no room for an answer."""


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
    """A part of the answer that `name` is writing, its sample 0, 1, … reply: the whole of it, with the last piece.

    tokens: of the answer up to here.
    """

    name: str
    text: str
    reply: Reply | None = None
    sample: int = 0
    tokens: int = 0


@dataclass
class ChatModel:
    """names: whom one can ask: the runs, the base last; of a merged or plain folder that folder alone.

    system: put before conversations that have none, as in training. room: most tokens of prompt and answer together.
    family.is_chat says whether conversations have a form here; where they have none, only a Completion or a Text can be
    asked. Several threads may use it: they take turns, a token at a time.
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
    _turns: Turns
    _speaking: str | None = None

    def prompt(self, asked: Asked) -> Prompt:
        """What is asked, as tokens up to where the answer begins. Raises RenderError where the template has no form."""
        ids = np.array(encode_prompt(asked, self.family, self.tokenizer, self.system), dtype=np.int64)
        if len(ids) == 0:
            raise InputError("there is nothing to go on from: write something")
        if len(ids) >= self.room:
            raise PromptTooLongError(
                f"the prompt has {len(ids):,} tokens and leaves no room for an answer: {self.room:,} is the most for "
                "both. Begin a new conversation, or ask something shorter"
            )
        return Prompt(ids, asked, int.from_bytes(content_key(asked)[:8]), Origin("asked"))

    def answer(self, asked: Sequence[Asked], name: str, settings: Answering | None = None) -> list[list[Reply]]:
        """`samples` answers of `name` to each prompt, in their order. Raises InputError and RenderError."""
        settings = settings or Answering()
        prompts = [self.prompt(each) for each in asked]
        if not prompts:
            return []
        with self._turns, loop.autocast(self._device, self._compute):
            self._speak_as(name)
            written = generate(
                self.base,
                [prompt.ids for prompt in prompts],
                settings.samples,
                self._sampling(settings, settings.max_new_tokens),
                keys=[prompt.key for prompt in prompts],
                rows_at_once=ROWS_AT_ONCE,
                limits=[self.room - len(prompt.ids) for prompt in prompts],
            )
        return [
            [self._reply(prompt, answer) for answer in answers]
            for prompt, answers in zip(prompts, written, strict=True)
        ]

    def stream(self, asked: Asked, names: Sequence[str], settings: Answering | None = None) -> Iterator[Piece]:
        """`samples` answers of each of `names`, written side by side, piece by piece. Raises InputError at once.

        The pieces of an answer, one after the other, are what `answer` gives. They end where letters end: a letter of
        several tokens comes whole.
        """
        settings = settings or Answering()
        prompt = self.prompt(asked)
        for name in names:
            self._check(name)
        sampling = self._sampling(settings, min(settings.max_new_tokens, self.room - len(prompt.ids)))
        streams = {
            name: Stream(self.base, prompt.ids, sampling, key=prompt.key, samples=settings.samples) for name in names
        }
        return self._pieces(prompt, streams)

    def _pieces(self, prompt: Prompt, streams: dict[str, Stream]) -> Iterator[Piece]:
        told: dict[tuple[str, int], str] = {}
        while streams:
            for name, stream in list(streams.items()):
                with self._turns, loop.autocast(self._device, self._compute):
                    self._speak_as(name)
                    ended = stream.step()
                writing = stream.writing
                if not writing:
                    del streams[name]
                for sample, answer in ended.items():
                    reply = self._reply(prompt, answer)
                    yield Piece(name, reply.text[len(told.get((name, sample), "")) :], reply, sample, reply.tokens)
                for sample, ids in writing.items():
                    text = self._text(prompt, np.array(ids, np.int64), False)
                    known = len(told.get((name, sample), ""))
                    if len(text) > known and not text.endswith("\N{REPLACEMENT CHARACTER}"):
                        told[name, sample] = text
                        yield Piece(name, text[known:], None, sample, len(ids))

    def _text(self, prompt: Prompt, ids: NDArray[np.int64], finished: bool) -> str:
        family = self.family
        if isinstance(prompt.example, Text):  # what follows raw text is told as it is, whatever the template
            family = replace(family, is_chat=False)
        return answer_text(prompt, ids, finished, family, self.tokenizer)

    def _reply(self, prompt: Prompt, answer: Generated) -> Reply:
        text = self._text(prompt, answer.ids, answer.finished)
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

    def _speak_as(self, name: str) -> None:
        """Make `name` the one that the base's layers speak for. Takes time in proportion to the layers, so only where
        another one spoke last; `PeftModel.disable_adapter` would look at every module's state besides."""
        self._check(name)
        if self._adapted is None or name == self._speaking:
            return
        layers = self._adapted.base_model
        before, self._speaking = self._speaking, None  # until it is done: it may be interrupted
        if name == BASE:
            layers.disable_adapter_layers()
        else:
            if before is None or before == BASE:
                layers.enable_adapter_layers()
            self._adapted.set_adapter(self._peft_names[name])
        self._speaking = name


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
        _tell_systems(manifests, say)
    else:
        model = ModelSettings(base=str(runs[first]), load_in="bf16" if torch.cuda.is_available() else "fp32")
        files = locate_base(model, Path(), weights=True)
        template, system = model.template, None
        if (manifest := manifests[first]) is not None:  # merged from runs of ours
            template = manifest["family"]["template"]
            system = manifest["recipe"]["model"].get("system")
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
        names=(*adapters, BASE) if adapters else (first,),
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
        _turns=Turns(),
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


def _tell_systems(manifests: Mapping[str, Mapping[str, Any] | None], say: Say) -> None:
    systems = {name: manifest["recipe"]["model"]["system"] for name, manifest in manifests.items() if manifest}
    first = next(iter(systems))
    for name, system in systems.items():
        if system != systems[first]:
            say(f"{name} was trained with another system prompt than {first}, whose is used for all: {system!r}")


def _room(config: Mapping[str, Any], model: ModelSettings, trained: bool) -> int:
    """The positions the base was made for; where it does not say, what the run was trained with."""
    positions = config.get("max_position_embeddings")
    return int(positions) if positions else (model.max_length if trained else 4096)
