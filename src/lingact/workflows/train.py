"""Train an adapter that closes the activation gap of chosen languages and keeps the reference language as it is."""

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from lingact.activations.measurement import Measurement
from lingact.activations.passes import Wanted, lost_sentence, measure
from lingact.activations.random_saes import SAMPLE_TOKENS, pooled_sample, random_dictionaries
from lingact.analysis import changes
from lingact.analysis.tables import named_ranges
from lingact.config.choices import loss_layers, substitutes
from lingact.config.jobs import TrainConfig
from lingact.data.corpus import ParallelCorpus
from lingact.data.sources import load_corpus, load_training_text
from lingact.errors import UserError
from lingact.figures import training as figures
from lingact.models.adapter_hashes import adapter_hash
from lingact.models.adapter_sources import IDENTITY, PRIVATE, SETTINGS, WEIGHTS
from lingact.models.adapters import attach_adapter, load_adapter, save_adapter
from lingact.models.sae import Dictionaries, offloaded
from lingact.report import training as report
from lingact.report.page import Section
from lingact.report.phrases import cautions_of, text_of
from lingact.runtime.terminal import note, show
from lingact.runtime.tracking import Run, open_run
from lingact.training.base_cache import CacheSettings, cached_anchor, cached_predictions, cached_reference
from lingact.training.base_targets import BaseOutputs
from lingact.training.batch_loss import BatchLoss
from lingact.training.batches import AlignedBatches, AlignedData
from lingact.training.checkpoints import Trained, load_trained, save_trained
from lingact.training.continuations import continuation_table, repetition_summary
from lingact.training.fit import fit
from lingact.training.module import GapModule
from lingact.workflows.setup import MEASURING, Components, set_up

ADAPTER = "adapter"
"""Folder in the run's."""


def run(config: TrainConfig, folder: Path) -> float:
    """Train an adapter and evaluate it with both SAE sets on sentences that it has not seen. Returns the objective, computed on the dev split."""
    with open_run("train", config, config.tracking, folder) as run:
        corpus = load_corpus(config.corpus, config.languages.all)
        splits = {name: corpus.split(name, config.corpus.splits) for name in ("dev", "heldout")}
        for name in ("dev", "heldout"):
            splits[name].resampling(config.statistics.block).check_enough(f"in the split '{name}'")
        sentences = training_sentences(run, config, corpus)
        components = set_up(run, config, corpus)
        named_ranges(components.layers, config.statistics)
        text = training_text(config, sentences)
        if substitutes(config):
            run.identify(training_text=substitutes(config))
        layers, header = loss_layers(config, components.layers), run.header
        trained = load_trained(folder, header)
        if trained is None or not (folder / ADAPTER).is_dir():
            trained = train(run, config, components, sentences, text)
            if trained is None:
                return math.nan
            save_trained(folder, header, trained)
        else:
            if not run.first:
                return math.nan
            restore_adapter(components, folder / ADAPTER, trained)
        run.identify(adapter={"sha256": trained.sha256})
        run.artifact(("adapter", *config.lang), "adapter", [folder / ADAPTER / name for name in (SETTINGS, WEIGHTS, IDENTITY)])

        judged = splits[config.split]
        # The held-out SAEs are used for the reported tables only, not for choices.
        sae_sets = components.sae_sets if config.split == "heldout" else {MEASURING: components.sae_sets[MEASURING]}
        measured = measure_change(components, sae_sets, judged, config, folder / "stats")
        frames, summary = summarise(config, measured, layers)
        frames["loss"] = pd.DataFrame(trained.history)
        frames["continuations"] = continuation_table(components.lm, judged, (*config.lang, config.languages.reference))
        summary |= repetition_summary(frames["continuations"])
        summary["objective"] = objective(config, components, splits["dev"], layers)
        for name, frame in frames.items():
            run.table(name, frame)
        run.summary(summary)
        write_report(run, config, frames, components.identity, measured)
        show([{"adapter": str(folder / ADAPTER), "report": str(folder / "report.html"), "objective on dev": f"{summary['objective']:.3f}"}])
        return summary["objective"]


