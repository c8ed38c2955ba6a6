"""Figures of language-specific features: their number at each layer, and how often they fire in every language."""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from jaxtyping import Int

from lingact.config.data import LanguagesConfig
from lingact.figures.style import GROUP_LOOKS, GROUP_NAMES, MARKERS, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def feature_counts(features: pd.DataFrame, languages: LanguagesConfig, layers: tuple[int, ...]) -> "Figure":
    """Confirmed features out of the tested candidates, by layer and language; a dot if there was no candidate.

    Args:
        features: `language_features.find_features`.
        languages: the reference and the groups.
        layers: all that were searched.
    """
    codes, tested = languages.all, features[features["passed"]]
    candidates, confirmed = (_counts(part, codes, layers) for part in (tested, tested[tested["confirmed"]]))
    figure = new_figure(2.4 + 0.6 * len(codes), 1.5 + 0.3 * max(4, len(layers)))
    axes = figure.subplots()
    most = max(1, int(confirmed.max()))
    image = axes.imshow(confirmed, cmap="Blues", vmin=0, vmax=most, aspect="auto", origin="lower")
    for (row, column), count in np.ndenumerate(candidates):
        found = confirmed[row, column]
        text = f"{found}/{count}" if count else "\N{MIDDLE DOT}"
        axes.text(column, row, text, ha="center", va="center", fontsize=8, color="white" if found > 0.6 * most else "black")
    groups = {"reference": (languages.reference,), "high": languages.high, "low": languages.low}
    for edge in np.cumsum([len(group) for group in groups.values() if group])[:-1]:
        axes.axvline(edge - 0.5, color="black", linewidth=1.5)
    axes.set_xticks(range(len(codes)), codes)
    axes.set_yticks(range(len(layers)), [str(layer) for layer in layers])
    axes.set_xlabel(" | ".join(GROUP_NAMES[name] for name, group in groups.items() if group), fontsize=9)
    axes.set_ylabel("layer")
    axes.set_title("confirmed features / candidates", fontsize=10)
    figure.colorbar(image, ax=axes, label="confirmed", ticks=range(most + 1), aspect=30)
    return figure


def _counts(features: pd.DataFrame, codes: tuple[str, ...], layers: tuple[int, ...]) -> Int[np.ndarray, "layer language"]:
    found = np.zeros((len(layers), len(codes)), int)
    for code, layer in zip(features["language"], features["layer"], strict=True):
        found[layers.index(layer), codes.index(code)] += 1
    return found


def feature_rates(rates: pd.DataFrame, languages: LanguagesConfig) -> "Figure":
    """Share of tokens on which each feature fires, with a dot for each language, on a logarithmic axis. The feature's own language has a ring.

    Args:
        rates: `language_features.rate_table`; each of its features is a row of the figure.
        languages: the reference and the groups.
    """
    features = list(zip(rates["language"], rates["layer"], rates["latent"], strict=True))
    names = list(dict.fromkeys(features))
    height = {name: len(names) - 1 - place for place, name in enumerate(names)}
    fires = rates["rate"] > 0
    lowest = float(rates.loc[fires, "rate"].min()) if fires.any() else 1e-3
    never = lowest / 3
    dots = rates.assign(x=rates["rate"].where(fires, never), y=[height[feature] for feature in features])
    figure = new_figure(7.6, 1.7 + 0.27 * max(3, len(names)))
    axes = figure.subplots()
    groups = {"reference": (languages.reference,), "high": languages.high, "low": languages.low}
    looks = [(code, GROUP_LOOKS[group][0], group) for group, codes in groups.items() for code in codes]
    for number, (code, colour, group) in enumerate(looks):
        own = dots[dots["measured"] == code]
        face = "white" if group == "high" else colour
        marker = MARKERS[number % len(MARKERS)]
        axes.scatter(own["x"], own["y"], s=30, marker=marker, facecolor=face, edgecolor=colour, linewidth=1, label=code, zorder=3)
    ringed = dots[dots["measured"] == dots["language"]]
    axes.scatter(ringed["x"], ringed["y"], s=150, marker="o", facecolor="none", edgecolor="black", linewidth=1.3, label="own language", zorder=4)
    axes.set_xscale("log")
    if not fires.all():
        axes.axvspan(never / 1.6, never * 1.6, color="0.93", zorder=0)
        axes.text(never, len(names) - 0.35, "never", ha="center", va="bottom", fontsize=8)
        axes.set_xlim(left=never / 1.6)
    axes.set_yticks(list(height.values()), [f"{code}  layer {layer}, latent {latent}" for code, layer, latent in names], fontsize=8)
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.set_xlabel("share of tokens on which it fires")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.grid(color="0.92")
    axes.set_axisbelow(True)
    figure.legend(
        loc="outside upper center",
        ncols=6,
        frameon=False,
        fontsize=9,
        title=f"black: {GROUP_NAMES['reference']}, hollow: {GROUP_NAMES['high']}, filled: {GROUP_NAMES['low']}",
        title_fontsize=9,
    )
    return figure
