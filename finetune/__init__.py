"""finetune: post-training for the LLaMA family.

    import finetune as ft

    recipe = ft.Recipe.load("recipe.yaml")
    results = ft.run(recipe)
    chat = ft.load(results["sft"])
    chat("What is the capital of France?")

Everything that a notebook needs is here; docs/api.md lists it. Nothing is imported before it is asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from finetune.api import Answer as Answer
    from finetune.api import Chat as Chat
    from finetune.api import Comparison as Comparison
    from finetune.api import Inspection as Inspection
    from finetune.api import Measured as Measured
    from finetune.api import Plan as Plan
    from finetune.api import Plot as Plot
    from finetune.api import Recipe as Recipe
    from finetune.api import Results as Results
    from finetune.api import Run as Run
    from finetune.api import Scorer as Scorer
    from finetune.api import compare as compare
    from finetune.api import evaluate as evaluate
    from finetune.api import export as export
    from finetune.api import load as load
    from finetune.api import load_scorer as load_scorer
    from finetune.api import merge as merge
    from finetune.api import open_run as open_run
    from finetune.api import publish as publish
    from finetune.api import report as report
    from finetune.api import run as run

__version__ = "0.1.0"

_NAMES = frozenset({
    "Answer", "Chat", "Comparison", "Inspection", "Measured", "Plan", "Plot", "Recipe", "Results", "Run", "Scorer",
    "compare", "evaluate", "export", "load", "load_scorer", "merge", "open_run", "publish", "report", "run",
})  # fmt: skip
"""What finetune.api has, offered here."""


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(import_module("finetune.api"), name)
    raise AttributeError(f"module 'finetune' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*(name for name in globals() if name.startswith("__")), *_NAMES})
