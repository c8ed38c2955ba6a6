"""Bits per byte on held-out text: a second measure of what an adapter does to a language, finer than accuracy."""

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from lingact.activations.feature_stats import settled
from lingact.data.corpus import ParallelCorpus
from lingact.data.tokens import TokenBatch
from lingact.models.finite import beyond
from lingact.models.lm import LanguageModel
from lingact.runtime.resumable_passes import resumable, token_bar
from lingact.statistics.bootstrap import benjamini_hochberg, holm, interval, p_value
from lingact.statistics.paired import TestSettings, crossed_effects, minimum_detectable_effect

Nats = dict[str, Float[np.ndarray, " sentence"]]
"""Language -> cross-entropy of each sentence in nats."""


@torch.no_grad()
def sentence_nats(lm: LanguageModel, corpus: ParallelCorpus, *, batch_tokens: int, title: str) -> Nats:
    """Cross-entropy of every sentence, summed over its tokens, with the model as it is: adapter on or off.

    Args:
        lm: the model.
        corpus: the text.
        batch_tokens: tokens per forward pass.
        title: of the progress bar.
    """
    found: Nats = {code: np.zeros(len(texts)) for code, texts in corpus.texts.items()}

    def add(code: str, batch: TokenBatch) -> None:
        _, predictions = lm.residuals(batch, (), predict=True)
        assert predictions is not None
        np.add.at(found[code], batch.predicted_sentence.numpy(), settled(predictions.nll().double().cpu().numpy()))

    with token_bar(sum(lm.tokens.count(texts) for texts in corpus.texts.values()), title) as bar:
        for code, texts in corpus.texts.items():
            bar.set_postfix_str(code)
            steps = list(lm.tokens.batches(lm.tokens.windows(texts), batch_tokens))
            resumable(None, {}, {"nats": found[code]}, steps, partial(add, code), tokens=TokenBatch.size, bar=bar)
    return found


def lost_nats(nats: Mapping[str, Nats], dtype: str) -> str:
    """A sentence that names the models and languages whose cross-entropies are not finite; empty if all are finite.

    Args:
        nats: model -> its cross-entropies.
        dtype: of the model.
    """
    places = [
        f"{name} in {code} ({int(wrong.sum())} of {len(wrong)} sentences)"
        for name, own in nats.items()
        for code, values in own.items()
        if (wrong := ~np.isfinite(values)).any()
    ]
    return (
        f"the cross-entropies of {'; '.join(places)} are not finite in {dtype}, so their bits per byte are shown as '-'. Most likely {beyond(dtype)}"
        if places
        else ""
    )


