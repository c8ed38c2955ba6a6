"""From the command line to a run.

Hydra makes the run folder before our code runs and ends with 1 on a mistake. So every job is composed and judged here first; only then does
Hydra start. A mistake of the user's ends in one message with all problems and exit code 2; a fault of ours in its traceback and exit code 1.
"""

import contextlib
import copy
import errno
import importlib
import itertools
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

from lingact.catalogue.languages import nearest
from lingact.cli import sweep
from lingact.config.base import Section
from lingact.config.data import FilesCorpus
from lingact.config.jobs import SCHEMAS, AnalyzeConfig, EvalConfig, Processes, TrackingConfig, TrainConfig, of_the_run
from lingact.config.tasks import OwnTask, TasksConfig
from lingact.config.training import TrainerConfig
from lingact.config.validation import judge, validate
from lingact.errors import UserError, out_of_memory
from lingact.files.atomic import full_disk
from lingact.files.earlier import removed, renamed
from lingact.files.folders import LOCK, TEMPORARY, TOKEN, claim, is_temporary, listed, make_folders, remove_empty, still_taken, taken
from lingact.files.records import is_there, read_json_object, read_run_config
from lingact.hub.wandb_limits import shortened
from lingact.models.sae_sources import sae_rows
from lingact.runtime.environment import RUN_FOLDER, STARTED_BY_US, adopted, check_environment, first_process, shape, started_outside
from lingact.runtime.interrupts import SIGNALS, interruptible
from lingact.runtime.terminal import note, show
from lingact.runtime.tracking import RUN_FILES, STATUSES, check_tracking, differences, read_manifest

_WORKFLOWS = {"train": "lingact.workflows.train", "analyze": "lingact.workflows.analyze", "eval": "lingact.workflows.evaluate"}
_START_FILES = {"config.yaml", "manifest.json", "wandb"}
_LIST_SAES = "--list-saes"
_UNPRINTABLE = ("Cc", "Cs", "Zl", "Zp")
"""Unicode's categories of control characters, surrogates (bytes that are no UTF-8), line and paragraph separators."""
_OF_HYDRA = ("hydra.callbacks", "hydra/callbacks", "hydra/hydra_logging", "hydra.hydra_logging")
"""What our own entries in conf/shared.yaml rest on."""
_DOES_NOT_COMPOSE = (HydraException, OmegaConfBaseException, yaml.YAMLError)


def launch(job: str, conf_dir: Path) -> None:
    """The whole of an entry script: run the job that the command line asks for, and exit."""
    code = main(job, conf_dir, sys.argv[1:])
    if code == 130:
        for number in SIGNALS:  # all is kept and said: a second Ctrl-C would only spoil the end
            signal.signal(number, signal.SIG_IGN)
    sys.exit(code)


def main(job: str, conf_dir: Path, argv: list[str]) -> int:
    """Run a job. Returns the exit code; a fault of ours passes through as its exception."""
    parser = get_args_parser()
    parser.add_argument(_LIST_SAES, action="store_true")
    arguments = parser.parse_intermixed_args(argv)  # flags may stand between overrides
    conf_dir = conf_dir.absolute()
    only_shown = arguments.help or arguments.hydra_help or arguments.cfg or arguments.info or arguments.shell_completion
    if only_shown and hasattr(signal, "SIGPIPE") and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `--help | head` ends quietly
    first = True
    try:
        _refuse_unprintable(arguments.overrides)
        if not only_shown:
            _adopt_environment()
        first = first_process()
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
        problems = str(error).split("\n")
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        problems = [f"'{error.filename}': no file and no folder can have so long a name; name another one"]
    except KeyboardInterrupt:
        return 130
    finally:
        HydraConfig.instance().cfg = None
    if problems:
        said = map(_printable, problems)
        print(f"{job}.py:" if first else f"{job}.py, beside the first process:", *said, sep="\n  ", file=sys.stderr)
    return 2 if problems else 0


def _adopt_environment() -> None:
    """Judge what a launcher says, and give it torchrun's names."""
    check_environment(os.environ)
    os.environ.update(adopted(os.environ))


