"""Attribution: planted norms and features come out as the parts that they are."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sae_lens.saes.standard_sae import StandardSAE, StandardSAEConfig
from torch import Tensor

from lingact.activations import attribution as module
from lingact.activations.attribution import attributed
from lingact.activations.attribution_sums import NORMS, OWN, STATES, AttributionSums
from lingact.analysis.attribution import (
    BY_CHANCE,
    Accounts,
    attribution_summary,
    attribution_table,
    dictionary_effects,
    norm_table,
    parts_of,
    range_table,
)
from lingact.config.choices import set_names
from lingact.config.data import LanguagesConfig
from lingact.config.measures import Statistics
from lingact.data.corpus import ParallelCorpus
from lingact.errors import UserError
from lingact.models.lm import LanguageModel
from lingact.models.sae import Dictionaries, Dictionary
from lingact.report.attribution import attribution_lead, seeds_text
from lingact.statistics.bootstrap import Resampling

D = 32
LAYERS = (0, 2)
NORM_OF = {"en": 1.0, "hi": 0.8, "ml": 1.25}
"""Planted residual norms."""
SHARE = {"en": 1.0, "hi": 1.0, "ml": 0.5}
"""Planted share of the residual along the direction that every set knows; the rest is along one that set B alone knows."""
STATISTICS = Statistics(pooling="token", resamples=200, confidence=0.95, early="third", deep="third")


def direction(index: int) -> Tensor:
    return torch.nn.functional.one_hot(torch.tensor(index), D).float()


def planted(code: str, tokens: int) -> Tensor:
    """Residuals along two directions: |x| = NORM_OF, and x = SHARE e_0 + rest e_1 up to that norm."""
    x = SHARE[code] * direction(0) + (1 - SHARE[code]) * direction(1)
    return (NORM_OF[code] * x / x.norm()).expand(tokens, D).clone()


def detector(*indices: int) -> Dictionaries:
    """SAEs with a latent for each direction, which fires by its coefficient."""
    found = {}
    for layer in LAYERS:
        sae = StandardSAE(StandardSAEConfig(d_in=D, d_sae=len(indices), apply_b_dec_to_input=False))
        rows = torch.stack([direction(index) for index in indices])
        sae.W_dec.data, sae.W_enc.data = rows, rows.T.clone()
        found[layer] = Dictionary(sae, layer)
    return found


@pytest.fixture
def corpus() -> ParallelCorpus:
    texts = {code: tuple(f"{code} {number} word" for number in range(12)) for code in NORM_OF}
    return ParallelCorpus("planted", tuple(map(str, range(12))), texts, documents=tuple(f"d{number // 2}" for number in range(12)))


@pytest.fixture
def sums(lm: LanguageModel, corpus: ParallelCorpus, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., AttributionSums]:
    """`sums(**sets)`: of planted residuals. The language of a batch is known by its first letters."""
    first = {tuple(lm.tokens.tokenizer(f"{code} ", add_special_tokens=False).input_ids): code for code in NORM_OF}

    def language(ids: Tensor) -> str:
        return next(code for start, code in first.items() if ids[1 : 1 + len(start)].tolist() == list(start))

    def residuals(model: Any, batch: Any, layers: tuple[int, ...], **_: Any) -> tuple[dict[int, Tensor], None]:
        x = planted(language(batch.ids[0]), int(batch.keep.sum()))
        return dict.fromkeys(layers, x), None

    monkeypatch.setattr(module, "kept_residuals", residuals)
    samples = torch.cat([planted(code, 50) for code in NORM_OF])
    monkeypatch.setattr(module, "pooled_sample", lambda *_, **__: dict.fromkeys(LAYERS, samples))

    def of(set_a: dict[str, Dictionaries], set_b: dict[str, Dictionaries]) -> AttributionSums:
        given = {"batch_tokens": 64, "header": {"model": "planted"}, "folder": tmp_path / "sums"}
        found = attributed(lm, (set_a, set_b), corpus, "en", **given)
        again = AttributionSums.load(tmp_path / "sums", NORM_OF)
        assert all(np.array_equal(found.activation[code], again.activation[code]) for code in NORM_OF)
        assert (found.set_a, found.layers) == (again.set_a, again.layers)
        return found

    return of


def accounts(found: AttributionSums, corpus: ParallelCorpus) -> Accounts:
    return Accounts(found, "en", STATISTICS, corpus.resampling(None), 0)


def test_planted_parts_come_out(sums: Callable[..., AttributionSums], corpus: ParallelCorpus) -> None:
    table = attribution_table(accounts(sums({"a": detector(0)}, {"b": detector(0, 1)}), corpus))
    found = table.set_index(["language", "layer", "measure", "order", "part"])["estimate"]
    # By hand: A sees e_0 alone, B sees both; en has e_0 alone.
    length = {code: np.hypot(SHARE[code], 1 - SHARE[code]) for code in SHARE}
    seen_a = {code: NORM_OF[code] * SHARE[code] / length[code] for code in SHARE}
    seen_b = {code: NORM_OF[code] / length[code] for code in SHARE}
    for code in ("hi", "ml"):
        norm = np.log(NORM_OF[code])
        dictionary = np.log(seen_a[code]) - np.log(seen_b[code])
        expected = {"norm": norm, "dictionary": dictionary, "remainder": np.log(seen_b[code]) - norm, "total": np.log(seen_a[code])}
        for layer in LAYERS:
            for order in ("norm_first", "dictionary_first", "mean"):
                for part, value in expected.items():
                    for measure in ("mean", "token_norm"):
                        assert found[code, layer, measure, order, part] == pytest.approx(value, abs=1e-6)
    assert found["hi", 0, "mean", "mean", "dictionary"] == pytest.approx(0, abs=1e-9), "hi is known to both"
    assert found["hi", 0, "mean", "mean", "norm"] < -0.2 < 0.2 < found["ml", 0, "mean", "mean", "norm"]
    assert (table["documents"] == 6).all()


def test_parts_add_up_in_every_order(sums: Callable[..., AttributionSums], corpus: ParallelCorpus, make_sae: Any) -> None:
    random = {name: {layer: Dictionary(make_sae(layer + seed), layer) for layer in LAYERS} for name, seed in (("a", 0), ("b", 5))}
    table = attribution_table(accounts(sums({"a": random["a"]}, {"b": random["b"]}), corpus))
    wide = table.pivot_table(index=["language", "layer", "measure", "order"], columns="part", values="estimate")
    assert np.allclose(wide["norm"] + wide["dictionary"] + wide["remainder"], wide["total"])
    assert wide["norm"].abs().max() > 0.01


def test_norms_by_kind(sums: Callable[..., AttributionSums], corpus: ParallelCorpus) -> None:
    table = norm_table(accounts(sums({"a": detector(0)}, {"b": detector(1)}), corpus)).set_index(["language", "layer", "norm"])
    centre = torch.stack([planted(code, 1)[0] for code in NORM_OF]).mean(dim=0)
    for code, norm in NORM_OF.items():
        x = planted(code, 1)[0]
        assert table.loc[(code, 0, "raw"), "estimate"] == pytest.approx(norm)
        assert table.loc[(code, 0, "raw"), "ratio"] == pytest.approx(norm / NORM_OF["en"])
        assert table.loc[(code, 0, "centred"), "estimate"] == pytest.approx(float((x - centre).norm()), rel=1e-5)
    largest = module.largest_dimensions(torch.cat([planted(code, 50) for code in NORM_OF]))
    assert largest.sum() == 1
    for code in NORM_OF:
        expected = float((planted(code, 1)[0] * ~largest).norm())
        assert table.loc[(code, 0, "without_largest"), "estimate"] == pytest.approx(expected, rel=1e-5)
    assert set(table.index.get_level_values("norm")) == set(NORMS)


def test_norms_that_vary_within_a_language_tell_the_measures_apart(
    sums: Callable[..., AttributionSums], corpus: ParallelCorpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One factor leaves the spread of norms; equalising each token's norm does not. A threshold makes the difference visible."""
    real = planted

    def spread(code: str, tokens: int) -> Tensor:
        x = real(code, tokens)
        return x * torch.tensor([0.2, 1.8]).repeat(tokens)[:tokens, None] if code == "hi" else x

    monkeypatch.setitem(globals(), "planted", spread)
    shy = detector(0)
    for dictionary in shy.values():
        dictionary.sae.b_enc.data.fill_(-0.5)
    table = attribution_table(accounts(sums({"a": shy}, {"b": detector(0)}), corpus))
    found = table.set_index(["language", "layer", "measure", "order", "part"])["estimate"]
    assert abs(found["hi", 0, "mean", "norm_first", "norm"] - found["hi", 0, "token_norm", "norm_first", "norm"]) > 0.05


