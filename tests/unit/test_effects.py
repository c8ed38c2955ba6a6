"""Tables of effects against numbers worked out by hand, and text that says what they carry."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm
from statsmodels.stats.multitest import multipletests

from lingact.activations.edited_losses import Arm, CausalLosses, SplicedLosses
from lingact.analysis.effects import causal_table, causal_text, is_monotone, of_variant, selectivity_table, spliced_table
from lingact.config.data import LanguagesConfig
from lingact.report.confounds import spliced_change_text, wide_spliced
from lingact.report.interventions import causal_change_text
from lingact.statistics.bootstrap import Resampling

SETTINGS: dict[str, Any] = {"resamples": 400, "confidence": 0.9, "seed": 3}
PREDICTED = np.array([2, 3, 5])


def causal(effects: dict[tuple[str, str, str, float], dict[str, float]], *, noise: float = 0.0, sentences: int = 40) -> CausalLosses:
    """Losses in which the arm (owner, kind, mode, dose) costs each measured language so many nats per predicted token."""
    rng = np.random.default_rng(0)
    codes = list(next(iter(effects.values())))
    predicted = {code: rng.integers(3, 9, sentences) for code in codes}
    base = {code: rng.gamma(4, 2, sentences) for code in codes}
    nll = {
        code: np.stack([base[code] + predicted[code] * (cost[code] + noise * rng.normal(size=sentences)) for cost in effects.values()])
        for code in codes
    }
    return CausalLosses(tuple(Arm(*key) for key in effects), predicted, base, nll)


def drawn(losses: CausalLosses | SplicedLosses) -> Resampling:
    return Resampling.of_sentences(len(next(iter(losses.base.values()))))


def cell(table: pd.DataFrame, **where: Any) -> Any:
    """The one row that has these values."""
    rows = table
    for name, value in where.items():
        rows = rows[rows[name] == value]
    assert len(rows) == 1
    return rows.iloc[0]


def test_splicing_by_hand() -> None:
    base = np.array([2.0, 3.0, 5.0])
    losses = SplicedLosses(
        layers=(1, 4),
        predicted={"en": PREDICTED},
        base={"en": base},
        zero={"en": np.stack([base + 4 * PREDICTED, base - 1])},
        spliced={"measuring": {"en": np.stack([base + PREDICTED, [2.0, 3.0, 7.0]])}},
    )
    table = spliced_table(losses, drawn(losses), **SETTINGS)
    assert list(table.columns) == ["sae_set", "language", "layer", "quantity", "n", "resampled", "units", "estimate", "lo", "hi"]
    # One nat per token in every sentence: no uncertainty. Zeros cost four.
    constant = cell(table, layer=1, quantity="ce_increase")
    assert constant[["n", "estimate", "lo", "hi"]].tolist() == pytest.approx([3, 1, 1, 1])
    assert cell(table, layer=1, quantity="loss_recovered")[["estimate", "lo", "hi"]].tolist() == pytest.approx([0.75] * 3)
    # Two nats over ten tokens, all of them in the third sentence.
    uneven = cell(table, layer=4, quantity="ce_increase")
    assert uneven["estimate"] == pytest.approx(0.2)
    assert uneven["lo"] == 0
    # Only resamples of nothing but the third sentence, one in 27, have two nats for five tokens.
    assert 0.2 < uneven["hi"] < 0.4
    assert np.isnan(cell(table, layer=4, quantity="loss_recovered")["estimate"]), "zeros are better than the model, so there is no scale"


def test_the_interval_of_an_effect_is_the_paired_bootstrap_of_a_ratio_of_sums() -> None:
    losses = causal({("es", "specific", "scale", 0.0): {"en": 0.1, "es": 0.5, "hi": 0.2}}, noise=0.3)
    draws = {}
    for code in ("en", "es", "hi"):
        change = losses.nll[code][0] - losses.base[code]
        draws[code] = np.array([(w * change).sum() / (w * losses.predicted[code]).sum() for w in Resampling.of_sentences(40).weights(400, 3)])
    table = causal_table(losses, drawn(losses), **SETTINGS)
    assert list(table.columns) == ["owner", "kind", "mode", "dose", "measured", "n", "resampled", "units", "estimate", "lo", "hi"]
    for code, own in draws.items():
        row = cell(table, measured=code)
        assert row[["n", "estimate"]].tolist() == pytest.approx([40, own[0]])
        assert row[["lo", "hi"]].tolist() == pytest.approx(np.quantile(own[1:], [0.05, 0.95]))
    paired = draws["es"] - (draws["en"] + draws["hi"]) / 2
    row = cell(selectivity_table(losses, drawn(losses), **SETTINGS), contrast="own_minus_others")
    assert row[["estimate", "lo", "hi"]].tolist() == pytest.approx([paired[0], *np.quantile(paired[1:], [0.05, 0.95])])


def test_contrasts_by_hand() -> None:
    losses = causal(
        {
            ("es", "specific", "scale", 0.0): {"en": 0.1, "es": 0.7, "hi": 0.3},
            ("es", "random", "scale", 0.0): {"en": 0.2, "es": 0.3, "hi": 0.2},
            ("es", "specific", "scale", 1.0): {"en": 0.0, "es": 0.0, "hi": 0.0},
            ("hi", "diffmean", "scale", 0.0): {"en": 0.0, "es": 0.2, "hi": 0.0},
        }
    )
    table = selectivity_table(losses, drawn(losses), **SETTINGS)
    contrasts = {(row.owner, row.kind, row.dose, row.contrast): row.estimate for row in table.itertuples()}
    assert contrasts == {
        ("es", "specific", 0, "own_minus_others"): pytest.approx(0.5),
        ("es", "specific", 0, "own_minus_random"): pytest.approx(0.4),
        ("es", "random", 0, "own_minus_others"): pytest.approx(0.1),
        ("es", "specific", 1, "own_minus_others"): 0,  # no random control at this dose
        ("hi", "diffmean", 0, "own_minus_others"): pytest.approx(-0.1),
    }
    assert cell(table, dose=1.0)["p"] == 1


def test_repeats_of_an_arm_are_averaged() -> None:
    one = {("es", "random", "scale", 0.0): {"en": 0.1, "es": 0.2}}
    losses = causal(one)
    twice = CausalLosses(
        losses.arms * 2,
        losses.predicted,
        losses.base,
        {code: np.concatenate([nll, nll + 0.6 * losses.predicted[code]]) for code, nll in losses.nll.items()},
    )
    table = causal_table(twice, drawn(twice), **SETTINGS)
    assert table["estimate"].tolist() == pytest.approx([0.4, 0.5])


def test_p_is_that_of_a_normal_distribution_and_holm_corrects_over_owners() -> None:
    codes = ("en", "es", "hi", "it")
    effects = {(owner, "specific", "scale", 0.0): {code: 0.12 * number * (code == owner) for code in codes} for number, owner in enumerate(codes)}
    losses = causal(effects | {("en", "specific", "scale", 2.0): dict.fromkeys(codes, 0.0)}, noise=0.4)
    table = selectivity_table(losses, drawn(losses), **SETTINGS)
    family = table[table["dose"] == 0]
    assert family["p"].is_monotonic_decreasing
    _, corrected, _, _ = multipletests(family["p"], method="holm")
    assert family["p_holm"].tolist() == pytest.approx(corrected)
    alone = cell(table, dose=2.0)
    assert alone["p_holm"] == alone["p"], "a family of one"
    # The paired difference is nearly a mean of 40 independent numbers: z agrees with the textbook's within the bootstrap's error.
    own, others = (
        [(losses.nll[code][3] - losses.base[code]) / losses.predicted[code] for code in chosen] for chosen in (("it",), ("en", "es", "hi"))
    )
    difference = np.mean(own, axis=0) - np.mean(others, axis=0)
    z = difference.mean() / (difference.std(ddof=1) / 40**0.5)
    row = cell(table, owner="it")
    assert norm.isf(row["p"] / 2) == pytest.approx(z, rel=0.25)


def curve(doses: Sequence[float], estimates: Sequence[float]) -> pd.DataFrame:
    return pd.DataFrame({"dose": doses, "estimate": estimates})


@pytest.mark.parametrize(
    ("doses", "estimates", "neutral", "answer"),
    [
        ([0, 0.5, 1, 2, 4], [0.5, 0.1, 0, 0.2, 0.9], 1.0, True),
        ([4, 0, 2, 0.5], [0.9, 0.5, 0.2, 0.1], 1.0, True),
        ([0, 0.5, 2, 4], [0.1, 0.5, 0.2, 0.9], 1.0, False),
        ([0, 2, 4], [0.5, 0.2, 0.1], 1.0, False),
        ([0.5, 1], [-0.1, 0.2], 0.0, False),
        ([0, 2], [0.5, 0.2], 1.0, None),
    ],
)
def test_growth_away_from_the_neutral_dose(doses: list[float], estimates: list[float], neutral: float, answer: bool | None) -> None:
    assert is_monotone(curve(doses, estimates), neutral) is answer


def said(losses: CausalLosses) -> str:
    return causal_text(selectivity_table(losses, drawn(losses), **SETTINGS), causal_table(losses, drawn(losses), **SETTINGS), confidence=0.9)


def test_the_text_counts_languages_and_says_nulls() -> None:
    codes = ("en", "es", "hi")
    effects = {}
    for owner, own, random in (("es", 0.9, 0.1), ("hi", 0.9, 0.9), ("en", 0.0, 0.0)):
        effects[owner, "specific", "scale", 0.0] = {code: own if code == owner else 0.0 for code in codes}
        effects[owner, "random", "scale", 0.0] = dict.fromkeys(codes, random)
        for dose, cost in ((2.0, 0.1), (4.0, 0.4 if owner == "es" else 0.0)):
            effects[owner, "specific", "scale", dose] = dict.fromkeys(codes, cost)
    losses = causal(effects, noise=0.05)
    table, text = causal_table(losses, drawn(losses), **SETTINGS), said(losses)
    mean = np.mean([cell(table, owner=code, kind="specific", dose=0.0, measured=code)["estimate"] for code in codes])
    assert f"raises its own loss for 2 of 3 languages (es, hi) (90% intervals above 0); the mean change is +{mean:.3g} nats" in text
    assert "This change lies above the mean change of the other languages for 2 of 3 languages (es, hi) and falls short of it for 0 of 3" in text
    assert "It lies above the change under ablation of random latents that fire as often and as strongly for 1 of 3 languages (es)" in text
    assert "no difference is shown for 2." in text
    assert "lies above both comparisons: es." in text
    assert "nothing for 1 of 3 languages (es) (point estimates)" in text


def test_the_text_of_nothing_but_noise_claims_nothing() -> None:
    codes = ("en", "es", "hi")
    effects = {(owner, kind, "scale", 0.0): dict.fromkeys(codes, 0.0) for owner in codes for kind in ("specific", "random", "diffmean")}
    text = said(causal(effects, noise=0.1))
    assert "lies above both comparisons: no language." in text
    assert "DiffMean direction projected out, the change of its own loss lies above the mean change of the other languages for 0 of 3" in text
    assert "several doses" not in text


def test_the_text_names_a_loss_that_falls() -> None:
    """A language whose loss falls less than the others' lies above them, but is not called selective."""
    effects = {("es", "specific", "scale", 0.0): {"en": -0.9, "es": -0.2}, ("es", "random", "scale", 0.0): {"en": 0.0, "es": -0.5}}
    text = said(causal(effects, noise=0.05))
    assert "raises its own loss for 0 of 1 languages" in text
    assert "lies above the mean change of the other languages for 1 of 1 languages (es)" in text
    assert "lies above both comparisons: no language." in text


