"""Language features against hand-worked measures, planted latents, and worlds in which there are none."""

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest, fisher_exact

from lingact.activations.feature_stats import CONFIRMATION, DISCOVERY, FeatureStats
from lingact.analysis.language_features import (
    Criteria,
    chosen_latents,
    features_text,
    find_features,
    lape,
    more_sentences_p,
    nu,
    rate_table,
    strongest_confirmed,
)
from lingact.config.data import LanguagesConfig
from lingact.data.corpus import ParallelCorpus
from lingact.errors import UserError
from tests.helpers.tiers import tiers

CODES, LAYERS, WIDTH, SENTENCES, LENGTH = ("en", "es", "hi", "ml"), (2, 5), 120, 160, 12
LANGUAGES = LanguagesConfig(reference="en", high=("es",), low=("hi", "ml"))
ANYTHING = Criteria(min_rate=0.0, max_lape=np.inf)
SEED = 20261122


@pytest.fixture
def silent() -> dict[str, FeatureStats]:
    """Four languages over the same sentences, no latent of which has fired yet."""
    ids = tuple(f"s{place}" for place in range(SENTENCES))
    corpus = ParallelCorpus("silent", ids, dict.fromkeys(CODES, ("x",) * SENTENCES))
    return {
        code: replace(FeatureStats.empty({}, corpus, code, dict.fromkeys(LAYERS, WIDTH), 32), tokens=np.full(SENTENCES, LENGTH)) for code in CODES
    }


def simulated(silent: dict[str, FeatureStats], rates: dict[str, np.ndarray], random: np.random.Generator) -> dict[str, FeatureStats]:
    """Firing of tokens at `rates` (language -> layer, latent), made uneven by a propensity that the translations of a sentence share."""
    halves = silent["en"].halves
    propensity = random.gamma(2, 0.5, (len(LAYERS), SENTENCES, WIDTH))
    found = {}
    for code, s in silent.items():
        hits = random.binomial(LENGTH, np.minimum(1, propensity * rates[code][:, None]))
        firing = [np.stack([layer[halves == half].sum(axis=0) for half in (0, 1)]) for layer in hits]
        fired = [np.stack([(layer[halves == half] > 0).sum(axis=0) for half in (0, 1)]) for layer in hits]
        found[code] = replace(s, firing=firing, fired=fired, profile=[2.0 * counts for counts in firing])
    return found


def even_rates(random: np.random.Generator) -> dict[str, np.ndarray]:
    rates = random.uniform(0.002, 0.1, (len(LAYERS), WIDTH))
    return {code: rates.copy() for code in CODES}


def planted(silent: dict[str, FeatureStats]) -> dict[str, FeatureStats]:
    """Latents 7 and 11 of layer 2 belong to Hindi, latent 30 of layer 5 to Spanish; latent 40 of layer 5 to Hindi and Malayalam alike."""
    random = np.random.default_rng(SEED)
    rates = even_rates(random)
    for code in CODES:
        rates[code][0, [7, 11]] = rates[code][1, [30, 40]] = 0.001
    rates["hi"][0, [7, 11]] = 0.3, 0.15
    rates["es"][1, 30] = 0.2
    rates["hi"][1, 40] = rates["ml"][1, 40] = 0.2
    return simulated(silent, rates, random)


def latents_of(features: pd.DataFrame) -> set[tuple[str, int, int]]:
    return set(zip(features["language"], features["layer"], features["latent"], strict=True))


PLANTED = {("hi", 2, 7), ("hi", 2, 11), ("es", 5, 30)}


def test_nu_is_own_mean_minus_the_mean_of_the_others() -> None:
    np.testing.assert_allclose(nu(np.array([[3.0], [1.0], [2.0]])), [[1.5], [-1.5], [0.0]])


def test_lape_of_one_two_and_four_languages_and_of_silence() -> None:
    rates = np.array([[0.2, 0.1, 0.3, 0.75, 0.0], [0.0, 0.1, 0.3, 0.25, 0.0], [0.0, 0.0, 0.3, 0.0, 0.0], [0.0, 0.0, 0.3, 0.0, 0.0]])
    expected = [0, np.log(2), np.log(4), 0.75 * np.log(4 / 3) + 0.25 * np.log(4), np.nan]
    np.testing.assert_allclose(lape(rates), expected)


