"""What the answers say: accuracies, differences, overlap with the training text, bits per byte. Answers in, tidy tables out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from lingact.config.jobs import EvalConfig
from lingact.data.corpus import ParallelCorpus
from lingact.errors import UserError
from lingact.evaluation import compare, scores
from lingact.evaluation.bits_per_byte import Nats, base_bits, bits_table, corrected
from lingact.evaluation.contamination import contamination_table, training_corpus, training_text
from lingact.evaluation.harness import EvalRun
from lingact.evaluation.recipes import Recipe
from lingact.evaluation.tasks import TaskInstance, Tasks
from lingact.statistics.paired import TestSettings

BASE, TEXT = "base", "text"


@dataclass(frozen=True)
class EvaluationData:
    """What every model is asked."""

    tasks: Tasks
    text: ParallelCorpus | None
    """Held-out sentences for bits per byte."""


@dataclass(frozen=True)
class ModelAnswers:
    """What one model did."""

    run: EvalRun
    nats: Nats
    """Empty where no text was read."""


def result_tables(
    config: EvalConfig, data: EvaluationData, recipes: Sequence[Recipe], answered: Mapping[str, ModelAnswers]
) -> dict[str, pd.DataFrame]:
    """All tidy tables by name.

    Args:
        answered: by name of the model: `BASE`, and every candidate of the recipes.
    """
    settings = TestSettings(resamples=config.resamples, confidence=config.confidence, power=config.power, seed=config.seed, block=config.block)
    tasks, text = data.tasks, data.text
    base = answered[BASE].run.items
    groups = {"high": config.languages.high, "low": config.languages.low}
    accuracy = [compare.accuracy_table(each.run.items, model=name, confidence=config.confidence) for name, each in answered.items()]
    sure = {"resamples": config.resamples, "confidence": config.confidence, "seed": config.seed}
    frames = {
        "benchmarks": benchmark_table(tasks.instances),
        "accuracy": pd.concat(accuracy, ignore_index=True),
        "groups": pd.concat([compare.group_table(each.run.items, groups, model=name, **sure) for name, each in answered.items()], ignore_index=True),
    }
    frames["scores"] = scores.score_table(frames["accuracy"])
    if text is not None:
        frames["text"] = base_bits(answered[BASE].nats, text, settings)
    if not recipes:
        return frames
    differences, bits, contamination = [], [], []
    for recipe in recipes:
        own = [answered[candidate.name] for candidate in recipe.candidates]
        of = {"all": config.languages.all, **groups}
        if not any(set(recipe.targets) == set(codes) for codes in of.values()):  # the same languages twice would be two tests of one thing
            of["targets"] = recipe.targets
        table = compare.difference_table(base, [each.run.items for each in own], groups=of, settings=settings)
        differences.append(table.assign(model=recipe.label))
        if text is not None:
            bits.append(bits_table(answered[BASE].nats, [each.nats for each in own], text, of, settings).assign(model=recipe.label))
        contamination.append(contamination_of(config, data, recipe, base, [each.run.items for each in own]).assign(model=recipe.label))
    # Over the recipes, too: who compares ten has ten chances.
    frames["differences"] = compare.corrected(pd.concat(differences, ignore_index=True))
    frames["contamination"] = pd.concat(contamination, ignore_index=True)
    frames["changed"] = changed_answers(answered)
    return frames | ({"bits": corrected(pd.concat(bits, ignore_index=True))} if bits else {})


def contamination_of(config: EvalConfig, data: EvaluationData, recipe: Recipe, base: pd.DataFrame, adapters: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """What the recipe's training text knows of the items, and the difference in accuracy without those that it knows.

    A row for each benchmark and language; with `reason` where the training text is not to be had. The row of the benchmark `text` counts the held-out
    sentences that were trained on.
    """
    training = recipe.candidates[0].training
    if training is None:
        return pd.DataFrame([{"corpus": "unknown", "reason": "the adapter does not say what it was trained on"}])
    corpus = training_corpus(training)
    name = str(corpus.get("dataset") or corpus.get("path"))
    read: Mapping[str, Sequence[str]] = {}
    reason = None
    try:
        read = training_text(training).texts
    except UserError as error:
        reason = str(error)
    asked: dict[tuple[str, str], list[str]] = {}
    for instance in data.tasks.instances:
        asked.setdefault((instance.entry.benchmark, instance.entry.language), []).extend(instance.texts)
    table, shares = contamination_table(asked, read, name, words=config.contamination.words, share=config.contamination.share)
    without = []
    for benchmark, code in zip(table["benchmark"], table["language"], strict=True):
        place = ((base["benchmark"] == benchmark) & (base["language"] == code)).to_numpy()
        change = sum(frame["acc"].to_numpy()[place] for frame in adapters) / len(adapters) - base["acc"].to_numpy()[place]
        new = shares[benchmark, code] < config.contamination.share if (benchmark, code) in shares else np.full(len(change), False)
        without.append({"estimate": change.mean(), "without_known": change[new].mean() if new.any() else float("nan"), "reason": reason})
    table = pd.concat([table, pd.DataFrame(without, index=table.index)], axis=1)
    if data.text is not None and read:
        known = {code: set(read[code]) for code in data.text.texts if code in read}
        counts = {code: sum(sentence in sentences for sentence in data.text.texts[code]) for code, sentences in known.items()}
        rows = [{"benchmark": TEXT, "language": code, "corpus": name, "n": len(data.text.ids), "whole": count} for code, count in counts.items()]
        table = pd.concat([table, pd.DataFrame(rows)], ignore_index=True)
    return table


def changed_answers(answered: Mapping[str, ModelAnswers]) -> pd.DataFrame:
    """The items on which base and an adapter differ, with what each would have answered."""
    rows = []
    for name, each in answered.items():
        for task, records in each.run.samples.items():
            for before, after in zip(answered[BASE].run.samples[task], records, strict=True):
                if before["acc"] != after["acc"]:
                    rows.append(
                        {"model": name, "task": task, "item": after["item"], "kind": after["kind"], "change": "won" if after["acc"] else "lost"}
                        | {"prompt": after["prompt"], "gold": _option(after, after["gold"])}
                        | {"base": _option(before, _likeliest(before)), "adapter": _option(after, _likeliest(after))}
                    )
    return pd.DataFrame(rows, columns=["model", "task", "item", "kind", "change", "prompt", "gold", "base", "adapter"])


def _likeliest(record: dict[str, Any]) -> int:
    return max(range(len(record["loglikelihood"])), key=record["loglikelihood"].__getitem__)


def _option(record: dict[str, Any], place: Any) -> str:
    return record["choices"][place].strip() if isinstance(place, int) else str(place)


def benchmark_table(instances: Sequence[TaskInstance]) -> pd.DataFrame:
    """What was asked: one row per task, with data set, licence, who wrote it, and how many of its items took part."""
    return pd.DataFrame(
        {
            "benchmark": each.entry.benchmark,
            "language": each.entry.language,
            "task": each.entry.task,
            "dataset": each.entry.dataset,
            "licence": each.entry.licence,
            "origin": each.entry.origin,
            "metric": each.entry.metric,
            "fewshot": each.task.get_config("num_fewshot") or 0,
            "examples_from": each.examples_from,
            "corresponds_by": " ".join(each.entry.key),
            "documents": each.total,
            "shared": each.shared,
            "asked": len(each.questions),
            "version": str(each.task.VERSION),
            "sha256": each.sha256,
            "note": each.entry.note,
        }
        for each in instances
    )
