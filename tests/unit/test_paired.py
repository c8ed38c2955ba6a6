"""Two models on the same items: by hand, by enumeration, against statsmodels, and on simulated experiments whose truth is known."""

import functools
import itertools
from collections.abc import Iterator

import numpy as np
import pytest
from scipy.stats import binom
from statsmodels.regression.mixed_linear_model import MixedLM
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint

from lingact.statistics import paired
from lingact.statistics.paired import TestSettings
from tests.helpers.tiers import tiers, tolerance

SEED = 20261125  # written down before the first run; not to be tuned
SETTINGS = TestSettings(resamples=2000, confidence=0.95, seed=1)
exact, midp = functools.cache(paired.mcnemar_exact), functools.cache(paired.mcnemar_midp)


def test_wilson_by_hand_and_against_statsmodels() -> None:
    # 0 of 10 at z = 1.96: hi = z^2 / (n + z^2) = 3.8415 / 13.8415
    none = paired.wilson(np.zeros(10), confidence=0.95)
    assert (none.value, none.lo) == (0.0, 0.0)
    assert none.hi == pytest.approx(3.841459 / 13.841459, abs=1e-6)
    for hits, n in ((1, 7), (40, 80), (79, 80), (80, 80)):
        found = paired.wilson(np.array([1.0] * hits + [0.0] * (n - hits)), confidence=0.9)
        assert (found.lo, found.hi) == pytest.approx(proportion_confint(hits, n, alpha=0.1, method="wilson"), abs=1e-12)


def test_wilson_is_as_wide_as_for_the_facts_behind_the_items() -> None:
    hits = np.array([1.0, 1.0, 0.0, 0.0] * 10)
    assert paired.wilson(hits, confidence=0.95, effective_n=20).lo == pytest.approx(paired.wilson(hits[:20], confidence=0.95).lo)
    with pytest.raises(ValueError, match="no items"):
        paired.wilson(np.array([]), confidence=0.95)


# --- clusters ------------------------------------------------------------------------------------------------------------------------------------


def test_languages_weigh_the_same_whatever_their_size() -> None:
    # 4 items with mean 1/2 and 2 with mean -1: the mean of means is -1/4.
    sums, sizes = np.array([[2.0, 0.0, 0.0], [0.0, -1.0, -1.0]]), np.array([[2, 1, 1], [0, 1, 1]])
    totals, items = paired.pooled_sums(sums, sizes)
    assert (totals.tolist(), items) == ([2, -2, -2], 8)
    values = paired.linearised(sums, sizes)
    assert totals.sum() / items == values.mean() == -0.25
    # First language: 1/2 + (sum - size / 2) * 3/4 is 5/4, 1/8, 1/8. Second: always its mean, -1, as no fact deviates from it.
    assert values.tolist() == [(5 / 4 - 1) / 2, (1 / 8 - 1) / 2, (1 / 8 - 1) / 2]


def test_linearised_values_of_even_clusters_are_their_means() -> None:
    sums = np.array([[[2.0, -1.0, 0.0]], [[1.0, 1.0, -2.0]]])
    assert paired.linearised(sums, np.full((1, 3), 2)).tolist() == [[1, -0.5, 0], [0.5, 0.5, -1]]


def test_linearised_values_are_spread_like_a_ratio() -> None:
    """Accuracy over facts asked 1 to 9 times each: the values' standard error is the standard deviation over simulated experiments."""
    rng = np.random.default_rng(SEED)
    estimates, errors = [], []
    for _ in range(2000):
        sizes = rng.integers(1, 10, size=(1, 60))
        sums = rng.binomial(sizes, rng.uniform(size=sizes.shape)).astype(float)
        values = paired.linearised(sums, sizes)
        estimates.append(values.mean())
        errors.append(values.std(ddof=1) / np.sqrt(60))
    assert np.mean(errors) == pytest.approx(np.std(estimates), rel=0.05)


# --- tests by enumeration ------------------------------------------------------------------------------------------------------------------------


def flips(sums: np.ndarray) -> np.ndarray:
    """Absolute totals under all signs."""
    return np.abs([float(np.dot(signs, sums)) for signs in itertools.product((-1, 1), repeat=len(sums))])


