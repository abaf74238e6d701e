"""What `import finetune as ft` offers: the same recipes, plans and runs as the command line, as Python objects.

Importing it imports no torch; what trains or answers does so when it is called.
"""

from finetune.api.answers import Answer, Chat, Chunk, load
from finetune.api.comparison import Comparison, compare
from finetune.api.inspection import Inspection
from finetune.api.measured import Measured
from finetune.api.measures import evaluate, report
from finetune.api.planned import Plan
from finetune.api.recipe import Recipe
from finetune.api.release import export, merge, publish
from finetune.api.rows import Log, Plot, Rows
from finetune.api.runs import Run, open_run
from finetune.api.scorer import Scorer, load_scorer
from finetune.api.walking import Results, run

__all__ = [
    "Answer",
    "Chat",
    "Chunk",
    "Comparison",
    "Inspection",
    "Log",
    "Measured",
    "Plan",
    "Plot",
    "Recipe",
    "Results",
    "Rows",
    "Run",
    "Scorer",
    "compare",
    "evaluate",
    "export",
    "load",
    "load_scorer",
    "merge",
    "open_run",
    "publish",
    "report",
    "run",
]
