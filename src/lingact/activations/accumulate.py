"""Add the tensors of a batch to streaming statistics. Sums are taken on the device and kept on the host."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lingact.activations.feature_stats import CONFIRMATION, DISCOVERY, FeatureStats, SentenceVectors, settled
from lingact.activations.features import factor_to
from lingact.data.tokens import TokenBatch
from lingact.models.active_latents import ActiveLatents
from lingact.models.sae import Dictionaries


@dataclass(frozen=True)
class ReferenceStatistics:
    """What must be known of the reference language before others are measured by it; all from its discovery half."""

    norm: dict[int, float]
    """Layer -> mean residual norm."""
    active: dict[str, dict[int, Bool[Tensor, " d_sae"]]]
    """SAE set -> layer -> latents that fire on at least 1 % of the kept tokens."""


def count_tokens(stats: FeatureStats, batch: TokenBatch, partial: Bool[Tensor, " vocabulary"]) -> None:
    """Count the windows and kept tokens of a batch; `partial` marks the vocabulary's parts of characters."""
    kept = batch.kept_sentence.cpu().numpy()
    np.add.at(stats.windows, batch.sentence.cpu().numpy(), 1)
    np.add.at(stats.tokens, kept, 1)
    np.add.at(stats.partial, kept, partial[batch.ids[batch.keep]].numpy())


def add_layer(
    stats: FeatureStats,
    layer: int,
    x: Float[Tensor, "token d_model"],
    active: ActiveLatents,
    reconstruction: Float[Tensor, "token d_model"],
    batch: TokenBatch,
) -> None:
    """Add one layer's kept tokens of a batch. All sums leave the device together."""
    row, place = stats.layers.index(layer), batch.kept_sentence.cpu().numpy()
    exact = x.double()
    by_token = {
        "activation": active.sums(active.value),
        "l0": active.counts.double(),
        "l2": active.sums(active.value.double().square()).sqrt(),
        "top_k": active.strongest(stats.top_k_size),
        "norm": exact.norm(dim=-1),
        "square": exact.square().sum(dim=-1),
        "error": (exact - reconstruction.double()).square().sum(dim=-1),
    }
    for name, values in zip(by_token, torch.stack(list(by_token.values())).cpu().numpy(), strict=True):
        _add(getattr(stats, name), row, place, values)
    stats.residual[row] += settled(exact.sum(dim=0).cpu().numpy())
    _add_latents(stats, row, active, batch)


def _add_latents(stats: FeatureStats, row: int, active: ActiveLatents, batch: TokenBatch) -> None:
    """Add to the sums per latent, each sentence to its half."""
    token, latent, width = active.token, active.latent, active.width
    row_half = torch.from_numpy(stats.halves)[batch.sentence.cpu()].to(latent.device)
    kept_row = batch.kept_row.to(latent.device)
    bins = row_half[kept_row][token] * width + latent
    stats.firing[row] += torch.bincount(bins, minlength=2 * width).view(2, width).cpu().numpy()
    values = torch.bincount(bins, weights=active.value.double(), minlength=2 * width)
    stats.profile[row] += settled(values.view(2, width).cpu().numpy())
    first = batch.first.to(latent.device)
    seen = torch.zeros(len(first) * width, dtype=torch.bool, device=latent.device)
    seen[kept_row[token] * width + latent] = True
    by_window = seen.view(-1, width) & first[:, None]
    for half in (DISCOVERY, CONFIRMATION):
        stats.fired[row][half] += by_window[row_half == half].sum(dim=0).cpu().numpy()


def add_by_reference(
    stats: FeatureStats,
    layer: int,
    active: ActiveLatents,
    matched: ActiveLatents,
    of_reference: Bool[Tensor, " d_sae"],
    batch: TokenBatch,
) -> None:
    """Add the activation over the reference's latents, and that of residuals rescaled to the reference's norm."""
    assert stats.reference_active is not None
    assert stats.norm_matched is not None
    row, place = stats.layers.index(layer), batch.kept_sentence.cpu().numpy()
    among = active.sums(active.value * of_reference[active.latent])
    own, all_latents = torch.stack([among, matched.sums(matched.value)]).cpu().numpy()
    _add(stats.reference_active, row, place, own)
    _add(stats.norm_matched, row, place, all_latents)


def _add(target: np.ndarray, row: int, place: np.ndarray, values: np.ndarray) -> None:
    np.add.at(target[row], place, settled(values).astype(target.dtype))


def add_predictions(
    stats: FeatureStats, nll: Float[Tensor, " predicted"], kl: Float[Tensor, " predicted"], sentence: Int[Tensor, " predicted"]
) -> None:
    """Add the language-model losses of a batch."""
    assert stats.nll is not None
    assert stats.kl is not None
    assert stats.predicted is not None
    place = sentence.cpu().numpy()
    np.add.at(stats.nll, place, settled(nll.double().cpu().numpy()))
    np.add.at(stats.kl, place, settled(kl.double().cpu().numpy()))
    np.add.at(stats.predicted, place, 1)


def add_batch(
    stats: FeatureStats,
    dictionaries: Dictionaries,
    residuals: dict[int, Float[Tensor, "token d_model"]],
    batch: TokenBatch,
    reference_statistics: ReferenceStatistics | None = None,
) -> None:
    """Encode, decode and add the kept residuals of a batch, all layers."""
    with torch.no_grad():
        for layer, dictionary in dictionaries.items():
            x = residuals[layer]
            if reference_statistics is None:
                active = dictionary.active(x)
            else:
                active, matched = dictionary.active_and_scaled(x, factor_to(x, reference_statistics.norm[layer]))
                add_by_reference(stats, layer, active, matched, reference_statistics.active[stats.header["sae_set"]][layer].to(x.device), batch)
            add_layer(stats, layer, x, active, dictionary.decode_active(active), batch)


def add_vectors(vectors: SentenceVectors, residuals: dict[int, Float[Tensor, "token d_model"]], batch: TokenBatch) -> None:
    """Add the kept residuals of a batch."""
    sentence = batch.kept_sentence.cpu().numpy()
    slot = np.searchsorted(vectors.places, sentence).clip(max=len(vectors.places) - 1)
    chosen = vectors.places[slot] == sentence
    np.add.at(vectors.tokens, slot[chosen], 1)
    where = torch.from_numpy(np.flatnonzero(chosen))
    index = torch.from_numpy(slot[chosen])
    for row, layer in enumerate(vectors.layers):
        x = residuals[layer].cpu()[where].double()
        x = torch.where(x.isfinite(), x, torch.nan)
        # index_add over the batch's tokens keeps the order of summation fixed.
        torch.from_numpy(vectors.total[row]).index_add_(0, index, x)
