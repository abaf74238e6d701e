"""Checks of the 25 kinds of instructions of IFEval (Zhou et al. 2023, arXiv 2311.07911), ours, by its published rules.

Each says whether an answer does what one instruction asked for. Where its reference code leans on other libraries, ours
goes its own way: sentences are counted by a rule here (there: nltk's punkt), words in capitals are what stands between
spaces (there: nltk's words), and the language is told by script and frequent words (language.py; there: langdetect).
An empty answer follows nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from finetune.evaluation.language import LANGUAGES, is_in

Arguments = Mapping[str, Any]
Check = Callable[[str, Arguments], bool]

RELATIONS = ("at least", "less than")
CHOICES = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
_SHORTENED = (
    "mr mrs ms dr prof sr jr st vs etc e.g i.e inc ltd corp vol fig dept approx est u.s u.k a.m p.m p.s p.p.s "
    "jan feb mar apr jun jul aug sep sept oct nov dec"
)
_ABBREVIATIONS = frozenset(_SHORTENED.split())
_OPENING, _CLOSING = "([\"'*_\u2018\u201c", ")]\"'*_\u2019\u201d"
"""Brackets, quotation marks and markdown round a word or behind the mark that ends a sentence."""
_STOP = re.compile(rf"([.!?\u2026\u3002\u0964]+)[{re.escape(_CLOSING)}]*(?=\s|$)")


def follows(instruction: str, arguments: Arguments, answer: str) -> bool:
    """Whether `answer` follows an instruction that `problem` finds nothing wrong with."""
    return bool(answer.strip()) and INSTRUCTIONS[instruction].check(answer, arguments)


def follows_loosely(instruction: str, arguments: Arguments, answer: str) -> bool:
    """Whether the answer follows it, or would without its first line, its last line, or both (an introduction, a
    closing), as it is or without its asterisks (markdown)."""
    lines = answer.split("\n")
    cuts = (lines, lines[1:], lines[:-1], lines[1:-1])
    texts = [answer, *("\n".join(cut).strip() for cut in cuts[1:])]
    return any(follows(instruction, arguments, text) for one in texts for text in (one, one.replace("*", "")))


def problem(instruction: str, arguments: Arguments) -> str | None:
    """What is wrong with an instruction of a prompt file, None where it can be checked."""
    if instruction not in INSTRUCTIONS:
        return f"there is no checker for '{instruction}'; there are {', '.join(INSTRUCTIONS)}"
    for name in INSTRUCTIONS[instruction].needs:
        value = arguments.get(name)
        kind = _KINDS.get(name, str)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)) or value in ("", []):
            return f"{instruction} needs {name}, {_CALLED[kind]}; it is {value!r:.40}"
        if name.endswith("relation") and value not in RELATIONS:
            return f"{instruction}: {name} is 'at least' or 'less than', not {value!r:.40}"
        if name == "language" and value not in LANGUAGES:
            return f"{instruction}: {value!r:.20} is not among the languages that are told apart: {_listed(LANGUAGES)}"
        if isinstance(value, list) and not all(isinstance(entry, str) and entry for entry in value):
            return f"{instruction} needs {name}, a list of words"
    return None


def _listed(names: frozenset[str]) -> str:
    return ", ".join(sorted(names))


def _holds(count: int, relation: str, wanted: int) -> bool:
    return count >= wanted if relation == "at least" else count < wanted


def count_sentences(text: str) -> int:
    """Sentences by their closing marks; a rest without one counts too. Abbreviations, initials, numbers of lists and an
    ellipsis that goes on in a small letter end none; neither does a line break."""
    count, rest = 0, 0
    for stop in _STOP.finditer(text):
        word = text[rest : stop.start()].split()[-1:] or [""]
        before = word[0].lower().lstrip(_OPENING)
        after = text[stop.end() :].lstrip()
        if not after:
            break
        mark = stop.group(1)
        goes_on = after[0].islower()
        line = text[: stop.start()].rpartition("\n")[2].strip()
        is_number = before.isdigit() and line in (before, f"({before}")
        is_short = before in _ABBREVIATIONS or (len(before) == 1 and before.isalpha() and before != "i")
        if (mark == "." and (is_short or is_number or goes_on)) or (mark in ("...", "\u2026") and goes_on):
            continue
        count, rest = count + 1, stop.end()
    return count + bool(re.search(r"\w", text[rest:]))


def count_words(text: str) -> int:
    """Runs of letters, digits and underscores, as the reference counts: "it's" is two."""
    return len(re.findall(r"\w+", text))


def _capital_words(text: str, a: Arguments) -> bool:
    found = sum(word.isupper() for word in text.split())
    return _holds(found, a["capital_relation"], a["capital_frequency"])


def _parts(text: str, divider: str) -> list[str] | None:
    """What stands between dividers; an empty first or last part is none. None where one in the middle is empty."""
    parts = [part.strip() for part in text.split(divider)]
    if len(parts) > 1 and not parts[0]:
        parts = parts[1:]
    if len(parts) > 1 and not parts[-1]:
        parts = parts[:-1]
    return parts if all(parts) else None


def _two_responses(text: str, a: Arguments) -> bool:
    parts = _parts(text, "******")
    return parts is not None and len(parts) == 2 and parts[0] != parts[1]


def _paragraphs(text: str, a: Arguments) -> bool:
    parts = _parts(text, "***")
    return parts is not None and len(parts) == a["num_paragraphs"]


def _nth_paragraph(text: str, a: Arguments) -> bool:
    paragraphs = text.split("\n\n")
    count, place = sum(bool(part.strip()) for part in paragraphs), a["nth_paragraph"]
    if count != a["num_paragraphs"] or not 1 <= place <= count or not paragraphs[place - 1].strip():
        return False
    word = re.split(r"[.,?!'\"]", paragraphs[place - 1].split()[0].lstrip("'").lstrip('"'))[0]
    return word.lower() == a["first_word"].lower()


def _postscript(text: str, a: Arguments) -> bool:
    """The marker, whatever its case, with or without spaces after its stops."""
    letters = [re.escape(part) for part in a["postscript_marker"].lower().split(".")]
    return re.search(r"\.\s?".join(part.strip() for part in letters), text.lower()) is not None


def _bullets(text: str, a: Arguments) -> bool:
    """Lines that begin with a star (two would be bold print) or a hyphen."""
    lines = [line.strip() for line in text.splitlines()]
    stars = sum(line.startswith("*") and not line.startswith("**") and len(line) > 1 for line in lines)
    return stars + sum(line.startswith("-") for line in lines) == a["num_bullets"]


def _highlights(text: str, a: Arguments) -> bool:
    """*One* and **two** stars, on one line and with something between; two count once for each kind they fit."""
    found = re.findall(r"\*([^\n*]*)\*", text) + re.findall(r"\*\*([^\n*]*)\*\*", text)
    return sum(bool(part.strip()) for part in found) >= a["num_highlights"]


def _sections(text: str, a: Arguments) -> bool:
    return len(re.findall(re.escape(a["section_spliter"].strip()) + r"\s?\d+", text)) >= a["num_sections"]


def _title(text: str, a: Arguments) -> bool:
    return any(title.strip("<> ") for title in re.findall(r"<<[^\n]+>>", text))


def _json(text: str, a: Arguments) -> bool:
    """The whole answer, or all of it within markdown's three ticks."""
    inside = re.fullmatch(r"```(?:json)?(.*?)(?:```)?", text.strip(), re.DOTALL | re.IGNORECASE)
    try:
        json.loads(inside.group(1) if inside else text)
    except (ValueError, RecursionError):
        return False
    return True


