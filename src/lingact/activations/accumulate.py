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


@dataclass(frozen=True)
class _Places:
    """Where the tokens of a batch belong, on the device of their residuals."""

    sentence: Int[np.ndarray, " token"]
    """Of each kept token; on the host."""
    half: Int[Tensor, " window"]
    row: Int[Tensor, " token"]
    """Window of each kept token."""
    first: Bool[Tensor, " window"]

    @classmethod
    def of(cls, stats: FeatureStats, batch: TokenBatch, device: torch.device) -> "_Places":
        half = torch.from_numpy(stats.halves)[batch.sentence.cpu()].to(device)
        return cls(batch.kept_sentence.cpu().numpy(), half, batch.kept_row.to(device), batch.first.to(device))


BY_TOKEN = ("activation", "l0", "l2", "top_k", "norm", "square", "error")
"""Sums of a sentence that `add_layer` adds to, in the order in which they leave the device."""
_BY_LATENT = ("firing", "profile", "fired")


def add_layer(
    stats: FeatureStats,
    layer: int,
    x: Float[Tensor, "token d_model"],
    active: ActiveLatents,
    reconstruction: Float[Tensor, "token d_model"],
    batch: TokenBatch,
) -> None:
    """Add one layer's kept tokens of a batch."""
    places = _Places.of(stats, batch, x.device)
    _add_sums(stats, layer, _to_host(_layer_sums(stats, x, active, reconstruction, places)), places)


def _layer_sums(
    stats: FeatureStats, x: Float[Tensor, "token d_model"], active: ActiveLatents, reconstruction: Float[Tensor, "token d_model"], places: _Places
) -> list[Tensor]:
    """What a layer adds, on the device: `BY_TOKEN`, the sum of the residuals, and `_BY_LATENT` of both halves."""
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
    token, latent, width = active.token, active.latent, active.width
    bins = places.half[places.row][token] * width + latent
    firing = torch.bincount(bins, minlength=2 * width)
    profile = torch.bincount(bins, weights=active.value.double(), minlength=2 * width)
    seen = torch.zeros(len(places.first) * width, dtype=torch.bool, device=latent.device)
    seen[places.row[token] * width + latent] = True
    by_window = seen.view(-1, width) & places.first[:, None]
    # A product with the halves' marks, so that no number has to be known on the host.
    fired = [(by_window & (places.half == half)[:, None]).sum(dim=0) for half in (DISCOVERY, CONFIRMATION)]
    halves = [firing.view(2, width), profile.view(2, width), torch.stack(fired)]
    return [torch.stack([by_token[name] for name in BY_TOKEN]), exact.sum(dim=0), *halves]


def _to_host(tensors: list[Tensor]) -> list[np.ndarray]:
    """The tensors in float64, which holds counts exactly, in one transfer."""
    whole = torch.cat([tensor.double().flatten() for tensor in tensors]).cpu().numpy()
    ends = np.cumsum([tensor.numel() for tensor in tensors])[:-1]
    return [part.reshape(tensor.shape) for part, tensor in zip(np.split(whole, ends), tensors, strict=True)]


def _add_sums(stats: FeatureStats, layer: int, sums: list[np.ndarray], places: _Places) -> None:
    """Add what `_layer_sums` found."""
    row = stats.layers.index(layer)
    by_token, residual, firing, profile, fired = sums
    for name, values in zip(BY_TOKEN, by_token, strict=True):
        _add(getattr(stats, name), row, places.sentence, values)
    stats.residual[row] += settled(residual)
    stats.firing[row] += firing.astype(stats.firing[row].dtype)
    stats.profile[row] += settled(profile)
    stats.fired[row] += fired.astype(stats.fired[row].dtype)


def _add_by_reference(stats: FeatureStats, layer: int, sums: np.ndarray, places: _Places) -> None:
    """Add the activation over the reference's latents, and that of residuals rescaled to the reference's norm."""
    assert stats.reference_active is not None
    assert stats.norm_matched is not None
    row = stats.layers.index(layer)
    for target, values in zip((stats.reference_active, stats.norm_matched), sums, strict=True):
        _add(target, row, places.sentence, values)


def _sums_without(
    excluded: Bool[np.ndarray, " d_model"], x: Float[Tensor, "token d_model"], reconstruction: Float[Tensor, "token d_model"]
) -> Float[Tensor, "2 token"]:
    """Squared norm and squared error of each token over the dimensions that are not excluded."""
    kept = torch.from_numpy(~excluded).to(x.device).double()
    exact = x.double()
    return torch.stack([exact.square() @ kept, (exact - reconstruction.double()).square() @ kept])


def _add_without(stats: FeatureStats, layer: int, sums: np.ndarray, places: _Places) -> None:
    """Add what `_sums_without` found."""
    assert stats.square_without is not None
    assert stats.error_without is not None
    row = stats.layers.index(layer)
    for target, values in zip((stats.square_without, stats.error_without), sums, strict=True):
        _add(target, row, places.sentence, values)


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
    """Encode, decode and add the kept residuals of a batch. The sums of all layers leave the device together."""
    places = _Places.of(stats, batch, next(iter(residuals.values())).device)
    pending: list[Tensor] = []
    with torch.no_grad():
        for layer, dictionary in dictionaries.items():
            x = residuals[layer]
            if reference_statistics is None:
                active = dictionary.active(x)
            else:
                active, matched = dictionary.active_and_scaled(x, factor_to(x, reference_statistics.norm[layer]))
                of_reference = reference_statistics.active[stats.header["sae_set"]][layer].to(x.device)
                pending.append(torch.stack([active.sums(active.value * of_reference[active.latent]), matched.sums(matched.value)]))
            reconstruction = dictionary.decode_active(active)
            if stats.excluded is not None:
                pending.append(_sums_without(stats.excluded[stats.layers.index(layer)], x, reconstruction))
            pending += _layer_sums(stats, x, active, reconstruction, places)
    found = iter(_to_host(pending))
    for layer in dictionaries:
        if reference_statistics is not None:
            _add_by_reference(stats, layer, next(found), places)
        if stats.excluded is not None:
            _add_without(stats, layer, next(found), places)
        _add_sums(stats, layer, [next(found) for _ in range(2 + len(_BY_LATENT))], places)


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
