"""How strongly do the model's features respond to each language, at every layer; how sure are we; and what else could it be?"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lingact.activations.measure import ADAPTER, BASE, NORM_MATCHED, Measurement, load_measurement, lost_sentence, refuse_blocks_without_places
from lingact.activations.random_saes import is_random
from lingact.analysis.changes import Variants
from lingact.analysis.contrasts import Trained, has_adapter, recipe_table
from lingact.analysis.control_tables import mean_rows
from lingact.analysis.correlation import read_scores, refuse_few_languages
from lingact.analysis.measures import Stats
from lingact.analysis.tables import range_table
from lingact.config.jobs import AnalyzeConfig, Processes
from lingact.config.validation import validate
from lingact.errors import UserError
from lingact.evaluation.recipes import find_recipes
from lingact.files.records import read_run_config
from lingact.models.adapter_sources import expand_adapters, find_adapter
from lingact.models.preflight import check_analysis
from lingact.report.analysis_result import AnalysisResult, ReportSettings
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
from lingact.runtime.terminal import note, show
from lingact.runtime.tracking import Run, first_process, open_run, read_manifest
from lingact.workflows.observe import Observations, causal_places, criteria, observe, spliced_places, stored_observations
from lingact.workflows.setup import MEASURING


def run(config: AnalyzeConfig, folder: Path) -> None:
    """Measure every language, or recall what was measured; compare it with the reference; write tables, figures and a report.

    Raises:
        UserError: anything is missing or does not fit; scores and languages are judged before anything is measured.
    """
    check_analysis(config)
    if (config.compare or config.stats) and not first_process():
        return None  # nothing to share
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
        told = list(analysis_results(config, seen, scores))
        said = (lost_sentence(seen.measured.lost(), config.model.dtype), scores_of_another_model(config.scores, folder))
        publish(run, config, told, seen.measured, lost=" ".join(text for text in said if text))
        if config.adapter is not None and config.split in ("all", "train"):
            note(f"split={config.split} has sentences that the adapter may have been trained on; split=heldout leaves them out")
        return None


def scores_of_another_model(scores: Sequence[Path], folder: Path) -> str:
    """Which evaluation runs did not ask the model that was measured, in a sentence; nothing where all did, or where scores come from files."""

    def model(run: Path) -> dict[str, Any]:
        return read_manifest(run).get("identity", {}).get("model", {})

    here, others = model(folder), []
    for path in scores:
        asked = model(path) if (path / "manifest.json").is_file() else here
        # The hash is of the weights as they are loaded.
        told_by = "sha256" if asked.get("dtype") == here.get("dtype") else "name"
        others += [str(path)] if asked.get(told_by) != here.get(told_by) else []
    return f"The scores in {', '.join(others)} are of another model than the one whose gaps were measured." if others else ""


def as_measured(config: AnalyzeConfig) -> AnalyzeConfig:
    """With `stats`: the configuration of the run that measured, judged by this command's statistics, gap measure and scores.

    Raises:
        UserError: the folder is not a run of analyze.py.
    """
    if not config.stats:
        return config
    path = config.stats[0] / "config.yaml"
    if not path.is_file() or read_manifest(config.stats[0])["job"] != "analyze":
        raise UserError(f"stats: '{config.stats[0]}' is not a run of analyze.py; name the run folders whose statistics to use")
    saved = read_run_config(path, "put it back, or analyse again", needed=("measures",))
    given = config.model_dump(mode="json")
    judged = {name: given[name] for name in ("seed", "statistics", "scores", "stats", "tracking", *Processes.model_fields)} | {"shard": "1/1"}
    return validate(AnalyzeConfig, saved | judged | {"measures": saved["measures"] | {"gap": given["measures"]["gap"]}})


def analysis_results(config: AnalyzeConfig, seen: Observations, scores: Any) -> Iterator[AnalysisResult]:
    """The chapters, from what was seen."""
    settings = ReportSettings(config.languages, config.statistics, config.seed)
    measured, measures = seen.measured, config.measures
    by_sae_set: dict[str, Stats] = {sae_set: measured.of(sae_set, BASE) for sae_set in measured.sae_sets}
    stats = by_sae_set[MEASURING]
    found, ranges = {}, {}
    for sae_set, own in by_sae_set.items():
        if not is_random(sae_set):
            section, found[sae_set] = gap_result(own, sae_set, settings, measure=measures.gap, suffix="" if sae_set == MEASURING else f"_{sae_set}")
            ranges[sae_set] = range_table(found[sae_set])
            yield section if sae_set == MEASURING else _aside(section, sae_set)
    drawn = [own for sae_set, own in by_sae_set.items() if is_random(sae_set)]
    if drawn:
        section = random_gap_result(drawn, found[MEASURING], settings, measure=measures.gap)
        ranges["random"] = mean_rows(section.frames["gap_by_range_random"])
        yield section
    yield measure_result(stats, settings)
    first = stats[config.languages.reference]
    spliced = None if seen.spliced is None else (seen.spliced, spliced_places(config, first.sentence_ids))
    yield confound_result(stats, spliced, settings, after=seen.spliced_after)
    yield control_result(ranges, by_sae_set, settings, measure=measures.gap, shuffled="shuffled_labels" in measures.parts)
    alike = None
    if measured.vectors:
        alike = similarity_result(measured.vectors, stats, settings)
        yield alike
    if seen.features is not None:
        cards = (seen.contexts or [], seen.links or {}, measures.features.cards)
        yield feature_result(seen.features, cards, stats, settings, criteria(measures.features))
    if seen.causal is not None:
        places = causal_places(config, first.sentence_ids, first.halves)
        yield causal_result(seen.causal, settings.resampling(stats, places), measures.causal.mode, settings, after=seen.causal_after)
    if scores is not None:
        shares = config.model.training_shares
        yield score_result(found[MEASURING], scores, alike.frames["similarity"] if alike else None, stats, settings, shares)
    if ADAPTER in measured.variants:
        layers = stats[config.languages.reference].layers
        variants = {sae_set: Variants.of(measured, sae_set) for sae_set in measured.sae_sets if not is_random(sae_set)}
        yield change_result(variants, measured, layers, settings)


def _aside(section: AnalysisResult, sae_set: str) -> AnalysisResult:
    """The gaps by SAEs that check the measuring ones: their summary keys carry the meter's name."""
    return replace(section, summary={f"{sae_set}/{key}": value for key, value in section.summary.items()})


