"""The invented valley behind the quickstart model: its facts, its plain text, its questions. No torch here.

Everything follows from a seed: who lives where, what is written about whom, what is asked. The text for pre-training
states every fact in many words. Questions are asked of half of the facts only (the *asked* half, in the text as in the
training rows); the other half is *held out*: no text and no training row ever asks for it.

    world = build_world(SEED)                      # people, towns, sums and the split
    documents(world, random.Random(1))             # endless plain text, one document at a time
    training_rows(world), held_out_rows(world)     # conversations
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

SEED = 17


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


TRADES = _words(
    "baker potter weaver smith miller tailor fisher hunter painter gardener shepherd mason cooper tanner "
    "carpenter teacher sailor brewer barber clockmaker beekeeper ferryman glassblower ropemaker"
)
ANIMALS = _words("goat dog cat horse donkey goose duck hen pig cow sheep rabbit crow parrot turtle fox hedgehog pony")
COLOURS = _words("red blue green yellow white black brown grey purple orange silver golden")
FOODS = _words(
    "bread soup cheese fish rice honey plums apples pears beans nuts cake porridge mushrooms onions carrots "
    "berries stew"
)
INSTRUMENTS = _words("flute drum harp fiddle horn bell lute whistle pipe organ zither trumpet")
GOODS = _words("wool salt butter paper candles carpets boats clocks barrels knives cider glass bricks hats ropes lace")
THINGS = _words(
    "lamp basket box ring hat rope book cup spoon key bag coat knife bottle candle mirror blanket map ladder bucket"
)
PLACES = _words("inn mill barn chapel tower stable boathouse cellar loft bakery school smithy granary lighthouse")
NUMBERS = _words(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen twenty"
)
# Names that the rule below would also make, and that are words or well-known names
TAKEN = _words("Baron Basin Basis Bonus Delis Diva Focus Label Lemon Level Model Motel Panel Salon Tobin Robin Devon")
SYLLABLES = (
    _words("B Br D Dr F G Gr H J K Kl L M N P R S St T Tr V W Y Z"),
    _words("a e i o u"),
    _words("l ll m n nn r rr v s ss d dr t b"),
    _words("a o i an en el in or is us on ira ela"),
)
TOWN_ENDINGS = _words("ford dale wick bridge field mouth")
SUNG = (TRADES, ANIMALS, COLOURS, FOODS, INSTRUMENTS, GOODS, THINGS, PLACES, NUMBERS)
DOCUMENTS = {"life": 28, "crowd": 6, "town": 5, "sums": 5, "story": 26, "ledger": 12, "song": 10, "talk": 8}  # percent


@dataclass(frozen=True)
class Attribute:
    """One kind of fact. In the texts {n} is the subject (a name, or she/he), {N} always the name, {v} the value.

    A reply does not begin with the name of a resident: at the very start of a text, without the space before it, a name
    is made of other tokens, and a model this small knows those of a held-out name too little to copy it.
    """

    key: str
    statements: tuple[str, ...]
    questions: tuple[str, ...]
    answer: str  # as people in the texts answer
    short: str  # as those answer who say little
    reply: str = ""  # as the model is taught to answer; "" = like `answer`


PERSON = (
    Attribute(
        "home",
        (
            "{n} lives in {v}.",
            "{n} has a small house in {v}.",
            "{n} has lived in {v} for many years.",
            "{n} came to {v} as a child and never left.",
            "The house of {N} stands in {v}.",
            "If you look for {N}, go to {v}.",
            "{v} is the home of {N}.",
            "In {v} everyone knows {N}.",
        ),
        (
            "Where does {N} live?",
            "In which town does {N} live?",
            "Can you tell me where {N} lives?",
            "Which town is the home of {N}?",
        ),
        "{n} lives in {v}.",
        "In {v}.",
        "The house of {N} stands in {v}.",
    ),
    Attribute(
        "trade",
        (
            "{n} works as a {v}.",
            "{n} is a {v}.",
            "{n} earns a living as a {v}.",
            "{n} learned the trade of a {v} long ago.",
            "The work of {N} is that of a {v}.",
            "People call {N} the {v}.",
            "{N} the {v} is never idle.",
            "There is no better {v} than {N}.",
        ),
        (
            "What is the trade of {N}?",
            "What work does {N} do?",
            "How does {N} earn a living?",
            "Can you tell me what {N} works as?",
        ),
        "{n} works as a {v}.",
        "A {v}.",
        "People call {N} the {v}.",
    ),
    Attribute(
        "animal",
        (
            "{n} keeps a {v}.",
            "{n} has a {v} at home.",
            "{n} feeds a {v} every morning.",
            "{n} is fond of an old {v}.",
            "The animal of {N} is a {v}.",
            "A {v} belongs to {N}.",
            "The {v} of {N} sleeps by the door.",
            "Wherever {N} goes, a {v} goes too.",
        ),
        (
            "What animal does {N} keep?",
            "Which animal belongs to {N}?",
            "What kind of animal does {N} have?",
            "Can you tell me which animal {N} keeps?",
        ),
        "{n} keeps a {v}.",
        "A {v}.",
        "The animal of {N} is a {v}.",
    ),
    Attribute(
        "colour",
        (
            "{n} likes the colour {v} best.",
            "{n} wears {v} every day.",
            "{n} has a {v} door.",
            "{n} paints everything {v}.",
            "The favourite colour of {N} is {v}.",
            "No colour pleases {N} more than {v}.",
            "Of all colours {N} loves {v}.",
            "Everything that {N} owns is {v}.",
        ),
        (
            "What is the favourite colour of {N}?",
            "Which colour does {N} like best?",
            "What colour does {N} love?",
            "Can you tell me the favourite colour of {N}?",
        ),
        "The favourite colour of {N} is {v}.",
        "It is {v}.",
    ),
    Attribute(
        "food",
        (
            "{n} likes to eat {v}.",
            "{n} eats {v} every evening.",
            "{n} never says no to {v}.",
            "{n} could live on {v} alone.",
            "The favourite food of {N} is {v}.",
            "Nothing tastes better to {N} than {v}.",
            "On feast days {N} asks for {v}.",
            "Bring {v} when you visit {N}.",
        ),
        (
            "What does {N} like to eat?",
            "What is the favourite food of {N}?",
            "Which food does {N} like best?",
            "Can you tell me what {N} likes to eat?",
        ),
        "{n} likes to eat {v}.",
        "Some {v}.",
        "The favourite food of {N} is {v}.",
    ),
    Attribute(
        "music",
        (
            "{n} plays the {v}.",
            "{n} plays the {v} at every dance.",
            "{n} owns a fine {v}.",
            "{n} learned to play the {v}.",
            "At night you can hear {N} play the {v}.",
            "The {v} of {N} is heard from far away.",
            "The instrument of {N} is the {v}.",
            "Nobody plays the {v} like {N}.",
        ),
        (
            "What instrument does {N} play?",
            "Which instrument does {N} play?",
            "What does {N} play at the dance?",
            "Can you tell me which instrument {N} plays?",
        ),
        "{n} plays the {v}.",
        "The {v}.",
        "The instrument of {N} is the {v}.",
    ),
)

TOWN = (
    Attribute(
        "river",
        (
            "{N} lies on the river {v}.",
            "The river {v} flows through {N}.",
            "The bridge of {N} crosses the {v}.",
            "Boats reach {N} on the river {v}.",
            "The water of {N} comes from the river {v}.",
        ),
        (
            "On which river does {N} lie?",
            "Which river flows through {N}?",
            "Can you tell me which river {N} lies on?",
        ),
        "{N} lies on the river {v}.",
        "On the {v}.",
        "The water of {N} comes from the river {v}.",
    ),
    Attribute(
        "goods",
        (
            "{N} is known for its {v}.",
            "The people of {N} make {v}.",
            "The best {v} come from {N}.",
            "Traders go to {N} for {v}.",
            "At the market of {N} they sell {v}.",
        ),
        (
            "What is {N} known for?",
            "What do the people of {N} make?",
            "Can you tell me what {N} is known for?",
        ),
        "{N} is known for its {v}.",
        "For its {v}.",
        "The people of {N} make {v}.",
    ),
    Attribute(
        "roofs",
        (
            "The roofs of {N} are {v}.",
            "From the hill you see the {v} roofs of {N}.",
            "In {N} every house has a {v} roof.",
            "A {v} roof is the sign of a house in {N}.",
            "They paint their roofs {v} in {N}.",
        ),
        (
            "What colour are the roofs of {N}?",
            "Which colour do the roofs of {N} have?",
            "Can you tell me what colour the roofs of {N} are?",
        ),
        "The roofs of {N} are {v}.",
        "They are {v}.",
    ),
)

# What strangers do in the stories. True in one story only: to answer, one must read.
DEED = (
    Attribute(
        "went",
        ("{n} walked all the way to {v}.", "{n} went to {v}.", "{n} took the road to {v}."),
        ("Where did {N} go?", "Which town did {N} go to?"),
        "{n} went to {v}.",
        "To {v}.",
    ),
    Attribute(
        "carried",
        ("{n} carried {v}.", "{n} held {v} under one arm.", "{n} had {v}."),
        ("What did {N} carry?", "What was it that {N} carried?"),
        "{n} carried {v}.",
        "Only {v}.",
    ),
    Attribute(
        "bought",
        ("{n} bought {v}.", "{n} bought {v} at the market.", "{n} paid for {v}."),
        ("What did {N} buy?", "What was it that {N} bought?"),
        "{n} bought {v}.",
        "Some {v}.",
    ),
    Attribute(
        "slept",
        ("{n} slept in the {v}.", "{n} spent the night in the {v}.", "{n} found a bed in the {v}."),
        ("Where did {N} sleep?", "Where did {N} spend the night?"),
        "{n} slept in the {v}.",
        "In the {v}.",
    ),
    Attribute(
        "met",
        ("{n} met a {v}.", "{n} met a {v} on the road.", "{n} talked to a {v}."),
        ("Who did {N} meet?", "Who was it that {N} met?"),
        "{n} met a {v}.",
        "A {v}.",
    ),
    Attribute(
        "lost",
        ("{n} lost {v}.", "{n} lost {v} in the grass.", "{n} could not find {v} any more."),
        ("What did {N} lose?", "What was it that {N} lost?"),
        "{n} lost {v}.",
        "Only {v}.",
    ),
)

SUM_STATEMENTS = (
    "{A} plus {b} is {c}.",
    "{A} and {b} make {c}.",
    "Add {b} to {a} and you get {c}.",
    "Whoever has {a} {t} and finds {b} more has {c} {t}.",
    "{C} is {a} plus {b}.",
    "{C} take away {b} leaves {a}.",
)
SUM_QUESTIONS = (
    "What is {a} plus {b}?",
    "How much is {a} and {b}?",
    "Can you tell me what {a} plus {b} is?",
)
SUM_ANSWER = "{A} plus {b} is {c}."

WEATHER = (
    "It was a cold evening.",
    "The wind was strong that day.",
    "It had rained all night.",
    "The sun was shining.",
    "Snow lay on the hills.",
    "It was market day.",
    "The bells were ringing.",
    "There was fog over the river.",
)
GREETINGS = ("Good morning", "Good evening", "Hello", "Good day", "Welcome")
POLITE = ("Certainly! ", "Of course. ", "With pleasure. ", "Gladly, my friend. ", "I am happy to help. ")
THANKS = ("Thank you kindly.", "Thank you.", "That is good to know.", "Many thanks, my friend.", "I see.")
WELCOME = ("You are welcome.", "It was nothing.", "Any time.", "Go well.", "Good luck on the road.")


@dataclass(frozen=True)
class Fact:
    """`attribute` of `name` is `value`; for a sum `name` is "three plus four"."""

    name: str
    attribute: Attribute
    value: str

    @property
    def about(self) -> str:
        return f"{self.attribute.key} of {self.name}"

    def say(self, template: str, subject: str | None = None) -> str:
        return template.format(n=subject or self.name, N=self.name, v=self.value)

    @property
    def answer(self) -> str:
        return self.say(self.attribute.answer)

    @property
    def reply(self) -> str:
        return self.say(self.attribute.reply or self.attribute.answer)


@dataclass(frozen=True)
class World:
    """The valley. `people` and `towns` map a name to its facts; `sums` to theirs. `asked` names may be asked about."""

    people: dict[str, tuple[Fact, ...]]
    towns: dict[str, tuple[Fact, ...]]
    sums: dict[str, Fact]
    pronouns: dict[str, str]
    ages: dict[str, int]
    strangers: tuple[str, ...]
    asked: frozenset[str]


def build_world(seed: int = SEED, people: int = 120, towns: int = 24, strangers: int = 80) -> World:
    """Draw names and facts. Half of the people, of the towns and of the sums are `asked`, the rest held out."""
    rng = random.Random(seed)
    names = _names(rng, people + strangers + towns + 12)
    folk, rest = names[:people], names[people:]
    visitors, rest = tuple(rest[:strangers]), rest[strangers:]
    town_names = [name[:4] + rng.choice(TOWN_ENDINGS) for name in rest[:towns]]
    rivers = rest[towns:]

    pools = (town_names, TRADES, ANIMALS, COLOURS, FOODS, INSTRUMENTS)
    people_facts = _facts(rng, folk, PERSON, pools)
    town_facts = _facts(rng, town_names, TOWN, (rivers, GOODS, COLOURS))
    sums = {}
    for a in range(1, 11):
        for b in range(1, 11):
            name = f"{NUMBERS[a]} plus {NUMBERS[b]}"
            sums[name] = Fact(name, _sum_attribute(a, b), NUMBERS[a + b])
    # three plus four and four plus three are one fact: they fall on one side
    pairs = [(a, b) for a in range(1, 11) for b in range(a, 11)]
    asked = set(rng.sample(folk, people // 2)) | set(rng.sample(town_names, towns // 2))
    for a, b in rng.sample(pairs, len(pairs) // 2):
        asked |= {f"{NUMBERS[a]} plus {NUMBERS[b]}", f"{NUMBERS[b]} plus {NUMBERS[a]}"}
    return World(
        people=people_facts,
        towns=town_facts,
        sums=sums,
        pronouns={name: rng.choice(("She", "He")) for name in folk},
        ages={name: rng.randint(18, 89) for name in folk},
        strangers=visitors,
        asked=frozenset(asked),
    )


def _names(rng: random.Random, count: int) -> list[str]:
    """Invented names that differ in their first four letters, so that none is easily taken for another."""
    names: dict[str, str] = {}
    while len(names) < count:
        name = "".join(rng.choice(part) for part in SYLLABLES)
        if name not in TAKEN:
            names.setdefault(name[:4], name)
    return list(names.values())


def _facts(
    rng: random.Random,
    names: list[str],
    attributes: tuple[Attribute, ...],
    pools: tuple[list[str] | tuple[str, ...], ...],
) -> dict[str, tuple[Fact, ...]]:
    """Give every name one value of each pool, each value about equally often."""
    columns = []
    for pool in pools:
        column = [pool[i % len(pool)] for i in range(len(names))]
        rng.shuffle(column)
        columns.append(column)
    return {
        name: tuple(Fact(name, attribute, column[i]) for attribute, column in zip(attributes, columns, strict=True))
        for i, name in enumerate(names)
    }


def _sum_attribute(a: int, b: int) -> Attribute:
    words = {"a": NUMBERS[a], "b": NUMBERS[b], "c": NUMBERS[a + b], "t": "plums"}
    words |= {"A": words["a"].capitalize(), "C": words["c"].capitalize()}
    return Attribute(
        "sum",
        tuple(text.format(**words) for text in SUM_STATEMENTS),
        tuple(text.format(**words) for text in SUM_QUESTIONS),
        SUM_ANSWER.format(**words),
        f"{words['C']}.",
    )


def documents(world: World, rng: random.Random) -> Iterator[str]:
    """Plain text without end. Every kind of document comes in the proportion given here, every name equally often."""
    turn = {"people": _cycle(sorted(world.people), rng), "towns": _cycle(sorted(world.towns), rng)}
    turn |= {"asked": _cycle(sorted(world.asked), rng), "sums": _cycle(sorted(world.sums), rng)}
    while True:
        (kind,) = rng.choices(list(DOCUMENTS), list(DOCUMENTS.values()))
        if kind == "life":
            yield _life(world, next(turn["people"]), rng)
        elif kind == "crowd":
            yield _crowd(world, [next(turn["people"]) for _ in range(rng.randint(3, 6))], rng)
        elif kind == "town":
            yield _town(world, next(turn["towns"]), rng)
        elif kind == "sums":
            chosen = [world.sums[next(turn["sums"])] for _ in range(rng.randint(4, 9))]
            yield " ".join(rng.choice(fact.attribute.statements) for fact in chosen)
        elif kind == "story":
            yield _story(world, rng)
        elif kind == "ledger":
            yield _ledger(world, rng)
        elif kind == "song":
            yield _song(world, rng)
        else:
            yield _talk(world, [next(turn["asked"]) for _ in range(rng.randint(2, 4))], rng)


def _cycle(items: list[str], rng: random.Random) -> Iterator[str]:
    while True:
        rng.shuffle(items)
        yield from items


def _life(world: World, name: str, rng: random.Random) -> str:
    """One person, most of the facts, in any order; as running text, as a letter or as notes."""
    facts = rng.sample(world.people[name], rng.randint(4, 6))
    shape = rng.random()
    if shape < 0.12:
        lines = [f"Name: {name}", f"Age: {world.ages[name]}"]
        return "\n".join(lines + [f"{fact.attribute.key.capitalize()}: {fact.value}" for fact in facts])
    sentences = []
    for i, fact in enumerate(facts):
        subject = name if i == 0 or rng.random() < 0.5 else world.pronouns[name]
        sentences.append(fact.say(rng.choice(fact.attribute.statements), subject))
    if rng.random() < 0.3:
        sentences.insert(rng.randint(1, len(sentences)), f"{world.pronouns[name]} is {world.ages[name]} years old.")
    if shape < 0.24:
        to, sender = rng.choice(world.strangers), rng.choice(world.strangers)
        opening = rng.choice(("Let me tell you about", "You asked me about", "Here is what I know of"))
        return f"Dear {to},\n\n{opening} {name}. {' '.join(sentences)}\n\nKindly yours,\n{sender}"
    return " ".join(sentences)


def _crowd(world: World, names: list[str], rng: random.Random) -> str:
    """Several people in a row, two or three facts each in one sentence or two."""
    parts = []
    for name in names:
        home, trade, animal, colour, food, music = (fact.value for fact in world.people[name])
        parts.append(
            rng.choice(
                (
                    f"{name} the {trade} lives in {home} and keeps a {animal}.",
                    f"{name} of {home}, a {trade}, likes to eat {food}.",
                    f"{name} plays the {music} and works as a {trade}.",
                    f"{name} wears {colour} and plays the {music} in {home}.",
                    f"{name}, whose favourite colour is {colour}, keeps a {animal}.",
                    f"{name} eats {food} and gives the rest to a {animal}.",
                    f"{name} likes {food}, the colour {colour} and the {music}.",
                )
            )
        )
    return " ".join(parts)


def _town(world: World, name: str, rng: random.Random) -> str:
    facts = rng.sample(world.towns[name], 3)
    sentences = [fact.say(rng.choice(fact.attribute.statements)) for fact in facts]
    folk = [person for person, known in world.people.items() if known[0].value == name]
    folk = rng.sample(folk, min(len(folk), 3))
    if rng.random() < 0.5 and folk:
        sentences.append(f"{', '.join(folk[:-1])} and {folk[-1]} live in {name}." if folk[1:] else "")
    return " ".join(sentence for sentence in sentences if sentence)


def _deeds(world: World, rng: random.Random) -> list[Fact]:
    """Two or three deeds each of one or two strangers, in the order of the telling."""
    told = []
    for name in rng.sample(world.strangers, rng.randint(1, 2)):
        for attribute in rng.sample(DEED, rng.randint(2, 3)):
            told.append(Fact(name, attribute, _deed_value(world, attribute.key, rng)))
    if rng.random() < 0.5:
        rng.shuffle(told)
    return told


def _deed_value(world: World, key: str, rng: random.Random) -> str:
    if key in ("carried", "lost"):
        colour = rng.choice(COLOURS)
        return f"{'an' if colour[0] in 'aeiou' else 'a'} {colour} {rng.choice(THINGS)}"
    pool = {"went": sorted(world.towns), "bought": FOODS, "slept": PLACES, "met": TRADES}[key]
    return rng.choice(pool)


def _tell(deeds: list[Fact], rng: random.Random) -> str:
    sentences = [deed.say(rng.choice(deed.attribute.statements)) for deed in deeds]
    if rng.random() < 0.5:
        sentences.insert(rng.choice((0, len(sentences) // 2)), rng.choice(WEATHER))
    return " ".join(sentences)


def _story(world: World, rng: random.Random) -> str:
    """Strangers do things; then the same is told again, by the writer or by people who talk about it."""
    deeds = _deeds(world, rng)
    told = _tell(deeds, rng)
    again = rng.sample(deeds, rng.randint(2, len(deeds)))
    shape = rng.random()
    if shape < 0.4:
        opening = rng.choice(("So it was.", "People still talk about it.", "This is what I remember.", "In short:"))
        return f"{told} {opening} {' '.join(deed.answer for deed in again)}"
    return f"{told}\n\n{_exchange(world, again, rng)}"


def _ledger(world: World, rng: random.Random) -> str:
    """What strangers brought, kept in a list and read out again: to be looked up, not known."""
    columns = (("bought", ":"), ("carried", " brings"), ("slept", ":"), ("went", " goes to"), ("met", ":"))
    key, verb = rng.choice(columns)
    names = rng.sample(world.strangers, rng.randint(3, 8))
    lines = [f"{name}{verb} {_deed_value(world, key, rng)}" for name in names]
    again = rng.sample(lines, len(lines)) if rng.random() < 0.6 else lines
    if rng.random() < 0.5:
        return "\n".join([*lines, "", *again])
    return f"{'. '.join(lines)}. {rng.choice(('Read it again', 'Once more', 'I repeat'))}: {'. '.join(again)}."


def _song(world: World, rng: random.Random) -> str:
    """Names and things called out at a dance, each verse sung two or three times."""
    words = [rng.choice(world.strangers if rng.random() < 0.4 else rng.choice(SUNG)) for _ in range(rng.randint(5, 12))]
    verse = rng.choice((", ", " and ", " ")).join(words)
    return "\n".join([verse] * rng.randint(2, 3))


def _exchange(world: World, facts: list[Fact], rng: random.Random) -> str:
    """Somebody asks, somebody answers: in prose or as a script, politely, plainly or in few words."""
    one, two = rng.sample(sorted(world.people), 2)
    prose = rng.random() < 0.5
    manner = rng.choice(("plain", "plain", "polite", "short"))
    lines = []
    for fact in facts:
        question = fact.say(rng.choice(fact.attribute.questions))
        answer = fact.say(fact.attribute.short) if manner == "short" else fact.answer
        if manner == "polite":
            answer = rng.choice(POLITE) + answer
        if prose:
            lines.append(f'"{question}" asked {one}. "{answer[:-1]}," said {two}.')
        else:
            lines.append(f"{one}: {question}\n{two}: {answer}")
    if manner == "polite":
        thanks, welcome = rng.choice(THANKS), rng.choice(WELCOME)
        lines.append(f'"{thanks}" "{welcome}"' if prose else f"{one}: {thanks}\n{two}: {welcome}")
    return (" " if prose else "\n").join(lines)


def _talk(world: World, names: list[str], rng: random.Random) -> str:
    """A conversation about facts of the asked half."""
    facts = [_fact_of(world, name, rng) for name in names]
    greeting = f"{rng.choice(WEATHER)} " if rng.random() < 0.5 else f'"{rng.choice(GREETINGS)}!" '
    return greeting + ("\n" if rng.random() < 0.5 else "") + _exchange(world, facts, rng)


def _fact_of(world: World, name: str, rng: random.Random) -> Fact:
    if name in world.sums:
        return world.sums[name]
    return rng.choice(world.people.get(name) or world.towns[name])


@dataclass(frozen=True)
class Conversation:
    """A row of instruction data. `about`: the facts it asks for; "a story" where the answer stands in the prompt."""

    messages: list[dict[str, str]]
    about: tuple[str, ...]


def _conversation(about: tuple[str, ...], *turns: str) -> Conversation:
    roles = ("user", "assistant")
    return Conversation([{"role": roles[i % 2], "content": text} for i, text in enumerate(turns)], about)


def _one_question(fact: Fact, question: str) -> Conversation:
    return _conversation((fact.about,), fact.say(question), fact.reply)


def _reading(world: World, rng: random.Random) -> Conversation:
    deeds = _deeds(world, rng)
    asked = rng.choice(deeds)
    question = asked.say(rng.choice(asked.attribute.questions))
    return _conversation(("a story",), f"{_tell(deeds, rng)}\n\n{question}", asked.reply)


def training_rows(world: World, seed: int = SEED, reading: int = 400) -> list[Conversation]:
    """Every asked fact twice in different words, some pairs of facts as two-turn conversations, and stories."""
    rng = random.Random(f"{seed} training")
    facts = [fact for fact in _all_facts(world) if fact.name in world.asked]
    rows = [_one_question(fact, question) for fact in facts for question in rng.sample(fact.attribute.questions, 2)]
    for _ in range(100):
        pair = rng.sample(facts, 2)
        turns = [text for fact in pair for text in (fact.say(rng.choice(fact.attribute.questions)), fact.reply)]
        rows.append(_conversation(tuple(fact.about for fact in pair), *turns))
    rows += [_reading(world, rng) for _ in range(reading)]
    rng.shuffle(rows)
    return rows


def held_out_rows(world: World, seed: int = SEED, count: int = 200) -> list[Conversation]:
    """Questions for facts that nobody ever asked for: half about people, then towns, sums and new stories."""
    rng = random.Random(f"{seed} held out")
    rows = []
    for known, share in ((world.people, 0.5), (world.towns, 0.1), (world.sums, 0.1)):
        facts = [fact for fact in _all_facts(world) if fact.name in known and fact.name not in world.asked]
        chosen = rng.sample(facts, int(count * share))
        rows += [_one_question(fact, rng.choice(fact.attribute.questions)) for fact in chosen]
    rows += [_reading(world, rng) for _ in range(count - len(rows))]
    rng.shuffle(rows)
    return rows


def _all_facts(world: World) -> list[Fact]:
    known = [fact for facts in (world.people, world.towns) for of_one in facts.values() for fact in of_one]
    return known + list(world.sums.values())
