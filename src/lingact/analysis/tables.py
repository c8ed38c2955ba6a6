"""Tidy tables of gaps from raw statistics: one row per observation, with n, estimate and interval. Pure functions.

Intervals are by a paired bootstrap over documents, or else blocks or sentences (`bootstrap.Resampling`): a resample draws the same ones for every
language. Every table with intervals has the columns n (sentences), resampled (documents, blocks or sentences) and units (how many of these).
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import combinations
from math import comb

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from scipy.stats import binom

from lingact.analysis.measures import CONFOUNDS, LAYER_CONFOUNDS, MEASURES, Draws, StatsByLanguage, Terms, available, pooled, quotient, value
from lingact.config.choices import check_ranges
from lingact.config.data import LanguagesConfig
from lingact.config.measures import Statistics
from lingact.statistics.bootstrap import Resampling, benjamini_hochberg, effect_size, holm, interval, p_value, simultaneous_band, wider

MAIN = "mean"
"""The default measure of a gap."""
GROUP_GAPS = ("low", "high", "low_vs_high")
"""Names of the gaps of groups of languages. When p is corrected, they are a separate family of tests."""
ALL_LANGUAGES = "all"
"""Name of all languages together in the table of shuffled labels."""
_MOST_SPLITS = 10_000
_SHUFFLED_RESAMPLES = 2000
"""Enough to decide whether an interval excludes 0, because shuffles are repeated anyway."""


def named_ranges(layers: tuple[int, ...], settings: Statistics) -> dict[str, list[int]]:
    """Range name -> rows of the measured layers: early, deep, all.

    Raises:
        UserError: a configured range has no measured layer.
    """
    check_ranges(layers, settings)
    third = max(1, round(len(layers) / 3))
    ranges = {"early": list(range(third)), "deep": list(range(len(layers) - third, len(layers))), "all": list(range(len(layers)))}
    for name, chosen in (("early", settings.early), ("deep", settings.deep)):
        if chosen != "third":
            ranges[name] = [row for row, layer in enumerate(layers) if layer in chosen]
    return ranges


@dataclass(frozen=True)
class Disparities:
    """Gaps of every language and group in one measure, as draws, for tables and figures."""

    layers: tuple[int, ...]
    ranges: dict[str, list[int]]
    activations: dict[str, Draws]
    gaps: dict[str, Draws]
    """Language, or group: `low` and `high` against the reference, `low_vs_high`."""
    resampling: Resampling
    """Resampling of the included sentences."""
    confidence: float
    effects: dict[str, Float[np.ndarray, " layer"]] = field(default_factory=dict)
    """Language -> Cohen's d_z of the reference minus the language over sentences, so that it has the sign of the gap. Groups have none."""
    by_sentence: dict[str, Draws] | None = None
    """`gaps` if single sentences are resampled, to see how much wider intervals by documents or blocks are. None: `gaps` are by sentences."""


def disparities(stats: StatsByLanguage, languages: LanguagesConfig, settings: Statistics, seed: int, measure: str = MAIN) -> Disparities:
    """Gap of each language and group: `1 - A(L) / A(reference)`; positive means the language falls short.

    Args:
        measure: the measure A, a name in `measures.MEASURES`.
    """
    resampling = stats[languages.reference].resampling(settings.block)
    found = _disparities(stats, languages, settings, (resampling, resampling.weights(settings.resamples, seed)), measure)
    if resampling.by == "sentences":
        return found
    single = resampling.by_sentence()
    alone = _disparities(stats, languages, settings, (single, single.weights(settings.resamples, seed)), measure)
    return replace(found, by_sentence=alone.gaps)


