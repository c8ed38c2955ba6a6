"""Benchmarks through lm-eval, with a model that is in memory already: task files in, one row per document out.

`evaluate` of lm-eval is called, not `simple_evaluate`: the latter adds a survey of the machine (seconds, subprocesses), and of its other
work only the number and seed of few-shot examples concern us; `_prepare` sets both as it does. lm-eval's answer cache is never used: its key
does not name the model.
"""

import functools
import hashlib
import json
import logging
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import pandas as pd
from torch import nn

from lingact.errors import UserError
from lingact.languages import LANGUAGES, nearest

if TYPE_CHECKING:
    from lm_eval.api.task import Task
    from transformers import PreTrainedTokenizerBase

_TASK_LINE = re.compile(rb"^task:[ \t]*[\"']?([^\s\"'#]+)", re.MULTILINE)


@dataclass(frozen=True)
class Placed:
    """An lm-eval task and its place in our tables."""

    benchmark: str
    language: str
    task: "Task"
    kind_column: str | None


@dataclass(frozen=True)
class EvalRun:
    """What one model did on every document."""

    items: pd.DataFrame
    """One row per document, in the order of the tasks: the item table that `lingact.compare` describes."""
    samples: dict[str, list[dict[str, Any]]]
    """Task -> the same documents with prompt, options, gold answer and log-likelihoods in nats."""
    truncated: int
    """Prompts with an option that were longer than the context and lost their beginning."""

    def identity(self) -> dict[str, dict[str, Any]]:
        """Task -> number of items and a hash of documents and prompts, for the manifest."""
        found = {}
        for task, rows in self.items.groupby("task", sort=False):
            content = "".join(rows["doc_hash"] + rows["prompt_hash"])
            found[str(task)] = {"items": len(rows), "sha256": hashlib.sha256(content.encode()).hexdigest()}
        return found


# --- tasks ---------------------------------------------------------------------------------------------------------------------------------------


def load_tasks(folder: Path | None, benchmarks: Mapping[str, str], languages: Sequence[str], kind_column: str | None) -> list[Placed]:
    """The tasks of every benchmark in every language.

    Args:
        folder: lm-eval task files, with data files named relative to them. None: lm-eval's own.
        benchmarks: name -> task name with `{lang}` for the language code.
        kind_column: column that splits the items further; tasks without it have no kinds.

    Raises:
        UserError: a task is not there (with the languages that have it), or its data cannot be read.
    """
    available = _task_files(folder)
    problems = [line for template in benchmarks.items() for line in _missing(*template, languages, available, folder)]
    if problems:
        raise UserError("\n".join(problems))
    with tempfile.TemporaryDirectory(prefix="lingact-tasks-") as cache, _quiet():
        return [
            Placed(benchmark, code, _load(available[_task_name(template, code)], Path(cache)), kind_column)
            for benchmark, template in benchmarks.items()
            for code in languages
        ]


def _task_name(template: str, code: str) -> str:
    return template.replace("{lang}", code)


def _task_files(folder: Path | None) -> dict[str, Path]:
    """Task name -> YAML file. Read as text: parsing lm-eval's 14,000 task files takes ten seconds, this 0.3."""
    import lm_eval.tasks

    root = folder.absolute() if folder else Path(lm_eval.tasks.__file__).parent
    found: dict[str, Path] = {}
    for place, folders, files in os.walk(root):
        folders.sort()
        for file in sorted(files):
            if file.endswith((".yaml", ".yml")) and (line := _TASK_LINE.search(Path(place, file).read_bytes())):
                found.setdefault(line[1].decode(), Path(place, file))
    return found


def _missing(benchmark: str, template: str, languages: Sequence[str], available: Mapping[str, Path], folder: Path | None) -> Iterator[str]:
    """A line if a benchmark lacks the task in some of the languages."""
    where = f"'{folder}'" if folder else "lm-eval"
    lacking = [code for code in languages if _task_name(template, code) not in available]
    having = [code for code in LANGUAGES if _task_name(template, code) in available]
    if not lacking:
        return
    names = ", ".join(f"'{_task_name(template, code)}'" for code in lacking)
    if having and "{lang}" in template:
        yield (
            f"tasks.benchmarks.{benchmark}: {where} has no task {names}; '{template}' exists for {', '.join(having)}. "
            "Leave the other languages or the benchmark out"
        )
    else:
        hint = nearest(_task_name(template, lacking[0]), available)
        yield f"tasks.benchmarks.{benchmark}: {where} has no task {names}{hint} Check task and tasks.folder (options: conf/tasks/)"


