"""Language-specific features: how many were confirmed, how often they fire, and their strongest contexts."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from lingact.activations.contexts import Context
from lingact.analysis.language_features import Criteria, features_text, rate_table, strongest_confirmed
from lingact.analysis.measures import StatsByLanguage
from lingact.figures import features as feature_figures
from lingact.report.analysis_result import AnalysisResult, ReportSettings
from lingact.report.page import Card
from lingact.report.phrases import listed, name_of


def random_features_text(found: pd.DataFrame, random: Sequence[pd.DataFrame]) -> str:
    """How many features random directions confirm in comparison.

    Args:
        found: `language_features.find_features` by the measuring SAEs.
        random: the same for every draw of SAEs with random directions.
    """
    own, counts = int(found["confirmed"].sum()), [int(frame["confirmed"].sum()) for frame in random]
    other, tested = sum(counts) / len(counts), sum(int(frame["passed"].sum()) for frame in random) / len(random)
    draws = f" (mean over {len(counts)} draws, which confirm {min(counts)} to {max(counts)})" if len(counts) > 1 else ""
    verdict = (
        "So a confirmed latent separates languages, but this says nothing about what the SAE has learned: random directions do so as well."
        if other >= own
        else f"So at most {own - other:g} of the {own} confirmed latents exceed what random directions give."
    )
    searched = "With SAEs of random directions, which fire as often over all languages, the same search confirms"
    return f"{searched} {other:g} of {tested:g} candidates{draws}. {verdict}"


def features_lead(found: pd.DataFrame, *random: pd.DataFrame) -> str:
    """How many language-specific features were confirmed, also with random directions."""
    tested = found[found["passed"]]
    confirmed = tested[tested["confirmed"]]
    if confirmed.empty:
        return f"No language-specific feature was confirmed ({len(tested)} candidates)."
    where = listed(list(confirmed["language"].unique()))
    text = f"{len(confirmed)} of {len(tested)} candidates for language-specific features were confirmed. Languages with any: {where}."
    return f"{text} {random_features_text(found, random)}" if random else text


def wide_features(found: pd.DataFrame) -> pd.DataFrame:
    """The candidates that were tested, and whether they were confirmed."""
    tested = found[found["passed"]].copy()
    tested["confirmed"] = np.where(tested["confirmed"], "yes", "no")
    return tested[["language", "layer", "latent", "nu", "lape", "rate", "other", "rate_other", "rate_random", "q", "confirmed"]]


def feature_cards(features: pd.DataFrame, rates: pd.DataFrame, contexts: Sequence[Context], links: Mapping[tuple[int, int], str]) -> list[Card]:
    """A card for each feature: its language, how often it fires in every language, and its strongest tokens."""
    made: list[Card] = []
    for row in features.to_dict("records"):
        layer, latent = row["layer"], row["latent"]
        own = rates[(rates["layer"] == layer) & (rates["latent"] == latent)].sort_values("rate", ascending=False)
        fires = ", ".join(f"{code} {rate:.1%}" for code, rate in zip(own["measured"], own["rate"], strict=True))
        facts = [
            f"nu {row['nu']:.2f} on discovery, {row['nu_confirmed']:.2f} on confirmation; LAPE {row['lape']:.2f}; q {row['q']:.1e}",
            f"Fires on tokens: {fires}",
        ]
        shown = [
            (f"{context.language} {context.activation:.1f}", context.before, context.token, context.after)
            for context in contexts
            if (context.layer, context.latent) == (layer, latent)
        ]
        made.append(Card(f"{name_of(row['language'])}: layer {layer}, latent {latent}", links.get((layer, latent)), facts, shown))
    return made


def feature_result(
    by_sae_set: Mapping[str, pd.DataFrame],
    cards: tuple[Sequence[Context], Mapping[tuple[int, int], str], int],
    stats: StatsByLanguage,
    settings: ReportSettings,
    criteria: Criteria,
) -> AnalysisResult:
    """The latents that are specific to one language.

    Args:
        by_sae_set: set of SAEs -> `language_features.find_features`; the first is reported, the others (draws of random directions) are compared.
        cards: strongest contexts, links by layer and latent, and how many features of a language get a card.
        stats: language -> its statistics.
        settings: languages and statistics.
        criteria: of the search.
    """
    contexts, links, per_language = cards
    found, *others = by_sae_set.values()
    layers = next(iter(stats.values())).layers
    best = strongest_confirmed(found, per_language=per_language)
    rates = rate_table(best, stats, confidence=settings.statistics.confidence, block=settings.statistics.block)
    figures = {"feature_counts": feature_figures.feature_counts(found, settings.languages, layers)}
    if len(best):
        figures["feature_rates"] = feature_figures.feature_rates(rates, settings.languages)
    tables = {"language_features": found, "language_feature_rates": rates}
    if others:
        tables["language_features_random"] = pd.concat([frame.assign(draw=place) for place, frame in enumerate(others, start=1)], ignore_index=True)
    counts = found[found["passed"]].groupby("language", sort=False)["confirmed"].agg(["size", "sum"])
    summary = {}
    for code in settings.languages.all:
        for name, column in (("candidates", "size"), ("confirmed", "sum")):
            summary[f"features/{code}/{name}"] = float(counts[column].get(code, 0))
    return AnalysisResult(
        "Language-specific features",
        "\n\n".join([features_text(found, settings.languages, criteria)] + ([random_features_text(found, others)] if others else [])),
        features_lead(found, *others),
        tables,
        figures,
        {"Candidates": wide_features(found)},
        feature_cards(best, rates, contexts, links),
        summary=summary,
    )
