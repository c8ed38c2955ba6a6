"""A bounded buffer that mixes residuals before an SAE is trained on them."""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

Residuals = Float[Tensor, "token layer d_model"]


class ShuffleBuffer:
    """Residuals wait here until it is full. Then they are shuffled, and half of them leave in batches; the others stay and mix with the next.

    Args:
        capacity: tokens.
        seed: of the order. Buffers with the same seed shuffle alike.
    """

    def __init__(self, capacity: int, batch_tokens: int, seed: int) -> None:
        self._capacity, self._batch_tokens = capacity, batch_tokens
        self._random = torch.Generator().manual_seed(seed)
        self._waiting: list[Residuals] = []

    def __len__(self) -> int:
        return sum(map(len, self._waiting))

    def add(self, residuals: Residuals) -> Iterator[Residuals]:
        """Take residuals in. Yields batches once the buffer is full."""
        self._waiting.append(residuals)
        while len(self) >= self._capacity:
            yield from self._leave(keep=self._capacity // 2)

    def rest(self) -> Iterator[Residuals]:
        """Batches of all that is left, at the end of the text. What fills no batch is lost."""
        yield from self._leave(keep=0)

    def _leave(self, keep: int) -> Iterator[Residuals]:
        held = torch.cat(self._waiting) if self._waiting else torch.empty(0)
        order = torch.randperm(len(held), generator=self._random).to(held.device)
        count = (len(held) - keep) // self._batch_tokens
        self._waiting = [held[order[count * self._batch_tokens :]]] if len(held) else []
        for number in range(count):
            yield held[order[number * self._batch_tokens : (number + 1) * self._batch_tokens]]

    def state(self) -> dict[str, Any]:
        """What `load` needs to go on from here."""
        return {"random": self._random.get_state(), "waiting": torch.cat(self._waiting) if self._waiting else None}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self._random.set_state(state["random"].cpu())
        self._waiting = [] if state["waiting"] is None else [state["waiting"]]