def test_p_is_that_of_fishers_exact_test() -> None:
    own, other = np.array([9, 5, 0, 20, 3]), np.array([2, 5, 0, 0, 8])
    expected = [fisher_exact([[a, 20 - a], [b, 20 - b]], alternative="greater").pvalue for a, b in zip(own, other, strict=True)]
    np.testing.assert_allclose(more_sentences_p(own, other, 20), expected)


def test_planted_features_are_found_and_confirmed(silent: dict[str, FeatureStats]) -> None:
    features = find_features(planted(silent), None)
    assert latents_of(features[features["confirmed"]]) >= PLANTED
    # What two languages share evenly is at the border of the entropy allowed; it never becomes a confirmed feature of one of them.
    assert latents_of(features[features["confirmed"]]) == PLANTED


def test_a_row_says_what_was_measured_on_which_half(silent: dict[str, FeatureStats]) -> None:
    stats = planted(silent)
    row = find_features(stats, None).set_index(["language", "layer", "latent"]).loc["hi", 2, 7]
    halves = stats["en"].halves
    tokens = [LENGTH * (halves == half).sum() for half in (DISCOVERY, CONFIRMATION)]
    firing = {code: s.firing[0][:, 7] for code, s in stats.items()}
    for column, half in (("nu", DISCOVERY), ("nu_confirmed", CONFIRMATION)):
        mean = {code: 2 * counts[half] / tokens[half] for code, counts in firing.items()}
        assert row[column] == pytest.approx(mean["hi"] - (mean["en"] + mean["es"] + mean["ml"]) / 3)
    other = max(("en", "es", "ml"), key=lambda code: stats[code].fired[0][DISCOVERY, 7])
    assert row["other"] == other
    assert row["rate"] == pytest.approx(firing["hi"][CONFIRMATION] / tokens[1])
    assert row["rate_other"] == pytest.approx(firing[other][CONFIRMATION] / tokens[1])
    n = (halves == CONFIRMATION).sum()
    assert row["n"] == n
    a, b = (stats[code].fired[0][CONFIRMATION, 7] for code in ("hi", other))
    assert row["p"] == pytest.approx(fisher_exact([[a, n - a], [b, n - b]], alternative="greater").pvalue, abs=0)
    assert row["q"] >= row["p"]
    assert np.isnan(row["rate_random"])


def by_hand(silent: dict[str, FeatureStats], fired: dict[str, tuple[int, int]]) -> dict[Any, Any]:
    """The row of latent 0 of layer 2, which fires on a token of so many sentences of the discovery and the confirmation half."""
    stats = {}
    for code, counts in fired.items():
        own = np.zeros((2, WIDTH), np.int64)
        own[:, 0] = counts
        nothing = np.zeros_like(own)
        stats[code] = replace(silent[code], firing=[own, nothing], fired=[own, nothing], profile=[own * 1.0, nothing * 1.0])
    [row] = find_features(stats, None, ANYTHING).to_dict("records")
    return row


def test_the_other_language_is_chosen_on_discovery(silent: dict[str, FeatureStats]) -> None:
    row = by_hand(silent, {"en": (5, 6), "es": (2, 20), "hi": (40, 41)})
    n = int((silent["en"].halves == CONFIRMATION).sum())
    assert row["other"] == "en"
    assert row["p"] == pytest.approx(fisher_exact([[41, n - 41], [6, n - 6]], alternative="greater").pvalue, abs=0)
    assert row["confirmed"]


def test_who_does_not_lead_on_confirmation_is_not_confirmed(silent: dict[str, FeatureStats]) -> None:
    row = by_hand(silent, {"en": (5, 6), "es": (2, 45), "hi": (40, 41)})
    assert row["q"] < 1e-6
    assert not row["confirmed"]


def nulls(silent: dict[str, FeatureStats], count: int, codes: tuple[str, ...] = CODES) -> list[dict[str, FeatureStats]]:
    """Worlds in which every latent fires alike in all languages."""
    random = np.random.default_rng(SEED)
    spoken = {code: silent[code] for code in codes}
    return [simulated(spoken, even_rates(random), random) for _ in range(count)]