def test_mcnemar_against_enumeration_and_statsmodels() -> None:
    for won, lost in itertools.product(range(7), repeat=2):
        totals, observed = flips(np.ones(won + lost)), abs(won - lost)
        assert paired.mcnemar_exact(won, lost) == pytest.approx((totals >= observed).mean())
        assert paired.mcnemar_exact(won, lost) == pytest.approx(mcnemar([[5, won], [lost, 5]], exact=True).pvalue)
        assert paired.sign_flip_p(np.array([1] * won + [-1] * lost + [0] * 3)) == pytest.approx((totals >= observed).mean())
        middle = (totals > observed).mean() + (totals == observed).mean() / 2 if won + lost else 1
        assert paired.mcnemar_midp(won, lost) == pytest.approx(middle)


def test_midp_of_the_published_example() -> None:
    # Bentur et al. 2009 in Fagerland et al. 2013, table 1: 1 against 7. Exact 2 * (1 + 8) / 256, mid-p less the 8 / 256 of the observed.
    assert paired.mcnemar_exact(1, 7) == pytest.approx(18 / 256)
    assert paired.mcnemar_midp(1, 7) == paired.mcnemar_midp(7, 1) == pytest.approx(10 / 256)
    assert paired.mcnemar_midp(1, 1) == pytest.approx(0.75)


def test_sign_flip_of_larger_clusters_against_enumeration() -> None:
    for sums in ([2, -1, 3, 1, 0, -2, 3], [4, 4, -2, 6, 2], [5], [3, -3], [7, 7, 7, -7, 7]):
        expected = (flips(np.array(sums)) >= abs(sum(sums))).mean()
        assert paired.sign_flip_p(np.array(sums)) == pytest.approx(expected)
        assert paired.sign_flip_p(np.array(sums, float)) == pytest.approx(expected)


def test_sign_flip_of_weighted_sums_against_enumeration() -> None:
    sums = np.array([0.1, 0.2, 0.3, -0.1, 0.2, 0.1, 1 / 3, 1 / 3, 0.7])
    expected = (flips(sums) >= sums.sum() - 1e-9).mean()
    assert expected == pytest.approx(0.0156, abs=1e-4)  # 8 of 512, of which half reach it exactly
    found = paired.sign_flip_p(sums)
    assert found == pytest.approx(expected, abs=4 * np.sqrt(expected / 20_000))
    assert found == paired.sign_flip_p(sums) == paired.sign_flip_p(-sums)
    assert paired.sign_flip_p(np.full(60, 0.1)) == 1 / 20_001


def test_sign_flip_of_weights_agrees_with_whole_numbers() -> None:
    sums = np.random.default_rng(SEED).integers(-3, 5, size=300)
    exact = paired.sign_flip_p(sums)
    assert 1e-6 < exact < 0.5
    assert paired.sign_flip_p(sums / 7) == pytest.approx(exact, abs=4 * np.sqrt(exact / 20_000) + 1 / 20_001)


def test_sign_flip_of_many_thousands() -> None:
    assert paired.sign_flip_p(np.array([1] * 30_500 + [-1] * 29_500)) == pytest.approx(paired.mcnemar_exact(30_500, 29_500), rel=1e-9)
    # Two sizes, beside the normal limit: totals are 2 apart, so z = (245 - 1) / sqrt(4195 + 4 * 4025) = 1.7127
    two = np.repeat([1, -1, 2, -2], [2195, 2000, 2025, 2000])
    assert paired.sign_flip_p(two) == pytest.approx(0.0868, abs=1e-4)
    # Two sizes and too long to convolve: Monte Carlo beside the normal limit, z = 650 / sqrt(20450 + 4 * 20100) = 2.047
    long = np.repeat([1, -1, 2, -2], [10_450, 10_000, 10_100, 10_000])
    assert paired.sign_flip_p(long) == pytest.approx(0.0407, abs=4 * np.sqrt(0.0407 / 20_000))


def test_no_difference_has_a_p_of_exactly_one() -> None:
    assert paired.sign_flip_p(np.zeros(5)) == paired.sign_flip_p(np.array([], int)) == paired.sign_flip_p(np.array([2, 1, -3] * 30)) == 1
    assert paired.mcnemar_exact(0, 0) == paired.mcnemar_midp(0, 0) == 1


