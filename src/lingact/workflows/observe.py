"""Everything that analyze.py needs the model for: passes over text, stored in the run's `stats/` folder so that an interrupted run continues."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from lingact.activations.attribution import attributed
from lingact.activations.attribution_sums import AttributionSums
from lingact.activations.contexts import Context, load_contexts, neuronpedia_url, random_token_rates, save_contexts, strongest_contexts
from lingact.activations.edited_losses import NAMED, Arm, CausalLosses, Kind, SplicedLosses
from lingact.activations.feature_stats import CONFIRMATION, DISCOVERY, FeatureStats
from lingact.activations.interventions import Intervention, causal_losses, matched_random, spliced_losses
from lingact.activations.measurement import ADAPTER, BASE, Measurement, is_random, load_measurement, random_sae_set, refuse_blocks_without_places
from lingact.activations.passes import Wanted, measure, reference_statistics
from lingact.activations.random_saes import SAMPLE_TOKENS, pooled_sample, random_dictionaries
from lingact.analysis.language_features import Criteria, chosen_latents, find_features
from lingact.analysis.measures import available
from lingact.analysis.similarity import diffmean_directions
from lingact.analysis.tables import named_ranges
from lingact.config.choices import check_causal
from lingact.config.jobs import AnalyzeConfig
from lingact.config.measures import FeaturesConfig
from lingact.data.corpus import ParallelCorpus, sample_places
from lingact.data.sources import load_corpus
from lingact.errors import UserError
from lingact.files.atomic import write_json
from lingact.files.earlier import RENAMED_FOLDERS
from lingact.files.records import read_json
from lingact.files.states import load_state
from lingact.models.adapter_hashes import adapter_hash
from lingact.models.adapters import base_behaviour, load_adapter
from lingact.models.lm import LanguageModel
from lingact.models.sae import Dictionaries
from lingact.runtime.distributed import broadcast, process_group, rank
from lingact.runtime.tracking import Run
from lingact.statistics.bootstrap import Resampling
from lingact.workflows.setup import MEASURING, ComparedSet, Components, compared_sets, set_up

_NAMES = {"random_rates": "random_tokens.safetensors", "spliced": "spliced.safetensors", "causal": "causal.safetensors", "contexts": "contexts.json"}
_ATTRIBUTION = "attribution"


@dataclass(frozen=True)
class Observations:
    """The results of the passes. None: not asked for."""

    measured: Measurement
    features: dict[str, pd.DataFrame] | None = None
    """Set of SAEs (measuring, and draws of random directions) -> `language_features.find_features`."""
    contexts: list[Context] | None = None
    links: dict[tuple[int, int], str] | None = None
    """(layer, latent) -> its page at Neuronpedia, for the features that have contexts."""
    spliced: SplicedLosses | None = None
    causal: CausalLosses | None = None
    spliced_after: SplicedLosses | None = None
    """`spliced` and `causal` for the adapted model; None without an adapter."""
    causal_after: CausalLosses | None = None
    attribution: AttributionSums | None = None


def observe(run: Run, config: AnalyzeConfig) -> Observations:
    """Measure every language, and make the other passes of `measures.parts`. Several processes divide the passes, and each returns all results.

    Raises:
        UserError: something is missing or does not fit.
    """
    whole = load_corpus(config.corpus, config.languages.all)
    corpus = whole.split(config.split, config.corpus.splits)
    _check_enough(config, corpus.ids, corpus.halves, corpus.resampling(config.statistics.block))
    components = set_up(run, config, whole)
    compared = compared_sets(run, config, components)
    named_ranges(components.layers, config.statistics)
    check_causal(config, components.layers, {layer: sae.width for layer, sae in components.sae_sets[MEASURING].items()})
    for texts in corpus.texts.values():
        components.lm.tokens.windows(texts)  # refuses a text without tokens before anything is measured
    lm, identity = components.lm, components.identity | {"sentences": corpus.sha256}
    if config.adapter is not None:
        lm.model = load_adapter(lm.model, config.adapter, base_sha256=lm.identity["sha256"])
        run.identify(adapter={"name": config.adapter, "sha256": adapter_hash(lm.model)})
        identity |= {"adapter": adapter_hash(lm.model)}
    with process_group(config.devices, config.nodes):
        return _passes(config, components, compared, corpus, identity, broadcast(run.folder) / "stats")


def _passes(
    config: AnalyzeConfig,
    components: Components,
    compared: dict[str, ComparedSet],
    corpus: ParallelCorpus,
    identity: dict[str, str],
    folder: Path,
) -> Observations:
    """All passes, with their state stored in the folder."""
    lm, parts = components.lm, config.measures.parts
    with base_behaviour(lm.model):
        sae_sets = dict(components.sae_sets)
        if "random_sae" in parts:
            sae_sets |= _random_sae_sets(config, components, corpus)
            identity |= {
                f"sae/{sae_set}": f"random directions, seed {config.seed}, matched on all languages" for sae_set in sae_sets if is_random(sae_set)
            }
        by_reference = None
        if "by_reference" in parts:
            given = {"batch_tokens": config.batch_tokens, "identity": identity, "folder": _reference_folder(folder)}
            by_reference = reference_statistics(lm, sae_sets, corpus, config.languages.reference, **given)
    wanted = Wanted(
        adapter=config.adapter is not None,
        language_model=config.adapter is not None or "language_model" in parts,
        reference_statistics=by_reference,
        vectors=config.measures.similarity.sentences if "similarity" in parts else 0,
        base_alone=frozenset(sae_set for sae_set in sae_sets if is_random(sae_set)),
        top_k=config.measures.top_k,
        shard=config.shard,
    )
    measured = measure(lm, sae_sets, corpus, batch_tokens=config.batch_tokens, identity=identity, wanted=wanted, folder=folder)
    with base_behaviour(lm.model):
        seen = _further(config, lm, sae_sets, corpus, measured, folder)
        seen = replace(seen, attribution=_attributed(config, lm, compared, corpus, measured, folder))
    if config.adapter is None:
        return seen
    spliced, causal = _edited(config, lm, sae_sets, corpus, seen, folder, after=True)
    return replace(seen, spliced_after=spliced, causal_after=causal)


def _further(
    config: AnalyzeConfig, lm: LanguageModel, sae_sets: dict[str, Dictionaries], corpus: ParallelCorpus, measured: Measurement, folder: Path
) -> Observations:
    """The passes for features and interventions, on the base model with the measuring SAEs."""
    saes, parts, measures = sae_sets[MEASURING], config.measures.parts, config.measures
    given = {"batch_tokens": config.batch_tokens, "header": _identity(measured)}
    features = contexts = links = None
    if "features" in parts:
        tokens = measures.features.random_tokens
        searched = {sae_set: own for sae_set, own in sae_sets.items() if sae_set == MEASURING or is_random(sae_set)}
        rates = random_token_rates(lm, searched, seed=config.seed, tokens=tokens, path=folder / _NAMES["random_rates"], **given)
        features = found_features(measured, config, rates)
        shown: dict[int, list[int]] = {}
        for by_layer in chosen_latents(features[MEASURING], per_language=measures.features.cards).values():
            for layer, latents in by_layer.items():
                shown.setdefault(layer, []).extend(latents)
        contexts = strongest_contexts(lm, saes, corpus, shown, folder=folder / "contexts", **given)
        links = {(layer, j): url for layer, latents in shown.items() for j in latents if (url := neuronpedia_url(saes[layer], j))}
        if rank() == 0:
            write_json(folder / "links.json", [[*place, url] for place, url in links.items()])
            save_contexts(folder / _NAMES["contexts"], contexts)  # written last: if it is there, the links are, too
    seen = Observations(measured, features, contexts, links)
    spliced, causal = _edited(config, lm, sae_sets, corpus, seen, folder)
    return replace(seen, spliced=spliced, causal=causal)


def _attributed(
    config: AnalyzeConfig, lm: LanguageModel, compared: dict[str, ComparedSet], corpus: ParallelCorpus, measured: Measurement, folder: Path
) -> AttributionSums | None:
    """The sums for attribution, by the SAE sets that it names; None without it."""
    if not compared:
        return None
    header = _identity(measured) | {f"sae/attribution/{name}": each.sha256 for name, each in compared.items()}
    set_a, set_b = ({name: each.dictionaries for name, each in compared.items() if each.mix == mix} for mix in range(2))
    given = {"batch_tokens": config.batch_tokens, "header": header, "folder": folder / _ATTRIBUTION}
    return attributed(lm, (set_a, set_b), corpus, config.languages.reference, **given)


def _reference_folder(stats: Path) -> Path:
    """The folder of the reference's statistics. A run that an earlier version began has it under its former name."""
    former, present = next(iter(RENAMED_FOLDERS.items()))
    return stats.parent / (former if (stats.parent / former).is_dir() else present)


