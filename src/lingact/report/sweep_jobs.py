"""The jobs of a sweep, read from their records and run folders."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from lingact.config.measures import Statistics
from lingact.files.records import read_json_object, read_run_config
from lingact.runtime.sweep_records import Record, records

_MAIN = re.compile(
    r"objective|(heldout/)?(norm_matched/)?gap_closed/[^/]+|(heldout/)?fvu_ratio/[^/]+|bits_per_byte/[^/]+|retention/[^/]+"
    r"|gap/(low|high|low_vs_high)/(early|deep|all)|acc/.+/delta"
)


def statistics_of(jobs: "Sequence[Job]") -> Statistics:
    """The statistical settings of the first complete training job, which stand for all."""
    return Statistics.model_validate(saved_config(next(job.folder for job in jobs if job.complete and job.adapter is None))["statistics"])


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
    """The adapter of an evaluation."""
    targets: tuple[str, ...] = ()
    """The languages that the adapter was trained for."""
    reference: str = ""
    control: bool = False
    """Whether a training job is a control that the objectives are compared with."""
    folder: Path = Path()
    layers: Literal["all"] | tuple[int, ...] = "all"
    """Layers in the loss of a training job."""

    @property
    def complete(self) -> bool:
        """Whether its numbers count."""
        return self.status == "complete"


def read_job(record: Record) -> Job:
    """A job with the main numbers of its summary.

    Raises:
        UserError: its configuration or summary is damaged.
    """
    folder = Path(record["folder"])
    path, config = folder / "summary.json", saved_config(folder)
    summary = read_json_object(path, f"delete '{folder / 'manifest.json'}' and resume that job") if path.is_file() else {}
    given = config.get("adapter") or []
    adapter = given if isinstance(given, str) else next(iter(given), None)  # the first of several stands for all
    trained = config if adapter is None else saved_config(_training_run(adapter))
    layers = config.get("loss", {}).get("gap", {}).get("layers", "all")
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
        "all" if layers == "all" else tuple(int(layer) for layer in layers),
    )


def _is_control(loss: Mapping[str, Any]) -> bool:
    """Whether a loss has no gap term, only that of the norm, or one that a control spoils on purpose."""
    gap = loss.get("gap", {})
    return loss.get("control", "none") != "none" or gap.get("weight") == 0 or gap.get("objective") == "norm"


def saved_config(folder: Path) -> dict[str, Any]:
    """The configuration in a run folder; empty where there is none."""
    path = folder / "config.yaml"
    return read_run_config(path, "put it back") if path.is_file() else {}


def _training_run(adapter: str) -> Path:
    """The run folder of an adapter, if it has one. Users name that folder, or `adapter/` in it."""
    folder = Path(adapter).expanduser()
    return folder.parent if folder.name == "adapter" else folder


def varied(jobs: Iterable[Job]) -> list[str]:
    """The overrides in which jobs differ."""
    found: dict[str, set[str | None]] = {}
    overrides = [job.overrides for job in jobs]
    for key in keys_of(overrides):
        found[key] = {mapping.get(key) for mapping in overrides}
    return [key for key, values in found.items() if len(values) > 1]


def named_by_training(jobs: list[Job]) -> list[Job]:
    """Evaluations of the adapters of one training sweep, with the overrides of the training jobs in place of the adapters' folders."""
    if varied(jobs) != ["adapter"]:
        return jobs
    trained = [_training_overrides(job.overrides["adapter"]) for job in jobs]
    distinct = len({json.dumps(overrides, sort_keys=True) for overrides in trained}) == len(jobs)
    if not all(trained) or not distinct:
        return jobs
    return [replace(job, overrides=overrides) for job, overrides in zip(jobs, trained, strict=True)]


def _training_overrides(adapter: str) -> dict[str, str]:
    run = _training_run(adapter)
    # Compared by name, so that a sweep that was moved still has its jobs.
    return next((record["overrides"] for record in records(run.parent) if Path(record["folder"]).name == run.name), {})


def keys_of(mappings: Iterable[Mapping[str, object]]) -> list[str]:
    """The keys of all mappings, in the order in which they first appear."""
    return list(dict.fromkeys(key for mapping in mappings for key in mapping))