def test_a_mix_effect_has_to_be_larger_than_that_of_seeds(sums: Callable[..., AttributionSums], corpus: ParallelCorpus) -> None:
    """ml has two directions. Of one mix all seeds know the second one; of the other none, or by chance one of them."""
    certain = dictionary_effects(accounts(sums({"a0": detector(0), "a1": detector(0)}, {"b0": detector(0, 1), "b1": detector(0, 1)}), corpus))
    ml = certain[(certain["language"] == "ml") & (certain["measure"] == "mean")]
    assert (ml["seed_spread"] == 0).all()
    assert ml["beyond_seeds"].all()
    hi = certain[(certain["language"] == "hi") & (certain["measure"] == "mean")]
    assert not hi["beyond_seeds"].any()


def test_chance_between_seeds_is_no_mix_effect(sums: Callable[..., AttributionSums], corpus: ParallelCorpus) -> None:
    found = accounts(sums({"a0": detector(0), "a1": detector(0, 1)}, {"b0": detector(0, 1), "b1": detector(0, 1)}), corpus)
    effects = dictionary_effects(found)
    ml = effects[(effects["language"] == "ml") & (effects["measure"] == "mean")]
    assert (ml["estimate"].abs() < ml["seed_spread"]).all()
    assert not ml["beyond_seeds"].any()
    table = attribution_table(found)
    chance = table[(table["set_a"] == "a0") & (table["set_b"] == "a1")]
    assert set(chance["part"]) == {"dictionary"}