# --- bootstrap -----------------------------------------------------------------------------------------------------------------------------------


def test_bootstrap_of_singletons_is_the_binomial() -> None:
    values = np.array([1.0] * 30 + [0.0] * 70)
    found, _ = paired.bootstrap_difference(values, np.ones(100, int), TestSettings(200_000, 0.95, 5))
    assert (found.n, found.value) == (100, pytest.approx(0.3))
    assert (found.lo, found.hi) == (pytest.approx(0.21, abs=0.011), pytest.approx(0.39, abs=0.011))  # binomial quantiles 21 and 39 of 100


def test_bootstrap_resamples_whole_clusters() -> None:
    values, clusters = np.repeat([1.0, 0.0], 50), np.repeat(range(20), 5)
    sums, sizes = np.bincount(clusters, weights=values), np.bincount(clusters)
    clustered, _ = paired.bootstrap_difference(sums, sizes, TestSettings(20_000, 0.95, 5))
    of_means, _ = paired.bootstrap_difference(np.repeat([1.0, 0.0], 10), np.ones(20, int), TestSettings(20_000, 0.95, 5))
    assert (clustered.lo, clustered.hi) == pytest.approx((of_means.lo, of_means.hi))


def test_bootstrap_needs_items() -> None:
    with pytest.raises(ValueError, match="no items"):
        paired.bootstrap_difference(np.array([]), np.array([], int), TestSettings(10, 0.95, 1))


def test_bootstrap_p_by_hand() -> None:
    # Two clusters, 1 and -1: a resample is -1, 0, 0 or 1. Below 0 a quarter, at 0 half: 2 * (1/4 + 1/4) = 1. With 3, -1: only -1 is below 0.
    settings = TestSettings(200_000, 0.95, 3)
    assert paired.bootstrap_difference(np.array([1.0, -1.0]), np.ones(2, int), settings)[1] == pytest.approx(1, abs=0.01)
    assert paired.bootstrap_difference(np.array([3.0, -1.0]), np.ones(2, int), settings)[1] == pytest.approx(0.5, abs=0.01)
    # 1, 1, -1: below 0 with two or three draws of -1, 7/27 of the resamples.
    assert paired.bootstrap_difference(np.array([1.0, 1.0, -1.0]), np.ones(3, int), settings)[1] == pytest.approx(14 / 27, abs=0.01)


def test_bootstrap_p_has_a_floor_and_is_one_without_differences() -> None:
    assert paired.bootstrap_difference(np.ones(50), np.ones(50, int), SETTINGS)[1] == 1 / 2001
    estimate, p = paired.bootstrap_difference(np.zeros(50), np.ones(50, int), SETTINGS)
    assert (estimate.value, estimate.lo, estimate.hi, p) == (0, 0, 0, 1)


def test_bootstrap_p_inverts_its_own_interval() -> None:
    rng = np.random.default_rng(SEED)
    decided = []
    for _ in range(200):
        sums = rng.choice([-1.0, 0.0, 1.0], p=[0.12, 0.7, 0.18], size=150)
        estimate, p = paired.bootstrap_difference(sums, np.ones(150, int), SETTINGS)
        assert (p < 0.05) == (estimate.lo > 0 or estimate.hi < 0) or 0 in (estimate.lo, estimate.hi) or p == pytest.approx(0.05, abs=0.002)
        decided.append(p < 0.05)
    assert 0.1 < np.mean(decided) < 0.9


# --- a handful of differences --------------------------------------------------------------------------------------------------------------------


