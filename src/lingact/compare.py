"""Is the difference real? Accuracies with intervals, and models and languages compared on the same items.

Items of one fact are not independent: benchmarks that ask the same fact in several styles, or in several languages, share its
difficulty. Everything that pools over tasks or languages therefore resamples facts (`cluster`), never single items.

An item table has one row per document: task, benchmark, language, doc_id, doc_hash, prompt_hash, item, kind, acc, acc_norm, options.
`item` names the fact (None where the data set has no ids), `kind` splits the items further (None where there are no kinds).
"""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from scipy.stats import binomtest, norm

from lingact.errors import UserError
from lingact.inference import holm

ALL = "all"
"""Stands for every task, or every kind, in the tables."""


@dataclass(frozen=True)
class Estimate:
    """A number and how sure we are of it."""

    n: int
    """Items behind it."""
    value: float
    lo: float
    hi: float


@dataclass(frozen=True)
class Comparison:
    """Two models on the same documents."""

    n: int
    base: float
    """Accuracy of the first model, 0 to 1."""
    adapter: float
    delta: Estimate
    """adapter - base."""
    won: int
    """Documents that only the second model gets right."""
    lost: int
    p: float
    """Exact, two-sided; equals McNemar's test where each document is a fact of its own."""


def wilson(hits: Float[np.ndarray, " item"], *, confidence: float, effective_n: int | None = None) -> Estimate:
    """Share of hits with Wilson's score interval (Wilson 1927), which stays inside [0, 1] and has a width even at 0 and 1.

    Args:
        hits: 0 or 1 per item.
        confidence: such as 0.95.
        effective_n: number of independent facts behind the items; the interval is as wide as for so many. None: every item is one.

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


def cluster_sums(
    values: Float[np.ndarray, " item"], clusters: Sequence[Hashable]
) -> tuple[Float[np.ndarray, " cluster"], Int[np.ndarray, " cluster"]]:
    """Sum of the values and number of items of each cluster, in the order of first appearance."""
    codes, uniques = pd.factorize(pd.Series(list(clusters), dtype=object))
    return np.bincount(codes, weights=values, minlength=len(uniques)), np.bincount(codes, minlength=len(uniques))


def bootstrap_mean(values: Float[np.ndarray, " item"], clusters: Sequence[Hashable], *, resamples: int, confidence: float, seed: int) -> Estimate:
    """Mean of the values with the percentile interval of a bootstrap over clusters.

    A resample depends only on how often it draws clusters of each (sum, size), so it is one multinomial draw over the distinct ones.

    Raises:
        ValueError: no items.
    """
    if len(values) == 0:
        raise ValueError("no items: their mean is undefined")
    sums, sizes = cluster_sums(values, clusters)
    kinds, counts = np.unique(np.stack([sums, sizes], axis=1), axis=0, return_counts=True)
    draws = np.random.default_rng(seed).multinomial(len(sums), counts / len(sums), size=resamples)
    means = (draws @ kinds[:, 0]) / (draws @ kinds[:, 1])
    lo, hi = np.quantile(means, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return Estimate(len(values), float(np.mean(values)), float(lo), float(hi))


def mcnemar_exact(won: int, lost: int) -> float:
    """McNemar's exact test (McNemar 1947): two-sided binomial over the documents on which the two models differ; 1 if there are none."""
    return float(binomtest(won, won + lost, 0.5).pvalue) if won + lost else 1.0


def sign_flip_p(sums: Int[np.ndarray, " cluster"]) -> float:
    """Exact two-sided p of a total of cluster differences, under the null that each cluster's sign is a fair coin.

    The distribution of the total is the convolution of the two-point distributions. With sums of -1, 0 and 1 this is McNemar's exact test.
    """
    steps = np.abs(sums)[sums != 0]
    span = int(steps.sum())
    probability = np.zeros(2 * span + 1)  # of a total of index - span
    probability[span] = 1.0
    for step in steps:
        probability = 0.5 * (np.roll(probability, step) + np.roll(probability, -step))  # never wraps: the total stays within the span
    extreme = np.abs(np.arange(-span, span + 1)) >= abs(int(sums.sum()))
    return min(1.0, float(probability[extreme].sum()))


