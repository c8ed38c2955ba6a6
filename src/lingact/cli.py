"""From the command line to a run.

Hydra makes the run folder before our code runs and ends with 1 on a mistake. So every job is composed and judged here first; only then does
Hydra start. A mistake of the user's ends in one message with all problems and exit code 2; a fault of ours in its traceback and exit code 1.
"""

import contextlib
import copy
import errno
import importlib
import itertools
import json
import os
import re
import shutil
import signal
import sys
import threading
import unicodedata
import warnings
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import hydra
import yaml
from hydra import initialize_config_dir
from hydra._internal.hydra import Hydra
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException
from pydantic import TypeAdapter, ValidationError

from lingact import sweep
from lingact.config import SCHEMAS, FilesCorpus, OwnTask, Processes, Section, TasksConfig, TrackingConfig, TrainConfig, TrainerConfig, judge, validate
from lingact.errors import UserError, out_of_memory
from lingact.languages import nearest
from lingact.sae_sources import sae_rows
from lingact.terminal import note, show
from lingact.tracking import adopt_slurm, check_tracking, differences, first_process, full_disk, read_manifest

_WORKFLOWS = {"train": "lingact.workflows.train", "analyze": "lingact.workflows.analyze", "eval": "lingact.workflows.evaluate"}
_START_FILES = {"config.yaml", "manifest.json", "wandb"}
_RUN_FOLDER = "LINGACT_RUN_FOLDER"
"""Environment variable that tells processes started by a run which run that is."""
_LIST_SAES = "--list-saes"
_UNPRINTABLE = ("Cc", "Cs", "Zl", "Zp")
"""Unicode's categories of control characters, surrogates (bytes that are no UTF-8), line and paragraph separators."""
_OF_HYDRA = ("hydra.callbacks", "hydra/callbacks", "hydra/hydra_logging", "hydra.hydra_logging")
"""What our own entries in conf/shared.yaml rest on."""
_DOES_NOT_COMPOSE = (HydraException, OmegaConfBaseException, yaml.YAMLError)


def launch(job: str, conf_dir: Path) -> None:
    """The whole of an entry script: run the job that the command line asks for, and exit."""
    sys.exit(main(job, conf_dir, sys.argv[1:]))


def main(job: str, conf_dir: Path, argv: list[str]) -> int:
    """Run a job. Returns the exit code; a fault of ours passes through as its exception."""
    adopt_slurm()
    parser = get_args_parser()
    parser.add_argument(_LIST_SAES, action="store_true")
    arguments = parser.parse_intermixed_args(argv)  # flags may stand between overrides
    conf_dir = conf_dir.absolute()
    only_shown = arguments.help or arguments.hydra_help or arguments.cfg or arguments.info or arguments.shell_completion
    if only_shown and hasattr(signal, "SIGPIPE") and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `--help | head` ends quietly
    try:
        _refuse_unprintable(arguments.overrides)
        unused = [name for name in ("config_path", "config_name", "config_dir", "experimental_rerun", "package") if getattr(arguments, name)]
        if unused:
            raise UserError(f"--{unused[0].replace('_', '-')} is not supported; put your options into {conf_dir}")
        with initialize_config_dir(str(conf_dir), job_name=job, version_base="1.3"):
            if arguments.shell_completion:
                asked = any(text.startswith(("install=", "uninstall=", "query=")) for text in arguments.overrides)
                problems = (
                    [] if asked else ["--shell-completion: write it with install=SHELL, uninstall=SHELL or query=SHELL; shells: bash, fish, zsh"]
                )
            elif only_shown:
                problems = list(_compose_what_composes(job, arguments.overrides)[1].values())
            else:
                problems = _list_saes(job, arguments.overrides) if arguments.list_saes else _run(job, arguments)
        if only_shown and not problems:
            # Hydra reads the command line itself, and only where overrides stand before flags.
            flags = [text for text in argv if text not in arguments.overrides]
            sys.argv = [sys.argv[0], *([] if arguments.hydra_help else arguments.overrides), *flags]
            hydra.main(version_base="1.3", config_path=str(conf_dir), config_name=job)(task)()
    except UserError as error:
        problems = str(error).splitlines()
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        problems = [f"'{error.filename}': no file and no folder can have so long a name; name another one"]
    except KeyboardInterrupt:
        return 130
    finally:
        HydraConfig.instance().cfg = None
    if problems:
        print(f"{job}.py:" if first_process() else f"{job}.py, beside the first process:", *problems, sep="\n  ", file=sys.stderr)
    return 2 if problems else 0


