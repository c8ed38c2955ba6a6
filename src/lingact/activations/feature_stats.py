"""Streaming statistics of one language: raw sums that merge, nothing derived.

Numerators and denominators are kept per sentence and divided once, in `measures` and `tables`. Counters are int64, sums float64.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lingact.activations.features import rescaled_to, token_activation
from lingact.data.corpus import ParallelCorpus, word_count
from lingact.data.tokens import TokenBatch
from lingact.errors import UserError
from lingact.models.sae import Dictionaries
from lingact.runtime.resumable_passes import refuse_mismatched
from lingact.statistics.bootstrap import Resampling

DISCOVERY, CONFIRMATION = 0, 1
"""The halves of the sentences (`ParallelCorpus.halves`): what is found on one is confirmed on the other."""
GIVEN = ("bytes", "words")
"""Known from the text, not summed."""
_PER_LATENT = ("firing", "profile", "fired")


def settled(sums: np.ndarray) -> np.ndarray:
    """Infinite sums as nan: no table tells them apart, and arithmetic with infinities warns."""
    return np.where(np.isfinite(sums), sums, np.nan)


@dataclass(frozen=True)
class ReferenceStatistics:
    """What must be known of the reference language before others are measured by it; all from its discovery half."""

    norm: dict[int, float]
    """Layer -> mean residual norm."""
    active: dict[str, dict[int, Bool[Tensor, " d_sae"]]]
    """Meter -> layer -> latents that fire on at least 1 % of the kept tokens."""


@dataclass
class FeatureStats:
    """One language seen through one set of SAEs: sums over the kept tokens of each sentence. Axes: layer in the order of `layers`."""

    header: dict[str, str]
    """Identity of everything the numbers depend on; statistics of different headers do not merge."""
    sentence_ids: tuple[str, ...]
    halves: Int[np.ndarray, " sentence"]
    layers: tuple[int, ...]
    top_k_size: int
    """How many of a token's strongest latents `top_k` sums."""
    tokens: Int[np.ndarray, " sentence"]
    windows: Int[np.ndarray, " sentence"]
    bytes: Int[np.ndarray, " sentence"]
    """UTF-8 bytes of the text."""
    words: Int[np.ndarray, " sentence"]
    """Words of the text (UAX #29)."""
    partial: Int[np.ndarray, " sentence"]
    """Tokens that stand for a part of a character (byte fallback)."""
    activation: Float[np.ndarray, "layer sentence"]
    """Sum of folded activations over tokens and latents."""
    l0: Int[np.ndarray, "layer sentence"]
    """Sum over tokens of the number of active latents."""
    l2: Float[np.ndarray, "layer sentence"]
    """Sum over tokens of the Euclidean norm of the activations."""
    top_k: Float[np.ndarray, "layer sentence"]
    """Sum over tokens of the activations of each token's strongest latents."""
    norm: Float[np.ndarray, "layer sentence"]
    """Sum of the residuals' norms."""
    square: Float[np.ndarray, "layer sentence"]
    """Sum of the residuals' squared norms."""
    error: Float[np.ndarray, "layer sentence"]
    """Sum of squared reconstruction errors."""
    residual: Float[np.ndarray, "layer d_model"]
    """Sum of the residuals."""
    firing: list[Int[np.ndarray, "half=2 d_sae"]] = field(default_factory=list)
    """Per layer: tokens of each half on which each latent is active."""
    profile: list[Float[np.ndarray, "half=2 d_sae"]] = field(default_factory=list)
    """Per layer: sum of each latent's activations over the tokens of each half."""
    fired: list[Int[np.ndarray, "half=2 d_sae"]] = field(default_factory=list)
    """Per layer: sentences of each half in whose first window each latent is active at least once."""
    reference_active: Float[np.ndarray, "layer sentence"] | None = None
    """`activation` over the latents of `Yardstick.active` only."""
    norm_matched: Float[np.ndarray, "layer sentence"] | None = None
    """`activation` of residuals rescaled to `Yardstick.norm`."""
    nll: Float[np.ndarray, " sentence"] | None = None
    """Sum of next-token cross-entropies in nats, where logits were computed."""
    kl: Float[np.ndarray, " sentence"] | None = None
    """Sum over kept tokens of KL(base || adapter) in nats of the prediction of that token, where both were computed."""
    predicted: Int[np.ndarray, " sentence"] | None = None
    """Tokens in `nll` and `kl`."""
    documents: tuple[str, ...] | None = None
    """The document of each sentence (`ParallelCorpus.documents`)."""
    rows: tuple[int, ...] | None = None
    """Its place in the source (`ParallelCorpus.rows`); None: not kept."""

    @classmethod
    def empty(  # noqa: PLR0913 (a constructor)
        cls,
        header: dict[str, str],
        corpus: ParallelCorpus,
        code: str,
        dictionaries: Dictionaries,
        d_model: int,
        *,
        language_model: bool = False,
        reference_statistics: bool = False,
        top_k_size: int = 10,
    ) -> "FeatureStats":
        """Zeros for every sentence of the corpus."""
        layers, count = tuple(dictionaries), len(corpus.ids)

        def sums() -> np.ndarray:
            return np.zeros((len(layers), count))

        return cls(
            header=header,
            sentence_ids=corpus.ids,
            halves=corpus.halves,
            layers=layers,
            top_k_size=top_k_size,
            tokens=np.zeros(count, np.int64),
            windows=np.zeros(count, np.int64),
            bytes=np.array([len(text.encode()) for text in corpus.texts[code]], np.int64),
            words=np.array([word_count(text) for text in corpus.texts[code]], np.int64),
            partial=np.zeros(count, np.int64),
            activation=sums(),
            l0=np.zeros((len(layers), count), np.int64),
            l2=sums(),
            top_k=sums(),
            norm=sums(),
            square=sums(),
            error=sums(),
            residual=np.zeros((len(layers), d_model)),
            firing=[np.zeros((2, d.width), np.int64) for d in dictionaries.values()],
            profile=[np.zeros((2, d.width)) for d in dictionaries.values()],
            fired=[np.zeros((2, d.width), np.int64) for d in dictionaries.values()],
            reference_active=sums() if reference_statistics else None,
            norm_matched=sums() if reference_statistics else None,
            nll=np.zeros(count) if language_model else None,
            kl=np.zeros(count) if language_model else None,
            predicted=np.zeros(count, np.int64) if language_model else None,
            documents=corpus.documents,
            rows=corpus.rows,
        )

    def resampling(self, block: int | None) -> Resampling:
        """What intervals draw: documents, or else blocks of so many neighbouring sentences, or else sentences."""
        return Resampling.of(len(self.sentence_ids), self.documents, self.rows, block)

    def count_tokens(self, batch: TokenBatch, partial: Bool[Tensor, " vocabulary"]) -> None:
        """Count the windows and kept tokens of a batch; `partial` marks the vocabulary's parts of characters."""
        kept = batch.kept_sentence.cpu().numpy()
        np.add.at(self.windows, batch.sentence.cpu().numpy(), 1)
        np.add.at(self.tokens, kept, 1)
        np.add.at(self.partial, kept, partial[batch.ids[batch.keep]].numpy())

    def add_layer(
        self,
        layer: int,
        x: Float[Tensor, "token d_model"],
        features: Float[Tensor, "token d_sae"],
        reconstruction: Float[Tensor, "token d_model"],
        batch: TokenBatch,
    ) -> None:
        """Add one layer's kept tokens of a batch."""
        row, place = self.layers.index(layer), batch.kept_sentence.cpu().numpy()
        active = features > 0

        self._add(self.activation, row, place, token_activation(features))
        self._add(self.l0, row, place, active.sum(dim=-1))
        self._add(self.l2, row, place, features.norm(dim=-1))
        self._add(self.top_k, row, place, features.topk(min(self.top_k_size, features.shape[-1]), dim=-1, sorted=False).values.sum(dim=-1))
        exact = x.double()
        self._add(self.norm, row, place, exact.norm(dim=-1))
        self._add(self.square, row, place, exact.square().sum(dim=-1))
        self._add(self.error, row, place, (exact - reconstruction.double()).square().sum(dim=-1))
        self.residual[row] += settled(exact.sum(dim=0).cpu().numpy())
        self._add_latents(row, features, active, batch)

    def _add_latents(self, row: int, features: Float[Tensor, "token d_sae"], active: Bool[Tensor, "token d_sae"], batch: TokenBatch) -> None:
        """Add to the sums per latent, each sentence to its half."""
        token, latent = active.nonzero(as_tuple=True)
        width = features.shape[-1]
        row_half = torch.from_numpy(self.halves)[batch.sentence.cpu()].to(latent.device)
        kept_row = batch.kept_row.to(latent.device)
        bins = row_half[kept_row][token] * width + latent
        self.firing[row] += torch.bincount(bins, minlength=2 * width).view(2, width).cpu().numpy()
        values = torch.bincount(bins, weights=features[token, latent].double(), minlength=2 * width)
        self.profile[row] += settled(values.view(2, width).cpu().numpy())
        first = batch.first.to(latent.device)
        seen = torch.zeros(len(first) * width, dtype=torch.bool, device=latent.device)
        seen[kept_row[token] * width + latent] = True
        by_window = seen.view(-1, width) & first[:, None]
        for half in (DISCOVERY, CONFIRMATION):
            self.fired[row][half] += by_window[row_half == half].sum(dim=0).cpu().numpy()

    def add_by_reference(
        self,
        layer: int,
        features: Float[Tensor, "token d_sae"],
        matched: Float[Tensor, "token d_sae"],
        active: Bool[Tensor, " d_sae"],
        batch: TokenBatch,
    ) -> None:
        """Add the activation over the reference's latents, and that of residuals rescaled to the reference's norm."""
        assert self.reference_active is not None
        assert self.norm_matched is not None
        row, place = self.layers.index(layer), batch.kept_sentence.cpu().numpy()
        self._add(self.reference_active, row, place, token_activation(features[:, active]))
        self._add(self.norm_matched, row, place, token_activation(matched))

    @staticmethod
    def _add(target: np.ndarray, row: int, place: np.ndarray, values: Tensor) -> None:
        np.add.at(target[row], place, settled(values.double().cpu().numpy()).astype(target.dtype))

    def add_predictions(self, nll: Float[Tensor, " predicted"], kl: Float[Tensor, " predicted"], sentence: Int[Tensor, " predicted"]) -> None:
        """Add the language-model losses of a batch."""
        assert self.nll is not None
        assert self.kl is not None
        assert self.predicted is not None
        place = sentence.cpu().numpy()
        np.add.at(self.nll, place, settled(nll.double().cpu().numpy()))
        np.add.at(self.kl, place, settled(kl.double().cpu().numpy()))
        np.add.at(self.predicted, place, 1)

    def arrays(self) -> dict[str, np.ndarray]:
        """The sums by name, not copied; those per latent as `<name>.<layer>`."""
        plain = {name: value for name, value in vars(self).items() if isinstance(value, np.ndarray) and name != "halves"}
        per_layer = {f"{name}.{layer}": array for name in _PER_LATENT for layer, array in zip(self.layers, getattr(self, name), strict=True)}
        return plain | per_layer

    def merge(self, other: "FeatureStats") -> "FeatureStats":
        """The statistics of both, which cover different tokens of the same sentences.

        Raises:
            UserError: they are of different models, SAEs, corpora, languages or layers.
        """
        refuse_mismatched(other.header, self.header, "one of the statistics")
        if self._sentences() != other._sentences() or (self.layers, self.top_k_size) != (other.layers, other.top_k_size):
            raise UserError("these statistics do not belong together; they cover other sentences or layers, or another top k")
        mine, theirs = self.arrays(), other.arrays()
        if mine.keys() != theirs.keys():
            raise UserError("these statistics do not belong together; only one of them has language-model losses or measures by the reference")
        merged = {name: mine[name] if name in GIVEN else mine[name] + theirs[name] for name in mine}
        return self.from_arrays(self.header, self._sentences() | {"halves": self.halves}, self.layers, self.top_k_size, merged)

    def _sentences(self) -> dict[str, Any]:
        return {"sentence_ids": self.sentence_ids, "documents": self.documents, "rows": self.rows}

    @classmethod
    def from_arrays(
        cls,
        header: dict[str, str],
        sentences: dict[str, Any],
        layers: tuple[int, ...],
        top_k_size: int,
        arrays: dict[str, np.ndarray],
    ) -> "FeatureStats":
        """From what `arrays` gave.

        Args:
            sentences: `sentence_ids`, `halves`, `documents` and `rows`.
        """
        plain: dict[str, Any] = {name: array for name, array in arrays.items() if "." not in name}
        per_layer: dict[str, Any] = {name: [arrays[f"{name}.{layer}"] for layer in layers] for name in _PER_LATENT}
        return cls(header=header, layers=layers, top_k_size=top_k_size, **sentences, **plain, **per_layer)


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
            features = dictionary.encode(x)
            stats.add_layer(layer, x, features, dictionary.decode(features), batch)
            if reference_statistics is not None:
                matched = dictionary.encode(rescaled_to(x, reference_statistics.norm[layer]))
                stats.add_by_reference(layer, features, matched, reference_statistics.active[stats.header["sae_set"]][layer].to(x.device), batch)


