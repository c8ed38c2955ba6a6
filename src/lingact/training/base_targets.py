"""What the loss takes from the base model on the training sentences, computed by one pass over them.

These are the targets of the gap terms, and what retention terms compare the adapted model with. `base_cache` keeps them on the disk.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lingact.activations.features import kept_residuals
from lingact.activations.functional import fvu, kl_over_top, top_part
from lingact.activations.passes import ACTIVE_SHARE, dtype_of
from lingact.data.tokens import TokenBatch, Window
from lingact.errors import UserError
from lingact.models.adapters import base_behaviour
from lingact.models.finite import beyond
from lingact.models.lm import LanguageModel
from lingact.models.next_tokens import NextTokens
from lingact.models.sae import Dictionaries
from lingact.models.sae_sources import ranges
from lingact.runtime.resumable_passes import token_bar

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Reference:
    """The reference language: sums over the kept tokens of each training sentence, and quantities that follow from them.

    Axes: layer in the order of `layers`; sentence in the order of the corpus.
    """

    layers: tuple[int, ...]
    tokens: Int[Tensor, " sentence"]
    residual: Float[Tensor, "layer sentence d_model"]
    """Sum of the residuals."""
    norm: Float[Tensor, "layer sentence"]
    """Sum of their norms."""
    total: Float[Tensor, "layer sentence"]
    """Sum of all activations."""
    firing: list[Int[Tensor, " d_sae"]]
    """Per layer: tokens on which each latent fires."""
    pre: list[Float[Tensor, " d_sae"]]
    """Per layer: sum of each latent's folded pre-activations over all tokens."""
    profile: list[Float[Tensor, "sentence d_sae"]]
    """Per layer: sum of each latent's activations. Empty unless asked for, because it is by far the largest."""

    def activation(self, pooling: str) -> Float[Tensor, " layer"]:
        """A(l, reference), pooled over tokens or over sentences."""
        return self._pooled(self.total, pooling)

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
        """Per layer: latents that fire on at least 1 % of the tokens.

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

    def activation_of(self, sentences: Int[Tensor, " chosen"]) -> Float[Tensor, " layer"]:
        """Mean activation over the tokens of these sentences. A sentence that is named twice counts twice."""
        return self.total[:, sentences].sum(dim=1) / self.tokens[sentences].sum()

    def profiles_of(self, sentences: Int[Tensor, " chosen"]) -> list[Float[Tensor, " d_sae"]]:
        """Per layer: mean activation of each latent over the tokens of these sentences. A sentence that is named twice counts twice."""
        return [profile[sentences].sum(dim=0) / self.tokens[sentences].sum() for profile in self.profile]

    def means_of(self, sentences: Int[Tensor, " chosen"]) -> list[Float[Tensor, "chosen d_model"]]:
        """Per layer: mean residual of each of these sentences."""
        return [residual[sentences] / self.tokens[sentences, None] for residual in self.residual]

    def shuffled(self, seed: int) -> "Reference":
        """Every sentence's quantities moved to another sentence, so that pairs are no longer translations. Totals stay the same."""
        count = len(self.tokens)
        assert count > 1
        cycle = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
        # One cycle through all sentences leaves none in its own place.
        other = torch.empty_like(cycle).scatter_(0, cycle, cycle.roll(1))
        sums = {name: getattr(self, name)[:, other] for name in ("residual", "norm", "total")}
        return replace(self, tokens=self.tokens[other], profile=[profile[other] for profile in self.profile], **sums)

    def tensors(self) -> Tensors:
        """All tensors by name."""
        lists = {f"{name}.{row}": x for name in ("firing", "pre", "profile") for row, x in enumerate(getattr(self, name))}
        return {name: getattr(self, name) for name in ("tokens", "residual", "norm", "total")} | lists

    @classmethod
    def of(cls, layers: tuple[int, ...], tensors: Tensors) -> "Reference":
        """From `tensors`."""

        def by_layer(name: str) -> list[Tensor]:
            return [tensors[f"{name}.{row}"] for row in range(len(layers)) if f"{name}.{row}" in tensors]

        tokens, residual, norm, total = (tensors[name] for name in ("tokens", "residual", "norm", "total"))
        return cls(layers, tokens, residual, norm, total, by_layer("firing"), by_layer("pre"), by_layer("profile"))


