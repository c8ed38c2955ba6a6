"""What is resampled: documents, blocks of neighbouring sentences, or single sentences; by hand, and everywhere the same."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from lingact.activations.edited_losses import Arm, CausalLosses, SplicedLosses
from lingact.activations.feature_stats import FeatureStats
from lingact.activations.measurement import ADAPTER, BASE, NORM_MATCHED, Measurement, load_measurement
from lingact.activations.passes import Wanted, measure
from lingact.analysis.changes import Variants, change_bits_table, change_frames
from lingact.analysis.effects import causal_table, selectivity_table, spliced_table
from lingact.analysis.language_features import find_features, rate_table
from lingact.analysis.similarity import separation_table, similarity_table
from lingact.analysis.tables import confound_table, disparities, layer_table, measure_table, range_table, shuffled_table
from lingact.config.data import LanguagesConfig, Splits
from lingact.config.measures import Statistics
from lingact.data.corpus import ParallelCorpus, sample_places
from lingact.errors import UserError
from lingact.evaluation.bits_per_byte import base_bits
from lingact.evaluation.bits_per_byte import bits_table as held_out_bits
from lingact.files.atomic import write_json
from lingact.models.lm import LanguageModel
from lingact.report.gaps import analysis_text
from lingact.report.phrases import cautions_of, reading_gaps, text_of
from lingact.statistics.bootstrap import Resampling, interval, p_value, simultaneous_band, standard_error
from lingact.statistics.paired import TestSettings
from tests.helpers.sums import random_stats, stats_of

SETTINGS = Statistics(pooling="token", resamples=400, confidence=0.9, early="third", deep="third", block=None)
LANGUAGES = LanguagesConfig(reference="en", high=("es",), low=("hi",))
DOCUMENTS = tuple(f"d{place}" for place in np.repeat(range(10), 3))
"""Ten documents of three sentences each."""
SURE: dict[str, Any] = {"resamples": 200, "confidence": 0.9, "seed": 1}


# --- by hand -------------------------------------------------------------------------------------------------------------------------------------


def test_single_sentences_are_drawn_as_they_always_were() -> None:
    """Written down again from before documents were known: published numbers stay what they are."""
    rng = np.random.default_rng(7)
    before = np.ones((21, 12))
    for resample in before[1:]:
        resample[:] = np.bincount(rng.integers(12, size=12), minlength=12)
    np.testing.assert_array_equal(Resampling.of(12, None, None, None).weights(20, 7), before)


@pytest.mark.parametrize("alone", [Resampling.of(12, tuple("abcdefghijkl"), None, None), Resampling.of(12, None, range(12), 1)])
def test_units_of_one_sentence_draw_what_single_sentences_draw(alone: Resampling) -> None:
    np.testing.assert_array_equal(alone.weights(20, 7), Resampling.of_sentences(12).weights(20, 7))


def test_a_document_is_drawn_whole_and_as_often_as_there_are_documents() -> None:
    resampling = Resampling.of(6, ("a", "b", "a", "c", "c", "c"), None, None)
    assert (resampling.by, resampling.unit.tolist(), resampling.count, str(resampling)) == ("documents", [0, 1, 0, 2, 2, 2], 3, "3 documents")
    weights = resampling.weights(50, 3)
    assert weights[0].tolist() == [1] * 6
    units = weights[:, [0, 1, 3]]
    np.testing.assert_array_equal(weights, units[:, [0, 1, 0, 2, 2, 2]])
    np.testing.assert_array_equal(units, Resampling.of_sentences(3).weights(50, 3))
    assert set(units.sum(axis=1)) == {3}
    assert len(set(weights.sum(axis=1))) > 1  # the number of sentences varies with the documents' sizes


def test_names_of_documents_do_not_matter() -> None:
    one, other = (Resampling.of(30, names, None, None) for names in (DOCUMENTS, [f"x{name}" for name in DOCUMENTS]))
    np.testing.assert_array_equal(one.weights(20, 5), other.weights(20, 5))


def test_blocks_are_neighbours_in_the_source_whatever_a_split_left_out() -> None:
    resampling = Resampling.of(6, None, (0, 3, 4, 9, 10, 11), 4)
    assert (resampling.by, resampling.unit.tolist(), str(resampling)) == ("blocks", [0, 0, 1, 2, 2, 2], "3 blocks of neighbouring sentences")
    assert Resampling.of(5, None, None, 2).unit.tolist() == [0, 0, 1, 1, 2]


def test_documents_go_before_blocks() -> None:
    assert Resampling.of(3, ("a", "a", "b"), (0, 1, 2), 2).by == "documents"


def test_a_part_keeps_its_units() -> None:
    resampling = Resampling.of(6, ("a", "b", "a", "c", "c", "b"), None, None).part(np.array([1, 3, 4, 5]))
    assert (resampling.by, resampling.unit.tolist()) == ("documents", [0, 1, 1, 0])


def test_totals_and_effective_size_by_hand() -> None:
    resampling = Resampling.of(6, ("a", "b", "a", "c", "c", "c"), None, None)
    assert resampling.totals(np.array([[1.0, 2, 4, 8, 16, 32], [1, 1, 1, 1, 1, 1]])).tolist() == [[5, 2, 56], [2, 1, 3]]
    assert resampling.effective == pytest.approx(36 / (4 + 1 + 9))
    assert Resampling.of_sentences(7).effective == 7


def test_shuffled_partners_are_a_permutation_that_keeps_documents_in_one_piece() -> None:
    resampling = Resampling.of(30, DOCUMENTS, None, None)
    partner = resampling.shuffled(np.random.default_rng(2))
    assert sorted(partner) == list(range(30))
    # Documents of equal length are paired whole: sentence by sentence.
    assert all((np.diff(partner[start : start + 3]) == 1).all() and partner[start] % 3 == 0 for start in range(0, 30, 3))
    random = np.random.default_rng(2)
    np.testing.assert_array_equal(Resampling.of_sentences(9).shuffled(np.random.default_rng(2)), random.permutation(9))


@pytest.mark.parametrize(
    ("resampling", "said"),
    [
        (Resampling.of(5, ("a",) * 5, None, None), "5 sentences of 1 document: .* give at least two documents in the split"),
        (Resampling.of(5, None, None, 10), "5 sentences in 1 block: .* give at least two blocks in the split, .* a smaller statistics.block"),
        (Resampling.of_sentences(1), "1 sentence is too few for an interval; give at least two sentences in the split"),
        (Resampling.of_sentences(0), "0 sentences is too few"),
    ],
)
def test_one_unit_has_no_interval(resampling: Resampling, said: str) -> None:
    with pytest.raises(UserError, match=said):
        resampling.check_enough()
    with pytest.raises(UserError, match=said):
        resampling.weights(10, 0)


def test_of_few_units_percentiles_lie_further_out() -> None:
    """Hesterberg 2015: of 10 units, sqrt(10 / 9) times t's 2.262 is 2.3845, beyond which a normal distribution has .00855."""
    draws = np.concatenate([[0.0], np.arange(100_001.0)])
    assert interval(draws, 0.95, 10)[1:] == pytest.approx((855, 99_145), abs=2)
    assert interval(draws, 0.95, 100_000)[1:] == pytest.approx((2500, 97_500), abs=2)
    noise = np.random.default_rng(1).normal(size=(5001, 1))
    low, high = simultaneous_band(noise, 0.95, 10)
    plain_low, plain_high = simultaneous_band(noise, 0.95)
    assert (high - low) / (plain_high - plain_low) == pytest.approx(2.3845 / 1.96, abs=0.03)
    # t of 9 degrees of freedom beyond 2.262 is .05 on both sides.
    draws[0] = 2.3845 * float(standard_error(draws))
    assert float(p_value(draws, 10)) == pytest.approx(0.05, abs=1e-4)


