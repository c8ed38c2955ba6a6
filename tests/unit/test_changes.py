"""Before and after an adapter, worked out by hand."""

import numpy as np
import pytest

from lingact.activations.measurement import ADAPTER, BASE, NORM_MATCHED, Measurement
from lingact.analysis import changes
from lingact.analysis.changes import Variants
from lingact.config.data import LanguagesConfig
from lingact.config.measures import Statistics
from lingact.statistics.bootstrap import Resampling
from tests.helpers.sums import four, random_stats, stats_of

SETTINGS = Statistics(pooling="token", resamples=500, confidence=0.9, early="third", deep="third", block=None)
LANGUAGES = LanguagesConfig(reference="en", high=("es", "it"), low=("hi",))
LAYERS = (0, 2)


@pytest.mark.parametrize(
    ("before", "after", "closed", "beyond"),
    [
        ([0.4, 0.2], [0.1, 0.2], 0.5, [0, 0]),
        ([0.4, 0.2], [0.0, 0.0], 1.0, [0, 0]),
        ([0.4, 0.2], [-0.1, 0.2], 0.5, [0.1, 0]),  # too far: beyond zero counts as gap again
        ([0.4, 0.2], [-0.4, -0.2], 0.0, [0.4, 0.2]),
        ([-0.4, 0.2], [-0.1, 0.05], 0.75, [0, 0]),  # from above and from below
        ([-0.4, 0.2], [0.3, -0.1], 1 - 0.4 / 0.6, [0.3, 0.1]),
        ([-0.4, -0.2], [-0.8, -0.4], -1.0, [0, 0]),  # the wrong way
    ],
)
def test_gap_closed_and_overshoot_by_hand(before: list[float], after: list[float], closed: float, beyond: list[float]) -> None:
    draws = np.array([before]), np.array([after])
    assert changes.gap_closed(*draws, rows=(0, 1)).tolist() == [pytest.approx(closed)]
    assert changes.overshoot(*draws).tolist() == [pytest.approx(beyond)]
    assert changes.gap_closed(*draws, rows=(1,))[0] == pytest.approx(1 - abs(after[1]) / abs(before[1]))
    assert np.isnan(changes.gap_closed(*draws, rows=())).all()


def test_resampling_does_not_make_a_closed_gap_larger() -> None:
    # Gaps after training of +.01 and -.02 in the sample; in a resample they have moved by -.03 and +.03, to -.02 and +.01.
    before, after = np.array([[0.4, 0.2], [0.5, 0.1]]), np.array([[0.01, -0.02], [-0.02, 0.01]])
    found = changes.gap_closed(before, after, rows=(0, 1))
    assert found.tolist() == pytest.approx([1 - 0.03 / 0.6, 1 + 0.03 / 0.6])


def test_an_interval_of_what_was_closed_covers_the_truth() -> None:
    """Gaps of .4 at four layers, of which .93 is closed; sampling error .01 a layer. 500 samples, seed fixed beforehand."""
    random = np.random.default_rng(20261122)
    hits = 0
    for _ in range(500):
        before, after = (0.4 + 0.01 * random.standard_normal(4), 0.028 + 0.01 * random.standard_normal(4))
        draws = [np.vstack([x, x + 0.01 * random.standard_normal((400, 4))]) for x in (before, after)]
        closed = changes.gap_closed(*draws, rows=(0, 1, 2, 3))[1:]
        hits += np.quantile(closed, 0.025) <= 0.93 <= np.quantile(closed, 0.975)
    assert 0.92 <= hits / 500 <= 0.98


def test_the_reference_stays_frozen_at_the_base_model() -> None:
    before = four()
    # The adapter halves English and leaves Hindi as it was: the gap must not seem to shrink.
    after = before | {"en": stats_of(before["en"].activation / 2, before["en"].tokens)}
    found = changes.change(Variants(before, after, before), "hi", LANGUAGES, SETTINGS, LAYERS, seed=0)
    assert found.before[0].tolist() == found.after[0].tolist() == pytest.approx([0.5, -0.25])
    assert found.gain[0].tolist() == [0, 0]
    assert found.closed[0] == 0
    own = changes.change(Variants(before, after, before), "en", LANGUAGES, SETTINGS, LAYERS, seed=0)
    assert own.after[0].tolist() == [0.5, 0.5]
    assert own.counted == ()
    assert np.isnan(own.closed).all()


