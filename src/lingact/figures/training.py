"""What training did: gaps before and after, losses over steps."""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from lingact.figures.style import BLUE, layer_ticks, new_figure, reach_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def change_bars(frame: pd.DataFrame) -> "Figure":
    """Gap per layer before, after, and after on residuals of the base's norm: a column for each language, a row for each meter.

    Args:
        frame: `changes.change_table` of the languages to show, several meters below each other.
    """
    looks = {
        "gap_before": ("before", "0.85", ""),
        "gap_after": ("after", BLUE, ""),
        "gap_after_norm_matched": ("after, norm-matched", "#F0C48A", "////"),
    }
    frame = frame[frame["quantity"].isin(looks)]
    meters, codes = list(dict.fromkeys(frame["meter"])), list(dict.fromkeys(frame["language"]))
    layers = sorted(set(frame["layer"]))
    figure = new_figure(min(16.0, max(5.5, (1.2 + 0.34 * len(layers)) * len(codes))), 0.8 + 2.5 * len(meters))
    panels = figure.subplots(len(meters), len(codes), sharex=True, sharey=True, squeeze=False)
    for (row, column), axes in np.ndenumerate(panels):
        cells = frame[(frame["meter"] == meters[row]) & (frame["language"] == codes[column])]
        for number, (quantity, (label, colour, hatch)) in enumerate(looks.items()):
            own = cells[cells["quantity"] == quantity]
            places = [layers.index(layer) + (number - 1) * 0.28 for layer in own["layer"]]
            axes.bar(places, own["estimate"], width=0.28, color=colour, hatch=hatch, edgecolor="black", linewidth=0.6, label=label)
            axes.errorbar(places, own["estimate"], yerr=reach_of(own), fmt="none", color="black", linewidth=0.9, capsize=0 if len(layers) > 12 else 2)
        axes.axhline(0, color="black", linewidth=0.8)
        axes.set_xticks(*layer_ticks(layers))
        axes.grid(axis="y", color="0.92")
        axes.set_axisbelow(True)
        axes.set_title(f"{codes[column]}, {meters[row]} SAEs", fontsize=10)
    figure.supxlabel("layer", fontsize=10)
    figure.supylabel("gap (positive: falls short)", fontsize=10)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False, fontsize=9)
    return figure


def loss_curves(frame: pd.DataFrame) -> "Figure":
    """Raw value of every loss term over the steps, a panel for each.

    Args:
        frame: a column `step` and one for each term.
    """
    terms = [name for name in frame.columns if name != "step"]
    figure = new_figure(3.6 * max(1, len(terms)), 2.8)
    for term, axes in zip(terms, figure.subplots(1, len(terms), squeeze=False)[0], strict=True):
        smooth = len(frame) >= 40
        axes.plot(frame["step"], frame[term], color="0.65" if smooth else BLUE, linewidth=0.8 if smooth else 1.4, label="each step")
        if smooth:
            window = max(5, len(frame) // 20)
            axes.plot(
                frame["step"],
                frame[term].rolling(window, center=True, min_periods=1).median(),
                color=BLUE,
                linewidth=1.6,
                label=f"median of {window}",
            )
            axes.legend(frameon=False, fontsize=8)
        axes.set_title(f"{term} (raw)", fontsize=10)
        axes.set_xlabel("step")
        axes.set_ylim(bottom=min(0, float(frame[term].min())))
        axes.grid(color="0.92")
        axes.set_axisbelow(True)
    return figure
