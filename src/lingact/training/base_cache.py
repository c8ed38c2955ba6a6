"""The cache of base-model outputs, so that runs and sweeps share them.

A file is found by a hash of everything that its content depends on, so it is never out of date.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from lingact.activations import features, functional
from lingact.data import tokens
from lingact.data.corpus import ParallelCorpus
from lingact.files.atomic import write_atomically
from lingact.files.states import digest
from lingact.models import lm as language_model
from lingact.models import sae
from lingact.models.adapters import without_adapter
from lingact.models.lm import LanguageModel
from lingact.models.sae import Dictionaries, weights_digest
from lingact.runtime.compat.huggingface import attention_implementation
from lingact.training import base_targets
from lingact.training.base_targets import (
    Anchor,
    PassSettings,
    Predictions,
    Reference,
    Tensors,
    compute_anchor,
    compute_predictions,
    compute_reference,
)


@dataclass(frozen=True)
class CacheSettings(PassSettings):
    """How the text is read, and where the outputs are kept."""

    cache: Path | None = None
    """The folder of the cache. None: compute, and keep nothing."""


def cached_reference(
    lm: LanguageModel, dictionaries: Dictionaries, corpus: ParallelCorpus, code: str, settings: CacheSettings, *, profiles: bool
) -> Reference:
    """`compute_reference`, unless the cache has it."""
    layers, texts = tuple(dictionaries), corpus.texts[code]
    identity = _identity("reference", lm, texts, settings, layers=list(layers), saes=weights_digest(dictionaries), profiles=profiles)
    found = _cached(settings.cache, identity, lambda: compute_reference(lm, dictionaries, texts, code, settings, profiles=profiles))
    return Reference.of(layers, found)


def cached_predictions(lm: LanguageModel, corpus: ParallelCorpus, code: str, settings: CacheSettings, *, top: int) -> Predictions:
    """`compute_predictions`, unless the cache has it."""
    texts = corpus.texts[code]
    identity = _identity("predictions", lm, texts, settings, top=top)
    return Predictions(**_cached(settings.cache, identity, lambda: compute_predictions(lm, texts, code, settings, top=top)))


def cached_anchor(lm: LanguageModel, dictionaries: Dictionaries, corpus: ParallelCorpus, code: str, settings: CacheSettings) -> Anchor:
    """`compute_anchor`, unless the cache has it."""
    texts = corpus.texts[code]
    identity = _identity("anchor", lm, texts, settings, layers=list(dictionaries), saes=weights_digest(dictionaries))
    return Anchor(**_cached(settings.cache, identity, lambda: compute_anchor(lm, dictionaries, texts, code, settings)))


def _cached(cache: Path | None, identity: dict[str, object], compute: Callable[[], Reference | Predictions | Anchor]) -> Tensors:
    """The tensors that the cache has under this identity; otherwise they are computed and put there."""
    found = _load(cache, identity)
    if found is None:
        found = compute().tensors()
        _save(cache, identity, found)
    return found


def _identity(kind: str, lm: LanguageModel, texts: Sequence[str], settings: CacheSettings, **rest: object) -> dict[str, object]:
    """Everything that the outputs depend on. The token ids stand for text, order, tokenizer and context."""
    digest = hashlib.sha256()
    for window in lm.tokens.windows(texts):
        digest.update(np.array([window.sentence, len(window.ids), *window.ids], np.int64).tobytes())
    return {
        "kind": kind,
        "code": _code_digest(),
        "model": lm.identity["sha256"],
        "config": without_adapter(lm.model).config.to_json_string(use_diff=False),
        "dtype": str(next(lm.model.parameters()).dtype),
        "attention": attention_implementation(lm.model),
        "tokens": digest.hexdigest(),
        "special": lm.tokens.special.tolist(),
        "device": lm.device.type,
        "batch_tokens": settings.batch_tokens,
        "precision": settings.precision,
        "versions": {name: version(name) for name in ("lingact", "torch", "transformers", "sae-lens")},
    } | rest


@lru_cache(maxsize=1)
def _code_digest() -> str:
    """sha256 over the modules that compute the outputs."""
    digest = hashlib.sha256()
    for module in (features, functional, language_model, sae, tokens, base_targets):
        digest.update(Path(str(module.__file__)).read_bytes())
    return digest.hexdigest()


def _place(cache: Path, identity: dict[str, object]) -> Path:
    text = json.dumps(identity, sort_keys=True)
    return cache / f"{identity['kind']}-{hashlib.sha256(text.encode()).hexdigest()[:24]}.safetensors"


def _load(cache: Path | None, identity: dict[str, object]) -> Tensors | None:
    """The tensors that the cache has under exactly this identity. None if it has none, or a file that cannot be read."""
    from safetensors import SafetensorError, safe_open

    if cache is None or not (path := _place(cache, identity)).is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            described = json.loads((file.metadata() or {}).get("identity", "null"))
            return found if described == json.loads(json.dumps(identity | {"content": _digest(found)})) else None
    except (SafetensorError, ValueError, FileNotFoundError):  # not a file of this cache, or deleted since
        return None


def _save(cache: Path | None, identity: dict[str, object], tensors: Tensors) -> None:
    from safetensors.torch import save

    if cache is not None:
        contiguous = {name: x.contiguous() for name, x in tensors.items()}
        described = identity | {"content": _digest(contiguous)}
        write_atomically(_place(cache, identity), save(contiguous, {"identity": json.dumps(described)}))


def _digest(tensors: Tensors) -> str:
    return digest(
        {name: x.flatten().contiguous().view(torch.uint8).numpy() for name, x in tensors.items()}
    )  # as bytes, because numpy has no bfloat16
