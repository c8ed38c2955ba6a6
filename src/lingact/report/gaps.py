"""Gaps in words and tables: the terminal's rows and the report of analyze.py."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from lingact.config import AnalyzeConfig, LanguagesConfig
from lingact.languages import LANGUAGES
from lingact.report.page import Section, measured_facts, write_report
from lingact.report.words import cells_by, listed, name_of, reading_gaps, with_interval

BY_LAYER, BY_RANGE = "Gap by layer", "Gap by range of layers"
"""Titles under which `write_analysis` looks for `tables.layer_table` and `tables.range_table`."""


def gap_rows(ranges: pd.DataFrame, languages: LanguagesConfig, *, statistic: str = "mean") -> list[dict[str, str]]:
    """One row per language and group, with the gap over each range of layers.

    Args:
        ranges: `tables.range_table`.
        statistic: mean over the layers of the range, or max.
    """
    cells = cells_by(ranges[ranges["statistic"] == statistic], "name", "range")
    of = dict.fromkeys(languages.high, "high") | dict.fromkeys(languages.low, "low")
    rows = []
    for name in dict.fromkeys(ranges["name"]):
        row = (
            {"language": name, "name": LANGUAGES[name].name, "group": of.get(name, "")}
            if name in LANGUAGES
            else {"language": name, "name": "", "group": "all"}
        )
        rows.append(row | {label: with_interval(cells[name, label], "gap") for label in dict.fromkeys(ranges["range"])})
    return rows


def analysis_text(layers: pd.DataFrame, ranges: pd.DataFrame, languages: LanguagesConfig, confidence: float) -> str:
    """How many languages of each group fall short of the reference, or lie above it, at more than half of the layers; and the group comparison.

    Args:
        layers: `tables.layer_table`.
        ranges: `tables.range_table`.
    """
    count = layers["layer"].nunique()
    reference = name_of(languages.reference)
    sentences = []
    for group, codes in (("medium-to-low-resource", languages.low), ("high-resource", languages.high)):
        found = {code: layers[layers["name"] == code] for code in codes}
        short = [code for code, own in found.items() if 2 * (own["lo"] > 0).sum() > count]
        above = [code for code, own in found.items() if 2 * (own["hi"] < 0).sum() > count]
        neither = [code for code in codes if code not in (*short, *above)]
        if codes:
            sentences.append(
                f"Of {len(codes)} {group} languages, those that fall short of {reference} at more than half of the {count} layers, with "
                f"{confidence:.0%} intervals that exclude 0: {listed(short)}; those that lie above it in the same sense: {listed(above)}; "
                f"neither: {listed(neither)}."
            )
    overall = ranges[(ranges["name"] == "low_vs_high") & (ranges["range"] == "all") & (ranges["statistic"] == "mean")]
    for cell in overall.to_dict("records"):
        verdict = "falls short of" if cell["lo"] > 0 else "lies above" if cell["hi"] < 0 else "cannot be told apart from"
        sentences.append(
            f"Averaged over all layers the medium-to-low-resource group {verdict} the high-resource group: gap {with_interval(cell, 'gap')}."
        )
    return " ".join(sentences)


def write_analysis(folder: Path, config: AnalyzeConfig, pages: Sequence[Section], identity: Mapping[str, str], sentences: int) -> Path:
    """The report of analyze.py. Each section's tables include `tables.range_table` and `tables.layer_table` under `BY_RANGE` and `BY_LAYER`."""
    lead, sections = [], []
    for page in pages:
        ranges, layers = page.tables[BY_RANGE], page.tables[BY_LAYER]
        lead.append(f"By the {page.heading} SAEs: {analysis_text(layers, ranges, config.languages, config.statistics.confidence)}")
        rest = {title: frame for title, frame in page.tables.items() if title not in (BY_RANGE, BY_LAYER)}
        wide = {
            f"{BY_RANGE}, mean": pd.DataFrame(gap_rows(ranges, config.languages)),
            f"{BY_RANGE}, largest": pd.DataFrame(gap_rows(ranges, config.languages, statistic="max")),
            f"{BY_LAYER} (*: the interval excludes 0)": _wide_layers(layers),
        }
        sections.append(replace(page, heading=f"By the {page.heading} SAEs", tables=wide | rest))
    return write_report(
        folder,
        f"Activation gaps against {name_of(config.languages.reference)}",
        "\n\n".join(lead),
        sections,
        measured_facts(folder, config, identity, sentences),
        reading=reading_gaps(config.statistics),
    )


def _wide_layers(layers: pd.DataFrame) -> pd.DataFrame:
    marked = (layers["lo"] > 0) | (layers["hi"] < 0)
    cells = layers.assign(cell=[f"{gap:+.2f}{'*' if mark else ''}" for gap, mark in zip(layers["gap"], marked, strict=True)])
    wide = cells.pivot_table(index="layer", columns="name", values="cell", aggfunc="first", sort=False)  # pyrefly: ignore[bad-argument-type]
    return wide.rename(columns=lambda name: name.replace("_", " ")).reset_index()