def _refuse_unprintable(overrides: list[str]) -> None:
    """Raise where an argument would break a message, a manifest or the terminal: no key needs a line break, and no file such a name.

    Raises:
        UserError: with the arguments, escaped.
    """
    odd = [text for text in overrides if any(unicodedata.category(character) in _UNPRINTABLE for character in text)]
    if odd:
        why = "holds a line break, another control character or bytes that are not UTF-8; leave them out, and rename a file that is called so"
        raise UserError("\n".join(f"{text!r}: {why}" for text in odd))


def _list_saes(job: str, overrides: list[str]) -> list[str]:
    """Print the SAEs that sae-lens's releases have for the model. Returns the problems that the user has to mend."""
    composed, refused = _compose_what_composes(job, overrides)
    if refused:
        return list(refused.values())
    try:
        name = OmegaConf.select(composed, "model.name")
    except OmegaConfBaseException as error:
        return [f"model.name: {_first_line(error)}"]
    if not isinstance(name, str):
        return ["model.name: names no model; choose an option of conf/model/, or write model.name=NAME"]
    rows, elsewhere = sae_rows(name)
    others = f" SAEs on other places than the outputs of blocks, which are not measured: {elsewhere}." if elsewhere else ""
    if not rows:
        return [f"sae-lens {version('sae-lens')} has no SAEs for '{name}' that fit.{others} Your own: sae.measuring.release=FOLDER"]
    for release in dict.fromkeys(row["release"] for row in rows):
        show([{key: value for key, value in row.items() if key != "release"} for row in rows if row["release"] == release], title=release)
    several = " * stands for a number that differs between layers or is free to choose; then name an id for each layer: "
    several += '"sae.measuring.id={0: ..., 1: ...}".'
    print()
    note(
        f"releases that sae-lens {version('sae-lens')} has for {name}. To measure with one: sae.measuring.release=RELEASE "
        f"\"sae.measuring.id='ID'\", or an option of conf/sae/.{several if any('*' in row['id'] for row in rows) else ''}{others}"
    )
    return []


def _run(job: str, arguments: Namespace) -> list[str]:
    """Judge and run. Returns the problems that the user has to mend."""
    resumed = [text.removeprefix("resume=") for text in arguments.overrides if text.startswith("resume=")]
    overrides = [text for text in arguments.overrides if not text.startswith("resume=")]
    multirun, swept = _multirun_of(job, overrides)
    multirun = multirun or arguments.multirun
    if multirun and "RANK" in os.environ:
        leave = "trainer.devices" if job == "train" else "devices"
        raise UserError(f"torchrun and srun start every process with the whole sweep; start one job at a time, or leave the processes to {leave}")
    if not first_process():
        _run_beside(job, overrides, resumed)
        return []
    if resumed:
        if multirun or len(resumed) > 1:
            raise UserError("resume goes on with one run: give it once, without --multirun")
        _resume(job, Path(resumed[0].strip("'\"")), overrides)
        return []

    folder, configs = _judge_all(job, [*swept, *overrides] if multirun else overrides, multirun)
    if any(config.plan == "only" for config in configs):
        _tell_plans(configs)
        return []
    new_parents = [parent for parent in folder.parents if not parent.exists()]
    # The folder that was judged is the folder that is used, even if the clock has moved on.
    quoted = str(folder).replace("'", "\\'")
    start = GlobalHydra.instance().hydra
    assert start is not None
    if multirun:
        try:
            start.multirun(config_name=job, task_function=task, overrides=[*overrides, f"hydra.sweep.dir='{quoted}'", "hydra.mode=MULTIRUN"])
        finally:
            sweep.report(folder)
        return [f"job {record['job']}: {line}" for record in sweep.records(folder) if record["problem"] for line in record["problem"].splitlines()]
    returned = start.run(config_name=job, task_function=task, overrides=[*overrides, f"hydra.run.dir='{quoted}'"]).return_value
    if not isinstance(returned, UserError):
        return []
    with contextlib.suppress(OSError):
        for parent in new_parents:
            parent.rmdir()
    return str(returned).splitlines()


