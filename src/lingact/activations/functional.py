"""The loss terms: pure functions of activations, residuals and logits.

Gap terms say how far the target language is from the reference, retention terms how far a language is from where it was. All are relative, so that
layers and models of any scale count alike. All but the hinge and the contrast, which have floors of their own, are 0 where nothing is to be done.
Those "of each token" are averaged by the caller; the others are functions of means.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

LayerWeights = Float[Tensor, " layer"]
"""Weights of the layers, which add up to 1."""


@dataclass(frozen=True)
class LossTerms:
    """The total that is minimised, and every term before and after its weight."""

    total: Float[Tensor, ""]
    raw: dict[str, Float[Tensor, ""]]
    weighted: dict[str, Float[Tensor, ""]]


# --- gap terms -----------------------------------------------------------------------------------------------------------------------------------


def activation_gap(
    activation: Float[Tensor, " layer"], reference: Float[Tensor, " layer"], weights: LayerWeights, *, one_sided: bool
) -> Float[Tensor, ""]:
    """Weighted mean over layers of the squared gap `1 - A / A_reference`.

    Args:
        activation: pooled activation of the target language, with gradient.
        reference: activation of the reference language under the base model, frozen.
        one_sided: count only layers where the target falls short.
    """
    gap = 1 - activation / reference
    return weights @ (gap.relu() if one_sided else gap).square()


def profile_gap(profiles: Sequence[Float[Tensor, " _"]], reference: Sequence[Float[Tensor, " _"]], weights: LayerWeights) -> Float[Tensor, ""]:
    """Squared distance of mean feature profiles over the squared length of the reference's, `|p - r|^2 / |r|^2`, weighted over layers.

    Args:
        profiles: mean activation of each latent over the target's tokens, per layer (SAEs may differ in width), with gradient.
        reference: the same of the reference language on the same sentences under the base model, frozen.
    """
    return weights @ torch.stack([(p - r).square().sum() / r.square().sum() for p, r in zip(profiles, reference, strict=True)])


def pre_activation_hinge(pre: Float[Tensor, "token chosen"], reference: Float[Tensor, " chosen"]) -> Float[Tensor, " token"]:
    """Of each token, the mean over chosen latents of `relu(r_j - z_j)`, relative to the mean size of r.

    The hinge of SASFT (arXiv 2507.14894), which pushes pre-activations down to a mean, turned around: it lifts them up to the reference's mean. The
    gradient reaches latents that are silent, because it is taken before the threshold.

    Args:
        pre: folded pre-activations of the target for the latents that belong to the reference, with gradient.
        reference: mean folded pre-activation of these latents on the reference under the base model, frozen.
    """
    return (reference - pre).relu().mean(dim=-1) / reference.abs().mean()


def pooled_contrast(
    target: Sequence[Float[Tensor, "sentence d_model"]],
    reference: Sequence[Float[Tensor, "sentence d_model"]],
    weights: LayerWeights,
    *,
    temperature: float,
) -> Float[Tensor, ""]:
    """InfoNCE between mean-pooled translations by cosine, both directions, weighted over layers (mid-align, arXiv 2502.14830).

    Args:
        target: mean residual of each sentence in the target language, with gradient.
        reference: of the same sentences in the reference language under the base model, frozen.
    """
    losses = []
    for own, other in zip(target, reference, strict=True):
        scores = torch.nn.functional.normalize(own, dim=-1) @ torch.nn.functional.normalize(other, dim=-1).T / temperature
        partner = torch.arange(len(own), device=scores.device)
        losses.append((torch.nn.functional.cross_entropy(scores, partner) + torch.nn.functional.cross_entropy(scores.T, partner)) / 2)
    return weights @ torch.stack(losses)


def mean_gap(means: Float[Tensor, "layer d_model"], reference: Float[Tensor, "layer d_model"], weights: LayerWeights) -> Float[Tensor, ""]:
    """Squared distance of mean residuals over the squared length of the reference's: a baseline that knows no SAE (DiffMean, arXiv 2601.08331)."""
    return weights @ ((means - reference).square().sum(dim=-1) / reference.square().sum(dim=-1))


