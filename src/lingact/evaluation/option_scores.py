"""Log-likelihoods of the options of a question.

A question is read once for all its options, and logits are computed for the options' tokens alone.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lingact.models.adapters import without_adapter
from lingact.models.next_tokens import NextTokens, head_of, reading_states

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.cache_utils import Cache

Score = tuple[float, bool]
"""Log-likelihood in nats, summed over the option's tokens, and whether each of them is the likeliest one."""


@dataclass(frozen=True)
class PromptOptions:
    """A prompt and the options after it, as token ids. Neither is empty."""

    prompt: tuple[int, ...]
    options: tuple[tuple[int, ...], ...]


@torch.no_grad()
def option_scores(model: nn.Module, questions: Sequence[PromptOptions], *, pad: int) -> list[list[Score]]:
    """Scores of the options of some questions, which are read side by side.

    First the prompts, whose last position predicts each option's first token; then, from their keys and values, the rest of each option. A model
    that keeps no keys and values but a state, which padding would change, reads each prompt again with each option.

    Args:
        model: in eval mode, with or without an adapter.
        pad: any token; it is masked.
    """
    base = without_adapter(model)
    if getattr(base, "_is_stateful", False):
        return _one_by_one(model, base, questions, pad)
    prompts = _padded([question.prompt for question in questions], pad, model, left=True)
    rest = [(row, option) for row, question in enumerate(questions) for option in question.options if len(option) > 1]
    last = torch.zeros_like(prompts.mask, dtype=torch.bool)
    last[:, -1] = True
    with reading_states(base, last) as states:
        cache = model(**_inputs(base, prompts.ids, prompts.mask), use_cache=bool(rest)).past_key_values
    first = _first_tokens(states[0], base, questions)
    if not rest:
        return first
    further = iter(_rests(model, base, rest, prompts, cache, pad))
    return [
        [_sum(score, next(further)) if len(option) > 1 else score for option, score in zip(question.options, scores, strict=True)]
        for question, scores in zip(questions, first, strict=True)
    ]


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


def _first_tokens(states: Float[Tensor, "question d_model"], base: "PreTrainedModel", questions: Sequence[PromptOptions]) -> list[list[Score]]:
    """Scores of the first token of each option, all from one position."""
    most = max(len(question.options) for question in questions)
    tokens = [[option[0] for option in question.options] for question in questions]
    target = torch.tensor([[*row, *[0] * (most - len(row))] for row in tokens], device=states.device)

    def of(logits: Tensor, rows: slice) -> Tensor:
        scores = logits.float().log_softmax(dim=-1)
        best = scores.argmax(dim=-1, keepdim=True)
        return torch.cat([scores.gather(1, target[rows]), (best == target[rows]).float()], dim=1)

    found = NextTokens(target[:, 0], states, head_of(base), _vocabulary(base)).each(of).tolist()
    return [[(row[place], bool(row[most + place])) for place in range(len(own))] for row, own in zip(found, tokens, strict=True)]


def _rests(
    model: nn.Module, base: "PreTrainedModel", rest: Sequence[tuple[int, tuple[int, ...]]], prompts: _Rows, cache: "Cache", pad: int
) -> Iterator[Score]:
    """Scores of the further tokens of options, after the cached prompts.

    Args:
        rest: row of the prompt and all tokens of the option.
    """
    whose = torch.tensor([row for row, _ in rest], device=prompts.ids.device)
    read = _padded([option[:-1] for _, option in rest], pad, model, left=False)
    cache.batch_select_indices(whose)
    # Padding on the right comes after everything that is scored.
    mask = torch.cat([prompts.mask[whose], torch.ones_like(read.mask)], dim=1)
    with reading_states(base, read.mask.bool()) as states:
        model(**_inputs(base, read.ids, mask), past_key_values=cache, use_cache=True)
    yield from _scores(base, states[0], [option[1:] for _, option in rest])


def _one_by_one(model: nn.Module, base: "PreTrainedModel", questions: Sequence[PromptOptions], pad: int) -> list[list[Score]]:
    """As `option_scores`, each prompt read once for each option."""
    each = [(question.prompt, option) for question in questions for option in question.options]
    read = _padded([(*prompt, *option[:-1]) for prompt, option in each], pad, model, left=False)
    asked = torch.zeros_like(read.mask, dtype=torch.bool)
    for row, (prompt, option) in enumerate(each):
        asked[row, len(prompt) - 1 : len(prompt) - 1 + len(option)] = True
    with reading_states(base, asked) as states:
        model(input_ids=read.ids, attention_mask=read.mask, use_cache=False)
    found = _scores(base, states[0], [option for _, option in each])
    return [[next(found) for _ in question.options] for question in questions]


def _scores(base: "PreTrainedModel", states: Float[Tensor, "token d_model"], options: Sequence[Sequence[int]]) -> Iterator[Score]:
    """A score for each option, from what the head reads at the positions before its tokens, one option after the other."""
    target = torch.tensor([token for option in options for token in option], device=states.device)

    def of(logits: Tensor, rows: slice) -> Tensor:
        scores = logits.float().log_softmax(dim=-1)
        return torch.stack([scores.gather(1, target[rows, None])[:, 0], (scores.argmax(dim=-1) == target[rows]).float()], dim=1)

    found = NextTokens(target, states, head_of(base), _vocabulary(base)).each(of).double().cpu()
    for own in found.split([len(option) for option in options]):
        yield float(own[:, 0].sum()), bool(own[:, 1].all())


def _vocabulary(base: "PreTrainedModel") -> int:
    return base.get_input_embeddings().get_parameter("weight").shape[0]


def _sum(one: Score, other: Score) -> Score:
    return one[0] + other[0], one[1] and other[1]
