"""What a model answers: questions through lm-eval's own scoring, with a model that is in memory already; one row per document out.

lm-eval's parts are driven here one by one as its `evaluate` does it (requests, log-likelihoods, filters, metrics), so that a finished task can be
kept at once. Its answer cache is never used: its key does not name the model.
"""

import copy
import functools
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

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

    class _Harness(HFLM):
        truncated: int
        tokens: Tokens | None


MOST_AT_ONCE = 64
"""Options per forward pass that `auto` begins with at most."""
_BYTES_PER_LOGIT = 10
"""Of a logit in half precision, in float32, and of its log probability."""
_CPU_BUDGET = 2 << 30
_COLUMNS = ("doc_id", "doc_hash", "prompt_hash", "item", "kind", "acc", "acc_norm", "options")


@dataclass(frozen=True)
class EvalRun:
    """What one model did on every document."""

    items: pd.DataFrame
    """One row per document, in the order of the tasks: the item table that `lingact.evaluation.compare` describes."""
    samples: dict[str, list[dict[str, Any]]]
    """Task -> the same documents with prompt, options, gold answer and log-likelihoods in nats."""
    truncated: int
    """Prompts with an option that were longer than the context and lost their beginning."""


@dataclass(frozen=True)
class Answers:
    """What models have answered, each task in a file under the hash of everything that the answers depend on."""

    folder: Path

    def recall(self, identity: dict[str, Any]) -> dict[str, Any] | None:
        """What was kept under this identity.

        Raises:
            UserError: the file is damaged.
        """
        path = self._path(identity)
        if not path.is_file():
            return None
        kept = read_json_object(path, "delete it", needed=("identity", "answers"))
        return kept["answers"] if kept["identity"] == identity else None

    def keep(self, identity: dict[str, Any], answers: dict[str, Any]) -> None:
        """Write it whole or not at all."""
        write_atomically(self._path(identity), json.dumps({"identity": identity, "answers": answers}))

    def _path(self, identity: dict[str, Any]) -> Path:
        return self.folder / f"{hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()}.json"


def identity_of(lm: LanguageModel, adapter: str | None) -> dict[str, Any]:
    """What the answers of a model depend on beside the questions.

    Args:
        adapter: hash of its weights; None: switched off or not there.
    """
    backend: Any = getattr(lm.tokenizer, "backend_tokenizer", None)
    spelt = backend.to_str() if backend is not None else json.dumps(sorted(lm.tokenizer.get_vocab().items()))
    return {name: lm.identity[name] for name in ("sha256", "dtype", "config_sha256") if name in lm.identity} | {
        "attention": attention_implementation(lm.model),
        "adapter": adapter,
        "tokenizer": hashlib.sha256(spelt.encode()).hexdigest(),
        "device": lm.device.type,
        "context": lm.tokens.context,
        "versions": {name: version(name) for name in ("lingact", "lm-eval", "transformers", "torch", "peft")},
    }