def test_few_differences_by_hand() -> None:
    # 3 : 1 of 98 documents: (2 +- 1.96 sqrt(4 + 2)) / 100
    found = paired.few_differences(np.repeat([1.0, -1.0, 0.0], [3, 1, 94]), 98, confidence=0.95)
    assert (found.n, found.value) == (98, 2 / 98)
    assert (found.lo, found.hi) == pytest.approx((0.02 - 1.96 * np.sqrt(6) / 100, 0.02 + 1.96 * np.sqrt(6) / 100), abs=1e-5)
    # Clusters of 3 and -1 documents, 2 on average: (2 +- 1.96 sqrt(9 + 1 + 2 * 4)) / (96 + 4)
    found = paired.few_differences(np.array([3.0, -1.0, 0.0]), 96, confidence=0.95)
    assert (found.value, found.lo, found.hi) == pytest.approx((2 / 96, 0.02 - 1.96 * np.sqrt(18) / 100, 0.02 + 1.96 * np.sqrt(18) / 100), abs=1e-5)


def test_no_difference_has_an_interval_that_is_symmetric_around_zero() -> None:
    found = paired.few_differences(np.zeros(81), 81, confidence=0.95)
    assert (found.value, found.lo, found.hi) == (0, pytest.approx(-1.96 * np.sqrt(2) / 83, abs=1e-5), -found.lo)
    tiny = paired.few_differences(np.zeros(1), 1, confidence=0.95)
    assert (tiny.value, tiny.hi) == (0, -tiny.lo)


@pytest.mark.parametrize("confidence", [0.5, 0.68, 0.8, 0.9, 0.95, 0.99, 0.999])
def test_few_differences_do_not_contradict_the_exact_test(confidence: float) -> None:
    """Fewer differences than it can reject: 0 is inside, as is the estimate, in a few items or many, in clusters of one size or several."""
    fewest, rng = paired.fewest_one_sided(confidence), np.random.default_rng(SEED)
    for clusters, size, won in itertools.product((fewest, 12, 81, 1172), (1, 4), range(fewest)):
        for lost in range(fewest - won):
            sums = np.zeros(max(clusters, won + lost))
            sums[: won + lost] = np.repeat([1, -1], [won, lost]) * rng.integers(1, size + 1, size=won + lost)
            found = paired.few_differences(sums, len(sums) * size, confidence=confidence)
            assert paired.sign_flip_p(sums) > 1 - confidence
            assert -1 <= found.lo <= min(0, found.value) <= max(0, found.value) <= found.hi <= 1
            assert found.lo < found.hi


def test_few_differences_are_few() -> None:
    with pytest.raises(ValueError, match="6 clusters differ"):
        paired.few_differences(np.repeat([1.0, 0.0], [6, 75]), 81, confidence=0.95)
    with pytest.raises(ValueError, match="no items"):
        paired.few_differences(np.array([]), 0, confidence=0.95)


def test_six_of_six_exclude_zero_in_interval_and_test() -> None:
    estimate, p = paired.bootstrap_difference(np.repeat([1.0, 0.0], [6, 75]), np.ones(81, int), SETTINGS)
    assert estimate.lo > 0
    assert (p < 0.05, exact(6, 0)) == (True, 0.03125)
    assert paired.few_differences(np.repeat([1.0, 0.0], [5, 76]), 81, confidence=0.95).lo < 0  # by the formula, just so


@pytest.mark.parametrize(
    ("won", "lost", "before", "now"),
    [(0.02, 0.0, 0.809, 0.994), (0.01, 0.01, 0.991, 1.0), (0.03, 0.03, 0.951, 0.986), (0.06, 0.01, 0.927, 0.956), (0.1, 0.05, 0.927, 0.930)],
)
def test_coverage_with_few_differences(won: float, lost: float, before: float, now: float) -> None:
    """81 documents, 4,000 experiments: the bootstrap by itself, and with `few_differences` in its place where fewer than 6 differ."""
    rng, ones, truth, covered = np.random.default_rng(SEED), np.ones(81, int), won - lost, np.zeros(2)

    @functools.cache
    def holds(heads: int, tails: int) -> tuple[bool, bool]:
        sums = np.repeat([1.0, -1.0, 0.0], [heads, tails, 81 - heads - tails])
        resampled = paired.bootstrap_difference(sums, ones, SETTINGS)[0]
        other = paired.few_differences(sums, 81, confidence=0.95) if heads + tails < 6 else resampled
        return resampled.lo <= truth <= resampled.hi, other.lo <= truth <= other.hi

    for heads, tails, _ in rng.multinomial(81, [won, lost, 1 - won - lost], size=4000).tolist():
        covered += holds(heads, tails)
    assert covered / 4000 == pytest.approx([before, now], abs=0.01)
    assert covered[1] >= max(covered[0], 0.925 * 4000)


