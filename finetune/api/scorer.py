"""Reward models in Python: scores of answers."""

from __future__ import annotations

from collections.abc import Sequence

from finetune.api.answers import Prompt, as_asked
from finetune.api.runs import Run, RunLike, as_run
from finetune.errors import InputError
from finetune.notebook.place import calm


class Scorer:
    """A finished reward model. Higher scores are better; only their differences, to one prompt, mean something.

        scorer = ft.load_scorer(results["helpful"])
        scorer.score("What is two and two?", "Four.")
        scorer.score_all(questions, [[a, b] for a, b in pairs])

    The base is loaded for each call and given back after it: score many answers in one.
    """

    def __init__(self, run: Run, base: str | None = None) -> None:
        self.run, self.base = run, base

    def score(self, prompt: Prompt, answer: str) -> float:
        """The score of one answer. Raises InputError."""
        return self.score_all([prompt], [[answer]])[0][0]

    def score_all(self, prompts: Sequence[Prompt], answers: Sequence[Sequence[str]]) -> list[list[float]]:
        """The scores of each prompt's answers; a prompt of several is computed once. Raises InputError."""
        if len(prompts) != len(answers):
            raise InputError(f"{len(prompts):,} prompts and answers to {len(answers):,}: each prompt needs a list")
        calm()
        from finetune.evaluation.scorer import score_answers

        # A text is a question where the run's template has turns, else the beginning of a text: its family decides.
        asked = [as_asked(prompt, is_chat=False) for prompt in prompts]
        return score_answers(self.run.folder, asked, answers, base=self.base, say=_nothing)

    def __repr__(self) -> str:
        return f"Scorer of {self.run!r}"


def load_scorer(run: RunLike, *, base: str | None = None) -> Scorer:
    """A finished reward model, ready to score. base: where its base is, if it is not where the run had it.

    Raises InputError where the run is of another kind.

        ft.load_scorer(results["helpful"]).score("What is two and two?", "Four.")
    """
    found = as_run(run)
    if found.kind not in ("reward", "average"):
        raise InputError(f"{found.folder} is a {found.kind} run: only reward models score answers")
    return Scorer(found, base)


def _nothing(line: str) -> None:
    """What is said of the base is no news at every call."""
