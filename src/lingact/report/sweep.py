"""The tables over the jobs of a multirun: what was varied, how each job ended, its main numbers, and their means over seeds."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from lingact.config.data import LanguagesConfig
from lingact.errors import UserError
from lingact.files.atomic import write_atomically
from lingact.files.folders import move_aside
from lingact.report.sweep_jobs import Job, keys_of, named_by_training, read_job, saved_config, statistics_of, varied
from lingact.runtime.sweep_records import records
from lingact.runtime.tracking import DPI

if TYPE_CHECKING:
    import pandas as pd

    from lingact.report.page import Section


def write_tables(folder: Path) -> None:
    """Write the sweep's tables into its folder and print them. Without a finished job nothing is written.

    `sweep.csv` has a row for each job. Where jobs differ only in `seed`, `over_seeds.csv` has a row for each combination of the other overrides, and
    these rows are printed.
    """
    from lingact.runtime.terminal import note, show

    jobs = [read_job(record) for record in records(folder)]
    if not jobs:
        return
    written = {"table": folder / "sweep.csv"}
    _write_rows(
        written["table"],
        [{"job": job.number, **job.overrides, "status": job.status, **job.numbers} for job in jobs],
        last=keys_of(job.numbers for job in jobs),
    )
    jobs = named_by_training(jobs)
    averaged = over_seeds(jobs)
    lines = averaged or [_single(job, jobs) for job in jobs]
    heading, found = "Jobs", tables(lines)
    if averaged:
        written["over seeds"] = folder / "over_seeds.csv"
        _write_rows(written["over seeds"], [_flat(line) for line in averaged])
        seeds = ", ".join(dict.fromkeys(job.overrides["seed"] for job in jobs))
        heading = f"Mean [lowest, highest] over seeds {seeds}; brackets: a range, not a confidence interval; n: complete jobs"
        missing = [_labels(job, jobs) | {"status": job.status} for job in jobs if not job.complete]
        if missing:
            found.append(Table(f"Not complete, and in no mean: {len(missing)} of {len(jobs)} jobs", missing))
    paired, why_not = recipes(jobs)
    if paired is not None:
        written["recipes"] = folder / "recipes.csv"
        write_atomically(written["recipes"], paired.to_csv(index=False))
    for stale in {"over_seeds.csv", "recipes.csv"} - {path.name for path in written.values()}:
        if (folder / stale).is_file():
            move_aside(folder / stale)  # it belongs to an earlier sweep in this folder
    written["report"] = _write_page(folder, heading, found, lines, jobs, paired)
    show([], title=heading)
    for table in found:
        show(table.rows, title=table.title, fixed=table.fixed)
    if paired is not None and len(paired):
        from lingact.report.recipes import recipes_text

        note(recipes_text(paired, statistics_of(jobs).confidence) + f" All of them: {written['recipes']}")
    elif why_not:
        note(f"no paired test between recipes: {why_not}")
    show([{name: str(path) for name, path in written.items()}])


def recipes(jobs: "Sequence[Job]") -> "tuple[pd.DataFrame | None, str]":
    """Comparisons of trained recipes (`contrasts.recipe_table`), from the statistics in the jobs' folders.

    Returns:
        The table, or None and the reason where no two recipes were trained for the same languages, or they cannot be compared.
    """
    trained = [job for job in jobs if job.complete and job.adapter is None and job.targets and (job.folder / "stats" / "index.json").is_file()]
    aside = {"seed", "lang"}
    labels = {job.number: ", ".join(f"{key}={job.overrides.get(key, '')}" for key in varied(jobs) if key not in aside) for job in trained}
    if len({(label, job.targets) for label, job in zip(labels.values(), trained, strict=True)}) < 2 or len(set(labels.values())) < 2:
        return None, ""
    from lingact.analysis.contrasts import Trained, recipe_table

    several = len({job.targets for job in trained}) > 1
    given = [Trained(labels[job.number] + (f" ({','.join(job.targets)})" if several else ""), job.folder, job.targets, job.layers) for job in trained]
    first = saved_config(trained[0].folder)
    try:
        languages = LanguagesConfig.model_validate(first["languages"])
        return recipe_table(given, languages, statistics_of(trained), first["seed"]), ""
    except UserError as error:
        return None, str(error)


# --- over seeds ----------------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spread:
    """A number over seeds."""

    n: int
    mean: float
    lowest: float
    highest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Of at least one value."""
        return cls(len(values), sum(values) / len(values), min(values), max(values))

    def cell(self, digits: int, runs: int = 1) -> str:
        """`0.12 [0.10, 0.14]`: the range of two and more, and how many they are where that is not the number of runs. One decimal from 10 upwards."""
        if max(abs(self.lowest), abs(self.highest)) >= 10:
            digits = 1
        mean, lowest, highest = (f"{round(value, digits) + 0.0:.{digits}f}" for value in (self.mean, self.lowest, self.highest))  # + 0.0: no -0.00
        bounds = f" [{lowest}, {highest}]" if self.n > 1 else ""
        return f"{mean}{bounds}{'' if self.n == runs else f' n={self.n}'}"


