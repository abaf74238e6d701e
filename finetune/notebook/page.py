"""HTML for the output of a cell: pieces of finetune.reports.pieces in a box with their style."""

from __future__ import annotations

import re

from finetune.reports.pieces import STYLE, Html, code, join, text


def boxed(*pieces: str) -> str:
    """What a `_repr_html_` returns. The style comes along: a cell's output is a page of its own for some viewers."""
    return f'<style>{STYLE}</style><div class="ft" style="padding:.25rem .75rem">{join(pieces)}</div>'


def heading(title: str, more: str = "") -> Html:
    """A line in bold, and what follows it in grey."""
    rest = f' <span class="ft-quiet">{text(more)}</span>' if more else ""
    return Html(f'<p style="margin:.5rem 0"><strong>{text(title)}</strong>{rest}</p>')


def side_by_side(drawn: str) -> Html:
    """Pictures beside each other, as many as there is room for."""
    grid = "display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,18rem),1fr));gap:.5rem"
    return Html(f'<div style="{grid}">{drawn}</div>' if drawn else "")


def yaml_code(content: str, *, title: str | None = None) -> Html:
    """YAML with its keys in a colour of their own."""
    return code(Html("\n".join(_coloured(line) for line in content.splitlines())), title=title)


def _coloured(line: str) -> str:
    found = re.match(r"(\s*(?:- )*)([\w.-]+)(:.*)", line)
    if found is None:
        return text(line)
    indent, key, rest = found.groups()
    return f'{indent}<span style="color:var(--ft-1)">{text(key)}</span>{text(rest)}'
