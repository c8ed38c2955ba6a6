"""Other measures of activation: do the gaps depend on the measure?"""

from collections.abc import Iterable, Sequence

import pandas as pd

from lingact.analysis.measures import StatsByLanguage, available
from lingact.analysis.tables import measure_table
from lingact.config.data import LanguagesConfig
from lingact.figures import gaps as gap_figures
from lingact.report.analysis_result import AnalysisResult, ReportSettings
from lingact.report.phrases import GROUP_TITLES, MEASURE_TITLES, marked, name_of, verdict, wide_cells


def measures_text(overall: pd.DataFrame, languages: LanguagesConfig) -> str:
    """By which measures each group falls short of the reference, lies above it, or cannot be distinguished from it.

    Args:
        overall: rows of `tables.measure_table` for all layers together.
        languages: the reference and the groups.
    """
    by_group: dict[str, dict[str, list[str]]] = {}
    for group in (name for name in GROUP_TITLES if (overall["name"] == name).any()):
        for row in overall[overall["name"] == group].to_dict("records"):
            by_group.setdefault(group, {}).setdefault(verdict(row), []).append(row["measure"])
    groups_by: dict[tuple[str, str], list[str]] = {}
    for group, verdicts in by_group.items():
        for word, measures in verdicts.items():
            groups_by.setdefault((_named(measures), word), []).append(f"the {GROUP_TITLES[group]} group")
    reference = name_of(languages.reference)
    sentences = [
        f"Measured {measures}, {' and '.join(groups)} {word if len(groups) == 1 else f'each {word}'} {reference} on average over the layers."
        for (measures, word), groups in groups_by.items()
    ]
    if any({"falls short of", "lies above"} <= verdicts.keys() for verdicts in by_group.values()):
        sentences.append("So the direction of the disparity depends on the measure, and no single measure is enough.")
    return " ".join(sentences)


def _named(names: Iterable[str]) -> str:
    return ", ".join(MEASURE_TITLES[name] for name in names)


def wide_measures(overall: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """A row per language and group, a column per measure."""
    cells = overall.assign(cell=marked(overall))
    wide = wide_cells(cells, "name", "measure")[list(names)]
    return wide.rename(columns=MEASURE_TITLES, index=lambda name: name.replace("_", " ")).reset_index()


def measure_result(stats: StatsByLanguage, settings: ReportSettings) -> AnalysisResult:
    """The gaps by every measure of activation that the statistics allow."""
    table = measure_table(stats, settings.languages, settings.statistics, settings.seed)
    overall = table[table["place"] == "all"]
    summary = {f"measure/{row['measure']}/{row['name']}": float(row["gap"]) for row in overall.to_dict("records")}
    names = available(stats[settings.languages.reference])
    text = measures_text(overall, settings.languages)
    return AnalysisResult(
        "Other measures of activation",
        text,
        text,
        {"gap_by_measure": table},
        {"measures": gap_figures.measure_heatmap(overall, settings.languages, names)},
        {"Gap by measure, mean over all layers (*: the interval excludes 0)": wide_measures(overall, names)},
        summary=summary,
    )
