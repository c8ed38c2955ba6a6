"""eval.py: score the base model and adapters on benchmarks and held-out text, and compare them item by item."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from lingact.config.jobs import EvalConfig
from lingact.data.corpus import ParallelCorpus
from lingact.data.sources import load_corpus
from lingact.errors import UserError
from lingact.evaluation import scores
from lingact.evaluation.answers import AnswerCache, identity_of
from lingact.evaluation.bits_per_byte import Nats, lost_nats, sentence_nats
from lingact.evaluation.loglikelihoods import batch_size_for
from lingact.evaluation.prompt_activations import PromptReader
from lingact.evaluation.recipes import Adapter, Recipe, find_recipes
from lingact.evaluation.records import results
from lingact.evaluation.results import BASE, EvaluationData, ModelAnswers, result_tables
from lingact.evaluation.scorer import Scorer
from lingact.evaluation.tasks import TaskInstance, load_tasks
from lingact.figures import evaluation as figures
from lingact.files.atomic import write_atomically, write_json
from lingact.models.adapter_checks import check_adapter
from lingact.models.adapter_hashes import adapter_hash
from lingact.models.adapter_sources import SETTINGS, WEIGHTS, expand_adapters, find_adapter
from lingact.models.adapters import load_adapter, unload_adapter
from lingact.models.lm import LanguageModel, load_model
from lingact.report import evaluation as report
from lingact.report.phrases import cautions_of
from lingact.runtime.distributed import broadcast, process_group, rank
from lingact.runtime.terminal import note, show
from lingact.runtime.tracking import Run, open_run


def run(config: EvalConfig, folder: Path) -> float | None:
    """Score the base model and every adapter on the same questions, compare them, and write tables, figures and a report into the run folder.

    Several processes divide the questions and the text; the first one writes. The answers to a finished task are stored at once, so that an
    interrupted run continues after it.

    Returns:
        The difference in accuracy, mean over the languages; None for the base model alone, or for several recipes.

    Raises:
        UserError: a task, the text, the model or an adapter is missing or does not fit. All is checked before the first question.
    """
    with open_run("eval", config, config.tracking, folder) as run:
        recipes = find_recipes({adapter: find_adapter(adapter) for adapter in expand_adapters(config.adapter)})
        tasks = load_tasks(config.tasks, config.languages.all)
        text = held_out_text(config)
        lm = load_model(config.model, config.device)
        reader = _prompt_reader(run, config, lm)
        adapters = [adapter for recipe in recipes for adapter in recipe.adapters]
        for adapter in adapters:
            check_adapter(lm.model, str(adapter.place), base_sha256=lm.identity["sha256"])
        refuse_copies(adapters)
        run.identify(model=lm.identity, tasks=tasks.identity, **({} if text is None else {"text": {"name": text.name, "sha256": text.sha256}}))
        data = EvaluationData(tasks, text)
        with process_group(config.devices, config.nodes):
            answered = score_models(config, run, lm, data, adapters, reader)
        if not run.first:
            return None
        save_samples(folder, tasks.instances, answered, config)
        return write_results(run, config, data, recipes, answered)


def refuse_copies(adapters: Sequence[Adapter]) -> None:
    """Check that no adapter is given twice: two copies of one adapter would count as two seeds.

    Raises:
        UserError: one is.
    """
    seen: dict[bytes, str] = {}
    for adapter in adapters:
        content = hashlib.sha256((adapter.place / WEIGHTS).read_bytes() + (adapter.place / SETTINGS).read_bytes()).digest()
        if content in seen:
            raise UserError(f"adapter: '{adapter.given}' is the same adapter as '{seen[content]}'; give each adapter once")
        seen[content] = adapter.given


def held_out_text(config: EvalConfig) -> ParallelCorpus | None:
    """The aligned sentences for bits per byte; None if the configuration asks for none."""
    if config.text_split is None:
        return None
    corpus = load_corpus(config.corpus, config.languages.all).split(config.text_split, config.corpus.splits)
    corpus.resampling(config.block).check_enough()
    return corpus


def _prompt_reader(run: Run, config: EvalConfig, lm: LanguageModel) -> PromptReader | None:
    if config.sae is None:
        return None
    from lingact.workflows.setup import load_sae_sets  # imports sae-lens

    sae_sets, saes = load_sae_sets(config.sae, lm)
    run.identify(sae=saes)
    return PromptReader(lm, sae_sets, {sae_set: str(found["sha256"]) for sae_set, found in saes.items()})


def score_models(
    config: EvalConfig, run: Run, lm: LanguageModel, data: EvaluationData, adapters: Sequence[Adapter], reader: PromptReader | None
) -> dict[str, ModelAnswers]:
    """Score the base model and then every adapter, with one model in memory. Returns the answers by name of the model."""
    instances = data.tasks.instances
    answers = AnswerCache(config.cache / "answers" if config.cache else broadcast(run.folder) / "answers")
    batch_size = batch_size_for(lm, instances) if config.tasks.batch_size == "auto" else config.tasks.batch_size
    options = sum(len(each.requests) for each in instances)
    found: dict[str, ModelAnswers] = {}
    with tqdm(total=options * (1 + len(adapters)), unit=" options", leave=False, dynamic_ncols=True, smoothing=0.1) as bar:
        scorer = Scorer(lm, batch_size, answers, bar, reader)
        try:
            for adapter, sha256 in _in_turn(lm, adapters):
                name = BASE if adapter is None else adapter.name
                if adapter is not None:
                    part = "adapter" if len(adapters) == 1 else f"adapter {name}"
                    run.identify(**{part: {"name": adapter.given, "sha256": sha256}})
                bar.set_description(name)
                scored = scorer.score(lm.model, instances, sha256)
                found[name] = ModelAnswers(scored, _nats(config, lm, data.text, sha256, answers, name))
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"the answers to {scorer.kept} of {len(instances) * (1 + len(adapters))} tasks") from None
    if scorer.batch_size < batch_size:
        note(f"out of memory with {batch_size} options at a time; continued with {scorer.batch_size}")
    return found


def _in_turn(lm: LanguageModel, adapters: Sequence[Adapter]) -> Iterator[tuple[Adapter | None, str | None]]:
    """Yield None for the base model, then each adapter, loaded into `lm`, with the hash of its weights."""
    yield None, None
    for adapter in adapters:
        wrapped = load_adapter(lm.model, str(adapter.place), base_sha256=lm.identity["sha256"])
        lm.model = wrapped
        try:
            yield adapter, adapter_hash(wrapped)
        finally:
            lm.model = unload_adapter(wrapped)


def _nats(config: EvalConfig, lm: LanguageModel, text: ParallelCorpus | None, adapter: str | None, answers: AnswerCache, name: str) -> Nats:
    """Cross-entropies of the text, stored like the answers to questions."""
    import numpy as np

    if text is None:
        return {}
    identity = identity_of(lm, adapter) | {"text": text.sha256, "batch_tokens": config.batch_tokens}
    kept = broadcast(answers.get(identity) if rank() == 0 else None)
    if kept is None:
        found = sentence_nats(lm, text, batch_tokens=config.batch_tokens, title=f"{name}, text")
        kept = {code: nats.tolist() for code, nats in found.items()}
        if rank() == 0:
            answers.put(identity, kept)
    return {code: np.array(nats) for code, nats in kept.items()}


def save_samples(folder: Path, instances: Sequence[TaskInstance], answered: dict[str, ModelAnswers], config: EvalConfig) -> None:
    """Write `samples/<model>_<task>.jsonl`, with every question and the scores of its options, and `results/<model>.json` in lm-eval's format."""
    for name, each in answered.items():
        for task, records in each.run.samples.items():
            lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
            write_atomically(_samples(folder, name, task), lines)
        model = {"model": "hf", "model_args": f"pretrained={config.model.name},dtype={config.model.dtype}", "limit": config.tasks.limit}
        write_json(folder / "results" / f"{name}.json", results(instances, each.run, model | {"adapter": name}))


