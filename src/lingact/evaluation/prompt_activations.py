"""Mean SAE activation and residual norm of each prompt, kept while the model answers it: no further pass over the prompts is made."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypedDict

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lingact.models.lm import LanguageModel, on_residuals

if TYPE_CHECKING:
    from lingact.models.sae import Dictionaries, Dictionary

LATENTS_AT_ONCE = 64 << 20
"""Bytes of the features that are computed together."""


class PromptActivations(TypedDict):
    """Means over the tokens of a prompt. None where no token counts, or where the value is not finite."""

    tokens: int
    """Tokens that count: no padding, no BOS, no other special token."""
    residual_norm: dict[str, float | None]
    """Layer -> L2 norm of the residual."""
    activation: dict[str, dict[str, float | None]]
    """SAE set -> layer -> folded activations, summed over latents: the measure `mean` of an analysis."""


class PromptReader:
    """Looks at the residuals of the prompts that a model reads.

    Args:
        lm: the model, with or without an adapter.
        sae_sets: sets of SAEs by name; all have the same layers.
        identity: hashes of the sets by name.
    """

    def __init__(self, lm: LanguageModel, sae_sets: "Mapping[str, Dictionaries]", identity: Mapping[str, str]) -> None:
        self.sae_sets = sae_sets
        self.layers = tuple(next(iter(sae_sets.values())))
        self.identity = {**identity, "layers": ", ".join(map(str, self.layers))}
        """What the activations depend on besides the model."""
        self._blocks = lm.blocks
        self._special = lm.tokens.special
        self._found: list[PromptActivations] = []

    @contextmanager
    def reading(self, ids: Int[Tensor, "row seq"], prompt: Bool[Tensor, "row seq"]) -> Iterator[None]:
        """While open, the model reads these rows, once.

        Args:
            prompt: True on the tokens of a prompt. Rows without one are passed over.
        """
        keep = prompt & ~torch.isin(ids, self._special.to(ids.device))
        by_layer: dict[int, Tensor] = {}

        def use(layer: int, residual: Float[Tensor, "row seq d_model"]) -> None:
            x = residual[keep].float()
            by_layer[layer] = torch.stack([x.norm(dim=-1).double(), *(_token_activations(own[layer], x) for own in self.sae_sets.values())])

        with torch.no_grad(), on_residuals(self._blocks, self.layers, use):
            yield
        values = torch.stack([by_layer[layer] for layer in self.layers]).cpu()
        row = keep.nonzero()[:, 0].cpu()
        totals = values.new_zeros(*values.shape[:2], len(ids)).index_add_(2, row, values)
        counts = keep.sum(dim=1).tolist()
        for place in prompt.any(dim=1).nonzero()[:, 0].tolist():
            self._found.append(self._means(totals[..., place], counts[place]))

    def _means(self, totals: Float[Tensor, "layer quantity"], tokens: int) -> PromptActivations:
        def by_layer(quantity: int) -> dict[str, float | None]:
            means = (totals[:, quantity] / tokens).tolist() if tokens else [math.nan] * len(self.layers)
            return {str(layer): mean if math.isfinite(mean) else None for layer, mean in zip(self.layers, means, strict=True)}

        activation = {name: by_layer(number) for number, name in enumerate(self.sae_sets, start=1)}
        return {"tokens": tokens, "residual_norm": by_layer(0), "activation": activation}

    def take(self) -> list[PromptActivations]:
        """Those of all prompts since the last call, in the order of reading."""
        found, self._found = self._found, []
        return found


def _token_activations(dictionary: "Dictionary", x: Float[Tensor, "token d_model"]) -> Float[Tensor, " token"]:
    found = [dictionary.active(part) for part in x.split(max(1, LATENTS_AT_ONCE // (4 * dictionary.width)))]
    return torch.cat([active.sums(active.value) for active in found])