def test_one_seed_of_each_leaves_the_effect_open(sums: Callable[..., AttributionSums], corpus: ParallelCorpus) -> None:
    effects = dictionary_effects(accounts(sums({"a": detector(0)}, {"b": detector(0, 1)}), corpus))
    assert effects["beyond_seeds"].isna().all()
    assert effects["seed_spread"].isna().all()


@pytest.mark.parametrize(
    ("mixes", "names"),
    [
        ([["r/sae/equal"], ["r/sae/en95"]], ["equal", "en95"]),
        ([["r/sae/equal", "s/sae/equal"], ["r/sae/en", "s/sae/en"]], ["r/equal", "s/equal", "r/en", "s/en"]),
        ([["x/sae"], ["x/sae_heldout"]], ["sae", "sae_heldout"]),
        ([["x/sae/a"], ["x/a"]], ["a", "x/a"]),
        ([["y/x/a"], ["y/sae/x/a"]], ["y/x/a", "x/a"]),
    ],
)
def test_sets_are_named_by_their_folders(mixes: list[list[str]], names: list[str]) -> None:
    assert list(set_names([list(map(Path, mix)) for mix in mixes]).values()) == names


# --- a real model ----------------------------------------------------------------------------------------------------------------------------------

LETTERS = {"en": "abcd", "hi": "efgh", "ml": "ijkl"}
LENGTHS = {"en": (3, 3, 3, 3), "hi": (2, 2, 2, 2), "ml": (1, 2, 5, 8)}
"""Norm of the residual of each letter; of ml the norms vary."""
SHARED = {"en": 0.9, "hi": 0.6, "ml": 0.8}
"""Cosine of each residual with e_0, which both sets know; the rest is along a direction of the language, which only B knows."""
DIRECTION = {"en": 1, "hi": 2, "ml": 3}
SILENT = 0.95
"""Latents are silent up to this length."""


