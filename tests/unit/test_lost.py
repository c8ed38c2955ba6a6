"""Activations that overflow: told by layer and language, '-' in the cells that rest on them, no warnings, and no training or judging by them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from lingact.activations.measurement import Lost, Measurement, load_measurement
from lingact.activations.passes import Wanted, lost_sentence, measure
from lingact.activations.random_saes import pooled_sample, random_dictionaries
from lingact.analysis.changes import Variants, change
from lingact.analysis.measures import Ratio
from lingact.analysis.similarity import similarity_table
from lingact.analysis.tables import confound_table, disparities, layer_table, measure_table, range_table
from lingact.config.data import LanguagesConfig
from lingact.config.measures import Statistics
from lingact.data.corpus import ParallelCorpus
from lingact.errors import UserError
from lingact.evaluation.bits_per_byte import lost_nats, sentence_nats
from lingact.models.lm import LanguageModel
from lingact.models.sae import Dictionaries
from lingact.report.phrases import plain
from lingact.report.similarity import wide_similarity
from lingact.statistics.bootstrap import Resampling
from lingact.training.base_cache import CacheSettings, cached_anchor, cached_predictions, cached_reference

LANGUAGES = LanguagesConfig(reference="en", high=("es",), low=("hi",))


def settings(pooling: str) -> Statistics:
    return Statistics.model_validate({"pooling": pooling, "resamples": 100, "confidence": 0.95, "early": [0], "deep": [2]})


@pytest.fixture
def loud(lm: LanguageModel) -> LanguageModel:
    """In float16, a model whose residuals overflow behind block 1 in most sentences, and not behind block 0."""
    lm.model.model.layers[1].post_feedforward_layernorm.weight.data[3] = 60_000
    lm.model.half()
    lm.identity["dtype"] = "float16"
    return lm


def measured(lm: LanguageModel, dictionaries: Dictionaries, corpus: ParallelCorpus, **rest: Any) -> Measurement:
    wanted = Wanted(language_model=True, vectors=10)
    return measure(lm, {"measuring": dictionaries}, corpus, batch_tokens=100, identity={"model": "tiny"}, wanted=wanted, **rest)


@pytest.mark.parametrize("pooling", ["token", "sentence"])
def test_lost_layers_are_told_and_empty_and_the_others_are_as_they_were(
    pooling: str, loud: LanguageModel, dictionaries: Dictionaries, corpus: ParallelCorpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = measured(loud, dictionaries, corpus, folder=tmp_path)
    lost = {(each.what, each.language): each for each in found.lost()}
    assert set(lost) == {(what, code) for what in ("residuals", "predictions") for code in ("en", "es", "hi")}
    assert lost["residuals", "hi"].layers == (1, 2)
    assert 0 < lost["residuals", "en"].sentences <= 12
    said = capsys.readouterr().out
    assert said.count("Not finite in float16: residuals behind layer 1-2 in en. Cells that rest on them show '-',") == 1
    assert "use model.dtype=bfloat16 or float32. The run goes on; Ctrl-C ends it" in said

    gaps = disparities(found.of("measuring", "base"), LANGUAGES, settings(pooling), 0)
    table = layer_table(gaps).set_index(["name", "layer"])
    assert table.loc[("hi", 0), ["gap", "lo", "hi", "effect", "p"]].notna().all()
    assert table.loc[[("hi", 1), ("hi", 2), ("es", 1)], ["gap", "lo", "hi", "band_lo", "effect", "p", "p_holm"]].isna().all(axis=None)
    ranges = range_table(gaps).set_index(["name", "range", "statistic"])["gap"]
    assert ranges.loc[:, ["early"], :].notna().all()
    assert ranges.loc[:, ["deep", "all"], :].isna().all()
    for table in (
        measure_table(found.of("measuring", "base"), LANGUAGES, settings(pooling), 0),
        confound_table(found.of("measuring", "base"), settings(pooling), 0),
    ):
        assert not np.isinf(table.select_dtypes("number")).any(axis=None)

    again = load_measurement(tmp_path)[0]
    assert again.lost() == found.lost()
    assert not any(np.isinf(array).any() for code in again.languages for array in again.arrays(code).values() if array.dtype.kind == "f")


def test_where_all_is_finite_nothing_is_told(
    lm: LanguageModel, dictionaries: Dictionaries, corpus: ParallelCorpus, capsys: pytest.CaptureFixture[str]
) -> None:
    found = measured(lm, dictionaries, corpus)
    assert found.lost() == []
    assert lost_sentence(found.lost(), "float32") == ""
    assert capsys.readouterr().out == ""


def test_saes_that_overflow_where_the_residuals_do_not(lm: LanguageModel, dictionaries: Dictionaries, corpus: ParallelCorpus) -> None:
    dictionaries[1].sae.W_enc.data *= 1e38
    dictionaries[1].sae.threshold.data.zero_()
    found = measured(lm, dictionaries, corpus)
    assert {(each.what, each.layers) for each in found.lost()} == {("activations of the measuring SAEs", (1,))}
    assert len(found.lost()) == 3


def test_the_sentence_by_hand() -> None:
    lost = [
        Lost("residuals", (15, 16, 17), "ml", 3, 40), Lost("residuals", (15, 16, 17), "hi", 40, 40), Lost("residuals with the adapter", (4, 17), "ml", 1, 40),
        Lost("predictions", (), "ml", 3, 40),
    ]  # fmt: skip
    assert lost_sentence(lost, "float16") == (
        "Not finite in float16: residuals behind layer 15-17 in ml (3 of 40 sentences), hi (40 of 40 sentences); residuals with the adapter behind layer "
        "4, 17 in ml (1 of 40 sentences); predictions in ml (3 of 40 sentences). Cells that rest on them show '-', means in the text leave them out. Most likely float16 "
        "ends at 65,504, which residuals of many models exceed; use model.dtype=bfloat16 or float32"
    )
    assert "try model.dtype=float32" in lost_sentence(lost, "bfloat16")


@pytest.mark.parametrize("freeze", ["reference", "anchor", "predictions"])
def test_training_does_not_start_from_what_is_no_number(
    freeze: str, loud: LanguageModel, dictionaries: Dictionaries, corpus: ParallelCorpus, tmp_path: Path
) -> None:
    how = CacheSettings(100, cache=tmp_path)
    start: dict[str, Callable[[], object]] = {
        "reference": lambda: cached_reference(loud, dictionaries, corpus, "en", how, profiles=False),
        "anchor": lambda: cached_anchor(loud, dictionaries, corpus, "en", how),
        "predictions": lambda: cached_predictions(loud, corpus, "en", how, top=5),
    }
    told = "predictions are" if freeze == "predictions" else "residuals or SAE activations behind layer 1-2 are"
    with pytest.raises(UserError, match=rf"the base model's {told} not finite in en, which training would .* use model\.dtype=bfloat16 or float32"):
        start[freeze]()
    assert list(tmp_path.iterdir()) == [], "and nothing of it is kept for other runs"


def test_bits_per_byte_that_are_no_numbers_are_told(loud: LanguageModel, corpus: ParallelCorpus) -> None:
    nats = sentence_nats(loud, corpus, batch_tokens=100, title="")
    assert all(np.isnan(values).any() and not np.isinf(values).any() for values in nats.values())
    said = lost_nats({"base": {"en": np.array([1.0, np.nan]), "hi": np.array([1.0, 2.0])}}, "float16")
    assert said.startswith("the cross-entropies of base in en (1 of 2 sentences) are not finite in float16, so their bits per byte are shown as '-'.")
    assert lost_nats({"base": {"hi": np.array([1.0, 2.0])}}, "float16") == ""


def test_random_saes_take_the_tokens_that_are_numbers(loud: LanguageModel, dictionaries: Dictionaries, corpus: ParallelCorpus) -> None:
    sample = pooled_sample(loud, corpus, (0, 1, 2), tokens=200, batch_tokens=100)
    assert all(x.isfinite().all() and len(x) for x in sample.values())
    assert len(sample[1]) < len(sample[0])
    for dictionary in random_dictionaries(dictionaries, sample, 0).values():
        assert not any(torch.isnan(weight).any() for weight in dictionary.sae.state_dict().values())


def test_a_sentence_that_is_no_number_is_not_one_that_takes_no_part() -> None:
    counted, lost = np.array([True, False, True]), np.array([[1.0, 5.0, np.nan]])
    numerator, denominator = Ratio(lost, np.array([[2.0, 2.0, 2.0]]), counted).terms("sentence")
    np.testing.assert_array_equal(numerator, [[0.5, 0, np.nan]])
    np.testing.assert_array_equal(denominator, [[1, 0, 1]])
    # The other way round it does take no part, whatever it is.
    for pooling in ("token", "sentence"):
        numerator, denominator = Ratio(np.array([[1.0, np.nan, 3.0]]), np.array([[2.0, 2.0, 0.0]]), counted).terms(pooling)
        assert np.isfinite(numerator).all()


def test_similarity_of_what_is_no_number_is_none() -> None:
    vectors = {code: np.random.default_rng(place).standard_normal((2, 12, 5)) for place, code in enumerate(("en", "hi"))}
    whole = similarity_table(vectors, (0, 1), "en", Resampling.of_sentences(12), resamples=100, confidence=0.95, seed=0)
    vectors["hi"][1, 3] = np.nan
    found = similarity_table(vectors, (0, 1), "en", Resampling.of_sentences(12), resamples=100, confidence=0.95, seed=0)
    assert found.loc[found["layer"] == 1, ["estimate", "lo", "hi", "floor", "floor_hi"]].isna().all(axis=None)
    pd.testing.assert_frame_equal(found[found["layer"] == 0], whole[whole["layer"] == 0])
    cells = wide_similarity(found).iloc[0].astype(str).tolist()
    assert cells.count("-") == 5


def test_a_gap_is_not_said_to_be_closed_on_the_layers_that_are_left(loud: LanguageModel, dictionaries: Dictionaries, corpus: ParallelCorpus) -> None:
    stats = measured(loud, dictionaries, corpus).of("measuring", "base")
    variants = Variants(stats, stats, stats)
    of_all, of_the_first = (change(variants, "hi", LANGUAGES, settings("token"), layers, 0) for layers in ((0, 1), (0,)))
    assert np.isnan(of_all.closed[0])
    assert np.isnan(of_all.closed_norm_matched[0])
    assert of_the_first.closed[0] == 0


def test_a_number_without_its_interval() -> None:
    assert (plain(0.126, "+.2f"), plain(float("nan"), "+.2f")) == ("+0.13", "-")
