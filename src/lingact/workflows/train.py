"""Close the activation gap of chosen languages and hold the reference."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from lingact import changes
from lingact.adapters import adapter_hash, attach_adapter, save_adapter
from lingact.batch_loss import BatchLoss
from lingact.config import TrainConfig
from lingact.continuations import continuation_table, repetition_summary
from lingact.controls import random_dictionaries, reference_sample
from lingact.corpus import ParallelCorpus
from lingact.data import AlignedBatches, AlignedData
from lingact.errors import UserError
from lingact.figures import training as figures
from lingact.fitting import fit
from lingact.frozen import Frozen, Predictions, freeze_anchor, freeze_predictions, freeze_reference
from lingact.inference import check_enough
from lingact.measure import Measurement, Wanted, measure
from lingact.module import GapModule
from lingact.report import training as report
from lingact.report.page import Section
from lingact.sae import Dictionaries
from lingact.tables import named_ranges
from lingact.terminal import show
from lingact.tracking import Run, open_run
from lingact.workflows.instruments import MEASURING, Instruments, set_up


def run(config: TrainConfig, folder: Path) -> float:
    """Train an adapter, judge it on sentences that it has not seen with both sets of SAEs. Returns the objective, computed on the dev split."""
    with open_run("train", config, config.tracking, folder) as run:
        instruments = set_up(run, config)
        splits = {name: instruments.corpus.split(name, config.corpus.splits) for name in ("train", "dev", "heldout")}
        for name in ("dev", "heldout"):
            check_enough(len(splits[name].ids))
        named_ranges(instruments.layers, config.statistics)
        text = training_text(config, splits["train"])
        # Before the adapter, so that what is frozen is the base model's.
        loss = batch_loss(config, instruments, splits["train"], text)
        instruments.lm.model = attach_adapter(instruments.lm.model, instruments.lm.blocks, config.peft, config.seed)
        module = GapModule(loss, config.optim, config.trainer, config.seed)
        batches = AlignedBatches(
            instruments.lm.tokens,
            text,
            sentences=config.trainer.sentences,
            count=config.trainer.steps,
            seed=config.seed,
            workers=config.trainer.workers,
        )
        fit(module, AlignedData(batches), config, run)
        if not run.first:
            return math.nan
        save_adapter(instruments.lm.model, folder / "adapter", instruments.lm.identity["name"], instruments.lm.identity["sha256"])
        run.artifact(f"adapter-{'-'.join(config.lang)}", "adapter", folder / "adapter")

        judged = splits[config.split]
        measured = measure_change(instruments, instruments.meters, judged, config, folder / "stats")
        frames, summary = conclude(config, measured, instruments, loss.layers)
        frames["loss"] = pd.DataFrame(module.history)
        frames["continuations"] = continuation_table(instruments.lm, judged, (*config.lang, config.languages.reference))
        summary |= repetition_summary(frames["continuations"])
        summary["objective"] = objective(config, instruments, splits["dev"], loss.layers)
        for name, frame in frames.items():
            run.table(name, frame)
        run.summary(summary)
        tell(run, config, frames, instruments.identity, len(judged.ids))
        show([{"adapter": str(folder / "adapter"), "report": str(folder / "report.html"), "objective on dev": f"{summary['objective']:.3f}"}])
        return summary["objective"]


def tell(run: Run, config: TrainConfig, frames: dict[str, pd.DataFrame], identity: dict[str, str], sentences: int) -> None:
    """The page and the terminal's tables."""
    reference = config.languages.reference
    shown = frames["change_by_layer"][frames["change_by_layer"].language.isin(config.lang)]
    drawn = {"change": figures.change_bars(shown), "loss": figures.loss_curves(raw_terms(frames["loss"]))}
    page = Section(
        f"Sentences of the {config.split} split",
        {name: run.figure(name, figure) for name, figure in drawn.items()},
        report.train_tables(frames, config.lang, reference),
        report.training_text(frames, config.lang, reference),
    )
    report.write_training(run.folder, config, [page, report.continuation_section(frames["continuations"])], identity, sentences)
    show(report.train_rows(frames, config.lang), title=f"{sentences} sentences ({config.split}); gaps against {reference} frozen at the base model")
    show(report.retention_rows(frames), title=f"Retention of {reference}")
    show(report.bits_rows(frames, (*config.lang, reference)), title="Bits per byte (compare within a language only)")


def batch_loss(config: TrainConfig, instruments: Instruments, corpus: ParallelCorpus, text: ParallelCorpus) -> BatchLoss:
    """The combined loss with all that it takes from the base model.

    Args:
        corpus: the training sentences as they are.
        text: the languages to train on, as a control may have changed them.
    """
    lm, layers, reference = instruments.lm, _loss_layers(config, instruments), config.languages.reference
    dictionaries = {layer: instruments.meters[MEASURING][layer] for layer in layers}
    if config.loss.control == "random_features":
        sample = reference_sample(lm, corpus.speaking((reference,)), reference, layers, tokens=4096, batch_tokens=config.batch_tokens)
        dictionaries = random_dictionaries(dictionaries, sample, config.seed)
    profiles = config.loss.gap.objective == "profile"
    frozen = freeze_reference(lm, dictionaries, corpus, reference, batch_tokens=config.batch_tokens, profiles=profiles, cache=config.cache)
    if config.loss.control == "shuffled_pairs":
        frozen = frozen.shuffled(config.seed)
    predictions = base_predictions(config, instruments, text)
    anchors = {code: freeze_anchor(lm, dictionaries, text, code, batch_tokens=config.batch_tokens, cache=config.cache) for code in anchored(config)}
    return BatchLoss(lm, dictionaries, Frozen(frozen, predictions, anchors), reference, _layer_weights(config, layers), config.loss)


