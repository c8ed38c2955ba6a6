"""What a pass over aligned text has summed up, by SAE set, variant and language: saved, loaded and merged without any model."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from lingact.activations.feature_stats import LAYER_SUMS, FeatureStats, SentenceVectors
from lingact.data.corpus import ParallelCorpus, split_in_halves
from lingact.errors import UserError
from lingact.files.atomic import write_json
from lingact.files.earlier import present_entries
from lingact.files.records import damaged, read_json_object
from lingact.files.states import load_state, refuse_mismatched
from lingact.runtime.program import program

BASE, ADAPTER, NORM_MATCHED = "base", "adapter", "norm_matched"
"""What is measured: the base model, the adapted one, and the adapted one with each residual rescaled to the base's norm on that token."""

Key = tuple[str, str, str]
"""(SAE set, variant, language); an SAE set is measuring, heldout, or a draw of random directions (`random_sae_set`)."""


def random_sae_set(draw: int) -> str:
    """The set of SAEs of one draw of random directions, from 1, as statistics call it."""
    return f"random{draw}"


def is_random(sae_set: str) -> bool:
    """Whether a set of SAEs has random directions. `random` is the only draw of a run from before there were several."""
    return re.fullmatch(r"random\d*", sae_set) is not None


@dataclass(frozen=True)
class Measurement:
    """Statistics by SAE set, variant and language."""

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

    def lost(self, code: str | None = None) -> list["Lost"]:
        """What is not finite, and so nan in every table: of one language, or of all."""
        return [found for key in self.stats if code in (None, key[2]) for found in _lost(key, self.stats[key])]

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
    """residuals, `SAE activations (SAE set)` or predictions, of which model."""
    layers: tuple[int, ...]
    """Behind which; none for predictions."""
    language: str
    sentences: int | None
    """In which any of them is; None: not known yet."""
    of: int


def _lost(key: Key, stats: FeatureStats) -> Iterator[Lost]:
    sae_set, variant, code = key
    by_residual = np.asarray(~np.isfinite(stats.norm))
    of_latents = {*LAYER_SUMS, "reference_active", "norm_matched"} - {"norm", "square"}
    seen = [sums for name, sums in vars(stats).items() if name in of_latents and sums is not None]
    by_sae = np.asarray(~np.isfinite(seen).all(axis=0) & ~by_residual.any(axis=1, keepdims=True))
    model = {BASE: "", ADAPTER: " with the adapter", NORM_MATCHED: " with the adapter, norm-matched"}[variant]
    for what, wrong in ((f"residuals{model}", by_residual), (f"activations of the {sae_set} SAEs{model}", by_sae)):
        if wrong.any():
            layers = tuple(layer for layer, row in zip(stats.layers, wrong, strict=True) if row.any())
            yield Lost(what, layers, code, int(wrong.any(axis=0).sum()), len(stats.sentence_ids))
    if stats.nll is not None and stats.kl is not None and not np.isfinite(stats.nll + stats.kl).all():
        yield Lost(f"predictions{model}", (), code, int((~np.isfinite(stats.nll + stats.kl)).sum()), len(stats.sentence_ids))


# --- on disk -------------------------------------------------------------------------------------------------------------------------------------

_INDEX = "index.json"


def save_index(folder: Path, measured: Measurement, corpus: ParallelCorpus, header: dict[str, str], shard: tuple[int, int]) -> None:
    """Write what the saved states of a measurement are about, so that `load_measurement` finds them; the states themselves come from the pass."""
    first = next(iter(measured.stats.values()))
    index = {
        "header": header,
        "keys": [list(key) for key in measured.stats],
        "layers": list(first.layers),
        "top_k": first.top_k_size,
        "shard": list(shard),
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
        raise UserError(f"'{folder}' has no statistics (no {_INDEX}); name a run folder of {program('analyze')} or {program('train')}")
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
