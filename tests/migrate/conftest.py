"""The fixtures of tests/commands.py; a module of that name can be imported from anywhere, a conftest cannot."""

from commands import finetune, tiny_base

__all__ = ["finetune", "tiny_base"]
