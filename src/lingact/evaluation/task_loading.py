"""Load a task with lm-eval and build its requests, with errors that name the task and the item."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from lingact.catalogue.benchmarks import Entry
from lingact.config.tasks import OwnItems, TasksConfig
from lingact.errors import UserError
from lingact.evaluation.own_items import own_definition
from lingact.evaluation.task_files import Document, TaskSource, task_definition
from lingact.hub.huggingface import HubItem, from_the_hub

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from lm_eval.api.task import ConfigurableTask


def build_requests(row: Entry, task: "ConfigurableTask", rows: Sequence[Document], places: Sequence[int]) -> None:
    """Let lm-eval build the requests of some documents.

    Args:
        row: the task in the table of benchmarks.
        task: with its data.
        rows: all its documents.
        places: of the documents to ask.

    Raises:
        UserError: an item cannot be asked; the message names it.
    """
    _refuse_numbers_as_places(row, task, rows)
    try:
        with refuse_unfit_data(row):
            task.build_all_requests(samples=None if len(places) == len(rows) else list(places))
    except UserError as error:
        # A problem that both the first and the last item have is not an item's own, such as too many few-shot examples.
        whole = all(_problem_of_item(row, task, place) for place in (places[0], places[-1]))
        found = None if whole else next((problem for place in places if (problem := _problem_of_item(row, task, place))), None)
        raise found or error from error.__cause__


def _problem_of_item(row: Entry, task: "ConfigurableTask", place: int) -> UserError | None:
    try:
        with refuse_unfit_data(row, item=place + 1):
            task.build_all_requests(samples=[place])
    except UserError as error:
        return error
    return None


def _refuse_numbers_as_places(row: Entry, task: "ConfigurableTask", rows: Sequence[Document]) -> None:
    """Raise if lm-eval would ask the choices in place of the questions because the first question is a number.

    In a task file that fills a blank with each choice, the template of the question renders the place of a choice. lm-eval decides by the first item
    whether a task is of this kind.
    """
    if not getattr(task, "multiple_input", 0):
        return
    for number, document in enumerate(rows, start=1):
        with refuse_unfit_data(row, item=number):
            place = task.doc_to_text(document)
            count = len(task.doc_to_choice(document))
        if not isinstance(place, int) or not 0 <= place < count:
            raise UserError(
                f"tasks: '{row.task}' has questions that are numbers (item 1: {task.doc_to_text(rows[0])}), which lm-eval takes for the place of a "
                f"choice, but item {number} is not one; let doc_to_text say more than the number, as in 'Question: {{{{question}}}}'"
            )


def load_task(source: TaskSource, config: TasksConfig, cache: Path) -> "ConfigurableTask":
    """One task, with its data in memory.

    Args:
        source: where it comes from.
        config: settings of all tasks.
        cache: folder for copies of data files.

    Raises:
        UserError: its file or data cannot be read, or it is not a multiple-choice task.
    """
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.defaults import DEFAULT_OTHER_SEED
    from lm_eval.tasks import TaskManager

    definition = own_definition(source) if isinstance(config.own.get(source.entry.benchmark), OwnItems) else task_definition(source.file, cache)
    if config.fewshot is not None and definition.get("num_fewshot") != 0:  # as in lm-eval, a task that says 0 keeps it
        definition["num_fewshot"] = config.fewshot
    dataset = str(definition.get("dataset_path"))
    # A single word such as `json` names a reader of `datasets`, not a data set of the hub.
    item = HubItem(f"tasks: the data of '{source.entry.task}' ({dataset}, {source.entry.licence})", dataset, "dataset", "or leave it out")
    hub = from_the_hub(item) if "/" in dataset else nullcontext()
    with hub as offline, refuse_unfit_data(source.entry, but=(OSError, *((ValueError,) if offline else ()))):
        loaded = TaskManager(include_defaults=False).load([definition])["tasks"]
    (task,) = loaded.values()
    if not isinstance(task, ConfigurableTask) or task.OUTPUT_TYPE != "multiple_choice":
        raise UserError(f"tasks: '{source.entry.task}' has the output type {task.OUTPUT_TYPE}; only multiple_choice tasks are compared item by item")
    if task.get_config("num_fewshot") is None:
        task.set_config(key="num_fewshot", value=0)
    task.set_fewshot_seed(seed=DEFAULT_OTHER_SEED)
    return task


QUESTIONS = "the questions themselves"
"""In the column `examples_from`: examples are taken from the split that is asked."""


def examples_from(task: "ConfigurableTask") -> str | None:
    """The split that few-shot examples come from; None if there are no examples, or the task file contains them.

    Raises:
        UserError: they would come from the questions, and the task file does not say so. lm-eval then keeps the asked item, with its answer, among
            the examples.
    """
    config = task.config
    if not config.num_fewshot:
        return None
    given = config.fewshot_config
    split, samples = (given.get(name) if isinstance(given, dict) else getattr(given, name, None) for name in ("split", "samples"))
    split = split or config.fewshot_split
    asked = config.test_split or config.validation_split
    taken_from = split or (None if samples else config.training_split or config.validation_split or config.test_split)
    if taken_from == asked and split != config.test_split:
        raise UserError(f"tasks.fewshot: '{config.task}' has no examples but its own questions ('{asked}'), answers included; use tasks.fewshot=0")
    return QUESTIONS if taken_from == asked else taken_from


@contextmanager
def refuse_unfit_data(row: Entry, but: tuple[type[Exception], ...] = (), item: int | None = None) -> Iterator[None]:
    """Turn errors of lm-eval's templates and functions into errors that name the task: a missing column, an unknown split, an odd answer.

    Args:
        row: the task in the table of benchmarks.
        but: exceptions that pass unchanged.
        item: number of the item, from 1; None: not about a single item.

    Raises:
        UserError: the data do not fit the task file.
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
        raise UserError(f"tasks: '{row.task}' does not fit {where} ({reason.rstrip('.')}); fix one or the other, or leave the task out") from error


def requests_by_document(task: "ConfigurableTask", count: int) -> "list[tuple[Instance, ...]]":
    """The requests that `build_requests` has built, document by document."""
    asked: dict[int, list[Instance]] = defaultdict(list)
    for request in task.instances:
        assert request.doc_id is not None
        asked[request.doc_id].append(request)  # numbered in the order of the places
    assert list(asked) == list(range(count))
    return [tuple(sorted(requests, key=lambda request: request.idx)) for requests in asked.values()]
