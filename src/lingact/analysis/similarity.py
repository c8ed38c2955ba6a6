"""Similarity of two languages in the model's residual space: similarity of translations, and directions that separate languages.

The input is, for each language, the mean residual of every sentence; all languages have the same sentences in the same order. Each measure of
similarity comes with its floor, the same measure on shuffled pairs, because anisotropy, sentence length and a large width increase it without any
shared meaning.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int
from scipy.special import ndtri, stdtrit

from lingact.statistics.bootstrap import Resampling, interval

Vectors = Float[np.ndarray, "sentence d_model"]
Kernel = Float[np.ndarray, "sentence sentence"]

SHUFFLES = 20
"""Random pairings over which a floor is averaged."""
JACKKNIFE_GROUPS = 20
_TIE = 1e-9
"""Cosines this close are equal, so that rounding does not distinguish copies of a sentence."""


# --- similarity of translations ------------------------------------------------------------------------------------------------------------------


def centred(x: Vectors) -> Vectors:
    """The vectors minus their mean, in float64."""
    x = x.astype(np.float64)
    return x - x.mean(axis=0)


def unit(x: Float[np.ndarray, "... d_model"]) -> Float[np.ndarray, "... d_model"]:
    """The vectors scaled to length one; a vector of zeros stays zero."""
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def translation_ranks(cosines: Kernel, partner: Int[np.ndarray, " sentence"]) -> Float[np.ndarray, "direction sentence"]:
    """Rank of the partner among all candidates, in both directions; 1 is best. Ties count against the partner, so that collapsed vectors rank low.

    Args:
        cosines: cosines of each sentence of one language (rows) with each of the other (columns).
        partner: the column paired with each row.

    Returns:
        Ranks of the columns for each row, and of the rows for each row's partner.
    """
    rows = np.arange(len(partner))
    own = cosines[rows, partner]
    of_column = np.empty_like(own)
    of_column[partner] = own
    forward = (cosines >= own[:, None] - _TIE).sum(axis=1)
    backward = (cosines >= of_column[None, :] - _TIE).sum(axis=0)[partner]
    return np.stack([forward, backward]).astype(float)


def sentence_similarities(
    x: Vectors, y: Vectors, cosines: Kernel, partner: Int[np.ndarray, " sentence"]
) -> dict[str, Float[np.ndarray, " sentence"]]:
    """The contribution of each pair of sentences to the measures that are means over sentences.

    `retrieval`: whether the partner is the nearest candidate (0, 0.5 or 1: the mean of both directions); `mrr`: the reciprocal of its rank, averaged
    over both directions; `centred_cosine`: cosine after subtracting each language's mean; `cosine`: plain cosine, which anisotropy and sentence
    length inflate (arXiv:2605.07345, 2109.04404).

    Args:
        x: unit vectors of one language.
        y: unit vectors of the other.
        cosines: cosines of the centred vectors; all sentences are candidates.
        partner: the sentence of `y` that is paired with each sentence of `x`.
    """
    ranks = translation_ranks(cosines, partner)
    return {
        "retrieval": (ranks == 1).mean(axis=0),
        "mrr": (1 / ranks).mean(axis=0),
        "centred_cosine": cosines[np.arange(len(partner)), partner],
        "cosine": (x * y[partner]).sum(axis=1),
    }


def similarity_kernel(x: Vectors) -> Kernel:
    """Inner products between the centred vectors of different sentences; zero for a sentence with itself."""
    around = centred(x)
    kernel = around @ around.T
    np.fill_diagonal(kernel, 0)
    return kernel


def _unbiased_hsic(k: Kernel, other: Kernel, left_out: Float[np.ndarray, "sentence group"]) -> Float[np.ndarray, " group"]:
    """`n (n - 3)` times the unbiased HSIC over the sentences outside each group, without forming the smaller kernels.

    Song et al. 2012: `tr(KL) + 1'K1 1'L1 / ((n - 1) (n - 2)) - 2 / (n - 2) 1'KL1` of kernels with a zero diagonal; nan below four
    sentences.
    """
    product = k * other
    of_group = product @ left_out
    both_kept = product.sum() - 2 * of_group.sum(axis=0) + (left_out * of_group).sum(axis=0)
    kept = 1 - left_out
    k_rows, other_rows = ((kernel @ kept) * kept for kernel in (k, other))
    n = kept.sum(axis=0)
    n = np.where(n > 3, n, np.nan)
    return both_kept + k_rows.sum(axis=0) * other_rows.sum(axis=0) / ((n - 1) * (n - 2)) - 2 / (n - 2) * (k_rows * other_rows).sum(axis=0)


def debiased_cka(k: Kernel, other: Kernel, left_out: Float[np.ndarray, "sentence group"]) -> Float[np.ndarray, " group"]:
    """Debiased linear centred kernel alignment of two languages, without the sentences of each group.

    CKA of Kornblith et al. 2019 with the unbiased HSIC of Song et al. 2012, as in Nguyen et al. 2021 and Murphy et al. 2024. It leaves out the
    product of each sentence with itself, which makes unrelated vectors look similar if d_model is large compared with n. So unrelated languages have
    about 0 at any width, sometimes less, and identical vectors have 1. The kernels cost n^2 d, like the retrieval; shuffled pairs and each group of
    the jackknife cost n^2, whatever the width of the model. nan if the vectors of a language do not vary.

    Args:
        k: `similarity_kernel` of one language.
        other: `similarity_kernel` of the other language.
        left_out: 1 for the sentences of a group, which are left out; a column of zeros leaves none out.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        return _unbiased_hsic(k, other, left_out) / np.sqrt(_unbiased_hsic(k, k, left_out) * _unbiased_hsic(other, other, left_out))


