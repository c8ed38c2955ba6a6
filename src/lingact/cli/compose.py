"""Compose a job's configuration with Hydra, and explain the overrides that do not compose.

Options are read from one folder of lingact's, and before it from a folder of the user's, if there is one.
"""

import copy
import itertools
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import yaml
from hydra import initialize_config_dir
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.hydra_config import HydraConfig
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lingact.catalogue.languages import nearest
from lingact.errors import UserError
from lingact.files.earlier import removed, renamed
from lingact.runtime.compat.hydra import composer
from lingact.runtime.program import program, requirement

_FIXED = ("hydra.callbacks", "hydra/callbacks", "hydra/hydra_logging", "hydra.hydra_logging")
"""Hydra's keys that the entries in conf/shared.yaml depend on."""
_DOES_NOT_COMPOSE = (HydraException, OmegaConfBaseException, yaml.YAMLError)


# --- folders of options --------------------------------------------------------------------------------------------------------------------------


class _OwnOptions(SearchPathPlugin):
    """Puts the user's folder of options before lingact's."""

    folder: ClassVar[Path | None] = None

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Called by Hydra."""
        if self.folder is not None:
            search_path.prepend("user", f"file://{self.folder}", anchor="main")


@contextmanager
def composing(job: str, conf_dir: Path, own: Path | None = None) -> Iterator[None]:
    """While open, `compose` works, from the options in these folders.

    Args:
        job: the name that Hydra is to give the job.
        conf_dir: lingact's options, with the files of all jobs.
        own: the user's options, which are found first; None: there are none.
    """
    before, _OwnOptions.folder = _OwnOptions.folder, own and own.absolute()
    Plugins.instance().register(_OwnOptions)
    shown = HydraConfig.instance().cfg
    try:
        with initialize_config_dir(str(conf_dir.absolute()), job_name=job, version_base="1.3"):
            yield
    finally:
        _OwnOptions.folder = before
        HydraConfig.instance().cfg = shown


# --- composing -----------------------------------------------------------------------------------------------------------------------------------


def folder_key(multirun: bool) -> str:
    """The key that names the folder of a run, or of a sweep."""
    return "hydra.sweep.dir" if multirun else "hydra.run.dir"


def names_folder(overrides: list[str], multirun: bool) -> bool:
    """Whether the command names its folder. Otherwise a new one is made each time."""
    return any(override.key_or_group == folder_key(multirun) for override in parse_overrides(overrides)[0])


def names_fixed_folder(overrides: list[str]) -> bool:
    """Whether every process that is started with this command finds the same folder: one that is named, and not by the clock."""
    named = [override.input_line or "" for override in parse_overrides(overrides)[0] if override.key_or_group == folder_key(multirun=False)]
    return bool(named) and "${now:" not in named[-1]


def compose(job: str, overrides: list[str]) -> DictConfig:
    """The configuration of one job, with Hydra's own section.

    Raises:
        HydraException: the overrides do not compose.
        OmegaConfBaseException: likewise.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # Hydra warns of a folder of options that is missing
            return composer().compose_config(config_name=job, overrides=overrides, run_mode=RunMode.RUN, from_shell=False)
    except AttributeError as error:  # OmegaConf looked for a key in a value that is not a section
        raise HydraException("the value has the wrong type") from error
    except KeyError as error:  # hydra.job.env_copy names an environment variable
        raise HydraException(f"{error} is not set") from error
    except (ValueError, UserWarning) as error:  # the option of a group is not a text, as in model=null
        raise HydraException(str(error)) from error


def multirun_of(job: str, overrides: list[str]) -> tuple[bool, list[str]]:
    """Whether files or overrides ask for a multirun (`hydra.mode`), and the overrides in which its jobs differ (`hydra.sweeper.params`).

    Hydra's sweeper puts these before the overrides of the command line, which therefore win.

    Raises:
        UserError: there is no launcher or no sweeper.
    """
    parsed, _ = parse_overrides(overrides)
    composed, _ = try_compose(job, [override.input_line or "" for override in parsed if not override.is_sweep_override()])
    if gone := [name for name in ("launcher", "sweeper") if composed.hydra[name] is None]:
        raise UserError(f"hydra.{gone[0]}: cannot be null; leave it out")
    params = composed.hydra.sweeper.get("params") or {}
    return composed.hydra.mode == RunMode.MULTIRUN, [f"{key}={value}" for key, value in params.items()]


