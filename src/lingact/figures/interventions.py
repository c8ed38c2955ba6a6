"""Figures of interventions: the cost of splicing over layers, the effect of ablation by language, and effects over the dose."""

from typing import TYPE_CHECKING

import pandas as pd

from lingact.activations.edited_losses import ABLATION, NEUTRAL, Mode
from lingact.config.data import LanguagesConfig
from lingact.figures.style import BLACK, BLUE, GREEN, GROUP_LOOKS, GROUP_NAMES, MARKERS, ORANGE, PINK, layer_ticks, new_figure, reach_of, zero_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TITLES = {"specific": "own latents", "random": "random latents that fire as often", "diffmean": "DiffMean direction"}
_COLUMNS = 4
"""Most panels in a row."""


def causal_matrix(table: pd.DataFrame) -> "Figure":
    """Effect of ablating the features of a language (row) on every measured language (column), a panel for each kind of latents.

    Each cell shows its value, with an asterisk if the interval excludes 0. A frame marks the effect of a language's features on itself.

    Args:
        table: `effects.causal_table`.
    """
    ablated = table[(table["mode"] == "scale") & (table["dose"] == ABLATION)]
    kinds = [kind for kind in _TITLES if kind in set(ablated["kind"])]
    owners, measured = list(dict.fromkeys(ablated["owner"])), list(dict.fromkeys(ablated["measured"]))
    figure = new_figure(1.6 + (0.8 + 0.56 * len(measured)) * len(kinds), 1.7 + 0.36 * max(len(owners), 4))
    panels = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
    reach = max(0.001, float(ablated["estimate"].abs().max()))
    decimals = 2 if reach >= 0.1 else 3
    image = None
    for axes, kind in zip(panels, kinds, strict=True):
        cells = ablated[ablated["kind"] == kind]
        estimate = cells.set_index(["owner", "measured"])["estimate"].unstack("measured").reindex(index=owners, columns=measured)
        image = axes.imshow(estimate.to_numpy(float), cmap="PuOr_r", vmin=-reach, vmax=reach, aspect="auto")
        for cell in cells.to_dict("records"):
            place = measured.index(cell["measured"]), owners.index(cell["owner"])
            sign = "*" if cell["lo"] > 0 or cell["hi"] < 0 else ""
            text = f"{round(cell['estimate'], decimals) + 0.0:.{decimals}f}{sign}".replace("-", "\N{MINUS SIGN}")
            colour = "white" if abs(cell["estimate"]) > 0.72 * reach else "black"
            axes.text(*place, text, ha="center", va="center", fontsize=8, color=colour)
            if cell["owner"] == cell["measured"]:
                axes.add_patch(_frame(*place))
        axes.set_xticks(range(len(measured)), measured)
        axes.set_title(_TITLES[kind], fontsize=10)
        axes.set_xlabel("measured language")
    panels[0].set_yticks(range(len(owners)), owners)
    panels[0].set_ylabel("ablated language")
    assert image is not None
    figure.colorbar(image, ax=list(panels), label="change of cross-entropy\n(nats per predicted token)", aspect=25)
    figure.supxlabel("frame: the own language   *: interval excludes 0", fontsize=9)
    return figure


def _frame(column: int, row: int):  # noqa: ANN202 (a patch of matplotlib, imported where it is used)
    from matplotlib.patches import Rectangle

    return Rectangle((column - 0.48, row - 0.46), 0.96, 0.92, fill=False, edgecolor="black", linewidth=1.6)


