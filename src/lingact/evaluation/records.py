"""Documents with a model's answers, scored by lm-eval's own filters and metrics."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import NotRequired, TypedDict

import numpy as np
import pandas as pd

from lingact.errors import UserError
from lingact.evaluation.answers import TaskAnswers
from lingact.evaluation.prompt_activations import PromptActivations
from lingact.evaluation.tasks import Question, TaskInstance, prompt_and_option


class Record(TypedDict):
    """One document with a model's answer."""

    doc_id: int
    item: str | None
    kind: str | None
    acc: float
    acc_norm: float
    options: int
    """Number of options."""
    gold: int | str | list[int] | list[str]
    """The right option: its place, or as the task file gives it."""
    prompt: str
    choices: list[str]
    loglikelihood: list[float]
    """Of each option, in nats."""
    activations: NotRequired[PromptActivations]
    """Of the prompt."""
    doc_hash: str
    prompt_hash: str
    target_hash: str


@dataclass(frozen=True)
class EvalRun:
    """The answers of one model to every document."""

    items: pd.DataFrame
    """One row per document, in the order of the tasks: an item table as `lingact.evaluation.compare` describes it."""
    samples: dict[str, list[Record]]
    """Task -> the same documents with prompt, options, gold answer and log-likelihoods."""
    truncated: int
    """Prompts that, with an option, were longer than the context and lost their beginning."""


def records_of(instance: TaskInstance, found: TaskAnswers) -> list[Record]:
    """The documents of a task with lm-eval's scores of the answers, and the activations of their prompts where they were kept."""
    requests, answers = instance.requests, found["answers"]
    assert len(answers) == len(requests)
    for request, (score, greedy) in zip(requests, answers, strict=True):
        request.resps, request.filtered_resps = [(score, greedy)], {}
    instance.task.apply_filters()
    records = [_record(instance, question) for question in instance.questions]
    if "prompts" not in found:
        return records
    return [{**record, "activations": prompt} for record, prompt in zip(records, found["prompts"], strict=True)]


def _record(instance: TaskInstance, question: Question) -> Record:
    from lm_eval.utils import handle_non_serializable, hash_string

    first = question.requests[0]
    key = next(iter(first.filtered_resps))
    answered: list[tuple[float, bool]] = [request.filtered_resps[key] for request in question.requests]
    doc, scores = first.doc, [float(score) for score, _ in answered]
    metrics: dict[str, float] = instance.task.process_results(doc, answered)
    target = instance.task.doc_to_target(doc)
    options = instance.task.doc_to_choice(doc)
    if "acc" not in metrics:
        raise UserError(f"tasks: '{instance.entry.task}' has the metrics {', '.join(metrics)} and no acc; add it to its metric_list")
    content = json.dumps(doc, indent=2, default=handle_non_serializable, ensure_ascii=False)
    return {
        "doc_id": question.doc_id,
        "item": question.item,
        "kind": question.kind,
        "acc": float(metrics["acc"]),
        "acc_norm": float(metrics.get("acc_norm", _length_normalised(scores, options, target))),
        "options": len(options),
        "gold": target,
        "prompt": first.args[0],
        "choices": [prompt_and_option(request.args)[1] for request in question.requests],
        "loglikelihood": scores,
        "doc_hash": hash_string(content),
        "prompt_hash": hash_string(first.args[0]),
        "target_hash": hash_string(str(target)),
    }


def _length_normalised(scores: Sequence[float], options: Sequence[str], target: int | str | list) -> float:
    """lm-eval's acc_norm for task files that do not ask for it: whether the best option by log-likelihood per character is the right one."""
    if len(scores) != len(options) or not isinstance(target, (int, str)):
        return float("nan")
    gold = target if isinstance(target, int) else list(options).index(target) if target in options else -1
    return float(int(np.argmax(np.array(scores) / np.array([float(len(option)) for option in options]))) == gold)


# --- for other tools -----------------------------------------------------------------------------------------------------------------------------


Results = TypedDict(
    "Results",
    {
        "results": dict[str, dict[str, str | int | float]],
        "group_subtasks": dict[str, list[str]],
        "configs": dict[str, dict[str, str | int | float | list | bool]],
        "versions": dict[str, str | int | float | None],
        "n-shot": dict[str, int],
        "higher_is_better": dict[str, dict[str, bool]],
        "n-samples": dict[str, dict[str, int]],
        "config": Mapping[str, str | int | None],
        "lm_eval_version": str,
        "transformers_version": str,
    },
)
"""What `lm_eval --output_path` writes; all but the last three are by task."""


def results(tasks: Sequence[TaskInstance], run: EvalRun, model: Mapping[str, str | int | None]) -> Results:
    """The scores in the format of `lm_eval --output_path`, for leaderboards and other tools.

    Args:
        tasks: that were scored.
        run: their answers.
        model: the section `config` of the result.
    """
    from lm_eval.api.metrics import mean, mean_stderr  # they sum in the same order, so that the last digit agrees

    found: Results = {
        "results": {},
        "group_subtasks": {},
        "configs": {},
        "versions": {},
        "n-shot": {},
        "higher_is_better": {},
        "n-samples": {},
        "config": model,
        "lm_eval_version": version("lm-eval"),
        "transformers_version": version("transformers"),
    }
    for instance in tasks:
        name, records = instance.entry.task, run.samples[instance.entry.task]
        wanted = instance.task.higher_is_better()
        scores: dict[str, str | int | float] = {"name": name, "alias": name, "sample_len": len(records)}
        for metric in [metric for metric in ("acc", "acc_norm") if metric in wanted]:
            values = [record["acc" if metric == "acc" else "acc_norm"] for record in records]
            error = mean_stderr(values) if len(values) > 1 else "N/A"
            scores |= {f"{metric},none": mean(values), f"{metric}_stderr,none": error}
        found["results"][name] = scores
        found["group_subtasks"][name] = []
        settings = instance.task.dump_config()
        settings.pop("custom_dataset", None)  # it holds the data themselves
        found["configs"][name] = {key: value for key, value in settings.items() if isinstance(value, (str, int, float, list, bool))}
        found["versions"][name] = instance.task.VERSION
        found["n-shot"][name] = instance.task.get_config("num_fewshot") or 0
        found["higher_is_better"][name] = wanted
        found["n-samples"][name] = {"original": instance.total, "effective": len(records)}
    return found
