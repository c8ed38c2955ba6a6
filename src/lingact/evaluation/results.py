"""The tables of an evaluation: accuracies, differences, contamination, bits per byte. Answers in, tidy tables out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from lingact.config.jobs import EvalConfig
from lingact.data.corpus import ParallelCorpus
from lingact.errors import UserError
from lingact.evaluation import compare, scores
from lingact.evaluation.bits_per_byte import Nats, base_bits, bits_table, corrected
from lingact.evaluation.contamination import contamination_table, training_corpus, training_text
from lingact.evaluation.recipes import Recipe
from lingact.evaluation.records import EvalRun, Record
from lingact.evaluation.tasks import TaskInstance, Tasks
from lingact.statistics.paired import TestSettings

BASE, TEXT = "base", "text"


@dataclass(frozen=True)
class EvaluationData:
    """The questions and the text that every model is scored on."""

    tasks: Tasks
    text: ParallelCorpus | None
    """Held-out sentences for bits per byte."""


@dataclass(frozen=True)
class ModelAnswers:
    """The answers of one model, and its cross-entropies on the text."""

    run: EvalRun
    nats: Nats
    """Empty without a text."""


def result_tables(
    config: EvalConfig, data: EvaluationData, recipes: Sequence[Recipe], answered: Mapping[str, ModelAnswers]
) -> dict[str, pd.DataFrame]:
    """All tidy tables by name.

    Args:
        config: of the run.
        data: the questions and the text.
        recipes: that are compared with the base model.
        answered: model -> its answers; the models are `BASE` and every adapter of the recipes.
    """
    settings = TestSettings(resamples=config.resamples, confidence=config.confidence, power=config.power, seed=config.seed, block=config.block)
    tasks, text = data.tasks, data.text
    base = answered[BASE].run.items
    groups = {"high": config.languages.high, "low": config.languages.low}
    accuracy = [compare.accuracy_table(each.run.items, model=name, confidence=config.confidence) for name, each in answered.items()]
    bootstrap = {"resamples": config.resamples, "confidence": config.confidence, "seed": config.seed}
    frames = {
        "benchmarks": benchmark_table(tasks.instances),
        "accuracy": pd.concat(accuracy, ignore_index=True),
        "groups": pd.concat(
            [compare.group_table(each.run.items, groups, model=name, **bootstrap) for name, each in answered.items()], ignore_index=True
        ),
    }
    frames["scores"] = scores.score_table(frames["accuracy"])
    if config.sae is not None:
        frames["prompt_activations"] = prompt_activations(answered)
    if text is not None:
        frames["text"] = base_bits(answered[BASE].nats, text, settings)
    if not recipes:
        return frames
    differences, bits, contamination = [], [], []
    for recipe in recipes:
        own = [answered[adapter.name] for adapter in recipe.adapters]
        pooled = {"all": config.languages.all, **groups}
        if not any(set(recipe.targets) == set(codes) for codes in pooled.values()):  # the same languages twice would be two tests of one thing
            pooled["targets"] = recipe.targets
        table = compare.difference_table(base, [each.run.items for each in own], groups=pooled, settings=settings)
        differences.append(table.assign(model=recipe.label))
        if text is not None:
            bits.append(bits_table(answered[BASE].nats, [each.nats for each in own], text, pooled, settings).assign(model=recipe.label))
        contamination.append(contamination_of(config, data, recipe, base, [each.run.items for each in own]).assign(model=recipe.label))
    # Corrected over all recipes, because each of them is another test.
    frames["differences"] = compare.corrected(pd.concat(differences, ignore_index=True))
    frames["contamination"] = pd.concat(contamination, ignore_index=True)
    frames["changed"] = changed_answers(answered)
    return frames | ({"bits": corrected(pd.concat(bits, ignore_index=True))} if bits else {})


def contamination_of(config: EvalConfig, data: EvaluationData, recipe: Recipe, base: pd.DataFrame, adapters: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """How many items overlap with the recipe's training text, and the difference in accuracy without them.

    One row per benchmark and language. `reason` says why the training text could not be read. The rows of the benchmark `text` count the held-out
    sentences that were trained on.

    Args:
        config: of the run.
        data: the questions and the text.
        recipe: whose training text is read.
        base: item table of the base model.
        adapters: item tables of the recipe's adapters.
    """
    training = recipe.adapters[0].training
    if training is None:
        return pd.DataFrame([{"corpus": "unknown", "reason": "the adapter does not come with the configuration of its training"}])
    corpus = training_corpus(training)
    name = str(corpus.get("dataset") or corpus.get("path"))
    sentences: Mapping[str, Sequence[str]] = {}
    reason = None
    try:
        sentences = training_text(training).texts
    except UserError as error:
        reason = str(error)
    asked: dict[tuple[str, str], list[str]] = {}
    for instance in data.tasks.instances:
        asked.setdefault((instance.entry.benchmark, instance.entry.language), []).extend(instance.texts)
    table, shares = contamination_table(asked, sentences, name, words=config.contamination.words, share=config.contamination.share)
    without = []
    for benchmark, code in zip(table["benchmark"], table["language"], strict=True):
        place = ((base["benchmark"] == benchmark) & (base["language"] == code)).to_numpy()
        change = sum(frame["acc"].to_numpy()[place] for frame in adapters) / len(adapters) - base["acc"].to_numpy()[place]
        new = shares[benchmark, code] < config.contamination.share if (benchmark, code) in shares else np.full(len(change), False)
        without.append({"estimate": change.mean(), "without_known": change[new].mean() if new.any() else float("nan"), "reason": reason})
    table = pd.concat([table, pd.DataFrame(without, index=table.index)], axis=1)
    if data.text is not None and sentences:
        trained = {code: set(sentences[code]) for code in data.text.texts if code in sentences}
        counts = {code: sum(sentence in known for sentence in data.text.texts[code]) for code, known in trained.items()}
        rows = [{"benchmark": TEXT, "language": code, "corpus": name, "n": len(data.text.ids), "whole": count} for code, count in counts.items()]
        table = pd.concat([table, pd.DataFrame(rows)], ignore_index=True)
    return table


def changed_answers(answered: Mapping[str, ModelAnswers]) -> pd.DataFrame:
    """The items on which the base model and an adapter differ, with the answer of each."""
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


def prompt_activations(answered: Mapping[str, ModelAnswers]) -> pd.DataFrame:
    """Activation and residual norm of each prompt, beside its score: a row for each model, document, layer and SAE set.

    `margin` is the log-likelihood of the right option minus that of the best other one, in nats.
    """
    rows = []
    for name, each in answered.items():
        records = [record for own in each.run.samples.values() for record in own]
        whose = each.run.items[["task", "benchmark", "language"]].to_dict("records")
        for place, record in zip(whose, records, strict=True):
            found = record.get("activations")
            assert found is not None
            score = {"doc_id": record["doc_id"], "item": record["item"], "acc": record["acc"], "margin": _margin(record), "tokens": found["tokens"]}
            for sae_set, by_layer in found["activation"].items():
                for layer, activation in by_layer.items():
                    measured = {"activation": activation, "residual_norm": found["residual_norm"][layer]}
                    rows.append({"model": name} | place | score | {"sae_set": sae_set, "layer": int(layer)} | measured)
    return pd.DataFrame(rows)


def _margin(record: Record) -> float:
    gold, scores = record["gold"], record["loglikelihood"]
    if isinstance(gold, str) and gold in record["choices"]:
        gold = record["choices"].index(gold)
    if not isinstance(gold, int) or not 0 <= gold < len(scores) or len(scores) == 1:
        return float("nan")
    return scores[gold] - max(score for place, score in enumerate(scores) if place != gold)


def _likeliest(record: Record) -> int:
    return max(range(len(record["loglikelihood"])), key=record["loglikelihood"].__getitem__)


def _option(record: Record, place: int | str | list[int] | list[str]) -> str:
    return record["choices"][place].strip() if isinstance(place, int) else str(place)


def benchmark_table(instances: Sequence[TaskInstance]) -> pd.DataFrame:
    """One row per task: data set, licence, who wrote it, and how many of its items were asked."""
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
