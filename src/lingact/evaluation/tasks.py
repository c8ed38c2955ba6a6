"""Which questions are asked: task files in, for each benchmark and language the documents with their prompts out.

lm-eval's `TaskManager` reads all of its 14,000 task files to know one (ten seconds); here only the folder of a benchmark is looked through.
"""

import functools
import hashlib
import json
import logging
import os
import re
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import yaml

from lingact.catalogue.benchmarks import FAMILIES, Entry, Family, entry, family
from lingact.catalogue.languages import LANGUAGES, nearest
from lingact.config.base import asset
from lingact.config.tasks import OwnItems, OwnTask, TasksConfig
from lingact.data.corpus import plain
from lingact.errors import UserError
from lingact.evaluation.selection import Candidates, choose
from lingact.files.folders import is_there
from lingact.files.records import Numeral, read_json_rows
from lingact.files.tables import Table, kind_of, refuse_other_case
from lingact.hub.huggingface import HubItem, from_the_hub

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from lm_eval.api.task import Task

_TASK_LINE = re.compile(rb"^\"?task\"?:[ \t]*[\"']?([^\s\"'#]+)", re.MULTILINE)
_OURS = "lingact:"
_NAMED = 12
"""So many languages or items are named in a message."""


@dataclass(frozen=True)
class Question:
    """A document of a task, as it is asked."""

    doc_id: int
    """Its place in the data set."""
    item: str | None
    """What it asks, under the name that it has in every language; None where languages do not correspond."""
    kind: str | None
    """Which part of the benchmark it belongs to, where scores are split."""
    requests: "tuple[Instance, ...]"
    """lm-eval's requests, one for each option."""

    @property
    def document(self) -> dict[str, Any]:
        """Its row of the data set."""
        return self.requests[0].doc


@dataclass(frozen=True)
class TaskInstance:
    """An lm-eval task, its place in our tables, and the questions chosen from it."""

    entry: Entry
    task: "Task"
    questions: tuple[Question, ...]
    total: int
    """Documents that the task has."""
    examples_from: str | None
    """The split that examples come from, where there are any."""
    shared: int | None
    """Those of them that all languages whose items correspond have; None where this language's do not."""

    @property
    def requests(self) -> "list[Instance]":
        """Of all questions, in order."""
        return [request for question in self.questions for request in question.requests]

    @property
    def texts(self) -> list[str]:
        """Each question with its right answer, as it would be asked without examples."""
        delimiter = self.task.config.target_delimiter
        return [f"{self.task.doc_to_text(question.document)}{delimiter}{self._right(question)}" for question in self.questions]

    def _right(self, question: Question) -> str:
        target: Any = self.task.doc_to_target(question.document)
        options: list[str] = self.task.doc_to_choice(question.document)  # pyrefly: ignore[missing-attribute]
        return options[target] if isinstance(target, int) and 0 <= target < len(options) else str(target)

    @functools.cached_property
    def sha256(self) -> str:
        """Hash of all that is asked: prompts, options, right answers."""
        digest = hashlib.sha256()
        for question in self.questions:
            arguments = [[str(part) for part in request.args] for request in question.requests]
            content = [question.doc_id, arguments, str(self.task.doc_to_target(question.document))]
            digest.update(json.dumps(content, ensure_ascii=False).encode())
        return digest.hexdigest()


@dataclass(frozen=True)
class Tasks:
    """All that is asked, and what was left out for want of a task."""

    instances: tuple[TaskInstance, ...]
    skipped: dict[str, tuple[str, ...]]
    """Benchmark -> languages that it lacks."""

    @property
    def identity(self) -> dict[str, dict[str, Any]]:
        """Task -> number of items and a hash of what is asked, for the manifest."""
        return {instance.entry.task: {"items": len(instance.questions), "sha256": instance.sha256} for instance in self.instances}


