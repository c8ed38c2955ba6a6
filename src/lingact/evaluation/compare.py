"""Compare models and languages on the same items, in tables with intervals and tests (`lingact.statistics.paired`).

Items that ask the same fact are not independent: benchmarks that ask it in several styles or languages share its difficulty. Whatever pools over
tasks or languages therefore resamples facts, never single items.

An item table has one row per document: task, benchmark, language, doc_id, doc_hash, prompt_hash, item, kind, acc, acc_norm, options. `item` names the
fact (None if the data set has no ids). `kind` splits the items further (None if there are no kinds).
"""

from collections.abc import Hashable, Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from lingact.catalogue.benchmarks import ALL
from lingact.errors import UserError
from lingact.statistics import paired
from lingact.statistics.bootstrap import benjamini_hochberg, holm
from lingact.statistics.paired import Estimate, TestSettings

_METRICS = ("acc", "acc_norm")


def refuse_unpaired(base: pd.DataFrame, adapter: pd.DataFrame) -> None:
    """Check that both tables contain the same documents, with the same prompts and in the same order.

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

    Facts are resampled for all languages together, so that the spread that languages share cancels. A row without an id is a fact of its own, so
    that without ids the languages are resampled independently. `n` is the number of items of the single language.

    Args:
        items: item table of one model, restricted to one kind and to benchmarks that all these languages have (`common_benchmarks`).
        group: codes of the languages in the group.
        single: code of the language compared with them.

    Raises:
        ValueError: a language has no items.
    """
    codes = [*group, single]
    chosen = items[items["language"].isin(codes)]
    missing = [code for code in codes if code not in set(chosen["language"])]
    if missing:
        raise ValueError(f"no items in {', '.join(missing)}")
    fact = _facts(chosen)
    count = int(fact.max()) + 1
    draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)
    weights = np.concatenate([np.ones((1, count)), draws])  # row 0 is the sample itself
    accuracy = {}
    for code in codes:
        own = (chosen["language"] == code).to_numpy()
        hits = np.bincount(fact[own], weights=chosen.loc[own, metric].to_numpy(float), minlength=count)
        accuracy[code] = (weights @ hits) / np.maximum(weights @ np.bincount(fact[own], minlength=count), 1)
    difference = np.mean([accuracy[code] for code in group], axis=0) - accuracy[single]
    lo, hi = np.quantile(difference[1:], [0.5 - confidence / 2, 0.5 + confidence / 2])
    return Estimate(int((chosen["language"] == single).sum()), float(difference[0]), float(lo), float(hi))


def common_benchmarks(items: pd.DataFrame) -> list[str]:
    """The benchmarks that every language of the table has, in their order in the table.

    Only these are pooled: otherwise languages would be compared on different mixtures of easy and hard benchmarks.
    """
    has = items.groupby("benchmark", sort=False)["language"].nunique()
    return has.index[has == items["language"].nunique()].tolist()


def accuracy_table(items: pd.DataFrame, *, model: str, confidence: float) -> pd.DataFrame:
    """Accuracy per benchmark, language and kind, pooled over benchmarks (task `all`) and kinds (kind `all`), with Wilson intervals.

    Task `all` is over `common_benchmarks`. Column `chance` is the accuracy of guessing, by the numbers of options of the row's items.

    If a cell asks some facts more than once, its interval is as wide as for the number of facts. This is cautious: it assumes that the answers to one
    fact always agree.

    Args:
        items: item table of one model.
        model: its name in the rows.
        confidence: of the intervals.
    """
    rows, fact, guesses = [], _facts(items), 1 / items["options"].to_numpy(float)
    for task, language, kind, cell in _cells(items, {}):
        facts = len(np.unique(fact[cell]))
        for metric in _METRICS:
            hits = items[metric].to_numpy(float)[cell]
            if np.isnan(hits).any():
                continue
            found = paired.wilson(hits, confidence=confidence, effective_n=facts)
            rows.append(
                {"model": model, "task": task, "language": language, "kind": kind, "metric": metric, "n": found.n, "facts": facts}
                | {"estimate": found.value, "lo": found.lo, "hi": found.hi, "chance": float(guesses[cell].mean())}
            )
    return pd.DataFrame(rows)


