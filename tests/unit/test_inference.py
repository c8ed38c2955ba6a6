"""Intervals, bands, tests and effect sizes by hand and against scipy and statsmodels."""

from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from lingact.errors import UserError
from lingact.statistics import bootstrap


def test_resamples_draw_as_many_sentences_as_there_are_and_the_seed_decides() -> None:
    weights = bootstrap.Resampling.of_sentences(7).weights(50, 3)
    assert weights[0].tolist() == [1] * 7
    assert weights.shape == (51, 7)
    assert set(weights.sum(1)) == {7}
    assert np.array_equal(weights, bootstrap.Resampling.of_sentences(7).weights(50, 3))
    assert not np.array_equal(weights, bootstrap.Resampling.of_sentences(7).weights(50, 4))


def test_a_sentence_is_drawn_as_often_as_with_replacement() -> None:
    drawn = bootstrap.Resampling.of_sentences(20).weights(20_000, 0)[1:]
    expected = stats.binom.pmf(np.arange(5), 20, 1 / 20)
    shares = [(drawn == times).mean() for times in range(5)]
    assert shares == pytest.approx(expected, abs=0.004)


def test_a_single_sentence_is_refused() -> None:
    with pytest.raises(UserError, match="1 sentence is too few for an interval; give at least two sentences in the split"):
        bootstrap.Resampling.of_sentences(1).weights(10, 0)


def test_the_interval_is_made_of_percentiles_of_the_resamples_alone() -> None:
    draws = np.concatenate([[50.0], np.arange(101.0)])  # the sample itself is no resample
    assert bootstrap.interval(draws, 0.9) == pytest.approx((50, 5, 95))


def correlated(layers: int, resamples: int) -> np.ndarray:
    """Normal draws around 1, 2, ... with SE 0.1, 0.2, ..., neighbouring layers correlated by 0.8; row 0 is the truth."""
    rng = np.random.default_rng(0)
    place = np.arange(layers)
    noise = rng.multivariate_normal(np.zeros(layers), 0.8 ** np.abs(place[:, None] - place), size=resamples)
    noise[0] = 0
    return (1 + place) * (1 + 0.1 * noise)


def test_a_band_over_one_layer_is_the_normal_interval() -> None:
    low, high = bootstrap.simultaneous_band(correlated(1, 100_000), 0.95)
    assert (low[0], high[0]) == pytest.approx((1 - 0.196, 1 + 0.196), abs=0.002)


def test_a_band_holds_all_layers_of_a_draw_as_often_as_it_says() -> None:
    draws = correlated(6, 20_000)
    low, high = bootstrap.simultaneous_band(draws, 0.9)
    assert ((draws[1:] >= low) & (draws[1:] <= high)).all(axis=1).mean() == pytest.approx(0.9, abs=0.001)
    # In units of SE it is the same at every layer: wider than one layer's interval, narrower than Bonferroni's.
    units = (high - low) / 2 / draws[1:].std(axis=0, ddof=1)
    assert np.ptp(units) < 1e-9
    assert stats.norm.isf(0.05) < units[0] < stats.norm.isf(0.05 / 6)


def test_layers_without_spread_or_undefined_leave_the_band_of_the_others_alone() -> None:
    draws = correlated(2, 500)
    known = bootstrap.simultaneous_band(draws, 0.9)
    still, undefined = np.full((500, 1), 0.3), np.full((500, 1), np.nan)
    low, high = bootstrap.simultaneous_band(np.concatenate([still, draws, undefined], axis=1), 0.9)
    assert (low[0], high[0]) == (0.3, 0.3)
    np.testing.assert_array_equal((low[1:3], high[1:3]), known)
    assert np.isnan([low[3], high[3]]).all()
    low, high = bootstrap.simultaneous_band(np.concatenate([still, undefined], axis=1), 0.9)
    np.testing.assert_array_equal((low, high), [[0.3, np.nan]] * 2)


def test_p_is_that_of_a_normal_distribution_with_the_spread_of_the_resamples() -> None:
    noise = np.random.default_rng(1).normal(0, [0.1, 2.0], (400, 2))
    draws = np.concatenate([[[0.25, -3.0]], noise])
    expected = 2 * stats.norm.sf(np.abs([0.25, -3.0]) / noise.std(axis=0, ddof=1))
    assert bootstrap.p_value(draws) == pytest.approx(expected)
    assert float(bootstrap.p_value(draws[:, 1])) == pytest.approx(expected[1])


def test_p_without_spread_is_certain_and_of_nothing_is_undefined() -> None:
    draws = np.tile([0.0, 0.3, np.nan], (100, 1))
    np.testing.assert_array_equal(bootstrap.p_value(draws), [1, 0, np.nan])


def test_p_of_the_bootstrap_of_a_mean_is_nearly_that_of_the_z_test() -> None:
    x = np.random.default_rng(2).normal(0.2, 1, 200)
    draws = bootstrap.Resampling.of_sentences(200).weights(20_000, 0) @ x / 200
    expected = 2 * stats.norm.sf(x.mean() / (x.std() / 200**0.5))  # the SE of resampling has n, not n - 1, below the line
    assert float(bootstrap.p_value(draws)) == pytest.approx(expected, rel=0.1)


def test_holm_by_hand_and_against_statsmodels() -> None:
    # sorted .01 .02 .03 .04 times 4 3 2 1, running maximum: .04 .06 .06 .06
    assert bootstrap.holm(np.array([0.04, 0.01, 0.03, 0.02])) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    p = np.random.default_rng(3).uniform(size=30) ** 3
    assert bootstrap.holm(p) == pytest.approx(multipletests(p, method="holm")[1])


def test_benjamini_hochberg_by_hand_and_against_statsmodels() -> None:
    # sorted .01 .02 .03 .9 times 4/1 4/2 4/3 4/4, running minimum from above: .04 .04 .04 .9
    assert bootstrap.benjamini_hochberg(np.array([0.9, 0.01, 0.03, 0.02])) == pytest.approx([0.9, 0.04, 0.04, 0.04])
    p = np.random.default_rng(3).uniform(size=30) ** 3
    assert bootstrap.benjamini_hochberg(p) == pytest.approx(multipletests(p, method="fdr_bh")[1])


@pytest.mark.parametrize("correct", [bootstrap.holm, bootstrap.benjamini_hochberg])
def test_what_was_not_tested_is_not_counted(correct: Callable[[np.ndarray], np.ndarray]) -> None:
    p = np.array([0.04, 0.01, 0.03, 0.02])
    found = correct(np.insert(p, [0, 2], np.nan))
    assert np.isnan(found[[0, 3]]).all()
    np.testing.assert_array_equal(np.delete(found, [0, 3]), correct(p))
    assert np.isnan(correct(np.full(2, np.nan))).all()


def test_effect_size_is_that_of_the_paired_t_test() -> None:
    first, second = np.random.default_rng(4).normal([[1.0], [0.0]], 1, (2, 2, 25))
    t = stats.ttest_rel(first, second, axis=1).statistic
    assert bootstrap.effect_size(first - second) == pytest.approx(t / 25**0.5)


def test_effect_size_leaves_out_pairs_without_a_difference() -> None:
    # mean 2, standard deviation 1 of (1, 2, 3); no spread; one pair alone; none.
    rows = np.array([[1.0, np.nan, 2.0, 3.0], [2.0] * 4, [np.nan, np.nan, 5.0, np.nan], [np.nan] * 4])
    np.testing.assert_allclose(bootstrap.effect_size(rows), [2, np.nan, np.nan, np.nan])
