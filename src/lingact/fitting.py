"""Run Lightning quietly, with resumable checkpoints that hold the adapter alone."""

import logging
import warnings
from typing import TYPE_CHECKING

from lingact.config import TrainConfig
from lingact.data import AlignedData
from lingact.module import GapModule
from lingact.tracking import Run

if TYPE_CHECKING:
    import pytorch_lightning as pl

LAST = "last.ckpt"


def fit(module: GapModule, data: AlignedData, config: TrainConfig, run: Run) -> "pl.Trainer":
    """Train for `trainer.steps` optimiser steps; goes on from `checkpoints/last.ckpt` if the run folder has one.

    Raises:
        KeyboardInterrupt: the user or the system asked to stop; the last checkpoint stays.
    """
    import pytorch_lightning as pl
    from pytorch_lightning.callbacks import ModelCheckpoint, TQDMProgressBar
    from pytorch_lightning.loggers import WandbLogger

    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    checkpoints = run.folder / "checkpoints"
    device = next(module.parameters()).device
    trainer = pl.Trainer(
        accelerator="cpu" if device.type == "cpu" else "gpu",
        devices=1 if device.index is None else [device.index],
        precision=config.trainer.precision,
        max_steps=config.trainer.steps,
        max_epochs=-1,
        accumulate_grad_batches=config.trainer.accumulate,
        gradient_clip_val=config.trainer.gradient_clip,
        logger=WandbLogger(experiment=run.tracker),
        log_every_n_steps=1,
        enable_model_summary=False,
        callbacks=[
            TQDMProgressBar(refresh_rate=1, leave=True),
            ModelCheckpoint(
                dirpath=checkpoints, filename="last", every_n_train_steps=config.trainer.checkpoint_every, save_top_k=1, enable_version_counter=False
            ),
        ],
    )
    last = checkpoints / LAST
    with warnings.catch_warnings():
        # Our loader is its own iterable, and the base model stays in eval mode: both on purpose.
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")
        warnings.filterwarnings("ignore", message=".*exists and is not empty.*")
        warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)  # between Lightning and torch
        try:
            trainer.fit(module, data, ckpt_path=last if last.exists() else None, weights_only=True)
        except SystemExit as stopped:
            # Lightning turns an interrupt into an exit of its own.
            raise KeyboardInterrupt from stopped
    module.model.eval()
    return trainer