def u_centred(kernel: Kernel) -> Kernel:
    """A kernel of zero diagonal minus the means of its rows and columns, so that inner products are `n (n - 3)` times the unbiased HSIC.

    Szekely and Rizzo 2014, definition 2; at least three sentences.
    """
    n = len(kernel)
    rows = kernel.sum(axis=0) / (n - 2)
    around = kernel - rows[:, None] - rows[None, :] + rows.sum() / (n - 1)
    np.fill_diagonal(around, 0)
    return around


def shuffled_cka(k: Kernel, other: Kernel, partners: Int[np.ndarray, "shuffle sentence"]) -> Float[np.ndarray, " shuffle"]:
    """Debiased CKA of shuffled pairs; the kernels are those of `debiased_cka`. Shuffling does not change the norms of the kernels."""
    if len(k) < 4:
        return np.full(len(partners), np.nan)
    k, other = u_centred(k), u_centred(other)
    scale = np.linalg.norm(k) * np.linalg.norm(other)
    return np.array([np.vdot(k, other[np.ix_(partner, partner)]) for partner in partners]) / (scale or np.nan)


def jackknife_interval(whole: float, without: Float[np.ndarray, " group"], confidence: float, *, few: bool = False) -> tuple[float, float]:
    """Normal interval by the delete-a-group jackknife (Kott 2001). CKA needs it, because a bootstrap would put copies of sentences into the kernel.

    Args:
        few: whether documents or blocks were left out, of which there may be few. Then the interval uses Student's t, with one degree of freedom less
            than there are groups.
    """
    groups = len(without)
    error = np.sqrt((groups - 1) / groups * np.square(without - without.mean()).sum())
    upper = 0.5 + confidence / 2
    reach = float((stdtrit(groups - 1, upper) if few else ndtri(upper)) * error)
    return whole - reach, whole + reach


class _Plan(NamedTuple):
    """The random choices that all languages and layers share, so that their numbers differ only by the data."""

    partners: Int[np.ndarray, "shuffle sentence"]
    weights: Float[np.ndarray, "draw sentence"]
    left_out: Float[np.ndarray, "sentence group"]
    """1 for the sentences that a column leaves out; column 0 leaves none out."""
    resampling: Resampling
    confidence: float


def _plan(resampling: Resampling, resamples: int, confidence: float, seed: int) -> _Plan:
    random = np.random.default_rng([seed, 1])  # not the stream of the resamples
    partners = np.stack([resampling.shuffled(random) for _ in range(SHUFFLES)])
    groups = min(JACKKNIFE_GROUPS, resampling.count)
    left_out = np.eye(groups + 1)[1 + (random.permutation(resampling.count) % groups)[resampling.unit]]
    return _Plan(partners, resampling.weights(resamples, seed), left_out, resampling, confidence)


