"""Figure of the parts into which a difference of activation is split."""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from lingact.config.data import LanguagesConfig
from lingact.figures.style import BLUE, GREEN, ORANGE, new_figure, reach_of, zero_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LOOKS = {"norm": (BLUE, ""), "dictionary": (ORANGE, "//"), "remainder": (GREEN, "..")}
_WIDTH = 0.26


def part_bars(table: pd.DataFrame, languages: LanguagesConfig) -> "Figure":
    """The parts of each language as bars side by side, a panel for each range of layers; a line marks the total, which is their sum.

    Args:
        table: rows of `attribution.range_table` for one measure.
        languages: the groups; their order is that of the bars.
    """
    codes = [code for code in (*languages.high, *languages.low) if code in set(table["name"])]
    ranges = list(dict.fromkeys(table["range"]))
    figure = new_figure(1.6 + 0.62 * len(codes), 0.7 + 2.1 * len(ranges))
    panels = figure.subplots(len(ranges), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    places = np.arange(len(codes))
    for name, axes in zip(ranges, panels, strict=True):
        zero_line(axes)
        found = table[table["range"] == name].set_index(["part", "name"])
        for number, (part, (colour, hatch)) in enumerate(_LOOKS.items()):
            cells = found.loc[part].loc[codes]
            shift = places + (number - 1) * _WIDTH
            bars = {"color": colour, "hatch": hatch, "edgecolor": "white", "linewidth": 0}
            axes.bar(shift, cells["estimate"], _WIDTH, label=part, **bars)
            axes.errorbar(shift, cells["estimate"], yerr=reach_of(cells), fmt="none", color="0.25", linewidth=1)
        total = found.loc["total"].loc[codes, "estimate"]
        axes.hlines(total, places - 0.45, places + 0.45, color="black", linewidth=1.6, label="total")
        axes.set_title(f"{name} layers", fontsize=10)
        axes.grid(axis="y", color="0.92")
        axes.set_axisbelow(True)
    panels[-1].set_xticks(places, codes)
    figure.supylabel("log ratio to the reference", fontsize=10)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False, fontsize=9)
    return figure