def _run_beside(job: str, overrides: list[str], resumed: list[str]) -> None:
    """Take part in a run beside its first process, in silence; that one judges, makes the folder, writes and talks.

    Lightning starts such a process from within the first one's run, with the first one's command: what belongs to the job of a sweep, say, is
    not told by that. The folder is, by the environment. torchrun and srun start all processes at once and name no folder.
    """
    folder = os.environ.get(_RUN_FOLDER) or (resumed[0].strip("'\"") if resumed else None)
    with _silence():
        if folder is not None:
            _resume(job, Path(folder), [])
            return
        where, _ = _judge_all(job, overrides, multirun=False)
        _work(job, _read(job, _compose(job, overrides), None), where)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        yield


# --- composing and judging -----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Judged:
    """One job after judging; `config` is None where there are problems with it."""

    composed: DictConfig
    config: Section | None
    problems: list[str]


def _compose(job: str, overrides: list[str]) -> DictConfig:
    composer = GlobalHydra.instance().hydra
    assert composer is not None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # of a folder of options that is not there
            return composer.compose_config(config_name=job, overrides=overrides, run_mode=RunMode.RUN, from_shell=False)
    except AttributeError as error:  # OmegaConf's, of a value of another kind that it looks into
        raise HydraException("a value of a kind that does not belong there") from error
    except KeyError as error:  # of an environment variable that is to be copied
        raise HydraException(f"{error} is not there") from error
    except (ValueError, UserWarning) as error:  # Hydra's, of an option that is no text, such as model=null
        raise HydraException(str(error)) from error


def _multirun_of(job: str, overrides: list[str]) -> tuple[bool, list[str]]:
    """Whether the files or overrides make this a multirun (`hydra.mode`), and the overrides that its jobs differ in (`hydra.sweeper.params`).

    Hydra's sweeper puts these before those of the command line, which therefore win.
    """
    parsed, _ = _parse(overrides)
    composed, _ = _compose_what_composes(job, [override.input_line or "" for override in parsed if not override.is_sweep_override()])
    if gone := [name for name in ("launcher", "sweeper") if composed.hydra[name] is None]:
        raise UserError(f"hydra.{gone[0]}: cannot be null; leave it out")
    params = composed.hydra.sweeper.get("params") or {}
    return composed.hydra.mode == RunMode.MULTIRUN, [f"{key}={value}" for key, value in params.items()]


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _parse(overrides: list[str]) -> tuple[list[Override], dict[str, str]]:
    """The overrides that Hydra's grammar can read, and the problems of the others by their keys."""
    composer = GlobalHydra.instance().hydra
    assert composer is not None
    parser = OverridesParser.create()
    parsed, problems = [], {}
    for text in overrides:
        try:
            override = parser.parse_override(text)
            override.config_loader = composer.config_loader  # which knows what glob(...) stands for
            if not override.key_or_group:
                problems[text] = f"'{text}': has no key; write key=value"
            elif override.key_or_group.startswith(_OF_HYDRA) or re.fullmatch(r"hydra\..*\._target_", override.key_or_group):
                problems[override.key_or_group] = f"{text}: Hydra's classes, callbacks and messages stay; choose a launcher by hydra/launcher=OPTION"
            else:
                parsed.append(override)
        except ValueError:  # Python's, of more digits than it takes
            key, _, value = text.partition("=")
            problems[key] = f"{key}: a number of {len(value)} characters cannot be read; give a smaller one, or quote a text: \"{key}='...'\""
        except HydraException as error:
            problems[text.partition("=")[0]] = (
                f"{text or repr(text)}: cannot be read ({_first_line(error)}); write key=value, and quote a value with special characters: "
                "\"key='a=b'\""
            )
    return parsed, problems


