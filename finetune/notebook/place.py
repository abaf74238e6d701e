"""Is this a notebook? Nothing of IPython is imported where nobody else has."""

from __future__ import annotations

import sys
import warnings
from contextlib import AbstractContextManager, nullcontext, redirect_stderr

from finetune.quiet import calm_libraries, quiet_libraries


def in_notebook() -> bool:
    """Whether a Jupyter kernel runs this, so that HTML is seen and a terminal is not there."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return shell is not None and getattr(shell, "kernel", None) is not None


def calm() -> None:
    """Silence what the libraries say that is no news to a user. Call it before they are imported."""
    quiet_libraries()
    calm_libraries()
    if in_notebook():
        # tqdm, which transformers brings: it would rather have ipywidgets, for bars that nobody is shown here
        warnings.filterwarnings("ignore", message="IProgress not found")


def progress_as_output() -> AbstractContextManager[object]:
    """A notebook shows stderr in red, as if something were wrong: within, progress lines are ordinary output there."""
    return redirect_stderr(sys.stdout) if in_notebook() else nullcontext()
