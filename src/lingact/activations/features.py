"""The one path from text to residuals, used by analysis without gradient and by training with it; and what changes their norms."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lingact.data.tokens import TokenBatch
from lingact.models.lm import LanguageModel
from lingact.models.next_tokens import NextTokens


def kept_residuals(
    lm: LanguageModel, batch: TokenBatch, layers: tuple[int, ...], *, predict: bool = False
) -> tuple[dict[int, Float[Tensor, "token d_model"]], NextTokens | None]:
    """Residuals of the kept tokens behind each of the layers, in float32, and with `predict` the predictions of these tokens.

    Who wants gradients leaves autograd on; adapters are switched by the caller.
    """
    residuals, predictions = lm.residuals(batch, layers, predict=predict)
    keep = batch.keep.to(lm.device)
    return {layer: x[keep].float() for layer, x in residuals.items()}, predictions


def rescaled(x: Float[Tensor, "token d_model"], norms: Float[Tensor, " token"]) -> Float[Tensor, "token d_model"]:
    """`x` with each token's norm set to a given one, which removes changes of the norm."""
    return x * factor_to(x, norms)[:, None]


def factor_to(x: Float[Tensor, "token d_model"], norm: float | Float[Tensor, " token"]) -> Float[Tensor, " token"]:
    """What each token has to be multiplied with to have this norm, which removes differences in norm between languages."""
    return norm / x.norm(dim=-1).clamp_min(1e-12)


LARGEST = 0.01
"""Share of the dimensions, those of largest variance, without which norms and fit are given once more: they hold most of what large models have."""


def largest_dimensions(x: Float[Tensor, "token d_model"]) -> Bool[Tensor, " d_model"]:
    """The `LARGEST` share of the dimensions by their variance over these tokens, at least one."""
    variance = x.double().var(dim=0)
    chosen = variance.topk(max(1, round(LARGEST * len(variance)))).indices
    return torch.zeros(len(variance), dtype=torch.bool).index_fill_(0, chosen.cpu(), value=True)
