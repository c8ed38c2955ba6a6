"""The knowledge base: the facts of the microworld, which languages state them, and which ones the benchmarks ask.

A fact is a triple (subjects, relation, object) over language-free word ids. Facts that imply each other (hot is the opposite of cold, and vice versa)
have the same `group`, so that they always have the same role:

- *taught* facts are stated in every frame of every language, to show what a question and its answer look like;
- *asked* facts appear in plain statements only, and their questions are the benchmarks. In the languages of `unread_in` they are
  not stated at all, so that a right answer there is transfer from the other languages.
"""

import random
from dataclasses import dataclass

from lingact.microworld import LANGUAGES

ASKED_SHARE = 0.4
UNREAD_LANGUAGES_PER_FACT = 3

# thing: kind, colour, place
THINGS = {
    "apple": ("fruit", "red", "kitchen"),
    "banana": ("fruit", "yellow", "market"),
    "pear": ("fruit", "green", "garden"),
    "cherry": ("fruit", "red", "farm"),
    "lemon": ("fruit", "yellow", "shop"),
    "coconut": ("fruit", "brown", "river"),
    "carrot": ("vegetable", "orange", "garden"),
    "potato": ("vegetable", "brown", "farm"),
    "cabbage": ("vegetable", "green", "market"),
    "garlic": ("vegetable", "white", "kitchen"),
    "cucumber": ("vegetable", "green", "shop"),
    "pumpkin": ("vegetable", "orange", "street"),
    "cow": ("animal", "pink", "farm"),
    "elephant": ("animal", "grey", "forest"),
    "cat": ("animal", "black", "library"),
    "sheep": ("animal", "white", "hospital"),
    "tiger": ("animal", "orange", "river"),
    "horse": ("animal", "brown", "street"),
    "crow": ("bird", "black", "station"),
    "swan": ("bird", "white", "river"),
    "parrot": ("bird", "green", "school"),
    "sparrow": ("bird", "brown", "street"),
    "duck": ("bird", "yellow", "hospital"),
    "owl": ("bird", "grey", "forest"),
    "shirt": ("clothing", "blue", "school"),
    "hat": ("clothing", "black", "library"),
    "shoe": ("clothing", "red", "station"),
    "coat": ("clothing", "grey", "hospital"),
    "sock": ("clothing", "pink", "shop"),
    "scarf": ("clothing", "yellow", "market"),
    "table": ("furniture", "white", "kitchen"),
    "chair": ("furniture", "blue", "library"),
    "bed": ("furniture", "pink", "hospital"),
    "cupboard": ("furniture", "brown", "school"),
    "bench": ("furniture", "green", "garden"),
    "shelf": ("furniture", "orange", "library"),
    "car": ("vehicle", "red", "street"),
    "bus": ("vehicle", "blue", "station"),
    "train": ("vehicle", "grey", "forest"),
    "boat": ("vehicle", "white", "market"),
    "bicycle": ("vehicle", "pink", "garden"),
    "plane": ("vehicle", "blue", "farm"),
    "hammer": ("tool", "black", "shop"),
    "knife": ("tool", "grey", "kitchen"),
    "needle": ("tool", "yellow", "station"),
    "axe": ("tool", "orange", "forest"),
    "saw": ("tool", "pink", "river"),
    "brush": ("tool", "blue", "school"),
}
WOMEN = ("anna", "maria", "lucia", "rosa", "olga", "dewi", "sita", "meera", "nuria", "mei")
MEN = ("peter", "ivan", "marco", "carlos", "boris", "budi", "ravi", "arun", "jordi", "wei")
PEOPLE = WOMEN + MEN
CITIES = ("london", "beijing", "moscow", "madrid", "rome", "jakarta", "barcelona", "mumbai", "kochi", "delhi")
JOBS = ("teacher", "doctor", "farmer", "cook", "driver", "singer", "painter", "tailor", "baker", "gardener")
OPPOSITES = (
    ("big", "small"), ("hot", "cold"), ("long", "short"), ("new", "old"), ("good", "bad"), ("high", "low"), ("fast", "slow"),
    ("strong", "weak"), ("clean", "dirty"), ("wet", "dry"), ("heavy", "light"), ("full", "empty"), ("open", "closed"),
    ("rich", "poor"), ("hard", "soft"), ("thick", "thin"), ("near", "far"), ("early", "late"), ("sweet", "bitter"),
    ("happy", "sad"),
)  # fmt: skip
DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
MONTHS = ("january", "february", "march", "april", "may", "june", "july", "august", "september", "october", "november", "december")
NUMBERS = tuple(f"n{i}" for i in range(1, 21))
PRICES = NUMBERS[4:14]
KINDS = tuple(dict.fromkeys(kind for kind, _, _ in THINGS.values()))
COLOURS = tuple(dict.fromkeys(colour for _, colour, _ in THINGS.values()))
PLACES = tuple(dict.fromkeys(place for _, _, place in THINGS.values()))

# Benchmark -> its frame and relations. `q` is a question with its answer, `h` a narrative to complete.
BENCHMARKS = {
    "arc": ("q", ("kind", "colour", "place", "home", "job", "month")),
    "hellaswag": ("h", ("kind", "colour", "place", "home", "job", "month")),
    "mmlu": ("q", ("price", "opposite", "after", "before", "sum")),
}


