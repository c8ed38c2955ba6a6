"""Correlations of few languages against scipy, statsmodels and brute force; score files that people write."""

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from scipy.stats import pearsonr, rankdata, spearmanr

from lingact.analysis.correlation import (
    correlation_table,
    correlations,
    fisher_interval,
    held_constant,
    log_resource,
    permutation_p,
    refuse_few_languages,
)
from lingact.analysis.score_files import read_scores
from lingact.analysis.side_by_side import side_by_side, side_by_side_correlations, side_by_side_text
from lingact.catalogue.languages import LANGUAGES
from lingact.errors import UserError

CODES = ("zh", "ru", "es", "it", "id", "ca", "mr", "ml", "hi")
ALONE = held_constant(np.empty((0, 5)))


def accuracy(cells: dict[str, float], task: str = "arc") -> pd.DataFrame:
    """The table of an evaluation run, with the rows that must not be taken."""
    rows = []
    for code, value in cells.items():
        for model, kind, metric, shift in (
            ("base", "all", "acc", 0),
            ("base", "read", "acc", 1),
            ("base", "all", "acc_norm", 2),
            ("adapter", "all", "acc", 3),
        ):
            rows.append({"model": model, "task": task, "language": code, "kind": kind, "metric": metric, "n": 81, "estimate": value + shift})
    return pd.DataFrame(rows)


def run_folder(path: Path, table: pd.DataFrame) -> Path:
    (path / "tables").mkdir(parents=True)
    table.to_csv(path / "tables" / "accuracy.csv", index=False)
    return path


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def gap_frame(gaps: dict[int | str, np.ndarray], codes: tuple[str, ...] = CODES) -> pd.DataFrame:
    return pd.DataFrame([{"name": code, "layer": layer, "gap": value} for layer, row in gaps.items() for code, value in zip(codes, row, strict=True)])


def score_frame(scores: dict[str, np.ndarray], codes: tuple[str, ...] = CODES) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"benchmark": name, "language": code, "score": value, "n": 9, "source": "x"}
            for name, row in scores.items()
            for code, value in zip(codes, row, strict=True)
        ]
    )


def covariate_frame(seed: int = 3, codes: tuple[str, ...] = CODES) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    return pd.DataFrame({"language": codes, "tokens_per_sentence": random.normal(size=len(codes)), "log_resource": random.normal(size=len(codes))})


def sample(seed: int, count: int, places: int = 3) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    scores = random.normal(size=count)
    return random.normal(size=(places, count)) + 0.8 * scores, scores


# --- reading scores ------------------------------------------------------------------------------------------------------------------------------