def letter(code: str, place: int) -> np.ndarray:
    x = np.zeros(D)
    x[0], x[DIRECTION[code]] = SHARED[code], (1 - SHARED[code] ** 2) ** 0.5
    return LENGTHS[code][place] * x


@pytest.fixture
def planted_lm(lm: LanguageModel) -> LanguageModel:
    """A model whose residuals are its embeddings, which are the planned letters."""
    with torch.no_grad():
        for name, weight in lm.model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.zero_()
        embedding = lm.model.get_input_embeddings().weight
        for code, letters in LETTERS.items():
            for place, each in enumerate(letters):
                embedding[lm.tokenizer.convert_tokens_to_ids(each)] = torch.from_numpy(letter(code, place) / D**0.5).float()  # Gemma multiplies by it
    return lm


def by_hand() -> dict[str, dict[tuple[str, str], float]]:
    """Language -> (set, state) -> activation of a token, from the plan alone."""
    x = {code: np.stack([letter(code, place) for place in range(4)]) for code in LETTERS}
    centre = np.mean([own.mean(axis=0) for own in x.values()], axis=0)
    largest = np.concatenate(list(x.values())).var(axis=0).argmax()
    norms = {
        "mean": {code: np.linalg.norm(own, axis=1).mean() for code, own in x.items()},
        "centred": {code: np.linalg.norm(own - centre, axis=1).mean() for code, own in x.items()},
        "without_largest": {code: np.linalg.norm(np.delete(own, largest, axis=1), axis=1).mean() for code, own in x.items()},
    }
    found = {}
    for code, own in x.items():
        factor = {kind: norm["en"] / norm[code] if norm[code] else np.nan for kind, norm in norms.items()}
        states = {
            "own": own,
            "mean": factor["mean"] * own,
            "centred": centre + factor["centred"] * (own - centre),
            "without_largest": factor["without_largest"] * own,
            "token_norm": norms["mean"]["en"] * own / np.linalg.norm(own, axis=1, keepdims=True),
        }
        seen = {"a": [0], "b": [0, *DIRECTION.values()]}
        found[code] = {
            (name, state): np.where(z[:, known] > SILENT, z[:, known], 0).sum(axis=1).mean()
            for name, known in seen.items()
            for state, z in states.items()
        }
    return found


def threshold_saes(make_sae: Any, *directions: int) -> Dictionaries:
    """JumpReLU SAEs with a latent for each direction."""
    found = {}
    for layer in LAYERS:
        sae = make_sae(layer, width=len(directions))
        rows = torch.stack([direction(index) for index in directions])
        sae.W_dec.data, sae.W_enc.data = rows, rows.T.clone()
        sae.b_enc.data.zero_()
        sae.b_dec.data.zero_()
        sae.threshold.data.fill_(SILENT)
        found[layer] = Dictionary(sae, layer)
    return found


def letters_corpus() -> ParallelCorpus:
    """Every sentence has each letter equally often, so that the sample has the mean of all tokens."""
    texts = {code: tuple(letters * times for times in range(1, 9)) for code, letters in LETTERS.items()}
    return ParallelCorpus("letters", tuple(map(str, range(8))), texts)


@pytest.fixture
def through_a_model(planted_lm: LanguageModel, make_sae: Any, tmp_path: Path) -> Accounts:
    corpus = letters_corpus()
    mixes = ({"a": threshold_saes(make_sae, 0)}, {"b": threshold_saes(make_sae, 0, *DIRECTION.values())})
    found = attributed(planted_lm, mixes, corpus, "en", batch_tokens=64, header={"model": "planted"}, folder=tmp_path / "sums")
    return Accounts(found, "en", STATISTICS, corpus.resampling(None), 0)


