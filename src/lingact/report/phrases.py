"""Numbers and names as they stand in sentences and cells."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from lingact.activations.random_saes import is_random
from lingact.catalogue.languages import LANGUAGES
from lingact.config.data import LanguagesConfig
from lingact.config.measures import Statistics
from lingact.statistics.bootstrap import FEW, Resampling

Cells = dict[tuple[Any, ...], dict[Any, Any]]
"""Rows of a tidy table by some of their columns."""


def cells_by(frame: pd.DataFrame, *keys: str) -> Cells:
    """The rows of a tidy table by their keys."""
    return {tuple(record[key] for key in keys): record for record in frame.to_dict("records")}


def with_interval(cell: Mapping[Any, Any], key: str = "estimate", *, digits: int = 2, signed: bool = True) -> str:
    """`+0.12 [0.10, 0.14]`, or `-` where there is no number."""
    if pd.isna(cell[key]):
        return "-"
    estimate, low, high = (round(float(cell[name]), digits) + 0.0 for name in (key, "lo", "hi"))  # + 0.0: no -0.00
    return f"{estimate:{'+' if signed and estimate else ''}.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def plain(value: float, spec: str) -> str:
    """A number without its interval, or `-` where there is none."""
    return "-" if pd.isna(value) else format(value, spec)


def markdown_table(frame: pd.DataFrame) -> str:
    """A table for a page in Markdown."""
    lines = ["| " + " | ".join(map(str, frame.columns)) + " |", "|" + "---|" * len(frame.columns)]
    rows = ([str(cell).replace("|", "\\|") for cell in row] for row in frame.itertuples(index=False))
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


GROUPS = {"low": "medium-to-low-resource", "high": "high-resource"}
"""Groups as they are called in sentences."""


def sae_set_title(sae_set: str) -> str:
    """A set of SAEs as it is called in sentences."""
    return "random-direction" if is_random(sae_set) else {"heldout": "held-out"}.get(sae_set, sae_set)


def share_of(cell: Mapping[Any, Any]) -> str:
    """`12% [10%, 14%]`."""
    return f"{cell['estimate']:.0%} [{cell['lo']:.0%}, {cell['hi']:.0%}]"


def name_of(code: str) -> str:
    """The language of a code, or the code of something else."""
    return LANGUAGES[code].name if code in LANGUAGES else code


def listed(codes: Sequence[str]) -> str:
    """How many, and which."""
    return f"{len(codes)} ({', '.join(map(name_of, codes))})" if codes else "none"


def text_of(drawn: Resampling, split: str = "") -> str:
    """How much text, and what of it is resampled: `300 sentences`, `300 sentences (dev), intervals by paired bootstrap over 40 documents`."""
    sentences = f"{len(drawn.unit)} sentences{f' ({split})' if split else ''}"
    return sentences if drawn.by == "sentences" else f"{sentences}, intervals by paired bootstrap over {drawn}"


def cautions_of(drawn: Resampling, block: int | None, key: str = "statistics.block") -> list[str]:
    """What a reader has to know of what was resampled; the same sentences on the terminal and on the page.

    Args:
        block: as it was given, under this key of the configuration.
    """
    found = []
    if block is not None and drawn.by == "documents":
        found.append(f"{key}={block} has no effect: the corpus says which document each sentence is of, and documents are drawn")
    if drawn.count < FEW:
        units = {"documents": "documents", "blocks": "blocks of neighbouring sentences"}.get(drawn.by, drawn.by)
        found.append(f"intervals from so few as {drawn.count} {units} are rough: they may hold the truth less often than they say")
    return found


def explain_intervals(confidence: float, resamples: int, unit: str, drawn: str = "") -> str:
    """What the brackets mean.

    Args:
        unit: what is resampled, such as documents.
        drawn: with how many there are, such as 123 documents; empty: the unit alone.
    """
    return (
        f"Brackets, bands and bars hold the {confidence:.0%} interval of a paired bootstrap over {drawn or unit} ({resamples:,} resamples), which "
        f"draws the same {unit} for all that is compared. Each interval speaks for itself alone: where many are shown, about {1 - confidence:.0%} of "
        "them exclude 0 even if nothing is there."
    )


def _sentence(words: str) -> str:
    return f"{words[0].upper()}{words[1:]}."


def verdict(row: Mapping[Any, Any]) -> str:
    """What the interval of a gap says: falls short of, lies above, cannot be told from, or has no defined gap to."""
    if pd.isna(row["lo"]) or pd.isna(row["hi"]):
        return "has no defined gap to"
    return "falls short of" if row["lo"] > 0 else "lies above" if row["hi"] < 0 else "cannot be told from"


MEASURES = {
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
"""Measures of activation as they are called in sentences."""


_DEPENDENCE = {
    "documents": "Documents are resampled whole, so the sentences of one may depend on each other; what documents share, such as a source or a "
    "template, is not covered.",
    "blocks": "Blocks of neighbouring sentences are resampled whole, so neighbours may depend on each other; where dependence reaches further than a "
    "block, intervals are too narrow.",
    "sentences": "Sentences are resampled as if independent: where they share a document or a template, intervals are too narrow (a column "
    "'document' in the corpus, or statistics.block, draws more than single sentences).",
}


def reading_gaps(settings: Statistics, drawn: Resampling, measure: str = "mean") -> list[str]:
    """How to read gaps, with the cautions.

    Args:
        drawn: what was resampled of the measured sentences.
    """
    mean = "over all tokens" if settings.pooling == "token" else "within each sentence, then over sentences"
    return [
        (
            f"A gap is 1 minus the SAE activation of a language, measured {MEASURES[measure]} (mean {mean}), divided by that of the reference "
            "language on "
            "the same sentences. Positive: the language falls short. Negative: it lies above. 0: no difference."
        ),
        " ".join(
            [explain_intervals(settings.confidence, settings.resamples, drawn.by, str(drawn)), *map(_sentence, cautions_of(drawn, settings.block))]
        ),
        (
            "Cautions. Means are per token, and languages need different numbers of tokens to say the same (fertility), so a gap can come from the "
            "tokenizer. An SAE that fits a language worse (higher FVU) misreads its activation: less may mean a poorer dictionary, not weaker "
            f"features. {_DEPENDENCE[drawn.by]} Intervals cover "
            f"the choice of {drawn.by}, never that of languages. Raw activation grows with the norm of the residual, so mere loudness inflates it; "
            "compare the norms. All was found on this "
            "model, these SAEs and this corpus, and holds for no other without being measured there."
        ),
    ]


def other_languages(languages: LanguagesConfig) -> tuple[str, ...]:
    """The codes of all languages but the reference."""
    return (*languages.high, *languages.low)


def marked(rows: pd.DataFrame) -> list[str]:
    """`+0.12*`: the gap, with an asterisk where its interval excludes 0."""
    sure = (rows["lo"] > 0) | (rows["hi"] < 0)
    return ["-" if pd.isna(gap) else f"{gap + 0.0:+.2f}{'*' if mark else ''}" for gap, mark in zip(rows["gap"], sure, strict=True)]


def span(values: pd.Series, digits: int = 2) -> str:
    """Smallest and largest of some values by language: `0.12 (Hindi) to 0.30 (Malayalam)`. Of those that are defined, if any."""
    values = values.dropna()
    if values.empty:
        return "undefined"
    low, high = str(values.idxmin()), str(values.idxmax())
    if f"{values.min():.{digits}f}" == f"{values.max():.{digits}f}":
        return f"{values.min():.{digits}f}"
    return f"{values.min():.{digits}f} ({name_of(low)}) to {values.max():.{digits}f} ({name_of(high)})"
