"""One pass over aligned text: every layer, every set of SAEs, base and adapter side by side, into streaming statistics."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from lingact.activations.feature_stats import DISCOVERY, GIVEN, FeatureStats, ReferenceStatistics, SentenceVectors, add_batch
from lingact.activations.features import kept_residuals, next_token_nll, rescaled
from lingact.activations.functional import kl_per_token
from lingact.data.corpus import ParallelCorpus, split_in_halves
from lingact.data.tokens import TokenBatch
from lingact.errors import UserError
from lingact.files.atomic import write_json
from lingact.files.earlier import present_entries
from lingact.files.records import damaged, read_json_object
from lingact.models.adapters import base_behaviour
from lingact.models.finite import beyond
from lingact.models.lm import LanguageModel
from lingact.models.sae import Dictionaries
from lingact.models.sae_sources import ranges
from lingact.runtime.distributed import rank
from lingact.runtime.resumable_passes import add_up, load_state, refuse_mismatched, resumable, token_bar

BASE, ADAPTER, NORM_MATCHED = "base", "adapter", "norm_matched"
"""What is measured: the base model, the adapted one, and the adapted one with each residual rescaled to the base's norm on that token."""
ACTIVE_SHARE = 0.01
"""A latent belongs to the reference language if it fires on at least this share of its kept tokens (design section 7)."""

Key = tuple[str, str, str]
"""(meter, variant, language); a meter is a set of SAEs: measuring, heldout, or a draw of random directions (`controls.random_meter`)."""


@dataclass(frozen=True)
class Wanted:
    """What a measurement is to contain."""

    adapter: bool = False
    """Base, adapter and norm-matched adapter instead of the base alone; the model carries an adapter."""
    language_model: bool = False
    """Cross-entropies, and KL(base || adapter); needs the logits."""
    reference_statistics: ReferenceStatistics | None = None
    """Measures by the reference language."""
    base_alone: frozenset[str] = frozenset()
    """Sets of SAEs that see the base model alone, whatever else is measured."""
    vectors: int = 0
    """Keep the mean residuals of at most so many sentences, base model only."""
    top_k: int = 10
    shard: tuple[int, int] = (0, 1)
    """(k, n): every n-th batch, beginning with number k, of every language. Shards merge."""
    title: str = "measuring"


@dataclass(frozen=True)
class Measurement:
    """Statistics by meter, variant and language."""

    stats: dict[Key, FeatureStats]
    vectors: dict[str, SentenceVectors] = field(default_factory=dict)
    """By language; empty if none were wanted."""

    def of(self, sae_set: str, variant: str) -> dict[str, FeatureStats]:
        """Language -> statistics."""
        return {code: s for (m, v, code), s in self.stats.items() if (m, v) == (sae_set, variant)}

    @property
    def sae_sets(self) -> tuple[str, ...]:
        """The sets of SAEs, in the order of measuring."""
        return tuple(dict.fromkeys(sae_set for sae_set, _, _ in self.stats))

    @property
    def variants(self) -> tuple[str, ...]:
        """Base alone, or base, adapter and norm-matched."""
        return tuple(dict.fromkeys(variant for _, variant, _ in self.stats))

    @property
    def languages(self) -> tuple[str, ...]:
        """In the order of measuring."""
        return tuple(dict.fromkeys(code for _, _, code in self.stats))

    def arrays(self, code: str) -> dict[str, np.ndarray]:
        """All sums of one language by name, not copied."""
        named = {f"{m}/{v}/{name}": array for (m, v, c), s in self.stats.items() if c == code for name, array in s.arrays().items()}
        return named | (self.vectors[code].arrays() if code in self.vectors else {})

    def lost(self) -> list["Lost"]:
        """What is not finite, and so nan in every table."""
        return [found for key in self.stats for found in _lost(key, self.stats[key])]

    def merge(self, other: "Measurement") -> "Measurement":
        """The statistics of both, which cover different batches of the same sentences.

        Raises:
            UserError: they do not belong together.
        """
        if self.stats.keys() != other.stats.keys() or self.vectors.keys() != other.vectors.keys():
            raise UserError("these statistics do not belong together; they have other languages, SAEs or variants")
        vectors = {
            code: replace(mine, total=mine.total + other.vectors[code].total, tokens=mine.tokens + other.vectors[code].tokens)
            for code, mine in self.vectors.items()
        }
        return Measurement({key: mine.merge(other.stats[key]) for key, mine in self.stats.items()}, vectors)


