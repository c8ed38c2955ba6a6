"""Run Lightning quietly, with resumable checkpoints that hold the adapter alone."""

import logging
import math
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from lingact.adapters import attach_adapter, save_adapter
from lingact.checkpoints import RunCheckpoints
from lingact.config import TrainConfig
from lingact.data import AlignedData
from lingact.errors import UserError
from lingact.lm import load_model
from lingact.module import Diverged, GapModule
from lingact.tracking import Run

if TYPE_CHECKING:
    import pytorch_lightning as pl

LAST = "last.ckpt"


def fit(module: GapModule, data: AlignedData, config: TrainConfig, run: Run) -> "pl.Trainer":
    """Train for `trainer.steps` optimiser steps; goes on from `checkpoints/last.ckpt` if the run folder has one.

    Raises:
        KeyboardInterrupt: the user or the system asked to stop; the last checkpoint stays.
        UserError: the loss is no finite number any more; the adapter as it was before is in `checkpoints/last_good`.
    """
    import pytorch_lightning as pl
    from pytorch_lightning.callbacks import LambdaCallback, ModelCheckpoint, TQDMProgressBar

    class Progress(TQDMProgressBar):
        def get_metrics(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> dict[str, Any]:  # noqa: ARG002 (Lightning's)
            return {"loss": trainer.progress_bar_metrics.get("loss", math.nan)}

    from pytorch_lightning.loggers import WandbLogger

    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    checkpoints = run.folder / "checkpoints"
    several = config.trainer.devices * config.trainer.nodes > 1
    device = next(module.parameters()).device
    trainer = pl.Trainer(
        accelerator="cpu" if device.type == "cpu" else "gpu",
        devices=config.trainer.devices if config.trainer.devices > 1 or device.index is None else [device.index],
        num_nodes=config.trainer.nodes,
        strategy="auto" if not several else "ddp" if module.batch_loss.reaches_all else "ddp_find_unused_parameters_true",
        use_distributed_sampler=False,
        plugins=[RunCheckpoints(run.header)],
        precision=config.trainer.precision,
        max_steps=config.trainer.steps,
        max_epochs=-1,
        gradient_clip_val=config.trainer.gradient_clip,
        logger=WandbLogger(experiment=run.tracker),
        log_every_n_steps=1,
        enable_model_summary=False,
        callbacks=[
            Progress(refresh_rate=1, leave=True),
            LambdaCallback(on_train_start=_own_handler_of_sigterm()),
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
            with _alone_after_failure(trainer):
                trainer.fit(module, data, ckpt_path=last if last.exists() else None, weights_only=True)
        except SystemExit as stopped:
            # Lightning turns an interrupt into an exit of its own.
            raise KeyboardInterrupt from stopped
        except Diverged as error:
            if not run.first:  # All processes have the same loss and gradient; the first one tells.
                return trainer
            good = checkpoints / "last_good"
            identity = module.batch_loss.lm.identity
            save_adapter(module.model, good, identity["name"], identity["sha256"])  # pyrefly: ignore[bad-argument-type]
            ids = ", ".join(data.batches.ids[place] for place in error.sentences)
            raise UserError(
                f"training stopped at step {error.step}: {error.what}. Its sentences: {ids}. The adapter as it was before that step is in '{good}'. "
                "Lower optim.lr, raise optim.warmup_steps, or use trainer.precision=32-true"
            ) from error
    if several:
        torch.distributed.destroy_process_group()
    if not module.batch_loss.lm.sharded:
        # Lightning leaves the model on the CPU.
        module.model.to(device)
    elif run.first:
        _load_again(module, config)
    return trainer


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


@contextmanager
def _alone_after_failure(trainer: "pl.Trainer") -> Iterator[None]:
    """Where training fails, end the processes that Lightning has started beside this one: they would wait for it.

    They are forgotten, too. Lightning watches them, and would kill this process for their deaths some seconds later, in the middle of whatever it
    does then, such as the next job of a sweep.
    """
    try:
        yield
    except BaseException:
        processes = getattr(trainer.strategy.launcher, "procs", [])
        for process in processes:
            process.kill()
            process.wait()
        processes.clear()
        raise
