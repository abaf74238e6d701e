"""The notebooks: run from their first cell to their last, and stored without output.

    python scripts/notebooks.py strip          # after editing: outputs and counts away, ids and spaces in order
    python scripts/notebooks.py run            # all, in order, as CI does; --out DIR keeps them with their outputs
    python scripts/notebooks.py run 03 04 --runs runs --model meta-llama/Llama-3.2-1B

Their first code cell says which model they use and where runs lie, `MODEL = …` and `RUNS = …`: --model and --runs take
these lines' place for one run, nothing else is changed. A kernel of this Python runs them, in their own folder.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode
from traitlets.config import Config

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"
LONGEST_CELL = 1800
"""Seconds. A cell that trains on a CPU may take minutes."""
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def notebooks(chosen: Sequence[str] = ()) -> list[Path]:
    """The notebooks in their order; chosen: beginnings of their names. Raises SystemExit where one is not there."""
    found = sorted(FOLDER.glob("*.ipynb"))
    if missing := [name for name in chosen if not any(path.name.startswith(name) for path in found)]:
        raise SystemExit(f"no notebook begins with {', '.join(missing)}: there are {', '.join(p.name for p in found)}")
    return [path for path in found if not chosen or path.name.startswith(tuple(chosen))]


def read(path: Path) -> NotebookNode:
    return nbformat.read(path, as_version=4)


def text_of(notebook: NotebookNode) -> str:
    """A notebook as its file holds it."""
    return nbformat.writes(notebook, version=4) + "\n"


def stripped(notebook: NotebookNode) -> NotebookNode:
    """As it is stored: no output, no counts, no traces of an editor; cells numbered, no space at their ends."""
    cells = []
    for number, cell in enumerate(notebook.cells, start=1):
        source = "\n".join(line.rstrip() for line in cell.source.strip().splitlines())
        make = nbformat.v4.new_code_cell if cell.cell_type == "code" else nbformat.v4.new_markdown_cell
        cells.append(make(source, id=f"cell-{number:02}"))
    return nbformat.v4.new_notebook(cells=cells, metadata=METADATA)


def settled(notebook: NotebookNode, **settings: str) -> NotebookNode:
    """A copy whose first code cell sets these names to these texts. Raises ValueError where it sets no such name."""
    notebook = nbformat.from_dict(notebook)
    cell = next(cell for cell in notebook.cells if cell.cell_type == "code")
    for name, value in settings.items():
        found = re.findall(rf'(?m)^{name} = "[^"\n]*"', cell.source)
        if len(found) != 1:
            raise ValueError(f"the first code cell has {len(found)} lines that begin with {name} =, not one")
        cell.source = cell.source.replace(found[0], f"{name} = {value!r}")
    return notebook


def execute(notebook: NotebookNode, **environment: str) -> None:
    """Run all cells, outputs into the notebook. environment: variables that the kernel has besides this process's own.

    Raises CellExecutionError with the cell and its traceback.
    """
    with tempfile.TemporaryDirectory() as folder:
        # Sockets in a folder of its own, and not ports that others on the machine could listen to.
        place = {"transport": "ipc", "connection_file": str(Path(folder) / "kernel.json")}
        client = NotebookClient(
            notebook,
            config=Config({"AsyncKernelManager": place}),
            timeout=LONGEST_CELL,
            kernel_name="python3",
            coalesce_streams=True,
            resources={"metadata": {"path": str(FOLDER)}},
        )
        # Threads that wait must sleep: where others use the cores too, those that spin cost many times the work.
        client.execute(env={"OMP_WAIT_POLICY": "PASSIVE", **os.environ, **environment})


def told(error: CellExecutionError) -> str:
    """The cell that failed and its traceback, without a terminal's colours."""
    return re.sub(r"\x1b\[[0-9;]*m", "", str(error))


def main() -> int:
    parser = argparse.ArgumentParser(description="Run the notebooks, or take their outputs away.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("strip", help="take outputs and counts away")
    run = commands.add_parser("run", help="run them in order")
    run.add_argument("chosen", nargs="*", metavar="NAME", help="beginnings of names, such as 03; without: all")
    run.add_argument("--model", help="in place of MODEL, the carried model")
    run.add_argument("--runs", help="in place of RUNS, where runs lie")
    run.add_argument("--out", type=Path, metavar="DIR", help="keep them there, with their outputs")
    given = parser.parse_args()
    if given.command == "strip":
        for path in notebooks():
            path.write_text(text_of(stripped(read(path))), encoding="utf-8")
        return 0
    settings = {"MODEL": given.model, "RUNS": str(Path(given.runs).resolve()) if given.runs else None}
    for path in notebooks(given.chosen):
        notebook = settled(read(path), **{name: value for name, value in settings.items() if value})
        began, failed = time.perf_counter(), None
        try:
            execute(notebook)
        except CellExecutionError as error:
            failed = told(error)
        if given.out:
            given.out.mkdir(parents=True, exist_ok=True)
            nbformat.write(notebook, given.out / path.name)
        print(f"{path.name}: {'failed' if failed else 'done'} after {time.perf_counter() - began:.1f} s")
        if failed:
            print(failed, file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