# --- the same everywhere -------------------------------------------------------------------------------------------------------------------------


def named(stats: FeatureStats, documents: Sequence[str] | None = DOCUMENTS) -> FeatureStats:
    return replace(stats, documents=None if documents is None else tuple(documents))


def three(documents: Sequence[str] | None = DOCUMENTS, **other: Any) -> dict[str, FeatureStats]:
    count = 30
    nll, predicted = np.random.default_rng(9).gamma(3, size=count), np.full(count, 4)
    more = {"nll": nll, "kl": nll / 9, "predicted": predicted, "fired": [np.full((2, 4), 9)] * 2} | other
    return {code: named(replace(random_stats(seed), **more), documents) for seed, code in enumerate(("en", "es", "hi"))}


def repeated(stats: FeatureStats, times: int) -> FeatureStats:
    """Every sentence so many times: the information is that of one."""
    rest = {name: np.repeat(getattr(stats, name), times, axis=-1) for name in ("tokens", "windows", "bytes", "words", "partial", "halves")}
    rest |= {name: np.repeat(getattr(stats, name), times, axis=-1) for name in ("activation", "l0", "l2", "top_k", "norm", "square", "error")}
    rest |= {name: np.repeat(getattr(stats, name), times) for name in ("nll", "kl", "predicted")}
    ids = tuple(f"{name}.{copy}" for name in stats.sentence_ids for copy in range(times))
    documents = tuple(name for name in stats.sentence_ids for _ in range(times))
    return replace(stats, sentence_ids=ids, documents=documents, **rest)