def difference_table(
    base: pd.DataFrame, adapters: Sequence[pd.DataFrame], *, groups: Mapping[str, Sequence[str]], settings: TestSettings
) -> pd.DataFrame:
    """Adapter minus base per benchmark, language and kind, paired by document, for one recipe trained with one seed or several.

    Task `all` pools `common_benchmarks`; it has no rows if no benchmark is in every language. A group of languages has rows of its own: the mean over
    its languages, each with the same weight. Facts are resampled and flipped for all languages together, so that what they share is not counted as
    independent evidence.

    With one seed, the interval is a bootstrap over facts, or `paired.few_differences` if fewer facts differ than any test could reject on (6 at
    0.95). p is by exact sign flips over facts, and the detectable effect comes from the error under the null. They hold for this adapter. With
    several seeds, all three come from crossed random effects of seeds and facts; if no seed differs from base anywhere, they are those of one seed.
    They hold for the recipe.

    Columns that need explanation: `n`, documents of one seed; `facts` that they ask; `languages` pooled (1: no group); `base` and `adapter`,
    accuracies; `won` and `lost`, documents that only the adapter or only the base model gets right, over all seeds; `discordant`, their share;
    `chance`, the accuracy of guessing, from the items' numbers of options; `p_mcnemar` and `p_mid`, over single documents, for one seed and one
    language; `p_bootstrap`, for one seed (nan if the interval is not a bootstrap, 1 if no fact differs); `seed_lo` and `seed_hi`, the smallest and
    the largest estimate of a seed; `mde`, the effect that would have been found with probability `settings.power` (nan if not even 1 would);
    `p_holm` and `p_bh`, as in `corrected` over the rows of this table.

    Args:
        base: item table of the base model.
        adapters: item table of each training seed.
        groups: name in the column `language` -> codes. There is no row if fewer than two of them have items.
        settings: of intervals and tests.

    Raises:
        UserError: the documents or prompts differ.
    """
    for adapter in adapters:
        refuse_unpaired(base, adapter)
    base, *adapters = (_in_order(table, list(dict.fromkeys(base["task"]))) for table in (base, *adapters))
    fact, language = _facts(base), pd.factorize(base["language"])[0]
    guesses = 1 / base["options"].to_numpy(float)
    scores = {metric: np.stack([table[metric].to_numpy(float) for table in (base, *adapters)]) for metric in _METRICS}
    rows = []
    for task, place, kind, cell in _cells(base, groups):
        languages, facts = (pd.factorize(codes[cell])[0] for codes in (language, fact))
        for metric, (before, *after) in ((metric, values[:, cell]) for metric, values in scores.items()):
            if np.isnan([before, *after]).any():
                continue
            levels = {"base": before, "adapter": np.mean(after, axis=0), "chance": guesses[cell]}
            rows.append(
                {"task": task, "language": place, "kind": kind, "metric": metric, "n": len(cell)}
                | {name: _even_mean(values, languages) for name, values in levels.items()}
                | _difference(np.stack(after) - before, languages, facts, settings)
            )
    return corrected(pd.DataFrame(rows, columns=list(_DIFFERENCE_COLUMNS)))