def _keywords(text: str, a: Arguments) -> bool:
    """Anywhere, within longer words too, whatever their case."""
    return all(word.strip().lower() in text.lower() for word in a["keywords"])


def _frequency(text: str, a: Arguments) -> bool:
    return _holds(text.lower().count(a["keyword"].strip().lower()), a["relation"], a["frequency"])


def _forbidden(text: str, a: Arguments) -> bool:
    """As whole words only."""
    return not any(re.search(rf"\b{re.escape(word)}\b", text, re.IGNORECASE) for word in a["forbidden_words"])


def _letters(text: str, a: Arguments) -> bool:
    return _holds(text.lower().count(a["letter"].lower()), a["let_relation"], a["let_frequency"])


def _ends(text: str, a: Arguments) -> bool:
    return text.strip().strip('"').lower().endswith(a["end_phrase"].strip().lower())


def _quoted(text: str, a: Arguments) -> bool:
    bare = text.strip()
    return len(bare) > 1 and bare[0] == bare[-1] == '"'


@dataclass(frozen=True)
class Instruction:
    """needs: names of its arguments in a prompt file."""

    check: Check
    needs: tuple[str, ...] = ()


_COUNTS = ("frequency", "num_", "nth_", "let_frequency", "capital_frequency")
INSTRUCTIONS: Mapping[str, Instruction] = {
    "change_case:capital_word_frequency": Instruction(_capital_words, ("capital_relation", "capital_frequency")),
    "change_case:english_capital": Instruction(lambda text, a: text.isupper() and is_in(text, "en")),
    "change_case:english_lowercase": Instruction(lambda text, a: text.islower() and is_in(text, "en")),
    "combination:repeat_prompt": Instruction(
        lambda text, a: text.strip().lower().startswith(a["prompt_to_repeat"].strip().lower()), ("prompt_to_repeat",)
    ),
    "combination:two_responses": Instruction(_two_responses),
    "detectable_content:number_placeholders": Instruction(
        lambda text, a: len(re.findall(r"\[.*?\]", text)) >= a["num_placeholders"], ("num_placeholders",)
    ),
    "detectable_content:postscript": Instruction(_postscript, ("postscript_marker",)),
    "detectable_format:constrained_response": Instruction(lambda text, a: any(choice in text for choice in CHOICES)),
    "detectable_format:json_format": Instruction(_json),
    "detectable_format:multiple_sections": Instruction(_sections, ("section_spliter", "num_sections")),
    "detectable_format:number_bullet_lists": Instruction(_bullets, ("num_bullets",)),
    "detectable_format:number_highlighted_sections": Instruction(_highlights, ("num_highlights",)),
    "detectable_format:title": Instruction(_title),
    "keywords:existence": Instruction(_keywords, ("keywords",)),
    "keywords:forbidden_words": Instruction(_forbidden, ("forbidden_words",)),
    "keywords:frequency": Instruction(_frequency, ("keyword", "relation", "frequency")),
    "keywords:letter_frequency": Instruction(_letters, ("letter", "let_relation", "let_frequency")),
    "language:response_language": Instruction(lambda text, a: is_in(text, a["language"]), ("language",)),
    "length_constraints:nth_paragraph_first_word": Instruction(
        _nth_paragraph, ("num_paragraphs", "nth_paragraph", "first_word")
    ),
    "length_constraints:number_paragraphs": Instruction(_paragraphs, ("num_paragraphs",)),
    "length_constraints:number_sentences": Instruction(
        lambda text, a: _holds(count_sentences(text), a["relation"], a["num_sentences"]), ("relation", "num_sentences")
    ),
    "length_constraints:number_words": Instruction(
        lambda text, a: _holds(count_words(text), a["relation"], a["num_words"]), ("relation", "num_words")
    ),
    "punctuation:no_comma": Instruction(lambda text, a: "," not in text),
    "startend:end_checker": Instruction(_ends, ("end_phrase",)),
    "startend:quotation": Instruction(_quoted),
}
_KINDS: Mapping[str, type] = {
    name: list if name in ("keywords", "forbidden_words") else int if name.startswith(_COUNTS) else str
    for instruction in INSTRUCTIONS.values()
    for name in instruction.needs
}
_CALLED: Mapping[type, str] = {int: "a whole number", str: "a text", list: "a list of words"}
