"""Whether weights are finite: one pass over them on their device, without copies of large tensors."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

_AT_ONCE = 1 << 22
"""Values that are counted at a time in a tensor with values that are not finite."""


@dataclass(frozen=True)
class NonfiniteCounts:
    """How many values of a tensor are not finite."""

    nan: int
    infinite: int

    def __str__(self) -> str:
        parts = [f"{self.nan} NaN"] * (self.nan > 0) + [f"{self.infinite} infinite"] * (self.infinite > 0)
        return " and ".join(parts)


def nonfinite(tensors: Iterable[tuple[str, Tensor]], *, may_be_infinite: Collection[str] = ()) -> dict[str, NonfiniteCounts]:
    """The tensors with values that are not finite, by name. Tensors of integers have none.

    A tensor's minimum and maximum show it: both are NaN if any value is NaN. Unlike `isfinite` they need no memory, and those of all tensors on a
    device are fetched together.

    Args:
        may_be_infinite: names of tensors that may contain positive infinity.
    """
    named = [(name, tensor.detach()) for name, tensor in tensors if tensor.is_floating_point() and tensor.numel() and not tensor.is_meta]
    by_device: dict[torch.device, list[tuple[str, Tensor]]] = {}
    for name, tensor in named:
        by_device.setdefault(tensor.device, []).append((name, tensor))
    found = {}
    for on_device in by_device.values():
        extremes = torch.stack([torch.stack(_wide(tensor).aminmax()).double() for _, tensor in on_device]).cpu()
        for (name, tensor), (low, high) in zip(on_device, extremes.tolist(), strict=True):
            top = float("inf") if name not in may_be_infinite else None
            if low != low or low == float("-inf") or high == top:
                found[name] = _count(tensor)
    return {name: found[name] for name, _ in named if name in found}


def _wide(tensor: Tensor) -> Tensor:
    """In a dtype for which torch can compute minima, which it cannot for floats of one byte."""
    return tensor if tensor.element_size() > 1 else tensor.to(torch.float32)


def _count(tensor: Tensor) -> NonfiniteCounts:
    parts = [_wide(part) for part in tensor.reshape(-1).split(_AT_ONCE)]
    return NonfiniteCounts(sum(int(part.isnan().sum()) for part in parts), sum(int(part.isinf().sum()) for part in parts))


def beyond(dtype: str) -> str:
    """The most likely reason why activations are not finite, and what to do.

    Args:
        dtype: the dtype or the trainer's precision in which they were computed.
    """
    if dtype in ("float16", "16-mixed"):
        key = "trainer.precision=bf16-mixed or 32-true" if dtype == "16-mixed" else "model.dtype=bfloat16 or float32"
        return f"float16 ends at 65,504, which residuals of many models exceed; use {key}"
    return f"they are beyond {dtype}, or the model is damaged; try model.dtype=float32 and check the model, or leave these layers out of sae.layers"


def describe(found: Mapping[str, NonfiniteCounts], files: Mapping[str, str] | None = None) -> str:
    """The first of these tensors, with its file where that is known, and how many more there are."""
    name, first = next(iter(found.items()))
    file = f" in '{files[name]}'" if files and name in files else ""
    count = first.nan + first.infinite
    rest = len(found) - 1
    more = f", and {rest} more tensor{'s do' if rest > 1 else ' does'}" if rest else ""
    return f"'{name}'{file} holds {count} value{'s' if count > 1 else ''} that {'are' if count > 1 else 'is'} not finite ({first}){more}"