def _load(path: Path, cache: Path) -> "Task":
    """One task, with its data in memory."""
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._yaml_loader import load_yaml

    try:
        config = load_yaml(path)
    except (OSError, ValueError, ImportError, AttributeError) as error:
        raise UserError(f"tasks: '{path}' cannot be read: {error}") from error
    config.pop("tag", None)
    source = config.get("dataset_path")
    arguments = dict(config.get("dataset_kwargs") or {})
    if source == "json" and set(arguments) == {"data_files"}:
        # Read here, not by `datasets`, which would leave a copy in the user's cache and take seconds for thirty files.
        files = _splits(path, arguments["data_files"])
        rows = {split: [row for file in names for row in _rows(file)] for split, names in files.items()}
        config |= {"dataset_kwargs": None, "custom_dataset": functools.partial(_in_memory, rows)}
    elif isinstance(source, str) and "data_files" in arguments:
        files = {split: [str(file) for file in names] for split, names in _splits(path, arguments["data_files"]).items()}
        config["dataset_kwargs"] = arguments | {"data_files": files, "cache_dir": str(cache), "keep_in_memory": True}
    try:
        loaded = TaskManager(include_defaults=False).load([config])["tasks"]
    except OSError as error:  # not on the hub, gated, or no network
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"tasks: the data of '{config['task']}' ({source}) cannot be had: {reason} For a gated data set accept its terms on its hub "
            "page and run `hf auth login`"
        ) from error
    (task,) = loaded.values()
    if task.OUTPUT_TYPE != "multiple_choice":
        raise UserError(f"tasks: '{config['task']}' has the output type {task.OUTPUT_TYPE}; only multiple_choice tasks can be compared item by item")
    return task


def _splits(path: Path, data_files: Any) -> dict[str, list[Path]]:
    """Data files by split, relative to the YAML file."""
    by_split = data_files if isinstance(data_files, dict) else {"train": data_files}
    files = {split: [path.parent / name for name in ([names] if isinstance(names, str) else names)] for split, names in by_split.items()}
    for file in (file for names in files.values() for file in names):
        if not file.is_file():
            raise UserError(f"tasks: '{path}' names the data file '{file}', which is not there")
    return files


