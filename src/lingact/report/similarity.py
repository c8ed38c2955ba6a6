"""Similarity of representations: how similar translations are, and what separates the languages."""

from collections.abc import Mapping

import pandas as pd

from lingact.activations.feature_stats import SentenceVectors
from lingact.analysis import similarity
from lingact.analysis.measures import StatsByLanguage
from lingact.config.data import LanguagesConfig
from lingact.figures import similarity as similarity_figures
from lingact.report.analysis_result import AnalysisResult, ReportSettings
from lingact.report.phrases import name_of, span, wide_cells

_SIMILARITIES = {
    "cka": "debiased linear CKA",
    "retrieval": "retrieval of translations",
    "mrr": "mean reciprocal rank of translations",
    "centred_cosine": "mean-centred cosine",
    "cosine": "plain mean-pooled cosine",
}


def similarity_text(table: pd.DataFrame, apart: pd.DataFrame, languages: LanguagesConfig) -> str:
    """How similar translations are, compared with shuffled pairs; and how well single numbers separate the languages.

    Args:
        table: `similarity.similarity_table`.
        apart: `similarity.separation_table`.
        languages: the reference and the groups.
    """
    means = table.groupby(["quantity", "language"], sort=False)[["estimate", "floor"]].mean()
    sentences = [
        f"Similarity to {name_of(languages.reference)} over {table['n'].iloc[0]} sentences (means over layers; values of shuffled pairs in brackets):"
    ]
    parts = []
    for quantity, title in _SIMILARITIES.items():
        own = means.loc[quantity]
        parts.append(f"{title} {span(own['estimate'])} [{own['floor'].min():z.2f} to {own['floor'].max():z.2f}]")
    sentences.append("; ".join(parts) + ".")
    plain = means.loc["cosine"]
    sentences.append(
        f"Sentences that are not translations of each other already reach {plain['floor'].sum() / plain['estimate'].sum():.0%} of the plain cosine."
    )
    # Fold before averaging: a number that is higher in early and lower in late layers separates the languages in both.
    folded = apart.assign(estimate=apart["estimate"].where(apart["quantity"] == "diffmean", (apart["estimate"] - 0.5).abs() + 0.5))
    auc = folded.groupby(["quantity", "language"], sort=False)["estimate"].mean()
    sentences.append(
        "A direction found without any SAE (DiffMean), on the other half of the sentences, separates sentences of a language from those of the "
        f"reference with AUC {span(auc['diffmean'])} (mean over layers). The summed activation alone, with the better sign at each layer, reaches "
        f"{span(auc['activation'])}, and the residual norm {span(auc['residual_norm'])}."
    )
    return " ".join(sentences)


def wide_similarity(table: pd.DataFrame) -> pd.DataFrame:
    """A row per language, a column per quantity: mean over layers, and the floor of shuffled pairs."""
    # A mean over the remaining layers would not be the mean over all.
    means = table.groupby(["language", "quantity"], sort=False)[["estimate", "floor"]].agg(lambda x: x.mean(skipna=False)).reset_index()
    cells = means.assign(cell=["-" if pd.isna(row.estimate) else f"{row.estimate:z.2f} (floor {row.floor:z.2f})" for row in means.itertuples()])
    wide = wide_cells(cells, "language", "quantity")
    return wide.rename(columns=_SIMILARITIES).reset_index()


def similarity_result(vectors: Mapping[str, SentenceVectors], stats: StatsByLanguage, settings: ReportSettings) -> AnalysisResult:
    """How similarly translations are represented, and what separates the languages."""
    first = vectors[settings.languages.reference]
    means = {code: own.means() for code, own in vectors.items()}
    chosen = first.places
    resampling = settings.resampling(stats, chosen)
    table = similarity.similarity_table(means, first.layers, settings.languages.reference, resampling, **settings.bootstrap)
    scalars = {
        "activation": {code: (s.activation / s.tokens)[:, chosen] for code, s in stats.items()},
        "residual_norm": {code: (s.norm / s.tokens)[:, chosen] for code, s in stats.items()},
    }
    halves = stats[settings.languages.reference].halves[chosen]
    apart = similarity.separation_table(means, scalars, halves, first.layers, settings.languages.reference, resampling, **settings.bootstrap)
    means_over_layers = table.groupby(["quantity", "language"], sort=False)["estimate"].agg(lambda x: x.mean(skipna=False)).reset_index()
    summary = {f"similarity/{row['quantity']}/{row['language']}": float(row["estimate"]) for row in means_over_layers.to_dict("records")}
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
