"""What else differs between the languages: text, tokenizer, norms, and how well the SAEs fit."""

import numpy as np
import pandas as pd

from lingact.activations.edited_losses import SplicedLosses
from lingact.activations.measurement import BASE
from lingact.analysis import effects
from lingact.analysis.effects import ADAPTER_MINUS_BASE
from lingact.analysis.measures import StatsByLanguage
from lingact.analysis.tables import confound_table
from lingact.config.data import LanguagesConfig
from lingact.figures import gaps as gap_figures
from lingact.figures import interventions as causal_figures
from lingact.report.analysis_result import AnalysisResult, ReportSettings
from lingact.report.phrases import listed, name_of, other_languages, sae_set_title, span


def confounds_text(table: pd.DataFrame, costs: pd.DataFrame | None, languages: LanguagesConfig) -> str:
    """How far the languages differ in text, tokenizer, norms and fit of the SAEs.

    Args:
        table: `tables.confound_table`.
        costs: `effects.spliced_table`; None: not measured.
        languages: the reference and the groups.
    """
    means = table.groupby(["quantity", "language"], sort=False)["estimate"].mean()
    reference, others = languages.reference, [code for code in other_languages(languages) if code in set(table["language"])]
    phrases = {
        "tokens_per_sentence": ("tokens per aligned sentence", 1),
        "fertility": ("tokens per word", 2),
        "partial_share": ("share of tokens that are parts of characters", 3),
        "fvu": ("variance that the SAEs do not explain (FVU, mean over layers)", 2),
        "residual_norm": ("residual norm (mean over layers)", 1),
    }
    parts = [
        f"{text}: {span(means[quantity][[reference]], digits)} in {name_of(reference)}, {span(means[quantity][others], digits)} elsewhere"
        for quantity, (text, digits) in phrases.items()
    ]
    sentences = [f"{'; '.join(parts)}."]
    worse = [code for code in others if means["fvu"][code] > 1.1 * means["fvu"][reference]]
    if worse:
        sentences.append(
            f"For {listed(worse)} of {len(others)} other languages, the FVU is more than a tenth higher than for {name_of(reference)}: there, a gap "
            "may come from the SAEs and not from the model."
        )
    if costs is not None:
        rises = costs[costs["quantity"] == "ce_increase"]
        for sae_set, own in rises.groupby("sae_set", sort=False):
            mean = own.groupby("language", sort=False)["estimate"].mean()
            own_rise = round(float(mean[reference]), 2) + 0.0  # no -0.00
            sentences.append(
                f"Replacing the residual by the reconstruction of the {sae_set_title(str(sae_set))} SAEs raises the cross-entropy by "
                f"{own_rise:.2f} nats per token in {name_of(reference)} and by {span(mean[others])} elsewhere (mean over layers, "
                f"n = {own['n'].iloc[0]} sentences)."
            )
    text = " ".join(sentences)
    return text[0].upper() + text[1:]


def spliced_change_text(costs: pd.DataFrame, languages: LanguagesConfig) -> str:
    """What splicing costs the adapted model, compared with the base model on the same sentences.

    Args:
        costs: `effects.spliced_table` with the adapted model.
        languages: the reference and the groups.
    """
    rises = costs[costs["quantity"] == "ce_increase"]
    sentences = []
    for sae_set, apart in rises[rises["variant"] == ADAPTER_MINUS_BASE].groupby("sae_set", sort=False):
        change = apart.groupby("language", sort=False)["estimate"].mean()
        sure = int(((apart["lo"] > 0) | (apart["hi"] < 0)).sum())
        sentences.append(
            f"After training, replacing the residual by the reconstruction of the {sae_set_title(str(sae_set))} SAEs raises the cross-entropy by "
            f"{_signed(change[languages.reference])} nats per token more than before in {name_of(languages.reference)} and by "
            f"{_signed(change.drop(languages.reference).min())} to {_signed(change.drop(languages.reference).max())} elsewhere (mean over layers; "
            f"{sure} of {len(apart)} intervals of single layers and languages exclude 0)."
        )
    return " ".join(sentences)


def _signed(value: float) -> str:
    return f"{round(float(value), 3) + 0.0:+.3f}"


def wide_spliced(costs: pd.DataFrame) -> pd.DataFrame:
    """A row per set of SAEs and language, a column per variant: rise of the cross-entropy in nats per token, mean over layers."""
    rises = costs[costs["quantity"] == "ce_increase"]
    means = rises.groupby(["sae_set", "language", "variant"], sort=False)["estimate"].mean()
    return _wide(means).rename(columns={ADAPTER_MINUS_BASE: "adapter minus base"}).reset_index()


def wide_confounds(table: pd.DataFrame) -> pd.DataFrame:
    """A row per language, a column per quantity. Quantities by layer are means over layers."""
    means = table.groupby(["language", "quantity"], sort=False)["estimate"].agg(lambda x: x.mean(skipna=False))
    return _wide(means).rename(columns=lambda name: name.replace("_", " ")).reset_index()


def _wide(means: pd.Series) -> pd.DataFrame:
    """The last level of the index as columns; rows and columns in the order of their first occurrence."""
    # Not `unstack(sort=False)`: pandas 2 puts numbers into wrong cells.
    rows, columns = means.index.droplevel(-1).unique(), means.index.unique(-1)
    return means.unstack().reindex(index=rows, columns=columns)


def confound_result(
    stats: StatsByLanguage,
    spliced: tuple[SplicedLosses, np.ndarray] | None,
    settings: ReportSettings,
    suffix: str = "",
    *,
    after: SplicedLosses | None = None,
) -> AnalysisResult:
    """What else differs between the languages: text, tokenizer, norms, and how well the SAEs fit.

    Args:
        stats: language -> its statistics.
        spliced: cross-entropies with spliced reconstructions, and the places of their sentences among the measured ones; None: not asked for.
        settings: languages and statistics.
        suffix: of file names.
        after: cross-entropies with reconstructions spliced into the adapted model.
    """
    table = confound_table(stats, settings.statistics, settings.seed)
    frames, figures = {f"confounds{suffix}": table}, {f"confounds{suffix}": gap_figures.confound_panel(table, settings.languages)}
    summary, costs = {}, None
    if spliced is not None:
        losses, places = spliced
        frames["spliced"] = effects.spliced_table(losses, settings.resampling(stats, places), after=after, **settings.bootstrap)
        costs = effects.of_variant(frames["spliced"], BASE)
        figures["spliced"] = causal_figures.spliced_curves(costs, settings.languages)
        rises = costs[costs["quantity"] == "ce_increase"].groupby(["sae_set", "language"], sort=False)["estimate"].mean()
        means = rises.reset_index().to_dict("records")
        summary = {f"spliced/{row['sae_set']}/{row['language']}": float(row["estimate"]) for row in means}
    text, shown = confounds_text(table, costs, settings.languages), {"By language": wide_confounds(table)}
    if after is not None:
        text += "\n\n" + spliced_change_text(frames["spliced"], settings.languages)
        shown["Rise of the cross-entropy by splicing, before and after training, mean over layers"] = wide_spliced(frames["spliced"])
    return AnalysisResult("Confounds: text, norms and the fit of the SAEs", text, "", frames, figures, shown, summary=summary)
