"""Figures of gaps and similarities against benchmark scores."""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from lingact.analysis.side_by_side import SCORE
from lingact.config.data import LanguagesConfig
from lingact.figures.style import BLACK, GREEN, PINK, groups_note, language_looks, new_figure, zero_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLUMNS = 3
"""Panels in a row of the scatter plots."""
# Blue and orange are taken by the groups of languages.
_SIMILARITY_LOOKS = {"cka": ("CKA", BLACK, "o"), "retrieval": ("retrieval", GREEN, "s"), "cosine": ("cosine", PINK, "^")}


def _benchmarks(table: pd.DataFrame) -> list[str]:
    return [name.removeprefix(SCORE) for name in table.columns if name.startswith(SCORE)]


def score_scatter(table: pd.DataFrame, found: pd.DataFrame, languages: LanguagesConfig) -> "Figure":
    """Gap against score, a panel for each benchmark, a point for each language, with both correlations, their uncorrected p and n.

    Args:
        table: of `correlation.side_by_side`.
        found: of `correlation.side_by_side_correlations`; those of the gap are shown above the panels.
        languages: their groups.
    """
    benchmarks, looks = _benchmarks(table), language_looks(languages)
    rows, columns = -(-len(benchmarks) // _COLUMNS), min(len(benchmarks), _COLUMNS)
    figure = new_figure(0.6 + 3.3 * columns, 0.4 + 3.1 * rows)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels[len(benchmarks) :]:
        axes.remove()
    for axes, benchmark in zip(panels, benchmarks, strict=False):
        points = table.dropna(subset=["gap", SCORE + benchmark])
        places = np.asarray(points[["gap", SCORE + benchmark]], float)
        for code, place, above in zip(points["language"], places, _names_above(places), strict=True):
            axes.plot(*place, linestyle="none", markersize=7, **looks[code])
            offset, side = (7, "bottom") if above else (-7, "top")
            axes.annotate(code, tuple(place), (0, offset), textcoords="offset points", ha="center", va=side, fontsize=9)
        zero_line(axes, vertical=True)
        axes.set_title(f"{benchmark}\n{_numbers(found, benchmark)}", fontsize=8.5)
        axes.margins(0.12, 0.16)
        axes.grid(color="0.92")
        axes.set_axisbelow(True)
    figure.supxlabel(f"gap, mean over layers (positive: falls short); {groups_note(table['language'], languages)}", fontsize=10)
    figure.supylabel("score", fontsize=10)
    return figure


def _names_above(places: Float[np.ndarray, "point 2"]) -> Bool[np.ndarray, " point"]:
    """Whether a point's name is put above it: away from its nearest neighbour, so that names seldom overlap."""
    scaled = places / np.maximum(np.ptp(places, axis=0), 1e-12)
    distances = np.linalg.norm(scaled[:, None] - scaled[None], axis=-1) + np.diag(np.full(len(places), np.inf))
    return places[:, 1] >= places[distances.argmin(axis=1), 1]


def _numbers(found: pd.DataFrame, benchmark: str) -> str:
    """Both correlations of the gap with their uncorrected p, and n."""
    rows = found[(found["benchmark"] == benchmark) & (found["place"] == "gap")].set_index("method")
    if rows["estimate"].isna().any():
        return f"n = {rows['n'].iloc[0]}, correlation undefined"
    parts = []
    for method, letter in (("pearson", "r"), ("spearman", "rho")):
        signed = f"{rows.loc[method, 'estimate']:+.2f}".replace("-", "\N{MINUS SIGN}")
        parts.append(f"{letter} = {signed} (p {rows.loc[method, 'p']:.2g})")
    return ", ".join([*parts, f"n = {rows['n'].iloc[0]}"])


def side_by_side_figure(table: pd.DataFrame, languages: LanguagesConfig) -> "Figure":
    """Similarity, gap and scores side by side, a row for each language, with the best scores at the top (by the mean rank over benchmarks).

    Each benchmark has its own panel, because scores may have any scale.

    Args:
        table: of `correlation.side_by_side`.
        languages: their groups.
    """
    benchmarks = _benchmarks(table)
    order = table[[SCORE + name for name in benchmarks]].rank(pct=True).mean(axis=1).sort_values(na_position="first", kind="stable").index
    rows = table.loc[order].reset_index(drop=True)
    figure = new_figure(5.4 + 1.7 * len(benchmarks), 1.5 + 0.34 * len(rows))
    panels = figure.subplots(1, 2 + len(benchmarks), sharey=True, width_ratios=[2, 1.6] + [1.2] * len(benchmarks))
    for name, (label, colour, marker) in _SIMILARITY_LOOKS.items():
        panels[0].plot(rows[name], rows.index, linestyle="none", marker=marker, color=colour, label=label)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=3, frameon=False, fontsize=9)
    figure.supxlabel(f"languages, {groups_note(rows['language'], languages)}", fontsize=9)
    looks = language_looks(languages)
    for axes, column in zip(panels[1:], ["gap", *(SCORE + name for name in benchmarks)], strict=True):
        for place, (code, value) in enumerate(zip(rows["language"], rows[column], strict=True)):
            axes.plot(value, place, linestyle="none", markersize=6, **looks[code])
    zero_line(panels[1], vertical=True)
    titles = ["similarity to the reference", "gap (positive: falls short)", *(f"score: {name}" for name in benchmarks)]
    for axes, title in zip(panels, titles, strict=True):
        axes.set_title(title, fontsize=9)
        axes.margins(x=0.12)
        axes.grid(color="0.92")
        axes.set_axisbelow(True)
    panels[0].set_yticks(rows.index, rows["language"])
    return figure