@pytest.mark.parametrize("codes", [CODES, ("en", "es")], ids=len)
@pytest.mark.parametrize("draws", tiers(40, 200))
def test_where_languages_do_not_differ_few_analyses_confirm_anything(silent: dict[str, FeatureStats], codes: tuple[str, ...], draws: int) -> None:
    found = [find_features(stats, None, ANYTHING) for stats in nulls(silent, draws, codes)]
    assert min(map(len, found)) == len(codes) * len(LAYERS) * ANYTHING.per_layer
    wrong = sum(features["confirmed"].any() for features in found)
    assert wrong <= 0.05 * draws, f"{wrong} of {draws}"
    assert sum((features["p"] <= 0.05).any() for features in found) > 0.05 * draws, "the test never rejects, so nothing was tried"


def test_confirming_on_the_half_that_chose_would_confirm_noise(silent: dict[str, FeatureStats]) -> None:
    def same_half(s: FeatureStats) -> FeatureStats:
        twice = {name: [np.stack([array[DISCOVERY]] * 2) for array in getattr(s, name)] for name in ("firing", "fired", "profile")}
        return replace(s, **twice)

    cheated = [{code: same_half(s) for code, s in stats.items()} for stats in nulls(silent, 20, ("en", "es"))]
    assert sum(find_features(stats, None, ANYTHING)["confirmed"].any() for stats in cheated) > 0.2 * 20


def test_latents_that_fire_on_random_tokens_are_dropped_untested(silent: dict[str, FeatureStats]) -> None:
    stats = planted(silent)
    noise = {layer: np.zeros(WIDTH) for layer in LAYERS}
    noise[2][7] = 0.04  # more than a tenth of about 0.3
    noise[2][11] = 0.01  # less than a tenth of about 0.15
    features = find_features(stats, noise).set_index(["language", "layer", "latent"])
    dropped, kept = features.loc["hi", 2, 7], features.loc["hi", 2, 11]
    assert not dropped["passed"]
    assert not dropped["confirmed"]
    assert np.isnan(dropped["p"])
    assert np.isnan(dropped["q"])
    assert dropped["rate_random"] == 0.04
    assert kept["passed"]
    assert kept["confirmed"]


def test_the_strongest_are_taken_and_dropped_ones_take_no_place(silent: dict[str, FeatureStats]) -> None:
    stats = nulls(silent, 1)[0]
    every = find_features(stats, None, replace(ANYTHING, per_layer=WIDTH))
    own = every[(every["language"] == "es") & (every["layer"] == 5)]
    assert own["nu"].is_monotonic_decreasing
    ranked = own["latent"].tolist()
    noise = {2: np.zeros(WIDTH), 5: np.zeros(WIDTH)}
    noise[5][ranked[1]] = noise[5][ranked[4]] = 1.0
    features = find_features(stats, noise, replace(ANYTHING, per_layer=2))
    taken = features[(features["language"] == "es") & (features["layer"] == 5)]
    assert taken["latent"].tolist() == ranked[:3]
    assert taken["passed"].tolist() == [True, False, True]


def test_rare_latents_are_no_candidates(silent: dict[str, FeatureStats]) -> None:
    stats = planted(silent)
    assert ("hi", 2, 11) not in latents_of(find_features(stats, None, Criteria(min_rate=0.2)))
    assert ("hi", 2, 7) in latents_of(find_features(stats, None, Criteria(min_rate=0.2)))


def test_rows_stand_by_language_layer_and_strength(silent: dict[str, FeatureStats]) -> None:
    stats = nulls(silent, 1)[0]
    features = find_features(dict(reversed(stats.items())), None, ANYTHING)
    place = {code: number for number, code in enumerate(reversed(CODES))}
    keys = [(place[row.language], row.layer, -row.nu) for row in features.itertuples()]
    assert keys == sorted(keys)


def test_nothing_found_keeps_its_columns(silent: dict[str, FeatureStats]) -> None:
    features = find_features(silent, None)
    assert features.empty
    assert features["confirmed"].dtype == bool
    assert chosen_latents(features, per_language=2) == {}
    assert rate_table(features, silent).columns.tolist()[:4] == ["language", "layer", "latent", "measured"]
    assert features_text(features, LANGUAGES) == "No latent meets the criteria of a language-specific feature in any language."