def first_line(error: Exception) -> str:
    """The first line of an error's text that is not blank, or the error's type."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def parse_overrides(overrides: list[str]) -> tuple[list[Override], dict[str, str]]:
    """The overrides that Hydra's grammar can read, and the problems with the others by their keys."""
    parser = OverridesParser.create()
    parsed, problems = [], {}
    for text in overrides:
        try:
            override = parser.parse_override(text)
            override.config_loader = composer().config_loader  # to expand glob(...)
            if not override.key_or_group:
                problems[text] = f"'{text}': has no key; write key=value"
            elif override.key_or_group.startswith(_FIXED) or re.fullmatch(r"hydra\..*\._target_", override.key_or_group):
                problems[override.key_or_group] = (
                    f"{text}: Hydra's classes, callbacks and messages cannot be changed; to choose a launcher write hydra/launcher=OPTION"
                )
            else:
                parsed.append(override)
        except ValueError:  # Python refuses integers of more than 4300 digits
            key, _, value = text.partition("=")
            problems[key] = f"{key}: a number of {len(value)} characters cannot be read; give a smaller one, or quote a text: \"{key}='...'\""
        except HydraException as error:
            problems[text.partition("=")[0]] = (
                f"{text or repr(text)}: cannot be read ({first_line(error)}); write key=value, and quote a value with special characters: "
                "\"key='a=b'\""
            )
    return parsed, problems


def expand_sweep(parsed: list[Override]) -> list[list[str]]:
    """The overrides of each job of a multirun, in Hydra's order. A continuous range, which needs another sweeper, is replaced by its start.

    Raises:
        UserError: there is no job, because one override has no values.
    """
    choices: dict[str, list[str]] = {}
    for override in parsed:
        key = override.get_key_element()
        if not override.is_sweep_override():
            choices[key] = [override.input_line or ""]
        elif override.is_discrete_sweep():
            choices[key] = [f"{key}={value}" for value in override.sweep_string_iterator()]
            if not choices[key]:
                raise UserError(f"{override.input_line}: has no values, so there is no job; name values, as in {key}=1,2")
        else:
            interval = override.value()
            assert isinstance(interval, IntervalSweep)
            choices[key] = [f"{key}={interval.start}"]
    return [list(job) for job in itertools.product(*choices.values())]


def quoted(path: Path) -> str:
    """The path as a value in Hydra's grammar."""
    escaped = str(path).replace("'", "\\'")
    return f"'{escaped}'"


def _key(override: Override) -> str:
    """`corpus`, or where an option goes into another section `corpus@train_corpus`."""
    return f"{override.key_or_group}@{override.package}" if override.package else override.key_or_group


def options_of(group: str) -> list[str]:
    """The options of a group, in all folders. Hydra's own function copies all it knows each time, which takes 10 ms."""
    return sorted(
        {name for source in composer().config_loader.get_sources() if source.is_group(group) for name in source.list(group, ObjectType.CONFIG)}
    )


def groups_below(folder: str = "") -> list[str]:
    """The groups in a folder of options and below it, without Hydra's own."""
    sources = composer().config_loader.get_sources()
    names = sorted({name for source in sources if source.is_group(folder) for name in source.list(folder, ObjectType.GROUP)} - {"hydra"})
    below = [f"{folder}/{name}" if folder else name for name in names]
    return [group for name in below for group in ([name] if options_of(name) else []) + groups_below(name)]


def _leaves(node: Any, prefix: str = "") -> Iterator[str]:
    for key, value in node.items() if isinstance(node, dict) else ():
        yield prefix + str(key)
        yield from _leaves(value, f"{prefix}{key}.")