def _expand(parsed: list[Override]) -> list[list[str]]:
    """The overrides of each job of a multirun, in Hydra's order. Of a continuous range, which needs another sweeper, its start stands for all.

    Raises:
        UserError: there is no job, since one of them stands for no value.
    """
    choices: dict[str, list[str]] = {}
    for override in parsed:
        key = override.get_key_element()
        if not override.is_sweep_override():
            choices[key] = [override.input_line or ""]
        elif override.is_discrete_sweep():
            choices[key] = [f"{key}={value}" for value in override.sweep_string_iterator()]
            if not choices[key]:
                raise UserError(f"{override.input_line}: stands for no value at all, so that there is no job; name values, as in {key}=1,2")
        else:
            interval = override.value()
            assert isinstance(interval, IntervalSweep)
            choices[key] = [f"{key}={interval.start}"]
    return [list(job) for job in itertools.product(*choices.values())]


def _key(override: Override) -> str:
    """`corpus`, or where an option goes into another section `corpus@train_corpus`."""
    return f"{override.key_or_group}@{override.package}" if override.package else override.key_or_group


def _options(group: str) -> list[str]:
    composer = GlobalHydra.instance().hydra
    assert composer is not None
    return composer.config_loader.get_group_options(group)


def _leaves(node: Any, prefix: str = "") -> Iterator[str]:
    for key, value in node.items() if isinstance(node, dict) else ():
        yield prefix + str(key)
        yield from _leaves(value, f"{prefix}{key}.")


def _explain(job: str, override: Override, error: Exception, base: DictConfig) -> str:
    """Why an override does not compose, in our words: Hydra knows no nearest names."""
    key, text = _key(override), override.input_line or ""
    groups = sorted(group for group in base.hydra.runtime.choices if not group.startswith("hydra/"))
    value = text.partition("=")[2]  # of a removal, nothing
    if override.is_sweep_override():
        return f"{text}: several values; write {key}=[{value}] for one job with all of them if {key} takes a list, or add --multirun for one job each"
    group = override.key_or_group
    options = _options(group)
    if group == "hydra/launcher":
        if value not in options:
            return f"{key}: no option '{value}'{nearest(value, options)} (options: {', '.join(options)})"
        return f"{text}: the launcher is not installed; run pip install -e '.[{'ray' if value.startswith('ray') else 'launchers'}]'"
    if key in groups and value not in options:
        return f"{key}: no option '{value}'{nearest(value, options)} (options in conf/{group}/: {', '.join(options)})"
    if options and key not in groups:
        return f"{key}: not a group of {job}.py, which has {', '.join(groups)}"
    plain = OmegaConf.to_container(base, resolve=False)
    assert isinstance(plain, dict)
    known = [*_leaves({name: node for name, node in plain.items() if name != "hydra" or key.startswith("hydra")}), *groups, "resume"]
    if key in known and override.is_delete():
        return f"{text}: cannot be removed; give it another value, or leave it as it is"
    if key in known:
        return f"{text}: {_first_line(error)}"
    section = key.partition(".")[0]
    if f"corpus@{section}" in groups and plain[section] is None:
        return f"{key}: there is no {section} yet; choose one with it, for instance corpus@{section}=files (options: conf/corpus/)"
    folder = key.partition(".")[0]
    return f"{key}: unknown key{nearest(key, known)}{f' (options: conf/{folder}/)' if folder in groups else ''}"


