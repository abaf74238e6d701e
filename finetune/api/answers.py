"""Ask finished runs: a model that is ready to answer, in one line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from finetune.api.runs import Run, RunLike, as_run
from finetune.data.convert_prompts import to_prompt
from finetune.data.fields import RowFault
from finetune.data.fitting import PROMPTS
from finetune.data.formats import known_format
from finetune.data.readers import RawRow
from finetune.errors import InputError
from finetune.notebook.page import boxed
from finetune.notebook.place import calm, in_notebook
from finetune.reports.pieces import samples
from finetune.shapes import Completion, Dialog, Message, Origin

if TYPE_CHECKING:
    from finetune.chat.model import Answering, ChatModel, Reply

BASE = "base"
Prompt = str | Sequence[Mapping[str, Any]] | Mapping[str, Any]
"""A question; a conversation as messages of role and content; or a row as a data file has it."""


class Answer(str):
    """What was answered: text, with what else is known of it.

    finished: the model ended by itself. tokens, prompt_tokens: how many. name: who answered. samples: all answers that
    were asked for, this one first.
    """

    finished: bool
    tokens: int
    prompt_tokens: int
    name: str
    prompt: Prompt
    samples: tuple[Answer, ...]

    @classmethod
    def of(cls, prompt: Prompt, name: str, replies: Sequence[Reply]) -> Answer:
        """One prompt's answers; at least one."""
        found = [cls._one(prompt, name, reply) for reply in replies]
        found[0].samples = tuple(found)
        return found[0]

    @classmethod
    def _one(cls, prompt: Prompt, name: str, reply: Reply) -> Answer:
        answer = cls(reply.text)
        answer.finished, answer.tokens, answer.prompt_tokens = reply.finished, reply.tokens, reply.prompt_tokens
        answer.name, answer.prompt, answer.samples = name, prompt, (answer,)
        return answer

    def _repr_html_(self) -> str:
        more = {} if self.finished else {f"{self.name} (cut off)": str(self)}
        return boxed(samples([{**prompt_fields(self.prompt), **(more or {self.name: str(self)})}], limit=1))


class Chunk(str):
    """A piece of an answer as it is written. name: who writes. done: whether it is the last."""

    name: str
    done: bool


class Chat:
    """Finished runs ready to answer, beside each other on one base in memory.

        chat = ft.load(results["sft"])
        chat("What is the capital of France?")
        chat.answer(["One?", "Two?"], temperature=0.7, samples=4)
        for piece in chat.stream("Tell me a story."): print(piece, end="")

    names: whom one can ask; the first answers where nobody is named, "base" (the bare base) is the last.
    """

    def __init__(self, model: ChatModel) -> None:
        self.model = model

    @property
    def names(self) -> tuple[str, ...]:
        return self.model.names

    @property
    def system(self) -> str | None:
        """The system prompt that conversations without one of their own get, as in training."""
        return self.model.system

    def __call__(
        self,
        prompt: Prompt,
        *,
        of: str | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        max_new_tokens: int = 256,
        seed: int = 0,
    ) -> Answer:
        """One answer. temperature 0 = greedy: the same every time. of: who answers, a name of `names`.

        Each call is a conversation of its own: give messages to go on with one. Raises InputError.

            chat("What is two and two?", of="base")
        """
        settings = _settings(temperature, top_p, top_k, max_new_tokens, 1, seed)
        return self._answers([prompt], of, settings)[0]

    def answer(
        self,
        prompts: Sequence[Prompt],
        *,
        of: str | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        max_new_tokens: int = 256,
        samples: int = 1,
        seed: int = 0,
    ) -> list[Answer]:
        """An answer to each prompt, in order, written side by side. samples: drawn for each, as `Answer.samples`.

        best = [max(answer.samples, key=len) for answer in chat.answer(questions, temperature=1.0, samples=8)]
        """
        if isinstance(prompts, str | Mapping):
            raise InputError("chat.answer takes a list of prompts; ask one with chat(prompt)")
        return self._answers(prompts, of, _settings(temperature, top_p, top_k, max_new_tokens, samples, seed))

    def stream(
        self,
        prompt: Prompt,
        *,
        of: str | Sequence[str] | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        max_new_tokens: int = 256,
        seed: int = 0,
    ) -> Iterator[Chunk]:
        """The answer piece by piece, while it is written; of several names, side by side, each piece with its name.

        for piece in chat.stream("Count to ten."): print(piece, end="", flush=True)
        """
        names = [self._name(of)] if of is None or isinstance(of, str) else list(of)
        settings = _settings(temperature, top_p, top_k, max_new_tokens, 1, seed)
        for piece in self.model.stream(self._asked(prompt), names, settings):
            chunk = Chunk(piece.text)
            chunk.name, chunk.done = piece.name, piece.reply is not None
            yield chunk

    def __repr__(self) -> str:
        return f"Chat with {', '.join(self.names)}: {self.model.room:,} tokens for prompt and answer"

    def _answers(self, prompts: Sequence[Prompt], of: str | None, settings: Answering) -> list[Answer]:
        name = self._name(of)
        found = self.model.answer([self._asked(prompt) for prompt in prompts], name, settings)
        return [Answer.of(prompt, name, replies) for prompt, replies in zip(prompts, found, strict=True)]

    def _name(self, of: str | None) -> str:
        return self.names[0] if of is None else of

    def _asked(self, prompt: Prompt) -> Dialog | Completion:
        return as_asked(prompt, is_chat=self.model.family.is_chat)


