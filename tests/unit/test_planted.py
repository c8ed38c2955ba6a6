"""Where the truth is known: a model built to have given gaps, and simulated corpora on which intervals must hold it as often as they say.

The seed was fixed before the first run.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binom

from lingact.activations.feature_stats import FeatureStats
from lingact.activations.measurement import BASE
from lingact.activations.passes import measure
from lingact.analysis.measures import Pooling, Ratio, pooled
from lingact.analysis.tables import disparities, layer_table, shuffled_table
from lingact.config.data import LanguagesConfig
from lingact.config.measures import Statistics
from lingact.data.corpus import ParallelCorpus
from lingact.models.lm import LanguageModel
from lingact.models.sae import Dictionary
from lingact.statistics.bootstrap import Resampling, interval, simultaneous_band
from tests.helpers.sums import stats_of

SEED = 20261122
SETTINGS = Statistics(pooling="token", resamples=2000, confidence=0.95, early="third", deep="third", block=None)
LANGUAGES = LanguagesConfig(reference="en", high=("es",), low=("hi", "ml"))

# --- a model with planted gaps -------------------------------------------------------------------------------------------------------------------

# Each language writes in eight letters of its own; letter k of a language has a direction of its own and this magnitude in the residual.
LETTERS = {"en": "abcdefgh", "es": "ijklmnop", "hi": "qrstuvwx", "ml": "ABCDEFGH"}
MAGNITUDES = {
    "en": [1, 2, 3, 4, 5, 6, 7, 8],
    "es": [8, 1, 7, 2, 6, 3, 5, 4],  # as loud as English, in another order
    "hi": [1, 1, 1, 1, 4, 4, 4, 4],  # falls short
    "ml": [2, 2, 4, 4, 9, 9, 9, 9],  # lies above
}
TOPICS = np.array([[1, 1, 1, 1, 3, 3, 3, 3], [3, 3, 3, 3, 1, 1, 1, 1]]) / 16
"""Share of each letter in the sentences of two topics, which are equally frequent and the same for all languages."""
GAINS, THRESHOLDS, DECODER_NORMS = (1.0, 0.5, 2.0), (0.0, 1.25, 9.0), (1.0, 3.0, 0.5)
"""By layer: the SAE's latent for a letter reads gain times magnitude, and is silent up to the threshold."""


def activations(code: str) -> np.ndarray:
    """Folded activation of each letter at each layer, worked out from the plan."""
    read = np.outer(GAINS, MAGNITUDES[code])
    return read * (read > np.array(THRESHOLDS)[:, None]) * np.array(DECODER_NORMS)[:, None]


def planted_gaps(code: str) -> np.ndarray:
    shares = TOPICS.mean(axis=0)
    return 1 - (activations(code) @ shares) / (activations("en") @ shares)


@torch.no_grad()
def plant(lm: LanguageModel) -> None:
    """Blocks that add nothing to the residual, and embeddings with the planned magnitudes."""
    for name, weight in lm.model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            weight.zero_()
    embedding = lm.model.get_input_embeddings().weight
    embedding.zero_()
    scale = embedding.shape[1] ** 0.5  # Gemma multiplies embeddings by it
    for row, (code, letters) in enumerate(LETTERS.items()):
        for place, letter in enumerate(letters):
            embedding[lm.tokenizer.convert_tokens_to_ids(letter), 8 * row + place] = MAGNITUDES[code][place] / scale


@torch.no_grad()
def reading_sae(make_sae: Callable[..., Any], layer: int) -> Dictionary:
    """An SAE with one latent for each direction of the residual."""
    sae = make_sae(layer, width=32)
    sae.W_enc.copy_(GAINS[layer] * torch.eye(32))
    sae.W_dec.copy_(DECODER_NORMS[layer] * torch.eye(32))
    sae.b_enc.zero_()
    sae.b_dec.zero_()
    sae.threshold.fill_(THRESHOLDS[layer])
    return Dictionary(sae, layer)