# --- several seeds -------------------------------------------------------------------------------------------------------------------------------


def test_crossed_effects_by_hand() -> None:
    # Seeds' means 2 and 4, clusters' 1, 3, 5, grand mean 3. MS_seed = 3 * (1 + 1) / 1 = 6; MS_cluster = 2 * (4 + 0 + 4) / 2 = 8;
    # residuals 1, -1, 0 and -1, 1, 0: MS = 4 / 2 = 2. Variance (6 + 8 - 2) / 6 = 2; freedom 12^2 / (6^2/1 + 8^2/2 + 2^2/2) = 144 / 70.
    found = paired.crossed_effects(np.array([[1.0, 1.0, 4.0], [1.0, 5.0, 6.0]]), confidence=0.95)
    assert (found.estimate.n, found.estimate.value, found.standard_error) == (3, 3, pytest.approx(np.sqrt(2)))
    assert found.freedom == pytest.approx(144 / 70)
    # t = 3 / sqrt(2) with 2.057 degrees of freedom; with 2 of them p were 1 - t / sqrt(t^2 + 2) = 0.168
    assert found.p == pytest.approx(0.165, abs=0.002)
    assert (found.estimate.lo, found.estimate.hi) == pytest.approx((3 - 5.92, 3 + 5.92), abs=0.1)


def test_crossed_effects_against_a_mixed_model() -> None:
    """statsmodels' REML estimates of a balanced design are those of the mean squares where no variance is truncated."""
    rng = np.random.default_rng(SEED)
    values = 0.3 + 0.5 * rng.standard_normal((6, 1)) + 0.7 * rng.standard_normal((1, 12)) + 0.4 * rng.standard_normal((6, 12))
    seed, cluster = (np.array(axis).ravel() for axis in np.indices(values.shape))
    parts = {"seed": np.eye(6)[seed], "cluster": np.eye(12)[cluster]}
    model = MixedLM(values.ravel(), np.ones(72), groups=np.zeros(72), exog_vc=_one_group(parts))
    fitted = model.fit(reml=True)
    found = paired.crossed_effects(values, confidence=0.95)
    assert (found.estimate.value, found.standard_error) == pytest.approx((fitted.params[0], fitted.bse_fe[0]), rel=1e-3)


def _one_group(parts: dict[str, np.ndarray]) -> object:
    from statsmodels.regression.mixed_linear_model import VCSpec

    names = list(parts)
    return VCSpec(names, [[[f"{name}{i}" for i in range(parts[name].shape[1])]] for name in names], [[parts[name]] for name in names])


def test_a_variance_below_zero_counts_as_zero() -> None:
    # The seeds' means agree although the residual does not: MS_seed = 0, taken as MS_residual, so that the variance is MS_cluster / (S I).
    values = np.array([[1.0, 0.0, 1.0, 0.0, 3.0], [0.0, 1.0, 0.0, 1.0, 3.0]])
    found = paired.crossed_effects(values, confidence=0.95)
    between = 2 * (4 * 0.5**2 + 2**2) / 4
    assert found.standard_error == pytest.approx(np.sqrt(between / 10))
    residual = 8 * 0.25 / 4
    assert found.freedom == pytest.approx(between**2 / (residual**2 / 1 + between**2 / 4 + residual**2 / 4))


def test_crossed_effects_at_the_edges() -> None:
    none = paired.crossed_effects(np.zeros((3, 20)), confidence=0.95)
    assert (none.estimate.value, none.estimate.lo, none.estimate.hi, none.p, none.freedom) == (0, 0, 0, 1, 19)
    sure = paired.crossed_effects(np.ones((3, 5)), confidence=0.95)
    assert (sure.estimate.lo, sure.estimate.hi, sure.p) == (1, 1, 2 / 2**5)
    alone = paired.crossed_effects(np.ones((3, 1)), confidence=0.95)
    assert alone.estimate.value == 1
    assert np.isnan([alone.estimate.lo, alone.estimate.hi, alone.p]).all()
    with pytest.raises(ValueError, match="one seed"):
        paired.crossed_effects(np.ones((1, 20)), confidence=0.95)


