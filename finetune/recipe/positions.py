"""YAML read with positions: the values of a document, and the line and column of each key and list entry.

Scalars follow the YAML 1.2 core schema: `2e-4` and `1E5` are numbers, `010` is ten, only true and false are booleans
(`no`, `on` are text), dates are text. Keys are always text. Duplicate keys, merge keys (`<<`), tags of other
languages and endless aliases are problems; problems are collected, not raised, so that all are seen at once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from finetune.errors import Problem

KeyPath = tuple[str | int, ...]
"""Keys and list indexes (from 0) from the top of the document: ("stages", "sft", "data", 0, "path")."""

_TAG = "tag:yaml.org,2002:"
_PLAIN_SCALARS = (
    (f"{_TAG}null", re.compile(r"^(?:~|null|Null|NULL|)$")),
    (f"{_TAG}bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$")),
    (f"{_TAG}int", re.compile(r"^(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$")),
    (
        f"{_TAG}float",
        re.compile(
            r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
            r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
        ),
    ),
)
_MAX_VALUES = 100_000
"""A recipe has some hundred values. More come only from aliases of aliases, which would fill the memory."""
_MAX_DEPTH = 40


class _CoreLoader(yaml.BaseLoader):
    """PyYAML's parser with the YAML 1.2 core schema for plain scalars; values are built below, not by PyYAML."""


for _tag, _pattern in _PLAIN_SCALARS:
    _CoreLoader.add_implicit_resolver(_tag, _pattern, None)


@dataclass(frozen=True)
class Position:
    """Both count from 1."""

    line: int
    column: int


@dataclass
class Document:
    """`value` is None after a syntax error. A mapping with duplicate keys keeps the first of each."""

    value: Any = None
    positions: dict[KeyPath, Position] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


def key_path_text(path: KeyPath) -> str:
    """("stages", "sft", "data", 0) as it is written in messages: stages.sft.data[0]."""
    text = ""
    for key in path:
        text += f"[{key}]" if isinstance(key, int) else f".{key}" if text else key
    return text


def position_at(positions: Mapping[KeyPath, Position], path: KeyPath) -> Position | None:
    """The position of the key path or, where it is not in the file, of the nearest section round it."""
    for length in range(len(path), -1, -1):
        if found := positions.get(path[:length]):
            return found
    return None


def value_at(data: Any, path: KeyPath) -> Any:
    """The value at the key path, None where there is none."""
    for key in path:
        if isinstance(data, Mapping):
            data = data.get(key)
        else:
            data = data[key] if isinstance(data, list | tuple) and isinstance(key, int) and key < len(data) else None
    return data


def read_yaml(text: str) -> Document:
    """Read one YAML document. Problems carry lines; nothing is raised for what the text holds."""
    document = Document()
    try:
        root = yaml.compose(text, Loader=_CoreLoader)
    except yaml.MarkedYAMLError as error:
        document.problems.append(_syntax_problem(error, text))
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        document.problems.append(Problem(f"the character U+{error.character:04X} is not allowed in YAML", "", line))
    except RecursionError:
        document.problems.append(Problem("lists or sections are nested too deeply to be a recipe"))
    else:
        if root is not None:
            document.positions[()] = _position(root)
            document.value = _Builder(document).build(root, ())
    return document


def plain_scalar(text: str) -> Any:
    """The value that unquoted text has in YAML: `2e-4` → 0.0002, `true` → True, `yes` → "yes"."""
    tag = next((tag for tag, pattern in _PLAIN_SCALARS if pattern.match(text)), f"{_TAG}str")
    return _scalar(tag, text)


def _scalar(tag: str, text: str) -> Any:
    match tag.removeprefix(_TAG):
        case "null":
            return None
        case "bool":
            return text.lower() == "true"
        case "int":
            return int(text, 0) if text.startswith(("0o", "0x")) else int(text)
        case "float":
            return float(re.sub(r"\.(?=inf|nan)", "", text.lower()))
        case _:
            return text


def _joined(text: str) -> str:
    """JSON writes characters beyond U+FFFF as two escapes, which YAML reads as two halves. Raises
    UnicodeDecodeError where one half is alone: such text cannot be encoded later."""
    if not any("\ud800" <= letter <= "\udfff" for letter in text):
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le")


