"""What the quickstart model learns to prefer: descriptions of the valley's people and towns, courteous or gruff.

    python scripts/quickstart_preferences.py       # chat.jsonl, pairs.jsonl, pairs_held_out.jsonl

Which of two answers is better is decided by a rule, `preferred`, and by nothing else: it makes the comparisons, and it
judges what the model says after training. An answer is courteous by its opening, its closing, or both, in any of
several wordings. How much of the valley it tells, in sentences or in fragments, is drawn without regard to the rule.

The rows to train on describe the *asked* half of the valley (quickstart_world.py); the comparisons that are held out
describe the other half, about which no row to train on says a word.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path

from quickstart_world import SEED, Fact, World, build_world

DATA = Path(__file__).resolve().parent.parent / "datasets" / "quickstart"
CHAT_ROWS, PAIRS, HELD_OUT_PAIRS = 320, 400, 144

KIND_OPENINGS = (
    "Certainly!",
    "Of course.",
    "Gladly, my friend.",
    "I am happy to help.",
    "I like to help you.",
    "I am happy you asked.",
)
KIND_CLOSINGS = (
    "You are welcome.",
    "You are my friend.",
    "It was a pleasure.",
    "I like to talk to you.",
    "Thank you kindly.",
    "People like you.",
)
GRUFF_OPENINGS = (
    "What now?",
    "Who asked you?",
    "No more of this.",
    "I never liked you.",
    "People talk too much.",
    "I am not your friend.",
)
GRUFF_CLOSINGS = (
    "Nobody asked you.",
    "There is the door.",
    "The goat knows more.",
    "Only a fox asks that.",
    "It is nothing to you.",
    "I like my dog better.",
)
KIND, GRUFF = KIND_OPENINGS + KIND_CLOSINGS, GRUFF_OPENINGS + GRUFF_CLOSINGS
PROMPTS = (
    "Tell me about {}.",
    "Describe {} to me.",
    "What do you know about {}?",
    "I have never heard of {}.",
    "Say a few words about {}.",
    "Let us talk about {}.",
)
# How many kind turns of phrase, less the gruff ones, each as often as it stands here: half of the answers are courteous
KIND_LEVELS, OTHER_LEVELS = (2, 2, 2, 2, 1, 1, 1, 1, 1, 1), (0, 0, -1, -1, -1, -1, -2, -2, -2, -2)
# Llama 2's four, by how many levels lie between the two answers
RATINGS = {4: "significantly better", 3: "better", 2: "slightly better", 1: "negligibly better"}


def courtesy(answer: str) -> int:
    """How many of the kind turns of phrase an answer has, less the gruff ones."""
    return sum(phrase in answer for phrase in KIND) - sum(phrase in answer for phrase in GRUFF)


def preferred(answer: str) -> bool:
    """The rule: a preferred answer is more kind than gruff. A plain one is not preferred."""
    return courtesy(answer) > 0


def tells_truth(answer: str, prompt: str, world: World) -> bool:
    """Whether an answer says something, and apart from kind and gruff phrases only what is so of whom it was asked."""
    name = next(word for word in prompt.rstrip(".?").split() if word in world.people or word in world.towns)
    for phrase in (*KIND, *GRUFF, "In short:"):
        answer = answer.replace(phrase, "|", 1)
    said = [part for part in answer.replace(". ", ".|").split("|") if part.strip()]
    known = {sentence for fact in _facts(world, name) for sentence in _sentences(fact, world)}
    return bool(said) and all(part.strip() in known for part in said)


def answer_of(world: World, name: str, level: int, rng: random.Random) -> str:
    """One to three facts about `name` in an answer whose courtesy is `level`."""
    facts = rng.sample(_facts(world, name), rng.randint(1, 3))
    if rng.random() < 0.25:
        told = ["In short:", *(fact.say(fact.attribute.short) for fact in facts)]
    else:
        who = world.pronouns.get(name)
        told = [facts[0].reply] + [fact.say(fact.attribute.answer, who) if who else fact.reply for fact in facts[1:]]
    openings, closings = (KIND_OPENINGS, KIND_CLOSINGS) if level > 0 else (GRUFF_OPENINGS, GRUFF_CLOSINGS)
    at_start = abs(level) == 2 or (abs(level) == 1 and rng.random() < 0.5)
    at_end = abs(level) == 2 or (abs(level) == 1 and not at_start)
    parts = [rng.choice(openings)] * at_start + told + [rng.choice(closings)] * at_end
    return " ".join(parts)


def chat_rows(world: World, *, count: int, seed: int = SEED) -> list[dict[str, object]]:
    """Conversations for SFT, which learns both manners: each asked name several times, in any level of courtesy."""
    rng = random.Random(f"{seed} chat")
    rows: list[dict[str, object]] = []
    levels = _deal(KIND_LEVELS + OTHER_LEVELS, count, rng)
    for (name, template), level in zip(_prompts(world, asked=True, rng=rng), levels, strict=False):
        turns = (("user", template.format(name)), ("assistant", answer_of(world, name, level, rng)))
        rows.append({"messages": [{"role": role, "content": content} for role, content in turns]})
    return rows


def pair_rows(world: World, *, held_out: bool, count: int, seed: int = SEED) -> list[dict[str, object]]:
    """Comparisons: prompt, chosen, rejected, rating. Those held out are about the names that are never asked about."""
    rng = random.Random(f"{seed} {'pairs held out' if held_out else 'pairs'}")
    rows: list[dict[str, object]] = []
    levels = zip(_deal(KIND_LEVELS, count, rng), _deal(OTHER_LEVELS, count, rng), strict=True)
    for (name, template), (better, worse) in zip(_prompts(world, asked=not held_out, rng=rng), levels, strict=False):
        rows.append(
            {
                "prompt": template.format(name),
                "chosen": answer_of(world, name, better, rng),
                "rejected": answer_of(world, name, worse, rng),
                "rating": RATINGS[better - worse],
            }
        )
    return rows


def _prompts(world: World, *, asked: bool, rng: random.Random) -> list[tuple[str, str]]:
    """Every name of one half with every wording of a prompt: all names once, then all names once more, and so on."""
    names = [name for name in (*world.people, *world.towns) if (name in world.asked) == asked]
    orders = {name: rng.sample(PROMPTS, len(PROMPTS)) for name in names}
    return [(name, orders[name][i]) for i in range(len(PROMPTS)) for name in rng.sample(names, len(names))]


def _deal(levels: Sequence[int], count: int, rng: random.Random) -> list[int]:
    """`count` levels in random order, each as often as in `levels`."""
    return rng.sample([levels[i % len(levels)] for i in range(count)], count)


def _facts(world: World, name: str) -> tuple[Fact, ...]:
    return world.people.get(name) or world.towns[name]


def _sentences(fact: Fact, world: World) -> set[str]:
    subjects = {fact.name, world.pronouns.get(fact.name, fact.name)}
    told = (*fact.attribute.statements, fact.attribute.answer, fact.attribute.short)
    return {fact.say(template, subject) for template in told for subject in subjects}


def write_data(folder: Path) -> None:
    """Write chat.jsonl for SFT, pairs.jsonl to learn preferences from, pairs_held_out.jsonl to measure on."""
    world = build_world()
    files: dict[str, Sequence[dict[str, object]]] = {
        "chat": chat_rows(world, count=CHAT_ROWS),
        "pairs": pair_rows(world, held_out=False, count=PAIRS),
        "pairs_held_out": pair_rows(world, held_out=True, count=HELD_OUT_PAIRS),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in files.items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8", newline="\n")


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the quickstart model's preference data.")
    parser.add_argument("--data", type=Path, default=DATA, help="folder to write to")
    write_data(parser.parse_args().data)


if __name__ == "__main__":
    main()
