"""Streaming statistics and the measurement that fills them, against sums worked out one sentence at a time."""

from pathlib import Path

import numpy as np
import pytest
import torch

from lingact.adapters import attach_lora, base_behaviour
from lingact.config import PeftConfig
from lingact.corpus import ParallelCorpus
from lingact.errors import UserError
from lingact.lm import LanguageModel
from lingact.measure import ADAPTER, BASE, NORM_MATCHED, measure
from lingact.sae import Dictionaries, Dictionary
from lingact.stats import FeatureStats
from lingact.tokens import TokenBatch, Tokens

PEFT = PeftConfig(r=4, alpha=8, dropout=0.0, targets=("q_proj", "up_proj"), layers="all")


def small(dictionaries: Dictionaries, corpus: ParallelCorpus, *, language_model: bool = True, **header: str) -> FeatureStats:
    return FeatureStats.empty({"model": "m"} | header, corpus, "en", dictionaries, 32, language_model=language_model)


def test_one_layer_by_hand() -> None:
    corpus = ParallelCorpus("two", ("a", "b"), {"en": ("é", "xyz")})
    from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig

    stats = FeatureStats.empty({}, corpus, "en", {4: Dictionary(JumpReLUSAE(JumpReLUSAEConfig(d_in=2, d_sae=3)), 4)}, 2, language_model=True)
    assert stats.bytes.tolist() == [2, 3]
    # Two tokens of sentence 1, one of sentence 0.
    x = torch.tensor([[3.0, 4.0], [0.0, 2.0], [1.0, 0.0]])
    features = torch.tensor([[1.0, 0.0, 2.0], [0.0, 0.0, 0.5], [0.0, 0.0, 0.0]])
    sentence = torch.tensor([1, 1, 0])
    stats.count_tokens(torch.tensor([1, 0]), sentence)
    stats.add_layer(4, x, features, x - torch.tensor([[1.0, 2.0], [0.0, 0.0], [0.0, 3.0]]), sentence)
    stats.add_predictions(torch.tensor([0.5, 1.5]), torch.tensor([0.1, 0.2]), torch.tensor([1, 1]))
    assert stats.tokens.tolist() == [1, 2]
    assert stats.windows.tolist() == [1, 1]
    assert stats.activation.tolist() == [[0, 3.5]]
    assert stats.l0.tolist() == [[0, 3]]
    assert stats.norm.tolist() == [[1, 7]]
    assert stats.square.tolist() == [[1, 29]]
    assert stats.error.tolist() == [[9, 5]]
    assert stats.residual.tolist() == [[4, 6]]
    assert stats.firing[0].tolist() == [1, 0, 2]
    assert stats.profile[0].tolist() == [1, 0, 2.5]
    assert stats.nll is not None
    assert stats.kl is not None
    assert stats.predicted is not None
    assert stats.nll.tolist() == [0, 2]
    assert stats.kl == pytest.approx([0, 0.3])
    assert stats.predicted.tolist() == [0, 2]
    assert {a.dtype for a in (stats.tokens, stats.l0, stats.firing[0], stats.predicted)} == {np.dtype(np.int64)}
    assert {a.dtype for a in (stats.activation, stats.norm, stats.residual, stats.profile[0], stats.nll)} == {np.dtype(np.float64)}