class _Prepared(NamedTuple):
    """One language at one layer."""

    unit: Vectors
    unit_centred: Vectors
    kernel: Kernel


def _prepared(x: Vectors) -> _Prepared:
    return _Prepared(unit(x.astype(np.float64)), unit(centred(x)), similarity_kernel(x))


def _similarity_rows(own: _Prepared, reference: _Prepared, plan: _Plan) -> list[dict[str, str | float]]:
    """One row per quantity for one language at one layer."""
    if not (np.isfinite(own.unit).all() and np.isfinite(reference.unit).all()):
        # Ranks would be defined even if the vectors of the candidates are nan.
        nothing = dict.fromkeys(("estimate", "lo", "hi", "floor", "floor_hi"), np.nan)
        return [{"quantity": quantity, **nothing} for quantity in ("cka", "retrieval", "mrr", "centred_cosine", "cosine")]
    upper = 0.5 + plan.confidence / 2
    cka = debiased_cka(own.kernel, reference.kernel, plan.left_out)
    lo, hi = np.clip(jackknife_interval(float(cka[0]), cka[1:], plan.confidence, few=plan.resampling.clusters is not None), -1, 1)
    shuffled = {"cka": shuffled_cka(own.kernel, reference.kernel, plan.partners)}
    rows: list[dict[str, str | float]] = [{"quantity": "cka", "estimate": float(cka[0]), "lo": float(lo), "hi": float(hi)}]

    cosines = own.unit_centred @ reference.unit_centred.T
    found = sentence_similarities(own.unit, reference.unit, cosines, np.arange(len(cosines)))
    by_chance = [sentence_similarities(own.unit, reference.unit, cosines, partner) for partner in plan.partners]
    for quantity, values in found.items():
        estimate, lo, hi = interval(plan.weights @ values / plan.weights.sum(axis=1), plan.confidence, plan.resampling.clusters)
        rows.append({"quantity": quantity, "estimate": float(estimate), "lo": float(lo), "hi": float(hi)})
        shuffled[quantity] = np.array([one[quantity].mean() for one in by_chance])
    for row in rows:
        floor = shuffled[str(row["quantity"])]
        row |= {"floor": float(floor.mean()), "floor_hi": float(np.quantile(floor, upper))}
    return rows


def similarity_table(
    vectors: dict[str, Float[np.ndarray, "layer sentence d_model"]],
    layers: tuple[int, ...],
    reference: str,
    resampling: Resampling,
    *,
    resamples: int,
    confidence: float,
    seed: int,
) -> pd.DataFrame:
    """Similarity of every language to the reference at every layer.

    Intervals: `cka` by the jackknife, the others by a bootstrap over documents, or else blocks or sentences, which does not resample each language's
    mean and the candidates of the retrieval. The jackknife leaves out whole documents or blocks, and shuffled pairs keep them together
    (`Resampling.shuffled`). The expected floor of retrieval is 1/n, that of `cka` (debiased) is near 0 at any d_model.

    Args:
        vectors: language -> mean residual of each sentence; all languages have the same order of sentences.
        layers: numbers of the layers.
        reference: code of the language that the others are compared with.
        resampling: the resampling of these sentences.
        resamples: number of resamples of the bootstrap.
        confidence: such as 0.95.
        seed: seed of resamples, shuffles and jackknife groups.

    Returns:
        One row per language, layer and quantity (`cka`, `retrieval`, `mrr`, `centred_cosine`, `cosine`), with n (sentences), resampled, units,
        estimate, lo, hi, floor (mean over shuffled pairs) and floor_hi (their upper quantile).
    """
    plan = _plan(resampling, resamples, confidence, seed)
    rows = []
    for place, layer in enumerate(layers):
        against = _prepared(vectors[reference][place])
        for code in vectors:
            if code != reference:
                keys = {"language": code, "layer": layer} | resampling.columns
                rows += [keys | row for row in _similarity_rows(_prepared(vectors[code][place]), against, plan)]
    columns = ["language", "layer", "quantity", "n", "resampled", "units", "estimate", "lo", "hi", "floor", "floor_hi"]
    return pd.DataFrame(rows, columns=columns)


# --- directions that separate languages -------------------------------------------------------------------------------------------------------------


