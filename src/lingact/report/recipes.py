"""Training recipes compared with each other."""

import pandas as pd

from lingact.report.analysis_result import AnalysisResult
from lingact.report.phrases import sae_set_title, with_interval

RECIPE_TITLES = {
    "gap_closed": "gap closed",
    "gap_closed_norm_matched": "gap closed, norm-matched",
    "fvu_ratio": "FVU, after / base",
    "activation": "activation of the reference, after / base",
    "activation_worst_layer": "activation of the reference, largest change at a layer",
    "bits_per_byte": "bits per byte of the reference, after / base",
    "kl": "KL(base || adapter) of the reference",
}
"""Names of the quantities of `contrasts.recipe_table`, in the order of the page."""


def recipes_text(table: pd.DataFrame, confidence: float) -> str:
    """How many differences in the gap closed are shown, and what the tests cover.

    Args:
        table: `contrasts.recipe_table`.
        confidence: of its intervals.
    """
    alpha, shown = 1 - confidence, []
    for (sae_set, quantity), own in table[table["quantity"].isin(["gap_closed", "gap_closed_norm_matched"])].groupby(
        ["sae_set", "quantity"], sort=False
    ):
        sure = own[own["p_holm"] < alpha]
        shown.append(f"{RECIPE_TITLES[str(quantity)]} by the {sae_set_title(str(sae_set))} SAEs: {len(sure)} of {len(own)}")
    seeds = (
        "The intervals cover the choice of sentences and training seeds, so the result holds for the recipes."
        if set(table["covers"]) == {"sentences and seeds"}
        else "For recipes with one seed, the intervals cover the choice of sentences alone: the result then holds for these adapters, and another "
        "seed may differ by more than the interval."
    )
    first = table.iloc[0]
    resampled = "" if first["resampled"] == "sentences" else f" ({first['units']} {first['resampled']} are resampled)"
    return (
        f"Paired differences between recipes, first minus second, on the {first['n']} sentences on which all were measured{resampled}. Significant "
        f"differences (p below {alpha:.2g} after Holm's correction over all pairs and languages, for each quantity and set of SAEs): "
        f"{'; '.join(shown)}. {seeds}"
    )


def wide_recipes(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Title -> table for each quantity: a row per pair and language, and for each set of SAEs the difference and its corrected p."""
    shown = {}
    for quantity, title in RECIPE_TITLES.items():
        rows: dict[tuple, dict[str, object]] = {}
        for row in table[table["quantity"] == quantity].to_dict("records"):
            key = (row["one"], row["other"], row["language"])
            cells = rows.setdefault(key, {"recipe": row["one"], "minus": row["other"], "lang": row["language"]})
            p = "-" if pd.isna(row["p_holm"]) else "<.001" if row["p_holm"] < 0.001 else f"{row['p_holm']:.3f}"
            cells |= {
                f"{sae_set_title(row['sae_set'])} SAEs": with_interval(row, digits=4 if quantity == "kl" else 3),
                f"p (Holm), {row['sae_set']}": p,
            }
        if rows:
            shown[f"Difference in {title}"] = pd.DataFrame(rows.values())
    return shown


def recipe_result(table: pd.DataFrame, confidence: float) -> AnalysisResult:
    """Training recipes compared with each other.

    Args:
        table: `contrasts.recipe_table`.
        confidence: of its intervals.
    """
    text, shown = recipes_text(table, confidence), wide_recipes(table)
    return AnalysisResult("Recipes compared", text, text, {"recipes": table}, {}, shown, printed=dict(list(shown.items())[:2]))
