"""Measures and confounds of a language at a layer. Each is a sum over sentences divided by another one.

A gap in a measure may come from a difference in a confound; both are ratios of the same form.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Num

from lingact.activations.feature_stats import CONFIRMATION, FeatureStats

StatsByLanguage = dict[str, FeatureStats]
"""Language -> statistics of one SAE set and variant."""
Draws = Float[np.ndarray, "draw layer"]
Pooling = Literal["token", "sentence"]
Terms = tuple[Float[np.ndarray, "layer sentence"], Float[np.ndarray, "#layer sentence"]]
"""Terms of the numerator and the denominator, which are weighted and summed over sentences."""


@dataclass(frozen=True)
class Ratio:
    """Numerator and denominator in each sentence; quantities of the text alone have a single layer."""

    numerator: Num[np.ndarray, "layer sentence"]
    denominator: Num[np.ndarray, "#layer sentence"]
    counted: Bool[np.ndarray, " sentence"]
    """Which sentences are included."""

    def per_sentence(self) -> Float[np.ndarray, "layer sentence"]:
        """The quotient within each sentence; nan if the sentence is not included or the denominator is 0."""
        defined = self.counted & (self.denominator != 0)
        return np.divide(self.numerator, self.denominator, where=defined, out=np.full(self.numerator.shape, np.nan))

    def terms(self, pooling: Pooling) -> Terms:
        """Numerator and denominator of the included sentences (`token`), or their quotients and 1 (`sentence`)."""
        if pooling == "token":
            return np.where(self.counted, self.numerator, 0.0), np.where(self.counted, self.denominator, 0.0)
        # Only the denominator decides whether a sentence is included. A numerator that is not finite must not leave it out silently.
        defined = np.broadcast_to(self.counted & (self.denominator != 0), self.numerator.shape)
        return np.where(defined, self.per_sentence(), 0.0), defined.astype(float)


Measure = Callable[[FeatureStats], Ratio]


def pooled(ratio: Ratio, weights: Float[np.ndarray, "draw sentence"], pooling: Pooling) -> Draws:
    """Ratio of sums over the sentences (`token`), or mean of the sentences' ratios (`sentence`); nan if no sentence is included."""
    numerator, denominator = ratio.terms(pooling)
    return quotient(weights @ numerator.T, weights @ denominator.T)


def quotient(numerator: Float[np.ndarray, "*shape"], denominator: Float[np.ndarray, "*#shape"]) -> Float[np.ndarray, "*shape"]:
    """The quotient; nan where the denominator is 0."""
    return np.divide(numerator, denominator, where=denominator != 0, out=np.full(numerator.shape, np.nan))


def value(stats: FeatureStats, measure: str, weights: Float[np.ndarray, "draw sentence"], pooling: Pooling) -> Draws:
    """A measure or confound of one language, per draw and layer; quantities of the text alone have a single column."""
    return pooled((MEASURES | CONFOUNDS | LAYER_CONFOUNDS)[measure](stats), weights, pooling)


def available(stats: FeatureStats) -> list[str]:
    """The measures that can be computed from these statistics. A sum that not every run keeps has the name of the measure that needs it."""
    return [name for name in MEASURES if vars(stats).get(name, 0) is not None]


def _every(stats: FeatureStats) -> Bool[np.ndarray, " sentence"]:
    return np.ones(len(stats.sentence_ids), bool)


def _per_token(total: Num[np.ndarray, "layer sentence"], stats: FeatureStats) -> Ratio:
    return Ratio(total, stats.tokens[None], _every(stats))


def _widths(stats: FeatureStats) -> Num[np.ndarray, "layer 1"]:
    """d_sae of each layer."""
    return np.array([counts.shape[-1] for counts in stats.firing])[:, None]


def _reference_active(stats: FeatureStats) -> Ratio:
    # The latents were chosen because they fire on the reference, which favours the reference on those sentences. So only the others count.
    assert stats.reference_active is not None
    return Ratio(stats.reference_active, stats.tokens[None], stats.halves == CONFIRMATION)


def _norm_matched(stats: FeatureStats) -> Ratio:
    assert stats.norm_matched is not None
    return _per_token(stats.norm_matched, stats)


def _bits(stats: FeatureStats) -> Ratio:
    assert stats.nll is not None
    return Ratio(stats.nll[None] / np.log(2), np.ones((1, len(stats.nll))), _every(stats))


def _fvu(stats: FeatureStats) -> Ratio:
    # Centred on the language's mean residual, which is not resampled.
    centre = np.square(stats.residual / stats.tokens.sum()).sum(axis=1, keepdims=True)
    return Ratio(stats.error, stats.square - centre * stats.tokens, _every(stats))


def _fvu_without_largest(stats: FeatureStats) -> Ratio:
    assert stats.excluded is not None
    assert stats.square_without is not None
    assert stats.error_without is not None
    centre = np.square(np.where(stats.excluded, 0.0, stats.residual) / stats.tokens.sum()).sum(axis=1, keepdims=True)
    return Ratio(stats.error_without, stats.square_without - centre * stats.tokens, _every(stats))


MEASURES: dict[str, Measure] = {
    "mean": lambda s: _per_token(s.activation, s),
    "mean_active": lambda s: Ratio(s.activation, s.l0, _every(s)),
    "firing_rate": lambda s: Ratio(s.l0, s.tokens * _widths(s), _every(s)),
    "l0": lambda s: _per_token(s.l0, s),
    "l2": lambda s: _per_token(s.l2, s),
    "top_k": lambda s: Ratio(s.top_k, s.tokens * np.minimum(s.top_k_size, _widths(s)), _every(s)),
    "per_sentence": lambda s: Ratio(s.activation, np.ones((1, len(s.tokens))), _every(s)),
    "per_byte": lambda s: Ratio(s.activation, s.bytes[None], _every(s)),
    "per_word": lambda s: Ratio(s.activation, s.words[None], _every(s)),
    "reference_active": _reference_active,
    "norm_matched": _norm_matched,
}
"""Measures of the activation of a language. Folded activations per kept token (`mean`), per active latent, per sentence, byte and word; active
latents per token and latent (`firing_rate`) and per token (`l0`); Euclidean norm of a token's activations (`l2`); mean of its strongest latents
(`top_k`); `mean` over the reference's latents only, and `mean` of residuals rescaled to the reference's mean norm."""

CONFOUNDS: dict[str, Measure] = {
    "fertility": lambda s: Ratio(s.tokens[None], s.words[None], _every(s)),
    "tokens_per_sentence": lambda s: Ratio(s.tokens[None], np.ones((1, len(s.tokens))), _every(s)),
    "bytes_per_sentence": lambda s: Ratio(s.bytes[None], np.ones((1, len(s.tokens))), _every(s)),
    "windows_per_sentence": lambda s: Ratio(s.windows[None], np.ones((1, len(s.tokens))), _every(s)),
    "partial_share": lambda s: _per_token(s.partial[None], s),
    "bits_per_sentence": _bits,
}
"""Properties of the text, other than features, that may differ between languages: tokens per word, lengths, share of tokens that are parts of
characters, and how well the model predicts the sentence."""

LAYER_CONFOUNDS: dict[str, Measure] = {
    "fvu": _fvu,
    "fvu_without_largest": _fvu_without_largest,
    "l0": MEASURES["l0"],
    "residual_norm": lambda s: _per_token(s.norm, s),
}
"""The same for each layer: fraction of variance unexplained by the SAE, of all dimensions and without those of largest variance (if the statistics
have them), active latents and residual norm per token."""