def _edited(
    config: AnalyzeConfig,
    lm: LanguageModel,
    sae_sets: dict[str, Dictionaries],
    corpus: ParallelCorpus,
    seen: Observations,
    folder: Path,
    *,
    after: bool = False,
) -> tuple[SplicedLosses | None, CausalLosses | None]:
    """Cross-entropies with an edited residual stream. `after`: of the adapted model, with the same latents and sentences."""
    parts, measured = config.measures.parts, seen.measured
    given = {"batch_tokens": config.batch_tokens, "header": _identity(measured) | ({"variant": ADAPTER} if after else {})}
    place = {name: folder / (f"{Path(file).stem}_{ADAPTER}.safetensors" if after else file) for name, file in _NAMES.items()}
    spliced = causal = None
    if "spliced" in parts:
        some = corpus.select(spliced_places(config, corpus.ids).tolist())
        spliced = spliced_losses(
            lm, {sae_set: own for sae_set, own in sae_sets.items() if not is_random(sae_set)}, some, path=place["spliced"], **given
        )
    if "causal" in parts:
        some = corpus.select(causal_places(config, corpus.ids, corpus.halves).tolist())
        interventions = list(planned_interventions(config, measured, seen.features[MEASURING] if seen.features else None))
        causal = causal_losses(lm, sae_sets[MEASURING], some, interventions, path=place["causal"], **given)
    return spliced, causal


