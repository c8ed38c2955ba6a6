"""Correlation of gaps and scores over a few related languages, with tests that are valid for such small numbers.

With nine languages normal theory does not hold, so p comes from permutations. Languages are not independent either, since related ones share scripts,
words and web text. So every correlation comes with its range when one language, or one branch, is left out.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int
from scipy.special import ndtri
from scipy.stats import rankdata

from lingact.catalogue.benchmarks import ALL
from lingact.catalogue.languages import LANGUAGES, language
from lingact.errors import UserError
from lingact.statistics.bootstrap import benjamini_hochberg, holm

FEWEST_LANGUAGES = 4
"""With fewer, a correlation has less than two residual degrees of freedom."""
EXACT_UP_TO = 9
"""Up to this number of languages, all n! orders are enumerated."""
RANDOM_ORDERS = 200_000
METHODS = ("pearson", "spearman")
CONTROLS: dict[str, tuple[str, ...]] = {
    "none": (),
    "tokens": ("tokens_per_sentence",),
    "resource": ("log_resource",),
    "both": ("tokens_per_sentence", "log_resource"),
}
"""Name -> covariates that are held constant."""
_CHUNK = 1 << 15
_TIE = 1e-9
"""Correlations this close are equal, so that orders that reproduce the observed correlation count in spite of rounding."""

Values = Float[np.ndarray, "place language"]
Scores = Float[np.ndarray, " language"]
Basis = Float[np.ndarray, "language held"]


def refuse_few_languages(scores: pd.DataFrame, analysed: Sequence[str]) -> None:
    """Refuse benchmarks that have scores for too few of the analysed languages (without the reference).

    Raises:
        UserError: fewer than four.
    """
    for benchmark, rows in scores.groupby("benchmark", sort=False):
        missing = [code for code in analysed if code not in set(rows["language"])]
        if len(analysed) - len(missing) < FEWEST_LANGUAGES:
            raise UserError(
                f"'{benchmark}' has scores for {len(analysed) - len(missing)} of the analysed languages, but a correlation needs {FEWEST_LANGUAGES} "
                f"besides the reference; missing: {', '.join(missing) or 'none, too few are analysed'}"
            )


# --- resource level ------------------------------------------------------------------------------------------------------------------------------


def log_resource(codes: Sequence[str], shares: Mapping[str, float] | None) -> list[float]:
    """Logarithm of each language's share of the training text; nan if it is not known.

    Args:
        shares: shares of the model's training text by language, in any unit; None: shares of public web pages are used instead.
    """
    of = {code: entry.web_share for code, entry in LANGUAGES.items()} if shares is None else shares
    return [math.log(share) if (share := of.get(code)) is not None else math.nan for code in codes]


# --- correlations of few points ------------------------------------------------------------------------------------------------------------------


def held_constant(covariates: Float[np.ndarray, "covariate language"]) -> Basis:
    """Orthonormal basis of the constant and the covariates, which are projected out of both variables before they are correlated."""
    design = np.vstack([np.ones(covariates.shape[1]), covariates]).T
    left, sizes, _ = np.linalg.svd(design / np.maximum(np.linalg.norm(design, axis=0), 1e-300), full_matrices=False)
    return left[:, sizes > 1e-9]


def standardised(values: Values, basis: Basis) -> Values:
    """Residuals after projecting out the basis, scaled to length one; nan if almost nothing is left."""
    # Scaled by a power of two, which causes no rounding, because squares of very large or small scores would overflow or vanish.
    values = np.ldexp(values, -np.frexp(np.abs(values).max(axis=1, keepdims=True))[1])
    around = values - values.mean(axis=1, keepdims=True)
    rest = around - (around @ basis) @ basis.T
    size = np.linalg.norm(rest, axis=1, keepdims=True)
    whole = np.maximum(np.linalg.norm(around, axis=1, keepdims=True), 1e-9 * np.linalg.norm(values, axis=1, keepdims=True))
    return np.where(size > 1e-6 * whole, rest, np.nan) / np.where(size > 0, size, 1)


def correlations(values: Values, scores: Scores, basis: Basis) -> Float[np.ndarray, " place"]:
    """(Partial) Pearson correlation of each row with the scores; given ranks, it is Spearman's."""
    return np.clip(standardised(values, basis) @ standardised(scores[None], basis)[0], -1, 1)


