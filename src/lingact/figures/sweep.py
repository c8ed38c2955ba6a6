"""Figure of a sweep: gain of its jobs against their cost."""

from typing import TYPE_CHECKING, NotRequired, TypedDict

import numpy as np
import pandas as pd
from jaxtyping import Float

from lingact.figures.style import BLUE, ORANGE, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COSTS = {"kl": ("KL of the reference, nats", 0.0), "fvu_ratio": ("FVU of the target, after / base", 1.0)}
"""Cost -> label of the axis, and the value without cost."""
_FLOOR = -1.0
"""Points whose gap has more than doubled are named in the title and not drawn, because they would compress all others."""
_NEAR = 20
"""Points that are closer to each other than this, in pixels, get a common name."""


class _Look(TypedDict):
    """How a point is drawn."""

    color: str
    marker: str
    markerfacecolor: NotRequired[str]


def trade_off(frame: pd.DataFrame) -> "Figure":
    """Norm-matched gap closed over the cost, with a row of panels for each language and a column for each cost. Bars are ranges over seeds.

    Args:
        frame: a row for each method (`label`, `control`: whether it is one) and `language`; `closed`, `kl` and `fvu_ratio`, each also with `/lowest`
            and `/highest`. A cost that is nan everywhere is left out.
    """
    costs = [cost for cost in _COSTS if frame[cost].notna().any()]
    languages, labels = list(dict.fromkeys(frame["language"])), list(dict.fromkeys(frame["label"]))
    frame = frame.assign(number=[labels.index(label) + 1 for label in frame["label"]])
    figure = new_figure(2.2 + 4.0 * len(costs), max(3.8 * len(languages), 0.8 + 0.24 * len(labels)))
    panels = figure.subplots(len(languages), len(costs), sharex="col", sharey=True, squeeze=False)
    for (row, column), axes in np.ndenumerate(panels):
        cost = costs[column]
        points = frame[(frame["language"] == languages[row]) & frame["closed"].notna() & frame[cost].notna()]
        _points(axes, points[points["closed"] >= _FLOOR], cost)
        axes.set_title(f"{languages[row]}{_left_out(points)}", fontsize=9)
        axes.set_xlabel(_COSTS[cost][0] if row == len(languages) - 1 else "")
    figure.supylabel("gap closed, norm-matched", fontsize=10)
    _name_all(panels, frame, costs, languages)
    _legend(figure, frame)
    return figure


def _left_out(points: pd.DataFrame) -> str:
    below = points[points["closed"] < _FLOOR]
    return f"; not drawn: {', '.join(f'{p.number} ({p.closed:.1f})' for p in below.itertuples())}" if len(below) else ""


def _points(axes: "Axes", points: pd.DataFrame, cost: str) -> None:
    for control, own in points.groupby("control"):
        reach = {"xerr": _reach(own, cost), "yerr": _reach(own, "closed")}
        axes.errorbar(own[cost], own["closed"], **reach, **_look(bool(control)), linestyle="", markersize=6, elinewidth=1, zorder=3)
    for place in (0, 1):
        axes.axhline(place, color="0.35", linestyle="-" if place == 0 else ":", linewidth=0.9, zorder=1)
    axes.axvline(_COSTS[cost][1], color="0.35", linewidth=0.9, zorder=1)
    if cost == "kl":  # from 0 over several powers of ten
        axes.set_xscale("symlog", linthresh=1e-3)
    axes.grid(color="0.92")
    axes.set_axisbelow(True)
    axes.margins(0.12)


def _reach(points: pd.DataFrame, name: str) -> Float[np.ndarray, "2 point"]:
    # A mean of equal numbers can differ from them by rounding.
    middle, lowest, highest = (points[column].to_numpy(float) for column in (name, f"{name}/lowest", f"{name}/highest"))
    return np.maximum(0, np.array([middle - lowest, highest - middle]))


def _look(control: bool) -> _Look:
    return {"color": ORANGE, "marker": "s", "markerfacecolor": "white"} if control else {"color": BLUE, "marker": "o"}


def _name_all(panels: np.ndarray, frame: pd.DataFrame, costs: list[str], languages: list[str]) -> None:
    """Put numbers beside the points, with points on top of each other together. Called last, when the axes have their limits."""
    for (row, column), axes in np.ndenumerate(panels):
        points = frame[(frame["language"] == languages[row]) & (frame["closed"] >= _FLOOR) & frame[costs[column]].notna()]
        together: list[tuple[np.ndarray, list[int]]] = []
        for point in points.to_dict("records"):
            place = np.array([point[costs[column]], point["closed"]])
            pixel = axes.transData.transform(place)
            near = (numbers for first, numbers in together if np.hypot(*(axes.transData.transform(first) - pixel)) < _NEAR)
            numbers = next(near, None)
            if numbers is None:
                together.append((place, [point["number"]]))
            else:
                numbers.append(point["number"])
        for place, numbers in together:
            axes.annotate(", ".join(map(str, numbers)), tuple(place), (5, 4), textcoords="offset points", fontsize=8, zorder=4)


def _legend(figure: "Figure", frame: pd.DataFrame) -> None:
    """The legend: what the numbers mean."""
    from matplotlib.lines import Line2D

    methods = frame.drop_duplicates("label")
    handles = [Line2D([], [], linestyle="", markersize=6, **_look(control)) for control in methods["control"]]
    names = [f"{method.number} {method.label}" for method in methods.itertuples()]
    title = "squares: controls" if methods["control"].any() else None
    figure.legend(handles, names, loc="outside right center", frameon=False, fontsize=8, title=title, title_fontsize=8)
