"""What an analysis found in sentences, readable tables and cards. Every sentence is computed from the numbers."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from lingact.activations.contexts import Context
from lingact.activations.random_saes import is_random
from lingact.analysis.effects import ADAPTER_MINUS_BASE
from lingact.analysis.measures import Stats
from lingact.config.data import LanguagesConfig
from lingact.config.jobs import AnalyzeConfig
from lingact.report.page import Card
from lingact.report.words import GROUPS, MEASURES, listed, name_of, sae_set_title, verdict, with_interval
from lingact.statistics.bootstrap import Resampling


def _others(languages: LanguagesConfig) -> tuple[str, ...]:
    return (*languages.high, *languages.low)


def _marked(rows: pd.DataFrame) -> list[str]:
    """`+0.12*`: the gap, with an asterisk where its interval excludes 0."""
    sure = (rows["lo"] > 0) | (rows["hi"] < 0)
    return ["-" if pd.isna(gap) else f"{gap + 0.0:+.2f}{'*' if mark else ''}" for gap, mark in zip(rows["gap"], sure, strict=True)]


def _span(values: pd.Series, digits: int = 2) -> str:
    """Smallest and largest of some values by language: `0.12 (Hindi) to 0.30 (Malayalam)`. Of those that are defined, if any."""
    values = values.dropna()
    if values.empty:
        return "undefined"
    low, high = str(values.idxmin()), str(values.idxmax())
    if f"{values.min():.{digits}f}" == f"{values.max():.{digits}f}":
        return f"{values.min():.{digits}f}"
    return f"{values.min():.{digits}f} ({name_of(low)}) to {values.max():.{digits}f} ({name_of(high)})"


# --- measures ------------------------------------------------------------------------------------------------------------------------------------


def measures_text(overall: pd.DataFrame, languages: LanguagesConfig) -> str:
    """By which measures each group falls short, lies above, or cannot be told from the reference.

    Args:
        overall: rows of `tables.measure_table` for all layers together.
    """
    by_group: dict[str, dict[str, list[str]]] = {}
    for group in (name for name in GROUPS if (overall["name"] == name).any()):
        for row in overall[overall["name"] == group].to_dict("records"):
            by_group.setdefault(group, {}).setdefault(verdict(row), []).append(row["measure"])
    said: dict[tuple[str, str], list[str]] = {}
    for group, verdicts in by_group.items():
        for word, measures in verdicts.items():
            said.setdefault((_named(measures), word), []).append(f"the {GROUPS[group]} group")
    reference = name_of(languages.reference)
    sentences = [
        f"Measured {measures}, {' and '.join(groups)} {word if len(groups) == 1 else f'each {word}'} {reference} on average over the layers."
        for (measures, word), groups in said.items()
    ]
    if any({"falls short of", "lies above"} <= verdicts.keys() for verdicts in by_group.values()):
        sentences.append("So the direction of the disparity is a matter of the measure here, and no single measure stands for all.")
    return " ".join(sentences)


def _named(names: Iterable[str]) -> str:
    return ", ".join(MEASURES[name] for name in names)


def wide_measures(overall: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """A row per language and group, a column per measure."""
    cells = overall.assign(cell=_marked(overall))
    wide = cells.pivot_table(index="name", columns="measure", values="cell", aggfunc="first", sort=False)[list(names)]  # pyrefly: ignore[bad-argument-type]
    return wide.rename(columns=MEASURES, index=lambda name: name.replace("_", " ")).reset_index()


# --- confounds -----------------------------------------------------------------------------------------------------------------------------------


def confounds_text(table: pd.DataFrame, costs: pd.DataFrame | None, languages: LanguagesConfig) -> str:
    """How far the languages differ in what is not features.

    Args:
        table: `tables.confound_table`.
        costs: `effects.spliced_table`; None: not measured.
    """
    means = table.groupby(["quantity", "language"], sort=False)["estimate"].mean()
    reference, others = languages.reference, [code for code in _others(languages) if code in set(table["language"])]
    phrases = {
        "tokens_per_sentence": ("tokens per aligned sentence", 1),
        "fertility": ("tokens per word", 2),
        "partial_share": ("share of tokens that are parts of characters", 3),
        "fvu": ("variance that the SAEs miss (FVU, mean over layers)", 2),
        "residual_norm": ("residual norm (mean over layers)", 1),
    }
    parts = [
        f"{text}: {_span(means[quantity][[reference]], digits)} in {name_of(reference)}, {_span(means[quantity][others], digits)} elsewhere"
        for quantity, (text, digits) in phrases.items()
    ]
    sentences = [f"{'; '.join(parts)}."]
    worse = [code for code in others if means["fvu"][code] > 1.1 * means["fvu"][reference]]
    if worse:
        sentences.append(
            f"Of {len(others)} other languages the SAEs fit {listed(worse)} worse than {name_of(reference)} by more than a tenth: there a gap may be "
            "the dictionary's and not the model's."
        )
    if costs is not None:
        rises = costs[costs["quantity"] == "ce_increase"]
        for sae_set, own in rises.groupby("sae_set", sort=False):
            mean = own.groupby("language", sort=False)["estimate"].mean()
            own_rise = round(float(mean[reference]), 2) + 0.0  # no -0.00
            sentences.append(
                f"Putting the {sae_set_title(str(sae_set))} SAEs' reconstruction in the place of the residual raises the cross-entropy by "
                f"{own_rise:.2f} nats per token in {name_of(reference)} and by {_span(mean[others])} elsewhere (mean over layers, "
                f"n = {own['n'].iloc[0]} sentences)."
            )
    text = " ".join(sentences)
    return text[0].upper() + text[1:]


def spliced_change_text(costs: pd.DataFrame, languages: LanguagesConfig) -> str:
    """What splicing costs the adapted model, against the base model on the same sentences.

    Args:
        costs: `effects.spliced_table` with the adapted model.
    """
    rises = costs[costs["quantity"] == "ce_increase"]
    said = []
    for sae_set, apart in rises[rises["variant"] == ADAPTER_MINUS_BASE].groupby("sae_set", sort=False):
        change = apart.groupby("language", sort=False)["estimate"].mean()
        sure = int(((apart["lo"] > 0) | (apart["hi"] < 0)).sum())
        said.append(
            f"After tuning, putting the {sae_set_title(str(sae_set))} SAEs' reconstruction in the place of the residual raises the cross-entropy by "
            f"{_signed(change[languages.reference])} nats per token more than before in {name_of(languages.reference)} and by "
            f"{_signed(change.drop(languages.reference).min())} to {_signed(change.drop(languages.reference).max())} elsewhere (mean over layers; "
            f"{sure} of {len(apart)} intervals of single layers and languages exclude 0)."
        )
    return " ".join(said)


def _signed(value: float) -> str:
    return f"{round(float(value), 3) + 0.0:+.3f}"


def wide_spliced(costs: pd.DataFrame) -> pd.DataFrame:
    """A row per set of SAEs and language, a column per variant: rise of the cross-entropy in nats per token, mean over layers."""
    rises = costs[costs["quantity"] == "ce_increase"]
    means = rises.groupby(["sae_set", "language", "variant"], sort=False)["estimate"].mean().unstack("variant", sort=False)
    return means.rename(columns={ADAPTER_MINUS_BASE: "adapter minus base"}).reset_index()


def wide_confounds(table: pd.DataFrame) -> pd.DataFrame:
    """A row per language, a column per quantity; those with layers are means over them."""
    means = table.groupby(["language", "quantity"], sort=False)["estimate"].agg(lambda x: x.mean(skipna=False)).unstack(sort=False)
    return means.rename(columns=lambda name: name.replace("_", " ")).reset_index()


# --- controls ------------------------------------------------------------------------------------------------------------------------------------


def sae_sets_table(ranges: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """A row per language and group, a column per set of SAEs with the mean gap over all layers."""
    columns = {}
    for sae_set, table in ranges.items():
        own = table[(table["range"] == "all") & (table["statistic"] == "mean")]
        columns[sae_set_title(sae_set)] = pd.Series({str(row["name"]).replace("_", " "): with_interval(row, "gap") for row in own.to_dict("records")})
    return pd.DataFrame(columns).rename_axis("name").reset_index()


def l0_table(by_sae_set: Mapping[str, Stats]) -> pd.DataFrame:
    """A row per language, a column per set of SAEs: active latents per token, mean over layers and over draws of random directions.

    Random SAEs are matched over all languages together, so that the means over the languages agree and the languages need not.
    """
    columns: dict[str, dict[str, list[float]]] = {}
    for sae_set, own in by_sae_set.items():
        for code, s in own.items():
            columns.setdefault(sae_set_title(sae_set), {}).setdefault(code, []).append(float((s.l0.sum(axis=1) / s.tokens.sum()).mean()))
    means = {title: {code: sum(values) / len(values) for code, values in own.items()} for title, own in columns.items()}
    return pd.DataFrame(means).rename_axis("language").reset_index()


def wide_draws(ranges: pd.DataFrame) -> pd.DataFrame:
    """A row per draw of random directions and for their mean, a column per language and group: the mean gap over all layers.

    Args:
        ranges: `control_tables.draws_by_range`.
    """
    own = ranges[(ranges["range"] == "all") & (ranges["statistic"] == "mean")]
    cells = own.assign(cell=[with_interval(row, "gap") for row in own.to_dict("records")], name=own["name"].str.replace("_", " "))
    wide = cells.pivot_table(index="draw", columns="name", values="cell", aggfunc="first", sort=False)  # pyrefly: ignore[bad-argument-type]
    return wide.reset_index()


def wide_apart(apart: pd.DataFrame) -> pd.DataFrame:
    """A row per language and group: the trained SAEs' gap over all layers, that of random directions, and the difference.

    Args:
        apart: `control_tables.trained_minus_random`.
    """
    own = apart[apart["range"] == "all"]
    columns = {"name": own["name"].str.replace("_", " "), "trained": own["trained"], "random directions": own["random"]}
    difference = {"difference": [with_interval(row) for row in own.to_dict("records")], "p (Holm)": own["p_holm"]}
    return pd.DataFrame(columns | difference).reset_index(drop=True)


def random_text(ranges: pd.DataFrame, apart: pd.DataFrame, languages: LanguagesConfig, confidence: float) -> str:
    """What random directions give on average over the draws, how much the draws differ, and whether the trained SAEs give anything else.

    Args:
        ranges: `control_tables.draws_by_range`.
        apart: `control_tables.trained_minus_random`.
    """
    own = ranges[(ranges["range"] == "all") & (ranges["statistic"] == "mean")]
    mean = own[own["draw"] == "mean"].set_index("name")
    draws, sentences = int(mean["draws"].iloc[0]), []
    for group, title in GROUPS.items():
        if group in mean.index:
            single = own.loc[(own["name"] == group) & (own["draw"] != "mean"), "gap"]
            spread = f", single draws {single.min():+z.2f} to {single.max():+z.2f}" if draws > 1 else ""
            sentences.append(f"The {title} group's mean gap over layers is {with_interval(mean.loc[group].to_dict(), 'gap')}{spread}.")
    covers = (
        f"Each number is the mean over {draws} draws of directions, and the brackets cover the draw and the sentences (t quantile)."
        if draws > 1
        else "This is one draw of directions, and the brackets do not cover the draw."
    )
    tested = apart[(apart["range"] == "all") & apart["name"].isin(list(_others(languages)))].set_index("name")
    sure = tested[tested["p_holm"] < 1 - confidence]
    larger, smaller = (listed([str(code) for code in sure.index[sign * sure["estimate"] > 0]]) for sign in (1, -1))
    verdict = (
        f"Against the trained SAEs on the same sentences: the gap by the trained ones is larger (more positive) for {larger} of {len(tested)} "
        f"languages and smaller for {smaller} (Holm-corrected p below {1 - confidence:.2g}); for {len(tested) - len(sure)} no difference is shown."
    )
    matched = "They fire as often as the trained ones over all languages together, in equal shares of tokens."
    return " ".join([covers, matched, *sentences, verdict])


def controls_text(ranges: Mapping[str, pd.DataFrame], shuffled: pd.DataFrame | None, languages: LanguagesConfig) -> str:
    """What other SAEs, random ones and shuffled labels say of the gaps.

    Args:
        ranges: meter -> `tables.range_table`; the first meter is the one that is checked.
        shuffled: `tables.shuffled_table`; None: not made.
    """
    overall = {m: t[(t["range"] == "all") & (t["statistic"] == "mean")].set_index("name") for m, t in ranges.items()}
    main, *others = overall
    codes = [code for code in _others(languages) if code in overall[main].index]
    sentences = []
    for sae_set in others:
        own, checked = overall[sae_set].loc[codes, "gap"], overall[main].loc[codes, "gap"]
        defined = own.notna() & checked.notna()
        same = int((np.sign(own) == np.sign(checked))[defined].sum())
        what = "SAEs with random directions, which fire as often over all languages," if is_random(sae_set) else f"The {sae_set_title(sae_set)} SAEs"
        groups = [
            f"{with_interval(overall[sae_set].loc[group].to_dict(), 'gap')} for the {title} group, where the {main} SAEs give "
            f"{with_interval(overall[main].loc[group].to_dict(), 'gap')}"
            for group, title in GROUPS.items()
            if group in overall[sae_set].index
        ]
        sentences.append(f"{what} give the gap the same sign in {same} of {int(defined.sum())} languages: {'; '.join(groups)}.")
        if is_random(sae_set):
            sentences.append(
                "Where such SAEs give a gap of the same sign and size, sign and size alone are no evidence for learned features; the two are not "
                "additive."
            )
    if shuffled is not None:
        every = shuffled[shuffled["name"] == "all"].set_index("scope")
        layer, mean = every.loc["layer"], every.loc["mean"]
        verdict = "within" if mean["significant"] <= mean["allowed"] else "above"
        sentences.append(
            f"With shuffled language labels, where no gap can be, {mean['significant']} of {mean['tests']} intervals of the mean over layers "
            f"exclude 0 ({mean['share']:.1%}; {mean['expected']:.0%} expected, {verdict} the {mean['allowed']:.0f} that chance allows), and "
            f"{layer['share']:.1%} of those of single layers."
        )
    return " ".join(sentences) or "No control was asked for; measures=full makes them all."


# --- similarity ----------------------------------------------------------------------------------------------------------------------------------

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
        parts.append(f"{title} {_span(own['estimate'])} [{own['floor'].min():z.2f} to {own['floor'].max():z.2f}]")
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
        f"with AUC {_span(auc['diffmean'])} (mean over layers); the summed activation alone, taken whichever way round is better at each layer, with "
        f"{_span(auc['activation'])}, the residual norm with {_span(auc['residual_norm'])}."
    )
    return " ".join(sentences)


def wide_similarity(table: pd.DataFrame) -> pd.DataFrame:
    """A row per language, a column per quantity: mean over layers, and the floor."""
    # A mean over the layers that are left would not be that over all.
    means = table.groupby(["language", "quantity"], sort=False)[["estimate", "floor"]].agg(lambda x: x.mean(skipna=False)).reset_index()
    cells = means.assign(cell=["-" if pd.isna(row.estimate) else f"{row.estimate:z.2f} (floor {row.floor:z.2f})" for row in means.itertuples()])
    wide = cells.pivot_table(index="language", columns="quantity", values="cell", aggfunc="first", sort=False)  # pyrefly: ignore[bad-argument-type]
    return wide.rename(columns=_SIMILARITIES).reset_index()


# --- features ------------------------------------------------------------------------------------------------------------------------------------


def random_features_text(found: pd.DataFrame, random: Sequence[pd.DataFrame]) -> str:
    """How the number of confirmed features compares with that of random directions.

    Args:
        found: `language_features.find_features` by the measuring SAEs.
        random: the same by every draw of SAEs with random directions.
    """
    own, counts = int(found["confirmed"].sum()), [int(frame["confirmed"].sum()) for frame in random]
    other, tested = sum(counts) / len(counts), sum(int(frame["passed"].sum()) for frame in random) / len(random)
    drawn = f" (mean over {len(counts)} draws, which confirm {min(counts)} to {max(counts)})" if len(counts) > 1 else ""
    verdict = (
        "So being confirmed says that a latent tells languages apart, and nothing of what the SAE has learned: random directions do it as well."
        if other >= own
        else f"So at most {own - other:g} of the {own} confirmed ones are more than random directions would give."
    )
    searched = "By SAEs with random directions, which fire as often over all languages, the same search confirms"
    return f"{searched} {other:g} of {tested:g} candidates{drawn}. {verdict}"


def features_lead(found: pd.DataFrame, *random: pd.DataFrame) -> str:
    """How many language-specific features were confirmed, and how many random directions give."""
    tested = found[found["passed"]]
    confirmed = tested[tested["confirmed"]]
    if confirmed.empty:
        return f"No language-specific feature was confirmed ({len(tested)} candidates)."
    where = listed(list(confirmed["language"].unique()))
    told = f"{len(confirmed)} of {len(tested)} candidates for language-specific features were confirmed; languages with any: {where}."
    return f"{told} {random_features_text(found, random)}" if random else told


def wide_features(found: pd.DataFrame) -> pd.DataFrame:
    """The candidates that were tested, confirmed ones marked."""
    tested = found[found["passed"]].copy()
    tested["confirmed"] = np.where(tested["confirmed"], "yes", "no")
    return tested[["language", "layer", "latent", "nu", "lape", "rate", "other", "rate_other", "rate_random", "q", "confirmed"]]


def cards(features: pd.DataFrame, rates: pd.DataFrame, contexts: Sequence[Context], links: Mapping[tuple[int, int], str]) -> list[Card]:
    """A card for each feature: where it belongs, how often it fires where, and its strongest tokens."""
    made = []
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


# --- causal checks -------------------------------------------------------------------------------------------------------------------------------


def causal_lead(selectivity: pd.DataFrame, causal: pd.DataFrame, alpha: float) -> str:
    """For how many languages taking their features away hurts them more than the others, and more than random latents do."""
    ablated = selectivity[(selectivity["kind"] == "specific") & (selectivity["mode"] == "scale") & (selectivity["dose"] == 0)]
    if ablated.empty:
        return ""
    sure = ablated.assign(sure=(ablated["p_holm"] < alpha) & (ablated["estimate"] > 0)).pivot(index="owner", columns="contrast", values="sure")
    both = sure.reindex(columns=["own_minus_others", "own_minus_random"]).eq(other=True).all(axis=1)
    own = causal[(causal["kind"] == "specific") & (causal["mode"] == "scale") & (causal["dose"] == 0) & (causal["owner"] == causal["measured"])]
    raised = set(own.loc[own["lo"] > 0, "owner"])
    shown = [str(code) for code in sure.index if both[code] and code in raised]
    without = [str(code) for code in sure.index if "own_minus_random" not in sure.columns or pd.isna(sure.loc[code, "own_minus_random"])]
    said = (
        f"Taking a language's features away raises the loss on it, more than on the others and more than random latents that fire as often and as "
        f"strongly do, for {listed(shown)} of {len(sure)} languages (corrected by Holm)."
    )
    return said + (f" For {listed(without)} no random latents are as frequent and as strong, so that control is missing." if without else "")


def causal_change_text(causal: pd.DataFrame, selectivity: pd.DataFrame, alpha: float) -> str:
    """Whether taking a language's features away does more or less to it after tuning.

    Args:
        causal: `effects.causal_table` with the adapted model.
        selectivity: `effects.selectivity_table` with the adapted model.
    """
    apart = [table[table["variant"] == ADAPTER_MINUS_BASE] for table in (causal, selectivity)]
    effect, contrast = (table[(table["kind"] == "specific") & (table["mode"] == "scale") & (table["dose"] == 0)] for table in apart)
    own = effect[effect["owner"] == effect["measured"]]
    if own.empty:
        return "No ablation was run, so nothing is said about what tuning changed in what the features do."
    more, less = (listed([str(code) for code in own.loc[rows, "owner"]]) for rows in (own["lo"] > 0, own["hi"] < 0))
    told = (
        f"The same latents, chosen on the base model, were edited in the adapted one. Taking a language's features away costs it more after tuning "
        f"than before for {more} of {len(own)} languages, and less for {less} (paired intervals beside 0)."
    )
    said = [told]
    for name, comparison in (("own_minus_others", "the others"), ("own_minus_random", "random latents")):
        rows = contrast[contrast["contrast"] == name]
        if len(rows):
            grown, shrunk = (listed([str(code) for code in rows.loc[(rows["p_holm"] < alpha) & side, "owner"]]) for side in _sides(rows["estimate"]))
            said.append(f"Its distance from {comparison} grew for {grown} and shrank for {shrunk} (Holm-corrected p below {alpha:.2g}).")
    return " ".join(said)


def _sides(estimates: pd.Series) -> tuple[pd.Series, pd.Series]:
    return estimates > 0, estimates < 0


def wide_selectivity(selectivity: pd.DataFrame) -> pd.DataFrame:
    """A row per owner, kind and dose, with both contrasts and their corrected p."""
    rows: dict[tuple, dict[str, object]] = {}
    for row in selectivity.to_dict("records"):
        key = (row["owner"], row["kind"], row["dose"])
        cells = rows.setdefault(key, {"features of": row["owner"], "kind": row["kind"], "dose": row["dose"], "n": row["n"]})
        title = str(row["contrast"]).replace("_", " ")
        cells |= {title: with_interval(row, digits=3), f"{title}, p (Holm)": "<.001" if row["p_holm"] < 0.001 else f"{row['p_holm']:.3f}"}
    return pd.DataFrame(rows.values())


# --- recipes -------------------------------------------------------------------------------------------------------------------------------------

RECIPE_TITLES = {
    "gap_closed": "gap closed",
    "gap_closed_norm_matched": "gap closed, norm-matched",
    "fvu_ratio": "FVU, after / base",
    "activation": "activation of the reference, after / base",
    "activation_worst_layer": "activation of the reference, largest change at a layer",
    "bits_per_byte": "bits per byte of the reference, after / base",
    "kl": "KL(base || adapter) of the reference",
}
"""Quantities of `contrasts.recipe_table` as they are called in tables, those that are asked for first in front."""


def recipes_text(table: pd.DataFrame, confidence: float) -> str:
    """How many differences in the gap closed are shown, and what the tests cover.

    Args:
        table: `contrasts.recipe_table`.
    """
    alpha, said = 1 - confidence, []
    for (sae_set, quantity), own in table[table["quantity"].isin(["gap_closed", "gap_closed_norm_matched"])].groupby(
        ["sae_set", "quantity"], sort=False
    ):
        sure = own[own["p_holm"] < alpha]
        said.append(f"{RECIPE_TITLES[str(quantity)]} by the {sae_set_title(str(sae_set))} SAEs: {len(sure)} of {len(own)}")
    covers = {str(what): int(count) for what, count in table.groupby("covers", sort=False).size().items()}  # pyrefly: ignore[not-iterable]
    seeds = (
        "They cover the sentences and the seeds of training: the answer is about the recipes."
        if list(covers) == ["sentences and seeds"]
        else "Where a recipe has one seed they cover the sentences alone: the answer is then about these adapters, and another seed may differ by "
        "more than the interval."
    )
    first = table.iloc[0]
    drawn = "" if first["resampled"] == "sentences" else f" ({first['units']} {first['resampled']} are resampled)"
    return (
        f"Paired differences between recipes, first minus second, on {first['n']} sentences that all were judged on{drawn}. Differences shown (p "
        f"below {alpha:.2g} after Holm over all pairs and languages, for each quantity and set of SAEs): {'; '.join(said)}. {seeds}"
    )


def wide_recipes(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """By quantity: a row per pair and language, a column per set of SAEs with the difference, and its corrected p."""
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


# --- benchmarks ----------------------------------------------------------------------------------------------------------------------------------


def correlation_text(table: pd.DataFrame, confidence: float) -> str:
    """Which correlations of gaps with scores survive correction, and how far they hang on single languages."""
    plain = table[table["control"] == "none"]
    counted = plain[plain["p_holm"].notna()]
    sentences = []
    for row in plain[plain["place"].astype(str) == "all"].to_dict("records"):
        if pd.isna(row["estimate"]):
            continue
        name = {"pearson": "Pearson", "spearman": "Spearman"}[row["method"]]
        sentences.append(
            f"{row['benchmark']}: {name} correlation of the mean gap over all layers with the score {row['estimate']:+.2f} (n = {row['n']} "
            f"languages, p {row['p']:.2g}{'' if row['exact'] else ' by sampled orders'}{_left_out(row)})."
        )
    sure = counted[counted["p_holm"] < 1 - confidence]
    sentences.append(
        f"Over layers, ranges and benchmarks {len(sure)} of {len(counted)} correlations survive Holm's correction"
        + (" within their method." if len(sure) else " within their method; with so few languages that is no proof of none.")
    )
    held = table[(table["control"] != "none") & (table["place"].astype(str) == "all") & table["estimate"].notna()]
    if len(held):
        sentences.append(
            f"With tokens per sentence, resource level or both held constant, {int((held['p'] < 1 - confidence).sum())} of {len(held)} partial "
            "correlations "
            f"over all layers have p below {1 - confidence:.2f}, uncorrected."
        )
    sentences.append("Languages are few and related to each other: a correlation over them is a description, not a test of cause.")
    return " ".join(sentences)


def _left_out(row: Mapping[Any, Any]) -> str:
    """The range of a correlation when one language or one branch is left out, where so many remain that it is defined."""
    ranges = {"language": (row["loo_lo"], row["loo_hi"]), "branch": (row["branch_lo"], row["branch_hi"])}
    return "".join(f"; {low:+.2f} to {high:+.2f} when one {what} is left out" for what, (low, high) in ranges.items() if not pd.isna(low))


def correlation_lead(table: pd.DataFrame) -> str:
    """The Spearman correlations of the mean gap with the scores."""
    rows = table[(table["place"].astype(str) == "all") & (table["control"] == "none") & (table["method"] == "spearman") & table["estimate"].notna()]
    if rows.empty:
        return ""
    parts = [
        f"{row['benchmark']} {row['estimate']:+.2f} (n = {row['n']}, p {row['p']:.2g}, by Holm {row['p_holm']:.2g})"
        for row in rows.to_dict("records")
    ]
    return (
        f"Spearman correlation of the mean gap with benchmark scores over languages: {', '.join(parts)}. Positive: languages with less activation "
        "score higher."
    )


def wide_correlation(table: pd.DataFrame) -> pd.DataFrame:
    """Correlations of the mean gap over all layers, a row per benchmark, method and control."""
    rows = table[table["place"].astype(str) == "all"]
    return rows[
        ["benchmark", "method", "control", "n", "estimate", "lo", "hi", "p", "p_holm", "loo_lo", "loo_hi", "branch_lo", "branch_hi", "reason"]
    ]


# --- what a reviewer asks ------------------------------------------------------------------------------------------------------------------------


def _sentences_seen(config: AnalyzeConfig) -> str:
    if config.adapter is None:
        return "nothing is trained here"
    if config.split in ("all", "train"):
        return f"split={config.split} has sentences that the adapter was trained on, if it was trained on this corpus; split=heldout has none"
    return f"split={config.split}: none of them, if the adapter was trained with lingact on this corpus"


_DEPENDENCE = {
    "documents": "whole documents are resampled, the same ones in every language",
    "blocks": "blocks of neighbouring sentences are resampled, the same ones in every language; that documents may be longer is not covered",
    "sentences": "the same sentences are resampled in every language; that they may share documents is not covered",
}


def reviewer_table(config: AnalyzeConfig, drawn: Resampling, *, heldout: bool, windows: Mapping[str, float]) -> pd.DataFrame:
    """The objections that such analyses meet, and where this run answers them, or that it does not.

    Args:
        drawn: what was resampled.
        heldout: a second set of SAEs took part.
        windows: language -> windows per sentence.
    """
    parts = config.measures.parts
    missing = "not in this run; add {} to measures.parts, or use measures=full"

    def with_part(part: str, answer: str) -> str:
        return answer if part in parts else missing.format(part)

    adapted = "in Before and after" if config.adapter or config.compare else "no adapter in this run"
    scored = bool(config.scores)
    rows = [
        (
            "Is it only the norm of the residual?",
            with_part("by_reference", "norm-matched measure beside the others; residual norm among the confounds"),
        ),
        ("JumpReLU passes no gradient to silent latents", "a question for training; nothing is trained here"),
        ("Was the meter trained on?", f"{adapted}; held-out SAEs {'stand beside the measuring ones' if heldout else 'were not given'}"),
        ("Were the sentences trained on?", _sentences_seen(config)),
        ("Do the SAEs fit (still, and everywhere)?", "FVU and L0 per language and layer; " + with_part("spliced", "spliced cross-entropy")),
        ("Were the SAEs trained on English?", "a worse FVU than the reference's says where to doubt; other SAEs: sae=..."),
        (
            "Are they better than random directions?",
            f"{with_part('random_sae', 'random-direction SAEs under Controls')}; {with_part('similarity', 'DiffMean')}",
        ),
        (
            "L0 differs between layers and releases",
            "gaps are ratios within a layer, averaged over layers in overviews; the SAEs are named above",
        ),
        ("BOS and massive activations", "BOS, padding and all special tokens are left out; no filter of large norms is applied"),
        ("Fertility, bytes, byte fallback", "gaps per token, sentence, byte and word side by side; fertility and fallback among the confounds"),
        (
            "Tokens of a sentence, and sentences of a document, are not independent",
            _DEPENDENCE[drawn.by],
        ),
        (
            "Mean-pooled cosine grows with length and anisotropy",
            with_part("similarity", "CKA, retrieval and centred cosine, each with a shuffled floor"),
        ),
        (
            "Few, related languages in a correlation",
            "permutation p (exact where the column says so), one language and one branch left out, n printed"
            if scored
            else "no scores given; scores=[RUN]",
        ),
        (
            "Many layers, latents and languages",
            "simultaneous bands, Holm and BH; features found on one half of the sentences, confirmed on the other",
        ),
        ("Translation noise", "not measured: the corpus is taken as it is; run a second corpus and compare"),
        ("Harness artefacts, chance, power", "a question for eval.py; scores come as they are given"),
        ("Would tuning on the language alone do the same?", "a question for training's controls"),
        ("Forgetting in other languages", f"every language is measured before and after: {adapted}"),
        ("Contamination of benchmarks by the corpus", "not checked here; eval.py knows the benchmarks"),
        (
            "Numerics",
            "residuals by hooks on the blocks, SAEs in float32, sums in float64; other batch sizes flip fewer than one threshold in a million",
        ),
        ("Do the features matter?", with_part("causal", "ablation and doses against random latents that fire as often, and DiffMean")),
        ("Overshoot and sign", "gaps are signed; overshoot is a column of Before and after"),
        ("Were long texts cut?", f"never: they are split into windows, a sentence into {_span(pd.Series(windows))}"),
    ]
    return pd.DataFrame(rows, columns=["question", "answer"])
