"""The evaluation's tables as summary keys and terminal rows. Pure: frames in, values out."""

import pandas as pd

from lingact.compare import ALL

_BENCHMARK_COLUMNS = 4  # more would make the terminal table hard to read; tables/accuracy.csv has them all


def summary(accuracy: pd.DataFrame, differences: pd.DataFrame | None) -> dict[str, float]:
    """`acc/<benchmark>/<language>/base|adapter|delta|delta_lo|delta_hi|p`, benchmark `all` pooled over benchmarks; all kinds together."""
    values: dict[str, float] = {}
    for row in _main(accuracy).to_dict("records"):
        values[f"acc/{row['task']}/{row['language']}/{row['model']}"] = float(row["estimate"])
    if differences is not None:
        for row in _main(differences).to_dict("records"):
            key = f"acc/{row['task']}/{row['language']}"
            values |= {
                f"{key}/delta": float(row["estimate"]),
                f"{key}/delta_lo": float(row["lo"]),
                f"{key}/delta_hi": float(row["hi"]),
                f"{key}/p": float(row["p"]),
            }
    return values


def _main(table: pd.DataFrame) -> pd.DataFrame:
    return table[(table["metric"] == "acc") & (table["kind"] == ALL)]


def accuracy_rows(accuracy: pd.DataFrame) -> list[dict[str, str]]:
    """Terminal rows of the base model: one per language, with each benchmark, all together with the interval, and the kinds."""
    acc = accuracy[accuracy["metric"] == "acc"]
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


def difference_rows(differences: pd.DataFrame) -> list[dict[str, str]]:
    """Terminal rows of base against adapter: one per language, pooled over benchmarks, and the difference by kind."""
    pooled = differences[(differences["metric"] == "acc") & (differences["task"] == ALL)]
    rows = []
    for language in dict.fromkeys(pooled["language"]):
        own = pooled[pooled["language"] == language].set_index("kind")
        whole = own.loc[ALL]
        row = {"language": language, "items": str(whole["n"]), "base": _share(whole["base"]), "adapter": _share(whole["adapter"])}
        row |= {"difference": f"{_signed(whole['estimate'])} [{_signed(whole['lo'])}, {_signed(whole['hi'])}]"}
        row |= {"won/lost": f"{whole['won']}/{whole['lost']}", "p": _p(whole["p"]), "p (Holm)": _p(whole["p_holm"])}
        rows.append(row | {kind: _signed(own["estimate"].get(kind)) for kind in _kinds(pooled)})
    return rows


def _kinds(table: pd.DataFrame) -> list[str]:
    return [kind for kind in dict.fromkeys(table["kind"]) if kind != ALL]


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _signed(value: float | None) -> str:
    return "-" if value is None else "0" if value == 0 else f"{value:+.3f}"


def _p(value: float) -> str:
    return "<.001" if value < 0.001 else f"{value:.3f}"
