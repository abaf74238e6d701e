"""The fixtures of tests/chat_lab.py; a module of that name can be imported from anywhere, a conftest cannot."""

from chat_lab import lab, spm_base, tiny_base

__all__ = ["lab", "spm_base", "tiny_base"]