def load(run: RunLike | Mapping[str, RunLike], *, base: str | None = None) -> Chat:
    """Load a finished run, or a merged folder, ready to answer; several by names of your choice, on one base.

    base: where the base is, if it is not where the run had it. Raises InputError and BaseModelError. A reward model
    writes no answers: `ft.load_scorer` is for those.

        chat = ft.load(results["sft"])
        both = ft.load({"sft": results["sft"], "dpo": results["dpo"]})
    """
    found = {name: as_run(one) for name, one in run.items()} if isinstance(run, Mapping) else _named([run])
    for one in found.values():
        if one.kind == "reward":
            raise InputError(f"{one.folder} is a reward model: ft.load_scorer(run) scores answers with it")
    return Chat(open_model(found, base))


def open_model(runs: Mapping[str, Run], base: str | None) -> ChatModel:
    """The runs on their base, in memory."""
    calm()
    from finetune.chat.model import open_chat

    return open_chat({name: run.folder for name, run in runs.items()}, base=base, say=_say())


def named(runs: Sequence[RunLike]) -> dict[str, Run]:
    """Runs by names that tell them apart: the stage's, with the recipe's or the fingerprint where it has to be."""
    return _named(runs)


def _named(runs: Sequence[RunLike]) -> dict[str, Run]:
    found = [as_run(run) for run in runs]
    for name_of in (lambda run: run.name, lambda run: f"{run.recipe_name}/{run.name}", lambda run: run.folder.name):
        names = [name_of(run) for run in found]
        if len(set(names)) == len(names) and BASE not in names:
            return dict(zip(names, found, strict=True))
    return {str(run.folder): run for run in found}


def as_asked(prompt: Prompt, *, is_chat: bool) -> Dialog | Completion:
    """What a family can render. Text is a user's turn, or the beginning of a text where the base has no chat form.

    Raises InputError naming what is wrong with a conversation or a row.
    """
    if isinstance(prompt, str):
        return Dialog((Message("user", prompt),)) if is_chat else Completion(prompt, "")
    row: Mapping[str, Any] = prompt if isinstance(prompt, Mapping) else {"messages": list(prompt)}
    raw = RawRow(dict(row), Origin("prompt"))
    try:
        asked, _ = to_prompt(raw.values, known_format("auto", {}, [raw], "prompt", PROMPTS))
    except RowFault as fault:
        raise InputError(f"prompt: {fault}") from fault
    if isinstance(asked, Completion) and is_chat and "completion" not in row:
        return Dialog((Message("user", asked.prompt),))
    return asked


def prompt_fields(prompt: Prompt) -> dict[str, Any]:
    """The prompt as a row of samples shows it."""
    if isinstance(prompt, str):
        return {"prompt": prompt}
    if isinstance(prompt, Mapping):
        return {key: value for key, value in prompt.items() if key in ("prompt", "messages")}
    return {"messages": list(prompt)}


def _settings(temperature: float, top_p: float, top_k: int, max_new_tokens: int, samples: int, seed: int) -> Answering:
    from finetune.chat.model import Answering

    return Answering(temperature, top_p, top_k, max_new_tokens, samples, seed)


def _say() -> Any:
    return (lambda line: None) if in_notebook() else print
