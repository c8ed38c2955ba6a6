"""Names of a task's items: across languages, as facts, by stratum and by kind."""

import re
from collections import Counter
from collections.abc import Sequence

from lingact.evaluation.selection import TaskItems
from lingact.evaluation.task_files import Document, TaskSource


def task_items(source: TaskSource, rows: Sequence[Document]) -> TaskItems:
    """The documents of one task as `selection` needs them."""
    family = source.family
    strata = column_values(family.stratum, rows, before="/~")
    proofs = column_values(family.proof, rows)
    return TaskItems(source.entry.language, item_keys(source.entry.key, family.key_pattern, rows), strata, proofs, source.entry.task)


def fact_names(source: TaskSource, rows: Sequence[Document], keys: Sequence[str | None] | None) -> list[str | None]:
    """The fact behind each item, by a name that is the same in every language and in all benchmarks that ask it.

    Args:
        source: of the task.
        rows: its documents.
        keys: their names across languages; None: the items of this language do not correspond to those of others.
    """
    cluster = source.family.cluster
    if keys is None and not cluster:
        return [None] * len(rows)
    names = keys if keys is not None and not cluster else [" ".join(str(row.get(column)) for column in cluster) for row in rows]
    owner = source.family.items or source.entry.benchmark
    prefix = "" if keys is not None else f"{source.entry.language}/"
    return [f"{owner}/{prefix}{name}" for name in names]


def item_keys(columns: Sequence[str], pattern: str | None, rows: Sequence[Document]) -> list[str | None]:
    """The name of each item across languages. Repeated names are numbered. All are None if a column is missing.

    Args:
        columns: that together name an item; `#row` is its place.
        pattern: regular expression whose first group is the part of the name that languages share.
        rows: the documents.
    """
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


def column_values(column: str | None, rows: Sequence[Document], before: str = "") -> list[str | None]:
    """The values of a column as texts. With `before`, only the part in front of the first of these characters."""
    values = [row.get(column) if column else None for row in rows]
    return [None if value is None else re.split(f"[{re.escape(before)}]", str(value))[0] if before else str(value) for value in values]
