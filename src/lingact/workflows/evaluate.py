"""Did it help, for whom, and is the difference real? Benchmarks and held-out text in every language, base model against adapters, item by item."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from lingact import compare, scores
from lingact.adapters import adapter_hash, check_adapter, load_adapter, unload_adapter
from lingact.bits import Nats, base_bits, bits_table, sentence_nats
from lingact.config import EvalConfig
from lingact.corpus import ParallelCorpus, load_corpus
from lingact.errors import UserError
from lingact.figures import evaluation as figures
from lingact.harness import Answers, EvalRun, Scorer, batch_size_for, identity_of, results
from lingact.inference import check_enough
from lingact.leakage import leakage_table, training_text
from lingact.lm import LanguageModel, load_model
from lingact.paired import How
from lingact.recipes import Candidate, Recipe, find_recipes
from lingact.report import evaluation as report
from lingact.tasks import Placed, Tasks, load_tasks
from lingact.terminal import note, show
from lingact.tracking import Run, open_run, write_atomically, write_json

BASE = "base"


@dataclass(frozen=True)
class Answered:
    """What one model did."""

    run: EvalRun
    nats: Nats
    """Empty where no text was read."""


def run(config: EvalConfig, folder: Path) -> float | None:
    """Ask the base model and every adapter the same questions, compare their answers, and write tables, figures and a report into the run folder.

    A finished task is kept at once, so that an interrupted run goes on behind it.

    Returns:
        The difference in accuracy, mean over the languages; None for the base model alone, or several recipes.

    Raises:
        UserError: a task, the text, the model or an adapter is missing or does not fit. All is found out before the first question.
    """
    with open_run("eval", config, config.tracking, folder) as run:
        recipes = find_recipes(config.adapter)
        tasks = load_tasks(config.tasks, config.languages.all)
        text = held_out_text(config)
        lm = load_model(config.model, config.device)
        for recipe in recipes:
            for candidate in recipe.candidates:
                check_adapter(lm.model, candidate.given, base_sha256=lm.identity["sha256"])
        run.identify(model=lm.identity, tasks=tasks.identity, **({} if text is None else {"text": {"name": text.name, "sha256": text.sha256}}))
        answered = ask_everyone(config, run, lm, tasks, text, recipes)
        save_samples(folder, tasks.placed, answered, config)
        return conclude(run, config, tasks, text, recipes, answered)


def held_out_text(config: EvalConfig) -> ParallelCorpus | None:
    """The aligned sentences for bits per byte."""
    if config.text_split is None:
        return None
    corpus = load_corpus(config.corpus, config.languages.all).split(config.text_split, config.corpus.splits)
    check_enough(len(corpus.ids))
    return corpus


def ask_everyone(
    config: EvalConfig, run: Run, lm: LanguageModel, tasks: Tasks, text: ParallelCorpus | None, recipes: Sequence[Recipe]
) -> dict[str, Answered]:
    """Name -> what that model answered: the base model and every adapter, one after the other on the one model in memory."""
    answers = Answers((config.cache or run.folder) / "answers")
    batch_size = batch_size_for(lm, tasks.placed) if config.tasks.batch_size == "auto" else config.tasks.batch_size
    candidates = [candidate for recipe in recipes for candidate in recipe.candidates]
    options = sum(len(placed.requests) for placed in tasks.placed)
    found: dict[str, Answered] = {}
    with tqdm(total=options * (1 + len(candidates)), unit=" options", leave=False, dynamic_ncols=True, smoothing=0.1) as bar:
        scorer = Scorer(lm, batch_size, answers, bar)
        for candidate, sha256 in _in_turn(lm, candidates):
            name = BASE if candidate is None else candidate.name
            if candidate is not None:
                part = "adapter" if len(candidates) == 1 else f"adapter {name}"
                run.identify(**{part: {"name": candidate.given, "sha256": sha256}})
            bar.set_description(name)
            scored = scorer.score(lm.model, tasks.placed, sha256)
            found[name] = Answered(scored, _nats(config, lm, text, sha256, answers, name))
    if scorer.batch_size < batch_size:
        note(f"out of memory with {batch_size} options at a time; went on with {scorer.batch_size}")
    return found


def _in_turn(lm: LanguageModel, candidates: Sequence[Candidate]) -> Iterator[tuple[Candidate | None, str | None]]:
    """The base model, then each adapter, which `lm` carries while it is its turn; with the hash of its weights."""
    yield None, None
    for candidate in candidates:
        wrapped = load_adapter(lm.model, candidate.given, base_sha256=lm.identity["sha256"])
        lm.model = wrapped
        try:
            yield candidate, adapter_hash(wrapped)
        finally:
            lm.model = unload_adapter(wrapped)


def _nats(config: EvalConfig, lm: LanguageModel, text: ParallelCorpus | None, adapter: str | None, answers: Answers, name: str) -> Nats:
    """Cross-entropies of the text, kept like the answers to questions."""
    import numpy as np

    if text is None:
        return {}
    identity = identity_of(lm, adapter) | {"text": text.sha256, "batch_tokens": config.batch_tokens}
    kept = answers.recall(identity)
    if kept is None:
        found = sentence_nats(lm, text, batch_tokens=config.batch_tokens, title=f"{name}, text")
        kept = {code: nats.tolist() for code, nats in found.items()}
        answers.keep(identity, kept)
    return {code: np.array(nats) for code, nats in kept.items()}


def save_samples(folder: Path, placed: Sequence[Placed], answered: dict[str, Answered], config: EvalConfig) -> None:
    """`samples/<model>_<task>.jsonl`: what was asked and how each option scored; `results/<model>.json`: the scores in lm-eval's format."""
    for name, each in answered.items():
        for task, records in each.run.samples.items():
            lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
            write_atomically(folder / "samples" / f"{name}_{task}.jsonl", lines)
        model = {"model": "hf", "model_args": f"pretrained={config.model.name},dtype={config.model.dtype}", "limit": config.tasks.limit}
        write_json(folder / "results" / f"{name}.json", results(placed, each.run, model | {"adapter": name}))