@dataclass(frozen=True)
class Lost:
    """Sums of a language that are not finite."""

    what: str
    """residuals, `SAE activations (meter)` or predictions, of which model."""
    layers: tuple[int, ...]
    """Behind which; none for predictions."""
    language: str
    sentences: int | None
    """In which any of them is; None: not known yet."""
    of: int


def _lost(key: Key, stats: FeatureStats) -> Iterator[Lost]:
    sae_set, variant, code = key
    by_residual = np.asarray(~np.isfinite(stats.norm))
    seen = [stats.activation, stats.l2, stats.top_k, stats.error, *(x for x in (stats.reference_active, stats.norm_matched) if x is not None)]
    by_sae = np.asarray(~np.isfinite(seen).all(axis=0) & ~by_residual.any(axis=1, keepdims=True))
    model = {BASE: "", ADAPTER: " with the adapter", NORM_MATCHED: " with the adapter, norm-matched"}[variant]
    for what, wrong in ((f"residuals{model}", by_residual), (f"activations of the {sae_set} SAEs{model}", by_sae)):
        if wrong.any():
            layers = tuple(layer for layer, row in zip(stats.layers, wrong, strict=True) if row.any())
            yield Lost(what, layers, code, int(wrong.any(axis=0).sum()), len(stats.sentence_ids))
    if stats.nll is not None and stats.kl is not None and not np.isfinite(stats.nll + stats.kl).all():
        yield Lost(f"predictions{model}", (), code, int((~np.isfinite(stats.nll + stats.kl)).sum()), len(stats.sentence_ids))


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
        meters: sets of SAEs by name; all have the same layers.
        batch_tokens: padded tokens per forward pass.
        identity: goes into the statistics' headers, with meter, variant and language added.
        folder: keep the statistics there, a file for each language, and go on from what is there. None: nothing is kept.
    """
    layers = tuple(next(iter(sae_sets.values())))
    header = identity | {"batch_tokens": str(batch_tokens)}
    # First of all, because it refuses texts without tokens.
    total = sum(lm.tokens.count(texts) for texts in corpus.texts.values())
    measured = _empty(lm, sae_sets, corpus, header, wanted)
    if folder is not None and rank() == 0:
        _write_index(folder, measured, corpus, header, wanted)

    def add(code: str, batch: TokenBatch) -> None:
        residuals, predictions = _forward(lm, batch, layers, wanted)
        for (sae_set, variant, language), stats in measured.stats.items():
            if language == code:
                stats.count_tokens(batch, lm.tokens.partial)
                add_batch(stats, sae_sets[sae_set], residuals[variant], batch, wanted.reference_statistics)
                if variant in predictions:
                    stats.add_predictions(*predictions[variant])
        if code in measured.vectors:
            measured.vectors[code].add(residuals[BASE], batch)
        warn(code)

    warned: set[str] = set()

    def warn(code: str) -> None:
        """Say at once, and once, that numbers are being lost: the pass may take hours. The sums are on the host, so that this costs a look."""
        lost = [] if warned else [found for key, stats in measured.stats.items() if key[2] == code for found in _lost(key, stats)]
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
            dictionaries,
            lm.d_model,
            language_model=wanted.language_model and variant != NORM_MATCHED,
            reference_statistics=wanted.reference_statistics is not None,
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
    with base_behaviour(lm.model):
        base, base_logits = kept_residuals(lm, batch, layers, logits=wanted.language_model)
    residuals = {BASE: base}
    predictions: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
    if base_logits is not None:
        nll, _ = next_token_nll(base_logits, batch)
        predictions[BASE] = (nll, torch.zeros_like(nll), batch.predicted_sentence)
    if wanted.adapter:
        residuals[ADAPTER], logits = kept_residuals(lm, batch, layers, logits=wanted.language_model)
        residuals[NORM_MATCHED] = {layer: rescaled(x, base[layer].norm(dim=-1)) for layer, x in residuals[ADAPTER].items()}
        if logits is not None and base_logits is not None:
            nll, mask = next_token_nll(logits, batch)
            kl = kl_per_token(base_logits[:, :-1][mask], logits[:, :-1][mask])
            predictions[ADAPTER] = (nll, kl, batch.predicted_sentence)
    return residuals, predictions


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


# --- on disk -------------------------------------------------------------------------------------------------------------------------------------

_INDEX = "index.json"


def _write_index(folder: Path, measured: Measurement, corpus: ParallelCorpus, header: dict[str, str], wanted: Wanted) -> None:
    first = next(iter(measured.stats.values()))
    index: dict[str, Any] = {
        "header": header,
        "keys": [list(key) for key in measured.stats],
        "layers": list(first.layers),
        "top_k": first.top_k_size,
        "shard": list(wanted.shard),
        "sentence_ids": list(corpus.ids),
        "documents": corpus.documents,
        "rows": corpus.rows,
        "vectors": {code: v.places.tolist() for code, v in measured.vectors.items()},
    }
    write_json(folder / _INDEX, index)


def load_measurement(folder: Path) -> tuple[Measurement, tuple[int, int]]:
    """What `measure` kept in a folder, and which shard of it this is.

    Raises:
        UserError: it is not there, or not complete, or damaged.
    """
    path = folder / _INDEX
    if not path.is_file():
        raise UserError(f"'{folder}' holds no statistics (no {_INDEX}); name a run folder of analyze.py or train.py")
    needed = ("header", "keys", "layers", "top_k", "shard", "sentence_ids", "vectors")
    index = present_entries(read_json_object(path, "delete it and resume the run that wrote it"))
    if not set(needed) <= index.keys():
        raise damaged(path, "delete it and resume the run that wrote it")
    header, layers, ids = index["header"], tuple(index["layers"]), tuple(index["sentence_ids"])
    # Folders from before documents were known have neither; their sentences are drawn one by one.
    documents, rows = (None if index.get(key) is None else tuple(index[key]) for key in ("documents", "rows"))
    halves = split_in_halves(ids if documents is None else documents)
    sentences = {"sentence_ids": ids, "halves": halves, "documents": documents, "rows": rows}
    keys: list[Key] = [(sae_set, variant, code) for sae_set, variant, code in index["keys"]]
    stats: dict[Key, FeatureStats] = {}
    vectors: dict[str, SentenceVectors] = {}
    for code in dict.fromkeys(code for _, _, code in keys):
        found, arrays, (done, total) = load_state(folder / f"{code}.safetensors")
        if done < total:
            raise UserError(f"the statistics in '{folder}' are not complete ({code}: {done} of {total} batches); finish the run with resume= first")
        refuse_mismatched(found, header | {"language": code}, f"'{folder / code}.safetensors'")
        for sae_set, variant, _ in (key for key in keys if key[2] == code):
            prefix = f"{sae_set}/{variant}/"
            own = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
            described = header | {"sae_set": sae_set, "variant": variant, "language": code}
            stats[sae_set, variant, code] = FeatureStats.from_arrays(described, sentences, layers, index["top_k"], own)
        if code in index["vectors"]:
            places = np.array(index["vectors"][code], np.int64)
            chosen = tuple(ids[place] for place in places)
            vectors[code] = SentenceVectors(header | {"language": code}, chosen, places, layers, arrays["vectors.total"], arrays["vectors.tokens"])
    place, count = index["shard"]
    return Measurement(stats, vectors), (place, count)


def refuse_blocks_without_places(measured: Measurement, block: int | None, path: str) -> None:
    """Statistics from before sentences' places in the source were kept do not say which are neighbours.

    Raises:
        UserError: so it is, and blocks are asked for.
    """
    first = next(iter(measured.stats.values()))
    if block is not None and first.documents is None and first.rows is None:
        raise UserError(
            f"statistics.block={block}: the statistics in '{path}' do not say which sentences are neighbours (an earlier version made them); "
            "measure again, or leave it out"
        )