def load_tasks(config: TasksConfig, languages: Sequence[str]) -> Tasks:
    """The questions of every benchmark in every language.

    Raises:
        UserError: a task is not there (with the languages that have it), or its data cannot be read.
    """
    files: dict[Path, dict[str, Path]] = {}
    wanted: dict[str, dict[str, list[_Source]]] = {}
    problems: list[str] = []
    skipped: dict[str, tuple[str, ...]] = {}
    for name in (*config.benchmarks, *config.own):
        found = {code: _sources(name, config, code, files) for code in languages}
        lacking = [code for code, sources in found.items() if not sources]
        if lacking and config.missing == "refuse":
            problems.append(_lacking(name, config, lacking, files))
        elif lacking:
            skipped[name] = tuple(lacking)
        wanted[name] = {code: sources for code, sources in found.items() if sources}
    if not problems and not any(wanted.values()):
        problems.append(f"tasks.benchmarks: none of {', '.join(wanted)} has any of the languages {', '.join(languages)}; choose others")
    if problems:
        raise UserError("\n".join(problems))
    with tempfile.TemporaryDirectory(prefix="lingact-tasks-") as cache, quiet():
        instances = [place for by_language in wanted.values() for place in _benchmark(config, by_language, Path(cache))]
    return Tasks(tuple(_told_apart(instances)), skipped)


def _told_apart(instances: Sequence[TaskInstance]) -> Iterator[TaskInstance]:
    """Benchmarks may share a task (the English of all ARCs is one): from the second on it bears the benchmark's name, too."""
    seen: set[str] = set()
    for each in instances:
        name = each.entry.task if each.entry.task not in seen else f"{each.entry.task}.{each.entry.benchmark}"
        seen.add(name)
        yield replace(each, entry=replace(each.entry, task=name))


def catalogue() -> dict[str, dict[str, list[Entry]]]:
    """Benchmark of the table -> language -> its tasks that the installed task files have; nothing where they lack it."""
    files: dict[Path, dict[str, Path]] = {}
    nothing = TasksConfig.model_construct(own={})
    return {name: {code: [source.entry for source in _sources(name, nothing, code, files)] for code in LANGUAGES} for name in FAMILIES}


# --- finding -------------------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Source:
    """Where one task comes from, and how its items are told apart."""

    entry: Entry
    file: Path
    """lm-eval's YAML, or the JSONL of a user."""
    traits: Family


def _sources(name: str, config: TasksConfig, code: str, files: dict[Path, dict[str, Path]]) -> list[_Source]:
    """The tasks of a benchmark in a language; none where there is none."""
    kin = family(name) if name not in config.own else _own_family(name, config.own[name])
    row = entry(kin, code)
    match config.own.get(name):
        case OwnItems(path=path):
            file = Path(path.replace("{lang}", code))
            return [_Source(row, file, kin)] if is_there(file) and file.is_file() else []
        case OwnTask(folder=folder):
            there = _task_files(folder.absolute(), files)
        case _:
            there = _task_files(_folder(row.folder), files)
    return [_Source(replace(row, task=task), there[task], kin) for task in sorted(there) if fnmatchcase(task, row.task)]


def _own_family(name: str, own: OwnItems | OwnTask) -> Family:
    """A user's benchmark as the table would have it."""
    task, place, key = (own.task, str(own.folder), own.key) if isinstance(own, OwnTask) else (f"{name}_{{lang}}", own.path, ("id",))
    together = "yours" if isinstance(own, OwnTask) and own.facts else None
    traits: dict[str, Any] = {"key": key, "items": together, "stratum": own.split_by, "kind": own.split_by}
    return Family(name, name, task.replace("{lang}", "{code}"), place, place, "yours", "unknown", "acc", float("nan"), **traits)


def _folder(folder: str) -> Path:
    import lm_eval.tasks

    if folder.startswith(_OURS):
        return Path(asset(folder.removeprefix(_OURS)))
    return Path(lm_eval.tasks.__file__).parent / folder


def _task_files(folder: Path, known: dict[Path, dict[str, Path]]) -> dict[str, Path]:
    """Task name -> YAML file of a folder and those in it, read as text and once."""
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