def tables_of(stats: dict[str, FeatureStats], settings: Statistics = SETTINGS) -> dict[str, pd.DataFrame]:
    """Every table that is drawn from statistics."""
    found = disparities(stats, LANGUAGES, settings, 3)
    measured = Measurement({("m", variant, code): s for code, s in stats.items() for variant in (BASE, ADAPTER, NORM_MATCHED)})
    changed, _ = change_frames({"m": Variants.of(measured, "m")}, LANGUAGES, settings, (0, 2), ["hi"], seed=3)
    return {
        "gap_by_layer": layer_table(found),
        "gap_by_range": range_table(found),
        "gap_by_measure": measure_table(stats, LANGUAGES, settings, 3),
        "confounds": confound_table(stats, settings, 3),
        "shuffled_labels": shuffled_table(stats, LANGUAGES, settings, 3, shuffles=3),
        "bits": change_bits_table(measured, "m", settings, 3),
        **changed,
    }


def test_every_table_says_what_was_resampled() -> None:
    for documents, settings, expected in (
        (DOCUMENTS, SETTINGS, ("documents", 10)),
        (None, SETTINGS, ("sentences", 30)),
        (None, SETTINGS.model_copy(update={"block": 4}), ("blocks", 8)),
    ):
        for name, table in tables_of(three(documents), settings).items():
            assert set(zip(table["resampled"], table["units"], strict=True)) == {expected}, name
            assert set(table["n"]) == {30}, name


def test_documents_of_one_sentence_have_the_standard_errors_of_sentences_everywhere() -> None:
    alone, single = tables_of(three([f"x{place}" for place in range(30)])), tables_of(three(None))
    for name, table in alone.items():
        estimates = [column for column in ("estimate", "gap", "effect", "activation", "value") if column in table]
        pd.testing.assert_frame_equal(table[estimates], single[name][estimates])
    assert alone["gap_by_layer"]["wider"].tolist() == [1.0] * len(alone["gap_by_layer"])