@torch.no_grad()
def test_measuring_base_and_adapter_against_one_sentence_at_a_time(lm: LanguageModel, dictionaries: Dictionaries, corpus: ParallelCorpus) -> None:
    lm.tokens = Tokens(lm.tokenizer, 24)  # some sentences take several windows
    wrapped = lm.model = attach_lora(lm.model, PEFT, seed=1)
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)) * 0.2)
    meters = {"measuring": dictionaries, "heldout": {2 - layer: Dictionary(d.sae, 2 - layer) for layer, d in reversed(dictionaries.items())}}
    spoken = corpus.speaking(("en", "hi"))
    found = measure(lm, meters, spoken, batch_tokens=100, identity={"model": "m"}, with_adapter=True, language_model=True)
    assert set(found.stats) == {(m, v, c) for m in meters for v in (BASE, ADAPTER, NORM_MATCHED) for c in ("en", "hi")}
    assert found.stats["heldout", ADAPTER, "hi"].header == {"model": "m", "meter": "heldout", "variant": ADAPTER, "language": "hi"}
    windows = lm.tokens.windows(corpus.texts["hi"])
    for place in (2, 4):
        expected = {name: np.zeros((3, 3)) for name in ("activation", "l0", "norm", "square", "error")}
        nll, kl, predicted = np.zeros(2), 0.0, 0
        for window in (w for w in windows if w.sentence == place):
            ids = torch.tensor([window.ids])
            with base_behaviour(wrapped):
                base, base_logits = lm.residuals(whole(lm, ids), (0, 1, 2), logits=True)
            adapted, logits = lm.residuals(whole(lm, ids), (0, 1, 2), logits=True)
            for layer in range(3):
                matched = adapted[layer] * base[layer].norm(dim=-1, keepdim=True) / adapted[layer].norm(dim=-1, keepdim=True)
                for column, x in enumerate((base[layer][0, 1:], adapted[layer][0, 1:], matched[0, 1:])):
                    sae = dictionaries[layer].sae
                    acts = sae.encode(x) * sae.W_dec.norm(dim=-1)
                    sums = (acts.sum(), (acts > 0).sum(), x.norm(dim=-1).sum(), x.square().sum(), (x - sae(x)).square().sum())
                    for name, value in zip(expected, sums, strict=True):
                        expected[name][layer, column] += value.item()
            log_p, log_q = base_logits[0, :-1].log_softmax(-1), logits[0, :-1].log_softmax(-1)
            nll -= [lp[range(len(window.ids) - 1), window.ids[1:]].sum().item() for lp in (log_p, log_q)]
            kl += (log_p.exp() * (log_p - log_q)).sum().item()
            predicted += len(window.ids) - 1
        for column, variant in enumerate((BASE, ADAPTER, NORM_MATCHED)):
            stats = found.stats["measuring", variant, "hi"]
            for name, value in expected.items():
                np.testing.assert_allclose(getattr(stats, name)[:, place], value[:, column], rtol=1e-4)
            assert stats.tokens[place] == predicted
            assert stats.windows[place] == sum(w.sentence == place for w in windows)
        base_stats, adapted_stats = (found.stats["measuring", variant, "hi"] for variant in (BASE, ADAPTER))
        assert (base_stats.nll[place], adapted_stats.nll[place]) == pytest.approx(tuple(nll), rel=1e-4)
        assert base_stats.kl[place] == 0
        assert adapted_stats.kl[place] == pytest.approx(kl, rel=1e-3)
        assert kl > 0.01
        assert base_stats.predicted[place] == adapted_stats.predicted[place] == predicted
    assert found.stats["measuring", NORM_MATCHED, "hi"].nll is None
    np.testing.assert_allclose(*(found.stats["measuring", v, "hi"].norm for v in (BASE, NORM_MATCHED)), rtol=1e-4)


def whole(lm: LanguageModel, ids: torch.Tensor) -> TokenBatch:
    return TokenBatch(ids, torch.ones_like(ids, dtype=torch.bool), ids > 2, torch.zeros(1, dtype=torch.long))


def test_batch_size_changes_no_count(lm: LanguageModel, dictionaries: Dictionaries, corpus: ParallelCorpus) -> None:
    few, many = (measure(lm, {"m": dictionaries}, corpus, batch_tokens=n, identity={}).of("m", BASE)["en"] for n in (40, 4000))
    for name in ("tokens", "windows", "l0"):
        assert np.array_equal(getattr(few, name), getattr(many, name))
    assert all(np.array_equal(a, b) for a, b in zip(few.firing, many.firing, strict=True))
    np.testing.assert_allclose(few.activation, many.activation, rtol=1e-4)


def test_what_is_saved_is_loaded(lm: LanguageModel, dictionaries: Dictionaries, corpus: ParallelCorpus, tmp_path: Path) -> None:
    for language_model in (True, False):
        measured = measure(lm, {"m": dictionaries}, corpus, batch_tokens=400, identity={"model": "é"}, language_model=language_model)
        measured.save(tmp_path)
        stats, loaded = measured.of("m", BASE)["hi"], FeatureStats.load(tmp_path / "m-base-hi.safetensors")
        assert (loaded.header, loaded.sentence_ids, loaded.layers) == (stats.header, stats.sentence_ids, stats.layers)
        mine, theirs = stats._arrays(), loaded._arrays()
        assert mine.keys() == theirs.keys()
        assert ("nll" in mine) is language_model
        assert all(np.array_equal(mine[name], theirs[name]) and mine[name].dtype == theirs[name].dtype for name in mine)


def test_strangers_do_not_merge(dictionaries: Dictionaries, corpus: ParallelCorpus) -> None:
    mine = small(dictionaries, corpus)
    with pytest.raises(UserError, match="these statistics do not belong together; they differ in language: None / ml; model: m / other"):
        mine.merge(small(dictionaries, corpus, model="other", language="ml"))
    with pytest.raises(UserError, match="they cover other sentences or layers"):
        mine.merge(small(dictionaries, corpus.select([0, 1])))
    with pytest.raises(UserError, match="they cover other sentences or layers"):
        mine.merge(small({layer: dictionaries[layer] for layer in (0, 2)}, corpus))
    with pytest.raises(UserError, match="only one of them has language-model losses"):
        mine.merge(small(dictionaries, corpus, language_model=False))
