"""Figures of training: gaps before and after, and losses over steps."""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Int

from lingact.figures.style import BLUE, ORANGE, layer_ticks, new_figure, reach_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MULTIPLIER = "multiplier"
_MOST_BARS = 12
"""Most layers that are drawn as bars. With more, bars would be too thin for their hatches, and curves are drawn."""
_ACROSS = 3
"""Panels in a row."""
_SMOOTHED_FROM = 40
"""Smallest number of steps for which a smoothed curve is added."""


class _Look(NamedTuple):
    quantity: str
    label: str
    filling: str
    hatch: str
    line: str
    marker: str
    stroke: str


_LOOKS = (
    _Look("gap_before", "before", "0.85", "", "0.45", "o", ":"),
    _Look("gap_after", "after", BLUE, "", BLUE, "s", "-"),
    _Look("gap_after_norm_matched", "after, norm-matched", "#F0C48A", "////", ORANGE, "^", "--"),
)


def change_bars(frame: pd.DataFrame) -> "Figure":
    """Gap per layer before training, after it, and after it with residual norms of the base model.

    There is a row of panels for each language and a column for each set of SAEs.

    Args:
        frame: `changes.change_table` of the languages to show.
    """
    frame = frame[frame["quantity"].isin([look.quantity for look in _LOOKS])]
    sae_sets, codes = list(dict.fromkeys(frame["sae_set"])), list(dict.fromkeys(frame["language"]))
    layers = sorted(set(frame["layer"]))
    figure = new_figure(min(5.6, max(3.6, 1.2 + 0.34 * len(layers))) * len(sae_sets), 0.9 + 2.1 * len(codes))
    panels = figure.subplots(len(codes), len(sae_sets), sharex=True, sharey=True, squeeze=False)
    for (row, column), axes in np.ndenumerate(panels):
        cells = frame[(frame["language"] == codes[row]) & (frame["sae_set"] == sae_sets[column])]
        draw = _bars if len(layers) <= _MOST_BARS else _curves
        for number, look in enumerate(_LOOKS):
            own = cells[cells["quantity"] == look.quantity]
            draw(axes, np.array([layers.index(layer) for layer in own["layer"]]), own, look, number)
        axes.axhline(0, color="black", linewidth=0.8)
        axes.set_xticks(*layer_ticks(layers))
        axes.grid(axis="y", color="0.92")
        axes.set_axisbelow(True)
        axes.set_title(f"{codes[row]}, {sae_sets[column]} SAEs", fontsize=10)
    figure.supxlabel("layer", fontsize=10)
    figure.supylabel("gap (positive: falls short)", fontsize=10)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False, fontsize=9)
    return figure


def _bars(axes: "Axes", places: Int[np.ndarray, " layer"], cells: pd.DataFrame, look: _Look, number: int) -> None:
    at = places + (number - 1) * 0.28
    axes.bar(at, cells["estimate"], width=0.28, color=look.filling, hatch=look.hatch, edgecolor="black", linewidth=0.6, label=look.label)
    axes.errorbar(at, cells["estimate"], yerr=reach_of(cells), fmt="none", color="black", linewidth=0.9, capsize=2)


def _curves(axes: "Axes", places: Int[np.ndarray, " layer"], cells: pd.DataFrame, look: _Look, number: int) -> None:
    at = places + (number - 1) * 0.12  # so that error bars do not hide each other
    style = {"color": look.line, "marker": look.marker, "linestyle": look.stroke, "markersize": 4, "linewidth": 1.3, "elinewidth": 0.9}
    axes.errorbar(at, cells["estimate"], yerr=reach_of(cells), label=look.label, **style)


def loss_curves(frame: pd.DataFrame) -> "Figure":
    """Raw value of every loss term over the steps, a panel for each, and the multiplier of the retention terms if it was balanced.

    Args:
        frame: a column `step`, one for each term, and optionally `multiplier`.
    """
    names = [name for name in frame.columns if name != "step"]
    across = min(_ACROSS, max(1, len(names)))
    down = -(-max(1, len(names)) // across)
    figure = new_figure(3.6 * across, 2.8 * down)
    panels = figure.subplots(down, across, squeeze=False).flat
    for axes, name in zip(panels, names, strict=False):
        own = frame[["step", name]].dropna()
        smooth = name != MULTIPLIER and len(own) >= _SMOOTHED_FROM
        axes.plot(own["step"], own[name], color="0.65" if smooth else BLUE, linewidth=0.8 if smooth else 1.4, label="each step")
        if smooth:
            window = max(5, len(own) // 20)
            middle = own[name].rolling(window, center=True, min_periods=1).median()
            axes.plot(own["step"], middle, color=BLUE, linewidth=1.6, label=f"median of {window}")
            axes.legend(frameon=False, fontsize=8)
        axes.set_title("multiplier of retention" if name == MULTIPLIER else f"{name} (raw)", fontsize=10)
        axes.set_xlabel("step")
        axes.set_ylim(bottom=min(0, own[name].min()) if len(own) else 0)
        axes.grid(color="0.92")
        axes.set_axisbelow(True)
    for axes in list(figure.axes)[len(names) :]:
        axes.set_visible(False)
    return figure
