"""Two models on the same items: intervals, tests and what could have been seen. Pure: arrays in, numbers out.

A cluster is a fact: items that ask the same fact, in several styles or languages, share its difficulty and are not independent. Everything
here resamples and flips clusters, never single items. Axes: `item` documents, `cluster` facts, `seed` training runs of one recipe.
"""

import functools
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Real
from scipy.special import stdtr, stdtrit
from scipy.stats import binom, binomtest, gamma, norm, t

_SIGN_VECTORS, _SIGN_SEED = 20_000, 20261125
_LONGEST = 50_000  # up to this total of absolute differences the sign flip is exact; its cost grows with the square
_IMPOSSIBLE = 1e-150
"""The square of this is still a normal number: products of smaller probabilities cost a processor a hundred times as much."""
_ROUNDING = 1e-12
"""Smaller than this, beside quantities of order 1, is no spread and no difference."""


@dataclass(frozen=True)
class TestSettings:
    """Settings of intervals and tests."""

    resamples: int
    confidence: float
    """Confidence of the intervals; one minus it is the level of the tests. From 0 to 1."""
    seed: int
    power: float = 0.8
    """Share of experiments in which an effect of the detectable size would be found. From 0 to 1."""
    block: int | None = None
    """Sentences that are resampled together, for text without documents; None: each by itself. It has no effect on facts."""


@dataclass(frozen=True)
class Estimate:
    """A number and how sure we are of it."""

    n: int
    """Items behind it."""
    value: float
    lo: float
    hi: float


@dataclass(frozen=True)
class Crossed:
    """A mean over seeds and clusters, both drawn at random."""

    estimate: Estimate
    """`n` counts clusters. Without limits (nan) where one cluster is all there is."""
    standard_error: float
    freedom: float
    """Degrees of freedom of the t distribution behind interval and p."""
    p: float


# --- clusters ------------------------------------------------------------------------------------------------------------------------------------


def pooled_sums(sums: Float[np.ndarray, "language cluster"], sizes: Int[np.ndarray, "language cluster"]) -> tuple[Float[np.ndarray, " cluster"], int]:
    """One sum per cluster over all languages, and the number of items by which their total is the mean over languages of the language's mean.

    Languages weigh the same. The largest has weight 1 per item, so that languages of the same size keep sums that are whole numbers.
    """
    items = sizes.sum(axis=1)
    return (items.max() / items) @ sums, int(items.max()) * len(items)


def linearised(sums: Float[np.ndarray, "*seed language cluster"], sizes: Int[np.ndarray, "language cluster"]) -> Float[np.ndarray, "*seed cluster"]:
    """One value per cluster, whose plain mean is the mean over languages of the language's mean per item, and whose spread is its uncertainty.

    A mean per item is a ratio of two totals over clusters. Its first-order influence per cluster (Woodruff 1971; Cochran 1977, section 2.11)
    is (sum - mean * size) / mean size; a language without items of a cluster adds its own mean there. Where a language has the same number of
    items of every cluster, the value is simply the cluster's mean.
    """
    items = sizes.sum(axis=-1, keepdims=True)
    mean = sums.sum(axis=-1, keepdims=True) / items
    return (mean + (sums - mean * sizes) * (sizes.shape[-1] / items)).mean(axis=-2)


# --- intervals -----------------------------------------------------------------------------------------------------------------------------------


def wilson(hits: Float[np.ndarray, " item"], *, confidence: float, effective_n: int | None = None) -> Estimate:
    """Share of hits with Wilson's score interval (Wilson 1927), which stays inside [0, 1] and has a width even at 0 and 1.

    Args:
        hits: 0 or 1 per item.
        confidence: such as 0.95.
        effective_n: number of independent facts that the items ask; the interval is as wide as for so many. None: every item is one.

    Raises:
        ValueError: no items.
    """
    if len(hits) == 0:
        raise ValueError("no items: their accuracy is undefined")
    n, share = effective_n or len(hits), float(np.mean(hits))
    z = float(norm.ppf(0.5 + confidence / 2))
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return Estimate(len(hits), share, max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half)))


