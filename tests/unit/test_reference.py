"""The frozen reference against one sentence at a time."""

import pytest
import torch
from torch import Tensor

from lingact.corpus import ParallelCorpus
from lingact.errors import UserError
from lingact.lm import LanguageModel
from lingact.reference import Reference, freeze_reference
from lingact.sae import Dictionaries
from lingact.tokens import Tokens


@pytest.fixture
def cut(lm: LanguageModel) -> LanguageModel:
    """With a context so short that most sentences take several windows."""
    lm.tokens = Tokens(lm.tokenizer, 12)
    return lm


@pytest.fixture
def frozen(cut: LanguageModel, dictionaries: Dictionaries, corpus: ParallelCorpus) -> Reference:
    for dictionary in dictionaries.values():
        dictionary.sae.threshold.data[:5] = 1e3  # silent latents
    return freeze_reference(cut, dictionaries, corpus, "en", batch_tokens=64)


@torch.no_grad()
def alone(lm: LanguageModel, corpus: ParallelCorpus, layer: int) -> list[Tensor]:
    """Residuals of each sentence's tokens, from one window at a time."""
    found = []
    for text in corpus.texts["en"]:
        ids = lm.tokenizer(text, add_special_tokens=False).input_ids
        windows = [[2, *ids[start : start + 11]] for start in range(0, len(ids), 11)]
        hidden = [lm.model(torch.tensor([window]), output_hidden_states=True).hidden_states for window in windows]
        found.append(torch.cat([states[layer + 1][0, 1:] for states in hidden]))
    return found


@pytest.mark.parametrize("layer", [0, 1])  # the last hidden state of transformers is behind the final norm
def test_every_quantity_against_one_sentence_at_a_time(
    layer: int, frozen: Reference, cut: LanguageModel, dictionaries: Dictionaries, corpus: ParallelCorpus
) -> None:
    own, dictionary = alone(cut, corpus, layer), dictionaries[layer]
    everything = torch.cat(own)
    close = torch.testing.assert_close
    assert len(cut.tokens.windows(corpus.texts["en"])) > len(own) + 5, "several windows"
    assert frozen.tokens.tolist() == [len(x) for x in own]
    features = [dictionary.sae.encode(x) * dictionary.sae.W_dec.norm(dim=-1) for x in own]
    totals = [f.sum(dim=-1) for f in features]
    close(frozen.activation("token")[layer], torch.cat(totals).mean())
    close(frozen.activation("sentence")[layer], torch.stack([total.mean() for total in totals]).mean())
    close(frozen.mean()[layer], everything.mean(dim=0))
    close(frozen.mean_norm("token")[layer], everything.norm(dim=-1).mean())
    close(frozen.mean_norm("sentence")[layer], torch.stack([x.norm(dim=-1).mean() for x in own]).mean())
    sae = dictionary.sae
    pre = ((everything - sae.b_dec) @ sae.W_enc + sae.b_enc) * sae.W_dec.norm(dim=-1)
    close(frozen.mean_pre()[layer], pre.mean(dim=0), atol=1e-4, rtol=1e-4)
    rate = (torch.cat(features) > 0).float().mean(dim=0)
    assert frozen.active[layer].tolist() == (rate >= 0.01).nonzero()[:, 0].tolist()
    assert 0 < len(frozen.active[layer]) < len(rate)
    chosen = torch.tensor([7, 2, 7])
    close(frozen.profiles_of(chosen)[layer], torch.cat([features[i] for i in chosen.tolist()]).mean(dim=0))
    close(frozen.means_of(chosen)[layer], torch.stack([own[i].mean(dim=0) for i in chosen.tolist()]))


def test_shuffled_puts_every_sentence_in_anothers_place_and_keeps_the_totals(frozen: Reference) -> None:
    for seed in range(5):
        shuffled = frozen.shuffled(seed)
        everyone = torch.arange(len(frozen.tokens))
        apart = torch.cdist(shuffled.means_of(everyone)[1], frozen.means_of(everyone)[1])
        came_from = apart.argmin(dim=1)
        assert apart.amin(dim=1).max() < 1e-3
        assert sorted(came_from.tolist()) == everyone.tolist()
        assert not (came_from == everyone).any()
        one = torch.tensor([3])
        torch.testing.assert_close(shuffled.profiles_of(one)[1], frozen.profiles_of(came_from[one])[1])
        assert torch.equal(shuffled.tokens, frozen.tokens[came_from])
        torch.testing.assert_close(shuffled.activation("sentence"), frozen.activation("sentence"))
        torch.testing.assert_close(shuffled.mean_norm("sentence"), frozen.mean_norm("sentence"))
    assert not torch.equal(frozen.shuffled(0).tokens, frozen.shuffled(1).tokens)


def test_a_layer_without_active_latents_is_named(frozen: Reference) -> None:
    frozen.firing[1].zero_()
    with pytest.raises(UserError, match=r"no latent of the layers \[1\] fires on 1% of the reference's tokens; leave them out"):
        _ = frozen.active
