"""Controls: other SAEs, SAEs with random directions, and shuffled language labels."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from lingact.activations.measurement import is_random
from lingact.analysis.control_tables import draws_by_layer, draws_by_range, draws_summary, mean_rows, trained_minus_random
from lingact.analysis.measures import StatsByLanguage
from lingact.analysis.tables import Disparities, disparities, shuffled_table
from lingact.config.data import LanguagesConfig
from lingact.figures import gaps as gap_figures
from lingact.report.analysis_result import AnalysisResult, ReportSettings
from lingact.report.gaps import wide_layers
from lingact.report.phrases import GROUP_TITLES, MEASURE_TITLES, listed, other_languages, sae_set_title, wide_cells, with_interval


def sae_sets_table(ranges: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """A row per language and group, a column per set of SAEs: the mean gap over all layers."""
    columns = {}
    for sae_set, table in ranges.items():
        own = table[(table["range"] == "all") & (table["statistic"] == "mean")]
        columns[sae_set_title(sae_set)] = pd.Series({str(row["name"]).replace("_", " "): with_interval(row, "gap") for row in own.to_dict("records")})
    return pd.DataFrame(columns).rename_axis("name").reset_index()


def l0_table(by_sae_set: Mapping[str, StatsByLanguage]) -> pd.DataFrame:
    """A row per language, a column per set of SAEs: active latents per token, mean over layers and draws of random directions.

    Random SAEs are matched over all languages together. So the means over languages agree, but single languages may differ.
    """
    columns: dict[str, dict[str, list[float]]] = {}
    for sae_set, own in by_sae_set.items():
        for code, s in own.items():
            columns.setdefault(sae_set_title(sae_set), {}).setdefault(code, []).append(float((s.l0.sum(axis=1) / s.tokens.sum()).mean()))
    means = {title: {code: sum(values) / len(values) for code, values in own.items()} for title, own in columns.items()}
    return pd.DataFrame(means).rename_axis("language").reset_index()


def wide_draws(ranges: pd.DataFrame) -> pd.DataFrame:
    """A row per draw of random directions and one for their mean, a column per language and group: the mean gap over all layers.

    Args:
        ranges: `control_tables.draws_by_range`.
    """
    own = ranges[(ranges["range"] == "all") & (ranges["statistic"] == "mean")]
    cells = own.assign(cell=[with_interval(row, "gap") for row in own.to_dict("records")], name=own["name"].str.replace("_", " "))
    wide = wide_cells(cells, "draw", "name")
    return wide.reset_index()


def wide_apart(apart: pd.DataFrame) -> pd.DataFrame:
    """A row per language and group: the gap over all layers by the trained SAEs and by random directions, and the difference.

    Args:
        apart: `control_tables.trained_minus_random`.
    """
    own = apart[apart["range"] == "all"]
    columns = {"name": own["name"].str.replace("_", " "), "trained": own["trained"], "random directions": own["random"]}
    difference = {"difference": [with_interval(row) for row in own.to_dict("records")], "p (Holm)": own["p_holm"]}
    return pd.DataFrame(columns | difference).reset_index(drop=True)


def random_text(ranges: pd.DataFrame, apart: pd.DataFrame, languages: LanguagesConfig, confidence: float) -> str:
    """The mean gap by random directions, how much the draws differ, and whether the trained SAEs give other gaps.

    Args:
        ranges: `control_tables.draws_by_range`.
        apart: `control_tables.trained_minus_random`.
        languages: the reference and the groups.
        confidence: of the intervals.
    """
    own = ranges[(ranges["range"] == "all") & (ranges["statistic"] == "mean")]
    mean = own[own["draw"] == "mean"].set_index("name")
    draws, sentences = int(mean["draws"].iloc[0]), []
    for group, title in GROUP_TITLES.items():
        if group in mean.index:
            single = own.loc[(own["name"] == group) & (own["draw"] != "mean"), "gap"]
            spread = f" (single draws: {single.min():+z.2f} to {single.max():+z.2f})" if draws > 1 else ""
            sentences.append(f"The mean gap of the {title} group over layers is {with_interval(mean.loc[group].to_dict(), 'gap')}{spread}.")
    covers = (
        f"Each number is the mean over {draws} draws of directions, and the brackets cover the choice of directions and sentences (t quantile)."
        if draws > 1
        else "This is one draw of directions, and the brackets do not cover the choice of directions."
    )
    tested = apart[(apart["range"] == "all") & apart["name"].isin(list(other_languages(languages)))].set_index("name")
    sure = tested[tested["p_holm"] < 1 - confidence]
    larger, smaller = (listed([str(code) for code in sure.index[sign * sure["estimate"] > 0]]) for sign in (1, -1))
    verdict = (
        f"Compared on the same sentences, the gap by the trained SAEs is larger (more positive) for {larger} of {len(tested)} languages and smaller "
        f"for {smaller} (Holm-corrected p below {1 - confidence:.2g}); for {len(tested) - len(sure)} no difference is shown."
    )
    matched = "SAEs with random directions fire as often as the trained ones over equal numbers of tokens from every language."
    return " ".join([covers, matched, *sentences, verdict])


def controls_text(ranges: Mapping[str, pd.DataFrame], shuffled: pd.DataFrame | None, languages: LanguagesConfig) -> str:
    """What other SAEs, random ones and shuffled labels say about the gaps.

    Args:
        ranges: set of SAEs -> `tables.range_table`; the first set is the one that is checked.
        shuffled: `tables.shuffled_table`; None: not made.
        languages: the reference and the groups.
    """
    overall = {m: t[(t["range"] == "all") & (t["statistic"] == "mean")].set_index("name") for m, t in ranges.items()}
    main, *others = overall
    codes = [code for code in other_languages(languages) if code in overall[main].index]
    sentences = []
    for sae_set in others:
        own, checked = overall[sae_set].loc[codes, "gap"], overall[main].loc[codes, "gap"]
        defined = own.notna() & checked.notna()
        same = int((np.sign(own) == np.sign(checked))[defined].sum())
        what = "SAEs with random directions, which fire as often over all languages," if is_random(sae_set) else f"The {sae_set_title(sae_set)} SAEs"
        groups = [
            f"{with_interval(overall[sae_set].loc[group].to_dict(), 'gap')} for the {title} group, where the {main} SAEs give "
            f"{with_interval(overall[main].loc[group].to_dict(), 'gap')}"
            for group, title in GROUP_TITLES.items()
            if group in overall[sae_set].index
        ]
        sentences.append(f"{what} give a gap of the same sign in {same} of {int(defined.sum())} languages: {'; '.join(groups)}.")
        if is_random(sae_set):
            sentences.append(
                "If such SAEs give a gap of the same sign and size, sign and size alone are no evidence for learned features. The two gaps must not "
                "be subtracted from each other to get the share of learned features."
            )
    if shuffled is not None:
        every = shuffled[shuffled["name"] == "all"].set_index("scope")
        layer, mean = every.loc["layer"], every.loc["mean"]
        verdict = "within" if mean["significant"] <= mean["allowed"] else "above"
        sentences.append(
            f"With shuffled language labels, where there is no true gap, {mean['significant']} of {mean['tests']} intervals of the mean over layers "
            f"exclude 0 ({mean['share']:.1%}; {mean['expected']:.0%} are expected, and this is {verdict} the {mean['allowed']:.0f} that chance "
            f"allows). So do {layer['share']:.1%} of the intervals of single layers."
        )
    return " ".join(sentences) or "No controls were asked for; measures=full makes all of them."


def random_gap_result(by_draw: Sequence[StatsByLanguage], trained: Disparities, settings: ReportSettings, *, measure: str) -> AnalysisResult:
    """The gaps by SAEs with random directions, and how far those by the trained ones are from them.

    Args:
        by_draw: statistics for each draw of directions.
        trained: the gaps by the measuring SAEs, in the same measure.
        settings: languages and statistics.
        measure: of activation.
    """
    found = [disparities(stats, settings.languages, settings.statistics, settings.seed, measure=measure) for stats in by_draw]
    layers, ranges, apart = draws_by_layer(found), draws_by_range(found), trained_minus_random(trained, found)
    by_layer = mean_rows(layers)
    return AnalysisResult(
        f"Gaps by the random-direction SAEs, measured {MEASURE_TITLES[measure]}",
        random_text(ranges, apart, settings.languages, settings.statistics.confidence),
        frames={"gap_by_layer_random": layers, "gap_by_range_random": ranges, "gap_trained_minus_random": apart},
        figures={"gap_heatmap_random": gap_figures.gap_heatmap(by_layer, settings.languages, settings.statistics.confidence)},
        shown={
            "Gap over all layers, draw by draw": wide_draws(ranges),
            "Gap of the trained SAEs minus that of random directions, all layers": wide_apart(apart),
            "Gap by layer, mean over the draws (*: its interval excludes 0)": wide_layers(
                by_layer.assign(band_lo=by_layer["lo"], band_hi=by_layer["hi"])
            ),
        },
        summary={f"random/{key}": value for key, value in draws_summary(layers, ranges).items()},
    )


def control_result(
    ranges: Mapping[str, pd.DataFrame], by_stats: Mapping[str, StatsByLanguage], settings: ReportSettings, *, measure: str, shuffled: bool
) -> AnalysisResult:
    """The gaps by other SAEs, and with shuffled language labels.

    Args:
        ranges: set of SAEs -> `tables.range_table`; for random directions, under `random`, that of the mean over the draws.
        by_stats: set of SAEs -> statistics.
        settings: languages and statistics.
        measure: of activation.
        shuffled: whether to shuffle labels.
    """
    frames, shown, summary = {}, {}, {}
    if len(ranges) > 1:
        shown["Mean gap over all layers by each set of SAEs"] = sae_sets_table(ranges)
        shown["Active latents per token (L0), mean over layers"] = l0_table(by_stats)
    table = None
    if shuffled:
        table = shuffled_table(next(iter(by_stats.values())), settings.languages, settings.statistics, settings.seed, measure=measure)
        frames["shuffled_labels"] = table
        shown["Shuffled language labels, means over layers"] = table[table["scope"] == "mean"].drop(columns=["scope", "layers"])
        every = table[(table["name"] == "all") & (table["scope"] == "mean")]
        summary["control/shuffled/share"] = float(every["share"].iloc[0])
    text = controls_text(ranges, table, settings.languages)
    return AnalysisResult("Controls", text, text, frames, {}, shown, summary=summary)
