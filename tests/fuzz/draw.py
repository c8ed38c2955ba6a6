"""The same examples everywhere: in one process, as commands, and whatever has been imported before."""

from collections.abc import Callable, Hashable, Iterable
from contextlib import suppress
from typing import TypeVar
from unittest import mock

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.internal.conjecture import providers
from hypothesis.strategies import SearchStrategy

T = TypeVar("T")


class _Enough(Exception):
    pass


def examples(strategy: SearchStrategy[T], count: int, parts: Callable[[T], Iterable[Hashable]]) -> list[T]:
    """So many examples of a strategy, by a fixed seed; no two of them have a part in common.

    A plain list, and not `@given` on the tests, since the tests in one process, the commands and the record are to have the same examples.
    """
    drawn: list[T] = []
    seen: set[Hashable] = set()

    @seed(14)
    @settings(max_examples=50 * count, database=None, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(strategy)
    def keep(example: T) -> None:
        if len(drawn) == count:
            raise _Enough
        new = set(parts(example))
        if not new & seen:  # hypothesis likes to vary what it has drawn
            drawn.append(example)
            seen.update(new)

    # Hypothesis also draws constants of whatever modules are imported: then the examples would depend on the code under test.
    with mock.patch.object(providers, "_get_local_constants", return_value=providers.Constants()), suppress(_Enough):
        keep()
    assert len(drawn) == count, f"the strategy has {len(drawn)} examples, fewer than {count}"
    return drawn
