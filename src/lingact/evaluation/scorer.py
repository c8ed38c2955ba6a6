"""Score the questions with a model in memory, by lm-eval's own scoring; the result has one row per document.

The steps of lm-eval's `evaluate` (requests, log-likelihoods, filters, metrics) are called one by one, so that every finished task is stored at once.
"""

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd
from torch import nn
from tqdm import tqdm

from lingact.errors import UserError, out_of_memory
from lingact.evaluation.answers import Answer, AnswerCache, Identity, TaskAnswers, identity_of
from lingact.evaluation.loglikelihoods import answers_to, harness_of
from lingact.evaluation.prompt_activations import PromptReader
from lingact.evaluation.records import EvalRun, records_of
from lingact.evaluation.tasks import TaskInstance, libraries_silenced
from lingact.models.finite import beyond
from lingact.models.lm import LanguageModel
from lingact.runtime import interrupts
from lingact.runtime.distributed import all_gather, broadcast, rank, world

if TYPE_CHECKING:
    from lingact.evaluation.loglikelihoods import Harness

_COLUMNS = ("doc_id", "doc_hash", "prompt_hash", "item", "kind", "acc", "acc_norm", "options")


class Scorer:
    """Scores tasks with a model as it is, adapter on or off, and stores the answers."""

    def __init__(self, lm: LanguageModel, batch_size: int, answers: AnswerCache | None, bar: tqdm, reader: PromptReader | None = None) -> None:
        self.lm = lm
        self.reader = reader
        """Keeps activations of the prompts; None: they are not kept."""
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
        if self.reader is not None:
            identity |= {"prompts": self.reader.identity}
        identities = [identity | {"task": instance.entry.task, "questions": instance.sha256} for instance in tasks]
        rows, samples, truncated = [], {}, 0
        for instance, found in zip(tasks, self._answers(model, tasks, identities), strict=True):
            self._refuse_lost(instance, found["answers"])  # stored answers are checked too
            with libraries_silenced():
                records = records_of(instance, found)
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
        harness = harness_of(self.lm, model, self.batch_size, self.reader) if own else None
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

    def _answer(self, harness: "Harness", instance: TaskInstance) -> TaskAnswers:
        """Score one task. When the device runs out of memory, the batch size is halved and the task starts again."""
        start = self._bar.n
        while True:
            try:
                found = answers_to(instance.requests, harness, self.batch_size, self._bar)
                break
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error) or self.batch_size == 1:
                    raise
            self.batch_size //= 2
            self._bar.n = start
        self._refuse_lost(instance, found["answers"])
        if "prompts" in found:
            firsts = itertools.accumulate((len(question.requests) for question in instance.questions[:-1]), initial=0)
            found["prompts"] = [found["prompts"][place] for place in firsts]
        return found

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
