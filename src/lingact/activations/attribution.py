"""The passes that split activation into norm, dictionary and remainder: residual norms first, then activations at equal norms."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lingact.activations.attribution_sums import NORMS, OWN, STATES, TOKEN_NORM, AttributionSums
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
        """The residuals in each state.

        Args:
            factors: of each norm: the reference's mean over the language's.
            reference_norm: the reference's mean raw norm.
        """
        centre = self.centre.to(x.device, x.dtype)
        return {
            OWN: x,
            "mean": x * factors["raw"],
            "centred": centre + (x - centre) * factors["centred"],
            "without_largest": x * factors["without_largest"],
            TOKEN_NORM: rescaled(x, torch.full_like(x[:, 0], reference_norm)),
        }


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
    sample = pooled_sample(lm, corpus, layers, tokens=_SAMPLE_TOKENS, batch_tokens=batch_tokens)
    known = {layer: _Layer(x.double().mean(dim=0), ~largest_dimensions(x)) for layer, x in sample.items()}
    count, codes = len(corpus.ids), list(corpus.texts)
    header = header | {"sentences": corpus.sha256, "order": " ".join(codes), "batch_tokens": str(batch_tokens), "layers": json.dumps(layers)}
    header |= {"set_a": json.dumps(list(set_a)), "set_b": json.dumps(list(set_b)), "reference": reference}
    read = _Reading(lm, corpus, layers, batch_tokens)

    norms: dict[str, np.ndarray] = {f"norms.{code}": np.zeros((len(NORMS), len(layers), count)) for code in codes}
    norms |= {f"tokens.{code}": np.zeros(count, np.int64) for code in codes}

    def add_norms(code: str, batch: TokenBatch, residuals: dict[int, Residuals]) -> None:
        sentence = batch.kept_sentence.cpu().numpy()
        np.add.at(norms[f"tokens.{code}"], sentence, 1)
        for row, layer in enumerate(layers):
            np.add.at(norms[f"norms.{code}"][:, row].T, sentence, known[layer].norms(residuals[layer]).T.cpu().numpy())

    read.through(folder / "norms.safetensors", header, norms, add_norms, "norms")
    means = {code: norms[f"norms.{code}"].sum(axis=2) / norms[f"tokens.{code}"].sum() for code in codes}

    activation = {f"activation.{code}": np.zeros((len(sae_sets), len(STATES), len(layers), count)) for code in codes}

    def add_activation(code: str, batch: TokenBatch, residuals: dict[int, Residuals]) -> None:
        sentence = batch.kept_sentence.cpu().numpy()
        for row, layer in enumerate(layers):
            factors = {kind: float(means[reference][place, row] / means[code][place, row]) for place, kind in enumerate(NORMS)}
            states = known[layer].equalised(residuals[layer], factors, float(means[reference][0, row]))
            for number, dictionaries in enumerate(sae_sets.values()):
                found = np.stack([_activation(dictionaries[layer], states[state]) for state in STATES])
                np.add.at(activation[f"activation.{code}"][number, :, row].T, sentence, found.T)

    read.through(folder / "activation.safetensors", header, activation, add_activation, "attribution")
    return AttributionSums.from_arrays(header, norms, activation)


def _activation(dictionary: Dictionary, x: Residuals) -> Float[np.ndarray, " token"]:
    active = dictionary.active(x)
    return active.sums(active.value).cpu().numpy()


@dataclass(frozen=True)
class _Reading:
    """Passes over the whole text, one batch of one language at a time."""

    lm: LanguageModel
    corpus: ParallelCorpus
    layers: tuple[int, ...]
    batch_tokens: int

    def through(
        self,
        path: Path,
        header: dict[str, str],
        state: dict[str, np.ndarray],
        add: Callable[[str, TokenBatch, dict[int, Residuals]], None],
        title: str,
    ) -> None:
        """Give the residuals of each batch to `add`, which changes `state`."""
        lm = self.lm
        steps = [
            (code, batch) for code, texts in self.corpus.texts.items() for batch in lm.tokens.batches(lm.tokens.windows(texts), self.batch_tokens)
        ]

        def one(step: tuple[str, TokenBatch]) -> None:
            code, batch = step
            residuals, _ = kept_residuals(lm, batch, self.layers)
            add(code, batch, residuals)

        with token_bar(sum(batch.size() for _, batch in steps), title) as bar:
            resumable(path, header, state, steps, one, tokens=lambda step: step[1].size(), bar=bar)
