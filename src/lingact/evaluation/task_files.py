"""Find tasks: lm-eval's task files, and the task files and data of the user."""

import functools
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from lingact.catalogue.benchmarks import Entry, Family, entry, family
from lingact.catalogue.languages import LANGUAGES, nearest
from lingact.config.base import asset
from lingact.config.tasks import OwnItems, OwnTask, TasksConfig
from lingact.errors import UserError
from lingact.files.folders import is_there
from lingact.files.records import read_json_rows
from lingact.runtime.compat.lm_eval import read_task_file

if TYPE_CHECKING:
    from datasets import Dataset

Document = dict[str, Any]
"""A row of a data set. Its columns differ from task to task."""
TaskDefinition = dict[str, Any]
"""A task file as lm-eval reads it."""
_TASK_LINE = re.compile(rb"^\"?task\"?:[ \t]*[\"']?([^\s\"'#]+)", re.MULTILINE)
_OURS = "lingact:"
NAMED_AT_MOST = 12
"""Most languages or items that a message lists."""


@dataclass(frozen=True)
class TaskSource:
    """Where one task comes from, and the columns that identify its items."""

    entry: Entry
    file: Path
    """The YAML file of lm-eval, or the user's JSONL file."""
    family: Family


def task_sources(name: str, config: TasksConfig, code: str, files: dict[Path, dict[str, Path]]) -> list[TaskSource]:
    """The tasks of a benchmark in a language; empty if it has none.

    Args:
        name: of the benchmark.
        code: of the language.
        files: what `_task_files` has found so far, by folder; it is extended.
    """
    benchmark = family(name) if name not in config.own else _own_family(name, config.own[name])
    row = entry(benchmark, code)
    match config.own.get(name):
        case OwnItems(path=path):
            file = Path(path.replace("{lang}", code))
            return [TaskSource(row, file, benchmark)] if is_there(file) and file.is_file() else []
        case OwnTask(folder=folder):
            found = _task_files(folder.absolute(), files)
        case _:
            found = _task_files(_folder(row.folder), files)
    return [TaskSource(replace(row, task=task), found[task], benchmark) for task in sorted(found) if fnmatchcase(task, row.task)]


def _own_family(name: str, own: OwnItems | OwnTask) -> Family:
    """The user's benchmark in the form of the table of benchmarks."""
    task, place, key = (own.task, str(own.folder), own.key) if isinstance(own, OwnTask) else (f"{name}_{{lang}}", own.path, ("id",))
    return Family(
        name=name,
        title=name,
        task=task.replace("{lang}", "{code}"),
        folder=place,
        dataset=place,
        licence="yours",
        origin="unknown",
        metric="acc",
        chance=float("nan"),
        key=key,
        items="yours" if isinstance(own, OwnTask) and own.facts else None,
        stratum=own.split_by,
        kind=own.split_by,
    )


def _folder(folder: str) -> Path:
    import lm_eval.tasks

    if folder.startswith(_OURS):
        return Path(asset(folder.removeprefix(_OURS)))
    return Path(lm_eval.tasks.__file__).parent / folder


def _task_files(folder: Path, known: dict[Path, dict[str, Path]]) -> dict[str, Path]:
    """Task name -> YAML file, for a folder and its subfolders. Each folder is searched once, and files are not parsed.

    lm-eval's `TaskManager` parses all of its 14,000 task files to find one, which takes ten seconds.
    """
    if folder not in known:
        found: dict[str, Path] = {}
        for place, folders, names in os.walk(folder):
            folders.sort()
            for file in sorted(names):
                path = Path(place, file)
                if file.endswith((".yaml", ".yml")) and path.is_file() and (line := _TASK_LINE.search(path.read_bytes())):
                    found.setdefault(line[1].decode(errors="replace"), path)
        known[folder] = found
    return known[folder]


