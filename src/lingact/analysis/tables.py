"""From raw statistics to tidy tables of gaps: one row per observation, with n, estimate and interval. Pure functions.

Uncertainty is a paired bootstrap over documents, or else blocks or sentences (`inference.Resampling`): a resample draws the same ones for every
language. Columns of every table with intervals: n (sentences), resampled (documents, blocks or sentences) and units (how many of these).
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import combinations
from math import comb

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from scipy.stats import binom

from lingact.analysis.measures import CONFOUNDS, LAYER_CONFOUNDS, MEASURES, Draws, Stats, Terms, available, pooled, quotient, value
from lingact.config.choices import check_ranges
from lingact.config.data import LanguagesConfig
from lingact.config.measures import Statistics
from lingact.statistics.bootstrap import Resampling, benjamini_hochberg, effect_size, holm, interval, p_value, simultaneous_band, wider

MAIN = "mean"
"""The measure that `gap` means where none is named."""
GROUPS = ("low", "high", "low_vs_high")
"""Names of gaps that are not a language's own; where p is corrected, they are a family of tests of their own."""
ALL = "all"
"""Stands for every language, in the table of shuffled labels."""
_MOST_SPLITS = 10_000
_SHUFFLED_RESAMPLES = 2000
"""Enough for whether an interval excludes 0; the shuffles themselves are the repeats."""


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
    """Gaps of every language and group in one measure as draws, ready for tables and figures."""

    layers: tuple[int, ...]
    ranges: dict[str, list[int]]
    activations: dict[str, Draws]
    gaps: dict[str, Draws]
    """Language, or group: `low` and `high` against the reference, `low_vs_high`."""
    drawn: Resampling
    """Of the sentences that count."""
    confidence: float
    effects: dict[str, Float[np.ndarray, " layer"]] = field(default_factory=dict)
    """Language -> Cohen's d_z of the reference minus the language over sentences: with the sign of the gap. Groups have none."""
    by_sentence: dict[str, Draws] | None = None
    """`gaps` with sentences drawn by themselves, to see how much wider intervals are by documents or blocks. None: that is what was drawn."""


def disparities(stats: Stats, languages: LanguagesConfig, settings: Statistics, seed: int, measure: str = MAIN) -> Disparities:
    """Gap of each language and group: `1 - A(L) / A(reference)`; positive means the language falls short.

    Args:
        measure: what A is, a name of `measures.MEASURES`.
    """
    drawn = stats[languages.reference].resampling(settings.block)
    found = _disparities(stats, languages, settings, (drawn, drawn.weights(settings.resamples, seed)), measure)
    if drawn.by == "sentences":
        return found
    single = drawn.by_sentence()
    alone = _disparities(stats, languages, settings, (single, single.weights(settings.resamples, seed)), measure)
    return replace(found, by_sentence=alone.gaps)


def _disparities(
    stats: Stats, languages: LanguagesConfig, settings: Statistics, drawing: tuple[Resampling, Float[np.ndarray, "draw sentence"]], measure: str
) -> Disparities:
    drawn, weights = drawing
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
        drawn=drawn.part(np.flatnonzero(ratios[languages.reference].counted)),
        confidence=settings.confidence,
        effects={code: effect_size(own[languages.reference] - own[code]) for code in stats if code != languages.reference},
    )


def _groups(activations: Mapping[str, Draws], languages: LanguagesConfig) -> dict[str, Draws]:
    """Mean of the languages of each group that has any."""
    members = {"low": languages.low, "high": languages.high}
    return {name: np.mean([activations[code] for code in codes], axis=0) for name, codes in members.items() if codes}


def _contrasts(levels: Iterable[str], reference: str) -> dict[str, tuple[str, str]]:
    """Name of each gap -> whose activation is compared with whose."""
    names = list(levels)
    against_reference = {name: (name, reference) for name in names if name != reference}
    return against_reference | ({"low_vs_high": ("low", "high")} if {"low", "high"} <= set(names) else {})