def test_without_ablation_and_doses_the_text_says_so() -> None:
    assert "nothing is said about causes" in said(causal({("es", "specific", "steer", 1.0): {"en": 0.0, "es": 1.0}}))


# --- before and after tuning ---------------------------------------------------------------------------------------------------------------------

ARM, CONTROL = ("es", "specific", "scale", 0.0), ("es", "random", "scale", 0.0)
BEFORE = {ARM: {"en": 0.1, "es": 0.5, "hi": 0.2}, CONTROL: {"en": 0.1, "es": 0.1, "hi": 0.1}}
AFTER = {ARM: {"en": 0.1, "es": 0.9, "hi": 0.2}, CONTROL: {"en": 0.1, "es": 0.2, "hi": 0.1}}


def moved(losses: CausalLosses, by: float) -> CausalLosses:
    """The same effects of a model that predicts every token worse by so many nats."""
    more = {code: by * tokens for code, tokens in losses.predicted.items()}
    base, nll = ({code: own[code] + more[code] for code in own} for own in (losses.base, losses.nll))
    return CausalLosses(losses.arms, losses.predicted, base, nll)


def test_effects_after_tuning_are_against_the_adapted_model_and_their_change_is_paired() -> None:
    before, after = causal(BEFORE, noise=1.0), moved(causal(AFTER, noise=1.0), by=0.7)
    table = causal_table(before, drawn(before), after=after, **SETTINGS)
    pd.testing.assert_frame_equal(of_variant(table, "base"), causal_table(before, drawn(before), **SETTINGS))
    pd.testing.assert_frame_equal(of_variant(table, "adapter"), causal_table(after, drawn(after), **SETTINGS))
    # The noise is the same sentence by sentence: each effect is known badly, its change exactly.
    change = of_variant(table, "adapter_minus_base")
    found = cell(change, kind="specific", measured="es")
    assert found[["n", "estimate", "lo", "hi"]].tolist() == pytest.approx([40, 0.4, 0.4, 0.4])
    assert cell(change, kind="specific", measured="hi")[["estimate", "lo", "hi"]].tolist() == pytest.approx([0, 0, 0], abs=1e-12)
    own = cell(of_variant(table, "base"), kind="specific", measured="es")
    assert own["hi"] - own["lo"] > 0.1


