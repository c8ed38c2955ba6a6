"""Figures of benchmark accuracies and differences."""

from typing import TYPE_CHECKING

import pandas as pd

from lingact.catalogue.benchmarks import ALL
from lingact.config.data import LanguagesConfig
from lingact.figures.style import BLACK, BLUE, KIND_LOOKS, ORANGE, new_figure, reach_of, zero_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def accuracy_figure(accuracy: pd.DataFrame, *, confidence: float) -> "Figure":
    """Accuracy of the base model by language and kind, with intervals and a line at chance. One panel for each benchmark and one for all."""
    acc = accuracy[(accuracy["metric"] == "acc") & (accuracy["model"] == "base")]
    figure, panels = _panels(acc, f"accuracy of the base model, {confidence:.0%} interval")
    for task, axes in panels.items():
        chance = acc.loc[acc["task"] == task, "chance"].mean()
        axes.axvline(chance, color="0.4", linestyle="--", linewidth=1, label="chance")
        axes.set_xlim(-0.03, 1.03)
    _legend(figure, next(iter(panels.values())))
    return figure


def difference_figure(differences: pd.DataFrame, languages: LanguagesConfig, *, confidence: float, power: float) -> "Figure":
    """Accuracies and differences of base model and adapter, with a row for each language and group, for all kinds of items together.

    There are two panels for each benchmark and for all together. The left one shows both accuracies and a line at chance. The right one shows the
    difference with its interval, on a band of the differences that could not have been detected.
    """
    acc = differences[(differences["metric"] == "acc") & (differences["kind"] == ALL)]
    tasks = _shown_tasks(acc)
    names = list(dict.fromkeys(acc["language"]))
    figure = new_figure(8.6, 0.9 + len(tasks) * (0.55 + 0.21 * len(names)))
    panels = figure.subplots(len(tasks), 2, sharey=True, squeeze=False, width_ratios=[1, 1.25])
    reach = max(0.05, float(acc.loc[acc["task"].isin(tasks), ["lo", "hi", "mde"]].abs().to_numpy().max())) * 1.08
    for task, (left, right) in zip(tasks, panels, strict=True):
        cells = acc[acc["task"] == task].set_index("language").reindex(names)
        heights = range(len(names))
        left.hlines(heights, cells["base"], cells["adapter"], color="0.75", linewidth=1.5, zorder=1)
        left.plot(cells["base"], heights, "o", color=BLACK, markerfacecolor="white", markersize=4.5, label="base")
        left.plot(cells["adapter"], heights, "s", color=BLUE, markersize=4, label="adapter")
        left.axvline(float(cells["chance"].mean()), color="0.4", linestyle="--", linewidth=1, label="chance")
        left.set_xlim(-0.03, 1.03)
        right.barh(heights, 2 * cells["mde"], left=-cells["mde"], height=0.8, color="0.9", zorder=0, label=f"not detectable ({power:.0%} power)")
        right.errorbar(cells["estimate"], heights, xerr=reach_of(cells), fmt="D", color=ORANGE, markersize=3.5, linewidth=1.2, label="difference")
        zero_line(right, vertical=True)
        right.set_xlim(-reach, reach)
        left.tick_params(labelsize=8.5)
        right.tick_params(labelsize=8.5)
        left.set_title("all benchmarks together" if task == ALL else task, fontsize=10, loc="left")
    panels[0][0].set_yticks(range(len(names)), [_row_name(name, languages) for name in names])
    panels[0][0].set_ylim(len(names) - 0.4, -0.6)
    panels[-1][0].set_xlabel("accuracy")
    panels[-1][1].set_xlabel(f"adapter - base, {confidence:.0%} interval")
    handles = [pair for axes in panels[0] for pair in zip(*axes.get_legend_handles_labels(), strict=True)]
    figure.legend(*zip(*handles, strict=True), loc="outside upper center", ncols=len(handles), frameon=False, fontsize=8.5)
    return figure


def _row_name(name: str, languages: LanguagesConfig) -> str:
    return name if name in languages.all else f"mean of {name}"


def _shown_tasks(acc: pd.DataFrame) -> list[str]:
    """The tasks of the panels: at most seven, and `all` at the end."""
    tasks = [task for task in dict.fromkeys(acc["task"]) if task != ALL]
    pooled = [ALL] if len(tasks) > 1 and (acc["task"] == ALL).any() else []
    return [*tasks[:7], *pooled]


def _panels(acc: pd.DataFrame, x_label: str) -> tuple["Figure", dict[str, "Axes"]]:
    """A panel for each benchmark, with a row for each language and a mark for each kind."""
    tasks = _shown_tasks(acc)
    languages, kinds = list(dict.fromkeys(acc["language"])), list(dict.fromkeys(acc["kind"]))
    figure = new_figure(1.2 + 2.6 * len(tasks), 1.4 + 0.42 * len(languages))
    panels = figure.subplots(1, len(tasks), sharey=True, squeeze=False)[0]
    for task, axes in zip(tasks, panels, strict=True):
        for number, kind in enumerate(kinds):
            colour, marker = KIND_LOOKS[number % len(KIND_LOOKS)]
            cells = acc[(acc["task"] == task) & (acc["kind"] == kind)]
            heights = [languages.index(language) + (number - (len(kinds) - 1) / 2) * 0.22 for language in cells["language"]]
            axes.errorbar(cells["estimate"], heights, xerr=reach_of(cells), fmt=marker, color=colour, markersize=4, linewidth=1, label=kind)
        axes.set_title(task, fontsize=10)
        axes.grid(axis="y", color="0.92")
        axes.set_axisbelow(True)
    panels[0].set_yticks(range(len(languages)), languages)
    panels[0].set_ylim(len(languages) - 0.4, -0.6)
    figure.supxlabel(x_label, fontsize=10)
    return figure, dict(zip(tasks, panels, strict=True))


def _legend(figure: "Figure", axes: "Axes") -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False, fontsize=9)
