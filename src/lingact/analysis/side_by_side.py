"""Similarity, gap and benchmark score of each language side by side, and what the comparison shows."""

import numpy as np
import pandas as pd

from lingact.analysis.correlation import correlate
from lingact.catalogue.languages import LANGUAGES

SIMILARITIES = ("cka", "retrieval", "cosine")
SCORE = "score_"
"""Prefix of the names of benchmarks' columns in the side-by-side table."""


# --- side by side ----------------------------------------------------------------------------------------------------------------------------------


def side_by_side(similarity: pd.DataFrame, gaps: pd.DataFrame, scores: pd.DataFrame) -> pd.DataFrame:
    """One row per language: similarity to the reference and gap, both means over layers, and the score of each benchmark.

    Args:
        similarity: from `similarity.similarity_table`.
        gaps: columns name, layer, gap; ranges of layers are ignored.
        scores: from `read_scores`.

    Returns:
        Columns language, cka, retrieval, cosine, gap, and `score_<benchmark>` (missing where the benchmark lacks the language).
    """
    alike = similarity[similarity["quantity"].isin(SIMILARITIES)].groupby(["language", "quantity"], sort=False)["estimate"].mean().unstack()
    per_layer = np.array([isinstance(layer, int | np.integer) for layer in gaps["layer"]])
    single = gaps[per_layer & gaps["name"].isin(LANGUAGES)]
    gap = single.groupby("name", sort=False)["gap"].mean()
    of_benchmark = scores.pivot_table(index="language", columns="benchmark", values="score", sort=False).add_prefix(SCORE)
    joined = alike[list(SIMILARITIES)].join(gap, how="inner").join(of_benchmark)
    return joined.rename_axis("language").rename_axis(columns=None).reset_index()


def side_by_side_correlations(table: pd.DataFrame, *, seed: int, confidence: float = 0.95) -> pd.DataFrame:
    """Correlation over languages of each benchmark's score with the similarities and with the gap, in the columns of `correlation_table`.

    Args:
        table: from `side_by_side`.
        seed: seed of random orders, if there are too many orders to enumerate.
        confidence: confidence of the descriptive interval.

    Returns:
        `place` is what the score is correlated with: `cka`, `retrieval`, `cosine` or `gap`.
    """
    values = table.set_index("language")[[*SIMILARITIES, "gap"]].T
    long = table.melt("language", [name for name in table.columns if name.startswith(SCORE)], "benchmark", "score").dropna()
    long["benchmark"] = long["benchmark"].str.removeprefix(SCORE)
    nothing = pd.DataFrame({"language": []})
    return correlate(values, long, nothing, {"none": ()}, seed=seed, confidence=confidence)


_NAMES = {"cka": "CKA", "retrieval": "retrieval of translations", "cosine": "mean-pooled cosine", "gap": "gap"}


def side_by_side_text(table: pd.DataFrame, found: pd.DataFrame, *, level: float = 0.05) -> str:
    """What the two tables show about the claim that similar embeddings hide a gap, in sentences.

    Args:
        table: from `side_by_side`.
        found: from `side_by_side_correlations` on that table.
        level: level of the tests, after Holm's correction.
    """
    spans = ", ".join(f"{_NAMES[name]} {_span(table, name)}" for name in (*SIMILARITIES, "gap"))
    sentences = [f"Over {len(table)} languages, means over layers: {spans}."]
    tested = found[found["p_holm"].notna()]
    undefined = len(found) - len(tested)
    if undefined:
        reasons = "; ".join(dict.fromkeys(found.loc[found["p_holm"].isna(), "reason"]))
        sentences.append(f"{undefined} of {len(found)} correlations with scores are undefined ({reasons}).")
    for benchmark, rows in tested[tested["method"] == "spearman"].groupby("benchmark", sort=False):
        parts = [f"{_NAMES[row['place']]} {row['estimate']:+.2f} (p {row['p']:.2g})" for row in rows.to_dict("records")]
        sentences.append(f"Spearman correlation with the score on {benchmark} (n = {rows['n'].iloc[0]}): {', '.join(parts)}.")
    if tested.empty:
        return " ".join(sentences)
    sure = tested[tested["p_holm"] < level]
    if sure.empty:
        sentences.append(
            f"None of the {len(tested)} correlations differs significantly from zero at {level:g} after Holm's correction, which does not prove that "
            "there are none."
        )
    else:
        named = [f"{_NAMES[row['place']]} with {row['benchmark']} ({row['method']} {row['estimate']:+.2f})" for row in sure.to_dict("records")]
        sentences.append(
            f"Significantly different from zero at {level:g} after Holm's correction within each method, {len(sure)} of {len(tested)}: "
            f"{'; '.join(named)}."
        )
    sentences.append("Whether one correlation is larger than another is not tested here.")
    return " ".join(sentences)


def _span(table: pd.DataFrame, name: str) -> str:
    """Smallest and largest value with their languages."""
    values = table.set_index("language")[name].dropna()
    if values.empty:
        return "undefined"
    return f"{values.min():.2f} ({values.idxmin()}) to {values.max():.2f} ({values.idxmax()})"