def _compose_what_composes(job: str, overrides: list[str]) -> tuple[DictConfig, dict[str, str]]:
    """The composition, and the problems of the overrides left out of it, by their keys."""
    composed, problems = _composition(GlobalHydra.instance().hydra, job, tuple(overrides))
    return copy.deepcopy(composed), dict(problems)


@lru_cache(maxsize=1)
def _composition(_composer: Hydra | None, job: str, overrides: tuple[str, ...]) -> tuple[DictConfig, dict[str, str]]:
    """As above; kept, since a command composes the same twice: to learn whether it is a sweep, and to judge it.

    Args:
        _composer: the one that composes, by which what another command composed is told apart.
    """
    parsed, problems = _parse(list(overrides))
    failed: Exception | None = None
    try:
        return _compose(job, [override.input_line or "" for override in parsed]), problems
    except _DOES_NOT_COMPOSE as error:
        failed = error
    accepted: list[str] = []
    try:
        composed = _compose(job, accepted)
    except _DOES_NOT_COMPOSE as error:
        raise UserError(f"the files in conf/ do not compose: {_first_line(error)}") from None
    # Groups first: whether a key exists may depend on the option chosen.
    rest = sorted(parsed, key=lambda override: not _options(override.key_or_group))
    if rest != parsed:
        failed = None
    while rest:
        # By halves to the first one that does not compose: a composition takes a tenth of a second, and most overrides are right.
        good, bad = 0, len(rest) + (failed is None)
        while bad - good > 1:
            middle = bad - 1 if failed is None else (good + bad) // 2
            try:
                composed = _compose(job, [*accepted, *(override.input_line or "" for override in rest[:middle])])
                good = middle
            except _DOES_NOT_COMPOSE as error:
                bad, failed = middle, error
        accepted += [override.input_line or "" for override in rest[:good]]
        if failed is not None:
            problems[_key(rest[good])] = _explain(job, rest[good], failed, composed)
        rest, failed = rest[good + 1 :], None
    return composed, problems


def _read(job: str, composed: DictConfig, sweep_folder: Path | None) -> Section:
    """The judged configuration; the jobs of a sweep are one W&B group unless it is named."""
    composed = composed.copy()
    with open_dict(composed):
        composed.pop("hydra", None)
    if sweep_folder is not None and OmegaConf.is_dict(composed.get("tracking")) and composed.tracking.get("group") is None:
        composed.tracking.group = sweep_folder.name
    return judge(SCHEMAS[job], composed)


def _missing_things(job: str, composed: DictConfig) -> Iterator[str]:
    """What the configuration names and this machine does not have, where a glance tells. Sections that are wrong in themselves are passed over."""
    for name in ("tracking", "corpus", "train_corpus", "tasks"):
        if name not in SCHEMAS[job].model_fields or not OmegaConf.is_config(composed.get(name)):
            continue
        # With its metadata the annotation of a union carries the discriminator.
        field = SCHEMAS[job].model_fields[name]
        try:
            adapter = TypeAdapter(Annotated[field.annotation, field])  # pyrefly: ignore[not-a-type]
            section = adapter.validate_python(OmegaConf.to_container(composed[name], resolve=True))
        except (ValidationError, OmegaConfBaseException, KeyError):
            continue
        match section:
            case TrackingConfig():
                try:
                    check_tracking(section)
                except UserError as error:
                    yield f"tracking: {error}"
            case FilesCorpus(path=path) if str(path) != "???" and not path.exists():
                what = "a JSONL, CSV, TSV or Parquet file or a folder of <code>.txt"
                yield f"{name}.path: '{path}' does not exist; name {what} (options: conf/corpus/)"
            case TasksConfig(own=own):
                folders = {key: benchmark.folder for key, benchmark in own.items() if isinstance(benchmark, OwnTask)}
                for key, folder in folders.items():
                    if str(folder) != "???" and not folder.is_dir():
                        yield f"tasks.own.{key}.folder: '{folder}' is not a folder; name one with lm-eval task files (options: conf/tasks/)"


