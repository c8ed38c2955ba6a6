"""Random-direction SAEs: as often, as loud, in directions that mean nothing; and the sample on which that is matched."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lingact.activations.measurement import is_random, random_sae_set
from lingact.activations.random_saes import cut_for, pooled_sample, random_dictionaries
from lingact.data.corpus import ParallelCorpus
from lingact.models.lm import LanguageModel
from lingact.models.sae import Dictionaries, Dictionary

TOKENS, D_MODEL = 400, 32


@pytest.fixture
def sample(dictionaries: Dictionaries) -> dict[int, Tensor]:
    """Residuals with a mean of their own, no two alike."""
    random = torch.Generator().manual_seed(5)
    return {layer: 2 * torch.randn(TOKENS, D_MODEL, generator=random) + torch.randn(D_MODEL, generator=random) for layer in dictionaries}


def fired(dictionary: Dictionary, x: Tensor) -> list[int]:
    return (dictionary.encode(x) > 0).sum(dim=0).tolist()


def test_each_latent_fires_as_often_as_the_one_it_stands_for(dictionaries: Dictionaries, sample: dict[int, Tensor]) -> None:
    found = random_dictionaries(dictionaries, sample, seed=0)
    assert found.keys() == dictionaries.keys()
    for layer, dictionary in dictionaries.items():
        assert fired(found[layer], sample[layer]) == fired(dictionary, sample[layer])
        assert found[layer].layer == layer


def test_a_silent_latent_stays_silent_and_one_that_always_fires_does_so(dictionaries: Dictionaries, sample: dict[int, Tensor]) -> None:
    sae = dictionaries[1].sae
    sae.threshold.data[:2], sae.b_enc.data[2:6] = 1e9, 1e6
    sae.b_enc.data[6:12] = 3.0  # fire on most tokens, so also where a random direction reads something negative
    found = random_dictionaries({1: dictionaries[1]}, sample, seed=0)[1]
    counts = fired(found, sample[1])
    assert counts == fired(dictionaries[1], sample[1])
    assert counts[:6] == [0, 0, TOKENS, TOKENS, TOKENS, TOKENS]
    assert torch.isinf(found.threshold[:2]).all()
    assert fired(found, 100 * sample[1])[:2] == [0, 0]
    assert (found.sae.b_enc[6:12] > 0).any()


def test_norms_are_kept_and_reading_and_writing_share_a_direction(dictionaries: Dictionaries, sample: dict[int, Tensor]) -> None:
    found, trained = random_dictionaries(dictionaries, sample, seed=0)[2], dictionaries[2]
    torch.testing.assert_close(found.sae.W_enc.norm(dim=0), trained.sae.W_enc.norm(dim=0))
    torch.testing.assert_close(found.norms, trained.norms)
    torch.testing.assert_close(found.sae.b_dec, trained.sae.b_dec)
    cosine = torch.nn.functional.cosine_similarity(found.sae.W_enc.T, found.sae.W_dec, dim=-1)
    torch.testing.assert_close(cosine, torch.ones_like(cosine))
    assert torch.nn.functional.cosine_similarity(found.sae.W_dec, trained.sae.W_dec, dim=-1).abs().mean() < 0.25
    assert found.sae.cfg.metadata.neuronpedia_id is None


def test_directions_are_isotropic(make_sae: Callable[..., Any], sample: dict[int, Tensor]) -> None:
    wide = {0: Dictionary(make_sae(0, width=4000), 0)}
    directions = torch.nn.functional.normalize(random_dictionaries(wide, sample, seed=0)[0].sae.W_dec, dim=-1)
    covariance = directions.T @ directions / len(directions) * D_MODEL
    # Entries have standard deviations of about sqrt(2 / 4000) and sqrt(1 / 4000).
    assert (covariance - torch.eye(D_MODEL)).abs().max() < 0.13
    assert directions.mean(dim=0).norm() < 0.05


def test_seed_and_layer_determine_the_directions_and_nothing_else_does(dictionaries: Dictionaries, sample: dict[int, Tensor]) -> None:
    before = torch.random.get_rng_state()
    first = random_dictionaries(dictionaries, sample, seed=3)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(99)
    alone = random_dictionaries({1: dictionaries[1]}, sample, seed=3)
    assert torch.equal(first[1].sae.W_enc, alone[1].sae.W_enc)
    torch.random.set_rng_state(before)
    other = random_dictionaries(dictionaries, sample, seed=4)
    again = random_dictionaries(dictionaries, sample, seed=3, draw=2)
    unit = [torch.nn.functional.normalize(d.sae.W_dec, dim=-1) for d in (first[1], first[2], other[1], again[1])]
    assert not any(torch.allclose(unit[0], differing) for differing in unit[1:])


def test_other_architectures_are_matched_by_what_they_fire(sample: dict[int, Tensor]) -> None:
    from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig

    with torch.random.fork_rng():
        torch.manual_seed(0)
        sae = TopKSAE(TopKSAEConfig(d_in=D_MODEL, d_sae=64, k=5, rescale_acts_by_decoder_norm=True))
    original = Dictionary(sae, 0)
    found = random_dictionaries({0: original}, sample, seed=0)[0]
    assert fired(found, sample[0]) == fired(original, sample[0])
    assert sum(fired(found, sample[0])) == 5 * TOKENS


def test_the_cut_stands_half_way() -> None:
    values = torch.tensor([[4.0, -1.0, 2.0], [1.0, -2.0, 6.0], [3.0, -4.0, 5.0]])
    assert cut_for(values, torch.tensor([2, 1, 0])).tolist() == [2.0, -1.5, torch.inf]
    everything = cut_for(values, torch.tensor([3, 3, 3]))
    assert (values > everything).all()


def test_the_cut_goes_to_the_nearer_end_of_equal_values() -> None:
    values = torch.tensor([5.0, 3.0, 3.0, 3.0, 1.0])[:, None].repeat(1, 2)
    cut = cut_for(values, torch.tensor([2, 3]))
    assert (values > cut).sum(dim=0).tolist() == [1, 4]


@torch.no_grad()
def test_the_sample_has_as_many_tokens_of_every_language(lm: LanguageModel, corpus: ParallelCorpus) -> None:
    found = pooled_sample(lm, corpus, (0, 2), tokens=210, batch_tokens=60)
    assert {layer: len(x) for layer, x in found.items()} == {0: 210, 2: 210}, "seventy of each of three languages"
    order = [*corpus.sample(1), *(place for size in range(2, 13) for place in set(corpus.sample(size)) - set(corpus.sample(size - 1)))]
    for number, code in enumerate(("en", "es", "hi")):
        expected = []
        for place in order:
            batch = lm.tokens.collate(lm.tokens.windows([corpus.texts[code][place]]))
            expected.append(lm.residuals(batch, (0, 2))[0][2][batch.keep])
        want, got = torch.cat(expected)[:70], found[2][70 * number : 70 * (number + 1)]
        # The order is that of the batches.
        distance = torch.cdist(want, got, compute_mode="donot_use_mm_for_euclid_dist")
        assert distance.min(dim=1).values.max() < 1e-4
        assert distance.min(dim=0).values.max() < 1e-4


def test_a_language_with_little_text_makes_all_shares_small(lm: LanguageModel) -> None:
    uneven = ParallelCorpus("two", ("a", "b"), {"en": ("A dog barks at night.", "It rained."), "es": ("Sí", "No")})
    assert len(pooled_sample(lm, uneven, (1,), tokens=60, batch_tokens=60)[1]) == 2 * len("Sí No".replace(" ", "").encode())


def test_a_sample_has_a_token_of_each_language_at_least(lm: LanguageModel, corpus: ParallelCorpus) -> None:
    assert len(pooled_sample(lm, corpus, (1,), tokens=1, batch_tokens=60)[1]) == 3


@torch.no_grad()
def test_directions_matched_on_all_languages_fire_as_often_over_all_of_them(
    lm: LanguageModel, corpus: ParallelCorpus, dictionaries: Dictionaries
) -> None:
    """Planted: a latent that reads what Hindi has and English lacks is silent in English, and must not be silent for that."""
    pooled, english = (pooled_sample(lm, some, (1,), tokens=300, batch_tokens=256)[1] for some in (corpus, corpus.speaking(("en",))))
    hindi = pooled[200:].mean(dim=0) - english.mean(dim=0)
    sae = dictionaries[1].sae
    sae.W_enc.data[:, 0] = hindi / hindi.norm()
    sae.b_enc.data[0] = -torch.cat([pooled[:200], english]).matmul(sae.W_enc.data[:, 0]).max() - (sae.b_dec.data @ sae.W_enc.data[:, 0])
    sae.threshold.data[0] = 0.0
    original = {1: dictionaries[1]}
    assert fired(dictionaries[1], english)[0] == 0 < fired(dictionaries[1], pooled)[0]
    by_english, by_all = (random_dictionaries(original, {1: sample}, seed=0)[1] for sample in (english, pooled))
    assert fired(by_english, pooled)[0] == 0
    assert fired(by_all, pooled) == fired(dictionaries[1], pooled)


def test_draws_differ_and_the_names_of_their_saes_are_known() -> None:
    assert [random_sae_set(draw) for draw in (1, 12)] == ["random1", "random12"]
    assert all(map(is_random, ("random", "random1", "random12")))
    assert not any(map(is_random, ("measuring", "heldout", "random_sae", "")))