def planned_corpus(count: int) -> tuple[ParallelCorpus, dict[str, list[np.ndarray]]]:
    """Sentences of 4 to 90 letters, some of which take two windows; and the letters' places."""
    rng = np.random.default_rng(SEED)
    topics = rng.integers(2, size=count)
    drawn = {code: [rng.choice(8, size=rng.integers(4, 91), p=TOPICS[topic]) for topic in topics] for code in LETTERS}
    texts = {code: tuple("".join(LETTERS[code][place] for place in places) for places in sentences) for code, sentences in drawn.items()}
    return ParallelCorpus("planned", tuple(f"s{i}" for i in range(count)), texts), drawn


@pytest.fixture
def planted(lm: LanguageModel, make_sae: Callable[..., Any]) -> tuple[dict[str, FeatureStats], dict[str, list[np.ndarray]]]:
    plant(lm)
    corpus, drawn = planned_corpus(250)
    saes = {layer: reading_sae(make_sae, layer) for layer in range(3)}
    return measure(lm, {"m": saes}, corpus, batch_tokens=4000, identity={}).of("m", BASE), drawn


def test_a_planted_model_is_measured_and_its_gaps_lie_in_the_bands(planted: tuple[dict[str, FeatureStats], dict[str, list[np.ndarray]]]) -> None:
    stats, drawn = planted
    for code, sentences in drawn.items():
        by_hand = np.stack([activations(code)[:, places].sum(axis=1) for places in sentences], axis=1)
        np.testing.assert_allclose(stats[code].activation, by_hand, rtol=1e-5)
        np.testing.assert_array_equal(stats[code].l0, [[(row[places] > 0).sum() for places in sentences] for row in activations(code)])
    # Sums of the magnitudes that are read: en 36, 33 (3 to 8), 26 (5 to 8); hi 20, 16, none; ml 48, 44, 36.
    assert planted_gaps("es").tolist() == [0, 0, 0]
    assert planted_gaps("hi") == pytest.approx([1 - 20 / 36, 1 - 16 / 33, 1])
    assert planted_gaps("ml") == pytest.approx([1 - 48 / 36, 1 - 44 / 33, 1 - 36 / 26])
    table = layer_table(disparities(stats, LANGUAGES, SETTINGS, SEED))
    for code in ("es", "hi", "ml"):
        rows = table[table["name"] == code]
        assert ((rows["band_lo"] - 1e-9 <= planted_gaps(code)) & (planted_gaps(code) <= rows["band_hi"] + 1e-9)).all()
        assert (rows["band_hi"] - rows["band_lo"]).max() < 0.25  # the smallest planted gap that is not 0 is a third
        assert (rows["p_holm"] > 0.05).all() if code == "es" else (rows["p_holm"] < 0.001).all()


# --- how often intervals hold the truth ----------------------------------------------------------------------------------------------------------

GAPS = np.array([0.0, 0.1, 0.3, -0.2])
"""By layer."""
RESAMPLES, TOGETHER = 1000, 100
"""Corpora that share resamples; others have their own, so that no single draw of resamples decides."""


def simulated(rng: np.random.Generator, corpora: int, sentences: int) -> tuple[Ratio, Ratio]:
    """Sums of the language and of the reference; rows are corpora times layers.

    Lengths are log-normal. The activation per token is log-normal, too, of mean 1 - gap, or 1, independent of length, and correlated between
    the languages (0.8) and between the layers (0.5); the largest of 200 is about four times the mean.
    """
    shape = (corpora, len(GAPS), sentences)
    length = rng.normal(3, 0.5, (corpora, 1, sentences))
    of_sentence, of_layer = rng.normal(size=(corpora, 1, sentences)), rng.normal(size=shape)
    heaps = []
    for mean in (1 - GAPS, np.ones(len(GAPS))):
        own = 0.5**0.5 * of_sentence + 0.3**0.5 * of_layer + 0.2**0.5 * rng.normal(size=shape)
        level = mean[:, None] * np.exp(0.5 * own - 0.5**2 / 2)
        tokens = 1 + np.floor(np.exp(length + rng.normal(0, 0.2, (corpora, 1, sentences))))
        tokens = np.broadcast_to(tokens, shape).reshape(-1, sentences)
        heaps.append(Ratio(tokens * level.reshape(-1, sentences), tokens, np.ones(sentences, bool)))
    return heaps[0], heaps[1]