def bootstrap_difference(sums: Float[np.ndarray, " cluster"], sizes: Int[np.ndarray, " cluster"], settings: TestSettings) -> tuple[Estimate, float]:
    """Mean per item with the percentile interval of a bootstrap over clusters, and the two-sided p against 0 that inverts this interval.

    A resample depends only on how often it draws clusters of each (sum, size), so it is one multinomial draw over the distinct ones. p is
    twice the share of the resamples on the rarer side of 0, those at 0 counted half on either (Efron & Tibshirani 1993, section 15.4), but no
    less than 1 / (resamples + 1). Both know no more spread than the clusters show: with a handful of clusters that differ they are too sure,
    and `few_differences` takes their place.

    In simulated comparisons of equally good models (`tests/unit/test_paired.py`) p is at most 0.05 in 4.6 % of the cases with 500 items, and
    in 5.8 % with 200 facts pooled over five languages.

    Raises:
        ValueError: no items.
    """
    if len(sums) == 0:
        raise ValueError("no items: their mean is undefined")
    # Weighted sums that are equal may differ in the last digit; kept as different values, they would only cost time.
    distinct, counts = np.unique(np.stack([sums.round(12), sizes], axis=1), axis=0, return_counts=True)
    draws = np.random.default_rng(settings.seed).multinomial(len(sums), counts / len(sums), size=settings.resamples)
    means = (draws @ distinct[:, 0]) / (draws @ distinct[:, 1])
    lo, hi = np.quantile(means, [0.5 - settings.confidence / 2, 0.5 + settings.confidence / 2])
    below, above = float((means < -_ROUNDING).mean()), float((means > _ROUNDING).mean())
    p = min(1.0, max(1 + min(below - above, above - below), 1 / (settings.resamples + 1)))
    return Estimate(int(sizes.sum()), float(sums.sum() / sizes.sum()), float(lo), float(hi)), p


def few_differences(sums: Float[np.ndarray, " cluster"], items: int, *, confidence: float) -> Estimate:
    """Mean difference per item with an interval for a handful of clusters that differ, where resampling them shows next to no spread.

    The adjusted Wald interval of Bonett & Price (2012) for paired proportions, which counts one document more on either side: with `won`
    and `lost` of n documents, (won - lost +- z sqrt(won + lost + 2)) / (n + 2). Two changes. The variance is that under the null, larger
    by (won - lost)^2 / (n + 2), so that n does not decide whether 0 is inside. And a cluster may be more than a document: the two that are
    added are as large as those that differ are on average, at least one document.

    With fewer clusters than `fewest_one_sided` no exact test rejects, and 0 is always inside: at 0.95 by the formula, for 5 : 0 documents just
    so (6 : 0 would exclude it); where the formula would leave it out, the interval ends at 0. Without any difference the interval is
    symmetric around 0, +- 2.8 documents at 0.95.

    In 4,000 simulated comparisons on 81 documents, of which 2 % are won and none lost, a 95 % interval that is the bootstrap's throughout
    covers 81 %, and with this one in its place where fewer than 6 differ 99 %; with 6 and 1 % it is 93 and 96 %, with 10 and 5 % 93 and 93 %.

    Args:
        sums: difference per cluster.
        items: total of the clusters' sizes.

    Raises:
        ValueError: no items, or so many clusters differ that a test could reject.
    """
    if items == 0:
        raise ValueError("no items: their mean is undefined")
    if differing(sums) >= fewest_one_sided(confidence):
        raise ValueError(f"{differing(sums)} clusters differ; the bootstrap knows their spread")
    more = cluster_unit(sums)
    half = float(norm.ppf(0.5 + confidence / 2)) * float(np.sqrt(np.square(sums).sum() + 2 * more**2))
    total = float(sums.sum())
    lo, hi = max(-1.0, (total - half) / (items + 2 * more)), min(1.0, (total + half) / (items + 2 * more))
    value = total / items
    return Estimate(items, value, min(lo, value, 0.0), max(hi, value, 0.0))


