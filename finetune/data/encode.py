"""From examples to token ids and a mask, by the family's own rendering: never by the tokenizer's template tags.

Rows are rendered first, then all their distinct texts are tokenised in two batches (those that lie on both sides of
the mask with character offsets, the others by the faster way without), then put together again.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace

from finetune.data.tokenizer import Pieces, Tokenizer
from finetune.errors import InputError
from finetune.families.base import Family, RenderError, Span, as_dialog
from finetune.shapes import Completion, Example, Message, Text


@dataclass(frozen=True)
class Encoded:
    """One example. input_ids: token ids, bos included. trained: 0 or 1 a token, of the same length.

    The mask says which tokens are learnt; the first token of a row has no prediction, whatever its mask says.
    """

    input_ids: list[int]
    trained: list[int]


@dataclass(frozen=True)
class _Special:
    id: int
    trained: bool


@dataclass(frozen=True)
class _Text:
    """One text to tokenise. parts: (character where it begins, trained), more than one only where the mask changes."""

    text: str
    parts: tuple[tuple[int, bool], ...]


def encode(
    examples: Sequence[Example],
    family: Family,
    tokenizer: Tokenizer,
    *,
    loss_on: str = "answers",
    system: str | None = None,
) -> list[Encoded | InputError]:
    """Ids and mask of every example, in order; in place of one that cannot be rendered, the error that says why.

    loss_on: "answers", or "all" for every token, whatever the rows' own marks say. system: the system prompt of
    conversations that have none.
    """
    laid_out: list[list[_Special | _Text] | InputError] = []
    for example in examples:
        try:
            laid_out.append(_layout(family.render(_with_system(example, family, system, answered=True)), tokenizer))
        except InputError as error:
            laid_out.append(error)
    pieces = _tokenise([row for row in laid_out if not isinstance(row, InputError)], tokenizer)
    whole = loss_on == "all"
    return [row if isinstance(row, InputError) else _assemble(row, pieces, whole) for row in laid_out]


def encode_prompt(example: Example, family: Family, tokenizer: Tokenizer, system: str | None = None) -> list[int]:
    """Ids up to where the answer begins: of a conversation that ends with the user, of a completion's prompt, of an
    open text. Raises RenderError.
    """
    spans = family.render(_with_system(example, family, system, answered=False), add_generation_prompt=True)
    row = _layout(spans, tokenizer)
    return _assemble(row, _tokenise([row], tokenizer), False).input_ids


def _with_system(example: Example, family: Family, system: str | None, *, answered: bool) -> Example:
    if system is None or not family.is_chat or isinstance(example, Text):
        return example
    if isinstance(example, Completion):
        example = as_dialog(example, answered=answered)
    if any(message.role == "system" for message in example.messages):
        return example
    return replace(example, messages=(Message("system", system), *example.messages))


def _layout(spans: Sequence[Span], tokenizer: Tokenizer) -> list[_Special | _Text]:
    """Spans to special ids and texts; neighbouring plain spans become one text. Raises RenderError."""
    row: list[_Special | _Text] = []
    words: list[str] = []
    parts: list[tuple[int, bool]] = []
    length = 0

    def close() -> None:
        nonlocal words, parts, length
        if length:
            row.append(_Text("".join(words), tuple(parts)))
        words, parts, length = [], [], 0

    for span in spans:
        if span.special or span.new_text:
            close()
        if span.special:
            if (index := tokenizer.id_of(span.text)) is None:
                raise RenderError(f"the tokenizer has no token {span.text}, which this row needs")
            row.append(_Special(index, span.trained))
        elif span.text:
            _check_encodable(span.text)
            if not parts or parts[-1][1] != span.trained:
                parts.append((length, span.trained))
            words.append(span.text)
            length += len(span.text)
    close()
    return row


def _check_encodable(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RenderError(
            f"character {error.start + 1} of the text is half of a pair (U+{ord(text[error.start]):04X}), which is no "
            "character: the file was cut or decoded wrongly there"
        ) from error


def _tokenise(rows: Sequence[list[_Special | _Text]], tokenizer: Tokenizer) -> dict[str, Pieces]:
    """Each distinct text once; with offsets only where some row cuts it."""
    cut: dict[str, bool] = {}
    for row in rows:
        for item in row:
            if isinstance(item, _Text):
                cut[item.text] = cut.get(item.text, False) or len(item.parts) > 1
    mixed = [text for text, is_cut in cut.items() if is_cut]
    even = [text for text, is_cut in cut.items() if not is_cut]
    found = dict(zip(mixed, tokenizer.encode_texts_with_offsets(mixed), strict=True))
    found.update((text, Pieces(ids, None)) for text, ids in zip(even, tokenizer.encode_texts(even), strict=True))
    return found


def _assemble(row: Sequence[_Special | _Text], pieces: dict[str, Pieces], whole: bool) -> Encoded:
    input_ids: list[int] = []
    trained: list[int] = []
    for item in row:
        if isinstance(item, _Special):
            input_ids.append(item.id)
            trained.append(int(item.trained))
        else:
            piece = pieces[item.text]
            input_ids += piece.ids
            trained += _mask(item, piece)
    return Encoded(input_ids, [1] * len(input_ids) if whole else trained)


def _mask(item: _Text, piece: Pieces) -> list[int]:
    """0 or 1 a token. A token that reaches from one part into the next belongs to the part in which it begins,
    but if all it has of that part is white space and the next is trained, to the next: the `▁blue` of an answer
    "blue" after a prompt that ends in a space is the answer's.
    """
    if len(item.parts) == 1 or piece.offsets is None:
        return [int(item.parts[0][1])] * len(piece.ids)
    flags: list[int] = []
    for (_, trained), (start, next_trained) in zip(item.parts, item.parts[1:], strict=False):
        cut = bisect_left(piece.offsets, (start, 0))
        if next_trained and cut > 0:
            begin, end = piece.offsets[cut - 1]
            if end > start and item.text[begin:start].isspace():
                cut -= 1
        flags += [int(trained)] * (cut - len(flags))
    return flags + [int(item.parts[-1][1])] * (len(piece.ids) - len(flags))