def train(run: Run, config: TrainConfig, components: Components, sentences: ParallelCorpus, text: ParallelCorpus) -> Trained | None:
    """Train the adapter, leave it on the model, and save it in the run folder. None on rank > 0.

    Args:
        sentences, text: as in `batch_loss`.
    """
    # Before the adapter is attached, so that the targets come from the base model.
    loss = batch_loss(config, components, sentences, text)
    lm = components.lm
    lm.model = attach_adapter(lm.model, lm.blocks, config.peft, config.seed)
    module = GapModule(loss, config.optim, config.trainer, config.seed)
    batches = AlignedBatches(
        lm.tokens,
        text,
        sentences=config.trainer.sentences,
        count=config.trainer.steps,
        seed=config.seed,
        workers=config.trainer.workers,
        predicted_share=config.loss.predicted_share,
    )
    with room_for_training(config, components):
        fit(module, AlignedData(batches), config, run)
    if not run.first:
        return None
    recipe = config.model_dump(mode="json", exclude=PRIVATE)
    save_adapter(lm.model, run.folder / ADAPTER, lm.identity["name"], lm.identity["sha256"], recipe)
    return Trained(adapter_hash(lm.model), module.history)


def restore_adapter(components: Components, folder: Path, trained: Trained) -> None:
    """Put the adapter that an earlier part of the run has trained on the model.

    Raises:
        UserError: the folder has another adapter now.
    """
    lm = components.lm
    lm.model = load_adapter(lm.model, str(folder), base_sha256=lm.identity["sha256"])
    found = adapter_hash(lm.model)
    if found != trained.sha256:
        raise UserError(
            f"'{folder}' is not the adapter that this run has trained ({trained.sha256[:12]} then, {found[:12]} now); restore it, or delete the "
            "folder: the adapter is then made again from the last checkpoint"
        )


@contextmanager
def room_for_training(config: TrainConfig, components: Components) -> Iterator[None]:
    """While open, the held-out SAEs are in host memory, as are the decoders of the measuring SAEs if the loss does not use them."""
    with ExitStack() as stack:
        for sae_set, saes in components.sae_sets.items():
            if sae_set != MEASURING:
                stack.enter_context(offloaded(saes.values(), decoders_only=False))
            elif config.loss.retention.fit == 0:
                stack.enter_context(offloaded(saes.values(), decoders_only=True))
        yield


def write_report(run: Run, config: TrainConfig, frames: dict[str, pd.DataFrame], identity: dict[str, str], measured: Measurement) -> None:
    """Write the page, and print the tables."""
    reference, resampling = config.languages.reference, next(iter(measured.stats.values())).resampling(config.statistics.block)
    lost = lost_sentence(measured.lost(), config.model.dtype)
    shown = frames["change_by_layer"][frames["change_by_layer"].language.isin(config.lang)]
    plotted = {"change": figures.change_bars(shown), "loss": figures.loss_curves(raw_terms(frames["loss"]))}
    page = Section(
        f"Sentences of the {config.split} split",
        {name: run.figure(name, figure) for name, figure in plotted.items()},
        report.train_tables(frames, config.lang, reference),
        "\n\n".join(
            text for text in (lost, report.loss_text(config, substitutes(config)), report.training_text(frames, config.lang, reference)) if text
        ),
    )
    report.write_training(run.folder, config, [page, report.continuation_section(frames["continuations"])], identity, resampling)
    title = f"{text_of(resampling, config.split)}; gaps against {reference} under the base model"
    show(report.train_rows(frames, config.lang), title=title)
    show(report.retention_rows(frames), title=f"Retention of {reference}")
    show(report.bits_rows(frames, (*config.lang, reference)), title="Bits per byte (compare within a language only)")
    for caution in (*([lost] if lost else ()), *cautions_of(resampling, config.statistics.block)):
        note(caution)


def batch_loss(config: TrainConfig, components: Components, corpus: ParallelCorpus, text: ParallelCorpus) -> BatchLoss:
    """The combined loss, with everything that it takes from the base model.

    Args:
        corpus: the training sentences, unchanged.
        text: the languages to train on, possibly changed by a control.
    """
    lm, layers, reference = components.lm, loss_layers(config, components.layers), config.languages.reference
    dictionaries = {layer: components.sae_sets[MEASURING][layer] for layer in layers}
    if config.loss.control == "random_features":
        sample = pooled_sample(lm, corpus, layers, tokens=SAMPLE_TOKENS, batch_tokens=config.batch_tokens)
        dictionaries = random_dictionaries(dictionaries, sample, config.seed)
    settings = CacheSettings(config.batch_tokens, config.trainer.precision, config.cache)
    base = cached_reference(lm, dictionaries, corpus, reference, settings, profiles=config.loss.gap.objective == "profile")
    targets = base.shuffled(config.seed) if config.loss.control == "shuffled_pairs" else base
    top = config.loss.retention.top
    predictions = {code: cached_predictions(lm, text, code, settings, top=top) for code in compared_by_kl(config) if top is not None}
    anchors = {code: cached_anchor(lm, dictionaries, text, code, settings) for code in anchored(config)}
    return BatchLoss(lm, dictionaries, BaseOutputs(base, targets, predictions, anchors), reference, _layer_weights(config, layers), config.loss)


