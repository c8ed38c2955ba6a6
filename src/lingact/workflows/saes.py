"""lingact saes: train sets of SAEs that differ in the languages of their text, and judge them in each language."""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from lingact.activations.passes import Wanted, measure
from lingact.config.choices import chosen_layers
from lingact.config.continued import SETS, folder_of_set, trained_sets
from lingact.config.jobs import SaesConfig, TrainConfig
from lingact.config.model import sae_set_in
from lingact.config.validation import validate
from lingact.data.corpus import ParallelCorpus
from lingact.data.sources import load_corpus
from lingact.errors import UserError
from lingact.files.atomic import write_atomically
from lingact.files.folders import make_folders
from lingact.models.adapter_hashes import adapter_hash
from lingact.models.adapter_sources import find_adapter, training_of
from lingact.models.adapters import load_adapter
from lingact.models.lm import LanguageModel, load_model
from lingact.models.sae import Dictionaries, load_dictionaries
from lingact.report import saes as report
from lingact.runtime.distributed import all_gather, broadcast, process_group
from lingact.runtime.terminal import show
from lingact.runtime.tracking import Run, open_run
from lingact.saes.checkpoints import Checkpoints
from lingact.saes.engine import Reader, Start, calibration_windows, train_sets
from lingact.saes.mix import Rows, Schedule, make_schedule, most_windows
from lingact.saes.quality import Intervals, Judge, fit_table, heldout_corpora, latents_table, mix_effects_table, overlap_table, summary_of
from lingact.saes.refit import refit_summary, refit_table
from lingact.saes.text import RunningText, read_running_text
from lingact.saes.windows import Windows, packed

CHECKPOINTS = "checkpoints"
"""A folder in the run's."""