@pytest.mark.parametrize("pooling", ["token", "sentence"])
def test_sentences_that_are_there_four_times_are_no_more_information(pooling: str) -> None:
    """Four copies in a document of their own: the intervals are those of the sentences themselves, and half as wide where copies are drawn alone."""
    settings = SETTINGS.model_copy(update={"pooling": pooling})
    once = {code: named(s, [f"x{place}" for place in range(30)]) for code, s in three().items()}
    often = {code: repeated(s, 4) for code, s in once.items()}
    wanted, found = tables_of(once, settings), tables_of(often, settings)
    for name in wanted:
        columns = [column for column in ("estimate", "gap", "lo", "hi", "band_lo", "band_hi", "p", "significant") if column in wanted[name]]
        np.testing.assert_allclose(found[name][columns], wanted[name][columns], rtol=1e-9, atol=1e-12, err_msg=name)
    assert found["gap_by_layer"]["wider"].median() == pytest.approx(2, rel=0.1)
    assert found["gap_by_range"]["wider"].median() == pytest.approx(2, rel=0.1)


def test_what_is_a_mean_over_sentences_is_divided_by_those_that_were_drawn() -> None:
    """Documents of 20 sentences and of one: how many sentences a resample has varies, but a constant has no spread."""
    uneven = ("a",) * 20 + tuple(f"d{place}" for place in range(10))
    stats = three(uneven, nll=np.full(30, 7.0), tokens=np.full(30, 5))
    measured = Measurement({("m", variant, code): s for code, s in stats.items() for variant in (BASE, ADAPTER)})
    bits = change_bits_table(measured, "m", SETTINGS, 3).query("quantity == 'bits_per_sentence'")
    np.testing.assert_allclose(bits[["estimate", "lo", "hi"]], 7 / np.log(2))
    lengths = confound_table(stats, SETTINGS, 3).query("quantity == 'tokens_per_sentence'")
    np.testing.assert_allclose(lengths[["estimate", "lo", "hi"]], 5)


def test_the_order_of_sentences_within_documents_changes_nothing() -> None:
    order = np.concatenate([np.arange(start, start + 3)[::-1] for start in range(0, 30, 3)])
    turned = {}
    for code, s in three().items():
        arrays = {name: array[..., order] for name, array in vars(s).items() if isinstance(array, np.ndarray) and array.shape[-1:] == (30,)}
        turned[code] = replace(s, sentence_ids=tuple(s.sentence_ids[place] for place in order), **arrays)
    one, other = (tables_of(stats)["gap_by_layer"][["gap", "lo", "hi", "band_lo", "band_hi", "p"]] for stats in (three(), turned))
    np.testing.assert_allclose(other, one)


def test_shuffled_labels_swap_whole_documents() -> None:
    """Two documents, in each of which the language is twice as loud: swapped whole, the heaps are equal, or one has both. Sentence by sentence
    they would be mixtures of all kinds."""
    loud, quiet = stats_of(np.full((1, 40), 20.0), [10] * 40), stats_of(np.full((1, 40), 10.0), [10] * 40)
    stats = {code: named(s, ("a",) * 20 + ("b",) * 20) for code, s in (("hi", loud), ("en", quiet))}
    languages = LanguagesConfig(reference="en", high=(), low=("hi",))
    table = shuffled_table(stats, languages, SETTINGS, 0, shuffles=200).set_index(["name", "scope"])
    # Half of the shuffles swap both documents or none: every resample has the full gap, so the interval excludes 0.
    assert table.loc[("all", "mean"), "share"] == pytest.approx(0.5, abs=0.1)