# --- what it says --------------------------------------------------------------------------------------------------------------------------------


def conclude(
    run: Run, config: EvalConfig, tasks: Tasks, text: ParallelCorpus | None, recipes: Sequence[Recipe], answered: dict[str, Answered]
) -> float | None:
    """Tables, figures, summary, report and the printed answer.

    Returns:
        As `run`.
    """
    how = How(resamples=config.resamples, confidence=config.confidence, power=config.power, seed=config.seed)
    tables = tables_of(config, tasks, text, recipes, answered, how)
    for name, frame in tables.items():
        run.table(name, frame)
    run.artifact("samples", "samples", run.folder / "samples")
    summary = scores.summary(tables["accuracy"], tables.get("differences"), tables.get("bits"), [recipe.label for recipe in recipes])
    run.summary(summary)
    notices = report.notices(config, tasks, answered[BASE].run.truncated, tables)
    written = tell(run, config, tables, notices, recipes)
    show([{"run folder": str(run.folder), "report": str(written)}])
    return summary.get("acc/all/all/delta")


def tables_of(
    config: EvalConfig, tasks: Tasks, text: ParallelCorpus | None, recipes: Sequence[Recipe], answered: dict[str, Answered], how: How
) -> dict[str, pd.DataFrame]:
    """All tidy tables by name."""
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


def changed_answers(answered: dict[str, Answered]) -> pd.DataFrame:
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


def tell(run: Run, config: EvalConfig, tables: dict[str, pd.DataFrame], notices: Sequence[str], recipes: Sequence[Recipe]) -> Path:
    """The page and the terminal's tables."""
    accuracy, differences = tables["accuracy"], tables.get("differences")
    sections = [report.accuracy_section(tables, run.figure("accuracy", figures.accuracy_figure(accuracy, confidence=config.confidence)))]
    if differences is None:
        rows, title = scores.accuracy_rows(accuracy), f"Accuracy of the base model, {config.confidence:.0%} interval (Wilson)"
        show(rows, title=title)
    for recipe in recipes:
        own = {name: frame[frame["model"] == recipe.label] for name, frame in tables.items() if name in ("differences", "bits", "leakage", "changed")}
        name = "differences" if len(recipes) == 1 else f"differences_{recipe.label}"
        drawn = run.figure(name, figures.difference_figure(own["differences"], config.languages, confidence=config.confidence, power=config.power))
        sections.append(report.difference_section(recipe.label, len(recipe.candidates), own, name, drawn, config))
        rows = scores.difference_rows(own["differences"], own.get("bits"))
        show(rows, title=report.difference_title(recipe.label, len(recipe.candidates), config))
    written = report.write_evaluation(run.folder, config, [*sections, report.data_section(tables)], notices, differences)
    for notice in notices:
        note(notice)
    return written