def crossed_effects(values: Float[np.ndarray, "seed cluster"], *, confidence: float) -> Crossed:
    """Mean difference of a recipe of which several training seeds were scored on the same clusters, as if both had been drawn at random.

    Two-way random effects without replication: every seed meets every cluster, so neither seeds nor items may be taken as independent
    replications of the whole (Baayen, Davidson & Bates 2008; Westfall, Kenny & Judd 2014). With the mean squares of seeds, clusters and the
    residual, the variance of the grand mean is (MS_seed + MS_cluster - MS_residual) / (seeds * clusters), with the degrees of freedom of
    Satterthwaite (1946).

    A variance cannot be negative: MS_seed and MS_cluster are taken as no less than MS_residual, each by itself. The truncated squares enter
    the degrees of freedom, too. Falling back to clusters - 1 of them whenever the seeds happen to differ little would claim to know that
    seeds never differ, which two or three of them cannot show.

    Coverage of the 95 % interval in 2,000 simulations of 200 items (`tests/unit/test_paired.py`), by the standard deviation of the seeds' own
    effects in points. Too wide where seeds do not differ; too narrow where they differ much and are few, above all where they are two. A
    test over facts that ignores seeds covers 46 to 54 % at 10 points.

    | | 0 | 2 | 5 | 10 |
    |---|---|---|---|---|
    | 2 seeds | 100.0 % | | 94.9 % | 89.2 % |
    | 3 seeds | 99.8 % | 98.8 % | 94.6 % | 93.3 % |
    | 5 seeds | 97.5 % | 96.6 % | 95.1 % | 94.1 % |

    Args:
        values: per seed and cluster, such as `linearised` makes them.

    Raises:
        ValueError: a single seed, which does not show how seeds differ.
    """
    seeds, clusters = values.shape
    if seeds < 2:
        raise ValueError("one seed: nothing is known on how seeds differ")
    mean = float(values.mean())
    if not values.any():
        return Crossed(Estimate(clusters, 0.0, 0.0, 0.0), 0.0, float(clusters - 1), 1.0)
    if clusters < 2:
        return Crossed(Estimate(clusters, mean, np.nan, np.nan), np.nan, np.nan, np.nan)
    of_seed, of_cluster = values.mean(axis=1, keepdims=True) - mean, values.mean(axis=0, keepdims=True) - mean
    free = np.array([seeds - 1, clusters - 1, (seeds - 1) * (clusters - 1)])
    squares = [clusters * (of_seed**2).sum(), seeds * (of_cluster**2).sum(), ((values - mean - of_seed - of_cluster) ** 2).sum()]
    mean_squares = np.maximum(squares / free, squares[2] / free[2])
    combined = float(mean_squares @ [1, 1, -1])
    error = float(np.sqrt(combined / values.size))
    if error < _ROUNDING * abs(mean):
        # Not even one value differs. That is no certainty: all signs of so many clusters agree by chance this often.
        return Crossed(Estimate(clusters, mean, mean, mean), 0.0, float(clusters - 1), 2.0 ** (1 - clusters))
    freedom = float(combined**2 / (mean_squares**2 / free).sum())
    half = float(stdtrit(freedom, 0.5 + confidence / 2)) * error
    return Crossed(Estimate(clusters, mean, mean - half, mean + half), error, freedom, float(2 * stdtr(freedom, -abs(mean) / error)))


# --- tests ---------------------------------------------------------------------------------------------------------------------------------------


def mcnemar_exact(won: int, lost: int) -> float:
    """McNemar's exact test (McNemar 1947): two-sided binomial over the documents on which the two models differ; 1 if there are none."""
    return float(binomtest(won, won + lost, 0.5).pvalue) if won + lost else 1.0


def mcnemar_midp(won: int, lost: int) -> float:
    """McNemar's test with the mid-p (Fagerland, Lydersen & Laake 2013): what is as extreme as observed counts half; 1 if no document differs.

    Less cautious than the exact test, which rejects less often than it says, and still close to its level: at 500 items and 10,000 simulated
    comparisons of equally good models it is at most 0.05 in 4.8 % of the cases, the exact test in 4.0 %.
    """
    if won + lost == 0:
        return 1.0
    observed = float(binom.pmf(won, won + lost, 0.5))
    return 1 - observed / 2 if won == lost else max(0.0, mcnemar_exact(won, lost) - observed)


def sign_flip_p(sums: Real[np.ndarray, " cluster"]) -> float:
    """Two-sided p of a total of cluster differences, under the null that each cluster's sign is a fair coin.

    Whole numbers: exact. Clusters of the same size make a binomial, and the total is the convolution of the binomials of all sizes. With sums
    of -1, 0 and 1 this is McNemar's exact test.

    Others, such as weighted means over languages, and totals too long to convolve: Monte Carlo over 20,000 sign vectors from a fixed seed,
    the observed one counted with them (Phipson & Smyth 2010), so that p is at least 1 / 20,001.
    """
    # Equal up to rounding is equal: sizes with many clusters cost as much as those with one.
    steps, counts = np.unique(np.abs(sums[np.abs(sums) > _ROUNDING]).astype(float).round(12), return_counts=True)
    span, observed = float(steps @ counts), abs(float(sums.sum()))
    if len(steps) == 0 or observed == 0:
        return 1.0
    if np.array_equal(steps, np.rint(steps)) and (len(steps) == 1 or span <= _LONGEST):
        return _exact_flip_p(steps.astype(int), counts, round(observed))
    rng = np.random.default_rng(_SIGN_SEED)
    totals = np.zeros(_SIGN_VECTORS)
    for step, count in zip(steps, counts, strict=True):
        totals += step * (2.0 * rng.binomial(count, 0.5, size=_SIGN_VECTORS) - count)
    return (int((np.abs(totals) >= observed - _ROUNDING * span).sum()) + 1) / (_SIGN_VECTORS + 1)


@functools.lru_cache(maxsize=512)
def _coins(count: int) -> Float[np.ndarray, " head"]:
    """Probability of each number of heads, from 0 to all. Kept, as the cells of a table ask for the same few; not to be written to."""
    return binom.pmf(np.arange(count + 1), count, 0.5)