def held(corpora: int, sentences: int, pooling: Pooling) -> tuple[np.ndarray, float]:
    """How often a 95 % interval holds the gap of each layer, and how often the band holds them all."""
    rng = np.random.default_rng(SEED)
    single, every = [], []
    for start in range(0, corpora, TOGETHER):
        weights = Resampling.of_sentences(sentences).weights(RESAMPLES, SEED + start)
        own, reference = (pooled(ratio, weights, pooling) for ratio in simulated(rng, TOGETHER, sentences))
        draws = (1 - own / reference).reshape(len(weights), TOGETHER, len(GAPS))
        _, low, high = interval(draws, 0.95)
        single.append((low <= GAPS) & (high >= GAPS))
        bands = np.array([simultaneous_band(draws[:, corpus], 0.95) for corpus in range(TOGETHER)])
        every.append(((bands[:, 0] <= GAPS) & (bands[:, 1] >= GAPS)).all(axis=1))
    return np.concatenate(single).mean(axis=0), float(np.concatenate(every).mean())


@pytest.mark.parametrize("pooling", ["token", "sentence"])
def test_intervals_and_bands_of_200_sentences_hold_the_truth_as_often_as_they_say(pooling: Pooling) -> None:
    single, every = held(2000, 200, pooling)
    assert ((single >= 0.93) & (single <= 0.97)).all()
    assert 0.93 <= every <= 0.97


def test_of_30_sentences_they_hold_it_a_little_less_often() -> None:
    single, every = held(2000, 30, "token")
    assert ((single >= 0.9) & (single <= 0.96)).all()
    assert 0.87 <= every <= 0.96


# --- documents -----------------------------------------------------------------------------------------------------------------------------------


def sizes_of_documents(rng: np.random.Generator, documents: int, sentences: int) -> np.ndarray:
    """Unequal sizes: of 1,997 sentences in 123 documents most have 5 to 30, as in NTREX."""
    return 1 + rng.multinomial(sentences - documents, rng.dirichlet(np.full(documents, 4.0)))


def documented(rng: np.random.Generator, corpora: int, unit: np.ndarray, shared: float) -> tuple[Ratio, Ratio]:
    """As `simulated`, with this share of each variance in what all sentences of a document have in common."""

    def normal(*shape: int) -> np.ndarray:
        own, common = rng.normal(size=(*shape, len(unit))), rng.normal(size=(*shape, unit[-1] + 1))[..., unit]
        return shared**0.5 * common + (1 - shared) ** 0.5 * own

    length, of_sentence, of_layer = rng.normal(3, 0.5, (corpora, 1, len(unit))), normal(corpora, 1), normal(corpora, len(GAPS))
    heaps = []
    for mean in (1 - GAPS, np.ones(len(GAPS))):
        own = 0.5**0.5 * of_sentence + 0.3**0.5 * of_layer + 0.2**0.5 * normal(corpora, len(GAPS))
        level = (mean[:, None] * np.exp(0.5 * own - 0.5**2 / 2)).reshape(-1, len(unit))
        tokens = 1 + np.floor(np.exp(length + rng.normal(0, 0.2, length.shape)))
        tokens = np.broadcast_to(tokens, (corpora, len(GAPS), len(unit))).reshape(-1, len(unit))
        heaps.append(Ratio(tokens * level, tokens, np.ones(len(unit), bool)))
    return heaps[0], heaps[1]


def held_by(
    drawn_of: Callable[[np.ndarray], Resampling], corpora: int, documents: int, sentences: int, *, shared: float = 0.3
) -> tuple[float, float]:
    """How often the 95 % interval of a layer's gap holds it, mean over layers, and how often the band holds them all.

    Args:
        drawn_of: from the number of each sentence's document to what is resampled.
    """
    rng, together = np.random.default_rng(SEED), TOGETHER // 2
    single, every = [], []
    for start in range(0, corpora, together):
        unit = np.repeat(np.arange(documents), sizes_of_documents(rng, documents, sentences))
        drawn = drawn_of(unit)
        weights = drawn.weights(RESAMPLES, SEED + start)
        own, reference = (pooled(ratio, weights, "token") for ratio in documented(rng, together, unit, shared))
        draws = (1 - own / reference).reshape(len(weights), together, len(GAPS))
        _, low, high = interval(draws, 0.95, drawn.clusters)
        single.append((low <= GAPS) & (high >= GAPS))
        bands = np.array([simultaneous_band(draws[:, corpus], 0.95, drawn.clusters) for corpus in range(together)])
        every.append(((bands[:, 0] <= GAPS) & (bands[:, 1] >= GAPS)).all(axis=1))
    return float(np.concatenate(single).mean()), float(np.concatenate(every).mean())


