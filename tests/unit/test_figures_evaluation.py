"""Figures of an evaluation: the numbers of the tables in the right places. How they look is for eyes."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.container import BarContainer, ErrorbarContainer
from matplotlib.figure import Figure

from lingact.config.data import LanguagesConfig
from lingact.figures.evaluation import accuracy_figure, difference_figure

LANGUAGES = LanguagesConfig(reference="en", high=("es",), low=("ml", "hi"))
PLACES = (*LANGUAGES.all, "all", "low")


def accuracies(benchmarks: tuple[str, ...], kinds: tuple[str, ...] = ("all", "read", "transfer")) -> pd.DataFrame:
    """Base and adapter, every number another one."""
    tasks = (*benchmarks, "all")
    cells = [(task, code, kind) for task in tasks for code in LANGUAGES.all for kind in kinds]
    rows = []
    for place, (task, code, kind) in enumerate(cells):
        value = 0.2 + 0.5 * place / len(cells)
        rows.append(
            {"model": "base", "task": task, "language": code, "kind": kind, "metric": "acc", "estimate": value, "lo": value - 0.1, "hi": value + 0.05}
            | {"chance": 0.25 + tasks.index(task) / 100}
        )
    base = pd.DataFrame(rows)
    other = base.assign(estimate=0.99, lo=0.99, hi=0.99, chance=0.99)
    return pd.concat([base, other.assign(model="adapter"), other.assign(metric="acc_norm")], ignore_index=True)


def changes(benchmarks: tuple[str, ...], places: tuple[str, ...] = PLACES) -> pd.DataFrame:
    tasks = (*benchmarks, "all")
    rows = []
    for number, task in enumerate(tasks):
        for place, name in enumerate(places):
            base, change = 0.3 + 0.02 * place + 0.01 * number, 0.01 * place - 0.03 + 0.001 * number
            rows.append(
                {
                    "task": task,
                    "language": name,
                    "kind": "all",
                    "metric": "acc",
                    "base": base,
                    "adapter": base + change,
                    "chance": 0.25 + number / 100,
                }
                | {"estimate": change, "lo": change - 0.02, "hi": change + 0.04, "mde": 0.01 + 0.001 * place}
            )
    whole = pd.DataFrame(rows)
    other = whole.assign(estimate=0.9, lo=0.9, hi=0.9, mde=0.9, base=0.9, adapter=0.9)
    return pd.concat([whole, other.assign(kind="read"), other.assign(metric="acc_norm")], ignore_index=True)


def difference(table: pd.DataFrame) -> Figure:
    return difference_figure(table, LANGUAGES, confidence=0.95, power=0.8)


def lines(axes: Axes) -> dict[str, np.ndarray]:
    """Label -> points of each labelled line."""
    return {str(line.get_label()): np.asarray(line.get_xydata()) for line in axes.get_lines()}


def errorbars(axes: Axes) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Label -> points, and the ends of their bars."""
    found = {}
    for drawn in axes.containers:
        if isinstance(drawn, ErrorbarContainer):
            (bars,) = drawn.lines[2]
            found[str(drawn.get_label())] = (np.asarray(drawn.lines[0].get_xydata()), np.array([segment[:, 0] for segment in bars.get_segments()]))
    return found


def rows_of(axes: Axes) -> list[str]:
    return [label.get_text() for label in axes.get_yticklabels()]


def legend(figure: Figure) -> list[str]:
    (drawn,) = figure.legends
    return [text.get_text() for text in drawn.get_texts()]


def saved(figure: Figure, folder: Path) -> None:
    """Warnings are errors: a layout that does not fit would be one."""
    figure.savefig(folder / "figure.png", dpi=50)
    assert (folder / "figure.png").stat().st_size > 2000


# --- the base model -----------------------------------------------------------------------------------------------------------------------------


def test_accuracies_are_drawn_as_they_are_in_the_table(tmp_path: Path) -> None:
    table = accuracies(("arc", "mmlu"))
    figure = accuracy_figure(table, confidence=0.9)
    assert [axes.get_title() for axes in figure.axes] == ["arc", "mmlu", "all"]
    assert rows_of(figure.axes[0]) == ["en", "es", "ml", "hi"]
    base = table[(table["model"] == "base") & (table["metric"] == "acc")].set_index(["task", "kind"])
    for number, axes in enumerate(figure.axes):
        drawn = errorbars(axes)
        assert list(drawn) == ["all", "read", "transfer"]
        for kind, (points, ends) in drawn.items():
            own = base.loc[(axes.get_title(), kind)]
            assert points[:, 0] == pytest.approx(own["estimate"].to_numpy())
            assert points[:, 1].round().tolist() == [0, 1, 2, 3], "each on its language's row"
            assert ends == pytest.approx(own[["lo", "hi"]].to_numpy())
        assert lines(axes)["chance"][:, 0] == pytest.approx([0.25 + number / 100] * 2)
        low, high = axes.get_xlim()
        assert low < 0 < 1 < high
    bottom, top = figure.axes[0].get_ylim()
    assert bottom > top, "the first language is at the top"
    assert set(legend(figure)) == {"chance", "all", "read", "transfer"}
    assert figure.get_supxlabel() == "accuracy of the base model, 90% interval"
    saved(figure, tmp_path)


