"""Run a workflow in its folder, which is locked meanwhile."""

import contextlib
import importlib
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from lingact.cli.checks import processes_of, read_config
from lingact.cli.compose import first_line, folder_key
from lingact.cli.run_folders import START_FILES, is_complete, names_in, run_folder_problems
from lingact.config.jobs import AnalyzeConfig, JobConfig, TrainConfig
from lingact.errors import UserError, out_of_memory
from lingact.files.atomic import full_disk
from lingact.files.folders import TEMPORARY, TOKEN, folder_lock, remove_empty, still_locked
from lingact.files.records import read_json_object
from lingact.runtime.environment import RUN_FOLDER, STARTED_BY_US, adopted, check_environment, first_process
from lingact.runtime.interrupts import interruptible
from lingact.runtime.program import command, repeatable

if TYPE_CHECKING:
    from lingact.planning.plan import Plan

_WORKFLOWS = {
    "train": "lingact.workflows.train",
    "analyze": "lingact.workflows.analyze",
    "eval": "lingact.workflows.evaluate",
    "saes": "lingact.workflows.saes",
}


def adopt_environment() -> None:
    """Check the environment variables of a launcher, and add torchrun's names for them.

    Raises:
        UserError: its variables contradict each other.
    """
    check_environment(os.environ)
    os.environ.update(adopted(os.environ))


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """While open, discard everything that is printed."""
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        yield


def task(composed: DictConfig) -> float | UserError | None:
    """The function that Hydra runs for each job.

    Returns:
        The number that sweepers optimise, or a UserError. If this were raised, Hydra would print a traceback, and a sweep's records would be
        incomplete.
    """
    start = HydraConfig.get()
    job, folder = str(start.job.config_name), Path(start.runtime.output_dir)
    sweep_folder = Path(start.sweep.dir) if start.mode == RunMode.MULTIRUN else None
    try:
        adopt_environment()  # submitit may start several tasks for each job
    except UserError as error:
        return error
    if not first_process():
        with silenced():
            return run_or_skip(job, read_config(job, composed, sweep_folder), folder)
    try:
        return run_locked(job, read_config(job, composed, sweep_folder), folder, folder_key(sweep_folder is not None))
    except UserError as error:
        if sweep_folder is not None:
            remove_empty([folder])
        return error


def run_locked(job: str, config: JobConfig, folder: Path, key: str) -> float | None:
    """Run the workflow in its folder, with the folder locked. A run that is refused before it has results leaves no files.

    Args:
        key: the key that messages name with the folder.

    Raises:
        UserError: another process works there, or the folder has other contents.
    """
    if not first_process():
        return run_or_skip(job, config, folder)
    with contextlib.nullcontext() if is_complete(folder) else folder_lock(folder):
        # Another process may have used the folder since the command was checked.
        if problems := run_folder_problems(job, folder, config, key):
            raise UserError("\n".join(problems))
        untouched = not names_in(folder)
        try:
            return run_or_skip(job, config, folder)
        except UserError as error:
            if untouched and still_locked(folder) and not isinstance(error, _NoSpaceError) and names_in(folder) <= START_FILES:
                for name in START_FILES - {"wandb"}:
                    (folder / name).unlink(missing_ok=True)
                shutil.rmtree(folder / "wandb", ignore_errors=True)
            raise


def run_or_skip(job: str, config: JobConfig, folder: Path) -> float | None:
    """Run the workflow in its folder; a complete run is left as it is. Returns the number that sweepers optimise.

    Raises:
        UserError: a mistake that only the workflow could find.
        KeyboardInterrupt: after a message that says how to continue.
    """
    if is_complete(folder):
        print(f"'{folder}' is complete; nothing to do.")
        again = f"put it back, or delete manifest.json and write {command(job)} resume={folder}"
        return read_json_object(folder / "summary.json", again).get("objective")
    try:
        with interruptible(), _environment_for_children(folder):
            return _run_workflow(job, config, folder)
    except KeyboardInterrupt as interrupt:
        message = "Interrupted before anything was kept; give the same command again."
        if (folder / "config.yaml").is_file():
            message = f"{_interruption_message(job, config, folder, str(interrupt))} To go on: {command(job)} resume={folder}"
        with contextlib.suppress(OSError):  # the terminal may be closed
            print(f"\n{message}", file=sys.stderr)
        raise