def _disparities(
    stats: StatsByLanguage,
    languages: LanguagesConfig,
    settings: Statistics,
    drawing: tuple[Resampling, Float[np.ndarray, "draw sentence"]],
    measure: str,
) -> Disparities:
    resampling, weights = drawing
    ratios = {code: MEASURES[measure](s) for code, s in stats.items()}
    own = {code: ratio.per_sentence() for code, ratio in ratios.items()}
    activations = {code: pooled(ratio, weights, settings.pooling) for code, ratio in ratios.items()}
    levels = activations | _groups(activations, languages)
    gaps = {name: 1 - quotient(levels[one], levels[other]) for name, (one, other) in _contrasts(levels, languages.reference).items()}
    return Disparities(
        layers=stats[languages.reference].layers,
        ranges=named_ranges(stats[languages.reference].layers, settings),
        activations=activations,
        gaps=gaps,
        resampling=resampling.part(np.flatnonzero(ratios[languages.reference].counted)),
        confidence=settings.confidence,
        effects={code: effect_size(own[languages.reference] - own[code]) for code in stats if code != languages.reference},
    )


def _groups(activations: Mapping[str, Draws], languages: LanguagesConfig) -> dict[str, Draws]:
    """Mean over the languages of each group that is not empty."""
    members = {"low": languages.low, "high": languages.high}
    return {name: np.mean([activations[code] for code in codes], axis=0) for name, codes in members.items() if codes}


def _contrasts(levels: Iterable[str], reference: str) -> dict[str, tuple[str, str]]:
    """Name of each gap -> the two names whose activations are compared."""
    names = list(levels)
    against_reference = {name: (name, reference) for name in names if name != reference}
    return against_reference | ({"low_vs_high": ("low", "high")} if {"low", "high"} <= set(names) else {})


def layer_table(found: Disparities) -> pd.DataFrame:
    """One row per language or group and layer.

    `lo`, `hi`: percentile interval of this gap alone. `band_lo`, `band_hi`: simultaneous band for a language's gaps at all layers.
    `effect`: `Disparities.effects`. `p`: against no gap, corrected by Holm and by Benjamini-Hochberg over languages and layers. `wider`: the
    standard error over that by sentences; 1 if sentences are resampled.
    """
    frames, clusters = [], found.resampling.clusters
    for name, draws in found.gaps.items():
        gap, low, high = interval(draws, found.confidence, clusters)
        band_low, band_high = simultaneous_band(draws, found.confidence, clusters)
        undefined = np.full(len(found.layers), np.nan)
        own = found.activations[name][0] if name in found.activations else undefined
        effect = np.where(np.isnan(gap), np.nan, found.effects.get(name, undefined))  # over the other sentences it would not belong to this gap
        columns = {"name": name, "layer": found.layers} | found.resampling.columns | {"activation": own, "gap": gap, "lo": low, "hi": high}
        columns |= {"band_lo": band_low, "band_hi": band_high, "effect": effect, "p": p_value(draws, clusters)}
        columns |= {"wider": 1.0 if found.by_sentence is None else wider(draws, found.by_sentence[name])}
        frames.append(pd.DataFrame(columns))
    table = pd.concat(frames, ignore_index=True)
    families = table.groupby(table["name"].isin(GROUP_GAPS))["p"]
    return table.assign(p_holm=families.transform(_over(holm)), p_bh=families.transform(_over(benjamini_hochberg)))


def _over(correct: Callable[[Float[np.ndarray, " test"]], Float[np.ndarray, " test"]]) -> Callable[[pd.Series], Float[np.ndarray, " test"]]:
    return lambda p: correct(p.to_numpy(float))


def range_table(found: Disparities) -> pd.DataFrame:
    """One row per language or group and range of layers: mean of the per-layer gaps, and their maximum.

    `p` tests the mean against no gap, corrected by Holm over languages and ranges. The maximum has no p, because the maximum of noisy gaps is above 0
    even if all gaps are 0. `wider` is as in `layer_table`.
    """
    rows, clusters = [], found.resampling.clusters
    for name, draws in found.gaps.items():
        for label, members in found.ranges.items():
            for statistic, reduce in (("mean", np.mean), ("max", np.max)):
                reduced = reduce(draws[:, members], axis=1)
                gap, low, high = interval(reduced, found.confidence, clusters)
                p = float(p_value(reduced, clusters)) if statistic == "mean" else np.nan
                times = 1.0 if found.by_sentence is None else float(wider(reduced, reduce(found.by_sentence[name][:, members], axis=1)))
                row = {"name": name, "range": label, "statistic": statistic} | found.resampling.columns
                rows.append(row | {"gap": gap, "lo": low, "hi": high, "p": p, "wider": times})
    table = pd.DataFrame(rows)
    return table.assign(p_holm=table.groupby(table["name"].isin(GROUP_GAPS))["p"].transform(_over(holm)))


