"""The tables over the jobs of a multirun: what was varied, how each job ended, its main numbers, and their means over seeds."""

import csv
import io
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from lingact.config.data import LanguagesConfig
from lingact.config.measures import Statistics
from lingact.errors import UserError
from lingact.files.atomic import write_atomically, write_json
from lingact.files.folders import move_aside
from lingact.files.records import read_json_object, read_run_config
from lingact.runtime.compat.hydra import returned_value
from lingact.runtime.tracking import DPI, first_process

if TYPE_CHECKING:
    import pandas as pd

    from lingact.report.page import Section

_MAIN = re.compile(
    r"objective|(heldout/)?(norm_matched/)?gap_closed/[^/]+|(heldout/)?fvu_ratio/[^/]+|bits_per_byte/[^/]+|retention/[^/]+"
    r"|gap/(low|high|low_vs_high)/(early|deep|all)|acc/.+/delta"
)


class JobRecords(Callback):
    """A Hydra callback that leaves one small record per finished job in the sweep folder.

    The records are files because launchers such as joblib run the jobs in other processes; and they are made into the table by the command line,
    because Hydra skips `on_multirun_end` when a job fails.
    """

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Forget the jobs of an earlier sweep in the same folder, which the command line has found to be this one's."""
        for path, _ in _records(Path(config.hydra.sweep.dir)):
            path.unlink()

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        """Record how the job ended."""
        if config.hydra.mode != RunMode.MULTIRUN or not first_process():
            return
        returned = returned_value(job_return)
        refused = isinstance(returned, UserError)
        status = "failed" if job_return.status != JobStatus.COMPLETED else "refused" if refused else "complete"
        record = {
            "job": config.hydra.job.num,
            "overrides": {key: value for key, _, value in (text.lstrip("+").partition("=") for text in job_return.overrides or ())},
            "status": status,
            "problem": str(returned) if refused else None,
            "folder": config.hydra.runtime.output_dir,
        }
        write_json(Path(config.hydra.sweep.dir) / ".jobs" / f"{config.hydra.job.num}.json", record)


def records(folder: Path) -> list[dict[str, Any]]:
    """The records of a sweep's finished jobs, in their order.

    Raises:
        UserError: one is damaged.
    """
    return sorted((record for _, record in _records(folder)), key=lambda record: int(record["job"]))


def _records(folder: Path) -> list[tuple[Path, dict[str, Any]]]:
    """The files that `on_job_end` has written, with what is in them; others that may lie beside them are passed over."""
    otherwise, needed = "delete it to go on without that job", ("job", "overrides", "status", "problem", "folder")
    paths = [path for path in (folder / ".jobs").glob("*.json") if path.stem.isdecimal()]
    return [(path, read_json_object(path, otherwise, needed)) for path in paths]


def report(folder: Path) -> None:
    """Write the sweep's tables into its folder and print them; nothing where no job has finished.

    `sweep.csv` has a row for each job. Where jobs differ in nothing but `seed`, `over_seeds.csv` has a row for each combination of whatever else was
    varied, and these are what is printed.
    """
    from lingact.runtime.terminal import note, show

    jobs = [_job(record) for record in records(folder)]
    if not jobs:
        return
    written = {"table": folder / "sweep.csv"}
    _write_rows(written["table"], [{"job": job.number, **job.overrides, "status": job.status, **job.numbers} for job in jobs], last=_numbers(jobs))
    jobs = _named_by_training(jobs)
    averaged = over_seeds(jobs)
    lines = averaged or [_single(job, jobs) for job in jobs]
    heading, found = "Jobs", tables(lines)
    if averaged:
        written["over seeds"] = folder / "over_seeds.csv"
        _write_rows(written["over seeds"], [_flat(line) for line in averaged])
        seeds = ", ".join(dict.fromkeys(job.overrides["seed"] for job in jobs))
        heading = f"Mean [lowest, highest] over seeds {seeds}; the brackets are a range, no confidence interval; n: complete jobs"
        missing = [_labels(job, jobs) | {"status": job.status} for job in jobs if not job.complete]
        if missing:
            found.append(Table(f"Not complete, and in no mean: {len(missing)} of {len(jobs)} jobs", missing))
    paired, why_not = recipes(jobs)
    if paired is not None:
        written["recipes"] = folder / "recipes.csv"
        write_atomically(written["recipes"], paired.to_csv(index=False))
    for stale in {"over_seeds.csv", "recipes.csv"} - {path.name for path in written.values()}:
        if (folder / stale).is_file():
            move_aside(folder / stale)  # of an earlier sweep in this folder, and not of these jobs
    written["report"] = _write_page(folder, heading, found, lines, jobs, paired)
    show([], title=heading)
    for table in found:
        show(table.rows, title=table.title, fixed=table.fixed)
    if paired is not None and len(paired):
        from lingact.report.recipes import recipes_text

        note(recipes_text(paired, _statistics(jobs).confidence) + f" All of them: {written['recipes']}")
    elif why_not:
        note(f"no paired test between recipes: {why_not}")
    show([{name: str(path) for name, path in written.items()}])