def _interruption_message(job: str, config: JobConfig, folder: Path, kept: str) -> str:
    """How far an interrupted run has got, and what is kept of it.

    Args:
        kept: what the interrupted code reports as kept; empty: the run folder is examined instead.
    """
    from lingact.files import states

    batches = states.steps_kept(folder / "stats")
    measured = f"{batches} measured batches" if batches != 1 else "1 measured batch"
    if isinstance(config, TrainConfig):
        from lingact.training.checkpoints import has_trained, steps_kept

        steps = steps_kept(folder)
        if has_trained(folder):
            return f"Interrupted after the training; kept: the adapter, {measured}."
        if steps:
            return f"Interrupted at step {steps} of {config.trainer.steps}; kept: {steps} step{'s' if steps > 1 else ''}."
        kept = f"only the cached base-model outputs ('{config.cache}')" if config.cache else "nothing (cache=null)"
        return f"Interrupted before the first step; kept: {kept}."
    if job == "saes":
        return f"Interrupted; kept: {kept or measured}."
    if job == "analyze":
        return f"Interrupted; kept: {measured}."
    return f"Interrupted; kept: {kept or 'the answers to every finished task'}."


def print_plans(configs: Sequence[JobConfig]) -> None:
    """Print the plan of each job; equal plans are printed once."""
    from lingact.planning.messages import print_plan
    from lingact.planning.plan import make_plan

    printed: list[Plan | None] = []
    for config in configs:
        plan = make_plan(config)
        if plan not in printed:
            print_plan(config)
        printed.append(plan)


class _NoSpaceError(UserError):
    """The disk is full. The run folder is kept, since the run can be resumed."""


def _run_workflow(job: str, config: JobConfig, folder: Path) -> float | None:
    """Check that the run fits this machine, and run the workflow.

    Raises:
        UserError: it does not fit, memory ran out, or the disk is full.
    """
    if first_process():
        from lingact.models.devices import check_devices
        from lingact.models.model_files import read_ahead

        if not (isinstance(config, AnalyzeConfig) and (config.stats or config.compare)):
            read_ahead(config.model)
        from lingact.planning.messages import begin  # imports the libraries that the workflow needs

        check_devices(config)
        begin(config)
        section, asked = processes_of(config)
        devices = asked.devices
        if devices * asked.nodes > 1 and not repeatable():
            given = f"{section}devices={devices}, {section}nodes={asked.nodes}"
            raise UserError(f"{given}: several processes can be started from the command line only; write {command(job)} there, or leave these out")
    workflow = importlib.import_module(_WORKFLOWS[job])
    from safetensors import SafetensorError

    try:
        return workflow.run(config, folder)
    except (OSError, RuntimeError, SafetensorError, MemoryError) as error:
        if out_of_memory(error):
            smaller = "trainer.micro_batch" if job == "train" else "tasks.batch_size"
            raise UserError(
                f"out of memory: {first_line(error)}. Give less at a time ({'batch_tokens' if job != 'eval' else smaller}"
                f"{f', {smaller}' if job == 'train' else ''}) in a new run, or use a larger device or a smaller model.dtype"
            ) from error
        problem = full_disk(error)
        if problem is None:
            raise
        if not (folder / "config.yaml").is_file():
            raise UserError(f"{problem}; free some space and give the same command again") from error
        raise _NoSpaceError(f"{problem}; what was saved before is intact. Free some space, then: {command(job)} resume={folder}") from error


@contextlib.contextmanager
def _environment_for_children(folder: Path) -> Iterator[None]:
    """Set environment variables that tell the processes that Lightning starts for this run its folder.

    Afterwards Lightning's own variables for them are removed, because otherwise the next run in this process would start none.
    """
    before = {name: os.environ[name] for name in STARTED_BY_US if name in os.environ}
    os.environ |= {RUN_FOLDER: str(folder.absolute()), TEMPORARY: TOKEN}
    try:
        yield
    finally:
        for name in STARTED_BY_US:
            os.environ.pop(name, None)
        os.environ.update(before)
