"""Statistics merge: any split of the tokens, in any order and grouping, is one pass."""

from functools import cache

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig

from lingact.activations.accumulate import add_batch, add_predictions, count_tokens
from lingact.activations.feature_stats import FeatureStats
from lingact.data.corpus import ParallelCorpus
from lingact.data.tokens import TokenBatch
from lingact.models.sae import Dictionaries, Dictionary

D_MODEL, WIDTH, SENTENCES = 5, 7, 4
COUNTS = ("tokens", "windows", "bytes", "words", "partial", "l0", "predicted")
CORPUS = ParallelCorpus("four", ("a", "b", "c", "d"), {"en": ("one", "two", "three", "four")})
calmly = settings(max_examples=25, deadline=None, derandomize=True, database=None)

Found = tuple[dict[int, torch.Tensor], torch.Tensor, torch.Tensor]


@cache
def dictionaries() -> Dictionaries:
    made = {}
    for layer in (1, 3):
        sae = JumpReLUSAE(JumpReLUSAEConfig(d_in=D_MODEL, d_sae=WIDTH))
        random = torch.Generator().manual_seed(layer)
        sae.W_enc.data, sae.W_dec.data = torch.randn(D_MODEL, WIDTH, generator=random), torch.randn(WIDTH, D_MODEL, generator=random)
        sae.threshold.data = torch.rand(WIDTH, generator=random)
        made[layer] = Dictionary(sae, layer)
    return made


@st.composite
def tokens(draw: st.DrawFn) -> Found:
    """Residuals of some tokens behind both layers, their sentences, their losses; magnitudes differ widely between tokens."""
    sentence = draw(st.lists(st.integers(0, SENTENCES - 1), min_size=1, max_size=24))
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    scale = 10 ** (6 * torch.rand(len(sentence), 1, generator=random) - 3)
    return {layer: torch.randn(len(sentence), D_MODEL, generator=random) * scale for layer in (1, 3)}, torch.tensor(sentence), scale[:, 0]


def empty() -> FeatureStats:
    return FeatureStats.empty({"model": "m"}, CORPUS, "en", {layer: sae.width for layer, sae in dictionaries().items()}, D_MODEL, language_model=True)


def one_by_one(found: Found, places: list[int]) -> list[FeatureStats]:
    """Statistics of each token alone. Each token's features are those of its own forward pass, so that counts can be compared exactly."""
    return [add(empty(), found, [place]) for place in places]


def add(stats: FeatureStats, found: Found, places: list[int]) -> FeatureStats:
    residuals, sentence, losses = found
    chosen = torch.tensor(places, dtype=torch.long)
    alone = torch.ones(len(chosen), 1, dtype=torch.bool)
    # Every token is a window; that of its sentence's first token begins the sentence.
    first = torch.tensor([int((sentence == sentence[place]).nonzero()[0, 0]) == place for place in places])
    batch = TokenBatch(chosen[:, None] % 3, alone, alone, sentence[chosen], first)
    count_tokens(stats, batch, torch.tensor([True, False, False]))
    add_batch(stats, dictionaries(), {layer: x[chosen] for layer, x in residuals.items()}, batch)
    add_predictions(stats, losses[chosen], losses[chosen] * 2, sentence[chosen])
    return stats


def assert_same(one: FeatureStats, other: FeatureStats, rtol: float) -> None:
    mine, theirs = one.arrays(), other.arrays()
    assert mine.keys() == theirs.keys()
    for name in mine:
        if name in COUNTS or name.startswith("fir"):
            assert np.array_equal(mine[name], theirs[name]), name
        else:
            np.testing.assert_allclose(mine[name], theirs[name], rtol=rtol, atol=rtol * np.abs(mine[name]).max(), err_msg=name)


def identical(one: FeatureStats, other: FeatureStats) -> bool:
    mine, theirs = one.arrays(), other.arrays()
    return all(np.array_equal(mine[name], theirs[name]) for name in mine)


@calmly
@given(tokens(), tokens())
def test_merging_commutes(one: Found, other: Found) -> None:
    a, b = (add(empty(), found, list(range(len(found[1])))) for found in (one, other))
    assert identical(a.merge(b), b.merge(a))
    assert identical(a.merge(empty()), a)


@calmly
@given(tokens(), tokens(), tokens())
def test_merging_associates(one: Found, other: Found, third: Found) -> None:
    a, b, c = (add(empty(), found, list(range(len(found[1])))) for found in (one, other, third))
    assert_same(a.merge(b).merge(c), a.merge(b.merge(c)), rtol=1e-14)


@calmly
@given(tokens(), st.data())
def test_any_grouping_of_the_tokens_is_one_pass(found: Found, data: st.DataObject) -> None:
    count = len(found[1])
    order = data.draw(st.permutations(range(count)))
    in_turn = empty()
    for place in range(count):
        add(in_turn, found, [place])
    parts = one_by_one(found, order)
    while len(parts) > 1:
        one, other = (parts.pop(data.draw(st.integers(0, len(parts) - 1))) for _ in range(2))
        parts.append(one.merge(other))
    assert_same(in_turn, parts[0], rtol=1e-13)


@calmly
@given(tokens(), st.data())
def test_any_split_into_batches_is_one_pass(found: Found, data: st.DataObject) -> None:
    count = len(found[1])
    cuts = sorted(data.draw(st.sets(st.integers(1, count - 1)))) if count > 1 else []
    stats = empty()
    for start, end in zip([0, *cuts], [*cuts, count], strict=True):
        add(stats, found, list(range(start, end)))
    # Other batch shapes may round a matrix product in float32 otherwise.
    assert_same(add(empty(), found, list(range(count))), stats, rtol=1e-4)


@calmly
@given(tokens())
def test_sums_are_those_of_numpy(found: Found) -> None:
    residuals, sentence, _ = found
    stats = add(empty(), found, list(range(len(sentence))))
    for row, (layer, dictionary) in enumerate(dictionaries().items()):
        x, features = residuals[layer].double().numpy(), dictionary.encode(residuals[layer]).detach().double().numpy()
        for place in range(SENTENCES):
            mine = (sentence == place).numpy()
            assert stats.tokens[place] == mine.sum()
            assert stats.l0[row, place] == (features[mine] > 0).sum()
            np.testing.assert_allclose(stats.activation[row, place], features[mine].sum(), rtol=1e-5)
            np.testing.assert_allclose(stats.square[row, place], (x[mine] ** 2).sum(), rtol=1e-12)
        assert np.array_equal(stats.firing[row].sum(axis=0), (features > 0).sum(0))
        np.testing.assert_allclose(stats.profile[row].sum(axis=0), features.sum(0), rtol=1e-12)
