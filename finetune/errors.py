"""The error tree. Every error that is ours says what, where, and what to do next.

FinetuneError                 exit code 1: the work failed
├── InputError                exit code 2: something that was given is wrong
│   ├── RecipeError           the recipe: all problems at once, each with file, line and key path
│   ├── DataError             a data file or a row of it: file, line, field, reason
│   ├── BaseModelError        the base: unknown, without tokenizer, pickled, of no known family
│   ├── DiskFullError         too little disk, found before training or while writing
│   └── RunBusyError          another process is working on the same run
├── DivergedError             a loss or gradient is not finite: names step and rows
├── ProofError                what was written is not what was trained; nothing was released
├── CheckpointError           a checkpoint cannot be read or written
└── InterruptedRunError       exit code 130: Ctrl-C or SIGTERM; says how to go on

Errors of the libraries underneath keep their own type and traceback.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


class FinetuneError(Exception):
    """Base of all errors that finetune raises on purpose. `exit_code` is what the command line returns."""

    exit_code = 1

    def _render_traceback_(self) -> list[str]:
        """What IPython shows in place of a traceback: the message says all that helps."""
        return [f"{type(self).__name__}: {self}"]


class InputError(FinetuneError):
    exit_code = 2


@dataclass(frozen=True)
class Problem:
    """One thing wrong in a recipe. `line` counts from 1; None where there is no file (a dict, a --set)."""

    message: str
    key_path: str = ""
    line: int | None = None
    hint: str | None = None


class RecipeError(InputError):
    """All problems of one recipe. `str()` lists each as `file:line: key.path: message (did you mean …?)`."""

    def __init__(self, problems: Sequence[Problem], source: str) -> None:
        self.problems = tuple(problems)
        self.source = source
        super().__init__("\n".join(self._line(problem) for problem in self.problems))

    def _line(self, problem: Problem) -> str:
        where = self.source if problem.line is None else f"{self.source}:{problem.line}"
        path = f" {problem.key_path}:" if problem.key_path else ""
        hint = f" ({problem.hint})" if problem.hint else ""
        return f"{where}:{path} {problem.message}{hint}"


class DataError(InputError):
    """A data source that cannot be read, or a malformed row. `line` counts from 1 in the file.

    For JSON arrays, Parquet and hub data `line` is None and `row` (from 0) is given instead.
    """

    def __init__(
        self,
        message: str,
        *,
        path: str | Path | None = None,
        line: int | None = None,
        row: int | None = None,
        field: str | None = None,
    ) -> None:
        self.path, self.line, self.row, self.field = path, line, row, field
        where = "" if path is None else str(path)
        if line is not None:
            where += f":{line}"
        elif row is not None:
            where += f" row {row}"
        parts = [part for part in (where, f"field '{field}'" if field else "", message) if part]
        super().__init__(": ".join(parts))


class BaseModelError(InputError):
    pass


class DiskFullError(InputError):
    pass


class RunBusyError(InputError):
    pass


class DivergedError(FinetuneError):
    pass


class ProofError(FinetuneError):
    pass


class CheckpointError(FinetuneError):
    pass


class InterruptedRunError(FinetuneError):
    exit_code = 130