def test_change_by_hand() -> None:
    before = four()
    after = before | {"hi": stats_of(before["hi"].activation * np.array([[1.6], [0.72]]), before["hi"].tokens)}  # 8 and 18 a token
    matched = before | {"hi": stats_of(before["hi"].activation * np.array([[1.2], [1.0]]), before["hi"].tokens)}  # 6 and 25
    by_language = {"hi": changes.change(Variants(before, after, matched), "hi", LANGUAGES, SETTINGS, LAYERS, seed=0)}
    found = by_language["hi"]
    assert found.counted == (0, 1)
    assert found.after[0].tolist() == pytest.approx([0.2, 0.1])
    assert found.after_norm_matched[0].tolist() == pytest.approx([0.4, -0.25])
    assert found.gain[0].tolist() == pytest.approx([0.6, -0.28])
    assert found.overshoot[0].tolist() == pytest.approx([0, 0.1])
    summary = changes.change_summary(by_language, ("hi",))
    assert summary["gap_closed/hi"] == pytest.approx(1 - 0.3 / 0.75)
    assert summary["norm_matched/gap_closed/hi"] == pytest.approx(1 - 0.65 / 0.75)
    assert summary["overshoot/hi"] == pytest.approx(0.05)
    assert summary["gain/hi"] == pytest.approx(0.16)
    only = changes.change(Variants(before, after, matched), "hi", LANGUAGES, SETTINGS, (2,), seed=0)
    assert only.counted == (1,)
    assert only.closed[0] == pytest.approx(1 - 0.1 / 0.25)
    by_layer = changes.change_table(by_language, LAYERS, Resampling.of_sentences(3), "m", 0.9).set_index(["layer", "quantity"]).estimate
    assert by_layer[2, "gap_after"] == pytest.approx(0.1)
    by_range = (
        changes.change_range_table(by_language, {"all": [0, 1]}, Resampling.of_sentences(3), "m", 0.9).set_index(["range", "quantity"]).estimate
    )
    assert by_range["all", "gap_before"] == pytest.approx(0.125)
    assert by_range["loss", "gap_closed"] == pytest.approx(0.6)


def test_fvu_and_l0_are_given_over_base_with_paired_intervals() -> None:
    rng = np.random.default_rng(0)
    plain = random_stats(0)
    error, square = rng.gamma(1, 1, (2, 30)), rng.gamma(1, 5, (2, 30))  # so uneven that the FVU alone is known badly
    base = stats_of(plain.activation, plain.tokens, error=error, square=square, l0=np.full((2, 30), 4))
    after = stats_of(
        plain.activation, plain.tokens, error=error * np.array([[1.1], [1.5]]), square=square, l0=np.array([[2], [5]]) * np.ones(30, int)
    )
    variants = Variants({"en": base, "hi": base}, {"en": base, "hi": after}, None)
    found = {"hi": changes.change(variants, "hi", LANGUAGES, SETTINGS, LAYERS, seed=0)}
    table = changes.change_table(found, LAYERS, Resampling.of_sentences(30), "m", 0.9).set_index(["quantity", "layer"])[["estimate", "lo", "hi"]]
    np.testing.assert_allclose(np.array(table.loc["fvu_ratio"], float), [[1.1] * 3, [1.5] * 3])
    np.testing.assert_allclose(np.array(table.loc["l0_ratio"], float), [[0.5] * 3, [1.25] * 3])
    assert (table.loc["fvu_after", "hi"] - table.loc["fvu_after", "lo"] > 0.05).all()
    summary = changes.change_summary(found, ("hi",))
    assert (summary["fvu_ratio/hi"], summary["l0_ratio/hi"]) == pytest.approx((1.3, 0.875))


def test_a_ratio_to_nothing_is_undefined() -> None:
    base = {code: stats_of([[10.0, 10.0]], [1, 1], l0=np.zeros((1, 2), np.int64)) for code in ("en", "hi")}
    found = changes.change(Variants(base, base, None), "hi", LANGUAGES, SETTINGS, (0,), seed=0)
    assert np.isnan(found.l0_ratio).all()


def test_layers_without_a_gap_do_not_count() -> None:
    rng = np.random.default_rng(0)
    english = random_stats(1, count=50)
    noise = rng.normal(1, 0.2, (2, 50)) * np.array([[1.0], [0.5]])  # no gap in layer 0, one of a half in layer 2
    before = {"en": english, "hi": stats_of(english.activation * noise, english.tokens)}
    languages = LanguagesConfig(reference="en", high=(), low=("hi",))
    assert changes.change(Variants(before, before, before), "hi", languages, SETTINGS, LAYERS, seed=0).counted == (1,)