def missing_languages(name: str, config: TasksConfig, lacking: Sequence[str], files: dict[Path, dict[str, Path]]) -> str:
    """The message for a benchmark that does not have all the languages."""
    having = [code for code in LANGUAGES if task_sources(name, config, code, files)]
    own = config.own.get(name)
    if having:
        more = f" and {len(having) - NAMED_AT_MOST} more" if len(having) > NAMED_AT_MOST else ""
        return (
            f"tasks: '{name}' lacks {', '.join(lacking)}; it has {', '.join(having[:NAMED_AT_MOST])}{more}. Leave out those languages "
            "(languages.high, languages.low) or the benchmark, or use tasks.missing=skip"
        )
    match own:
        case OwnItems():
            return f"tasks.own.{name}.path: there is no file '{own.path.replace('{lang}', lacking[0])}', and none for any other language"
        case OwnTask():
            task, there = own.task.replace("{lang}", lacking[0]), _task_files(own.folder.absolute(), files)
            return f"tasks.own.{name}: '{own.folder}' has no task '{task}'{nearest(task, there)} (there: {', '.join(sorted(there)[:8]) or 'none'})"
    return f"tasks: the installed lm-eval has no task '{entry(family(name), lacking[0]).task}'; leave '{name}' out"


def task_definition(path: Path, cache: Path) -> TaskDefinition:
    """The content of a task file, with paths of local data files resolved against its folder.

    Args:
        path: of the task file.
        cache: folder for the copies that `datasets` makes of data files.

    Raises:
        UserError: the file, or a data file that it names, cannot be read.
    """
    try:
        definition: dict[str, Any] = read_task_file(path)
    except (OSError, ValueError, ImportError, AttributeError, RecursionError, TypeError, yaml.YAMLError) as error:
        raise UserError(f"tasks: '{path}' cannot be read: {error}") from error
    definition.pop("tag", None)
    source = definition.get("dataset_path")
    arguments = dict(definition.get("dataset_kwargs") or {})
    if source == "json" and set(arguments) == {"data_files"}:
        # Read here because `datasets` would leave a copy in the user's cache and take seconds for thirty files.
        files = _splits(path, arguments["data_files"])
        rows = {split: [row for file in names for _, row in data_rows(Path(file))] for split, names in files.items()}
        return definition | {"dataset_kwargs": None, "custom_dataset": functools.partial(in_memory, rows)}
    if isinstance(source, str) and "data_files" in arguments:
        definition["dataset_kwargs"] = arguments | {
            "data_files": _splits(path, arguments["data_files"]),
            "cache_dir": str(cache),
            "keep_in_memory": True,
        }
    return definition


def _splits(path: Path, data_files: str | list[str] | dict[str, str | list[str]]) -> dict[str, list[str]]:
    """Data files by split. Local paths are resolved against the folder of the YAML file; addresses stay as they are."""
    by_split = data_files if isinstance(data_files, dict) else {"train": data_files}
    named = {split: [names] if isinstance(names, str) else names for split, names in by_split.items()}
    if not all(isinstance(names, list) and all(isinstance(name, str) for name in names) for names in named.values()):
        raise UserError(f"tasks: '{path}' has data_files that are not file names; give a name, a list of names, or either for each split")
    files = {split: [name if "://" in name else str(path.parent / name) for name in names] for split, names in named.items()}
    for file in (file for names in files.values() for file in names):
        if "://" not in file and not Path(file).is_file():
            raise UserError(f"tasks: '{path}' names the data file '{file}', which is not there")
    return files


def data_rows(file: Path, *, as_written: bool = False) -> list[tuple[str, Any]]:
    """The lines of a JSONL file, or the items of a list in a JSON file, each with its place for messages.

    Args:
        as_written: read numbers as `Numeral`, which keeps how they are written.

    Raises:
        UserError: the file cannot be read, or is empty.
    """
    rows = read_json_rows(file, as_written=as_written)
    if not rows:
        raise UserError(f"tasks: '{file}' has no items")
    return rows


def in_memory(rows: dict[str, list[Document]], **_metadata: object) -> "dict[str, Dataset]":
    """Rows by split as lm-eval's `custom_dataset`, which is called with the task's metadata."""
    from datasets import Dataset

    return {split: Dataset.from_list(items) for split, items in rows.items()}