def _printable(text: str) -> str:
    """The text with what would break a line or the terminal escaped: messages quote files."""
    return "".join(repr(character)[1:-1] if unicodedata.category(character) in _UNPRINTABLE else character for character in text)


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
    # What was judged is what is used, even if the clock has moved on; except that another process may have taken the name meanwhile.
    folder, made = (folder, make_folders(folder)) if _names_folder(overrides, multirun) else claim(folder)
    quoted = str(folder).replace("'", "\\'")
    start = GlobalHydra.instance().hydra
    assert start is not None
    if multirun:
        with taken(folder):
            if problem := _not_this_sweep(job, folder):
                return [problem]
            try:
                start.multirun(config_name=job, task_function=task, overrides=[*overrides, f"hydra.sweep.dir='{quoted}'", "hydra.mode=MULTIRUN"])
            finally:
                sweep.report(folder)
        return [f"job {record['job']}: {line}" for record in sweep.records(folder) if record["problem"] for line in record["problem"].split("\n")]
    returned = start.run(config_name=job, task_function=task, overrides=[*overrides, f"hydra.run.dir='{quoted}'"]).return_value
    if not isinstance(returned, UserError):
        return []
    remove_empty(made)
    return str(returned).split("\n")


def _folder_key(multirun: bool) -> str:
    return "hydra.sweep.dir" if multirun else "hydra.run.dir"


def _names_folder(overrides: list[str], multirun: bool) -> bool:
    """Whether the command names the folder that it is to use; others are made anew each time."""
    return any(override.key_or_group == _folder_key(multirun) for override in _parse(overrides)[0])


def _names_one_folder(overrides: list[str]) -> bool:
    """Whether the command names a folder that is the same for every process that is started with it: by name, and not by the clock."""
    named = [override.input_line or "" for override in _parse(overrides)[0] if override.key_or_group == _folder_key(multirun=False)]
    return bool(named) and "${now:" not in named[-1]


def _run_beside(job: str, overrides: list[str], resumed: list[str]) -> None:
    """Take part in a run beside its first process, in silence; that one judges, makes the folder, writes and talks.

    Lightning starts such a process from within the first one's run, with the first one's command: what belongs to the job of a sweep, say, is
    not told by that. The folder is, by the environment. torchrun and srun start all processes at once; there the command has to name the folder.
    """
    folder = os.environ.get(RUN_FOLDER) or (resumed[0].strip("'\"") if resumed else None)
    with _silence():
        if folder is not None:
            _resume(job, Path(folder), [])
            return
        # In the folder the first one may be writing by now.
        where, configs = _judge_all(job, overrides, multirun=False, look_into_folder=False)
        if all(config.plan != "only" for config in configs):  # which the first one prints
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
    if new := renamed(key):
        return f"{key}: this key is called {new} now; write {new}=..."
    if advice := removed(key):
        return f"{key}: {advice}"
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
        composed.tracking.group = shortened(sweep_folder.absolute().name)
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
                    yield from (f"tracking: {line}" for line in str(error).split("\n"))
            case FilesCorpus(path=path) if str(path) != "???" and not is_there(path):
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
        problems += [line for line in str(error).split("\n") if line.partition(":")[0] not in refused]
    problems += _missing_things(job, composed)
    problems += _side_effects(composed)
    if cache := getattr(config, "cache", None):
        problems += _cannot_be_made(cache, "cache")
    if isinstance(config, TrainConfig | AnalyzeConfig | EvalConfig) and not problems:
        from lingact.models.preflight import problems as before_loading

        launcher = str(composed.hydra.launcher._target_).rpartition(".")[2]
        problems += before_loading(config, here=launcher == "BasicLauncher")
    return _Judged(composed, None if problems else config, problems)


