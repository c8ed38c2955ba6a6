"""The reference language under the base model on the training sentences: what the gap terms aim at. Computed once, frozen."""

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lingact.adapters import base_behaviour
from lingact.corpus import ParallelCorpus
from lingact.errors import UserError
from lingact.features import kept_residuals
from lingact.lm import LanguageModel
from lingact.measure import ACTIVE_SHARE
from lingact.passes import token_bar
from lingact.sae import Dictionaries
from lingact.tokens import TokenBatch


@dataclass(frozen=True)
class Reference:
    """Sums over the kept tokens of each training sentence, and what follows from them. Axes: layer in the order of `layers`."""

    layers: tuple[int, ...]
    tokens: Int[Tensor, " sentence"]
    residual: Float[Tensor, "layer sentence d_model"]
    """Sum of the residuals."""
    norm: Float[Tensor, "layer sentence"]
    """Sum of their norms."""
    profile: list[Float[Tensor, "sentence d_sae"]]
    """Per layer: sum of each latent's activations."""
    firing: list[Int[Tensor, " d_sae"]]
    """Per layer: tokens on which each latent fires."""
    pre: list[Float[Tensor, " d_sae"]]
    """Per layer: sum of each latent's folded pre-activations over all tokens."""

    def activation(self, pooling: str) -> Float[Tensor, " layer"]:
        """A(l, reference), pooled over tokens or over sentences."""
        return self._pooled(self._totals, pooling)

    @cached_property
    def _totals(self) -> Float[Tensor, "layer sentence"]:
        # Kept: for a wide SAE the sum takes as long as a training step.
        return torch.stack([profile.sum(dim=1) for profile in self.profile])

    def mean_norm(self, pooling: str) -> Float[Tensor, " layer"]:
        """Mean residual norm, pooled over tokens or over sentences."""
        return self._pooled(self.norm, pooling)

    def _pooled(self, sums: Float[Tensor, "layer sentence"], pooling: str) -> Float[Tensor, " layer"]:
        return sums.sum(dim=1) / self.tokens.sum() if pooling == "token" else (sums / self.tokens).mean(dim=1)

    def mean(self) -> Float[Tensor, "layer d_model"]:
        """Mean residual over tokens."""
        return self.residual.sum(dim=1) / self.tokens.sum()

    @cached_property
    def active(self) -> list[Int[Tensor, " chosen"]]:
        """Per layer: the latents that fire on at least 1 % of the tokens.

        Raises:
            UserError: a layer has none.
        """
        found = [(fires >= ACTIVE_SHARE * self.tokens.sum()).nonzero()[:, 0] for fires in self.firing]
        silent = [layer for layer, latents in zip(self.layers, found, strict=True) if not len(latents)]
        if silent:
            raise UserError(
                f"loss.gap.layers: no latent of the layers {silent} fires on {ACTIVE_SHARE:.0%} of the reference's tokens; leave them out"
            )
        return found

    def mean_pre(self) -> list[Float[Tensor, " d_sae"]]:
        """Per layer: mean folded pre-activation of each latent."""
        return [pre / self.tokens.sum() for pre in self.pre]

    def profiles_of(self, sentences: Int[Tensor, " chosen"]) -> list[Float[Tensor, " d_sae"]]:
        """Per layer: mean activation of each latent over the tokens of some sentences."""
        return [profile[sentences].sum(dim=0) / self.tokens[sentences].sum() for profile in self.profile]

    def means_of(self, sentences: Int[Tensor, " chosen"]) -> list[Float[Tensor, "chosen d_model"]]:
        """Per layer: mean residual of each of some sentences."""
        return [residual[sentences] / self.tokens[sentences, None] for residual in self.residual]

    def shuffled(self, seed: int) -> "Reference":
        """Every sentence's quantities in the place of another sentence, which makes pairs that are no translations; totals stay."""
        count = len(self.tokens)
        assert count > 1
        cycle = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
        # One cycle through all sentences leaves none in its own place.
        other = torch.empty_like(cycle).scatter_(0, cycle, cycle.roll(1))
        return replace(
            self,
            tokens=self.tokens[other],
            residual=self.residual[:, other],
            norm=self.norm[:, other],
            profile=[profile[other] for profile in self.profile],
        )


@torch.no_grad()
def freeze_reference(lm: LanguageModel, dictionaries: Dictionaries, corpus: ParallelCorpus, code: str, *, batch_tokens: int) -> Reference:
    """One pass of the base model over the training sentences in the reference language."""
    layers, count = tuple(dictionaries), len(corpus.ids)
    d_model = next(iter(dictionaries.values())).sae.cfg.d_in
    found = Reference(
        layers=layers,
        tokens=torch.zeros(count, dtype=torch.long),
        residual=torch.zeros(len(layers), count, d_model),
        norm=torch.zeros(len(layers), count),
        profile=[torch.zeros(count, d.width) for d in dictionaries.values()],
        firing=[torch.zeros(d.width, dtype=torch.long) for d in dictionaries.values()],
        pre=[torch.zeros(d.width) for d in dictionaries.values()],
    )
    texts = corpus.texts[code]
    with token_bar(lm.tokens.count(texts), f"freezing {code}") as bar, base_behaviour(lm.model):
        for batch in lm.tokens.batches(lm.tokens.windows(texts), batch_tokens):
            _add(found, lm, dictionaries, batch)
            bar.update(batch.size())
    return found


def _add(found: Reference, lm: LanguageModel, dictionaries: Dictionaries, batch: TokenBatch) -> None:
    residuals, _ = kept_residuals(lm, batch, found.layers)
    sentence = batch.kept_sentence
    found.tokens.index_add_(0, sentence, torch.ones_like(sentence))
    for row, (layer, dictionary) in enumerate(dictionaries.items()):
        x, features = residuals[layer], dictionary.encode(residuals[layer])
        found.residual[row].index_add_(0, sentence, x.cpu())
        found.norm[row].index_add_(0, sentence, x.norm(dim=-1).cpu())
        found.profile[row].index_add_(0, sentence, features.cpu())
        found.firing[row].add_((features > 0).sum(dim=0).cpu())
        found.pre[row].add_(dictionary.folded_pre_activations(x).sum(dim=0).cpu())
