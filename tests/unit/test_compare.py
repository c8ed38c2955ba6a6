"""Tables of accuracies and differences against numbers worked out by hand, statsmodels, and models built to differ in known items."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from statsmodels.stats.multitest import multipletests

from lingact.errors import UserError
from lingact.evaluation import compare
from lingact.statistics import paired
from lingact.statistics.paired import TestSettings

SETTINGS = TestSettings(resamples=2000, confidence=0.95, seed=1)
SURE = {"resamples": 2000, "confidence": 0.95, "seed": 1}
CHANCE = {"arc": 0.25, "mmlu": 0.5}


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


def differences(
    base: list[pd.DataFrame], *adapters: list[pd.DataFrame], groups: dict[str, tuple[str, ...]] | None = None, settings: TestSettings = SETTINGS
) -> pd.DataFrame:
    """The table of differences, a row per (metric, task, language, kind)."""
    one, *others = (pd.concat(tables, ignore_index=True) for tables in (base, *adapters))
    table = compare.difference_table(one, others, groups=groups or {}, settings=settings)
    return table.set_index(["metric", "task", "language", "kind"]).sort_index()


def whole(table: pd.DataFrame, language: str = "ml", task: str = "all") -> pd.Series:
    return table.loc[("acc", task, language, "all")]


def test_unpaired_documents_are_refused() -> None:
    base = item_table([0, 1, 1])
    with pytest.raises(UserError, match="arc_ml: 3 items for one model and 2 for the other"):
        differences([base], [base], [item_table([0, 1])])
    moved = base.assign(doc_hash=["arc ml 1", "arc ml 0", "arc ml 2"])
    with pytest.raises(UserError, match="arc_ml: 2 of 3 documents differ"):
        differences([base], [moved])
    with pytest.raises(UserError, match="arc_ml: 1 of 3 prompts differ"):
        differences([base], [base.assign(prompt_hash=["prompt 0", "prompt 1", "other"])])


# --- differences of two models -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seeds", [1, 3])
def test_base_against_itself_is_exactly_zero(seeds: int) -> None:
    """In every row: languages of different sizes, groups, benchmarks, kinds, one adapter or several."""
    base = [
        item_table([1, 0, 0, 1, 1, 0] * (4 + i), language=code, benchmark=name, kinds=["read", "read", "write"] * 2 * (4 + i))
        for name in ("arc", "mmlu")
        for i, code in enumerate(("en", "es", "ml"))
    ]
    table = differences(base, *[base] * seeds, groups={"all": ("en", "es", "ml"), "low": ("ml", "es")})
    assert len(table) == 2 * 3 * 5 * 3
    assert (table[["estimate", "won", "lost", "discordant", "seed_lo", "seed_hi"]] == 0).all(axis=None)
    assert (table["lo"] == -table["hi"]).all()
    assert (table["hi"] > 0).all(), "no difference was seen; that is not to know there is none"
    assert (table[["p", "p_holm", "p_bh"]] == 1).all(axis=None)
    assert not (table["mde"] <= 0).any()
    only_once = table[["p_mcnemar", "p_mid", "p_bootstrap"]]
    assert (only_once.loc[table["languages"] == 1] == 1).all(axis=None) if seeds == 1 else only_once.isna().all(axis=None)


def test_a_model_better_on_known_items() -> None:
    base, better = [0] * 50 + [1] * 50, [1] * 10 + [0] * 40 + [1] * 48 + [0] * 2
    found = whole(differences([item_table(base)], [item_table(better)]))
    assert found[["n", "facts", "languages", "seeds", "base", "adapter", "won", "lost"]].tolist() == [100, 100, 1, 1, 0.5, 0.58, 10, 2]
    assert found["estimate"] == found["seed_lo"] == found["seed_hi"] == pytest.approx(0.08)
    assert 0.01 <= found["lo"] < 0.03 < 0.13 < found["hi"] <= 0.16
    exact = 2 * (1 + 12 + 66) / 2**12  # two-sided binomial, 10 of 12; the mid-p less the 66 ways of 10
    assert found[["p", "p_mcnemar", "p_mid"]].tolist() == pytest.approx([exact, exact, exact - 66 / 2**12])
    assert (found["discordant"], found["chance"]) == (0.12, 0.25)
    assert 0.002 < found["p_bootstrap"] < found["p"]  # 0.08 is 2.4 of its standard errors
    assert found["mde"] == pytest.approx(2.80159 * np.sqrt(12) / 100, abs=1e-5)


def test_the_seed_decides() -> None:
    base, other = [item_table([0, 1] * 40)], [item_table([1, 0, 1, 1] * 20)]
    pd.testing.assert_frame_equal(differences(base, other), differences(base, other))
    again = compare.difference_table(base[0], other, groups={}, settings=TestSettings(2000, 0.95, 2))
    assert again["p_bootstrap"].iloc[0] != whole(differences(base, other))["p_bootstrap"]


def test_tasks_may_come_in_any_order() -> None:
    base = [item_table([0, 1, 1, 0], language="en"), item_table([0, 0, 0, 1])]
    other = [item_table([1, 1, 1, 0], language="en"), item_table([0, 1, 1, 1])]
    pd.testing.assert_frame_equal(differences(base, other), differences(base, other[::-1]))


def test_a_metric_that_a_task_lacks_has_no_rows_there() -> None:
    base = [item_table([0, 1, 1, 0]), item_table([0, 1, 1, 0], benchmark="mmlu").assign(acc_norm=np.nan)]
    assert set(differences(base, base).loc["acc_norm"].index.get_level_values("task")) == {"arc"}
    assert set(differences(base, base).loc["acc"].index.get_level_values("task")) == {"arc", "mmlu", "all"}


def test_facts_asked_twice_are_flipped_as_one() -> None:
    """Two benchmarks win the same three facts: three heads and no six."""
    base, better = ([item_table(hits, benchmark=name) for name in ("arc", "mmlu")] for hits in ([0, 0, 0, 1], [1, 1, 1, 1]))
    found = whole(differences(base, better))
    assert found[["n", "facts", "won", "p"]].tolist() == [8, 4, 6, 0.25]
    assert found["p_mcnemar"] == 2 / 2**6  # as if the documents were independent
    assert np.isnan(found["mde"]), "of three facts that differ no test could tell anything"
    assert found["chance"] == 0.25


# --- groups of languages -------------------------------------------------------------------------------------------------------------------------


def test_a_group_is_the_mean_over_its_languages() -> None:
    base = [item_table([0] * 10, language="en"), item_table([0, 0, 1, 1], language="ml", ids=["a", "b", "c", "d"])]
    better = [item_table([1] * 4 + [0] * 6, language="en"), item_table([1, 0, 0, 0], language="ml", ids=["a", "b", "c", "d"])]
    table = differences(base, better, groups={"both": ("en", "ml", "xx"), "low": ("ml", "xx")})
    found = whole(table, "both")
    assert found[["n", "facts", "languages", "won", "lost"]].tolist() == [14, 14, 2, 5, 2]
    assert found[["base", "adapter", "estimate", "chance"]].tolist() == pytest.approx([0.25, 0.325, (0.4 - 0.25) / 2, 0.25])
    # Weighted sums: 1 four times, 2.5 once, -2.5 twice, over 20 items
    assert found["mde"] == pytest.approx(2.80159 * np.sqrt(4 + 3 * 2.5**2) / 20, abs=1e-5)
    assert np.isnan([found["p_mcnemar"], found["p_mid"]]).all()
    assert "low" not in table.index.get_level_values("language")  # one of its languages is there


def test_the_spread_of_a_group_is_that_of_its_languages() -> None:
    """Without shared facts the variance of the mean is a quarter of the sum, by the language's own mean and not by the group's."""
    rng = np.random.default_rng(20261125)
    hits = {"en": [0] * 1000, "ml": [1] * 500}
    after = {"en": (rng.uniform(size=1000) < 0.3).astype(int).tolist(), "ml": (rng.uniform(size=500) < 0.8).astype(int).tolist()}
    base, other = ([item_table(of[code], language=code, ids=[None] * len(of[code])) for code in of] for of in (hits, after))
    found = whole(differences(base, other, groups={"both": ("en", "ml")}), "both")
    share, kept = np.mean(after["en"]), np.mean(after["ml"])
    half = 1.96 * np.sqrt(share * (1 - share) / 1000 + kept * (1 - kept) / 500) / 2
    assert found["estimate"] == pytest.approx((share - (1 - kept)) / 2)
    assert (found["lo"], found["hi"]) == pytest.approx((found["estimate"] - half, found["estimate"] + half), abs=0.1 * half)


def test_copies_of_a_language_are_no_further_evidence() -> None:
    rng = np.random.default_rng(20261125)
    before, after = rng.integers(2, size=(2, 60)).tolist()
    base, other = ([item_table(hits, language=code) for code in ("en", "es", "ml")] for hits in (before, after))
    table = differences(base, other, groups={"all": ("en", "es", "ml")})
    shown = ["estimate", "lo", "hi", "p", "p_bootstrap", "discordant", "mde"]
    assert whole(table, "all")[shown].tolist() == pytest.approx(whole(table, "en")[shown].tolist())
    assert whole(table, "all")["lo"] < whole(table, "all")["hi"]


# --- several seeds -------------------------------------------------------------------------------------------------------------------------------


def test_several_seeds_are_crossed_with_facts() -> None:
    rng = np.random.default_rng(20261125)
    before, *after = rng.integers(2, size=(4, 2, 50)).tolist()
    base, *others = ([item_table(hits, language=code) for code, hits in zip(("en", "ml"), of, strict=True)] for of in (before, *after))
    table = differences(base, *others, groups={"all": ("en", "ml")})
    values = np.array(after, float) - np.array(before)
    for language, own in (("ml", values[:, 1]), ("all", values.mean(axis=1))):
        found, crossed = whole(table, language), paired.crossed_effects(own, confidence=0.95)
        expected = [crossed.estimate.value, crossed.estimate.lo, crossed.estimate.hi, crossed.p]
        assert found[["estimate", "lo", "hi", "p"]].tolist() == pytest.approx(expected)
        assert (found["seed_lo"], found["seed_hi"]) == pytest.approx((own.mean(axis=1).min(), own.mean(axis=1).max()))
        settings = {"confidence": 0.95, "power": 0.8, "freedom": crossed.freedom}
        assert found["mde"] == pytest.approx(paired.minimum_detectable_effect(crossed.standard_error, **settings))
        assert found[["p_mcnemar", "p_mid", "p_bootstrap"]].isna().all()
        assert found["seeds"] == 3
    own = values[:, 1]
    found = whole(table)
    assert found[["n", "won", "lost"]].tolist() == [50, (own > 0).sum(), (own < 0).sum()]
    assert found["discordant"] == pytest.approx((own != 0).mean())
    assert (found["base"], found["adapter"]) == pytest.approx((np.mean(before[1]), np.mean([of[1] for of in after])))


def test_group_difference_on_shared_items() -> None:
    high = [item_table([1, 1, 1, 0, 1], language="es"), item_table([1, 0, 1, 0, 1], language="it")]
    low = item_table([0, 0, 1, 0], language="ml", ids=["fact0", "fact1", "fact2", "fact9"])
    found = compare.group_difference(pd.concat([*high, low]), ["es", "it"], "ml", **SURE)
    assert found.n == 4
    assert found.value == pytest.approx((0.8 + 0.6) / 2 - 0.25)
    assert found.lo <= found.value <= found.hi


def test_group_difference_cancels_what_shared_facts_have_in_common() -> None:
    hits = [1] * 50 + [0] * 50
    same = pd.concat([item_table(hits, language=code) for code in ("es", "it", "ml")])
    found = compare.group_difference(same, ["es", "it"], "ml", **SURE)
    assert (found.value, found.lo, found.hi) == (0, 0, 0)


def test_group_difference_without_ids_is_unpaired() -> None:
    tables = [
        item_table(hits, language=code, ids=[None] * len(hits))
        for code, hits in (("es", [1] * 80 + [0] * 20), ("it", [1] * 60 + [0] * 40), ("ml", [1] * 30 + [0] * 70))
    ]
    found = compare.group_difference(pd.concat(tables), ["es", "it"], "ml", resamples=20_000, confidence=0.95, seed=1)
    spread = 1.96 * np.sqrt((0.16 / 100 + 0.24 / 100) / 4 + 0.21 / 100)
    assert (found.n, found.value) == (100, pytest.approx(0.4))
    assert (found.lo, found.hi) == (pytest.approx(0.4 - spread, abs=0.01), pytest.approx(0.4 + spread, abs=0.01))


def test_group_difference_needs_items() -> None:
    table = pd.concat([item_table([1, 0], language="es"), item_table([1, 0], language="ml")])
    with pytest.raises(ValueError, match="no items in zh"):
        compare.group_difference(table, ["es"], "zh", **SURE)


def test_a_single_fact_says_nothing_on_a_recipe() -> None:
    base, better = [item_table([0])], [item_table([1])]
    found = whole(differences(base, better, better))
    assert found["estimate"] == 1
    assert found[["lo", "hi", "p", "mde", "p_holm", "p_bh"]].isna().all()
    assert whole(differences(base, better))["p"] == 1


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
    table = compare.accuracy_table(two_benchmarks[0], model="base", confidence=0.95)
    acc = table[table["metric"] == "acc"].set_index(["task", "language", "kind"])
    assert len(acc) == 3 * 2 * 3
    assert acc.loc[("arc", "en", "all"), "estimate"] == 0.75
    assert acc.loc[("arc", "ml", "transfer"), "estimate"] == 0.0
    pooled = acc.loc[("all", "en", "all")]
    assert (pooled["n"], pooled["facts"], pooled["estimate"], pooled["chance"]) == (8, 4, 0.75, 0.25)


def test_differences_of_single_kinds(two_benchmarks: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    table = differences([two_benchmarks[0]], [two_benchmarks[1]])
    assert table.loc[("acc", "arc", "ml", "transfer"), ["n", "base", "adapter", "won"]].tolist() == [2, 0, 1, 2]
    assert table.loc[("acc", "all", "ml", "read"), ["n", "base", "adapter", "won"]].tolist() == [4, 0.5, 1, 2]
    assert (table.loc["acc_norm", "estimate"] == 0).all()


def test_p_is_corrected_within_families() -> None:
    """Single benchmarks and all together, in single languages and in groups: each by itself."""
    rng = np.random.default_rng(20261125)
    kinds = ["read", "transfer"] * 30
    base, other = (
        [
            item_table((rng.uniform(size=60) < share).astype(int).tolist(), language=code, benchmark=name, kinds=kinds)
            for name in ("arc", "mmlu")
            for code in ("en", "es", "ml")
        ]
        for share in (0.4, 0.6)
    )
    groups = {"all": ("en", "es", "ml"), "low": ("ml", "es")}
    table = differences(base, other, groups=groups, settings=replace(SETTINGS, resamples=200)).reset_index()
    for metric in ("acc", "acc_norm"):
        for kind in ("all", "read", "transfer"):
            part = table[(table["metric"] == metric) & (table["kind"] == kind)]
            grouped, pooled = part["language"].isin(["all", "low"]), part["task"] == "all"
            families = ((part[grouped & pooled], 2), (part[grouped & ~pooled], 4), (part[pooled & ~grouped], 3), (part[~pooled & ~grouped], 6))
            for family, tests in families:
                assert len(family) == tests
                assert family["p_holm"].tolist() == pytest.approx(multipletests(family["p"], method="holm")[1])
                assert family["p_bh"].tolist() == pytest.approx(multipletests(family["p"], method="fdr_bh")[1])
    assert (table["p_holm"] > table["p"]).any()


def test_group_table_takes_only_what_is_shared(two_benchmarks: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    table = compare.group_table(two_benchmarks[0], {"high": ["en"], "low": []}, model="base", **SURE)
    assert set(table["kind"]) == {"all", "read", "transfer"}
    assert table.set_index("kind").loc["all", "estimate"] == pytest.approx(0.5)
    assert set(table["group"]) == {"high"}


def test_recipes_are_corrected_together() -> None:
    base, other = [item_table([0, 1] * 40)], [item_table([1, 0, 1, 1] * 20)]
    table = differences(base, other).reset_index()
    ten = compare.corrected(pd.concat([table.assign(model=f"recipe {number}") for number in range(10)], ignore_index=True))
    assert ten["p_holm"].iloc[0] == pytest.approx(min(1, 10 * table["p"].iloc[0]))


def test_benchmarks_that_not_all_languages_have_are_not_pooled() -> None:
    """Each language gets .3 of X and .6 of Y right where it has them; one lacks Y, and none is better than another."""
    easy, hard = [1] * 6 + [0] * 4, [1] * 3 + [0] * 7
    tables = [item_table(hard, language=code, benchmark="X") for code in ("es", "it", "mr")]
    items = pd.concat([*tables, *(item_table(easy, language=code, benchmark="Y") for code in ("es", "it"))], ignore_index=True)
    assert compare.common_benchmarks(items) == ["X"]
    groups = compare.group_table(items, {"high": ("es", "it")}, model="base", resamples=200, confidence=0.95, seed=1)
    assert groups.set_index("language").loc["mr", "estimate"] == pytest.approx(0)
    pooled = compare.accuracy_table(items, model="base", confidence=0.95).query("task == 'all' and metric == 'acc'").set_index("language")["estimate"]
    assert pooled.to_dict() == pytest.approx({"es": 0.3, "it": 0.3, "mr": 0.3})
    nothing = items[~((items["benchmark"] == "X") & (items["language"] == "es"))]
    assert compare.common_benchmarks(nothing) == []
    assert "all" not in set(compare.accuracy_table(nothing, model="base", confidence=0.95)["task"])
    assert differences([nothing], [nothing], groups={"high": ("es", "it")}).index.get_level_values("task").unique().tolist() == ["X", "Y"]


def test_chance_is_that_of_the_items_of_the_row() -> None:
    two, four = item_table([0, 1], language="en").assign(options=2), item_table([0, 1], language="ml")
    table = compare.accuracy_table(pd.concat([two, four], ignore_index=True), model="base", confidence=0.95)
    assert table.groupby("language")["chance"].unique().map(list).to_dict() == {"en": [0.5], "ml": [0.25]}


@pytest.mark.parametrize("won", [3, 4, 5, 6])
def test_interval_and_exact_test_agree_where_few_items_differ(won: int) -> None:
    found = whole(differences([item_table([0] * 81)], [item_table([1] * won + [0] * (81 - won))]))
    assert (found["lo"] > 0) == (found["p"] <= 0.05) == (won == 6)


@pytest.mark.parametrize("won", [0, 3, 5, 6])
def test_the_bootstrap_has_a_p_where_enough_facts_differ(won: int) -> None:
    found = whole(differences([item_table([0] * 81)], [item_table([1] * won + [0] * (81 - won))]))
    assert found["lo"] < found["hi"]
    if won == 6:
        assert 0 < found["p_bootstrap"] < found["p"] == pytest.approx(2 / 2**6)
    else:
        assert [found["p_bootstrap"]] == pytest.approx([np.nan if won else 1.0], nan_ok=True)
    assert found["mde"] == pytest.approx(7.90599 / 81, rel=1e-5)


def test_several_seeds_have_the_same_floor_and_never_an_interval_without_width() -> None:
    base, same = [item_table([0] * 81)], [item_table([1] + [0] * 80)]
    few, none = whole(differences(base, same, same)), whole(differences(base, base, base))
    assert few["mde"] >= 7.90599 / 81
    assert none["mde"] == pytest.approx(7.90599 / 81, rel=1e-5)
    assert (none["estimate"], none["p"], none["lo"]) == (0, 1, -none["hi"])
    assert none["hi"] == pytest.approx(1.959964 * np.sqrt(2) / 83, rel=1e-5)
    assert np.isnan(none["p_bootstrap"])


def test_the_only_benchmark_has_rows_of_its_own_and_pooled_ones_in_other_families() -> None:
    base, other = ([item_table(hits, language=code) for code in ("en", "ml")] for hits in ([0, 1] * 40, [1, 0, 1, 1] * 20))
    table = differences(base, other, groups={"both": ("en", "ml")})
    for code, tests in (("en", 2), ("ml", 2), ("both", 1)):
        own, pooled = whole(table, code, "arc"), whole(table, code)
        pd.testing.assert_series_equal(own, pooled, check_names=False)
        assert own["p_holm"] == pytest.approx(min(1, tests * own["p"]))


def test_correction_overwrites_and_keeps_rows_and_their_labels() -> None:
    table = differences([item_table([0, 1] * 40)], [item_table([1, 0, 1, 1] * 20)]).reset_index()
    twice = compare.corrected(pd.concat([table.assign(model="a"), table.assign(model="b")]))  # labels occur twice
    assert twice.index.tolist() == [*table.index, *table.index]
    assert twice["p_holm"].tolist() == pytest.approx(np.minimum(1, 2 * twice["p"]).tolist())
    assert twice["p_bh"].tolist() == pytest.approx(twice["p"].tolist())
    pd.testing.assert_frame_equal(compare.corrected(twice[twice["model"] == "a"]).drop(columns="model"), table)


def test_a_kind_is_pooled_over_the_benchmarks_that_have_it_in_every_language() -> None:
    """Both languages have both benchmarks, but Malayalam no reading items in Y, where they are easy."""
    kinds = {"en": ["read", "read", "write", "write"], "ml": ["write", "write", "write", "write"]}
    tables = [item_table([0, 0, 1, 0], language=code, benchmark="X", kinds=kinds["en"]) for code in ("en", "ml")]
    tables += [item_table([1, 1, 0, 0], language=code, benchmark="Y", kinds=kinds[code]) for code in ("en", "ml")]
    items = pd.concat(tables, ignore_index=True)
    assert compare.common_benchmarks(items) == ["X", "Y"]
    pooled = compare.accuracy_table(items, model="base", confidence=0.95).query("task == 'all' and metric == 'acc'").set_index(["language", "kind"])
    assert pooled.loc[[("en", "read"), ("ml", "read")], "estimate"].tolist() == [0, 0]
    assert pooled.loc[[("en", "all"), ("ml", "all")], "n"].tolist() == [8, 8]
    groups = compare.group_table(items, {"high": ["en"]}, model="base", **SURE).set_index("kind")
    assert groups.loc["read", ["n", "estimate"]].tolist() == [2, 0]


def test_no_common_benchmark_means_no_group_rows() -> None:
    items = pd.concat([item_table([1, 0], language="es"), item_table([1, 1], language="ml", benchmark="mmlu")], ignore_index=True)
    table = compare.group_table(items, {"high": ["es"]}, model="base", **SURE)
    assert table.empty
    assert table.columns.tolist() == ["model", "group", "language", "kind", "n", "estimate", "lo", "hi"]


def test_chance_of_mixed_numbers_of_options() -> None:
    base = [item_table([0, 1, 1, 0]).assign(options=[2, 2, 4, 4]), item_table([0, 1], language="en").assign(options=5)]
    table = differences(base, base, groups={"both": ("en", "ml")})
    assert [whole(table, code)["chance"] for code in ("ml", "en", "both")] == pytest.approx([0.375, 0.2, (0.375 + 0.2) / 2])


def test_groups_of_the_same_languages_are_two_rows() -> None:
    base, other = ([item_table(hits, language=code) for code in ("en", "ml")] for hits in ([0, 1] * 40, [1, 0, 1, 1] * 20))
    table = differences(base, other, groups={"high": ("en", "ml"), "low": ("ml", "en")})
    pd.testing.assert_series_equal(whole(table, "high"), whole(table, "low"), check_names=False)