def _judge_one(job: str, overrides: list[str], sweep_folder: Path | None) -> _Judged:
    composed, refused = _compose_what_composes(job, overrides)
    problems = list(refused.values())
    config = None
    try:
        config = _read(job, composed, sweep_folder)
    except UserError as error:
        # A value whose override was refused is not missing on top of that.
        problems += [line for line in str(error).splitlines() if line.partition(":")[0] not in refused]
    problems += _missing_things(job, composed)
    return _Judged(composed, None if problems else config, problems)


def _output_folder(composed: DictConfig, key: str, explicit: bool) -> Path:
    """The folder that Hydra will make; a default one that exists already (two runs in one second) gets a number.

    Raises:
        UserError: it cannot be made.
    """
    HydraConfig.instance().set_config(composed)
    try:
        folder = Path(str(OmegaConf.select(composed, key)))
    except OmegaConfBaseException as error:
        raise UserError(f"{key}: {_first_line(error)}") from None
    if not explicit and folder.exists():
        folder = next(other for number in itertools.count(2) if not (other := folder.with_name(f"{folder.name}_{number}")).exists())
    existing = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not existing.is_dir():
        raise UserError(f"{key}: '{folder}' cannot be made, because '{existing}' is not a folder; name another one")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"{key}: '{folder}' cannot be made, because '{existing}' is not writable; name another one")
    return folder


def _judge_all(job: str, overrides: list[str], multirun: bool) -> tuple[Path, list[Any]]:
    """Judge every job. Returns the run folder, or the sweep's, and the configurations.

    Raises:
        UserError: with all problems of all jobs, each once.
    """
    parsed, unreadable = _parse(overrides)
    continuous = [override for override in parsed if multirun and override.is_sweep_override() and not override.is_discrete_sweep()]
    jobs = _expand(parsed) if multirun else [[override.input_line or "" for override in parsed]]
    key = "hydra.sweep.dir" if multirun else "hydra.run.dir"
    found: dict[str, list[int]] = {problem: list(range(len(jobs))) for problem in unreadable.values()}
    folder, configs = None, []
    for number, job_overrides in enumerate(jobs):
        judged = _judge_one(job, job_overrides, folder if multirun else None)
        problems = [line for line in judged.problems if line.partition(":")[0] not in unreadable]
        if continuous and str(judged.composed.hydra.sweeper._target_).endswith(".BasicSweeper"):
            problems += [
                f"{override.input_line}: an interval has no end of values; name some, as in {override.get_key_element()}=1,2"
                for override in continuous
            ]
        try:
            folder = folder or _output_folder(judged.composed, key, explicit=any(override.key_or_group == key for override in parsed))
            if judged.config is not None:
                problems += _not_startable(judged.composed, judged.config) if multirun else []
                configs.append(judged.config)
                config = _read(job, judged.composed, folder) if multirun else judged.config
                problems += _other_run(_job_folder(judged.composed, folder, number) if multirun else folder, config, key)
        except UserError as error:
            problems.append(str(error))
        for problem in problems:
            found.setdefault(problem, []).append(number)
    if found or folder is None:
        everywhere = range(len(jobs))
        raise UserError(
            "\n".join(line if numbers == list(everywhere) else f"{line} [job {', '.join(map(str, numbers))}]" for line, numbers in found.items())
        )
    return folder, configs


def _tell_plans(configs: list[Any]) -> None:
    """Print what each job would take; jobs that take the same are told once."""
    from lingact.plan import make_plan, tell

    told: list[Any] = []
    for config in configs:
        plan = make_plan(config)
        if plan not in told:
            tell(config)
        told.append(plan)


