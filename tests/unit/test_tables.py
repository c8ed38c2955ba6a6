"""Formulas of the tables by hand, against numpy, and the intervals against a bootstrap written from scratch."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from lingact import tables
from lingact.config import LanguagesConfig, Statistics
from lingact.errors import UserError
from lingact.measure import ADAPTER, BASE, NORM_MATCHED, Measurement
from lingact.stats import FeatureStats

SETTINGS = Statistics(pooling="token", resamples=500, confidence=0.9, early="third", deep="third")
LANGUAGES = LanguagesConfig(reference="en", high=("es", "it"), low=("hi",))
LAYERS = (0, 2)


def stats_of(activation: Any, tokens: Any, **other: Any) -> FeatureStats:
    """Statistics with the given sums; what is not given is of no interest."""
    activation, tokens = np.array(activation, float), np.array(tokens, np.int64)
    layers, count = activation.shape
    plain: dict[str, Any] = {name: np.ones((layers, count)) for name in ("norm", "square", "error")}
    plain |= {"l0": np.ones((layers, count), np.int64), "residual": np.zeros((layers, 3)), "windows": np.ones(count, np.int64), "bytes": 2 * tokens}
    plain |= {"firing": [np.zeros(4, np.int64)] * layers, "profile": [np.ones(4)] * layers}
    return FeatureStats(
        header={},
        sentence_ids=tuple(f"s{i}" for i in range(count)),
        layers=tuple(range(0, 2 * layers, 2)),
        tokens=tokens,
        activation=activation,
        **(plain | other),
    )


def random_stats(seed: int, *, level: float = 10.0, count: int = 30, layers: int = 2) -> FeatureStats:
    rng = np.random.default_rng(seed)
    tokens = rng.integers(2, 20, count)
    return stats_of(tokens * rng.gamma(20, level / 20, (layers, count)), tokens)


def test_activation_pools_over_tokens_or_over_sentences() -> None:
    stats = stats_of([[10.0, 30.0], [6.0, 2.0]], [2, 10])
    once, twice_first = np.array([[1.0, 1.0]]), np.array([[2.0, 0.0]])
    assert tables.activation(stats, once, "token").tolist() == [pytest.approx([40 / 12, 8 / 12])]
    assert tables.activation(stats, once, "sentence").tolist() == [pytest.approx([(5 + 3) / 2, (3 + 0.2) / 2])]
    for pooling in ("token", "sentence"):
        assert tables.activation(stats, twice_first, pooling).tolist() == [pytest.approx([5, 3])]
    assert tables.per_token(stats.l0, stats, once).tolist() == [pytest.approx([2 / 12, 2 / 12])]


def four() -> dict[str, FeatureStats]:
    """Activations per token: en 10 and 20, es 12 and 10, it 4 and 30, hi 5 and 25; the same in every sentence."""
    levels = {"en": (10, 20), "es": (12, 10), "it": (4, 30), "hi": (5, 25)}
    tokens = np.array([3, 5, 2])
    return {code: stats_of(np.outer(level, tokens * (1 + (code == "hi"))), tokens * (1 + (code == "hi"))) for code, level in levels.items()}


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


def test_fvu_is_that_of_numpy() -> None:
    rng = np.random.default_rng(0)
    place = np.repeat(np.arange(6), 5)
    x = rng.normal(size=(30, 3)) * [1, 2, 3] + [5, -1, 0]
    x_hat = x + 0.3 * rng.normal(size=x.shape)
    sums = {"square": (x**2).sum(1), "error": ((x - x_hat) ** 2).sum(1)}
    per_sentence = {name: np.bincount(place, values)[None] for name, values in sums.items()}
    stats = stats_of(np.ones((1, 6)), np.full(6, 5), residual=x.sum(0)[None], **per_sentence)
    expected = ((x - x_hat) ** 2).sum() / ((x - x.mean(0)) ** 2).sum()
    assert tables.fvu(stats, np.ones((1, 6))).item() == pytest.approx(expected)
    assert tables.fvu(stats, np.full((1, 6), 3.0)).item() == pytest.approx(expected)


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
    estimate, low, high = (values[0] for values in tables.interval(found.gaps["hi"], 0.9))
    assert estimate == pytest.approx(1 - (hindi.activation[0].sum() / english.activation[0].sum()))
    by_hand = bootstrap_by_hand(stats, 9, 4000)
    width = np.subtract(*np.quantile(by_hand, [0.95, 0.05]))
    assert low == pytest.approx(np.quantile(by_hand, 0.05), abs=0.06 * width)
    assert high == pytest.approx(np.quantile(by_hand, 0.95), abs=0.06 * width)
    assert width < 0.03


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    # Sentences of differing length, levels that go together in both languages; the truth is the ratio of the means.
    languages = LanguagesConfig(reference="en", high=(), low=("hi",))
    settings = SETTINGS.model_copy(update={"resamples": 300})
    rng = np.random.default_rng(0)
    covered = []
    for seed in range(300):
        tokens = {code: rng.integers(3, 15, 40) for code in ("en", "hi")}
        level = rng.gamma(10, 1.0, 40)
        stats = {code: stats_of((tokens[code] * level * rng.normal(mean, 0.1, 40))[None], tokens[code]) for code, mean in (("en", 1.0), ("hi", 0.8))}
        found = tables.disparities(stats, languages, settings, seed)
        _, low, high = tables.interval(found.gaps["hi"], 0.9)
        covered.append(low[0] <= 0.2 <= high[0])
    assert 0.82 <= np.mean(covered) <= 0.96


def test_a_single_sentence_is_refused() -> None:
    one = {code: stats_of([[3.0], [4.0]], [2]) for code in ("en", "es", "it", "hi")}
    with pytest.raises(UserError, match="1 sentence is too few for an interval; give at least two sentences in the split"):
        tables.disparities(one, LANGUAGES, SETTINGS, seed=0)


def test_resamples_draw_as_many_sentences_as_there_are_and_the_seed_decides() -> None:
    weights = tables.sentence_weights(7, 50, 3)
    assert weights[0].tolist() == [1] * 7
    assert weights.shape == (51, 7)
    assert set(weights.sum(1)) == {7}
    assert np.array_equal(weights, tables.sentence_weights(7, 50, 3))
    assert not np.array_equal(weights, tables.sentence_weights(7, 50, 4))


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
    assert tables.gap_closed(*draws, rows=(0, 1)).tolist() == [pytest.approx(closed)]
    assert tables.overshoot(*draws).tolist() == [pytest.approx(beyond)]
    assert tables.gap_closed(*draws, rows=(1,))[0] == pytest.approx(1 - abs(after[1]) / abs(before[1]))
    assert np.isnan(tables.gap_closed(*draws, rows=())).all()


def measured(before: dict[str, FeatureStats], after: dict[str, FeatureStats], matched: dict[str, FeatureStats]) -> Measurement:
    variants = {BASE: before, ADAPTER: after, NORM_MATCHED: matched}
    return Measurement({("m", variant, code): s for variant, stats in variants.items() for code, s in stats.items()})


def test_the_reference_stays_frozen_at_the_base_model() -> None:
    before = four()
    # The adapter halves English and leaves Hindi as it was: the gap must not seem to shrink.
    after = before | {"en": stats_of(before["en"].activation / 2, before["en"].tokens)}
    found = tables.change(measured(before, after, before), "m", "hi", LANGUAGES, SETTINGS, LAYERS, seed=0)
    assert found.before[0].tolist() == found.after[0].tolist() == pytest.approx([0.5, -0.25])
    assert found.gain[0].tolist() == [0, 0]
    assert found.closed[0] == 0
    own = tables.change(measured(before, after, before), "m", "en", LANGUAGES, SETTINGS, LAYERS, seed=0)
    assert own.after[0].tolist() == [0.5, 0.5]
    assert own.counted == ()
    assert np.isnan(own.closed).all()


def test_change_by_hand() -> None:
    before = four()
    after = before | {"hi": stats_of(before["hi"].activation * np.array([[1.6], [0.72]]), before["hi"].tokens)}  # 8 and 18 a token
    matched = before | {"hi": stats_of(before["hi"].activation * np.array([[1.2], [1.0]]), before["hi"].tokens)}  # 6 and 25
    changes = {"hi": tables.change(measured(before, after, matched), "m", "hi", LANGUAGES, SETTINGS, LAYERS, seed=0)}
    found = changes["hi"]
    assert found.counted == (0, 1)
    assert found.after[0].tolist() == pytest.approx([0.2, 0.1])
    assert found.after_norm_matched[0].tolist() == pytest.approx([0.4, -0.25])
    assert found.gain[0].tolist() == pytest.approx([0.6, -0.28])
    assert found.overshoot[0].tolist() == pytest.approx([0, 0.1])
    summary = tables.change_summary(changes, ("hi",))
    assert summary["gap_closed/hi"] == pytest.approx(1 - 0.3 / 0.75)
    assert summary["norm_matched/gap_closed/hi"] == pytest.approx(1 - 0.65 / 0.75)
    assert summary["overshoot/hi"] == pytest.approx(0.05)
    assert summary["gain/hi"] == pytest.approx(0.16)
    only = tables.change(measured(before, after, matched), "m", "hi", LANGUAGES, SETTINGS, (2,), seed=0)
    assert only.counted == (1,)
    assert only.closed[0] == pytest.approx(1 - 0.1 / 0.25)
    by_layer = tables.change_table(changes, LAYERS, 3, "m", 0.9).set_index(["layer", "quantity"]).estimate
    assert by_layer[2, "gap_after"] == pytest.approx(0.1)
    by_range = tables.change_range_table(changes, {"all": [0, 1]}, 3, "m", 0.9).set_index(["range", "quantity"]).estimate
    assert by_range["all", "gap_before"] == pytest.approx(0.125)
    assert by_range["loss", "gap_closed"] == pytest.approx(0.6)


def test_layers_without_a_gap_do_not_count() -> None:
    rng = np.random.default_rng(0)
    english = random_stats(1, count=50)
    noise = rng.normal(1, 0.2, (2, 50)) * np.array([[1.0], [0.5]])  # no gap in layer 0, one of a half in layer 2
    before = {"en": english, "hi": stats_of(english.activation * noise, english.tokens)}
    languages = LanguagesConfig(reference="en", high=(), low=("hi",))
    assert tables.change(measured(before, before, before), "m", "hi", languages, SETTINGS, LAYERS, seed=0).counted == (1,)


def test_retention_by_hand() -> None:
    base = stats_of([[10.0, 10.0], [20.0, 20.0]], [1, 1], nll=np.array([2.0, 4.0]), kl=np.zeros(2), predicted=np.array([1, 3]))
    base.profile = [np.array([1.0, 0, 0, 0]), np.array([3.0, 4.0, 0, 0])]
    after = stats_of([[9.0, 9.0], [24.0, 24.0]], [1, 1], nll=np.array([3.0, 6.0]), kl=np.array([0.2, 0.6]), predicted=np.array([1, 3]))
    after.profile = [np.array([2.0, 0, 0, 0]), np.array([4.0, 3.0, 0, 0])]
    found = tables.retention(measured({"en": base}, {"en": after}, {"en": after}), "m", "en", SETTINGS, seed=0)
    assert {name: draws[0] for name, draws in found.items()} == pytest.approx(
        {"activation": (0.9 + 1.2) / 2, "profile": (1 + 24 / 25) / 2, "bits_per_byte": 1.5, "kl": 0.2}
    )
    table = tables.retention_table(found, "en", 2, "m", 0.9)
    assert table.estimate.tolist() == pytest.approx([1.05, 0.98, 1.5, 0.2])
    assert (table.lo <= table.estimate + 1e-12).all()
    assert (table.hi >= table.estimate - 1e-12).all()


def test_bits_and_confounds_by_hand() -> None:
    base = stats_of([[10.0, 10.0]], [4, 2], nll=np.array([2.0, 4.0]) * np.log(2), kl=np.zeros(2), predicted=np.array([3, 1]))
    bits = tables.bits_table(measured({"en": base}, {}, {}), "m", SETTINGS, 0).set_index("quantity").estimate
    assert bits.to_dict() == pytest.approx({"bits_per_byte": 6 / 12, "bits_per_sentence": 3})
    confounds = tables.confound_table({"en": base}, SETTINGS, 0)
    per_sentence = confounds[confounds.layer.isna()].set_index("quantity").estimate
    assert per_sentence.to_dict() == {"tokens_per_sentence": 3, "bytes_per_sentence": 6, "windows_per_sentence": 1}
    per_layer = confounds[confounds.layer == 0].set_index("quantity").estimate
    assert per_layer.to_dict() == pytest.approx({"fvu": 1, "l0": 1 / 3, "residual_norm": 1 / 3})
    assert isinstance(confounds, pd.DataFrame)
