"""Answers by the model in memory: many at once, prompts computed once, finished rows leaving, the same for any batch.

Prompts, longest first, are prefilled several at a time by one ragged forward, of which each layer's keys and values are
kept; equal prompts and a beginning that all of them share are computed once. From then on every answer is a row: one
token of each row goes through the decoder at a time, attending to its prompt, held once for all answers to it, and to
its own suffix (decode_attention.py). A row that ends leaves at once, and new ones enter when enough have left, so that
nothing is ever padded, and the decoder and the head see only rows that still write.

An answer depends on its prompt, its key, its sample number and the sampling settings, not on what stands beside it, but
for rounding: a product of another shape may round a logit differently in its last bits, which matters only where two
words are that close, or the drawn number falls that near a border between two words.

Letters: R rows, T tokens of a prefill, D hidden size, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from finetune.errors import DivergedError
from finetune.model.decode_attention import Decoding
from finetune.model.draw import draw, uniforms
from finetune.model.ragged import common_prefix, lay_out, ragged_hidden, step_hidden

PREFILL_TOKENS = 8192
"""Prompt tokens of one prefill, unless a single prompt has more: bounds its activations."""
SHARE_FROM = 32
"""Tokens that all prompts of a prefill have to begin with for that beginning to be computed once: below, the masks that
this needs cost more than it saves."""


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn. temperatures: sample j of a prompt takes entry j % len; 0 = greedy.

    stop_ids: tokens that end an answer. seed: with a prompt's key and the sample's number it fixes the draw.
    """

    temperatures: tuple[float, ...]
    max_new_tokens: int
    stop_ids: frozenset[int]
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0


@dataclass(frozen=True)
class Generated:
    """One answer. ids: [n] int64, the stop token included where the model wrote one. logps: [n] float32, each token's
    log-probability in nats at temperature 1, before top_k and top_p. finished: it ends with a stop token."""

    ids: NDArray[np.int64]
    logps: NDArray[np.float32]
    finished: bool
    temperature: float


@dataclass
class _Row:
    """An answer being written. prompt: index into `prompts`. text: index of its distinct prompt. random: [n] a number
    for each token that it may have."""

    prompt: int
    sample: int
    text: int
    temperature: float
    random: NDArray[np.float64]
    ids: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)