def _samples(folder: Path, name: str, task: str) -> Path:
    return folder / "samples" / f"{name}_{task}.jsonl"


# --- results --------------------------------------------------------------------------------------------------------------------------------


def write_results(run: Run, config: EvalConfig, data: EvaluationData, recipes: Sequence[Recipe], answered: dict[str, ModelAnswers]) -> float | None:
    """Write tables, figures, summary and report, and print the result.

    Returns:
        As `run`.
    """
    tables = result_tables(config, data, recipes, answered)
    for name, frame in tables.items():
        run.table(name, frame)
    run.artifact(("samples",), "samples", [_samples(run.folder, name, task) for name, each in answered.items() for task in each.run.samples])
    summary = scores.summary(tables["accuracy"], tables.get("differences"), tables.get("bits"), [recipe.label for recipe in recipes])
    run.summary(summary)
    notices = report.notices(config, data.tasks, answered[BASE].run.truncated, tables)
    if data.text is not None:
        notices += [f"bits per byte: {caution}" for caution in cautions_of(data.text.resampling(config.block), config.block, "block")]
    if lost := lost_nats({name: each.nats for name, each in answered.items()}, config.model.dtype):
        notices.insert(0, lost)
    written = write_page(run, config, tables, notices, recipes)
    show([{"run folder": str(run.folder), "report": str(written)}])
    return summary.get("acc/all/all/delta", summary.get(f"acc/all/{config.languages.reference}/delta"))


def write_page(run: Run, config: EvalConfig, tables: dict[str, pd.DataFrame], notices: Sequence[str], recipes: Sequence[Recipe]) -> Path:
    """Draw the figures, write the page, and print the tables and notices. Returns the path of the page."""
    accuracy, differences = tables["accuracy"], tables.get("differences")
    sections = []
    if differences is None:
        rows, title = scores.accuracy_rows(accuracy), f"Accuracy of the base model, {config.confidence:.0%} interval (Wilson)"
        show(rows, title=title)
    for recipe in recipes:
        own = {
            name: frame[frame["model"] == recipe.label]
            for name, frame in tables.items()
            if name in ("differences", "bits", "contamination", "changed")
        }
        name = "differences" if len(recipes) == 1 else f"differences_{recipe.label}"
        figure = run.figure(name, figures.difference_figure(own["differences"], config.languages, confidence=config.confidence, power=config.power))
        sections.append(report.difference_section(recipe.label, len(recipe.adapters), own, name, figure, config))
        rows = scores.difference_rows(own["differences"], own.get("bits"))
        show(rows, title=report.difference_title(recipe.label, len(recipe.adapters), config))
    sections.append(report.accuracy_section(tables, run.figure("accuracy", figures.accuracy_figure(accuracy, confidence=config.confidence))))
    written = report.write_evaluation(run.folder, config, [*sections, report.data_section(tables)], notices, differences)
    for notice in notices:
        note(notice)
    return written