def _identity(measured: Measurement) -> dict[str, str]:
    """The header entries that all statistics of a measurement share."""
    shared = next(iter(measured.stats.values())).header
    return {key: value for key, value in shared.items() if key not in ("sae_set", "variant", "language")}


def _check_enough(config: AnalyzeConfig, ids: tuple[str, ...], halves: Int[np.ndarray, " sentence"], resampling: Resampling) -> None:
    """Refuse text that is too short for intervals, as a whole or for a part of the analysis that reads only some of it.

    Raises:
        UserError: fewer than two documents, blocks or sentences.
    """
    resampling.check_enough()
    parts, confirming = config.measures.parts, np.flatnonzero(halves == CONFIRMATION)
    if {"similarity", "features", "causal", "by_reference"} & set(parts):
        if len(confirming) == len(ids):
            raise UserError(f"none of the {len(ids)} sentences is in the discovery half ({resampling}); give more text, or use measures=core")
        resampling.part(confirming).check_enough("in the confirmation half, or use measures=core")
    if "similarity" in parts:
        chosen = sample_places(ids, config.measures.similarity.sentences)
        resampling.part(np.intersect1d(chosen, confirming)).check_enough("in the confirmation half of measures.similarity.sentences")
    if "spliced" in parts:
        resampling.part(spliced_places(config, ids)).check_enough("among measures.spliced.sentences")
    if "causal" in parts:
        resampling.part(causal_places(config, ids, halves)).check_enough("among measures.causal.sentences")


def spliced_places(config: AnalyzeConfig, ids: tuple[str, ...]) -> Int[np.ndarray, " chosen"]:
    """Places of the sentences into which reconstructions are spliced."""
    return sample_places(ids, config.measures.spliced.sentences)


def causal_places(config: AnalyzeConfig, ids: tuple[str, ...], halves: Int[np.ndarray, " sentence"]) -> Int[np.ndarray, " chosen"]:
    """Places of the sentences for interventions. Sentences on which latents and directions were chosen are left out."""
    others = np.flatnonzero(halves == CONFIRMATION)
    return others[sample_places([ids[place] for place in others], config.measures.causal.sentences)]