def test_a_language_without_a_benchmark_keeps_its_row_empty() -> None:
    table = accuracies(("arc", "mmlu"), kinds=("all",))
    table = table[~((table["task"] == "arc") & (table["language"] == "es"))]
    figure = accuracy_figure(table, confidence=0.95)
    names = rows_of(figure.axes[0])
    assert sorted(names) == ["en", "es", "hi", "ml"]
    base = table[(table["model"] == "base") & (table["metric"] == "acc")].set_index(["task", "language"])["estimate"]
    for axes, codes in zip(figure.axes, (("en", "ml", "hi"), LANGUAGES.all, LANGUAGES.all), strict=True):
        points, _ = errorbars(axes)["all"]
        drawn = {names[round(height)]: value for value, height in points}
        assert drawn == pytest.approx({code: base[axes.get_title(), code] for code in codes})


def test_one_benchmark_has_one_panel(tmp_path: Path) -> None:
    figure = accuracy_figure(accuracies(("arc",)), confidence=0.95)
    assert [axes.get_title() for axes in figure.axes] == ["arc"]
    saved(figure, tmp_path)


def test_more_than_seven_benchmarks_show_seven_and_all(tmp_path: Path) -> None:
    names = tuple(f"b{i}" for i in range(9))
    figure = accuracy_figure(accuracies(names), confidence=0.95)
    assert [axes.get_title() for axes in figure.axes] == ["b0", "b1", "b2", "b3", "b4", "b5", "b6", "all"]
    saved(figure, tmp_path)
    figure = difference(changes(names))
    assert [axes.get_title(loc="left") for axes in figure.axes[::2]] == ["b0", "b1", "b2", "b3", "b4", "b5", "b6", "all benchmarks together"]
    saved(figure, tmp_path)


# --- base against adapter -----------------------------------------------------------------------------------------------------------------------


def test_differences_are_drawn_as_they_are_in_the_table(tmp_path: Path) -> None:
    table = changes(("arc", "mmlu"))
    figure = difference(table)
    assert len(figure.axes) == 6
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["arc", "", "mmlu", "", "all benchmarks together", ""]
    whole = table[(table["kind"] == "all") & (table["metric"] == "acc")].set_index("task")
    heights = list(range(len(PLACES)))
    for task, left, right in zip(("arc", "mmlu", "all"), figure.axes[::2], figure.axes[1::2], strict=True):
        own = whole.loc[task]
        levels = lines(left)
        for name in ("base", "adapter"):
            assert levels[name][:, 0] == pytest.approx(own[name].to_numpy())
            assert levels[name][:, 1].tolist() == heights
        assert levels["chance"][:, 0] == pytest.approx(own["chance"].to_numpy()[:2])
        points, ends = errorbars(right)["difference"]
        assert points == pytest.approx(np.column_stack([own["estimate"], heights]))
        assert ends == pytest.approx(own[["lo", "hi"]].to_numpy())
        (band,) = (drawn for drawn in right.containers if isinstance(drawn, BarContainer))
        reach = [(bar.get_x(), bar.get_x() + bar.get_width(), bar.get_y() + bar.get_height() / 2) for bar in band]
        assert np.array(reach) == pytest.approx(np.column_stack([-own["mde"], own["mde"], heights]))
        low, high = right.get_xlim()
        assert low == -high
        assert high >= own[["lo", "hi"]].abs().to_numpy().max()
    assert set(legend(figure)) == {"base", "adapter", "chance", "not detectable (80% power)", "difference"}
    assert (figure.axes[-2].get_xlabel(), figure.axes[-1].get_xlabel()) == ("accuracy", "adapter - base, 95% interval")
    saved(figure, tmp_path)


def test_rows_of_groups_say_that_they_are_means() -> None:
    assert rows_of(difference(changes(("arc", "mmlu"))).axes[0]) == ["en", "es", "ml", "hi", "mean of all", "mean of low"]


def test_what_a_benchmark_lacks_leaves_rows_empty(tmp_path: Path) -> None:
    table = changes(("arc", "mmlu"))
    figure = difference(table[~((table["task"] == "arc") & table["language"].isin(("hi", "low")))])
    names = rows_of(figure.axes[0])
    assert sorted(names) == sorted(["en", "es", "ml", "hi", "mean of all", "mean of low"])
    for axes, empty in ((figure.axes[0], {"hi", "mean of low"}), (figure.axes[-2], set())):
        drawn = dict(zip(names, lines(axes)["base"][:, 0], strict=True))
        assert {name for name, value in drawn.items() if np.isnan(value)} == empty
    own = table[(table["task"] == "all") & (table["kind"] == "all") & (table["metric"] == "acc")].set_index("language")["base"]
    assert drawn["hi"] == own["hi"]
    assert drawn["mean of low"] == own["low"]
    saved(figure, tmp_path)


def test_a_single_benchmark_without_groups(tmp_path: Path) -> None:
    figure = difference(changes(("arc",), ("en", "ml")))
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["arc", ""]
    assert rows_of(figure.axes[0]) == ["en", "ml"]
    saved(figure, tmp_path)


def test_an_adapter_that_changes_nothing_can_be_drawn(tmp_path: Path) -> None:
    table = changes(("arc", "mmlu"), ("en", "ml"))
    table = table.assign(adapter=table["base"], estimate=0.0, lo=0.0, hi=0.0, mde=0.02)
    figure = difference(table)
    assert figure.axes[1].get_xlim() == pytest.approx((-0.054, 0.054))
    saved(figure, tmp_path)


def test_an_interval_without_limits_can_be_drawn(tmp_path: Path) -> None:
    # Several seeds on a single fact: the effect has no error.
    table = changes(("arc",), ("en", "ml"))
    table.loc[table["language"] == "ml", ["lo", "hi", "mde"]] = np.nan
    figure = difference(table)
    assert np.isfinite(figure.axes[1].get_xlim()).all()
    saved(figure, tmp_path)
