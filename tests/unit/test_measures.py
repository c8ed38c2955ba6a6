"""Every measure and confound by hand, under both poolings."""

from typing import get_args

import numpy as np
import pytest

from lingact.activations.feature_stats import FeatureStats
from lingact.analysis.measures import CONFOUNDS, LAYER_CONFOUNDS, MEASURES, Pooling, available, value
from lingact.config.measures import Measure
from lingact.report.phrases import MEASURE_TITLES
from tests.helpers.sums import stats_of

ONCE = np.ones((1, 3))


@pytest.fixture
def stats() -> FeatureStats:
    """Three sentences, one layer with d_sae 4; the second fires no latent; the last two are kept for confirmation."""
    return stats_of(
        [[12.0, 0.0, 8.0]],
        [4, 2, 2],
        l0=np.array([[6, 0, 2]]),
        l2=np.array([[6.0, 0.0, 4.0]]),
        top_k=np.array([[10.0, 0.0, 8.0]]),
        bytes=np.array([10, 20, 10]),
        words=np.array([2, 1, 1]),
        windows=np.array([2, 1, 1]),
        partial=np.array([0, 1, 1]),
        norm=np.array([[20.0, 10.0, 10.0]]),
        halves=np.array([0, 1, 1]),
        reference_active=np.array([[9.0, 0.0, 6.0]]),
        norm_matched=np.array([[6.0, 4.0, 2.0]]),
        excluded=np.array([[True, False, False]]),
        square_without=np.array([[8.0, 4.0, 4.0]]),
        error_without=np.array([[2.0, 1.0, 1.0]]),
        nll=np.array([3.0, 2.0, 1.0]) * np.log(2),
    )


BY_HAND = {
    # measure: (pooled over tokens, mean over sentences)
    "mean": (20 / 8, (3 + 0 + 4) / 3),
    "mean_active": (20 / 8, (2 + 4) / 2),  # a sentence without active latents has no mean over them
    "firing_rate": (8 / 32, (6 / 16 + 0 + 2 / 8) / 3),
    "l0": (8 / 8, (1.5 + 0 + 1) / 3),
    "l2": (10 / 8, (1.5 + 0 + 2) / 3),
    "top_k": (18 / 16, (10 / 8 + 0 + 8 / 4) / 3),
    "per_sentence": (20 / 3, 20 / 3),
    "per_byte": (20 / 40, (1.2 + 0 + 0.8) / 3),
    "per_word": (20 / 4, (6 + 0 + 8) / 3),
    "reference_active": (6 / 4, (0 + 3) / 2),  # on the confirmation half
    "norm_matched": (12 / 8, (1.5 + 2 + 1) / 3),
}
CONFOUNDS_BY_HAND = {
    "fertility": 8 / 4,
    "tokens_per_sentence": 8 / 3,
    "bytes_per_sentence": 40 / 3,
    "windows_per_sentence": 4 / 3,
    "partial_share": 2 / 8,
    "bits_per_sentence": 2.0,
    "fvu_without_largest": 4 / 16,
    "l0": 1.0,
    "residual_norm": 40 / 8,
}


@pytest.mark.parametrize("name", MEASURES)
def test_measures_by_hand(stats: FeatureStats, name: str) -> None:
    by_token, by_sentence = BY_HAND[name]
    assert value(stats, name, ONCE, "token").tolist() == [[pytest.approx(by_token)]]
    assert value(stats, name, ONCE, "sentence").tolist() == [[pytest.approx(by_sentence)]]


@pytest.mark.parametrize("name", [name for name in (CONFOUNDS | LAYER_CONFOUNDS) if name != "fvu"])
def test_confounds_by_hand(stats: FeatureStats, name: str) -> None:
    assert value(stats, name, ONCE, "token").tolist() == [[pytest.approx(CONFOUNDS_BY_HAND[name])]]


@pytest.mark.parametrize("name", MEASURES | CONFOUNDS | LAYER_CONFOUNDS)
@pytest.mark.parametrize("pooling", ["token", "sentence"])
def test_a_weight_is_a_sentence_that_stands_there_more_than_once(stats: FeatureStats, name: str, pooling: Pooling) -> None:
    times = [1, 0, 2]
    repeated = {
        key: np.repeat(array, times, axis=-1) for key, array in stats.arrays().items() if "." not in key and key not in ("residual", "excluded")
    }
    rest = {key: item for key, item in repeated.items() if key not in ("activation", "tokens")}
    again = stats_of(repeated["activation"], repeated["tokens"], halves=np.repeat(stats.halves, times), excluded=stats.excluded, **rest)
    np.testing.assert_allclose(value(stats, name, np.array([times], float), pooling), value(again, name, ONCE, pooling))


def test_layers_have_their_own_widths_and_strongest_latents() -> None:
    stats = stats_of(np.ones((2, 2)), [1, 1], top_k_size=3, top_k=np.full((2, 2), 6.0))
    stats.firing = [np.zeros((2, 2), np.int64), np.zeros((2, 10), np.int64)]
    assert value(stats, "firing_rate", np.ones((1, 2)), "token").tolist() == [[0.5, 0.1]]
    assert value(stats, "top_k", np.ones((1, 2)), "token").tolist() == [[3, 2]]  # two latents have no three strongest ones


def test_only_what_was_measured_is_available(stats: FeatureStats) -> None:
    assert available(stats) == list(MEASURES)
    assert available(stats_of([[1.0, 1.0]], [1, 1])) == [name for name in MEASURES if name not in ("reference_active", "norm_matched")]


def test_every_measure_can_be_chosen_and_has_a_name_in_sentences() -> None:
    assert list(get_args(Measure)) == list(MEASURES) == list(MEASURE_TITLES)


def test_what_is_divided_by_nothing_is_undefined(stats: FeatureStats) -> None:
    only_silent = np.array([[0.0, 1.0, 0.0]])
    assert np.isnan(value(stats, "mean_active", only_silent, "token")).all()
    assert np.isnan(value(stats, "mean_active", only_silent, "sentence")).all()
    only_discovery = np.array([[1.0, 0.0, 0.0]])
    assert np.isnan(value(stats, "reference_active", only_discovery, "token")).all()


def test_fvu_is_that_of_numpy() -> None:
    rng = np.random.default_rng(0)
    place = np.repeat(np.arange(6), 5)
    x = rng.normal(size=(30, 3)) * [1, 2, 3] + [5, -1, 0]
    x_hat = x + 0.3 * rng.normal(size=x.shape)
    sums = {"square": (x**2).sum(1), "error": ((x - x_hat) ** 2).sum(1)}
    per_sentence = {name: np.bincount(place, values)[None] for name, values in sums.items()}
    stats = stats_of(np.ones((1, 6)), np.full(6, 5), residual=x.sum(0)[None], **per_sentence)
    expected = ((x - x_hat) ** 2).sum() / ((x - x.mean(0)) ** 2).sum()
    assert value(stats, "fvu", np.ones((1, 6)), "token").item() == pytest.approx(expected)
    assert value(stats, "fvu", np.full((1, 6), 3.0), "token").item() == pytest.approx(expected)