def paired(base: pd.DataFrame, adapter: pd.DataFrame, *, resamples: int, confidence: float, seed: int, metric: str = "acc") -> Comparison:
    """Compare two models on the same documents.

    The interval is a paired bootstrap over facts, p an exact sign-flip test over facts.

    Raises:
        UserError: the documents or prompts differ.
    """
    refuse_unpaired(base, adapter)
    before, after = base[metric].to_numpy(float), adapter[metric].to_numpy(float)
    difference, clusters = after - before, _clusters(base)
    delta = bootstrap_mean(difference, clusters, resamples=resamples, confidence=confidence, seed=seed)
    sums, _ = cluster_sums(difference, clusters)
    return Comparison(
        n=len(before),
        base=float(before.mean()),
        adapter=float(after.mean()),
        delta=delta,
        won=int((difference > 0).sum()),
        lost=int((difference < 0).sum()),
        p=sign_flip_p(np.rint(sums).astype(int)),
    )


def refuse_unpaired(base: pd.DataFrame, adapter: pd.DataFrame) -> None:
    """Raise unless both tables hold the same documents, asked with the same prompts, in the same order.

    Raises:
        UserError: they do not.
    """
    for task in dict.fromkeys([*base["task"], *adapter["task"]]):
        one, other = base[base["task"] == task], adapter[adapter["task"] == task]
        if len(one) != len(other):
            raise UserError(
                f"{task}: {len(one)} items for one model and {len(other)} for the other; a paired comparison needs the same. Run both with "
                "the same tasks and limit"
            )
        for column, word in (("doc_hash", "documents"), ("prompt_hash", "prompts")):
            differing = int((one[column].to_numpy() != other[column].to_numpy()).sum())
            if differing:
                raise UserError(
                    f"{task}: {differing} of {len(one)} {word} differ between the two models; a paired comparison needs the same. Run both "
                    "with the same task version"
                )


def group_difference(
    items: pd.DataFrame, group: Sequence[str], single: str, *, resamples: int, confidence: float, seed: int, metric: str = "acc"
) -> Estimate:
    """Mean accuracy of a group of languages minus the accuracy of one language, with a bootstrap interval.

    Facts are resampled, together for all languages: a fact that several of them answer is drawn for all of them, and the spread that
    they share cancels. A row without an id is a fact of its own, so that without ids the languages are resampled independently.
    `n` is the number of items of the single language.

    Args:
        items: item table of one model, already restricted to the kind of interest.
        group: codes of the languages in the group.
        single: code of the language compared with them.

    Raises:
        ValueError: a language without items.
    """
    codes = [*group, single]
    chosen = items[items["language"].isin(codes)]
    missing = [code for code in codes if code not in set(chosen["language"])]
    if missing:
        raise ValueError(f"no items in {', '.join(missing)}")
    fact, names = pd.factorize(pd.Series(_clusters(chosen), dtype=object))
    draws = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples)
    weights = np.concatenate([np.ones((1, len(names))), draws])  # row 0 is the sample itself
    accuracy = {}
    for code in codes:
        own = (chosen["language"] == code).to_numpy()
        hits = np.bincount(fact[own], weights=chosen.loc[own, metric].to_numpy(float), minlength=len(names))
        accuracy[code] = (weights @ hits) / np.maximum(weights @ np.bincount(fact[own], minlength=len(names)), 1)
    drawn = np.mean([accuracy[code] for code in group], axis=0) - accuracy[single]
    lo, hi = np.quantile(drawn[1:], [0.5 - confidence / 2, 0.5 + confidence / 2])
    return Estimate(int((chosen["language"] == single).sum()), float(drawn[0]), float(lo), float(hi))


