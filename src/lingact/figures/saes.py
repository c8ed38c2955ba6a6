"""Figures of trained SAEs: fit by language and layer, and latents that do not fire."""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from lingact.figures.style import KIND_LOOKS, WRITTEN_LAYERS, layer_ticks, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def fit_heatmap(fvu: pd.DataFrame) -> "Figure":
    """FVU by layer and language, a panel for each set. All panels have one scale, which ends at 1: what lies beyond is as dark.

    Args:
        fvu: rows with `label` (the set), `language`, `layer` and `estimate`.
    """
    labels, codes = list(dict.fromkeys(fvu["label"])), list(dict.fromkeys(fvu["language"]))
    layers = sorted(set(fvu["layer"]))
    written = len(layers) <= WRITTEN_LAYERS
    columns = min(len(labels), max(1, 20 // len(codes)))
    rows = -(-len(labels) // columns)
    figure = new_figure(0.9 + columns * (0.6 + 0.46 * len(codes)), 0.6 + rows * (0.7 + (0.34 if written else 0.2) * max(3, len(layers))))
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    most = float(np.clip(np.nanmax(fvu["estimate"].to_numpy(float)), 0.01, 1))
    ticks, names = (list(range(len(layers))), layers) if written else layer_ticks(layers)
    for axes in panels.flat[len(labels) :]:
        axes.set_axis_off()
    for label, axes in zip(labels, panels.flat, strict=False):
        cells = fvu[fvu["label"] == label].pivot(index="layer", columns="language", values="estimate").loc[layers, codes].to_numpy(float)
        image = axes.imshow(cells, cmap="cividis_r", vmin=0, vmax=most, aspect="auto", origin="lower")
        if written:
            for (row, column), value in np.ndenumerate(cells):
                text = f"{value:.2f}".removeprefix("0")
                axes.text(column, row, text, ha="center", va="center", fontsize=7.5, color="white" if value > 0.6 * most else "black")
        axes.set_title(label, fontsize=10)
        axes.set_xticks(range(len(codes)), codes)
        axes.set_yticks(ticks, [str(name) for name in names])
    for axes in panels[:, 0]:
        axes.set_ylabel("layer")
    beyond = float(np.nanmax(fvu["estimate"].to_numpy(float))) > most
    figure.colorbar(image, ax=panels, extend="max" if beyond else "neither", label="variance unexplained (FVU)", aspect=30)
    return figure


def dead_curves(latents: pd.DataFrame) -> "Figure":
    """Share of dead latents by layer, a line for each set.

    Args:
        latents: rows with `label` (the set), `layer` and `dead`.
    """
    figure = new_figure(7.2, 3.4)
    axes = figure.subplots()
    layers = sorted(set(latents["layer"]))
    for number, (label, own) in enumerate(latents.groupby("label", sort=False)):
        colour, marker = KIND_LOOKS[number % len(KIND_LOOKS)]
        style = ("-", "--", "-.", ":")[number // len(KIND_LOOKS) % 4]
        axes.plot(own["layer"], 100 * own["dead"], color=colour, marker=marker, linestyle=style, markersize=5, label=str(label))
    rows, _ = layer_ticks(layers)
    axes.set_xticks([layers[row] for row in rows])
    axes.set_xlabel("layer")
    axes.set_ylabel("dead latents (%)")
    axes.set_ylim(0, max(1.0, 105 * float(latents["dead"].max())))
    axes.grid(axis="y", color="0.92")
    axes.legend(frameon=False, fontsize=9)
    return figure
