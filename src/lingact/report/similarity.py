"""Similarity of representations: how alike translations are, and what separates the languages."""

from collections.abc import Mapping

import pandas as pd

from lingact.activations.feature_stats import SentenceVectors
from lingact.analysis import similarity
from lingact.analysis.measures import Stats
from lingact.config.data import LanguagesConfig
from lingact.figures import similarity as similarity_figures
from lingact.report.analysis_result import AnalysisResult, ReportSettings
from lingact.report.phrases import name_of, span

_SIMILARITIES = {
    "cka": "debiased linear CKA",
    "retrieval": "retrieval of translations",
    "mrr": "their mean reciprocal rank",
    "centred_cosine": "mean-centred cosine",
    "cosine": "plain mean-pooled cosine",
}


def similarity_text(table: pd.DataFrame, apart: pd.DataFrame, languages: LanguagesConfig) -> str:
    """How alike translations are, with the floor of shuffled pairs; and what tells the languages apart.

    Args:
        table: `similarity.similarity_table`.
        apart: `similarity.separation_table`.
    """
    means = table.groupby(["quantity", "language"], sort=False)[["estimate", "floor"]].mean()
    sentences = [f"Similarity to {name_of(languages.reference)} over {table['n'].iloc[0]} sentences, means over layers, shuffled pairs in brackets:"]
    parts = []
    for quantity, title in _SIMILARITIES.items():
        own = means.loc[quantity]
        parts.append(f"{title} {span(own['estimate'])} [{own['floor'].min():z.2f} to {own['floor'].max():z.2f}]")
    sentences.append("; ".join(parts) + ".")
    plain = means.loc["cosine"]
    sentences.append(
        f"Of the plain cosine, {plain['floor'].sum() / plain['estimate'].sum():.0%} is there between sentences that are no translations of each "
        "other."
    )
    # Fold before averaging: a scalar that is higher in early and lower in late layers tells languages apart in both.
    folded = apart.assign(estimate=apart["estimate"].where(apart["quantity"] == "diffmean", (apart["estimate"] - 0.5).abs() + 0.5))
    auc = folded.groupby(["quantity", "language"], sort=False)["estimate"].mean()
    sentences.append(
        "A direction found without any SAE (DiffMean), on the other half of the sentences, tells a sentence of the language from one of the "
        "reference "
        f"with AUC {span(auc['diffmean'])} (mean over layers); the summed activation alone, taken whichever way round is better at each layer, with "
        f"{span(auc['activation'])}, the residual norm with {span(auc['residual_norm'])}."
    )
    return " ".join(sentences)


def wide_similarity(table: pd.DataFrame) -> pd.DataFrame:
    """A row per language, a column per quantity: mean over layers, and the floor."""
    # A mean over the layers that are left would not be that over all.
    means = table.groupby(["language", "quantity"], sort=False)[["estimate", "floor"]].agg(lambda x: x.mean(skipna=False)).reset_index()
    cells = means.assign(cell=["-" if pd.isna(row.estimate) else f"{row.estimate:z.2f} (floor {row.floor:z.2f})" for row in means.itertuples()])
    wide = cells.pivot_table(index="language", columns="quantity", values="cell", aggfunc="first", sort=False)  # pyrefly: ignore[bad-argument-type]
    return wide.rename(columns=_SIMILARITIES).reset_index()


def similarity_result(vectors: Mapping[str, SentenceVectors], stats: Stats, settings: ReportSettings) -> AnalysisResult:
    """Are translations represented alike, and what tells the languages apart?"""
    first = vectors[settings.languages.reference]
    means = {code: own.means() for code, own in vectors.items()}
    chosen = first.places
    drawn = settings.resampling(stats, chosen)
    table = similarity.similarity_table(means, first.layers, settings.languages.reference, drawn, **settings.bootstrap)
    scalars = {
        "activation": {code: (s.activation / s.tokens)[:, chosen] for code, s in stats.items()},
        "residual_norm": {code: (s.norm / s.tokens)[:, chosen] for code, s in stats.items()},
    }
    halves = stats[settings.languages.reference].halves[chosen]
    apart = similarity.separation_table(means, scalars, halves, first.layers, settings.languages.reference, drawn, **settings.bootstrap)
    summary = {
        f"similarity/{quantity}/{code}": float(value)
        for (quantity, code), value in table.groupby(["quantity", "language"], sort=False)["estimate"].agg(lambda x: x.mean(skipna=False)).items()  # pyrefly: ignore[not-iterable]
    }
    return AnalysisResult(
        "Similarity of representations",
        similarity_text(table, apart, settings.languages),
        "",
        {"similarity": table, "separation": apart},
        {
            "similarity": similarity_figures.similarity_curves(table, settings.languages),
            "separation": similarity_figures.separation_curves(apart, settings.languages),
        },
        {"Similarity to the reference, mean over layers (floor: shuffled pairs)": wide_similarity(table)},
        summary=summary,
    )
