"""Answers in the shape of OpenAI's chat completions and completions, whole or as events of a stream."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from finetune.chat.desk import Desk
from finetune.chat.openai_requests import Wanted
from finetune.chat.stops import StopTexts


@dataclass
class Answers:
    """What one request gets. `events` or `whole` is asked for once; afterwards tokens are those that were written.

    chat: a chat completion, else a completion. gone: nobody waits any more, so nothing more is written.
    """

    desk: Desk
    wanted: Wanted
    chat: bool
    gone: Callable[[], bool]
    prompt_tokens: int
    tokens: int = 0

    def __post_init__(self) -> None:
        kind = ("chatcmpl", "chat.completion") if self.chat else ("cmpl", "text_completion")
        self._object = kind[1]
        self._head = {
            "id": f"{kind[0]}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": self.wanted.model,
        }

    def whole(self) -> dict[str, Any]:
        """The response to a request without `stream`."""
        count = len(self.wanted.asked) * self.wanted.settings.samples
        texts, ends = [""] * count, [""] * count
        for part in self._parts():
            texts[part.index] += part.text
            ends[part.index] = part.finish or ends[part.index]
        return {
            **self._head,
            "object": self._object,
            "choices": [self._choice(i, text, end) for i, (text, end) in enumerate(zip(texts, ends, strict=True))],
            "usage": self._usage(),
        }

    def events(self) -> Iterator[dict[str, Any]]:
        """The events of a stream; [DONE] is to follow."""
        kind = f"{self._object}.chunk" if self.chat else self._object
        usage = {"usage": None} if self.wanted.count_usage else {}
        begun: set[int] = set()
        for part in self._parts():
            if self.chat:
                role = {} if part.index in begun else {"role": "assistant"}
                begun.add(part.index)
                if part.text or role:
                    delta = {"delta": {**role, "content": part.text}, "logprobs": None, "finish_reason": None}
                    yield {**self._head, "object": kind, "choices": [{"index": part.index, **delta}], **usage}
                if part.finish is not None:
                    end: dict[str, Any] = {"delta": {}, "logprobs": None, "finish_reason": part.finish}
                    yield {**self._head, "object": kind, "choices": [{"index": part.index, **end}], **usage}
            else:
                choice = {"index": part.index, "text": part.text, "logprobs": None, "finish_reason": part.finish}
                yield {**self._head, "object": kind, "choices": [choice], **usage}
        if self.wanted.count_usage:
            yield {**self._head, "object": kind, "choices": [], "usage": self._usage()}

    def _choice(self, index: int, text: str, finish: str) -> dict[str, Any]:
        end = {"index": index, "logprobs": None, "finish_reason": finish}
        if self.chat:
            return {**end, "message": {"role": "assistant", "content": text, "refusal": None}}
        return {**end, "text": text}

    def _usage(self) -> dict[str, int]:
        both = self.prompt_tokens + self.tokens
        return {"prompt_tokens": self.prompt_tokens, "completion_tokens": self.tokens, "total_tokens": both}

    def _parts(self) -> Iterator[_Part]:
        samples = self.wanted.settings.samples
        for number, asked in enumerate(self.wanted.asked):
            stops = [StopTexts(self.wanted.stops) for _ in range(samples)]
            over: set[int] = set()
            for piece in self.desk.pieces(asked, self.wanted.model, self.wanted.settings, self.gone):
                if piece.sample in over:
                    continue
                cut = stops[piece.sample]
                text, finish = cut.feed(piece.text), None
                if cut.ended:
                    finish = "stop"
                elif piece.reply is not None:
                    text += cut.rest()
                    finish = "stop" if piece.reply.finished else "length"
                if finish is not None:
                    over.add(piece.sample)
                    self.tokens += piece.tokens
                if text or finish is not None:
                    yield _Part(number * samples + piece.sample, text, finish)
                if len(over) == samples:
                    break


@dataclass(frozen=True)
class _Part:
    """Some text of the answer `index`. finish: why it ends here, if it does."""

    index: int
    text: str
    finish: str | None