def publish(run: Run, config: AnalyzeConfig, told: list[AnalysisResult], measured: Measurement, *, lost: str, title: str = "") -> None:
    """Write every chapter's tables and figures, the summary and the page; print the answer.

    Args:
        lost: what is not finite, and what else has to be said first.
    """
    first = next(iter(measured.stats.values()))
    pages, summary = [], {}
    for section in told:
        for name, frame in section.frames.items():
            run.table(name, frame)
        paths = {name: run.figure(name, figure) for name, figure in section.figures.items()}
        pages.append(Section(section.heading, paths, section.shown, section.text, section.cards))
        summary |= section.summary
    run.summary(summary)
    windows = {code: float(measured.stats[key].windows.mean()) for key in measured.stats if (code := key[2])}
    drawn = first.resampling(config.statistics.block)
    asked = reviewer_table(config, drawn, heldout="heldout" in measured.sae_sets, windows=windows)
    pages.append(Section("What a reviewer would ask", {}, {"Question and answer": asked}))
    lead = "\n\n".join(text for text in (lost, *(section.lead for section in told)) if text)
    title = title or f"Activation gaps against {name_of(config.languages.reference)}"
    facts = measured_facts(run.folder, config, first.header, drawn)
    page = write_report(run.folder, title, lead, pages, facts, reading=reading_gaps(config.statistics, drawn, config.measures.gap))
    for section in told:
        for caption, table in section.printed.items():
            show([{str(name): cell for name, cell in row.items()} for row in table.to_dict("records")], title=f"{caption}, {text_of(drawn)}")
    for caution in (*([lost] if lost else ()), *cautions_of(drawn, config.statistics.block)):
        note(caution)
    show([{"run folder": str(run.folder), "report": str(page)}])


# --- two runs ------------------------------------------------------------------------------------------------------------------------------------