# --- retention terms -----------------------------------------------------------------------------------------------------------------------------


def kl_per_token(base_logits: Float[Tensor, "token vocabulary"], logits: Float[Tensor, "token vocabulary"]) -> Float[Tensor, " token"]:
    """KL(base || other) of each next-token distribution, in nats. The statistics and the retention loss both start from it."""
    before, after = base_logits.float().log_softmax(-1), logits.float().log_softmax(-1)
    return (before.exp() * (before - after)).sum(-1)


def top_part(logits: Float[Tensor, "token vocabulary"], top: int) -> tuple[Int[Tensor, "token top"], Float[Tensor, "token top_and_rest"]]:
    """The likeliest next tokens, their log probabilities, and in the last place that of all others together.

    Args:
        top: fewer than the vocabulary has; a larger number is cut to that.
    """
    scores = logits.float().log_softmax(-1)
    ids = scores.topk(min(top, scores.shape[-1] - 1)).indices
    return ids, at_top(scores, ids)


def at_top(scores: Float[Tensor, "token vocabulary"], ids: Int[Tensor, "token top"]) -> Float[Tensor, "token top_and_rest"]:
    """Log probabilities of the given tokens, and in the last place that of all others together."""
    others = scores.scatter(-1, ids, -torch.inf).logsumexp(-1, keepdim=True)
    return torch.cat([scores.gather(-1, ids), others], dim=-1)


def kl_over_top(
    ids: Int[Tensor, "token top"], base: Float[Tensor, "token top_and_rest"], logits: Float[Tensor, "token vocabulary"]
) -> Float[Tensor, " token"]:
    """KL(base || other) in nats of each next-token distribution, all tokens outside the base's top counted as one.

    Never above `kl_per_token` (joining outcomes loses information), and equal to it where nothing is joined.
    """
    after = at_top(logits.float().log_softmax(-1), ids)
    return (base.exp() * (base - after)).sum(-1)


def squared_log_ratio(norms: Float[Tensor, " token"], base: Float[Tensor, " token"]) -> Float[Tensor, " token"]:
    """The squared log ratio of each token's residual norm to that under the base model. It keeps norms where they were."""
    return (norms / base).log().square()


def fvu(error: Float[Tensor, " layer"], square: Float[Tensor, " layer"], mean: Float[Tensor, "layer d_model"]) -> Float[Tensor, " layer"]:
    """Fraction of variance unexplained, `sum |x - x_hat|^2 / sum |x - mean(x)|^2`.

    Args:
        error: mean squared reconstruction error of a token.
        square: mean squared norm of a token's residual.
        mean: mean residual.
    """
    return error / (square - mean.square().sum(dim=-1))


def fit_loss(after: Float[Tensor, " layer"], base: Float[Tensor, " layer"], weights: LayerWeights) -> Float[Tensor, ""]:
    """How much worse the SAEs fit than under the base model: `relu(FVU / FVU_base - 1)`, weighted over layers. A better fit costs nothing.

    The first thousandth costs nothing either: a new adapter stands right on the kink, where rounding would decide whether there is a gradient.
    """
    return weights @ (after / base - 1.001).relu()


# --- the whole -----------------------------------------------------------------------------------------------------------------------------------


def combine(raw: dict[str, Float[Tensor, ""]], weights: dict[str, float]) -> LossTerms:
    """The weighted sum; a term of weight zero is logged and not trained on.

    Where every weight is zero, as when the multiplier of the only term has fallen to zero, so are the total and its gradient.
    """
    weighted = {name: value * weights[name] for name, value in raw.items()}
    trained = [value for name, value in weighted.items() if weights[name] > 0] or list(weighted.values())
    total = torch.stack(trained).sum()
    return LossTerms(total, raw, weighted)
