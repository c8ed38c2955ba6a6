"""Did it help? The report of eval.py."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from lingact.catalogue.benchmarks import ALL, ORIGINS
from lingact.config.jobs import EvalConfig
from lingact.evaluation.task_loading import QUESTIONS
from lingact.evaluation.tasks import Tasks
from lingact.report.page import Section, run_facts, write_report
from lingact.report.phrases import GROUPS, explain_intervals, listed, name_of

GROUP_NAMES = {"all": "all languages", **GROUPS, "targets": "those trained for"}


def notices(config: EvalConfig, tasks: Tasks, truncated: int, tables: Mapping[str, pd.DataFrame]) -> list[str]:
    """What a reader has to know before the numbers; the same sentences on the terminal and on the page."""
    asked = tables["benchmarks"]
    found = []
    dropped = asked[asked["asked"] < asked["documents"]]
    if config.tasks.limit is not None and len(dropped):
        found.append(f"only {config.tasks.limit} items of each benchmark were asked, the same ones in every language and for every model")
    elif len(dropped):
        sizes = dropped.groupby(["benchmark", "language"], sort=False)[["asked", "documents"]].sum()
        rows = sizes.reset_index().to_dict("records")
        told = ", ".join(f"{row['benchmark']} {row['language']} {row['documents'] - row['asked']} of {row['documents']}" for row in rows)
        found.append(f"items that not every language has are left out ({told}); tasks.items=all takes them")
    apart = asked[asked["shared"].isna() & asked["corresponds_by"].ne("")]
    if len(apart) and asked["language"].nunique() > 1:
        found.append(f"the items of {_by_benchmark(apart)} do not bear the names of the other languages: they are other items, taken by themselves")
    counts = asked.groupby("benchmark", sort=False)["language"].nunique()
    if (counts < counts.max()).any():
        common = [str(name) for name, count in counts.items() if count == asked["language"].nunique()]
        found.append(f"'all' pools only what every language has: {', '.join(common) or 'nothing'}")
    if tasks.skipped:
        found.append("no such task: " + "; ".join(f"{name} in {', '.join(codes)}" for name, codes in tasks.skipped.items()))
    for origin in ("machine", "edited", "mixed", "unknown"):
        if len(own := asked[(asked["origin"] == origin) & (asked["licence"] != "yours")]):
            found.append(f"{ORIGINS[origin]}: {_by_benchmark(own)}. A low score there can be the translation's fault")
    if len(own := asked[asked["examples_from"] == QUESTIONS]):
        found.append(f"the examples of {_by_benchmark(own)} are questions of the same benchmark, which are scored, too")
    if config.tasks.fewshot is not None and len(own := asked[asked["fewshot"] != config.tasks.fewshot]):
        told = ", ".join(dict.fromkeys(own["benchmark"]))
        found.append(f"tasks.fewshot={config.tasks.fewshot} has no effect on {told}, whose task files fix another number of examples")
    if truncated:
        found.append(
            f"{truncated} prompts with their options were longer than model.context ({config.model.context} tokens) and lost their beginning"
        )
    return found + notices_of_tables(tables)


def notices_of_tables(tables: Mapping[str, pd.DataFrame]) -> list[str]:
    """Those of the notices that the tables alone tell: guessing, and benchmarks that stand in the training text."""
    return _at_chance(tables["accuracy"]) + _leaks(tables.get("contamination"))


def _by_benchmark(rows: pd.DataFrame) -> str:
    """`arc in zh, ru; mmlu in en`."""
    return "; ".join(f"{name} in {', '.join(own['language'].unique())}" for name, own in rows.groupby("benchmark", sort=False))


def _at_chance(accuracy: pd.DataFrame) -> list[str]:
    """Where the base model may be guessing: there no adapter can do harm, and what it does is hard to see."""
    base = accuracy[(accuracy["model"] == "base") & (accuracy["metric"] == "acc") & (accuracy["kind"] == ALL) & (accuracy["task"] != ALL)]
    guessed = base[base["lo"] <= base["chance"]].rename(columns={"task": "benchmark"})
    return [f"the base model cannot be told from guessing in {_by_benchmark(guessed)}; differences there say little"] if len(guessed) else []


def _leaks(contamination: pd.DataFrame | None) -> list[str]:
    if contamination is None:
        return []
    reasons = contamination.loc[contamination["reason"].notna(), "reason"].unique()
    found = [f"whether the benchmarks stand in the training text could not be checked word by word: {reason}" for reason in reasons]
    if "known" not in contamination:
        return found
    for (benchmark, source, corpus), rows in contamination[contamination["same_source"].notna()].groupby(
        ["benchmark", "same_source", "corpus"], sort=False
    ):
        languages = ", ".join(rows["language"])
        found.append(f"LEAK: {benchmark} ({languages}) is made of the text that was trained on ({source}, {corpus})")
    for row in contamination[contamination["known"].fillna(0) > 0].to_dict("records"):
        where = f"{row['benchmark']} ({row['language']})"
        found.append(
            f"OVERLAP: {row['known']} of {row['n']} items of {where} have much of their {row['words']:.0f}-word sequences"
            f" in common with the training text, {row['whole']} all of them: leaked, or made from the same templates. Without them the difference is "
            f"{row['without_known']:+.3f} instead of {row['estimate']:+.3f}"
        )
    for row in contamination[(contamination["benchmark"] == "text") & (contamination["whole"].fillna(0) > 0)].to_dict("records"):
        found.append(
            f"OVERLAP: {row['whole']} of the {row['n']} sentences for bits per byte in {row['language']} were trained on; they are not held out"
        )
    return list(dict.fromkeys(found))


# --- sections ------------------------------------------------------------------------------------------------------------------------------------


def accuracy_section(tables: Mapping[str, pd.DataFrame], figure: Path) -> Section:
    """Accuracy of every model."""
    shown = {"Accuracy, all models": tables["accuracy"]}
    if len(tables["groups"]):
        shown["Group's mean accuracy minus each language's, facts resampled together"] = tables["groups"]
    if "text" in tables:
        shown["Base model on held-out text: bits per byte within a language, per aligned sentence between languages"] = tables["text"]
    return Section("Accuracy", {"accuracy": figure}, shown)


def difference_title(label: str, seeds: int, config: EvalConfig) -> str:
    """Above the table of differences."""
    whose = "adapter" if label == "adapter" else f"'{label}'"
    how = "paired bootstrap" if seeds == 1 else f"mixed over {seeds} seeds and items"
    part = f"; {config.tasks.limit} items of each benchmark" if config.tasks.limit else ""
    return f"Accuracy, {whose} against base, {config.confidence:.0%} interval ({how}){part}"


def difference_section(label: str, seeds: int, tables: Mapping[str, pd.DataFrame], figure_name: str, figure: Path, config: EvalConfig) -> Section:
    """One recipe against the base model."""
    differences = tables["differences"].drop(columns="model")
    pooled = differences[(differences["task"] == ALL) & (differences["kind"] == ALL) & (differences["metric"] == "acc")]
    shown = {f"All benchmarks together: {difference_title(label, seeds, config)}": pooled}
    text = []  # the verdict on accuracy leads the page
    if "bits" in tables:
        shown["Bits per byte on held-out text, adapter over base (1: unchanged, less is better)"] = tables["bits"].drop(columns="model")
        text.append(_bits_verdict(tables["bits"], config))
    shown["By benchmark, language and kind"] = differences
    shown["Benchmarks and training text"] = tables["contamination"].drop(columns="model")
    changed = tables["changed"] if seeds == 1 else pd.DataFrame()
    if len(changed):
        shown["Answers that changed (the first 200)"] = changed.drop(columns="model").head(200)
    return Section(f"{'Adapter' if label == 'adapter' else label} against base", {figure_name: figure}, shown, "\n\n".join(text))


def _verdict(pooled: pd.DataFrame, config: EvalConfig) -> str:
    """For whom it helped, and where the items are too few to tell."""
    single = pooled[pooled["languages"] == 1]
    level = 1 - config.confidence
    told = single[single["p"] <= level]
    better, worse = (list(told.loc[side, "language"]) for side in (told["estimate"] > 0, told["estimate"] < 0))
    rest = single[single["p"] > level]
    sure = single[single["p_holm"] <= level]
    claims = (
        f"Over all benchmarks together the adapter scores higher than the base model in {listed(better)} of the {len(single)} languages and lower in "
        f"{listed(worse)}, each tested by itself at {level:.2g}; after Holm's correction {listed(list(sure['language']))} remain."
    )
    sentences, pooled_sentences = [claims], []
    if len(rest):
        low, high = rest["mde"].min(), rest["mde"].max()
        reach = "no possible difference" if pd.isna(high) else f"only a difference of at least {low:.3f} to {high:.3f}"
        sentences.append(
            f"The others ({', '.join(map(name_of, rest['language']))}) cannot be told apart: with these items {reach} would have been found in "
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
    drawn = by if by == "sentences" else f"{units} {by}"
    return (
        f"Held-out text is a finer measure, and another: the adapter needs fewer bits per byte in {listed(better)} and more in {listed(worse)}, by "
        f"intervals over {drawn} that exclude 1; a change of {single['mde'].min():.2%} to {single['mde'].max():.2%} would have been found in "
        f"{config.power:.0%}."
    )


def data_section(tables: Mapping[str, pd.DataFrame]) -> Section:
    """What was asked."""
    return Section("The benchmarks", {}, {"What was asked, whose it is, and who wrote it": tables["benchmarks"].drop(columns="sha256")})


def _reading_scores(config: EvalConfig) -> list[str]:
    return [
        (
            "Accuracy is the share of items whose right option the model finds most likely, acc_norm the same by likelihood per character; chance is "
            "what guessing would give. A difference is adapter minus base on the same items: positive means the adapter helped."
        ),
        f"Accuracies carry Wilson intervals. Of one adapter: {explain_intervals(config.confidence, config.resamples, 'facts')}",
        (
            "The headline is accuracy throughout, also where papers report acc_norm. p is exact: every fact's difference might as well have had the "
            "other sign (single items: McNemar's exact test; groups of unequal size: 20,000 random signs). p_mcnemar and p_mid count documents, not "
            "facts. Several seeds of one recipe: crossed random effects of seeds and facts, intervals by t (Satterthwaite)."
        ),
        (
            f"mde is the smallest true difference that this many items, differing as often as they do here, would show in {config.power:.0%} of "
            f"such experiments at the level {1 - config.confidence:.2g}, before any correction; a smaller one may well be there unseen. p_holm and "
            "p_bh are corrected over languages, benchmarks and recipes, within each kind and metric; pooled rows by themselves."
        ),
        (
            "Groups pool languages with equal weight and draw each fact for all of them at once, so that what languages share counts once. Intervals "
            "cover the choice of items (and seeds), never that of languages or benchmarks. All was found on this model and these items, and holds "
            "for no others without being measured there."
        ),
    ]


def write_evaluation(folder: Path, config: EvalConfig, sections: Sequence[Section], told: Sequence[str], differences: pd.DataFrame | None) -> Path:
    """The report of eval.py.

    Args:
        told: of `notices`.
        differences: of all recipes; None for the base model alone.
    """
    lead = "Accuracy of the base model alone; give adapter=<run folder> to compare."
    if differences is not None:
        pooled = differences[(differences["task"] == ALL) & (differences["kind"] == ALL) & (differences["metric"] == "acc")]
        parts = [
            f"{label}: {_verdict(rows, config)}" if label != "adapter" else _verdict(rows, config)
            for label, rows in pooled.groupby("model", sort=False)
        ]
        lead = "\n\n".join(parts)
    if told:
        lead += "\n\n" + "\n\n".join(f"Note: {notice}." for notice in told)
    title = "Benchmarks, base model" if differences is None else "Benchmarks, adapters against base model"
    return write_report(folder, title, lead, sections, run_facts(folder), reading=_reading_scores(config))
