"""Which windows of text each set of SAEs is trained on, and in which order.

All sets read from one list of windows for each language, in one order. A set with less of a language takes windows that are spread evenly over what
the others take. So one forward pass serves all sets, and text that two sets share comes at the same moment of their training.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int

from lingact.config.saes import SaeMix
from lingact.errors import UserError

Rows = Int[np.ndarray, "window token"]


@dataclass(frozen=True)
class Schedule:
    """The windows in the order in which they are read, and which sets each is for."""

    language: Int[np.ndarray, " read"]
    """Place in `codes`."""
    window: Int[np.ndarray, " read"]
    """Place among the windows of the language; beyond their number they begin anew."""
    member: Bool[np.ndarray, "read set"]
    codes: tuple[str, ...]


def shares_of(mix: SaeMix, codes: Sequence[str]) -> dict[str, float]:
    """Language -> share of the tokens.

    Raises:
        UserError: a language that the text does not have.
    """
    if mix.mix == "equal":
        return {code: 1 / len(codes) for code in codes}
    assert isinstance(mix.mix, dict)
    unknown = [code for code in mix.mix if code not in codes]
    if unknown:
        raise UserError(f"mix: the text has no {', '.join(unknown)}; it has {', '.join(codes)}")
    return dict(mix.mix)


def most_windows(sets: Mapping[str, SaeMix], codes: Sequence[str], windows: int) -> dict[str, int]:
    """Language -> windows that the set with most of it needs.

    Args:
        windows: of each set.

    Raises:
        UserError: a language that the text does not have.
    """
    return dict(zip(codes, _wanted(sets, codes, windows).max(axis=0).tolist(), strict=True))


def _wanted(sets: Mapping[str, SaeMix], codes: Sequence[str], windows: int) -> Int[np.ndarray, "set language"]:
    return np.array([[round(windows * shares_of(mix, codes).get(code, 0.0)) for code in codes] for mix in sets.values()])


def make_schedule(sets: Mapping[str, SaeMix], available: Mapping[str, int], *, windows: int, epochs: int, window_tokens: int, seed: int) -> Schedule:
    """Lay out the windows of every set.

    Args:
        available: language -> windows of its training text.
        windows: of each set.
        epochs: how often a window may be read at most.
        window_tokens: of a window, for messages.
        seed: of the order in which languages follow each other.

    Raises:
        UserError: a language has too little text; the message gives figures.
    """
    codes = tuple(available)
    wanted = _wanted(sets, codes, windows)
    most = wanted.max(axis=0)
    lacking = [
        f"{code} has {available[code] * window_tokens:,} tokens to train on, and {most[place] * window_tokens:,} are wanted "
        f"(text.epochs={-(-int(most[place]) // max(1, available[code]))} would read them so often)"
        for place, code in enumerate(codes)
        if most[place] > available[code] * epochs
    ]
    if lacking:
        raise UserError(f"text: too little text: {'; '.join(lacking)}. Give more, or a smaller share, or fewer saes.tokens")
    random = np.random.default_rng(seed)
    language, window, member, moment = [], [], [], []
    for place, count in enumerate(most):
        if not count:
            continue
        at = np.arange(count)
        language.append(np.full(count, place))
        window.append(at)
        # Evenly spread: of every `most / wanted` windows in a row exactly one.
        member.append(np.stack([(at + 1) * own // count > at * own // count for own in wanted[:, place]], axis=1))
        moment.append((at + random.random(count)) / count)
    order = np.argsort(np.concatenate(moment), kind="stable")
    return Schedule(np.concatenate(language)[order], np.concatenate(window)[order], np.concatenate(member)[order], codes)
