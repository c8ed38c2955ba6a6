"""Streaming statistics of one language: raw sums that merge, nothing derived.

Numerators and denominators are kept per sentence and divided once, in `measures` and `tables`. Counters are int64, sums float64.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from lingact.data.corpus import ParallelCorpus
from lingact.data.text import word_count
from lingact.errors import UserError
from lingact.files.states import refuse_mismatched
from lingact.statistics.bootstrap import Resampling

DISCOVERY, CONFIRMATION = 0, 1
"""The halves of the sentences (`ParallelCorpus.halves`): what is found on one is confirmed on the other."""
LAYER_SUMS = ("activation", "l0", "l2", "top_k", "norm", "square", "error")
"""The sums of every layer and sentence that are always kept."""
GIVEN = ("bytes", "words", "excluded")
"""Known beforehand, not summed."""
_PER_LATENT = ("firing", "profile", "fired")


def settled(sums: np.ndarray) -> np.ndarray:
    """Infinite sums as nan: no table tells them apart, and arithmetic with infinities warns."""
    return np.where(np.isfinite(sums), sums, np.nan)


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
    # Sums that not every run keeps, or that earlier versions did not keep, are None there.
    reference_active: Float[np.ndarray, "layer sentence"] | None = None
    """`activation` over the latents of `ReferenceStatistics.active` only."""
    norm_matched: Float[np.ndarray, "layer sentence"] | None = None
    """`activation` of residuals rescaled to `ReferenceStatistics.norm`."""
    excluded: Bool[np.ndarray, "layer d_model"] | None = None
    """Dimensions that `square_without` and `error_without` leave out."""
    square_without: Float[np.ndarray, "layer sentence"] | None = None
    """`square` over the other dimensions."""
    error_without: Float[np.ndarray, "layer sentence"] | None = None
    """`error` over the other dimensions."""
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
        widths: dict[int, int],
        d_model: int,
        *,
        language_model: bool = False,
        reference_statistics: bool = False,
        excluded: Mapping[int, Bool[np.ndarray, " d_model"]] | None = None,
        top_k_size: int = 10,
    ) -> "FeatureStats":
        """Zeros for every sentence of the corpus.

        Args:
            code: the language of the corpus that is measured.
            widths: layer -> number of latents of its SAE.
            language_model: make room for next-token cross-entropies and divergences.
            reference_statistics: make room for the measures by the reference language.
            excluded: layer -> dimensions to leave out; make room for the sums without them.
        """
        layers, count = tuple(widths), len(corpus.ids)

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
            firing=[np.zeros((2, width), np.int64) for width in widths.values()],
            profile=[np.zeros((2, width)) for width in widths.values()],
            fired=[np.zeros((2, width), np.int64) for width in widths.values()],
            reference_active=sums() if reference_statistics else None,
            norm_matched=sums() if reference_statistics else None,
            excluded=np.stack([excluded[layer] for layer in layers]) if excluded else None,
            square_without=sums() if excluded else None,
            error_without=sums() if excluded else None,
            nll=np.zeros(count) if language_model else None,
            kl=np.zeros(count) if language_model else None,
            predicted=np.zeros(count, np.int64) if language_model else None,
            documents=corpus.documents,
            rows=corpus.rows,
        )

    def resampling(self, block: int | None) -> Resampling:
        """What intervals draw: documents, or else blocks of so many neighbouring sentences, or else sentences."""
        return Resampling.of(len(self.sentence_ids), self.documents, self.rows, block)

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

    def means(self) -> Float[np.ndarray, "layer chosen d_model"]:
        """Mean residual of each sentence."""
        return self.total / self.tokens[None, :, None]

    def arrays(self) -> dict[str, np.ndarray]:
        """The sums by name, not copied."""
        return {"vectors.total": self.total, "vectors.tokens": self.tokens}
