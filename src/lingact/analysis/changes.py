"""The effect of an adapter on every language, and how well the reference language is preserved. Pure functions of statistics."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float

from lingact.activations.measurement import ADAPTER, BASE, NORM_MATCHED, Measurement
from lingact.analysis.measures import Draws, StatsByLanguage, quotient, value
from lingact.analysis.tables import named_ranges
from lingact.config.data import LanguagesConfig
from lingact.config.measures import Statistics
from lingact.statistics.bootstrap import Resampling, interval


@dataclass(frozen=True)
class Variants:
    """The same sentences under two models, language by language."""

    base: StatsByLanguage
    adapter: StatsByLanguage
    norm_matched: StatsByLanguage | None
    """The adapted model with each residual rescaled to the base model's norm on that token. None: not measured, so that results from it are nan."""

    @classmethod
    def of(cls, measured: Measurement, sae_set: str) -> "Variants":
        """The statistics of base and adapter by one set of SAEs."""
        return cls(*(measured.of(sae_set, variant) for variant in (BASE, ADAPTER, NORM_MATCHED)))


def gap_closed(before: Draws, after: Draws, rows: Sequence[int]) -> Float[np.ndarray, " draw"]:
    """`1 - sum_l |g_after| / sum_l |g_before|` over the given layers; nan if there are none.

    In the resamples each gap counts with the sign that it has in the sample. Otherwise resampling alone would increase the size of a gap near zero,
    and the interval would lie below the estimate. If a gap is fully closed, the interval is still too narrow, because the estimate cannot exceed 1:
    it contained the true value in about 70 % of simulated corpora, and in 96 % if .93 of the gap was closed.
    """
    if not rows:
        return np.full(len(before), np.nan)

    def size(gaps: Draws) -> Float[np.ndarray, " draw"]:
        return (np.sign(gaps[:1, rows]) * gaps[:, rows]).sum(axis=1)

    return 1 - size(after) / size(before)


def overshoot(before: Draws, after: Draws) -> Draws:
    """Per layer, the part of the gap after training that lies on the other side of zero than the gap before."""
    return np.maximum(0, -np.sign(before[:1]) * after)


@dataclass(frozen=True)
class Change:
    """What an adapter did to one language under one SAE set, as draws."""

    before: Draws
    after: Draws
    after_norm_matched: Draws
    gain: Draws
    closed: Float[np.ndarray, " draw"]
    closed_norm_matched: Float[np.ndarray, " draw"]
    overshoot: Draws
    fvu_before: Draws
    fvu_after: Draws
    l0_before: Draws
    l0_after: Draws
    norm_before: Draws
    norm_after: Draws
    counted: tuple[int, ...]
    """Rows of the layers of the loss whose gap before training excludes 0."""

    @property
    def fvu_ratio(self) -> Draws:
        """After over base; far above 1, the SAEs no longer fit the residuals."""
        return quotient(self.fvu_after, self.fvu_before)

    @property
    def l0_ratio(self) -> Draws:
        """After over base."""
        return quotient(self.l0_after, self.l0_before)


def change(variants: Variants, code: str, languages: LanguagesConfig, settings: Statistics, loss_layers: tuple[int, ...], seed: int) -> Change:
    """Gaps before and after, both against the reference language under the base model, which stays frozen."""
    base, adapter, matched = variants.base, variants.adapter, variants.norm_matched
    resampling = base[code].resampling(settings.block)
    weights = resampling.weights(settings.resamples, seed)
    reference = value(base[languages.reference], "mean", weights, settings.pooling)
    own, raised = (value(stats[code], "mean", weights, settings.pooling) for stats in (base, adapter))
    rescaled = value(matched[code], "mean", weights, settings.pooling) if matched is not None else np.full_like(own, np.nan)
    before, after, after_matched = (1 - a / reference for a in (own, raised, rescaled))
    low, high = (np.atleast_1d(bound) for bound in interval(before, settings.confidence, resampling.clusters)[1:])
    in_loss = [row for row, layer in enumerate(base[code].layers) if layer in loss_layers]
    # If a layer of the loss is undefined, the gap closed over the others would be another quantity.
    lost, lost_matched = (bool(np.isnan(draws[0, in_loss]).any()) for draws in (before - after, before - after_matched))
    counted = tuple(row for row, layer in enumerate(base[code].layers) if layer in loss_layers and (low[row] > 0 or high[row] < 0))
    return Change(
        before=before,
        after=after,
        after_norm_matched=after_matched,
        gain=raised / own - 1,
        closed=gap_closed(before, after, () if lost else counted),
        closed_norm_matched=gap_closed(before, after_matched, () if lost_matched else counted),
        overshoot=overshoot(before, after),
        fvu_before=value(base[code], "fvu", weights, "token"),
        fvu_after=value(adapter[code], "fvu", weights, "token"),
        l0_before=value(base[code], "l0", weights, "token"),
        l0_after=value(adapter[code], "l0", weights, "token"),
        norm_before=value(base[code], "residual_norm", weights, "token"),
        norm_after=value(adapter[code], "residual_norm", weights, "token"),
        counted=counted,
    )


