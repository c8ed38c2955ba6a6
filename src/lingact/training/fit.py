"""Run Lightning quietly, with resumable checkpoints that hold the adapter alone."""

import logging
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lingact.config.jobs import TrainConfig
from lingact.errors import UserError
from lingact.models.adapters import attach_adapter, save_adapter
from lingact.models.lm import load_model
from lingact.runtime.compat.lightning import started_processes
from lingact.runtime.distributed import cluster_environment, ending
from lingact.runtime.environment import shape
from lingact.runtime.tracking import Run, surviving_tracking
from lingact.training.batches import AlignedData
from lingact.training.checkpoints import CHECKPOINTS, Keeper, LastStep, last_checkpoint
from lingact.training.module import Diverged, GapModule

if TYPE_CHECKING:
    import pytorch_lightning as pl


def fit(module: GapModule, data: AlignedData, config: TrainConfig, run: Run) -> "pl.Trainer":
    """Train for `trainer.steps` optimiser steps; goes on from `checkpoints/last.ckpt` if the run folder has one.

    Raises:
        KeyboardInterrupt: the user or the system asked to stop; every whole step is kept.
        UserError: the loss is no finite number any more; the adapter as it was before is in `checkpoints/last_good`.
    """
    device = next(module.parameters()).device
    last = last_checkpoint(run.folder)
    trainer = _trainer(module, config, run, last)
    try:
        with _quiet(), ending(lambda: started_processes(trainer.strategy)):
            trainer.fit(module, data, ckpt_path=last if last.exists() else None, weights_only=True)
    except SystemExit as stopped:
        # Lightning turns an interrupt into an exit of its own.
        raise KeyboardInterrupt from stopped
    except Diverged as error:
        if run.first:  # All processes have the same loss and gradient; the first one tells.
            raise _told(error, module, data, run) from error
        return trainer
    if trainer.world_size > 1:
        torch.distributed.destroy_process_group()
    if not module.batch_loss.lm.sharded:
        # Lightning leaves the model on the CPU.
        module.model.to(device)
    elif run.first:
        _load_again(module, config)
    return trainer


def _trainer(module: GapModule, config: TrainConfig, run: Run, last: Path) -> "pl.Trainer":
    import pytorch_lightning as pl
    from pytorch_lightning.callbacks import LambdaCallback, TQDMProgressBar
    from pytorch_lightning.loggers import WandbLogger

    class Tracker(WandbLogger):
        def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:  # pyrefly: ignore[bad-override] (Lightning's annotation)
            with surviving_tracking():
                super().log_metrics(metrics, step)

    class Progress(TQDMProgressBar):
        def get_metrics(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> dict[str, Any]:  # noqa: ARG002 (Lightning's)
            return {name: value for name, value in trainer.progress_bar_metrics.items() if name == "loss"}  # none at first

    settings = config.trainer
    device = next(module.parameters()).device
    devices, nodes = shape(settings.devices, settings.nodes, os.environ)
    several = devices * nodes > 1
    checkpoints = LastStep(run.header)
    # Before the trainer is made, because that has something to say, too.
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return pl.Trainer(
        accelerator="cpu" if device.type == "cpu" else "gpu",
        devices=devices if devices > 1 or device.index is None else [device.index],
        num_nodes=nodes,
        strategy="auto" if not several else "ddp" if module.batch_loss.reaches_all else "ddp_find_unused_parameters_true",
        use_distributed_sampler=False,
        plugins=[checkpoints, cluster_environment(nodes)],
        default_root_dir=run.folder / CHECKPOINTS,  # under Slurm Lightning looks there for checkpoints of its own
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
            LambdaCallback(on_train_start=_own_handler_of_sigterm()),
            Keeper(checkpoints, last, every=settings.checkpoint_every, minutes=settings.checkpoint_minutes),
        ],
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without warnings of what is so on purpose, or between libraries."""
    with warnings.catch_warnings():
        # Our loader is its own iterable, and the base model stays in eval mode.
        for message in (".*does not have many workers.*", ".*in eval mode at the start of training.*", ".*srun.*"):
            warnings.filterwarnings("ignore", message=message)
        warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)  # between Lightning and torch
        yield


def _told(error: Diverged, module: GapModule, data: AlignedData, run: Run) -> UserError:
    """What the user has to know of a loss that is no number, and the adapter as it was before."""
    good, identity = run.folder / CHECKPOINTS / "last_good", module.batch_loss.lm.identity
    save_adapter(module.model, good, identity["name"], identity["sha256"])  # pyrefly: ignore[bad-argument-type]
    ids = ", ".join(data.batches.ids[place] for place in error.sentences)
    return UserError(
        f"training stopped at step {error.step}: {error.what}. Its sentences: {ids}. The adapter as it was before that step is in '{good}'. Lower "
        "optim.lr, raise optim.warmup_steps, or use trainer.precision=32-true"
    )


def _load_again(module: GapModule, config: TrainConfig) -> None:
    """The whole model with the trained adapter in the place of this process's share: the first process measures alone."""
    trained, lm = module.state_dict(), module.batch_loss.lm
    whole = load_model(config.model, config.device)
    module.model = lm.model = attach_adapter(whole.model, whole.blocks, config.peft, config.seed).eval()
    lm.blocks, lm.sharded = whole.blocks, False
    module.load_state_dict(trained, strict=False)


def _own_handler_of_sigterm() -> Callable[..., None]:
    """A hook that puts back the handler of SIGTERM that is there now.

    Lightning's sends the other processes a message, which they do not take while they wait for this one in the middle of a step: all stand still.
    """
    handler = signal.getsignal(signal.SIGTERM)

    def put_back(*_: object) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)

    return put_back
