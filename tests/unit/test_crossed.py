"""Means over a few seeds or draws that were measured on the same sentences: by hand, against the mean squares, and by coverage."""

from typing import Any

import numpy as np
import pytest
from jaxtyping import Float

from lingact.statistics.bootstrap import Resampling, interval, p_value
from lingact.statistics.crossed import crossed_difference, crossed_mean
from lingact.statistics.paired import crossed_effects

HOW: dict[str, Any] = {"resampling": Resampling.of_sentences(10), "confidence": 0.95}


def means(values: Float[np.ndarray, "unit sentence"], resamples: int = 400, seed: int = 0) -> Float[np.ndarray, "unit draw"]:
    """The units' means over sentences, as draws."""
    count = values.shape[1]
    return values @ Resampling.of_sentences(count).weights(resamples, seed).T / count


def test_by_hand() -> None:
    # Resamples move both units alike, by -1 and +1: S = 2, nothing sets the units apart. The estimates 1 and 5 have s^2 / K = 8 / 2 = 4.
    units = np.array([[1.0, 0.0, 2.0], [5.0, 4.0, 6.0]])
    found = crossed_mean(units, **HOW)
    assert found.estimate.value == 3
    assert found.standard_error == pytest.approx(6**0.5)
    assert found.freedom == pytest.approx(6**2 / (2**2 / 9 + 4**2 / 1))
    # Resamples move them apart, by -1 and +1 each: their mean stays. I = (1 + 1) * 2 / ((2 - 1) * 2) = 2 counts for S, and once of the 4.
    apart = np.array([[1.0, 0.0, 2.0], [5.0, 6.0, 4.0]])
    found = crossed_mean(apart, **HOW)
    assert found.standard_error == pytest.approx((2 + 4 - 2) ** 0.5)
    assert found.freedom == pytest.approx(4**2 / (2**2 / 9 + 4**2 / 1 + 2**2 / 9))


def test_a_difference_has_the_parts_of_both_sides() -> None:
    one, other = np.array([[1.0, 0.0, 2.0], [5.0, 4.0, 6.0]]), np.array([[0.0, -1.0, 1.0], [1.0, 0.0, 2.0], [2.0, 1.0, 3.0]])
    found = crossed_difference(one, other, **HOW)
    assert found.estimate.value == 2
    # All resamples move all units alike, so that sentences move no difference; s^2 / K is 4 on one side and 1 / 3 on the other.
    assert found.standard_error == pytest.approx((4 + 1 / 3) ** 0.5)
    assert found.freedom == pytest.approx((4 + 1 / 3) ** 2 / (4**2 / 1 + (1 / 3) ** 2 / 2))


def test_means_of_sentences_give_what_their_mean_squares_give() -> None:
    rng = np.random.default_rng(0)
    values = 0.1 + rng.standard_normal((4, 1)) / 10 + rng.standard_normal((1, 60)) / 2 + rng.standard_normal((4, 60)) / 2
    exact, found = (
        crossed_effects(values, confidence=0.95),
        crossed_mean(means(values, 20_000), resampling=Resampling.of_sentences(60), confidence=0.95),
    )
    assert found.estimate.value == pytest.approx(exact.estimate.value)
    assert found.standard_error == pytest.approx(exact.standard_error, rel=0.02)
    assert found.freedom == pytest.approx(exact.freedom, rel=0.05)
    assert found.p == pytest.approx(exact.p, rel=0.05)


def test_means_of_few_documents_give_what_their_mean_squares_give() -> None:
    rng = np.random.default_rng(3)
    values = 0.1 + rng.standard_normal((4, 1)) / 10 + rng.standard_normal((1, 6)) + rng.standard_normal((4, 6)) / 2
    resampling = Resampling.of(12, [f"d{place // 2}" for place in range(12)], None, None)
    units = np.repeat(values, 2, axis=1) @ resampling.weights(20_000, 0).T / 12
    exact, found = crossed_effects(values, confidence=0.95), crossed_mean(units, resampling=resampling, confidence=0.95)
    assert found.standard_error == pytest.approx(exact.standard_error, rel=0.02), "0.91 of it without n / (n - 1)"
    assert found.freedom == pytest.approx(exact.freedom, rel=0.05)


def test_the_same_on_both_sides_is_no_difference() -> None:
    own = means(np.random.default_rng(1).standard_normal((1, 10)))
    assert crossed_difference(own, own, **HOW).p == 1
    assert crossed_difference(own, own, **HOW).estimate.hi == crossed_difference(own, own, **HOW).estimate.lo == 0
    several = means(np.random.default_rng(1).standard_normal((3, 10)))
    found = crossed_difference(several, several, **HOW)
    assert (found.estimate.value, found.p) == (0, 1)
    assert found.estimate.lo == -found.estimate.hi < 0, "which seeds were drawn is still unknown"
    constant = np.ones((2, 5))
    assert crossed_difference(constant, constant, **HOW).p == 1
    assert crossed_difference(constant, 2 * constant, **HOW).p == 0


def test_one_unit_on_each_side_has_the_intervals_of_everything_else() -> None:
    one, other = means(np.random.default_rng(2).standard_normal((2, 50)))[:, None]
    found = crossed_difference(one, other, resampling=Resampling.of_sentences(50), confidence=0.9)
    assert [found.estimate.value, found.estimate.lo, found.estimate.hi] == pytest.approx(list(interval((one - other)[0], 0.9)))
    assert found.p == p_value((one - other)[0])


def test_what_is_undefined_has_no_limits() -> None:
    one = np.array([[1.0, 2.0, 3.0], [1.0, np.nan, 3.0]])
    found = crossed_mean(one, **HOW)
    assert found.estimate.value == 1
    assert np.isnan([found.estimate.lo, found.estimate.hi, found.p]).all()


@pytest.mark.parametrize(("units", "spread", "least", "most"), [((2, 2), 0.2, 0.94, 1.0), ((3, 3), 0.05, 0.93, 0.98), ((5, 1), 0.2, 0.92, 0.98)])
def test_intervals_cover_the_truth_though_units_are_few(units: tuple[int, int], spread: float, least: float, most: float) -> None:
    """600 experiments on 100 sentences, seed fixed beforehand. The bootstrap over sentences alone covers 17 and 57 %. A side of one is fixed."""
    rng, weights, hits, alone = np.random.default_rng(20261127), Resampling.of_sentences(100).weights(300, 0).T / 100, 0, 0
    for _ in range(600):
        common, own = 0.3 * rng.standard_normal((1, 100)), 0.09 * rng.standard_normal((1, 100))
        one, other = (
            (shared + 0.2 * rng.standard_normal((count, 100)) + (count > 1) * spread * rng.standard_normal((count, 1))) @ weights
            for count, shared in zip(units, (common, common + own), strict=True)
        )
        estimate = crossed_difference(one, other, resampling=Resampling.of_sentences(100), confidence=0.95).estimate
        hits += estimate.lo <= 0 <= estimate.hi
        low, high = np.quantile((one.mean(axis=0) - other.mean(axis=0))[1:], [0.025, 0.975])
        alone += low <= 0 <= high
    assert least <= hits / 600 <= most
    assert alone / 600 < 0.7