_UNDEFINED = Spread(0, math.nan, math.nan, math.nan)


@dataclass(frozen=True)
class Line:
    """A row of the printed tables: a job, or the jobs that differ in nothing but the seed."""

    varied: dict[str, str]
    """The overrides that distinguish it from others."""
    labels: dict[str, str]
    """What leads the row."""
    n: int
    """Complete jobs."""
    not_complete: tuple[Job, ...]
    numbers: dict[str, Spread]
    targets: tuple[str, ...]
    reference: str
    control: bool


def over_seeds(jobs: Sequence[Job]) -> list[Line]:
    """The jobs that differ in nothing but the seed, taken together, in the order in which the sweep named them.

    Returns:
        A line for each combination of what else was varied, also where no job is complete; empty where none has two seeds.
    """
    keys = varied(jobs)
    if "seed" not in keys:
        return []
    others = [key for key in keys if key != "seed"]
    combinations: dict[tuple[str | None, ...], list[Job]] = {}
    for job in jobs:
        combinations.setdefault(tuple(job.overrides.get(key) for key in others), []).append(job)
    if max(map(len, combinations.values())) < 2:
        return []
    lines = [_line({key: own[0].overrides.get(key, "") for key in others}, own) for own in combinations.values()]
    return [replace(line, labels=line.varied | {"n": str(line.n)}) for line in lines]


def _line(overrides: dict[str, str], jobs: Sequence[Job]) -> Line:
    complete = [job for job in jobs if job.complete]
    return Line(
        overrides,
        overrides,
        len(complete),
        tuple(job for job in jobs if not job.complete),
        {key: Spread.of([job.numbers[key] for job in complete if key in job.numbers]) for key in keys_of(job.numbers for job in complete)},
        next((job.targets for job in jobs if job.targets), ()),
        next((job.reference for job in jobs if job.reference), ""),
        any(job.control for job in jobs),
    )


def _single(job: Job, jobs: Sequence[Job]) -> Line:
    line = _line({key: job.overrides.get(key, "") for key in varied(jobs)}, [job])
    return replace(line, labels=_labels(job, jobs) | {"status": job.status})


def _labels(job: Job, jobs: Sequence[Job]) -> dict[str, str]:
    return {"job": str(job.number)} | {key: job.overrides.get(key, "") for key in varied(jobs)}


# --- tables --------------------------------------------------------------------------------------------------------------------------


def _flat(line: Line) -> dict[str, object]:
    """A row of `over_seeds.csv`."""
    row: dict[str, object] = dict(line.labels)
    row["not_complete"] = "; ".join(f"job {job.number} (seed {job.overrides['seed']}) {job.status}" for job in line.not_complete)
    for name, spread in line.numbers.items():
        row |= {name: spread.mean, f"{name}/lowest": spread.lowest, f"{name}/highest": spread.highest, f"{name}/n": spread.n}
    return row


def _write_rows(path: Path, rows: Sequence[Mapping[str, object]], last: Sequence[str] = ()) -> None:
    """CSV; `last`: columns that come last."""
    columns = [*(name for name in keys_of(rows) if name not in last), *last]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fieldnames=columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, buffer.getvalue())


@dataclass(frozen=True)
class _Block:
    """A few numbers that are printed beside each other."""

    title: str
    columns: dict[str, tuple[str, int]]
    """Summary key, with {} for the language, and decimals, by heading."""
    of: str = ""
    """Whose: a row for each of the line's `targets`, or the `reference`."""


_BLOCKS = (
    _Block(
        "Gap closed of {}",
        {
            "plain": ("gap_closed/{}", 2),
            "norm-matched": ("norm_matched/gap_closed/{}", 2),
            "held-out SAEs": ("heldout/gap_closed/{}", 2),
            "held-out matched": ("heldout/norm_matched/gap_closed/{}", 2),
        },
        "targets",
    ),
    _Block(
        "What it did to {}, after over base (1: unchanged)",
        {"FVU": ("fvu_ratio/{}", 2), "FVU, held-out SAEs": ("heldout/fvu_ratio/{}", 2), "bits per byte": ("bits_per_byte/{}", 3)},
        "targets",
    ),
    _Block(
        "What it cost {}: activation and bits per byte after over base, cosine of profiles (1: unchanged), KL in nats",
        {
            "activation": ("retention/activation", 2),
            "profile": ("retention/profile", 3),
            "bits per byte": ("retention/bits_per_byte", 3),
            "KL": ("retention/kl", 4),
        },
        "reference",
    ),
    _Block("Objective of the sweep", {"objective": ("objective", 2)}),
    _Block(
        "Gap of groups of languages",
        {f"{group} {layers}": (f"gap/{group}/{layers}", 2) for group in ("low", "high", "low_vs_high") for layers in ("early", "deep", "all")},
    ),
)


