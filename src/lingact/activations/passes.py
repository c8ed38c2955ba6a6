"""One pass over aligned text: every layer, every set of SAEs, base and adapter side by side, into streaming statistics."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor
from tqdm import tqdm

from lingact.activations.accumulate import ReferenceStatistics, add_batch, add_predictions, add_vectors, count_tokens
from lingact.activations.feature_stats import DISCOVERY, GIVEN, FeatureStats, SentenceVectors
from lingact.activations.features import kept_residuals, rescaled
from lingact.activations.functional import kl_per_token
from lingact.activations.measurement import ADAPTER, BASE, NORM_MATCHED, Lost, Measurement, save_index
from lingact.data.corpus import ParallelCorpus
from lingact.data.tokens import TokenBatch
from lingact.errors import UserError
from lingact.models.adapters import base_behaviour
from lingact.models.finite import beyond
from lingact.models.lm import LanguageModel
from lingact.models.next_tokens import NextTokens
from lingact.models.sae import Dictionaries
from lingact.models.sae_sources import ranges
from lingact.runtime.distributed import rank
from lingact.runtime.resumable_passes import add_up, resumable, token_bar

ACTIVE_SHARE = 0.01
"""A latent belongs to the reference language if it fires on at least this share of its kept tokens."""


@dataclass(frozen=True)
class Wanted:
    """What a measurement is to contain."""

    adapter: bool = False
    """Base, adapter and norm-matched adapter instead of the base alone; the model carries an adapter."""
    language_model: bool = False
    """Cross-entropies, and KL(base || adapter); needs the logits."""
    reference_statistics: ReferenceStatistics | None = None
    """Measures by the reference language."""
    excluded: Mapping[int, Bool[np.ndarray, " d_model"]] | None = None
    """Layer -> dimensions without which squared norms and errors are summed once more."""
    base_alone: frozenset[str] = frozenset()
    """Sets of SAEs that see the base model alone, whatever else is measured."""
    vectors: int = 0
    """Keep the mean residuals of at most so many sentences, base model only."""
    top_k: int = 10
    shard: tuple[int, int] = (0, 1)
    """(k, n): every n-th batch, beginning with number k, of every language. Shards merge."""
    title: str = "measuring"


def lost_sentence(lost: Iterable[Lost], dtype: str) -> str:
    """One sentence on what is not finite, where, and what to do; empty where all is finite.

    Args:
        dtype: of the model.
    """
    groups: dict[tuple[str, tuple[int, ...]], dict[str, str]] = {}
    for each in lost:
        # Every set of SAEs reads the same residuals.
        count = f" ({each.sentences} of {each.of} sentences)" if each.sentences is not None else ""
        groups.setdefault((each.what, each.layers), {})[each.language] = f"{each.language}{count}"
    if not groups:
        return ""
    places = [
        f"{what}{f' behind layer {ranges(layers)}' if layers else ''} in {', '.join(languages.values())}"
        for (what, layers), languages in groups.items()
    ]
    return (
        f"Not finite in {dtype}: {'; '.join(places)}. Cells that rest on them show '-', means in the text leave them out. Most likely {beyond(dtype)}"
    )


@torch.no_grad()
def measure(
    lm: LanguageModel,
    sae_sets: dict[str, Dictionaries],
    corpus: ParallelCorpus,
    *,
    batch_tokens: int,
    identity: dict[str, str],
    wanted: Wanted = Wanted(),
    folder: Path | None = None,
) -> Measurement:
    """Measure every language of the corpus.

    Args:
        lm: the model; with an adapter attached if `wanted.adapter`.
        sae_sets: sets of SAEs by name; all have the same layers.
        batch_tokens: padded tokens per forward pass.
        identity: goes into the statistics' headers, with SAE set, variant and language added.
        folder: keep the statistics there, a file for each language, and go on from what is there. None: nothing is kept.
    """
    layers = tuple(next(iter(sae_sets.values())))
    header = identity | {"batch_tokens": str(batch_tokens)}
    # First of all, because it refuses texts without tokens.
    total = sum(lm.tokens.count(texts) for texts in corpus.texts.values())
    measured = _empty(lm, sae_sets, corpus, header, wanted)
    if folder is not None and rank() == 0:
        save_index(folder, measured, corpus, header, wanted.shard)

    def add(code: str, batch: TokenBatch) -> None:
        residuals, predictions = _forward(lm, batch, layers, wanted)
        for (sae_set, variant, language), stats in measured.stats.items():
            if language == code:
                count_tokens(stats, batch, lm.tokens.partial)
                add_batch(stats, sae_sets[sae_set], residuals[variant], batch, wanted.reference_statistics)
                if variant in predictions:
                    add_predictions(stats, *predictions[variant])
        if code in measured.vectors:
            add_vectors(measured.vectors[code], residuals[BASE], batch)
        warn(code)

    warned: set[str] = set()

    def warn(code: str) -> None:
        """Say at once, and once, that numbers are being lost: the pass may take hours. The sums are on the host, so that this costs a look."""
        lost = [] if warned else measured.lost(code)
        if lost:
            warned.add(code)
            tqdm.write(f"{lost_sentence([replace(lost[0], sentences=None)], dtype_of(lm))}. The run goes on; Ctrl-C ends it")

    def merge(code: str, other: dict[str, np.ndarray]) -> None:
        add_up(measured.arrays(code), {name: array for name, array in other.items() if name.rpartition("/")[2] not in GIVEN})

    every, first = wanted.shard[1], wanted.shard[0]
    with token_bar(total // every, wanted.title) as bar:
        for code, texts in corpus.texts.items():
            bar.set_postfix_str(code)
            # A language's batches at a time: memory does not grow with the corpus.
            steps = list(islice(lm.tokens.batches(lm.tokens.windows(texts), batch_tokens), first, None, every))
            path = folder / f"{code}.safetensors" if folder is not None else None
            described, state = header | {"language": code}, measured.arrays(code)
            resumable(path, described, state, steps, partial(add, code), tokens=TokenBatch.size, bar=bar, merge=partial(merge, code))
    return measured


def dtype_of(lm: LanguageModel) -> str:
    """The model's dtype, as the configuration calls it."""
    return str(next(lm.model.parameters()).dtype).removeprefix("torch.")