# --- what could have been seen -------------------------------------------------------------------------------------------------------------------


def test_detectable_effects_of_1172_documents() -> None:
    """ARC-Challenge's test split: 1.8, 2.6 and 3.7 points where the models differ on 5, 10 and 20 % of the documents."""
    for share, points in ((0.05, 1.8), (0.1, 2.6), (0.2, 3.7)):
        differences = np.zeros(1172)
        differences[: round(share * 1172)] = 1
        error = paired.null_standard_error(differences, 1172)
        assert error == pytest.approx(np.sqrt(share / 1172), rel=0.01)
        assert 100 * paired.minimum_detectable_effect(error, confidence=0.95, power=0.8) == pytest.approx(points, abs=0.05)


def test_detectable_effect_by_hand() -> None:
    assert paired.minimum_detectable_effect(0.01, confidence=0.95, power=0.8) == pytest.approx(0.01 * (1.959964 + 0.841621))
    # t quantiles of 4 degrees of freedom in any table: 2.776 at 0.975, 0.941 at 0.8
    assert paired.minimum_detectable_effect(0.01, confidence=0.95, power=0.8, freedom=4.0) == pytest.approx(0.01 * (2.776 + 0.941), abs=1e-5)


def test_null_standard_error_by_hand() -> None:
    assert paired.null_standard_error(np.zeros(80), 80) == 0
    assert paired.null_standard_error(np.array([2.0, 0.0, -1.0]), 6) == pytest.approx(np.sqrt(5) / 6)


@pytest.mark.parametrize(("items", "discordant"), [(81, 0), (81, 2), (81, 4), (500, 4), (1172, 117)])
def test_what_is_called_detectable_is_detected(items: int, discordant: int) -> None:
    """Kindest to the test: every true difference goes one way. The power of the exact test at the stated effect, by the binomial."""
    sums = np.zeros(items)
    sums[:discordant] = np.where(np.arange(discordant) % 2, 1, -1)
    effect = paired.detectable_difference(sums, items, TestSettings(2000, 0.95, 1))
    needed = next(won for won in range(1, items) if paired.mcnemar_exact(won, 0) <= 0.05)
    assert needed == paired.fewest_one_sided(0.95) == 6
    assert binom.sf(needed - 1, items, effect) >= 0.79


def test_no_difference_is_detectable_with_seven_items() -> None:
    assert np.isnan(paired.detectable_difference(np.zeros(7), 7, TestSettings(2000, 0.95, 1)))
    # P(Poisson(7.906) >= 6) = 0.8
    assert paired.exact_floor(np.zeros(81), 81, confidence=0.95, power=0.8) == pytest.approx(7.906 / 81, abs=1e-4)
    assert paired.exact_floor(np.array([2.0, -2.0, 0]), 81, confidence=0.95, power=0.8) == pytest.approx(2 * 7.906 / 81, abs=1e-4)


def test_the_fewest_clusters_a_sign_test_can_reject() -> None:
    for confidence in (0.5, 0.68, 0.8, 0.9, 0.9375, 0.95, 0.96875, 0.99, 0.999):
        fewest = paired.fewest_one_sided(confidence)
        assert exact(fewest, 0) <= 1 - confidence + 1e-12 < exact(fewest - 1, 0)
    assert [paired.fewest_one_sided(confidence) for confidence in (0.9, 0.9375, 0.95, 0.99)] == [5, 5, 6, 8]


