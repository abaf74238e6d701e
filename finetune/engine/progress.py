"""What a user sees while a stage works: a live bar in a terminal, plain lines elsewhere.

A stage asks its Job for a Progress and tells it of every step; who shows it, and where, is the caller's affair (the
command line hangs it into the tree of the whole recipe).
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:  # a Job is made before torch is imported
    import torch


class Progress(Protocol):
    """`update` after every step with its metrics, of which `step` (steps done) is the one that has to be there; `note`
    for a line that stays; `close` at the end, also on errors."""

    def update(self, metrics: dict[str, Any]) -> None: ...

    def note(self, text: str) -> None: ...

    def close(self) -> None: ...


MakeProgress = Callable[[str, int, int], Progress]
"""(title, total steps, steps done in an earlier session that is resumed) -> Progress."""


def make_progress(title: str, total: int, done: int) -> Progress:
    """A bar where stderr is a terminal, lines otherwise. done: steps of an earlier session that are resumed."""
    return Bar(title, total, done) if sys.stderr.isatty() else Lines(title, total, done)


class Lines:
    """One line for the first step, then about every ten seconds or tenth of the run, and for the last."""

    def __init__(self, title: str, total: int, done: int) -> None:
        self.title, self.total, self.done = title, total, done
        self.began = self.last = time.monotonic()

    def update(self, metrics: dict[str, Any]) -> None:
        now, step = time.monotonic(), int(metrics["step"])
        milestone = step in (self.done + 1, self.total) or step % max(1, self.total // 10) == 0
        if milestone or now - self.last > 10:
            self.last = now
            left = seconds_left(now - self.began, step - self.done, self.total - step)
            words = [f"{self.title}: step {step}/{self.total}", summary(metrics)]
            words += [] if left is None else [f"eta {duration(left)}"]
            print("  ".join(word for word in words if word), file=sys.stderr, flush=True)

    def note(self, text: str) -> None:
        print(f"{self.title}: {text}", file=sys.stderr, flush=True)

    def close(self) -> None:
        pass


class Bar:
    """rich's progress bar with loss, tokens a second, memory and the time left."""

    def __init__(self, title: str, total: int, done: int) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as RichProgress

        self.bar = RichProgress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[summary]}"),
            TimeElapsedColumn(),
            TextColumn("eta"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            redirect_stdout=sys.stdout.isatty(),  # what is sent to a file stays there
        )
        self.bar.start()
        self.task = self.bar.add_task(title, total=total, completed=done, summary="")

    def update(self, metrics: dict[str, Any]) -> None:
        self.bar.update(self.task, completed=int(metrics["step"]), summary=summary(metrics))

    def note(self, text: str) -> None:
        self.bar.console.print(text, markup=False, highlight=False)

    def close(self) -> None:
        self.bar.stop()


_SHOWN: Mapping[str, tuple[str, str]] = {
    "loss": ("loss ", ".4f"),
    "score": ("score ", ".3f"),
    "best": ("best of k ", ".3f"),
    "reward": ("reward ", ".3f"),
    "kl": ("KL ", ".3f"),
    "pass_rate": ("passed ", ".0%"),
    "kept": ("kept ", ",.0f"),
    "learning_rate": ("lr ", ".2e"),
}
"""The metrics that a progress line has room for, with their words and formats, in this order."""


def summary(metrics: Mapping[str, Any]) -> str:
    """What matters of one step in one short text: of the known metrics those that are there, then speed and memory."""
    words = [f"{word}{metrics[name]:{form}}" for name, (word, form) in _SHOWN.items() if metrics.get(name) is not None]
    if metrics.get("tokens_per_second") is not None:
        words.append(f"{metrics['tokens_per_second']:,.0f} tok/s")
    if metrics.get("memory_gib") is not None:
        words.append(f"{metrics['memory_gib']:.2f} GiB")
    return "  ".join(words)


def seconds_left(elapsed: float, done: int, left: int) -> float | None:
    """Seconds that `left` steps will take at the pace of the `done` ones; None before the first."""
    return elapsed / done * left if done > 0 else None


def duration(seconds: float) -> str:
    """1:05:09 or 4:07."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def memory_gib(device: torch.device) -> float:
    """Peak memory so far in GiB: of the GPU where there is one, of this process otherwise."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device) / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**30 if sys.platform == "darwin" else peak / 2**20
