"""Pieces of a page as HTML: tables, facts, code, sample answers. For reports and for notebooks, inside `class="ft"`.

Pure functions. Every text that is given is escaped; only an `Html` is taken as it is. The look is STYLE, to be put
into a `<style>` once.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from difflib import SequenceMatcher
from html import escape
from typing import Any

from finetune.reports.style import STYLE as STYLE

LONGEST_COMPARED = 3000
"""Words and spaces of a text that are compared one by one; of a longer pair only the common beginning and end are."""


class Html(str):
    """Text that is HTML already, its texts escaped."""

    __slots__ = ()


def text(value: object) -> Html:
    """A value for people to read: numbers with four significant digits, thousands apart; missing ones as a dash."""
    if isinstance(value, Html):
        return value
    if value is None:
        return Html("—")
    if isinstance(value, bool):
        return Html("yes" if value else "no")
    if isinstance(value, int):
        return Html(f"{value:,}")
    if isinstance(value, float):
        return Html(number(value))
    return Html(escape(_readable(str(value))))


def number(value: float) -> str:
    """Four significant digits: 1,234, 0.02353, 2e-05. What is not finite is said."""
    if not math.isfinite(value):
        return "not finite"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def join(pieces: Iterable[str]) -> Html:
    """Pieces one after another; what is no Html is escaped."""
    return Html("\n".join(text(piece) for piece in pieces if piece))


def table(
    headings: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    caption: str | None = None,
    numeric: Collection[int] = (),
) -> Html:
    """A table in a box of its own that scrolls. numeric: columns, from 0, that stand to the right."""

    def classes(column: int) -> str:
        return ' class="ft-number"' if column in numeric else ""

    title = "" if caption is None else f"<caption>{text(caption)}</caption>"
    head = "".join(f'<th scope="col"{classes(at)}>{text(name)}</th>' for at, name in enumerate(headings))
    body = "".join(
        "<tr>" + "".join(f"<td{classes(at)}>{text(cell)}</td>" for at, cell in enumerate(row)) + "</tr>" for row in rows
    )
    label = text(caption or ", ".join(headings))
    return Html(
        f'<div class="ft-scroll" tabindex="0" role="region" aria-label="{label}"><table class="ft-table">{title}'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def facts(pairs: Iterable[tuple[str, object]]) -> Html:
    """Names and what they are, as a definition list."""
    return Html(
        '<dl class="ft-facts">'
        + "".join(f"<dt>{text(name)}</dt><dd>{text(value)}</dd>" for name, value in pairs)
        + "</dl>"
    )


def code(content: str, *, title: str | None = None) -> Html:
    """Text as it stands in a file or a terminal, in a box of its own that scrolls."""
    caption = "" if title is None else f"<figcaption>{text(title)}</figcaption>"
    label = text(title or "code")
    return Html(
        f'<figure class="ft-code">{caption}<pre tabindex="0" aria-label="{label}"><code>{text(content)}</code></pre>'
        "</figure>"
    )


def note(content: str) -> Html:
    """Something that the reader has to know, such as what could not be read."""
    return Html(f'<p class="ft-note" role="note">{text(content)}</p>')


def marked_pair(before: str, after: str, *, neutral: bool = False) -> tuple[Html, Html]:
    """Both texts as HTML, the words that only one of them has in <mark>. neutral: neither side looks the worse."""
    marks = ['<mark class="ft-either">'] * 2 if neutral else ['<mark class="ft-before">', "<mark>"]
    old, new = _words(before), _words(after)
    marked: tuple[list[str], list[str]] = ([], [])
    for same, left, right in _differences(old, new):
        for side, words, mark in ((marked[0], left, marks[0]), (marked[1], right, marks[1])):
            joined = "".join(words)
            inner = joined.strip()
            if same or not inner:
                side.append(text(joined))
            else:
                begin = joined.index(inner)
                end = joined[begin + len(inner) :]
                side.append(f"{joined[:begin]}{mark}{text(inner)}</mark>{end}")
    return Html("".join(marked[0])), Html("".join(marked[1]))


def samples(rows: Sequence[Mapping[str, Any]], *, limit: int = 10, mark: bool = True, neutral: bool = False) -> Html:
    """Rows of text for people to read, the first `limit` of them, saying how many there are.

    A row's `messages` are shown turn by turn, its other texts under their names, numbers in a line above. Two and more
    texts beside `prompt` and `expected` stand side by side, the one named `base` first; mark: in the last two the words
    that differ are marked; neutral: those two are no before and after, but of two runs, marked alike.
    """
    shown = rows[: max(limit, 0)]
    if not rows:
        return Html('<p class="ft-quiet">no rows</p>')
    more = "" if len(shown) == len(rows) else f'<p class="ft-quiet">{len(shown):,} of {len(rows):,} rows</p>'
    return Html("".join(_sample(row, mark, neutral) for row in shown) + more)


def _sample(row: Mapping[str, Any], mark: bool, neutral: bool) -> str:
    texts = {
        name: value for name, value in row.items() if isinstance(value, str) and name not in ("prompt", "expected")
    }
    about = [f"{text(_named(name))} {text(value)}" for name, value in row.items() if isinstance(value, int | float)]
    turns = [f'<div class="ft-turn"><span class="ft-name">{" · ".join(about)}</span></div>'] if about else []
    messages = row.get("messages") or (row.get("prompt") if isinstance(row.get("prompt"), list) else None)
    if messages:
        turns += [_message(message) for message in messages]
    elif isinstance(row.get("prompt"), str):
        turns.append(_turn("prompt", row["prompt"], "ft-prompt"))
    if isinstance(row.get("expected"), str):
        turns.append(_turn("expected", row["expected"], ""))
    if len(texts) < 2:
        turns += [_turn(_named(name), value, "") for name, value in texts.items()]
    else:
        turns.append(f'<div class="ft-sides">{_sides(texts, mark, neutral)}</div>')
    return f'<article class="ft-sample">{"".join(turns)}</article>'


def _sides(texts: Mapping[str, str], mark: bool, neutral: bool) -> str:
    """Answers side by side, the base's first; in the last two the words that differ are marked."""
    names = sorted(texts, key=lambda name: name != "base")
    pieces: dict[str, str] = {name: texts[name] for name in names}
    labels = {name: _named(name) for name in names}
    if mark:
        before, after = names[-2:]
        pieces[before], pieces[after] = marked_pair(texts[before], texts[after], neutral=neutral)
        labels[after] += f", the same as {labels[before]}" if texts[before] == texts[after] else ""
    return "".join(_turn(labels[name], pieces[name], "") for name in names)