def test_one_language_or_one_half_is_the_users_to_fix(silent: dict[str, FeatureStats]) -> None:
    with pytest.raises(UserError, match="at least two languages"):
        find_features({"en": silent["en"]}, None)
    halves = np.zeros(SENTENCES, np.int64)
    with pytest.raises(UserError, match="160 and 0 sentences"):
        find_features({code: replace(s, halves=halves) for code, s in silent.items()}, None)


def rows(*entries: tuple[str, int, int, float, bool, bool]) -> pd.DataFrame:
    names = ("language", "layer", "latent", "nu", "passed", "confirmed")
    return pd.DataFrame([dict(zip(names, entry, strict=True)) for entry in entries]).assign(n=80, resampled="sentences", units=80, rate_random=0.0)


SOME = rows(
    ("es", 2, 1, 0.5, True, True),
    ("es", 2, 9, 0.9, True, True),
    ("es", 5, 3, 0.7, True, True),
    ("es", 5, 4, 2.0, True, False),
    ("hi", 5, 8, 0.1, True, False),
    ("ml", 2, 6, 0.4, False, False),
    ("ml", 2, 7, 0.3, True, True),
)


def test_the_strongest_confirmed_are_chosen_over_all_layers() -> None:
    assert chosen_latents(SOME, per_language=2) == {"es": {2: [9], 5: [3]}, "ml": {2: [7]}}
    assert strongest_confirmed(SOME, per_language=2).index.tolist() == [1, 2, 6]


def test_rates_of_every_language_with_exact_intervals(silent: dict[str, FeatureStats]) -> None:
    stats = planted(silent)
    features = find_features(stats, None)
    table = rate_table(features, stats)
    assert len(table) == len(features) * len(CODES)
    for feature in features.itertuples():
        own = table[(table["language"] == feature.language) & (table["layer"] == feature.layer) & (table["latent"] == feature.latent)]
        own = own.set_index("measured")
        assert own["rate"][feature.language] == feature.rate
        assert own["rate"][feature.other] == feature.rate_other
        for code in CODES:
            hits = int(stats[code].fired[LAYERS.index(feature.layer)][CONFIRMATION, feature.latent])
            expected = binomtest(hits, feature.n).proportion_ci(method="exact")
            assert own.loc[code, ["estimate", "lo", "hi"]].tolist() == pytest.approx([hits / feature.n, expected.low, expected.high])


def test_intervals_at_the_ends_stay_inside(silent: dict[str, FeatureStats]) -> None:
    n = int((silent["en"].halves == CONFIRMATION).sum())
    full = [np.full((2, WIDTH), n), np.full((2, WIDTH), n)]
    table = rate_table(rows(("es", 2, 1, 0.5, True, True)), silent | {"es": replace(silent["es"], fired=full)}).set_index("measured")
    assert table.loc["en", "lo"] == 0
    assert 0 < table.loc["en", "hi"] < 0.1
    assert table.loc["es", "hi"] == 1
    assert 0.9 < table.loc["es", "lo"] < 1


def test_the_text_counts_and_says_what_is_missing() -> None:
    text = features_text(SOME, LANGUAGES)
    assert text.startswith("6 candidates for language-specific features")
    assert "1 otherwise eligible latent failed the random-token filter." in text
    assert "(80) 4 of 6 are confirmed" in text
    assert "Spanish: 3 of 4 (layer 2: 2 of 2, layer 5: 1 of 2)." in text
    assert "No latent of Hindi is confirmed." in text
    assert text.endswith("No latent of English is a candidate.")


def test_the_text_says_that_the_filter_was_not_applied() -> None:
    assert "The random-token filter was not applied" in features_text(SOME.assign(rate_random=np.nan), LANGUAGES)


def test_two_languages_need_more_than_log_2() -> None:
    assert Criteria().lape_limit(10) == pytest.approx(np.log(2))
    assert Criteria().lape_limit(4) == pytest.approx(np.log(2))
    assert Criteria().lape_limit(2) == pytest.approx(np.log(2) / 2), "log 2 is the largest entropy of two languages: it would let all pass"
    assert Criteria(max_lape=0.1).lape_limit(10) == 0.1