def batch_size_for(lm: LanguageModel, tasks: Sequence[TaskInstance]) -> int:
    """Options per forward pass: a power of two whose logits fit into what the device can spare. Shapes decide, so that it never varies."""
    import torch

    longest = max((sum(len(part.encode()) for part in _pair(request.args)) for instance in tasks for request in instance.requests), default=1)
    tokens = min(lm.tokens.context, longest)  # a token is at least a byte of text, mostly more
    vocabulary = lm.model.get_input_embeddings().weight.shape[0]  # pyrefly: ignore[not-callable]
    budget = _CPU_BUDGET
    if lm.device.type == "cuda":
        weights = sum(parameter.numel() * parameter.element_size() for parameter in lm.model.parameters())
        budget = max(_CPU_BUDGET, (torch.cuda.get_device_properties(lm.device).total_memory - weights) // 2)
    fits = max(1, budget // (tokens * vocabulary * _BYTES_PER_LOGIT))
    return min(MOST_AT_ONCE, 1 << (fits.bit_length() - 1))


class Scorer:
    """Scores tasks with a model as it is, adapter on or off, and keeps what it has answered."""

    def __init__(self, lm: LanguageModel, batch_size: int, answers: Answers | None, bar: tqdm) -> None:
        self.lm = lm
        self.batch_size = batch_size
        """Options per forward pass. Smaller after the device ran out of memory."""
        self.answers = answers
        """Where answers are kept; None: nowhere."""
        self.kept = 0
        """Tasks, each time for one model, whose answers lie there."""
        self._asked_for = batch_size
        self._bar = bar

    def score(self, model: nn.Module, tasks: Sequence[TaskInstance], adapter: str | None) -> EvalRun:
        """Score every question. The model is left in eval mode. BOS goes in where the tokenizer itself adds it, as in lm-eval.

        Args:
            adapter: hash of the active adapter's weights; None: the base model.

        Raises:
            UserError: an option cannot be scored: longer than the context, or without a token of its own.
        """
        identity = identity_of(self.lm, adapter) | {"batch_size": self._asked_for}
        identities = [identity | {"task": instance.entry.task, "questions": instance.sha256} for instance in tasks]
        rows, samples, truncated = [], {}, 0
        for instance, found in zip(tasks, self._answers(model, tasks, identities), strict=True):
            self._refuse_lost(instance, found["answers"])  # also of those that were kept before
            with quiet():
                records = _records(instance, found["answers"])
            whose = {"task": instance.entry.task, "benchmark": instance.entry.benchmark, "language": instance.entry.language}
            rows += [whose | {column: record[column] for column in _COLUMNS} for record in records]
            samples[instance.entry.task] = records
            truncated += found["truncated"]
        items = pd.DataFrame(rows).astype({"item": object, "kind": object, "acc": float, "acc_norm": float})
        return EvalRun(items, samples, truncated)

    def _answers(self, model: nn.Module, tasks: Sequence[TaskInstance], identities: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The answers to every task; those not kept are shared out task by task, because a task's batches hang together."""
        found: dict[int, dict[str, Any]] = {}
        if self.answers and rank() == 0:
            found = {number: kept for number, asked in enumerate(identities) if (kept := self.answers.recall(asked)) is not None}
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
                    self.answers.keep(identities[number], found[number])
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
            settings: dict[str, Any] = {"max_length": self.lm.tokens.context, "batch_size": self.batch_size}
            harness = _harness_class()(pretrained=model, tokenizer=_with_padding(self.lm.tokenizer), **settings)  # pyrefly: ignore[bad-argument-type]
        harness.tokens = self.lm.tokens
        return harness

    def _answer(self, harness: "_Harness", instance: TaskInstance) -> dict[str, Any]:
        """Log-likelihood of every option in nats and whether it is the likeliest continuation; and how many lost their beginning."""
        begun = self._bar.n
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
                self._bar.n = begun
        answers = [[float(score), bool(greedy)] for score, greedy in found]
        self._refuse_lost(instance, answers)
        return {"answers": answers, "truncated": harness.truncated}

    def _refuse_lost(self, instance: TaskInstance, answers: Sequence[Sequence[Any]]) -> None:
        """Refuse likelihoods that are no numbers: the first option would pass for the best one.

        Raises:
            UserError: with the task and what to do.
        """
        lost = sum(math.isnan(score) for score, _ in answers)
        if lost:
            dtype = str(self.lm.identity.get("dtype", "float32"))
            raise UserError(
                f"tasks: {lost} of {len(answers)} options of '{instance.entry.task}' have no finite log-likelihood, so that no answer can be told "
                f"right or wrong. Most likely {beyond(dtype)}"
            )


@functools.cache
def _harness_class() -> "type[_Harness]":
    """lm-eval's model that refuses what cannot be scored and counts what is cut; made when lm-eval is wanted, because importing it is slow."""
    from lm_eval.models.huggingface import HFLM

    class Harness(HFLM):
        truncated = 0
        tokens: Tokens | None = None

        def _loglikelihood_tokens(self, requests: Any, *arguments: Any, **settings: Any) -> Any:
            for (prompt, option), prompt_ids, option_ids in requests:
                if self.tokens is not None:
                    self.tokens.refuse_beyond([*prompt_ids, *option_ids], f"in a question of the benchmark ({(prompt + option)[-60:]!r})")
                _refuse_unscorable(prompt, option, len(option_ids), self.max_length)
                self.truncated += len(prompt_ids) + len(option_ids) > self.max_length + 1
            return super()._loglikelihood_tokens(requests, *arguments, **settings)

    return Harness  # pyrefly: ignore[bad-return] (it has all that is asked for)


def _with_padding(tokenizer: Any) -> Any:
    """One that has a padding token, which lm-eval would otherwise add to it, with an id beyond the embedding; ours stays as it is."""
    if tokenizer.pad_token is not None:
        return tokenizer
    tokenizer, known = copy.deepcopy(tokenizer), tokenizer.convert_ids_to_tokens(0)
    tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token or known
    return tokenizer


def _pair(arguments: tuple[Any, ...]) -> tuple[str, str]:
    """Prompt and option of a request."""
    prompt, option = arguments[:2]
    return prompt, option


def _refuse_unscorable(prompt: str, option: str, tokens: int, context: int) -> None:
    if tokens > context:
        raise UserError(
            f"tasks: the option '{option.strip()[:40]}' has {tokens} tokens and model.context is {context}; raise it or leave the benchmark out"
        )
    if tokens == 0:
        raise UserError(
            f"tasks: the tokenizer merges the option '{option}' with the end of its prompt '{prompt[-40:]}'; give the task a target_delimiter"
        )


def _records(instance: TaskInstance, answers: Sequence[Sequence[Any]]) -> list[dict[str, Any]]:
    """The documents of a task with what lm-eval makes of the answers."""
    requests = instance.requests
    assert len(answers) == len(requests)
    for request, (score, greedy) in zip(requests, answers, strict=True):
        request.resps, request.filtered_resps = [(score, greedy)], {}
    instance.task.apply_filters()
    return [_record(instance, question) for question in instance.questions]


def _record(instance: TaskInstance, question: Question) -> dict[str, Any]:
    from lm_eval.utils import handle_non_serializable, hash_string

    first = question.requests[0]
    key = next(iter(first.filtered_resps))
    answered: list[Any] = [request.filtered_resps[key] for request in question.requests]
    doc, scores = first.doc, [float(score) for score, _ in answered]
    metrics: dict[str, Any] = instance.task.process_results(doc, answered)  # pyrefly: ignore[bad-assignment]
    target = instance.task.doc_to_target(doc)
    options: list[str] = instance.task.doc_to_choice(doc)  # pyrefly: ignore[missing-attribute]
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


def _length_normalised(scores: Sequence[float], options: Sequence[str], target: Any) -> float:
    """lm-eval's acc_norm where a task file does not ask for it: the best option by log-likelihood per character."""
    if len(scores) != len(options) or not isinstance(target, (int, str)):
        return float("nan")
    gold = target if isinstance(target, int) else list(options).index(target) if target in options else -1
    return float(int(np.argmax(np.array(scores) / np.array([float(len(option)) for option in options]))) == gold)


# --- for other tools -----------------------------------------------------------------------------------------------------------------------------


def results(tasks: Sequence[TaskInstance], run: EvalRun, model: dict[str, Any]) -> dict[str, Any]:
    """The scores in lm-eval's result format, as `lm_eval --output_path` writes them, for leaderboards and other readers.

    Args:
        model: what stands under `config`.
    """
    from lm_eval.api.metrics import mean, mean_stderr  # summed in the same order, so that the last digit agrees

    found: dict[str, Any] = {name: {} for name in ("results", "group_subtasks", "configs", "versions", "n-shot", "higher_is_better", "n-samples")}
    for instance in tasks:
        name, records = instance.entry.task, run.samples[instance.entry.task]
        wanted: dict[str, Any] = instance.task.higher_is_better()  # pyrefly: ignore[bad-assignment]
        scores: dict[str, Any] = {"name": name, "alias": name, "sample_len": len(records)}
        for metric in [metric for metric in ("acc", "acc_norm") if metric in wanted]:
            values = [record[metric] for record in records]
            error = mean_stderr(values) if len(values) > 1 else "N/A"
            scores |= {f"{metric},none": mean(values), f"{metric}_stderr,none": error}
        found["results"][name] = scores
        found["group_subtasks"][name] = []
        settings = instance.task.dump_config()
        settings.pop("custom_dataset", None)  # the data themselves
        found["configs"][name] = {key: value for key, value in settings.items() if isinstance(value, (str, int, float, list, bool))}
        found["versions"][name] = instance.task.VERSION
        found["n-shot"][name] = instance.task.get_config("num_fewshot") or 0
        found["higher_is_better"][name] = wanted
        found["n-samples"][name] = {"original": instance.total, "effective": len(records)}
    return found | {"config": model, "lm_eval_version": version("lm-eval"), "transformers_version": version("transformers")}