def test_bits_of_held_out_text_are_drawn_by_documents() -> None:
    rng = np.random.default_rng(4)
    texts = {code: tuple("x" * int(size) for size in rng.integers(5, 40, 30)) for code in ("en", "hi")}
    plain = ParallelCorpus("t", tuple(f"s{i}" for i in range(30)), texts)
    corpus = replace(plain, documents=DOCUMENTS)
    shift = np.repeat(rng.normal(0, 0.3, 10), 3)  # what a document's sentences share
    base = {code: rng.gamma(20, 1, 30) for code in texts}
    adapters = [{code: base[code] * (1 + shift + rng.normal(0, 0.02, 30)) for code in texts} for _ in range(3)]
    how = TestSettings(resamples=400, confidence=0.9, seed=1)
    for seeds in (adapters[:1], adapters):
        one = held_out_bits(base, seeds, plain, {}, how)
        by_document = held_out_bits(base, seeds, corpus, {}, how)
        assert set(by_document["resampled"]) == {"documents"}
        assert set(by_document["units"]) == {10}
        np.testing.assert_allclose(by_document["estimate"], one["estimate"], rtol=1e-12)
        assert ((by_document["hi"] - by_document["lo"]) > 1.4 * (one["hi"] - one["lo"])).all()
        assert (by_document["mde"] > 1.4 * one["mde"]).all()
    rows = base_bits(base, corpus, how)
    assert set(zip(rows["resampled"], rows["units"], strict=True)) == {("documents", 10)}
    # Per sentence is a mean over the sentences that were drawn, whose number varies with the documents' sizes.
    uneven = replace(plain, documents=("a",) * 20 + tuple(f"d{i}" for i in range(10)))
    rows = base_bits({"en": np.full(30, 8.0)}, uneven, how).set_index("quantity")
    assert rows.loc["bits_per_sentence", ["lo", "hi"]].tolist() == pytest.approx([8 / np.log(2)] * 2)
    blocks = base_bits(base, plain, replace(how, block=5))
    assert set(zip(blocks["resampled"], blocks["units"], strict=True)) == {("blocks", 6)}


def test_similarity_and_separation_draw_documents() -> None:
    rng = np.random.default_rng(5)
    shared = np.repeat(rng.normal(size=(1, 10, 6)), 3, axis=1)
    vectors = {code: shared + 0.5 * rng.normal(size=(1, 30, 6)) for code in ("en", "hi")}
    resampling, single = Resampling.of(30, DOCUMENTS, None, None), Resampling.of_sentences(30)
    one, other = (similarity_table(vectors, (0,), "en", how, **SURE).set_index("quantity") for how in (single, resampling))
    assert set(zip(other["resampled"], other["units"], strict=True)) == {("documents", 10)}
    np.testing.assert_allclose(other["estimate"], one["estimate"])
    assert (other["floor_hi"] - other["floor"])["centred_cosine"] > 0
    # Means over sentences are drawn by documents of three sentences: a mean of one value has no spread whatever the documents' sizes.
    same = {code: np.ones((1, 30, 6)) + np.arange(30)[None, :, None] * 0 for code in ("en", "hi")}
    uneven = Resampling.of(30, ("a",) * 20 + tuple(f"d{i}" for i in range(10)), None, None)
    cosine = similarity_table(same, (0,), "en", uneven, **SURE).set_index("quantity").loc["cosine"]
    assert cosine[["estimate", "lo", "hi"]].tolist() == pytest.approx([1, 1, 1])

    halves = np.repeat(np.arange(10) % 2, 3)
    scalars = {"norm": {code: rng.normal(size=(1, 30)) + np.repeat(rng.normal(0, 3, 10), 3) for code in vectors}}
    rows = separation_table(vectors, scalars, halves, (0,), "en", resampling, **SURE)
    assert set(zip(rows["n"], rows["resampled"], rows["units"], strict=True)) == {(15, "documents", 5)}


def test_losses_under_interventions_draw_documents() -> None:
    rng = np.random.default_rng(6)
    cost = np.repeat(rng.normal(0, 1, 10), 3)
    predicted = {code: np.full(30, 5) for code in ("en", "hi")}
    base = {code: rng.gamma(20, 1, 30) for code in predicted}
    arms = (Arm("hi", "specific", "scale", 0.0),)
    losses = CausalLosses(arms, predicted, base, {code: (base[code] + cost + rng.normal(0, 0.1, 30))[None] for code in base})
    spliced = SplicedLosses((0,), predicted, base, {code: (base[code] + 9)[None] for code in base}, {"m": {c: (base[c] + cost)[None] for c in base}})
    resampling, single = Resampling.of(30, DOCUMENTS, None, None), Resampling.of_sentences(30)
    for make in (lambda how: causal_table(losses, how, **SURE), lambda how: spliced_table(spliced, how, **SURE)):
        one, other = make(single), make(resampling)
        assert set(zip(other["resampled"], other["units"], strict=True)) == {("documents", 10)}
        assert ((other["hi"] - other["lo"]) > 1.4 * (one["hi"] - one["lo"])).all()
    assert set(selectivity_table(losses, resampling, **SURE)["units"]) == {10}


