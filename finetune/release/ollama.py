"""An Ollama Modelfile that prompts with the ids that were trained: its TEMPLATE is the training template, in Go's.

Ollama renders `TEMPLATE` with Go's text/template over .System and .Messages (the system message among them), puts the
bos token before the result itself, and reads special tokens in it by name. So each template here is the family's own,
without its first bos; tests render both and compare. What Go's templates have no function for is not done: Llama 3's
and Llama 2's stripping of white space around a content (send contents stripped), and Alpaca's separate input field.
Tools are not offered: a model answers calls only in the form it was trained on, and Ollama has its own. A conversation
that ends with the assistant is left open, to be continued.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune.errors import InputError
from finetune.families.base import Family
from finetune.plan.base_files import read_json

_LLAMA3 = """\
{{- range $i, $m := .Messages }}<|start_header_id|>\
{{ if eq $m.Role "tool" }}ipython{{ else }}{{ $m.Role }}{{ end }}<|end_header_id|>

{{ $m.Content }}{{ if or (ne $m.Role "assistant") (gt (len (slice $.Messages $i)) 1) }}<|eot_id|>\
{{ if eq (len (slice $.Messages $i)) 1 }}<|start_header_id|>assistant<|end_header_id|>

{{ end }}{{ end }}{{ end }}"""

_DATED = """\
<|start_header_id|>system<|end_header_id|>

Cutting Knowledge Date: December 2023
Today Date: 26 Jul 2024

{{ .System }}<|eot_id|>\
{{ range $i, $m := .Messages }}{{ if ne $m.Role "system" }}<|start_header_id|>\
{{ if eq $m.Role "tool" }}ipython{{ else }}{{ $m.Role }}{{ end }}<|end_header_id|>

{{ $m.Content }}{{ if or (ne $m.Role "assistant") (gt (len (slice $.Messages $i)) 1) }}<|eot_id|>\
{{ if eq (len (slice $.Messages $i)) 1 }}<|start_header_id|>assistant<|end_header_id|>

{{ end }}{{ end }}{{ end }}{{ end }}"""

_LLAMA2 = """\
{{- $first := true }}{{ range $i, $m := .Messages }}\
{{ if eq $m.Role "user" }}{{ if $first }}[INST] {{ if $.System }}<<SYS>>
{{ $.System }}
<</SYS>>

{{ end }}{{ else }}<bos>[INST] {{ end }}{{ $first = false }}{{ $m.Content }} [/INST]\
{{ else if eq $m.Role "assistant" }} {{ $m.Content }}{{ if gt (len (slice $.Messages $i)) 1 }} <end>{{ end }}\
{{ end }}{{ end }}"""

_VICUNA = """\
{{- if .System }}{{ .System }}{{ else }}A chat between a curious user and an artificial intelligence assistant. The \
assistant gives helpful, detailed, and polite answers to the user's questions.{{ end }} \
{{ range $i, $m := .Messages }}{{ if eq $m.Role "user" }}USER: {{ $m.Content }} ASSISTANT:\
{{ else if eq $m.Role "assistant" }} {{ $m.Content }}{{ if gt (len (slice $.Messages $i)) 1 }}<end>{{ end }}\
{{ end }}{{ end }}"""

_ALPACA = """\
{{- range $i, $m := .Messages }}{{ if eq $m.Role "user" }}{{ if $.System }}{{ $.System }}{{ else }}Below is an \
instruction that describes a task. Write a response that appropriately completes the request.{{ end }}

### Instruction:
{{ $m.Content }}

### Response:\
{{ else if eq $m.Role "assistant" }}{{ $m.Content }}{{ if gt (len (slice $.Messages $i)) 1 }}<end>{{ end }}\
{{ end }}{{ end }}"""

_TEMPLATES = {
    "plain": "{{ .Prompt }}",
    "alpaca": _ALPACA,
    "vicuna": _VICUNA,
    "llama2": _LLAMA2,
    **dict.fromkeys(("llama3", "llama3.1", "llama3.2", "llama3.3"), _LLAMA3),
    **dict.fromkeys(("llama3.1-dated", "llama3.2-dated", "llama3.3-dated"), _DATED),
}
_SAMPLING = ("temperature", "top_p", "top_k", "repetition_penalty")
_OLLAMA_NAMES = {"repetition_penalty": "repeat_penalty"}


def go_template(family: Family) -> str:
    """The family's template for Ollama. Raises InputError for one that has none."""
    if family.template not in _TEMPLATES:
        raise InputError(f"the template {family.template} has no form for Ollama yet")
    return _TEMPLATES[family.template].replace("<bos>", family.bos).replace("<end>", family.end)


def modelfile(folder: Path, gguf_name: str, family: Family, system: str | None) -> str:
    """The Modelfile beside a GGUF file. folder: the merged one, for sampling settings and licence. system: or None."""
    lines = [f"FROM ./{gguf_name}", f"TEMPLATE {_quoted(go_template(family))}"]
    lines += [f"PARAMETER stop {_word(token)}" for token in dict.fromkeys((*family.stop_tokens, *family.eos_tokens))]
    settings: Mapping[str, Any] = read_json(folder / "generation_config.json") or {}
    for name in _SAMPLING:
        if settings.get("do_sample") and settings.get(name) is not None:
            lines.append(f"PARAMETER {_OLLAMA_NAMES.get(name, name)} {settings[name]}")
    if system is not None:
        lines.append(f"SYSTEM {_quoted(system)}")
    for path in sorted(folder.glob("LICEN[SC]E*")):
        lines.append(f"LICENSE {_quoted(path.read_text(encoding='utf-8', errors='replace'))}")
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    if '"""' in text:
        raise InputError('a text with """ in it has no form in a Modelfile: change the system prompt')
    return f'"""{text}"""'


def _word(token: str) -> str:
    return f'"{token}"'