def _side_effects(composed: DictConfig) -> Iterator[str]:
    """What Hydra itself would write where the user may have files, or where a run does not look for them."""
    start = composed.hydra
    if start.output_subdir is not None:
        yield f"hydra.output_subdir: '{start.output_subdir}' is not supported, since the run folder has its own config.yaml; leave it null"
    if start.job.chdir:
        yield "hydra.job.chdir: true is not supported, since paths are taken from where the command is given; leave it out"
    if not re.fullmatch(r"[^\W_][\w.+-]*", str(start.job.name)):
        yield f"hydra.job.name: '{start.job.name}' is not supported, since folders are named after it; take letters, digits and . + - _"
    for name in ("job_logging", "hydra_logging"):
        handlers = (OmegaConf.to_container(start[name] or {}, resolve=False) or {}).get("handlers") or {}  # pyrefly: ignore[missing-attribute]
        files = [key for key, handler in handlers.items() if not str(handler.get("class", "")).endswith((".StreamHandler", ".NullHandler"))]
        if files:
            yield f"hydra.{name}.handlers.{files[0]}: only handlers that write to the terminal are supported; leave it out and redirect: > FILE 2>&1"


def _output_folder(composed: DictConfig, key: str) -> Path:
    """The folder that is to be made or used.

    Raises:
        UserError: it cannot be.
    """
    HydraConfig.instance().set_config(composed)
    try:
        folder = Path(str(OmegaConf.select(composed, key)))
    except OmegaConfBaseException as error:
        raise UserError(f"{key}: {_first_line(error)}") from None
    for problem in _cannot_be_made(folder, key):
        raise UserError(problem)
    return folder


def _cannot_be_made(folder: Path, key: str) -> Iterator[str]:
    """Why a folder can neither be made nor written to."""
    existing = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not existing.is_dir():
        yield f"{key}: '{folder}' cannot be made, because '{existing}' is not a folder; name another one"
    elif not os.access(existing, os.W_OK | os.X_OK):
        yield f"{key}: '{folder}' cannot be made, because '{existing}' is not writable; name another one"


def _judge_all(job: str, overrides: list[str], multirun: bool, *, look_into_folder: bool = True) -> tuple[Path, list[Any]]:
    """Judge every job. Returns the run folder, or the sweep's, and the configurations.

    Args:
        look_into_folder: refuse a folder that the command names and that holds anything but an earlier part of this run or sweep.

    Raises:
        UserError: with all problems of all jobs, each once.
    """
    parsed, unreadable = _parse(overrides)
    continuous = [override for override in parsed if multirun and override.is_sweep_override() and not override.is_discrete_sweep()]
    jobs = _expand(parsed) if multirun else [[override.input_line or "" for override in parsed]]
    key = _folder_key(multirun)
    looks = look_into_folder and _names_folder(overrides, multirun)
    found: dict[str, list[int]] = {problem: list(range(len(jobs))) for problem in unreadable.values()}
    if started_outside(os.environ) and not multirun and not _names_one_folder(overrides):
        why = "torchrun and srun start every process with the same command, and by the clock each would choose a folder of its own"
        found[f"{key}: {why}; name one for all, such as {key}=outputs/{job}/mine"] = list(range(len(jobs)))
    folder, configs, places = None, [], []
    for number, job_overrides in enumerate(jobs):
        judged = _judge_one(job, job_overrides, folder if multirun else None)
        problems = [line for line in judged.problems if line.partition(":")[0] not in unreadable]
        if continuous and str(judged.composed.hydra.sweeper._target_).endswith(".BasicSweeper"):
            problems += [
                f"{override.input_line}: an interval has no end of values; name some, as in {override.get_key_element()}=1,2"
                for override in continuous
            ]
        try:
            folder = folder or _output_folder(judged.composed, key)
            places.append(_job_folder(judged.composed, folder, number) if multirun else folder)
            config = _read(job, judged.composed, folder) if multirun and judged.config is not None else judged.config
            if judged.config is not None:
                problems += _not_startable(judged.composed, judged.config) if multirun else _misfits_launcher(judged.config)
                configs.append(judged.config)
            problems += _not_this_run(job, places[-1], config, key) if looks else []
        except UserError as error:
            problems.append(str(error))
        for problem in problems:
            found.setdefault(problem, []).append(number)
    everywhere = list(range(len(jobs)))
    if multirun and folder is not None:
        found |= dict.fromkeys(_mixed_up(folder, places), everywhere)
        if looks and (problem := _not_this_sweep(job, folder)):
            found[problem] = everywhere
    if found or folder is None:
        raise UserError(
            "\n".join(line if numbers == everywhere else f"{line} [job {', '.join(map(str, numbers))}]" for line, numbers in found.items())
        )
    return folder, configs