def test_features_are_tested_as_if_a_document_were_one_sentence() -> None:
    halves = np.repeat(np.arange(10) % 2, 3)
    fired = {"en": 0, "es": 0, "hi": 12}
    stats = {
        code: named(
            stats_of(np.ones((1, 30)), np.full(30, 10), halves=halves, fired=[np.full((2, 4), count)], firing=[np.full((2, 4), 5 * count)],
                     profile=[np.full((2, 4), float(5 * count))])
        )
        for code, count in fired.items()
    }  # fmt: skip
    single = {code: replace(s, documents=None) for code, s in stats.items()}
    clustered, plain = (find_features(own, None).query("language == 'hi'").iloc[0] for own in (stats, single))
    # 12 of 15 sentences against none; as five documents, 4 of 5 against none: 5 of the 210 ways to place four among ten.
    assert plain["p"] == pytest.approx(5.26e-6, rel=0.01)
    assert clustered["p"] == pytest.approx(5 / 210)
    assert clustered[["n", "resampled", "units"]].tolist() == [15, "documents", 5]
    found = find_features(stats, None)
    wide, narrow = (rate_table(found.head(1), own).set_index("measured").loc["hi"] for own in (stats, single))
    assert wide["hi"] - wide["lo"] > 1.5 * (narrow["hi"] - narrow["lo"])
    assert wide["estimate"] == narrow["estimate"] == 12 / 15


# --- what is said --------------------------------------------------------------------------------------------------------------------------------


def test_words_say_what_was_resampled() -> None:
    documents, sentences = Resampling.of(30, DOCUMENTS, None, None), Resampling.of_sentences(30)
    assert text_of(documents) == "30 sentences, intervals by paired bootstrap over 10 documents"
    assert text_of(documents, "dev") == "30 sentences (dev), intervals by paired bootstrap over 10 documents"
    assert text_of(sentences) == "30 sentences"
    reading = " ".join(reading_gaps(SETTINGS, documents))
    assert "paired bootstrap over 10 documents (400 resamples), which draws the same documents for everything" in reading
    assert "Intervals from only 10 documents are rough" in reading
    assert "as if they were independent" not in reading
    assert "Sentences are resampled as if they were independent" in " ".join(reading_gaps(SETTINGS, sentences))
    assert "Whole blocks of neighbouring sentences are resampled" in " ".join(reading_gaps(SETTINGS, Resampling.of(90, None, None, 3)))


def test_cautions_are_of_few_units_and_of_blocks_without_effect() -> None:
    many = Resampling.of(60, tuple(map(str, range(60))), None, None)
    assert cautions_of(many, None) == []
    assert cautions_of(Resampling.of_sentences(20), None) == []
    assert len(cautions_of(Resampling.of_sentences(19), None)) == 1
    [said] = cautions_of(many, 5)
    assert said.startswith("statistics.block=5 has no effect")


def test_the_report_says_how_much_wider() -> None:
    often = {code: repeated(s, 4) for code, s in three().items()}
    found = disparities(often, LANGUAGES, SETTINGS, 3)
    layers, ranges = layer_table(found), range_table(found)
    text = analysis_text(layers, ranges, LANGUAGES, 0.9)
    said = f"With documents resampled, standard errors are {layers['wider'].median():.2f} times those with single sentences"
    assert said in text
    assert "for the medium-to-low-resource group" in text
    single = disparities(three(None), LANGUAGES, SETTINGS, 3)
    assert "times those with single sentences" not in analysis_text(layer_table(single), range_table(single), LANGUAGES, 0.9)


