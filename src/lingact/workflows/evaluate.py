"""Did it help? Benchmarks in every language, base model against adapter, item by item."""

import json
from pathlib import Path

import pandas as pd

from lingact import compare, scores
from lingact.adapters import adapter_hash, base_behaviour, find_adapter, load_adapter
from lingact.config import EvalConfig
from lingact.figures import evaluation as figures
from lingact.harness import EvalRun, evaluate, load_tasks
from lingact.lm import load_model
from lingact.report import evaluation as report
from lingact.report.page import Section
from lingact.terminal import show
from lingact.tracking import Run, open_run, write_atomically


def run(config: EvalConfig, folder: Path) -> float | None:
    """Score the base model and the adapter on the same documents, compare them, and write tables and a figure into the run folder.

    Nothing is saved before the last item is scored, so an interrupted run starts over.

    Returns:
        The difference in accuracy, mean over the languages; None for the base model alone.

    Raises:
        UserError: a task, the model or the adapter is missing or does not fit.
    """
    with open_run("eval", config, config.tracking, folder) as run:
        if config.adapter is not None:
            find_adapter(config.adapter)
        benchmarks = {name: benchmark.task for name, benchmark in config.tasks.benchmarks.items()}
        tasks = load_tasks(config.tasks.folder, benchmarks, config.languages.all, config.tasks.kind_column)
        lm = load_model(config.model, config.device)
        model = lm.model if config.adapter is None else load_adapter(lm.model, config.adapter, base_sha256=lm.identity["sha256"])
        adapter = None if config.adapter is None else {"name": config.adapter, "sha256": adapter_hash(model)}  # pyrefly: ignore[bad-argument-type]
        run.identify(model=lm.identity, adapter=adapter)

        scored: dict[str, EvalRun] = {}
        settings = {"context": config.model.context, "batch_size": config.tasks.batch_size, "limit": config.tasks.limit}
        with base_behaviour(model):
            scored["base"] = evaluate(model, lm.tokenizer, tasks, label="base", **settings)
        if config.adapter is not None:
            scored["adapter"] = evaluate(model, lm.tokenizer, tasks, label="adapter", **settings)
        run.identify(tasks=scored["base"].identity())
        save_samples(folder, scored)
        return conclude(run, config, {name: result.items for name, result in scored.items()}, truncated=scored["base"].truncated)


def conclude(run: Run, config: EvalConfig, items: dict[str, pd.DataFrame], *, truncated: int) -> float | None:
    """Tables, figure, summary, report and the printed answer.

    Args:
        items: item table of `base` and, where there is one, of `adapter`.
        truncated: prompts that lost their beginning.

    Returns:
        As `run`.
    """
    chance = {name: benchmark.chance for name, benchmark in config.tasks.benchmarks.items()}
    how_sure = {"resamples": config.resamples, "confidence": config.confidence, "seed": config.seed}
    groups = {"high": config.languages.high, "low": config.languages.low}

    accuracy = pd.concat([compare.accuracy_table(table, model=name, chance=chance, confidence=config.confidence) for name, table in items.items()])
    run.table("accuracy", accuracy)
    run.table("groups", pd.concat([compare.group_table(table, groups, model=name, **how_sure) for name, table in items.items()]))
    part = f"; only the first {config.tasks.limit} items of each task" if config.tasks.limit else ""
    if truncated:
        part += f"; {truncated} prompts cut at {config.model.context} tokens"
    differences = None
    if "adapter" in items:
        differences = compare.difference_table(items["base"], items["adapter"], chance=chance, **how_sure)
        run.table("differences", differences)
        rows = scores.difference_rows(differences)
        drawn = {"differences": run.figure("differences", figures.difference_figure(differences, confidence=config.confidence))}
        title = f"Accuracy, adapter against base, {config.confidence:.0%} interval (paired bootstrap){part}"
    else:
        rows = scores.accuracy_rows(accuracy)
        drawn = {"accuracy": run.figure("accuracy", figures.accuracy_figure(accuracy, confidence=config.confidence))}
        title = f"Accuracy of the base model, {config.confidence:.0%} interval (Wilson){part}"
    run.summary(scores.summary(accuracy, differences))
    page = Section("By language", drawn, {title: pd.DataFrame(rows)})
    written = report.write_evaluation(run.folder, config, [page], differences)
    show(rows, title=title)
    show([{"run folder": str(run.folder), "report": str(written)}])
    if differences is None:
        return None
    pooled = differences[(differences["task"] == compare.ALL) & (differences["kind"] == compare.ALL) & (differences["metric"] == "acc")]
    return float(pooled["estimate"].mean())


def save_samples(folder: Path, scored: dict[str, EvalRun]) -> None:
    """`samples/<base|adapter>_<task>.jsonl`: what was asked and how each option scored."""
    for name, result in scored.items():
        for task, records in result.samples.items():
            lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
            write_atomically(folder / "samples" / f"{name}_{task}.jsonl", lines)
