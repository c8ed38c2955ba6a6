"""Checks of the folder of a run or a sweep: it must be empty, or contain an earlier part of the same run or sweep."""

import contextlib
import re
from pathlib import Path
from typing import Any

import yaml

from lingact.config.jobs import JobConfig, without_machine
from lingact.config.validation import validate
from lingact.errors import UserError
from lingact.files.folders import LOCK, is_temporary, listed
from lingact.files.records import read_run_config
from lingact.runtime.program import command, program
from lingact.runtime.tracking import RUN_FILES, STATUSES, differences, read_manifest

START_FILES = {"config.yaml", "manifest.json", "wandb"}
"""Files that a run writes before it has results."""
_CALLBACK = re.compile(r"\blingact\.(cli\.)?sweep\.JobRecords\b")
"""The callback's name in multirun.yaml; the first version had no package `cli`."""


def saved_config(folder: Path) -> dict[str, Any] | None:
    """The configuration of the run in this folder; None if there is no config.yaml.

    Raises:
        UserError: it is damaged.
    """
    path = folder / "config.yaml"
    if not path.is_file():
        return None
    return read_run_config(path, "put it back, or start a new run in another folder")


def names_in(folder: Path) -> set[str]:
    """The names in a folder, without locks and temporary files, which a killed process may have left."""
    return {path.name for path in folder.iterdir() if path.name != LOCK and not is_temporary(path.name)} if folder.is_dir() else set()


def job_of_run(folder: Path) -> str | None:
    """The job that made this run folder; None if it is not a run folder, or has no readable manifest."""
    try:
        manifest = read_manifest(folder)
    except UserError:
        return None
    return str(manifest["job"]) if manifest["status"] in STATUSES else None


def run_folder_problems(job: str, folder: Path, config: JobConfig | None, key: str) -> list[str]:
    """The problem with a run folder that is neither empty nor contains an earlier part of this run. Other files next to such a part do no harm.

    Args:
        config: configuration of the run; None if it has problems, so that it is not compared.
        key: the key that messages name with the folder.
    """
    names, made_by = names_in(folder), job_of_run(folder)
    advice = "name a new or an empty folder"
    if not names:
        return []
    # A user may have copied a config.yaml next to other files. So without a manifest, a run continues only if resume= says that this is a run.
    ours = _only_ours(folder, names)
    if made_by is None and not (ours if key == "resume" else ours and names <= START_FILES):
        what = "a sweep" if _job_of_sweep(folder) else f"other things ({listed(names)})"
        if ours:
            advice += f"; or continue the run that they belong to: {command(job)} resume={folder}"
        return [f"{key}: '{folder}' contains {what}, but a run needs its own folder; {advice}"]
    if made_by is not None and made_by != job:
        return [f"{key}: '{folder}' contains a run of {program(made_by)}; {advice}"]
    if made_by is None and "manifest.json" in names:
        read_manifest(folder)  # raises
    saved = saved_config(folder)
    if saved is None:
        return [f"{key}: '{folder}' contains a run without its config.yaml; put it back, or {advice}"]
    different = [] if config is None else contradictions(saved, config)
    return [f"{key}: '{folder}' contains a run with another configuration ({'; '.join(different)}); name another folder"] if different else []


def _only_ours(folder: Path, names: set[str]) -> bool:
    """Whether a folder without a manifest has the config.yaml of a run, and nothing but files of a run."""
    try:
        saved = saved_config(folder) or {}
    except UserError:
        return False
    return names <= RUN_FILES and saved.keys() >= {"seed", "model", "languages", "tracking"}


def _job_of_sweep(folder: Path) -> str | None:
    """The job that made this sweep folder; None if it is not a sweep folder."""
    try:
        start = yaml.safe_load((folder / "multirun.yaml").read_text(encoding="utf-8"))["hydra"]
        return str(start["job"]["config_name"]) if _CALLBACK.search(str(start["callbacks"])) else None
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError):
        return None


def sweep_folder_problem(job: str, folder: Path) -> str | None:
    """The problem with a sweep folder that is neither empty nor contains an earlier sweep of this job; None if there is none."""
    names, made_by = names_in(folder), _job_of_sweep(folder)
    if not names or made_by == job:
        return None
    what = (
        f"a sweep of {program(made_by)}"
        if made_by
        else f"a run of {program(run)}"
        if (run := job_of_run(folder))
        else f"other things ({listed(names)})"
    )
    return f"hydra.sweep.dir: '{folder}' contains {what}, but a sweep needs its own folder; name a new or an empty folder"


def contradictions(saved: dict[str, Any], here: JobConfig) -> list[str]:
    """The differences between two configurations because of which they cannot belong to one run. Keys that belong to the machine may differ.

    Args:
        saved: configuration of the run; keys that later versions added get their defaults.
    """
    with contextlib.suppress(UserError):  # the file of another version is compared as it is
        saved = validate(type(here), saved).model_dump(mode="json")
    return differences(without_machine(saved), without_machine(here.model_dump(mode="json")))


def is_complete(folder: Path) -> bool:
    """Whether the run in this folder has ended.

    Raises:
        UserError: its manifest is damaged.
    """
    return (folder / "manifest.json").is_file() and read_manifest(folder)["status"] == "complete"