@lru_cache(maxsize=4)
def _orders(count: int, seed: int) -> Int[np.ndarray, "order language"]:
    """All orders if there are few enough to enumerate, else random ones."""
    if count <= EXACT_UP_TO:
        flat = itertools.chain.from_iterable(itertools.permutations(range(count)))
        return np.fromiter(flat, np.int8).reshape(-1, count)
    return np.random.default_rng(seed).permuted(np.tile(np.arange(count), (RANDOM_ORDERS, 1)), axis=1)


def permutation_p(values: Values, scores: Scores, basis: Basis, *, seed: int) -> Float[np.ndarray, " place"]:
    """Two-sided p of each correlation: the share of orders of the scores whose correlation is at least as large in size.

    With covariates, the scores' residuals are permuted (Freedman and Lane 1983) and the covariates projected out again. Up to nine languages, all
    orders are enumerated; beyond that, there are 200,000 random ones, and the observed one is counted among them (Phipson and Smyth 2010).

    Without covariates the test is exact; with them it is approximate even if all orders are enumerated. nan if the correlation is nan.
    """
    x = standardised(values, basis)
    residual = standardised(scores[None], basis)[0]
    observed = np.abs(x @ residual)
    if np.isnan(residual).any():
        return np.full(len(values), np.nan)
    orders = _orders(len(scores), seed)
    extreme = np.zeros(len(values))
    for start in range(0, len(orders), _CHUNK):
        permuted = residual[orders[start : start + _CHUNK]]
        left = np.sqrt(np.maximum(0, 1 - np.square(permuted @ basis).sum(axis=1)))  # length after projecting out the basis
        extreme += (np.abs(permuted @ x.T) >= (observed - _TIE) * left[:, None]).sum(axis=0)
    p = extreme / len(orders) if len(scores) <= EXACT_UP_TO else (extreme + 1) / (len(orders) + 1)
    return np.where(np.isnan(observed), np.nan, p)


def fisher_interval(r: Float[np.ndarray, " place"], count: int, held: int, method: str, confidence: float) -> Float[np.ndarray, "bound place"]:
    """Interval by Fisher's z, only as a description, because nine languages are neither many nor a random sample.

    Spearman's variance is `(1 + r^2 / 2) / (n - 3)` (Bonett and Wright 2000); each covariate costs one degree of freedom. nan if none is left.
    """
    freedom = count - 3 - held
    if freedom < 1:
        return np.full((2, len(r)), np.nan)
    spread = np.sqrt((1 + np.square(r) / 2 if method == "spearman" else 1) / freedom)
    with np.errstate(divide="ignore"):  # r of 1 has an interval of no width
        z = np.arctanh(r)
    return np.tanh(z + np.array([[-1], [1]]) * float(ndtri(0.5 + confidence / 2)) * spread)


class _Data(NamedTuple):
    """The variables that are correlated; columns are languages."""

    values: Values
    scores: Scores
    covariates: Float[np.ndarray, "covariate language"]

    def restricted(self, kept: Bool[np.ndarray, " language"]) -> "_Data":
        return _Data(self.values[:, kept], self.scores[kept], self.covariates[:, kept])

    def estimates(self, method: str) -> Float[np.ndarray, " place"]:
        """Correlation of each place; nan if there are fewer than two residual degrees of freedom."""
        if self.too_few:
            return np.full(len(self.values), np.nan)
        data = self.as_ranks() if method == "spearman" else self
        return correlations(data.values, data.scores, held_constant(data.covariates))

    def as_ranks(self) -> "_Data":
        ranked = (rankdata(part, axis=-1) for part in (self.values, self.scores, self.covariates))
        return _Data(*ranked)

    @property
    def too_few(self) -> bool:
        return len(self.scores) < FEWEST_LANGUAGES + len(self.covariates)


def _ranges(data: _Data, method: str, groups: Sequence[str]) -> Float[np.ndarray, "bound place"]:
    """Smallest and largest correlation when one group of languages is left out; nan if too few languages are left for one of them."""
    of = np.array(groups)
    found = np.stack([data.restricted(of != group).estimates(method) for group in dict.fromkeys(groups)])
    return np.stack([found.min(axis=0), found.max(axis=0)])


def _reason(data: _Data, row: int, estimate: float) -> str:
    """Why a correlation is missing; empty if it is not."""
    if data.too_few:
        return f"{len(data.scores)} languages leave fewer than 2 residual degrees of freedom"
    if not np.isnan(estimate):
        return ""
    if np.isnan(data.values[row]).any():
        return "a language has no value here"
    if np.ptp(data.scores) == 0 or np.ptp(data.values[row]) == 0:
        return f"the {'scores' if np.ptp(data.scores) == 0 else 'values'} are all the same"
    return "nothing varies apart from what is held constant"


