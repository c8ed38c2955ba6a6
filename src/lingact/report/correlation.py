"""Benchmark scores: are they correlated with the gaps?"""

from collections.abc import Mapping

import pandas as pd

from lingact.analysis import correlation, side_by_side
from lingact.analysis.measures import StatsByLanguage
from lingact.analysis.tables import Disparities, confound_table, layer_table, range_table
from lingact.figures import correlation as score_figures
from lingact.report.analysis_result import AnalysisResult, ReportSettings
from lingact.report.phrases import Row


def correlation_text(table: pd.DataFrame, confidence: float) -> str:
    """Which correlations of gaps with scores remain after correction, and how far they depend on single languages."""
    plain = table[table["control"] == "none"]
    counted = plain[plain["p_holm"].notna()]
    sentences = []
    for row in plain[plain["place"].astype(str) == "all"].to_dict("records"):
        if pd.isna(row["estimate"]):
            continue
        name = {"pearson": "Pearson", "spearman": "Spearman"}[row["method"]]
        sentences.append(
            f"{row['benchmark']}: {name} correlation of the mean gap over all layers with the score {row['estimate']:+.2f} (n = {row['n']} "
            f"languages, p {row['p']:.2g}{'' if row['exact'] else ' from sampled permutations'}{_left_out(row)})."
        )
    sure = counted[counted["p_holm"] < 1 - confidence]
    sentences.append(
        f"Over layers, ranges and benchmarks, {len(sure)} of {len(counted)} correlations remain after Holm's correction within their method."
        + ("" if len(sure) else " With so few languages, this is no evidence that there is no correlation.")
    )
    held = table[(table["control"] != "none") & (table["place"].astype(str) == "all") & table["estimate"].notna()]
    if len(held):
        sentences.append(
            f"With tokens per sentence, resource level or both held constant, {int((held['p'] < 1 - confidence).sum())} of {len(held)} partial "
            f"correlations over all layers have an uncorrected p below {1 - confidence:.2f}."
        )
    sentences.append("The languages are few and related to each other, so a correlation over them describes and does not test a cause.")
    return " ".join(sentences)


def _left_out(row: Row) -> str:
    """The range of a correlation when one language or one branch is left out; empty if too few languages remain."""
    ranges = {"language": (row["loo_lo"], row["loo_hi"]), "branch": (row["branch_lo"], row["branch_hi"])}
    return "".join(f"; {low:+.2f} to {high:+.2f} when one {what} is left out" for what, (low, high) in ranges.items() if not pd.isna(low))


def correlation_lead(table: pd.DataFrame) -> str:
    """The Spearman correlations of the mean gap with the scores."""
    rows = table[(table["place"].astype(str) == "all") & (table["control"] == "none") & (table["method"] == "spearman") & table["estimate"].notna()]
    if rows.empty:
        return ""
    parts = [
        f"{row['benchmark']} {row['estimate']:+.2f} (n = {row['n']}, p {row['p']:.2g}, by Holm {row['p_holm']:.2g})"
        for row in rows.to_dict("records")
    ]
    return (
        f"Spearman correlation of the mean gap with benchmark scores over languages: {', '.join(parts)}. A positive correlation means that "
        "languages with less activation score higher."
    )


def wide_correlation(table: pd.DataFrame) -> pd.DataFrame:
    """Correlations of the mean gap over all layers: a row per benchmark, method and control."""
    rows = table[table["place"].astype(str) == "all"]
    return rows[
        ["benchmark", "method", "control", "n", "estimate", "lo", "hi", "p", "p_holm", "loo_lo", "loo_hi", "branch_lo", "branch_hi", "reason"]
    ]


def score_result(
    found: Disparities,
    scores: pd.DataFrame,
    alikeness: pd.DataFrame | None,
    stats: StatsByLanguage,
    settings: ReportSettings,
    shares: Mapping[str, float] | None,
) -> AnalysisResult:
    """Whether gaps and similarities are correlated with benchmark scores.

    Args:
        found: the gaps.
        scores: benchmark scores by language.
        alikeness: `similarity.similarity_table`; None: not measured.
        stats: language -> its statistics.
        settings: languages and statistics.
        shares: language -> its share of the model's training text; None: its share of public web pages is used.
    """
    layers = layer_table(found)[["name", "layer", "gap"]]
    ranges = range_table(found).query("statistic == 'mean'")[["name", "range", "gap"]].rename(columns={"range": "layer"})
    places = pd.concat([layers.astype({"layer": object}), ranges], ignore_index=True)
    tokens = confound_table(stats, settings.statistics, settings.seed).query("quantity == 'tokens_per_sentence'").set_index("language")["estimate"]
    covariates = pd.DataFrame(
        {
            "language": list(stats),
            "tokens_per_sentence": tokens.loc[list(stats)].to_numpy(),
            "log_resource": correlation.log_resource(list(stats), shares),
        }
    )
    table = correlation.correlation_table(places, scores, covariates, seed=settings.seed, confidence=settings.statistics.confidence)
    main = table[(table["place"].astype(str) == "all") & (table["control"] == "none")]
    summary = {f"correlation/{row['benchmark']}/{row['method']}": float(row["estimate"]) for row in main.to_dict("records")}
    summary |= {f"correlation/{row['benchmark']}/{row['method']}/p": float(row["p"]) for row in main.to_dict("records")}
    text, frames, figures = correlation_text(table, settings.statistics.confidence), {"correlation": table, "scores": scores}, {}
    unknown = covariates.loc[covariates["log_resource"].isna(), "language"]
    if len(unknown):
        text += (
            f"\n\nThe resource level is not known for {', '.join(unknown)}. They are left out where it is held constant (controls `resource` and "
            "`both`)."
        )
    if alikeness is not None:
        beside = side_by_side.side_by_side(alikeness, places, scores)
        with_both = side_by_side.side_by_side_correlations(beside, seed=settings.seed, confidence=settings.statistics.confidence)
        text += "\n\n" + side_by_side.side_by_side_text(beside, with_both)
        frames |= {"side_by_side": beside, "side_by_side_correlation": with_both}
        figures = {
            "scores": score_figures.score_scatter(beside, with_both, settings.languages),
            "side_by_side": score_figures.side_by_side_figure(beside, settings.languages),
        }
    shown = {"Correlation of the mean gap over all layers with scores": wide_correlation(table)}
    return AnalysisResult("Benchmark scores", text, correlation_lead(table), frames, figures, shown, summary=summary)