def found_features(measured: Measurement, config: AnalyzeConfig, rates: dict[str, dict[int, Float[np.ndarray, " d_sae"]]]) -> dict[str, pd.DataFrame]:
    """Set of SAEs -> `find_features` with its random-token rates; the measuring SAEs come first."""
    chosen, block = criteria(config.measures.features), config.statistics.block
    return {
        sae_set: find_features(measured.of(sae_set, BASE), rates[sae_set], chosen, block=block) for sae_set in measured.sae_sets if sae_set in rates
    }


def _stored_rates(folder: Path) -> dict[str, dict[int, Float[np.ndarray, " d_sae"]]]:
    """The rates that `random_token_rates` has stored in the folder.

    Raises:
        UserError: they are missing or not complete.
    """
    header, counts, (done, steps) = load_state(folder / _NAMES["random_rates"])
    if done < steps:
        raise UserError(f"the random-token rates in '{folder}' are not complete ({done} of {steps} batches); finish the run with resume= first")
    rates: dict[str, dict[int, np.ndarray]] = {}
    for name, fired in counts.items():
        sae_set, _, layer = name.partition("/")
        rates.setdefault(sae_set, {})[int(layer)] = fired / int(header["random_tokens"])
    return rates


def criteria(settings: FeaturesConfig) -> Criteria:
    """The criteria that the configuration sets, with defaults for the others."""
    return Criteria(min_rate=settings.min_rate, per_layer=settings.per_layer, alpha=settings.alpha)


def _random_sae_sets(config: AnalyzeConfig, components: Components, corpus: ParallelCorpus) -> dict[str, Dictionaries]:
    """Draws of SAEs with random directions that fire as often as the measuring ones on the discovery half of all languages."""
    discovery = [place for place, half in enumerate(corpus.halves) if half == DISCOVERY]
    if not discovery:
        raise UserError(f"none of the {len(corpus.ids)} sentences is in the discovery half; give more sentences, or use measures=core")
    part, draws = corpus.select(discovery), range(1, config.measures.random_sae.draws + 1)
    sample = pooled_sample(components.lm, part, components.layers, tokens=SAMPLE_TOKENS, batch_tokens=config.batch_tokens)
    return {random_sae_set(draw): random_dictionaries(components.sae_sets[MEASURING], sample, config.seed, draw) for draw in draws}


# --- interventions -------------------------------------------------------------------------------------------------------------------------------


def planned_interventions(config: AnalyzeConfig, measured: Measurement, features: pd.DataFrame | None) -> Iterator[Intervention]:
    """For every language: its latents, random ones that fire as often and as strongly in its text, and its DiffMean direction, at every dose.

    Latents that the user names belong to no language (`NAMED`); random ones are matched to them over all languages.
    """
    settings, stats, reference = config.measures.causal, measured.of(MEASURING, BASE), config.languages.reference
    layers = next(iter(stats.values())).layers if settings.layers == "all" else settings.layers
    if features is not None and settings.features == "language_specific":
        chosen = chosen_latents(features[features["layer"].isin(layers)], per_language=settings.per_language)
    else:
        assert not isinstance(settings.features, str)
        chosen = {NAMED: {layer: list(latents) for layer, latents in settings.features.items() if layer in layers}}
    norms = {layer: float(norm) for layer, norm in zip(*_mean_norms(stats[reference]), strict=True)}
    directions = _directions(measured, reference)
    for owner, latents in chosen.items():
        arms: list[tuple[Kind, dict]] = [("specific", {"latents": {layer: tuple(own) for layer, own in latents.items()}})]
        owners = stats if owner == NAMED else {owner: stats[owner]}
        for draw in range(settings.draws):
            matched = _matched(owners, latents, (config.seed, draw))
            if matched is not None:
                arms.append(("random", {"latents": matched}))
        if owner in directions:
            arms.append(("diffmean", {"directions": {layer: directions[owner][layer] for layer in latents}}))
        for kind, edit in arms:
            for dose in settings.doses:
                yield Intervention(Arm(owner, kind, settings.mode, dose), norms=norms, **edit)


