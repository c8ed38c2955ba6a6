"""Statistics of evaluation against numbers worked out by hand, enumeration and statsmodels."""

import itertools

import numpy as np
import pandas as pd
import pytest
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint

from lingact import compare
from lingact.errors import UserError

HOW = {"resamples": 2000, "confidence": 0.95, "seed": 1}


def item_table(
    hits: list[int], *, language: str = "ml", benchmark: str = "arc", ids: list[str | None] | None = None, kinds: list[str | None] | None = None
) -> pd.DataFrame:
    count = len(hits)
    return pd.DataFrame(
        {
            "task": f"{benchmark}_{language}",
            "benchmark": benchmark,
            "language": language,
            "doc_id": range(count),
            "doc_hash": [f"{benchmark} {language} {i}" for i in range(count)],
            "prompt_hash": [f"prompt {i}" for i in range(count)],
            "item": pd.Series(ids or [f"fact{i}" for i in range(count)], dtype=object),
            "kind": pd.Series(kinds or [None] * count, dtype=object),
            "acc": np.array(hits, float),
            "acc_norm": np.array(hits, float),
            "options": 4,
        }
    )


def test_wilson_by_hand_and_against_statsmodels() -> None:
    # 0 of 10 at z = 1.96: hi = z^2 / (n + z^2) = 3.8415 / 13.8415
    none = compare.wilson(np.zeros(10), confidence=0.95)
    assert (none.value, none.lo) == (0.0, 0.0)
    assert none.hi == pytest.approx(3.841459 / 13.841459, abs=1e-6)
    for hits, n in ((1, 7), (40, 80), (79, 80), (80, 80)):
        found = compare.wilson(np.array([1.0] * hits + [0.0] * (n - hits)), confidence=0.9)
        assert (found.lo, found.hi) == pytest.approx(proportion_confint(hits, n, alpha=0.1, method="wilson"), abs=1e-12)


def test_wilson_is_as_wide_as_for_the_facts_behind_the_items() -> None:
    hits = np.array([1.0, 1.0, 0.0, 0.0] * 10)
    assert compare.wilson(hits, confidence=0.95, effective_n=20).lo == pytest.approx(compare.wilson(hits[:20], confidence=0.95).lo)
    with pytest.raises(ValueError, match="no items"):
        compare.wilson(np.array([]), confidence=0.95)


def test_mcnemar_against_enumeration_and_statsmodels() -> None:
    for won, lost in itertools.product(range(7), repeat=2):
        n = won + lost
        totals = [sum(signs) for signs in itertools.product((-1, 1), repeat=n)]
        enumerated = sum(abs(total) >= abs(won - lost) for total in totals) / 2**n
        assert compare.mcnemar_exact(won, lost) == pytest.approx(enumerated)
        assert compare.mcnemar_exact(won, lost) == pytest.approx(mcnemar([[5, won], [lost, 5]], exact=True).pvalue)
        assert compare.sign_flip_p(np.array([1] * won + [-1] * lost + [0] * 3)) == pytest.approx(enumerated)


def test_sign_flip_of_larger_clusters_against_enumeration() -> None:
    sums = np.array([2, -1, 3, 1, 0, -2, 3])
    totals = [float(np.dot(signs, sums)) for signs in itertools.product((-1, 1), repeat=len(sums))]
    assert compare.sign_flip_p(sums) == pytest.approx(np.mean(np.abs(totals) >= abs(sums.sum())))


def test_bootstrap_of_singletons_is_the_binomial() -> None:
    values = np.array([1.0] * 30 + [0.0] * 70)
    found = compare.bootstrap_mean(values, range(100), resamples=200_000, confidence=0.95, seed=5)
    assert (found.n, found.value) == (100, pytest.approx(0.3))
    assert (found.lo, found.hi) == (pytest.approx(0.21, abs=0.011), pytest.approx(0.39, abs=0.011))  # binomial quantiles 21 and 39 of 100