_GAPS = {"gap_before": "before", "gap_after": "after", "gap_after_norm_matched": "after_norm_matched"}
_BEFORE_AND_AFTER = [f"{quantity}_{when}" for quantity in ("fvu", "l0", "norm") for when in ("before", "after")]
_PER_LAYER = _GAPS | {name: name for name in ("gain", "overshoot", *_BEFORE_AND_AFTER, "fvu_ratio", "l0_ratio")}
_OVERALL = {"gap_closed": "closed", "gap_closed_norm_matched": "closed_norm_matched"}


def change_table(changes: dict[str, Change], layers: tuple[int, ...], resampling: Resampling, sae_set: str, confidence: float) -> pd.DataFrame:
    """One row per language, layer and quantity."""
    rows = []
    for code, found in changes.items():
        for quantity, attribute in _PER_LAYER.items():
            bounds = interval(getattr(found, attribute), confidence, resampling.clusters)
            for layer, estimate, low, high in zip(layers, *bounds, strict=True):  # pyrefly: ignore[no-matching-overload]
                row = {"sae_set": sae_set, "language": code, "layer": layer, "quantity": quantity} | resampling.columns
                rows.append(row | {"estimate": estimate, "lo": low, "hi": high})
    return pd.DataFrame(rows)


def change_range_table(
    changes: dict[str, Change], ranges: dict[str, list[int]], resampling: Resampling, sae_set: str, confidence: float
) -> pd.DataFrame:
    """One row per language, range of layers and quantity (means over the range), and the gap closed over the counted layers (range `loss`)."""
    rows = []
    for code, found in changes.items():
        cells = {(label, q): getattr(found, a)[:, members].mean(axis=1) for label, members in ranges.items() for q, a in _PER_LAYER.items()}
        cells |= {("loss", quantity): getattr(found, attribute) for quantity, attribute in _OVERALL.items()}
        for (label, quantity), draws in cells.items():
            estimate, low, high = interval(draws, confidence, resampling.clusters)
            row = {"sae_set": sae_set, "language": code, "range": label, "quantity": quantity} | resampling.columns
            rows.append(row | {"estimate": estimate, "lo": low, "hi": high})
    return pd.DataFrame(rows)


def change_summary(changes: dict[str, Change], targets: Sequence[str]) -> dict[str, float]:
    """Summary numbers of the targets; quantities of single layers are averaged over layers."""
    summary = {}
    for code in targets:
        found = changes[code]
        summary[f"gain/{code}"] = float(found.gain[0].mean())
        summary[f"gap_closed/{code}"] = float(found.closed[0])
        summary[f"overshoot/{code}"] = float(found.overshoot[0].mean())
        summary[f"norm_matched/gap_closed/{code}"] = float(found.closed_norm_matched[0])
        summary[f"fvu/{code}"] = float(found.fvu_after[0].mean())
        summary[f"fvu_before/{code}"] = float(found.fvu_before[0].mean())
        summary[f"fvu_ratio/{code}"] = float(found.fvu_ratio[0].mean())
        summary[f"l0_ratio/{code}"] = float(found.l0_ratio[0].mean())
    return summary


def retention_table(
    kept: dict[str, Float[np.ndarray, " draw"]], reference: str, resampling: Resampling, sae_set: str, confidence: float
) -> pd.DataFrame:
    """One row per retention measure of the reference language."""
    rows = []
    for quantity, draws in kept.items():
        estimate, low, high = interval(draws, confidence, resampling.clusters)
        row = {"sae_set": sae_set, "language": reference, "quantity": quantity} | resampling.columns
        rows.append(row | {"estimate": estimate, "lo": low, "hi": high})
    return pd.DataFrame(rows)


