"""docs/benchmarks.md: the table of benchmarks as a page. Update it with `python -m lingact.report.benchmark_page > docs/benchmarks.md`."""

import sys
from collections.abc import Collection, Iterable

from lingact.catalogue.benchmarks import FAMILIES, ORIGINS, Entry
from lingact.catalogue.languages import LANGUAGES
from lingact.evaluation.tasks import catalogue

_PAPER = tuple(LANGUAGES)[:10]
"""The languages of `languages=paper`, which are the first in the table of languages."""

_HEAD = """# Benchmarks

The benchmarks that `tasks.benchmarks` can name. `python -m lingact.report.benchmark_page` makes this page from `src/lingact/assets/benchmarks.yaml`
and the installed task files, and a test checks that it is current. Sets of benchmarks are in `conf/tasks/`: `micro` (embedded), `paper`, `belebele`,
`global_piqa`, `human`, `indic`. For your own, use `files` (JSONL) and `lm_eval` (task files). The column *languages* names those of the ten of
`languages=paper`, and counts the others, which are listed below the table.

*Chance* is for the usual number of options; tables use the number of each item. *Corresponds by* names the columns that identify an item across
languages, so that all languages are asked the same items. Without such columns, languages are asked different items. The data sets could not be
downloaded where this was developed: data sets, licences and columns are from their pages and from lm-eval's task files, and were tried on small files
of the same form. If the columns turn out to be different (no such column, fewer than half of the names in common, a column that should agree and does
not), the items of that language are chosen separately, and every output says so.
"""


def page() -> str:
    """The page in Markdown."""
    there = catalogue()
    lines = [
        "| name | what | languages | data set, licence | who wrote the items | chance | corresponds by | remarks |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, family in FAMILIES.items():
        entries = {code: rows for code, rows in there[name].items() if rows}
        cells = (
            f"`{name}`",
            family.title,
            _language_list(entries),
            _joined(f"{row.dataset}, {row.licence}" for rows in entries.values() for row in rows),
            _by_origin({code: rows[0] for code, rows in entries.items()}),
            f"{family.chance:g}",
            ", ".join(f"`{column}`" for column in family.key) or "-",
            _joined(
                note if (note := row.note) == family.note else f"{code}: {note}" for code, rows in entries.items() for row in rows[:1] if row.note
            ),
        )
        lines.append("| " + " | ".join(cells) + " |")
    others = [
        f"- `{name}`: {', '.join(sorted(codes))}" for name, rows in there.items() if (codes := [c for c in rows if rows[c] and c not in _PAPER])
    ]
    return "\n".join([_HEAD, *lines, "", "## The other languages", "", *others, ""])


def _language_list(codes: Collection[str]) -> str:
    """`all but ca of the ten, and 30 others`."""
    there = [code for code in _PAPER if code in codes]
    lacking = [code for code in _PAPER if code not in codes]
    others = sum(code not in _PAPER for code in codes)
    ten = "all ten" if not lacking else f"all but {', '.join(lacking)}" if len(lacking) < len(there) else ", ".join(there)
    return f"{ten}; {others} others" if others else ten


def _joined(parts: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(parts)) or "-"


def _by_origin(entries: dict[str, Entry]) -> str:
    """`written in the language (en); translated by people (the others)`."""
    by_origin: dict[str, list[str]] = {}
    for code, row in entries.items():
        by_origin.setdefault(ORIGINS[row.origin], []).append(code)
    if len(by_origin) == 1:
        return next(iter(by_origin))
    most = max(by_origin, key=lambda origin: len(by_origin[origin]))
    return "; ".join(f"{origin} ({'the others' if origin == most and len(codes) > 2 else ', '.join(codes)})" for origin, codes in by_origin.items())


if __name__ == "__main__":
    sys.stdout.write(page())
