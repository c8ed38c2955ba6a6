"""Attribution: planted norms and features come out as the parts that they are."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sae_lens.saes.standard_sae import StandardSAE, StandardSAEConfig
from torch import Tensor

from lingact.activations import attribution as module
from lingact.activations.attribution import attributed
from lingact.activations.attribution_sums import NORMS, AttributionSums
from lingact.analysis.attribution import Accounts, attribution_table, dictionary_effects, norm_table
from lingact.config.choices import set_names
from lingact.config.measures import Statistics
from lingact.data.corpus import ParallelCorpus
from lingact.models.lm import LanguageModel
from lingact.models.sae import Dictionaries, Dictionary

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


def test_sets_are_named_by_their_folders() -> None:
    one, other = Path("r/sae/equal"), Path("r/sae/en95")
    assert set_names([[one], [other]]) == {one: "equal", other: "en95"}
    again = Path("s/sae/equal")
    assert set_names([[one, again], [other]])[again] == "s/equal"