def _mixed_up(folder: Path, places: list[Path]) -> Iterator[str]:
    """The problem with jobs of a sweep that do not have a folder of their own each, below the sweep's."""
    names = [os.path.relpath(os.path.normpath(place), os.path.normpath(folder)) for place in places]
    if outside := [name for name in names if Path(name).parts[:1] in ((), ("..",), (".jobs",))]:
        yield f"hydra.sweep.subdir: '{outside[0]}' is no folder below the sweep's; leave it out, or name one that is"
    elif shared := [name for name in names if names.count(name) > 1]:
        yield f"hydra.sweep.subdir: {names.count(shared[0])} jobs would share '{shared[0]}'; leave it out, or put ${{hydra.job.num}} into it"


def _tell_plans(configs: list[Any]) -> None:
    """Print what each job would take; jobs that take the same are told once."""
    from lingact.planning.plan import make_plan
    from lingact.planning.report import print_plan

    told: list[Any] = []
    for config in configs:
        plan = make_plan(config)
        if plan not in told:
            print_plan(config)
        told.append(plan)


def _not_startable(composed: DictConfig, config: Section) -> list[str]:
    """The problem with a job of several processes where a launcher starts it.

    Lightning starts them by repeating the command, which is not ours in a launcher's worker; and only Slurm tells its tasks apart.
    """
    section, asked = _processes(config)
    key = f"{section}devices"
    launcher, processes = composed.hydra.launcher, asked.devices * asked.nodes
    name = str(launcher._target_).rpartition(".")[2]
    tasks = launcher.tasks_per_node * launcher.nodes if name == "SlurmLauncher" else 1
    if name == "BasicLauncher" or processes == tasks:
        return []
    advice = f"hydra/launcher=slurm with hydra.launcher.tasks_per_node={asked.devices} hydra.launcher.nodes={asked.nodes}"
    return [f"{key}: a job needs {processes} processes and this launcher starts {tasks}; leave hydra/launcher out, or use {advice}"]


def _processes(config: Section) -> tuple[str, TrainerConfig | Processes]:
    """Where a job says how many processes it has: the keys' prefix, and the section."""
    section, asked = ("trainer.", config.trainer) if isinstance(config, TrainConfig) else ("", config)
    assert isinstance(asked, TrainerConfig | Processes)
    return section, asked


def _misfits_launcher(config: Any) -> list[str]:
    """The problem with a job's number of processes where a launcher has started this one."""
    section, asked = _processes(config)
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
    with read_write(composed.hydra), open_dict(composed.hydra):
        composed.hydra.job.num = composed.hydra.job.id = number
    HydraConfig.instance().set_config(composed)
    return folder / str(composed.hydra.sweep.subdir)


# --- going on with a run -------------------------------------------------------------------------------------------------------------------------


def _saved(folder: Path) -> dict[str, Any] | None:
    path = folder / "config.yaml"
    if not path.is_file():
        return None
    return read_run_config(path, "put it back, or start a new run in another folder")


def _names(folder: Path) -> set[str]:
    """What lies in a folder, beside what a process leaves there that was killed before it had written anything."""
    return {path.name for path in folder.iterdir() if path.name != LOCK and not is_temporary(path.name)} if folder.is_dir() else set()


def _made_by(folder: Path) -> str | None:
    """The job whose run folder this is; None where it is none, or the manifest does not tell."""
    try:
        manifest = read_manifest(folder)
    except UserError:
        return None
    return str(manifest["job"]) if manifest["status"] in STATUSES else None


