"""From a command to a run.

Hydra makes the run folder before our code runs, and ends with exit code 1 on a mistake. So every job is composed and checked here first, and only
then does Hydra start. After a user's mistake, one message lists all problems and the exit code is 2. A bug in lingact gives a traceback and exit code
1.
"""

import contextlib
import errno
import os
import signal
import string
import sys
import threading
import unicodedata
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from lingact import __version__
from lingact.cli.checks import check_jobs, read_config
from lingact.cli.command import leave
from lingact.cli.compose import compose, composing, first_line, groups_below, multirun_of, names_folder, options_of, quoted, try_compose
from lingact.cli.options import own_options, package_options
from lingact.cli.resume import resume
from lingact.cli.run import adopt_environment, print_plans, run_or_skip, silenced, task
from lingact.cli.run_folders import sweep_folder_problem
from lingact.cli.sae_folders import with_sae_folders
from lingact.errors import UserError
from lingact.files.folders import claim, folder_lock, make_folders, remove_empty
from lingact.report.sweep import write_tables
from lingact.runtime.compat.hydra import composer
from lingact.runtime.environment import RUN_FOLDER, first_process
from lingact.runtime.program import INSTALLED, SCRIPT, command, program, started_as
from lingact.runtime.sweep_records import records

_UNPRINTABLE = ("Cc", "Cs", "Zl", "Zp")
"""Unicode's categories of control characters, surrogates (bytes that are not UTF-8), line and paragraph separators."""
_OTHER_OF_HYDRA = ("config_path", "config_name", "experimental_rerun", "package")
"""Flags of Hydra that are not supported."""


# --- how a job is started ------------------------------------------------------------------------------------------------------------------------


def launch(job: str, conf_dir: Path) -> None:
    """Everything that a script such as train.py does: run the job given by the command line, and exit."""
    leave(main(job, conf_dir, sys.argv[1:]))


def main(job: str, conf_dir: Path, argv: list[str]) -> int:
    """`python train.py ...` and the like. Returns the exit code. Exceptions other than a user's mistakes pass through.

    Args:
        job: train, analyze or eval.
        conf_dir: the options next to the script.
        argv: the arguments.
    """
    with started_as(SCRIPT):
        return _answer(job, conf_dir, None, argv)


def installed_main(job: str, argv: list[str]) -> int:
    """`lingact train ...` and the like: as `main`, but options in ./conf, if there are any, take precedence over those of the package."""
    with started_as(INSTALLED):
        return _answer(job, package_options(), Path("conf"), argv)


def run_job(job: str, overrides: Sequence[str], config_dir: Path | str | None = None) -> Path:
    """Run a job from Python, as the command line does.

    Args:
        job: train, analyze or eval.
        overrides: as on the command line, such as `["lang=ml", "trainer.steps=50"]`.
        config_dir: a folder of options that take precedence over those of the package; None: ./conf, if it exists.

    Returns:
        The run folder; of a multirun (`hydra.mode=MULTIRUN`) the sweep folder.

    Raises:
        UserError: the message has a line for each problem.
        KeyboardInterrupt: the run was interrupted; everything saved is kept.
    """
    given = list(overrides)
    with started_as(INSTALLED, ["lingact", job, *given]), _long_names_refused():
        _refuse_unprintable(given)
        adopt_environment()
        with composing(job, package_options(), own_options(config_dir, Path("conf"))):
            folder = _run(job, given, multirun=False)
    if folder is None:
        raise UserError("plan: true prints the plan and makes no run; leave it out to run the job")
    return folder


# --- a command -----------------------------------------------------------------------------------------------------------------------------------


