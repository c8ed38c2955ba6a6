"""Log-likelihoods of lm-eval's requests by a model in memory. lm-eval's own model class divides them into tokens; `option_scores` scores these.

lm-eval reads each option with its prompt, and computes the logits of every position: with Gemma's vocabulary that is several times the work.
"""

import copy
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, cast

from torch import nn
from tqdm import tqdm

from lingact.data.tokens import Tokens
from lingact.errors import UserError
from lingact.evaluation.answers import TaskAnswers
from lingact.evaluation.option_scores import PromptOptions, Score, alike, option_scores
from lingact.evaluation.prompt_activations import PromptActivations, PromptReader
from lingact.evaluation.tasks import TaskInstance, libraries_silenced, prompt_and_option
from lingact.models.lm import LanguageModel

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

    class Harness(HFLM):
        """lm-eval's model, with our own scores; it refuses what cannot be scored, and counts what is truncated."""

        truncated: int
        tokens: Tokens | None
        bar: tqdm | None
        reader: PromptReader | None
        prompts: list[PromptActivations]
        """Of each request; empty without a reader."""

    Request = tuple[tuple[str, str], list[int], list[int]]

MOST_AT_ONCE = 64
"""The largest number of options per forward pass that `auto` starts with."""
_CPU_BUDGET = 2 << 30


