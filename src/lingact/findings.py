"""What the answers say: accuracies, differences, overlap with the training text, bits per byte. Answers in, tidy tables out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from lingact import compare, scores
from lingact.bits import Nats, base_bits, bits_table
from lingact.config import EvalConfig
from lingact.corpus import ParallelCorpus
from lingact.errors import UserError
from lingact.harness import EvalRun
from lingact.leakage import leakage_table, training_text
from lingact.paired import How
from lingact.recipes import Recipe
from lingact.report import evaluation as report
from lingact.tasks import Tasks

BASE = "base"


@dataclass(frozen=True)
class Exam:
    """What every model is asked."""

    tasks: Tasks
    text: ParallelCorpus | None
    """Held-out sentences for bits per byte."""


@dataclass(frozen=True)
class Answered:
    """What one model did."""

    run: EvalRun
    nats: Nats
    """Empty where no text was read."""


def find(config: EvalConfig, exam: Exam, recipes: Sequence[Recipe], answered: Mapping[str, Answered]) -> dict[str, pd.DataFrame]:
    """All tidy tables by name.

    Args:
        answered: by name of the model: `BASE`, and every candidate of the recipes.
    """
    how = How(resamples=config.resamples, confidence=config.confidence, power=config.power, seed=config.seed)
    tasks, text = exam.tasks, exam.text
    base = answered[BASE].run.items
    chance = (1 / base["options"]).groupby(base["benchmark"]).mean().to_dict()
    groups = {"high": config.languages.high, "low": config.languages.low}
    accuracy = [compare.accuracy_table(each.run.items, model=name, chance=chance, confidence=config.confidence) for name, each in answered.items()]
    sure = {"resamples": config.resamples, "confidence": config.confidence, "seed": config.seed}
    frames = {
        "benchmarks": report.benchmark_table(tasks.placed),
        "accuracy": pd.concat(accuracy, ignore_index=True),
        "groups": pd.concat([compare.group_table(each.run.items, groups, model=name, **sure) for name, each in answered.items()], ignore_index=True),
    }
    frames["scores"] = scores.score_table(frames["accuracy"])
    if text is not None:
        frames["text"] = base_bits(answered[BASE].nats, text, how)
    if not recipes:
        return frames
    differences, bits, leaks = [], [], []
    for recipe in recipes:
        own = [answered[candidate.name] for candidate in recipe.candidates]
        of = {"all": config.languages.all, **groups}
        if not any(set(recipe.targets) == set(codes) for codes in of.values()):  # the same languages twice would be two tests of one thing
            of["targets"] = recipe.targets
        table = compare.difference_table(base, [each.run.items for each in own], chance=chance, groups=of, how=how)
        differences.append(table.assign(model=recipe.label))
        if text is not None:
            bits.append(bits_table(answered[BASE].nats, [each.nats for each in own], text, of, how).assign(model=recipe.label))
        leaks.append(leakage_of(config, tasks, recipe, base, [each.run.items for each in own]).assign(model=recipe.label))
    frames["differences"] = pd.concat(differences, ignore_index=True)
    frames["leakage"] = pd.concat(leaks, ignore_index=True)
    frames["changed"] = changed_answers(answered)
    return frames | ({"bits": pd.concat(bits, ignore_index=True)} if bits else {})


def leakage_of(config: EvalConfig, tasks: Tasks, recipe: Recipe, base: pd.DataFrame, adapters: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """What the recipe's training text knows of the items, and the difference in accuracy without those that it knows.

    A row for each benchmark and language that was trained on; one that says why where the training text is not to be had.
    """
    training = recipe.candidates[0].training
    if training is None:
        return pd.DataFrame([{"corpus": "unknown", "reason": "the adapter does not say what it was trained on"}])
    try:
        corpus = training_text(training)
    except UserError as error:
        return pd.DataFrame([{"corpus": str(training["corpus"].get("path") or training["corpus"].get("dataset")), "reason": str(error)}])
    asked: dict[tuple[str, str], list[str]] = {}
    for placed in tasks.placed:
        asked.setdefault((placed.entry.benchmark, placed.entry.language), []).extend(placed.texts)
    table, shares = leakage_table(asked, corpus.texts, corpus.name, words=config.leakage.words, share=config.leakage.share)
    without = []
    for benchmark, code in zip(table["benchmark"], table["language"], strict=True):
        place = ((base["benchmark"] == benchmark) & (base["language"] == code)).to_numpy()
        known = shares[benchmark, code] >= config.leakage.share
        change = sum(frame["acc"].to_numpy()[place] for frame in adapters) / len(adapters) - base["acc"].to_numpy()[place]
        without.append({"estimate": change.mean(), "without_known": change[~known].mean() if (~known).any() else float("nan"), "reason": None})
    return pd.concat([table, pd.DataFrame(without, index=table.index)], axis=1)


def changed_answers(answered: Mapping[str, Answered]) -> pd.DataFrame:
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
