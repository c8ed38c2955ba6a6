"""PEFT."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_deprecation_warning() -> Iterator[None]:
    """While open, wrapping a model gives no warnings about code of PEFT's own.

    Versions: peft 0.18 to 0.21.2 with transformers 5.23.
    Reason: PEFT reads by a deprecated name whether transformers recomputes activations.
    Upstream: none known.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        yield
