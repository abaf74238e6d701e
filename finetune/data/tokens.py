"""Examples to stored tokens: each distinct example once, in batches, cached by all that the tokens depend on."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import finetune.families.base
from finetune.data import encode as encoding
from finetune.data import tokenizer as tokenizing
from finetune.data.encode import encode
from finetune.data.store import TokenRows, cache_key, load_or_make, pack
from finetune.data.tokenizer import Tokenizer
from finetune.errors import InputError
from finetune.families.base import Family
from finetune.shapes import Completion, Dialog, Example, Message, Text, ToolCall

_BATCH = 2048
"""Examples tokenised at once: enough for every core, and the token lists of one batch stay below some 100 MB."""
_SAY_SECONDS = 10.0

_TOOL = {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {"x": {"type": "string"}}}}
_PROBES: tuple[Example, ...] = (
    Text("a"),
    Completion("a", "b"),
    Dialog((Message("user", "a"), Message("assistant", "b"))),
    Dialog((Message("user", "a", context="c"), Message("assistant", "b"))),
    Dialog((Message("system", "s"), *(Message("user", "a"), Message("assistant", " b ")) * 2)),
    Dialog(
        (
            Message("user", "a"),
            Message("assistant", "b", trained=False),
            Message("user", "a"),
            Message("assistant", "b"),
        )
    ),
    Dialog(
        (
            Message("user", "a"),
            Message("assistant", "", (ToolCall("f", {"x": "1"}),)),
            Message("tool", "{}"),
            Message("assistant", "b"),
        ),
        (_TOOL,),
    ),
)
"""One example of every kind, rendered into the cache's key."""


class EncodeErrors(Exception):
    """Examples that the family has no form for, by their key; on its way to the list of bad rows."""

    def __init__(self, errors: Mapping[bytes, InputError]) -> None:
        self.errors = errors
        super().__init__(f"{len(errors)} examples cannot be rendered")


def tokenise(
    examples: Mapping[bytes, Example],
    family: Family,
    tokenizer: Tokenizer,
    *,
    loss_on: str,
    system: str | None,
    cache: Path | None,
    say: Callable[[str], None],
) -> TokenRows:
    """Tokens of distinct examples, whole, in the order of the mapping, which is by content_key. Raises EncodeErrors.

    What the stage does with long rows is no part of this: they are stored whole, and cut or left out of a view.
    """
    policy = repr((loss_on, system))
    key = cache_key([*examples, tokenizer.fingerprint, rendering_key(family), policy])

    def make() -> TokenRows:
        return pack(_encoded(examples, family, tokenizer, loss_on, system, say))

    return load_or_make(cache, key, make, say)


def rendering_key(family: Family) -> str:
    """sha256 of how a family renders: its template, its rendering of one example of every kind, and the code itself.

    The code is part of it so that no change of a template, however small, can meet tokens that were made before it.
    """
    digest = hashlib.sha256(f"{family.name}\0{family.chat_template()}\0".encode())
    for probe in _PROBES:
        try:
            digest.update(repr(family.render(probe)).encode())
        except InputError as error:
            digest.update(str(error).encode())
    folder = Path(finetune.families.base.__file__).parent
    files = [path for path in sorted(folder.iterdir()) if path.suffix in (".py", ".jinja")]
    for path in [*files, *(Path(str(module.__file__)) for module in (encoding, tokenizing))]:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _encoded(
    examples: Mapping[bytes, Example],
    family: Family,
    tokenizer: Tokenizer,
    loss_on: str,
    system: str | None,
    say: Callable[[str], None],
) -> Iterator[tuple[Sequence[int], Sequence[int]]]:
    keys, values = list(examples), list(examples.values())
    errors: dict[bytes, InputError] = {}
    began = said = time.monotonic()
    for start in range(0, len(keys), _BATCH):
        batch = encode(values[start : start + _BATCH], family, tokenizer, loss_on=loss_on, system=system)
        for key, item in zip(keys[start:], batch, strict=False):
            if isinstance(item, InputError):
                errors[key] = item
            else:
                yield item.input_ids, item.trained
        now = time.monotonic()
        if now - said > _SAY_SECONDS:
            said, done = now, start + len(batch)
            say(f"tokens: {done:,} of {len(keys):,} rows, {done / (now - began):,.0f} rows/s")
    if errors:
        raise EncodeErrors(errors)
