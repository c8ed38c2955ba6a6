"""PEFT."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_deprecation_warning() -> Iterator[None]:
    """While open, wrapping a model warns of nothing that PEFT itself has to change.

    Versions: peft 0.18 to 0.21.2 with transformers 5.23.
    Reason: PEFT asks transformers by a deprecated name whether activations are recomputed.
    Upstream: none known.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        yield