def test_selectivity_after_tuning_has_a_test_of_its_change() -> None:
    before, after = causal(BEFORE, noise=1.0), causal(AFTER, noise=1.0)
    table = selectivity_table(before, drawn(before), after=after, **SETTINGS)
    pd.testing.assert_frame_equal(of_variant(table, "base"), selectivity_table(before, drawn(before), **SETTINGS))
    change = of_variant(table, "adapter_minus_base").set_index(["kind", "contrast"])
    # Own minus others: .5 - .15 before, .9 - .15 after. Own minus random: .4 before, .7 after.
    assert change["estimate"].to_dict() == pytest.approx(
        {("specific", "own_minus_others"): 0.4, ("specific", "own_minus_random"): 0.3, ("random", "own_minus_others"): 0.1}
    )
    assert (change["p_holm"] == 0).all()
    same = selectivity_table(before, drawn(before), after=moved(before, by=0.2), **SETTINGS)
    still = of_variant(same, "adapter_minus_base")
    assert still["p"].tolist() == [1, 1, 1]
    text = causal_change_text(causal_table(before, drawn(before), after=after, **SETTINGS), table, 0.1)
    assert "costs it more after training than before for 1 (Spanish) of 1 languages, and less for none" in text
    assert "that of random latents grew for 1 (Spanish) and shrank for none" in text