def retention(variants: Variants, reference: str, settings: Statistics, seed: int) -> dict[str, Float[np.ndarray, " draw"]]:
    """How well the reference language is preserved, by several measures.

    `activation`: A_after / A_base, mean over layers, where changes of opposite sign cancel; `activation_worst_layer`: the largest
    `|A_after / A_base - 1|` of any layer. `profile`: cosine of the mean feature profiles, mean over layers; profiles are not stored by
    sentence, so they cannot be resampled, and all draws but the first are nan.
    `bits_per_byte`: after over base; 1 is unchanged, more is worse. `kl`: KL(base || adapter) in nats per predicted token.
    """
    base, adapter = variants.base[reference], variants.adapter[reference]
    weights = base.resampling(settings.block).weights(settings.resamples, seed)
    profiles = [(b.sum(axis=0), a.sum(axis=0)) for b, a in zip(base.profile, adapter.profile, strict=True)]
    cosines = [float(b @ a / (np.linalg.norm(b) * np.linalg.norm(a))) for b, a in profiles]
    ratios = value(adapter, "mean", weights, settings.pooling) / value(base, "mean", weights, settings.pooling)
    found = {
        "activation": ratios.mean(axis=1),
        "activation_worst_layer": np.abs(ratios - 1).max(axis=1),
        "profile": np.array([np.mean(cosines), *[np.nan] * settings.resamples]),
    }
    if adapter.nll is not None and base.nll is not None:
        found["bits_per_byte"] = (weights @ adapter.nll) / (weights @ base.nll)
    if adapter.kl is not None:
        found["kl"] = (weights @ adapter.kl) / (weights @ adapter.predicted)
    return found


OVER_BASE = "adapter_over_base"
"""Value of the column `variant` for the ratio of the two, resampled together."""


def change_bits_table(measured: Measurement, sae_set: str, settings: Statistics, seed: int) -> pd.DataFrame:
    """Bits per byte (comparable within a language only) and per aligned sentence (also comparable between languages), for every measured variant.

    If an adapter was measured, also its bits over the base model's (`OVER_BASE`), which is the same per byte and per sentence; 1 is unchanged.
    """
    rows = []
    for code in measured.languages:
        spoken = {variant: by_code[code] for variant in (BASE, ADAPTER) if code in (by_code := measured.of(sae_set, variant))}
        totals = {variant: s.nll / np.log(2) for variant, s in spoken.items() if s.nll is not None}
        if not totals:
            continue
        text = spoken[BASE]
        resampling = text.resampling(settings.block)
        weights = resampling.weights(settings.resamples, seed)
        bits = {variant: weights @ total for variant, total in totals.items()}
        cells = {(variant, "bits_per_byte"): draws / (weights @ text.bytes) for variant, draws in bits.items()}
        cells |= {(variant, "bits_per_sentence"): draws / weights.sum(axis=1) for variant, draws in bits.items()}
        if ADAPTER in bits:
            cells[OVER_BASE, "bits_per_byte"] = bits[ADAPTER] / bits[BASE]
        for (variant, quantity), draws in cells.items():
            estimate, low, high = interval(draws, settings.confidence, resampling.clusters)
            row = {"language": code, "variant": variant, "quantity": quantity} | resampling.columns
            rows.append(row | {"estimate": estimate, "lo": low, "hi": high})
    return pd.DataFrame(rows)


def bits_summary(bits: pd.DataFrame, codes: Sequence[str]) -> dict[str, float]:
    """`bits_per_byte/<lang>`: the adapter's over the base model's."""
    ratios = bits[bits["variant"] == OVER_BASE].set_index("language")["estimate"]
    return {f"bits_per_byte/{code}": float(ratios[code]) for code in codes}


def change_frames(
    by_sae_set: Mapping[str, Variants],
    languages: LanguagesConfig,
    settings: Statistics,
    loss_layers: tuple[int, ...],
    targets: Sequence[str],
    *,
    seed: int,
) -> tuple[dict[str, pd.DataFrame], dict[str, float]]:
    """Tidy tables of a change by every SAE set, and the targets' summary numbers. Summary keys of later SAE sets start with the set's name."""
    reference, summary = languages.reference, {}
    by_layer, by_range, kept_rows = [], [], []
    for place, (sae_set, variants) in enumerate(by_sae_set.items()):
        first = variants.base[reference]
        resampling, ranges = first.resampling(settings.block), named_ranges(first.layers, settings)
        found = {code: change(variants, code, languages, settings, loss_layers, seed) for code in variants.base}
        by_layer.append(change_table(found, first.layers, resampling, sae_set, settings.confidence))
        by_range.append(change_range_table(found, ranges, resampling, sae_set, settings.confidence))
        kept = retention(variants, reference, settings, seed)
        kept_rows.append(retention_table(kept, reference, resampling, sae_set, settings.confidence))
        numbers = change_summary(found, targets) | {f"retention/{name}": float(draws[0]) for name, draws in kept.items()}
        summary |= {key if place == 0 else f"{sae_set}/{key}": number for key, number in numbers.items()}
    frames = {"change_by_layer": by_layer, "change_by_range": by_range, "retention": kept_rows}
    return {name: pd.concat(parts, ignore_index=True) for name, parts in frames.items()}, summary
