"""What a model predicts at chosen positions. Logits are computed some positions at a time and are never held all together.

A vocabulary of 262,144 makes the logits of one token a megabyte, and the head of Gemma 3 270M costs more than its whole body.
"""

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

LOGITS_AT_ONCE = 64 << 20
"""Logits that are held at once: 256 MiB in float32, which is 256 positions of Gemma's vocabulary."""

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
        step = max(1, LOGITS_AT_ONCE // self._vocabulary)
        parts = [slice(start, start + step) for start in range(0, len(self.target), step)]

        def quantities(states: Tensor, rows: slice) -> Tensor:
            return of(self._head(states), rows)

        if not parts:
            return quantities(self._states, slice(0, 0))
        if torch.is_grad_enabled() and self._states.requires_grad:
            return cast("Tensor", _ByPosition.apply(self._states, quantities, parts))
        return torch.cat([quantities(self._states[rows], rows) for rows in parts])

    def nll(self) -> Float[Tensor, " n"]:
        """Cross-entropy in nats of the token that follows."""
        return self.each(self.nll_of)[:, 0]

    def nll_of(self, logits: Float[Tensor, "position vocabulary"], rows: slice) -> Float[Tensor, "position 1"]:
        """As `nll`, from the logits of some positions."""
        return torch.nn.functional.cross_entropy(logits.float(), self.target[rows], reduction="none")[:, None]


class _ByPosition(torch.autograd.Function):
    """Quantities of each position with their gradient, some positions at a time."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, quantities: Callable[[Tensor, slice], Tensor], parts: list[slice]) -> Tensor:
        values, gradients = [], []
        for rows in parts:
            with torch.enable_grad():
                part = states[rows].detach().requires_grad_()
                found = quantities(part, rows)
                columns = found.sum(dim=0).unbind()
            values.append(found.detach())
            if not _VALUES_ONLY:
                own = [torch.autograd.grad(column, part, retain_graph=column is not columns[-1])[0] for column in columns]
                gradients.append(torch.stack(own))
        # A stand-in of the same shape: the values are computed a second time before the gradient is.
        empty = states.new_empty(()).expand(values[0].shape[1], *states.shape)
        ctx.save_for_backward(torch.cat(gradients, dim=1) if gradients else empty)
        return torch.cat(values)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (gradients,) = ctx.saved_tensors
        return torch.einsum("nq,qnd->nd", grads[0].to(gradients.dtype), gradients), None, None


_VALUES_ONLY: list[bool] = []


@contextmanager
def values_only() -> Iterator[None]:
    """While open, `NextTokens.each` computes no gradient, although autograd is on: for a pass that is made again for the gradient."""
    _VALUES_ONLY.append(True)
    try:
        yield
    finally:
        _VALUES_ONLY.pop()


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
    assert head is not None
    assert body is not model
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