def by_documents(unit: np.ndarray) -> Resampling:
    return Resampling.of(len(unit), tuple(map(str, unit)), None, None)


def by_sentences(unit: np.ndarray) -> Resampling:
    return Resampling.of_sentences(len(unit))


def by_blocks(size: int) -> Callable[[np.ndarray], Resampling]:
    return lambda unit: Resampling.of(len(unit), None, None, size)


def test_where_sentences_share_documents_only_intervals_by_documents_hold_the_truth() -> None:
    single, every = held_by(by_documents, 600, 40, 400)
    assert 0.93 <= single <= 0.97
    assert 0.91 <= every <= 0.97
    single, every = held_by(by_sentences, 200, 40, 400)
    assert single < 0.8
    assert every < 0.6


def test_intervals_of_ten_documents_are_expanded_enough() -> None:
    single, every = held_by(by_documents, 600, 10, 100)
    assert 0.92 <= single <= 0.97
    assert 0.89 <= every <= 0.97


def test_blocks_of_neighbours_come_near_where_the_documents_are_not_known() -> None:
    single, _ = held_by(by_blocks(20), 300, 40, 400)
    assert 0.88 <= single <= 0.97


def test_independent_sentences_lose_nothing_by_documents() -> None:
    single, _ = held_by(by_documents, 600, 40, 400, shared=0.0)
    assert 0.93 <= single <= 0.97


def test_shuffled_labels_are_called_significant_as_often_as_chance_allows() -> None:
    rng = np.random.default_rng(SEED)
    languages = LanguagesConfig(reference="en", high=(), low=("hi",))
    counts = []
    for corpus in range(60):
        own, reference = simulated(rng, 1, 500)
        stats = {code: stats_of(ratio.numerator, ratio.denominator[0]) for code, ratio in (("hi", own), ("en", reference))}
        table = shuffled_table(stats, languages, SETTINGS.model_copy(update={"resamples": 1000}), SEED + corpus).set_index(["name", "scope"])
        counts.append((table.loc[("all", "mean"), "significant"], table.loc[("all", "mean"), "tests"], table.loc[("all", "layer"), "share"]))
    significant, tests, by_layer = (np.array(column) for column in zip(*counts, strict=True))
    assert binom.ppf(0.025, tests.sum(), 0.05) <= significant.sum() <= binom.ppf(0.975, tests.sum(), 0.05)
    assert 0.03 <= by_layer.mean() <= 0.07


def test_shuffled_labels_of_documents_are_called_significant_as_often_as_chance_allows() -> None:
    """Swapped by documents and drawn by sentences, 27 % of the intervals exclude 0."""
    rng = np.random.default_rng(SEED)
    languages = LanguagesConfig(reference="en", high=(), low=("hi",))
    counts = []
    for corpus in range(60):
        unit = np.repeat(np.arange(40), sizes_of_documents(rng, 40, 400))
        own, reference = documented(rng, 1, unit, 0.3)
        names = tuple(map(str, unit))
        stats = {c: stats_of(r.numerator, r.denominator[0], documents=names) for c, r in (("hi", own), ("en", reference))}
        table = shuffled_table(stats, languages, SETTINGS.model_copy(update={"resamples": 500}), SEED + corpus).set_index(["name", "scope"])
        counts.append((table.loc[("all", "mean"), "significant"], table.loc[("all", "mean"), "tests"]))
    significant, tests = np.array(counts).sum(axis=0)
    assert binom.ppf(0.025, tests, 0.05) <= significant <= binom.ppf(0.975, tests, 0.05)
