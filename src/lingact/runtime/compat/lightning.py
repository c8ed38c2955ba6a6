"""PyTorch Lightning and torch's distributed data parallelism, which it uses."""

import subprocess
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytorch_lightning as pl
    from lightning_fabric.strategies import Strategy as FabricStrategy
    from pytorch_lightning.strategies import Strategy
    from torch import nn


def checkpoint_of(trainer: "pl.Trainer") -> dict[str, object]:
    """The state of a training as Lightning would save it, without waiting for other processes. The tensors are not copied.

    Versions: pytorch-lightning 2.5 to 2.6.6.
    Reason: in `Trainer.save_checkpoint` all processes wait for each other. Here the first process keeps its own state after every step while it
    holds signals back, and would wait for a process that was interrupted before its own step.
    Upstream: none known.
    """
    return trainer._checkpoint_connector.dump_checkpoint(weights_only=False)


def started_processes(strategy: "Strategy | FabricStrategy") -> list[subprocess.Popen[bytes]]:
    """The processes that Lightning has started for this run: its own list, which the caller may empty.

    Versions: pytorch-lightning 2.5 to 2.6.6.
    Reason: a thread of Lightning watches the processes of this list, and kills this process without a message when one of them ends with an error.
    The launcher that has the list is a private class.
    Upstream: https://github.com/Lightning-AI/pytorch-lightning/pull/18218, which added that thread.
    """
    return getattr(strategy.launcher, "procs", [])


def leave_out_of_ddp(module: "nn.Module", names: Iterable[str]) -> None:
    """Let DistributedDataParallel ignore parameters of a module that it is going to wrap.

    Versions: torch 2.6 to 2.13.
    Reason: parameters that are divided among processes (FSDP) cannot be broadcast by DDP, whose constructor takes no list of what to ignore.
    Upstream: https://github.com/pytorch/pytorch/issues/43690, open.

    Args:
        names: full names of the parameters within the module.
    """
    from torch.nn.parallel import DistributedDataParallel

    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, list(names))
