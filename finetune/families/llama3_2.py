"""Llama 3.2 text (1B, 3B): Llama 3.1's two templates (llama3_1.py says what each follows); no built-in tools in the
dated one. The vision models have an architecture of their own and are not served here."""

from __future__ import annotations

from finetune.families.llama3_1 import chat_format, dated

LLAMA3_2 = chat_format("llama3.2")
LLAMA3_2_DATED = dated("llama3.2")