def recipes(jobs: "Sequence[Job]") -> "tuple[pd.DataFrame | None, str]":
    """Trained recipes against each other (`contrasts.recipe_table`), from the statistics in the jobs' folders.

    Returns:
        None where no two recipes have been trained for the same languages, or they cannot be compared; then why.
    """
    trained = [job for job in jobs if job.complete and job.adapter is None and job.targets and (job.folder / "stats" / "index.json").is_file()]
    aside = {"seed", "lang"}
    labels = {job.number: ", ".join(f"{key}={job.overrides.get(key, '')}" for key in varied(jobs) if key not in aside) for job in trained}
    if len({(label, job.targets) for label, job in zip(labels.values(), trained, strict=True)}) < 2 or len(set(labels.values())) < 2:
        return None, ""
    from lingact.analysis.contrasts import Trained, recipe_table

    several = len({job.targets for job in trained}) > 1
    given = [Trained(labels[job.number] + (f" ({','.join(job.targets)})" if several else ""), job.folder, job.targets, job.layers) for job in trained]
    first = _config(trained[0].folder)
    try:
        languages = LanguagesConfig.model_validate(first["languages"])
        return recipe_table(given, languages, _statistics(trained), first["seed"]), ""
    except UserError as error:
        return None, str(error)


def _statistics(jobs: "Sequence[Job]") -> Statistics:
    """How the first complete job was judged, which then holds for all."""
    return Statistics.model_validate(_config(next(job.folder for job in jobs if job.complete and job.adapter is None))["statistics"])


# --- jobs ----------------------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """A finished job of a sweep."""

    number: int
    overrides: dict[str, str]
    status: str
    """complete, failed or refused."""
    numbers: dict[str, float]
    """The main ones of its summary."""
    adapter: str | None = None
    """Of an evaluation."""
    targets: tuple[str, ...] = ()
    """The languages that the adapter was trained for."""
    reference: str = ""
    control: bool = False
    """Of a training job: whether it stands for what the objectives are compared with."""
    folder: Path = Path()
    layers: Literal["all"] | tuple[int, ...] = "all"
    """Of a training job: those of its loss."""

    @property
    def complete(self) -> bool:
        """Whether its numbers count."""
        return self.status == "complete"


def _job(record: Mapping[str, Any]) -> Job:
    folder = Path(record["folder"])
    path, config = folder / "summary.json", _config(folder)
    summary = read_json_object(path, f"delete '{folder / 'manifest.json'}' and resume that job") if path.is_file() else {}
    given = config.get("adapter") or []
    adapter = given if isinstance(given, str) else next(iter(given), None)  # of several the first stands for all
    trained = config if adapter is None else _config(_training_run(adapter))
    return Job(
        record["job"],
        record["overrides"],
        record["status"],
        {key: value for key, value in summary.items() if _MAIN.fullmatch(key)},
        adapter,
        tuple(trained.get("lang", ())),
        config["languages"]["reference"] if "languages" in config else "",
        _is_control(config.get("loss", {})),
        folder,
        _layers(config.get("loss", {}).get("gap", {}).get("layers", "all")),
    )


def _layers(given: Any) -> Literal["all"] | tuple[int, ...]:
    return "all" if given == "all" else tuple(int(layer) for layer in given)


def _is_control(loss: Mapping[str, Any]) -> bool:
    """Whether a loss has no gap term, that of the bare norm, or one that is spoilt on purpose."""
    gap = loss.get("gap", {})
    return loss.get("control", "none") != "none" or gap.get("weight") == 0 or gap.get("objective") == "norm"


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.yaml"
    return read_run_config(path, "put it back") if path.is_file() else {}


def _training_run(adapter: str) -> Path:
    """The run folder of an adapter, if it has one: users name it or the `adapter/` in it."""
    folder = Path(adapter).expanduser()
    return folder.parent if folder.name == "adapter" else folder


def varied(jobs: Iterable[Job]) -> list[str]:
    """The overrides in which jobs differ."""
    found: dict[str, set[str | None]] = {}
    overrides = [job.overrides for job in jobs]
    for key in _in_order_of_appearance(overrides):
        found[key] = {mapping.get(key) for mapping in overrides}
    return [key for key, values in found.items() if len(values) > 1]


def _named_by_training(jobs: list[Job]) -> list[Job]:
    """Evaluations of one training sweep's adapters, under the overrides of the training jobs instead of the adapters' folders."""
    if varied(jobs) != ["adapter"]:
        return jobs
    trained = [_training_overrides(job.overrides["adapter"]) for job in jobs]
    distinct = len({json.dumps(overrides, sort_keys=True) for overrides in trained}) == len(jobs)
    if not all(trained) or not distinct:
        return jobs
    return [replace(job, overrides=overrides) for job, overrides in zip(jobs, trained, strict=True)]


def _training_overrides(adapter: str) -> dict[str, str]:
    run = _training_run(adapter)
    # By name: a sweep that was moved still knows its jobs.
    return next((record["overrides"] for record in records(run.parent) if Path(record["folder"]).name == run.name), {})


def _in_order_of_appearance(mappings: Iterable[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for mapping in mappings for key in mapping))


def _numbers(jobs: Iterable[Job]) -> list[str]:
    return _in_order_of_appearance([job.numbers for job in jobs])


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
    """The overrides that tell it from others."""
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
        {key: Spread.of([job.numbers[key] for job in complete if key in job.numbers]) for key in _numbers(complete)},
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
    """CSV; `last`: columns behind all others."""
    columns = [*(name for name in _in_order_of_appearance(rows) if name not in last), *last]
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

    measured = [key.split("/")[2] for key in _in_order_of_appearance(line.numbers for line in lines) if key.startswith(f"acc/{ALL}/")]
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
    return [Section("Recipes against each other", {}, wide_recipes(paired), recipes_text(paired, _statistics(jobs).confidence))]


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
