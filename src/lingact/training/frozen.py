"""What the base model gives on the training sentences, computed once: what the gap terms aim at and what retention holds on to.

Both kinds are kept in a cache under a hash of everything that they depend on, so that runs and sweeps share them and none is ever out of date.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lingact.activations import features, functional
from lingact.activations.features import kept_residuals, token_activation
from lingact.activations.functional import fvu, kl_over_top, top_part
from lingact.activations.passes import ACTIVE_SHARE, dtype_of
from lingact.data import tokens
from lingact.data.corpus import ParallelCorpus
from lingact.data.tokens import TokenBatch, Window
from lingact.errors import UserError
from lingact.files.atomic import write_atomically
from lingact.files.states import digest
from lingact.models import lm, sae
from lingact.models.adapters import base_behaviour
from lingact.models.finite import beyond
from lingact.models.lm import LanguageModel
from lingact.models.sae import Dictionaries, weights_digest
from lingact.models.sae_sources import ranges
from lingact.runtime.resumable_passes import token_bar

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Reference:
    """The reference language: sums over the kept tokens of each training sentence, and what follows from them.

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
    """Per layer: sum of each latent's activations; empty unless wanted, being by far the largest."""

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

    def activation_of(self, sentences: Int[Tensor, " chosen"]) -> Float[Tensor, " layer"]:
        """Activation over the tokens of some sentences, each as often as it is named."""
        return self.total[:, sentences].sum(dim=1) / self.tokens[sentences].sum()

    def profiles_of(self, sentences: Int[Tensor, " chosen"]) -> list[Float[Tensor, " d_sae"]]:
        """Per layer: mean activation of each latent over the tokens of some sentences, each as often as it is named."""
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
    """One language: the likeliest next tokens at every kept token that has one before it in its window."""

    start: Int[Tensor, " boundary"]
    """First row of each sentence, and the number of rows; rows are in the order of the corpus."""
    ids: Int[Tensor, "row top"]
    scores: Float[Tensor, "row top_and_rest"]
    """Their log probabilities, and in the last place that of all other tokens together."""

    def kl(self, batch: TokenBatch, logits: Float[Tensor, "predicted vocabulary"]) -> Float[Tensor, " predicted"]:
        """KL(base || other) in nats at each predicted token of a batch of whole sentences, all tokens outside the top counted as one."""
        rows = _rows(self.start, batch)
        return kl_over_top(self.ids[rows].to(logits.device).long(), self.scores[rows].to(logits.device), logits)

    def tensors(self) -> Tensors:
        """All tensors by name."""
        return {"start": self.start, "ids": self.ids, "scores": self.scores}


@dataclass(frozen=True)
class Anchor:
    """One language: what its residual norms and the SAEs' fit to it are held to. Axes: layers in the order of the loss."""

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
        """Of the kept tokens of a batch of whole sentences."""
        return self.norm[_rows(self.start, batch)]

    def fvu(self, sentences: Int[Tensor, " chosen"]) -> Float[Tensor, " layer"]:
        """FVU over the tokens of some sentences, each as often as it is named."""
        tokens = self.start.diff()[sentences].sum()
        return fvu(*(sums[sentences].sum(dim=0) / tokens for sums in (self.error, self.square, self.residual)))

    def tensors(self) -> Tensors:
        """All tensors by name."""
        return {name: getattr(self, name) for name in ("start", "norm", "error", "square", "residual")}


@dataclass(frozen=True)
class BaseOutputs:
    """All that a loss takes from the base model."""

    reference: Reference
    aims: Reference
    """What the gap terms aim at: the reference, or under the control shuffled_pairs the same shuffled."""
    predictions: dict[str, Predictions]
    """Of the languages whose KL is wanted; that of others is computed as it is needed."""
    anchors: dict[str, Anchor]
    """Of the languages whose norms or fit are held to the base model's."""


def _rows(start: Int[Tensor, " boundary"], batch: TokenBatch) -> Int[Tensor, " row"]:
    """Rows of a batch whose sentences are whole, in its order."""
    bounds = start.tolist()
    return torch.cat([torch.arange(bounds[s], bounds[s + 1]) for s in batch.sentence[batch.first].tolist()])


@dataclass(frozen=True)
class CacheSettings:
    """How the passes are made."""

    batch_tokens: int
    """Padded tokens per forward pass."""
    precision: str = "32-true"
    """As in training (`trainer.precision`), so that like is compared with like."""
    cache: Path | None = None
    """Folder. None: compute, and keep nothing."""


