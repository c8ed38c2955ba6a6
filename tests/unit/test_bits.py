"""Bits per byte: cross-entropies against plain forward passes, and tables by hand."""

import math
from collections.abc import Hashable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from lingact.data.corpus import ParallelCorpus
from lingact.errors import UserError
from lingact.evaluation.bits_per_byte import Nats, base_bits, bits_table, sentence_nats
from lingact.models.lm import LanguageModel
from lingact.statistics.paired import TestSettings

BOS, CONTEXT = 2, 64
SETTINGS = TestSettings(resamples=400, confidence=0.95, seed=1)
TEXTS = ParallelCorpus("two", ("a", "b"), {"en": ("abcd", "efgh"), "ml": ("അ", "ആആ"), "hi": ("क", "ख")})
"""Bytes: en 4 and 4, ml 3 and 6, hi 3 and 3."""
LN2 = math.log(2)


def nats(**bits: tuple[float, float]) -> Nats:
    """Cross-entropies of the two sentences, given in bits."""
    return {code: np.array(own) * LN2 for code, own in bits.items()}


def by_language(table: pd.DataFrame) -> dict[str, dict[Hashable, Any]]:
    return {row["language"]: row for row in table.to_dict("records")}


# --- cross-entropies ----------------------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def plain(lm: LanguageModel, text: str) -> float:
    """Window by window, each behind a BOS, of what the tokenizer makes of the text."""
    ids, total = lm.tokenizer(text, add_special_tokens=False).input_ids, 0.0
    for start in range(0, len(ids), CONTEXT - 1):
        window = torch.tensor([BOS, *ids[start : start + CONTEXT - 1]])
        logp = lm.model(input_ids=window[None]).logits[0].double().log_softmax(-1)
        total -= sum(float(logp[place, token]) for place, token in enumerate(window[1:].tolist()))
    return total


def test_cross_entropies_equal_plain_forward_passes(lm: LanguageModel, corpus: ParallelCorpus) -> None:
    found = sentence_nats(lm, corpus, batch_tokens=200, title="base")
    assert {code: len(own) for code, own in found.items()} == {"en": 12, "es": 12, "hi": 12}
    for code, texts in corpus.texts.items():
        assert found[code] == pytest.approx([plain(lm, text) for text in texts], rel=1e-5), code
    longest = max(len(text.encode()) for text in corpus.texts["hi"])
    assert longest > CONTEXT, "a sentence of more than one window is among them"


@pytest.mark.parametrize("batch_tokens", [1, 70, 100_000])
def test_batches_change_nothing(batch_tokens: int, lm: LanguageModel, corpus: ParallelCorpus) -> None:
    expected = sentence_nats(lm, corpus, batch_tokens=300, title="base")
    found = sentence_nats(lm, corpus, batch_tokens=batch_tokens, title="base")
    for code in corpus.texts:
        np.testing.assert_allclose(found[code], expected[code], rtol=0, atol=1e-4)


# --- base against adapter -----------------------------------------------------------------------------------------------------------------------


def test_base_against_base_is_exactly_one() -> None:
    base = nats(en=(7, 17), ml=(3, 11), hi=(1, 5))
    table = bits_table(base, [base], TEXTS, {"low": ("ml", "hi"), "all": ("en", "ml", "hi")}, SETTINGS)
    assert list(table["language"]) == ["en", "ml", "hi", "low", "all"]
    assert (table[["estimate", "lo", "hi", "seed_lo", "seed_hi", "p", "p_holm", "p_bh"]] == 1).all(axis=None)
    assert (table["mde"] == 0).all()
    assert (table["base"][:3] == table["adapter"][:3]).all()


def test_bits_per_byte_by_hand() -> None:
    table = bits_table(nats(en=(8, 16), ml=(9, 9)), [nats(en=(16, 16), ml=(9, 4.5))], TEXTS, {}, SETTINGS)
    english, malayalam = by_language(table).values()
    assert (english["base"], english["adapter"], english["estimate"]) == pytest.approx((24 / 8, 32 / 8, 32 / 24))
    assert (malayalam["base"], malayalam["adapter"], malayalam["estimate"]) == pytest.approx((18 / 9, 13.5 / 9, 13.5 / 18))
    assert (english["n"], english["seeds"], english["languages"]) == (2, 1, 1)


def test_twice_the_cross_entropy_is_two_without_a_doubt() -> None:
    table = bits_table(nats(en=(8, 16), ml=(3, 6)), [nats(en=(16, 32), ml=(6, 12))], TEXTS, {"all": ("en", "ml")}, SETTINGS)
    assert (table[["estimate", "lo", "hi"]] == 2).all(axis=None)
    assert (table["p"] == 0).all()


def test_intervals_and_detectable_effect_are_those_of_resampled_sentences() -> None:
    # Two sentences: a quarter of the resamples holds the first twice (ratio 2), a quarter the second (ratio 1/2), the others both (32 / 24).
    table = bits_table(nats(en=(16, 8)), [nats(en=(32, 4))], TEXTS, {}, TestSettings(resamples=4000, confidence=0.95, seed=0, power=0.8))
    english = by_language(table)["en"]
    assert (english["lo"], english["estimate"], english["hi"]) == pytest.approx((0.5, 1.5, 2))
    mean = (2 + 0.5 + 2 * 1.5) / 4
    spread = math.sqrt(((2 - mean) ** 2 + (0.5 - mean) ** 2 + 2 * (1.5 - mean) ** 2) / 4)
    assert english["mde"] == pytest.approx((1.959964 + 0.841621) * spread, rel=0.03)
    assert english["p"] == pytest.approx(math.erfc(0.5 / spread / math.sqrt(2)), rel=0.05)


