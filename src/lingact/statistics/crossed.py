"""Means over a few drawn units (training seeds, random directions) that were all measured on the same sentences. Pure: arrays in, numbers out.

The sentences are resampled for all units together (`bootstrap`), so their part of the uncertainty is known from the bootstrap. That of the units
is not: a bootstrap over two or five of them shows next to no spread. It is added by the law of total variance.
"""

import numpy as np
from jaxtyping import Float
from scipy.special import stdtr, stdtrit

from lingact.statistics.bootstrap import Resampling, interval, p_value
from lingact.statistics.paired import Crossed, Estimate

_ROUNDING = 1e-12
"""Smaller than this, beside quantities of order 1, is no spread and no difference."""


def crossed_difference(
    one: Float[np.ndarray, "unit draw"], other: Float[np.ndarray, "other_unit draw"], *, resampling: Resampling, confidence: float
) -> Crossed:
    """Mean over the units of one side minus that of the other side, as if sentences and units had been drawn at random.

    Law of total variance: Var(m) = E[Var(m | units)] + Var(E[m | units]). The first part is S, the bootstrap's variance of the difference of the
    two means, units as they are. The second is, for each side of K units, s^2 / K with the variance s^2 of the units' estimates, less
    I = sum_k Var(g_k - m) / ((K - 1) K): what the sentences alone make of s^2 / K by moving the units apart, which S has already. Together

        Var = max(S, sum I) + sum over the sides of (max(s^2 / K, I) - I)

    (of documents or blocks, S and I are larger by n / (n - 1), as in `bootstrap.p_value`: resampling n of them knows their spread too small by that)
    with the degrees of freedom of Satterthwaite (1946): S has one less than there are documents, blocks or sentences to resample, s^2 / K has K - 1,
    I the product of the two. For one side and means of sentences this is the variance of two-way random effects without replication,
    (MS_unit + MS_sentence - MS_residual) / (K n) (Searle, Casella & McCulloch 1992, section 4.3), which `paired.crossed_effects` computes from the
    mean squares themselves. As there, no part is taken as negative, so that the interval is too wide where units do not differ.

    A side of one unit is taken as fixed: the answer is then about that very unit. Where both sides are, the interval is the bootstrap's percentile
    interval and p that of `bootstrap.p_value`.

    Coverage of the 95 % interval of a difference in 2,000 simulations (seed 20261126, fixed beforehand; 100 sentences, whose noise the units share
    in part, so that it moves the difference by .033 to .036), by the standard deviation of the units (`tests/unit/test_crossed.py` repeats some):

    | units | 0 | .02 | .05 | .2 |
    |---|---|---|---|---|
    | 2 and 2 | 99.9 % | 99.5 % | 97.6 % | 97.4 % |
    | 3 and 3 | 99.2 % | 97.8 % | 95.7 % | 96.0 % |
    | 5 and 5 | 97.6 % | 96.5 % | 95.7 % | 96.6 % |
    | 3 and 3, sentences alone | 94.9 % | 84.5 % | 56.9 % | 16.6 % |

    Args:
        one: draws of each unit, row 0 of the draws the sample, the others resamples, the same ones for all units of both sides.
        other: likewise; zeros of one unit give the mean of `one` by itself.
        resampling: what the resamples drew.
        confidence: such as 0.95.

    Returns:
        Without limits (nan) where a draw is undefined.
    """
    resampled, means = resampling.count, one.mean(axis=0) - other.mean(axis=0)
    estimate = float(means[0])
    if np.isnan(one).any() or np.isnan(other).any():
        return Crossed(Estimate(resampled, estimate, np.nan, np.nan), np.nan, np.nan, np.nan)
    sides = [side for side in (one, other) if len(side) > 1]
    widened = 1.0 if resampling.clusters is None else resampled / (resampled - 1)
    sentences = float(means[1:].var(ddof=1)) * widened
    if not sides:
        _, low, high = interval(means, confidence, resampling.clusters)
        return Crossed(
            Estimate(resampled, estimate, float(low), float(high)), sentences**0.5, float(resampled - 1), float(p_value(means, resampling.clusters))
        )
    between, interaction, free = (np.array(column) for column in zip(*map(_parts, sides), strict=True))
    interaction *= widened
    sentences, between = max(sentences, float(interaction.sum())), np.maximum(between, interaction)
    variance = sentences + float((between - interaction).sum())
    error = variance**0.5
    if error <= _ROUNDING * max(1.0, float(np.abs(one[:, 0]).max()), float(np.abs(other[:, 0]).max())):
        return Crossed(Estimate(resampled, estimate, estimate, estimate), 0.0, float(resampled - 1), float(abs(estimate) < _ROUNDING))
    squares = sentences**2 / (resampled - 1) + (between**2 / free).sum() + (interaction**2 / (free * (resampled - 1))).sum()
    freedom = variance**2 / float(squares)
    half = float(stdtrit(freedom, 0.5 + confidence / 2)) * error
    return Crossed(Estimate(resampled, estimate, estimate - half, estimate + half), error, freedom, float(2 * stdtr(freedom, -abs(estimate) / error)))


def crossed_mean(units: Float[np.ndarray, "unit draw"], *, resampling: Resampling, confidence: float) -> Crossed:
    """Mean over the units of one side, against 0 (`crossed_difference`)."""
    return crossed_difference(units, np.zeros_like(units[:1]), resampling=resampling, confidence=confidence)


def _parts(side: Float[np.ndarray, "unit draw"]) -> tuple[float, float, int]:
    """s^2 / K of the estimates, what resampling makes of it, and K - 1."""
    count = len(side)
    apart = side - side.mean(axis=0)
    return float(side[:, 0].var(ddof=1)) / count, float(apart[:, 1:].var(axis=1, ddof=1).sum()) / ((count - 1) * count), count - 1
