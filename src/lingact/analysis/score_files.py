"""Benchmark scores per language, from evaluation runs and score files."""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from lingact.catalogue.languages import language, nearest
from lingact.errors import UserError
from lingact.files.folders import is_there
from lingact.files.tables import Table, as_name, read_delimited
from lingact.runtime.program import program

_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_NAMED = 5
"""A message names at most so many lines."""
_MOST_ITEMS = 10**12


# --- scores ----------------------------------------------------------------------------------------------------------------------------------------


def read_scores(paths: Sequence[Path]) -> pd.DataFrame:
    """Benchmark scores per language from evaluation runs and score files.

    Args:
        paths: folders of evaluation runs (of which the base model's accuracies over all kinds of items are used), or CSV (or TSV) files with the
            columns language, benchmark (or task), score and, if known, n.

    Returns:
        One row per benchmark and language: benchmark, language, score, n (items, missing if not given), source.

    Raises:
        UserError: a path is neither; a column, code or number cannot be used; or a language occurs twice for one benchmark.
    """
    if not paths:
        raise UserError("no scores given; name folders of evaluation runs or CSV files with the columns language, benchmark and score")
    found = pd.concat([_run_scores(path) if path.is_dir() else _file_scores(path) for path in paths], ignore_index=True)
    for (benchmark, code), rows in found.groupby(["benchmark", "language"], sort=False):
        if len(rows) > 1:
            sources = ", ".join(dict.fromkeys(rows["source"]))
            raise UserError(f"'{code}' has {len(rows)} scores for '{benchmark}' (in {sources}); keep one, or rename the benchmark")
    return found


def _run_scores(folder: Path) -> pd.DataFrame:
    path = folder / "tables" / "accuracy.csv"
    if not path.is_file():
        raise UserError(
            f"no evaluation in {folder}: it has no tables/accuracy.csv; give the folder of a finished run of {program('eval')}, or a CSV file"
        )
    table = _read_csv(path)
    _require_columns(table, ("model", "task", "language", "kind", "metric", "n", "estimate"), path)
    wanted = {"model": "base", "metric": "acc", "kind": "all"}
    rows = [(place, row) for place, row in zip(table.places, table.rows, strict=True) if all(row[name] == value for name, value in wanted.items())]
    if not rows:
        raise UserError(f"{path} has no accuracies of the base model over all kinds of items; give the folder of a finished run of {program('eval')}")
    return _scores(rows, path, benchmark="task", score="estimate")


def _file_scores(path: Path) -> pd.DataFrame:
    if not is_there(path):
        raise UserError(f"no scores at {path}: there is no such file or folder")
    table = _read_csv(path)
    benchmark = "task" if "benchmark" not in table.columns and "task" in table.columns else "benchmark"
    _require_columns(table, ("language", benchmark, "score"), path)
    if not table.rows:
        raise UserError(f"{path} has columns but no rows; give a row per language and benchmark")
    return _scores(list(zip(table.places, table.rows, strict=True)), path, benchmark=benchmark, score="score")


def _read_csv(path: Path) -> Table:
    """A table whose cells are texts, so that "nan" can be refused with its place, and a code such as "no" is not converted."""
    if path.suffix.lower() not in (".csv", ".tsv"):
        raise UserError(f"{path} ends in '{path.suffix}'; scores are read from .csv and .tsv, and from folders of finished runs of {program('eval')}")
    table = read_delimited(path, strip=True)
    if not table.columns:
        raise UserError(f"{path} is empty; it needs the columns language, benchmark and score")
    return table


def _require_columns(table: Table, needed: Sequence[str], path: Path) -> None:
    found = list(table.columns)
    for name in needed:
        if name not in found:
            hint = nearest(name, [column for column in found if column not in needed])
            raise UserError(f"{path} has no column '{name}'{hint} (needed: {', '.join(needed)}; there: {', '.join(found)})")


def _scores(rows: Sequence[tuple[str, Mapping[str, str]]], path: Path, *, benchmark: str, score: str) -> pd.DataFrame:
    """The named columns with their types. Every cell is checked, and all problems are reported at once."""
    problems, found = [], []
    for place, row in rows:
        try:
            language(row["language"])
            if not row[benchmark]:
                raise UserError("the benchmark has no name; give one")
            found.append((as_name(row[benchmark]), row["language"], _number(row[score], score), _count(row.get("n", ""))))
        except UserError as error:
            problems.append(f"{path}, {place}: {error}")
    if problems:
        raise UserError("\n".join(problems[:_NAMED] + ([f"{path}: and {len(problems) - _NAMED} more such lines"] if len(problems) > _NAMED else [])))
    benchmarks, codes, scores, n = (list(column) for column in zip(*found, strict=True))
    return pd.DataFrame({"benchmark": benchmarks, "language": codes, "score": scores, "n": pd.array(n, "Int64"), "source": str(path)})


def _number(text: str, column: str) -> float:
    # Python would also accept 1_0 as a number.
    value = float(text) if _NUMBER.fullmatch(text) else math.nan
    if not math.isfinite(value):
        raise UserError(f"{column} '{text}' is not a finite number; fix it, or leave the row out")
    return value


def _count(text: str) -> int | None:
    if text == "":
        return None
    value = _number(text, "n")
    if not 1 <= value <= _MOST_ITEMS or value != int(value):
        raise UserError(f"n '{text}' is not a number of items; give a whole number from 1 to {_MOST_ITEMS:.0e}, or leave the cell empty")
    return int(value)
