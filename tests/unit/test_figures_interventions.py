"""What stands in the figures of interventions: right places, right signs. How they look is for eyes."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes

from lingact.config.data import LanguagesConfig
from lingact.figures.interventions import causal_matrix, dose_response, spliced_curves

LANGUAGES = LanguagesConfig(reference="en", high=("es",), low=("ml", "hi"))
CODES = ("en", "es", "ml", "hi")


def effects(
    owners: tuple[str, ...] = ("es", "ml"), doses: tuple[float, ...] = (0.0, 2.0, 4.0), mode: str = "scale", scale: float = 1.0
) -> pd.DataFrame:
    """Specific latents cost their own language 0.5 (surely) and others 0.1 times the dose, plus 0.2; random ones nothing."""
    rows: list[dict[str, Any]] = []
    for owner in owners:
        for dose in doses:
            for code in CODES:
                cost = scale * (0.2 + dose * (0.5 if code == owner else 0.1))
                arm = {"owner": owner, "mode": mode, "dose": dose, "measured": code, "n": 9}
                rows.append(arm | {"kind": "specific", "estimate": cost, "lo": cost - 0.1 * scale, "hi": cost + 0.1 * scale})
                rows.append(arm | {"kind": "random", "estimate": 0.0, "lo": -0.1, "hi": 0.1})
    return pd.DataFrame(rows)


def lines(axes: Axes) -> dict[Any, list[Any]]:
    """Marker and line style -> heights of the curves."""
    curves = [line for line in axes.lines if len(line.get_xdata()) > 2]  # neither lines of zero nor ends of error bars
    return {(line.get_marker(), line.get_linestyle()): list(line.get_ydata()) for line in curves if line.get_linestyle() != "None"}


def test_the_matrix_has_owners_in_rows_and_a_frame_around_the_own_language() -> None:
    table = effects()
    table.loc[(table["owner"] == "ml") & (table["measured"] == "hi"), ["estimate", "lo", "hi"]] = [-0.3, -0.4, -0.1]
    figure = causal_matrix(table)
    own, random = figure.axes[:2]
    assert [label.get_text() for label in own.get_yticklabels()] == ["es", "ml"]
    assert [label.get_text() for label in own.get_xticklabels()] == list(CODES)
    texts = {text.get_position(): text.get_text() for text in own.texts}
    assert texts[0, 0] == "0.20*"
    assert texts[3, 1] == "\N{MINUS SIGN}0.30*"
    assert {text.get_text() for text in random.texts} == {"0.00", "\N{MINUS SIGN}0.30*"}
    assert [(round(patch.get_x() + 0.48), round(patch.get_y() + 0.46)) for patch in own.patches] == [(1, 0), (2, 1)]


def test_small_effects_are_written_with_a_digit_more() -> None:
    figure = causal_matrix(effects(scale=0.01))
    assert figure.axes[0].texts[0].get_text() == "0.002*"


def test_dose_curves_pass_through_nothing_at_the_neutral_dose() -> None:
    figure = dose_response(effects(), "scale")
    assert [axes.get_title() for axes in figure.axes] == ["es", "ml"]
    for axes in figure.axes:
        found = lines(axes)
        assert found["o", "-"] == pytest.approx([0.2, 0, 1.2, 2.2])
        assert found["s", "--"] == pytest.approx([0.2, 0, 0.4, 0.6])
        assert found["^", ":"] == pytest.approx([0, 0, 0, 0])
    steered = dose_response(effects(doses=(1.0, 2.0), mode="steer"), "steer")
    assert lines(steered.axes[0])["o", "-"] == pytest.approx([0, 0.7, 1.2])


def test_panels_without_an_owner_are_empty() -> None:
    figure = dose_response(effects(owners=(*CODES, "it")), "scale")
    assert [axes.axison for axes in figure.axes] == [True] * 5 + [False] * 3


def test_spliced_curves_have_a_line_for_each_language() -> None:
    rows = [
        {"sae_set": sae_set, "language": code, "layer": layer, "quantity": quantity, "n": 9, "estimate": value, "lo": value, "hi": value}
        for sae_set in ("measuring", "heldout")
        for place, code in enumerate(CODES)
        for layer in (2, 0, 1)
        for quantity, value in (("ce_increase", place + layer / 10), ("loss_recovered", 0.9))
    ]
    figure = spliced_curves(pd.DataFrame(rows), LANGUAGES)
    assert [axes.get_title() for axes in figure.axes] == ["measuring SAEs", "heldout SAEs"]
    drawn = {str(line.get_label()): np.asarray(line.get_ydata()) for line in figure.axes[1].lines if line.get_label() in CODES}
    assert list(drawn) == list(CODES)
    assert drawn["ml"] == pytest.approx([2.0, 2.1, 2.2])
