"""Frames and draws as figures, which keep their meaning for colour-blind readers and in black-and-white print.

Nothing rests on colour alone: markers, line styles, hatches, signs and codes say the same. Matplotlib is imported where it is used, because it is
slow to.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from lingact.compare import ALL
from lingact.config import LanguagesConfig
from lingact.tables import Disparities, interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind people tell apart.
BLACK, BLUE, ORANGE, GREEN, PINK = "#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7"
_GROUP_LOOKS = {"reference": (BLACK, "-"), "high": (BLUE, "--"), "low": (ORANGE, "-")}
_KIND_LOOKS = ((BLACK, "o"), (BLUE, "s"), (ORANGE, "^"), (GREEN, "D"), (PINK, "v"))
_GROUP_NAMES = {"reference": "reference", "high": "high-resource", "low": "medium-to-low-resource"}
_MARKERS = "os^DvPX*<>phd8"
_WRITTEN_LAYERS = 16
"""Up to so many layers the heatmap's cells carry their values."""


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _layer_ticks(layers: Sequence[int]) -> tuple[list[int], list[int]]:
    """Rows and layer numbers to write at an axis: at most fourteen."""
    step = -(-len(layers) // 14)
    rows = list(range(0, len(layers), step))
    return rows, [layers[row] for row in rows]


def _line(axes: "Axes", *, vertical: bool = False, label: str | None = None) -> None:
    (axes.axvline if vertical else axes.axhline)(0, color="0.35", linestyle=":", linewidth=1.2, label=label, zorder=1)


# --- analysis ------------------------------------------------------------------------------------------------------------------------------------


def gap_heatmap(found: Disparities, languages: LanguagesConfig) -> "Figure":
    """Gap by layer and language, high-resource languages first. White is no gap.

    Few layers: each cell carries its value, with an asterisk where the interval excludes 0. Many layers: `+` or `-` where it does.
    """
    groups = [[code for code in group if code in found.gaps] for group in (languages.high, languages.low)]
    codes = [code for group in groups for code in group]
    estimate, low, high = (np.stack(part, axis=1) for part in zip(*(interval(found.gaps[code], found.confidence) for code in codes), strict=True))
    count = len(found.layers)
    written = count <= _WRITTEN_LAYERS
    figure = _figure(2.4 + 0.72 * len(codes), 1.5 + (0.36 if written else 0.24) * max(count, 4))
    axes = figure.subplots()
    # One extreme cell must not bleach the others: the scale ends at the 95th percentile, and the colour bar's arrows say that it does.
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
    for name, group in zip((_GROUP_NAMES["high"], _GROUP_NAMES["low"]), groups, strict=True):
        if group:
            axes.text(start + (len(group) - 1) / 2, count - 0.35, name, ha="center", va="bottom", fontsize=9)
        start += len(group)
    axes.set_xticks(range(len(codes)), codes)
    ticks, labels = _layer_ticks(found.layers) if not written else (range(count), found.layers)
    axes.set_yticks(ticks, [str(label) for label in labels])
    axes.set_ylabel("layer")
    mark = "*: " if written else "+ or \N{MINUS SIGN}: "
    axes.set_xlabel(f"{mark}{found.confidence:.0%} interval excludes 0", fontsize=9)
    beyond = bool(size.size) and float(size.max()) > reach
    figure.colorbar(image, ax=axes, extend="both" if beyond else "neither", label="gap (positive: falls short)", aspect=30)
    return figure


def group_curves(found: Disparities) -> "Figure":
    """Gap of the groups over layers with interval bands."""
    looks = {
        "low": (ORANGE, "-", "o", "medium-to-low against reference"),
        "high": (BLUE, "--", "s", "high against reference"),
        "low_vs_high": (GREEN, "-.", "^", "medium-to-low against high"),
    }
    figure = _figure(7.2, 3.8)
    axes = figure.subplots()
    _line(axes)
    for name, (colour, style, marker, label) in looks.items():
        if name in found.gaps:
            estimate, low, high = interval(found.gaps[name], found.confidence)
            axes.fill_between(found.layers, low, high, color=colour, alpha=0.18, linewidth=0)
            axes.plot(found.layers, estimate, color=colour, linestyle=style, marker=marker, markersize=5, label=label)
    rows, _ = _layer_ticks(found.layers)
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


def confound_panel(confounds: pd.DataFrame, languages: LanguagesConfig) -> "Figure":
    """What else differs between the languages: tokens and bytes per sentence, and FVU, L0 and residual norm over layers."""
    figure = _figure(10.5, 6.8)
    figure.get_layout_engine().set(h_pad=0.1)  # pyrefly: ignore[missing-attribute]
    mosaic = [["tokens_per_sentence"] * 3 + ["bytes_per_sentence"] * 3, ["fvu"] * 2 + ["l0"] * 2 + ["residual_norm"] * 2]
    panels = figure.subplot_mosaic(mosaic)  # pyrefly: ignore[no-matching-overload]
    groups = {"reference": (languages.reference,), "high": languages.high, "low": languages.low}
    of = {code: name for name, group in groups.items() for code in group}
    codes = [code for code in of if code in set(confounds["language"])]
    hatches = {"reference": "", "high": "///", "low": "..."}
    for quantity in ("tokens_per_sentence", "bytes_per_sentence"):
        axes = panels[quantity]
        cells = confounds[confounds["quantity"] == quantity].set_index("language").loc[codes]
        for place, (code, cell) in enumerate(cells.iterrows()):
            group = of[str(code)]
            axes.bar(place, cell["estimate"], color=_GROUP_LOOKS[group][0], alpha=0.6, hatch=hatches[group], edgecolor="white", label=group)
            axes.errorbar(place, cell["estimate"], yerr=_reach(cell), color="black", capsize=2, linewidth=1)
        axes.set_xticks(range(len(codes)), codes)
        axes.set_title(quantity.replace("_", " "), fontsize=10)
    titles = {"fvu": "FVU (variance the SAE misses)", "l0": "L0 (active latents per token)", "residual_norm": "residual norm"}
    for quantity, title in titles.items():
        axes = panels[quantity]
        cells = confounds[confounds["quantity"] == quantity]
        for code in codes:
            own = cells[cells["language"] == code]
            colour, style = _GROUP_LOOKS[of[code]]
            # Codes at the line ends would collide; group colour, marker and filling tell the languages apart.
            place = groups[of[code]].index(code)
            axes.plot(
                own["layer"].astype(int),
                own["estimate"].astype(float),
                color=colour,
                linestyle=style,
                marker=None if of[code] == "reference" else _MARKERS[place % len(_MARKERS)],
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
        axes.set_xticks(_layer_ticks(layers)[1][:: 2 if len(layers) > 7 else 1])
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("layer")
        axes.grid(color="0.92")
    handles, labels = panels["fvu"].get_legend_handles_labels()
    bars = dict(zip(*reversed(panels["tokens_per_sentence"].get_legend_handles_labels()), strict=True))
    figure.legend(bars.values(), [_GROUP_NAMES[name] for name in bars], loc="outside upper center", ncols=3, frameon=False)
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    return figure


def _reach(cell: "pd.Series | pd.DataFrame") -> np.ndarray:
    """Distances from estimate to interval ends; a percentile interval can miss the estimate, and a bar cannot be negative."""
    estimate, low, high = (np.atleast_1d(np.asarray(cell[name], float)) for name in ("estimate", "lo", "hi"))
    return np.maximum(0, [estimate - low, high - estimate])


# --- training ------------------------------------------------------------------------------------------------------------------------------------


def change_bars(frame: pd.DataFrame) -> "Figure":
    """Gap per layer before, after, and after on residuals of the base's norm: a column for each language, a row for each meter.

    Args:
        frame: `tables.change_table` of the languages to show, several meters below each other.
    """
    looks = {
        "gap_before": ("before", "0.85", ""),
        "gap_after": ("after", BLUE, ""),
        "gap_after_norm_matched": ("after, norm-matched", "#F0C48A", "////"),
    }
    frame = frame[frame["quantity"].isin(looks)]
    meters, codes = list(dict.fromkeys(frame["meter"])), list(dict.fromkeys(frame["language"]))
    layers = sorted(set(frame["layer"]))
    figure = _figure(min(16.0, max(5.5, (1.2 + 0.34 * len(layers)) * len(codes))), 0.8 + 2.5 * len(meters))
    panels = figure.subplots(len(meters), len(codes), sharex=True, sharey=True, squeeze=False)
    for (row, column), axes in np.ndenumerate(panels):
        cells = frame[(frame["meter"] == meters[row]) & (frame["language"] == codes[column])]
        for number, (quantity, (label, colour, hatch)) in enumerate(looks.items()):
            own = cells[cells["quantity"] == quantity]
            places = [layers.index(layer) + (number - 1) * 0.28 for layer in own["layer"]]
            axes.bar(places, own["estimate"], width=0.28, color=colour, hatch=hatch, edgecolor="black", linewidth=0.6, label=label)
            axes.errorbar(places, own["estimate"], yerr=_reach(own), fmt="none", color="black", linewidth=0.9, capsize=0 if len(layers) > 12 else 2)
        axes.axhline(0, color="black", linewidth=0.8)
        axes.set_xticks(*_layer_ticks(layers))
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
    figure = _figure(3.6 * max(1, len(terms)), 2.8)
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


# --- evaluation ----------------------------------------------------------------------------------------------------------------------------------


def accuracy_figure(accuracy: pd.DataFrame, *, confidence: float) -> "Figure":
    """Accuracy of the base model by language and kind, a panel for each benchmark and one for all, with intervals and the chance line."""
    acc = accuracy[accuracy["metric"] == "acc"]
    figure, panels = _panels(acc, f"accuracy, {confidence:.0%} interval")
    for task, axes in panels.items():
        chance = acc.loc[acc["task"] == task, "chance"].mean()
        axes.axvline(chance, color="0.4", linestyle="--", linewidth=1, label="chance")
        axes.set_xlim(-0.03, 1.03)
    _legend(figure, panels)
    return figure


def difference_figure(differences: pd.DataFrame, *, confidence: float) -> "Figure":
    """Adapter minus base by language and kind, a panel for each benchmark and one for all, with intervals and the line of no difference."""
    acc = differences[differences["metric"] == "acc"]
    figure, panels = _panels(acc, f"adapter - base, {confidence:.0%} interval")
    reach = max(0.05, float(acc[["lo", "hi"]].abs().to_numpy().max())) * 1.08
    for axes in panels.values():
        axes.axvline(0, color="0.4", linestyle="--", linewidth=1, label="no difference")
        axes.set_xlim(-reach, reach)
    _legend(figure, panels)
    return figure


def _panels(acc: pd.DataFrame, x_label: str) -> tuple["Figure", dict[str, "Axes"]]:
    """A panel for each benchmark, languages from top to bottom, a mark for each kind; at most six panels, of which `all` is the last."""
    from matplotlib.figure import Figure

    tasks = [task for task in dict.fromkeys(acc["task"]) if task != ALL]
    tasks = [*tasks[:5], ALL] if len(tasks) > 1 else tasks
    languages, kinds = list(dict.fromkeys(acc["language"])), list(dict.fromkeys(acc["kind"]))
    figure = Figure(figsize=(1.2 + 2.6 * len(tasks), 1.4 + 0.42 * len(languages)), layout="constrained")
    drawn = figure.subplots(1, len(tasks), sharey=True, squeeze=False)[0]
    for task, axes in zip(tasks, drawn, strict=True):
        for number, kind in enumerate(kinds):
            colour, marker = _KIND_LOOKS[number % len(_KIND_LOOKS)]
            cells = acc[(acc["task"] == task) & (acc["kind"] == kind)]
            heights = [languages.index(language) + (number - (len(kinds) - 1) / 2) * 0.22 for language in cells["language"]]
            reach = [(cells["estimate"] - cells["lo"]).clip(lower=0), (cells["hi"] - cells["estimate"]).clip(lower=0)]
            axes.errorbar(cells["estimate"], heights, xerr=reach, fmt=marker, color=colour, markersize=4, linewidth=1, label=kind)
        axes.set_title(task, fontsize=10)
        axes.grid(axis="y", color="0.92")
        axes.set_axisbelow(True)
    drawn[0].set_yticks(range(len(languages)), languages)
    drawn[0].set_ylim(len(languages) - 0.4, -0.6)
    figure.supxlabel(x_label, fontsize=10)
    return figure, dict(zip(tasks, drawn, strict=True))


def _legend(figure: "Figure", panels: Mapping[str, "Axes"]) -> None:
    handles, labels = next(iter(panels.values())).get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False, fontsize=9)