@dataclass(frozen=True)
class Predictions:
    """One language: the most likely next tokens, at every kept token that is not the first of its window."""

    start: Int[Tensor, " boundary"]
    """First row of each sentence, and the number of rows; rows are in the order of the corpus."""
    ids: Int[Tensor, "row top"]
    scores: Float[Tensor, "row top_and_rest"]
    """Their log probabilities. The last column is the log probability of all other tokens together."""

    def of(self, batch: TokenBatch) -> "Predictions":
        """Those of a batch of whole sentences, in the order of the tokens that it predicts. They have no `start`."""
        return self.chosen(_rows(self.start, batch)[batch.predicts[batch.predictable]])

    def chosen(self, rows: slice | Int[Tensor, " chosen"]) -> "Predictions":
        """Some rows of them. They have no `start`."""
        return Predictions(self.start[:0], self.ids[rows], self.scores[rows])

    def kl(self, logits: Float[Tensor, "row vocabulary"]) -> Float[Tensor, " row"]:
        """KL(base || other) in nats of each row. All tokens outside the top count as one."""
        return kl_over_top(self.ids.to(logits.device).long(), self.scores.to(logits.device), logits)

    def tensors(self) -> Tensors:
        """All tensors by name."""
        return {"start": self.start, "ids": self.ids, "scores": self.scores}


@dataclass(frozen=True)
class Anchor:
    """One language: the residual norms and the fit of the SAEs that the adapted model is compared with. Layers are in the order of the loss."""

    start: Int[Tensor, " boundary"]
    """First row of each sentence, and the number of rows; rows are the kept tokens in the order of the corpus."""
    norm: Float[Tensor, "row layer"]
    """Residual norm of each token."""
    error: Float[Tensor, "sentence layer"]
    """Sum of squared reconstruction errors."""
    square: Float[Tensor, "sentence layer"]
    """Sum of squared residual norms."""
    residual: Float[Tensor, "sentence layer d_model"]
    """Sum of residuals."""

    def norms(self, batch: TokenBatch) -> Float[Tensor, "token layer"]:
        """Residual norms of the kept tokens of a batch of whole sentences."""
        return self.norm[_rows(self.start, batch)]

    def fvu(self, sentences: Int[Tensor, " chosen"]) -> Float[Tensor, " layer"]:
        """FVU over the tokens of these sentences. A sentence that is named twice counts twice."""
        tokens = self.start.diff()[sentences].sum()
        return fvu(*(sums[sentences].sum(dim=0) / tokens for sums in (self.error, self.square, self.residual)))

    def tensors(self) -> Tensors:
        """All tensors by name."""
        return {name: getattr(self, name) for name in ("start", "norm", "error", "square", "residual")}


@dataclass(frozen=True)
class BaseOutputs:
    """Everything that a loss takes from the base model."""

    reference: Reference
    targets: Reference
    """Targets of the gap terms: the reference, or its shuffled version under the control shuffled_pairs."""
    predictions: dict[str, Predictions]
    """By language, where the loss uses cached predictions for its KL. Other KL terms run the base model in every step."""
    anchors: dict[str, Anchor]
    """By language, where the loss compares norms or fit with the base model's."""


def _rows(start: Int[Tensor, " boundary"], batch: TokenBatch) -> Int[Tensor, " row"]:
    """Rows of the tokens of a batch of whole sentences, in the order of the batch."""
    bounds = start.tolist()
    return torch.cat([torch.arange(bounds[s], bounds[s + 1]) for s in batch.sentence[batch.first].tolist()])


# --- passes over the base model -------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PassSettings:
    """How the text is read."""

    batch_tokens: int
    """Padded tokens per forward pass."""
    precision: str = "32-true"
    """The precision of training (`trainer.precision`), so that the base model and the adapted one are compared in the same precision."""