def test_retention_by_hand() -> None:
    base = stats_of([[10.0, 10.0], [20.0, 20.0]], [1, 1], nll=np.array([2.0, 4.0]), kl=np.zeros(2), predicted=np.array([1, 3]))
    base.profile = [np.array([[1.0, 0, 0, 0], [0, 0, 0, 0]]), np.array([[3.0, 0, 0, 0], [0, 4.0, 0, 0]])]  # halves add up
    after = stats_of([[9.0, 9.0], [24.0, 24.0]], [1, 1], nll=np.array([3.0, 6.0]), kl=np.array([0.2, 0.6]), predicted=np.array([1, 3]))
    after.profile = [np.array([[1.0, 0, 0, 0], [1.0, 0, 0, 0]]), np.array([[1.0, 3.0, 0, 0], [3.0, 0, 0, 0]])]
    found = changes.retention(Variants({"en": base}, {"en": after}, {"en": after}), "en", SETTINGS, seed=0)
    assert {name: draws[0] for name, draws in found.items()} == pytest.approx(
        {"activation": (0.9 + 1.2) / 2, "activation_worst_layer": 0.2, "profile": (1 + 24 / 25) / 2, "bits_per_byte": 1.5, "kl": 0.2}
    )
    table = changes.retention_table(found, "en", Resampling.of_sentences(2), "m", 0.9).set_index("quantity")
    assert table.estimate.tolist() == pytest.approx([1.05, 0.2, 0.98, 1.5, 0.2])
    assert table.loc["profile", ["lo", "hi"]].isna().all(), "profiles are not kept by sentence: there is nothing to resample"
    resampled = table.drop("profile")
    assert (resampled.lo <= resampled.estimate + 1e-12).all()
    assert (resampled.hi >= resampled.estimate - 1e-12).all()


def test_without_norm_matched_statistics_what_is_made_of_them_is_undefined() -> None:
    before = four()
    after = before | {"hi": stats_of(before["hi"].activation * 1.6, before["hi"].tokens)}
    args = ("hi", LANGUAGES, SETTINGS, LAYERS, 0)
    alone, together = (changes.change(Variants(before, after, matched), *args) for matched in (None, after))
    assert np.isnan(alone.after_norm_matched).all()
    assert np.isnan(alone.closed_norm_matched).all()
    np.testing.assert_array_equal(alone.after, together.after)
    np.testing.assert_array_equal(alone.closed, together.closed)
    table = changes.change_table({"hi": alone}, LAYERS, Resampling.of_sentences(3), "m", 0.9).set_index("quantity")
    assert table.loc["gap_after_norm_matched", ["estimate", "lo", "hi"]].isna().all(axis=None)
    assert table.loc["gap_after", ["estimate", "lo", "hi"]].notna().all(axis=None)


def test_variants_are_those_of_one_sae_set() -> None:
    base, adapter, matched = (random_stats(seed) for seed in range(3))
    found = {("m", BASE, "en"): base, ("m", ADAPTER, "en"): adapter, ("m", NORM_MATCHED, "en"): matched, ("other", BASE, "en"): matched}
    assert Variants.of(Measurement(found), "m") == Variants({"en": base}, {"en": adapter}, {"en": matched})


def test_bits_by_hand() -> None:
    base = stats_of([[10.0, 10.0]], [4, 2], nll=np.array([2.0, 4.0]) * np.log(2), kl=np.zeros(2), predicted=np.array([3, 1]))
    bits = (
        changes.change_bits_table(Measurement({("m", BASE, "en"): base, ("other", BASE, "en"): base}), "m", SETTINGS, 0)
        .set_index("quantity")
        .estimate
    )
    assert bits.to_dict() == pytest.approx({"bits_per_byte": 6 / 12, "bits_per_sentence": 3})


def test_bits_over_base_are_paired() -> None:
    nll = np.random.default_rng(0).gamma(1, 3, 30)
    tokens, levels = np.full(30, 2), np.ones((1, 30))
    by_variant = {BASE: nll, ADAPTER: 1.25 * nll, NORM_MATCHED: None}
    measured = Measurement({("m", variant, "hi"): stats_of(levels, tokens, nll=own, kl=None, predicted=None) for variant, own in by_variant.items()})
    bits = changes.change_bits_table(measured, "m", SETTINGS, 0)
    assert bits[["variant", "quantity"]].to_numpy().tolist() == [
        [BASE, "bits_per_byte"], [ADAPTER, "bits_per_byte"], [BASE, "bits_per_sentence"], [ADAPTER, "bits_per_sentence"],
        [changes.OVER_BASE, "bits_per_byte"],
    ]  # fmt: skip
    ratio = bits.set_index(["variant", "quantity"]).loc[(changes.OVER_BASE, "bits_per_byte")]
    assert ratio[["estimate", "lo", "hi"]].tolist() == pytest.approx([1.25] * 3)
    assert changes.bits_summary(bits, ("hi",)) == pytest.approx({"bits_per_byte/hi": 1.25})


def test_without_cross_entropies_there_are_no_bits() -> None:
    silent = Measurement({("m", BASE, "hi"): stats_of([[1.0, 1.0]], [1, 1], nll=None, kl=None, predicted=None)})
    assert changes.change_bits_table(silent, "m", SETTINGS, 0).empty
