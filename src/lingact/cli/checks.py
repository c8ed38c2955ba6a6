"""Checks of every job of a command, before anything is run or written."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError, create_model

from lingact.cli.compose import expand_sweep, first_line, folder_key, names_fixed_folder, names_folder, parse_overrides, try_compose
from lingact.cli.run_folders import run_folder_problems, sweep_folder_problem
from lingact.config.continued import OF_INIT, with_init
from lingact.config.data import CORPUS_FORMATS, FilesCorpus
from lingact.config.jobs import SCHEMAS, JobConfig, Processes, SaesConfig, TrackingConfig, TrainConfig
from lingact.config.saes import FilesText
from lingact.config.tasks import OwnTask, TasksConfig
from lingact.config.training import TrainerConfig
from lingact.config.validation import validate_config
from lingact.errors import UserError
from lingact.files.folders import is_there
from lingact.hub.wandb_limits import shortened
from lingact.runtime.environment import shape, started_outside
from lingact.runtime.tracking import check_tracking


@dataclass(frozen=True)
class _CheckedJob:
    """One job of a command; `config` is None if the job has problems."""

    composed: DictConfig
    config: JobConfig | None
    problems: list[str]


def read_config(job: str, composed: DictConfig, sweep_folder: Path | None) -> JobConfig:
    """The validated configuration. The jobs of a sweep form one W&B group, named after the sweep folder unless `tracking.group` is set.

    Raises:
        UserError: it is not valid.
    """
    composed = composed.copy()
    with open_dict(composed):
        composed.pop("hydra", None)
    if sweep_folder is not None and OmegaConf.is_dict(composed.get("tracking")) and composed.tracking.get("group") is None:
        composed.tracking.group = shortened(sweep_folder.absolute().name)
    config = validate_config(SCHEMAS[job], composed)
    return with_init(config) if isinstance(config, SaesConfig) else config


def _missing_files(job: str, composed: DictConfig) -> Iterator[str]:
    """Files, folders and keys that the configuration needs and this machine lacks. Sections that are not valid are skipped."""
    for name in ("tracking", "corpus", "train_corpus", "tasks", "text"):
        if name not in SCHEMAS[job].model_fields or not OmegaConf.is_config(composed.get(name)):
            continue
        field = SCHEMAS[job].model_fields[name]
        part = create_model("Part", section=(field.annotation, field))
        try:
            section = dict(part.model_validate({"section": OmegaConf.to_container(composed[name], resolve=True)}))["section"]
        except (ValidationError, OmegaConfBaseException, KeyError):
            continue
        match section:
            case TrackingConfig():
                try:
                    check_tracking(section)
                except UserError as error:
                    yield from (f"tracking: {line}" for line in str(error).split("\n"))
            case FilesCorpus(path=path) if str(path) != "???" and not is_there(path):
                yield f"{name}.path: '{path}' does not exist; name {CORPUS_FORMATS} (options: conf/corpus/)"
            case FilesText(path=path) if str(path) != "???" and not is_there(path):
                yield f"{name}.path: '{path}' does not exist; name a file (.jsonl or .txt, also .gz or .xz) or a folder of them"
            case TasksConfig(own=own):
                folders = {key: benchmark.folder for key, benchmark in own.items() if isinstance(benchmark, OwnTask)}
                for key, folder in folders.items():
                    if str(folder) != "???" and not folder.is_dir():
                        yield f"tasks.own.{key}.folder: '{folder}' is not a folder; name one with lm-eval task files (options: conf/tasks/)"


def _check_job(job: str, overrides: list[str], sweep_folder: Path | None) -> _CheckedJob:
    composed, refused = try_compose(job, overrides)
    problems = [*refused.values(), *_taken_from_init(composed, overrides)]
    config = None
    try:
        config = read_config(job, composed, sweep_folder)
    except UserError as error:
        # A key whose override was refused is not also reported as missing.
        problems += [line for line in str(error).split("\n") if line.partition(":")[0] not in refused]
    problems += _missing_files(job, composed)
    problems += _side_effects(composed)
    if cache := getattr(config, "cache", None):
        problems += _folder_problems(cache, "cache")
    if config is not None and not problems:
        from lingact.models.preflight import problems as before_loading

        launcher = str(composed.hydra.launcher._target_).rpartition(".")[2]
        problems += before_loading(config, here=launcher == "BasicLauncher")
    return _CheckedJob(composed, None if problems else config, problems)


def _taken_from_init(composed: DictConfig, overrides: list[str]) -> Iterator[str]:
    """What a command may not say with `init`, because the SAEs that are trained further decide it."""
    if composed.get("init") is None:
        return
    keys = ["sets", *(f"saes.{key}" for key in OF_INIT)]
    for key in [key for key in keys if any(text.lstrip("+~").partition("=")[0] == key for text in overrides)]:
        yield f"{key}: with init= it comes from the run that made the SAEs; leave it out"


def _side_effects(composed: DictConfig) -> Iterator[str]:
    """Problems with settings of Hydra that would write next to the user's files, or in places that a run does not check."""
    start = composed.hydra
    if start.output_subdir is not None:
        yield f"hydra.output_subdir: '{start.output_subdir}' is not supported, since the run folder has its own config.yaml; leave it null"
    if start.job.chdir:
        yield "hydra.job.chdir: true is not supported, since paths are relative to the folder in which the command is given; leave it out"
    if not re.fullmatch(r"[^\W_][\w.+-]*", str(start.job.name)):
        yield f"hydra.job.name: '{start.job.name}' is not supported, since folders are named after it; use letters, digits and . + - _"
    for name in ("job_logging", "hydra_logging"):
        handlers = OmegaConf.select(composed, f"hydra.{name}.handlers") or {}
        files = [key for key in handlers if not str(handlers[key].get("class", "")).endswith((".StreamHandler", ".NullHandler"))]
        if files:
            yield f"hydra.{name}.handlers.{files[0]}: only handlers that write to the terminal are supported; leave it out and redirect: > FILE 2>&1"