def test_exact_floor_by_hand() -> None:
    """7.906 documents: P(Poisson(7.906) <= 5) = e^-7.906 (1 + 7.906 + 31.25 + 82.36 + 162.8 + 257.4) = 0.2."""
    sure = {"confidence": 0.95, "power": 0.8}
    expected = 7.90599
    assert np.exp(-expected) * (1 + expected + 31.2523 + 82.3601 + 162.784 + 257.394) == pytest.approx(0.2, abs=1e-5)
    assert paired.exact_floor(np.zeros(81), 81, **sure) == pytest.approx(expected / 81)
    assert paired.exact_floor(np.array([1.0, -1.0, 1.0, 0.0]), 81, **sure) == pytest.approx(expected / 81)
    assert paired.exact_floor(np.array([3.0, 0.0, -1.0, 0.0]), 81, **sure) == pytest.approx(2 * expected / 81)  # a cluster is 2 documents
    assert paired.exact_floor(np.array([1 / 3, 0.0, -1 / 3]), 81, **sure) == pytest.approx(expected / 81)  # but never less than one
    # At confidence 0.5 two flips are enough: 1 - e^-x (1 + x) = 1 / 2 at x = 1.678
    assert paired.exact_floor(np.zeros(10), 10, confidence=0.5, power=0.5) == pytest.approx(0.1678, abs=1e-4)


def test_detectable_difference_is_the_larger_of_error_and_floor() -> None:
    many = np.repeat([1.0, -1.0, 0.0], [60, 60, 1052])
    assert paired.detectable_difference(many, 1172, SETTINGS) == pytest.approx(2.80159 * np.sqrt(120) / 1172, rel=1e-5)
    few = np.repeat([1.0, -1.0, 0.0], [3, 1, 77])
    assert paired.detectable_difference(few, 81, SETTINGS) == pytest.approx(7.90599 / 81, rel=1e-5)
    assert np.isnan(paired.detectable_difference(np.zeros(7), 7, SETTINGS))
    assert paired.detectable_difference(np.zeros(8), 8, SETTINGS) == pytest.approx(7.90599 / 8, rel=1e-5)
    # Several seeds: by their t test, but with the same floor; unknown where the error is
    values = np.stack([many, np.roll(many, 7)])
    seeds = paired.crossed_effects(values, confidence=0.95)
    by_t = paired.minimum_detectable_effect(seeds.standard_error, confidence=0.95, power=0.8, freedom=seeds.freedom)
    assert paired.detectable_difference(values.mean(axis=0), 1172, SETTINGS, seeds) == by_t
    steady = paired.crossed_effects(np.stack([few, few]), confidence=0.95)
    assert paired.detectable_difference(few, 81, SETTINGS, steady) >= 7.90599 / 81
    alone = paired.crossed_effects(np.ones((3, 1)), confidence=0.95)
    assert np.isnan(paired.detectable_difference(np.ones(1), 1, SETTINGS, alone))


# --- simulated experiments -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("draws", tiers(1000, 10_000))
def test_null_comparisons_reject_as_often_as_they_say(draws: int) -> None:
    """Two equally good models on 500 items, 10,000 times: the exact test rejects in 4.0 %, mid-p in 4.8 %, the bootstrap in 4.6 %."""
    rng = np.random.default_rng(SEED)
    settings, ones, rejected = TestSettings(500, 0.95, 1), np.ones(500, int), np.zeros(3)

    @functools.cache
    def p(won: int, lost: int) -> tuple[float, float, float]:
        difference = np.repeat([1.0, -1.0, 0.0], [won, lost, 500 - won - lost])
        return exact(won, lost), midp(won, lost), paired.bootstrap_difference(difference, ones, settings)[1]

    for _ in range(draws):
        answers = rng.uniform(size=(2, 500)) < rng.uniform(size=500)
        rejected += np.array(p(int((answers[1] > answers[0]).sum()), int((answers[1] < answers[0]).sum()))) <= 0.05
    shares, slack = rejected / draws, tolerance(0.01, full=10_000, draws=draws)
    assert shares[0] <= 0.04 + slack
    assert shares[1] == pytest.approx(0.05, abs=slack)
    assert shares[2] == pytest.approx(0.05, abs=slack)


