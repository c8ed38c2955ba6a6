"""Score the questions with a model in memory, by lm-eval's own scoring; the result has one row per document.

The steps of lm-eval's `evaluate` (requests, log-likelihoods, filters, metrics) are called one by one, so that every finished task is stored at once.
lm-eval's own cache of answers is never used, because its key does not name the model.
"""

import copy
import functools
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, cast

import numpy as np
import pandas as pd
from torch import nn
from tqdm import tqdm

from lingact.data.tokens import Tokens
from lingact.errors import UserError, out_of_memory
from lingact.evaluation.tasks import Question, TaskInstance, quiet
from lingact.files.atomic import write_atomically
from lingact.files.records import read_json_object
from lingact.models.finite import beyond
from lingact.models.lm import LanguageModel
from lingact.runtime import interrupts
from lingact.runtime.compat.huggingface import attention_implementation
from lingact.runtime.compat.lm_eval import scoring_moves
from lingact.runtime.distributed import all_gather, broadcast, rank, world

if TYPE_CHECKING:
    from lm_eval.models.huggingface import HFLM
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

    class _Harness(HFLM):
        truncated: int
        tokens: Tokens | None

    Request = tuple[tuple[str, str], list[int], list[int]]


MOST_AT_ONCE = 64
"""The largest number of options per forward pass that `auto` starts with."""
_BYTES_PER_LOGIT = 10
"""A logit in half precision and in float32, and its log probability."""
_CPU_BUDGET = 2 << 30
_COLUMNS = ("doc_id", "doc_hash", "prompt_hash", "item", "kind", "acc", "acc_norm", "options")


Identity = Mapping[str, str | int | Mapping[str, str] | None]
"""Everything that stored answers depend on."""
Answer = Sequence[float | bool]
"""Log-likelihood of an option in nats, and whether it is the likeliest continuation."""


class TaskAnswers(TypedDict):
    """The answers of one model to one task."""

    answers: Sequence[Answer]
    """One per option, in the order of the requests."""
    truncated: int
    """Prompts that were longer than the context and lost their beginning."""


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


@dataclass(frozen=True)
class AnswerCache:
    """Stored answers: a file for each task and model, named by a hash of everything that the answers depend on."""

    folder: Path

    def get(self, identity: Identity) -> Any:  # the content of a JSON file
        """What is stored under this identity: `TaskAnswers`, or the cross-entropies of a text; None if nothing is.

        Raises:
            UserError: the file is damaged.
        """
        path = self._path(identity)
        if not path.is_file():
            return None
        kept = read_json_object(path, "delete it", needed=("identity", "answers"))
        return kept["answers"] if kept["identity"] == identity else None

    def put(self, identity: Identity, answers: TaskAnswers | Mapping[str, Sequence[float]]) -> None:
        """Store answers in one step: the file is complete, or is not there."""
        write_atomically(self._path(identity), json.dumps({"identity": identity, "answers": answers}))

    def _path(self, identity: Identity) -> Path:
        return self.folder / f"{hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()}.json"


def identity_of(lm: LanguageModel, adapter: str | None) -> dict[str, str | int | Mapping[str, str] | None]:
    """Everything but the questions that the answers of a model depend on.

    Args:
        lm: the model.
        adapter: hash of its weights; None: switched off, or there is none.
    """
    backend = getattr(lm.tokenizer, "backend_tokenizer", None)
    content = backend.to_str() if backend is not None else json.dumps(sorted(lm.tokenizer.get_vocab().items()))
    model: dict[str, str | int | Mapping[str, str] | None] = {
        name: lm.identity[name] for name in ("sha256", "dtype", "config_sha256") if name in lm.identity
    }
    return model | {
        "attention": attention_implementation(lm.model),
        "adapter": adapter,
        "tokenizer": hashlib.sha256(content.encode()).hexdigest(),
        "device": lm.device.type,
        "context": lm.tokens.context,
        "versions": {name: version(name) for name in ("lingact", "lm-eval", "transformers", "torch", "peft")},
    }


