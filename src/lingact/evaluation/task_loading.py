"""Load a task into lm-eval and build its requests."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lingact.catalogue.benchmarks import Entry
from lingact.config.tasks import OwnItems, TasksConfig
from lingact.errors import UserError
from lingact.evaluation.own_items import own_definition
from lingact.evaluation.task_files import TaskSource, task_definition
from lingact.hub.huggingface import HubItem, from_the_hub

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from lm_eval.api.task import Task


def build_requests(row: Entry, task: "Task", rows: Sequence[Mapping[str, Any]], places: Sequence[int]) -> None:
    """Let lm-eval put the questions, or raise with the name of the item that cannot be asked."""
    _refuse_numbers_as_places(row, task, rows)
    try:
        with refuse_unfit_data(row):
            task.build_all_requests(samples=None if len(places) == len(rows) else list(places))
    except UserError as error:
        # What the first and the last item have is not the item's: more examples, for instance, than there are.
        whole = all(_problem_of_item(row, task, place) for place in (places[0], places[-1]))
        found = None if whole else next((problem for place in places if (problem := _problem_of_item(row, task, place))), None)
        raise found or error from error.__cause__


def _problem_of_item(row: Entry, task: "Task", place: int) -> UserError | None:
    try:
        with refuse_unfit_data(row, item=place + 1):
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
        with refuse_unfit_data(row, item=number):
            place: Any = task.doc_to_text(document)
            count = len(task.doc_to_choice(document))  # pyrefly: ignore[missing-attribute]
        if not isinstance(place, int) or not 0 <= place < count:
            raise UserError(
                f"tasks: '{row.task}' has questions that are numbers (item 1: {task.doc_to_text(rows[0])}), which lm-eval takes for the place of a "
                f"choice, and item {number} is none; let doc_to_text say more than the number, as in 'Question: {{{{question}}}}'"
            )


def load_task(source: TaskSource, config: TasksConfig, cache: Path) -> "Task":
    """One task, with its data in memory."""
    from lm_eval.defaults import DEFAULT_OTHER_SEED
    from lm_eval.tasks import TaskManager

    definition = own_definition(source) if isinstance(config.own.get(source.entry.benchmark), OwnItems) else task_definition(source.file, cache)
    if config.fewshot is not None and definition.get("num_fewshot") != 0:  # as lm-eval: a task that says 0 means it
        definition["num_fewshot"] = config.fewshot
    dataset = str(definition.get("dataset_path"))
    # One word such as `json` is not a data set of the hub, but one of the readers of `datasets`.
    item = HubItem(f"tasks: the data of '{source.entry.task}' ({dataset}, {source.entry.licence})", dataset, "dataset", "or leave it out")
    hub = from_the_hub(item) if "/" in dataset else nullcontext()
    with hub as offline, refuse_unfit_data(source.entry, but=(OSError, *((ValueError,) if offline else ()))):
        loaded = TaskManager(include_defaults=False).load([definition])["tasks"]
    (task,) = loaded.values()
    if task.OUTPUT_TYPE != "multiple_choice":
        raise UserError(f"tasks: '{source.entry.task}' has the output type {task.OUTPUT_TYPE}; only multiple_choice tasks are compared item by item")
    if task.get_config("num_fewshot") is None:
        task.set_config(key="num_fewshot", value=0)
    task.set_fewshot_seed(seed=DEFAULT_OTHER_SEED)
    return task


QUESTIONS = "the questions themselves"


def examples_from(task: "Task") -> str | None:
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
def refuse_unfit_data(row: Entry, but: tuple[type[Exception], ...] = (), item: int | None = None) -> Iterator[None]:
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


def requests_by_document(task: "Task", count: int) -> "list[tuple[Instance, ...]]":
    """lm-eval's requests, document by document."""
    asked: dict[int, list[Instance]] = defaultdict(list)
    for request in task.instances:
        assert request.doc_id is not None
        asked[request.doc_id].append(request)  # numbered in the order of the places
    assert list(asked) == list(range(count))
    return [tuple(sorted(requests, key=lambda request: request.idx)) for requests in asked.values()]