def _correlation_rows(data: _Data, codes: Sequence[str], method: str, *, seed: int, confidence: float) -> pd.DataFrame:
    """All columns that need no other test, one row per place."""
    estimate = data.estimates(method)
    p = np.full(len(estimate), np.nan)
    if not data.too_few:
        used = data.as_ranks() if method == "spearman" else data
        p = permutation_p(used.values, used.scores, held_constant(used.covariates), seed=seed)
    exact = ~np.isnan(p) & (len(codes) <= EXACT_UP_TO) & (len(data.covariates) == 0)
    lo, hi = fisher_interval(estimate, len(codes), len(data.covariates), method, confidence)
    nowhere = np.full((2, len(estimate)), np.nan)
    loo_lo, loo_hi = nowhere if data.too_few else _ranges(data, method, codes)
    branch_lo, branch_hi = nowhere if data.too_few else _ranges(data, method, [language(code).branch for code in codes])
    return pd.DataFrame(
        {"n": len(codes), "estimate": estimate, "lo": lo, "hi": hi, "p": p, "exact": exact}
        | {"loo_lo": loo_lo, "loo_hi": loo_hi, "branch_lo": branch_lo, "branch_hi": branch_hi}
        | {"reason": [_reason(data, row, value) for row, value in enumerate(estimate)]}
    )


_COLUMNS = ["benchmark", "place", "method", "control", "n", "estimate", "lo", "hi", "p", "exact", "p_holm", "p_bh"]
_COLUMNS += ["loo_lo", "loo_hi", "branch_lo", "branch_hi", "reason"]


def correlate(
    values: pd.DataFrame, scores: pd.DataFrame, covariates: pd.DataFrame, controls: dict[str, tuple[str, ...]], *, seed: int, confidence: float
) -> pd.DataFrame:
    """Correlation of every place (row of `values`) with every benchmark, over the languages (columns) that both have."""
    frames = []
    for benchmark, rows in scores.groupby("benchmark", sort=False):
        of = rows.set_index("language")["score"]
        for control, names in controls.items():
            held = covariates.set_index("language")[list(names)].dropna() if names else None
            codes = [code for code in values.columns if code in of.index and (held is None or code in held.index)]
            held_values = np.empty((0, len(codes))) if held is None else np.asarray(held.loc[codes], float).T
            data = _Data(np.asarray(values[codes], float), np.asarray(of[codes], float), held_values)
            for method in METHODS:
                found = _correlation_rows(data, codes, method, seed=seed, confidence=confidence)
                frames.append(found.assign(benchmark=benchmark, place=list(values.index), method=method, control=control))
    table = pd.concat(frames, ignore_index=True)
    # The pooled benchmark adds no information to the others, so it is a separate family of tests.
    family = table.groupby([table["method"], table["control"], table["benchmark"] == ALL])["p"]
    table["p_holm"] = family.transform(lambda p: holm(np.asarray(p, float)))
    table["p_bh"] = family.transform(lambda p: benjamini_hochberg(np.asarray(p, float)))
    return table[_COLUMNS]


def correlation_table(gaps: pd.DataFrame, scores: pd.DataFrame, covariates: pd.DataFrame, *, seed: int, confidence: float = 0.95) -> pd.DataFrame:
    """Correlation over languages of the gap with the score, for each layer or range, benchmark, method and control.

    Args:
        gaps: columns name, layer (a number, or the name of a range), gap; names that are not languages, such as groups, are ignored. The reference
            has no gap, so it is not included.
        scores: from `read_scores`.
        covariates: columns language, tokens_per_sentence (fertility on aligned sentences, comparable between scripts), log_resource; a language
            without a value is left out of correlations that hold that covariate constant.
        seed: seed of random orders, if there are too many orders to enumerate.
        confidence: confidence of the descriptive interval.

    Returns:
        One row per benchmark, place (layer or range), method (`pearson`, `spearman`) and control (`none`, `tokens`, `resource`, `both`), with
        n (languages), estimate, lo and hi (Fisher's z, a description), p (two-sided, by permutation), exact (all orders were enumerated, nothing is
        held constant), p_holm and p_bh (corrected over places and benchmarks within method and control; the pooled benchmark `all` separately),
        loo_lo to loo_hi (range when one language is left out), branch_lo to branch_hi (one branch), and reason (why the estimate is missing).
    """
    values = gaps[gaps["name"].isin(LANGUAGES)].pivot_table(index="layer", columns="name", values="gap", sort=False)
    return correlate(values, scores, covariates, CONTROLS, seed=seed, confidence=confidence)