def _lacking(name: str, config: TasksConfig, lacking: Sequence[str], files: dict[Path, dict[str, Path]]) -> str:
    """What to say of a benchmark that lacks languages."""
    having = [code for code in LANGUAGES if _sources(name, config, code, files)]
    own = config.own.get(name)
    if having:
        more = f" and {len(having) - _NAMED} more" if len(having) > _NAMED else ""
        return (
            f"tasks: '{name}' lacks {', '.join(lacking)}; it has {', '.join(having[:_NAMED])}{more}. Leave those languages out (languages.high, "
            "languages.low), or the benchmark, or write tasks.missing=skip"
        )
    match own:
        case OwnItems():
            return f"tasks.own.{name}.path: there is no file '{own.path.replace('{lang}', lacking[0])}', nor of any other language"
        case OwnTask():
            task, there = own.task.replace("{lang}", lacking[0]), _task_files(own.folder.absolute(), files)
            return f"tasks.own.{name}: '{own.folder}' has no task '{task}'{nearest(task, there)} (there: {', '.join(sorted(there)[:8]) or 'none'})"
    return f"tasks: the installed lm-eval has no task '{entry(family(name), lacking[0]).task}'; leave '{name}' out"


# --- loading -------------------------------------------------------------------------------------------------------------------------------------


def _benchmark(config: TasksConfig, by_language: Mapping[str, Sequence[_Source]], cache: Path) -> Iterator[TaskInstance]:
    """All tasks of one benchmark with the questions chosen from them."""
    sources = [source for several in by_language.values() for source in several]
    tasks = [_load(source, config, cache) for source in sources]
    for task in tasks:
        _examples_from(task)
    documents: list[list[dict[str, Any]]] = []
    for source, task in zip(sources, tasks, strict=True):
        with _data_that_fit(source.entry):
            documents.append([dict(row) for row in task.eval_docs])
            if not documents[-1]:
                raise UserError(f"tasks: '{source.entry.task}' has no documents, or its process_docs leaves none")
    candidates = [_candidates(source, rows) for source, rows in zip(sources, documents, strict=True)]
    shared, chosen = choose(candidates, limit=config.limit, only_shared=config.items == "shared")
    for source, task, rows, known, places in zip(sources, tasks, documents, candidates, chosen, strict=True):
        if not places:
            continue
        _build_requests(source.entry, task, rows, places)
        asked = _asked(task, len(places))
        common = shared if shared and source.entry.language in shared.languages else None
        facts = _facts(source, rows, known.keys if common else None)
        kinds = _column(source.traits.kind, rows)
        if "all" in kinds:
            raise UserError(
                f"tasks: the column '{source.traits.kind}' of '{source.entry.task}' has the value 'all', which stands for all kinds; rename it"
            )
        questions = tuple(Question(place, facts[place], kinds[place], requests) for place, requests in zip(places, asked, strict=True))
        in_all = sum(key in common.keys for key in known.keys) if common else None
        yield TaskInstance(source.entry, task, questions, len(rows), _examples_from(task), in_all)


def _build_requests(row: Entry, task: "Task", rows: Sequence[Mapping[str, Any]], places: Sequence[int]) -> None:
    """Let lm-eval put the questions, or raise with the name of the item that cannot be asked."""
    _refuse_numbers_as_places(row, task, rows)
    try:
        with _data_that_fit(row):
            task.build_all_requests(samples=None if len(places) == len(rows) else list(places))
    except UserError as error:
        # What the first and the last item have is not the item's: more examples, for instance, than there are.
        whole = all(_problem_of_item(row, task, place) for place in (places[0], places[-1]))
        found = None if whole else next((problem for place in places if (problem := _problem_of_item(row, task, place))), None)
        raise found or error from error.__cause__


def _problem_of_item(row: Entry, task: "Task", place: int) -> UserError | None:
    try:
        with _data_that_fit(row, item=place + 1):
            task.build_all_requests(samples=[place])
    except UserError as error:
        return error
    return None


