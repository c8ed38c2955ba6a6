"""Benchmark accuracies and differences."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import pandas as pd

from lingact.compare import ALL
from lingact.figures.style import KIND_LOOKS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


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
            colour, marker = KIND_LOOKS[number % len(KIND_LOOKS)]
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
