"""The passes that split activation into norm, dictionary and remainder: residual norms first, then activations at equal norms."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lingact.activations.attribution_sums import ACTIVATION, MEASURES, NORM, NORMS, OWN, STATES, TOKEN_NORM, AttributionSums
from lingact.activations.feature_stats import settled
from lingact.activations.features import kept_residuals, largest_dimensions, rescaled
from lingact.activations.random_saes import pooled_sample
from lingact.data.corpus import ParallelCorpus
from lingact.data.tokens import TokenBatch
from lingact.models.lm import LanguageModel
from lingact.models.sae import Dictionaries, Dictionary
from lingact.runtime.resumable_passes import resumable, token_bar

_SAMPLE_TOKENS = 8192
"""Tokens of all languages in equal parts, from which the mean residual and the variances of dimensions are taken."""
Residuals = Float[Tensor, "token d_model"]
States = dict[str, dict[str, np.ndarray]]
"""Language -> the sums of a pass."""


@dataclass(frozen=True)
class _Layer:
    """What must be known of a layer before norms are measured there."""

    centre: Float[Tensor, " d_model"]
    """Mean residual over all languages."""
    kept: Bool[Tensor, " d_model"]
    """All dimensions but those of largest variance."""

    def norms(self, x: Residuals) -> Float[Tensor, "norm token"]:
        """In the order of `NORMS`."""
        exact, centre, kept = x.double(), self.centre.to(x.device), self.kept.to(x.device)
        return torch.stack([exact.norm(dim=-1), (exact - centre).norm(dim=-1), (exact * kept).norm(dim=-1)])

    def equalised(self, x: Residuals, factors: Mapping[str, float], reference_norm: float) -> dict[str, Residuals]:
        """The residuals in each state. Where the factor is 1, as of the reference, the state is `x` itself.

        Args:
            factors: of each norm: the reference's mean over the language's.
            reference_norm: the reference's mean raw norm.
        """

        def scaled(factor: float, about: Float[Tensor, " d_model"] | float) -> Residuals:
            return x if factor == 1 else about + (x - about) * factor

        centre = self.centre.to(x.device, x.dtype)
        by_factor = {measure: scaled(factors[kind], centre if kind == "centred" else 0.0) for measure, kind in MEASURES.items()}
        return {OWN: x, **by_factor, TOKEN_NORM: rescaled(x, torch.full_like(x[:, 0], reference_norm))}


@torch.no_grad()
def attributed(
    lm: LanguageModel,
    mixes: tuple[Mapping[str, Dictionaries], Mapping[str, Dictionaries]],
    corpus: ParallelCorpus,
    reference: str,
    *,
    batch_tokens: int,
    header: dict[str, str],
    folder: Path,
) -> AttributionSums:
    """Norms and activations of every language, by both mixes.

    Args:
        mixes: SAE sets of each mix by name, one for each seed; all sets have the same layers.
        header: identity of model, SAEs and corpus.
        folder: where the passes are saved, so that they can be continued.

    Raises:
        UserError: the files in `folder` are of other passes.
    """
    set_a, set_b = mixes
    sae_sets = dict(set_a) | dict(set_b)
    layers = tuple(next(iter(sae_sets.values())))
    known = _known(lm, corpus, layers, batch_tokens)
    count, codes = len(corpus.ids), list(corpus.texts)
    header = header | {"sentences": corpus.sha256, "order": " ".join(codes), "batch_tokens": str(batch_tokens), "layers": json.dumps(layers)}
    header |= {"set_a": json.dumps(list(set_a)), "set_b": json.dumps(list(set_b)), "reference": reference}
    read = _Reading(lm, corpus, layers, batch_tokens, header)

    norms = {code: {"tokens": np.zeros(count, np.int64), "norms": np.zeros((len(NORMS), len(layers), count))} for code in codes}

    def add_norms(code: str, batch: TokenBatch, residuals: dict[int, Residuals]) -> None:
        sentence = batch.kept_sentence.cpu().numpy()
        np.add.at(norms[code]["tokens"], sentence, 1)
        for row, layer in enumerate(layers):
            _add(norms[code]["norms"][:, row], sentence, known[layer].norms(residuals[layer]).cpu().numpy())

    read.through(folder / NORM, norms, add_norms, "residual norms")
    means = {code: own["norms"].sum(axis=2) / own["tokens"].sum() for code, own in norms.items()}
    factors = {code: np.divide(means[reference], mean, where=mean > 0, out=np.full(mean.shape, np.nan)) for code, mean in means.items()}

    activation = {code: {"activation": np.zeros((len(sae_sets), len(STATES), len(layers), count))} for code in codes}

    def add_activation(code: str, batch: TokenBatch, residuals: dict[int, Residuals]) -> None:
        sentence = batch.kept_sentence.cpu().numpy()
        for row, layer in enumerate(layers):
            own_factors = dict(zip(NORMS, factors[code][:, row].tolist(), strict=True))
            states = known[layer].equalised(residuals[layer], own_factors, float(means[reference][NORMS.index("raw"), row]))
            for number, dictionaries in enumerate(sae_sets.values()):
                _add(activation[code]["activation"][number, :, row], sentence, _activations(dictionaries[layer], states))

    read.through(folder / ACTIVATION, activation, add_activation, "attribution")
    return AttributionSums.from_arrays(header, norms, activation)


def _known(lm: LanguageModel, corpus: ParallelCorpus, layers: tuple[int, ...], batch_tokens: int) -> dict[int, _Layer]:
    sample = pooled_sample(lm, corpus, layers, tokens=_SAMPLE_TOKENS, batch_tokens=batch_tokens)
    return {layer: _Layer(x.double().mean(dim=0), ~largest_dimensions(x)) for layer, x in sample.items()}


def _activations(dictionary: Dictionary, states: Mapping[str, Residuals]) -> Float[np.ndarray, "state token"]:
    """The total folded activation of each token in each state. Latents of one state at a time are in memory; equal states are encoded once."""

    def total(x: Residuals) -> Float[Tensor, " token"]:
        active = dictionary.active(x)
        return active.sums(active.value)

    own = total(states[OWN])
    return torch.stack([own if states[state] is states[OWN] else total(states[state]) for state in STATES]).cpu().numpy()


def _add(target: Float[np.ndarray, "kind sentence"], sentence: np.ndarray, values: Float[np.ndarray, "kind token"]) -> None:
    """Add the values of tokens to their sentences."""
    np.add.at(target.T, sentence, settled(values).T)


@dataclass(frozen=True)
class _Reading:
    """Passes over the whole text, one batch of one language at a time."""

    lm: LanguageModel
    corpus: ParallelCorpus
    layers: tuple[int, ...]
    batch_tokens: int
    header: dict[str, str]

    def through(self, folder: Path, states: States, add: Callable[[str, TokenBatch, dict[int, Residuals]], None], title: str) -> None:
        """Give the residuals of each batch to `add`, which changes the language's state. Each language has a file in `folder`."""
        tokens = self.lm.tokens

        def one(code: str, batch: TokenBatch) -> None:
            residuals, _ = kept_residuals(self.lm, batch, self.layers)
            add(code, batch, residuals)

        with token_bar(sum(tokens.count(texts) for texts in self.corpus.texts.values()), title) as bar:
            for code, texts in self.corpus.texts.items():
                bar.set_postfix_str(code)
                # A language's batches at a time: memory does not grow with their number.
                steps = list(tokens.batches(tokens.windows(texts), self.batch_tokens))
                path, described = folder / f"{code}.safetensors", self.header | {"language": code}
                resumable(path, described, states[code], steps, partial(one, code), tokens=TokenBatch.size, bar=bar)
