"""Phrases of the reports: numbers, names and sentences that several sections share."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import pandas as pd

from lingact.activations.measurement import is_random
from lingact.catalogue.languages import LANGUAGES
from lingact.config.data import LanguagesConfig
from lingact.config.measures import Statistics
from lingact.statistics.bootstrap import FEW, Resampling

Row = Mapping[Hashable, Any]
"""A row of a table: column -> cell."""
Cells = dict[tuple[Hashable, ...], Row]
"""Rows of a tidy table, by some of their columns."""


def rows_by(frame: pd.DataFrame, *keys: str) -> Cells:
    """The rows of a tidy table, by these columns."""
    return {tuple(record[key] for key in keys): record for record in frame.to_dict("records")}


def with_interval(cell: Row, key: str = "estimate", *, digits: int = 2, signed: bool = True) -> str:
    """`+0.12 [0.10, 0.14]`, or `-` if the estimate is undefined."""
    if pd.isna(cell[key]):
        return "-"
    estimate, low, high = (round(float(cell[name]), digits) + 0.0 for name in (key, "lo", "hi"))  # + 0.0: no -0.00
    return f"{estimate:{'+' if signed and estimate else ''}.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def plain(value: float, spec: str) -> str:
    """A number without its interval, or `-` if it is undefined."""
    return "-" if pd.isna(value) else format(value, spec)


def markdown_table(frame: pd.DataFrame) -> str:
    """A table in Markdown."""
    lines = ["| " + " | ".join(map(str, frame.columns)) + " |", "|" + "---|" * len(frame.columns)]
    rows = ([str(cell).replace("|", "\\|") for cell in row] for row in frame.itertuples(index=False))
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


GROUP_TITLES = {"low": "medium-to-low-resource", "high": "high-resource"}
"""Names of the groups in sentences."""


def sae_set_title(sae_set: str) -> str:
    """The name of a set of SAEs in sentences."""
    return "random-direction" if is_random(sae_set) else {"heldout": "held-out"}.get(sae_set, sae_set)


def share_of(cell: Row) -> str:
    """`12% [10%, 14%]`."""
    return f"{cell['estimate']:.0%} [{cell['lo']:.0%}, {cell['hi']:.0%}]"


def name_of(code: str) -> str:
    """The name of the language, or the code itself if it is not a language."""
    return LANGUAGES[code].name if code in LANGUAGES else code


def listed(codes: Sequence[str]) -> str:
    """`2 (Hindi, Malayalam)`, or `none`."""
    return f"{len(codes)} ({', '.join(map(name_of, codes))})" if codes else "none"


def text_of(resampling: Resampling, split: str = "") -> str:
    """How much text there is, and what is resampled: `300 sentences (dev), intervals by paired bootstrap over 40 documents`."""
    sentences = f"{len(resampling.unit)} sentences{f' ({split})' if split else ''}"
    return sentences if resampling.by == "sentences" else f"{sentences}, intervals by paired bootstrap over {resampling}"


def cautions_of(resampling: Resampling, block: int | None, key: str = "statistics.block") -> list[str]:
    """Cautions about the resampling, for the terminal and the page.

    Args:
        resampling: what was resampled.
        block: its setting in the configuration.
        key: of that setting.
    """
    found = []
    if block is not None and resampling.by == "documents":
        found.append(f"{key}={block} has no effect: the corpus names the document of each sentence, so documents are resampled")
    if resampling.count < FEW:
        units = {"documents": "documents", "blocks": "blocks of neighbouring sentences"}.get(resampling.by, resampling.by)
        found.append(f"intervals from only {resampling.count} {units} are rough: they may cover the truth less often than stated")
    return found


def explain_intervals(confidence: float, resamples: int, unit: str, units: str = "") -> str:
    """What brackets, bands and bars mean.

    Args:
        confidence: of the intervals.
        resamples: of the bootstrap.
        unit: what is resampled, such as documents.
        units: the same with their number, such as 123 documents; empty: the unit alone.
    """
    return (
        f"Brackets, bands and bars show {confidence:.0%} intervals of a paired bootstrap over {units or unit} ({resamples:,} resamples), which draws "
        f"the same {unit} for everything that is compared. The intervals are not corrected for their number: about {1 - confidence:.0%} of them "
        "exclude 0 even if there is no effect."
    )


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def verdict(row: Row) -> str:
    """The verdict of a gap's interval: falls short of, lies above, cannot be distinguished from, or has no defined gap to."""
    if pd.isna(row["lo"]) or pd.isna(row["hi"]):
        return "has no defined gap to"
    return "falls short of" if row["lo"] > 0 else "lies above" if row["hi"] < 0 else "cannot be distinguished from"