def layer_table(found: Disparities) -> pd.DataFrame:
    """One row per language or group and layer.

    `lo`, `hi`: percentile interval of this gap alone. `band_lo`, `band_hi`: band that holds a language's gaps at all layers at once.
    `effect`: `Disparities.effects`. `p`: against no gap, corrected by Holm and by Benjamini-Hochberg over languages and layers. `wider`: the
    standard error over that by sentences; 1 where sentences are drawn.
    """
    frames, clusters = [], found.drawn.clusters
    for name, draws in found.gaps.items():
        gap, low, high = interval(draws, found.confidence, clusters)
        band_low, band_high = simultaneous_band(draws, found.confidence, clusters)
        undefined = np.full(len(found.layers), np.nan)
        own = found.activations[name][0] if name in found.activations else undefined
        effect = np.where(np.isnan(gap), np.nan, found.effects.get(name, undefined))  # of the sentences that are left it would not be the gap's
        columns = {"name": name, "layer": found.layers} | found.drawn.columns | {"activation": own, "gap": gap, "lo": low, "hi": high}
        columns |= {"band_lo": band_low, "band_hi": band_high, "effect": effect, "p": p_value(draws, clusters)}
        columns |= {"wider": 1.0 if found.by_sentence is None else wider(draws, found.by_sentence[name])}
        frames.append(pd.DataFrame(columns))
    table = pd.concat(frames, ignore_index=True)
    families = table.groupby(table["name"].isin(GROUPS))["p"]
    return table.assign(p_holm=families.transform(_over(holm)), p_bh=families.transform(_over(benjamini_hochberg)))


def _over(correct: Callable[[Float[np.ndarray, " test"]], Float[np.ndarray, " test"]]) -> Callable[[pd.Series], Float[np.ndarray, " test"]]:
    return lambda p: correct(p.to_numpy(float))


def range_table(found: Disparities) -> pd.DataFrame:
    """One row per language or group and range of layers: mean of the per-layer gaps, and their maximum.

    `p` is of the mean against no gap, corrected by Holm over languages and ranges; the maximum of noisy gaps is not 0 where all gaps are,
    so it has none. `wider` as in `layer_table`.
    """
    rows, clusters = [], found.drawn.clusters
    for name, draws in found.gaps.items():
        for label, members in found.ranges.items():
            for statistic, reduce in (("mean", np.mean), ("max", np.max)):
                reduced = reduce(draws[:, members], axis=1)
                gap, low, high = interval(reduced, found.confidence, clusters)
                p = float(p_value(reduced, clusters)) if statistic == "mean" else np.nan
                times = 1.0 if found.by_sentence is None else float(wider(reduced, reduce(found.by_sentence[name][:, members], axis=1)))
                row = {"name": name, "range": label, "statistic": statistic} | found.drawn.columns
                rows.append(row | {"gap": gap, "lo": low, "hi": high, "p": p, "wider": times})
    table = pd.DataFrame(rows)
    return table.assign(p_holm=table.groupby(table["name"].isin(GROUPS))["p"].transform(_over(holm)))