def _empty(lm: LanguageModel, sae_sets: dict[str, Dictionaries], corpus: ParallelCorpus, header: dict[str, str], wanted: Wanted) -> Measurement:
    variants = (BASE, ADAPTER, NORM_MATCHED) if wanted.adapter else (BASE,)
    stats = {
        (sae_set, variant, code): FeatureStats.empty(
            header | {"sae_set": sae_set, "variant": variant, "language": code},
            corpus,
            code,
            {layer: dictionary.width for layer, dictionary in dictionaries.items()},
            lm.d_model,
            language_model=wanted.language_model and variant != NORM_MATCHED,
            reference_statistics=wanted.reference_statistics is not None,
            excluded=wanted.excluded,
            top_k_size=wanted.top_k,
        )
        for code in corpus.texts
        for sae_set, dictionaries in sae_sets.items()
        for variant in (variants if sae_set not in wanted.base_alone else (BASE,))
    }
    layers = tuple(next(iter(sae_sets.values())))
    kept = corpus.texts if wanted.vectors else ()
    return Measurement(stats, {code: SentenceVectors.empty(header | {"language": code}, corpus, layers, lm.d_model, wanted.vectors) for code in kept})


def _forward(lm: LanguageModel, batch: TokenBatch, layers: tuple[int, ...], wanted: Wanted):  # noqa: ANN202 (two dictionaries, named in the last line)
    predictions: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
    with base_behaviour(lm.model):
        base, before = kept_residuals(lm, batch, layers, predict=wanted.language_model)
        if before is not None:
            nll = before.nll()
            predictions[BASE] = (nll, torch.zeros_like(nll), batch.predicted_sentence)
    residuals = {BASE: base}
    if wanted.adapter:
        residuals[ADAPTER], after = kept_residuals(lm, batch, layers, predict=wanted.language_model)
        residuals[NORM_MATCHED] = {layer: rescaled(x, base[layer].norm(dim=-1)) for layer, x in residuals[ADAPTER].items()}
        if before is not None and after is not None:
            predictions[ADAPTER] = (*_compared(lm, before, after), batch.predicted_sentence)
    return residuals, predictions


def _compared(lm: LanguageModel, before: NextTokens, after: NextTokens) -> tuple[Tensor, Tensor]:
    """Cross-entropy with the adapter, and KL(base || adapter), of each predicted token."""

    def of(logits: Tensor, rows: slice) -> Tensor:
        with base_behaviour(lm.model):
            base = before.logits(rows)
        return torch.cat([after.nll_of(logits, rows), kl_per_token(base, logits)[:, None]], dim=1)

    nll, kl = after.each(of).unbind(dim=1)
    return nll, kl


def reference_statistics(
    lm: LanguageModel,
    sae_sets: dict[str, Dictionaries],
    corpus: ParallelCorpus,
    reference: str,
    *,
    batch_tokens: int,
    identity: dict[str, str],
    folder: Path | None = None,
) -> ReferenceStatistics:
    """Mean residual norms and active latents of the reference language, from a pass over its discovery half.

    They must be known before other languages are measured by them, so this half of one language is read twice. `folder` as in `measure`.

    Raises:
        UserError: no sentence is in the discovery half.
    """
    chosen = [place for place, half in enumerate(corpus.halves) if half == DISCOVERY]
    if not chosen:
        raise UserError(f"none of the {len(corpus.ids)} sentences is in the discovery half; give more sentences, or use measures=core")
    part = corpus.speaking((reference,)).select(chosen)
    wanted = Wanted(title=f"reference statistics {reference}")
    found = measure(lm, sae_sets, part, batch_tokens=batch_tokens, identity=identity, wanted=wanted, folder=folder)
    by_sae_set = {sae_set: found.of(sae_set, BASE)[reference] for sae_set in sae_sets}
    any_sae_set = next(iter(by_sae_set.values()))
    norms = any_sae_set.norm.sum(axis=1) / any_sae_set.tokens.sum()
    active = {
        sae_set: {
            layer: torch.from_numpy(fires.sum(axis=0) >= ACTIVE_SHARE * s.tokens.sum()) for layer, fires in zip(s.layers, s.firing, strict=True)
        }
        for sae_set, s in by_sae_set.items()
    }
    return ReferenceStatistics({layer: float(norm) for layer, norm in zip(any_sae_set.layers, norms, strict=True)}, active)