def compute_reference(
    lm: LanguageModel, dictionaries: Dictionaries, texts: Sequence[str], code: str, settings: PassSettings, *, profiles: bool
) -> Reference:
    """The reference language under the base model.

    Args:
        texts: the training sentences in this language.
        code: the language, for messages.
        profiles: keep the profile of every sentence: 4 bytes per sentence, layer and latent.

    Raises:
        UserError: residuals or activations are not finite.
    """
    layers, count, d_model = tuple(dictionaries), len(texts), next(iter(dictionaries.values())).sae.cfg.d_in
    found = Reference(
        layers=layers,
        tokens=torch.zeros(count, dtype=torch.long),
        residual=torch.zeros(len(layers), count, d_model),
        norm=torch.zeros(len(layers), count),
        total=torch.zeros(len(layers), count),
        firing=[torch.zeros(d.width, dtype=torch.long) for d in dictionaries.values()],
        pre=[torch.zeros(d.width) for d in dictionaries.values()],
        profile=[torch.zeros(count, d.width) for d in dictionaries.values()] if profiles else [],
    )
    with token_bar(lm.tokens.count(texts), f"base model, {code}") as bar, _base_pass(lm, settings.precision):
        for batch in lm.tokens.batches(lm.tokens.windows(texts), settings.batch_tokens):
            _add(found, lm, dictionaries, batch)
            bar.update(batch.size())
    _refuse_nonfinite(lm, settings, code, layers, found.norm, found.total, torch.stack([pre.sum() for pre in found.pre]))
    return found


def _add(found: Reference, lm: LanguageModel, dictionaries: Dictionaries, batch: TokenBatch) -> None:
    residuals, _ = kept_residuals(lm, batch, found.layers)
    sentence = batch.kept_sentence
    found.tokens.index_add_(0, sentence, torch.ones_like(sentence))
    for row, (layer, dictionary) in enumerate(dictionaries.items()):
        x = residuals[layer]
        before, features = dictionary.folded_before_and_after(x)
        found.residual[row].index_add_(0, sentence, x.cpu())
        found.norm[row].index_add_(0, sentence, x.norm(dim=-1).cpu())
        found.total[row].index_add_(0, sentence, features.sum(dim=-1).cpu())
        found.firing[row].add_((features > 0).sum(dim=0).cpu())
        found.pre[row].add_(before.sum(dim=0).cpu())
        if found.profile:
            found.profile[row].index_add_(0, sentence, features.cpu())


def compute_predictions(lm: LanguageModel, texts: Sequence[str], code: str, settings: PassSettings, *, top: int) -> Predictions:
    """The most likely next tokens of one language under the base model.

    Args:
        texts: the training sentences in this language.
        code: the language, for messages.
        top: how many tokens are kept at each position, at 8 bytes each.

    Raises:
        UserError: the predictions are not finite.
    """
    ids: list[Tensor] = [torch.empty(0)] * len(texts)
    scores = list(ids)
    with token_bar(lm.tokens.count(texts), f"base model, {code}") as bar, _base_pass(lm, settings.precision):
        for batch in _whole_sentences(lm, lm.tokens.by_sentence(texts), settings.batch_tokens):
            _, predictions = kept_residuals(lm, batch, (), predict=True)
            assert predictions is not None
            found = [x.cpu() for x in _top(predictions, top)]
            for sentence in batch.sentence.unique().tolist():
                own = batch.predicted_sentence == sentence
                ids[sentence], scores[sentence] = (x[own] for x in found)
            bar.update(batch.size())
    if any(rows.isnan().any() for rows in scores):
        raise UserError(
            f"the base model's predictions are not finite in {code}, which training would be compared with. Most likely "
            f"{beyond(_dtype(lm, settings))}"
        )
    return Predictions(torch.tensor([0, *(len(rows) for rows in ids)]).cumsum(0), torch.cat(ids).int(), torch.cat(scores))