def _refuse_numbers_as_places(row: Entry, task: "Task", rows: Sequence[Mapping[str, Any]]) -> None:
    """Raise where lm-eval would ask the choices in place of the questions, because the first question is a number.

    In task files that fill a blank with each choice, the question's template gives the place of a choice, for every item.
    """
    if not getattr(task, "multiple_input", 0):
        return
    for number, document in enumerate(rows, start=1):
        with _data_that_fit(row, item=number):
            place: Any = task.doc_to_text(document)
            count = len(task.doc_to_choice(document))  # pyrefly: ignore[missing-attribute]
        if not isinstance(place, int) or not 0 <= place < count:
            raise UserError(
                f"tasks: '{row.task}' has questions that are numbers (item 1: {task.doc_to_text(rows[0])}), which lm-eval takes for the place of a "
                f"choice, and item {number} is none; let doc_to_text say more than the number, as in 'Question: {{{{question}}}}'"
            )


def _candidates(source: _Source, rows: Sequence[Mapping[str, Any]]) -> "Candidates":
    traits = source.traits
    strata = _column(traits.stratum, rows, before="/~")
    proofs = _column(traits.proof, rows)
    return Candidates(source.entry.language, _keys(source.entry.key, traits.key_pattern, rows), strata, proofs, source.entry.task)


def _facts(source: _Source, rows: Sequence[Mapping[str, Any]], keys: Sequence[str | None] | None) -> list[str | None]:
    """What each item asks, under its name in every language; what several benchmarks ask has one name in all of them."""
    cluster = source.traits.cluster
    if keys is None and not cluster:
        return [None] * len(rows)
    names = keys if keys is not None and not cluster else [" ".join(str(row.get(column)) for column in cluster) for row in rows]
    whose = source.traits.items or source.entry.benchmark
    alone = "" if keys is not None else f"{source.entry.language}/"
    return [f"{whose}/{alone}{name}" for name in names]


def _keys(columns: Sequence[str], pattern: str | None, rows: Sequence[Mapping[str, Any]]) -> list[str | None]:
    """The name of each item in every language; of several with one name the later ones are numbered. None where a column is missing."""
    if not columns or any(column != "#row" and row.get(column) is None for row in rows for column in columns):
        return [None] * len(rows)
    found, seen = [], Counter()
    for place, row in enumerate(rows):
        name = " ".join(str(place if column == "#row" else row[column]) for column in columns)
        if pattern and (part := re.search(pattern, name)):
            name = part[1]
        seen[name] += 1
        found.append(name if seen[name] == 1 else f"{name} #{seen[name]}")
    return found


def _column(column: str | None, rows: Sequence[Mapping[str, Any]], before: str = "") -> list[str | None]:
    """A column's values as words, or what stands in them before one of these marks."""
    values = [row.get(column) if column else None for row in rows]
    return [None if value is None else re.split(f"[{re.escape(before)}]", str(value))[0] if before else str(value) for value in values]


def _load(source: _Source, config: TasksConfig, cache: Path) -> "Task":
    """One task, with its data in memory."""
    from lm_eval.defaults import DEFAULT_OTHER_SEED
    from lm_eval.tasks import TaskManager

    definition = _own_definition(source) if isinstance(config.own.get(source.entry.benchmark), OwnItems) else _definition(source.file, cache)
    if config.fewshot is not None and definition.get("num_fewshot") != 0:  # as lm-eval: a task that says 0 means it
        definition["num_fewshot"] = config.fewshot
    dataset = str(definition.get("dataset_path"))
    # One word such as `json` is not a data set of the hub, but one of the readers of `datasets`.
    item = HubItem(f"tasks: the data of '{source.entry.task}' ({dataset}, {source.entry.licence})", dataset, "dataset", "or leave it out")
    hub = from_the_hub(item) if "/" in dataset else nullcontext()
    with hub as offline, _data_that_fit(source.entry, but=(OSError, *((ValueError,) if offline else ()))):
        loaded = TaskManager(include_defaults=False).load([definition])["tasks"]
    (task,) = loaded.values()
    if task.OUTPUT_TYPE != "multiple_choice":
        raise UserError(f"tasks: '{source.entry.task}' has the output type {task.OUTPUT_TYPE}; only multiple_choice tasks are compared item by item")
    if task.get_config("num_fewshot") is None:
        task.set_config(key="num_fewshot", value=0)
    task.set_fewshot_seed(seed=DEFAULT_OTHER_SEED)
    return task


