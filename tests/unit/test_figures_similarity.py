"""What stands in the figures of similarity and correlation: right places, right numbers, nothing lost. How they look is for eyes."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes

from lingact.analysis.side_by_side import side_by_side_correlations
from lingact.config.data import LanguagesConfig
from lingact.figures.correlation import score_scatter, side_by_side_figure
from lingact.figures.similarity import similarity_curves

LANGUAGES = LanguagesConfig(reference="en", high=("zh", "es"), low=("ml", "hi"))
CODES = ("zh", "es", "ml", "hi")


def similarity(codes: tuple[str, ...] = CODES) -> pd.DataFrame:
    """Language k reaches 0.5 + k / 10; the floor is 0.1 to 0.15, but Malayalam's own lies above it."""
    rows = []
    for place, code in enumerate(codes):
        for layer in (2, 5):
            for quantity in ("cka", "retrieval", "mrr", "centred_cosine", "cosine"):
                value = 0.5 + place / 10
                floor = 0.8 if code == "ml" else 0.1
                rows.append(
                    {"language": code, "layer": layer, "quantity": quantity, "n": 40, "estimate": value, "lo": value - 0.1, "hi": value + 0.1}
                    | {"floor": floor, "floor_hi": floor + 0.05}
                )
    return pd.DataFrame(rows)


def side_table() -> pd.DataFrame:
    scores = {"score_arc": [0.9, 0.7, 0.2, 0.4], "score_mmlu": [60.0, 50.0, 20.0, np.nan]}
    return pd.DataFrame({"language": CODES, "cka": [0.9, 0.8, 0.7, 0.6], "retrieval": 0.5, "cosine": 0.4, "gap": [-0.1, 0.0, 0.4, 0.2]} | scores)


def line(axes: Axes, label: str) -> np.ndarray:
    return next(np.asarray(drawn.get_xydata(), float) for drawn in axes.get_lines() if drawn.get_label() == label)


def test_curves_show_each_language_and_the_floor() -> None:
    figure = similarity_curves(similarity(), LANGUAGES)
    assert [axes.get_title() for axes in figure.axes][:2] == ["debiased linear CKA", "retrieval of translations (accuracy at 1)"]
    for axes in figure.axes[:5]:
        for place, code in enumerate(CODES):
            np.testing.assert_allclose(line(axes, code), [[2, 0.5 + place / 10], [5, 0.5 + place / 10]])
        np.testing.assert_allclose(line(axes, "shuffled pairs (all)")[:, 1], 0.85)


def test_a_cross_marks_what_is_not_above_its_own_floor() -> None:
    """Malayalam alone: the others lie above theirs although the band of all reaches over them."""
    figure = similarity_curves(similarity(), LANGUAGES)
    np.testing.assert_allclose(line(figure.axes[0], "not above its own\nshuffled pairs"), [[2, 0.7], [5, 0.7]])


def test_languages_of_a_group_differ_in_more_than_colour() -> None:
    figure = similarity_curves(similarity(), LANGUAGES)
    looks = {
        str(drawn.get_label()): (drawn.get_linestyle(), drawn.get_marker(), drawn.get_markerfacecolor() == "white")
        for drawn in figure.axes[0].get_lines()
    }
    assert len({looks[code] for code in CODES}) == 4


def test_curves_of_one_language_alone() -> None:
    figure = similarity_curves(similarity(("ml",)), LANGUAGES)
    legend = figure.axes[5].get_legend()
    assert legend is not None
    assert legend.get_title().get_text() == "filled: medium-to-low-resource"


def test_scatter_has_a_labelled_point_for_each_score_and_says_r_p_and_n() -> None:
    table = side_table()
    figure = score_scatter(table, side_by_side_correlations(table, seed=0), LANGUAGES)
    arc, mmlu = figure.axes
    assert sorted(text.get_text() for text in arc.texts) == sorted(CODES)
    assert sorted(text.get_text() for text in mmlu.texts) == ["es", "ml", "zh"]
    at = {text.get_text(): text.xy for text in arc.texts}
    assert at["ml"] == pytest.approx((0.4, 0.2))
    r = np.corrcoef(np.asarray(table[["gap", "score_arc"]], float).T)[0, 1]
    minus = "\N{MINUS SIGN}"
    assert arc.get_title() == f"arc\nr = {minus}{abs(r):.2f} (p 0.083), rho = {minus}1.00 (p 0.083), n = 4"
    assert mmlu.get_title() == "mmlu\nn = 3, correlation undefined"


def test_side_by_side_puts_the_best_scores_on_top() -> None:
    figure = side_by_side_figure(side_table(), LANGUAGES)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["ml", "hi", "es", "zh"]
    assert [axes.get_title() for axes in figure.axes][1:] == ["gap (positive: falls short)", "score: arc", "score: mmlu"]
    points = [np.asarray(drawn.get_xydata(), float) for drawn in figure.axes[1].get_lines()]
    np.testing.assert_allclose([point[0] for point in points if len(point) == 1], [[0.4, 0], [0.2, 1], [0.0, 2], [-0.1, 3]])
    np.testing.assert_allclose(line(figure.axes[0], "CKA")[:, 0], [0.7, 0.6, 0.8, 0.9])
