"""From raw statistics to tidy tables: one row per observation, with n, estimate and interval. Pure functions.

Uncertainty is a paired bootstrap over sentence ids: a resample draws the same sentences for every language. All arrays carry a
leading axis `draw`, whose row 0 is the sample itself and whose other rows are the resamples; a formula is written once for both.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from jaxtyping import Float, Num

from lingact.config import LanguagesConfig, Statistics
from lingact.errors import UserError
from lingact.measure import ADAPTER, BASE, NORM_MATCHED, Measurement
from lingact.stats import FeatureStats

Stats = dict[str, FeatureStats]
"""Language -> statistics of one meter and variant."""
Draws = Float[np.ndarray, "draw layer"]
Values = np.ndarray | np.floating
"""One number per layer, or one alone."""


def check_enough(count: int) -> None:
    """Refuse what has no interval; workflows ask before they measure.

    Raises:
        UserError: fewer than two sentences, which carry no information on their own spread.
    """
    if count < 2:
        raise UserError(f"{count} sentence is too few for an interval; give at least two sentences in the split")


def sentence_weights(count: int, resamples: int, seed: int) -> Float[np.ndarray, "draw sentence"]:
    """How often each sentence counts: once in row 0, as drawn with replacement in the others.

    Raises:
        UserError: fewer than two sentences, which carry no information on their own spread.
    """
    check_enough(count)
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)
    return np.concatenate([np.ones((1, count)), drawn])


def activation(stats: FeatureStats, weights: Float[np.ndarray, "draw sentence"], pooling: Literal["token", "sentence"]) -> Draws:
    """A(l, L): over all kept tokens, or the mean over sentences of the mean within each (design section 7)."""
    if pooling == "token":
        return (weights @ stats.activation.T) / (weights @ stats.tokens)[:, None]
    return (weights @ (stats.activation / stats.tokens).T) / weights.sum(axis=1, keepdims=True)


def fvu(stats: FeatureStats, weights: Float[np.ndarray, "draw sentence"]) -> Draws:
    """Fraction of variance unexplained, centred on the language's mean residual, which resamples keep at its estimate."""
    tokens = weights @ stats.tokens
    centre = np.square(stats.residual / stats.tokens.sum()).sum(axis=1)
    return (weights @ stats.error.T) / (weights @ stats.square.T - tokens[:, None] * centre)


def per_token(total: Num[np.ndarray, "layer sentence"], stats: FeatureStats, weights: Float[np.ndarray, "draw sentence"]) -> Draws:
    """A sum over tokens, such as L0 or the residual norm, divided by the number of kept tokens."""
    return (weights @ total.T) / (weights @ stats.tokens)[:, None]