class _Builder:
    """Turns nodes into values, writing positions and problems into the document as it goes."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.open: set[int] = set()
        self.count = 0
        self.stopped = False

    def build(self, node: yaml.Node, path: KeyPath) -> Any:
        self.count += 1
        if self.count > _MAX_VALUES or len(path) > _MAX_DEPTH:
            if not self.stopped:
                self._problem("aliases or nesting make this too large to be a recipe", path, node)
            self.stopped = True
        if self.stopped:
            return None
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path)
        if id(node) in self.open:
            self._problem("this alias contains itself", path, node)
            return None
        self.open.add(id(node))
        try:
            return self._sequence(node, path) if isinstance(node, yaml.SequenceNode) else self._mapping(node, path)
        finally:
            self.open.remove(id(node))

    def _scalar(self, node: yaml.ScalarNode, path: KeyPath) -> Any:
        try:
            if node.tag in {f"{_TAG}{name}" for name in ("null", "bool", "int", "float", "str")}:
                return _scalar(node.tag, _joined(node.value))
        except UnicodeDecodeError:
            self._problem("half of a surrogate pair is no character", path, node)
            return None
        except ValueError:  # !!int abc, or more digits than Python reads
            self._problem(f"'{node.value[:40]}' is no {node.tag.removeprefix(_TAG)}", path, node)
            return None
        self._tag_problem(node, path)
        return None

    def _sequence(self, node: yaml.SequenceNode, path: KeyPath) -> list[Any]:
        if node.tag != f"{_TAG}seq":
            self._tag_problem(node, path)
        values = []
        for index, child in enumerate(node.value):
            self.document.positions[(*path, index)] = _position(child)
            values.append(self.build(child, (*path, index)))
        return values

    def _mapping(self, node: yaml.Node, path: KeyPath) -> dict[str, Any]:
        if node.tag != f"{_TAG}map":
            self._tag_problem(node, path)
        values: dict[str, Any] = {}
        for key_node, child in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self._problem("a key must be plain text, not a list or section", path, key_node)
                continue
            key = key_node.value
            if key == "<<" and key_node.style is None:
                self._problem("merge keys (<<) are not part of the recipe language: write the keys out", path, key_node)
            elif key in values:
                first = self.document.positions[(*path, key)].line
                self._problem(f"duplicate key: '{key}' is already on line {first}", (*path, key), key_node)
            else:
                self.document.positions[(*path, key)] = _position(key_node)
                values[key] = self.build(child, (*path, key))
        return values

    def _tag_problem(self, node: yaml.Node, path: KeyPath) -> None:
        tag = "!!" + node.tag.removeprefix(_TAG) if node.tag.startswith(_TAG) else node.tag
        self._problem(f"the tag {tag} is not part of the recipe language", path, node)

    def _problem(self, message: str, path: KeyPath, node: yaml.Node) -> None:
        self.document.problems.append(Problem(message, key_path_text(path), _position(node).line))


def _position(node: yaml.Node) -> Position:
    return Position(node.start_mark.line + 1, node.start_mark.column + 1)


_SYNTAX = (  # part of PyYAML's words → ours
    (r"found character '\\t'", "a tab cannot indent YAML", "use spaces"),
    (r"found character .* that cannot start any token", "text that begins with this character needs quotes", None),
    (
        r"mapping values are not allowed here",
        "a ':' is not allowed here",
        "check the indentation of this line and the one above; text that contains ': ' needs quotes",
    ),
    (r"could not find expected ':'", "a key without ':'", "write key: value, with a space after the colon"),
    (r"found unexpected end of stream", "a quote{began} is not closed", None),
    (r"expected ',' or ", "a '[' or '{{'{began} is not closed, or a comma is missing", None),
    (r"found undefined alias", "this alias has no anchor above it", "text that begins with '*' needs quotes"),
    (r"expected a single document", "a second document begins here", "a recipe is one document: remove the '---'"),
    (
        r"expected <block end>|did not find expected key",
        "this line does not fit the lines above it",
        "check its indentation",
    ),
)


def _syntax_problem(error: yaml.MarkedYAMLError, text: str) -> Problem:
    said = " ".join(part for part in (error.context, error.problem) if part)
    mark = error.problem_mark or error.context_mark
    line = mark.line + 1 if mark else None
    if line is not None and line > 1 and line > len(text.splitlines()):
        line = len(text.splitlines())  # the end of the file: name a line that one can go to
    began = ""
    if error.context_mark and mark and error.context_mark.line != mark.line:
        began = f" opened on line {error.context_mark.line + 1}"
    for pattern, message, hint in _SYNTAX:
        if re.search(pattern, said):
            return Problem(f"not valid YAML: {message.format(began=began)}", "", line, hint)
    return Problem(f"not valid YAML: {said}", "", line)
