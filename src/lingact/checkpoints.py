"""Checkpoints of a training run: whole or not there, and of this run or refused."""

import hashlib
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

from lingact.errors import UserError
from lingact.finite import describe, nonfinite
from lingact.tracking import differences, write_atomically

_HEADER = "lingact"
_TRAINED = ("state_dict", "optimizer_states")
"""Parts of a checkpoint that the training goes on with; callbacks may begin with infinite scores."""
_DIGEST = hashlib.sha256().digest_size


class RunCheckpoints(TorchCheckpointIO):
    """A Lightning plugin, because Lightning writes in the system's temporary folder and moves the file, which from disk to disk is a copy.

    A file is what `torch.save` writes, and behind it its sha256: torch notices few damages. `torch.load` can read it, too. One checkpoint is
    enough: only a fault of the disk can damage it, and without it the run starts over to the same result.

    Args:
        header: what the run depends on (`Run.header`). Loading into the module is not strict, since checkpoints hold the adapter alone; so of a
            checkpoint of another run it would take whatever fits.
    """

    def __init__(self, header: Mapping[str, str]) -> None:
        super().__init__()
        self.header = dict(header)

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: object = None) -> None:  # noqa: ARG002 (Lightning's)
        """Write it beside its place, to the disk, and move it there.

        Raises:
            OSError: with the file's name; the checkpoint that was there still is.
        """
        content = io.BytesIO()
        torch.save(checkpoint | {_HEADER: self.header}, content)
        content.write(hashlib.sha256(content.getbuffer()).digest())
        write_atomically(Path(path), content.getbuffer())

    def load_checkpoint(self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = True) -> dict[str, Any]:  # noqa: ARG002
        """Read tensors and plain values, never code, whatever `weights_only` says.

        Raises:
            UserError: it is cut short, damaged or of another run.
        """
        content = memoryview(Path(path).read_bytes())
        saved, digest = content[:-_DIGEST], content[-_DIGEST:]
        what_to_do = "put the right one back, or delete it: the run then starts over, to the same result"
        if hashlib.sha256(saved).digest() != digest:
            raise UserError(f"'{path}' is cut off, damaged or no checkpoint of train.py; {what_to_do}")
        checkpoint = torch.load(io.BytesIO(saved), map_location=map_location, weights_only=True)
        if different := differences(checkpoint[_HEADER], self.header):
            raise UserError(f"'{path}' is a checkpoint of another run ({'; '.join(different)}); {what_to_do}")
        if spoiled := nonfinite(_tensors({name: checkpoint.get(name) for name in _TRAINED})):
            raise UserError(f"'{path}': {describe(spoiled)}; training cannot go on from there. Delete it: the run then starts over")
        return checkpoint


def _tensors(node: Any, path: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """All tensors of a checkpoint with their places: weights, moments of the optimiser."""
    if isinstance(node, torch.Tensor):
        yield path, node
    parts = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for name, value in parts:
        yield from _tensors(value, f"{path}.{name}" if path else str(name))
