"""Put saved SAEs back into the form in which they are trained, so that they can be trained further."""

from typing import Any

import torch
from sae_lens import SAE
from sae_lens.training.activation_scaler import ActivationWhitening


@torch.no_grad()
def start_from(saved: SAE[Any], sae: Any, whitening: ActivationWhitening) -> None:
    """Give an SAE in training the features and reconstructions of a saved one.

    The saved SAE reads raw residuals, the one in training whitened ones with decoder rows of norm 1. Both changes are exact. The one exception is the
    threshold of a batch-top-k SAE, which is common to all its latents: it begins at the median, and training moves it from there.

    Args:
        saved: as `SAE.load_from_disk` gives it.
        sae: of the architecture that was saved, changed in place.
        whitening: of the inputs of `sae`.
    """
    weights = {name: value.double() for name, value in saved.state_dict().items()}
    mean, matrix, inverse = whitening.mean.double(), whitening.matrix.double(), whitening.inverse_matrix.double()
    decoder = weights["W_dec"] @ matrix
    norms = decoder.norm(dim=-1)
    sae.W_dec.data.copy_(decoder / norms[:, None])
    sae.W_enc.data.copy_(inverse @ weights["W_enc"] * norms)
    sae.b_enc.data.copy_(weights["b_enc"] * norms)
    sae.b_dec.data.copy_((weights["b_dec"] - mean) @ matrix)
    if "threshold" in weights:
        threshold = weights["threshold"] * norms
        if hasattr(sae, "topk_threshold"):
            sae.topk_threshold.copy_(threshold.median())
        else:
            sae.threshold.data.copy_(threshold)