def _message(message: Mapping[str, Any]) -> str:
    role = str(message.get("role", ""))
    content = message.get("content") or ""
    calls = message.get("tool_calls")
    said = content if isinstance(content, str) else str(content)
    return _turn(role, said + (f"\n{calls}" if calls else ""), "" if role == "assistant" else "ft-prompt")


def _turn(name: str, content: str, classes: str) -> str:
    said = text(content) or '<span class="ft-quiet">(nothing)</span>'
    return (
        f'<div class="ft-turn {classes}"><span class="ft-name">{text(name)}</span><p class="ft-said">{said}</p></div>'
    )


def _named(key: str) -> str:
    return key.replace("_", " ")


def _readable(content: str) -> str:
    """Without control characters, which HTML may not hold, and lone surrogates, which no file can."""
    return re.sub("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]", "\ufffd", content)


def _words(content: str) -> list[str]:
    return re.findall(r"\s+|\w+|[^\w\s]", content)


def _differences(old: list[str], new: list[str]) -> list[tuple[bool, list[str], list[str]]]:
    """(are they equal, words of the old, words of the new), in order; a lone space between two changes is one too."""
    if max(len(old), len(new)) > LONGEST_COMPARED:
        most = min(len(old), len(new))
        first = next((at for at in range(most) if old[at] != new[at]), most)
        last = next((at for at in range(most - first) if old[-1 - at] != new[-1 - at]), most - first)
        ends = len(old) - last, len(new) - last
        return [
            (True, old[:first], new[:first]),
            (False, old[first : ends[0]], new[first : ends[1]]),
            (True, old[ends[0] :], new[ends[1] :]),
        ]
    found: list[tuple[bool, list[str], list[str]]] = []
    codes = SequenceMatcher(None, old, new, autojunk=False).get_opcodes()
    for at, (kind, a, b, c, d) in enumerate(codes):
        between = 0 < at < len(codes) - 1 and not "".join(old[a:b]).strip()
        same = kind == "equal" and not between
        if found and not same and not found[-1][0]:
            found[-1] = (False, found[-1][1] + old[a:b], found[-1][2] + new[c:d])
        else:
            found.append((same, old[a:b], new[c:d]))
    return found