QUESTIONS = "the questions themselves"


def _examples_from(task: "Task") -> str | None:
    """The split that examples come from; None where there are none, or the task file brings its own.

    Raises:
        UserError: from the questions, without the task file saying so: then lm-eval does not leave out the asked one with its answer.
    """
    config = task.config
    if not config.num_fewshot:
        return None
    given: Any = config.fewshot_config
    split, samples = (given.get(name) if isinstance(given, dict) else getattr(given, name, None) for name in ("split", "samples"))
    split = split or config.fewshot_split
    asked = config.test_split or config.validation_split
    taken_from = split or (None if samples else config.training_split or config.validation_split or config.test_split)
    if taken_from == asked and split != config.test_split:
        raise UserError(f"tasks.fewshot: '{config.task}' has no examples but its own questions ('{asked}'), answers included; use tasks.fewshot=0")
    return QUESTIONS if taken_from == asked else taken_from


@contextmanager
def _data_that_fit(row: Entry, but: tuple[type[Exception], ...] = (), item: int | None = None) -> Iterator[None]:
    """Whatever lm-eval's templates and functions raise over data that are not as they expect: an unknown part, a lacking column, an odd answer.

    Args:
        but: passed through.
        item: number of the one that is asked for, if it is a single one.
    """
    from datasets.exceptions import DatasetsError
    from jinja2 import TemplateError

    try:
        yield
    except (*but, UserError):
        raise
    except (
        *(ArithmeticError, AssertionError, AttributeError, LookupError, NotImplementedError, SyntaxError, TypeError, ValueError),
        *(DatasetsError, TemplateError),
    ) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        where = f"item {item} of its data" if item else "its data"
        raise UserError(f"tasks: '{row.task}' does not fit {where} ({reason.rstrip('.')}); mend the one or the other, or leave it out") from error


def _definition(path: Path, cache: Path) -> dict[str, Any]:
    """A task file as lm-eval takes it, with local data files named relative to it."""
    from lm_eval.tasks._yaml_loader import load_yaml

    try:
        definition = load_yaml(path)
    except (OSError, ValueError, ImportError, AttributeError, RecursionError, TypeError, yaml.YAMLError) as error:
        raise UserError(f"tasks: '{path}' cannot be read: {error}") from error
    definition.pop("tag", None)
    source = definition.get("dataset_path")
    arguments = dict(definition.get("dataset_kwargs") or {})
    if source == "json" and set(arguments) == {"data_files"}:
        # Read here, not by `datasets`, which would leave a copy in the user's cache and take seconds for thirty files.
        files = _splits(path, arguments["data_files"])
        rows = {split: [row for file in names for _, row in _rows(Path(file))] for split, names in files.items()}
        return definition | {"dataset_kwargs": None, "custom_dataset": functools.partial(_in_memory, rows)}
    if isinstance(source, str) and "data_files" in arguments:
        definition["dataset_kwargs"] = arguments | {
            "data_files": _splits(path, arguments["data_files"]),
            "cache_dir": str(cache),
            "keep_in_memory": True,
        }
    return definition


