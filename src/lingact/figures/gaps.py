"""Figures of gaps over layers and languages, and of confounds."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from lingact.analysis.tables import Disparities
from lingact.config.data import LanguagesConfig
from lingact.figures.style import BLUE, GREEN, GROUP_LOOKS, GROUP_NAMES, MARKERS, ORANGE, WRITTEN_LAYERS, layer_ticks, new_figure, reach_of, zero_line
from lingact.statistics.bootstrap import interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def gap_heatmap(table: pd.DataFrame, languages: LanguagesConfig, confidence: float) -> "Figure":
    """Gap by layer and language, with high-resource languages first. White is no gap.

    With few layers, each cell shows its value, with an asterisk if the interval excludes 0. With many layers, it shows `+` or `-` if it does.

    Args:
        table: `tables.layer_table`.
        languages: the groups.
        confidence: of its intervals.
    """
    groups = [[code for code in group if code in set(table["name"])] for group in (languages.high, languages.low)]
    codes, layers = [code for group in groups for code in group], list(dict.fromkeys(table["layer"]))
    cells = table.set_index(["layer", "name"])
    estimate, low, high = (cells[column].unstack("name").loc[layers, codes].to_numpy(float) for column in ("gap", "lo", "hi"))
    count = len(layers)
    written = count <= WRITTEN_LAYERS
    figure = new_figure(2.4 + 0.72 * len(codes), 1.5 + (0.36 if written else 0.24) * max(count, 4))
    axes = figure.subplots()
    # One extreme cell must not make the others pale: the scale ends at the 95th percentile, and the colour bar has arrows if values lie beyond.
    size = np.abs(estimate[np.isfinite(estimate)])
    reach = max(0.01, float(np.quantile(size, 0.95))) if size.size else 0.01
    image = axes.imshow(estimate, cmap="PuOr_r", vmin=-reach, vmax=reach, aspect="auto", origin="lower")
    for (row, column), value in np.ndenumerate(estimate):
        sign = "" if not (low[row, column] > 0 or high[row, column] < 0) else "*" if written else "+" if value > 0 else "\N{MINUS SIGN}"
        text = f"{round(value, 2) + 0.0:+.2f}{sign}".replace("-", "\N{MINUS SIGN}").replace("+0.00", "0.00") if written else sign
        axes.text(column, row, text, ha="center", va="center", fontsize=8, color="white" if abs(value) > 0.72 * reach else "black")
    if all(groups):
        axes.axvline(len(groups[0]) - 0.5, color="black", linewidth=2)
    start = 0
    for name, group in zip((GROUP_NAMES["high"], GROUP_NAMES["low"]), groups, strict=True):
        if group:
            axes.text(start + (len(group) - 1) / 2, count - 0.35, name, ha="center", va="bottom", fontsize=9)
        start += len(group)
    axes.set_xticks(range(len(codes)), codes)
    ticks, labels = layer_ticks(layers) if not written else (range(count), layers)
    axes.set_yticks(ticks, [str(label) for label in labels])
    axes.set_ylabel("layer")
    mark = "*: " if written else "+ or \N{MINUS SIGN}: "
    axes.set_xlabel(f"{mark}{confidence:.0%} interval excludes 0", fontsize=9)
    beyond = bool(size.size) and float(size.max()) > reach
    figure.colorbar(image, ax=axes, extend="both" if beyond else "neither", label="gap (positive: falls short)", aspect=30)
    return figure


def group_curves(found: Disparities) -> "Figure":
    """Gap of the groups over layers, with bands of intervals."""
    looks = {
        "low": (ORANGE, "-", "o", "medium-to-low against reference"),
        "high": (BLUE, "--", "s", "high against reference"),
        "low_vs_high": (GREEN, "-.", "^", "medium-to-low against high"),
    }
    figure = new_figure(7.2, 3.8)
    axes = figure.subplots()
    zero_line(axes)
    for name, (colour, style, marker, label) in looks.items():
        if name in found.gaps:
            estimate, low, high = interval(found.gaps[name], found.confidence, found.resampling.clusters)
            axes.fill_between(found.layers, low, high, color=colour, alpha=0.18, linewidth=0)
            axes.plot(found.layers, estimate, color=colour, linestyle=style, marker=marker, markersize=5, label=label)
    rows, _ = layer_ticks(found.layers)
    axes.set_xticks([found.layers[row] for row in rows])
    axes.set_xlabel("layer")
    axes.set_ylabel("gap (positive: falls short)")
    axes.grid(color="0.92")
    axes.set_axisbelow(True)
    if axes.get_legend_handles_labels()[0]:
        figure.legend(
            loc="outside upper center", ncols=3, frameon=False, fontsize=9, title=f"bands: {found.confidence:.0%} intervals", title_fontsize=9
        )
    return figure


def measure_heatmap(overall: pd.DataFrame, languages: LanguagesConfig, measures: Sequence[str]) -> "Figure":
    """Gap by measure (row) and language or group (column), with its value and an asterisk if the interval excludes 0. White is no gap.

    Args:
        overall: rows of `tables.measure_table` for one place.
        languages: the groups.
        measures: in the order of the rows.
    """
    groups = [code for code in (*languages.high, *languages.low, "high", "low") if code in set(overall["name"])]
    cells = {column: overall.pivot(index="measure", columns="name", values=column).loc[list(measures), groups] for column in ("gap", "lo", "hi")}
    gap, sure = cells["gap"].to_numpy(float), ((cells["lo"] > 0) | (cells["hi"] < 0)).to_numpy()
    figure = new_figure(3.2 + 0.66 * len(groups), 1.5 + 0.36 * len(measures))
    axes = figure.subplots()
    size = np.abs(gap[np.isfinite(gap)])
    reach = max(0.01, float(np.quantile(size, 0.95))) if size.size else 0.01
    image = axes.imshow(gap, cmap="PuOr_r", vmin=-reach, vmax=reach, aspect="auto")
    for (row, column), value in np.ndenumerate(gap):
        text = f"{round(value, 2) + 0.0:+.2f}{'*' if sure[row, column] else ''}".replace("-", "\N{MINUS SIGN}").replace("+0.00", "0.00")
        axes.text(column, row, text, ha="center", va="center", fontsize=8, color="white" if abs(value) > 0.72 * reach else "black")
    for edge in (len(languages.high), len(languages.high) + len(languages.low)):
        axes.axvline(edge - 0.5, color="black", linewidth=1.5)
    axes.set_xticks(range(len(groups)), [f"all {name}" if name in ("high", "low") else name for name in groups])
    axes.set_yticks(range(len(measures)), [measure.replace("_", " ") for measure in measures])
    axes.set_xlabel(f"{GROUP_NAMES['high']} | {GROUP_NAMES['low']} | groups; *: interval excludes 0", fontsize=9)
    figure.colorbar(image, ax=axes, extend="both" if size.size and size.max() > reach else "neither", label="gap (positive: falls short)", aspect=30)
    return figure


def confound_panel(confounds: pd.DataFrame, languages: LanguagesConfig) -> "Figure":
    """Confounds by language: tokens and bytes per sentence, and FVU, L0 and residual norm over layers."""
    figure = new_figure(10.5, 6.8)
    figure.set_layout_engine("constrained", h_pad=0.1)
    letters = {"t": "tokens_per_sentence", "b": "bytes_per_sentence", "f": "fvu", "l": "l0", "n": "residual_norm"}
    panels = {letters[letter]: axes for letter, axes in figure.subplot_mosaic("tttbbb;ffllnn").items()}
    groups = {"reference": (languages.reference,), "high": languages.high, "low": languages.low}
    of = {code: name for name, group in groups.items() for code in group}
    codes = [code for code in of if code in set(confounds["language"])]
    hatches = {"reference": "", "high": "///", "low": "..."}
    for quantity in ("tokens_per_sentence", "bytes_per_sentence"):
        axes = panels[quantity]
        cells = confounds[confounds["quantity"] == quantity].set_index("language").loc[codes]
        for place, (code, cell) in enumerate(cells.iterrows()):
            group = of[str(code)]
            axes.bar(place, cell["estimate"], color=GROUP_LOOKS[group][0], alpha=0.6, hatch=hatches[group], edgecolor="white", label=group)
            axes.errorbar(place, cell["estimate"], yerr=reach_of(cell), color="black", capsize=2, linewidth=1)
        axes.set_xticks(range(len(codes)), codes)
        axes.set_title(quantity.replace("_", " "), fontsize=10)
    titles = {"fvu": "FVU (unexplained variance)", "l0": "L0 (active latents per token)", "residual_norm": "residual norm"}
    for quantity, title in titles.items():
        axes = panels[quantity]
        cells = confounds[confounds["quantity"] == quantity]
        for code in codes:
            own = cells[cells["language"] == code]
            colour, style = GROUP_LOOKS[of[code]]
            # Codes at the ends of lines would overlap, so colour of the group, marker and filling identify the languages.
            place = groups[of[code]].index(code)
            axes.plot(
                own["layer"].astype(int),
                own["estimate"].astype(float),
                color=colour,
                linestyle=style,
                marker=None if of[code] == "reference" else MARKERS[place % len(MARKERS)],
                markersize=5,
                markevery=max(1, len(own) // 9),
                markerfacecolor="white" if of[code] == "high" else colour,
                linewidth=2 if of[code] == "reference" else 1,
                label=code,
            )
        values = cells["estimate"].astype(float)
        if values.min() > 0 and values.max() / values.min() > 10:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter("")
        else:
            axes.set_ylim(bottom=0)
        layers = sorted(set(cells["layer"].astype(int)))
        axes.set_xticks(layer_ticks(layers)[1][:: 2 if len(layers) > 7 else 1])
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("layer")
        axes.grid(color="0.92")
    handles, labels = panels["fvu"].get_legend_handles_labels()
    bars = dict(zip(*reversed(panels["tokens_per_sentence"].get_legend_handles_labels()), strict=True))
    figure.legend(bars.values(), [GROUP_NAMES[name] for name in bars], loc="outside upper center", ncols=3, frameon=False)
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    return figure
