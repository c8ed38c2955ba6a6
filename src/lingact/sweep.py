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
            "overrides": {key: value for key, _, value in (text.lstrip("+").partition("=") for text in job_return.overrides or ())},
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


def report(folder: Path) -> None:
    """Write `sweep.csv` into the sweep folder and print the same; nothing where no job has finished."""
    from lingact.terminal import show

    jobs = records(folder)
    if not jobs:
        return
    summaries = [_main_numbers(Path(record["folder"])) for record in jobs]
    fixed = ["job", *_in_order_of_appearance([record["overrides"] for record in jobs]), "status"]
    numbers = _in_order_of_appearance(summaries)
    rows = [
        {**record["overrides"], "job": record["job"], "status": record["status"], **summary} for record, summary in zip(jobs, summaries, strict=True)
    ]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fieldnames=[*fixed, *numbers], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(folder / "sweep.csv", buffer.getvalue())
    show([{name: row.get(name) for name in (*fixed, *numbers)} for row in rows], title="Jobs", fixed=len(fixed))
    show([{"table": str(folder / "sweep.csv")}])
