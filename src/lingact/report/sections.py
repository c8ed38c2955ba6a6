"""What an analysis found, subject by subject: each function turns raw statistics into tables, figures and words. No model, no files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from lingact.activations.contexts import Context
from lingact.activations.feature_stats import SentenceVectors
from lingact.activations.interventions import CausalLosses, Mode, SplicedLosses
from lingact.activations.measure import ADAPTER, BASE, Measurement
from lingact.analysis import correlation, effects, similarity
from lingact.analysis.changes import Variants, bits_table, change_frames
from lingact.analysis.control_tables import draws_by_layer, draws_by_range, draws_summary, mean_rows, trained_minus_random
from lingact.analysis.language_features import Criteria, features_text, rate_table, strongest_confirmed
from lingact.analysis.measures import Stats, available
from lingact.analysis.tables import (
    Disparities,
    confound_table,
    disparities,
    gap_summary,
    grouping_p,
    layer_table,
    measure_table,
    range_table,
    shuffled_table,
)
from lingact.config.data import LanguagesConfig
from lingact.config.measures import Statistics
from lingact.figures import correlation as score_figures
from lingact.figures import features as feature_figures
from lingact.figures import gaps as gap_figures
from lingact.figures import interventions as causal_figures
from lingact.figures import similarity as similarity_figures
from lingact.figures.training import change_bars
from lingact.report import analysis as words
from lingact.report.gaps import analysis_text, gap_rows, gaps_lead, wide_layers
from lingact.report.page import Card
from lingact.report.training import retention_rows, train_rows, training_text
from lingact.report.words import MEASURES, sae_set_title
from lingact.statistics.bootstrap import Resampling

if TYPE_CHECKING:
    from matplotlib.figure import Figure


_LARGEST = "Most positive gap of any layer in the range (biased upwards: the largest of noisy values)"


@dataclass(frozen=True)
class ReportSettings:
    """How everything is judged."""

    languages: LanguagesConfig
    settings: Statistics
    seed: int

    @property
    def how_sure(self) -> dict[str, Any]:
        """Resamples, confidence and seed, for functions that take no configuration."""
        return {"resamples": self.settings.resamples, "confidence": self.settings.confidence, "seed": self.seed}

    def drawn(self, stats: Stats, places: np.ndarray | None = None) -> Resampling:
        """What is resampled of the sentences that were measured, or of those at some of their places."""
        whole = next(iter(stats.values())).resampling(self.settings.block)
        return whole if places is None else whole.part(places)


@dataclass(frozen=True)
class AnalysisSection:
    """One subject of the report."""

    heading: str
    text: str
    """Paragraphs, with blank lines between them."""
    lead: str = ""
    """What of it belongs at the head of the page."""
    frames: dict[str, pd.DataFrame] = field(default_factory=dict)
    """Tidy tables by the name of their file."""
    figures: "dict[str, Figure]" = field(default_factory=dict)
    """By the name of their file."""
    shown: dict[str, pd.DataFrame] = field(default_factory=dict)
    """Tables of the report by title."""
    cards: Sequence[Card] = ()
    printed: dict[str, pd.DataFrame] = field(default_factory=dict)
    """Tables for the terminal by title."""
    summary: dict[str, float] = field(default_factory=dict)


def gaps(stats: Stats, sae_set: str, how: ReportSettings, *, measure: str, suffix: str = "") -> tuple[AnalysisSection, Disparities]:
    """Which languages fall short of the reference, at which layers, by one set of SAEs."""
    found = disparities(stats, how.languages, how.settings, how.seed, measure=measure)
    layers, ranges = layer_table(found), range_table(found)
    chance = grouping_p(found, how.languages)
    text = analysis_text(layers, ranges, how.languages, how.settings.confidence, chance)
    shown = {
        "Gap by range of layers, mean": pd.DataFrame(gap_rows(ranges, how.languages)),
        _LARGEST: pd.DataFrame(gap_rows(ranges, how.languages, statistic="max")),
        "Gap by layer (*: the band, simultaneous over layers, excludes 0)": wide_layers(layers),
    }
    figures = {
        f"gap_heatmap{suffix}": gap_figures.gap_heatmap(layers, how.languages, how.settings.confidence),
        f"gap_groups{suffix}": gap_figures.group_curves(found),
    }
    frames = {f"gap_by_layer{suffix}": layers, f"gap_by_range{suffix}": ranges}
    heading = f"Gaps by the {sae_set_title(sae_set)} SAEs, measured {MEASURES[measure]}"
    printed = {} if suffix else {f"Activation gap against {how.languages.reference}": next(iter(shown.values()))}
    if suffix:  # a check of the measuring SAEs: their numbers stand side by side among the controls
        figures.pop(f"gap_groups{suffix}")
        shown = {title: frame for title, frame in shown.items() if title.startswith("Gap by layer")}
    lead = "" if suffix else gaps_lead(ranges, how.languages)
    return AnalysisSection(heading, text, lead, frames, figures, shown, summary=gap_summary(found), printed=printed), found


def measures(stats: Stats, how: ReportSettings) -> AnalysisSection:
    """Does the answer depend on the measure of activation?"""
    table = measure_table(stats, how.languages, how.settings, how.seed)
    overall = table[table["place"] == "all"]
    summary = {f"measure/{row['measure']}/{row['name']}": float(row["gap"]) for row in overall.to_dict("records")}
    names = available(stats[how.languages.reference])
    text = words.measures_text(overall, how.languages)
    return AnalysisSection(
        "Other measures of activation",
        text,
        text,
        {"gap_by_measure": table},
        {"measures": gap_figures.measure_heatmap(overall, how.languages, names)},
        {"Gap by measure, mean over all layers (*: the interval excludes 0)": words.wide_measures(overall, names)},
        summary=summary,
    )


def confounds(
    stats: Stats,
    spliced: tuple[SplicedLosses, np.ndarray] | None,
    how: ReportSettings,
    suffix: str = "",
    *,
    after: SplicedLosses | None = None,
) -> AnalysisSection:
    """What else differs between the languages: text, tokenizer, norms, and how well the SAEs fit.

    Args:
        spliced: the losses and the places of their sentences among those that were measured; None: not asked for.
        after: cross-entropies with reconstructions spliced into the adapted model.
    """
    table = confound_table(stats, how.settings, how.seed)
    frames, figures = {f"confounds{suffix}": table}, {f"confounds{suffix}": gap_figures.confound_panel(table, how.languages)}
    summary, costs = {}, None
    if spliced is not None:
        losses, places = spliced
        frames["spliced"] = effects.spliced_table(losses, how.drawn(stats, places), after=after, **how.how_sure)
        costs = effects.of_variant(frames["spliced"], BASE)
        figures["spliced"] = causal_figures.spliced_curves(costs, how.languages)
        rises = costs[costs["quantity"] == "ce_increase"].groupby(["sae_set", "language"], sort=False)["estimate"].mean()
        summary = {f"spliced/{sae_set}/{code}": float(value) for (sae_set, code), value in rises.items()}  # pyrefly: ignore[not-iterable]
    text, shown = words.confounds_text(table, costs, how.languages), {"By language": words.wide_confounds(table)}
    if after is not None:
        text += "\n\n" + words.spliced_change_text(frames["spliced"], how.languages)
        shown["Rise of the cross-entropy by splicing, before and after tuning, mean over layers"] = words.wide_spliced(frames["spliced"])
    return AnalysisSection("Confounds: text, norms and the fit of the SAEs", text, "", frames, figures, shown, summary=summary)


def random_gaps(by_draw: Sequence[Stats], trained: Disparities, how: ReportSettings, *, measure: str) -> AnalysisSection:
    """What SAEs with random directions give, and how far the trained ones are from that.

    Args:
        by_draw: statistics of each draw of directions.
        trained: the gaps by the measuring SAEs, in the same measure.
    """
    found = [disparities(stats, how.languages, how.settings, how.seed, measure=measure) for stats in by_draw]
    layers, ranges, apart = draws_by_layer(found), draws_by_range(found), trained_minus_random(trained, found)
    by_layer = mean_rows(layers)
    return AnalysisSection(
        f"Gaps by the random-direction SAEs, measured {MEASURES[measure]}",
        words.random_text(ranges, apart, how.languages, how.settings.confidence),
        frames={"gap_by_layer_random": layers, "gap_by_range_random": ranges, "gap_trained_minus_random": apart},
        figures={"gap_heatmap_random": gap_figures.gap_heatmap(by_layer, how.languages, how.settings.confidence)},
        shown={
            "Gap over all layers, draw by draw": words.wide_draws(ranges),
            "Gap of the trained SAEs minus that of random directions, all layers": words.wide_apart(apart),
            "Gap by layer, mean over the draws (*: its interval excludes 0)": wide_layers(
                by_layer.assign(band_lo=by_layer["lo"], band_hi=by_layer["hi"])
            ),
        },
        summary={f"random/{key}": value for key, value in draws_summary(layers, ranges).items()},
    )


def controls(
    ranges: Mapping[str, pd.DataFrame], by_stats: Mapping[str, Stats], how: ReportSettings, *, measure: str, shuffled: bool
) -> AnalysisSection:
    """Would the same come out where nothing can be there, or with other SAEs?

    Args:
        ranges: set of SAEs -> `tables.range_table`; of random directions, under `random`, that of the mean over the draws.
    """
    frames, shown, summary = {}, {}, {}
    if len(ranges) > 1:
        shown["Mean gap over all layers by each set of SAEs"] = words.sae_sets_table(ranges)
        shown["Active latents per token (L0), mean over layers"] = words.l0_table(by_stats)
    table = None
    if shuffled:
        table = shuffled_table(next(iter(by_stats.values())), how.languages, how.settings, how.seed, measure=measure)
        frames["shuffled_labels"] = table
        shown["Shuffled language labels, means over layers"] = table[table["scope"] == "mean"].drop(columns=["scope", "layers"])
        every = table[(table["name"] == "all") & (table["scope"] == "mean")]
        summary["control/shuffled/share"] = float(every["share"].iloc[0])
    text = words.controls_text(ranges, table, how.languages)
    return AnalysisSection("Controls", text, text, frames, {}, shown, summary=summary)


def alike(vectors: Mapping[str, SentenceVectors], stats: Stats, how: ReportSettings) -> AnalysisSection:
    """Are translations represented alike, and what tells the languages apart?"""
    first = vectors[how.languages.reference]
    means = {code: own.means() for code, own in vectors.items()}
    chosen = first.places
    drawn = how.drawn(stats, chosen)
    table = similarity.similarity_table(means, first.layers, how.languages.reference, drawn, **how.how_sure)
    scalars = {
        "activation": {code: (s.activation / s.tokens)[:, chosen] for code, s in stats.items()},
        "residual_norm": {code: (s.norm / s.tokens)[:, chosen] for code, s in stats.items()},
    }
    halves = stats[how.languages.reference].halves[chosen]
    apart = similarity.separation_table(means, scalars, halves, first.layers, how.languages.reference, drawn, **how.how_sure)
    summary = {
        f"similarity/{quantity}/{code}": float(value)
        for (quantity, code), value in table.groupby(["quantity", "language"], sort=False)["estimate"].agg(lambda x: x.mean(skipna=False)).items()  # pyrefly: ignore[not-iterable]
    }
    return AnalysisSection(
        "Similarity of representations",
        words.similarity_text(table, apart, how.languages),
        "",
        {"similarity": table, "separation": apart},
        {
            "similarity": similarity_figures.similarity_curves(table, how.languages),
            "separation": similarity_figures.separation_curves(apart, how.languages),
        },
        {"Similarity to the reference, mean over layers (floor: shuffled pairs)": words.wide_similarity(table)},
        summary=summary,
    )


def language_features(
    by_sae_set: Mapping[str, pd.DataFrame],
    cards: tuple[Sequence[Context], Mapping[tuple[int, int], str], int],
    stats: Stats,
    how: ReportSettings,
    criteria: Criteria,
) -> AnalysisSection:
    """Which latents belong to one language?

    Args:
        by_meter: meter -> `language_features.find_features`; the first is told, the others (draws of random directions) are what it is held against.
        cards: strongest contexts, links by layer and latent, and how many features of a language get a card.
        criteria: by which they were found.
    """
    contexts, links, per_language = cards
    found, *others = by_sae_set.values()
    layers = next(iter(stats.values())).layers
    best = strongest_confirmed(found, per_language=per_language)
    rates = rate_table(best, stats, confidence=how.settings.confidence, block=how.settings.block)
    figures = {"feature_counts": feature_figures.feature_counts(found, how.languages, layers)}
    if len(best):
        figures["feature_rates"] = feature_figures.feature_rates(rates, how.languages)
    tables = {"language_features": found, "language_feature_rates": rates}
    if others:
        tables["language_features_random"] = pd.concat([frame.assign(draw=place) for place, frame in enumerate(others, start=1)], ignore_index=True)
    counts = found[found["passed"]].groupby("language", sort=False)["confirmed"].agg(["size", "sum"])
    summary = {}
    for code in how.languages.all:
        for name, column in (("candidates", "size"), ("confirmed", "sum")):
            summary[f"features/{code}/{name}"] = float(counts[column].get(code, 0))
    return AnalysisSection(
        "Language-specific features",
        "\n\n".join([features_text(found, how.languages, criteria)] + ([words.random_features_text(found, others)] if others else [])),
        words.features_lead(found, *others),
        tables,
        figures,
        {"Candidates": words.wide_features(found)},
        words.cards(best, rates, contexts, links),
        summary=summary,
    )


def causal(losses: CausalLosses, drawn: Resampling, mode: Mode, how: ReportSettings, *, after: CausalLosses | None = None) -> AnalysisSection:
    """Do the features matter to the model, and to their own language more than to others? And after tuning?

    Args:
        drawn: of the losses' sentences.
        after: the same latents of the adapted model edited in the same way.
    """
    if not losses.arms:
        return AnalysisSection("Causal checks", "No features were chosen, so there was nothing to intervene on.")
    frames = {
        "causal": effects.causal_table(losses, drawn, after=after, **how.how_sure),
        "selectivity": effects.selectivity_table(losses, drawn, after=after, **how.how_sure),
    }
    table, selectivity = (effects.of_variant(frame, BASE) for frame in frames.values())
    figures = {"dose_response": causal_figures.dose_response(table, mode)}
    if mode == "scale" and (table["dose"] == effects.ABLATION).any():
        figures = {"causal_matrix": causal_figures.causal_matrix(table)} | figures
    summary = {
        f"causal/{row['owner']}/{row['kind']}/{row['contrast']}": float(row["estimate"])
        for row in selectivity[(selectivity["mode"] == "scale") & (selectivity["dose"] == effects.ABLATION)].to_dict("records")
    }
    text = effects.causal_text(selectivity, table, confidence=how.settings.confidence)
    shown = {"Selectivity": words.wide_selectivity(selectivity)}
    if after is not None:
        text += "\n\n" + words.causal_change_text(frames["causal"], frames["selectivity"], 1 - how.settings.confidence)
        shown |= {
            f"Selectivity, {title}": words.wide_selectivity(effects.of_variant(frames["selectivity"], variant))
            for title, variant in (("after tuning", ADAPTER), ("after minus before", effects.ADAPTER_MINUS_BASE))
        }
    return AnalysisSection(
        "Causal checks",
        text,
        words.causal_lead(selectivity, table, 1 - how.settings.confidence),
        frames,
        figures,
        shown,
        summary=summary,
    )


def benchmarks(
    found: Disparities, scores: pd.DataFrame, alikeness: pd.DataFrame | None, stats: Stats, how: ReportSettings, shares: Mapping[str, float] | None
) -> AnalysisSection:
    """Do gaps go with benchmark scores, and do similarities?

    Args:
        shares: of the model's training text by language; None: those of public web pages stand in.
    """
    layers = layer_table(found)[["name", "layer", "gap"]]
    ranges = range_table(found).query("statistic == 'mean'")[["name", "range", "gap"]].rename(columns={"range": "layer"})
    places = pd.concat([layers.astype({"layer": object}), ranges], ignore_index=True)
    tokens = confound_table(stats, how.settings, how.seed).query("quantity == 'tokens_per_sentence'").set_index("language")["estimate"]
    covariates = pd.DataFrame(
        {
            "language": list(stats),
            "tokens_per_sentence": tokens.loc[list(stats)].to_numpy(),
            "log_resource": correlation.log_resource(list(stats), shares),
        }
    )
    table = correlation.correlation_table(places, scores, covariates, seed=how.seed, confidence=how.settings.confidence)
    main = table[(table["place"].astype(str) == "all") & (table["control"] == "none")]
    summary = {f"correlation/{row['benchmark']}/{row['method']}": float(row["estimate"]) for row in main.to_dict("records")}
    summary |= {f"correlation/{row['benchmark']}/{row['method']}/p": float(row["p"]) for row in main.to_dict("records")}
    text, frames, figures = words.correlation_text(table, how.settings.confidence), {"correlation": table, "scores": scores}, {}
    unknown = covariates.loc[covariates["log_resource"].isna(), "language"]
    if len(unknown):
        text += f"\n\nResource level not known: {', '.join(unknown)}. They take no part where it is held constant (controls `resource` and `both`)."
    if alikeness is not None:
        beside = correlation.side_by_side(alikeness, places, scores)
        with_both = correlation.side_by_side_correlations(beside, seed=how.seed, confidence=how.settings.confidence)
        text += "\n\n" + correlation.side_by_side_text(beside, with_both)
        frames |= {"side_by_side": beside, "side_by_side_correlation": with_both}
        figures = {
            "scores": score_figures.score_scatter(beside, with_both, how.languages),
            "side_by_side": score_figures.side_by_side_figure(beside, how.languages),
        }
    shown = {"Correlation of the mean gap over all layers with scores": words.wide_correlation(table)}
    return AnalysisSection("Benchmark scores", text, words.correlation_lead(table), frames, figures, shown, summary=summary)


def recipes(table: pd.DataFrame, confidence: float) -> AnalysisSection:
    """Training recipes against each other.

    Args:
        table: `contrasts.recipe_table`.
        confidence: of its intervals.
    """
    text, shown = words.recipes_text(table, confidence), words.wide_recipes(table)
    return AnalysisSection("Recipes against each other", text, text, {"recipes": table}, {}, shown, printed=dict(list(shown.items())[:2]))


def changed(
    by_sae_set: Mapping[str, Variants], measured: Measurement | None, counted_layers: tuple[int, ...], how: ReportSettings
) -> AnalysisSection:
    """What an adapter, or the step from one model to another, did to every language.

    Args:
        measured: for bits per byte and sentence; None where the two sides come from different runs.
        counted_layers: layers over which the gap closed is summed up.
    """
    codes = [code for code in how.languages.all if code != how.languages.reference]
    frames, summary = change_frames(by_sae_set, how.languages, how.settings, counted_layers, codes, seed=how.seed)
    if measured is not None:
        frames["bits"] = bits_table(measured, next(iter(by_sae_set)), how.settings, how.seed)
    shown = {"Before and after": pd.DataFrame(train_rows(frames, codes)), "Retention of the reference": pd.DataFrame(retention_rows(frames))}
    text = training_text(frames, codes, how.languages.reference)
    targets = frames["change_by_layer"][frames["change_by_layer"]["language"].isin(codes)]
    rows = shown["Before and after"]
    printed = shown | {"Before and after": rows[rows["measure"].isin(["gap all", "gap closed"])]}  # ranges of layers are for the page
    return AnalysisSection("Before and after", text, text, frames, {"change": change_bars(targets)}, shown, summary=summary, printed=printed)
