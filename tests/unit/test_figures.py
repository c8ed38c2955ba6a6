"""What stands in the figures: right places, right signs, nothing lost. How they look is for eyes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from lingact.analysis.tables import Disparities, layer_table
from lingact.config.data import LanguagesConfig
from lingact.figures import gaps, training
from lingact.statistics.bootstrap import Resampling

LANGUAGES = LanguagesConfig(reference="en", high=("zh", "es"), low=("ml", "hi"))


def found(layers: int) -> Disparities:
    """Malayalam 0.3 short and sure, Chinese 0.2 above and sure, the others about 0 and unsure."""
    noise = np.random.default_rng(0).normal(0, 0.02, (200, layers))
    noise[0] = 0
    gaps = {"zh": -0.2 + noise, "es": noise, "ml": 0.3 + noise, "hi": -noise}
    gaps |= {"low": (gaps["ml"] + gaps["hi"]) / 2, "high": (gaps["zh"] + gaps["es"]) / 2}
    gaps["low_vs_high"] = 1 - (1 - gaps["low"]) / (1 - gaps["high"])
    activations = {"en": np.full((200, layers), 10.0)} | {code: 10 * (1 - gaps[code]) for code in ("zh", "es", "ml", "hi")}
    return Disparities(tuple(range(layers)), {"all": list(range(layers))}, activations, gaps, Resampling.of_sentences(50), 0.95)


def confounds(layers: int, growth: float = 1.0) -> pd.DataFrame:
    rows = []
    for place, code in enumerate(LANGUAGES.all):
        whole = {"language": code, "layer": None, "n": 50, "estimate": 10.0 + place, "lo": 9.0, "hi": 20.0}
        rows += [whole | {"quantity": quantity} for quantity in ("tokens_per_sentence", "bytes_per_sentence", "windows_per_sentence")]
        for quantity in ("fvu", "l0", "residual_norm"):
            for layer in range(layers):
                value = (1 + place) * growth**layer
                rows.append({"language": code, "layer": layer, "quantity": quantity, "n": 50, "estimate": value, "lo": value, "hi": value})
    return pd.DataFrame(rows).astype({"layer": "Int64"})


def change(codes: tuple[str, ...], layers: tuple[int, ...]) -> pd.DataFrame:
    values = {"gap_before": 0.4, "gap_after": 0.1, "gap_after_norm_matched": 0.2, "gain": 0.5}
    return pd.DataFrame(
        {"sae_set": sae_set, "language": code, "layer": layer, "quantity": name, "n": 9, "estimate": value, "lo": value - 0.05, "hi": value + 0.05}
        for sae_set in ("measuring", "heldout")
        for code in codes
        for layer in layers
        for name, value in values.items()
    )


def cell_texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


def test_heatmap_writes_values_and_marks_sure_ones() -> None:
    figure = gaps.gap_heatmap(layer_table(found(3)), LANGUAGES, 0.95)
    assert cell_texts(figure)[:4] == ["\N{MINUS SIGN}0.20*", "0.00", "+0.30*", "0.00"]
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["zh", "es", "ml", "hi"]
    lowest, highest = axes.images[0].get_clim()
    assert lowest == -highest  # no gap is the middle of the colours
    assert "95% interval" in axes.get_xlabel()
    assert [line.get_xdata()[0] for line in axes.lines] == [1.5]  # between high and low


def test_heatmap_of_many_layers_keeps_the_sign_without_colour() -> None:
    figure = gaps.gap_heatmap(layer_table(found(26)), LANGUAGES, 0.95)
    assert cell_texts(figure)[:4] == ["\N{MINUS SIGN}", "", "+", ""]
    assert len(figure.axes[0].get_yticks()) <= 14


def test_heatmap_survives_undefined_and_extreme_gaps(tmp_path: Path) -> None:
    extreme = found(6)
    extreme.gaps["ml"][:, 0] = -50
    extreme.gaps["hi"][:, 1] = np.nan
    figure = gaps.gap_heatmap(layer_table(extreme), LANGUAGES, 0.95)
    assert figure.axes[0].images[0].get_clim()[1] < 50
    figure.savefig(tmp_path / "x.png")


def test_heatmap_of_one_group_has_no_separator() -> None:
    alone = LanguagesConfig(reference="en", high=(), low=("ml", "hi"))
    assert not gaps.gap_heatmap(layer_table(found(3)), alone, 0.95).axes[0].lines


def test_group_curves_differ_in_more_than_colour() -> None:
    axes = gaps.group_curves(found(6)).axes[0]
    curves = [line for line in axes.lines if line.get_marker() not in ("None", None, "")]
    assert len({line.get_marker() for line in curves}) == len({line.get_linestyle() for line in curves}) == 3
    assert np.allclose(curves[0].get_ydata(), 0.15)
    assert len(axes.collections) == 3  # bands


def test_group_curves_have_the_intervals_of_the_table() -> None:
    few = replace(found(6), resampling=Resampling.of(50, [f"d{place // 5}" for place in range(50)], None, None))
    band = gaps.group_curves(few).axes[0].collections[0].get_paths()[0].get_extents()
    low = layer_table(few).set_index("name").loc["low"]
    assert [band.y0, band.y1] == pytest.approx([low["lo"].min(), low["hi"].max()]), "expanded for few documents"


def test_confounds_show_every_language(tmp_path: Path) -> None:
    figure = gaps.confound_panel(confounds(6), LANGUAGES)
    by_title = {axes.get_title(): axes for axes in figure.axes}
    assert [bar.get_height() for bar in by_title["tokens per sentence"].patches] == [10, 11, 12, 13, 14]
    lines = by_title["residual norm"].lines
    assert [line.get_label() for line in lines] == ["en", "zh", "es", "ml", "hi"]
    looks = {(to_hex(line.get_color()), line.get_marker(), to_hex(line.get_markerfacecolor())) for line in lines}
    assert len(looks) == 5
    figure.savefig(tmp_path / "x.png")


def test_confounds_that_grow_get_a_log_axis() -> None:
    scales = {axes.get_title(): axes.get_yscale() for axes in gaps.confound_panel(confounds(26, growth=1.2), LANGUAGES).axes}
    assert scales["residual norm"] == "log"


@pytest.mark.parametrize("codes", [("ml",), ("ml", "hi", "es")])
def test_change_bars_have_a_panel_for_each_sae_set_and_language(codes: tuple[str, ...]) -> None:
    figure = training.change_bars(change(codes, (2, 5)))  # layers need not begin at 0
    assert len(figure.axes) == 2 * len(codes)
    assert [bar.get_height() for bar in figure.axes[0].patches] == [0.4, 0.4, 0.1, 0.1, 0.2, 0.2]
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == [f"{code}, {sae_set} SAEs" for code in codes for sae_set in ("measuring", "heldout")]
    assert [label.get_text() for label in figure.axes[-1].get_xticklabels()] == ["2", "5"]


def test_change_of_many_layers_is_drawn_as_curves_and_stays_on_a_page() -> None:
    figure = training.change_bars(change(("ml", "hi", "es"), tuple(range(26))))
    assert figure.get_size_inches()[0] <= 11.3
    assert not figure.axes[0].patches
    curves = [container.lines[0] for container in figure.axes[0].containers]
    assert len({curve.get_marker() for curve in curves}) == len({curve.get_linestyle() for curve in curves}) == 3
    assert [len(curve.get_ydata()) for curve in curves] == [26, 26, 26]


def test_loss_curves_have_a_panel_for_each_term() -> None:
    frame = pd.DataFrame({"step": range(50), "gap": np.linspace(1, 0, 50), "retention": np.zeros(50)})
    figure = training.loss_curves(frame)
    assert [axes.get_title() for axes in figure.axes] == ["gap (raw)", "retention (raw)"]
    assert np.allclose(figure.axes[0].lines[0].get_ydata(), frame["gap"])
    assert len(training.loss_curves(frame.head(5)).axes[0].lines) == 1  # too short to smooth


def test_the_multiplier_has_a_panel_of_its_own_and_is_not_smoothed() -> None:
    frame = pd.DataFrame({"step": range(50), "gap": 1.0, "retention": 0.1, "norm": 0.2, "multiplier": np.linspace(1, 2, 50)})
    frame.loc[3, "norm"] = np.nan  # no such term in that step
    figure = training.loss_curves(frame)
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title() for axes in shown] == ["gap (raw)", "retention (raw)", "norm (raw)", "multiplier of retention"]
    assert [len(axes.lines) for axes in shown] == [2, 2, 2, 1]
    assert np.allclose(shown[3].lines[0].get_ydata(), frame["multiplier"])
    assert np.isfinite(shown[2].lines[0].get_ydata()).all()
