"""The loss terms: pure functions of activations and logits."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class LossTerms:
    """The total that is minimised, and every term before and after its weight."""

    total: Float[Tensor, ""]
    raw: dict[str, Float[Tensor, ""]]
    weighted: dict[str, Float[Tensor, ""]]


def activation_gap(activation: Float[Tensor, " layer"], reference: Float[Tensor, " layer"], *, one_sided: bool) -> Float[Tensor, ""]:
    """Mean over layers of the squared gap `1 - A / A_reference`.

    Args:
        activation: token-pooled activation of the target language, with gradient.
        reference: activation of the reference language under the base model, frozen.
        one_sided: count only layers where the target falls short.
    """
    gap = 1 - activation / reference
    return (gap.relu() if one_sided else gap).square().mean()


def kl_per_token(base_logits: Float[Tensor, "token vocabulary"], logits: Float[Tensor, "token vocabulary"]) -> Float[Tensor, " token"]:
    """KL(base || other) of each next-token distribution, in nats. The statistics and the retention loss both start from it."""
    before, after = base_logits.float().log_softmax(-1), logits.float().log_softmax(-1)
    return (before.exp() * (before - after)).sum(-1)


def retention_kl(base_logits: Float[Tensor, "token vocabulary"], logits: Float[Tensor, "token vocabulary"]) -> Float[Tensor, ""]:
    """KL(base || adapter) in nats per token. Gradient flows through `logits` only."""
    return kl_per_token(base_logits.detach(), logits).mean()


def combine(raw: dict[str, Float[Tensor, ""]], weights: dict[str, float]) -> LossTerms:
    """The weighted sum; a term of weight zero is logged and not trained on."""
    weighted = {name: value * weights[name] for name, value in raw.items()}
    total = torch.stack([value for name, value in weighted.items() if weights[name] > 0]).sum()
    return LossTerms(total, raw, weighted)
