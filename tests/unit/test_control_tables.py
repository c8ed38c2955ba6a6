"""Draws of random directions: a row for each and their mean, and the trained SAEs beside them, with gaps that are known."""

import numpy as np
import pandas as pd
import pytest

from lingact.analysis.control_tables import draws_by_layer, draws_by_range, draws_summary, mean_rows, trained_minus_random
from lingact.analysis.tables import Disparities, disparities, layer_table, range_table
from lingact.config.data import LanguagesConfig
from lingact.config.measures import Statistics
from lingact.report.controls import random_text, wide_draws
from tests.helpers.sums import stats_of

LANGUAGES = LanguagesConfig(reference="en", high=("es",), low=("hi",))
SETTINGS = Statistics(pooling="token", resamples=200, confidence=0.95, early="third", deep="third")
GAPS = (0.1, 0.2, 0.6)


def gaps_of(hindi: float, spanish: float = 0.0, noise: float = 0.02, seed: int = 0, documents: tuple[str, ...] | None = None) -> Disparities:
    """Two layers, forty sentences; Hindi falls short by as much, and by .1 less at the second layer. The noise is that of the seed."""
    rng = np.random.default_rng(seed)
    english = 10 * np.ones((2, 40)) * (1 + noise * rng.standard_normal((1, 40)))
    level = {
        "en": english,
        "es": english * (1 - spanish),
        "hi": english * (1 - np.array([[hindi], [hindi - 0.1]]) + noise * rng.standard_normal((2, 40))),
    }
    stats = {code: stats_of(activation, np.ones(40, int), documents=documents) for code, activation in level.items()}
    return disparities(stats, LANGUAGES, SETTINGS, seed=0)


def drawn() -> list[Disparities]:
    return [gaps_of(gap) for gap in GAPS]


def test_each_draw_has_its_own_rows_and_the_mean_says_how_many_there_are() -> None:
    found = drawn()
    layers, ranges = draws_by_layer(found), draws_by_range(found)
    assert list(dict.fromkeys(zip(layers["draw"], layers["draws"], strict=True))) == [("1", 1), ("2", 1), ("3", 1), ("mean", 3)]
    for place, own in enumerate(found, start=1):
        for table, made in ((layers, layer_table(own)), (ranges, range_table(own))):
            rows = table[table["draw"] == str(place)].drop(columns=["draw", "draws"]).reset_index(drop=True)
            pd.testing.assert_frame_equal(rows, made)
    mean = mean_rows(layers).set_index(["name", "layer"])
    assert mean.loc[("hi", 0), "gap"] == pytest.approx(np.mean(GAPS), abs=0.01)
    assert mean.loc[("hi", 2), "gap"] == pytest.approx(np.mean(GAPS) - 0.1, abs=0.01)
    assert mean["band_lo"].isna().all()
    assert draws_summary(layers, ranges)["gap/hi/all"] == pytest.approx(np.mean(GAPS) - 0.05, abs=0.01)


def test_how_much_wider_the_mean_is_comes_from_all_draws() -> None:
    documents = tuple(f"d{place // 4}" for place in range(40))
    found = [gaps_of(0.2, seed=seed, documents=documents) for seed in range(3)]
    for table, names in ((draws_by_layer(found), ["name", "layer"]), (draws_by_range(found), ["name", "range", "statistic"])):
        single = table[table["draw"] != "mean"].groupby(names)["wider"].mean()
        pd.testing.assert_series_equal(mean_rows(table).set_index(names)["wider"].sort_index(), single)


def test_the_draw_is_in_the_interval_of_the_mean() -> None:
    ranges = draws_by_range(drawn())
    own = ranges[(ranges["name"] == "hi") & (ranges["range"] == "all") & (ranges["statistic"] == "mean")].set_index("draw")
    half = (own["hi"] - own["lo"]) / 2
    # s = .265 over three draws: t (2 degrees of freedom) = 4.30 times .265 / sqrt(3). The sentences add next to nothing.
    assert half["mean"] == pytest.approx(4.303 * np.std(GAPS, ddof=1) / 3**0.5, rel=0.02)
    assert (half.drop("mean") < 0.02).all()
    assert own.loc["1", "p"] < 1e-6 < 0.05 < own.loc["mean", "p"], "one draw is sure of itself; three that differ so much are not"


def test_one_draw_has_the_interval_of_its_sentences() -> None:
    ranges = draws_by_range(drawn()[:1])
    one, mean = (ranges[ranges["draw"] == draw].set_index(["name", "range", "statistic"]) for draw in ("1", "mean"))
    pd.testing.assert_frame_equal(one.drop(columns="draw"), mean.drop(columns="draw"))


def test_trained_saes_are_held_against_the_draws_on_the_same_sentences() -> None:
    # Three draws of nearly the same gap, .2, and a trained one of .3: the difference is known far better than either gap.
    found = trained_minus_random(gaps_of(0.3, noise=0.2), [gaps_of(0.2 + off, noise=0.2) for off in (-0.01, 0.0, 0.01)]).set_index(["name", "range"])
    row = found.loc[("hi", "all")]
    assert row[["n", "draws"]].tolist() == [40, 3]
    assert row["trained"] - row["random"] == pytest.approx(row["estimate"])
    assert row["estimate"] == pytest.approx(0.1, abs=0.001)
    assert 0.05 < row["lo"] < 0.1 < row["hi"] < 0.15
    spanish = found.loc[("es", "all")]
    assert (spanish["estimate"], spanish["p"]) == (pytest.approx(0, abs=1e-12), 1)
    alone = trained_minus_random(gaps_of(0.3), [gaps_of(0.3)]).set_index(["name", "range"])
    assert (alone["p"] == 1).all()


def test_an_undefined_gap_stays_undefined() -> None:
    found = drawn()
    found[1].gaps["hi"][0] = np.nan
    mean = mean_rows(draws_by_layer(found)).set_index("name")
    assert mean.loc["hi", ["gap", "lo", "hi", "p"]].isna().all(axis=None)
    assert mean.loc["es", "p_holm"].notna().all()


def test_the_text_says_how_much_draws_differ_and_what_remains_for_the_trained_saes() -> None:
    found = drawn()
    alike = [gaps_of(0.2 + off) for off in (-0.01, 0.0, 0.01)]
    text = random_text(draws_by_range(found), trained_minus_random(gaps_of(0.9), alike), LANGUAGES, 0.95)
    assert "the mean over 3 draws of directions, and the brackets cover the choice of directions and sentences" in text
    assert "single draws: +0.05 to +0.55" in text
    assert "larger (more positive) for 1 (Hindi) of 2 languages and smaller for none" in text
    alone = random_text(draws_by_range(found[:1]), trained_minus_random(gaps_of(0.9), found[:1]), LANGUAGES, 0.95)
    assert "This is one draw of directions, and the brackets do not cover the choice of directions." in alone
    assert list(wide_draws(draws_by_range(found))["draw"]) == ["1", "2", "3", "mean"]