def test_a_run_gives_the_base_models_accuracies_over_all_kinds(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run", pd.concat([accuracy({"en": 0.8, "ml": 0.3}), accuracy({"en": 0.7, "ml": 0.4}, "all")]))
    found = read_scores([folder])
    assert found[["benchmark", "language", "score"]].to_numpy().tolist() == [
        ["arc", "en", 0.8],
        ["arc", "ml", 0.3],
        ["all", "en", 0.7],
        ["all", "ml", 0.4],
    ]
    assert set(found["n"]) == {81}
    assert set(found["source"]) == {str(folder / "tables" / "accuracy.csv")}


def test_a_file_and_a_run_together(tmp_path: Path) -> None:
    """A byte-order mark, spaces after commas, `task` for `benchmark`, scores in percent, an empty n."""
    file = written(tmp_path / "own.csv", "\ufefflanguage, task, score, n\nen, belebele, 61.5, 900\nml, belebele, 40,\n")
    found = read_scores([run_folder(tmp_path / "run", accuracy({"en": 0.8})), file])
    assert found["benchmark"].tolist() == ["arc", "belebele", "belebele"]
    assert found["score"].tolist() == [0.8, 61.5, 40.0]
    assert found["n"].isna().tolist() == [False, False, True]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("language,benchmark,accuracy\nml,arc,0.3\n", "no column 'score'"),
        ("lang,benchmark,score\nml,arc,0.3\n", "no column 'language'; did you mean 'lang'\\?.*there: lang, benchmark, score"),
        ("language,benchmark,score\nml,arc,good\n", "line 2: score 'good' is not a finite number"),
        ("language,benchmark,score\nml,arc,0.3\nhi,arc,nan\n", "line 3: score 'nan' is not a finite number"),
        ("language,benchmark,score,n\nml,arc,0.3,2.5\n", "line 2: n '2.5' is not a number of items"),
        ("language,benchmark,score,n\nml,arc,0.3,1e30\n", "line 2: n '1e30' is not a number of items; give a whole number from 1 to 1e\\+12"),
        ("language,benchmark,score,n\nml,arc,0.3,9300000000000000000\n", "line 2: n '9300000000000000000' is not a number of items"),
        ("language,benchmark,score\nMalayalam,arc,0.3\n", "line 2: unknown language 'Malayalam'; did you mean 'ml'"),
        ("language,benchmark,score\nml,,0.3\n", "line 2: the benchmark has no name"),
        ("language,benchmark,score\nml,arc,0.3\nml,arc,0.4\n", "'ml' has 2 scores for 'arc'"),
        ("language,benchmark,score\n", "no rows"),
        ("language,benchmark,score\nml,arc,0.3,7\n", "line 2: 4 cells, but the header has 3"),
        ("language,benchmark,score\nml,arc,0.3\nml,arc,0.3,7\n", "line 3: 4 cells, but the header has 3"),
        ("", "own.csv is empty; it needs the columns language, benchmark and score"),
        ('language,benchmark,score\nml,"arc,0.3\nhi,arc",0.4\n', "line 2: a quoted cell does not end within its line"),
        ("language,benchmark,score\nml,arc,1_0\n", "line 2: score '1_0' is not a finite number"),
        ("language,benchmark,score\nml,arc,\uff11\n", "line 2: score '\uff11' is not a finite number"),
        ('language,benchmark,score\nml,arc,"0,3"\n', "line 2: score '0,3' is not a finite number"),
        ("language,benchmark,score\nml,arc,x\n\nhi,arc,inf\n", "line 2: score 'x'.*\n.*line 4: score 'inf'"),
        ("language,benchmark,score,score\nml,arc,0.3,0.4\n", "the header names score more than once"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_scores([written(tmp_path / "own.csv", text)])


def test_other_things_that_are_no_scores(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no scores given"):
        read_scores([])
    with pytest.raises(UserError, match="no such file or folder"):
        read_scores([tmp_path / "nowhere.csv"])
    with pytest.raises(UserError, match=r"no tables/accuracy\.csv"):
        read_scores([tmp_path])
    with pytest.raises(UserError, match=r"own\.jsonl ends in '\.jsonl'; scores are read from \.csv and \.tsv"):
        read_scores([written(tmp_path / "own.jsonl", '{"language": "ml", "benchmark": "arc", "score": 0.3}\n')])
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(UserError, match="is not UTF-8 but UTF-16"):
        read_scores([tmp_path / "binary.csv"])
    only_adapter = accuracy({"en": 0.8}).query("model == 'adapter'")
    with pytest.raises(UserError, match="no accuracies of the base model"):
        read_scores([run_folder(tmp_path / "run", only_adapter)])


def test_one_score_twice_over_two_sources_is_refused(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run", accuracy({"ml": 0.8}))
    with pytest.raises(UserError, match=r"'ml' has 2 scores for 'arc'.*accuracy\.csv, .*own\.csv"):
        read_scores([folder, written(tmp_path / "own.csv", "language,benchmark,score\nml,arc,0.3\n")])


def test_too_few_shared_languages_are_named() -> None:
    scores = score_frame({"arc": np.arange(5.0)}, ("en", "ml", "hi", "mr", "ca"))
    refuse_few_languages(scores, ("ml", "hi", "mr", "ca", "id"))
    with pytest.raises(UserError, match=r"'arc' has scores for 3 of the analysed languages.*missing: id, it"):
        refuse_few_languages(scores, ("ml", "hi", "mr", "id", "it"))


# --- correlations --------------------------------------------------------------------------------------------------------------------------------


def test_estimates_are_scipys() -> None:
    x, y = sample(0, 9)
    found = correlation_table(gap_frame(dict(enumerate(x))), score_frame({"arc": y}), covariate_frame(), seed=0)
    plain = found[found["control"] == "none"].set_index(["method", "place"])["estimate"]
    np.testing.assert_allclose(plain["pearson"], [pearsonr(row, y).statistic for row in x])
    np.testing.assert_allclose(plain["spearman"], [spearmanr(row, y).statistic for row in x])


@pytest.mark.parametrize("scale", [1e300, 1e-310, -1e250, 3.7])
def test_the_unit_of_the_scores_does_not_matter(scale: float) -> None:
    scores = np.array([0.3, 0.1, 0.45, 0.2, 0.9])
    values = np.array([[1.0, 2.0, 0.5, 3.0, 0.1], [4.0, 1.0, 2.0, 2.5, 7.0]])
    basis = held_constant(np.empty((0, 5)))
    found = correlations(values, scale * scores, basis)
    np.testing.assert_allclose(found, np.sign(scale) * correlations(values, scores, basis), rtol=1e-9)
    np.testing.assert_array_equal(permutation_p(values, scale * scores, basis, seed=0), permutation_p(values, scores, basis, seed=0))


def test_p_counts_all_orders() -> None:
    x, y = sample(1, 5)
    expected = []
    for row in x:
        observed = abs(pearsonr(row, y).statistic)
        expected.append(np.mean([abs(pearsonr(row, y[list(order)]).statistic) >= observed - 1e-9 for order in itertools.permutations(range(5))]))
    np.testing.assert_allclose(permutation_p(x, y, ALONE, seed=0), expected)


def test_a_perfect_order_has_two_extreme_orders() -> None:
    """Of 4! orders only the observed and its mirror image reach 1; with a tie in the scores twice as many do."""
    alone = held_constant(np.empty((0, 4)))
    rising = np.array([[1.0, 2, 3, 4]])
    assert permutation_p(rising, np.array([2.0, 4, 6, 8]), alone, seed=0)[0] == pytest.approx(2 / 24)
    tied = rankdata(np.array([1.0, 1, 6, 8]))
    assert permutation_p(tied[None], tied, alone, seed=0)[0] == pytest.approx(2 / 24), (
        "two orders give the same scores; the mirror image is out of reach"
    )


@pytest.mark.parametrize("method", ["pearson", "spearman"])
@pytest.mark.parametrize(
    ("control", "names"), [("tokens", ["tokens_per_sentence"]), ("resource", ["log_resource"]), ("both", ["tokens_per_sentence", "log_resource"])]
)
def test_partial_correlation_is_that_of_regression_residuals(method: str, control: str, names: list[str]) -> None:
    x, y = sample(2, 9, places=1)
    covariates = covariate_frame()
    found = correlation_table(gap_frame({0: x[0]}), score_frame({"arc": y}), covariates, seed=0)
    ranked = rankdata if method == "spearman" else np.asarray
    design = sm.add_constant(np.stack([ranked(covariates[name]) for name in names], axis=1))
    residuals = [sm.OLS(ranked(values), design).fit().resid for values in (x[0], y)]
    row = found[(found["method"] == method) & (found["control"] == control)].iloc[0]
    assert row["estimate"] == pytest.approx(pearsonr(*residuals).statistic)


def test_freedman_lane_permutes_the_residuals_and_regresses_again() -> None:
    """Against the procedure written out: permuted residuals plus fit, and the t of the value in a regression with the covariate."""
    random = np.random.default_rng(4)
    x, z = random.normal(size=(2, 6))
    y = x + z + 0.5 * random.normal(size=6)
    nuisance = sm.OLS(y, sm.add_constant(z)).fit()
    full = sm.add_constant(np.stack([x, z], axis=1))
    observed = abs(sm.OLS(y, full).fit().tvalues[1])
    permuted = [abs(sm.OLS(nuisance.fittedvalues + nuisance.resid[list(order)], full).fit().tvalues[1]) for order in itertools.permutations(range(6))]
    expected = np.mean([t >= observed - 1e-7 for t in permuted])
    assert permutation_p(x[None], y, held_constant(z[None]), seed=0)[0] == pytest.approx(expected)


def test_above_nine_languages_random_orders_stand_in() -> None:
    random = np.random.default_rng(5)
    y = random.normal(size=12)
    x = np.stack([random.normal(size=12), y])
    basis = held_constant(np.empty((0, 12)))
    found = permutation_p(x, y, basis, seed=0)
    normal_theory = pearsonr(x[0], y).pvalue
    assert found[0] == pytest.approx(normal_theory, abs=0.03)
    assert found[1] == pytest.approx(1 / 200_001), "the observed order is one of them, so p is never 0"
    np.testing.assert_array_equal(found, permutation_p(x, y, basis, seed=0))


def test_the_size_of_the_test_is_right_under_the_null() -> None:
    random = np.random.default_rng(6)
    p = permutation_p(random.normal(size=(2000, 6)), random.normal(size=6), held_constant(np.empty((0, 6))), seed=0)
    assert np.mean(p <= 0.1) == pytest.approx(0.1, abs=0.025)


def test_fisher_interval_is_scipys_and_ends_with_the_degrees_of_freedom() -> None:
    x, y = sample(7, 9, places=1)
    found = pearsonr(x[0], y)
    r = np.array([found.statistic])
    np.testing.assert_allclose(fisher_interval(r, 9, 0, "pearson", 0.95)[:, 0], found.confidence_interval(0.95))
    assert np.isnan(fisher_interval(r, 3, 0, "pearson", 0.95)).all()
    assert np.isnan(fisher_interval(r, 5, 2, "pearson", 0.95)).all()
    np.testing.assert_array_equal(fisher_interval(np.array([1.0]), 9, 0, "pearson", 0.95), [[1.0], [1.0]])


def test_ranges_without_a_language_and_without_a_branch() -> None:
    x, y = sample(8, 9, places=1)
    found = correlation_table(gap_frame({0: x[0]}), score_frame({"arc": y}), covariate_frame(), seed=0)
    row = found[(found["method"] == "pearson") & (found["control"] == "none")].iloc[0]
    without = [pearsonr(np.delete(x[0], k), np.delete(y, k)).statistic for k in range(9)]
    assert (row["loo_lo"], row["loo_hi"]) == pytest.approx((min(without), max(without)))
    romance, indo_aryan = [2, 3, 5], [6, 8]
    branches = [pearsonr(np.delete(x[0], k), np.delete(y, k)).statistic for k in ([0], [1], [4], [7], romance, indo_aryan)]
    assert (row["branch_lo"], row["branch_hi"]) == pytest.approx((min(branches), max(branches)))


def test_too_few_languages_for_a_control_are_refused_with_a_reason() -> None:
    codes = CODES[:5]
    x, y = sample(9, 5, places=1)
    found = correlation_table(gap_frame({0: x[0]}, codes), score_frame({"arc": y}, codes), covariate_frame(codes=codes), seed=0).set_index(
        ["control", "method"]
    )
    assert found.loc[("tokens", "pearson"), "reason"] == ""
    both = found.loc[("both", "pearson")]
    assert both["n"] == 5
    assert both["reason"] == "5 languages leave fewer than 2 residual degrees of freedom"
    assert np.isnan(both[["estimate", "lo", "p", "p_holm", "p_bh", "loo_lo", "branch_hi"]].astype(float)).all()
    assert not both["exact"]


def test_what_does_not_vary_has_no_correlation() -> None:
    x, y = sample(10, 9, places=2)
    x[1] = 0.1
    gaps = gap_frame(dict(enumerate(x)))
    found = correlation_table(gaps, score_frame({"arc": y, "flat": np.full(9, 0.25)}), covariate_frame(), seed=0).query("control == 'none'")
    reasons = found.set_index(["benchmark", "place", "method"])["reason"]
    assert reasons["arc", 0, "pearson"] == ""
    assert reasons["arc", 1, "pearson"] == "the values are all the same"
    assert reasons["flat", 0, "spearman"] == "the scores are all the same"
    assert found["p"].notna().sum() == 2
    held = held_constant(y[None])
    assert np.isnan(correlations(x, y, held)).all(), "nothing is left of the scores when they are held constant"


def test_a_language_without_a_covariate_takes_no_part_there() -> None:
    x, y = sample(11, 9, places=1)
    covariates = covariate_frame().assign(log_resource=lambda frame: frame["log_resource"].where(frame["language"] != "ml"))
    found = correlation_table(gap_frame({0: x[0]}), score_frame({"arc": y}), covariates, seed=0).query("method == 'pearson'").set_index("control")
    assert found["n"].to_dict() == {"none": 9, "tokens": 9, "resource": 8, "both": 8}


def test_a_covariate_that_nobody_has_leaves_the_uncontrolled_correlation() -> None:
    x, y = sample(11, 9, places=1)
    found = correlation_table(gap_frame({0: x[0]}), score_frame({"arc": y}), covariate_frame().assign(log_resource=np.nan), seed=0)
    assert found.groupby("control")["n"].first().to_dict() == {"none": 9, "tokens": 9, "resource": 0, "both": 0}
    assert found.groupby("control")["p"].count().to_dict() == {"none": 2, "tokens": 2, "resource": 0, "both": 0}


def test_a_language_without_a_gap_at_a_place_spoils_that_place_alone() -> None:
    x, y = sample(14, 9, places=2)
    x[1, 3] = np.nan
    found = correlation_table(gap_frame(dict(enumerate(x))), score_frame({"arc": y}), covariate_frame(), seed=0).query("control == 'none'")
    assert found.set_index(["place", "method"])["reason"].to_dict() == {
        (0, "pearson"): "", (0, "spearman"): "", (1, "pearson"): "a language has no value here", (1, "spearman"): "a language has no value here",
    }  # fmt: skip
    assert found["p"].isna().tolist() == [False, True, False, True]


def test_every_known_resource_level_has_a_logarithm() -> None:
    levels = dict(zip(LANGUAGES, log_resource(list(LANGUAGES), None), strict=True))
    assert [levels[code] for code in ("en", "ml")] == pytest.approx([np.log(45.5105), np.log(0.0221)])
    assert np.isnan([levels["quy"], levels["ckb"]]).all(), "not known is not little"
    assert np.nanmax(list(levels.values())) == levels["en"]
    assert log_resource(["ml", "quy", "en"], {"quy": 1.0, "ml": np.e}) == pytest.approx([1.0, 0.0, np.nan], nan_ok=True)


def test_a_language_of_unknown_resource_level_is_left_out_where_that_is_held_constant() -> None:
    x, y = sample(12, 9, places=1)
    covariates = covariate_frame().assign(log_resource=lambda frame: frame["log_resource"].mask(frame["language"] == "ml"))
    found = correlation_table(gap_frame({0: x[0]}), score_frame({"arc": y}), covariates, seed=0)
    assert found.groupby("control")["n"].first().to_dict() == {"none": 9, "tokens": 9, "resource": 8, "both": 8}


def test_the_reference_and_groups_take_no_part() -> None:
    x, y = sample(12, 9, places=1)
    gaps = pd.concat([gap_frame({0: x[0]}), pd.DataFrame([{"name": "low", "layer": 0, "gap": 9.0}])])
    scores = pd.concat([score_frame({"arc": y}), score_frame({"arc": np.array([50.0])}, ("en",))])
    found = correlation_table(gaps, scores, covariate_frame(), seed=0)
    assert set(found["n"]) == {9}
    assert found["estimate"].iloc[0] == pytest.approx(pearsonr(x[0], y).statistic)


def test_corrections_run_over_places_and_benchmarks_within_method_and_control() -> None:
    x, y = sample(13, 9, places=2)
    gaps = gap_frame({0: x[0], 1: x[1], "early": x.mean(0)})
    found = correlation_table(gaps, score_frame({"arc": y, "mmlu": y[::-1]}), covariate_frame(), seed=0)
    assert list(found["place"].unique()) == [0, 1, "early"]
    for _, family in found.groupby(["method", "control"]):
        assert len(family) == 6
        p = np.sort(np.asarray(family["p"], float))
        stepped = np.minimum(1, np.maximum.accumulate(p * np.arange(6, 0, -1)))
        np.testing.assert_allclose(np.sort(family["p_holm"]), stepped)
        bh = np.minimum(1, np.minimum.accumulate((p * 6 / np.arange(1, 7))[::-1])[::-1])
        np.testing.assert_allclose(np.sort(family["p_bh"]), bh)


# --- side by side --------------------------------------------------------------------------------------------------------------------------------


def similarity_frame(cells: dict[str, tuple[float, float]]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"language": code, "layer": layer, "quantity": quantity, "n": 9, "estimate": value + shift}
            for code, values in cells.items()
            for layer, value in enumerate(values)
            for quantity, shift in (("cka", 0.0), ("retrieval", 0.1), ("mrr", 7.0), ("cosine", 0.2))
        ]
    )


def aligned(scores: tuple[float, ...]) -> pd.DataFrame:
    """Gap falls as the score rises; similarity is in no order."""
    codes = CODES[:6]
    similarity = similarity_frame({code: (value, value + 0.1) for code, value in zip(codes, (0.5, 0.8, 0.55, 0.75, 0.6, 0.7), strict=True)})
    gaps = gap_frame({0: np.linspace(0, 0.5, 6), 1: np.linspace(0.2, 0.7, 6), "all": np.full(6, 99.0)}, codes)
    return side_by_side(similarity, gaps, score_frame({"arc": np.array(scores)}, codes))


def test_side_by_side_takes_means_over_layers() -> None:
    table = aligned((6.0, 5, 4, 3, 2, 1)).set_index("language")
    assert list(table.columns) == ["cka", "retrieval", "cosine", "gap", "score_arc"]
    assert table.loc["ru"].to_list() == pytest.approx([0.85, 0.95, 1.05, 0.2, 5.0])


def test_side_by_side_keeps_a_language_without_a_score() -> None:
    table = side_by_side(
        similarity_frame({"ml": (0.5, 0.6), "hi": (0.5, 0.6)}),
        gap_frame({0: np.array([0.1, 0.2])}, ("ml", "hi")),
        score_frame({"arc": np.array([0.3])}, ("hi",)),
    )
    assert table.set_index("language")["score_arc"].isna().to_dict() == {"ml": True, "hi": False}


def test_correlations_side_by_side_and_their_text() -> None:
    table = aligned((6.0, 5, 4, 3, 2, 1))
    found = side_by_side_correlations(table, seed=0)
    assert list(found.columns) == list(
        correlation_table(gap_frame({0: np.arange(9.0)}), score_frame({"arc": np.arange(9.0)}), covariate_frame(), seed=0).columns
    )
    rows = found.set_index(["place", "method"])
    assert rows.loc[("gap", "spearman"), "estimate"] == pytest.approx(-1)
    assert rows.loc[("gap", "spearman"), "p"] == pytest.approx(2 / 720)
    text = side_by_side_text(table, found)
    assert "gap 0.10 (zh) to 0.60 (ca)" in text
    assert "gap -1.00 (p 0.0028)" in text
    assert "2 of 8: gap with arc (pearson -1.00); gap with arc (spearman -1.00)" in text
    assert "CKA with arc" not in text


def test_a_null_result_is_said() -> None:
    table = aligned((3.0, 1, 5, 2, 6, 4))
    text = side_by_side_text(table, side_by_side_correlations(table, seed=0))
    assert "None of the 8 correlations differs significantly from zero at 0.05" in text


def test_undefined_correlations_are_said() -> None:
    table = aligned((1.0, 1, 1, 1, 1, 1))
    text = side_by_side_text(table, side_by_side_correlations(table, seed=0))
    assert "8 of 8 correlations with scores are undefined (the scores are all the same)." in text
    assert "significantly" not in text.lower()
