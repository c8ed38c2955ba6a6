"""Gaps of languages and groups against the reference: sentences, tables and the section."""

import pandas as pd

from lingact.analysis.measures import StatsByLanguage
from lingact.analysis.tables import Disparities, disparities, gap_summary, grouping_p, layer_table, range_table
from lingact.catalogue.languages import LANGUAGES
from lingact.config.data import LanguagesConfig
from lingact.figures import gaps as gap_figures
from lingact.report.analysis_result import AnalysisResult, ReportSettings
from lingact.report.phrases import GROUP_TITLES, MEASURE_TITLES, listed, name_of, rows_by, sae_set_title, verdict, wide_cells, with_interval


def gap_rows(ranges: pd.DataFrame, languages: LanguagesConfig, *, statistic: str = "mean") -> list[dict[str, str]]:
    """One row per language and group, with the gap over each range of layers.

    Args:
        ranges: `tables.range_table`.
        languages: their groups.
        statistic: mean over the layers of the range, or max.
    """
    cells = rows_by(ranges[ranges["statistic"] == statistic], "name", "range")
    group_of = dict.fromkeys(languages.high, "high") | dict.fromkeys(languages.low, "low")
    rows = []
    for name in dict.fromkeys(ranges["name"]):
        row = (
            {"language": name, "name": LANGUAGES[name].name, "group": group_of.get(name, "")}
            if name in LANGUAGES
            else {"language": name, "name": "", "group": "all"}
        )
        rows.append(row | {label: with_interval(cells[name, label], "gap") for label in dict.fromkeys(ranges["range"])})
    return rows


def gaps_lead(ranges: pd.DataFrame, languages: LanguagesConfig) -> str:
    """The groups' mean gaps over all layers.

    Args:
        ranges: `tables.range_table`.
    """
    cells = ranges[(ranges["range"] == "all") & (ranges["statistic"] == "mean")].set_index("name")
    parts = []
    for group, title in GROUP_TITLES.items():
        if group in cells.index:
            row = cells.loc[group].to_dict()
            parts.append(f"the {title} group {verdict(row)} {name_of(languages.reference)} (mean gap over layers {with_interval(row, 'gap')})")
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}." if text else ""


def analysis_text(layers: pd.DataFrame, ranges: pd.DataFrame, languages: LanguagesConfig, confidence: float, chance: float = float("nan")) -> str:
    """How many languages of each group fall short of the reference or lie above it at more than half of the layers, and how the groups compare.

    Args:
        layers: `tables.layer_table`.
        ranges: `tables.range_table`.
        chance: `tables.grouping_p`; nan: not reported.
    """
    count = layers["layer"].nunique()
    reference = name_of(languages.reference)
    sentences = []
    for group, codes in (("medium-to-low-resource", languages.low), ("high-resource", languages.high)):
        title = f"Of {len(codes)} {group} language{'' if len(codes) == 1 else 's'}"
        found = {code: layers[layers["name"] == code] for code in codes}
        short = [code for code, own in found.items() if 2 * (own["band_lo"] > 0).sum() > count]
        above = [code for code, own in found.items() if 2 * (own["band_hi"] < 0).sum() > count]
        undefined = [code for code, own in found.items() if own["gap"].isna().all()]
        neither = [code for code in codes if code not in (*short, *above, *undefined)]
        verdicts = {
            (f"falls short of {reference}", f"fall short of {reference}"): short,
            (f"lies above {reference}", f"lie above {reference}"): above,
            ("does neither", "do neither"): neither,
            ("has no defined gap", "have no defined gap"): undefined,
        }
        parts = [f"{listed(members)} {one if len(members) == 1 else several}" for (one, several), members in verdicts.items() if members]
        if codes:
            sentences.append(f"{title}, at more than half of the {count} layers: {'; '.join(parts)}.")
    sentences.append(f"A layer counts if the language's {confidence:.0%} band, which is simultaneous over layers, excludes 0.")
    sentences += _how_much_wider(layers, ranges)
    overall = ranges[(ranges["name"] == "low_vs_high") & (ranges["range"] == "all") & (ranges["statistic"] == "mean")]
    for cell in overall.to_dict("records"):
        sentences.append(
            f"Averaged over all layers the medium-to-low-resource group {verdict(cell)} the high-resource group: gap "
            f"{with_interval(cell, 'gap', digits=3)}."
        )
        if not pd.isna(chance):
            sentences.append(
                f"That interval covers the choice of {cell['resampled']}, not of languages: of all ways to split these languages into groups of "
                f"these sizes, {chance:.0%} give mean gaps that are at least as far apart."
            )
    return " ".join(sentences)