def grouping_p(found: Disparities, languages: LanguagesConfig) -> float:
    """Exact p of the difference between the two groups' mean gaps over all layers, over all ways to split the languages into groups of these sizes.

    The bootstrap's intervals cover the choice of text; this covers which languages happen to be in which group. nan without two groups, or where
    more than 10,000 splits would have to be gone through.
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


def measure_table(stats: Stats, languages: LanguagesConfig, settings: Statistics, seed: int) -> pd.DataFrame:
    """The gap in every measure that was measured: one row per measure, language or group, and place (a layer's number, early, deep, all).

    At a range of layers, `value`, `reference_value` and `gap` are means over its layers; `reference_value` of `low_vs_high` is the high group's.
    """
    measures = [name for name in MEASURES if all(name in available(s) for s in stats.values())]
    drawn = stats[languages.reference].resampling(settings.block)
    drawing = (drawn, drawn.weights(settings.resamples, seed))
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
        gap, low, high = interval(by_place(found.gaps[name]), found.confidence, found.drawn.clusters)
        own, others = by_place(levels[one][:1])[0], by_place(levels[other][:1])[0]
        columns = {"name": name, "place": list(members)} | found.drawn.columns | {"value": own, "reference_value": others}
        frames.append(pd.DataFrame(columns | {"gap": gap, "lo": low, "hi": high}))
    return pd.concat(frames, ignore_index=True)


def confound_table(stats: Stats, settings: Statistics, seed: int) -> pd.DataFrame:
    """What else differs, always pooled over tokens: the texts, and at each layer FVU, L0 and residual norm.

    One row per language, layer (none where it is of the text) and quantity.
    """
    drawn = next(iter(stats.values())).resampling(settings.block)
    weights = drawn.weights(settings.resamples, seed)
    frames = []
    for code, s in stats.items():
        for quantity in (*CONFOUNDS, *LAYER_CONFOUNDS):
            if quantity == "bits_per_sentence" and s.nll is None:
                continue
            estimate, low, high = interval(value(s, quantity, weights, "token"), settings.confidence, drawn.clusters)
            layers = pd.array(s.layers if quantity in LAYER_CONFOUNDS else [None], dtype="Int64")
            columns = {"language": code, "layer": layers, "quantity": quantity} | drawn.columns
            frames.append(pd.DataFrame(columns | {"estimate": estimate, "lo": low, "hi": high}))
    return pd.concat(frames, ignore_index=True)


def shuffled_table(
    stats: Stats, languages: LanguagesConfig, settings: Statistics, seed: int, *, measure: str = MAIN, shuffles: int = 20
) -> pd.DataFrame:
    """A control without a gap to find: in each sentence, a fair coin decides which text is the language's and which the reference's.

    All sentences of a document or block follow one coin: swapped one by one, they would have no dependence left to resample.

    Of so many intervals about `1 - confidence` (`expected`) should exclude 0. One row per language, and for `all` of them together, and scope:
    every layer by itself (`layer`), or the mean of the gaps over layers (`mean`). Layers of one shuffle go together, so `allowed`, the 97.5 %
    quantile of a binomial distribution, is given for `mean` alone, where the tests are independent.
    """
    reference = MEASURES[measure](stats[languages.reference]).terms(settings.pooling)
    layers = len(reference[0])
    drawn = stats[languages.reference].resampling(settings.block)
    weights = drawn.weights(min(settings.resamples, _SHUFFLED_RESAMPLES), seed)
    coins = np.random.default_rng(seed).spawn(1)[0]  # independent of what drew the weights
    significant: dict[str, dict[str, int]] = {}
    for code in (code for code in stats if code != languages.reference):
        own = MEASURES[measure](stats[code]).terms(settings.pooling)
        gaps = _shuffled_gaps(own, reference, (coins.random((shuffles, drawn.count)) < 0.5)[:, drawn.unit], weights)
        sure = {"confidence": settings.confidence, "clusters": drawn.clusters}
        significant[code] = {"layer": _excluding_zero(gaps, **sure), "mean": _excluding_zero(gaps.mean(axis=2), **sure)}
    pairs = dict.fromkeys(significant, 1) | {ALL: len(significant)}
    significant[ALL] = {scope: sum(counts[scope] for counts in significant.values()) for scope in ("layer", "mean")}

    table = pd.DataFrame(
        {"name": name, "scope": scope, "shuffles": shuffles, "layers": layers, "tests": pairs[name] * shuffles * size, "significant": counts[scope]}
        for name, counts in significant.items()
        for scope, size in (("layer", layers), ("mean", 1))
    )
    expected = 1 - settings.confidence
    allowed = np.where(table["scope"] == "mean", binom.ppf(0.975, table["tests"], expected), np.nan)
    return table.assign(share=table["significant"] / table["tests"], expected=expected, allowed=allowed, **drawn.columns)


def _shuffled_gaps(
    own: Terms, reference: Terms, swapped: Bool[np.ndarray, "shuffle sentence"], weights: Float[np.ndarray, "draw sentence"]
) -> Float[np.ndarray, "draw shuffle layer"]:
    """The gap between two heaps of texts: the language's, those of the swapped sentences exchanged for the reference's, and the rest."""
    heaps = []
    for mine, theirs in zip(own, reference, strict=True):
        chosen = np.where(swapped[:, None], theirs, mine)
        weighted = (weights @ chosen.reshape(-1, chosen.shape[-1]).T).reshape(len(weights), *chosen.shape[:2])
        both = (weights @ (mine + theirs).T)[:, None]
        heaps.append((weighted, both - weighted))
    (numerator, other_numerator), (denominator, other_denominator) = heaps
    return 1 - quotient(quotient(numerator, denominator), quotient(other_numerator, other_denominator))


def _excluding_zero(gaps: Float[np.ndarray, "draw ..."], *, confidence: float, clusters: int | None) -> int:
    """How many of the gaps have an interval on one side of 0."""
    _, low, high = interval(gaps, confidence, clusters)
    return int(((low > 0) | (high < 0)).sum())