MEASURE_TITLES = {
    "mean": "per token",
    "mean_active": "per active latent",
    "firing_rate": "by firing rate",
    "l0": "by L0",
    "l2": "by L2 norm",
    "top_k": "by a token's top k",
    "per_sentence": "per sentence",
    "per_byte": "per byte",
    "per_word": "per word",
    "reference_active": "over the reference's latents",
    "norm_matched": "at the reference's norm",
}
"""Names of the measures of activation in sentences."""


_DEPENDENCE = {
    "documents": "Whole documents are resampled, so that the sentences of a document may depend on each other. What documents share, such as a "
    "source or a template, is not covered.",
    "blocks": "Whole blocks of neighbouring sentences are resampled, so that neighbours may depend on each other. If dependence reaches further than "
    "a block, the intervals are too narrow.",
    "sentences": "Sentences are resampled as if they were independent. If they share documents or templates, the intervals are too narrow; to "
    "resample documents or blocks instead, give the corpus a column 'document' or set statistics.block.",
}


def reading_gaps(settings: Statistics, resampling: Resampling, measure: str = "mean") -> list[str]:
    """Paragraphs on how to read gaps, with cautions.

    Args:
        settings: of the intervals.
        resampling: what was resampled of the measured sentences.
        measure: of activation.
    """
    mean = "over all tokens" if settings.pooling == "token" else "within each sentence, then over sentences"
    return [
        (
            f"A gap is 1 - a / r, where a is the SAE activation of a language, measured {MEASURE_TITLES[measure]} (mean {mean}), and r that of the "
            "reference language on the same sentences. Positive: the language falls short of the reference. Negative: it lies above. 0: no "
            "difference."
        ),
        " ".join(
            [
                explain_intervals(settings.confidence, settings.resamples, resampling.by, str(resampling)),
                *map(_sentence, cautions_of(resampling, settings.block)),
            ]
        ),
        (
            "Cautions. Languages need different numbers of tokens to say the same (fertility), so a gap per token can come from the tokenizer. An "
            "SAE that fits a language worse (higher FVU) misreads its activation, so low activation may mean a poor fit and not weak features. "
            f"{_DEPENDENCE[resampling.by]} Intervals cover the choice of {resampling.by}, not the choice of languages. Raw activation grows with the "
            "residual norm, so compare the norms. The results hold for this model, these SAEs and this corpus; for others they have to be measured "
            "again."
        ),
    ]


def other_languages(languages: LanguagesConfig) -> tuple[str, ...]:
    """The codes of all languages but the reference."""
    return (*languages.high, *languages.low)


def marked(rows: pd.DataFrame) -> list[str]:
    """`+0.12*`: each gap, with an asterisk if its interval excludes 0."""
    sure = (rows["lo"] > 0) | (rows["hi"] < 0)
    return ["-" if pd.isna(gap) else f"{gap + 0.0:+.2f}{'*' if mark else ''}" for gap, mark in zip(rows["gap"], sure, strict=True)]


def span(values: pd.Series, digits: int = 2) -> str:
    """The smallest and the largest defined value by language: `0.12 (Hindi) to 0.30 (Malayalam)`, or `undefined`."""
    values = values.dropna()
    if values.empty:
        return "undefined"
    low, high = str(values.idxmin()), str(values.idxmax())
    if f"{values.min():.{digits}f}" == f"{values.max():.{digits}f}":
        return f"{values.min():.{digits}f}"
    return f"{values.min():.{digits}f} ({name_of(low)}) to {values.max():.{digits}f} ({name_of(high)})"


def wide_cells(cells: pd.DataFrame, index: str, columns: str) -> pd.DataFrame:
    """The column `cell` of a tidy table as a wide one, with rows and columns in the order of the tidy table."""
    return cells.pivot_table(index=index, columns=columns, values="cell", aggfunc="first", sort=False)  # pyrefly: ignore[bad-argument-type]