def _answer(job: str, conf_dir: Path, beside: Path | None, argv: list[str]) -> int:
    """Run a command line and print its problems. Returns the exit code.

    Args:
        beside: folder of the user's options without `--config-dir`; None: there is none.
    """
    parser = _parser(job)
    arguments = parser.parse_intermixed_args(argv)  # flags may stand between overrides
    shown = arguments.help or arguments.hydra_help or arguments.cfg or arguments.info or arguments.shell_completion
    if shown and hasattr(signal, "SIGPIPE") and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `--help | head` ends quietly
    first = True
    try:
        with _long_names_refused():
            _refuse_unprintable(arguments.overrides)
            if not shown:
                adopt_environment()
            first = first_process()
            if unused := [name for name in _OTHER_OF_HYDRA if getattr(arguments, name)]:
                raise UserError(f"--{unused[0].replace('_', '-')} is not supported; put your options into a folder and write --config-dir FOLDER")
            own = own_options(arguments.config_dir, beside)
            with composing(job, conf_dir, own):
                if shown:
                    _show(job, parser, arguments, [folder for folder in (own, conf_dir) if folder is not None])
                elif arguments.list_saes:
                    from lingact.cli.sae_list import list_saes

                    list_saes(job, with_sae_folders(job, arguments.overrides))
                else:
                    _run(job, arguments.overrides, arguments.multirun)
    except UserError as error:
        where = program(job) if first else f"{program(job)}, rank > 0"
        print(f"{where}:", *map(_printable, str(error).split("\n")), sep="\n  ", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def _parser(job: str) -> ArgumentParser:
    """A parser for Hydra's flags and lingact's."""
    parser = ArgumentParser(prog=program(job), add_help=False, allow_abbrev=True)
    parser.add_argument("overrides", nargs="*", help="key=value, or group=option")
    parser.add_argument("--help", "-h", action="store_true", help="show examples, options and values")
    parser.add_argument("--hydra-help", action="store_true", help="show Hydra's flags and groups")
    parser.add_argument("--version", action="version", version=f"lingact {__version__}", help="show the version")
    parser.add_argument("--cfg", "-c", choices=["job", "hydra", "all"], help="show the configuration without running")
    parser.add_argument("--resolve", action="store_true", help="with --cfg or --help: resolve ${...}")
    parser.add_argument("--run", "-r", action="store_true", help="run one job")
    parser.add_argument("--multirun", "-m", action="store_true", help="run one job for each combination of values")
    parser.add_argument("--shell-completion", "-sc", action="store_true", help="with install=SHELL, uninstall=SHELL or query=SHELL")
    parser.add_argument("--config-dir", "-cd", metavar="FOLDER", type=Path, help="a folder of your own options, which take precedence")
    parser.add_argument(
        "--info",
        "-i",
        nargs="?",
        const="all",
        choices=["all", "config", "defaults", "defaults-tree", "plugins", "searchpath"],
        help="show how Hydra composes the configuration",
    )
    parser.add_argument("--list-saes", action="store_true", help="show the SAEs that sae-lens has for a model")
    for flag in (("--config-path", "-cp"), ("--config-name", "-cn"), ("--experimental-rerun",), ("--package", "-p")):
        parser.add_argument(*flag, help="not supported")
    return parser


def _show(job: str, parser: ArgumentParser, arguments: Namespace, folders: Sequence[Path]) -> None:
    """Print the output of a flag, instead of running.

    Args:
        folders: the folders of options, in order of precedence.

    Raises:
        UserError: an override does not compose, or does not resolve.
    """
    overrides, hydra = arguments.overrides, composer()
    if arguments.shell_completion:
        _complete(job, overrides)
        return
    if arguments.hydra_help:
        hydra.hydra_help(config_name=None, args_parser=parser, args=Namespace(overrides=[]))
        return
    overrides = with_sae_folders(job, overrides)
    composed, refused = try_compose(job, overrides)
    if refused:
        raise UserError("\n".join(refused.values()))
    try:
        if arguments.help:
            print(_help(job, composed, resolve=arguments.resolve))
            print(f"Options are read from {', then '.join(map(str, folders))}")
        elif arguments.cfg:
            hydra.show_cfg(config_name=job, overrides=overrides, cfg_type=arguments.cfg, package=None, resolve=arguments.resolve)
        else:
            hydra.show_info(arguments.info, config_name=job, overrides=overrides)
    except OmegaConfBaseException as error:
        raise UserError(f"the configuration does not resolve: {first_line(error)}") from None


def _help(job: str, composed: DictConfig, *, resolve: bool) -> str:
    """The template in the configuration (`hydra.help`), filled in as by Hydra, which would copy its list of options for each group."""
    HydraConfig.instance().set_config(composed)
    template = string.Template(composed.hydra.help.template.replace(SCRIPT.format(job=job), command(job)))
    values = composed.copy()
    with open_dict(values):
        del values["hydra"]
    groups = "".join(f"{group}: {', '.join(options_of(group))}\n" for group in groups_below())
    return template.safe_substitute(APP_CONFIG_GROUPS=groups, CONFIG=OmegaConf.to_yaml(values, resolve=resolve)).rstrip()


def _complete(job: str, overrides: list[str]) -> None:
    """Print a shell's script for the completion of overrides, or the completion itself.

    Raises:
        UserError: no shell is named, or an unknown one.
    """
    if not any(text.startswith(("install=", "uninstall=", "query=")) for text in overrides):
        raise UserError("--shell-completion: needs install=SHELL, uninstall=SHELL or query=SHELL; shells: bash, fish, zsh")
    if command(job) != SCRIPT.format(job=job):
        raise UserError(f"--shell-completion: works with the scripts of a checkout, such as {job}.py; use it there")
    try:
        composer().shell_completion(config_name=job, overrides=overrides)
    except ValueError as error:
        raise UserError(f"--shell-completion: {first_line(error)}; shells: bash, fish, zsh") from None


@contextlib.contextmanager
def _long_names_refused() -> Iterator[None]:
    """Turn the error for a name that is too long into a user's mistake.

    Raises:
        UserError: the message gives the name.
    """
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        raise UserError(f"'{error.filename}': the name is too long for a file or folder; use a shorter one") from None


def _printable(text: str) -> str:
    """The text with escapes in place of characters that would break a line or the terminal, since messages quote files."""
    return "".join(repr(character)[1:-1] if unicodedata.category(character) in _UNPRINTABLE else character for character in text)


def _refuse_unprintable(overrides: Sequence[str]) -> None:
    """Refuse arguments that would break a message, a manifest or the terminal. No key needs a line break.

    Raises:
        UserError: the message gives the arguments, escaped.
    """
    odd = [text for text in overrides if any(unicodedata.category(character) in _UNPRINTABLE for character in text)]
    if odd:
        why = "contains a line break, another control character or bytes that are not UTF-8; leave them out, and rename files with such names"
        raise UserError("\n".join(f"{text!r}: {why}" for text in odd))


# --- running -------------------------------------------------------------------------------------------------------------------------------------


def _run(job: str, given: list[str], multirun: bool) -> Path | None:
    """Check and run.

    Args:
        given: overrides, and `resume=FOLDER`.
        multirun: whether `--multirun` was given.

    Returns:
        The run folder, or the sweep folder; None if there was nothing to run, or this is not the first process of the run.

    Raises:
        UserError: the message has a line for each problem.
    """
    resumed = [text.removeprefix("resume=") for text in given if text.startswith("resume=")]
    overrides = with_sae_folders(job, [text for text in given if not text.startswith("resume=")])
    asked, swept = multirun_of(job, overrides)
    multirun = multirun or asked
    if multirun and "RANK" in os.environ:
        key = "trainer.devices" if job == "train" else "devices"
        raise UserError(f"torchrun and srun start every process with the whole sweep; start one job at a time, or let {key} start the processes")
    if not first_process():
        _join_run(job, overrides, resumed)
        return None
    if resumed:
        if multirun or len(resumed) > 1:
            raise UserError("resume continues one run: give it once, without --multirun")
        return resume(job, Path(resumed[0].strip("'\"")), overrides)

    folder, configs = check_jobs(job, [*swept, *overrides] if multirun else overrides, multirun)
    if any(config.plan == "only" for config in configs):
        print_plans(configs)
        return None
    # Use the folder that was checked, even if the clock has moved on, unless another process has made a folder of that name meanwhile.
    folder, made = (folder, make_folders(folder)) if names_folder(overrides, multirun) else claim(folder)
    return _sweep(job, folder, overrides) if multirun else _single(job, folder, made, overrides)


def _single(job: str, folder: Path, made: list[Path], overrides: list[str]) -> Path:
    """Run one job in its folder.

    Args:
        made: the folders that were made for it, which are removed if the job is refused.
    """
    returned = composer().run(config_name=job, task_function=task, overrides=[*overrides, f"hydra.run.dir={quoted(folder)}"]).return_value
    if isinstance(returned, UserError):
        remove_empty(made)
        raise returned
    return folder


def _sweep(job: str, folder: Path, overrides: list[str]) -> Path:
    """Run the jobs of a multirun, and write their tables even if one fails.

    Raises:
        UserError: the folder belongs to something else, or jobs were refused.
    """
    with folder_lock(folder):
        if problem := sweep_folder_problem(job, folder):
            raise UserError(problem)
        try:
            composer().multirun(
                config_name=job, task_function=task, overrides=[*overrides, f"hydra.sweep.dir={quoted(folder)}", "hydra.mode=MULTIRUN"]
            )
        finally:
            write_tables(folder)
    problems = [f"job {record['job']}: {line}" for record in records(folder) if record["problem"] for line in record["problem"].split("\n")]
    if problems:
        raise UserError("\n".join(problems))
    return folder


def _join_run(job: str, overrides: list[str], resumed: list[str]) -> None:
    """Take part in a run on rank > 0, silently. The first process checks, makes the folder, writes and prints.

    Lightning starts such a process during the run of the first one, with the same command. The command does not say, for instance, which job of a
    sweep this is, so the environment names the run folder. torchrun and srun start all processes at once; then the command names the folder.
    """
    folder = os.environ.get(RUN_FOLDER) or (resumed[0].strip("'\"") if resumed else None)
    with silenced():
        if folder is not None:
            resume(job, Path(folder), [])
            return
        # The first process may already be writing into the folder.
        where, configs = check_jobs(job, overrides, multirun=False, look_into_folder=False)
        if all(config.plan != "only" for config in configs):  # the first process prints plans
            run_or_skip(job, read_config(job, compose(job, overrides), None), where)
