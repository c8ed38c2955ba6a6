"""Random-direction SAEs: as often, as loud, in directions that mean nothing; and the sample on which that is matched."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lingact.controls import cut_for, random_dictionaries, reference_sample
from lingact.corpus import ParallelCorpus
from lingact.lm import LanguageModel
from lingact.sae import Dictionaries, Dictionary

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
    unit = [torch.nn.functional.normalize(d.sae.W_dec, dim=-1) for d in (first[1], first[2], other[1])]
    assert not torch.allclose(unit[0], unit[1])
    assert not torch.allclose(unit[0], unit[2])


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
def test_the_sample_is_the_residuals_of_whole_sentences(lm: LanguageModel, corpus: ParallelCorpus) -> None:
    found = reference_sample(lm, corpus, "es", (0, 2), tokens=70, batch_tokens=60)
    lengths = np.array([len(lm.tokenizer(text, add_special_tokens=False).input_ids) for text in corpus.texts["es"]])
    fitting = max(size for size in range(1, 13) if lengths[corpus.sample(size)].sum() <= 70)
    chosen = corpus.sample(fitting)
    assert 1 < fitting < 12
    assert {layer: len(x) for layer, x in found.items()} == dict.fromkeys((0, 2), int(lengths[chosen].sum()))
    expected = []
    for place in chosen:
        batch = lm.tokens.collate(lm.tokens.windows([corpus.texts["es"][place]]))
        expected.append(lm.residuals(batch, (0, 2))[0][2][0, 1:])
    want, got = torch.cat(expected), found[2]
    # The order is that of the batches.
    distance = torch.cdist(want, got, compute_mode="donot_use_mm_for_euclid_dist")
    assert distance.min(dim=1).values.max() < 1e-4
    assert distance.min(dim=0).values.max() < 1e-4


def test_a_sample_has_a_sentence_at_least(lm: LanguageModel, corpus: ParallelCorpus) -> None:
    found = reference_sample(lm, corpus, "en", (1,), tokens=1, batch_tokens=60)
    assert len(found[1]) == len(corpus.texts["en"][corpus.sample(1)[0]])
