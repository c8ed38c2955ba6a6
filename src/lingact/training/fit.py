"""Run Lightning without its own messages, and with resumable checkpoints that contain only the adapter."""

import logging
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from lingact.config.jobs import TrainConfig
from lingact.errors import UserError
from lingact.models.adapters import attach_adapter, save_adapter
from lingact.models.lm import load_model
from lingact.runtime.compat.lightning import started_processes
from lingact.runtime.distributed import cluster_environment, terminated_on_failure
from lingact.runtime.environment import shape
from lingact.runtime.tracking import Run, surviving_tracking
from lingact.training.batches import AlignedData
from lingact.training.checkpoints import CHECKPOINTS, CheckpointCallback, LastStep, last_checkpoint
from lingact.training.module import Diverged, GapModule

if TYPE_CHECKING:
    import pytorch_lightning as pl


def fit(module: GapModule, data: AlignedData, config: TrainConfig, run: Run) -> "pl.Trainer":
    """Train for `trainer.steps` optimiser steps, continuing from `checkpoints/last.ckpt` if the run folder has one.

    Raises:
        KeyboardInterrupt: the user or the system asked to stop. Every complete step is saved.
        UserError: the loss is no longer finite. The adapter before that step is in `checkpoints/last_good`.
    """
    device = next(module.parameters()).device
    last = last_checkpoint(run.folder)
    trainer = _trainer(module, config, run, last)
    try:
        with _expected_warnings_ignored(), terminated_on_failure(lambda: started_processes(trainer.strategy)):
            trainer.fit(module, data, ckpt_path=last if last.exists() else None, weights_only=True)
    except SystemExit as stopped:
        # Lightning turns an interrupt into an exit of its own.
        raise KeyboardInterrupt from stopped
    except Diverged as error:
        if run.first:  # all processes have the same loss and gradient; the first one reports it
            raise _diverged(error, module, data, run) from error
        return trainer
    if trainer.world_size > 1:
        torch.distributed.destroy_process_group()
    if not module.batch_loss.lm.sharded:
        # Lightning leaves the model on the CPU.
        module.model.to(device)
    elif run.first:
        _load_whole_model(module, config)
    return trainer


def _trainer(module: GapModule, config: TrainConfig, run: Run, last: Path) -> "pl.Trainer":
    import pytorch_lightning as pl
    from pytorch_lightning.callbacks import LambdaCallback, TQDMProgressBar
    from pytorch_lightning.loggers import WandbLogger

    class Tracker(WandbLogger):
        def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
            with surviving_tracking():
                super().log_metrics(metrics, step)

    class Progress(TQDMProgressBar):
        def get_metrics(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> dict[str, int | str | float | dict[str, float]]:  # noqa: ARG002 (Lightning's)
            return {name: value for name, value in trainer.progress_bar_metrics.items() if name == "loss"}  # none at first

    settings = config.trainer
    device = next(module.parameters()).device
    devices, nodes = shape(settings.devices, settings.nodes, os.environ)
    several = devices * nodes > 1
    checkpoints = LastStep(run.header)
    # Before the trainer is made, because making it logs messages.
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return pl.Trainer(
        accelerator="cpu" if device.type == "cpu" else "gpu",
        devices=devices if devices > 1 or device.index is None else [device.index],
        num_nodes=nodes,
        strategy="auto" if not several else "ddp" if module.batch_loss.reaches_all else "ddp_find_unused_parameters_true",
        use_distributed_sampler=False,
        plugins=[checkpoints, cluster_environment(nodes)],
        default_root_dir=run.folder / CHECKPOINTS,  # under Slurm, Lightning looks here for checkpoints of its own
        precision=settings.precision,
        max_steps=settings.steps,
        max_epochs=-1,
        gradient_clip_val=settings.gradient_clip,
        logger=Tracker(experiment=run.tracker),
        log_every_n_steps=1,
        enable_model_summary=False,
        enable_checkpointing=False,
        callbacks=[
            Progress(refresh_rate=1, leave=True),
            LambdaCallback(on_train_start=_keep_sigterm_handler()),
            CheckpointCallback(checkpoints, last, every=settings.checkpoint_every, minutes=settings.checkpoint_minutes),
        ],
    )


@contextmanager
def _expected_warnings_ignored() -> Iterator[None]:
    """Without warnings about what is intended, or about one library's use of another."""
    with warnings.catch_warnings():
        # Our loader is its own iterable, and the base model stays in eval mode.
        for message in (".*does not have many workers.*", ".*in eval mode at the start of training.*", ".*srun.*"):
            warnings.filterwarnings("ignore", message=message)
        warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)  # Lightning uses a deprecated class of torch
        yield


def _diverged(error: Diverged, module: GapModule, data: AlignedData, run: Run) -> UserError:
    """Save the adapter as it was before the loss became non-finite, and return the error for the user."""
    good, identity = run.folder / CHECKPOINTS / "last_good", module.batch_loss.lm.identity
    save_adapter(module.model, good, identity["name"], identity["sha256"])
    ids = ", ".join(data.batches.ids[place] for place in error.sentences)
    return UserError(
        f"training stopped at step {error.step}: {error.what}. Its sentences: {ids}. The adapter from before that step is in '{good}'. Lower "
        "optim.lr, raise optim.warmup_steps, or use trainer.precision=32-true"
    )


def _load_whole_model(module: GapModule, config: TrainConfig) -> None:
    """Replace this process's share of the model by the whole model with the trained adapter, because the first process measures alone."""
    trained, lm = module.state_dict(), module.batch_loss.lm
    whole = load_model(config.model, config.device)
    module.model = lm.model = attach_adapter(whole.model, whole.blocks, config.peft, config.seed).eval()
    lm.blocks, lm.sharded = whole.blocks, False
    module.load_state_dict(trained, strict=False)


def _keep_sigterm_handler() -> Callable[..., None]:
    """A hook that restores the current handler of SIGTERM when training starts.

    Lightning's handler sends a message to the other processes. They do not receive it while they wait for this one in the middle of a step: deadlock.
    """
    handler = signal.getsignal(signal.SIGTERM)

    def restore(*_: object) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)

    return restore