def run(config: SaesConfig, folder: Path) -> float | None:
    """Train, save and judge the SAEs, and write tables and a report into the run folder.

    Returns:
        The mean FVU over sets, languages and layers.

    Raises:
        UserError: the text is missing, damaged or too short, or the model is missing. All is checked before training.
    """
    with open_run("saes", config, config.tracking, folder) as run:
        text = read_running_text(config.text)
        lm = load_model(config.model, config.device)
        layers = chosen_layers(config.saes, len(lm.blocks), "saes.layers")
        identity = {"model": lm.identity["sha256"], "text": text.sha256}
        run.identify(model=lm.identity, text={"name": text.name, "sha256": text.sha256})
        if config.adapter is not None:
            lm.model = load_adapter(lm.model, config.adapter, base_sha256=lm.identity["sha256"])
            identity["adapter"] = adapter_hash(lm.model)
            run.identify(adapter={"name": config.adapter, "sha256": identity["adapter"]})
        windows = _windows(config, text, lm)
        rows = {code: own.rows for code, own in windows.items()}
        schedule = _schedule(config, rows)
        heldout = {code: text.heldout.get(code, []) for code in text.training}
        corpora = heldout_corpora(heldout, lm, config.quality.tokens // len(heldout))
        spliced = heldout_corpora(heldout, lm, config.quality.spliced_tokens)
        training = _training_of_adapter(config)
        with process_group(config.devices, config.nodes):
            place = broadcast(run.folder)
            _refuse_other_inputs(run.header)
            _train(config, run, Reader(lm, layers, rows, schedule, config.saes.context, config.batch_tokens), place)
            sae_sets, hashes = _load(config, lm, layers, place)
            refitted = frozenset(name for name, (_, adapted) in trained_sets(config).items() if adapted)
            judge = Judge(lm, sae_sets, config.batch_tokens, identity | hashes, place / "stats", refitted)
            intervals = Intervals(config.resamples, config.confidence, config.seed)
            tables = {"text": _text_table(config, schedule, windows)} | _judged(config, judge, corpora, spliced, intervals)
            if training is not None:
                tables["refit"] = _refit_table(config, judge, *training, intervals)
        return _write(run, config, tables) if run.first else None


def _judged(
    config: SaesConfig, judge: Judge, corpora: Mapping[str, ParallelCorpus], spliced: Mapping[str, ParallelCorpus], intervals: Intervals
) -> dict[str, pd.DataFrame]:
    """The tables of quality.

    Args:
        corpora: held-out text by language.
        spliced: that into which reconstructions are spliced.
    """
    measured = judge.fit(corpora)
    tables = {
        "fit": fit_table(measured, judge.views, intervals),
        "latents": latents_table(measured, judge.views),
        "recovered": judge.recovered(spliced, intervals),
    }
    if len(judge.sae_sets) > 1:
        tables["overlap"] = overlap_table(judge.sae_sets)
    if config.adapter is None and not (effects := mix_effects_table(measured, config.seeded_sets, intervals)).empty:
        tables["mix_effects"] = effects
    return tables


def _windows(config: SaesConfig, text: RunningText, lm: LanguageModel) -> dict[str, Windows]:
    """Language -> its windows, as many as any set needs."""
    room = config.saes.context - len(lm.tokens.prefix)
    needed = most_windows(config.seeded_sets, tuple(text.training), _windows_of_a_set(config, room))
    least = calibration_windows(lm.d_model, room, len(needed))
    return {
        code: packed(documents, lm.tokens, room=room, at_most=max(least, needed[code]), seed=config.seed) for code, documents in text.training.items()
    }


def _windows_of_a_set(config: SaesConfig, room: int) -> int:
    """So many that all steps are made, although special tokens in the text do not count and a last batch may stay incomplete."""
    return -(-(config.saes.tokens + 2 * config.saes.batch_tokens) // room)


def _schedule(config: SaesConfig, windows: Mapping[str, Rows]) -> Schedule:
    available, room = {code: len(rows) for code, rows in windows.items()}, next(iter(windows.values())).shape[1]
    count = _windows_of_a_set(config, room)
    return make_schedule(config.seeded_sets, available, windows=count, epochs=config.text.epochs, seed=config.seed, window_tokens=room)


def _train(config: SaesConfig, run: Run, reader: Reader, folder: Path) -> None:
    """Train and save the SAEs, unless they are there already.

    Args:
        folder: of the run, the same in all processes.
    """
    place, header = folder / SETS, broadcast(run.header)
    checkpoints = Checkpoints(folder / CHECKPOINTS, header)
    if all((place / name / f"layer_{layer}" / "cfg.json").is_file() for name in trained_sets(config) for layer in reader.layers):
        if run.first:
            checkpoints.remove()
        return
    lm = reader.lm
    metadata = {
        "model_name": lm.identity["name"],
        "prepend_bos": bool(lm.tokens.prefix),
        "context_size": config.saes.context,
        "model_from_pretrained_kwargs": {},
    }
    start, kept = _start(config, lm, reader.layers), {"header": header, "folder": folder / CHECKPOINTS}
    for name, trainer in train_sets(reader, config.seeded_sets, config.saes, metadata=metadata, **kept, start=start, log=run.progress).items():
        make_folders(place / name)
        trainer.save(place / name)
    all_gather(None)  # all SAEs are there
    if run.first:
        checkpoints.remove()


def _refuse_other_inputs(header: dict[str, str]) -> None:
    """Each process reads a part of the text for all. So what they read has to be the same.

    Raises:
        UserError: it is not.
    """
    headers = all_gather(header)
    if different := [name for name in header if len({each[name] for each in headers}) > 1]:
        raise UserError(f"the processes of this run have not read the same {' and '.join(different)}; give all machines the same files or revision")


def _start(config: SaesConfig, lm: LanguageModel, layers: tuple[int, ...]) -> Start | None:
    """The SAEs of `init`."""
    if config.init is None:
        return None
    saes = {}
    for name in config.seeded_sets:
        dictionaries, _ = load_dictionaries(sae_set_in(folder_of_set(config, name)), layers, lm)
        saes[name] = {layer: dictionary.sae for layer, dictionary in dictionaries.items()}
    return Start(saes, refit=config.adapter is not None)


def _load(config: SaesConfig, lm: LanguageModel, layers: tuple[int, ...], folder: Path) -> tuple[dict[str, Dictionaries], dict[str, str]]:
    """The saved sets, as any job reads them, and their hashes; with an adapter also those that they come from."""
    places = {name: folder / SETS / name for name in trained_sets(config)}
    if config.adapter is not None:
        places = {name: folder_of_set(config, name) for name in config.seeded_sets} | places
    sae_sets, identity = {}, {}
    for name, place in places.items():
        sae_sets[name], found = load_dictionaries(sae_set_in(place), layers, lm)
        identity[f"sae/{name}"] = str(found["sha256"])
    return sae_sets, identity


def _training_of_adapter(config: SaesConfig) -> tuple[TrainConfig, ParallelCorpus] | None:
    """How the adapter was trained, with the sentences on which the training was judged. None: no adapter, or its training is not known.

    Raises:
        UserError: the corpus is no longer there.
    """
    training = None if config.adapter is None else training_of(find_adapter(config.adapter))
    if training is None:
        return None
    known = {name: value for name, value in training.items() if name in TrainConfig.model_fields}
    found = validate(TrainConfig, known)
    return found, load_corpus(found.corpus, (found.languages.reference, *found.lang)).split(found.split, found.corpus.splits)


def _refit_table(config: SaesConfig, judge: Judge, training: TrainConfig, corpus: ParallelCorpus, intervals: Intervals) -> pd.DataFrame:
    """The gaps of the adapter's targets, each model with its own SAEs, on the sentences on which the training was judged."""
    identity, wanted = judge.identity | {"sentences": corpus.sha256}, Wanted(title="refitted", adapter=True)
    given = {"batch_tokens": config.batch_tokens, "identity": identity, "wanted": wanted, "folder": judge.folder / "refit"}
    measured = measure(judge.lm, judge.sae_sets, corpus, **given)
    return refit_table(measured, list(config.seeded_sets), training.languages.reference, training.lang, intervals)


def _text_table(config: SaesConfig, schedule: Schedule, windows: Mapping[str, Windows]) -> pd.DataFrame:
    """One row per set, language and source: tokens in the set's windows, and their share."""
    rows = []
    for column, name in enumerate(config.seeded_sets):
        member = schedule.member[:, column]
        for place, code in enumerate(schedule.codes):
            own = windows[code]
            chosen = schedule.window[member & (schedule.language == place)] % max(1, len(own.rows))
            by_source = own.by_source[chosen].sum(axis=0)
            rows += [
                {"sae_set": name, "language": code, "source": source, "tokens": int(tokens)}
                for source, tokens in zip(own.sources, by_source, strict=True)
                if tokens
            ]
    frame = pd.DataFrame(rows)
    return frame.assign(share=frame["tokens"] / frame.groupby("sae_set")["tokens"].transform("sum"))


def _write(run: Run, config: SaesConfig, tables: dict[str, pd.DataFrame]) -> float:
    """Tables, summary, card and report; the result is printed."""
    for name, frame in tables.items():
        run.table(name, frame)
    summary = summary_of(tables["fit"], tables["latents"])
    objective = float(tables["fit"].query("quantity == 'fvu'")["estimate"].mean())
    if "refit" in tables:
        summary |= refit_summary(tables["refit"])
        show(report.refit_rows(tables["refit"]), title="Change of the gap by the adapter, mean over layers, by the SAEs that measure it")
    run.summary(summary | {"objective": objective})
    write_atomically(run.folder / "card.md", report.card(config, tables))
    show(report.fit_rows(tables["fit"]), title="Fraction of variance unexplained on held-out text, mean over layers")
    show(report.latent_rows(tables["latents"]), title="Latents, all languages together")
    figures = {name: run.figure(name, figure) for name, figure in report.sae_figures(tables).items()}
    for name in trained_sets(config):
        run.artifact(("saes", name), "saes", sorted((run.folder / SETS / name).rglob("*.*")), below=run.folder / SETS / name)
    written = report.write_saes(run.folder, config, tables, figures)
    show([{"run folder": str(run.folder), "SAEs": str(run.folder / SETS), "report": str(written)}])
    return objective
