"""A disk that is full."""

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def files_of_at_most(count: int) -> Iterator[None]:
    """A limit on the size of files, which a write meets as it meets a full disk: in the middle."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (count, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def limited(real: Callable[..., Any], call: int, count: int) -> Callable[..., Any]:
    """The function; during the given call of it files cannot be larger than so many bytes."""
    calls = iter(range(1, 1000))

    def function(*given: Any, **more: Any) -> Any:
        with files_of_at_most(count if next(calls) == call else resource.RLIM_INFINITY):
            return real(*given, **more)

    return function
