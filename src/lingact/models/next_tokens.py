"""What a model predicts at chosen positions. Logits are computed some positions at a time and are never held all together.

A vocabulary of 262,144 makes the logits of one token a megabyte, and the head of Gemma 3 270M costs more than its whole body.
"""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

LOGITS_AT_ONCE = 32 << 20
"""Logits that are held at once: 128 MiB in float32, which is 128 positions of Gemma's vocabulary."""
_WORKED_ON_AT_ONCE = 1 << 22
"""Logits that are worked on at once: 16 MiB in float32."""

Quantities = Callable[[Float[Tensor, "position vocabulary"], slice], Float[Tensor, "position quantity"]]
"""Logits of some positions, and which positions these are -> what is wanted of each of them."""


@dataclass(frozen=True)
class NextTokens:
    """A model's predictions at `n` positions of a batch."""

    target: Int[Tensor, " n"]
    """The token that follows at each position."""
    _states: Float[Tensor, "n d_model"]
    """What the head reads; for a sharded model the logits themselves."""
    _head: Callable[[Float[Tensor, "position d_model"]], Float[Tensor, "position vocabulary"]]
    """From some rows of `_states` to logits, as the model itself computes them."""
    _vocabulary: int

    def logits(self, rows: slice = slice(None)) -> Float[Tensor, "position vocabulary"]:
        """Logits at some of the positions, with gradient."""
        return self._head(self._states[rows])

    def chosen(self, positions: Int[Tensor, " chosen"]) -> "NextTokens":
        """The predictions at some of the positions."""
        return NextTokens(self.target[positions], self._states[positions], self._head, self._vocabulary)

    def each(self, of: Quantities) -> Float[Tensor, "n quantity"]:
        """What `of` makes of the logits, position by position. Only a few positions' logits exist at a time, also when the gradient is computed.

        A position's quantities depend on its own logits alone. So their gradient with respect to the head's input is computed together with them, and
        the backward pass only scales it: each logit is computed once.
        """
        if torch.is_grad_enabled() and self._states.requires_grad:
            return cast("Tensor", _ByPosition.apply(self._states, self, of))
        found = []
        for rows in self._chunks():
            logits = self._head(self._states[rows])
            found += [of(logits[within], placed) for within, placed in self._blocks(rows)]
        return torch.cat(found)

    def _chunks(self) -> list[slice]:
        """Positions whose logits are held at once."""
        step = max(1, LOGITS_AT_ONCE // self._vocabulary)
        return [slice(start, min(start + step, len(self.target))) for start in range(0, max(1, len(self.target)), step)]

    def _blocks(self, rows: slice) -> Iterator[tuple[slice, slice]]:
        """Positions whose logits are worked on at once, which should stay in the processor's cache: their places in a chunk and in all."""
        step = max(1, _WORKED_ON_AT_ONCE // self._vocabulary)
        for start in range(rows.start, max(rows.stop, rows.start + 1), step):
            stop = min(start + step, rows.stop)
            yield slice(start - rows.start, stop - rows.start), slice(start, stop)

    def _with_gradient(self, of: Quantities) -> tuple[Float[Tensor, "n quantity"], Float[Tensor, "quantity n d_model"]]:
        values, gradients = [], []
        for rows in self._chunks():
            with torch.enable_grad():
                states = self._states[rows].detach().requires_grad_()
                logits = self._head(states)
            by_logit: list[Tensor] = []
            for within, placed in self._blocks(rows):
                with torch.enable_grad():
                    block = logits.detach()[within].requires_grad_()
                    quantities = of(block, placed)
                    columns = quantities.sum(dim=0).unbind()
                values.append(quantities.detach())
                by_logit = by_logit or [torch.empty_like(logits.detach()) for _ in columns]
                for each, column in zip(by_logit, columns, strict=True):
                    each[within] = torch.autograd.grad(column, block, retain_graph=column is not columns[-1])[0]
            last = len(by_logit) - 1
            own = [torch.autograd.grad(logits, states, each, retain_graph=number < last)[0] for number, each in enumerate(by_logit)]
            gradients.append(torch.stack(own))
        return torch.cat(values), torch.cat(gradients, dim=1)

    def nll(self) -> Float[Tensor, " n"]:
        """Cross-entropy in nats of the token that follows."""
        return self.each(self.nll_of)[:, 0]

    def nll_of(self, logits: Float[Tensor, "position vocabulary"], rows: slice) -> Float[Tensor, "position 1"]:
        """As `nll`, from the logits of some positions."""
        return torch.nn.functional.cross_entropy(logits.float(), self.target[rows], reduction="none")[:, None]


class _ByPosition(torch.autograd.Function):
    """Quantities of each position, with a gradient that is there already."""

    @staticmethod
    def forward(ctx: Any, _states: Tensor, predictions: NextTokens, of: Quantities) -> Tensor:
        memory = _MEMORIES[-1] if _MEMORIES else None
        if memory is not None and memory.again:
            values, gradients = memory.found.popleft()
        else:
            # What is saved for the gradient here is used here: nothing for activation checkpointing to forget and compute again.
            with torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x):
                values, gradients = predictions._with_gradient(of)
            if memory is not None:
                memory.found.append((values, gradients))
        ctx.save_for_backward(gradients)
        return values

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (gradients,) = ctx.saved_tensors
        return torch.einsum("nq,qnd->nd", grads[0].to(gradients.dtype), gradients), None, None


class Remembered:
    """What `NextTokens.each` finds in a pass that is made again for its gradient (activation checkpointing): the second time it is not computed.

    It is a number or two and as many vectors of the residual stream for each position, where the activations of a pass are hundreds.
    """

    def __init__(self) -> None:
        self.found: deque[tuple[Tensor, Tensor]] = deque()
        self.again = False

    def contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """For the first pass and the second one, as `torch.utils.checkpoint` takes them."""
        return self._open(again=False), self._open(again=True)

    @contextmanager
    def _open(self, *, again: bool) -> Iterator[None]:
        self.again = again
        _MEMORIES.append(self)
        try:
            yield
        finally:
            _MEMORIES.pop()


_MEMORIES: list[Remembered] = []
"""The innermost one that is open comes last."""


@contextmanager
def reading_states(model: PreTrainedModel, at: Bool[Tensor, "batch seq"]) -> Iterator[list[Float[Tensor, "n d_model"]]]:
    """While open, forward passes put what the head reads at the positions `at` into the list. The head itself gets one position only."""
    head = model.get_output_embeddings()
    assert head is not None
    caught: list[Tensor] = []

    def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        caught.append(inputs[0][at])
        return (inputs[0][:1, :1].detach(), *inputs[1:])

    handle = head.register_forward_pre_hook(hook)
    try:
        yield caught
    finally:
        handle.remove()


@contextmanager
def keeping_positions(model: PreTrainedModel, at: Bool[Tensor, "batch seq"]) -> Iterator[None]:
    """While open, forward passes give logits of shape ["1 n vocabulary"], at the positions `at` only."""
    head = model.get_output_embeddings()
    assert head is not None
    handle = head.register_forward_pre_hook(lambda _m, inputs: (inputs[0][at][None], *inputs[1:]))
    try:
        yield
    finally:
        handle.remove()


def head_of(model: PreTrainedModel) -> Callable[[Float[Tensor, "position d_model"]], Float[Tensor, "position vocabulary"]]:
    """From what the head reads to logits: the model's own forward pass, its decoder left out.

    So whatever the model does with its logits is done here, too, such as Gemma's soft cap, Granite's division or Cohere's scale. Autocast is as it is
    now, also for later calls.
    """
    device = next(model.parameters()).device.type
    autocast = partial(torch.autocast, device, torch.get_autocast_dtype(device), enabled=torch.is_autocast_enabled(device))
    return partial(_logits, model, autocast)


def _logits(model: PreTrainedModel, autocast: Callable[[], AbstractContextManager[Any]], states: Tensor) -> Tensor:
    head, body = model.get_output_embeddings(), model.base_model
    if body is model:  # Llama 4 names its decoder otherwise than its class says
        body = next(child for child in model.children() if child is not head)
    assert head is not None
    handle = head.register_forward_pre_hook(lambda _m, inputs: (states[None], *inputs[1:]))
    own = vars(body).get("forward")
    body.forward = lambda *_, **__: _Output(last_hidden_state=states[None, :1].detach())
    try:
        with autocast():
            return model(input_ids=torch.zeros((1, 1), dtype=torch.long, device=states.device), use_cache=False).logits[0]
    finally:
        handle.remove()
        del body.forward
        if own is not None:
            body.forward = own


class _Output(SimpleNamespace):
    """The output of a decoder that has only this."""

    def __getattr__(self, name: str) -> None:
        return None

    def __getitem__(self, place: int | slice) -> Any:
        return (self.last_hidden_state,)[place]
