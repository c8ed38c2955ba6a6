"""The sentences of the analysis follow its numbers: every verdict both ways."""

from typing import Any, get_args

import pandas as pd
import pytest

from lingact.activations.contexts import Context
from lingact.config.data import LanguagesConfig
from lingact.config.jobs import AnalyzeConfig
from lingact.config.measures import Part
from lingact.config.validation import validate
from lingact.report.confounds import confounds_text, wide_confounds
from lingact.report.controls import controls_text, sae_sets_table
from lingact.report.correlation import correlation_lead, correlation_text
from lingact.report.features import feature_cards, features_lead, random_features_text
from lingact.report.interventions import causal_lead
from lingact.report.measures import measures_text, wide_measures
from lingact.report.reviewer import Statement, reviewer_questions, reviewer_table
from lingact.statistics.bootstrap import Resampling

from .test_report import ANALYZE

LANGUAGES = LanguagesConfig(reference="en", high=("zh", "es"), low=("ml", "hi"))


# --- measures ------------------------------------------------------------------------------------------------------------------------------------


def overall(**intervals: dict[str, tuple[float, float]]) -> pd.DataFrame:
    """Rows of the table of measures: group -> measure -> interval."""
    return pd.DataFrame(
        {"name": name, "measure": measure, "gap": (lo + hi) / 2, "lo": lo, "hi": hi}
        for name, by_measure in intervals.items()
        for measure, (lo, hi) in by_measure.items()
    )


@pytest.mark.parametrize(
    ("bounds", "verdict"), [((0.1, 0.2), "falls short of"), ((-0.2, -0.1), "lies above"), ((-0.1, 0.2), "cannot be distinguished from")], ids=str
)
@pytest.mark.parametrize(("group", "title"), [("low", "medium-to-low-resource"), ("high", "high-resource")])
def test_measures_text_follows_the_sign_of_each_group(bounds: tuple[float, float], verdict: str, group: str, title: str) -> None:
    text = measures_text(overall(**{group: {"mean": bounds}, "ml": {"mean": (0.5, 0.6)}}), LANGUAGES)
    assert text == f"Measured per token, the {title} group {verdict} English on average over the layers."


def test_measures_of_one_verdict_stand_in_one_sentence() -> None:
    text = measures_text(overall(low={"mean": (0.1, 0.2), "l0": (-0.1, 0.1), "per_byte": (0.3, 0.4)}), LANGUAGES)
    assert "Measured per token, per byte, the medium-to-low-resource group falls short of English" in text
    assert "Measured by L0, the medium-to-low-resource group cannot be distinguished from English" in text
    assert "depends on the measure" not in text


def test_opposite_verdicts_within_a_group_are_said_to_hang_on_the_measure() -> None:
    within = overall(low={"mean": (0.1, 0.2), "l0": (-0.2, -0.1)})
    between = overall(low={"mean": (0.1, 0.2)}, high={"mean": (-0.2, -0.1)})
    assert measures_text(within, LANGUAGES).endswith("the direction of the disparity depends on the measure, and no single measure is enough.")
    assert "depends on the measure" not in measures_text(between, LANGUAGES)


def test_wide_measures_mark_what_excludes_0() -> None:
    table = overall(low={"mean": (0.1, 0.2), "l0": (-0.3, -0.1)}, low_vs_high={"mean": (-0.01, 0.01), "l0": (float("nan"), float("nan"))})
    wide = wide_measures(table, ["l0", "mean"])
    assert wide.to_numpy().tolist() == [["low", "-0.20*", "+0.15*"], ["low vs high", "-", "+0.00"]]
    assert list(wide.columns)[1:] == ["by L0", "per token"]


# --- confounds -----------------------------------------------------------------------------------------------------------------------------------


def confounds(**fvu: float) -> pd.DataFrame:
    """A table in which the languages differ in FVU alone, the same at two layers."""
    flat = {"tokens_per_sentence": 8.0, "fertility": 1.5, "partial_share": 0.0, "residual_norm": 20.0}
    rows: list[dict[str, Any]] = [{"language": code, "quantity": quantity, "estimate": value} for code in fvu for quantity, value in flat.items()]
    rows += [{"language": code, "quantity": "fvu", "estimate": value + shift} for code, value in fvu.items() for shift in (-0.05, 0.05)]
    return pd.DataFrame(rows)


