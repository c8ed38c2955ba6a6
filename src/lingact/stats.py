"""Streaming statistics of one language seen through one set of SAEs: raw sums that merge, nothing derived.

Numerators and denominators are kept per sentence and divided once, in `tables`. Counters are int64, sums float64.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lingact.corpus import ParallelCorpus
from lingact.errors import UserError
from lingact.features import token_activation
from lingact.sae import Dictionaries
from lingact.tracking import write_atomically


@dataclass
class FeatureStats:
    """Sums over the kept tokens of each sentence and over those of the language. Axes: layer in the order of `layers`."""

    header: dict[str, str]
    """Identity of everything the numbers depend on; statistics of different headers do not merge."""
    sentence_ids: tuple[str, ...]
    layers: tuple[int, ...]
    tokens: Int[np.ndarray, " sentence"]
    windows: Int[np.ndarray, " sentence"]
    bytes: Int[np.ndarray, " sentence"]
    """UTF-8 bytes of the text."""
    activation: Float[np.ndarray, "layer sentence"]
    """Sum of folded activations over tokens and latents."""
    l0: Int[np.ndarray, "layer sentence"]
    """Sum over tokens of the number of active latents."""
    norm: Float[np.ndarray, "layer sentence"]
    """Sum of the residuals' norms."""
    square: Float[np.ndarray, "layer sentence"]
    """Sum of the residuals' squared norms."""
    error: Float[np.ndarray, "layer sentence"]
    """Sum of squared reconstruction errors."""
    residual: Float[np.ndarray, "layer d_model"]
    """Sum of the residuals."""
    firing: list[Int[np.ndarray, " d_sae"]] = field(default_factory=list)
    """Per layer: tokens on which each latent is active."""
    profile: list[Float[np.ndarray, " d_sae"]] = field(default_factory=list)
    """Per layer: sum of each latent's activations."""
    nll: Float[np.ndarray, " sentence"] | None = None
    """Sum of next-token cross-entropies in nats, where logits were computed."""
    kl: Float[np.ndarray, " sentence"] | None = None
    """Sum over kept tokens of KL(base || adapter) in nats of the prediction of that token, where both were computed."""
    predicted: Int[np.ndarray, " sentence"] | None = None
    """Tokens in `nll` and `kl`."""

    @classmethod
    def empty(
        cls, header: dict[str, str], corpus: ParallelCorpus, code: str, dictionaries: Dictionaries, d_model: int, *, language_model: bool
    ) -> "FeatureStats":
        """Zeros for every sentence of the corpus."""
        layers, count = tuple(dictionaries), len(corpus.ids)
        return cls(
            header=header,
            sentence_ids=corpus.ids,
            layers=layers,
            tokens=np.zeros(count, np.int64),
            windows=np.zeros(count, np.int64),
            bytes=np.array([len(text.encode()) for text in corpus.texts[code]], np.int64),
            activation=np.zeros((len(layers), count)),
            l0=np.zeros((len(layers), count), np.int64),
            norm=np.zeros((len(layers), count)),
            square=np.zeros((len(layers), count)),
            error=np.zeros((len(layers), count)),
            residual=np.zeros((len(layers), d_model)),
            firing=[np.zeros(d.width, np.int64) for d in dictionaries.values()],
            profile=[np.zeros(d.width) for d in dictionaries.values()],
            nll=np.zeros(count) if language_model else None,
            kl=np.zeros(count) if language_model else None,
            predicted=np.zeros(count, np.int64) if language_model else None,
        )

    def count_tokens(self, window_sentence: Tensor, kept_sentence: Tensor) -> None:
        """Count the windows and kept tokens of a batch."""
        np.add.at(self.windows, window_sentence.cpu().numpy(), 1)
        np.add.at(self.tokens, kept_sentence.cpu().numpy(), 1)

    def add_layer(
        self,
        layer: int,
        x: Float[Tensor, "token d_model"],
        features: Float[Tensor, "token d_sae"],
        reconstruction: Float[Tensor, "token d_model"],
        sentence: Int[Tensor, " token"],
    ) -> None:
        """Add one layer's kept tokens of a batch."""
        row, place = self.layers.index(layer), sentence.cpu().numpy()
        active = features > 0

        def add(target: np.ndarray, values: Tensor) -> None:
            np.add.at(target[row], place, values.double().cpu().numpy().astype(target.dtype))

        add(self.activation, token_activation(features))
        add(self.l0, active.sum(dim=-1))
        add(self.norm, x.double().norm(dim=-1))
        add(self.square, x.double().square().sum(dim=-1))
        add(self.error, (x.double() - reconstruction.double()).square().sum(dim=-1))
        self.residual[row] += x.double().sum(dim=0).cpu().numpy()
        self.firing[row] += active.sum(dim=0).cpu().numpy()
        self.profile[row] += features.sum(dim=0, dtype=torch.float64).cpu().numpy()

    def add_predictions(self, nll: Float[Tensor, " predicted"], kl: Float[Tensor, " predicted"], sentence: Int[Tensor, " predicted"]) -> None:
        """Add the language-model losses of a batch."""
        assert self.nll is not None
        assert self.kl is not None
        assert self.predicted is not None
        place = sentence.cpu().numpy()
        np.add.at(self.nll, place, nll.double().cpu().numpy())
        np.add.at(self.kl, place, kl.double().cpu().numpy())
        np.add.at(self.predicted, place, 1)

    def _arrays(self) -> dict[str, np.ndarray]:
        plain = {
            name: value
            for name in ("tokens", "windows", "bytes", "activation", "l0", "norm", "square", "error", "residual", "nll", "kl", "predicted")
            if (value := getattr(self, name)) is not None
        }
        per_layer = {
            f"{name}.{layer}": array for name in ("firing", "profile") for layer, array in zip(self.layers, getattr(self, name), strict=True)
        }
        return plain | per_layer

    def merge(self, other: "FeatureStats") -> "FeatureStats":
        """The statistics of both, which cover different tokens of the same sentences.

        Raises:
            UserError: they are of different models, SAEs, corpora, languages or layers.
        """
        if self.header != other.header:
            differing = [
                f"{key}: {self.header.get(key)} / {other.header.get(key)}"
                for key in sorted(self.header.keys() | other.header.keys())
                if self.header.get(key) != other.header.get(key)
            ]
            raise UserError(f"these statistics do not belong together; they differ in {'; '.join(differing)}")
        if (self.sentence_ids, self.layers) != (other.sentence_ids, other.layers):
            raise UserError("these statistics do not belong together; they cover other sentences or layers")
        mine, theirs = self._arrays(), other._arrays()
        if mine.keys() != theirs.keys():
            raise UserError("these statistics do not belong together; only one of them has language-model losses")
        merged = {name: mine[name] if name == "bytes" else mine[name] + theirs[name] for name in mine}
        return self._from_arrays(self.header, self.sentence_ids, self.layers, merged)

    @classmethod
    def _from_arrays(
        cls, header: dict[str, str], sentence_ids: tuple[str, ...], layers: tuple[int, ...], arrays: dict[str, np.ndarray]
    ) -> "FeatureStats":
        plain: dict[str, Any] = {name: array for name, array in arrays.items() if "." not in name}
        per_layer: dict[str, Any] = {name: [arrays[f"{name}.{layer}"] for layer in layers] for name in ("firing", "profile")}
        return cls(header=header, sentence_ids=sentence_ids, layers=layers, **plain, **per_layer)

    def save(self, path: Path) -> None:
        """Write as safetensors, atomically."""
        from safetensors.numpy import save

        described = {"header": json.dumps(self.header), "sentence_ids": json.dumps(self.sentence_ids), "layers": json.dumps(self.layers)}
        write_atomically(path, save({name: np.ascontiguousarray(array) for name, array in self._arrays().items()}, metadata=described))

    @classmethod
    def load(cls, path: Path) -> "FeatureStats":
        """Read what `save` wrote."""
        from safetensors import safe_open

        with safe_open(path, framework="numpy") as file:
            described = file.metadata()
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        return cls._from_arrays(
            json.loads(described["header"]), tuple(json.loads(described["sentence_ids"])), tuple(json.loads(described["layers"])), arrays
        )


def add_batch(
    stats: FeatureStats, dictionaries: Dictionaries, residuals: dict[int, Float[Tensor, "token d_model"]], sentence: Int[Tensor, " token"]
) -> None:
    """Encode, decode and add the kept residuals of a batch, all layers."""
    with torch.no_grad():
        for layer, dictionary in dictionaries.items():
            x = residuals[layer]
            features = dictionary.encode(x)
            stats.add_layer(layer, x, features, dictionary.decode(features), sentence)