def grouping_p(found: Disparities, languages: LanguagesConfig) -> float:
    """Exact p of the difference between the two groups' mean gaps over all layers, over all ways to split the languages into groups of these sizes.

    The bootstrap's intervals cover the choice of text; this test covers the assignment of languages to groups. nan if there are not two groups, or
    more than 10,000 splits.
    """
    codes, size = (*languages.low, *languages.high), len(languages.low)
    if not 0 < size < len(codes) or comb(len(codes), size) > _MOST_SPLITS:
        return np.nan
    gaps = np.array([found.gaps[code][0].mean() for code in codes])
    splits = np.zeros((comb(len(codes), size), len(codes)), bool)
    for row, members in enumerate(combinations(range(len(codes)), size)):
        splits[row, list(members)] = True
    differences = np.abs(splits @ gaps / size - ~splits @ gaps / (len(codes) - size))
    return float((differences >= differences[0] - 1e-12).mean())  # the first split is the true one


def gap_summary(found: Disparities) -> dict[str, float]:
    """`gap/<name>/<layer>`, `gap/<name>/<range>` (mean) and `gap/<name>/<range>_max`."""
    summary = {f"gap/{name}/{layer}": float(draws[0, row]) for name, draws in found.gaps.items() for row, layer in enumerate(found.layers)}
    for row in range_table(found).to_dict("records"):
        summary[f"gap/{row['name']}/{row['range']}" + ("_max" if row["statistic"] == "max" else "")] = float(row["gap"])
    return summary


def measure_table(stats: StatsByLanguage, languages: LanguagesConfig, settings: Statistics, seed: int) -> pd.DataFrame:
    """The gap in every available measure: one row per measure, language or group, and place (a layer number, early, deep, all).

    For a range of layers, `value`, `reference_value` and `gap` are means over its layers; `reference_value` of `low_vs_high` is that of the high
    group.
    """
    measures = [name for name in MEASURES if all(name in available(s) for s in stats.values())]
    resampling = stats[languages.reference].resampling(settings.block)
    drawing = (resampling, resampling.weights(settings.resamples, seed))
    frames = [_measure_rows(_disparities(stats, languages, settings, drawing, measure), languages).assign(measure=measure) for measure in measures]
    table = pd.concat(frames, ignore_index=True)
    return table[["measure", *table.columns.drop("measure")]]


def _measure_rows(found: Disparities, languages: LanguagesConfig) -> pd.DataFrame:
    levels = found.activations | _groups(found.activations, languages)
    members = {str(layer): [row] for row, layer in enumerate(found.layers)} | found.ranges

    def by_place(draws: Draws) -> Float[np.ndarray, "draw place"]:
        return np.stack([draws[:, rows].mean(axis=1) for rows in members.values()], axis=1)

    frames = []
    for name, (one, other) in _contrasts(levels, languages.reference).items():
        gap, low, high = interval(by_place(found.gaps[name]), found.confidence, found.resampling.clusters)
        own, others = by_place(levels[one][:1])[0], by_place(levels[other][:1])[0]
        columns = {"name": name, "place": list(members)} | found.resampling.columns | {"value": own, "reference_value": others}
        frames.append(pd.DataFrame(columns | {"gap": gap, "lo": low, "hi": high}))
    return pd.concat(frames, ignore_index=True)


def confound_table(stats: StatsByLanguage, settings: Statistics, seed: int) -> pd.DataFrame:
    """Confounds, always pooled over tokens: properties of the text, and at each layer FVU, L0 and residual norm.

    One row per language, layer (missing for properties of the text) and quantity.
    """
    resampling = next(iter(stats.values())).resampling(settings.block)
    weights = resampling.weights(settings.resamples, seed)
    frames = []
    for code, s in stats.items():
        for quantity in (*CONFOUNDS, *LAYER_CONFOUNDS):
            if (quantity == "bits_per_sentence" and s.nll is None) or (quantity == "fvu_without_largest" and s.excluded is None):
                continue
            estimate, low, high = interval(value(s, quantity, weights, "token"), settings.confidence, resampling.clusters)
            layers = pd.array(s.layers if quantity in LAYER_CONFOUNDS else [None], dtype="Int64")
            columns = {"language": code, "layer": layers, "quantity": quantity} | resampling.columns
            frames.append(pd.DataFrame(columns | {"estimate": estimate, "lo": low, "hi": high}))
    return pd.concat(frames, ignore_index=True)