def batch_size_for(lm: LanguageModel, tasks: Sequence[TaskInstance]) -> int:
    """Options per forward pass: a power of two whose logits fit into half of the memory that the weights leave free.

    It depends on shapes alone, so that it is the same in every run.
    """
    import torch

    longest = max((sum(len(part.encode()) for part in _pair(request.args)) for instance in tasks for request in instance.requests), default=1)
    tokens = min(lm.tokens.context, longest)  # a token is at least one byte of text
    vocabulary = lm.model.get_input_embeddings().weight.shape[0]  # pyrefly: ignore[not-callable]
    budget = _CPU_BUDGET
    if lm.device.type == "cuda":
        weights = sum(parameter.numel() * parameter.element_size() for parameter in lm.model.parameters())
        budget = max(_CPU_BUDGET, (torch.cuda.get_device_properties(lm.device).total_memory - weights) // 2)
    fits = max(1, budget // (tokens * vocabulary * _BYTES_PER_LOGIT))
    return min(MOST_AT_ONCE, 1 << (fits.bit_length() - 1))


class Scorer:
    """Scores tasks with a model as it is, adapter on or off, and stores the answers."""

    def __init__(self, lm: LanguageModel, batch_size: int, answers: AnswerCache | None, bar: tqdm) -> None:
        self.lm = lm
        self.batch_size = batch_size
        """Options per forward pass. It becomes smaller when the device runs out of memory."""
        self.answers = answers
        """Where answers are stored; None: nowhere."""
        self.kept = 0
        """Number of stored answers so far, counting each task once per model."""
        self._asked_for = batch_size
        self._bar = bar

    def score(self, model: nn.Module, tasks: Sequence[TaskInstance], adapter: str | None) -> EvalRun:
        """Score every question. The model is left in eval mode. BOS is added where the tokenizer itself adds it, as in lm-eval.

        Args:
            model: the module of `lm`, with or without an adapter.
            tasks: with their questions.
            adapter: hash of the active adapter's weights; None: the base model.

        Raises:
            UserError: an option cannot be scored because it is longer than the context or has no token of its own.
        """
        identity = identity_of(self.lm, adapter) | {"batch_size": self._asked_for}
        identities = [identity | {"task": instance.entry.task, "questions": instance.sha256} for instance in tasks]
        rows, samples, truncated = [], {}, 0
        for instance, found in zip(tasks, self._answers(model, tasks, identities), strict=True):
            self._refuse_lost(instance, found["answers"])  # stored answers are checked too
            with quiet():
                records = _records(instance, found["answers"])
            whose = {"task": instance.entry.task, "benchmark": instance.entry.benchmark, "language": instance.entry.language}
            rows += [whose | {column: record[column] for column in _COLUMNS} for record in records]
            samples[instance.entry.task] = records
            truncated += found["truncated"]
        items = pd.DataFrame(rows).astype({"item": object, "kind": object, "acc": float, "acc_norm": float})
        return EvalRun(items, samples, truncated)

    def _answers(self, model: nn.Module, tasks: Sequence[TaskInstance], identities: Sequence[Identity]) -> list[TaskAnswers]:
        """The answers to every task. Tasks without stored answers are divided among the processes whole, because batches depend on each other."""
        found: dict[int, TaskAnswers] = {}
        if self.answers and rank() == 0:
            found = {number: kept for number, asked in enumerate(identities) if (kept := self.answers.get(asked)) is not None}
        found = broadcast(found)
        self.kept += len(found)
        self._bar.update(sum(len(tasks[number].requests) for number in found))
        self._bar.unpause()
        missing = [number for number in range(len(tasks)) if number not in found]
        own = missing[rank() :: world()]
        harness = self._harness(model) if own else None
        for number in own:
            assert harness is not None
            found[number] = self._answer(harness, tasks[number])
            if self.answers:
                with interrupts.deferred():
                    self.answers.put(identities[number], found[number])
                    self.kept += 1
        shares = all_gather(({number: found[number] for number in own}, self.batch_size))
        self._bar.update(sum(len(tasks[number].requests) for number in set(missing) - set(own)))
        self.batch_size = min(size for _, size in shares)
        for share, _ in shares:
            found |= share
        self.kept += len(missing) - len(own)
        return [found[number] for number in range(len(tasks))]

    def _harness(self, model: nn.Module) -> "_Harness":
        with quiet():
            harness = _harness_class()(
                pretrained=cast("PreTrainedModel", model),
                tokenizer=cast("PreTrainedTokenizerFast", _with_padding(self.lm.tokenizer)),
                max_length=self.lm.tokens.context,
                batch_size=self.batch_size,
            )
        harness.tokens = self.lm.tokens
        return harness

    def _answer(self, harness: "_Harness", instance: TaskInstance) -> TaskAnswers:
        """Score one task. When the device runs out of memory, the batch size is halved and the task starts again."""
        start = self._bar.n
        with quiet(), scoring_moves(self._bar):
            while True:
                harness.truncated = 0
                try:
                    found = harness.loglikelihood(instance.requests)
                    break
                except (RuntimeError, MemoryError) as error:
                    if not out_of_memory(error) or self.batch_size == 1:
                        raise
                self.batch_size //= 2
                harness.batch_size_per_gpu = self.batch_size
                self._bar.n = start
        answers = [[float(score), bool(greedy)] for score, greedy in found]
        self._refuse_lost(instance, answers)
        return {"answers": answers, "truncated": harness.truncated}

    def _refuse_lost(self, instance: TaskInstance, answers: Sequence[Answer]) -> None:
        """Refuse log-likelihoods that are NaN, which would make the first option count as the best one.

        Raises:
            UserError: with the task and what to do.
        """
        lost = sum(math.isnan(score) for score, _ in answers)
        if lost:
            dtype = str(self.lm.identity.get("dtype", "float32"))
            raise UserError(
                f"tasks: {lost} of {len(answers)} options of '{instance.entry.task}' have no finite log-likelihood, so that its answers cannot be "
                f"scored. Most likely {beyond(dtype)}"
            )


@functools.cache
def _harness_class() -> "type[_Harness]":
    """A subclass of lm-eval's model that refuses what cannot be scored and counts what is truncated. Made late, because importing lm-eval is slow."""
    from lm_eval.models.huggingface import HFLM

    class Harness(HFLM):
        truncated = 0
        tokens: Tokens | None = None

        def _loglikelihood_tokens(self, requests: "list[Request]", *arguments: Any, **settings: Any) -> list[tuple[float, bool]]:
            for (prompt, option), prompt_ids, option_ids in requests:
                if self.tokens is not None:
                    self.tokens.refuse_beyond([*prompt_ids, *option_ids], f"in a question of the benchmark ({(prompt + option)[-60:]!r})")
                _refuse_unscorable(prompt, option, len(option_ids), self.max_length)
                self.truncated += len(prompt_ids) + len(option_ids) > self.max_length + 1
            return super()._loglikelihood_tokens(requests, *arguments, **settings)

    return Harness  # pyrefly: ignore[bad-return] (`_Harness` is its type)


def _with_padding(tokenizer: "PreTrainedTokenizerBase") -> "PreTrainedTokenizerBase":
    """A tokenizer with a padding token; a copy if it has none. lm-eval would add a new token, whose id is beyond the embedding."""
    if tokenizer.pad_token is not None:
        return tokenizer
    padded = copy.deepcopy(tokenizer)
    padded.pad_token = tokenizer.unk_token or tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    return padded


def _pair(arguments: tuple) -> tuple[str, str]:
    """Prompt and option of a request."""
    prompt, option = arguments[:2]
    return prompt, option


def _refuse_unscorable(prompt: str, option: str, tokens: int, context: int) -> None:
    if tokens > context:
        raise UserError(
            f"tasks: the option '{option.strip()[:40]}' has {tokens} tokens, and model.context is {context}; raise it, or leave the benchmark out"
        )
    if tokens == 0:
        raise UserError(
            f"tasks: the tokenizer merges the option '{option}' with the end of its prompt '{prompt[-40:]}'; give the task a target_delimiter"
        )


def _records(instance: TaskInstance, answers: Sequence[Answer]) -> list[Record]:
    """The documents of a task with lm-eval's scores of the answers."""
    requests = instance.requests
    assert len(answers) == len(requests)
    for request, (score, greedy) in zip(requests, answers, strict=True):
        request.resps, request.filtered_resps = [(score, greedy)], {}
    instance.task.apply_filters()
    return [_record(instance, question) for question in instance.questions]


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
        "choices": [_pair(request.args)[1] for request in question.requests],
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


def results(tasks: Sequence[TaskInstance], run: EvalRun, model: Mapping[str, str | int | None]) -> dict[str, Any]:
    """The scores in the format of `lm_eval --output_path`, for leaderboards and other tools.

    Args:
        tasks: that were scored.
        run: their answers.
        model: the section `config` of the result.
    """
    from lm_eval.api.metrics import mean, mean_stderr  # they sum in the same order, so that the last digit agrees

    found: dict[str, Any] = {name: {} for name in ("results", "group_subtasks", "configs", "versions", "n-shot", "higher_is_better", "n-samples")}
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
    return found | {"config": model, "lm_eval_version": version("lm-eval"), "transformers_version": version("transformers")}