def compare(config: AnalyzeConfig, folder: Path) -> None:
    """What changed from the first run to the second, from their saved statistics; or recipe against recipe, where all have measured an adapter.

    Raises:
        UserError: they did not measure the same sentences with the same SAEs, or only a shard of them.
    """
    if len(config.compare) != 2 or any((path / ".jobs").is_dir() for path in config.compare) or all(map(has_adapter, config.compare)):
        compare_recipes(config, folder)
        return
    (before, first), (after, second) = (load_measurement(path / "stats") for path in config.compare)
    for path, (place, count) in zip(config.compare, (first, second), strict=True):
        if count > 1:
            raise UserError(f"compare: '{path}' holds shard {place + 1} of {count} only; compare runs of the whole, measured without shard=")
    paths = (str(config.compare[0]), str(config.compare[1]))
    refuse_incomparable(before, after, paths)
    refuse_blocks_without_places(before, config.statistics.block, paths[0])
    adapted = ADAPTER in after.variants
    by_sae_set = {}
    for sae_set in (sae_set for sae_set in before.sae_sets if sae_set in after.sae_sets and not is_random(sae_set)):
        changed = after.of(sae_set, ADAPTER if adapted else BASE)
        # The divergence of a base model from itself says nothing of the step between two runs.
        changed = changed if adapted else {code: replace(stats, kl=None) for code, stats in changed.items()}
        by_sae_set[sae_set] = Variants(before.of(sae_set, BASE), changed, after.of(sae_set, NORM_MATCHED) if adapted else None)
    strangers = [code for code in config.languages.all if code not in before.languages]
    if strangers:
        raise UserError(f"compare: {', '.join(strangers)} not measured in '{paths[0]}' ({', '.join(before.languages)} are); choose languages=...")
    with open_run("analyze", config, config.tracking, folder) as run:
        run.identify(before={"name": paths[0]}, after={"name": paths[1]}, sae=read_manifest(config.compare[0])["identity"]["sae"])
        settings = ReportSettings(config.languages, config.statistics, config.seed)
        section = change_result(by_sae_set, None, next(iter(before.stats.values())).layers, settings)
        saved = read_run_config(config.compare[0] / "config.yaml", "put it back, or analyse again", needed=("model",))
        lost = lost_sentence(dict.fromkeys([*before.lost(), *after.lost()]), saved["model"]["dtype"])
        publish(run, config, [section], before, lost=lost, title=f"From {config.compare[0].name} to {config.compare[1].name}")


def compare_recipes(config: AnalyzeConfig, folder: Path) -> None:
    """Trained recipes against each other, on the sentences on which their adapters were judged.

    Raises:
        UserError: a run has no adapter measured, there is one recipe alone, or they were not judged alike.
    """
    trained = find_trained([str(path) for path in config.compare])
    recipes = list(dict.fromkeys(run.recipe for run in trained))
    if len(recipes) < 2:
        raise UserError(f"compare: all {len(trained)} runs are of one recipe, they differ in nothing but the seed; name runs of two recipes at least")
    table = recipe_table(trained, config.languages, config.statistics, config.seed)
    if table.empty:
        raise UserError("compare: no two of these recipes were trained for the same languages, so that there is nothing to compare")
    first, _ = load_measurement(trained[0].folder / "stats")
    with open_run("analyze", config, config.tracking, folder) as run:
        run.identify(recipes={str(place): {"name": each.recipe, "release": str(each.folder)} for place, each in enumerate(trained)})
        told = [recipe_result(table, config.statistics.confidence)]
        publish(run, config, told, first, lost="", title=f"{len(recipes)} training recipes compared")


def find_trained(given: list[str]) -> list[Trained]:
    """The adapters of runs and sweeps, with their recipes.

    Raises:
        UserError: a sweep has no complete training job, a run has measured no adapter, or is given twice.
    """
    folders = [Path(name) for name in expand_adapters(given)]
    without = [str(path) for path in folders if not has_adapter(path)]
    if without:
        listed = ", ".join(f"'{name}'" for name in without)
        raise UserError(
            f"compare: {listed}: no adapter was measured there; give two runs, before and after, or runs and sweeps of train.py, whose recipes to "
            "compare"
        )
    places = {}
    for path in folders:
        adapter = read_run_config(path / "config.yaml", "put it back").get("adapter")
        places[str(path)] = path / "adapter" if adapter is None else find_adapter(adapter)
    found = []
    for recipe in find_recipes(places):
        for candidate in recipe.candidates:
            layers = ((candidate.training or {}).get("loss") or {}).get("gap", {}).get("layers", "all")
            chosen = "all" if layers == "all" else tuple(int(layer) for layer in layers)
            found.append(Trained(recipe.label, Path(candidate.given), recipe.targets, chosen))
    return found


def refuse_incomparable(before: Measurement, after: Measurement, paths: tuple[str, str]) -> None:
    """Raise unless both cover the same sentences with the same SAEs; the model, or its adapter, may differ.

    Raises:
        UserError: with what differs.
    """
    one, other = (next(iter(measurement.stats.values())) for measurement in (before, after))
    free = {"adapter", "batch_tokens", "sae_set", "variant", "language"} | ({"model"} if ADAPTER not in after.variants else set())
    keys = sorted(key for key in (one.header.keys() | other.header.keys()) - free if not is_random(key.removeprefix("sae/")))
    differing = [key for key in keys if one.header.get(key) != other.header.get(key)]
    # Other languages make another corpus, too; that they differ says more.
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