def _matched(stats: dict[str, FeatureStats], latents: dict[int, list[int]], seed: tuple[int, int]) -> dict[int, tuple[int, ...]] | None:
    """Random latents that are as frequent and as strong in these languages' text, for every layer; None if a latent has no match."""
    tokens, matched = sum(int(s.tokens.sum()) for s in stats.values()), {}
    for layer, own in latents.items():
        row = next(iter(stats.values())).layers.index(layer)
        rates, mass = (np.sum([getattr(s, name)[row].sum(axis=0) for s in stats.values()], axis=0) / tokens for name in ("firing", "profile"))
        own_seed = int(np.random.SeedSequence((*seed, layer)).generate_state(1)[0])
        found = matched_random(rates, mass, own, own_seed)
        if found is None:
            return None
        matched[layer] = tuple(found)
    return matched


def _mean_norms(stats: FeatureStats) -> tuple[tuple[int, ...], np.ndarray]:
    return stats.layers, stats.norm.sum(axis=1) / stats.tokens.sum()


def _directions(measured: Measurement, reference: str) -> dict[str, dict[int, np.ndarray]]:
    """DiffMean direction of each language by layer; empty without sentence vectors."""
    if not measured.vectors:
        return {}
    found = next(iter(measured.vectors.values()))
    means = {code: vectors.means() for code, vectors in measured.vectors.items()}
    halves = next(iter(measured.stats.values())).halves[found.places]
    directions = diffmean_directions(means, halves, reference)
    return {code: dict(zip(found.layers, by_layer, strict=True)) for code, by_layer in directions.items()}


# --- stored statistics ---------------------------------------------------------------------------------------------------------------------------


def stored_observations(folders: tuple[Path, ...], config: AnalyzeConfig) -> Observations:
    """The observations of earlier runs: one complete run, or all shards of one.

    Raises:
        UserError: they are not complete, or do not belong to one analysis.
    """
    found = [load_measurement(folder / "stats") for folder in folders]
    shards = [shard for _, shard in found]
    count = shards[0][1]
    if sorted(shards) != [(place, count) for place in range(count)]:
        listed = ", ".join(f"{folder}: {place + 1}/{of}" for folder, (place, of) in zip(folders, shards, strict=True))
        raise UserError(f"stats: these are not all shards of one analysis ({listed}); name every shard once, from 1/{count} to {count}/{count}")
    measured = reduce(Measurement.merge, (measurement for measurement, _ in found))
    refuse_blocks_without_places(measured, config.statistics.block, str(folders[0]))
    gap, by_language = config.measures.gap, measured.of(MEASURING, BASE)
    if any(gap not in available(stats) for stats in by_language.values()):
        have = ", ".join(available(next(iter(by_language.values()))))
        raise UserError(
            f"measures.gap={gap}: the statistics in '{folders[0]}' do not have it (an earlier version made them; they have {have}); choose one of "
            "these, or measure again"
        )
    first = next(iter(measured.stats.values()))
    _check_enough(config, first.sentence_ids, first.halves, first.resampling(config.statistics.block))
    folder, parts = folders[0] / "stats", config.measures.parts
    features = contexts = links = None
    if "features" in parts:
        features = found_features(measured, config, _stored_rates(folder))
        contexts = load_contexts(folder / _NAMES["contexts"])
        links = _links(folder / "links.json")
    attribution = AttributionSums.load(folder / _ATTRIBUTION, measured.languages) if config.attribution else None
    after = {name: folder / f"{name}_{ADAPTER}.safetensors" for name in ("spliced", "causal")}
    # Runs of versions that did not edit the adapted model's residual stream do not have them.
    there = {name for name, path in after.items() if name in parts and path.is_file()}
    return Observations(
        measured,
        features,
        contexts,
        links,
        SplicedLosses.load(folder / _NAMES["spliced"]) if "spliced" in parts else None,
        CausalLosses.load(folder / _NAMES["causal"]) if "causal" in parts else None,
        SplicedLosses.load(after["spliced"]) if "spliced" in there else None,
        CausalLosses.load(after["causal"]) if "causal" in there else None,
        attribution,
    )


def _links(path: Path) -> dict[tuple[int, int], str]:
    """(layer, latent) -> its page."""
    try:
        return {(layer, j): url for layer, j, url in read_json(path)}
    except (OSError, ValueError, TypeError):
        raise UserError(f"'{path}' cannot be read: it is missing, truncated or not a lingact file; put it back, or analyse again") from None
