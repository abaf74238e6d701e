"""Write the pages that are made from the code: docs/reference/recipe.md and docs/reference/commands.md.

python scripts/docs.py        # then: mkdocs build --strict
"""

from __future__ import annotations

from pathlib import Path

from docs_commands import commands_reference
from docs_recipe import recipe_reference

REFERENCE = Path(__file__).resolve().parent.parent / "docs" / "reference"
PAGES = {"recipe.md": recipe_reference, "commands.md": commands_reference}


def main() -> None:
    REFERENCE.mkdir(exist_ok=True)
    for name, made in PAGES.items():
        (REFERENCE / name).write_text(made(), encoding="utf-8")


if __name__ == "__main__":
    main()