def _not_this_run(job: str, folder: Path, config: Section | None, key: str) -> list[str]:
    """The problem with a folder that holds anything but an earlier part of this very run. What else lies in that does no harm.

    Args:
        config: None: where the command has other problems, configurations are not compared.
    """
    names, made_by = _names(folder), _made_by(folder)
    advice = "name a folder that is not there, or is empty"
    if not names:
        return []
    # A configuration that was copied may lie beside a report of the user's: only who says that it is a run goes on without a manifest.
    ours = _only_ours(folder, names)
    if made_by is None and not (ours if key == "resume" else ours and names <= _START_FILES):
        what = "a sweep" if _job_of_sweep(folder) else f"other things ({listed(names)})"
        if ours:
            advice += f"; or go on with the run that they are of: python {job}.py resume={folder}"
        return [f"{key}: '{folder}' holds {what}, and a run needs a folder of its own; {advice}"]
    if made_by not in (None, job):
        return [f"{key}: '{folder}' holds a run of {made_by}.py; {advice}"]
    if made_by is None and "manifest.json" in names:
        read_manifest(folder)  # raises
    saved = _saved(folder)
    if saved is None:
        return [f"{key}: '{folder}' holds a run without its config.yaml; put it back, or {advice}"]
    different = [] if config is None else _contradictions(saved, config)
    return [f"{key}: '{folder}' holds a run with another configuration ({'; '.join(different)}); name another folder"] if different else []


def _only_ours(folder: Path, names: set[str]) -> bool:
    """Whether a folder without a manifest has a configuration of ours and beside it nothing that a run does not write."""
    try:
        saved = _saved(folder) or {}
    except UserError:
        return False
    return names <= RUN_FILES and saved.keys() >= {"seed", "model", "languages", "tracking"}


def _job_of_sweep(folder: Path) -> str | None:
    """The job whose sweep folder this is; None where it is none."""
    try:
        start = yaml.safe_load((folder / "multirun.yaml").read_text(encoding="utf-8"))["hydra"]
        return str(start["job"]["config_name"]) if "lingact.cli.sweep.JobRecords" in str(start["callbacks"]) else None
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError):
        return None


def _not_this_sweep(job: str, folder: Path) -> str | None:
    """The problem with a folder that holds anything but an earlier sweep of this job."""
    names, made_by = _names(folder), _job_of_sweep(folder)
    if not names or made_by == job:
        return None
    what = f"a sweep of {made_by}.py" if made_by else f"a run of {run}.py" if (run := _made_by(folder)) else f"other things ({listed(names)})"
    return f"hydra.sweep.dir: '{folder}' holds {what}, and a sweep needs a folder of its own; name a folder that is not there, or is empty"


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
            "\n".join(f"resume: '{folder / 'config.yaml'}' does not fit this version: {line}" for line in str(error).split("\n"))
        ) from None
    if overrides:
        problems, config = _goes_on(job, saved, overrides)
        if problems or config is None:
            raise UserError("\n".join([*problems, f"resume goes on with the configuration of '{folder}'; leave these out, or start a new run"]))
    if problems := _misfits_launcher(config):
        raise UserError("\n".join(problems))
    if config.plan == "only":
        _tell_plans([config])
    else:
        _work_alone(job, config, folder, "resume")


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
        return [*of_hydra, *str(error).split("\n")], None
    return [*of_hydra, *_contradictions(saved, here)], here


def _contradictions(saved: dict[str, Any], here: Section) -> list[str]:
    """Where two configurations cannot be of one run: in anything but what belongs to the machine. Keys that came later stand at their defaults."""
    with contextlib.suppress(UserError):  # of another version: compared as it is
        saved = validate(type(here), saved).model_dump(mode="json")
    return differences(of_the_run(saved), of_the_run(here.model_dump(mode="json")))


# --- running -------------------------------------------------------------------------------------------------------------------------------------


def task(composed: DictConfig) -> float | UserError | None:
    """What Hydra runs for each job.

    Returns:
        What sweepers optimise; or a UserError, since raising it would make Hydra talk and drop the rest of a sweep's bookkeeping.
    """
    start = HydraConfig.get()
    job, folder = str(start.job.config_name), Path(start.runtime.output_dir)
    sweep_folder = Path(start.sweep.dir) if start.mode == RunMode.MULTIRUN else None
    try:
        _adopt_environment()  # submitit may have been asked for several tasks of each job
    except UserError as error:
        return error
    if not first_process():
        with _silence():
            return _work(job, _read(job, composed, sweep_folder), folder)
    try:
        return _work_alone(job, _read(job, composed, sweep_folder), folder, _folder_key(sweep_folder is not None))
    except UserError as error:
        if sweep_folder is not None:
            remove_empty([folder])
        return error


