"""The reference language under the base model on the training sentences: what the gap terms aim at. Computed once, frozen."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lingact.adapters import base_behaviour
from lingact.corpus import ParallelCorpus
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
    """Per layer: sum of each latent's pre-activations over all tokens."""

    def activation(self, pooling: str) -> Float[Tensor, " layer"]:
        """A(l, reference), pooled over tokens or over sentences."""
        sums = torch.stack([profile.sum(dim=1) for profile in self.profile])
        if pooling == "token":
            return sums.sum(dim=1) / self.tokens.sum()
        return (sums / self.tokens).mean(dim=1)

    def mean(self) -> Float[Tensor, "layer d_model"]:
        """Mean residual over tokens."""
        return self.residual.sum(dim=1) / self.tokens.sum()

    def mean_norm(self) -> Float[Tensor, " layer"]:
        """Mean residual norm over tokens."""
        return self.norm.sum(dim=1) / self.tokens.sum()

    def active(self) -> list[Bool[Tensor, " d_sae"]]:
        """Per layer: latents that fire on at least 1 % of the tokens."""
        return [fires >= ACTIVE_SHARE * self.tokens.sum() for fires in self.firing]

    def mean_pre(self) -> list[Float[Tensor, " d_sae"]]:
        """Per layer: mean pre-activation of each latent."""
        return [pre / self.tokens.sum() for pre in self.pre]

    def profiles_of(self, sentences: Int[Tensor, " chosen"]) -> list[Float[Tensor, " d_sae"]]:
        """Per layer: mean activation of each latent over the tokens of some sentences."""
        return [profile[sentences].sum(dim=0) / self.tokens[sentences].sum() for profile in self.profile]

    def means_of(self, sentences: Int[Tensor, " chosen"]) -> list[Float[Tensor, "chosen d_model"]]:
        """Per layer: mean residual of each of some sentences."""
        return [residual[sentences] / self.tokens[sentences, None] for residual in self.residual]


@torch.no_grad()
def freeze_reference(lm: LanguageModel, dictionaries: Dictionaries, corpus: ParallelCorpus, code: str, *, batch_tokens: int) -> Reference:
    """One pass of the base model over the training sentences in the reference language."""
    layers, count = tuple(dictionaries), len(corpus.ids)
    d_model = lm.model.get_input_embeddings().weight.shape[1]  # pyrefly: ignore[not-callable]
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
        found.pre[row].add_(dictionary.pre_activations(x).sum(dim=0).cpu())