def batch_size_for(lm: LanguageModel, tasks: Sequence[TaskInstance]) -> int:
    """Options per forward pass: a power of two for which keys, values and activations of the longest question fit into half of the free memory.

    It depends on shapes alone, so that it is the same in every run.
    """
    import torch

    longest = max(
        (sum(len(part.encode()) for part in prompt_and_option(request.args)) for instance in tasks for request in instance.requests), default=1
    )
    tokens = min(lm.tokens.context, longest)  # a token is at least one byte of text
    budget = _CPU_BUDGET
    if lm.device.type == "cuda":
        weights = sum(parameter.numel() * parameter.element_size() for parameter in lm.model.parameters())
        budget = max(_CPU_BUDGET, (torch.cuda.get_device_properties(lm.device).total_memory - weights) // 2)
    fits = max(1, budget // (tokens * _bytes_per_token(lm)))
    return min(MOST_AT_ONCE, 1 << (fits.bit_length() - 1))


def _bytes_per_token(lm: LanguageModel) -> int:
    """Keys and values of all layers, as if each were as wide as the residual stream, and the widest activations of one."""
    widest = max(size for weight in lm.blocks[0].parameters() for size in weight.shape)
    return (2 * len(lm.blocks) * lm.d_model + 3 * widest + 8 * lm.d_model) * next(lm.model.parameters()).element_size()


def harness_of(lm: LanguageModel, model: nn.Module, batch_size: int, reader: PromptReader | None = None) -> "Harness":
    """lm-eval's model around the module of `lm`, with or without an adapter.

    Args:
        batch_size: options per forward pass, to begin with.
        reader: keeps activations of the prompts.
    """
    with libraries_silenced():
        harness = _harness_class()(
            pretrained=cast("PreTrainedModel", model),
            tokenizer=cast("PreTrainedTokenizerFast", _with_padding(lm.tokenizer)),
            max_length=lm.tokens.context,
            batch_size=batch_size,
        )
    harness.tokens, harness.reader = lm.tokens, reader
    return harness


def answers_to(requests: "Sequence[Instance]", harness: "Harness", batch_size: int, bar: tqdm) -> TaskAnswers:
    """Log-likelihoods of the options of one task, and with a reader the activations of the prompt of each request.

    Args:
        requests: prompts and options.
        harness: of `harness_of`.
        batch_size: options per forward pass.
        bar: is moved by one for each option.

    Raises:
        UserError: an option cannot be scored because it is longer than the context or has no token of its own.
        RuntimeError, MemoryError: the device ran out of memory; `errors.out_of_memory` recognises it.
    """
    harness.truncated, harness.batch_size_per_gpu, harness.bar = 0, batch_size, bar
    with libraries_silenced():
        found = harness.loglikelihood(list(requests))
    bar.refresh()
    answers: TaskAnswers = {"answers": [[float(score), bool(greedy)] for score, greedy in found], "truncated": harness.truncated}
    return answers if harness.reader is None else {**answers, "prompts": harness.prompts}


@functools.cache
def _harness_class() -> "type[Harness]":
    """Made late, because importing lm-eval is slow."""
    from lm_eval.models.huggingface import HFLM

    class Harness(HFLM):
        truncated = 0
        tokens: Tokens | None = None
        bar: tqdm | None = None
        reader: PromptReader | None = None
        prompts: "list[PromptActivations]" = []  # noqa: RUF012 (assigned, never changed)

        def _loglikelihood_tokens(
            self,
            requests: "list[Request]",
            disable_tqdm: bool = False,  # noqa: ARG002 (lm-eval's signature)
            override_bs: int | None = None,  # noqa: ARG002
        ) -> list[tuple[float, bool]]:
            assert self.tokens is not None
            assert self.bar is not None
            asked: dict[tuple[int, ...], dict[tuple[int, ...], list[int]]] = {}
            for place, ((prompt, option), prompt_ids, option_ids) in enumerate(requests):
                self.tokens.refuse_beyond([*prompt_ids, *option_ids], f"in a question of the benchmark ({(prompt + option)[-60:]!r})")
                _refuse_unscorable(prompt, option, len(option_ids), self.max_length)
                self.truncated += len(prompt_ids) + len(option_ids) > self.max_length + 1
                # What does not fit loses its beginning. The option's last token is predicted, not read.
                read = tuple(prompt_ids[-(self.max_length + 1 - len(option_ids)) :])
                asked.setdefault(read, {}).setdefault(tuple(option_ids), []).append(place)
            found: list[Score] = [(0.0, False)] * len(requests)
            order: list[tuple[int, ...]] = []
            if self.reader is not None:
                self.reader.take()  # of an attempt that ran out of memory
            for each, scores in option_scores(self.model, _batches(asked, int(self.batch_size)), pad=self.tokens.pad, reader=self.reader):
                order.append(each.prompt)
                for option, score in zip(each.options, scores, strict=True):
                    places = asked[each.prompt][option]
                    for place in places:
                        found[place] = score
                    self.bar.update(len(places))
            if self.reader is not None:
                by_prompt = dict(zip(order, self.reader.take(), strict=True))
                placed = {place: by_prompt[prompt] for prompt, options in asked.items() for places in options.values() for place in places}
                self.prompts = [placed[place] for place in range(len(requests))]
            return found

    return Harness  # pyrefly: ignore[bad-return] (`Harness` is its type)


def _batches(asked: "Mapping[tuple[int, ...], Iterable[tuple[int, ...]]]", size: int) -> Iterator[list[PromptOptions]]:
    """Prompts of similar length with at most `size` options together, the longest first. A prompt with more options is read several times.

    Args:
        asked: prompt -> its options.
    """
    parts = []
    for prompt, options in asked.items():
        each = tuple(options)
        parts += [PromptOptions(prompt, each[start : start + size]) for start in range(0, len(each), size)]
    parts.sort(key=lambda part: part.prompt)
    batch: list[PromptOptions] = []
    for group in alike([len(part.prompt) for part in parts]):
        for part in (parts[place] for place in group):
            if sum(len(each.options) for each in batch) + len(part.options) > size:
                yield batch
                batch = []
            batch.append(part)
        yield batch
        batch = []


def _with_padding(tokenizer: "PreTrainedTokenizerBase") -> "PreTrainedTokenizerBase":
    """A tokenizer with a padding token; a copy if it has none. lm-eval would add a new token, whose id is beyond the embedding."""
    if tokenizer.pad_token is not None:
        return tokenizer
    padded = copy.deepcopy(tokenizer)
    padded.pad_token = tokenizer.unk_token or tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    return padded


def _refuse_unscorable(prompt: str, option: str, tokens: int, context: int) -> None:
    if tokens > context:
        raise UserError(
            f"tasks: the option '{option.strip()[:40]}' has {tokens} tokens, and model.context is {context}; raise it, or leave the benchmark out"
        )
    if tokens == 0:
        raise UserError(
            f"tasks: the tokenizer merges the option '{option}' with the end of its prompt '{prompt[-40:]}'; give the task a target_delimiter"
        )