def diffmean_directions(
    vectors: dict[str, Float[np.ndarray, "layer sentence d_model"]], halves: Int[np.ndarray, " sentence"], reference: str
) -> dict[str, Float[np.ndarray, "layer d_model"]]:
    """DiffMean: unit vector from the reference's mean to the language's, on the discovery half. It steers better than SAEs (arXiv:2601.08331)."""
    discovery = halves == 0
    base = vectors[reference][:, discovery].mean(axis=1, dtype=np.float64)
    return {code: unit(x[:, discovery].mean(axis=1, dtype=np.float64) - base) for code, x in vectors.items() if code != reference}


def auc_draws(
    own: Float[np.ndarray, " sentence"], reference: Float[np.ndarray, " sentence"], weights: Float[np.ndarray, "draw sentence"]
) -> Float[np.ndarray, " draw"]:
    """Probability that a random sentence of the language scores above a random one of the reference, with ties counting half.

    It is Mann-Whitney's U over n^2. A resample draws the same sentences for both languages.
    """
    wins = np.heaviside(own[:, None] - reference[None, :], 0.5)
    return ((weights @ wins) * weights).sum(axis=1) / np.square(weights.sum(axis=1))


def cohens_d(own: Float[np.ndarray, " sentence"], reference: Float[np.ndarray, " sentence"]) -> float:
    """Difference of the means in units of the pooled standard deviation; nan if neither varies."""
    spread = np.sqrt((own.var(ddof=1) + reference.var(ddof=1)) / 2)
    return float((own.mean() - reference.mean()) / spread) if spread > 0 else float("nan")


def separation_table(  # noqa: PLR0913 (three inputs of the same axes, and how sure we are)
    vectors: dict[str, Float[np.ndarray, "layer sentence d_model"]],
    scalars: dict[str, dict[str, Float[np.ndarray, "layer sentence"]]],
    halves: Int[np.ndarray, " sentence"],
    layers: tuple[int, ...],
    reference: str,
    resampling: Resampling,
    *,
    resamples: int,
    confidence: float,
    seed: int,
) -> pd.DataFrame:
    """How well one number per sentence separates a language from the reference, on the confirmation half.

    Args:
        vectors: language -> mean residual of each sentence.
        scalars: name -> language -> a value of each sentence, such as its activation per token or its residual norm.
        halves: 0 for sentences on which DiffMean's direction is computed, 1 for those on which the separation is measured.
        layers: numbers of the layers.
        reference: code of the reference language.
        resampling: the resampling of all these sentences.
        resamples: number of resamples of the bootstrap, in which the direction is fixed.
        confidence: such as 0.95.
        seed: seed of the resamples.

    Returns:
        One row per language, layer and quantity (`diffmean`, and each scalar's name): n (sentences of the confirmation half), resampled, units (of
        that half), estimate (AUC: 0.5 is chance; of a scalar, below 0.5 says lower than the reference), lo, hi, effect (Cohen's d, positive:
        above the reference).
    """
    judged = halves == 1
    resampling = resampling.part(np.flatnonzero(judged))
    weights = resampling.weights(resamples, seed)
    rows = []
    for code, directions in diffmean_directions(vectors, halves, reference).items():
        values = {"diffmean": tuple(_projections(vectors[one], directions, judged) for one in (code, reference))}
        values |= {name: (of[code][:, judged], of[reference][:, judged]) for name, of in scalars.items()}
        for quantity, (own, base) in values.items():
            for place, layer in enumerate(layers):
                estimate, lo, hi = interval(auc_draws(own[place], base[place], weights), confidence, resampling.clusters)
                keys = {"language": code, "layer": layer, "quantity": quantity} | resampling.columns
                rows.append(keys | {"estimate": float(estimate), "lo": float(lo), "hi": float(hi), "effect": cohens_d(own[place], base[place])})
    return pd.DataFrame(rows, columns=["language", "layer", "quantity", "n", "resampled", "units", "estimate", "lo", "hi", "effect"])


def _projections(
    x: Float[np.ndarray, "layer sentence d_model"], directions: Float[np.ndarray, "layer d_model"], judged: Bool[np.ndarray, " sentence"]
) -> Float[np.ndarray, "layer judged"]:
    return np.einsum("lsd,ld->ls", x[:, judged], directions, optimize=True)
