"""OpenAssistant's trees: a prompt with nested replies, the assistant's of them ranked by people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetune.data.fields import Record, RowFault, kind_of
from finetune.shapes import Dialog, Message, Ranking

_ROLES = ("prompter", "assistant")


def rankings_of_tree(row: Record) -> list[tuple[Ranking, Mapping[str, Any]]]:
    """One ranking for every prompt with two or more ranked replies, its thread as prompt, with the prompt's other
    fields. Deleted messages, and what follows them, are left out; so are the ranks of replies that share one.

    Raises RowFault.
    """
    root = row.required("prompt")
    if not isinstance(root, Mapping):
        raise RowFault(f"should be a message with replies, is {kind_of(root)}", row.path("prompt"))
    found: list[tuple[Ranking, Mapping[str, Any]]] = []
    todo: list[tuple[Record, tuple[Message, ...]]] = [(Record(root, row.columns, f"{row.path('prompt')}."), ())]
    while todo:
        node, thread = todo.pop()
        if node.get("deleted") is True:
            continue
        role = node.text("role")
        if role != _ROLES[len(thread) % 2]:
            raise RowFault(f"should be {_ROLES[len(thread) % 2]}, is {role!r:.40}", node.path("role"))
        thread = (*thread, Message("user" if role == "prompter" else "assistant", node.text("text")))
        replies = _replies(node)
        todo += [(reply, thread) for reply in reversed(replies)]
        if role == "prompter" and len(answers := _by_rank(replies)) > 1:
            fields = {k: v for k, v in node.values.items() if v is None or isinstance(v, (str, int, float))}
            found.append((Ranking(Dialog(thread), answers), {k: v for k, v in fields.items() if k != "text"}))
    return found


def _replies(node: Record) -> list[Record]:
    replies = []
    for index, reply in enumerate(node.items("replies", required=False)):
        at = f"{node.path('replies')}[{index}]"
        if not isinstance(reply, Mapping):
            raise RowFault(f"should be a message, is {kind_of(reply)}", at)
        replies.append(Record(reply, node.columns, f"{at}."))
    return replies


def _by_rank(replies: list[Record]) -> tuple[tuple[Message, ...], ...]:
    """Answers, best (lowest rank) first; those without a rank, and those that share one, have no place in the order."""
    places: dict[int, list[str]] = {}
    for reply in replies:
        rank = reply.get("rank")
        if rank is None or reply.get("deleted") is True:
            continue
        if isinstance(rank, bool) or not isinstance(rank, (int, float)) or not float(rank).is_integer():
            raise RowFault(f"should be a whole number, 0 for the best, is {rank!r:.40}", reply.path("rank"))
        places.setdefault(int(rank), []).append(reply.text("text"))
    return tuple((Message("assistant", texts[0]),) for _, texts in sorted(places.items()) if len(texts) == 1)