def corrected(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of one or several `difference_table`, with `p` corrected for their number in `p_holm` and `p_bh`.

    A family of tests consists of the rows with the same kind and metric. Single benchmarks and all benchmarks together are separate families, and so
    are single languages and groups, because such rows repeat one another. Recipes (column `model`) belong to one family.
    """
    blocks = [table["languages"] > 1, table["task"] == ALL]
    family = table.groupby([table["kind"], table["metric"], *blocks], sort=False)["p"]
    return table.assign(
        p_holm=family.transform(lambda p: holm(p.to_numpy())),
        p_bh=family.transform(lambda p: benjamini_hochberg(p.to_numpy())),
    )


_DIFFERENCE_COLUMNS = (
    *("task", "language", "kind", "metric", "n", "facts", "languages", "seeds", "base", "adapter", "estimate", "lo", "hi"),
    *("won", "lost", "discordant", "chance", "p", "p_mcnemar", "p_mid", "p_bootstrap", "seed_lo", "seed_hi", "mde"),
)


def _difference(
    differences: Float[np.ndarray, "seed item"], language: Int[np.ndarray, " item"], fact: Int[np.ndarray, " item"], settings: TestSettings
) -> dict[str, int | float]:
    """The columns of `difference_table` that depend on the differences of the documents alone.

    Args:
        differences: adapter minus base per document.
        language: number of its language, from 0 without gaps.
        fact: number of its fact, likewise.
        settings: of intervals and tests.
    """
    seeds, languages, facts = len(differences), int(language.max()) + 1, int(fact.max()) + 1
    place, shape = language * facts + fact, (languages, facts)
    sums = np.stack([np.bincount(place, weights=row, minlength=languages * facts).reshape(shape) for row in differences])
    sizes = np.bincount(place, minlength=languages * facts).reshape(shape)
    values = paired.linearised(sums, sizes)
    won, lost = int((differences > 0).sum()), int((differences < 0).sum())
    found: dict[str, int | float] = {"facts": facts, "languages": languages, "seeds": seeds, "won": won, "lost": lost}
    found |= {"discordant": (won + lost) / differences.size, "p_mcnemar": np.nan, "p_mid": np.nan, "p_bootstrap": np.nan}
    if seeds == 1 and languages == 1:
        found |= {"p_mcnemar": paired.mcnemar_exact(won, lost), "p_mid": paired.mcnemar_midp(won, lost)}
    totals, items = paired.pooled_sums(sums.mean(axis=0), sizes)
    differing, crossed = paired.differing(totals), None
    if seeds > 1 and values.any():
        crossed = paired.crossed_effects(values, confidence=settings.confidence)
        estimate, found["p"] = crossed.estimate, crossed.p
    else:
        found["p"] = paired.sign_flip_p(totals)
        if differing < paired.fewest_one_sided(settings.confidence):
            estimate, p_bootstrap = paired.few_differences(totals, items, confidence=settings.confidence), np.nan if differing else 1.0
        else:
            cells = (sums[0, 0], sizes[0]) if languages == 1 else (values[0], np.ones(facts, int))
            estimate, p_bootstrap = paired.bootstrap_difference(*cells, settings)
        found["p_bootstrap"] = p_bootstrap if seeds == 1 else np.nan
    found["mde"] = paired.detectable_difference(totals, items, settings, crossed)
    of_seeds = [_even_mean(row, language) for row in differences]
    return found | {"estimate": estimate.value, "lo": estimate.lo, "hi": estimate.hi, "seed_lo": min(of_seeds), "seed_hi": max(of_seeds)}


def _even_mean(values: Float[np.ndarray, " item"], language: Int[np.ndarray, " item"]) -> float:
    """The mean of the languages' means."""
    return float((np.bincount(language, weights=values) / np.bincount(language)).mean())


def group_table(
    items: pd.DataFrame, groups: Mapping[str, Sequence[str]], *, model: str, resamples: int, confidence: float, seed: int
) -> pd.DataFrame:
    """Each group's mean accuracy minus that of every language outside it, per kind, pooled over `common_benchmarks`.

    Cells without items have no row.
    """
    rows = []
    languages = list(dict.fromkeys(items["language"]))
    for kind in _kinds(items):
        part = items[_comparable(items, kind)]
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


def _facts(items: pd.DataFrame) -> Int[np.ndarray, " item"]:
    """A number for the fact behind each row, from 0 without gaps."""
    return pd.factorize(pd.Series(_clusters(items), dtype=object))[0]


def _in_order(items: pd.DataFrame, tasks: list[str]) -> pd.DataFrame:
    """The same rows, with the tasks in this order. The order within a task stays."""
    return items.iloc[np.argsort(items["task"].map({task: i for i, task in enumerate(tasks)}).to_numpy(), kind="stable")]


def _kinds(items: pd.DataFrame) -> list[str]:
    return [ALL, *sorted(kind for kind in items["kind"].dropna().unique())]


def _comparable(items: pd.DataFrame, kind: str) -> Bool[np.ndarray, " item"]:
    """Which rows may be pooled over benchmarks: the common ones, and for a single kind those that have it in every language with this kind."""
    kept = items["benchmark"].isin(common_benchmarks(items)).to_numpy()
    if kind != ALL:
        kept = kept & (items["kind"] == kind).to_numpy()
        kept = kept & items["benchmark"].isin(common_benchmarks(items[kept])).to_numpy()
    return kept


def _cells(items: pd.DataFrame, groups: Mapping[str, Sequence[str]]) -> Iterator[tuple[str, str, str, Int[np.ndarray, " row"]]]:
    """(benchmark, language or group, kind, row numbers) for every benchmark and the common ones together, and for every kind and all together.

    Cells without items are left out, and groups with items in fewer than two languages.
    """
    language, languages = pd.factorize(items["language"])
    places = [(code, np.array([number]), 1) for number, code in enumerate(languages)]
    places += [(name, np.flatnonzero(languages.isin(list(codes))), 2) for name, codes in groups.items()]
    kinds = {kind: np.ones(len(items), bool) if kind == ALL else (items["kind"] == kind).to_numpy() for kind in _kinds(items)}
    of_task = {task: (items["benchmark"] == task).to_numpy() for task in items["benchmark"].unique()}
    rows = {(task, kind): of_task[task] & of_kind for task in of_task for kind, of_kind in kinds.items()}
    rows |= {(ALL, kind): _comparable(items, kind) for kind in kinds}
    for task in [*of_task, ALL]:
        for place, numbers, least in places:
            of_place = np.isin(language, numbers)
            for kind in kinds:
                cell = np.flatnonzero(rows[task, kind] & of_place)
                if len(np.unique(language[cell])) >= least:
                    yield task, place, kind, cell
