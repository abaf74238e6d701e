"""Llama 3.3 (70B instruct): Llama 3.1's two templates (llama3_1.py says what each follows), a licence of its own."""

from __future__ import annotations

from finetune.families.llama3_1 import chat_format, dated

LLAMA3_3 = chat_format("llama3.3")
LLAMA3_3_DATED = dated("llama3.3")
