"""Fixtures of the tests of releasing."""

import os

import pytest
from release_lab import lab
from stage_recipes import tiny_base, walk, write_recipe

__all__ = ["lab", "subprocess_env", "tiny_base", "walk", "write_recipe"]


@pytest.fixture(scope="session")
def subprocess_env() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