def test_a_table_of_confounds_keeps_the_order_and_every_number_in_its_cell() -> None:
    """Neither languages nor quantities come in the order of the alphabet."""
    found = wide_confounds(confounds(zh=0.3, en=0.2, es=0.4))
    assert list(found.columns) == ["language", "tokens per sentence", "fertility", "partial share", "residual norm", "fvu"]
    for row, (code, fvu) in zip(found.to_numpy().tolist(), {"zh": 0.3, "en": 0.2, "es": 0.4}.items(), strict=True):
        assert row == [code, 8.0, 1.5, 0.0, 20.0, pytest.approx(fvu)]


def test_a_span_of_equal_values_is_one_number() -> None:
    text = confounds_text(confounds(en=0.2, zh=0.2, es=0.2, ml=0.204, hi=0.2), None, LANGUAGES)
    assert text.startswith("Tokens per aligned sentence: 8.0 in English, 8.0 elsewhere; ")
    assert "(FVU, mean over layers): 0.20 in English, 0.20 elsewhere" in text
    assert "Malayalam" not in text, "0.204 is 0.20 to two digits"


def test_a_span_names_the_smallest_and_the_largest() -> None:
    text = confounds_text(confounds(en=0.2, zh=0.21, es=0.3, ml=0.9, hi=0.15), None, LANGUAGES)
    assert "0.20 in English, 0.15 (Hindi) to 0.90 (Malayalam) elsewhere" in text
    assert "For 2 (Spanish, Malayalam) of 4 other languages, the FVU is more than a tenth higher than for English" in text, (
        "0.21 is worse by a twentieth"
    )


def test_text_without_words_leaves_tokens_per_word_undefined() -> None:
    table = confounds(en=0.2, zh=0.2, es=0.2, ml=0.2, hi=0.3)
    nothing = table["quantity"] == "fertility"
    text = confounds_text(table.assign(estimate=table["estimate"].where(~nothing)), None, LANGUAGES)
    assert "tokens per word: undefined in English, undefined elsewhere" in text
    text = confounds_text(table.assign(estimate=table["estimate"].where(~nothing | (table["language"] == "en"))), None, LANGUAGES)
    assert "in English, undefined elsewhere" in text
    assert "nan" not in text


def test_a_fit_as_good_as_the_references_casts_no_doubt() -> None:
    assert "worse" not in confounds_text(confounds(en=0.2, zh=0.2, es=0.1, ml=0.219, hi=0.2), None, LANGUAGES)


def test_costs_of_splicing_are_told_for_each_set_of_saes() -> None:
    rises = {"measuring": {"en": -0.001, "zh": 0.1, "es": 0.1, "ml": 0.5, "hi": 0.2}, "heldout": dict.fromkeys(LANGUAGES.all, 0.25)}
    costs = pd.DataFrame(
        {"sae_set": sae_set, "language": code, "layer": layer, "quantity": "ce_increase", "n": 12, "estimate": value + shift}
        for sae_set, by_language in rises.items()
        for code, value in by_language.items()
        for layer, shift in enumerate((-0.1, 0.1))
    )
    text = confounds_text(confounds(**dict.fromkeys(LANGUAGES.all, 0.2)), costs, LANGUAGES)
    assert "the reconstruction of the measuring SAEs" in text
    assert "by 0.00 nats per token in English and by 0.10 (Chinese) to 0.50 (Malayalam) elsewhere (mean over layers, n = 12 sentences)" in text
    assert "the reconstruction of the held-out SAEs" in text
    assert "by 0.25 nats per token in English and by 0.25 elsewhere" in text


# --- controls ------------------------------------------------------------------------------------------------------------------------------------


def ranges(gaps: dict[str, float]) -> pd.DataFrame:
    """A table of ranges; other ranges and the maximum must not be read."""
    rows = [{"name": n, "range": "all", "statistic": "mean", "gap": gap, "lo": gap - 0.01, "hi": gap + 0.01} for n, gap in gaps.items()]
    rows += [row | {"range": "early", "gap": 9.0} for row in rows] + [row | {"statistic": "max", "gap": 9.0} for row in rows]
    return pd.DataFrame(rows)


MEASURING = {"zh": 0.1, "es": 0.1, "ml": 0.3, "hi": 0.2, "low": 0.25, "high": 0.1, "low_vs_high": 0.2}
RANDOM = {"zh": -0.1, "es": 0.1, "ml": -0.3, "hi": 0.2, "low": -0.05, "high": 0.0, "low_vs_high": -0.1}