def _output_folder(composed: DictConfig, key: str) -> Path:
    """The folder to make or use.

    Raises:
        UserError: it can be neither made nor used.
    """
    HydraConfig.instance().set_config(composed)
    try:
        folder = Path(str(OmegaConf.select(composed, key)))
    except OmegaConfBaseException as error:
        raise UserError(f"{key}: {first_line(error)}") from None
    for problem in _folder_problems(folder, key):
        raise UserError(problem)
    return folder


def _folder_problems(folder: Path, key: str) -> Iterator[str]:
    """The problem with a folder that can be neither made nor written to."""
    existing = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not existing.is_dir():
        yield f"{key}: '{folder}' cannot be made, because '{existing}' is not a folder; name another one"
    elif not os.access(existing, os.W_OK | os.X_OK):
        yield f"{key}: '{folder}' cannot be made, because '{existing}' is not writable; name another one"


def check_jobs(job: str, overrides: list[str], multirun: bool, *, look_into_folder: bool = True) -> tuple[Path, list[JobConfig]]:
    """Check every job of a command.

    Args:
        look_into_folder: refuse a folder that the command names unless it is empty or holds an earlier part of this run or sweep.

    Returns:
        The run folder or the sweep folder, and the jobs' configurations.

    Raises:
        UserError: the message lists all problems of all jobs, each once.
    """
    parsed, unreadable = parse_overrides(overrides)
    continuous = [override for override in parsed if multirun and override.is_sweep_override() and not override.is_discrete_sweep()]
    jobs = expand_sweep(parsed) if multirun else [[override.input_line or "" for override in parsed]]
    key = folder_key(multirun)
    looks = look_into_folder and names_folder(overrides, multirun)
    found: dict[str, list[int]] = {problem: list(range(len(jobs))) for problem in unreadable.values()}
    if started_outside(os.environ) and not multirun and not names_fixed_folder(overrides):
        why = "torchrun and srun start every process with the same command, and each would choose a different folder by the clock"
        found[f"{key}: {why}; name one for all, such as {key}=outputs/{job}/mine"] = list(range(len(jobs)))
    folder, configs, places = None, [], []
    for number, job_overrides in enumerate(jobs):
        checked = _check_job(job, job_overrides, folder if multirun else None)
        problems = [line for line in checked.problems if line.partition(":")[0] not in unreadable]
        if continuous and str(checked.composed.hydra.sweeper._target_).endswith(".BasicSweeper"):
            problems += [
                f"{override.input_line}: an interval has infinitely many values; name values, as in {override.get_key_element()}=1,2"
                for override in continuous
            ]
        try:
            folder = folder or _output_folder(checked.composed, key)
            places.append(_job_folder(checked.composed, folder, number) if multirun else folder)
            config = read_config(job, checked.composed, folder) if multirun and checked.config is not None else checked.config
            if checked.config is not None:
                problems += _launcher_problems(checked.composed, checked.config) if multirun else process_problems(checked.config)
                configs.append(checked.config)
            problems += run_folder_problems(job, places[-1], config, key) if looks else []
        except UserError as error:
            problems.append(str(error))
        for problem in problems:
            found.setdefault(problem, []).append(number)
    everywhere = list(range(len(jobs)))
    if multirun and folder is not None:
        found |= dict.fromkeys(_shared_folder_problems(folder, places), everywhere)
        if looks and (problem := sweep_folder_problem(job, folder)):
            found[problem] = everywhere
    if found or folder is None:
        raise UserError(
            "\n".join(line if numbers == everywhere else f"{line} [job {', '.join(map(str, numbers))}]" for line, numbers in found.items())
        )
    return folder, configs