def _how_much_wider(layers: pd.DataFrame, ranges: pd.DataFrame) -> list[str]:
    """How much larger standard errors are than with single sentences; empty if single sentences are resampled."""
    by = str(layers["resampled"].iloc[0])
    if by == "sentences" or layers["wider"].isna().all():
        return []
    means = ranges[(ranges["range"] == "all") & (ranges["statistic"] == "mean")].set_index("name")["wider"]
    groups = ", ".join(f"{means[group]:.2f} for the {title} group" for group, title in GROUP_TITLES.items() if group in means.index)
    means_over_layers = f"; for the mean over layers {groups}" if groups else ""
    times = f"{layers['wider'].median():.2f} times those with single sentences (median over languages, groups and layers){means_over_layers}"
    return [f"With {by} resampled, standard errors are {times}."]


def wide_layers(layers: pd.DataFrame) -> pd.DataFrame:
    """A row per layer, a column per language and group. An asterisk: the simultaneous band excludes 0."""
    marked = (layers["band_lo"] > 0) | (layers["band_hi"] < 0)
    cells = layers.assign(cell=[f"{gap:+.2f}{'*' if mark else ''}" for gap, mark in zip(layers["gap"], marked, strict=True)])
    wide = wide_cells(cells, "layer", "name")
    return wide.rename(columns=lambda name: name.replace("_", " ")).reset_index()


_LARGEST = "Most positive gap of any layer in the range (biased upwards: it is the largest of noisy values)"


def gap_result(
    stats: StatsByLanguage, sae_set: str, settings: ReportSettings, *, measure: str, suffix: str = ""
) -> tuple[AnalysisResult, Disparities]:
    """Which languages fall short of the reference, at which layers, by one set of SAEs.

    Args:
        stats: language -> its statistics.
        sae_set: name of the set of SAEs.
        settings: languages and statistics.
        measure: of activation.
        suffix: of file names; empty for the measuring SAEs.
    """
    found = disparities(stats, settings.languages, settings.statistics, settings.seed, measure=measure)
    layers, ranges = layer_table(found), range_table(found)
    chance = grouping_p(found, settings.languages)
    text = analysis_text(layers, ranges, settings.languages, settings.statistics.confidence, chance)
    shown = {
        "Gap by range of layers, mean": pd.DataFrame(gap_rows(ranges, settings.languages)),
        _LARGEST: pd.DataFrame(gap_rows(ranges, settings.languages, statistic="max")),
        "Gap by layer (*: the band, simultaneous over layers, excludes 0)": wide_layers(layers),
    }
    figures = {
        f"gap_heatmap{suffix}": gap_figures.gap_heatmap(layers, settings.languages, settings.statistics.confidence),
        f"gap_groups{suffix}": gap_figures.group_curves(found),
    }
    frames = {f"gap_by_layer{suffix}": layers, f"gap_by_range{suffix}": ranges}
    heading = f"Gaps by the {sae_set_title(sae_set)} SAEs, measured {MEASURE_TITLES[measure]}"
    printed = {} if suffix else {f"Activation gap against {settings.languages.reference}": next(iter(shown.values()))}
    if suffix:  # SAEs that check the measuring ones: their numbers are compared among the controls
        figures.pop(f"gap_groups{suffix}")
        shown = {title: frame for title, frame in shown.items() if title.startswith("Gap by layer")}
    lead = "" if suffix else gaps_lead(ranges, settings.languages)
    return AnalysisResult(heading, text, lead, frames, figures, shown, summary=gap_summary(found), printed=printed), found
