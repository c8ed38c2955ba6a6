"""Figures of the similarity of representations to the reference, over layers."""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from lingact.config.data import LanguagesConfig
from lingact.figures.style import BLACK, GROUP_LOOKS, groups_note, language_looks, layer_ticks, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TITLES = {
    "cka": "debiased linear CKA",
    "retrieval": "retrieval of translations (accuracy at 1)",
    "mrr": "retrieval (mean reciprocal rank)",
    "centred_cosine": "cosine after centring",
    "cosine": "plain cosine (raised by a common mean)",
}


def similarity_curves(table: pd.DataFrame, languages: LanguagesConfig) -> "Figure":
    """A panel for each measure, a line for each language; the grey band shows shuffled pairs.

    The band runs from the lowest mean of shuffled pairs of any language to the highest upper end of their intervals. Because shuffled pairs differ by
    language, a cross marks where a language's interval does not lie above its own. Intervals are only in the table: they would hide the lines.

    Args:
        table: of `similarity.similarity_table`.
        languages: their groups.
    """
    looks = {code: look for code, look in language_looks(languages).items() if code in set(table["language"])}
    styles = {code: GROUP_LOOKS["high" if code in languages.high else "low"][1] for code in looks}
    layers = sorted(set(table["layer"]))
    figure = new_figure(10.5, 6.0)
    panels = figure.subplots(2, 3, sharex=True)
    for axes, (quantity, title) in zip(panels.flat, _TITLES.items(), strict=False):
        cells = table[table["quantity"] == quantity]
        floors = cells.groupby("layer").agg(low=("floor", "min"), high=("floor_hi", "max"))
        axes.fill_between(floors.index, floors["low"], floors["high"], color="0.8", linewidth=0)
        # A band that is thinner than a line, such as that of retrieval among many sentences, would be invisible.
        axes.plot(floors.index, floors["high"], color="0.55", linestyle=":", linewidth=1.4, label="shuffled pairs (all)")
        for code, look in looks.items():
            own = cells[cells["language"] == code].sort_values("layer")
            every = max(1, len(layers) // 9)
            axes.plot(own["layer"], own["estimate"], **look, linestyle=styles[code], markersize=5, linewidth=1.1, markevery=every, label=code)
        lost = cells[~(cells["lo"] > cells["floor_hi"])]
        axes.plot(lost["layer"], lost["estimate"], "x", color=BLACK, markersize=9, label="not above its own\nshuffled pairs")
        axes.set_title(title, fontsize=10)
        low, high = np.nanmin([cells["estimate"].min(), floors["low"].min(), 0]), np.nanmax([cells["estimate"].max(), 1])
        axes.set_ylim(low - 0.03, high + 0.03)
        axes.set_xticks(layer_ticks(layers)[1])
        axes.xaxis.set_tick_params(labelbottom=True)
        axes.grid(color="0.92")
        axes.set_axisbelow(True)
    handles, labels = panels.flat[0].get_legend_handles_labels()
    panels.flat[5].axis("off")
    panels.flat[5].legend(
        handles, labels, loc="center", ncols=2, frameon=False, title=groups_note(looks, languages).replace("; ", "\n"), title_fontsize=9
    )
    figure.supxlabel("layer", fontsize=10)
    figure.supylabel("similarity to the reference language", fontsize=10)
    return figure


def separation_curves(table: pd.DataFrame, languages: LanguagesConfig) -> "Figure":
    """AUC over layers, a panel for each number that separates a language from the reference. 0.5 is chance; below, the language has lower values.

    Args:
        table: of `similarity.separation_table`.
        languages: their groups.
    """
    titles = {"diffmean": "DiffMean direction (no SAE)", "activation": "summed activation", "residual_norm": "residual norm"}
    looks = {code: look for code, look in language_looks(languages).items() if code in set(table["language"])}
    layers = sorted(set(table["layer"]))
    figure = new_figure(10.5, 3.6)
    panels = figure.subplots(1, len(titles), sharey=True)
    for axes, (quantity, title) in zip(panels, titles.items(), strict=True):
        axes.axhline(0.5, color="0.35", linestyle=":", linewidth=1.2)
        cells = table[table["quantity"] == quantity]
        for code, look in looks.items():
            own = cells[cells["language"] == code].sort_values("layer")
            style = GROUP_LOOKS["high" if code in languages.high else "low"][1]
            every = max(1, len(layers) // 9)
            axes.plot(own["layer"], own["estimate"], **look, linestyle=style, markersize=5, linewidth=1.1, markevery=every, label=code)
        axes.set_title(title, fontsize=10)
        axes.set_ylim(-0.03, 1.03)
        axes.set_xticks(layer_ticks(layers)[1])
        axes.grid(color="0.92")
        axes.set_axisbelow(True)
    figure.supxlabel("layer", fontsize=10)
    panels[0].set_ylabel("AUC")
    handles, labels = panels[0].get_legend_handles_labels()
    title = groups_note(looks, languages)
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False, title=title, title_fontsize=9, fontsize=9)
    return figure
