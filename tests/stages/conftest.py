"""The fixtures of tests/stage_recipes.py; a module of that name can be imported from anywhere, a conftest cannot."""

from stage_recipes import interrupted, tiny_base, walk, write_recipe

__all__ = ["interrupted", "tiny_base", "walk", "write_recipe"]
