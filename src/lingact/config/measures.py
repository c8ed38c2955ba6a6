"""What an analysis measures, and how its intervals are computed."""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from lingact.config.base import ConfigSection, FieldsBefore
from lingact.config.limits import Confidence, Count, Latents, LayerRange, Layers, Real, Resamples, Share, check_resamples, distinct


def enough_resamples(confidence: float, info: FieldsBefore) -> float:
    """Refuse too few resamples for intervals of this confidence."""
    if "resamples" in info.data:
        check_resamples(info.data["resamples"], confidence)
    return confidence


class Statistics(ConfigSection):
    """How activations are pooled and intervals computed."""

    pooling: Literal["token", "sentence"]
    resamples: Resamples
    """Resamples of the paired bootstrap over documents, or else over blocks or sentences, 100 to 100,000; at least one has to lie beyond each end of
    an interval."""
    block: Count | None = None
    """If the corpus names no documents, so many neighbouring sentences of the source are resampled together; 1 or None: each on its own."""
    confidence: Confidence
    """At least 0.5 and below 1."""
    early: LayerRange
    """Layers of the range `early`; third: the first third of the measured ones."""
    deep: LayerRange

    _enough_resamples = field_validator("confidence")(enough_resamples)


Measure = Literal[
    "mean", "mean_active", "firing_rate", "l0", "l2", "top_k", "per_sentence", "per_byte", "per_word", "reference_active", "norm_matched"
]
BY_REFERENCE = ("reference_active", "norm_matched")
"""Measures that need the part by_reference."""
Part = Literal["by_reference", "language_model", "similarity", "features", "spliced", "causal", "random_sae", "shuffled_labels"]


class SimilarityConfig(ConfigSection):
    """Representation similarity between languages."""

    sentences: Annotated[Count, Field(ge=10)]
    """At most this many are used; their mean residuals are kept in memory."""


class FeaturesConfig(ConfigSection):
    """Language-specific latents."""

    min_rate: Share
    """A candidate fires on at least this share of the language's tokens."""
    per_layer: Count
    """Candidates per language and layer."""
    alpha: Annotated[Share, Field(le=0.5)]
    """False discovery rate among the candidates, at most 0.5."""
    random_tokens: Annotated[Count, Field(ge=100)]
    """At least 100, because fewer give no usable rates."""
    cards: Count
    """Features per language whose strongest contexts are shown."""


class SplicedConfig(ConfigSection):
    """Cross-entropy with the residual replaced by its reconstruction."""

    sentences: Annotated[Count, Field(ge=2)]


class CausalConfig(ConfigSection):
    """Change features and measure the effect on each language's cross-entropy."""

    mode: Literal["scale", "steer"]
    doses: tuple[Annotated[Real, Field(ge=-1000, le=1000)], ...]
    """scale: factors of the features' activations; steer: multiples of the residual's mean norm. From -1000 to 1000, each once."""
    features: Latents
    per_language: Count
    layers: Layers
    draws: Annotated[Count, Field(le=1000)]
    """Draws of random latents, whose effects are averaged; at most 1000."""
    sentences: Annotated[Count, Field(ge=2)]
    """Sentences of the confirmation half."""

    @field_validator("doses")
    @classmethod
    def _each_once(cls, doses: tuple[float, ...]) -> tuple[float, ...]:
        distinct(doses, "dose")
        return doses


class RandomSaeConfig(ConfigSection):
    """SAEs with random directions, a control."""

    draws: Annotated[int, Field(ge=1, le=100)]
    """Sets of directions, 1 to 100, with one SAE per layer in each set. Intervals include the spread between sets, which a single set cannot show."""


class MeasuresConfig(ConfigSection):
    """What analyze.py measures."""

    gap: Measure
    """The measure of the gap tables."""
    top_k: Count
    parts: tuple[Part, ...]
    similarity: SimilarityConfig
    features: FeaturesConfig
    spliced: SplicedConfig
    causal: CausalConfig
    random_sae: RandomSaeConfig = RandomSaeConfig(draws=1)
    """Runs of versions that had only one draw lack this key."""

    @field_validator("parts")
    @classmethod
    def _each_once(cls, parts: tuple[str, ...]) -> tuple[str, ...]:
        if parts:
            distinct(parts, "part")
        return parts

    @model_validator(mode="after")
    def _parts_fit(self) -> "MeasuresConfig":
        if self.gap in BY_REFERENCE and "by_reference" not in self.parts:
            raise ValueError(f"gap={self.gap} needs the part by_reference; add it to measures.parts, or use measures=full")
        if "causal" in self.parts and self.causal.features == "language_specific" and "features" not in self.parts:
            raise ValueError("the part causal needs the part features; add it, or name latents in measures.causal.features")
        return self
