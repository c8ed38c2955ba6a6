"""What the loss takes from the base model, against one sentence at a time; and its cache."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from lingact.activations.functional import kl_per_token
from lingact.data.corpus import ParallelCorpus
from lingact.data.tokens import Tokens
from lingact.errors import UserError
from lingact.models.lm import LanguageModel
from lingact.models.sae import Dictionaries
from lingact.training import base_targets as module
from lingact.training.base_cache import CacheSettings, cached_anchor, cached_predictions, cached_reference
from lingact.training.base_targets import Anchor, Predictions, Reference


@pytest.fixture
def cut(lm: LanguageModel) -> LanguageModel:
    """With a context so short that most sentences take several windows."""
    lm.tokens = Tokens(lm.tokenizer, 12)
    return lm


@pytest.fixture
def reference(cut: LanguageModel, dictionaries: Dictionaries, corpus: ParallelCorpus) -> Reference:
    for dictionary in dictionaries.values():
        dictionary.sae.threshold.data[:5] = 1e3  # silent latents
    return cached_reference(cut, dictionaries, corpus, "en", CacheSettings(64), profiles=True)


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
    layer: int, reference: Reference, cut: LanguageModel, dictionaries: Dictionaries, corpus: ParallelCorpus
) -> None:
    own, dictionary = alone(cut, corpus, layer), dictionaries[layer]
    everything = torch.cat(own)
    close = torch.testing.assert_close
    assert len(cut.tokens.windows(corpus.texts["en"])) > len(own) + 5, "several windows"
    assert reference.tokens.tolist() == [len(x) for x in own]
    features = [dictionary.sae.encode(x) * dictionary.sae.W_dec.norm(dim=-1) for x in own]
    totals = [f.sum(dim=-1) for f in features]
    close(reference.activation("token")[layer], torch.cat(totals).mean())
    close(reference.activation("sentence")[layer], torch.stack([total.mean() for total in totals]).mean())
    close(reference.mean()[layer], everything.mean(dim=0))
    close(reference.mean_norm("token")[layer], everything.norm(dim=-1).mean())
    close(reference.mean_norm("sentence")[layer], torch.stack([x.norm(dim=-1).mean() for x in own]).mean())
    sae = dictionary.sae
    pre = ((everything - sae.b_dec) @ sae.W_enc + sae.b_enc) * sae.W_dec.norm(dim=-1)
    close(reference.mean_pre()[layer], pre.mean(dim=0), atol=1e-4, rtol=1e-4)
    rate = (torch.cat(features) > 0).float().mean(dim=0)
    assert reference.active[layer].tolist() == (rate >= 0.01).nonzero()[:, 0].tolist()
    assert 0 < len(reference.active[layer]) < len(rate)
    chosen = torch.tensor([7, 2, 7])
    close(reference.profiles_of(chosen)[layer], torch.cat([features[i] for i in chosen.tolist()]).mean(dim=0))
    close(reference.means_of(chosen)[layer], torch.stack([own[i].mean(dim=0) for i in chosen.tolist()]))
    close(reference.activation_of(chosen)[layer], torch.cat([totals[i] for i in chosen.tolist()]).mean())


def test_shuffled_puts_every_sentence_in_anothers_place_and_keeps_the_totals(reference: Reference) -> None:
    for seed in range(5):
        shuffled = reference.shuffled(seed)
        everyone = torch.arange(len(reference.tokens))
        apart = torch.cdist(shuffled.means_of(everyone)[1], reference.means_of(everyone)[1])
        came_from = apart.argmin(dim=1)
        assert apart.amin(dim=1).max() < 1e-3
        assert sorted(came_from.tolist()) == everyone.tolist()
        assert not (came_from == everyone).any()
        one = torch.tensor([3])
        torch.testing.assert_close(shuffled.profiles_of(one)[1], reference.profiles_of(came_from[one])[1])
        assert torch.equal(shuffled.tokens, reference.tokens[came_from])
        torch.testing.assert_close(shuffled.activation("sentence"), reference.activation("sentence"))
        torch.testing.assert_close(shuffled.mean_norm("sentence"), reference.mean_norm("sentence"))
    assert not torch.equal(reference.shuffled(0).tokens, reference.shuffled(1).tokens)


def test_a_layer_without_active_latents_is_named(reference: Reference) -> None:
    reference.firing[1].zero_()
    with pytest.raises(UserError, match=r"no latent of the layers \[1\] fires on 1% of the reference's tokens; leave them out"):
        _ = reference.active


# --- predictions ---


@torch.no_grad()
@pytest.mark.parametrize("top", [3, 10_000])
def test_kl_of_predictions_against_the_base_models_own_logits(cut: LanguageModel, corpus: ParallelCorpus, top: int) -> None:
    predictions = cached_predictions(cut, corpus, "es", CacheSettings(64), top=top)
    windows = cut.tokens.by_sentence(corpus.texts["es"])
    chosen = [7, 2, 7, 9]  # one of them twice, in no order
    batch = cut.tokens.collate([w for s in chosen for w in windows[s]])
    predicted = batch.keep[:, 1:]
    logits = cut.model(batch.ids, attention_mask=batch.attention.long()).logits[:, :-1][predicted]
    assert predictions.of(batch).kl(logits).abs().max() < 1e-5
    other = logits.roll(1, 0)
    found, exact = predictions.of(batch).kl(other), kl_per_token(logits, other)
    if top > 3:
        torch.testing.assert_close(found, exact, atol=1e-4, rtol=1e-4)
    else:
        assert (found <= exact + 1e-5).all()
        assert found.sum() > 0.1 * exact.sum()


# --- anchors ---


@pytest.mark.parametrize("layer", [0, 1])
def test_anchors_against_one_sentence_at_a_time(layer: int, cut: LanguageModel, dictionaries: Dictionaries, corpus: ParallelCorpus) -> None:
    anchor, own, sae = cached_anchor(cut, dictionaries, corpus, "en", CacheSettings(64)), alone(cut, corpus, layer), dictionaries[layer].sae
    windows = cut.tokens.by_sentence(corpus.texts["en"])
    chosen = [7, 2, 7, 9]  # one of them twice, in no order
    batch = cut.tokens.collate([w for s in chosen for w in windows[s]])
    torch.testing.assert_close(anchor.norms(batch)[:, layer], torch.cat([own[s].norm(dim=-1) for s in chosen]))
    x = torch.cat([own[s] for s in chosen])
    expected = (x - sae.decode(sae.encode(x))).square().sum() / (x - x.mean(dim=0)).square().sum()
    torch.testing.assert_close(anchor.fvu(torch.tensor(chosen))[layer], expected, rtol=1e-4, atol=0)


# --- the cache ---


Outputs = Callable[..., tuple[Reference, Predictions, Anchor]]


@pytest.fixture
def outputs(cut: LanguageModel, dictionaries: Dictionaries, corpus: ParallelCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Outputs:
    """All kinds with a cache; fails where the model runs though `cached` promises that it does not."""
    real = module.kept_residuals

    def all_three(*, cached: bool, corpus: ParallelCorpus = corpus, profiles: bool = False, top: int = 4) -> tuple[Reference, Predictions, Anchor]:
        ran = []
        monkeypatch.setattr(module, "kept_residuals", lambda *args, **rest: ran.append(1) or real(*args, **rest))
        one = cached_reference(cut, dictionaries, corpus, "en", CacheSettings(64, cache=tmp_path), profiles=profiles)
        passes = [len(ran)]
        other = cached_predictions(cut, corpus, "en", CacheSettings(64, cache=tmp_path), top=top)
        passes.append(len(ran) - sum(passes))
        third = cached_anchor(cut, dictionaries, corpus, "en", CacheSettings(64, cache=tmp_path))
        passes.append(len(ran) - sum(passes))
        assert [count == 0 for count in passes] == [cached] * 3
        return one, other, third

    return all_three


def test_computed_once_read_again(outputs: Outputs) -> None:
    first, second = outputs(cached=False), outputs(cached=True)
    for one, other in zip(first, second, strict=True):
        assert one.tensors().keys() == other.tensors().keys()
        assert all(torch.equal(x, other.tensors()[name]) for name, x in one.tensors().items())
    assert first[0].layers == second[0].layers


def test_whatever_it_depends_on_makes_another_one(outputs: Outputs, cut: LanguageModel, dictionaries: Dictionaries, corpus: ParallelCorpus) -> None:
    plain = outputs(cached=False)
    # A word, the order, the context, the special tokens and the weights: all computed again, and the first one is still there.
    other = replace(corpus, texts={code: (texts[0] + " x", *texts[1:]) for code, texts in corpus.texts.items()})
    outputs(cached=False, corpus=other)
    outputs(cached=False, corpus=replace(corpus, texts={code: texts[::-1] for code, texts in corpus.texts.items()}))
    tokens, identity = cut.tokens, cut.identity
    cut.tokens = Tokens(cut.tokenizer, 13)
    outputs(cached=False)
    cut.tokens = Tokens(cut.tokenizer, 12)
    cut.tokens.special = torch.tensor([*cut.tokens.special.tolist(), 9])
    outputs(cached=False)
    cut.tokens = tokens
    cut.identity = identity | {"sha256": "other weights"}
    outputs(cached=False)
    cut.identity = identity
    again = outputs(cached=True)
    assert torch.equal(again[0].total, plain[0].total)
    with pytest.raises(AssertionError):
        outputs(cached=True, profiles=True)
    with pytest.raises(AssertionError):
        outputs(cached=True, top=5)
    # Predictions know no SAE; the other two do.
    dictionaries[0].sae.W_dec.data[0] *= 2
    with pytest.raises(AssertionError):
        outputs(cached=False)


def test_a_damaged_or_foreign_file_is_computed_again(outputs: Outputs, tmp_path: Path) -> None:
    first = outputs(cached=False)
    paths = sorted(tmp_path.iterdir())
    assert len(paths) == 3
    for path in paths:
        path.write_bytes(path.read_bytes()[:200])
    second = outputs(cached=False)
    assert all(torch.equal(x, second[0].tensors()[name]) for name, x in first[0].tensors().items())
    # A bit of the numbers: the format does not notice it.
    contents = [path.read_bytes() for path in paths]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content[:-3] + bytes([content[-3] ^ 64]) + content[-2:])
    outputs(cached=False)
    assert [path.read_bytes() for path in paths] == contents
    # Under the right name, with another identity inside.
    contents = [path.read_bytes() for path in paths]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content.replace(b"float32", b"floatXX"))
    outputs(cached=False)
    assert [path.read_bytes() for path in paths] == contents
    outputs(cached=True)
    # A file of somebody else's, of the same kind.
    for path in paths:
        save_file({"x": torch.zeros(1)}, path, {"identity": "mine"})
    outputs(cached=False)
    assert [path.read_bytes() for path in paths] == contents
