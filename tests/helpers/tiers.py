"""Parameters of the fast tier and of the slow one, where the same test takes more draws or more cases in the slow tier."""

from collections.abc import Sequence
from typing import Any

import pytest


def tiers(quick: Any, full: Any) -> list[Any]:
    """Values to parametrise a test with: `quick` in `make test`, `full` in `make test-all`, too."""
    return [quick, pytest.param(full, marks=pytest.mark.slow)]


def first_of(cases: Sequence[Any]) -> list[Any]:
    """Cases that take the same path through the code: the first in `make test`, all of them in `make test-all`."""
    return [cases[0], *(pytest.param(case, marks=pytest.mark.slow) for case in cases[1:])]


def tolerance(at_full: float, *, full: int, draws: int) -> float:
    """The tolerance of a simulation's share or mean with fewer draws than the full test takes.

    It grows as the standard error does, with the root of their number; and twice as far, since what is expected was found with the full number.
    """
    return at_full if draws == full else 2 * at_full * (full / draws) ** 0.5