def _own_definition(source: _Source) -> dict[str, Any]:
    """The task of a user's JSONL: question, choices, and the answer's place or text."""
    rows, problems = [], []
    columns = [name for name in ("id", source.traits.kind) if name and name not in ("question", "choices", "answer")]
    read = _rows(source.file, as_written=True)
    for where, row in read:
        try:
            rows.append(_own_item(row))
        except ValueError as error:
            problems.append(f"{where}: {error}")
    if not problems:
        refuse_other_case(str(source.file), dict.fromkeys(key for _, row in read for key in row), "id")
        table = Table(str(source.file), (), [row for _, row in read], [where.removeprefix(f"{source.file}, ") for where, _ in read])
        for column in columns:
            names = table.names(column)
            if names is None and column == source.traits.kind:
                there = ", ".join(dict.fromkeys(key for row in table.rows for key in row))
                problems.append(f"{source.file} has no column '{column}' (tasks.own.{source.entry.benchmark}.split_by; there: {there})")
            if column == "id" and (twice := [key for key, count in Counter(names or ()).items() if count > 1]):
                first, second, *_ = (place for place, name in zip(table.places, names or (), strict=True) if name == twice[0])
                problems.append(f"{source.file}, {second}: the id '{twice[0]}' of {first} again; every item needs an id of its own")
            for row, name in zip(rows, names or (), strict=bool(names)):
                row[column] = name
    if problems:
        more = [f"{source.file}: and {len(problems) - _NAMED} more items"] if len(problems) > _NAMED else []
        raise UserError("\n".join(f"tasks: {problem}" for problem in [*problems[:_NAMED], *more]))
    # The names of columns, not templates: what a template makes of the text `12` or `²` lm-eval takes for the place of a choice.
    return {
        "task": source.entry.task,
        "output_type": "multiple_choice",
        "custom_dataset": functools.partial(_in_memory, {"test": rows}),
        "test_split": "test",
        "doc_to_text": "question",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "num_fewshot": 0,
        "metric_list": [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm")],
        "metadata": {"version": 1.0},
    }


def _own_item(row: Any) -> dict[str, Any]:
    """A user's item as it is asked: question and choices as texts, the answer as a place.

    Numbers that are asked stand as they are written. A number as answer is the right choice's place, a text is the right choice itself.

    Raises:
        ValueError: it cannot be asked.
    """
    if not isinstance(row, dict) or not {"question", "choices", "answer"} <= row.keys():
        there = f" (there: {', '.join(row)})" if isinstance(row, dict) else ""
        raise ValueError(f"an item is an object with question, choices and answer{there}")
    question, choices = row["question"], row["choices"]
    if not _is_asked(question):
        raise ValueError(f"question is {_shown(question)}; give a text or a number")
    if not isinstance(choices, list) or len(choices) < 2 or not all(_is_asked(choice) for choice in choices):
        strange = next((f"; one is {_shown(choice)}" for choice in choices if not _is_asked(choice)), "") if isinstance(choices, list) else ""
        raise ValueError(f"choices must be a list of at least two texts or numbers{strange}")
    texts, place = [str(choice) for choice in choices], _place_of_answer(row["answer"], choices)
    if sum(text.strip() == texts[place].strip() for text in texts) > 1:
        raise ValueError(f"choices holds the right one, '{texts[place]}', more than once, and the first of them would be taken; leave one")
    return {"question": str(question), "choices": texts, "answer": place}


def _place_of_answer(answer: Any, choices: Sequence[str]) -> int:
    allowed = f"give the right choice's place from 0 to {len(choices) - 1}, or its text"
    if isinstance(answer, Numeral):
        place = int(answer) if answer.isdecimal() and len(answer) < 10 else -1
        if not 0 <= place < len(choices):
            raise ValueError(f"answer is {answer}; {allowed}")
        if any(isinstance(choice, Numeral) and float(choice) == place and other != place for other, choice in enumerate(choices)):
            raise ValueError(f"answer is the number {answer}, the place of one choice and the value of another; write the right choice as text")
        return place
    if not isinstance(answer, str):
        raise ValueError(f"answer is {_shown(answer)}; {allowed}")
    places = [place for place, choice in enumerate(choices) if choice == answer]
    places = places or [place for place, choice in enumerate(choices) if plain(choice) == plain(answer)]
    if len(places) > 1:
        raise ValueError(f"answer is '{answer}', the text of {len(places)} choices; give the right one's place from 0 to {len(choices) - 1}")
    if not places:
        raise ValueError(f"answer is '{answer}'; {allowed}")
    return places[0]


def _is_asked(value: Any) -> bool:
    """Whether it is a text that says something, or a finite number."""
    if isinstance(value, Numeral):
        return any(figure.isdigit() for figure in value)
    return isinstance(value, str) and bool(plain(value)) and "\0" not in value


def _shown(value: Any) -> str:
    if isinstance(value, str) and "\0" in value:
        return f"{value!r}, which holds a NUL character"
    return f"{value!r}, which says nothing" if isinstance(value, str) and not isinstance(value, Numeral) else kind_of(value)


def _splits(path: Path, data_files: Any) -> dict[str, list[str]]:
    """Data files by split: local ones relative to the YAML file, others as they are."""
    by_split = data_files if isinstance(data_files, dict) else {"train": data_files}
    named = {split: [names] if isinstance(names, str) else names for split, names in by_split.items()}
    if not all(isinstance(names, list) and all(isinstance(name, str) for name in names) for names in named.values()):
        raise UserError(f"tasks: '{path}' has data_files that are no names of files; give a name, a list of names, or either for each split")
    files = {split: [name if "://" in name else str(path.parent / name) for name in names] for split, names in named.items()}
    for file in (file for names in files.values() for file in names):
        if "://" not in file and not Path(file).is_file():
            raise UserError(f"tasks: '{path}' names the data file '{file}', which is not there")
    return files


def _rows(file: Path, *, as_written: bool = False) -> list[tuple[str, Any]]:
    """What the lines of a JSONL file hold, or the list of a JSON file, each with its place."""
    rows = read_json_rows(file, as_written=as_written)
    if not rows:
        raise UserError(f"tasks: '{file}' has no items")
    return rows


def _in_memory(rows: dict[str, list[dict[str, Any]]], **_metadata: object) -> dict[str, Any]:
    """What lm-eval asks for as `custom_dataset`: it passes the task's metadata along."""
    from datasets import Dataset

    return {split: Dataset.from_list(items) for split, items in rows.items()}


def _asked(task: "Task", count: int) -> "list[tuple[Instance, ...]]":
    """lm-eval's requests, document by document."""
    asked: dict[int, list[Instance]] = defaultdict(list)
    for request in task.instances:
        assert request.doc_id is not None
        asked[request.doc_id].append(request)  # numbered in the order of the places
    assert list(asked) == list(range(count))
    return [tuple(sorted(requests, key=lambda request: request.idx)) for requests in asked.values()]


# --- quiet ---------------------------------------------------------------------------------------------------------------------------------------


@contextmanager
def quiet() -> Iterator[None]:
    """No bars of lm-eval and datasets, of their logs nothing below errors, and templates compiled once; everything is put back afterwards.

    lm-eval's warnings say that a model object was passed and that prompts were cut, which are counted instead, and show documents whose answer is no
    option; those of datasets say that what was downloaded before is used.
    """
    import datasets
    import lm_eval.api.model
    import lm_eval.api.task
    import lm_eval.utils
    from tqdm import tqdm

    def off(*arguments: Any, **settings: Any) -> tqdm:
        return tqdm(*arguments, **settings | {"disable": True})

    loggers = [logging.getLogger(name) for name in ("lm_eval", "datasets")]
    levels, bars = [logger.level for logger in loggers], datasets.are_progress_bars_disabled()
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    # lm-eval compiles a task's templates anew for every document, which takes longer than a small model needs to answer.
    compiled = functools.cache(lm_eval.utils.env.from_string)
    try:
        with (
            patch.object(lm_eval.api.task, "tqdm", off),
            patch.object(lm_eval.api.model, "tqdm", off),
            patch.object(lm_eval.utils.env, "from_string", compiled),
        ):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if not bars:
            datasets.enable_progress_bars()
