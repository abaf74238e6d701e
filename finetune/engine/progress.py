"""What a user sees while a stage trains: a live bar in a terminal, plain lines elsewhere."""

from __future__ import annotations

import resource
import sys
import time
from typing import Any, Protocol

import torch


class Progress(Protocol):
    """`update` after every step with its metrics; `note` for a line that stays; `close` at the end, also on errors."""

    def update(self, metrics: dict[str, Any]) -> None: ...

    def note(self, text: str) -> None: ...

    def close(self) -> None: ...


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
            eta = duration((now - self.began) / (step - self.done) * (self.total - step))
            print(
                f"{self.title}: step {step}/{self.total}  {summary(metrics)}  eta {eta}",
                file=sys.stderr,
                flush=True,
            )

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
        )
        self.bar.start()
        self.task = self.bar.add_task(title, total=total, completed=done, summary="")

    def update(self, metrics: dict[str, Any]) -> None:
        self.bar.update(self.task, completed=int(metrics["step"]), summary=summary(metrics))

    def note(self, text: str) -> None:
        self.bar.console.print(text, markup=False, highlight=False)

    def close(self) -> None:
        self.bar.stop()


def summary(metrics: dict[str, Any]) -> str:
    """loss, learning rate, speed and memory of one step, in one short text."""
    return (
        f"loss {metrics['loss']:.4f}  lr {metrics['learning_rate']:.2e}  "
        f"{metrics['tokens_per_second']:,.0f} tok/s  {metrics['memory_gib']:.2f} GiB"
    )


def duration(seconds: float) -> str:
    """1:05:09 or 4:07."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def memory_gib(device: torch.device) -> float:
    """Peak memory so far in GiB: of the GPU where there is one, of this process otherwise."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**30 if sys.platform == "darwin" else peak / 2**20
