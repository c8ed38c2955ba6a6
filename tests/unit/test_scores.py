"""From the tables of an evaluation to summary, terminal rows and scores for an analysis."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from lingact.analysis.score_files import read_scores
from lingact.evaluation.scores import accuracy_rows, difference_rows, score_table, summary

Values = dict[tuple[str, str, str], float]
"""(benchmark, language, kind) -> number."""


def accuracy(model: str, values: Values, n: int = 40) -> pd.DataFrame:
    """As `compare.accuracy_table` makes it; acc_norm is a tenth higher."""
    rows = [
        {"model": model, "task": task, "language": code, "kind": kind, "metric": metric, "n": n, "facts": n}
        | {"estimate": value + shift, "lo": value - 0.1, "hi": value + 0.1, "chance": 0.25}
        for (task, code, kind), value in values.items()
        for metric, shift in (("acc", 0.0), ("acc_norm", 0.1))
    ]
    return pd.DataFrame(rows)


def differences(values: Values, model: str = "adapter", **rest: Any) -> pd.DataFrame:
    """As `compare.difference_table` makes it."""
    rows = [
        {"task": task, "language": code, "kind": kind, "metric": metric, "n": 40, "languages": 1, "base": 0.5, "adapter": 0.5 + value, "chance": 0.25}
        | {"estimate": value + shift, "lo": value - 0.125, "hi": value + 0.0625, "p": 0.04, "p_holm": 0.08, "mde": 0.15}
        for (task, code, kind), value in values.items()
        for metric, shift in (("acc", 0.0), ("acc_norm", 0.1))
    ]
    return pd.DataFrame(rows).assign(model=model, **rest)


def bits(model: str = "adapter") -> pd.DataFrame:
    rows = [("ml", 0.75, 0.5, 0.875), ("all", 0.9375, 0.875, 1.0)]
    return pd.DataFrame(rows, columns=["language", "estimate", "lo", "hi"]).assign(model=model)


BASE: Values = {("arc", "en", "all"): 0.75, ("arc", "en", "read"): 0.875, ("all", "en", "all"): 0.625, ("all", "ml", "all"): 0.5}


def test_the_summary_of_the_base_model_alone() -> None:
    table = pd.concat([accuracy("base", BASE), accuracy("adapter", {("arc", "en", "all"): 0.1})])
    assert summary(table, None, None, []) == {"acc/arc/en/base": 0.75, "acc/all/en/base": 0.625, "acc/all/ml/base": 0.5}


def test_the_summary_of_one_recipe() -> None:
    changed = differences({("arc", "ml", "all"): 0.25, ("arc", "ml", "read"): 9.0, ("all", "low", "all"): -0.125})
    found = summary(accuracy("base", {("arc", "ml", "all"): 0.5}), changed, bits(), ["adapter"])
    assert found == {
        "acc/arc/ml/base": 0.5,
        "acc/all/low/base": 0.5,
        "acc/arc/ml/adapter": 0.75,
        "acc/arc/ml/delta": 0.25,
        "acc/arc/ml/delta_lo": 0.125,
        "acc/arc/ml/delta_hi": 0.3125,
        "acc/arc/ml/p": 0.04,
        "acc/arc/ml/mde": 0.15,
        "acc/all/low/adapter": 0.375,
        "acc/all/low/delta": -0.125,
        "acc/all/low/delta_lo": -0.25,
        "acc/all/low/delta_hi": -0.0625,
        "acc/all/low/p": 0.04,
        "acc/all/low/mde": 0.15,
        "bits_per_byte/ml": 0.75,
        "bits_per_byte/ml_lo": 0.5,
        "bits_per_byte/ml_hi": 0.875,
        "bits_per_byte/all": 0.9375,
        "bits_per_byte/all_lo": 0.875,
        "bits_per_byte/all_hi": 1.0,
    }
    assert {type(value) for value in found.values()} == {float}


def test_the_summary_of_two_recipes_has_keys_for_each() -> None:
    changed = pd.concat([differences({("all", "ml", "all"): value}, model) for model, value in (("lang ml", 0.25), ("lang hi", -0.25))])
    ratios = pd.concat([bits("lang ml"), bits("lang hi").assign(estimate=2.0)])
    found = summary(accuracy("base", {("all", "ml", "all"): 0.5}), changed, ratios, ["lang ml", "lang hi"])
    assert found["acc/all/ml/base"] == 0.5, "there is but one base model"
    assert (found["acc/all/ml/lang ml/delta"], found["acc/all/ml/lang hi/delta"]) == (0.25, -0.25)
    assert (found["bits_per_byte/ml/lang ml"], found["bits_per_byte/ml/lang hi"], found["bits_per_byte/ml/lang hi_lo"]) == (0.75, 2.0, 0.5)
    assert len(found) == 1 + 2 * 6 + 2 * 6
    assert not {"acc/all/ml/delta", "bits_per_byte/ml"} & found.keys()


# --- scores for an analysis ---------------------------------------------------------------------------------------------------------------------


def test_scores_are_what_an_analysis_reads(tmp_path: Path) -> None:
    table = pd.concat([accuracy("base", BASE), accuracy("adapter", dict.fromkeys(BASE, 0.0))])
    scores = score_table(table)
    assert list(scores.columns) == ["language", "benchmark", "score", "n"]
    scores.to_csv(tmp_path / "scores.csv", index=False)
    found = read_scores([tmp_path / "scores.csv"])
    rows = found[["benchmark", "language", "score", "n"]].to_numpy().tolist()
    assert rows == [["arc", "en", 0.75, 40], ["all", "en", 0.625, 40], ["all", "ml", 0.5, 40]]


def test_scores_and_the_run_folder_say_the_same(tmp_path: Path) -> None:
    table = accuracy("base", BASE)
    (tmp_path / "run" / "tables").mkdir(parents=True)
    table.to_csv(tmp_path / "run" / "tables" / "accuracy.csv", index=False)
    score_table(table).to_csv(tmp_path / "scores.csv", index=False)
    one, other = (read_scores([path]).drop(columns="source") for path in (tmp_path / "run", tmp_path / "scores.csv"))
    pd.testing.assert_frame_equal(one, other)


# --- the terminal -------------------------------------------------------------------------------------------------------------------------------


def test_rows_of_the_base_model() -> None:
    values = BASE | {("all", "en", "read"): 0.9, ("all", "ml", "transfer"): 0.3, ("mmlu", "ml", "all"): 0.45}
    rows = accuracy_rows(pd.concat([accuracy("base", values), accuracy("adapter", dict.fromkeys(values, 0.0))]))
    assert rows == [
        {
            "language": "en",
            "items": "40",
            "arc": "0.750",
            "mmlu": "-",
            "all": "0.625 [0.525, 0.725]",
            "read": "0.900",
            "transfer": "-",
            "chance": "0.250",
        },
        {
            "language": "ml",
            "items": "40",
            "arc": "-",
            "mmlu": "0.450",
            "all": "0.500 [0.400, 0.600]",
            "read": "-",
            "transfer": "0.300",
            "chance": "0.250",
        },
    ]


@pytest.mark.parametrize(("count", "shown"), [(4, 4), (5, 0)])
def test_more_than_four_benchmarks_have_no_columns(count: int, shown: int) -> None:
    values = {(f"b{i}", "en", "all"): 0.5 for i in range(count)} | {("all", "en", "all"): 0.5}
    (row,) = accuracy_rows(accuracy("base", values))
    assert [name for name in row if name.startswith("b")] == [f"b{i}" for i in range(shown)]


def test_rows_of_a_comparison() -> None:
    values = {
        ("arc", "ml", "all"): 9.0,
        ("all", "ml", "all"): 0.25,
        ("all", "ml", "read"): -0.25,
        ("all", "low", "all"): 0.0,
        ("all", "low", "heard"): 0.0,
    }
    rows = difference_rows(differences(values), bits())
    ml, low = rows
    assert ml == {
        "language": "ml",
        "items": "40",
        "base": "0.500",
        "adapter": "0.750",
        "difference": "+0.250 [+0.125, +0.312]",
        "detectable": "0.150",
        "p": "0.040",
        "p (Holm)": "0.080",
        "bits/byte": "x0.750",
        "read": "-0.250",
        "heard": "-",
    }
    assert (low["language"], low["difference"], low["read"], low["heard"]) == ("low", "0 [-0.125, +0.062]", "-", "0")
    assert "bits/byte" not in low, "held-out text has no such group"
    assert "bits/byte" not in difference_rows(differences(values), None)[0]


def test_tiny_p_are_bounds() -> None:
    (row,) = difference_rows(differences({("all", "ml", "all"): 0.25}, p=0.0009, p_holm=0.001), None)
    assert (row["p"], row["p (Holm)"]) == ("<.001", "0.001")