def accuracy_table(items: pd.DataFrame, *, model: str, chance: dict[str, float], confidence: float) -> pd.DataFrame:
    """Accuracy per benchmark, language and kind, pooled over benchmarks (task `all`) and kinds (kind `all`), with Wilson intervals.

    Where one fact is asked more than once in a cell, the interval is as wide as for so many facts: the cautious end, as if a fact's
    answers always agreed.

    Args:
        model: base or adapter, as the rows will say.
        chance: accuracy of guessing, per benchmark; pooled rows get the mean over their items.
    """
    rows = []
    for task, language, kind, cell in _cells(items):
        facts = len(set(_clusters(cell)))
        for metric in ("acc", "acc_norm"):
            hits = cell[metric].to_numpy(float)
            if np.isnan(hits).any():
                continue
            found = wilson(hits, confidence=confidence, effective_n=facts)
            guess = float(cell["benchmark"].map(chance).mean())
            rows.append(
                {"model": model, "task": task, "language": language, "kind": kind, "metric": metric, "n": found.n, "facts": facts}
                | {"estimate": found.value, "lo": found.lo, "hi": found.hi, "chance": guess}
            )
    return pd.DataFrame(rows)


def difference_table(
    base: pd.DataFrame, adapter: pd.DataFrame, *, chance: dict[str, float], resamples: int, confidence: float, seed: int
) -> pd.DataFrame:
    """Adapter minus base per benchmark, language and kind, paired by document.

    `p_holm` is corrected within the family of rows with the same kind and metric: all benchmarks and languages together, and the rows
    pooled over benchmarks by themselves.

    Raises:
        UserError: the documents or prompts differ.
    """
    rows = []
    refuse_unpaired(base, adapter)
    for (task, language, kind, before), (*_, after) in zip(_cells(base), _cells(adapter), strict=True):
        for metric in ("acc", "acc_norm"):
            if before[metric].isna().any():
                continue
            found = paired(before, after, resamples=resamples, confidence=confidence, seed=seed, metric=metric)
            rows.append(
                {"task": task, "language": language, "kind": kind, "metric": metric, "n": found.n, "base": found.base, "adapter": found.adapter}
                | {"estimate": found.delta.value, "lo": found.delta.lo, "hi": found.delta.hi, "won": found.won, "lost": found.lost}
                | {"chance": float(before["benchmark"].map(chance).mean()), "p": found.p}
            )
    table = pd.DataFrame(rows)
    family = [table["task"] == ALL, table["kind"], table["metric"]]
    table["p_holm"] = table.groupby(family, sort=False)["p"].transform(lambda p: holm(p.to_numpy()))
    return table


def group_table(
    items: pd.DataFrame, groups: Mapping[str, Sequence[str]], *, model: str, resamples: int, confidence: float, seed: int
) -> pd.DataFrame:
    """Each group's mean accuracy minus that of every language outside it, per kind, pooled over benchmarks; only cells that have items."""
    rows = []
    languages = list(dict.fromkeys(items["language"]))
    for kind in _kinds(items):
        part = items if kind == ALL else items[items["kind"] == kind]
        present = set(part["language"])
        for name, group in groups.items():
            for single in (code for code in languages if code not in group):
                if not group or not {*group, single} <= present:
                    continue
                found = group_difference(part, group, single, resamples=resamples, confidence=confidence, seed=seed)
                rows.append(
                    {
                        "model": model,
                        "group": name,
                        "language": single,
                        "kind": kind,
                        "n": found.n,
                        "estimate": found.value,
                        "lo": found.lo,
                        "hi": found.hi,
                    }
                )
    return pd.DataFrame(rows, columns=["model", "group", "language", "kind", "n", "estimate", "lo", "hi"])


def _clusters(items: pd.DataFrame) -> list[Hashable]:
    """The fact behind each row; a row without an id is a fact of its own."""
    return [
        item if item is not None and item == item else (task, doc)
        for item, task, doc in zip(items["item"], items["task"], items["doc_id"], strict=True)
    ]


def _kinds(items: pd.DataFrame) -> list[str]:
    return [ALL, *sorted(kind for kind in items["kind"].dropna().unique())]


def _cells(items: pd.DataFrame) -> Iterator[tuple[str, str, str, pd.DataFrame]]:
    """(benchmark, language, kind, rows) for every benchmark and for all together, every kind and all together; no empty ones."""
    for task in [*dict.fromkeys(items["benchmark"]), ALL]:
        of_task = items if task == ALL else items[items["benchmark"] == task]
        for language in dict.fromkeys(of_task["language"]):
            of_language = of_task[of_task["language"] == language]
            for kind in _kinds(items):
                cell = of_language if kind == ALL else of_language[of_language["kind"] == kind]
                if len(cell):
                    yield task, language, kind, cell