def _top(predictions: NextTokens, top: int) -> tuple[Int[Tensor, "predicted top"], Float[Tensor, "predicted top_and_rest"]]:
    """As `top_part`, for the predicted tokens of a batch."""
    ids: list[Tensor] = []

    def of(logits: Tensor, _rows: slice) -> Tensor:
        found, scores = top_part(logits, top)
        ids.append(found)
        return scores

    scores = predictions.each(of)
    return torch.cat(ids), scores


def compute_anchor(lm: LanguageModel, dictionaries: Dictionaries, texts: Sequence[str], code: str, settings: PassSettings) -> Anchor:
    """The residual norms of one language under the base model, and how well the SAEs fit it.

    Args:
        texts: the training sentences in this language.
        code: the language, for messages.

    Raises:
        UserError: residuals or activations are not finite.
    """
    layers = tuple(dictionaries)
    norms: list[Tensor] = [torch.empty(0)] * len(texts)
    d_model = next(iter(dictionaries.values())).sae.cfg.d_in
    error, square = (torch.zeros(len(texts), len(layers)) for _ in range(2))
    residual = torch.zeros(len(texts), len(layers), d_model)
    with token_bar(lm.tokens.count(texts), f"base model, {code}") as bar, _base_pass(lm, settings.precision):
        for batch in _whole_sentences(lm, lm.tokens.by_sentence(texts), settings.batch_tokens):
            residuals, _ = kept_residuals(lm, batch, layers)
            sentence = batch.kept_sentence
            x = torch.stack([residuals[layer] for layer in layers], dim=1)
            wrong = torch.stack([residuals[layer] - d.decode_active(d.active(residuals[layer])) for layer, d in dictionaries.items()], dim=1)
            for sums, values in ((error, wrong.square().sum(dim=-1)), (square, x.square().sum(dim=-1)), (residual, x)):
                sums.index_add_(0, sentence, values.cpu())
            own = x.norm(dim=-1).cpu()
            for place in sentence.unique().tolist():
                norms[place] = own[sentence == place]
            bar.update(batch.size())
    found = Anchor(torch.tensor([0, *map(len, norms)]).cumsum(0), torch.cat(norms), error, square, residual)
    _refuse_nonfinite(lm, settings, code, layers, found.norm.T, found.error.T)
    return found


def _refuse_nonfinite(lm: LanguageModel, settings: PassSettings, code: str, layers: tuple[int, ...], *by_layer: Tensor) -> None:
    """Refuse targets that are not finite. Measuring leaves out such layers; a loss cannot.

    Args:
        by_layer: quantities whose first axis is the layer.

    Raises:
        UserError: with the layers, the language and what to do.
    """
    lost = [layer for row, layer in enumerate(layers) if not all(x[row].isfinite().all() for x in by_layer)]
    if lost:
        raise UserError(
            f"the base model's residuals or SAE activations behind layer {ranges(lost)} are not finite in {code}, which training would start from. "
            f"Most likely {beyond(_dtype(lm, settings))}"
        )


def _dtype(lm: LanguageModel, settings: PassSettings) -> str:
    """The number type of the passes, as messages name it."""
    return settings.precision if settings.precision == "16-mixed" else dtype_of(lm)


@contextmanager
def _base_pass(lm: LanguageModel, precision: str) -> Iterator[None]:
    """Without gradient and without the adapter, in the precision of training."""
    dtype = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(precision)
    with torch.no_grad(), base_behaviour(lm.model), torch.autocast(lm.device.type, dtype, enabled=dtype is not None):
        yield


def _whole_sentences(lm: LanguageModel, windows: Sequence[list[Window]], batch_tokens: int) -> Iterator[TokenBatch]:
    """Batches in which no sentence is cut in two, bucketed by length, of about `batch_tokens` padded tokens."""
    collected: list[Window] = []
    for own in sorted(windows, key=lambda own: sum(len(w.ids) for w in own)):
        if collected and (len(collected) + len(own)) * max(len(w.ids) for w in own) > batch_tokens:
            yield lm.tokens.collate(collected)
            collected = []
        collected += own
    if collected:
        yield lm.tokens.collate(collected)
