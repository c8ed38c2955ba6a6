"""The tables of an evaluation as summary keys, rows for the terminal, and scores for an analysis. Pure: tables in, values out."""

from collections.abc import Hashable, Mapping, Sequence

import pandas as pd

from lingact.catalogue.benchmarks import ALL

_BENCHMARK_COLUMNS = 4  # more would make the table on the terminal hard to read; tables/accuracy.csv has all


def summary(accuracy: pd.DataFrame, differences: pd.DataFrame | None, bits: pd.DataFrame | None, labels: Sequence[str]) -> dict[str, float]:
    """The entries of summary.json, for all kinds of items together.

    Keys are `acc/<benchmark>/<language or group>/base|adapter|delta|delta_lo|delta_hi|p|mde` and `bits_per_byte/<language>[_lo|_hi]` (adapter over
    base). The benchmark `all` pools the benchmarks. With several recipes, each has keys of its own, such as `.../<recipe>/delta`.

    Args:
        accuracy: `compare.accuracy_table`.
        differences: `compare.difference_table`; None: the base model alone.
        bits: `bits_per_byte.bits_table`; None: no text was read.
        labels: of the recipes.
    """
    values: dict[str, float] = {}
    for row in _main(accuracy[accuracy["model"] == "base"]).to_dict("records"):
        values[f"acc/{row['task']}/{row['language']}/base"] = float(row["estimate"])
    for row in _main(differences).to_dict("records") if differences is not None else ():
        key = f"acc/{row['task']}/{row['language']}" + _recipe_part(row, labels)
        columns = {"adapter": "adapter", "delta": "estimate", "delta_lo": "lo", "delta_hi": "hi", "p": "p", "mde": "mde"}
        values |= {f"{key}/{name}": float(row[column]) for name, column in columns.items()}
        values[f"acc/{row['task']}/{row['language']}/base"] = float(row["base"])
    for row in bits.to_dict("records") if bits is not None else ():
        key = f"bits_per_byte/{row['language']}" + _recipe_part(row, labels)
        values |= {key: float(row["estimate"]), f"{key}_lo": float(row["lo"]), f"{key}_hi": float(row["hi"])}
    return values


def _recipe_part(row: Mapping[Hashable, object], labels: Sequence[str]) -> str:
    return f"/{row['model']}" if len(labels) > 1 else ""


def _main(table: pd.DataFrame) -> pd.DataFrame:
    return table[(table["metric"] == "acc") & (table["kind"] == ALL)]


def score_table(accuracy: pd.DataFrame) -> pd.DataFrame:
    """The base model's accuracy in the form that `analyze.py scores=` reads: language, benchmark, score, n."""
    rows = _main(accuracy[accuracy["model"] == "base"])
    return rows.rename(columns={"task": "benchmark", "estimate": "score"})[["language", "benchmark", "score", "n"]].reset_index(drop=True)


def accuracy_rows(accuracy: pd.DataFrame) -> list[dict[str, str]]:
    """Rows for the terminal about the base model: one per language, with each benchmark, the pooled accuracy with its interval, and the kinds."""
    acc = accuracy[(accuracy["model"] == "base") & (accuracy["metric"] == "acc")]
    benchmarks = [task for task in dict.fromkeys(acc["task"]) if task != ALL]
    rows = []
    for language in dict.fromkeys(acc["language"]):
        own = acc[acc["language"] == language].set_index(["task", "kind"])
        whole = own.loc[(ALL, ALL)]
        row = {"language": language, "items": str(whole["n"])}
        if len(benchmarks) <= _BENCHMARK_COLUMNS:
            row |= {task: _share(own["estimate"].get((task, ALL))) for task in benchmarks}
        row |= {"all": f"{_share(whole['estimate'])} [{_share(whole['lo'])}, {_share(whole['hi'])}]"}
        row |= {kind: _share(own["estimate"].get((ALL, kind))) for kind in _kinds(acc)}
        rows.append(row | {"chance": _share(whole["chance"])})
    return rows


def difference_rows(differences: pd.DataFrame, bits: pd.DataFrame | None) -> list[dict[str, str]]:
    """Rows for the terminal that compare the base model with one recipe: one per language and group, pooled over benchmarks, with bits per byte."""
    pooled = differences[(differences["metric"] == "acc") & (differences["task"] == ALL)]
    ratios = {} if bits is None else {row["language"]: row for row in bits.to_dict("records")}
    rows = []
    for language in dict.fromkeys(pooled["language"]):
        own = pooled[pooled["language"] == language].set_index("kind")
        whole = own.loc[ALL]
        row = {"language": language, "items": str(whole["n"]), "base": _share(whole["base"]), "adapter": _share(whole["adapter"])}
        row |= {"difference": f"{_signed(whole['estimate'])} [{_signed(whole['lo'])}, {_signed(whole['hi'])}]", "detectable": _share(whole["mde"])}
        row |= {"p": _p(whole["p"]), "p (Holm)": _p(whole["p_holm"])}
        if language in ratios:
            row |= {"bits/byte": f"x{ratios[language]['estimate']:.3f}"}
        rows.append(row | {kind: _signed(own["estimate"].get(kind)) for kind in _kinds(pooled)})
    return rows


def _kinds(table: pd.DataFrame) -> list[str]:
    return [kind for kind in dict.fromkeys(table["kind"]) if kind != ALL]


def _share(value: float | None) -> str:
    return "-" if value is None or value != value else f"{value:.3f}"


def _signed(value: float | None) -> str:
    return "-" if value is None else "0" if value == 0 else f"{value:+.3f}"


def _p(value: float) -> str:
    return "<.001" if value < 0.001 else f"{value:.3f}"
