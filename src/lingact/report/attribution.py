"""Attribution: how much of a difference in activation is norm, how much the dictionary, and what remains."""

import pandas as pd

from lingact.activations.attribution_sums import AttributionSums
from lingact.activations.feature_stats import FeatureStats
from lingact.analysis.attribution import (
    PARTS,
    Accounts,
    attribution_summary,
    attribution_table,
    dictionary_effects,
    norm_table,
    range_parts,
)
from lingact.figures.attribution import part_bars
from lingact.report.analysis_result import AnalysisResult, ReportSettings
from lingact.report.phrases import name_of, rows_by, with_interval

_TEXT = (
    "This is accounting, and names no cause. The log ratio of a language's activation to the reference's, by set A, is the sum of three parts. "
    "Norm: what goes when the language's residuals are scaled by one factor per layer, so that their mean norm is the reference's. "
    "Dictionary: what goes when set B takes the place of set A. Remainder: what set B still sees at equal norm. "
    "What the first two take depends on which is equalised first; the table holds both orders and their mean (Shapley), which is shown here. "
    "In the intervals the factors are those of the whole sample."
)
_ONE_SEED = "Each mix has one SAE seed here, so nobody knows whether a dictionary part is of the mix or of chance; give several seeds of each mix."
_SEEDS = (
    "A dictionary part counts as an effect of the mix (`beyond_seeds`) only where its interval excludes 0 and it is larger than any difference "
    "between two seeds of one mix (`seed_spread`)."
)


def attribution_result(sums: AttributionSums, stats: FeatureStats, settings: ReportSettings) -> AnalysisResult:
    """The parts of every language's difference.

    Args:
        sums: of both passes.
        stats: of any language, for the documents that are resampled.
        settings: languages and statistics.
    """
    accounts = Accounts(sums, settings.languages.reference, settings.statistics, stats.resampling(settings.statistics.block), settings.seed)
    table, norms, effects, ranges = attribution_table(accounts), norm_table(accounts), dictionary_effects(accounts), range_parts(accounts)
    names = f"A: {', '.join(sums.set_a)}; B: {', '.join(sums.set_b)}"
    seeded = effects["beyond_seeds"].notna().any()
    shown = {
        f"Log ratio to {name_of(settings.languages.reference)}, mean over layers ({names})": _parts(ranges),
        "Residual norms, ratio to the reference's, mean over layers": _norms(norms),
    }
    if seeded:
        shown["Dictionary part beside what seeds alone make"] = effects[effects["measure"] == "mean"]
    return AnalysisResult(
        "Attribution to norm and dictionary",
        f"{_TEXT}\n\n{_SEEDS if seeded else _ONE_SEED}",
        frames={"attribution": table, "norms": norms, "dictionary_effects": effects, "attribution_by_range": ranges},
        figures={"attribution": part_bars(ranges, settings.languages)},
        shown=shown,
        summary=attribution_summary(table),
        printed={"Log ratio of activation to the reference, mean over all layers": _parts(ranges[ranges["range"] == "all"]).drop(columns="layers")},
    )


def _parts(ranges: pd.DataFrame) -> pd.DataFrame:
    """One row per language and range, a column for each part."""
    cells = rows_by(ranges, "language", "range", "part")
    places = ranges[["language", "range"]].drop_duplicates().itertuples(index=False)
    return pd.DataFrame(
        {"language": code, "layers": name} | {part: with_interval(cells[code, name, part]) for part in PARTS} for code, name in places
    )


def _norms(norms: pd.DataFrame) -> pd.DataFrame:
    """One row per language, a column for each kind of norm."""
    means = norms.groupby(["language", "norm"], sort=False)["ratio"].mean().unstack("norm")
    return means.map("{:.3f}".format).reset_index()
