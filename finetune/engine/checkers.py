"""Rules that score an answer: an exact number, a regular expression, JSON, an ending, or a function of the user's.

1.0 passes and 0.0 fails; a function returns what it likes, as long as it is a finite number.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from decimal import Decimal, InvalidOperation
from typing import Any

from finetune.data.prepare_prompts import Prompt
from finetune.errors import DataError, InputError
from finetune.recipe.sampling_stages import (
    Checker,
    FinishedChecker,
    FunctionChecker,
    JsonChecker,
    NumberChecker,
    RegexChecker,
)

Function = Callable[[Prompt, str], float]
"""A checker of the user's: (prompt, the answer's text) -> score."""
Check = Callable[[Prompt, str, bool], float]
"""(prompt, the answer's text, whether it ended by itself) -> score."""

_MARK = "####"
_NUMBER = re.compile(
    r"(?P<sign>(?<![\w.)])[-\u2212])?(?:[$€£]\s?)?"
    r"(?P<digits>(?<![\d.,])\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|(?<!\d)\.\d+)(?P<power>[eE][-+]?\d+)?"
)


def check_of(checker: Checker, functions: Mapping[str, Callable[..., float]]) -> Check:
    """The rule as a function. functions: those a Python caller gave by name. Raises InputError where one is missing."""
    match checker:
        case NumberChecker(column=column):
            return lambda prompt, text, _: float(number_in(text) == wanted_number(prompt, column))
        case RegexChecker(pattern=pattern, ignore_case=ignore_case):
            compiled = re.compile(pattern, re.IGNORECASE if ignore_case else 0)
            return lambda _, text, __: float(compiled.search(text) is not None)
        case JsonChecker(keys=keys):
            return lambda _, text, __: float(is_json(text, tuple(keys)))
        case FinishedChecker():
            return lambda _, __, finished: float(finished)
        case FunctionChecker(name=name):
            return _called(name, functions)


def number_in(text: str) -> Decimal | None:
    """The number that a text gives as its answer: after its last `####`, or else its last one. None where it has none,
    or one beyond all bounds.

    1,234.50, $5, -3, 12%, 7. and 1e3 are read as people write them; 1,2 is two numbers, and 3-5 ends with 5.
    """
    _, mark, after = text.rpartition(_MARK)
    found = list(_NUMBER.finditer(after if mark else text))
    if not found:
        return None
    number = found[0] if mark else found[-1]
    digits = number["digits"].replace(",", "") + (number["power"] or "")
    try:
        return Decimal(("-" if number["sign"] else "") + digits)
    except InvalidOperation:  # 1e99999999999999999999: models write such things
        return None


def wanted_number(prompt: Prompt, column: str) -> Decimal:
    """The right number of a prompt's row: a number, or a text that gives one. Raises DataError."""
    value = prompt.columns.get(column)
    if isinstance(value, (int, float, Decimal)) and not isinstance(value, bool) and math.isfinite(value):
        return Decimal(str(value))
    if isinstance(value, str) and (number := number_in(value)) is not None:
        return number
    if value is None:
        there = ", ".join(prompt.columns) or "none"
        reason = f"the checker compares with this column, and the row has none of that name (it has {there})"
    else:
        reason = f"the checker needs a number here, or a text that gives one; found {value!r:.60}"
    raise DataError(reason, path=str(prompt.origin), field=column)


def is_json(text: str, keys: tuple[str, ...]) -> bool:
    """Whether the whole text is JSON: any value, or an object that has the keys."""

    def refuse(word: str) -> None:
        raise ValueError(f"{word} is no JSON")

    try:
        value = json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError):
        return False
    return not keys or (isinstance(value, dict) and all(key in value for key in keys))


def _called(name: str, functions: Mapping[str, Callable[..., float]]) -> Check:
    if name not in functions:
        given = f"; given are {', '.join(functions)}" if functions else ""
        raise InputError(
            f"checker: no function '{name}' was given{given}. Start the recipe from Python: "
            f"run_recipe(…, functions={{'{name}': function}}); the command line cannot give one"
        )

    def check(prompt: Prompt, text: str, _: bool) -> float:
        try:
            score: Any = functions[name](prompt, text)
        except Exception as error:  # whatever the user's code raises, the row it fell over is what helps
            raise InputError(
                f"checker '{name}' failed on an answer to {prompt.origin}: {type(error).__name__}: {error}"
            ) from error
        try:
            number = float(score)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise InputError(
                f"checker '{name}' gave {score!r:.60} for an answer to {prompt.origin}: it has to return a finite "
                "number"
            )
        return number

    return check