def cache_reference(
    lm: LanguageModel, dictionaries: Dictionaries, corpus: ParallelCorpus, code: str, how: CacheSettings, *, profiles: bool
) -> Reference:
    """The reference language under the base model, from the cache or by one pass over it.

    Args:
        profiles: keep the profile of every sentence: 4 bytes a sentence, layer and latent.
    """
    layers, texts = tuple(dictionaries), corpus.texts[code]
    identity = _identity("reference", lm, texts, how, layers=list(layers), saes=weights_digest(dictionaries), profiles=profiles)
    known = _load(how.cache, identity)
    if known is not None:
        return Reference.of(layers, known)
    count, d_model = len(texts), next(iter(dictionaries.values())).sae.cfg.d_in
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
    with token_bar(lm.tokens.count(texts), f"freezing {code}") as bar, _base_pass(lm, how.precision):
        for batch in lm.tokens.batches(lm.tokens.windows(texts), how.batch_tokens):
            _add(found, lm, dictionaries, batch)
            bar.update(batch.size())
    _refuse_lost(lm, how, code, layers, found.norm, found.total, torch.stack([pre.sum() for pre in found.pre]))
    _save(how.cache, identity, found.tensors())
    return found


def _refuse_lost(lm: LanguageModel, how: CacheSettings, code: str, layers: tuple[int, ...], *by_layer: Tensor) -> None:
    """Refuse to train towards, or to hold on to, what is no number; measuring goes on where other layers are left, a loss does not.

    Args:
        by_layer: quantities whose first axis is the layer.

    Raises:
        UserError: with the layers, the language and what to do.
    """
    lost = [layer for row, layer in enumerate(layers) if not all(x[row].isfinite().all() for x in by_layer)]
    if lost:
        dtype = how.precision if how.precision == "16-mixed" else dtype_of(lm)
        raise UserError(
            f"the base model's residuals or SAE activations behind layer {ranges(lost)} are not finite in {code}, which training would start from. "
            f"Most likely {beyond(dtype)}"
        )


def _add(found: Reference, lm: LanguageModel, dictionaries: Dictionaries, batch: TokenBatch) -> None:
    residuals, _ = kept_residuals(lm, batch, found.layers)
    sentence = batch.kept_sentence
    found.tokens.index_add_(0, sentence, torch.ones_like(sentence))
    for row, (layer, dictionary) in enumerate(dictionaries.items()):
        x, features = residuals[layer], dictionary.encode(residuals[layer])
        found.residual[row].index_add_(0, sentence, x.cpu())
        found.norm[row].index_add_(0, sentence, x.norm(dim=-1).cpu())
        found.total[row].index_add_(0, sentence, token_activation(features).cpu())
        found.firing[row].add_((features > 0).sum(dim=0).cpu())
        found.pre[row].add_(dictionary.folded_pre_activations(x).sum(dim=0).cpu())
        if found.profile:
            found.profile[row].index_add_(0, sentence, features.cpu())


def cache_predictions(lm: LanguageModel, corpus: ParallelCorpus, code: str, how: CacheSettings, *, top: int) -> Predictions:
    """The base model's next-token distributions of one language, their top part, from the cache or by one pass over it.

    Args:
        top: so many of the likeliest tokens: 8 bytes each and token of the corpus.
    """
    texts = corpus.texts[code]
    identity = _identity("predictions", lm, texts, how, top=top)
    known = _load(how.cache, identity)
    if known is not None:
        return Predictions(**known)
    ids: list[Tensor] = [torch.empty(0)] * len(texts)
    scores = list(ids)
    with token_bar(lm.tokens.count(texts), f"freezing {code}") as bar, _base_pass(lm, how.precision):
        for batch in _whole_sentences(lm, lm.tokens.by_sentence(texts), how.batch_tokens):
            _, logits = kept_residuals(lm, batch, (), logits=True)
            assert logits is not None
            found = top_part(logits[:, :-1][batch.keep[:, 1:].to(logits.device)], top)
            for sentence in batch.sentence.unique().tolist():
                own = batch.predicted_sentence == sentence
                ids[sentence], scores[sentence] = (x.cpu()[own] for x in found)
            bar.update(batch.size())
    if any(rows.isnan().any() for rows in scores):
        dtype = how.precision if how.precision == "16-mixed" else dtype_of(lm)
        raise UserError(f"the base model's predictions are not finite in {code}, which training would hold on to. Most likely {beyond(dtype)}")
    start = torch.tensor([0, *(len(rows) for rows in ids)]).cumsum(0)
    frozen = Predictions(start, torch.cat(ids).int(), torch.cat(scores))
    _save(how.cache, identity, frozen.tensors())
    return frozen