def raw_terms(history: pd.DataFrame) -> pd.DataFrame:
    """Step, raw terms of the logged losses under their own names and the multiplier where there is one; means over the micro-batches of a step."""
    terms = history.filter(regex="^(step|multiplier)$|^loss/raw/").rename(columns=lambda name: name.removeprefix("loss/raw/"))
    return terms.groupby("step", as_index=False).mean()


def _loss_layers(config: TrainConfig, instruments: Instruments) -> tuple[int, ...]:
    chosen = config.loss.gap.layers
    if chosen == "all":
        return instruments.layers
    if not chosen:
        raise UserError(f"loss.gap.layers: none given; measured are the layers {list(instruments.layers)}")
    beyond = [layer for layer in chosen if layer not in instruments.layers]
    if beyond:
        raise UserError(f"loss.gap.layers: {beyond} out of range; measured are the layers {list(instruments.layers)}")
    return tuple(sorted(set(chosen)))


def _layer_weights(config: TrainConfig, layers: tuple[int, ...]) -> torch.Tensor:
    """Float[" layer"], adding up to 1."""
    given = config.loss.gap.layers
    weights = torch.tensor([given[layer] if isinstance(given, dict) else 1.0 for layer in layers])
    return weights / weights.sum()


def training_text(config: TrainConfig, corpus: ParallelCorpus) -> ParallelCorpus:
    """Reference and targets; under `wrong_language` the next languages of the study that are no targets stand in the targets' places."""
    languages = config.languages
    spoken = corpus.speaking((*config.lang, languages.reference))
    if config.loss.control != "wrong_language":
        return spoken
    after = languages.all.index(config.lang[0]) + 1
    others = [code for code in (*languages.all[after:], *languages.all[:after]) if code not in (languages.reference, *config.lang)]
    if len(others) < len(config.lang):
        raise UserError(
            f"loss.control=wrong_language needs as many languages that are no targets as there are targets ({len(config.lang)}), the study has "
            f"{len(others)}; add some to languages.low or languages.high"
        )
    return ParallelCorpus(
        spoken.name, spoken.ids, spoken.texts | {code: corpus.texts[other] for code, other in zip(config.lang, others, strict=False)}
    )


def anchored(config: TrainConfig) -> tuple[str, ...]:
    """The languages whose norms or fit the loss compares with the base model's."""
    gap, retention = config.loss.gap, config.loss.retention
    if retention.norm > 0:
        return (*config.lang, config.languages.reference)
    return config.lang if retention.fit > 0 or (gap.weight > 0 and gap.norm_matched) else ()


def base_predictions(config: TrainConfig, instruments: Instruments, text: ParallelCorpus) -> dict[str, Predictions]:
    """The base model's next tokens in the languages whose KL is in the loss; none where every one of its logits is wanted."""
    retention, reference = config.loss.retention, config.languages.reference
    codes = [reference] if retention.kl > 0 or retention.limit is not None else []
    codes += config.lang if retention.target_kl > 0 else ()
    if retention.top is None:
        return {}
    sizes = {"top": retention.top, "batch_tokens": config.batch_tokens}
    return {code: freeze_predictions(instruments.lm, text, code, **sizes, cache=config.cache) for code in codes}


def measure_change(
    instruments: Instruments, meters: dict[str, Dictionaries], corpus: ParallelCorpus, config: TrainConfig, folder: Path | None = None
) -> Measurement:
    """Base, adapter and norm-matched adapter on the same sentences, in one pass; the raw statistics are kept in the folder."""
    return measure(
        instruments.lm,
        meters,
        corpus,
        batch_tokens=config.batch_tokens,
        identity=instruments.identity | {"adapter": adapter_hash(instruments.lm.model)},  # pyrefly: ignore[bad-argument-type]
        wanted=Wanted(adapter=True, language_model=True),
        folder=folder,
    )


def conclude(
    config: TrainConfig, measured: Measurement, instruments: Instruments, loss_layers: tuple[int, ...]
) -> tuple[dict[str, pd.DataFrame], dict[str, float]]:
    """Tidy tables and summary numbers of what the adapter did, by every meter; keys of the held-out meter start with `heldout/`."""
    variants = {meter: changes.Variants.of(measured, meter) for meter in instruments.meters}
    frames, summary = changes.change_frames(variants, config.languages, config.statistics, loss_layers, config.lang, seed=config.seed)
    frames["bits"] = changes.bits_table(measured, MEASURING, config.statistics, config.seed)
    spoken = [code for code in config.languages.all if code != config.languages.reference]
    return frames, summary | changes.bits_summary(frames["bits"], spoken)


def objective(config: TrainConfig, instruments: Instruments, corpus: ParallelCorpus, loss_layers: tuple[int, ...]) -> float:
    """What sweeps maximise, on the dev split: mean norm-matched gap closed of the targets minus the reference's KL in nats."""
    spoken = corpus.speaking((*config.lang, config.languages.reference))
    measured = measure_change(instruments, {MEASURING: instruments.meters[MEASURING]}, spoken, config)
    variants = changes.Variants.of(measured, MEASURING)
    found = [changes.change(variants, code, config.languages, config.statistics, loss_layers, config.seed) for code in config.lang]
    kept = changes.retention(variants, config.languages.reference, config.statistics, config.seed)
    return float(np.mean([change.closed_norm_matched[0] for change in found]) - kept["kl"][0])