def _work_alone(job: str, config: Section, folder: Path, key: str) -> float | None:
    """Run the workflow in its folder while no other process does. Nothing is left of a run that had only begun when the user had to be asked.

    Raises:
        UserError: another process works there, or the folder is of something else.
    """
    if not first_process():
        return _work(job, config, folder)
    with contextlib.nullcontext() if _complete(folder) else taken(folder):
        # Another process may have been faster since the command was judged.
        if problems := _not_this_run(job, folder, config, key):
            raise UserError("\n".join(problems))
        untouched = not _names(folder)
        try:
            return _work(job, config, folder)
        except UserError as error:
            if untouched and still_taken(folder) and not isinstance(error, _NoSpaceError) and _names(folder) <= _START_FILES:
                for name in _START_FILES - {"wandb"}:
                    (folder / name).unlink(missing_ok=True)
                shutil.rmtree(folder / "wandb", ignore_errors=True)
            raise


def _complete(folder: Path) -> bool:
    return (folder / "manifest.json").is_file() and read_manifest(folder)["status"] == "complete"


def _work(job: str, config: Section, folder: Path) -> float | None:
    """Run the workflow in its folder; a complete run is left alone."""
    if _complete(folder):
        print(f"'{folder}' is complete; nothing to do.")
        again = f"put it back, or delete manifest.json and write python {job}.py resume={folder}"
        return read_json_object(folder / "summary.json", again).get("objective")
    try:
        with interruptible(), _told_to_children(folder):
            return _run_workflow(job, config, folder)
    except KeyboardInterrupt as interrupt:
        said = "Interrupted before anything was kept; give the same command again."
        if (folder / "config.yaml").is_file():
            said = f"{_interrupted(job, config, folder, str(interrupt))} To go on: python {job}.py resume={folder}"
        with contextlib.suppress(OSError):  # of a terminal that is gone
            print(f"\n{said}", file=sys.stderr)
        raise


def _interrupted(job: str, config: Any, folder: Path, kept: str) -> str:
    """How far an interrupted run has come, and what of that is kept.

    Args:
        kept: what whoever was interrupted knows of that; empty: see what lies in the run folder.
    """
    from lingact.runtime import resumable_passes

    batches = resumable_passes.steps_kept(folder / "stats")
    measured = f"{batches} measured batches" if batches != 1 else "1 measured batch"
    if job == "train":
        from lingact.training.checkpoints import has_trained, steps_kept

        steps = steps_kept(folder)
        if has_trained(folder):
            return f"Interrupted after the training; kept: the adapter, {measured}."
        if steps:
            return f"Interrupted at step {steps} of {config.trainer.steps}; kept: {steps} step{'s' if steps > 1 else ''}."
        kept = f"only the cached base-model outputs ('{config.cache}')" if config.cache else "nothing (cache=null)"
        return f"Interrupted before the first step; kept: {kept}."
    if job == "analyze":
        return f"Interrupted; kept: {measured}."
    return f"Interrupted; kept: {kept or 'the answers to every finished task'}."


class _NoSpaceError(UserError):
    """The disk is full; the run folder is kept, since the run can go on in it."""


def _run_workflow(job: str, config: Any, folder: Path) -> float | None:
    if first_process():
        from lingact.models.devices import check_devices
        from lingact.planning.report import begin  # as late as the workflow: it imports the same libraries

        check_devices(config)
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
    before = {name: os.environ[name] for name in STARTED_BY_US if name in os.environ}
    os.environ |= {RUN_FOLDER: str(folder.absolute()), TEMPORARY: TOKEN}
    try:
        yield
    finally:
        for name in STARTED_BY_US:
            os.environ.pop(name, None)
        os.environ.update(before)
