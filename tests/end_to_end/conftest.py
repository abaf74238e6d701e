"""The fixtures of tests/commands.py; a module of that name can be imported from anywhere, a conftest cannot."""

import pytest
from commands import command, finetune, in_process_of_its_own, recipe, subprocess_env, tiny_base

__all__ = ["command", "finetune", "in_process_of_its_own", "recipe", "subprocess_env", "tiny_base"]

# Their asserts are to show values, as a test's do.
pytest.register_assert_rewrite(
    "settings_lab", "settings_of_data", "settings_of_models", "settings_of_tracking", "settings_of_training"
)