def generate(
    model: LlamaForCausalLM,
    prompts: Sequence[NDArray[np.integer]],
    samples: int,
    sampling: Sampling,
    *,
    keys: Sequence[int],
    rows_at_once: int = 64,
    limits: Sequence[int] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[list[Generated]]:
    """`samples` answers to each prompt, in the order of `prompts`.

    model: the transformers model with its active adapters in place (`PeftModel.get_base_model()`), installed with
    `ragged.install`; put in eval mode here and left as it was. prompts: token ids, one row each. keys: one number below
    2**64 a prompt, which with the seed and the sample's number fixes its random draws, whatever stands beside it.
    rows_at_once: answers that are written side by side. limits: most tokens of an answer to each prompt, where that is
    less than max_new_tokens. progress: (answers done, tokens written) after each step.
    Position limits are not checked. ValueError: an empty prompt, or numbers that make no sense.
    DivergedError: logits that are not finite.
    """
    with torch.no_grad(), _evaluating(model):
        return _Writer(model, prompts, samples, sampling, keys, rows_at_once, limits).run(progress)


class Stream:
    """Answers to one prompt, a token of each a call: those that `generate` writes to it with that key.

    The model has to be in eval mode, with the same active adapters at every call; streams of different adapters may
    take turns. Arguments and errors as of `generate`; samples: answers, written side by side.
    """

    def __init__(
        self,
        model: LlamaForCausalLM,
        prompt: NDArray[np.integer],
        sampling: Sampling,
        *,
        key: int = 0,
        samples: int = 1,
    ) -> None:
        self._writer = _Writer(model, [prompt], samples, sampling, [key], samples)
        self._written: set[int] = set()

    @torch.no_grad()
    def step(self) -> dict[int, Generated]:
        """Write one more token of each answer that is not done. Returns those that this ended, by their sample."""
        self._writer.advance()
        ended = {
            sample: answer
            for sample, answer in enumerate(self._writer.done[0])
            if answer is not None and sample not in self._written
        }
        self._written.update(ended)
        return ended

    @property
    def writing(self) -> dict[int, list[int]]:
        """The tokens so far of the answers that are begun and not done, by their sample."""
        return {row.sample: row.ids for row in self._writer.rows}


class _Writer:
    """One call of `generate`: what waits, what is being written, what is done."""

    def __init__(
        self,
        model: LlamaForCausalLM,
        prompts: Sequence[NDArray[np.integer]],
        samples: int,
        sampling: Sampling,
        keys: Sequence[int],
        rows_at_once: int,
        limits: Sequence[int] | None = None,
    ) -> None:
        limits = [sampling.max_new_tokens] * len(prompts) if limits is None else limits
        if not len(keys) == len(limits) == len(prompts):
            raise ValueError(f"{len(prompts)} prompts need as many keys and limits, not {len(keys)} and {len(limits)}")
        if min(samples, rows_at_once, sampling.max_new_tokens, len(sampling.temperatures), *limits) < 1:
            raise ValueError("samples, rows_at_once, max_new_tokens, temperatures and limits have to be at least 1")
        if any(len(prompt) == 0 for prompt in prompts):
            raise ValueError("a prompt without tokens: there is nothing to go on from")
        self.model, self.sampling, self.keys, self.rows_at_once = model, sampling, keys, rows_at_once
        self.limits = limits
        self.device = model.device
        self.decoding = Decoding(self.device)
        by_ids: dict[bytes, list[int]] = {}
        for index, prompt in enumerate(prompts):
            by_ids.setdefault(np.asarray(prompt, np.int64).tobytes(), []).append(index)
        equal = sorted(by_ids.values(), key=lambda same: -len(prompts[same[0]]))
        self.texts = [np.asarray(prompts[same[0]], np.int64) for same in equal]
        self.waiting = [(p, sample, text) for text, same in enumerate(equal) for p in same for sample in range(samples)]
        self.waiting.reverse()  # taken from the end
        self.unwritten = [len(same) * samples for same in equal]  # answers to each text that are not done
        self.slots: dict[int, int] = {}  # text -> where its keys and values are
        self.last_hidden: dict[int, Tensor] = {}  # text -> [D] of its last token
        self.rows: list[_Row] = []
        self.done: list[list[Generated | None]] = [[None] * samples for _ in prompts]
        self.answers = self.tokens = 0

    def run(self, progress: Callable[[int, int], None] | None) -> list[list[Generated]]:
        while self.waiting or self.rows:
            self.advance()
            if progress is not None:
                progress(self.answers, self.tokens)
        return [[answer for answer in answers if answer is not None] for answers in self.done]

    def advance(self) -> None:
        """One more token in every row, or the first one of new rows.

        New ones are let in by several at once: a prefill of few tokens costs almost as much as one of many.
        """
        batch = max(1, self.rows_at_once // 8)
        if self.waiting and (not self.rows or self.rows_at_once - len(self.rows) >= batch):
            self._enter()
        else:
            self._step()

    def _enter(self) -> None:
        """Let in as many waiting answers as there is room for, and draw their first tokens."""
        new: list[_Row] = []
        while self.waiting and len(self.rows) + len(new) < self.rows_at_once:
            prompt, sample, text = self.waiting.pop()
            temperature = self.sampling.temperatures[sample % len(self.sampling.temperatures)]
            most = min(self.sampling.max_new_tokens, self.limits[prompt])
            random = uniforms(self.sampling.seed, self.keys[prompt], sample, most)
            new.append(_Row(prompt, sample, text, temperature, random))
        unknown = sorted({row.text for row in new} - self.slots.keys())
        while unknown:
            lengths = np.cumsum([len(self.texts[text]) for text in unknown])
            count = max(1, int(np.searchsorted(lengths, PREFILL_TOKENS, side="right")))
            self._prefill(unknown[:count])
            unknown = unknown[count:]
        hidden_RD = torch.stack([self.last_hidden[row.text] for row in new])
        self.rows += new
        self.decoding.add_rows([self.slots[row.text] for row in new])
        self._write(hidden_RD, len(self.rows) - len(new))

    def _prefill(self, texts: Sequence[int]) -> None:
        rows = [self.texts[text] for text in texts]
        share = len(rows) > 1 and common_prefix(rows) >= SHARE_FROM
        laid = lay_out(rows, [range(len(rows))] if share else [[index] for index in range(len(rows))])
        slots = self.decoding.expect(laid.where)
        ids_T = torch.from_numpy(laid.ids).to(self.device)
        hidden_TD = ragged_hidden(self.model.model, ids_T, laid.layout, self.decoding.keep)
        for text, slot, where in zip(texts, slots, laid.where, strict=True):
            self.slots[text] = slot
            self.last_hidden[text] = hidden_TD[where[-1]].clone()  # a view would hold all T of them

    def _step(self) -> None:
        """One more token in every row."""
        ids_R = torch.tensor([row.ids[-1] for row in self.rows], device=self.device)
        positions_R = self.decoding.begin_step()
        self._write(step_hidden(self.model.model, ids_R, positions_R, self.decoding.attend), 0)

    def _write(self, hidden_RD: Tensor, first: int) -> None:
        """Draw a token for every row from the `first` one on, and let those that end leave."""
        rows = self.rows[first:]
        logits_RV = self.model.lm_head(hidden_RD).float()
        settings = np.array([(row.temperature, row.random[len(row.ids)]) for row in rows])
        settings_R2 = torch.from_numpy(settings).to(self.device)
        temperatures_R, uniforms_R = settings_R2[:, 0].float(), settings_R2[:, 1]
        tokens_R, logps_R = draw(logits_RV, temperatures_R, uniforms_R, self.sampling.top_k, self.sampling.top_p)
        tokens, logps = torch.stack([tokens_R.double(), logps_R.double()]).tolist()  # one wait for the device
        ended = []
        for index, (row, token, logp) in enumerate(zip(rows, tokens, logps, strict=True), first):
            if math.isnan(logp):
                length = len(self.texts[row.text]) + len(row.ids)
                raise DivergedError(
                    f"the model's logits are not finite behind {length:,} tokens of a prompt and its answer, so no "
                    "word can be drawn: the base or the adapter is damaged"
                )
            row.ids.append(int(token))
            row.logps.append(logp)
            if row.ids[-1] in self.sampling.stop_ids or len(row.ids) == len(row.random):
                ended.append(index)
        self.tokens += len(rows)
        if ended:
            self._leave(ended)

    def _leave(self, ended: Sequence[int]) -> None:
        for index in ended:
            row = self.rows[index]
            self.done[row.prompt][row.sample] = Generated(
                np.array(row.ids, np.int64),
                np.array(row.logps, np.float32),
                row.ids[-1] in self.sampling.stop_ids,
                row.temperature,
            )
            self.unwritten[row.text] -= 1
        self.answers += len(ended)
        gone = {self.rows[index].text for index in ended if not self.unwritten[self.rows[index].text]}
        self.rows = [self.rows[index] for index in self.decoding.drop_rows(ended)]
        for text in gone:
            slot = self.slots.pop(text)
            moved = self.decoding.drop_prompt(slot)
            for other in [text for text, at in self.slots.items() if at == moved]:
                self.slots[other] = slot
            del self.last_hidden[text]


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode, and afterwards every module as it was."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