@dataclass
class SentenceVectors:
    """Sums of the residuals of some sentences of one language, for similarity between languages; at most so many that memory stays bounded."""

    header: dict[str, str]
    sentence_ids: tuple[str, ...]
    """The chosen sentences."""
    places: Int[np.ndarray, " chosen"]
    """Their places in the corpus, ascending."""
    layers: tuple[int, ...]
    total: Float[np.ndarray, "layer chosen d_model"]
    """Sum of the kept tokens' residuals."""
    tokens: Int[np.ndarray, " chosen"]

    @classmethod
    def empty(cls, header: dict[str, str], corpus: ParallelCorpus, layers: tuple[int, ...], d_model: int, at_most: int) -> "SentenceVectors":
        """Zeros for the first `at_most` sentences of the corpus in the order of a hash of their ids, which no file order can bias."""
        places = corpus.sample(at_most)
        ids = tuple(corpus.ids[place] for place in places)
        return cls(header, ids, places, layers, np.zeros((len(layers), len(places), d_model)), np.zeros(len(places), np.int64))

    def add(self, residuals: dict[int, Float[Tensor, "token d_model"]], batch: TokenBatch) -> None:
        """Add the kept residuals of a batch."""
        sentence = batch.kept_sentence.cpu().numpy()
        slot = np.searchsorted(self.places, sentence).clip(max=len(self.places) - 1)
        chosen = self.places[slot] == sentence
        np.add.at(self.tokens, slot[chosen], 1)
        where = torch.from_numpy(np.flatnonzero(chosen))
        index = torch.from_numpy(slot[chosen])
        for row, layer in enumerate(self.layers):
            x = residuals[layer].cpu()[where].double()
            x = torch.where(x.isfinite(), x, torch.nan)
            # index_add over the batch's tokens keeps the order of summation fixed.
            torch.from_numpy(self.total[row]).index_add_(0, index, x)

    def means(self) -> Float[np.ndarray, "layer chosen d_model"]:
        """Mean residual of each sentence."""
        return self.total / self.tokens[None, :, None]

    def arrays(self) -> dict[str, np.ndarray]:
        """The sums by name, not copied."""
        return {"vectors.total": self.total, "vectors.tokens": self.tokens}
