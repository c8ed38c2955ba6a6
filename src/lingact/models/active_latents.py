"""The active latents of some tokens, which are few: what follows from them costs next to nothing beside the product that found them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class ActiveLatents:
    """Folded activations above zero, token by token in ascending order; all others are zero. A NaN counts as active, so that it is not lost."""

    token: Int[Tensor, " active"]
    latent: Int[Tensor, " active"]
    value: Float[Tensor, " active"]
    tokens: int
    """Number of tokens, with those on which nothing is active."""
    width: int
    """Number of latents, d_sae."""

    @classmethod
    def of(cls, values: Float[Tensor, "token d_sae"], active: Bool[Tensor, "token d_sae"], scale: Float[Tensor, " d_sae"] | None) -> "ActiveLatents":
        """Those of `values` that are active, each times the scale of its latent."""
        return cls.at(active, lambda token, latent: values[token, latent], scale)

    @classmethod
    def at(
        cls, active: Bool[Tensor, "token d_sae"], value: Callable[[Tensor, Tensor], Float[Tensor, " active"]], scale: Float[Tensor, " d_sae"] | None
    ) -> "ActiveLatents":
        """The active ones, with what `value` gives for tokens and latents, times the scale of each latent."""
        token, latent = active.nonzero(as_tuple=True)
        found = value(token, latent)
        return cls(token, latent, found if scale is None else found * scale[latent], *active.shape)

    @cached_property
    def counts(self) -> Int[Tensor, " token"]:
        """How many latents are active on each token: its L0."""
        return torch.bincount(self.token, minlength=self.tokens)

    @cached_property
    def starts(self) -> Int[Tensor, " token"]:
        """Where each token's latents begin."""
        return self.counts.cumsum(dim=0) - self.counts

    def sums(self, of: Float[Tensor, " active"]) -> Float[Tensor, " token"]:
        """The sum over each token's active latents, in float64, always in the same order."""
        return torch.segment_reduce(of.double(), "sum", lengths=self.counts, unsafe=True, initial=0.0)

    def totals(self) -> Float[Tensor, " d_sae"]:
        """The sum over all tokens of each latent."""
        found = self.value.new_zeros(self.width, dtype=torch.float64)
        return found.index_add(0, self.latent, self.value.double())

    def strongest(self, count: int) -> Float[Tensor, " token"]:
        """The sum of each token's `count` largest activations."""
        most = int(self.counts.max()) if len(self.token) else 0
        side_by_side = self.value.new_zeros(self.tokens, most)
        side_by_side[self.token, torch.arange(len(self.token), device=self.token.device) - self.starts[self.token]] = self.value
        return side_by_side.topk(min(count, most), dim=1, sorted=False).values.double().sum(dim=1)

    def weighted_rows(self, rows: Float[Tensor, "d_sae d_model"], scale: Float[Tensor, " d_sae"]) -> Float[Tensor, "token d_model"]:
        """The sum of each token's rows, weighted by its activations times the scale of the latent: the product with all others left out."""
        weights = self.value * scale[self.latent]
        return torch.nn.functional.embedding_bag(self.latent, rows, self.starts, per_sample_weights=weights, mode="sum")