def test_bootstrap_resamples_whole_clusters() -> None:
    values, clusters = np.repeat([1.0, 0.0], 50), np.repeat(range(20), 5)
    clustered = compare.bootstrap_mean(values, list(clusters), resamples=20_000, confidence=0.95, seed=5)
    of_means = compare.bootstrap_mean(np.repeat([1.0, 0.0], 10), range(20), resamples=20_000, confidence=0.95, seed=5)
    assert (clustered.lo, clustered.hi) == pytest.approx((of_means.lo, of_means.hi))


def test_base_against_itself_is_exactly_zero() -> None:
    base = item_table([1, 0, 0, 1, 1, 0] * 20)
    found = compare.paired(base, base.copy(), **HOW)
    assert (found.delta.value, found.delta.lo, found.delta.hi, found.p, found.won, found.lost) == (0.0, 0.0, 0.0, 1.0, 0, 0)


def test_a_model_better_on_known_items() -> None:
    base, better = [0] * 50 + [1] * 50, [1] * 10 + [0] * 40 + [1] * 48 + [0] * 2
    found = compare.paired(item_table(base), item_table(better), **HOW)
    assert (found.n, found.base, found.adapter, found.won, found.lost) == (100, 0.5, 0.58, 10, 2)
    assert found.delta.value == pytest.approx(0.08)
    assert 0.01 <= found.delta.lo < 0.03 < 0.13 < found.delta.hi <= 0.16
    assert found.p == pytest.approx(2 * (1 + 12 + 66) / 2**12)  # two-sided binomial, 10 of 12


def test_the_seed_decides() -> None:
    base, other = item_table([0, 1] * 40), item_table([1, 0, 1, 1] * 20)
    assert compare.paired(base, other, **HOW) == compare.paired(base, other, **HOW)


def test_unpaired_documents_are_refused() -> None:
    base = item_table([0, 1, 1])
    with pytest.raises(UserError, match="arc_ml: 3 items for one model and 2 for the other"):
        compare.paired(base, item_table([0, 1]), **HOW)
    moved = base.assign(doc_hash=["arc ml 1", "arc ml 0", "arc ml 2"])
    with pytest.raises(UserError, match="arc_ml: 2 of 3 documents differ"):
        compare.paired(base, moved, **HOW)
    with pytest.raises(UserError, match="arc_ml: 1 of 3 prompts differ"):
        compare.paired(base, base.assign(prompt_hash=["prompt 0", "prompt 1", "other"]), **HOW)


def test_null_comparisons_reject_rarely() -> None:
    """Two equally good models on 300 items, 1000 times. The exact test may reject at most 5 %, the bootstrap about that."""
    rng = np.random.default_rng(20261122)
    exact = outside = 0
    for _ in range(1000):
        chance = rng.uniform(size=300)
        difference = np.diff((rng.uniform(size=(2, 300)) < chance).astype(int), axis=0)[0]
        exact += compare.sign_flip_p(difference) <= 0.05
        found = compare.bootstrap_mean(difference.astype(float), range(300), resamples=300, confidence=0.95, seed=1)
        outside += not found.lo <= 0 <= found.hi
    assert exact / 1000 <= 0.055
    assert 0.03 <= outside / 1000 <= 0.07


def test_group_difference_on_shared_items() -> None:
    high = [item_table([1, 1, 1, 0, 1], language="es"), item_table([1, 0, 1, 0, 1], language="it")]
    low = item_table([0, 0, 1, 0], language="ml", ids=["fact0", "fact1", "fact2", "fact9"])
    found = compare.group_difference(pd.concat([*high, low]), ["es", "it"], "ml", **HOW)
    assert found.n == 4
    assert found.value == pytest.approx((0.8 + 0.6) / 2 - 0.25)
    assert found.lo <= found.value <= found.hi


