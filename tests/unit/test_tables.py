"""Formulas of the tables by hand, against numpy, and the intervals against a bootstrap written from scratch."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom
from statsmodels.stats.multitest import multipletests

from lingact.activations.feature_stats import FeatureStats
from lingact.analysis import tables
from lingact.analysis.measures import MEASURES, value
from lingact.config.data import LanguagesConfig
from lingact.config.measures import Statistics
from lingact.errors import UserError
from lingact.statistics.bootstrap import Resampling, interval
from tests.helpers.sums import four, random_stats, stats_of

SETTINGS = Statistics(pooling="token", resamples=500, confidence=0.9, early="third", deep="third", block=None)
LANGUAGES = LanguagesConfig(reference="en", high=("es", "it"), low=("hi",))


def test_gaps_have_the_sign_of_the_definition() -> None:
    found = tables.disparities(four(), LANGUAGES, SETTINGS, seed=0)
    gaps = {name: draws[0].tolist() for name, draws in found.gaps.items()}
    assert gaps == {
        "es": pytest.approx([-0.2, 0.5]),
        "it": pytest.approx([0.6, -0.5]),
        "hi": pytest.approx([0.5, -0.25]),  # short in layer 0, above in layer 2
        "low": pytest.approx([0.5, -0.25]),
        "high": pytest.approx([1 - 8 / 10, 1 - 20 / 20]),
        "low_vs_high": pytest.approx([1 - 5 / 8, 1 - 25 / 20]),
    }
    # Constant sentences leave no uncertainty.
    table = tables.layer_table(found)
    assert (table.hi - table.lo).abs().max() < 1e-12
    assert table[table.name == "hi"][["layer", "n", "activation"]].to_numpy().tolist() == [[0, 3, 5], [2, 3, 25]]
    assert table[table.name == "low"].activation.isna().all()


def test_ranges_of_layers() -> None:
    assert tables.named_ranges(tuple(range(9)), SETTINGS) == {"early": [0, 1, 2], "deep": [6, 7, 8], "all": list(range(9))}
    assert tables.named_ranges((4, 7), SETTINGS) == {"early": [0], "deep": [1], "all": [0, 1]}
    chosen = SETTINGS.model_copy(update={"early": (4,), "deep": (7, 9)})
    assert tables.named_ranges((4, 7, 9), chosen) == {"early": [0], "deep": [1, 2], "all": [0, 1, 2]}
    with pytest.raises(UserError, match=r"statistics\.early: none of the layers \[4\] is measured; measured are \[0, 1\]"):
        tables.named_ranges((0, 1), chosen)


def test_a_range_is_the_mean_of_the_gaps_and_their_maximum() -> None:
    found = tables.disparities(four(), LANGUAGES, SETTINGS, seed=0)
    table = tables.range_table(found).set_index(["name", "range", "statistic"]).gap
    assert table["hi", "all", "mean"] == pytest.approx(0.125)
    assert table["hi", "all", "max"] == pytest.approx(0.5)
    assert table["hi", "early", "mean"] == table["hi", "early", "max"] == pytest.approx(0.5)
    assert table["hi", "deep", "mean"] == pytest.approx(-0.25)
    summary = tables.gap_summary(found)
    assert summary["gap/hi/0"] == pytest.approx(0.5)
    assert summary["gap/hi/2"] == pytest.approx(-0.25)
    assert summary["gap/low_vs_high/all"] == pytest.approx((3 / 8 - 0.25) / 2)
    assert summary["gap/hi/all_max"] == pytest.approx(0.5)
    assert len(summary) == 6 * (2 + 3 * 2)


def test_one_group_alone_has_no_low_vs_high() -> None:
    found = tables.disparities(four(), LANGUAGES.model_copy(update={"high": ()}), SETTINGS, seed=0)
    assert set(found.gaps) == {"es", "it", "hi", "low"}


def bootstrap_by_hand(stats: dict[str, FeatureStats], seed: int, resamples: int) -> np.ndarray:
    """Gap of hi at layer 0: sentences are drawn one by one, the same for both languages."""
    rng = np.random.default_rng(seed)
    count = len(stats["en"].tokens)
    gaps = []
    for _ in range(resamples):
        drawn = rng.integers(0, count, count)
        pooled = {code: sum(s.activation[0, i] for i in drawn) / sum(s.tokens[i] for i in drawn) for code, s in stats.items()}
        gaps.append(1 - pooled["hi"] / pooled["en"])
    return np.array(gaps)


def test_intervals_are_those_of_a_paired_bootstrap() -> None:
    english = random_stats(1, count=40)
    # Sentences loud in one language are loud in the other: unpaired resampling would give an interval several times as wide.
    hindi = stats_of(english.activation * 0.8 * np.random.default_rng(2).normal(1, 0.03, english.activation.shape), english.tokens)
    stats = {"en": english, "hi": hindi}
    settings = SETTINGS.model_copy(update={"resamples": 4000})
    found = tables.disparities(stats, LanguagesConfig(reference="en", high=(), low=("hi",)), settings, seed=5)
    estimate, low, high = (values[0] for values in interval(found.gaps["hi"], 0.9))
    assert estimate == pytest.approx(1 - (hindi.activation[0].sum() / english.activation[0].sum()))
    by_hand = bootstrap_by_hand(stats, 9, 4000)
    width = np.subtract(*np.quantile(by_hand, [0.95, 0.05]))
    assert low == pytest.approx(np.quantile(by_hand, 0.05), abs=0.06 * width)
    assert high == pytest.approx(np.quantile(by_hand, 0.95), abs=0.06 * width)
    assert width < 0.03


def noisy(count: int = 40) -> dict[str, FeatureStats]:
    """Four languages over three layers; hi falls short at the last layer alone."""
    english = random_stats(1, count=count, layers=3)
    rng = np.random.default_rng(2)
    level = {"es": [1, 1, 1], "it": [1, 1, 1], "hi": [1, 1, 0.6]}
    others = {c: stats_of(english.activation * rng.normal(1, 0.1, (3, count)) * np.array(x)[:, None], english.tokens) for c, x in level.items()}
    return {"en": english} | others


def test_a_layer_table_corrects_languages_and_groups_as_families_of_their_own() -> None:
    table = tables.layer_table(tables.disparities(noisy(), LANGUAGES, SETTINGS, seed=3))
    assert list(table) == [
        "name",
        "layer",
        "n",
        "resampled",
        "units",
        "activation",
        "gap",
        "lo",
        "hi",
        "band_lo",
        "band_hi",
        "effect",
        "p",
        "wider",
        "p_holm",
        "p_bh",
    ]
    groups = table["name"].isin(["low", "high", "low_vs_high"])
    for family in (table[groups], table[~groups]):
        assert len(family) == 9
        np.testing.assert_allclose(family["p_holm"], multipletests(family["p"], method="holm")[1])
        np.testing.assert_allclose(family["p_bh"], multipletests(family["p"], method="fdr_bh")[1])
    assert table[~groups].query("p_holm < 0.05")[["name", "layer"]].to_numpy().tolist() == [["hi", 4]]


def test_bands_over_layers_are_wider_than_intervals_of_one_layer_and_around_the_gap() -> None:
    table = tables.layer_table(tables.disparities(noisy(), LANGUAGES, SETTINGS, seed=3))
    np.testing.assert_allclose((table["band_lo"] + table["band_hi"]) / 2, table["gap"])
    assert (table["band_hi"] - table["band_lo"]).mean() > 1.1 * (table["hi"] - table["lo"]).mean()


def test_effect_has_the_sign_of_the_gap_and_the_size_of_paired_differences() -> None:
    # hi minus en per token, sentence by sentence: -2, -4, -6 at the first layer, so en minus hi has mean 4 and standard deviation 2.
    stats = {"en": stats_of([[10.0, 20.0, 30.0]], [1, 2, 3]), "hi": stats_of([[16.0, 12.0, 4.0]], [2, 2, 1])}
    table = tables.layer_table(tables.disparities(stats, LanguagesConfig(reference="en", high=(), low=("hi",)), SETTINGS, seed=0)).set_index("name")
    assert table.loc["hi", "effect"] == pytest.approx(2)
    assert table["effect"].isna().tolist() == [False, True]  # a group has none


def test_the_mean_over_a_range_is_tested_and_the_largest_gap_is_not() -> None:
    found = tables.disparities(noisy(), LANGUAGES, SETTINGS, seed=3)
    table = tables.range_table(found)
    largest, mean = table[table["statistic"] == "max"], table[table["statistic"] == "mean"]
    assert largest[["p", "p_holm"]].isna().all(axis=None)
    groups = mean["name"].isin(["low", "high", "low_vs_high"])
    for family in (mean[groups], mean[~groups]):
        np.testing.assert_allclose(family["p_holm"], multipletests(family["p"], method="holm")[1])
    hindi = mean.set_index(["name", "range"]).loc["hi"]
    assert hindi.loc["deep", "p_holm"] < 1e-6 < hindi.loc["early", "p"]


def full(seed: int, scale: float) -> FeatureStats:
    """Statistics with every sum, as of a language that is `scale` times as loud."""
    stats = random_stats(seed, count=24, layers=3)
    rng = np.random.default_rng(seed)
    for name in ("activation", "l2", "top_k", "reference_active", "norm_matched"):
        setattr(stats, name, scale * rng.gamma(5, 1, (3, 24)))
    stats.l0 = rng.integers(1, 9, (3, 24))
    return stats


@pytest.mark.parametrize("pooling", ["token", "sentence"])
def test_a_table_of_measures_holds_the_gap_in_each_of_them(pooling: str) -> None:
    settings = SETTINGS.model_copy(update={"pooling": pooling})
    stats = {code: full(seed, scale) for seed, (code, scale) in enumerate({"en": 1.0, "es": 0.5, "it": 2.0, "hi": 0.8}.items())}
    table = tables.measure_table(stats, LANGUAGES, settings, seed=4)
    assert list(table) == ["measure", "name", "place", "n", "resampled", "units", "value", "reference_value", "gap", "lo", "hi"]
    assert len(table) == len(MEASURES) * 6 * (3 + 3)
    by = table.set_index(["measure", "name", "place"]).sort_index()
    once = np.ones((1, 24))
    for measure in MEASURES:
        own, english = (value(stats[code], measure, once, settings.pooling)[0] for code in ("hi", "en"))
        layer = by.loc[measure, "hi", "2"]
        assert (layer["value"], layer["reference_value"], layer["gap"]) == pytest.approx((own[1], english[1], 1 - own[1] / english[1]))
        assert by.loc[measure, "hi", "all"]["gap"] == pytest.approx((1 - own / english).mean())
        high = (value(stats["es"], measure, once, settings.pooling)[0] + value(stats["it"], measure, once, settings.pooling)[0]) / 2
        row = by.loc[measure, "low_vs_high", "0"]
        assert (row["value"], row["reference_value"], row["gap"]) == pytest.approx((own[0], high[0], 1 - own[0] / high[0]))
    assert (table["lo"] < table["hi"]).all()
    assert by.loc["mean", "hi", "0"]["n"] == 24
    assert by.loc["reference_active", "hi", "0"]["n"] == 12  # the confirmation half
    # The rows of the main measure are those of the gap's own tables.
    alone = tables.layer_table(tables.disparities(stats, LANGUAGES, settings, seed=4)).astype({"layer": str})
    merged = alone.merge(table[table["measure"] == "mean"], left_on=["name", "layer"], right_on=["name", "place"])
    assert len(merged) == len(alone)
    for column in ("gap", "lo", "hi"):
        np.testing.assert_allclose(merged[f"{column}_x"], merged[f"{column}_y"])


def test_measures_that_some_language_lacks_are_left_out() -> None:
    stats = {code: full(seed, 1.0) for seed, code in enumerate(("en", "es", "it", "hi"))}
    stats["hi"].norm_matched = None
    assert list(dict.fromkeys(tables.measure_table(stats, LANGUAGES, SETTINGS, 0)["measure"])) == [m for m in MEASURES if m != "norm_matched"]


def test_confounds_by_hand() -> None:
    base = stats_of([[10.0, 10.0]], [4, 2], words=np.array([1, 2]), partial=np.array([3, 0]))
    confounds = tables.confound_table({"en": base}, SETTINGS, 0)
    assert list(confounds) == ["language", "layer", "quantity", "n", "resampled", "units", "estimate", "lo", "hi"]
    of_text = confounds[confounds.layer.isna()].set_index("quantity").estimate
    assert of_text.to_dict() == pytest.approx(
        {"fertility": 2, "tokens_per_sentence": 3, "bytes_per_sentence": 6, "windows_per_sentence": 1, "partial_share": 0.5}
    )
    per_layer = confounds[confounds.layer == 0].set_index("quantity").estimate
    assert per_layer.to_dict() == pytest.approx({"fvu": 1, "l0": 1 / 3, "residual_norm": 1 / 3})
    predicted = stats_of([[10.0, 10.0]], [4, 2], nll=np.array([2.0, 4.0]) * np.log(2))
    bits = tables.confound_table({"en": predicted}, SETTINGS, 0).set_index("quantity").estimate
    assert bits["bits_per_sentence"] == pytest.approx(3)


def test_confounds_are_pooled_over_tokens_whatever_the_gap_is() -> None:
    base = stats_of([[10.0, 10.0]], [4, 2], l0=np.array([[4, 8]]))
    found = [tables.confound_table({"en": base}, SETTINGS.model_copy(update={"pooling": p}), 0) for p in ("token", "sentence")]
    pd.testing.assert_frame_equal(*found)


# --- shuffled labels -----------------------------------------------------------------------------------------------------------------------------


def test_shuffling_swaps_whole_sentences() -> None:
    rng = np.random.default_rng(0)
    own, other = ((rng.gamma(5, 1, (3, 6)), rng.integers(1, 9, (1, 6)).astype(float)) for _ in range(2))
    swapped = rng.random((4, 6)) < 0.5
    weights = Resampling.of_sentences(6).weights(5, 0)
    found = tables._shuffled_gaps(own, other, swapped, weights)
    assert found.shape == (6, 4, 3)
    for draw, shuffle, layer in np.ndindex(found.shape):
        sums = np.zeros((2, 2))  # language and reference; activation and tokens
        for sentence in range(6):
            texts = (own, other) if not swapped[shuffle, sentence] else (other, own)
            for place, (numerator, denominator) in enumerate(texts):
                sums[place] += weights[draw, sentence] * np.array([numerator[layer, sentence], denominator[0, sentence]])
        pooled = sums[:, 0] / sums[:, 1]
        assert found[draw, shuffle, layer] == pytest.approx(1 - pooled[0] / pooled[1])


def test_shuffled_labels_of_very_different_languages_show_no_gap() -> None:
    stats = noisy(100)
    stats["hi"].activation *= 0.5
    table = tables.shuffled_table(stats, LANGUAGES, SETTINGS, seed=0, shuffles=50).set_index(["name", "scope"])
    assert tables.range_table(tables.disparities(stats, LANGUAGES, SETTINGS, seed=0)).query("name == 'hi'").p.max() < 1e-6
    assert table.index.tolist() == [(name, scope) for name in ("es", "it", "hi", "all") for scope in ("layer", "mean")]
    assert table["tests"].tolist() == [150, 50] * 3 + [450, 150]
    np.testing.assert_allclose(table["share"], table["significant"] / table["tests"])
    assert table["expected"].to_numpy() == pytest.approx(0.1)
    assert table["allowed"].dropna().tolist() == [binom.ppf(0.975, 50, 0.1)] * 3 + [binom.ppf(0.975, 150, 0.1)]
    means = table.xs("mean", level="scope")
    assert (means["significant"] <= means["allowed"]).all()
    assert means.loc["all", "significant"] == means.drop("all")["significant"].sum()


def test_shuffled_labels_of_a_language_that_is_the_reference_are_never_significant() -> None:
    english = random_stats(1)
    languages = LanguagesConfig(reference="en", high=(), low=("hi",))
    assert tables.shuffled_table({"en": english, "hi": english}, languages, SETTINGS, seed=0)["significant"].sum() == 0
