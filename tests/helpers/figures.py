"""Jobs that do not draw: most tests of whole jobs are not about figures, which take a third of such a job's time."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from matplotlib.figure import Figure
from PIL import Image

_SAVE = Figure.savefig


def _blank(_figure: Figure, file: io.BytesIO, **_: Any) -> None:
    Image.new("RGB", (8, 8), "white").save(file, format="png")


@contextmanager
def undrawn() -> Iterator[None]:
    """In it, every figure is saved as a small empty picture."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", _blank)
        yield


@contextmanager
def drawn() -> Iterator[None]:
    """In it, figures are drawn although the module's are not."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", _SAVE)
        yield
