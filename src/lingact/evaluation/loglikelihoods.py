"""How log-likelihoods of options are computed: by lm-eval's own model class, around a model in memory."""

import copy
import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from torch import nn
from tqdm import tqdm

from lingact.data.tokens import Tokens
from lingact.errors import UserError
from lingact.evaluation.answers import TaskAnswers
from lingact.evaluation.tasks import TaskInstance, libraries_silenced, prompt_and_option
from lingact.models.lm import LanguageModel
from lingact.runtime.compat.lm_eval import scoring_moves

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

    class Harness(HFLM):
        """lm-eval's model; it refuses what cannot be scored, and counts what is truncated."""

        truncated: int
        tokens: Tokens | None

    Request = tuple[tuple[str, str], list[int], list[int]]

MOST_AT_ONCE = 64
"""The largest number of options per forward pass that `auto` starts with."""
_BYTES_PER_LOGIT = 10
"""A logit in half precision and in float32, and its log probability."""
_CPU_BUDGET = 2 << 30


def batch_size_for(lm: LanguageModel, tasks: Sequence[TaskInstance]) -> int:
    """Options per forward pass: a power of two whose logits fit into half of the memory that the weights leave free.

    It depends on shapes alone, so that it is the same in every run.
    """
    import torch

    longest = max(
        (sum(len(part.encode()) for part in prompt_and_option(request.args)) for instance in tasks for request in instance.requests), default=1
    )
    tokens = min(lm.tokens.context, longest)  # a token is at least one byte of text
    vocabulary = lm.model.get_input_embeddings().weight.shape[0]  # pyrefly: ignore[not-callable]
    budget = _CPU_BUDGET
    if lm.device.type == "cuda":
        weights = sum(parameter.numel() * parameter.element_size() for parameter in lm.model.parameters())
        budget = max(_CPU_BUDGET, (torch.cuda.get_device_properties(lm.device).total_memory - weights) // 2)
    fits = max(1, budget // (tokens * vocabulary * _BYTES_PER_LOGIT))
    return min(MOST_AT_ONCE, 1 << (fits.bit_length() - 1))


def harness_of(lm: LanguageModel, model: nn.Module, batch_size: int) -> "Harness":
    """lm-eval's model around the module of `lm`, with or without an adapter.

    Args:
        batch_size: options per forward pass, to begin with.
    """
    with libraries_silenced():
        harness = _harness_class()(
            pretrained=cast("PreTrainedModel", model),
            tokenizer=cast("PreTrainedTokenizerFast", _with_padding(lm.tokenizer)),
            max_length=lm.tokens.context,
            batch_size=batch_size,
        )
    harness.tokens = lm.tokens
    return harness


def answers_to(requests: "Sequence[Instance]", harness: "Harness", batch_size: int, bar: tqdm) -> TaskAnswers:
    """Log-likelihoods of the options of one task.

    Args:
        requests: prompts and options.
        harness: of `harness_of`.
        batch_size: options per forward pass.
        bar: is moved by one for each option.

    Raises:
        UserError: an option cannot be scored because it is longer than the context or has no token of its own.
        RuntimeError, MemoryError: the device ran out of memory; `errors.out_of_memory` recognises it.
    """
    harness.truncated, harness.batch_size_per_gpu = 0, batch_size
    with libraries_silenced(), scoring_moves(bar):
        found = harness.loglikelihood(list(requests))
    return {"answers": [[float(score), bool(greedy)] for score, greedy in found], "truncated": harness.truncated}


@functools.cache
def _harness_class() -> "type[Harness]":
    """Made late, because importing lm-eval is slow."""
    from lm_eval.models.huggingface import HFLM

    class Harness(HFLM):
        truncated = 0
        tokens: Tokens | None = None

        def _loglikelihood_tokens(
            self, requests: "list[Request]", disable_tqdm: bool = False, override_bs: int | None = None
        ) -> list[tuple[float, bool]]:
            for (prompt, option), prompt_ids, option_ids in requests:
                if self.tokens is not None:
                    self.tokens.refuse_beyond([*prompt_ids, *option_ids], f"in a question of the benchmark ({(prompt + option)[-60:]!r})")
                _refuse_unscorable(prompt, option, len(option_ids), self.max_length)
                self.truncated += len(prompt_ids) + len(option_ids) > self.max_length + 1
            return super()._loglikelihood_tokens(requests, disable_tqdm, override_bs)

    return Harness  # pyrefly: ignore[bad-return] (`Harness` is its type)


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