def _not_startable(composed: DictConfig, config: Section) -> list[str]:
    """The problem with a job of several processes where a launcher starts it.

    Lightning starts them by repeating the command, which is not ours in a launcher's worker; and only Slurm tells its tasks apart.
    """
    key, asked = ("trainer.devices", config.trainer) if isinstance(config, TrainConfig) else ("devices", config)
    assert isinstance(asked, TrainerConfig | Processes)
    launcher, processes = composed.hydra.launcher, asked.devices * asked.nodes
    name = str(launcher._target_).rpartition(".")[2]
    tasks = launcher.tasks_per_node * launcher.nodes if name == "SlurmLauncher" else 1
    if name == "BasicLauncher" or processes == tasks:
        return []
    advice = f"hydra/launcher=slurm with hydra.launcher.tasks_per_node={asked.devices} hydra.launcher.nodes={asked.nodes}"
    return [f"{key}: a job needs {processes} processes and this launcher starts {tasks}; leave hydra/launcher out, or use {advice}"]


def _job_folder(composed: DictConfig, folder: Path, number: int) -> Path:
    with read_write(composed.hydra), open_dict(composed.hydra):
        composed.hydra.job.num = composed.hydra.job.id = number
    HydraConfig.instance().set_config(composed)
    return folder / str(composed.hydra.sweep.subdir)


# --- going on with a run -------------------------------------------------------------------------------------------------------------------------


def _saved(folder: Path) -> dict[str, Any] | None:
    path = folder / "config.yaml"
    if not path.is_file():
        return None
    try:
        saved = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        saved = None
    if not isinstance(saved, dict):
        raise UserError(f"'{path}' cannot be read: it is cut off or of something else; put it back, or start a new run in another folder")
    return saved


def _other_run(folder: Path, config: Section, key: str) -> list[str]:
    """The problem with a folder that holds a run with another configuration."""
    saved = _saved(folder)
    different = [] if saved is None else _contradictions(saved, config)
    return [f"{key}: '{folder}' holds a run with another configuration ({'; '.join(different)}); name another folder"] if different else []


def _resume(job: str, folder: Path, overrides: list[str]) -> None:
    """Go on in a run folder with its own configuration.

    Raises:
        UserError: it is not one, or the overrides contradict it.
    """
    saved = _saved(folder)
    if saved is None:
        raise UserError(f"resume: '{folder}' is not a run folder: it has no config.yaml; name a folder that {job}.py made")
    made_by = read_manifest(folder)["job"] if (folder / "manifest.json").is_file() else job
    if made_by != job:
        raise UserError(f"resume: '{folder}' was made by {made_by}.py; write python {made_by}.py resume={folder}")
    # Not among what was saved: it says how to begin, and nothing of the run.
    plan = _compose_what_composes(job, overrides)[0].get("plan", "check")
    try:
        config: Any = validate(SCHEMAS[job], saved | {"plan": plan})
    except UserError as error:
        raise UserError(
            "\n".join(f"resume: '{folder / 'config.yaml'}' does not fit this version: {line}" for line in str(error).splitlines())
        ) from None
    if overrides:
        problems, config = _goes_on(job, saved, overrides)
        if problems or config is None:
            raise UserError("\n".join([*problems, f"resume goes on with the configuration of '{folder}'; leave these out, or start a new run"]))
    if config.plan == "only":
        _tell_plans([config])
    else:
        _work(job, config, folder)


def _goes_on(job: str, saved: dict[str, Any], overrides: list[str]) -> tuple[list[str], Section | None]:
    """What the overrides would change in a saved configuration that must not, and how it goes on where nothing is wrong with them."""
    composed, refused = _compose_what_composes(job, overrides)
    if refused:
        return list(refused.values()), None
    parsed, _ = _parse(overrides)
    of_hydra = [f"{override.input_line}: does not go with resume" for override in parsed if override.key_or_group.startswith("hydra")]
    untouched = _compose(job, [])
    changed = OmegaConf.create(saved)
    for override in parsed:
        key = override.package or override.key_or_group.replace("/", ".")
        # The keys of an experiment lie in other sections: those that it changes.
        sections = [key] if OmegaConf.select(composed, key) is not None else [name for name in saved if composed.get(name) != untouched.get(name)]
        for section in sections:
            OmegaConf.update(changed, section, OmegaConf.select(composed, section), merge=False)
    try:
        here = judge(SCHEMAS[job], changed)
    except UserError as error:
        return [*of_hydra, *str(error).splitlines()], None
    return [*of_hydra, *_contradictions(saved, here)], here