# --- on disk -------------------------------------------------------------------------------------------------------------------------------------


def corpus_of(count: int = 12) -> ParallelCorpus:
    texts = {code: tuple(f"{code} {chr(97 + place)} b c" for place in range(count)) for code in ("en", "hi")}
    documents = tuple(f"d{place // 3}" for place in range(count))
    return ParallelCorpus("t", tuple(f"s{place}" for place in range(count)), texts, documents=documents, rows=tuple(range(5, 5 + count)))


@pytest.fixture
def measured(lm: LanguageModel, make_sae: Callable[..., Any], tmp_path: Path) -> Callable[..., Path]:
    from lingact.models.sae import Dictionary

    saes = {0: Dictionary(make_sae(0), 0)}

    def once(corpus: ParallelCorpus, shard: tuple[int, int] = (0, 1)) -> Path:
        folder = tmp_path / f"stats{shard[0]}"
        measure(lm, {"m": saes}, corpus, batch_tokens=40, identity={}, wanted=Wanted(vectors=6, shard=shard), folder=folder)
        return folder

    return once


def test_statistics_on_disk_keep_documents_places_and_halves(measured: Callable[..., Path]) -> None:
    corpus = corpus_of()
    for own in (corpus, replace(corpus, documents=None)):
        folder = measured(own)
        found, _ = load_measurement(folder)
        for stats in found.stats.values():
            assert (stats.documents, stats.rows) == (own.documents, own.rows)
            np.testing.assert_array_equal(stats.halves, own.halves)
        for path in folder.iterdir():
            path.unlink()
    assert {d for d, half in zip(corpus.documents or (), corpus.halves, strict=True) if half} & {
        d for d, half in zip(corpus.documents or (), corpus.halves, strict=True) if not half
    } == set()


def test_pieces_put_together_keep_documents(measured: Callable[..., Path]) -> None:
    one, other = (load_measurement(measured(corpus_of(), (k, 2)))[0] for k in range(2))
    whole = next(iter(one.merge(other).stats.values()))
    assert (whole.documents, whole.rows) == (corpus_of().documents, corpus_of().rows)
    assert whole.resampling(None).count == 4
    strangers = {key: replace(s, documents=tuple(reversed(s.documents or ()))) for key, s in other.stats.items()}
    with pytest.raises(UserError, match="cover other sentences"):
        next(iter(one.stats.values())).merge(next(iter(strangers.values())))


def test_folders_from_before_documents_were_known_are_drawn_by_sentences(measured: Callable[..., Path]) -> None:
    import json

    folder = measured(replace(corpus_of(), documents=None))
    index = json.loads((folder / "index.json").read_text())
    write_json(folder / "index.json", {key: value for key, value in index.items() if key not in ("documents", "rows")})
    stats = next(iter(load_measurement(folder)[0].stats.values()))
    assert stats.resampling(None).by == "sentences"


def test_a_split_has_the_blocks_of_its_source() -> None:
    count = 400
    ids = tuple(f"s{place}" for place in range(count))
    corpus = ParallelCorpus("t", ids, {"en": ids}, rows=tuple(range(count))).split("heldout", Splits(train=0.5, dev=0.2, heldout=0.3))
    resampling = corpus.resampling(20)
    assert [place // 20 for place in corpus.rows or ()] == (resampling.unit + resampling.unit[0]).tolist()
    assert resampling.count == 20


def test_sampled_sentences_have_their_own_documents() -> None:
    corpus = corpus_of()
    places = sample_places(corpus.ids, 5)
    assert corpus.select(places.tolist()).resampling(None).unit.tolist() == corpus.resampling(None).part(places).unit.tolist()