def cache_anchor(lm: LanguageModel, dictionaries: Dictionaries, corpus: ParallelCorpus, code: str, how: CacheSettings) -> Anchor:
    """One language's residual norms and the SAEs' fit under the base model, from the cache or by one pass over it."""
    layers, texts = tuple(dictionaries), corpus.texts[code]
    identity = _identity("anchor", lm, texts, how, layers=list(layers), saes=weights_digest(dictionaries))
    known = _load(how.cache, identity)
    if known is not None:
        return Anchor(**known)
    norms: list[Tensor] = [torch.empty(0)] * len(texts)
    d_model = next(iter(dictionaries.values())).sae.cfg.d_in
    error, square = (torch.zeros(len(texts), len(layers)) for _ in range(2))
    residual = torch.zeros(len(texts), len(layers), d_model)
    with token_bar(lm.tokens.count(texts), f"freezing {code}") as bar, _base_pass(lm, how.precision):
        for batch in _whole_sentences(lm, lm.tokens.by_sentence(texts), how.batch_tokens):
            residuals, _ = kept_residuals(lm, batch, layers)
            sentence = batch.kept_sentence
            x = torch.stack([residuals[layer] for layer in layers], dim=1)
            wrong = torch.stack([residuals[layer] - d.decode(d.encode(residuals[layer])) for layer, d in dictionaries.items()], dim=1)
            for sums, values in ((error, wrong.square().sum(dim=-1)), (square, x.square().sum(dim=-1)), (residual, x)):
                sums.index_add_(0, sentence, values.cpu())
            own = x.norm(dim=-1).cpu()
            for place in sentence.unique().tolist():
                norms[place] = own[sentence == place]
            bar.update(batch.size())
    found = Anchor(torch.tensor([0, *map(len, norms)]).cumsum(0), torch.cat(norms), error, square, residual)
    _refuse_lost(lm, how, code, layers, found.norm.T, found.error.T)
    _save(how.cache, identity, found.tensors())
    return found


@contextmanager
def _base_pass(lm: LanguageModel, precision: str) -> Iterator[None]:
    """Without gradient and adapter, in the precision of training."""
    dtype = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(precision)
    with torch.no_grad(), base_behaviour(lm.model), torch.autocast(lm.device.type, dtype, enabled=dtype is not None):
        yield


def _whole_sentences(lm: LanguageModel, windows: Sequence[list[Window]], batch_tokens: int) -> Iterator[TokenBatch]:
    """Batches in which no sentence is cut in two, bucketed by length, of about `batch_tokens` padded tokens."""
    waiting: list[Window] = []
    for own in sorted(windows, key=lambda own: sum(len(w.ids) for w in own)):
        if waiting and (len(waiting) + len(own)) * max(len(w.ids) for w in own) > batch_tokens:
            yield lm.tokens.collate(waiting)
            waiting = []
        waiting += own
    if waiting:
        yield lm.tokens.collate(waiting)


# --- the cache -----------------------------------------------------------------------------------------------------------------------------------


def _identity(kind: str, lm: LanguageModel, texts: Sequence[str], how: CacheSettings, **rest: object) -> dict[str, object]:
    """Everything that frozen quantities depend on; the token ids stand for text, order, tokenizer and context."""
    digest = hashlib.sha256()
    for window in lm.tokens.windows(texts):
        digest.update(np.array([window.sentence, len(window.ids), *window.ids], np.int64).tobytes())
    config = lm.model.config
    return {
        "kind": kind,
        "code": _code_digest(),
        "model": lm.identity["sha256"],
        "config": config.to_json_string(use_diff=False),  # pyrefly: ignore[missing-attribute, not-callable]
        "dtype": str(next(lm.model.parameters()).dtype),
        "attention": config._attn_implementation,  # pyrefly: ignore[missing-attribute]
        "tokens": digest.hexdigest(),
        "special": lm.tokens.special.tolist(),
        "device": lm.device.type,
        "batch_tokens": how.batch_tokens,
        "precision": how.precision,
        "versions": {name: version(name) for name in ("lingact", "torch", "transformers", "sae-lens")},
    } | rest


@lru_cache(maxsize=1)
def _code_digest() -> str:
    """sha256 over the modules that frozen quantities are computed by."""
    digest = hashlib.sha256()
    for module in (features, functional, lm, sae, tokens):
        digest.update(Path(str(module.__file__)).read_bytes())
    digest.update(Path(__file__).read_bytes())
    return digest.hexdigest()


def _place(cache: Path, identity: dict[str, object]) -> Path:
    text = json.dumps(identity, sort_keys=True)
    return cache / f"{identity['kind']}-{hashlib.sha256(text.encode()).hexdigest()[:24]}.safetensors"


def _load(cache: Path | None, identity: dict[str, object]) -> Tensors | None:
    """What the cache holds under exactly this identity; None where it holds nothing, or a file that cannot be read."""
    from safetensors import SafetensorError, safe_open

    if cache is None or not (path := _place(cache, identity)).is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            described = json.loads((file.metadata() or {}).get("identity", "null"))
            return found if described == json.loads(json.dumps(identity | {"content": _digest(found)})) else None
    except (SafetensorError, ValueError, FileNotFoundError):  # of something else, or deleted since
        return None


def _save(cache: Path | None, identity: dict[str, object], tensors: Tensors) -> None:
    from safetensors.torch import save

    if cache is not None:
        contiguous = {name: x.contiguous() for name, x in tensors.items()}
        described = identity | {"content": _digest(contiguous)}
        write_atomically(_place(cache, identity), save(contiguous, {"identity": json.dumps(described)}))


def _digest(tensors: Tensors) -> str:
    return digest({name: x.flatten().contiguous().view(torch.uint8).numpy() for name, x in tensors.items()})  # as bytes: numpy knows no bfloat16
