"""lingact saes: train sets of SAEs that differ in the languages of their text, and judge them in each language."""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from lingact.config.choices import chosen_layers
from lingact.config.jobs import SaesConfig
from lingact.config.model import SaeSet
from lingact.files.atomic import write_atomically
from lingact.files.folders import make_folders
from lingact.models.lm import LanguageModel, load_model
from lingact.models.sae import Dictionaries, load_dictionaries
from lingact.report import saes as report
from lingact.runtime.terminal import show
from lingact.runtime.tracking import Run, open_run
from lingact.saes.engine import CALIBRATED_ON, CHECKPOINT, Reader, train_sets
from lingact.saes.mix import Rows, Schedule, make_schedule, most_windows
from lingact.saes.quality import Intervals, Judge, fit_table, heldout_corpora, latents_table, mix_effects_table, overlap_table, summary_of
from lingact.saes.text import RunningText, read_running_text
from lingact.saes.windows import Windows, packed

SETS, CHECKPOINTS = "sae", "checkpoints"
"""Folders in the run's."""


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
        run.identify(model=lm.identity, text={"path": str(config.text.path), "sha256": text.sha256})
        windows = _windows(config, text, lm)
        rows = {code: own.rows for code, own in windows.items()}
        schedule = _schedule(config, rows)
        heldout = {code: text.heldout.get(code, []) for code in text.training}
        corpora = heldout_corpora(heldout, lm, config.quality.tokens // len(heldout))
        spliced = heldout_corpora(heldout, lm, config.quality.spliced_tokens)
        _train(config, run, Reader(lm, layers, rows, schedule, config.saes.context, config.batch_tokens))
        sae_sets, identity = _load(config, lm, layers, folder)
        judge = Judge(lm, sae_sets, config.batch_tokens, identity | {"model": lm.identity["sha256"], "text": text.sha256}, folder / "stats")
        measured = judge.fit(corpora)
        intervals = Intervals(config.resamples, config.confidence, config.seed)
        tables = {
            "text": _text_table(config, schedule, windows),
            "fit": fit_table(measured, intervals),
            "latents": latents_table(measured),
            "recovered": judge.recovered(spliced, intervals),
        }
        if len(sae_sets) > 1:
            effects = mix_effects_table(measured, config.seeded_sets, intervals)
            tables |= {"overlap": overlap_table(sae_sets)} | ({} if effects.empty else {"mix_effects": effects})
        return _write(run, config, tables)


def _windows(config: SaesConfig, text: RunningText, lm: LanguageModel) -> dict[str, Windows]:
    """Language -> its windows, as many as any set needs."""
    room = config.saes.context - len(lm.tokens.prefix)
    needed = most_windows(config.seeded_sets, tuple(text.training), _windows_of_a_set(config, room))
    return {
        code: packed(documents, lm.tokens, room=room, at_most=max(CALIBRATED_ON, needed[code]), seed=config.seed)
        for code, documents in text.training.items()
    }


def _windows_of_a_set(config: SaesConfig, room: int) -> int:
    """So many that all steps are made, although special tokens in the text do not count and a last batch may stay incomplete."""
    return -(-(config.saes.tokens + 2 * config.saes.batch_tokens) // room)


def _schedule(config: SaesConfig, windows: Mapping[str, Rows]) -> Schedule:
    available, room = {code: len(rows) for code, rows in windows.items()}, next(iter(windows.values())).shape[1]
    count = _windows_of_a_set(config, room)
    return make_schedule(config.seeded_sets, available, windows=count, epochs=config.text.epochs, seed=config.seed, window_tokens=room)


def _train(config: SaesConfig, run: Run, reader: Reader) -> None:
    """Train and save the SAEs, unless they are there already."""
    place = run.folder / SETS
    if all((place / name / f"layer_{layer}" / "cfg.json").is_file() for name in config.seeded_sets for layer in reader.layers):
        return
    lm = reader.lm
    metadata = {
        "model_name": lm.identity["name"],
        "prepend_bos": bool(lm.tokens.prefix),
        "context_size": config.saes.context,
        "model_from_pretrained_kwargs": {},
    }
    trained = train_sets(reader, config.seeded_sets, config.saes, metadata=metadata, header=run.header, folder=run.folder / CHECKPOINTS)
    for name, trainer in trained.items():
        make_folders(place / name)
        trainer.save(place / name)
    (run.folder / CHECKPOINTS / CHECKPOINT).unlink(missing_ok=True)  # several times as large as the SAEs


def _load(config: SaesConfig, lm: LanguageModel, layers: tuple[int, ...], folder: Path) -> tuple[dict[str, Dictionaries], dict[str, str]]:
    """The saved sets, as any job reads them, and their hashes."""
    sae_sets, identity = {}, {}
    for name in config.seeded_sets:
        spec = SaeSet(release=str((folder / SETS / name).absolute()), id="layer_{layer}")
        sae_sets[name], found = load_dictionaries(spec, layers, lm)
        identity[f"sae/{name}"] = str(found["sha256"])
    return sae_sets, identity


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
    run.summary(summary | {"objective": objective})
    write_atomically(run.folder / "card.md", report.card(config, tables))
    show(report.fit_rows(tables["fit"]), title="Fraction of variance unexplained on held-out text, mean over layers")
    show(report.latent_rows(tables["latents"]), title="Latents, all languages together")
    written = report.write_saes(run.folder, config, tables)
    show([{"run folder": str(run.folder), "SAEs": str(run.folder / SETS), "report": str(written)}])
    return objective
