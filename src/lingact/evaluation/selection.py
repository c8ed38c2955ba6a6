"""Choose the items that are asked: the same ones in every language, whatever the order of the data. Pure: names in, places out."""

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class TaskItems:
    """The documents of one task."""

    language: str
    keys: Sequence[str | None]
    """Name of each item across languages; all None if items do not correspond."""
    strata: Sequence[str | None]
    """Stratum of each item; a limited selection keeps their proportions."""
    proofs: Sequence[str | None]
    """A value that is the same in every language for the same item; None if the data have none."""
    task: str = ""


@dataclass(frozen=True)
class Shared:
    """Items that several languages have."""

    languages: tuple[str, ...]
    """Languages whose items correspond."""
    keys: frozenset[str | None]


def corresponding(tasks: Sequence[TaskItems]) -> Shared | None:
    """The items that all languages have, by their names; None if no two languages correspond.

    A language without names is left out. So is one whose names mean other items: it disagrees with the first language on more than a hundredth of the
    proofs, or shares fewer than half of its names with it.
    """
    named: dict[str, dict[str | None, str | None]] = {}
    for task in tasks:
        if all(key is not None for key in task.keys):
            named.setdefault(task.language, {}).update(zip(task.keys, task.proofs, strict=True))
    several = {code: items for code, items in named.items() if not any(t.language == code and t.keys[0] is None for t in tasks)}
    # Start from the language that most others agree with, because the original may number its items differently.
    agreeing = [[code for code, items in several.items() if _agree(first, items)] for first in several.values()]
    languages = max(agreeing, key=len, default=[])
    if len(languages) < 2 and len({task.language for task in tasks}) > 1:
        return None
    return Shared(tuple(languages), frozenset.intersection(*(frozenset(several[code]) for code in languages))) if languages else None


def _agree(one: Mapping[str | None, str | None], other: Mapping[str | None, str | None]) -> bool:
    both = [(one[key], other[key]) for key in one.keys() & other.keys()]
    proofs = [(mine, yours) for mine, yours in both if mine is not None and yours is not None]
    wrong = sum(mine != yours for mine, yours in proofs)
    return 2 * len(both) >= min(len(one), len(other)) and 100 * wrong <= len(proofs)


def choose(tasks: Sequence[TaskItems], *, limit: int | None, only_shared: bool) -> tuple[Shared | None, list[list[int]]]:
    """Choose the documents to ask: the same items in every language, in proportion to their strata, whatever the order of the data.

    In each stratum, items are sorted by a hash of their names, and the first ones are taken. If the items of a language do not correspond to those of
    others, they are chosen by their places.

    Args:
        tasks: of one benchmark.
        limit: items to take in each language; None: no limit.
        only_shared: leave out items that not all languages have.

    Returns:
        The items that languages share, and for each task the places of its chosen documents, ascending.
    """
    shared = corresponding(tasks)
    corresponds = set(shared.languages) if shared else set()
    taken: dict[str, set[tuple[str, str | None]]] = {}
    if limit is not None:
        if shared:
            names = [
                ("", key, stratum)
                for task in tasks
                if task.language == shared.languages[0]
                for key, stratum in zip(task.keys, task.strata, strict=True)
            ]
            taken = dict.fromkeys(corresponds, _pick([name for name in names if name[1] in shared.keys], limit))
        for code in dict.fromkeys(task.language for task in tasks if task.language not in corresponds):
            own = [task for task in tasks if task.language == code]
            taken[code] = _pick([(task.task, str(place), stratum) for task in own for place, stratum in enumerate(task.strata)], limit)
    chosen = []
    for task in tasks:
        named = task.language in corresponds
        names = [("", key) if named else (task.task, str(place)) for place, key in enumerate(task.keys)]
        in_all = shared.keys if shared and named and only_shared else None
        kept = taken.get(task.language)
        chosen.append([place for place, name in enumerate(names) if (kept is None or name in kept) and (in_all is None or name[1] in in_all)])
    return shared, chosen


def _pick(names: Sequence[tuple[str, str | None, str | None]], limit: int) -> set[tuple[str, str | None]]:
    """The first items of each stratum in the order of their hash. Names are (task, key or place, stratum)."""
    by_stratum: dict[str, list[tuple[str, str | None]]] = defaultdict(list)
    for task, name, stratum in names:
        by_stratum[f"{task}/{stratum}"].append((task, name))
    count = allot({stratum: len(members) for stratum, members in by_stratum.items()}, limit)
    return {name for stratum, members in by_stratum.items() for name in sorted(members, key=_hash)[: count[stratum]]}


def _hash(name: tuple[str, str | None]) -> str:
    return hashlib.sha256(f"item {name[0]} {name[1]}".encode()).hexdigest()


def allot(sizes: Mapping[str, int], limit: int | None) -> dict[str, int]:
    """How many items to take from each stratum: in proportion, rounded by largest remainders, `limit` in total."""
    total = sum(sizes.values())
    if limit is None or limit >= total:
        return dict(sizes)
    exact = {stratum: limit * size / total for stratum, size in sizes.items()}
    taken = {stratum: int(share) for stratum, share in exact.items()}
    by_remainder = sorted(sizes, key=lambda stratum: (taken[stratum] - exact[stratum], stratum))
    for stratum in by_remainder[: limit - sum(taken.values())]:
        taken[stratum] += 1
    return taken