@pytest.mark.parametrize("draws", tiers(1000, 5000))
def test_null_comparisons_pooled_over_languages_that_share_their_facts(draws: int) -> None:
    """Five languages on the same 200 facts; half of the facts are answered alike in all languages.

    Over facts, the sign flip rejects in 5.1 % and the bootstrap in 5.8 % of 5000 null experiments; McNemar's exact test over the 1000
    documents, as if they were independent, in 25 %.
    """
    rng = np.random.default_rng(SEED)
    sizes, rejected = np.ones((5, 200), int), np.zeros(3)
    for _ in range(draws):
        answers = rng.uniform(size=(2, 5, 200)) < rng.uniform(size=200)
        answers = np.where(rng.uniform(size=200) < 0.5, answers[:, :1], answers)
        sums = answers[1].astype(float) - answers[0]
        totals, _ = paired.pooled_sums(sums, sizes)
        p = [paired.sign_flip_p(totals), paired.bootstrap_difference(paired.linearised(sums, sizes), sizes[0], TestSettings(500, 0.95, 1))[1]]
        rejected += np.array([*p, exact(int((sums > 0).sum()), int((sums < 0).sum()))]) <= 0.05
    (flip, bootstrap, naive), slack = rejected / draws, tolerance(0.01, full=5000, draws=draws)
    assert flip == pytest.approx(0.05, abs=slack)
    assert 0.05 - slack <= bootstrap <= 0.05 + 1.5 * slack
    assert naive >= 0.2


def recipe(rng: np.random.Generator, *, seeds: int, spread: float) -> Iterator[np.ndarray]:
    """Differences per seed and item (200) of a recipe that helps nowhere on average.

    Each seed shifts the probability of every right answer by its own normal deviate; three answers in four are the base model's unless the
    shift changes them, as adapters keep most of what the base model says.
    """
    while True:
        difficulty, luck = rng.uniform(size=200), rng.uniform(size=200)
        own = np.where(rng.uniform(size=(seeds, 200)) < 0.75, luck, rng.uniform(size=(seeds, 200)))
        shift = spread * rng.standard_normal((seeds, 1))
        yield (own < difficulty + shift).astype(float) - (luck < difficulty)


@pytest.mark.parametrize(
    ("seeds", "spread", "covered", "over_facts_alone"),
    [
        (2, 0.0, 1.0, 0.974),
        (2, 0.05, 0.949, 0.688),
        (2, 0.1, 0.892, 0.455),  # two seeds do not suffice
        (3, 0.0, 0.998, 0.966),
        (3, 0.02, 0.988, 0.913),
        (3, 0.05, 0.946, 0.708),
        (3, 0.1, 0.933, 0.470),
        (5, 0.0, 0.975, 0.953),
        (5, 0.02, 0.966, 0.921),
        (5, 0.05, 0.951, 0.744),
        (5, 0.1, 0.941, 0.541),
    ],
)
@pytest.mark.parametrize("draws", tiers(300, 2000))
def test_coverage_over_seeds_and_items(seeds: int, spread: float, covered: float, over_facts_alone: float, draws: int) -> None:
    """What the 95 % interval holds, in 2000 experiments, beside a sign flip over facts that takes the seeds as they are."""
    rng = np.random.default_rng(SEED)
    inside = kept = 0
    for values in itertools.islice(recipe(rng, seeds=seeds, spread=spread), draws):
        found = paired.crossed_effects(values, confidence=0.95)
        inside += found.estimate.lo <= 0 <= found.estimate.hi
        assert (found.p > 0.05) == (found.estimate.lo <= 0 <= found.estimate.hi)
        kept += paired.sign_flip_p(values.sum(axis=0)) > 0.05
    slack = tolerance(0.01, full=2000, draws=draws)
    assert inside / draws == pytest.approx(covered, abs=slack)
    assert kept / draws == pytest.approx(over_facts_alone, abs=2 * slack)
    assert seeds == 2 or inside / draws >= 0.935 - slack


def test_an_effect_of_the_detectable_size_is_found_as_often_as_promised() -> None:
    """1172 documents of which a tenth differ: 2.6 points are found in 78 % (exact) and 81 % (mid-p) of the cases."""
    rng = np.random.default_rng(SEED)
    effect = paired.minimum_detectable_effect(np.sqrt(0.1 / 1172), confidence=0.95, power=0.8)
    found = np.zeros(2)
    for won, lost, _ in rng.multinomial(1172, [(0.1 + effect) / 2, (0.1 - effect) / 2, 0.9], size=4000).tolist():
        found += np.array([exact(won, lost), midp(won, lost)]) <= 0.05
    assert (np.abs(found / 4000 - 0.8) <= 0.05).all()
