"""Attribution: how much of a difference in activation is norm, how much the dictionary, and what remains."""

import pandas as pd

from lingact.activations.attribution_sums import AttributionSums
from lingact.activations.feature_stats import FeatureStats
from lingact.analysis.attribution import (
    BY_CHANCE,
    PARTS,
    WAYS,
    Accounts,
    attribution_summary,
    attribution_table,
    dictionary_effects,
    norm_table,
    range_table,
)
from lingact.figures.attribution import part_bars
from lingact.report.analysis_result import AnalysisResult, ReportSettings
from lingact.report.phrases import GROUP_TITLES, listed, name_of, rows_by, wide_cells, with_interval

_TEXT = (
    "This is accounting, and names no cause. The log ratio of a language's activation to the reference's, by set A, is the sum of three parts. "
    "Norm: what goes when the language's residuals are scaled by one factor per layer, so that their mean norm is the reference's. "
    "Dictionary: what goes when set B takes the place of set A. Remainder: what set B still sees at equal norm. "
    "What the first two take depends on which is equalised first; the table holds both orders and their mean (Shapley), which is shown here, for "
    "several SAE seeds the mean over pairs of them, and for a group the mean over its languages. "
    "In the intervals the factors are those of the whole sample."
)
_ONE_SEED = "Each mix has one SAE seed here, so nobody knows whether a dictionary part is of the mix or of chance; give several seeds of each mix."
WAY_TITLES = {
    "mean": "one factor, raw norm",
    "centred": "one factor, norm about the mean residual",
    "without_largest": "one factor, norm without the largest dimensions",
    "token_norm": "every token's norm",
}
"""Names of the ways to equalise norms."""


def attribution_lead(ranges: pd.DataFrame, reference: str, sets: tuple[str, str]) -> str:
    """The parts of each group's log ratio over all layers.

    Args:
        ranges: `attribution.range_table`.
        reference: code of the language that the others are compared with.
        sets: names of both mixes.
    """
    cells = rows_by(ranges[(ranges["range"] == "all") & (ranges["measure"] == "mean")], "name", "part")
    sentences = [
        f"{title} {with_interval(cells[group, 'total'])} = norm {with_interval(cells[group, 'norm'])}, dictionary "
        f"{with_interval(cells[group, 'dictionary'])}, remainder {with_interval(cells[group, 'remainder'])}"
        for group, title in GROUP_TITLES.items()
        if (group, "total") in cells
    ]
    if not sentences:
        return ""
    first = f"Log ratio of activation to {name_of(reference)}, mean over layers, by A ({sets[0]}), divided between norm and dictionary (B: {sets[1]})"
    return f"{first}: {'; '.join(sentences)}. This is accounting, and names no cause."


def seeds_text(effects: pd.DataFrame) -> str:
    """Whether dictionary parts are larger than what seeds alone make.

    Args:
        effects: `attribution.dictionary_effects`.
    """
    if effects["beyond_seeds"].isna().all():
        return _ONE_SEED
    own = effects[effects["measure"] == "mean"]
    beyond = own[own["beyond_seeds"].astype(bool)]
    seeds = int(own["seeds"].iloc[0])
    often = f"about {BY_CHANCE[seeds]:.0%}" if seeds in BY_CHANCE else "less than 1%"
    return (
        "A dictionary part counts as an effect of the mix (beyond_seeds) only where its interval excludes 0 and it is larger than any difference "
        f"between two seeds of one mix (seed_spread). So it is in {len(beyond)} of {len(own)} pairs of language and layer; languages with any: "
        f"{listed(list(beyond['language'].unique()))}. If the mixes did not differ, {often} of the pairs would exceed the spread of {seeds} seeds of "
        "each mix by chance."
    )


def attribution_result(sums: AttributionSums, stats: FeatureStats, settings: ReportSettings) -> AnalysisResult:
    """The parts of every language's difference.

    Args:
        sums: of both passes.
        stats: of any language, for the documents that are resampled.
        settings: languages and statistics.
    """
    languages = settings.languages
    accounts = Accounts(sums, languages.reference, settings.statistics, stats.resampling(settings.statistics.block), settings.seed)
    table, norms, effects, ranges = attribution_table(accounts), norm_table(accounts), dictionary_effects(accounts), range_table(accounts, languages)
    mixes = (", ".join(sums.set_a), ", ".join(sums.set_b))
    by_one_factor, overall = ranges[ranges["measure"] == "mean"], ranges[ranges["range"] == "all"]
    shown = {
        f"Log ratio to {name_of(languages.reference)}, mean over layers (A: {mixes[0]}; B: {mixes[1]})": wide_parts(by_one_factor),
        "Norm part by the way in which norms are equalised, mean over all layers": _by_way(overall[overall["part"] == "norm"]),
        "Dictionary part by the way in which norms are equalised, mean over all layers": _by_way(overall[overall["part"] == "dictionary"]),
        "Residual norms, ratio to the reference's, mean over layers": _norms(norms),
    }
    if effects["beyond_seeds"].notna().any():
        own = effects[effects["measure"] == "mean"]
        shown["Dictionary part beside what seeds alone make"] = pd.DataFrame(
            {
                "language": own["language"],
                "layer": own["layer"],
                "dictionary": [with_interval(row) for row in own.to_dict("records")],
                "largest between seeds": own["seed_spread"],
                "beyond seeds": ["yes" if beyond else "no" for beyond in own["beyond_seeds"]],
            }
        )
    return AnalysisResult(
        "Attribution to norm and dictionary",
        f"{_TEXT}\n\n{seeds_text(effects)}",
        attribution_lead(ranges, languages.reference, mixes),
        frames={"attribution": table, "norms": norms, "dictionary_effects": effects, "attribution_by_range": ranges},
        figures={"attribution": part_bars(by_one_factor, languages)},
        shown=shown,
        summary=attribution_summary(table, accounts),
        printed={
            "Log ratio of activation to the reference, mean over all layers": wide_parts(by_one_factor[by_one_factor["range"] == "all"]).drop(
                columns="layers"
            )
        },
    )


def wide_parts(ranges: pd.DataFrame) -> pd.DataFrame:
    """One row per language or group and range, a column for each part.

    Args:
        ranges: rows of `attribution.range_table` for one measure.
    """
    cells = rows_by(ranges, "name", "range", "part")
    places = ranges[["name", "range"]].drop_duplicates().itertuples(index=False)
    return pd.DataFrame({"name": who, "layers": name} | {part: with_interval(cells[who, name, part]) for part in PARTS} for who, name in places)


def _by_way(cells: pd.DataFrame) -> pd.DataFrame:
    """One row per language or group, a column for each way to equalise norms."""
    wide = wide_cells(cells.assign(cell=[with_interval(row) for row in cells.to_dict("records")]), "name", "measure")
    return wide[list(WAYS)].rename(columns=WAY_TITLES).reset_index()


def _norms(norms: pd.DataFrame) -> pd.DataFrame:
    """One row per language, a column for each kind of norm."""
    means = norms.groupby(["language", "norm"], sort=False)["ratio"].mean().unstack("norm")
    return means.map("{:.3f}".format).reset_index()
