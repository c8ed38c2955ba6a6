"""The report of eval.py: accuracies, differences with their verdict, and notices."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from lingact.catalogue.benchmarks import ALL, ORIGINS
from lingact.config.jobs import EvalConfig
from lingact.evaluation.task_loading import QUESTIONS
from lingact.evaluation.tasks import Tasks
from lingact.report.page import Section, run_facts, write_report
from lingact.report.phrases import GROUP_TITLES, explain_intervals, listed, name_of

GROUP_NAMES = {"all": "all languages", **GROUP_TITLES, "targets": "the trained languages"}


def notices(config: EvalConfig, tasks: Tasks, truncated: int, tables: Mapping[str, pd.DataFrame]) -> list[str]:
    """What a reader has to know before the numbers, for the terminal and the page.

    Args:
        config: of the run.
        tasks: that were asked.
        truncated: number of prompts that lost their beginning.
        tables: `results.result_tables`.
    """
    asked = tables["benchmarks"]
    found = []
    dropped = asked[asked["asked"] < asked["documents"]]
    if config.tasks.limit is not None and len(dropped):
        found.append(f"only {config.tasks.limit} items of each benchmark were asked, the same ones in every language and for every model")
    elif len(dropped):
        sizes = dropped.groupby(["benchmark", "language"], sort=False)[["asked", "documents"]].sum()
        rows = sizes.reset_index().to_dict("records")
        listed_items = ", ".join(f"{row['benchmark']} {row['language']} {row['documents'] - row['asked']} of {row['documents']}" for row in rows)
        found.append(f"items that not every language has are left out ({listed_items}); tasks.items=all includes them")
    apart = asked[asked["shared"].isna() & asked["corresponds_by"].ne("")]
    if len(apart) and asked["language"].nunique() > 1:
        found.append(
            f"the items of {_by_benchmark(apart)} do not correspond to those of the other languages: they are different items, chosen separately"
        )
    counts = asked.groupby("benchmark", sort=False)["language"].nunique()
    if (counts < counts.max()).any():
        common = [str(name) for name, count in counts.items() if count == asked["language"].nunique()]
        found.append(f"'all' pools only the benchmarks that every language has: {', '.join(common) or 'none'}")
    if tasks.skipped:
        found.append("there is no task for " + "; ".join(f"{name} in {', '.join(codes)}" for name, codes in tasks.skipped.items()))
    for origin in ("machine", "edited", "mixed", "unknown"):
        if len(own := asked[(asked["origin"] == origin) & (asked["licence"] != "yours")]):
            found.append(f"{ORIGINS[origin]}: {_by_benchmark(own)}. A low score there can come from the translation")
    if len(own := asked[asked["examples_from"] == QUESTIONS]):
        found.append(f"the examples of {_by_benchmark(own)} are questions of the same benchmark, which are also scored")
    if config.tasks.fewshot is not None and len(own := asked[asked["fewshot"] != config.tasks.fewshot]):
        names = ", ".join(dict.fromkeys(own["benchmark"]))
        found.append(f"tasks.fewshot={config.tasks.fewshot} has no effect on {names}, whose task files set another number of examples")
    if truncated:
        found.append(
            f"{truncated} prompts with their options were longer than model.context ({config.model.context} tokens), and their beginning was cut off"
        )
    return found + notices_of_tables(tables)


def notices_of_tables(tables: Mapping[str, pd.DataFrame]) -> list[str]:
    """The notices that follow from the tables alone: accuracy at chance, and benchmarks contained in the training text."""
    return _at_chance(tables["accuracy"]) + _contaminated(tables.get("contamination"))


def _by_benchmark(rows: pd.DataFrame) -> str:
    """`arc in zh, ru; mmlu in en`."""
    return "; ".join(f"{name} in {', '.join(own['language'].unique())}" for name, own in rows.groupby("benchmark", sort=False))


def _at_chance(accuracy: pd.DataFrame) -> list[str]:
    """Where the base model may be guessing: there, an adapter can do no harm, and its effect is hard to see."""
    base = accuracy[(accuracy["model"] == "base") & (accuracy["metric"] == "acc") & (accuracy["kind"] == ALL) & (accuracy["task"] != ALL)]
    guessed = base[base["lo"] <= base["chance"]].rename(columns={"task": "benchmark"})
    return [f"the base model cannot be distinguished from guessing in {_by_benchmark(guessed)}; differences there say little"] if len(guessed) else []


def _contaminated(contamination: pd.DataFrame | None) -> list[str]:
    if contamination is None:
        return []
    reasons = contamination.loc[contamination["reason"].notna(), "reason"].unique()
    found = [f"whether the training text contains the benchmarks could not be checked word by word: {reason}" for reason in reasons]
    if "known" not in contamination:
        return found
    for (benchmark, source, corpus), rows in contamination[contamination["same_source"].notna()].groupby(
        ["benchmark", "same_source", "corpus"], sort=False
    ):
        languages = ", ".join(rows["language"])
        found.append(f"LEAK: {benchmark} ({languages}) is made from the text that was trained on ({source}, {corpus})")
    for row in contamination[contamination["known"].fillna(0) > 0].to_dict("records"):
        where = f"{row['benchmark']} ({row['language']})"
        found.append(
            f"OVERLAP: {row['known']} of {row['n']} items of {where} share many of their {row['words']:.0f}-word sequences with the training text, "
            f"and {row['whole']} of them share all: they are leaked, or made from the same templates. Without them, the difference is "
            f"{row['without_known']:+.3f} instead of {row['estimate']:+.3f}"
        )
    for row in contamination[(contamination["benchmark"] == "text") & (contamination["whole"].fillna(0) > 0)].to_dict("records"):
        found.append(
            f"OVERLAP: {row['whole']} of the {row['n']} sentences for bits per byte in {row['language']} were trained on, so they are not held out"
        )
    return list(dict.fromkeys(found))


# --- sections ------------------------------------------------------------------------------------------------------------------------------------


def accuracy_section(tables: Mapping[str, pd.DataFrame], figure: Path) -> Section:
    """Accuracy of every model."""
    shown = {"Accuracy, all models": tables["accuracy"]}
    if len(tables["groups"]):
        shown["Mean accuracy of each group minus that of each other language, with facts resampled together"] = tables["groups"]
    if "text" in tables:
        shown["Base model on held-out text (bits per byte compare within a language, bits per sentence between languages)"] = tables["text"]
    return Section("Accuracy", {"accuracy": figure}, shown)


def difference_title(label: str, seeds: int, config: EvalConfig) -> str:
    """The title of the table of differences."""
    subject = "adapter" if label == "adapter" else f"'{label}'"
    method = "paired bootstrap" if seeds == 1 else f"random effects of {seeds} seeds and items"
    part = f"; {config.tasks.limit} items of each benchmark" if config.tasks.limit else ""
    return f"Accuracy, {subject} against base, {config.confidence:.0%} interval ({method}){part}"


def difference_section(label: str, seeds: int, tables: Mapping[str, pd.DataFrame], figure_name: str, figure: Path, config: EvalConfig) -> Section:
    """One recipe compared with the base model.

    Args:
        label: of the recipe.
        seeds: number of its adapters.
        tables: the rows of this recipe, by name of the table.
        figure_name: of the figure of differences.
        figure: its file.
        config: of the run.
    """
    differences = tables["differences"].drop(columns="model")
    pooled = differences[(differences["task"] == ALL) & (differences["kind"] == ALL) & (differences["metric"] == "acc")]
    shown = {f"All benchmarks together: {difference_title(label, seeds, config)}": pooled}
    text = []  # the verdict on accuracy is at the head of the page
    if "bits" in tables:
        shown["Bits per byte on held-out text, adapter over base (1: unchanged; lower is better)"] = tables["bits"].drop(columns="model")
        text.append(_bits_verdict(tables["bits"], config))
    shown["By benchmark, language and kind"] = differences
    shown["Overlap of benchmarks and training text"] = tables["contamination"].drop(columns="model")
    changed = tables["changed"] if seeds == 1 else pd.DataFrame()
    if len(changed):
        shown["Answers that changed (the first 200)"] = changed.drop(columns="model").head(200)
    return Section(f"{'Adapter' if label == 'adapter' else label} against base", {figure_name: figure}, shown, "\n\n".join(text))


def _verdict(pooled: pd.DataFrame, config: EvalConfig) -> str:
    """Which languages score higher or lower with the adapter, and where there are too few items to decide."""
    single = pooled[pooled["languages"] == 1]
    level = 1 - config.confidence
    significant = single[single["p"] <= level]
    better, worse = (list(significant.loc[side, "language"]) for side in (significant["estimate"] > 0, significant["estimate"] < 0))
    rest = single[single["p"] > level]
    sure = single[single["p_holm"] <= level]
    claims = (
        f"Over all benchmarks together, the adapter scores significantly higher than the base model in {listed(better)} of the {len(single)} "
        f"languages and significantly lower in {listed(worse)} (each tested alone at level {level:.2g}). After Holm's correction, "
        f"{listed(list(sure['language']))} {'remains' if len(sure) == 1 else 'remain'}."
    )
    sentences, pooled_sentences = [claims], []
    if len(rest):
        low, high = rest["mde"].min(), rest["mde"].max()
        reach = "no possible difference" if pd.isna(high) else f"only a difference of at least {low:.3f} to {high:.3f}"
        sentences.append(
            f"In the others ({', '.join(map(name_of, rest['language']))}) no difference is shown: with these items, {reach} would have been found in "
            f"{config.power:.0%} of such experiments, before any correction."
        )
    for row in pooled[pooled["languages"] > 1].to_dict("records"):
        name = GROUP_NAMES.get(row["language"], row["language"])
        interval = f"{row['estimate']:+.3f} [{row['lo']:+.3f}, {row['hi']:+.3f}]"
        pooled_sentences.append(f"{name} ({row['languages']}) {interval}, p {row['p']:.2g}, detectable {row['mde']:.3f}")
    together = f"Pooled over languages: {'; '.join(pooled_sentences)}." if pooled_sentences else ""
    return " ".join(sentences) + ("\n\n" + together if together else "")


def _bits_verdict(bits: pd.DataFrame, config: EvalConfig) -> str:
    single = bits[bits["languages"] == 1]
    better, worse = (list(single.loc[side, "language"]) for side in (single["hi"] < 1, single["lo"] > 1))
    by, units = bits["resampled"].iloc[0], bits["units"].iloc[0]
    resampled = by if by == "sentences" else f"{units} {by}"
    return (
        f"Held-out text is a finer measure than accuracy, but a different one. The adapter needs fewer bits per byte in {listed(better)} and more in "
        f"{listed(worse)} (intervals over {resampled} that exclude 1). A change of {single['mde'].min():.2%} to {single['mde'].max():.2%} would "
        f"have been found in {config.power:.0%} of such experiments."
    )


def data_section(tables: Mapping[str, pd.DataFrame]) -> Section:
    """The benchmarks that were asked."""
    return Section("The benchmarks", {}, {"Data sets, licences, and who wrote the items": tables["benchmarks"].drop(columns="sha256")})


def _reading_scores(config: EvalConfig) -> list[str]:
    return [
        (
            "Accuracy (acc) is the share of items whose right option is the most likely one under the model; acc_norm is the same with the "
            "likelihood per character. Chance is the accuracy of guessing. A difference is adapter minus base on the same items: positive means that "
            "the adapter helped."
        ),
        f"Accuracies have Wilson intervals. For differences of one adapter: {explain_intervals(config.confidence, config.resamples, 'facts')}",
        (
            "The verdict at the head of the page uses acc, also for benchmarks for which papers report acc_norm. p is from an exact sign-flip test "
            "over facts: under the null hypothesis, the difference of every fact could as well have the other sign (for single items this is "
            "McNemar's exact test; for groups of unequal size, 20,000 random signs are used). p_mcnemar and p_mid count documents, not facts. For "
            "several seeds of one recipe, intervals and p are from crossed random effects of seeds and facts (t quantiles, Satterthwaite)."
        ),
        (
            f"mde is the smallest true difference that would have been found in {config.power:.0%} of such experiments at level "
            f"{1 - config.confidence:.2g}, before any correction, given the number of items and how often the models differ on them. A smaller "
            "difference may exist. p_holm and p_bh are corrected over languages, benchmarks and recipes, within each kind and metric, and separately "
            "for pooled rows."
        ),
        (
            "Groups pool languages with equal weight, and each fact is resampled for all of them at once, so that what languages share is counted "
            "once. Intervals cover the choice of items (and seeds), not the choice of languages or benchmarks. The results hold for this model and "
            "these items; for others they have to be measured again."
        ),
    ]


def write_evaluation(folder: Path, config: EvalConfig, sections: Sequence[Section], notices: Sequence[str], differences: pd.DataFrame | None) -> Path:
    """Write the report of eval.py.

    Args:
        folder: of the run.
        config: of the run.
        sections: of the page.
        notices: shown at the head of the page.
        differences: of all recipes; None for the base model alone.

    Returns:
        The path of the page.
    """
    lead = "Accuracy of the base model alone. To compare an adapter, use adapter=<run folder>."
    if differences is not None:
        pooled = differences[(differences["task"] == ALL) & (differences["kind"] == ALL) & (differences["metric"] == "acc")]
        parts = [
            f"{label}: {_verdict(rows, config)}" if label != "adapter" else _verdict(rows, config)
            for label, rows in pooled.groupby("model", sort=False)
        ]
        lead = "\n\n".join(parts)
    if notices:
        lead += "\n\n" + "\n\n".join(f"Note: {notice}." for notice in notices)
    title = "Benchmarks, base model" if differences is None else "Benchmarks, adapters compared with the base model"
    return write_report(folder, title, lead, sections, run_facts(folder), reading=_reading_scores(config))
