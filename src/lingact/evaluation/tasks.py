"""The questions of an evaluation: for each benchmark and language, the chosen documents with their prompts."""

import functools
import hashlib
import json
import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from lingact.catalogue.benchmarks import FAMILIES, Entry
from lingact.catalogue.languages import LANGUAGES
from lingact.config.tasks import TasksConfig
from lingact.errors import UserError
from lingact.evaluation.selection import choose
from lingact.evaluation.task_files import Document, TaskSource, missing_languages, task_sources
from lingact.evaluation.task_items import column_values, fact_names, task_items
from lingact.evaluation.task_loading import build_requests, examples_from, load_task, refuse_unfit_data, requests_by_document
from lingact.runtime.compat.lm_eval import no_bars, templates_compiled_once

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from lm_eval.api.task import ConfigurableTask


@dataclass(frozen=True)
class Question:
    """A document of a task with its requests."""

    doc_id: int
    """Its place in the data set."""
    item: str | None
    """The fact that it asks, by a name that is the same in every language; None if it does not correspond to items of other languages."""
    kind: str | None
    """The part of the benchmark that it belongs to; None if scores are not split."""
    requests: "tuple[Instance, ...]"
    """lm-eval's requests, one for each option."""

    @property
    def document(self) -> Document:
        """Its row of the data set."""
        return self.requests[0].doc


@dataclass(frozen=True)
class TaskInstance:
    """An lm-eval task, its entry in the table of benchmarks, and the questions chosen from it."""

    entry: Entry
    task: "ConfigurableTask"
    questions: tuple[Question, ...]
    total: int
    """Documents that the task has."""
    examples_from: str | None
    """The split that few-shot examples come from; None if there are none."""
    shared: int | None
    """Documents that all languages with corresponding items have; None if this language's items do not correspond."""

    @property
    def requests(self) -> "list[Instance]":
        """The requests of all questions, in order."""
        return [request for question in self.questions for request in question.requests]

    @property
    def texts(self) -> list[str]:
        """Each question with its right answer, as it would be asked without examples."""
        delimiter = self.task.config.target_delimiter
        return [f"{self.task.doc_to_text(question.document)}{delimiter}{self._right(question)}" for question in self.questions]

    def _right(self, question: Question) -> str:
        target = self.task.doc_to_target(question.document)
        options = self.task.doc_to_choice(question.document)
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
    """The task instances of an evaluation, and what was left out because there is no task."""

    instances: tuple[TaskInstance, ...]
    skipped: dict[str, tuple[str, ...]]
    """Benchmark -> languages that it does not have."""

    @property
    def identity(self) -> dict[str, dict[str, int | str]]:
        """Task -> number of items and a hash of what is asked, for the manifest."""
        return {instance.entry.task: {"items": len(instance.questions), "sha256": instance.sha256} for instance in self.instances}


def load_tasks(config: TasksConfig, languages: Sequence[str]) -> Tasks:
    """The questions of every benchmark in every language.

    Raises:
        UserError: a benchmark does not have a language (the message lists those that it has), or its data cannot be read.
    """
    files: dict[Path, dict[str, Path]] = {}
    wanted: dict[str, dict[str, list[TaskSource]]] = {}
    problems: list[str] = []
    skipped: dict[str, tuple[str, ...]] = {}
    for name in (*config.benchmarks, *config.own):
        found = {code: task_sources(name, config, code, files) for code in languages}
        lacking = [code for code, sources in found.items() if not sources]
        if lacking and config.missing == "refuse":
            problems.append(missing_languages(name, config, lacking, files))
        elif lacking:
            skipped[name] = tuple(lacking)
        wanted[name] = {code: sources for code, sources in found.items() if sources}
    if not problems and not any(wanted.values()):
        problems.append(f"tasks.benchmarks: none of {', '.join(wanted)} has any of the languages {', '.join(languages)}; choose others")
    if problems:
        raise UserError("\n".join(problems))
    with tempfile.TemporaryDirectory(prefix="lingact-tasks-") as cache, libraries_silenced():
        instances = [instance for by_language in wanted.values() for instance in _benchmark(config, by_language, Path(cache))]
    return Tasks(tuple(_unique_names(instances)), skipped)


def _unique_names(instances: Sequence[TaskInstance]) -> Iterator[TaskInstance]:
    """Make task names unique. Benchmarks may share a task (all ARCs share the English one): the later ones get the benchmark's name appended."""
    seen: set[str] = set()
    for each in instances:
        name = each.entry.task if each.entry.task not in seen else f"{each.entry.task}.{each.entry.benchmark}"
        seen.add(name)
        yield replace(each, entry=replace(each.entry, task=name))


def catalogue() -> dict[str, dict[str, list[Entry]]]:
    """Benchmark of the table -> language -> its tasks among the installed task files; empty if there are none."""
    files: dict[Path, dict[str, Path]] = {}
    nothing = TasksConfig.model_construct(own={})
    return {name: {code: [source.entry for source in task_sources(name, nothing, code, files)] for code in LANGUAGES} for name in FAMILIES}


def _benchmark(config: TasksConfig, by_language: Mapping[str, Sequence[TaskSource]], cache: Path) -> Iterator[TaskInstance]:
    """The tasks of one benchmark with the questions chosen from them."""
    sources = [source for several in by_language.values() for source in several]
    tasks = [load_task(source, config, cache) for source in sources]
    for task in tasks:
        examples_from(task)
    documents: list[list[Document]] = []
    for source, task in zip(sources, tasks, strict=True):
        with refuse_unfit_data(source.entry):
            documents.append([dict(row) for row in task.eval_docs])
            if not documents[-1]:
                raise UserError(f"tasks: '{source.entry.task}' has no documents, or its process_docs leaves none")
    items_of = [task_items(source, rows) for source, rows in zip(sources, documents, strict=True)]
    shared, chosen = choose(items_of, limit=config.limit, only_shared=config.items == "shared")
    for source, task, rows, items, places in zip(sources, tasks, documents, items_of, chosen, strict=True):
        if not places:
            continue
        build_requests(source.entry, task, rows, places)
        asked = requests_by_document(task, len(places))
        common = shared if shared and source.entry.language in shared.languages else None
        facts = fact_names(source, rows, items.keys if common else None)
        kinds = column_values(source.family.kind, rows)
        if "all" in kinds:
            raise UserError(
                f"tasks: the column '{source.family.kind}' of '{source.entry.task}' contains the value 'all', which stands for all kinds together; "
                "rename it"
            )
        questions = tuple(Question(place, facts[place], kinds[place], requests) for place, requests in zip(places, asked, strict=True))
        in_all = sum(key in common.keys for key in items.keys) if common else None
        yield TaskInstance(source.entry, task, questions, len(rows), examples_from(task), in_all)


# --- requests and output of the libraries --------------------------------------------------------------------------------------------------------


def prompt_and_option(arguments: tuple) -> tuple[str, str]:
    """Prompt and option of a request."""
    prompt, option = arguments[:2]
    return prompt, option


@contextmanager
def libraries_silenced() -> Iterator[None]:
    """No bars of lm-eval and datasets, of their logs nothing below errors, and templates compiled once; everything is put back afterwards.

    lm-eval's warnings say that a model object was passed and that prompts were cut, which are counted instead, and show documents whose answer is no
    option; those of datasets say that what was downloaded before is used.
    """
    import datasets

    loggers = [logging.getLogger(name) for name in ("lm_eval", "datasets")]
    levels, bars = [logger.level for logger in loggers], datasets.are_progress_bars_disabled()
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    try:
        with no_bars(), templates_compiled_once():
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if not bars:
            datasets.enable_progress_bars()
