"""Colours, markers and helpers that all figures share, readable for colour-blind readers and in black-and-white print.

No information is in colour alone: markers, line styles, hatches, signs and codes repeat it. Matplotlib is imported where it is used, because its
import is slow.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from lingact.config.data import LanguagesConfig

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The palette of Okabe and Ito, which colour-blind people can distinguish.
BLACK, BLUE, ORANGE, GREEN, PINK = "#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7"
GROUP_LOOKS = {"reference": (BLACK, "-"), "high": (BLUE, "--"), "low": (ORANGE, "-")}
KIND_LOOKS = ((BLACK, "o"), (BLUE, "s"), (ORANGE, "^"), (GREEN, "D"), (PINK, "v"))
GROUP_NAMES = {"reference": "reference", "high": "high-resource", "low": "medium-to-low-resource"}
MARKERS = "os^DvPX*<>phd8"
WRITTEN_LAYERS = 16
"""Up to this number of layers, the cells of heatmaps show their values."""


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure.

    Args:
        width: in inches.
        height: in inches.
    """
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def layer_ticks(layers: Sequence[int]) -> tuple[list[int], list[int]]:
    """Rows and layer numbers for the ticks of an axis: at most fourteen."""
    step = -(-len(layers) // 14)
    rows = list(range(0, len(layers), step))
    return rows, [layers[row] for row in rows]


def zero_line(axes: "Axes", *, vertical: bool = False, label: str | None = None) -> None:
    """A dotted line at zero."""
    (axes.axvline if vertical else axes.axhline)(0, color="0.35", linestyle=":", linewidth=1.2, label=label, zorder=1)


def reach_of(cell: "pd.Series | pd.DataFrame") -> np.ndarray:
    """Distances from the estimate to the ends of its interval, at least 0: a percentile interval need not contain the estimate."""
    estimate, low, high = (np.atleast_1d(np.asarray(cell[name], float)) for name in ("estimate", "lo", "hi"))
    return np.maximum(0, [estimate - low, high - estimate])


def language_looks(languages: LanguagesConfig) -> dict[str, dict[str, str]]:
    """The mark of each language: colour and filling show its group, the shape identifies it within the group."""
    looks = {}
    for group, codes in (("high", languages.high), ("low", languages.low)):
        colour, _ = GROUP_LOOKS[group]
        for place, code in enumerate(codes):
            filling = "white" if group == "high" else colour
            looks[code] = {"color": colour, "marker": MARKERS[place % len(MARKERS)], "markerfacecolor": filling, "markeredgecolor": colour}
    return looks


def groups_note(codes: Iterable[str], languages: LanguagesConfig) -> str:
    """What hollow and filled marks mean, for the groups among these languages."""
    present = set(codes)
    words = (("hollow", "high", languages.high), ("filled", "low", languages.low))
    return "; ".join(f"{look}: {GROUP_NAMES[group]}" for look, group, members in words if present & set(members))