def test_every_part_of_a_planted_model_comes_out(through_a_model: Accounts) -> None:
    table = attribution_table(through_a_model).set_index(["language", "layer", "measure", "order", "part"])["estimate"]
    expected = by_hand()
    for code in ("hi", "ml"):
        d = {key: np.log(value / expected["en"][key]) for key, value in expected[code].items()}
        for measure in STATES[1:]:
            parts = {
                ("norm_first", "norm"): d["a", "own"] - d["a", measure],
                ("norm_first", "dictionary"): d["a", measure] - d["b", measure],
                ("dictionary_first", "norm"): d["b", "own"] - d["b", measure],
                ("dictionary_first", "dictionary"): d["a", "own"] - d["b", "own"],
            }
            parts |= {("mean", part): (parts["norm_first", part] + parts["dictionary_first", part]) / 2 for part in ("norm", "dictionary")}
            parts |= {(order, "remainder"): d["b", measure] for order in ("norm_first", "dictionary_first", "mean")}
            parts |= {(order, "total"): d["a", "own"] for order in ("norm_first", "dictionary_first", "mean")}
            for layer in LAYERS:
                for (order, part), value in parts.items():
                    assert table[code, layer, measure, order, part] == pytest.approx(value, abs=1e-6), (code, measure, order, part)
    # What was planted: most of hi is along a direction that A lacks; the norms of ml vary, and its short letters are silent.
    assert table["hi", 0, "mean", "mean", "dictionary"] < -0.4
    assert abs(table["ml", 0, "mean", "mean", "norm"] - table["ml", 0, "token_norm", "mean", "norm"]) > 0.05


def test_norms_without_the_largest_dimension(through_a_model: Accounts) -> None:
    norms = norm_table(through_a_model).set_index(["language", "layer", "norm"])
    for code, lengths in LENGTHS.items():
        expected = {"raw": np.mean(lengths), "without_largest": np.mean(lengths) * (1 - SHARED[code] ** 2) ** 0.5}
        for kind, value in expected.items():
            assert norms.loc[(code, 2, kind), "estimate"] == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize("stop", [3, 11, 16])
