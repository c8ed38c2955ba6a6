"""Log-likelihoods of the options of a question.

A question is read once for all its options, and logits are computed for the options' tokens alone.
"""

import copy
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from inspect import signature
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from lingact.evaluation.prompt_activations import PromptReader
from lingact.models.adapters import without_adapter
from lingact.models.next_tokens import NextTokens, head_of, reading_states

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.cache_utils import Cache

ENOUGH = 128
"""Tokens from which on a pass costs as much as its tokens: fewer are read together, whatever their padding."""
Score = tuple[float, bool]
"""Log-likelihood in nats, summed over the option's tokens, and whether each of them is the likeliest one."""
Option = tuple[int, ...]


@dataclass(frozen=True)
class PromptOptions:
    """A prompt and the options after it, as token ids. None is empty."""

    prompt: tuple[int, ...]
    options: tuple[Option, ...]

    @property
    def further(self) -> list[Option]:
        """What each option of several tokens has behind the first one."""
        return [option[1:] for option in self.options if len(option) > 1]


def option_scores(
    model: nn.Module, batches: Iterable[Sequence[PromptOptions]], *, pad: int, reader: PromptReader | None = None
) -> Iterator[tuple[PromptOptions, list[Score]]]:
    """Scores of the options of each question, in order.

    The last position of a prompt predicts the first token of each option. The rest of the options is read from the keys and values of the prompt. A
    model that keeps none, or a state, which padding would change, reads each prompt again with each option.

    Args:
        model: in eval mode, with or without an adapter.
        batches: the questions that are read side by side.
        pad: any token; it is masked.
        reader: looks at the residuals of the prompts, in the same order.
    """
    base = without_adapter(model)
    read = _each_apart if getattr(base, "_is_stateful", False) else _prompts_once
    asked: list[PromptOptions] = []
    states: list[Float[Tensor, "_ d_model"]] = []
    for batch in batches:
        asked += batch
        states += [read(model, base, batch, pad, reader)]
        if sum(map(len, states)) >= 2 * ENOUGH:  # the head, which may be larger than the body, wants many positions at a time
            yield from zip(asked, _scores(base, torch.cat(states), asked), strict=True)
            asked, states = [], []
    if asked:
        yield from zip(asked, _scores(base, torch.cat(states), asked), strict=True)


def alike(lengths: Sequence[int]) -> list[list[int]]:
    """Places of rows in groups of similar length, the longest first. Padding is at most a third of a group, or the group is small."""
    groups: list[list[int]] = []
    tokens = 0
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        padded = (len(groups[-1]) + 1) * lengths[groups[-1][0]] if groups else 0
        if not groups or (tokens >= ENOUGH and padded > 1.5 * (tokens + lengths[place])):
            groups.append([])
            tokens = 0
        groups[-1].append(place)
        tokens += lengths[place]
    return groups


# --- what the head reads --------------------------------------------------------------------------------------------------------------------------
# Question by question: at the end of its prompt, and at each token but the last of each of its options.


@torch.no_grad()
def _prompts_once(
    model: nn.Module, base: "PreTrainedModel", batch: Sequence[PromptOptions], pad: int, reader: PromptReader | None
) -> Float[Tensor, "position d_model"]:
    prompts = _padded([each.prompt for each in batch], pad, model, left=True)
    rest = [(row, option) for row, each in enumerate(batch) for option in each.options if len(option) > 1]
    last = torch.zeros_like(prompts.mask, dtype=torch.bool)
    last[:, -1] = True
    with reading_states(base, last) as ends, _watched(reader, prompts.ids, prompts.mask.bool()):
        output = model(**_inputs(base, prompts.ids, prompts.mask), **({"use_cache": True} if rest else {}))
    cache = getattr(output, "past_key_values", None)
    if rest and cache is None:
        return _each_apart(model, base, batch, pad, None)
    further: dict[int, Tensor] = {}
    for group in alike([len(option) - 1 for _, option in rest]):
        whose = torch.tensor([rest[place][0] for place in group], device=prompts.ids.device)
        read = _padded([rest[place][1][:-1] for place in group], pad, model, left=False)
        # Padding on the right comes after everything that is scored.
        mask = torch.cat([prompts.mask[whose], torch.ones_like(read.mask)], dim=1)
        with reading_states(base, read.mask.bool()) as found:
            model(**_inputs(base, read.ids, mask), past_key_values=_selected(cache, whose), use_cache=True)
        further |= zip(group, found[0].split(read.mask.sum(dim=1).tolist()), strict=True)
    by_prompt: list[list[Tensor]] = [[end[None]] for end in ends[0]]
    for place, (row, _) in enumerate(rest):
        by_prompt[row].append(further[place])
    return torch.cat([states for own in by_prompt for states in own])