def shuffled(significant: int) -> pd.DataFrame:
    mean = {"name": "all", "scope": "mean", "tests": 80, "significant": significant, "share": significant / 80, "expected": 0.05, "allowed": 8.0}
    layer = mean | {"scope": "layer", "tests": 240, "share": 0.075, "allowed": float("nan")}
    return pd.DataFrame([layer, mean, mean | {"name": "ml", "significant": 79}])


def test_no_control_is_said() -> None:
    assert controls_text({"measuring": ranges(MEASURING)}, None, LANGUAGES) == "No controls were asked for; measures=full makes all of them."


def test_other_saes_are_compared_by_sign_language_by_language() -> None:
    text = controls_text({"measuring": ranges(MEASURING), "heldout": ranges(RANDOM)}, None, LANGUAGES)
    assert text.startswith("The held-out SAEs give a gap of the same sign in 2 of 4 languages: ")
    assert "-0.05 [-0.06, -0.04] for the medium-to-low-resource group, where the measuring SAEs give +0.25 [0.24, 0.26]" in text
    assert "0.00 [-0.01, 0.01] for the high-resource group, where the measuring SAEs give +0.10 [0.09, 0.11]" in text
    assert "shuffled" not in text
    assert "no evidence" not in text, "that is said of random directions alone"


def test_random_directions_come_with_what_they_mean() -> None:
    text = controls_text({"measuring": ranges(MEASURING), "random": ranges(MEASURING)}, None, LANGUAGES)
    assert text.startswith("SAEs with random directions, which fire as often over all languages, give a gap of the same sign in 4 of 4 languages")
    assert "sign and size alone are no evidence for learned features" in text


@pytest.mark.parametrize(("significant", "verdict"), [(8, "within"), (9, "above")])
def test_shuffled_labels_are_held_against_chance(significant: int, verdict: str) -> None:
    text = controls_text({"measuring": ranges(MEASURING)}, shuffled(significant), LANGUAGES)
    assert (
        f"{significant} of 80 intervals of the mean over layers exclude 0 ({significant / 80:.1%}; 5% are expected, and this is {verdict} the 8 that chance"
        in text
    )
    assert "So do 7.5% of the intervals of single layers" in text


def test_sae_sets_stand_side_by_side() -> None:
    table = sae_sets_table({"measuring": ranges(MEASURING), "random": ranges(RANDOM)})
    assert table.loc[table["name"] == "low vs high"].to_numpy().tolist() == [["low vs high", "+0.20 [0.19, 0.21]", "-0.10 [-0.11, -0.09]"]]
    assert len(table) == len(MEASURING)


# --- features ------------------------------------------------------------------------------------------------------------------------------------


def found(*confirmed: bool, language: str = "ml") -> pd.DataFrame:
    """Candidates that passed, and one that did not."""
    rows = [{"language": language, "passed": True, "confirmed": flag} for flag in confirmed] + [
        {"language": "hi", "passed": False, "confirmed": False}
    ]
    return pd.DataFrame(rows)


@pytest.mark.parametrize("random", [found(True, True, True), found(True, True, True, True)], ids=["as_many", "more"])
def test_random_directions_that_do_as_well_take_the_claim_away(random: pd.DataFrame) -> None:
    text = random_features_text(found(True, True, True, False), [random])
    assert f"confirms {len(random) - 1} of {len(random) - 1} candidates" in text
    assert "says nothing about what the SAE has learned: random directions do so as well" in text
    assert "at most" not in text


def test_random_directions_that_find_fewer_leave_the_difference() -> None:
    text = random_features_text(found(True, True, True, False), [found(True, False)])
    assert "the same search confirms 1 of 2 candidates. So at most 2 of the 3 confirmed latents exceed what random directions give." in text


def test_several_draws_of_random_directions_are_averaged() -> None:
    text = random_features_text(found(True, True, True, False), [found(True, False), found(True, True)])
    assert "confirms 1.5 of 2 candidates (mean over 2 draws, which confirm 1 to 2). So at most 1.5 of the 3 confirmed latents" in text


def test_the_lead_on_features_both_ways() -> None:
    assert features_lead(found(False, False)) == "No language-specific feature was confirmed (2 candidates)."
    assert features_lead(found()) == "No language-specific feature was confirmed (0 candidates)."
    told = features_lead(found(True, True, False), found(False))
    assert told.startswith("2 of 3 candidates for language-specific features were confirmed. Languages with any: 1 (Malayalam). With SAEs of random")


