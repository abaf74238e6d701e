"""The fixtures of tests/commands.py; a module of that name can be imported from anywhere, a conftest cannot."""

from commands import command, finetune, in_process_of_its_own, recipe, subprocess_env, tiny_base

__all__ = ["command", "finetune", "in_process_of_its_own", "recipe", "subprocess_env", "tiny_base"]
