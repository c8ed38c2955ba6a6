"""Streaming statistics and the measurement that fills them, against sums worked out one sentence at a time."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lingact.activations.accumulate import ReferenceStatistics, add_layer, add_predictions, count_tokens
from lingact.activations.feature_stats import FeatureStats
from lingact.activations.measurement import ADAPTER, BASE, NORM_MATCHED, load_measurement
from lingact.activations.passes import Wanted, measure, reference_statistics
from lingact.config.training import LoraAdapter
from lingact.data.corpus import ParallelCorpus
from lingact.data.tokens import TokenBatch, Tokens
from lingact.errors import UserError
from lingact.models.active_latents import ActiveLatents
from lingact.models.adapters import attach_adapter, base_behaviour
from lingact.models.lm import LanguageModel
from lingact.models.sae import Dictionaries, Dictionary

PEFT = LoraAdapter(
    kind="lora", r=4, alpha=8, dropout=0.0, use_rslora=False, use_dora=False, init="default", targets=("q_proj", "up_proj"), layers="all"
)


def small(dictionaries: Dictionaries, corpus: ParallelCorpus, *, language_model: bool = True, **header: str) -> FeatureStats:
    return FeatureStats.empty(
        {"model": "m"} | header, corpus, "en", {layer: sae.width for layer, sae in dictionaries.items()}, 32, language_model=language_model
    )


def test_one_layer_by_hand() -> None:
    corpus = ParallelCorpus("two", ("a", "b"), {"en": ("é", "xyz")})
    stats = FeatureStats.empty({}, corpus, "en", {4: 3}, 2, language_model=True, top_k_size=1)
    assert stats.bytes.tolist() == [2, 3]
    # Two tokens of sentence 1, one of sentence 0.
    x = torch.tensor([[3.0, 4.0], [0.0, 2.0], [1.0, 0.0]])
    features = torch.tensor([[1.0, 0.0, 2.0], [0.0, 0.0, 0.5], [0.0, 0.0, 0.0]])
    # Token 7 is padding, token 5 a part of a character.
    ids, keep = torch.tensor([[5, 6], [5, 7]]), torch.tensor([[True, True], [True, False]])
    batch = TokenBatch(ids, keep, keep, torch.tensor([1, 0]), torch.tensor([True, False]))
    assert batch.kept_sentence.tolist() == [1, 1, 0]
    assert batch.kept_row.tolist() == [0, 0, 1]
    stats.halves = np.array([0, 1])
    count_tokens(stats, batch, torch.arange(8) == 5)
    active = ActiveLatents.of(features, features > 0, None)
    add_layer(stats, 4, x, active, x - torch.tensor([[1.0, 2.0], [0.0, 0.0], [0.0, 3.0]]), batch)
    add_predictions(stats, torch.tensor([0.5, 1.5]), torch.tensor([0.1, 0.2]), torch.tensor([1, 1]))
    assert stats.tokens.tolist() == [1, 2]
    assert stats.windows.tolist() == [1, 1]
    assert stats.activation.tolist() == [[0, 3.5]]
    assert stats.l0.tolist() == [[0, 3]]
    assert stats.norm.tolist() == [[1, 7]]
    assert stats.square.tolist() == [[1, 29]]
    assert stats.error.tolist() == [[9, 5]]
    assert stats.residual.tolist() == [[4, 6]]
    assert stats.partial.tolist() == [1, 1]
    assert stats.words.tolist() == [1, 1]
    assert stats.l2 == pytest.approx(np.array([[0, 5**0.5 + 0.5]]))
    assert stats.top_k.tolist() == [[0, 2.5]]
    assert stats.firing[0].tolist() == [[0, 0, 0], [1, 0, 2]]
    assert stats.profile[0].tolist() == [[0, 0, 0], [1, 0, 2.5]]
    assert stats.fired[0].tolist() == [[0, 0, 0], [1, 0, 1]]
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
    wrapped = lm.model = attach_adapter(lm.model, lm.blocks, PEFT, seed=1)
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)) * 0.2)
    sae_sets = {"measuring": dictionaries, "heldout": {2 - layer: Dictionary(d.sae, 2 - layer) for layer, d in reversed(dictionaries.items())}}
    spoken = corpus.speaking(("en", "hi"))
    found = measure(lm, sae_sets, spoken, batch_tokens=100, identity={"model": "m"}, wanted=Wanted(adapter=True, language_model=True))
    assert set(found.stats) == {(m, v, c) for m in sae_sets for v in (BASE, ADAPTER, NORM_MATCHED) for c in ("en", "hi")}
    assert found.stats["heldout", ADAPTER, "hi"].header == {
        "model": "m",
        "batch_tokens": "100",
        "sae_set": "heldout",
        "variant": ADAPTER,
        "language": "hi",
    }
    windows = lm.tokens.windows(corpus.texts["hi"])
    for place in (2, 4):
        expected = {name: np.zeros((3, 3)) for name in ("activation", "l0", "norm", "square", "error")}
        nll, kl, predicted = np.zeros(2), 0.0, 0
        for window in (w for w in windows if w.sentence == place):
            ids = torch.tensor([window.ids])
            with base_behaviour(wrapped):
                base, _ = lm.residuals(whole(lm, ids), (0, 1, 2))
                base_logits = wrapped(input_ids=ids).logits
            adapted, _ = lm.residuals(whole(lm, ids), (0, 1, 2))
            logits = wrapped(input_ids=ids).logits
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
    return TokenBatch(ids, torch.ones_like(ids, dtype=torch.bool), ids > 2, torch.zeros(1, dtype=torch.long), torch.ones(1, dtype=torch.bool))


def test_batch_size_changes_no_count(lm: LanguageModel, dictionaries: Dictionaries, corpus: ParallelCorpus) -> None:
    few, many = (measure(lm, {"m": dictionaries}, corpus, batch_tokens=n, identity={}).of("m", BASE)["en"] for n in (40, 4000))
    for name in ("tokens", "windows", "l0"):
        assert np.array_equal(getattr(few, name), getattr(many, name))
    assert all(np.array_equal(a, b) for a, b in zip(few.firing, many.firing, strict=True))
    np.testing.assert_allclose(few.activation, many.activation, rtol=1e-4)


def test_what_is_saved_is_loaded(lm: LanguageModel, dictionaries: Dictionaries, corpus: ParallelCorpus, tmp_path: Path) -> None:
    for language_model in (True, False):
        wanted = Wanted(language_model=language_model, vectors=5, reference_statistics=by_english(lm, dictionaries, corpus), shard=(0, 1))
        folder = tmp_path / str(language_model)
        measured = measure(lm, {"m": dictionaries}, corpus, batch_tokens=400, identity={"model": "é"}, wanted=wanted, folder=folder)
        found, shard = load_measurement(folder)
        assert shard == (0, 1)
        stats, loaded = measured.of("m", BASE)["hi"], found.of("m", BASE)["hi"]
        assert (loaded.header, loaded.sentence_ids, loaded.layers) == (stats.header, stats.sentence_ids, stats.layers)
        assert loaded.halves.tolist() == stats.halves.tolist()
        mine, theirs = measured.arrays("hi"), found.arrays("hi")
        assert mine.keys() == theirs.keys()
        assert ("m/base/nll" in mine) is language_model
        assert all(np.array_equal(mine[name], theirs[name]) and mine[name].dtype == theirs[name].dtype for name in mine)


def by_english(lm: LanguageModel, dictionaries: Dictionaries, corpus: ParallelCorpus) -> ReferenceStatistics:
    return reference_statistics(lm, {"m": dictionaries}, corpus, "en", batch_tokens=400, identity={})


def test_measures_by_the_reference_against_one_sentence_at_a_time(lm: LanguageModel, dictionaries: Dictionaries, corpus: ParallelCorpus) -> None:
    dictionaries[1].threshold[:10] = 1e6  # never fire
    by = by_english(lm, dictionaries, corpus)
    discovery = [text for text, half in zip(corpus.texts["en"], corpus.halves, strict=True) if half == 0]
    rows = [batch for text in discovery for batch in lm.tokens.batches(lm.tokens.windows([text]), 400)]
    x = torch.cat([lm.residuals(batch, (1,))[0][1][batch.keep] for batch in rows])
    assert by.norm[1] == pytest.approx(x.norm(dim=-1).mean().item(), rel=1e-5)
    often = (dictionaries[1].encode(x) > 0).double().mean(dim=0) >= 0.01
    assert torch.equal(by.active["m"][1], often)
    assert often.sum() == 38
    stats = measure(lm, {"m": dictionaries}, corpus, batch_tokens=400, identity={}, wanted=Wanted(reference_statistics=by)).of("m", BASE)["hi"]
    batch = next(lm.tokens.batches(lm.tokens.windows(corpus.texts["hi"][4:5]), 400))
    own = lm.residuals(batch, (1,))[0][1][batch.keep]
    features = dictionaries[1].encode(own)
    assert stats.reference_active[1, 4] == pytest.approx(features[:, often].sum().item(), rel=1e-4)
    matched = dictionaries[1].encode(own / own.norm(dim=-1, keepdim=True) * by.norm[1])
    assert stats.norm_matched[1, 4] == pytest.approx(matched.sum().item(), rel=1e-4)
    assert stats.l2[1, 4] == pytest.approx(features.norm(dim=-1).sum().item(), rel=1e-4)
    assert stats.top_k[1, 4] == pytest.approx(features.sort(dim=-1).values[:, -10:].sum().item(), rel=1e-4)


def test_sums_per_latent_keep_the_halves_apart(lm: LanguageModel, dictionaries: Dictionaries, corpus: ParallelCorpus) -> None:
    lm.tokens = Tokens(lm.tokenizer, 24)  # some sentences take several windows
    stats = measure(lm, {"m": dictionaries}, corpus.speaking(("hi",)), batch_tokens=100, identity={}).of("m", BASE)["hi"]
    firing, fired = np.zeros((2, 48), int), np.zeros((2, 48), int)
    for window in lm.tokens.windows(corpus.texts["hi"]):
        batch = lm.tokens.collate([window])
        active = (dictionaries[2].encode(lm.residuals(batch, (2,))[0][2][batch.keep]) > 0).numpy()
        firing[corpus.halves[window.sentence]] += active.sum(axis=0)
        fired[corpus.halves[window.sentence]] += active.any(axis=0) & window.first
    assert np.array_equal(stats.firing[2], firing)
    assert np.array_equal(stats.fired[2], fired)
    assert firing.sum() > fired.sum() > 0
    assert stats.profile[2].sum() == pytest.approx(stats.activation[2].sum())


def test_sentence_vectors_are_means_of_kept_residuals(lm: LanguageModel, dictionaries: Dictionaries, corpus: ParallelCorpus) -> None:
    lm.tokens = Tokens(lm.tokenizer, 24)
    found = measure(lm, {"m": dictionaries}, corpus, batch_tokens=100, identity={}, wanted=Wanted(vectors=5)).vectors["hi"]
    assert len(found.sentence_ids) == 5
    assert (
        found.sentence_ids
        == measure(lm, {"m": dictionaries}, corpus, batch_tokens=999, identity={}, wanted=Wanted(vectors=5)).vectors["en"].sentence_ids
    )
    place = corpus.ids.index(found.sentence_ids[3])
    batches = [lm.tokens.collate([window]) for window in lm.tokens.windows(corpus.texts["hi"]) if window.sentence == place]
    x = torch.cat([lm.residuals(batch, (1,))[0][1][batch.keep] for batch in batches])
    np.testing.assert_allclose(found.means()[1, 3], x.mean(dim=0).numpy(), rtol=1e-3, atol=1e-5)


def test_an_interrupted_measurement_goes_on_to_the_same_bits(
    lm: LanguageModel, dictionaries: Dictionaries, corpus: ParallelCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lingact.runtime.resumable_passes.SAVE_EVERY", 0.0)
    given = {"sae_sets": {"m": dictionaries}, "corpus": corpus, "batch_tokens": 60, "identity": {"model": "m"}, "wanted": Wanted(vectors=5)}
    whole_run = measure(lm, **given)
    count = sum(1 for texts in corpus.texts.values() for _ in lm.tokens.batches(lm.tokens.windows(texts), 60))
    assert count >= 20
    forward, left = lm.model.forward, [0]

    def failing(*args: Any, **kwargs: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return forward(*args, **kwargs)

    monkeypatch.setattr(lm.model, "forward", failing)
    interruptions = 0
    while True:
        left[0] = 4
        try:
            shards = measure(lm, **given, folder=tmp_path)
            break
        except KeyboardInterrupt:
            interruptions += 1
    assert interruptions == (count - 1) // 4
    for code in corpus.texts:
        mine, theirs = whole_run.arrays(code), shards.arrays(code)
        assert all(np.array_equal(mine[name], theirs[name]) for name in mine)


def test_pieces_merge_to_the_whole(lm: LanguageModel, dictionaries: Dictionaries, corpus: ParallelCorpus) -> None:
    def run(shard: tuple[int, int]) -> Any:
        return measure(lm, {"m": dictionaries}, corpus, batch_tokens=60, identity={}, wanted=Wanted(vectors=5, language_model=True, shard=shard))

    whole_run, merged = run((0, 1)), run((2, 3)).merge(run((0, 3))).merge(run((1, 3)))
    for code in corpus.texts:
        mine, theirs = whole_run.arrays(code), merged.arrays(code)
        for name in mine:
            if mine[name].dtype == np.int64:
                assert np.array_equal(mine[name], theirs[name]), name
            else:
                np.testing.assert_allclose(mine[name], theirs[name], rtol=1e-13, atol=1e-12, err_msg=name)


def test_unfinished_or_foreign_files_are_refused(lm: LanguageModel, dictionaries: Dictionaries, corpus: ParallelCorpus, tmp_path: Path) -> None:
    given = {"sae_sets": {"m": dictionaries}, "corpus": corpus, "batch_tokens": 60}
    measure(lm, **given, identity={"model": "m"}, folder=tmp_path)
    with pytest.raises(UserError, match=r"en.safetensors' does not belong here; it differs in model: m / other"):
        measure(lm, **given, identity={"model": "other"}, folder=tmp_path)
    measure(lm, **given, identity={"model": "m"}, folder=tmp_path)
    whole_file = (tmp_path / "hi.safetensors").read_bytes()
    (tmp_path / "hi.safetensors").write_bytes(whole_file[: len(whole_file) // 2])
    with pytest.raises(UserError, match="cannot be read as statistics of lingact"):
        load_measurement(tmp_path)
    (tmp_path / "hi.safetensors").unlink()
    with pytest.raises(UserError, match="does not exist; the run has not saved these statistics"):
        load_measurement(tmp_path)
    with pytest.raises(UserError, match="has no statistics"):
        load_measurement(tmp_path / "nowhere")
    for content in ('{"header": {}', "[]", "{}", '{"keys": 1, "keys": 2}'):
        (tmp_path / "index.json").write_text(content)
        with pytest.raises(UserError, match=r"index\.json' cannot be read: it is truncated or not a lingact file"):
            load_measurement(tmp_path)


def test_mismatched_do_not_merge(dictionaries: Dictionaries, corpus: ParallelCorpus) -> None:
    mine = small(dictionaries, corpus)
    with pytest.raises(UserError, match="one of the statistics does not belong here; it differs in language: ml / None; model: other / m"):
        mine.merge(small(dictionaries, corpus, model="other", language="ml"))
    with pytest.raises(UserError, match="they cover other sentences or layers"):
        mine.merge(small(dictionaries, corpus.select([0, 1])))
    with pytest.raises(UserError, match="they cover other sentences or layers"):
        mine.merge(small({layer: dictionaries[layer] for layer in (0, 2)}, corpus))
    with pytest.raises(UserError, match="only one of them has language-model losses"):
        mine.merge(small(dictionaries, corpus, language_model=False))
