"""How sure are we? Bootstrap weights, intervals, simultaneous bands, tests and effect sizes. Pure: numbers in, numbers out.

Every array of draws has a leading axis `draw`, whose row 0 is the sample itself and whose other rows are the resamples; a formula is written
once for both.
"""

import numpy as np
from jaxtyping import Float
from scipy.special import ndtr
from scipy.stats import false_discovery_control

from lingact.errors import UserError

Values = np.ndarray | np.floating
"""One number per layer, or one alone."""
_ROUNDING = 1e-12
"""Smaller than this, beside quantities of order 1, is no spread and no difference."""


def check_enough(count: int) -> None:
    """Refuse what has no interval; workflows ask before they measure.

    Raises:
        UserError: fewer than two sentences, which carry no information on their own spread.
    """
    if count < 2:
        raise UserError(f"{count} sentence is too few for an interval; give at least two sentences in the split")


def sentence_weights(count: int, resamples: int, seed: int) -> Float[np.ndarray, "draw sentence"]:
    """How often each sentence counts: once in row 0, as drawn with replacement in the others.

    Raises:
        UserError: fewer than two sentences, which carry no information on their own spread.
    """
    check_enough(count)
    rng = np.random.default_rng(seed)
    weights = np.ones((1 + resamples, count))
    for resample in weights[1:]:
        resample[:] = np.bincount(rng.integers(count, size=count), minlength=count)
    return weights


def interval(draws: Float[np.ndarray, "draw ..."], confidence: float) -> tuple[Values, Values, Values]:
    """Estimate and percentile interval (low, high) along the draws (Efron & Tibshirani 1993, chapter 13).

    On simulated corpora with log-normal activations a 95 % interval holds the true gap in 93 to 95 % of the cases with 200 sentences, and in
    92 to 93 % with 30 (`tests/unit/test_planted.py`).
    """
    tail = (1 - confidence) / 2
    low, high = np.quantile(draws[1:], [tail, 1 - tail], axis=0)
    return draws[0], low, high


def simultaneous_band(draws: Float[np.ndarray, "draw layer"], confidence: float) -> tuple[Float[np.ndarray, " layer"], Float[np.ndarray, " layer"]]:
    """Band (low, high) that holds the truth at all layers at once with this confidence: estimate +- q SE.

    q is the quantile, over resamples, of the largest deviation from the estimate in units of the layer's bootstrap SE (the sup-t band of
    Montiel Olea & Plagborg-Moller 2019, algorithm 2). A layer without spread, or undefined, has no say in q and gets zero width, or nan.

    On simulated corpora of four layers a 95 % band holds all true gaps in 93 % of the cases with 200 sentences, and in 88 % with 30.
    """
    estimate, error = draws[0], _standard_error(draws)
    varies = error > 0
    if not varies.any():
        return estimate + error, estimate + error
    furthest = (np.abs(draws[1:, varies] - estimate[varies]) / error[varies]).max(axis=1)
    half = np.quantile(furthest, confidence) * error
    return estimate - half, estimate + half


def p_value(draws: Float[np.ndarray, "draw ..."]) -> Float[np.ndarray, "..."]:
    """Two-sided p of the estimate against 0 under a normal distribution with the bootstrap's SE.

    Its resolution, unlike that of a share of resamples, suffices for a correction over hundreds of tests. Without spread: 1 at 0, else 0.
    """
    estimate, error = np.asarray(draws[0]), _standard_error(draws)
    certain = np.where(np.isnan(estimate + error), np.nan, (np.abs(estimate) < _ROUNDING).astype(float))
    z = np.divide(np.abs(estimate), error, where=error > 0, out=np.zeros(estimate.shape))
    return np.where(error > 0, 2 * ndtr(-z), certain)


def _standard_error(draws: Float[np.ndarray, "draw ..."]) -> Float[np.ndarray, "..."]:
    """Standard deviation of the resamples; one of the size of rounding counts as 0."""
    error = np.asarray(draws[1:].std(axis=0, ddof=1))
    return np.where(error < _ROUNDING * np.maximum(1, np.abs(draws[0])), 0.0, error)


def holm(p: Float[np.ndarray, " test"]) -> Float[np.ndarray, " test"]:
    """Holm's step-down correction (Holm 1979): adjusted p in the given order. A nan is no test: it stays nan and is not counted."""
    adjusted, known = np.full(len(p), np.nan), np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known], kind="stable")]
    stepped = np.maximum.accumulate(p[order] * (len(order) - np.arange(len(order))))
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def benjamini_hochberg(p: Float[np.ndarray, " test"]) -> Float[np.ndarray, " test"]:
    """Adjusted p that bounds the false discovery rate (Benjamini & Hochberg 1995). A nan is no test: it stays nan and is not counted."""
    adjusted, known = np.full(len(p), np.nan), ~np.isnan(p)
    if known.any():
        adjusted[known] = false_discovery_control(p[known], method="bh")
    return adjusted


def effect_size(difference: Float[np.ndarray, "... sentence"]) -> Float[np.ndarray, "..."]:
    """Cohen's d_z: mean of the paired differences over their standard deviation (Cohen 1988); nan without spread. Differences of nan do not count."""
    counted = ~np.isnan(difference)
    count = counted.sum(axis=-1)
    mean = np.divide(np.where(counted, difference, 0).sum(axis=-1), count, where=count > 0, out=np.full(count.shape, np.nan))
    squares = np.where(counted, np.square(difference - mean[..., None]), 0).sum(axis=-1)
    spread = np.sqrt(np.divide(squares, count - 1, where=count > 1, out=np.zeros(count.shape)))
    return np.divide(mean, spread, where=spread > _ROUNDING * np.abs(mean), out=np.full(count.shape, np.nan))
