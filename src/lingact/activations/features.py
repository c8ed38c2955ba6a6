"""The one path from text to features, used by analysis without gradient and by training with it."""

import torch
from jaxtyping import Float
from torch import Tensor

from lingact.data.tokens import TokenBatch
from lingact.models.lm import LanguageModel
from lingact.models.sae import Dictionary


def kept_residuals(
    lm: LanguageModel, batch: TokenBatch, layers: tuple[int, ...], *, logits: bool = False
) -> tuple[dict[int, Float[Tensor, "token d_model"]], Float[Tensor, "batch seq vocabulary"] | None]:
    """Residuals of the kept tokens behind each of the layers, in float32, and the logits of all positions if asked for.

    Who wants gradients leaves autograd on; adapters are switched by the caller.
    """
    residuals, scores = lm.residuals(batch, layers, logits=logits)
    keep = batch.keep.to(lm.device)
    return {layer: x[keep].float() for layer, x in residuals.items()}, scores


def rescaled(x: Float[Tensor, "token d_model"], norms: Float[Tensor, " token"]) -> Float[Tensor, "token d_model"]:
    """`x` with each token's norm set to a given one, which removes changes of the norm."""
    return x * (norms / x.norm(dim=-1).clamp_min(1e-12))[:, None]


def rescaled_to(x: Float[Tensor, "token d_model"], norm: float) -> Float[Tensor, "token d_model"]:
    """`x` with every token's norm set to `norm`, which removes differences in norm between languages."""
    return x * (norm / x.norm(dim=-1, keepdim=True).clamp_min(1e-12))


def token_activation(features: Float[Tensor, "token d_sae"]) -> Float[Tensor, " token"]:
    """Total activation of each token: the sum over latents. The gap loss starts from it, the statistics from `ActiveLatents.sums`, which is equal."""
    return features.sum(dim=-1)


def encode(dictionary: Dictionary, x: Float[Tensor, "token d_model"], *, straight_through: float | None = None) -> Float[Tensor, "token d_sae"]:
    """Features of residuals; `straight_through` is the bandwidth of the surrogate gradient, None the true one."""
    return dictionary.encode(x) if straight_through is None else dictionary.encode_straight_through(x, straight_through)


def next_token_nll(logits: Float[Tensor, "batch seq vocabulary"], batch: TokenBatch) -> tuple[Float[Tensor, " predicted"], Tensor]:
    """Cross-entropy in nats of every kept token that has a token before it in its window, and the mask of those, Bool["batch seq-1"]."""
    ids, keep = batch.ids.to(logits.device), batch.keep.to(logits.device)[:, 1:]
    scores = logits[:, :-1][keep].float()
    return torch.nn.functional.cross_entropy(scores, ids[:, 1:][keep], reduction="none"), keep
