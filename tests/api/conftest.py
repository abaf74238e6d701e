"""The fixtures of tests/api_chain.py and stage_recipes.py; modules of those names can be imported from anywhere."""

from api_chain import chain
from stage_recipes import tiny_base, write_recipe

__all__ = ["chain", "tiny_base", "write_recipe"]