def _rows(file: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file, or of a JSON file with a list."""
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"tasks: '{file}' is not UTF-8 (byte {error.start}); it is cut off or in another encoding") from None
    is_list = text.lstrip().startswith("[")
    pieces = [(1, text)] if is_list else [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    rows = []
    for number, piece in pieces:
        try:
            read = json.loads(piece)
        except json.JSONDecodeError as error:
            line = number + error.lineno - 1
            raise UserError(f"tasks: '{file}' line {line} is not JSON ({error.msg}); the file is cut off or damaged") from None
        rows += read if is_list else [read]
    if not rows:
        raise UserError(f"tasks: '{file}' has no items")
    return rows


def _in_memory(rows: dict[str, list[dict[str, Any]]], **_metadata: object) -> dict[str, Any]:
    """What lm-eval asks for as `custom_dataset`: it passes the task's metadata along."""
    from datasets import Dataset

    return {split: Dataset.from_list(items) for split, items in rows.items()}


# --- running -------------------------------------------------------------------------------------------------------------------------------------


def evaluate(
    model: nn.Module, tokenizer: "PreTrainedTokenizerBase", tasks: Sequence[Placed], *, context: int, batch_size: int, limit: int | None, label: str
) -> EvalRun:
    """Score every document of the tasks with the model as it is, adapter on or off. The model is left in eval mode.

    BOS goes in where the tokenizer itself adds it, as in lm-eval.

    Args:
        context: tokens that the model takes.
        batch_size: prompts with an option per forward pass.
        limit: documents per task, the first ones; None: all.
        label: what the progress bar says.

    Raises:
        UserError: an option cannot be scored: longer than the context, or without a token of its own.
    """
    from lm_eval.evaluator import evaluate as run_tasks
    from lm_eval.models.huggingface import HFLM

    class Model(HFLM):
        truncated = 0

        def _loglikelihood_tokens(self, requests: Any, *arguments: Any, **settings: Any) -> Any:
            for (prompt, option), prompt_ids, option_ids in requests:
                _refuse_unscorable(prompt, option, len(option_ids), self.max_length)
                self.truncated += len(prompt_ids) + len(option_ids) > self.max_length + 1
            return super()._loglikelihood_tokens(requests, *arguments, **settings)

    _prepare(tasks)
    with _quiet(label):
        lm: Any = Model(pretrained=model, tokenizer=tokenizer, max_length=context, batch_size=batch_size)  # pyrefly: ignore[bad-argument-type]
        results = run_tasks(lm, {"tasks": {placed.task.task_name: placed.task for placed in tasks}}, limit=limit, bootstrap_iters=0)
    assert results is not None
    rows, samples = [], {}
    for placed in tasks:
        name = placed.task.task_name
        records = [_record(placed, sample) for sample in results["samples"][name]]
        rows += [
            {"task": name, "benchmark": placed.benchmark, "language": placed.language} | {column: record[column] for column in _COLUMNS}
            for record in records
        ]
        samples[name] = records
    items = pd.DataFrame(rows).astype({"item": object, "kind": object, "acc": float, "acc_norm": float})
    return EvalRun(items, samples, lm.truncated)


def _refuse_unscorable(prompt: str, option: str, tokens: int, context: int) -> None:
    if tokens > context:
        raise UserError(
            f"tasks: the option '{option.strip()[:40]}' has {tokens} tokens and model.context is {context}; raise it or leave the benchmark out"
        )
    if tokens == 0:
        raise UserError(
            f"tasks: the tokenizer merges the option '{option}' with the end of its prompt '{prompt[-40:]}'; give the task a target_delimiter"
        )


_COLUMNS = ("doc_id", "doc_hash", "prompt_hash", "item", "kind", "acc", "acc_norm", "options")


def _prepare(tasks: Sequence[Placed]) -> None:
    """Few-shot examples as lm-eval's command line draws them, anew for every model."""
    from lm_eval.defaults import DEFAULT_OTHER_SEED

    for placed in tasks:
        if placed.task.get_config("num_fewshot") is None:
            placed.task.set_config(key="num_fewshot", value=0)
        placed.task.set_fewshot_seed(seed=DEFAULT_OTHER_SEED)


def _record(placed: Placed, sample: Mapping[str, Any]) -> dict[str, Any]:
    doc, arguments = sample["doc"], sample["arguments"]
    scores = [float(score) for score, _ in sample["filtered_resps"]]
    options = placed.task.doc_to_choice(doc)  # pyrefly: ignore[missing-attribute]
    kind = doc.get(placed.kind_column) if placed.kind_column else None
    return {
        "doc_id": sample["doc_id"],
        "item": None if doc.get("id") is None else str(doc["id"]),
        "kind": None if kind is None else str(kind),
        "acc": float(sample["acc"]),
        "acc_norm": float(sample.get("acc_norm", float("nan"))),
        "options": len(options),
        "gold": sample["target"],
        "prompt": arguments[0][0],
        "choices": [argument[1] for argument in arguments],
        "loglikelihood": scores,
        "doc_hash": sample["doc_hash"],
        "prompt_hash": sample["prompt_hash"],
    }


@contextmanager
def _quiet(label: str | None = None) -> Iterator[None]:
    """Of lm-eval's bars leave the one over requests, named `label`, and of its log nothing below errors; everything is put back afterwards.

    Its warnings say that a model object was passed and that prompts were cut; the latter are counted instead.
    """
    import datasets
    import lm_eval.api.model
    import lm_eval.api.task
    import lm_eval.models.huggingface
    import lm_eval.utils
    from tqdm import tqdm

    def off(*arguments: Any, **settings: Any) -> tqdm:
        return tqdm(*arguments, **settings | {"disable": True})

    def named(*arguments: Any, **settings: Any) -> tqdm:
        return tqdm(*arguments, **settings | {"desc": label, "unit": " options", "disable": label is None})

    logger = logging.getLogger("lm_eval")
    level, bars = logger.level, datasets.are_progress_bars_disabled()
    logger.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    # lm-eval compiles a task's templates anew for every document, which takes longer than a small model needs to answer.
    compiled = functools.cache(lm_eval.utils.env.from_string)
    try:
        with ExitStack() as patches:
            for owner, name, replacement in (
                (lm_eval.api.task, "tqdm", off),
                (lm_eval.api.model, "tqdm", off),
                (lm_eval.models.huggingface, "tqdm", named),
                (lm_eval.utils.env, "from_string", compiled),
            ):
                patches.enter_context(patch.object(owner, name, replacement))
            yield
    finally:
        logger.setLevel(level)
        if not bars:
            datasets.enable_progress_bars()
