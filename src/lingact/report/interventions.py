"""Causal checks: how ablating and scaling features changes the cross-entropy."""

import pandas as pd

from lingact.activations.edited_losses import CausalLosses, Mode
from lingact.activations.measurement import ADAPTER, BASE
from lingact.analysis import effects
from lingact.analysis.effects import ADAPTER_MINUS_BASE
from lingact.figures import interventions as causal_figures
from lingact.report.analysis_result import AnalysisResult, ReportSettings
from lingact.report.phrases import listed, with_interval
from lingact.statistics.bootstrap import Resampling


def causal_lead(selectivity: pd.DataFrame, causal: pd.DataFrame, alpha: float) -> str:
    """For how many languages ablating their features hurts them more than other languages, and more than random latents do."""
    ablated = selectivity[(selectivity["kind"] == "specific") & (selectivity["mode"] == "scale") & (selectivity["dose"] == 0)]
    if ablated.empty:
        return ""
    sure = ablated.assign(sure=(ablated["p_holm"] < alpha) & (ablated["estimate"] > 0)).pivot(index="owner", columns="contrast", values="sure")
    both = sure.reindex(columns=["own_minus_others", "own_minus_random"]).eq(other=True).all(axis=1)
    own = causal[(causal["kind"] == "specific") & (causal["mode"] == "scale") & (causal["dose"] == 0) & (causal["owner"] == causal["measured"])]
    raised = set(own.loc[own["lo"] > 0, "owner"])
    shown = [str(code) for code in sure.index if both[code] and code in raised]
    without = [str(code) for code in sure.index if "own_minus_random" not in sure.columns or pd.isna(sure.loc[code, "own_minus_random"])]
    text = (
        f"For {listed(shown)} of {len(sure)} languages, ablating the language's features raises its cross-entropy by more than that of the other "
        "languages, and by more than ablating random latents that fire as often and as strongly (corrected by Holm)."
    )
    return text + (
        f" For {listed(without)} there are no random latents that are as frequent and as strong, so this control is missing." if without else ""
    )


def causal_change_text(causal: pd.DataFrame, selectivity: pd.DataFrame, alpha: float) -> str:
    """Whether ablating a language's features changes its cross-entropy more or less after training.

    Args:
        causal: `effects.causal_table` with the adapted model.
        selectivity: `effects.selectivity_table` with the adapted model.
        alpha: level of the tests.
    """
    apart = [table[table["variant"] == ADAPTER_MINUS_BASE] for table in (causal, selectivity)]
    effect, contrast = (table[(table["kind"] == "specific") & (table["mode"] == "scale") & (table["dose"] == 0)] for table in apart)
    own = effect[effect["owner"] == effect["measured"]]
    if own.empty:
        return "No ablation was run, so whether training changed the effect of the features is not known."
    more, less = (listed([str(code) for code in own.loc[rows, "owner"]]) for rows in (own["lo"] > 0, own["hi"] < 0))
    sentences = ["The same latents, chosen on the base model, were edited in the adapted model."]
    sentences.append(
        f"Ablating a language's features costs it more after training than before for {more} of {len(own)} languages, and less for {less} (paired "
        "intervals that exclude 0)."
    )
    for name, comparison in (("own_minus_others", "the other languages"), ("own_minus_random", "random latents")):
        rows = contrast[contrast["contrast"] == name]
        if len(rows):
            grown, shrunk = (listed([str(code) for code in rows.loc[(rows["p_holm"] < alpha) & side, "owner"]]) for side in _sides(rows["estimate"]))
            sentences.append(
                f"The difference between this cost and that of {comparison} grew for {grown} and shrank for {shrunk} (Holm-corrected p below "
                f"{alpha:.2g})."
            )
    return " ".join(sentences)


def _sides(estimates: pd.Series) -> tuple[pd.Series, pd.Series]:
    return estimates > 0, estimates < 0


def wide_selectivity(selectivity: pd.DataFrame) -> pd.DataFrame:
    """A row per language, kind and dose, with both contrasts and their corrected p."""
    rows: dict[tuple, dict[str, object]] = {}
    for row in selectivity.to_dict("records"):
        key = (row["owner"], row["kind"], row["dose"])
        cells = rows.setdefault(key, {"features of": row["owner"], "kind": row["kind"], "dose": row["dose"], "n": row["n"]})
        title = str(row["contrast"]).replace("_", " ")
        cells |= {title: with_interval(row, digits=3), f"{title}, p (Holm)": "<.001" if row["p_holm"] < 0.001 else f"{row['p_holm']:.3f}"}
    return pd.DataFrame(rows.values())


def causal_result(
    losses: CausalLosses, resampling: Resampling, mode: Mode, settings: ReportSettings, *, after: CausalLosses | None = None
) -> AnalysisResult:
    """Whether the features matter to the model, and to their own language more than to others, before and after training.

    Args:
        losses: cross-entropies under interventions.
        resampling: what is resampled of their sentences.
        mode: of the interventions.
        settings: languages and statistics.
        after: the same latents of the adapted model edited in the same way.
    """
    if not losses.arms:
        return AnalysisResult("Causal checks", "No features were chosen, so there were no interventions.")
    frames = {
        "causal": effects.causal_table(losses, resampling, after=after, **settings.bootstrap),
        "selectivity": effects.selectivity_table(losses, resampling, after=after, **settings.bootstrap),
    }
    table, selectivity = (effects.of_variant(frame, BASE) for frame in frames.values())
    figures = {"dose_response": causal_figures.dose_response(table, mode)}
    if mode == "scale" and (table["dose"] == effects.ABLATION).any():
        figures = {"causal_matrix": causal_figures.causal_matrix(table)} | figures
    summary = {
        f"causal/{row['owner']}/{row['kind']}/{row['contrast']}": float(row["estimate"])
        for row in selectivity[(selectivity["mode"] == "scale") & (selectivity["dose"] == effects.ABLATION)].to_dict("records")
    }
    text = effects.causal_text(selectivity, table, confidence=settings.statistics.confidence)
    shown = {"Selectivity": wide_selectivity(selectivity)}
    if after is not None:
        text += "\n\n" + causal_change_text(frames["causal"], frames["selectivity"], 1 - settings.statistics.confidence)
        shown |= {
            f"Selectivity, {title}": wide_selectivity(effects.of_variant(frames["selectivity"], variant))
            for title, variant in (("after training", ADAPTER), ("after minus before", effects.ADAPTER_MINUS_BASE))
        }
    return AnalysisResult(
        "Causal checks",
        text,
        causal_lead(selectivity, table, 1 - settings.statistics.confidence),
        frames,
        figures,
        shown,
        summary=summary,
    )