def _exact_flip_p(steps: Int[np.ndarray, " step"], counts: Int[np.ndarray, " step"], observed: int) -> float:
    """Probability that signs drawn at random bring `counts` times each of the `steps` at least as far from 0 as `observed`; at least 1e-150."""
    unit = int(np.gcd.reduce(steps))
    positive = np.ones(1)  # probability that the steps with a plus sign add up to index * unit
    for step, count in zip(steps // unit, counts, strict=True):
        spread = np.zeros(step * count + 1)
        spread[::step] = _coins(int(count))
        positive, spread = (np.where(part < _IMPOSSIBLE, 0, part) for part in (positive, spread))
        positive = np.convolve(positive, spread)
    totals = unit * (2 * np.arange(len(positive)) - (len(positive) - 1))
    return min(1.0, max(_IMPOSSIBLE, float(positive[np.abs(totals) >= observed].sum())))


# --- what could have been seen -------------------------------------------------------------------------------------------------------------------


def differing(sums: Real[np.ndarray, " cluster"]) -> int:
    """Number of clusters whose difference is not 0."""
    return int((np.abs(sums) > _ROUNDING).sum())


def cluster_unit(sums: Real[np.ndarray, " cluster"]) -> float:
    """How many documents a cluster that differs is worth: the mean absolute difference of those that do, at least 1."""
    return max(1.0, float(np.abs(sums).sum()) / max(1, differing(sums)))


def fewest_one_sided(confidence: float) -> int:
    """Fewest clusters, all with the same sign, that the exact two-sided sign test rejects: the smallest m with 2 / 2^m <= 1 - confidence.

    6 at 0.95. The sign flip of larger clusters needs as many: m signs have 2^m patterns, whatever they are worth.
    """
    clusters = 1
    while 2.0 ** (1 - clusters) > 1 - confidence + _ROUNDING:
        clusters += 1
    return clusters


def null_standard_error(sums: Float[np.ndarray, " cluster"], items: int) -> float:
    """Standard error of a mean difference per item if the sign of each cluster's difference were chance: sqrt(sum of squares) / items.

    With documents that are facts of their own this is sqrt(discordant documents) / items, as in the sample sizes for McNemar's test
    (Miettinen 1968; Connor 1987). It knows only the differences that there are: 0 where there are none.
    """
    return float(np.sqrt(np.square(sums).sum())) / items


def minimum_detectable_effect(standard_error: float, *, confidence: float, power: float, freedom: float | None = None) -> float:
    """Smallest true difference that a two-sided test at level 1 - confidence finds with this probability.

    Args:
        standard_error: of the difference.
        confidence: such as 0.95.
        power: such as 0.8.
        freedom: degrees of freedom of a t test; None: the error is known well enough for a normal distribution.
    """
    distribution = norm if freedom is None else t(freedom)
    return float(distribution.ppf(0.5 + confidence / 2) + distribution.ppf(power)) * standard_error


def exact_floor(sums: Float[np.ndarray, " cluster"], items: int, *, confidence: float, power: float) -> float:
    """A true difference per item below which no exact test has this power, however few the clusters that differ.

    The kindest case is that all clusters which differ do so in favour of the same model. The sign test then rejects if there are at least m =
    `fewest_one_sided`. Rare and independent, they are Poisson: x of them must be expected for P(Poisson(x) >= m) to be the power, and as
    P(Poisson(x) >= m) = P(Gamma(m) <= x), x is that quantile of the gamma distribution; 7.9 at confidence 0.95 and power 0.8. (The binomial
    is less spread than the Poisson, and its power higher.) A cluster is worth `cluster_unit` documents.

    Args:
        sums: difference per cluster.
        items: total of the clusters' sizes.
    """
    return float(gamma.ppf(power, fewest_one_sided(confidence))) * cluster_unit(sums) / items


def detectable_difference(sums: Float[np.ndarray, " cluster"], items: int, settings: TestSettings, crossed: Crossed | None = None) -> float:
    """Smallest true difference of accuracies that would have been found with probability `settings.power`; nan where not even 1 would.

    `minimum_detectable_effect`, no less than `exact_floor`: models that hardly differ leave next to no error, but also no test.

    Args:
        sums: difference per cluster; with several seeds their mean.
        items: total of the clusters' sizes.
        crossed: the effects of several seeds, whose error and freedom count then. None: one seed, by the error under the null.
    """
    error, freedom = (null_standard_error(sums, items), None) if crossed is None else (crossed.standard_error, crossed.freedom)
    effect = minimum_detectable_effect(error, confidence=settings.confidence, power=settings.power, freedom=freedom)
    floor = exact_floor(sums, items, confidence=settings.confidence, power=settings.power)
    return max(effect, floor) if max(effect, floor) <= 1 else np.nan