@torch.no_grad()
def _each_apart(
    model: nn.Module, base: "PreTrainedModel", batch: Sequence[PromptOptions], pad: int, reader: PromptReader | None
) -> Float[Tensor, "position d_model"]:
    each = [(asked.prompt, option) for asked in batch for option in asked.options]
    read = _padded([(*prompt, *option[:-1]) for prompt, option in each], pad, model, left=False)
    wanted, prompts = (torch.zeros_like(read.mask, dtype=torch.bool) for _ in range(2))
    row = 0
    for asked in batch:
        prompts[row, : len(asked.prompt)] = True  # with the first option only
        for number, option in enumerate(asked.options):
            end = len(asked.prompt) - 1
            wanted[row, end + (number > 0) : end + len(option)] = True  # the end of the prompt once
            row += 1
    with reading_states(base, wanted) as found, _watched(reader, read.ids, prompts):
        model(input_ids=read.ids, attention_mask=read.mask)
    return found[0]


def _watched(reader: PromptReader | None, ids: Int[Tensor, "row seq"], prompt: Bool[Tensor, "row seq"]) -> AbstractContextManager[None]:
    return nullcontext() if reader is None else reader.reading(ids, prompt)


@dataclass(frozen=True)
class _Rows:
    ids: Int[Tensor, "row seq"]
    mask: Int[Tensor, "row seq"]
    """1 on tokens, 0 on padding."""


def _padded(rows: Sequence[Sequence[int]], pad: int, model: nn.Module, *, left: bool) -> _Rows:
    width = max(map(len, rows))

    def filled(row: Sequence[int], value: int) -> list[int]:
        padding = [value] * (width - len(row))
        return [*padding, *row] if left else [*row, *padding]

    device = next(model.parameters()).device
    ids = torch.tensor([filled(row, pad) for row in rows], device=device)
    return _Rows(ids, torch.tensor([filled([1] * len(row), 0) for row in rows], device=device))


def _inputs(base: "PreTrainedModel", ids: Int[Tensor, "row seq"], mask: Int[Tensor, "row read"]) -> dict[str, Tensor]:
    """What the model is called with. Positions are given where it takes them: some models count padding otherwise.

    Args:
        mask: of what was read before and of `ids`.
    """
    found = {"input_ids": ids, "attention_mask": mask}
    if "position_ids" in signature(base.forward).parameters:
        found["position_ids"] = (mask.cumsum(dim=1) - 1).clamp_min(0)[:, -ids.shape[1] :]
    return found


def _selected(cache: "Cache", rows: Int[Tensor, " chosen"]) -> "Cache":
    """A cache that begins with keys and values of these rows. The other one stays as it is."""
    chosen = copy.copy(cache)
    chosen.layers = [copy.copy(layer) for layer in cache.layers]
    chosen.batch_select_indices(rows)
    return chosen


# --- scores ----------------------------------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def _scores(base: "PreTrainedModel", states: Float[Tensor, "position d_model"], asked: Sequence[PromptOptions]) -> list[list[Score]]:
    """A list for each question, from what the head reads."""
    wanted: list[list[int]] = []
    for each in asked:
        wanted += [[option[0] for option in each.options], *([token] for option in each.further for token in option)]
    most = max(map(len, wanted))
    target = torch.tensor([[*tokens, *[0] * (most - len(tokens))] for tokens in wanted], device=states.device)

    def of(logits: Tensor, rows: slice) -> Tensor:
        scores = logits.float().log_softmax(dim=-1)
        best = scores.argmax(dim=-1, keepdim=True)
        return torch.cat([scores.gather(1, target[rows]), (best == target[rows]).float()], dim=1)

    vocabulary = base.get_input_embeddings().get_parameter("weight").shape[0]
    found = iter(NextTokens(target[:, 0], states, head_of(base), vocabulary).each(of).double().cpu().view(len(wanted), 2, most).unbind())
    result = []
    for each in asked:
        first = next(found)
        own = []
        for column, option in enumerate(each.options):
            tokens = torch.stack([first[:, column], *(next(found)[:, 0] for _ in option[1:])])
            own.append((float(tokens[:, 0].sum()), bool(tokens[:, 1].all())))
        result.append(own)
    return result