def _explain(job: str, override: Override, error: Exception, base: DictConfig) -> str:
    """Why an override does not compose, and what to write instead. Hydra's own messages suggest no similar names."""
    key, text = _key(override), override.input_line or ""
    groups = sorted(group for group in base.hydra.runtime.choices if not group.startswith("hydra/"))
    value = text.partition("=")[2]  # empty for a removal
    if override.is_sweep_override():
        return f"{text}: several values; write {key}=[{value}] for one job with all of them if {key} takes a list, or add --multirun for one job each"
    group = override.key_or_group
    options = options_of(group)
    if group == "hydra/launcher":
        if value not in options:
            return f"{key}: no option '{value}'{nearest(value, options)} (options: {', '.join(options)})"
        return f"{text}: the launcher is not installed; run pip install {requirement('ray' if value.startswith('ray') else 'launchers')}"
    if key in groups and value not in options:
        return f"{key}: no option '{value}'{nearest(value, options)} (options in conf/{group}/: {', '.join(options)})"
    if options and key not in groups:
        return f"{key}: not a group of {program(job)}, which has {', '.join(groups)}"
    plain = OmegaConf.to_container(base, resolve=False)
    assert isinstance(plain, dict)
    known = [*_leaves({name: node for name, node in plain.items() if name != "hydra" or key.startswith("hydra")}), *groups, "resume"]
    if key in known and override.is_delete():
        return f"{text}: cannot be removed; give it another value, or leave it as it is"
    if key in known:
        return f"{text}: {first_line(error)}"
    section = key.partition(".")[0]
    if f"corpus@{section}" in groups and plain[section] is None:
        return f"{key}: there is no {section} yet; choose one with it, for instance corpus@{section}=files (options: conf/corpus/)"
    folder = key.partition(".")[0]
    if new := renamed(key):
        return f"{key}: this key is called {new} now; write {new}=..."
    if advice := removed(key):
        return f"{key}: {advice}"
    return f"{key}: unknown key{nearest(key, known)}{f' (options: conf/{folder}/)' if folder in groups else ''}"


def try_compose(job: str, overrides: list[str]) -> tuple[DictConfig, dict[str, str]]:
    """The configuration without the overrides that do not compose, and the problems with these by their keys.

    Raises:
        UserError: the files do not compose.
    """
    composed, problems = _try_compose(composer(), job, tuple(overrides))
    return copy.deepcopy(composed), dict(problems)


@lru_cache(maxsize=1)
def _try_compose(_composer: object, job: str, overrides: tuple[str, ...]) -> tuple[DictConfig, dict[str, str]]:
    """As `try_compose`. The last result is cached, since a command composes twice: to learn whether it is a sweep, and to check it.

    Args:
        _composer: Hydra's current composer. It tells the results of different commands in one process apart.
    """
    parsed, problems = parse_overrides(list(overrides))
    failed: Exception | None = None
    try:
        return compose(job, [override.input_line or "" for override in parsed]), problems
    except _DOES_NOT_COMPOSE as error:
        failed = error
    accepted: list[str] = []
    try:
        composed = compose(job, accepted)
    except _DOES_NOT_COMPOSE as error:
        folders = "conf/" if _OwnOptions.folder is None else f"'{_OwnOptions.folder}', with lingact's options behind them,"
        raise UserError(f"the files in {folders} do not compose: {first_line(error)}") from None
    # Groups first: whether a key exists may depend on the option chosen.
    rest = sorted(parsed, key=lambda override: not options_of(override.key_or_group))
    if rest != parsed:
        failed = None
    while rest:
        # Bisect to the first one that does not compose: a composition takes a tenth of a second, and most overrides are right.
        good, bad = 0, len(rest) + (failed is None)
        while bad - good > 1:
            middle = bad - 1 if failed is None else (good + bad) // 2
            try:
                composed = compose(job, [*accepted, *(override.input_line or "" for override in rest[:middle])])
                good = middle
            except _DOES_NOT_COMPOSE as error:
                bad, failed = middle, error
        accepted += [override.input_line or "" for override in rest[:good]]
        if failed is not None:
            problems[_key(rest[good])] = _explain(job, rest[good], failed, composed)
        rest, failed = rest[good + 1 :], None
    return composed, problems