def test_group_difference_cancels_what_shared_facts_have_in_common() -> None:
    hits = [1] * 50 + [0] * 50
    same = pd.concat([item_table(hits, language=code) for code in ("es", "it", "ml")])
    found = compare.group_difference(same, ["es", "it"], "ml", **HOW)
    assert (found.value, found.lo, found.hi) == (0, 0, 0)


def test_group_difference_without_ids_is_unpaired() -> None:
    tables = [
        item_table(hits, language=code, ids=[None] * len(hits))
        for code, hits in (("es", [1] * 80 + [0] * 20), ("it", [1] * 60 + [0] * 40), ("ml", [1] * 30 + [0] * 70))
    ]
    found = compare.group_difference(pd.concat(tables), ["es", "it"], "ml", resamples=50_000, confidence=0.95, seed=1)
    spread = 1.96 * np.sqrt((0.16 / 100 + 0.24 / 100) / 4 + 0.21 / 100)
    assert (found.n, found.value) == (100, pytest.approx(0.4))
    assert (found.lo, found.hi) == (pytest.approx(0.4 - spread, abs=0.01), pytest.approx(0.4 + spread, abs=0.01))


def test_group_difference_needs_items() -> None:
    table = pd.concat([item_table([1, 0], language="es"), item_table([1, 0], language="ml")])
    with pytest.raises(ValueError, match="no items in zh"):
        compare.group_difference(table, ["es"], "zh", **HOW)


@pytest.fixture
def two_benchmarks() -> tuple[pd.DataFrame, pd.DataFrame]:
    kinds = ["read", "read", "transfer", "transfer"]
    base = [
        item_table(hits, language=code, benchmark=name, kinds=kinds)
        for name in ("arc", "mmlu")
        for code, hits in (("en", [1, 1, 1, 0]), ("ml", [1, 0, 0, 0]))
    ]
    better = [table.assign(acc=np.where(table["language"] == "ml", 1.0, table["acc"])) for table in base]
    return pd.concat(base, ignore_index=True), pd.concat(better, ignore_index=True)


def test_accuracy_table_splits_and_pools(two_benchmarks: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    table = compare.accuracy_table(two_benchmarks[0], model="base", chance={"arc": 0.25, "mmlu": 0.5}, confidence=0.95)
    acc = table[table["metric"] == "acc"].set_index(["task", "language", "kind"])
    assert len(acc) == 3 * 2 * 3
    assert acc.loc[("arc", "en", "all"), "estimate"] == 0.75
    assert acc.loc[("arc", "ml", "transfer"), "estimate"] == 0.0
    pooled = acc.loc[("all", "en", "all")]
    assert (pooled["n"], pooled["facts"], pooled["estimate"], pooled["chance"]) == (8, 4, 0.75, 0.375)


def test_difference_table_corrects_within_families(two_benchmarks: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    table = compare.difference_table(*two_benchmarks, chance={"arc": 0.25, "mmlu": 0.25}, **HOW)
    acc = table[table["metric"] == "acc"].set_index(["task", "language", "kind"])
    # Both benchmarks win the same three facts: sums 2, 2, 2, so the exact p is that of three heads, two-sided.
    pooled = acc.loc[("all", "ml", "all")]
    assert (pooled["won"], pooled["lost"], pooled["p"], pooled["p_holm"]) == (6, 0, 0.25, 0.5)
    assert acc.loc[("arc", "ml", "all"), "p_holm"] == 1.0  # four tests
    assert acc.loc[("all", "en", "all"), "estimate"] == 0.0
    assert acc["p_holm"].ge(acc["p"]).all()


def test_group_table_takes_only_what_is_shared(two_benchmarks: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    table = compare.group_table(two_benchmarks[0], {"high": ["en"], "low": []}, model="base", **HOW)
    assert set(table["kind"]) == {"all", "read", "transfer"}
    assert table.set_index("kind").loc["all", "estimate"] == pytest.approx(0.5)
    assert set(table["group"]) == {"high"}
