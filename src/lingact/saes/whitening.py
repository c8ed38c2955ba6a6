"""Scale the inputs of SAEs, so that a few dominating directions leave something to learn for the others."""

import torch
from jaxtyping import Float
from sae_lens.training.activation_scaler import ActivationWhitening
from torch import Tensor

_FLOOR = 1e-6
"""Smallest eigenvalue, of the largest."""


def partly_whitened(sample: Float[Tensor, "token d_model"], power: float) -> ActivationWhitening:
    """The affine map z = (x - mean) C^(-power/2) s, with C the covariance of the sample and s such that the mean norm of z is sqrt(d_model).

    Power 0 centres and scales. Power 1 whitens, as sae-lens's `covariance_whitening` does (arXiv 2511.13981): all directions then count alike, and
    the fraction of variance unexplained in the residual itself grows. What lies between keeps the order of the directions and narrows their range:
    SAEs with a top-k spend their latents on less than a few directions of huge variance, and hardly any stay dead.
    """
    x = sample.double()
    mean = x.mean(dim=0)
    if power == 0:
        matrix = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
        inverse = matrix
    else:
        variance, directions = torch.linalg.eigh(torch.cov((x - mean).T))
        variance = variance.clamp(min=_FLOOR * float(variance.max()))
        matrix = directions * variance.pow(-power / 2)
        inverse = variance.pow(power / 2)[:, None] * directions.T
    scale = x.shape[1] ** 0.5 / ((x - mean) @ matrix).norm(dim=-1).mean()
    return ActivationWhitening(mean=mean, matrix=matrix * scale, inverse_matrix=inverse / scale)