def test_a_card_shows_its_own_contexts_and_link() -> None:
    feature = {"language": "ml", "layer": 1, "latent": 7, "nu": 1.5, "nu_confirmed": 1.25, "lape": 0.2, "q": 0.003}
    rates = pd.DataFrame(
        [
            {"layer": 1, "latent": 7, "measured": "hi", "rate": 0.01},
            {"layer": 1, "latent": 7, "measured": "ml", "rate": 0.2},
            {"layer": 2, "latent": 7, "measured": "ml", "rate": 0.9},
        ]
    )
    own = Context(1, 7, "ml", "s1", 3.14, "before ", "token", " after")
    [card] = feature_cards(pd.DataFrame([feature]), rates, [own, Context(2, 7, "ml", "s1", 1.0, "", "x", "")], {(1, 7): "https://example.org/7"})
    assert (card.title, card.link) == ("Malayalam: layer 1, latent 7", "https://example.org/7")
    assert card.facts == ["nu 1.50 on discovery, 1.25 on confirmation; LAPE 0.20; q 3.0e-03", "Fires on tokens: ml 20.0%, hi 1.0%"]
    assert card.contexts == [("ml 3.1", "before ", "token", " after")]


# --- causal checks and benchmarks ----------------------------------------------------------------------------------------------------------------


def selectivity(*rows: tuple[str, str, float, float], dose: float = 0.0) -> pd.DataFrame:
    """Owner, contrast, estimate, corrected p."""
    shared = {"kind": "specific", "mode": "scale", "dose": dose, "n": 6}
    return pd.DataFrame(
        shared | {"owner": owner, "contrast": contrast, "estimate": estimate, "lo": estimate - 0.1, "hi": estimate + 0.1, "p_holm": p}
        for owner, contrast, estimate, p in rows
    )


def own_changes(**lows: float) -> pd.DataFrame:
    """Owner -> lower bound of the change of its own loss."""
    shared = {"kind": "specific", "mode": "scale", "dose": 0.0}
    own = [shared | {"owner": owner, "measured": owner, "lo": low} for owner, low in lows.items()]
    return pd.DataFrame([*own, *(row | {"measured": "en", "lo": 9.0} for row in own), *(row | {"kind": "random", "lo": 9.0} for row in own)])


def test_the_causal_lead_counts_languages_that_rise_and_pass_both_comparisons() -> None:
    others, random = "own_minus_others", "own_minus_random"
    both = [("ml", others, 0.5, 0.01), ("ml", random, 0.4, 0.01)]
    one = [("hi", others, 0.5, 0.01), ("hi", random, 0.4, 0.2)]
    wrong_way = [("zh", others, -0.5, 0.01), ("zh", random, 0.4, 0.01)]
    falls = [("es", others, 0.5, 0.01), ("es", random, 0.4, 0.01)]
    changes = own_changes(ml=0.1, hi=0.1, zh=0.1, es=-0.1)
    assert "For 1 (Malayalam) of 4 languages" in causal_lead(selectivity(*both, *one, *wrong_way, *falls), changes, 0.05)
    assert "For none of 3 languages" in causal_lead(selectivity(*one, *wrong_way, *falls), changes, 0.05)
    assert causal_lead(selectivity(*both, dose=2.0), changes, 0.05) == "", "nothing was taken away"


@pytest.mark.parametrize("others", [[("hi", "own_minus_random", 0.4, 0.01)], []], ids=["of_one_language", "of_all"])
def test_a_missing_control_is_said_and_counts_against_the_claim(others: list[tuple[str, str, float, float]]) -> None:
    rows = [("ml", "own_minus_others", 0.5, 0.01), ("hi", "own_minus_others", 0.5, 0.01), *others]
    text = causal_lead(selectivity(*rows), own_changes(ml=0.1, hi=0.1), 0.05)
    assert f"For {'1 (Hindi)' if others else 'none'} of 2 languages" in text
    assert f"For {'1 (Malayalam)' if others else '2 (Hindi, Malayalam)'} there are no random latents that are as frequent and as strong" in text


def correlations(estimate: float, p: float) -> pd.DataFrame:
    row = {"benchmark": "arc", "place": "all", "control": "none", "n": 9, "estimate": estimate, "p": p, "p_holm": p, "exact": True}
    row |= {"loo_lo": -0.1, "loo_hi": 0.2, "branch_lo": -0.3, "branch_hi": 0.4}
    return pd.DataFrame([row | {"method": method} for method in ("pearson", "spearman")] + [row | {"method": "spearman", "control": "both"}])