def test_splicing_after_tuning_by_hand() -> None:
    def losses(level: float, cost: float) -> SplicedLosses:
        base = level * np.array([2.0, 3.0, 5.0])
        both = {"en": base, "hi": base}
        spliced = {code: np.stack([base + cost * PREDICTED * (1 + (code == "hi"))]) for code in both}
        return SplicedLosses(
            (1,), dict.fromkeys(both, PREDICTED), both, {code: np.stack([base + 4 * PREDICTED]) for code in both}, {"m": spliced, "heldout": spliced}
        )

    before, after = losses(1, 1), losses(2, 1.5)
    table = spliced_table(before, drawn(before), after=after, **SETTINGS)
    assert list(table.columns) == ["variant", "sae_set", "language", "layer", "quantity", "n", "resampled", "units", "estimate", "lo", "hi"]
    pd.testing.assert_frame_equal(of_variant(table, "base"), spliced_table(before, drawn(before), **SETTINGS))
    change = of_variant(table, "adapter_minus_base")
    change = change[change["sae_set"] == "m"]
    assert cell(change, language="en", quantity="ce_increase")[["estimate", "lo", "hi"]].tolist() == pytest.approx([0.5] * 3)
    assert cell(change, language="hi", quantity="ce_increase")["estimate"] == pytest.approx(1)
    assert cell(change, language="en", quantity="loss_recovered")["estimate"] == pytest.approx((1 - 1.5 / 4) - (1 - 1 / 4))
    text = spliced_change_text(table, LanguagesConfig(reference="en", high=(), low=("hi",)))
    assert "by +0.500 nats per token more than before in English and by +1.000 to +1.000 elsewhere" in text
    assert "2 of 2 intervals" in text
    assert wide_spliced(table).to_numpy().tolist() == [[m, *row] for m in ("m", "heldout") for row in (["en", 1, 1.5, 0.5], ["hi", 2, 3, 1])]
