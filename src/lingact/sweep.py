"""The table over the jobs of a multirun: what was varied, how each job ended, and its main numbers."""

import csv
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from lingact.errors import UserError
from lingact.tracking import write_atomically, write_json

WIDTH = 120
_MAIN = re.compile(r"objective|(gap_closed|retention)/[^/]+|gap/(low|high|low_vs_high)/(early|deep|all)|acc/.+/delta")


class JobRecords(Callback):
    """A Hydra callback that leaves one small record per finished job in the sweep folder.

    The records are files because launchers such as joblib run the jobs in other processes; and they are made into the table by the command line,
    because Hydra skips `on_multirun_end` when a job fails.
    """

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Forget the jobs of an earlier sweep in the same folder."""
        shutil.rmtree(Path(config.hydra.sweep.dir) / ".jobs", ignore_errors=True)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        """Record how the job ended."""
        if config.hydra.mode != RunMode.MULTIRUN:
            return
        # `return_value` would raise what the job raised.
        returned = job_return._return_value
        refused = isinstance(returned, UserError)
        status = "failed" if job_return.status != JobStatus.COMPLETED else "refused" if refused else "complete"
        record = {
            "job": config.hydra.job.num,
            "overrides": dict(text.lstrip("+").partition("=")[::2] for text in job_return.overrides or ()),
            "status": status,
            "problem": str(returned) if refused else None,
            "folder": config.hydra.runtime.output_dir,
        }
        write_json(Path(config.hydra.sweep.dir) / ".jobs" / f"{config.hydra.job.num}.json", record)


def records(folder: Path) -> list[dict[str, Any]]:
    """The records of a sweep's finished jobs, in their order."""
    return sorted((json.loads(path.read_text(encoding="utf-8")) for path in (folder / ".jobs").glob("*.json")), key=lambda record: record["job"])


def _main_numbers(run_folder: Path) -> dict[str, float]:
    path = run_folder / "summary.json"
    summary = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return {key: value for key, value in summary.items() if _MAIN.fullmatch(key)}


def _in_order_of_appearance(mappings: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for mapping in mappings for key in mapping))


def _cell(value: object) -> str:
    text = "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 32 else "…" + text[-31:]


def _blocks(fixed: list[str], numbers: list[str], rows: list[dict[str, Any]]) -> str:
    """Aligned columns; where they do not fit beside each other, several blocks with the fixed columns repeated."""
    widths = {name: max(len(name), *(len(_cell(row.get(name))) for row in rows)) for name in fixed + numbers}
    groups: list[list[str]] = [[]]
    for name in numbers:
        if groups[-1] and sum(widths[column] + 2 for column in (*fixed, *groups[-1], name)) > WIDTH:
            groups.append([])
        groups[-1].append(name)
    blocks = []
    for group in groups:
        columns = [*fixed, *group]
        lines = ["  ".join(name.ljust(widths[name]) for name in columns)]
        lines += ["  ".join(_cell(row.get(name)).ljust(widths[name]) for name in columns) for row in rows]
        blocks.append("\n".join(line.rstrip() for line in lines))
    return "\n\n".join(blocks)


def report(folder: Path) -> str | None:
    """Write `sweep.csv` into the sweep folder and return the same as text; None where no job has finished."""
    jobs = records(folder)
    if not jobs:
        return None
    summaries = [_main_numbers(Path(record["folder"])) for record in jobs]
    fixed = ["job", *_in_order_of_appearance([record["overrides"] for record in jobs]), "status"]
    numbers = _in_order_of_appearance(summaries)
    rows = [{**record["overrides"], "job": record["job"], "status": record["status"], **summary} for record, summary in zip(jobs, summaries, strict=True)]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fieldnames=[*fixed, *numbers], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(folder / "sweep.csv", buffer.getvalue())
    return _blocks(fixed, numbers, rows)