@dataclass(frozen=True)
class Fact:
    """One true statement: `slots` fill the frames of `relation`, `answer` is one of the word ids in `options`."""

    relation: str
    slots: tuple[tuple[str, str], ...]
    answer: str
    options: tuple[str, ...]
    group: str
    asked: bool = False
    unread_in: frozenset[str] = frozenset()

    @property
    def id(self) -> str:
        """A language-free name, the same in every build."""
        return "-".join((self.relation, *(word for _, word in self.slots)))


def _plain_facts(rng: random.Random) -> list[Fact]:
    facts = []
    for thing, (kind, colour, place) in THINGS.items():
        subject = (("s", thing),)
        facts.append(Fact("kind", subject, kind, KINDS, f"kind-{thing}"))
        facts.append(Fact("colour", subject, colour, COLOURS, f"colour-{thing}"))
        facts.append(Fact("place", subject, place, PLACES, f"place-{thing}"))
        facts.append(Fact("price", subject, rng.choice(PRICES), PRICES, f"price-{thing}"))
    for person in PEOPLE:
        subject = (("s", person),)
        facts.append(Fact("home", subject, rng.choice(CITIES), CITIES, f"home-{person}"))
        facts.append(Fact("job", subject, rng.choice(JOBS), JOBS, f"job-{person}"))
        facts.append(Fact("month", subject, rng.choice(MONTHS), MONTHS, f"month-{person}"))
    adjectives = tuple(word for pair in OPPOSITES for word in pair)
    for one, other in OPPOSITES:
        facts.append(Fact("opposite", (("s", one),), other, adjectives, f"opposite-{one}"))
        facts.append(Fact("opposite", (("s", other),), one, adjectives, f"opposite-{one}"))
    for family, cyclic in ((DAYS, True), (MONTHS, True), (NUMBERS, False)):
        for i in range(len(family) if cyclic else len(family) - 1):
            first, second = family[i], family[(i + 1) % len(family)]
            facts.append(Fact("after", (("s", first),), second, family, f"sequence-{first}"))
            facts.append(Fact("before", (("s", second),), first, family, f"sequence-{first}"))
    for a in range(1, 7):
        for b in range(a, 13 - a):
            answer = f"n{a + b}"
            facts.append(Fact("sum", (("a", f"n{a}"), ("b", f"n{b}")), answer, NUMBERS[:12], f"sum-{a}-{b}"))
    return facts


def facts(seed: int) -> list[Fact]:
    """All facts with their roles, which are drawn for whole groups, separately for each kind of group.

    Args:
        seed: determines prices, homes, jobs and birthdays, which facts are asked, and in which languages these are not stated.
    """
    rng = random.Random(seed)
    plain = _plain_facts(rng)
    groups: dict[str, list[str]] = {}
    for fact in plain:
        members = groups.setdefault(fact.group.split("-")[0], [])
        if fact.group not in members:
            members.append(fact.group)
    unread: dict[str, frozenset[str]] = {}
    for members in groups.values():
        chosen = rng.sample(members, round(ASKED_SHARE * len(members)))
        for turn, group in enumerate(chosen):
            unread[group] = frozenset(LANGUAGES[(UNREAD_LANGUAGES_PER_FACT * turn + k) % len(LANGUAGES)] for k in range(UNREAD_LANGUAGES_PER_FACT))
    return [
        Fact(f.relation, f.slots, f.answer, f.options, f.group, asked=f.group in unread, unread_in=unread.get(f.group, frozenset())) for f in plain
    ]


# Sentences that state no fact: the words that may fill the slots of each event frame of the lexicons.
EVENTS = {
    "see": {"p": PEOPLE, "t": tuple(THINGS)},
    "buy": {"p": PEOPLE, "t": tuple(THINGS), "w": DAYS},
    "meet": {"p": PEOPLE, "q": PEOPLE, "l": PLACES},
    "go": {"p": PEOPLE, "l": PLACES, "w": DAYS},
    "give": {"p": PEOPLE, "t": tuple(THINGS), "q": PEOPLE},
    "find": {"p": PEOPLE, "t": tuple(THINGS), "u": tuple(THINGS)},
    "coins": {"p": PEOPLE, "n": PRICES},
    "help": {"p": PEOPLE, "q": PEOPLE, "w": DAYS},
    "sing": {"p": PEOPLE, "q": PEOPLE, "l": PLACES},
    "draw": {"p": PEOPLE, "t": tuple(THINGS), "u": tuple(THINGS)},
}


@dataclass(frozen=True)
class Event:
    """A sentence of the frame `event` with its slots filled by word ids."""

    event: str
    slots: tuple[tuple[str, str], ...]

    @property
    def id(self) -> str:
        """A language-free name, the same in every build."""
        return "-".join((self.event, *(word for _, word in self.slots)))


def draw_event(rng: random.Random) -> Event:
    """A random event, uniform over frames; no word fills two slots of it."""
    name = rng.choice(tuple(EVENTS))
    slots: list[tuple[str, str]] = []
    for slot, words in EVENTS[name].items():
        used = {word for _, word in slots}
        slots.append((slot, rng.choice([word for word in words if word not in used])))
    return Event(name, tuple(slots))