def test_the_correlation_text_says_null_results() -> None:
    sure, none = correlation_text(correlations(-0.8, 0.01), 0.95), correlation_text(correlations(-0.1, 0.8), 0.95)
    assert (
        "arc: Spearman correlation of the mean gap over all layers with the score -0.80 (n = 9 languages, p 0.01; -0.10 to +0.20 when one language is left out"
        in sure
    )
    assert "2 of 2 correlations remain after Holm's correction within their method." in sure
    assert (
        "0 of 2 correlations remain after Holm's correction within their method. With so few languages, this is no evidence that there is no correlation."
        in none
    )
    assert "1 of 1 partial correlations over all layers have an uncorrected p below 0.05" in sure
    assert "0 of 1 partial correlations" in none
    assert "does not test a cause" in sure


def test_too_few_languages_to_leave_one_out_are_passed_over() -> None:
    table = correlations(-0.8, 0.2).assign(loo_lo=float("nan"), loo_hi=float("nan"))
    text = correlation_text(table, 0.95)
    assert "(n = 9 languages, p 0.2; -0.30 to +0.40 when one branch is left out)." in text
    assert "nan" not in text


def test_the_correlation_lead_leaves_out_what_is_undefined() -> None:
    assert correlation_lead(correlations(float("nan"), float("nan"))) == ""
    lead = correlation_lead(correlations(-0.8, 0.01))
    assert "arc -0.80 (n = 9, p 0.01, by Holm 0.01)" in lead
    assert lead.count("arc") == 1, "neither Pearson's nor the partial one"


# --- what a reviewer asks ------------------------------------------------------------------------------------------------------------------------


def answers(parts: tuple[str, ...] = (), *, heldout: bool = False, windows: tuple[float, float] = (1.0, 1.0), **other: Any) -> dict[str, str]:
    config = validate(AnalyzeConfig, ANALYZE | other | {"measures": ANALYZE["measures"] | {"parts": parts}})
    table = reviewer_table(config, Resampling.of_sentences(9), heldout=heldout, windows=dict(zip(("en", "ml"), windows, strict=True)))
    assert table["question"].is_unique
    return dict(zip(table["question"], table["answer"], strict=True))


PARTS = {
    "by_reference": ["Is it only the norm of the residual?"],
    "spliced": ["Do the SAEs still fit, and do they fit every language?"],
    "random_sae": ["Are the SAEs better than random directions?"],
    "similarity": ["Are the SAEs better than random directions?", "Mean-pooled cosine grows with length and anisotropy."],
}
TRAINED_ON = "Was the adapter trained on the SAEs that measure it?"
CORRELATED = "A correlation over a few related languages proves little."


@pytest.mark.parametrize("part", PARTS)
def test_an_answer_is_claimed_only_where_its_part_was_made(part: str) -> None:
    without, given = answers(), answers((part,))
    assert [question for question in given if given[question] != without[question]] == PARTS[part]
    for question in PARTS[part]:
        assert f"add {part} to measures.parts" in without[question]
        assert f"add {part} " not in given[question]


def test_causal_checks_are_claimed_only_where_they_were_made() -> None:
    question = "Do the features matter?"
    assert "add causal to measures.parts" in answers()[question]
    assert answers(("features", "causal"))[question].startswith("ablation and doses")


def test_every_question_can_be_answered() -> None:
    known = {"adapter", "heldout", "scores"}
    for question in reviewer_questions():
        for part in question.answers:
            if isinstance(part, Statement):
                assert part.part is None or part.part in get_args(Part)
            elif part.by in known:
                assert part.texts.keys() == {"yes", "no"}
            else:
                values = {"sentences": {"untrained", "seen", "unseen"}, "resampled": {"documents", "blocks", "sentences"}}
                assert part.texts.keys() == values[part.by]


def test_answers_follow_what_took_part() -> None:
    plain = answers()
    assert plain[TRAINED_ON] == "there is no adapter in this run; no held-out SAEs were given"
    assert plain[CORRELATED] == "no scores were given; use scores=[RUN]"
    assert plain["Were the measured sentences trained on?"] == "nothing is trained here"
    full = answers(heldout=True, windows=(1.25, 2.5), adapter="somewhere", scores=["a.csv"])
    assert full[TRAINED_ON] == "see Before and after; held-out SAEs are shown beside the measuring ones"
    assert full[CORRELATED].startswith("p is by permutation")
    assert full["Were long texts cut?"].endswith("windows, 1.25 (English) to 2.50 (Malayalam) per sentence")
    assert plain["Were long texts cut?"].endswith("windows, 1.00 per sentence")
    assert "see Before and after" in answers(compare=["a", "b"])["Are other languages forgotten?"]
