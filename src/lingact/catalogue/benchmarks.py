"""The benchmarks: for each language its lm-eval task, and what the data are, whose, made how, and asked by what.

They are written in `assets/benchmarks.yaml`. Which of the tasks really exist is found in the task files (`lingact.evaluation.task_files`); nothing
here is imported from lm-eval.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter

from lingact.catalogue.languages import Language, language, nearest
from lingact.errors import UserError

Origin = Literal["original", "human", "edited", "mixed", "machine", "altered", "generated", "unknown"]
"""Who wrote the items of a language."""
ALL = "all"
"""Stands for all tasks that are pooled, or every kind, in the tables."""
ORIGINS: dict[Origin, str] = {
    "original": "written in the language",
    "human": "translated by people",
    "edited": "translated by a machine and corrected by people",
    "mixed": "some translated by people, some by a machine",
    "machine": "translated by a machine",
    "altered": "real sentences beside ones that a program has altered",
    "generated": "made by a program from templates",
    "unknown": "of unknown origin",
}


class Other(BaseModel):
    """What is different about one language of a family."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: str | None = None
    folder: str | None = None
    dataset: str | None = None
    licence: str | None = None
    origin: Origin | None = None
    key: tuple[str, ...] | None = None
    note: str = ""


class Family(BaseModel):
    """A benchmark in all its languages."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    title: str
    task: str
    """Name of the lm-eval task, or a pattern of several (`*`), over `{code}`, `{flores_200}`, `{flores_lower}`, `{iso3}` and `{name}`."""
    folder: str
    """Where its task files are: below lm-eval's `tasks`, or below our assets if it begins with `lingact:`."""
    dataset: str
    """Hub id, or who made it."""
    licence: str
    origin: Origin
    metric: Literal["acc", "acc_norm"]
    """What papers report; both are computed."""
    chance: float
    """Accuracy of guessing at the usual number of options; tables use each item's own."""
    key: tuple[str, ...] = ()
    """Columns that together name an item in every language, `#row` for its place; empty: items of different languages do not correspond."""
    key_pattern: str | None = None
    """Regular expression whose first group is the part of the key that languages share."""
    proof: str | None = None
    """Column that is the same in all languages for the same item: a language that disagrees has other names for its items, and is taken by itself."""
    cluster: tuple[str, ...] = ()
    """Columns that name what several items share, such as a passage; empty: each item stands alone."""
    items: str | None = None
    """Whose items they are, where other benchmarks ask the same ones: in another translation, or in another way. None: its own."""
    stratum: str | None = None
    """Column by which a limited selection is kept in proportion."""
    kind: str | None = None
    """Column by which scores are split."""
    sources: tuple[str, ...] = ()
    """Texts that it was made from, by the names of `TEXT_SOURCES`."""
    others: Mapping[str, Other] = {}
    note: str = ""


@dataclass(frozen=True)
class Entry:
    """One benchmark in one language."""

    benchmark: str
    language: str
    task: str
    folder: str
    dataset: str
    licence: str
    origin: Origin
    metric: str
    chance: float
    key: tuple[str, ...]
    note: str


def _read_families() -> dict[str, Family]:
    text = (files("lingact") / "assets" / "benchmarks.yaml").read_text(encoding="utf-8")
    blocks: dict[str, dict[str, Any]] = yaml.safe_load(text)
    return TypeAdapter(dict[str, Family]).validate_python({name: {"name": name, **block} for name, block in blocks.items()})


FAMILIES: dict[str, Family] = _read_families()

TEXT_SOURCES: dict[str, str] = {
    "flores": r"flores|sib[-_]?200|belebele",
    "wikihow": r"wiki[-_]?how|wikilingua|hellaswag",
    "activitynet_captions": r"activitynet|hellaswag",
    "roc_stories": r"roc[-_]?stor|story[-_]?cloze",
    "universal_dependencies": r"universal[-_]?dependencies|treebank|blimp",
}
"""Text -> how corpora made of it are called, a regular expression. A benchmark made of it leaks in every language, whatever word sequences say."""


def family(name: str) -> Family:
    """The family of a name.

    Raises:
        UserError: it is not in the table.
    """
    if name in FAMILIES:
        return FAMILIES[name]
    raise UserError(f"no benchmark '{name}'{nearest(name, FAMILIES)} (known: {', '.join(FAMILIES)}; your own go into tasks.own)")


def entry(benchmark: Family, code: str) -> Entry:
    """A benchmark in a language, whether or not its task exists."""
    other = benchmark.others.get(code, Other())
    return Entry(
        benchmark=benchmark.name,
        language=code,
        task=_filled(other.task or benchmark.task, language(code)),
        folder=other.folder or benchmark.folder,
        dataset=other.dataset or benchmark.dataset,
        licence=other.licence or benchmark.licence,
        origin=other.origin or benchmark.origin,
        metric=benchmark.metric,
        chance=benchmark.chance,
        key=benchmark.key if other.key is None else other.key,
        note=other.note or benchmark.note,
    )


def _filled(template: str, spoken: Language) -> str:
    flores = spoken.flores
    # ISO 639-3 tells scripts and varieties of a language not apart: hi_Latn has no share in what is called `hin`.
    iso3 = flores if "_" in spoken.code else flores.partition("_")[0]
    return template.format(code=spoken.code, flores_200=spoken.flores_200, flores_lower=flores.lower(), iso3=iso3, name=spoken.name.lower())