def shuffled_table(
    stats: StatsByLanguage, languages: LanguagesConfig, settings: Statistics, seed: int, *, measure: str = MAIN, shuffles: int = 20
) -> pd.DataFrame:
    """A control in which there is no gap: for each sentence, a fair coin decides which text is the language's and which the reference's.

    All sentences of a document or block share one coin, because swapping them one by one would remove their dependence.

    About `1 - confidence` (`expected`) of the intervals should exclude 0. One row per language, and one for `all` languages together, and scope:
    every layer separately (`layer`), or the mean of the gaps over layers (`mean`). The layers of one shuffle are dependent, so `allowed`, the 97.5 %
    quantile of a binomial distribution, is given only for `mean`, where the tests are independent.
    """
    reference = MEASURES[measure](stats[languages.reference]).terms(settings.pooling)
    layers = len(reference[0])
    resampling = stats[languages.reference].resampling(settings.block)
    weights = resampling.weights(min(settings.resamples, _SHUFFLED_RESAMPLES), seed)
    coins = np.random.default_rng(seed).spawn(1)[0]  # independent of the generator of the weights
    significant: dict[str, dict[str, int]] = {}
    for code in (code for code in stats if code != languages.reference):
        own = MEASURES[measure](stats[code]).terms(settings.pooling)
        gaps = _shuffled_gaps(own, reference, (coins.random((shuffles, resampling.count)) < 0.5)[:, resampling.unit], weights)
        sure = {"confidence": settings.confidence, "clusters": resampling.clusters}
        significant[code] = {"layer": _excluding_zero(gaps, **sure), "mean": _excluding_zero(gaps.mean(axis=2), **sure)}
    pairs = dict.fromkeys(significant, 1) | {ALL_LANGUAGES: len(significant)}
    significant[ALL_LANGUAGES] = {scope: sum(counts[scope] for counts in significant.values()) for scope in ("layer", "mean")}

    table = pd.DataFrame(
        {"name": name, "scope": scope, "shuffles": shuffles, "layers": layers, "tests": pairs[name] * shuffles * size, "significant": counts[scope]}
        for name, counts in significant.items()
        for scope, size in (("layer", layers), ("mean", 1))
    )
    expected = 1 - settings.confidence
    allowed = np.where(table["scope"] == "mean", binom.ppf(0.975, table["tests"], expected), np.nan)
    return table.assign(share=table["significant"] / table["tests"], expected=expected, allowed=allowed, **resampling.columns)


def _shuffled_gaps(
    own: Terms, reference: Terms, swapped: Bool[np.ndarray, "shuffle sentence"], weights: Float[np.ndarray, "draw sentence"]
) -> Float[np.ndarray, "draw shuffle layer"]:
    """The gap between two sets of texts: the language's, with swapped sentences taken from the reference, and the remaining ones."""
    sets = []
    for mine, theirs in zip(own, reference, strict=True):
        chosen = np.where(swapped[:, None], theirs, mine)
        weighted = (weights @ chosen.reshape(-1, chosen.shape[-1]).T).reshape(len(weights), *chosen.shape[:2])
        both = (weights @ (mine + theirs).T)[:, None]
        sets.append((weighted, both - weighted))
    (numerator, other_numerator), (denominator, other_denominator) = sets
    return 1 - quotient(quotient(numerator, denominator), quotient(other_numerator, other_denominator))


def _excluding_zero(gaps: Float[np.ndarray, "draw ..."], *, confidence: float, clusters: int | None) -> int:
    """The number of gaps whose interval excludes 0."""
    _, low, high = interval(gaps, confidence, clusters)
    return int(((low > 0) | (high < 0)).sum())
