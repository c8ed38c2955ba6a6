"""Close the activation gap of chosen languages and hold the reference."""

from pathlib import Path

import numpy as np
import torch

from lingact import report, tables
from lingact.adapters import attach_lora, save_adapter
from lingact.config import TrainConfig
from lingact.corpus import ParallelCorpus
from lingact.data import AlignedBatches, AlignedData
from lingact.errors import UserError
from lingact.fitting import fit
from lingact.measure import BASE, Measurement, measure
from lingact.module import GapModule
from lingact.terminal import show
from lingact.tracking import open_run
from lingact.workflows.instruments import HELDOUT, MEASURING, Instruments, set_up


def run(config: TrainConfig, folder: Path) -> float:
    """Train an adapter, judge it on held-out sentences with both sets of SAEs. Returns the objective, computed on the dev split."""
    with open_run("train", config, config.tracking, folder) as run:
        instruments = set_up(run, config)
        splits = {name: instruments.corpus.split(name, config.corpus.splits) for name in ("train", "dev", "heldout")}
        loss_layers = _loss_layers(config, instruments)
        dictionaries = {layer: instruments.meters[MEASURING][layer] for layer in loss_layers}
        target = reference_activation(config, instruments, splits["train"], loss_layers)

        instruments.lm.model = attach_lora(instruments.lm.model, config.peft, config.seed)
        module = GapModule(instruments.lm, dictionaries, target, config.languages.reference, config.loss, config.optim, config.trainer.steps)
        spoken = splits["train"].speaking((*config.lang, config.languages.reference))
        batches = AlignedBatches(
            instruments.lm.tokens, spoken, sentences=config.trainer.sentences, count=config.trainer.steps * config.trainer.accumulate, seed=config.seed
        )
        fit(module, AlignedData(batches), config, run)
        save_adapter(instruments.lm.model, folder / "adapter", instruments.lm.identity["name"], instruments.lm.identity["sha256"])
        run.artifact(f"adapter-{'-'.join(config.lang)}", "adapter", folder / "adapter")

        measured = {}
        for name in ("dev", "heldout"):
            corpus = splits[name] if name == "heldout" else splits[name].speaking((*config.lang, config.languages.reference))
            meters = instruments.meters if name == "heldout" else {MEASURING: instruments.meters[MEASURING]}
            measured[name] = measure(
                instruments.lm, meters, corpus, batch_tokens=config.batch_tokens, identity=instruments.identity, with_adapter=True, language_model=True
            )
        measured["heldout"].save(folder / "stats")
        summary, changes = judge(config, measured["heldout"], instruments, loss_layers)
        for name, frame in changes.items():
            run.table(name, frame)
        summary["objective"] = objective(config, measured["dev"], loss_layers)
        run.summary(summary)
        show(report.train_rows(summary, config.lang), title=f"Held-out sentences ({len(splits['heldout'].ids)}), before and after; reference {config.languages.reference} frozen at the base model")
        show([{"adapter": str(folder / "adapter"), "objective (dev)": f"{summary['objective']:.3f}"}])
        return summary["objective"]


def _loss_layers(config: TrainConfig, instruments: Instruments) -> tuple[int, ...]:
    chosen = config.loss.gap.layers
    if chosen == "all":
        return instruments.layers
    beyond = [layer for layer in chosen if layer not in instruments.layers]
    if beyond:
        raise UserError(f"loss.gap.layers: {beyond} out of range; measured are the layers {list(instruments.layers)}")
    return tuple(sorted(set(chosen)))


def reference_activation(config: TrainConfig, instruments: Instruments, corpus: ParallelCorpus, layers: tuple[int, ...]) -> torch.Tensor:
    """A(l, reference) of the base model on the training sentences: the fixed target of the gap term."""
    reference = config.languages.reference
    dictionaries = {layer: instruments.meters[MEASURING][layer] for layer in layers}
    measured = measure(
        instruments.lm, {MEASURING: dictionaries}, corpus.speaking((reference,)), batch_tokens=config.batch_tokens, identity=instruments.identity
    )
    stats = measured.of(MEASURING, BASE)[reference]
    return torch.tensor(tables.activation(stats, np.ones((1, len(corpus.ids))), "token")[0], dtype=torch.float32)


def judge(config: TrainConfig, measured: Measurement, instruments: Instruments, loss_layers: tuple[int, ...]):  # noqa: ANN201 (summary, tables)
    """Summary numbers and tidy tables of what the adapter did, by every meter."""
    summary: dict[str, float] = {}
    frames = {"bits": tables.bits_table(measured, MEASURING, config.statistics, config.seed)}
    for meter in instruments.meters:
        prefix = "" if meter == MEASURING else f"{meter}/"
        changes = {
            code: tables.change(measured, meter, code, config.languages, config.statistics, loss_layers, config.seed) for code in measured.of(meter, BASE)
        }
        ...
    return summary, frames