def test_passes_that_were_interrupted_go_on(
    stop: int, planted_lm: LanguageModel, make_sae: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mixes = ({"a": threshold_saes(make_sae, 0)}, {"b": threshold_saes(make_sae, 0, *DIRECTION.values())})
    given = {"batch_tokens": 64, "header": {"model": "planted"}}
    whole = attributed(planted_lm, mixes, letters_corpus(), "en", folder=tmp_path / "whole", **given)
    monkeypatch.setattr("lingact.runtime.resumable_passes.SAVE_EVERY", 0.0)
    real, read = module.kept_residuals, []

    def counted(*given: Any, **named: Any) -> Any:
        read.append(given)
        if len(read) == stop:
            raise KeyboardInterrupt
        return real(*given, **named)

    monkeypatch.setattr(module, "kept_residuals", counted)
    with pytest.raises(KeyboardInterrupt):
        attributed(planted_lm, mixes, letters_corpus(), "en", folder=tmp_path / "cut", **given)
    with pytest.raises(UserError):
        AttributionSums.load(tmp_path / "cut", LETTERS)
    again = attributed(planted_lm, mixes, letters_corpus(), "en", folder=tmp_path / "cut", **given)
    assert len(read) == len(list(itertools.chain(*batches(planted_lm)))) * 2 + 1, "no batch that was saved is read again"
    for code in LETTERS:
        assert np.array_equal(whole.norms[code], again.norms[code])
        assert np.array_equal(whole.activation[code], again.activation[code])


def batches(lm: LanguageModel) -> list[list[Any]]:
    return [list(lm.tokens.batches(lm.tokens.windows(texts), 64)) for texts in letters_corpus().texts.values()]


def test_processes_find_what_one_finds(planted_lm: LanguageModel, make_sae: Any, apart: Callable[..., list[Any]], tmp_path: Path) -> None:
    mixes = ({"a": threshold_saes(make_sae, 0)}, {"b": threshold_saes(make_sae, 0, *DIRECTION.values())})
    given = {"batch_tokens": 64, "header": {"model": "planted"}}
    alone = attributed(planted_lm, mixes, letters_corpus(), "en", folder=tmp_path / "one", **given)
    found = apart(2, lambda _: attributed(planted_lm, mixes, letters_corpus(), "en", folder=tmp_path / "two", **given))
    for sums in (*found, AttributionSums.load(tmp_path / "two", LETTERS)):
        for code in LETTERS:
            assert np.array_equal(sums.tokens[code], alone.tokens[code])
            np.testing.assert_allclose(sums.norms[code], alone.norms[code], rtol=1e-12)
            np.testing.assert_allclose(sums.activation[code], alone.activation[code], rtol=1e-12)


def test_passes_of_something_else_are_not_continued(planted_lm: LanguageModel, make_sae: Any, tmp_path: Path) -> None:
    mixes = ({"a": threshold_saes(make_sae, 0)}, {"b": threshold_saes(make_sae, 0, 1)})
    given = {"batch_tokens": 64, "header": {"model": "planted"}, "folder": tmp_path}
    attributed(planted_lm, mixes, letters_corpus(), "en", **given)
    with pytest.raises(UserError, match="does not belong here; it differs in reference: en / hi"):
        attributed(planted_lm, mixes, letters_corpus(), "hi", **given)


# --- intervals and tables --------------------------------------------------------------------------------------------------------------------------


def written(
    rng: np.random.Generator, *, documents: int, sets: tuple[tuple[str, ...], tuple[str, ...]] = (("a",), ("b",)), spread: float = 0.3
) -> Accounts:
    """Sums of en and hi on three sentences a document, with a log ratio of -0.5 in every state and set that varies with the document."""
    count = 3 * documents
    shared, own = (np.repeat(rng.normal(0, spread, documents), 3) for _ in range(2))
    tokens = {code: rng.integers(5, 30, count) for code in ("en", "hi")}
    level = {"en": np.exp(shared), "hi": np.exp(shared + own - spread**2 / 2 - 0.5)}
    number = len(sets[0]) + len(sets[1])
    sums = AttributionSums(
        layers=(0,),
        set_a=sets[0],
        set_b=sets[1],
        tokens=tokens,
        norms={code: np.ones((len(NORMS), 1, count)) * tokens[code] for code in tokens},
        activation={code: np.broadcast_to(level[code] * tokens[code], (number, len(STATES), 1, count)).copy() for code in tokens},
    )
    names = [f"d{place // 3}" for place in range(count)]
    return Accounts(sums, "en", STATISTICS, Resampling.of(count, names, None, None), 0)


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    rng, inside = np.random.default_rng(20261127), 0
    for _ in range(200):
        accounts = written(rng, documents=40)
        cells = accounts.cells(parts_of(accounts.log_ratios("hi"), "mean", "a", "b")["mean", "total"])
        inside += int(cells["lo"][0] <= -0.5 <= cells["hi"][0])
    assert 0.9 <= inside / 200 <= 0.99


def test_parts_without_spread_have_intervals_without_width() -> None:
    """Norm and dictionary change nothing here: whatever documents are drawn, both parts are 0, and only the remainder is uncertain."""
    accounts = written(np.random.default_rng(0), documents=12)
    table = attribution_table(accounts)
    for part in ("norm", "dictionary"):
        own = table[table["part"] == part]
        assert (own[["estimate", "lo", "hi"]].abs() < 1e-12).all(axis=None)
    rest = table[table["part"] == "remainder"]
    assert (rest["lo"] < rest["estimate"]).all()
    assert (rest["estimate"] < rest["hi"]).all()
    assert (table["documents"] == 12).all()
    assert (table["n"] == 36).all()


def test_a_table_names_documents_only_where_documents_are_drawn() -> None:
    accounts = written(np.random.default_rng(0), documents=12)
    table = norm_table(Accounts(accounts.sums, "en", STATISTICS, accounts.resampling.by_sentence(), 0))
    assert table["documents"].isna().all()
    assert set(table["resampled"]) == {"sentences"}
    assert set(table["units"]) == {36}


def test_ranges_and_summary_are_means_over_pairs_of_seeds() -> None:
    accounts = written(np.random.default_rng(0), documents=12, sets=(("a0", "a1"), ("b0", "b1")))
    accounts.sums.activation["hi"][1] *= 2  # a1
    table = attribution_table(accounts)
    total = table[(table["part"] == "total") & (table["measure"] == "mean") & (table["order"] == "mean")].set_index("set_a")["estimate"]
    assert total["a1"] - total["a0"] == pytest.approx(np.log(2))
    assert attribution_summary(table, accounts)["attribution/hi/0/total"] == pytest.approx(total.mean())
    ranges = range_table(accounts, LanguagesConfig(reference="en", high=(), low=("hi",)))
    both = ranges[(ranges["part"] == "total") & (ranges["measure"] == "mean") & (ranges["range"] == "all")].set_index("name")["estimate"]
    assert both["hi"] == both["low"] == pytest.approx(total.mean())
    assert "high" not in both
    effects = dictionary_effects(accounts)
    assert set(effects["set_a"]) == {"a0 + a1"}
    assert effects["seed_spread"].tolist() == pytest.approx([np.log(2)] * 4)


def test_chance_exceeds_the_spread_of_few_seeds_as_often_as_the_report_says() -> None:
    rng, draws = np.random.default_rng(20261127), 20_000
    for seeds, share in BY_CHANCE.items():
        a, b = rng.normal(size=(2, draws, seeds))
        exceeds = np.abs((a - b).mean(axis=1)) > np.maximum(np.ptp(a, axis=1), np.ptp(b, axis=1))
        assert exceeds.mean() == pytest.approx(share, abs=0.01)


def test_the_report_says_what_seeds_allow() -> None:
    one = dictionary_effects(written(np.random.default_rng(0), documents=12))
    assert "nobody knows whether a dictionary part is of the mix or of chance" in seeds_text(one)
    accounts = written(np.random.default_rng(0), documents=12, sets=(("a0", "a1"), ("b0", "b1")))
    accounts.sums.activation["hi"][:2] *= 2
    text = seeds_text(dictionary_effects(accounts))
    assert "in 1 of 1 pairs of language and layer; languages with any: 1 (Hindi)." in text
    assert "about 22% of the pairs would exceed the spread of 2 seeds" in text


def test_the_lead_gives_the_parts_of_each_group() -> None:
    accounts = written(np.random.default_rng(0), documents=12)
    ranges = range_table(accounts, LanguagesConfig(reference="en", high=(), low=("hi",)))
    lead = attribution_lead(ranges, "en", ("a", "b"))
    assert lead.startswith(
        "Log ratio of activation to English, mean over layers, by A (a), divided between norm and dictionary (B: b): medium-to-low-resource -0."
    )
    assert "= norm 0.00 [0.00, 0.00], dictionary 0.00 [0.00, 0.00], remainder -0." in lead
    assert lead.endswith("This is accounting, and names no cause.")
    assert attribution_lead(ranges[ranges["name"] == "hi"], "en", ("a", "b")) == ""


def test_a_silent_language_has_no_log_ratio() -> None:
    accounts = written(np.random.default_rng(0), documents=12)
    accounts.sums.activation["hi"][0, STATES.index(OWN)] = 0
    table = attribution_table(accounts).set_index(["measure", "order", "part"])
    assert pd.isna(table.loc[("mean", "mean", "total"), "estimate"])
    assert not pd.isna(table.loc[("mean", "mean", "remainder"), "estimate"])