def _shared_folder_problems(folder: Path, places: list[Path]) -> Iterator[str]:
    """The problem with jobs of a sweep that do not each have their own folder below the sweep's."""
    names = [os.path.relpath(os.path.normpath(place), os.path.normpath(folder)) for place in places]
    if outside := [name for name in names if Path(name).parts[:1] in ((), ("..",), (".jobs",))]:
        yield f"hydra.sweep.subdir: '{outside[0]}' is not a folder below the sweep's; leave it out, or name one that is"
    elif shared := [name for name in names if names.count(name) > 1]:
        yield f"hydra.sweep.subdir: {names.count(shared[0])} jobs would share '{shared[0]}'; leave it out, or put ${{hydra.job.num}} into it"


def _launcher_problems(composed: DictConfig, config: JobConfig) -> list[str]:
    """The problem with a job of several processes that a launcher is to start.

    Lightning starts processes by repeating the command, but in a launcher's worker that is not the job's command. Slurm starts tasks by itself.
    """
    section, asked = processes_of(config)
    key = f"{section}devices"
    launcher, processes = composed.hydra.launcher, asked.devices * asked.nodes
    name = str(launcher._target_).rpartition(".")[2]
    tasks = launcher.tasks_per_node * launcher.nodes if name == "SlurmLauncher" else 1
    if name == "BasicLauncher" or processes == tasks:
        return []
    advice = f"hydra/launcher=slurm with hydra.launcher.tasks_per_node={asked.devices} hydra.launcher.nodes={asked.nodes}"
    return [f"{key}: a job needs {processes} processes and this launcher starts {tasks}; leave hydra/launcher out, or use {advice}"]


def processes_of(config: JobConfig) -> tuple[str, TrainerConfig | Processes]:
    """The key prefix of the section that has the number of processes, and the section."""
    return ("trainer.", config.trainer) if isinstance(config, TrainConfig) else ("", config)


def process_problems(config: JobConfig) -> list[str]:
    """The problem with a job's number of processes, given how many a launcher has started."""
    section, asked = processes_of(config)
    if config.plan == "only":
        return []
    try:
        devices, nodes = shape(asked.devices, asked.nodes, os.environ, section=section)
    except UserError as error:
        return [str(error)]
    if isinstance(asked, TrainerConfig) and devices * nodes > asked.sentences:
        return [f"trainer.sentences: it is {asked.sentences}, fewer than the {devices * nodes} processes that share them; give more, or start fewer"]
    return []


def _job_folder(composed: DictConfig, folder: Path, number: int) -> Path:
    """The folder of a job of a sweep."""
    with read_write(composed.hydra), open_dict(composed.hydra):
        composed.hydra.job.num = composed.hydra.job.id = number
    HydraConfig.instance().set_config(composed)
    return folder / str(composed.hydra.sweep.subdir)
