"""The table of benchmarks: for each language the lm-eval task, and the data set with its licence and origin.

The table is in `assets/benchmarks.yaml`. Which of the tasks exist is found in the task files (`lingact.evaluation.task_files`); nothing is imported
from lm-eval here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter

from lingact.catalogue.languages import Language, language, nearest
from lingact.errors import UserError

Origin = Literal["original", "human", "edited", "mixed", "machine", "altered", "generated", "unknown"]
"""Who wrote the items of a language."""
ALL = "all"
"""In tables, the name of all tasks pooled, or of all kinds of items."""
ORIGINS: dict[Origin, str] = {
    "original": "written in the language",
    "human": "translated by people",
    "edited": "translated by a machine and corrected by people",
    "mixed": "some translated by people, some by a machine",
    "machine": "translated by a machine",
    "altered": "real sentences next to ones that a program has altered",
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
    """Folder of its task files: below lm-eval's `tasks`, or below lingact's assets if it begins with `lingact:`."""
    dataset: str
    """Hub id of the data set, or its authors."""
    licence: str
    origin: Origin
    metric: Literal["acc", "acc_norm"]
    """The metric that papers report; both are computed."""
    chance: float
    """Accuracy of guessing with the usual number of options; tables use the number of each item."""
    key: tuple[str, ...] = ()
    """Columns that together identify an item in every language, `#row` for its row; empty: items of different languages do not correspond."""
    key_pattern: str | None = None
    """Regular expression whose first group is the part of the key that languages share."""
    proof: str | None = None
    """Column whose value an item has in all languages. A language with other values names its items differently, and is treated separately."""
    cluster: tuple[str, ...] = ()
    """Columns that name what several items share, such as a passage; empty: each item is independent."""
    items: str | None = None
    """Name of a set of items that several benchmarks use, in other translations or another format. None: no other benchmark has its items."""
    stratum: str | None = None
    """Column by which a limited selection is stratified."""
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
    blocks: dict[str, dict[str, object]] = yaml.safe_load(text)
    return TypeAdapter(dict[str, Family]).validate_python({name: {"name": name, **block} for name, block in blocks.items()})


FAMILIES: dict[str, Family] = _read_families()

TEXT_SOURCES: dict[str, str] = {
    "flores": r"flores|sib[-_]?200|belebele",
    "wikihow": r"wiki[-_]?how|wikilingua|hellaswag",
    "activitynet_captions": r"activitynet|hellaswag",
    "roc_stories": r"roc[-_]?stor|story[-_]?cloze",
    "universal_dependencies": r"universal[-_]?dependencies|treebank|blimp",
}
"""Text -> regular expression for the names of corpora made from it. A benchmark made from the same text counts as contaminated in every language,
whatever its word sequences."""


def family(name: str) -> Family:
    """The benchmark of this name.

    Raises:
        UserError: it is not in the table.
    """
    if name in FAMILIES:
        return FAMILIES[name]
    raise UserError(f"no benchmark '{name}'{nearest(name, FAMILIES)} (known: {', '.join(FAMILIES)}; add your own under tasks.own)")


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
    # ISO 639-3 does not distinguish the scripts and varieties of a language: data called `hin` contain no hi_Latn.
    iso3 = flores if "_" in spoken.code else flores.partition("_")[0]
    return template.format(code=spoken.code, flores_200=spoken.flores_200, flores_lower=flores.lower(), iso3=iso3, name=spoken.name.lower())