def bits_table(
    base: Nats, adapters: Sequence[Nats], corpus: ParallelCorpus, groups: Mapping[str, Sequence[str]], settings: TestSettings
) -> pd.DataFrame:
    """Bits per byte of base model and adapter on the same sentences, and their ratio, adapter over base (1: unchanged; lower is better).

    Bits per byte can be compared within a language only, the ratio also between languages. The ratio of a group is the mean over its languages for
    the same resamples of the text, so that what the languages share is counted once.

    With one seed, intervals come from a paired bootstrap over documents, blocks or sentences (`Resampling`), and p from its standard error. They hold
    for this adapter. With several seeds, both come from crossed random effects of seeds and these units on the linearised ratio. They hold for the
    recipe.

    Args:
        base: cross-entropies of the base model.
        adapters: cross-entropies of the adapters, one for each training seed of a recipe.
        corpus: the text.
        groups: name -> languages.
        settings: of intervals and tests.

    Returns:
        One row per language and group: n (sentences), resampled (documents, blocks or sentences), units (number of these), seeds, base, adapter
        (bits per byte), estimate (ratio), lo, hi, seed_lo, seed_hi (range of the seeds' ratios), mde (change of the ratio), p (against a ratio of
        1), p_holm, p_bh.
    """
    sizes = {code: sum(len(text.encode()) for text in texts) for code, texts in corpus.texts.items()}
    resampling = corpus.resampling(settings.block)
    linear = {code: np.stack([_linearised(resampling.totals(nats[code]), resampling.totals(base[code])) for nats in adapters]) for code in base}
    weights = resampling.weights(settings.resamples, settings.seed)
    ratios = {code: (weights @ adapters[0][code]) / (weights @ base[code]) for code in base}
    places = {code: (code,) for code in base} | {
        name: members for name, codes in groups.items() if len(members := [code for code in codes if code in base]) > 1
    }
    rows = []
    for name, members in places.items():
        values = np.mean([linear[code] for code in members], axis=0)
        if len(adapters) == 1:
            draws = np.mean([ratios[code] for code in members], axis=0)
            estimate, low, high = interval(draws, settings.confidence, resampling.clusters)
            p, error, freedom = float(p_value(draws - 1, resampling.clusters)), float(draws[1:].std(ddof=1)), None
            if resampling.clusters is not None:  # as in `p_value`
                error, freedom = error * (resampling.clusters / (resampling.clusters - 1)) ** 0.5, resampling.clusters - 1.0
        else:
            crossed = crossed_effects(values - 1, confidence=settings.confidence)
            estimate, low, high = (1 + part for part in (crossed.estimate.value, crossed.estimate.lo, crossed.estimate.hi))
            p, error, freedom = crossed.p, crossed.standard_error, crossed.freedom
        alone = members[0] if len(members) == 1 else None
        per_byte = np.log(2) * sizes[alone] if alone else np.nan
        rows.append(
            {"language": name, "languages": len(members)}
            | resampling.columns
            | {"seeds": len(adapters)}
            | {"base": base[alone].sum() / per_byte if alone else np.nan}
            | {"adapter": float(np.mean([nats[alone].sum() for nats in adapters])) / per_byte if alone else np.nan}
            | {"estimate": estimate, "lo": low, "hi": high, "seed_lo": values.mean(axis=1).min(), "seed_hi": values.mean(axis=1).max()}
            | {"mde": minimum_detectable_effect(error, confidence=settings.confidence, power=settings.power, freedom=freedom), "p": p}
        )
    return corrected(pd.DataFrame(rows))


def _linearised(after: Float[np.ndarray, " unit"], before: Float[np.ndarray, " unit"]) -> Float[np.ndarray, " unit"]:
    """One value per unit: their mean is the ratio of the sums, and their spread is that of the ratio to first order (delta method)."""
    ratio = after.sum() / before.sum()
    return ratio + (after - ratio * before) / before.mean()


def corrected(table: pd.DataFrame) -> pd.DataFrame:
    """The table with p_holm and p_bh, corrected over all single languages and, separately, over all groups."""
    family = table.groupby(table["languages"] == 1)["p"]
    return table.assign(p_holm=family.transform(lambda p: holm(p.to_numpy())), p_bh=family.transform(lambda p: benjamini_hochberg(p.to_numpy())))


def base_bits(base: Nats, corpus: ParallelCorpus, settings: TestSettings) -> pd.DataFrame:
    """Bits per byte of the base model, and bits per aligned sentence, which can be compared between languages."""
    resampling = corpus.resampling(settings.block)
    weights = resampling.weights(settings.resamples, settings.seed)
    rows = []
    for code, nats in base.items():
        bits = weights @ nats / np.log(2)
        sizes = np.array([len(text.encode()) for text in corpus.texts[code]], float)
        for quantity, draws in (("bits_per_byte", bits / (weights @ sizes)), ("bits_per_sentence", bits / weights.sum(axis=1))):
            estimate, low, high = interval(draws, settings.confidence, resampling.clusters)
            rows.append({"language": code, "quantity": quantity} | resampling.columns | {"estimate": estimate, "lo": low, "hi": high})
    return pd.DataFrame(rows)
