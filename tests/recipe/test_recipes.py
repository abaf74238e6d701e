"""The recipes that the project carries."""

from __future__ import annotations

from pathlib import Path

from finetune.recipe.load import load_recipe


def test_every_recipe_loads(root: Path) -> None:
    recipes = sorted((root / "recipes").rglob("*.yaml"))
    assert recipes, "no recipe was found: this test would prove nothing"
    names = []
    for path in recipes:
        loaded = load_recipe(path)
        names.append(loaded.recipe.name)
        schema = path.read_text(encoding="utf-8").partition("$schema=")[2].partition("\n")[0].strip()
        assert schema, f"{path.name} does not tell editors where the schema is"
        assert (path.parent / schema).is_file(), f"{path.name} points editors to {schema}, which is not there"
    assert len(set(names)) == len(names), "two recipes would share one run folder"
