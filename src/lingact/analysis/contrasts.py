"""Comparison of training recipes: paired differences between the effects of adapters on the same held-out sentences, from saved statistics.

A recipe is the configuration of adapters that differ only in the seed. Every adapter is evaluated on the same resamples of the sentences, so that the
difficulty of the sentences cancels. Intervals also cover the choice of seeds if both recipes have at least two (`crossed`).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float

from lingact.activations.measurement import ADAPTER, Measurement, is_random, load_measurement, refuse_blocks_without_places
from lingact.analysis.changes import Variants, change, retention
from lingact.config.data import LanguagesConfig
from lingact.config.measures import Statistics
from lingact.errors import UserError
from lingact.files.records import read_json_object
from lingact.runtime.program import program
from lingact.statistics.bootstrap import Resampling, holm
from lingact.statistics.crossed import crossed_difference

Numbers = dict[tuple[str, str, str], Float[np.ndarray, " draw"]]
"""(SAE set, language, quantity) -> a number of one adapter, as draws."""
QUANTITIES = ("gap_closed", "gap_closed_norm_matched", "fvu_ratio")
"""Quantities of each target. Those of the reference are in `changes.retention`, except the profile, which has no draws."""
SENTENCES_AND_SEEDS, SENTENCES = "sentences and seeds", "sentences"
"""The random choices that an interval covers."""
_COLUMNS = (
    *("one", "other", "language", "sae_set", "quantity", "n", "resampled", "units"),
    *("seeds_one", "seeds_other", "value_one", "value_other", "estimate", "lo", "hi", "p"),
)


@dataclass(frozen=True)
class Trained:
    """An adapter, and the run with its statistics."""

    recipe: str
    """The name that it shares with adapters that differ from it only in the seed."""
    folder: Path
    """Run folder of train.py, or of analyze.py with the adapter."""
    targets: tuple[str, ...]
    """Languages that it was trained for; empty: not known, so all but the reference count."""
    layers: Literal["all"] | tuple[int, ...]
    """Layers of its loss."""


def recipe_table(trained: Sequence[Trained], languages: LanguagesConfig, settings: Statistics, seed: int) -> pd.DataFrame:
    """One row per pair of recipes, target language or reference, set of SAEs and quantity: `one` minus `other`, means over seeds.

    The gap closed is over the layers that are in any of the losses and have a gap before training, so that it means the same for all. `value_one`,
    `value_other`: means over the `seeds_one` and `seeds_other` adapters. `covers`: the random choices that `lo`, `hi` and `p` cover; with a single
    seed on either side, the result holds for these adapters only. `p_holm`: corrected over pairs and languages, for each set of SAEs and quantity.
    Pairs of recipes with different targets have no rows.

    Raises:
        UserError: statistics are missing, not of an adapter, of a shard, or of different base models, sentences or SAEs.
    """
    numbers: dict[str, list[Numbers]] = {}
    first: tuple[Path, dict[str, Any]] | None = None
    resampling: Resampling | None = None
    for run in trained:
        measured = _adapter_measurement(run.folder, settings.block)
        if missing := [code for code in (languages.reference, *run.targets) if code not in measured.languages]:
            raise UserError(
                f"compare: '{run.folder}' has not measured {', '.join(missing)} (reference and languages of the training); measure it again"
            )
        basis = _basis(measured, settings.block)
        first = first or (run.folder, basis)
        resampling = resampling or next(iter(measured.stats.values())).resampling(settings.block)
        refuse_other_basis(first, (run.folder, basis))
        chosen = _loss_layers([each.layers for each in trained], basis["layers"])
        numbers.setdefault(run.recipe, []).append(dict(_numbers(measured, run.targets, languages, settings, chosen, seed)))
    targets = {run.recipe: frozenset(run.targets) for run in trained}
    assert resampling is not None
    return pair_table(numbers, targets, resampling=resampling, confidence=settings.confidence)


def pair_table(
    numbers: Mapping[str, Sequence[Numbers]], targets: Mapping[str, frozenset[str]], *, resampling: Resampling, confidence: float
) -> pd.DataFrame:
    """`recipe_table` from the numbers of every adapter.

    Args:
        numbers: recipe -> the numbers of each of its seeds, on the same resamples for all.
        targets: recipe -> its target languages.
        resampling: the resampling of the sentences.
        confidence: such as 0.95.
    """
    rows = []
    for one, other in combinations(numbers, 2):
        if targets[one] != targets[other]:
            continue
        both = [seeds if min(len(numbers[one]), len(numbers[other])) > 1 else [_mean(seeds)] for seeds in (numbers[one], numbers[other])]
        for key in (key for key in numbers[one][0] if key in numbers[other][0]):
            sides = [np.stack([seed[key] for seed in seeds]) for seeds in both]
            found = crossed_difference(*sides, resampling=resampling, confidence=confidence)
            sae_set, language, quantity = key
            cells = (
                one,
                other,
                language,
                sae_set,
                quantity,
                *resampling.columns.values(),
                len(numbers[one]),
                len(numbers[other]),
                *(float(side[:, 0].mean()) for side in sides),
            )
            cells = (*cells, found.estimate.value, found.estimate.lo, found.estimate.hi, found.p)
            rows.append(dict(zip(_COLUMNS, cells, strict=True)) | {"covers": SENTENCES_AND_SEEDS if len(both[0]) > 1 else SENTENCES})
    table = pd.DataFrame(rows, columns=[*_COLUMNS, "covers"])
    table["p_holm"] = table.groupby(["sae_set", "quantity"], sort=False)["p"].transform(lambda p: holm(p.to_numpy(float)))
    return table[[*_COLUMNS, "p_holm", "covers"]]


def _mean(seeds: Sequence[Numbers]) -> Numbers:
    return {key: np.mean([seed[key] for seed in seeds], axis=0) for key in seeds[0]}


def _numbers(
    measured: Measurement, targets: tuple[str, ...], languages: LanguagesConfig, settings: Statistics, layers: tuple[int, ...], seed: int
) -> Iterator[tuple[tuple[str, str, str], Float[np.ndarray, " draw"]]]:
    """Every number of one adapter that is compared. All random numbers come from here, with the same seed for every adapter."""
    reference = languages.reference
    for place, sae_set in enumerate(sae_set for sae_set in measured.sae_sets if not is_random(sae_set)):
        variants = Variants.of(measured, sae_set)
        for code in targets or tuple(code for code in measured.languages if code != reference):
            found = change(variants, code, languages, settings, layers, seed)
            values = (found.closed, found.closed_norm_matched, found.fvu_ratio.mean(axis=1))
            yield from (((sae_set, code, quantity), draws) for quantity, draws in zip(QUANTITIES, values, strict=True))
        for quantity, draws in retention(variants, reference, settings, seed).items():
            of_the_model = quantity in ("bits_per_byte", "kl")  # the same for all sets of SAEs
            if quantity != "profile" and (place == 0 or not of_the_model):
                yield (sae_set, reference, quantity), draws


def _loss_layers(given: Sequence[Literal["all"] | tuple[int, ...]], measured: tuple[int, ...]) -> tuple[int, ...]:
    chosen = {layer for layers in given for layer in (measured if layers == "all" else layers)}
    return tuple(layer for layer in measured if layer in chosen)


# --- comparable measurements ---------------------------------------------------------------------------------------------------------------------


def has_adapter(run: Path) -> bool:
    """Whether a run folder has statistics of an adapter, besides those of the base model."""
    path = run / "stats" / "index.json"
    return path.is_file() and any(variant == ADAPTER for _, variant, _ in read_json_object(path, "measure again", needed=("keys",))["keys"])


def _adapter_measurement(folder: Path, block: int | None) -> Measurement:
    measured, (shard, count) = load_measurement(folder / "stats")
    if count > 1:
        raise UserError(f"compare: '{folder}' contains only shard {shard + 1} of {count}; compare complete runs, measured without shard=")
    if ADAPTER not in measured.variants:
        raise UserError(
            f"compare: '{folder}' has measured no adapter; to compare recipes, give runs of {program('train')}, or of "
            f"{program('analyze')} with adapter="
        )
    refuse_blocks_without_places(measured, block, str(folder))
    return measured


def _basis(measured: Measurement, block: int | None) -> dict[str, Any]:
    """Everything that must be equal for adapters to be comparable; if blocks are resampled, also which sentences are neighbours."""
    some = next(iter(measured.stats.values()))
    own = {"adapter", "batch_tokens", "sae_set", "variant", "language"}
    header = {key: value for key, value in some.header.items() if key not in own and not is_random(key.removeprefix("sae/"))}
    sae_sets = tuple(sae_set for sae_set in measured.sae_sets if not is_random(sae_set))
    named = {"languages": measured.languages, "sentence ids": some.sentence_ids, "documents": some.documents, "layers": some.layers}
    named |= {} if block is None else {"places of the sentences in the source": some.rows}
    return named | {"sets of SAEs": sae_sets} | header


def refuse_other_basis(one: tuple[Path, Mapping[str, Any]], other: tuple[Path, Mapping[str, Any]]) -> None:
    """Refuse two adapters that are not comparable.

    Raises:
        UserError: the message lists the differences.
    """
    differing = [key for key in dict.fromkeys([*one[1], *other[1]]) if one[1].get(key) != other[1].get(key)]
    if differing:
        raise UserError(
            f"compare: '{one[0]}' and '{other[0]}' differ in {', '.join(differing)}; recipes are compared on one base model, measured on the same "
            "sentences, languages and layers by the same SAEs"
        )