def compared_by_kl(config: TrainConfig) -> tuple[str, ...]:
    """The languages whose next-token distributions the loss compares with the base model's."""
    retention, reference = config.loss.retention, config.languages.reference
    compared = (reference,) if retention.kl > 0 or retention.limit is not None else ()
    return (*compared, *config.lang) if retention.target_kl > 0 else compared


def anchored(config: TrainConfig) -> tuple[str, ...]:
    """The languages whose norms or fit the loss compares with the base model's."""
    gap, retention = config.loss.gap, config.loss.retention
    if retention.norm > 0:
        return (*config.lang, config.languages.reference)
    return config.lang if retention.fit > 0 or (gap.weight > 0 and gap.norm_matched) else ()


def raw_terms(history: pd.DataFrame) -> pd.DataFrame:
    """The step, the raw loss terms under their own names, and the multiplier if there is one."""
    return history.filter(regex="^(step|multiplier)$|^loss/raw/").rename(columns=lambda name: name.removeprefix("loss/raw/"))


def _layer_weights(config: TrainConfig, layers: tuple[int, ...]) -> torch.Tensor:
    """The weights of the layers, Float[" layer"], which sum to 1."""
    given = config.loss.gap.layers
    weights = torch.tensor([given[layer] if isinstance(given, dict) else 1.0 for layer in layers])
    return weights / weights.sum()


def training_sentences(run: Run, config: TrainConfig, corpus: ParallelCorpus) -> ParallelCorpus:
    """The split train of the measured corpus, or the training corpus if there is one."""
    if config.train_corpus is None:
        return corpus.split("train", config.corpus.splits)
    codes = (config.languages.reference, *config.lang, *substitutes(config).values())
    sentences, identity = load_training_text(config.train_corpus, codes, corpus)
    run.identify(train_corpus=identity)
    return sentences


def training_text(config: TrainConfig, corpus: ParallelCorpus) -> ParallelCorpus:
    """The sentences in the reference and the target languages, or in their substitute languages."""
    spoken = corpus.speaking((*config.lang, config.languages.reference))
    return replace(spoken, texts=spoken.texts | {code: corpus.texts[other] for code, other in substitutes(config).items()})


def measure_change(
    components: Components, sae_sets: dict[str, Dictionaries], corpus: ParallelCorpus, config: TrainConfig, folder: Path | None = None
) -> Measurement:
    """Measure base model, adapter and norm-matched adapter on the same sentences in one pass. Raw statistics are saved in the folder."""
    return measure(
        components.lm,
        sae_sets,
        corpus,
        batch_tokens=config.batch_tokens,
        identity=components.identity | {"adapter": adapter_hash(components.lm.model)},
        wanted=Wanted(adapter=True, language_model=True),
        folder=folder,
    )


def summarise(config: TrainConfig, measured: Measurement, loss_layers: tuple[int, ...]) -> tuple[dict[str, pd.DataFrame], dict[str, float]]:
    """Tables and summary numbers of what the adapter changed, for every SAE set. Keys of the held-out set start with `heldout/`."""
    variants = {sae_set: changes.Variants.of(measured, sae_set) for sae_set in measured.sae_sets}
    frames, summary = changes.change_frames(variants, config.languages, config.statistics, loss_layers, config.lang, seed=config.seed)
    frames["bits"] = changes.change_bits_table(measured, MEASURING, config.statistics, config.seed)
    spoken = [code for code in config.languages.all if code != config.languages.reference]
    return frames, summary | changes.bits_summary(frames["bits"], spoken)


def objective(config: TrainConfig, components: Components, corpus: ParallelCorpus, loss_layers: tuple[int, ...]) -> float:
    """What sweeps maximise, on the dev split and with the measuring SAEs.

    Mean over targets of the norm-matched gap closed, minus the reference's KL in nats, minus the mean growth of the targets' FVU
    (`relu(ratio - 1)`), so that closing the gap by moving away from what the SAEs can represent does not win.
    """
    spoken = corpus.speaking((*config.lang, config.languages.reference))
    measured = measure_change(components, {MEASURING: components.sae_sets[MEASURING]}, spoken, config)
    variants = changes.Variants.of(measured, MEASURING)
    found = [changes.change(variants, code, config.languages, config.statistics, loss_layers, config.seed) for code in config.lang]
    kept = changes.retention(variants, config.languages.reference, config.statistics, config.seed)
    worse_fit = np.mean([max(0.0, change.fvu_ratio[0].mean() - 1) for change in found])
    return float(np.mean([change.closed_norm_matched[0] for change in found]) - kept["kl"][0] - worse_fit)