def test_seeds_are_averaged_and_their_range_told() -> None:
    base = nats(en=(8, 16))
    table = bits_table(base, [nats(en=(16, 32)), nats(en=(4, 8)), nats(en=(16, 0))], TEXTS, {}, SETTINGS)
    english = by_language(table)["en"]
    assert english["seeds"] == 3
    assert (english["seed_lo"], english["estimate"], english["seed_hi"]) == pytest.approx((0.5, (2 + 0.5 + 16 / 24) / 3, 2))
    assert english["adapter"] == pytest.approx((48 + 12 + 16) / 3 / 8)
    assert english["lo"] < 0.5 < 2 < english["hi"], "three seeds so far apart say little of a fourth"


def test_a_group_is_the_mean_of_its_languages_ratios_for_the_same_sentences() -> None:
    # Malayalam gains where Hindi loses: each varies, their mean does not.
    base, adapter = nats(en=(8, 8), ml=(8, 8), hi=(8, 8)), nats(en=(8, 8), ml=(12, 4), hi=(4, 12))
    found = by_language(bits_table(base, [adapter], TEXTS, {"low": ("ml", "hi"), "targets": ("ml",), "far": ("zh", "ml"), "none": ()}, SETTINGS))
    assert list(found) == ["en", "ml", "hi", "low"], "no group of one"
    assert (found["ml"]["lo"], found["ml"]["hi"]) == pytest.approx((0.5, 1.5))
    assert (found["low"]["lo"], found["low"]["estimate"], found["low"]["hi"]) == pytest.approx((1, 1, 1))
    assert (found["low"]["languages"], found["low"]["p"]) == (2, 1)
    assert math.isnan(found["low"]["base"])
    assert math.isnan(found["low"]["adapter"])
    uneven = by_language(bits_table(nats(en=(80, 80), ml=(1, 1)), [nats(en=(80, 80), ml=(2, 2))], TEXTS, {"all": ("en", "ml")}, SETTINGS))
    assert uneven["all"]["estimate"] == pytest.approx(1.5), "languages weigh the same"
    seeds = by_language(bits_table(base, [nats(ml=(8, 8), hi=(16, 16), en=(8, 8)), base], TEXTS, {"low": ("ml", "hi")}, SETTINGS))
    assert (seeds["low"]["seed_lo"], seeds["low"]["estimate"], seeds["low"]["seed_hi"]) == pytest.approx((1, 1.25, 1.5))


def test_corrections_count_languages_and_groups_apart() -> None:
    corpus = ParallelCorpus("forty", tuple(map(str, range(40))), dict.fromkeys(("en", "ml", "hi"), ("abcd",) * 40))
    rng = np.random.default_rng(5)
    base = {code: rng.uniform(5, 10, 40) for code in corpus.texts}
    adapter = {code: base[code] * (1 - size + rng.normal(0, 0.1, 40)) for code, size in (("en", 0.01), ("ml", 0.05), ("hi", 0.03))}
    found = by_language(bits_table(base, [adapter], corpus, {"low": ("ml", "hi"), "all": ("en", "ml", "hi")}, SETTINGS))
    p, holm, bh = ({name: row[column] for name, row in found.items()} for column in ("p", "p_holm", "p_bh"))
    small, middle, large = sorted(("en", "ml", "hi"), key=p.__getitem__)
    assert 0 < p[small] < p[middle] < p[large] < 1
    assert holm[small] == pytest.approx(min(1, 3 * p[small]))
    assert holm[middle] == pytest.approx(min(1, max(3 * p[small], 2 * p[middle])))
    assert bh[large] == pytest.approx(p[large])
    assert bh[middle] == pytest.approx(min(p[large], 1.5 * p[middle]))
    assert bh[small] == pytest.approx(min(p[large], 1.5 * p[middle], 3 * p[small]))
    one, other = sorted(("low", "all"), key=p.__getitem__)
    assert holm[one] == pytest.approx(2 * p[one])
    assert bh[other] == pytest.approx(p[other])


# --- the base alone -----------------------------------------------------------------------------------------------------------------------------


def test_the_base_model_in_bits_per_byte_and_per_sentence() -> None:
    table = base_bits(nats(en=(8, 16), ml=(9, 36)), TEXTS, SETTINGS)
    found = {(row["language"], row["quantity"]): (row["lo"], row["estimate"], row["hi"]) for row in table.to_dict("records")}
    assert found == {
        ("en", "bits_per_byte"): pytest.approx((2, 3, 4)),  # 8 / 4, 24 / 8, 16 / 4
        ("en", "bits_per_sentence"): pytest.approx((8, 12, 16)),
        ("ml", "bits_per_byte"): pytest.approx((3, 5, 6)),  # 9 / 3, 45 / 9, 36 / 6
        ("ml", "bits_per_sentence"): pytest.approx((9, 22.5, 36)),
    }
    assert (table["n"] == 2).all()


def test_one_sentence_has_no_interval() -> None:
    single = TEXTS.select([0])
    with pytest.raises(UserError, match="1 sentence is too few for an interval"):
        base_bits({"en": np.array([3.0])}, single, SETTINGS)