def dose_response(table: pd.DataFrame, mode: Mode) -> "Figure":
    """Effect over the dose, a panel for each language: on itself, on the others (mean), and of the controls on itself.

    Args:
        table: `effects.causal_table`.
        mode: `scale` or `steer`, whose doses cannot be compared.
    """
    table = table[table["mode"] == mode]
    owners = list(dict.fromkeys(table["owner"]))
    columns = min(_COLUMNS, len(owners))
    figure = new_figure(max(7.4, 0.8 + 2.3 * columns), 1.3 + 2.0 * -(-len(owners) // columns))
    panels = figure.subplots(-(-len(owners) // columns), columns, sharex=True, sharey=True, squeeze=False).ravel()
    looks = {
        ("specific", True): (ORANGE, "-", "o", "own latents, own language"),
        ("specific", False): (BLUE, "--", "s", "own latents, mean of the others"),
        ("random", True): (BLACK, ":", "^", "random latents, own language"),
        ("diffmean", True): (GREEN, "-.", "D", "DiffMean, own language"),
        ("diffmean", False): (PINK, "-.", "v", "DiffMean, mean of the others"),
    }
    handles = {}
    for axes in panels[len(owners) :]:
        axes.set_axis_off()
    for axes in panels[max(0, len(owners) - columns) : len(owners)]:
        axes.tick_params(labelbottom=True)
    for owner, axes in zip(owners, panels, strict=False):
        zero_line(axes)
        axes.axvline(NEUTRAL[mode], color="0.8", linewidth=1, zorder=0)
        for (kind, own), (colour, style, marker, label) in looks.items():
            rows = table[(table["owner"] == owner) & (table["kind"] == kind) & ((table["measured"] == owner) == own)]
            # The neutral dose changes nothing by definition, so it was not necessarily run.
            curve = rows.groupby("dose")[["estimate", "lo", "hi"]].mean()
            if curve.empty:
                continue
            curve.loc[NEUTRAL[mode]] = 0.0
            curve = curve.sort_index()
            handles[label] = axes.plot(curve.index, curve["estimate"], color=colour, linestyle=style, marker=marker, markersize=4)[0]
            if own:
                axes.errorbar(curve.index, curve["estimate"], yerr=reach_of(curve), fmt="none", color=colour, linewidth=1, capsize=2)
        axes.set_title(owner, fontsize=10)
        axes.grid(color="0.92")
        axes.set_axisbelow(True)
    names = {"scale": "dose (0: ablated, 1: as it is, 2: doubled)", "steer": "dose (in mean residual norms)"}
    figure.supxlabel(names[mode], fontsize=10)
    figure.supylabel("change of cross-entropy\n(nats per predicted token)", fontsize=10)
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=3, frameon=False, fontsize=9)
    return figure


def spliced_curves(table: pd.DataFrame, languages: LanguagesConfig) -> "Figure":
    """Rise of the cross-entropy over the layers of the spliced reconstructions, a line for each language, a panel for each set of SAEs.

    Args:
        table: `effects.spliced_table`.
        languages: the reference and the groups.
    """
    table = table[table["quantity"] == "ce_increase"]
    sae_sets, layers = list(dict.fromkeys(table["sae_set"])), sorted(set(table["layer"]))
    figure = new_figure(0.8 + 5.2 * len(sae_sets), 4.0)
    panels = figure.subplots(1, len(sae_sets), sharey=True, squeeze=False)[0]
    groups = {"reference": (languages.reference,), "high": languages.high, "low": languages.low}
    for axes, sae_set in zip(panels, sae_sets, strict=True):
        zero_line(axes)
        for name, codes in groups.items():
            colour, style = GROUP_LOOKS[name]
            for place, code in enumerate(codes):
                own = table[(table["sae_set"] == sae_set) & (table["language"] == code)].sort_values("layer")
                if own.empty:
                    continue
                axes.plot(
                    own["layer"],
                    own["estimate"],
                    color=colour,
                    linestyle=style,
                    marker=None if name == "reference" else MARKERS[place % len(MARKERS)],
                    markersize=5,
                    markevery=max(1, len(own) // 9),
                    markerfacecolor="white" if name == "high" else colour,
                    linewidth=2 if name == "reference" else 1,
                    label=code,
                )
                axes.fill_between(own["layer"], own["lo"], own["hi"], color=colour, alpha=0.08, linewidth=0)
        axes.set_xticks(layer_ticks(layers)[1])
        axes.set_title(f"{sae_set} SAEs", fontsize=10)
        axes.set_xlabel("layer")
        axes.grid(color="0.92")
        axes.set_axisbelow(True)
    panels[0].set_ylabel("rise of cross-entropy\n(nats per predicted token)")
    handles, labels = panels[0].get_legend_handles_labels()
    present = [f"{GROUP_NAMES[name]}: {', '.join(code for code in codes if code in labels)}" for name, codes in groups.items()]
    figure.legend(
        handles, labels, loc="outside upper center", ncols=max(1, len(labels)), frameon=False, fontsize=9, title="; ".join(present), title_fontsize=8
    )
    return figure