def _contradictions(saved: dict[str, Any], here: Section) -> list[str]:
    """Where two configurations cannot be of one run: in anything but the processes that share it."""
    there, now = ({key: value for key, value in part.items() if key not in Processes.model_fields} for part in (saved, here.model_dump(mode="json")))
    return differences(there, now)


# --- running -------------------------------------------------------------------------------------------------------------------------------------


def task(composed: DictConfig) -> float | UserError | None:
    """What Hydra runs for each job.

    Returns:
        What sweepers optimise; or a UserError, since raising it would make Hydra talk and drop the rest of a sweep's bookkeeping.
    """
    adopt_slurm()  # submitit may have been asked for several tasks of each job
    start = HydraConfig.get()
    job, folder = str(start.job.config_name), Path(start.runtime.output_dir)
    sweep_folder = Path(start.sweep.dir) if start.mode == RunMode.MULTIRUN else None
    if not first_process():
        with _silence():
            return _work(job, _read(job, composed, sweep_folder), folder)
    untouched = not any(folder.iterdir())
    try:
        return _work(job, _read(job, composed, sweep_folder), folder)
    except UserError as error:
        if untouched and not isinstance(error, _NoSpaceError) and {path.name for path in folder.iterdir()} <= _START_FILES:
            shutil.rmtree(folder)
        return error


def _work(job: str, config: Section, folder: Path) -> float | None:
    """Run the workflow in its folder; a complete run is left alone."""
    if (folder / "manifest.json").is_file() and read_manifest(folder)["status"] == "complete":
        print(f"'{folder}' is complete; nothing to do.")
        return json.loads((folder / "summary.json").read_text(encoding="utf-8")).get("objective")
    try:
        with _sigterm_interrupts(), _told_to_children(folder):
            return _run_workflow(job, config, folder)
    except KeyboardInterrupt:
        print(f"\nInterrupted. To go on: python {job}.py resume={folder}", file=sys.stderr)
        raise


class _NoSpaceError(UserError):
    """The disk is full; the run folder is kept, since the run can go on in it."""


def _run_workflow(job: str, config: Any, folder: Path) -> float | None:
    if first_process():
        from lingact.plan import begin  # as late as the workflow: it takes numpy along

        begin(config)
    workflow = importlib.import_module(_WORKFLOWS[job])
    from safetensors import SafetensorError

    try:
        return workflow.run(config, folder)
    except (OSError, RuntimeError, SafetensorError, MemoryError) as error:
        if out_of_memory(error):
            smaller = "trainer.micro_batch" if job == "train" else "tasks.batch_size"
            raise UserError(
                f"out of memory: {_first_line(error)}. Give less at a time ({'batch_tokens' if job != 'eval' else smaller}"
                f"{f', {smaller}' if job == 'train' else ''}) in a new run, or use a larger device or a smaller model.dtype"
            ) from error
        problem = full_disk(error)
        if problem is None:
            raise
        if not (folder / "config.yaml").is_file():
            raise UserError(f"{problem}; free some space and give the same command again") from error
        raise _NoSpaceError(f"{problem}; what was saved before is whole. Free some space, then: python {job}.py resume={folder}") from error


@contextlib.contextmanager
def _told_to_children(folder: Path) -> Iterator[None]:
    """Tell processes that Lightning starts for this run where it lies; and forget what Lightning set for them, or the next run would start none."""
    names = (_RUN_FOLDER, "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    before = {name: os.environ[name] for name in names if name in os.environ}
    os.environ[_RUN_FOLDER] = str(folder.absolute())
    try:
        yield
    finally:
        for name in names:
            os.environ.pop(name, None)
        os.environ.update(before)


@contextlib.contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """Let a polite kill (schedulers, timeout) end a run like Ctrl-C, so that its status is written."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