def _accuracy(lines: Sequence[Line]) -> _Block:
    """Differences in accuracy, benchmarks pooled, in the reference and the languages that adapters were trained for; in all if that is unknown."""
    from lingact.catalogue.benchmarks import ALL

    measured = [key.split("/")[2] for key in keys_of(line.numbers for line in lines) if key.startswith(f"acc/{ALL}/")]
    involved = [language for line in lines if line.targets for language in (*line.targets, line.reference)]
    columns = {language: (f"acc/{ALL}/{language}/delta", 3) for language in measured if language in involved or not involved}
    return _Block("Accuracy, adapter minus base, all benchmarks together", columns)


@dataclass(frozen=True)
class Table:
    """Something to print."""

    title: str
    rows: list[dict[str, str]]
    fixed: int = 1
    """How many leading columns name a row."""


def tables(lines: Sequence[Line]) -> list[Table]:
    """The main numbers, a few beside each other; those that no line has are left out."""
    found = [_table(block, lines) for block in (*_BLOCKS, _accuracy(lines))]
    return [table for table in found if table is not None] or [Table("", [line.labels for line in lines])]


def _about(block: _Block, line: Line) -> tuple[str, ...]:
    return {"targets": line.targets or ("",), "reference": (line.reference,), "": ("",)}[block.of]


def _table(block: _Block, lines: Sequence[Line]) -> Table | None:
    about = [(line, language) for line in lines for language in _about(block, line)]
    columns = {
        heading: (key, digits)
        for heading, (key, digits) in block.columns.items()
        if any(key.format(language) in line.numbers for line, language in about)
    }
    if not columns:
        return None
    spoken = list(dict.fromkeys(language for _, language in about if language))
    named = len(spoken) > 1 and any(language not in ("", line.labels.get("lang")) for line, language in about)
    rows = []
    for line, language in about:
        found = {heading: (line.numbers.get(key.format(language)), digits) for heading, (key, digits) in columns.items()}
        cells = {heading: "-" if spread is None else spread.cell(digits, line.n) for heading, (spread, digits) in found.items()}
        rows.append(line.labels | ({"language": language} if named else {}) | cells)
    return Table(block.title.format(", ".join(spoken)), rows, len(rows[0]) - len(columns))


# --- page ----------------------------------------------------------------------------------------------------------------------------------------


def _write_page(
    folder: Path, heading: str, found: Sequence[Table], lines: Sequence[Line], jobs: Sequence[Job], paired: "pd.DataFrame | None"
) -> Path:
    """`report.html` of the sweep: its tables and, of training jobs, what they gained against what it cost."""
    import pandas as pd

    from lingact.report.page import Section, write_report

    points = _trade_off(lines)
    figures = {"trade_off": _draw(folder, points)} if len(points) > 1 else {}
    complete = sum(job.complete for job in jobs)
    return write_report(
        folder,
        f"Sweep over {', '.join(varied(jobs)) or 'nothing'}",
        f"{complete} of {len(jobs)} jobs are complete.",
        [Section(heading, figures, {table.title: pd.DataFrame(table.rows) for table in found}), *_recipe_sections(paired, jobs)],
        {"folder": str(folder), "jobs": str(len(jobs))},
        reading=[
            "Each job has a report of its own, with the intervals over documents, sentences or items.",
            "A range over seeds tells how much the chance in training matters on the same sentences, and nothing else; few seeds show little of it.",
        ],
    )


def _recipe_sections(paired: "pd.DataFrame | None", jobs: Sequence[Job]) -> "list[Section]":
    from lingact.report.page import Section
    from lingact.report.recipes import recipes_text, wide_recipes

    if paired is None or paired.empty:
        return []
    return [Section("Recipes against each other", {}, wide_recipes(paired), recipes_text(paired, statistics_of(jobs).confidence))]


def _trade_off(lines: Sequence[Line]) -> "pd.DataFrame":
    """The points of `figures.sweep.trade_off`."""
    import pandas as pd

    rows = []
    for line in lines:
        for language in line.targets:
            keys = {"closed": f"norm_matched/gap_closed/{language}", "fvu_ratio": f"fvu_ratio/{language}", "kl": "retention/kl"}
            if keys["closed"] not in line.numbers or keys["kl"] not in line.numbers:
                continue
            row = {"label": ", ".join(value for value in line.varied.values() if value != language), "control": line.control, "language": language}
            for name, key in keys.items():
                spread = line.numbers.get(key, _UNDEFINED)
                row |= {name: spread.mean, f"{name}/lowest": spread.lowest, f"{name}/highest": spread.highest}
            rows.append(row)
    return pd.DataFrame(rows)


def _draw(folder: Path, points: "pd.DataFrame") -> Path:
    from lingact.figures.sweep import trade_off

    buffer = io.BytesIO()
    trade_off(points).savefig(buffer, format="png", dpi=DPI, bbox_inches="tight")
    path = folder / "figures" / "trade_off.png"
    write_atomically(path, buffer.getvalue())
    return path
