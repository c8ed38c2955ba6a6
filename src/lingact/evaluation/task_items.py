"""What the items of a task are called: in every language, as facts, by stratum and by kind."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from lingact.evaluation.selection import TaskItems
from lingact.evaluation.task_files import TaskSource


def task_items(source: TaskSource, rows: Sequence[Mapping[str, Any]]) -> TaskItems:
    """The documents of one task as `selection` needs them."""
    traits = source.traits
    strata = column_values(traits.stratum, rows, before="/~")
    proofs = column_values(traits.proof, rows)
    return TaskItems(source.entry.language, item_keys(source.entry.key, traits.key_pattern, rows), strata, proofs, source.entry.task)


def fact_names(source: TaskSource, rows: Sequence[Mapping[str, Any]], keys: Sequence[str | None] | None) -> list[str | None]:
    """What each item asks, under its name in every language; what several benchmarks ask has one name in all of them."""
    cluster = source.traits.cluster
    if keys is None and not cluster:
        return [None] * len(rows)
    names = keys if keys is not None and not cluster else [" ".join(str(row.get(column)) for column in cluster) for row in rows]
    whose = source.traits.items or source.entry.benchmark
    alone = "" if keys is not None else f"{source.entry.language}/"
    return [f"{whose}/{alone}{name}" for name in names]


def item_keys(columns: Sequence[str], pattern: str | None, rows: Sequence[Mapping[str, Any]]) -> list[str | None]:
    """The name of each item in every language; of several with one name the later ones are numbered. None where a column is missing."""
    if not columns or any(column != "#row" and row.get(column) is None for row in rows for column in columns):
        return [None] * len(rows)
    found, seen = [], Counter()
    for place, row in enumerate(rows):
        name = " ".join(str(place if column == "#row" else row[column]) for column in columns)
        if pattern and (part := re.search(pattern, name)):
            name = part[1]
        seen[name] += 1
        found.append(name if seen[name] == 1 else f"{name} #{seen[name]}")
    return found


def column_values(column: str | None, rows: Sequence[Mapping[str, Any]], before: str = "") -> list[str | None]:
    """A column's values as words, or what stands in them before one of these marks."""
    values = [row.get(column) if column else None for row in rows]
    return [None if value is None else re.split(f"[{re.escape(before)}]", str(value))[0] if before else str(value) for value in values]