def interval(draws: Float[np.ndarray, "draw ..."], confidence: float) -> tuple[Values, Values, Values]:
    """Estimate and percentile interval (low, high) along the draws."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(draws[1:], [tail, 1 - tail], axis=0)
    return draws[0], low, high


def named_ranges(layers: tuple[int, ...], settings: Statistics) -> dict[str, list[int]]:
    """Range name -> rows of the measured layers: early, deep, all.

    Raises:
        UserError: a configured range has no measured layer.
    """
    third = max(1, round(len(layers) / 3))
    ranges = {"early": list(range(third)), "deep": list(range(len(layers) - third, len(layers))), "all": list(range(len(layers)))}
    for name, chosen in (("early", settings.early), ("deep", settings.deep)):
        if chosen != "third":
            ranges[name] = [row for row, layer in enumerate(layers) if layer in chosen]
            if not ranges[name]:
                raise UserError(f"statistics.{name}: none of the layers {list(chosen)} is measured; measured are {list(layers)}")
    return ranges


@dataclass(frozen=True)
class Disparities:
    """Gaps of every language and group as draws, ready for tables and figures."""

    layers: tuple[int, ...]
    ranges: dict[str, list[int]]
    activations: dict[str, Draws]
    gaps: dict[str, Draws]
    """Language, or group: `low` and `high` against the reference, `low_vs_high`."""
    sentences: int
    confidence: float


def disparities(stats: Stats, languages: LanguagesConfig, settings: Statistics, seed: int) -> Disparities:
    """Gap of each language and group: `1 - A(L) / A(reference)`; positive means the language falls short."""
    reference = stats[languages.reference]
    weights = sentence_weights(len(reference.sentence_ids), settings.resamples, seed)
    activations = {code: activation(s, weights, settings.pooling) for code, s in stats.items()}
    base = activations[languages.reference]
    groups = {
        name: np.mean([activations[code] for code in codes], axis=0) for name, codes in (("low", languages.low), ("high", languages.high)) if codes
    }
    gaps = {code: 1 - activations[code] / base for code in stats if code != languages.reference}
    gaps |= {name: 1 - group / base for name, group in groups.items()}
    if len(groups) == 2:
        gaps["low_vs_high"] = 1 - groups["low"] / groups["high"]
    layers = reference.layers
    return Disparities(layers, named_ranges(layers, settings), activations, gaps, len(reference.sentence_ids), settings.confidence)


def layer_table(found: Disparities) -> pd.DataFrame:
    """One row per language or group and layer."""
    frames = []
    for name, draws in found.gaps.items():
        gap, low, high = interval(draws, found.confidence)
        own = found.activations[name][0] if name in found.activations else np.full(len(found.layers), np.nan)
        frames.append(pd.DataFrame({"name": name, "layer": found.layers, "n": found.sentences, "activation": own, "gap": gap, "lo": low, "hi": high}))
    return pd.concat(frames, ignore_index=True)


def range_table(found: Disparities) -> pd.DataFrame:
    """One row per language or group and range of layers: mean of the per-layer gaps, and their maximum."""
    rows = []
    for name, draws in found.gaps.items():
        for label, members in found.ranges.items():
            for statistic, reduce in (("mean", np.mean), ("max", np.max)):
                gap, low, high = interval(reduce(draws[:, members], axis=1), found.confidence)
                rows.append({"name": name, "range": label, "statistic": statistic, "n": found.sentences, "gap": gap, "lo": low, "hi": high})
    return pd.DataFrame(rows)


def gap_summary(found: Disparities) -> dict[str, float]:
    """`gap/<name>/<layer>`, `gap/<name>/<range>` (mean) and `gap/<name>/<range>_max`."""
    summary = {f"gap/{name}/{layer}": float(draws[0, row]) for name, draws in found.gaps.items() for row, layer in enumerate(found.layers)}
    for row in range_table(found).to_dict("records"):
        summary[f"gap/{row['name']}/{row['range']}" + ("_max" if row["statistic"] == "max" else "")] = float(row["gap"])
    return summary


_DERIVED: dict[str, Callable[[FeatureStats, np.ndarray], Draws]] = {
    "fvu": fvu,
    "l0": lambda stats, weights: per_token(stats.l0, stats, weights),
    "residual_norm": lambda stats, weights: per_token(stats.norm, stats, weights),
}


def confound_table(stats: Stats, settings: Statistics, seed: int) -> pd.DataFrame:
    """What else differs: tokens and bytes per sentence, and per layer FVU, L0 and residual norm. One row per language, layer and quantity."""
    count = len(next(iter(stats.values())).sentence_ids)
    weights = sentence_weights(count, settings.resamples, seed)
    rows = []
    for code, s in stats.items():
        per_sentence = {"tokens_per_sentence": s.tokens, "bytes_per_sentence": s.bytes, "windows_per_sentence": s.windows}
        for quantity, values in per_sentence.items():
            estimate, low, high = interval(weights @ values / count, settings.confidence)
            rows.append({"language": code, "layer": None, "quantity": quantity, "n": count, "estimate": estimate, "lo": low, "hi": high})
        for quantity, derive in _DERIVED.items():
            for layer, estimate, low, high in zip(s.layers, *interval(derive(s, weights), settings.confidence), strict=True):  # pyrefly: ignore[no-matching-overload]
                rows.append({"language": code, "layer": layer, "quantity": quantity, "n": count, "estimate": estimate, "lo": low, "hi": high})
    return pd.DataFrame(rows).astype({"layer": "Int64"})


def gap_closed(before: Draws, after: Draws, rows: Sequence[int]) -> Float[np.ndarray, " draw"]:
    """`1 - sum_l |g_after| / sum_l |g_before|` over the given layers; nan where there are none."""
    if not rows:
        return np.full(len(before), np.nan)
    return 1 - np.abs(after[:, rows]).sum(axis=1) / np.abs(before[:, rows]).sum(axis=1)


def overshoot(before: Draws, after: Draws) -> Draws:
    """Per layer, the part of the gap after training that lies beyond zero, seen from where it was before."""
    return np.maximum(0, -np.sign(before[:1]) * after)


@dataclass(frozen=True)
class Change:
    """What an adapter did to one language under one meter, as draws."""

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


def change(
    measured: Measurement, meter: str, code: str, languages: LanguagesConfig, settings: Statistics, loss_layers: tuple[int, ...], seed: int
) -> Change:
    """Gaps before and after, both against the reference language under the base model, which stays frozen."""
    base, adapter, matched = (measured.of(meter, variant) for variant in (BASE, ADAPTER, NORM_MATCHED))
    weights = sentence_weights(len(base[code].sentence_ids), settings.resamples, seed)
    reference = activation(base[languages.reference], weights, settings.pooling)
    own, raised, rescaled = (activation(variant[code], weights, settings.pooling) for variant in (base, adapter, matched))
    before, after, after_matched = (1 - a / reference for a in (own, raised, rescaled))
    low, high = (np.atleast_1d(bound) for bound in interval(before, settings.confidence)[1:])
    counted = tuple(row for row, layer in enumerate(base[code].layers) if layer in loss_layers and (low[row] > 0 or high[row] < 0))
    return Change(
        before=before,
        after=after,
        after_norm_matched=after_matched,
        gain=raised / own - 1,
        closed=gap_closed(before, after, counted),
        closed_norm_matched=gap_closed(before, after_matched, counted),
        overshoot=overshoot(before, after),
        fvu_before=fvu(base[code], weights),
        fvu_after=fvu(adapter[code], weights),
        l0_before=per_token(base[code].l0, base[code], weights),
        l0_after=per_token(adapter[code].l0, adapter[code], weights),
        norm_before=per_token(base[code].norm, base[code], weights),
        norm_after=per_token(adapter[code].norm, adapter[code], weights),
        counted=counted,
    )


_GAPS = {"gap_before": "before", "gap_after": "after", "gap_after_norm_matched": "after_norm_matched"}
_PER_LAYER = _GAPS | {name: name for name in ("gain", "overshoot", "fvu_before", "fvu_after", "l0_before", "l0_after", "norm_before", "norm_after")}
_OVERALL = {"gap_closed": "closed", "gap_closed_norm_matched": "closed_norm_matched"}


def change_table(changes: dict[str, Change], layers: tuple[int, ...], sentences: int, meter: str, confidence: float) -> pd.DataFrame:
    """One row per language, layer and quantity."""
    rows = []
    for code, found in changes.items():
        for quantity, attribute in _PER_LAYER.items():
            for layer, estimate, low, high in zip(layers, *interval(getattr(found, attribute), confidence), strict=True):  # pyrefly: ignore[no-matching-overload]
                rows.append(
                    {
                        "meter": meter,
                        "language": code,
                        "layer": layer,
                        "quantity": quantity,
                        "n": sentences,
                        "estimate": estimate,
                        "lo": low,
                        "hi": high,
                    }
                )
    return pd.DataFrame(rows)


def change_range_table(changes: dict[str, Change], ranges: dict[str, list[int]], sentences: int, meter: str, confidence: float) -> pd.DataFrame:
    """One row per language, range of layers and quantity (means over the range), and the gap closed over the counted layers (range `loss`)."""
    rows = []
    for code, found in changes.items():
        cells = {(label, q): getattr(found, a)[:, members].mean(axis=1) for label, members in ranges.items() for q, a in _PER_LAYER.items()}
        cells |= {("loss", quantity): getattr(found, attribute) for quantity, attribute in _OVERALL.items()}
        for (label, quantity), draws in cells.items():
            estimate, low, high = interval(draws, confidence)
            rows.append(
                {"meter": meter, "language": code, "range": label, "quantity": quantity, "n": sentences, "estimate": estimate, "lo": low, "hi": high}
            )
    return pd.DataFrame(rows)


def change_summary(changes: dict[str, Change], targets: Sequence[str]) -> dict[str, float]:
    """`gain/<lang>`, `gap_closed/<lang>`, `overshoot/<lang>`, `norm_matched/gap_closed/<lang>`, `fvu/<lang>`: means over layers where per layer."""
    summary = {}
    for code in targets:
        found = changes[code]
        summary[f"gain/{code}"] = float(found.gain[0].mean())
        summary[f"gap_closed/{code}"] = float(found.closed[0])
        summary[f"overshoot/{code}"] = float(found.overshoot[0].mean())
        summary[f"norm_matched/gap_closed/{code}"] = float(found.closed_norm_matched[0])
        summary[f"fvu/{code}"] = float(found.fvu_after[0].mean())
        summary[f"fvu_before/{code}"] = float(found.fvu_before[0].mean())
    return summary


def retention_table(kept: dict[str, Float[np.ndarray, " draw"]], reference: str, sentences: int, meter: str, confidence: float) -> pd.DataFrame:
    """One row per retention measure of the reference language."""
    rows = []
    for quantity, draws in kept.items():
        estimate, low, high = interval(draws, confidence)
        rows.append({"meter": meter, "language": reference, "quantity": quantity, "n": sentences, "estimate": estimate, "lo": low, "hi": high})
    return pd.DataFrame(rows)


def retention(measured: Measurement, meter: str, reference: str, settings: Statistics, seed: int) -> dict[str, Float[np.ndarray, " draw"]]:
    """How the reference language fared, four readings (design section 7); the profile cosine is a point estimate, its draws are equal.

    `activation`: A_after / A_base, mean over layers. `profile`: cosine of the mean feature profiles, mean over layers.
    `bits_per_byte`: after over base, 1 is unchanged, more is worse. `kl`: KL(base || adapter) in nats per predicted token.
    """
    base, adapter = measured.of(meter, BASE)[reference], measured.of(meter, ADAPTER)[reference]
    weights = sentence_weights(len(base.sentence_ids), settings.resamples, seed)
    cosines = [float(b @ a / (np.linalg.norm(b) * np.linalg.norm(a))) for b, a in zip(base.profile, adapter.profile, strict=True)]
    found = {
        "activation": (activation(adapter, weights, settings.pooling) / activation(base, weights, settings.pooling)).mean(axis=1),
        "profile": np.full(len(weights), np.mean(cosines)),
    }
    if adapter.nll is not None and base.nll is not None:
        found["bits_per_byte"] = (weights @ adapter.nll) / (weights @ base.nll)
        found["kl"] = (weights @ adapter.kl) / (weights @ adapter.predicted)
    return found


def bits_table(measured: Measurement, meter: str, settings: Statistics, seed: int) -> pd.DataFrame:
    """Bits per byte (comparable within a language only) and per aligned sentence (between languages too), for every variant measured."""
    rows = []
    for (found_meter, variant, code), s in measured.stats.items():
        if found_meter != meter or s.nll is None:
            continue
        weights = sentence_weights(len(s.sentence_ids), settings.resamples, seed)
        bits = weights @ s.nll / np.log(2)
        for quantity, draws in (("bits_per_byte", bits / (weights @ s.bytes)), ("bits_per_sentence", bits / len(s.sentence_ids))):
            estimate, low, high = interval(draws, settings.confidence)
            rows.append(
                {"language": code, "variant": variant, "quantity": quantity, "n": len(s.sentence_ids), "estimate": estimate, "lo": low, "hi": high}
            )
    return pd.DataFrame(rows)
