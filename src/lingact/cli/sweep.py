"""Hydra's callback for the jobs of a multirun."""

from pathlib import Path

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from lingact.errors import UserError
from lingact.files.atomic import write_json
from lingact.runtime.compat.hydra import returned_value
from lingact.runtime.environment import first_process
from lingact.runtime.sweep_records import Record, record_files


class JobRecords(Callback):
    """A Hydra callback that writes a small record of each finished job into the sweep folder.

    Launchers such as joblib run the jobs in other processes, so the records are files. The command line makes a table from them, because Hydra skips
    `on_multirun_end` when a job fails.
    """

    def on_multirun_start(self, config: DictConfig, **_others: object) -> None:
        """Remove the records of an earlier part of this sweep. The command line has checked that the folder holds no other sweep."""
        for path, _ in record_files(Path(config.hydra.sweep.dir)):
            path.unlink()

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_others: object) -> None:
        """Record how the job ended."""
        if config.hydra.mode != RunMode.MULTIRUN or not first_process():
            return
        returned = returned_value(job_return)
        refused = isinstance(returned, UserError)
        status = "failed" if job_return.status != JobStatus.COMPLETED else "refused" if refused else "complete"
        record: Record = {
            "job": config.hydra.job.num,
            "overrides": {key: value for key, _, value in (text.lstrip("+").partition("=") for text in job_return.overrides or ())},
            "status": status,
            "problem": str(returned) if refused else None,
            "folder": config.hydra.runtime.output_dir,
        }
        write_json(Path(config.hydra.sweep.dir) / ".jobs" / f"{config.hydra.job.num}.json", record)
