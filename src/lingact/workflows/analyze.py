"""analyze.py: measure the activation of SAE features for every language and layer, with intervals, controls and confounds."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from lingact.activations.measurement import ADAPTER, BASE, NORM_MATCHED, Measurement, is_random, load_measurement, refuse_blocks_without_places
from lingact.activations.passes import lost_sentence
from lingact.analysis.changes import Variants
from lingact.analysis.contrasts import Trained, has_adapter, recipe_table
from lingact.analysis.control_tables import mean_rows
from lingact.analysis.correlation import refuse_few_languages
from lingact.analysis.measures import StatsByLanguage
from lingact.analysis.score_files import read_scores
from lingact.analysis.tables import range_table
from lingact.config.jobs import AnalyzeConfig, Processes
from lingact.config.measures import BY_REFERENCE
from lingact.config.validation import validate
from lingact.errors import UserError
from lingact.evaluation.recipes import find_recipes
from lingact.files.records import read_run_config
from lingact.models.adapter_sources import expand_adapters, find_adapter
from lingact.models.preflight import check_analysis
from lingact.report.analysis_result import AnalysisResult, ReportSettings
from lingact.report.attribution import attribution_result
from lingact.report.changes import change_result
from lingact.report.confounds import confound_result
from lingact.report.controls import control_result, random_gap_result
from lingact.report.correlation import score_result
from lingact.report.features import feature_result
from lingact.report.gaps import gap_result
from lingact.report.interventions import causal_result
from lingact.report.measures import measure_result
from lingact.report.page import Section, measured_facts, write_report
from lingact.report.phrases import cautions_of, name_of, reading_gaps, text_of
from lingact.report.recipes import recipe_result
from lingact.report.reviewer import reviewer_table
from lingact.report.similarity import similarity_result
from lingact.runtime.program import program
from lingact.runtime.terminal import note, show
from lingact.runtime.tracking import Run, first_process, open_run, read_manifest
from lingact.workflows.observe import Observations, causal_places, criteria, observe, spliced_places, stored_observations
from lingact.workflows.setup import MEASURING


def run(config: AnalyzeConfig, folder: Path) -> None:
    """Measure every language, or read stored statistics; compare it with the reference; write tables, figures and a report.

    Raises:
        UserError: something is missing or does not fit. Scores and languages are checked before anything is measured.
    """
    check_analysis(config)
    if (config.compare or config.stats) and not first_process():
        return None  # there is no work to divide
    if config.compare:
        return compare(config, folder)
    config = as_measured(config)
    scores = read_scores(config.scores) if config.scores else None
    if scores is not None:
        refuse_few_languages(scores, (*config.languages.high, *config.languages.low))
    with open_run("analyze", config, config.tracking, folder) as run:
        if config.stats:
            seen = stored_observations(config.stats, config)
            run.identify(**read_manifest(config.stats[0])["identity"])
        else:
            seen = observe(run, config)
        if not run.first:
            return None
        if config.shard != (0, 1):
            run.summary({})
            show([{"shard": f"{config.shard[0] + 1} of {config.shard[1]}", "statistics": str(folder / "stats")}])
            return None
        results = list(analysis_results(config, seen, scores))
        warnings = (lost_sentence(seen.measured.lost(), config.model.dtype), scores_of_another_model(config.scores, folder))
        publish(run, config, results, seen.measured, warning=" ".join(text for text in warnings if text))
        if config.adapter is not None and config.split in ("all", "train"):
            note(f"split={config.split} contains sentences that the adapter may have been trained on; split=heldout leaves them out")
        return None


def scores_of_another_model(scores: Sequence[Path], folder: Path) -> str:
    """A sentence that names the evaluation runs of another model than the measured one; empty if there are none. Files of scores are not checked."""

    def model(run: Path) -> dict[str, str]:
        return read_manifest(run).get("identity", {}).get("model", {})

    here, others = model(folder), []
    for path in scores:
        asked = model(path) if (path / "manifest.json").is_file() else here
        # The hash is of the loaded weights, so that it depends on the dtype.
        key = "sha256" if asked.get("dtype") == here.get("dtype") else "name"
        others += [str(path)] if asked.get(key) != here.get(key) else []
    return f"The scores in {', '.join(others)} belong to another model than the one whose gaps were measured." if others else ""


def as_measured(config: AnalyzeConfig) -> AnalyzeConfig:
    """With `stats`: the configuration of the run that measured, with the settings of this command for statistics, gap measure and scores.

    Raises:
        UserError: the folder is not a run of analyze.py, or the run has not measured what the gap measure needs.
    """
    if not config.stats:
        return config
    path = config.stats[0] / "config.yaml"
    if not path.is_file() or read_manifest(config.stats[0])["job"] != "analyze":
        raise UserError(f"stats: '{config.stats[0]}' is not a run of {program('analyze')}; name the run folders whose statistics to use")
    saved = read_run_config(path, "put it back, or analyse again", needed=("measures",))
    given, gap = config.model_dump(mode="json"), config.measures.gap
    if gap in BY_REFERENCE and "by_reference" not in saved["measures"]["parts"]:
        raise UserError(
            f"measures.gap={gap}: the run in '{config.stats[0]}' did not measure the part by_reference, which it needs; choose another measure, or "
            "measure again with measures.parts=[by_reference]"
        )
    chosen = {name: given[name] for name in ("seed", "statistics", "scores", "stats", "tracking", *Processes.model_fields)} | {"shard": "1/1"}
    return validate(AnalyzeConfig, saved | chosen | {"measures": saved["measures"] | {"gap": gap}})


def analysis_results(config: AnalyzeConfig, seen: Observations, scores: pd.DataFrame | None) -> Iterator[AnalysisResult]:
    """The results subject by subject, in the order of the report."""
    settings = ReportSettings(config.languages, config.statistics, config.seed)
    measured, measures = seen.measured, config.measures
    by_sae_set: dict[str, StatsByLanguage] = {sae_set: measured.of(sae_set, BASE) for sae_set in measured.sae_sets}
    stats = by_sae_set[MEASURING]
    found, ranges = {}, {}
    for sae_set, own in by_sae_set.items():
        if not is_random(sae_set):
            result, found[sae_set] = gap_result(own, sae_set, settings, measure=measures.gap, suffix="" if sae_set == MEASURING else f"_{sae_set}")
            ranges[sae_set] = range_table(found[sae_set])
            yield result if sae_set == MEASURING else _with_prefix(result, sae_set)
    random = [own for sae_set, own in by_sae_set.items() if is_random(sae_set)]
    if random:
        result = random_gap_result(random, found[MEASURING], settings, measure=measures.gap)
        ranges["random"] = mean_rows(result.frames["gap_by_range_random"])
        yield result
    yield measure_result(stats, settings)
    first = stats[config.languages.reference]
    spliced = None if seen.spliced is None else (seen.spliced, spliced_places(config, first.sentence_ids))
    yield confound_result(stats, spliced, settings, after=seen.spliced_after)
    yield control_result(ranges, by_sae_set, settings, measure=measures.gap, shuffled="shuffled_labels" in measures.parts)
    similarity = None
    if measured.vectors:
        similarity = similarity_result(measured.vectors, stats, settings)
        yield similarity
    if seen.features is not None:
        cards = (seen.contexts or [], seen.links or {}, measures.features.cards)
        yield feature_result(seen.features, cards, stats, settings, criteria(measures.features))
    if seen.attribution is not None:
        yield attribution_result(seen.attribution, first, settings)
    if seen.causal is not None:
        places = causal_places(config, first.sentence_ids, first.halves)
        yield causal_result(seen.causal, settings.resampling(stats, places), measures.causal.mode, settings, after=seen.causal_after)
    if scores is not None:
        shares = config.model.training_shares
        yield score_result(found[MEASURING], scores, similarity.frames["similarity"] if similarity else None, stats, settings, shares)
    if ADAPTER in measured.variants:
        layers = stats[config.languages.reference].layers
        variants = {sae_set: Variants.of(measured, sae_set) for sae_set in measured.sae_sets if not is_random(sae_set)}
        yield change_result(variants, measured, layers, settings)


def _with_prefix(result: AnalysisResult, sae_set: str) -> AnalysisResult:
    """The gaps by SAEs that check the measuring ones: their summary keys begin with the name of the set of SAEs."""
    return replace(result, summary={f"{sae_set}/{key}": value for key, value in result.summary.items()})


def publish(run: Run, config: AnalyzeConfig, results: list[AnalysisResult], measured: Measurement, *, warning: str, title: str = "") -> None:
    """Write tables, figures, the summary and the page; print the tables for the terminal.

    Args:
        run: the open run.
        config: its configuration.
        results: in the order of the page.
        measured: the statistics that they are computed from.
        warning: stands first on the page and is printed; empty: none.
        title: of the page.
    """
    first = next(iter(measured.stats.values()))
    sections, summary = [], {}
    for result in results:
        for name, frame in result.frames.items():
            run.table(name, frame)
        paths = {name: run.figure(name, figure) for name, figure in result.figures.items()}
        sections.append(Section(result.heading, paths, result.shown, result.text, result.cards))
        summary |= result.summary
    run.summary(summary)
    windows = {code: float(measured.stats[key].windows.mean()) for key in measured.stats if (code := key[2])}
    resampling = first.resampling(config.statistics.block)
    reviewer = reviewer_table(config, resampling, heldout="heldout" in measured.sae_sets, windows=windows)
    sections.append(Section("What a reviewer would ask", {}, {"Question and answer": reviewer}))
    lead = "\n\n".join(text for text in (warning, *(result.lead for result in results)) if text)
    title = title or f"Activation gaps against {name_of(config.languages.reference)}"
    facts = measured_facts(run.folder, config, first.header, resampling)
    page = write_report(run.folder, title, lead, sections, facts, reading=reading_gaps(config.statistics, resampling, config.measures.gap))
    for result in results:
        for caption, table in result.printed.items():
            show([{str(name): cell for name, cell in row.items()} for row in table.to_dict("records")], title=f"{caption}, {text_of(resampling)}")
    for caution in (*([warning] if warning else ()), *cautions_of(resampling, config.statistics.block)):
        note(caution)
    show([{"run folder": str(run.folder), "report": str(page)}])


# --- two runs ------------------------------------------------------------------------------------------------------------------------------------


def compare(config: AnalyzeConfig, folder: Path) -> None:
    """Compare two runs, before and after, from their stored statistics; or compare recipes, if every run has measured an adapter.

    Raises:
        UserError: the runs did not measure the same sentences with the same SAEs, or one holds only a shard.
    """
    if len(config.compare) != 2 or any((path / ".jobs").is_dir() for path in config.compare) or all(map(has_adapter, config.compare)):
        compare_recipes(config, folder)
        return
    (before, first), (after, second) = (load_measurement(path / "stats") for path in config.compare)
    for path, (place, count) in zip(config.compare, (first, second), strict=True):
        if count > 1:
            raise UserError(f"compare: '{path}' contains only shard {place + 1} of {count}; compare complete runs, measured without shard=")
    paths = (str(config.compare[0]), str(config.compare[1]))
    refuse_incomparable(before, after, paths)
    refuse_blocks_without_places(before, config.statistics.block, paths[0])
    adapted = ADAPTER in after.variants
    by_sae_set = {}
    for sae_set in (sae_set for sae_set in before.sae_sets if sae_set in after.sae_sets and not is_random(sae_set)):
        changed = after.of(sae_set, ADAPTER if adapted else BASE)
        # The divergence of a base model from itself says nothing about the step between two runs.
        changed = changed if adapted else {code: replace(stats, kl=None) for code, stats in changed.items()}
        by_sae_set[sae_set] = Variants(before.of(sae_set, BASE), changed, after.of(sae_set, NORM_MATCHED) if adapted else None)
    missing = [code for code in config.languages.all if code not in before.languages]
    if missing:
        raise UserError(
            f"compare: {', '.join(missing)} not measured in '{paths[0]}' ({', '.join(before.languages)} are); choose others with languages=..."
        )
    with open_run("analyze", config, config.tracking, folder) as run:
        run.identify(before={"name": paths[0]}, after={"name": paths[1]}, sae=read_manifest(config.compare[0])["identity"]["sae"])
        settings = ReportSettings(config.languages, config.statistics, config.seed)
        result = change_result(by_sae_set, None, next(iter(before.stats.values())).layers, settings)
        saved = read_run_config(config.compare[0] / "config.yaml", "put it back, or analyse again", needed=("model",))
        lost = lost_sentence(dict.fromkeys([*before.lost(), *after.lost()]), saved["model"]["dtype"])
        publish(run, config, [result], before, warning=lost, title=f"From {config.compare[0].name} to {config.compare[1].name}")


def compare_recipes(config: AnalyzeConfig, folder: Path) -> None:
    """Compare training recipes with each other, on the sentences on which their adapters were measured.

    Raises:
        UserError: a run has not measured an adapter, there is only one recipe, or the runs were not measured in the same way.
    """
    trained = find_trained([str(path) for path in config.compare])
    recipes = list(dict.fromkeys(run.recipe for run in trained))
    if len(recipes) < 2:
        raise UserError(f"compare: all {len(trained)} runs are of one recipe: they differ only in the seed; name runs of at least two recipes")
    table = recipe_table(trained, config.languages, config.statistics, config.seed)
    if table.empty:
        raise UserError("compare: no two of these recipes were trained for the same languages, so there is nothing to compare")
    first, _ = load_measurement(trained[0].folder / "stats")
    with open_run("analyze", config, config.tracking, folder) as run:
        run.identify(recipes={str(place): {"name": each.recipe, "release": str(each.folder)} for place, each in enumerate(trained)})
        results = [recipe_result(table, config.statistics.confidence)]
        publish(run, config, results, first, warning="", title=f"{len(recipes)} training recipes compared")


def find_trained(given: list[str]) -> list[Trained]:
    """The adapters of runs and sweeps, with their recipes.

    Raises:
        UserError: a sweep has no complete training job, or a run has not measured an adapter or is given twice.
    """
    folders = [Path(name) for name in expand_adapters(given)]
    without = [str(path) for path in folders if not has_adapter(path)]
    if without:
        listed = ", ".join(f"'{name}'" for name in without)
        raise UserError(
            f"compare: no adapter was measured in {listed}; give two runs, before and after, or runs and sweeps of {program('train')} "
            "to compare their recipes"
        )
    places = {}
    for path in folders:
        given_adapter = read_run_config(path / "config.yaml", "put it back").get("adapter")
        places[str(path)] = path / "adapter" if given_adapter is None else find_adapter(given_adapter)
    found = []
    for recipe in find_recipes(places):
        for adapter in recipe.adapters:
            layers = ((adapter.training or {}).get("loss") or {}).get("gap", {}).get("layers", "all")
            chosen = "all" if layers == "all" else tuple(int(layer) for layer in layers)
            found.append(Trained(recipe.label, Path(adapter.given), recipe.targets, chosen))
    return found


def refuse_incomparable(before: Measurement, after: Measurement, paths: tuple[str, str]) -> None:
    """Check that both measurements have the same sentences and SAEs; the model, or its adapter, may differ.

    Raises:
        UserError: they differ; the message says in what.
    """
    one, other = (next(iter(measurement.stats.values())) for measurement in (before, after))
    free = {"adapter", "batch_tokens", "sae_set", "variant", "language"} | ({"model"} if ADAPTER not in after.variants else set())
    keys = sorted(key for key in (one.header.keys() | other.header.keys()) - free if not is_random(key.removeprefix("sae/")))
    differing = [key for key in keys if one.header.get(key) != other.header.get(key)]
    # Other languages also change the corpus. Naming the languages says more.
    same = {
        "languages": before.languages == after.languages,
        "sentences": one.sentence_ids == other.sentence_ids,
        "layers": one.layers == other.layers,
    }
    differing = [*(name for name, equal in same.items() if not equal), *differing]
    if differing:
        raise UserError(
            f"compare: '{paths[0]}' and '{paths[1]}' differ in {', '.join(dict.fromkeys(differing))}; a comparison needs the same sentences, "
            "languages, layers and SAEs"
        )
