"""Checkpoints of SAEs in training. Each process writes those of its own SAEs; any number of processes can go on from them."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lingact.errors import UserError
from lingact.runtime.distributed import all_gather, broadcast, rank, world
from lingact.runtime.tensor_files import load_tensors, save_tensors
from lingact.saes.trainers import SetTrainer

_NAME = re.compile(r"passes_(\d+)\.process_(\d+)_of_(\d+)\.ckpt")
_WHAT_TO_DO = "restore the right one, or delete it: the run then starts over, with the same result"


class Checkpoints:
    """The checkpoints in a folder: a file of each process, and for a moment those of before.

    Args:
        header: what the training depends on; checkpoints with another one are refused.
    """

    def __init__(self, folder: Path, header: dict[str, str]) -> None:
        self._folder, self._header = folder, header

    def save(self, trainers: Mapping[str, SetTrainer], done: int) -> None:
        """Write the state after so many passes. Older ones are removed when all processes have written."""
        path = self._folder / f"passes_{done}.process_{rank() + 1}_of_{world()}.ckpt"
        save_tensors({"header": self._header, "done": done, "sets": {name: trainer.state() for name, trainer in trainers.items()}}, path)
        all_gather(None)
        for other, (passes, _, of) in self._found().items() if rank() == 0 else ():
            if (passes, of) != (done, world()):
                other.unlink()

    def load(self, trainers: Mapping[str, SetTrainer]) -> int:
        """Continue from the last state that all processes have written. Returns the number of its passes; 0 if there is none.

        Raises:
            UserError: it is damaged, or of another run.
        """
        paths = broadcast(self._complete())  # one look into the folder for all processes
        if not paths:
            return 0
        # As many processes as before have the same SAEs as before.
        states = [self._read(path) for path in ([paths[rank()]] if len(paths) == world() else paths)]
        for name, trainer in trainers.items():
            trainer.load([state["sets"][name] for state in states])
        return states[0]["done"]

    def remove(self) -> None:
        """Remove all: they are several times as large as the SAEs."""
        for path in self._found():
            path.unlink(missing_ok=True)

    def _read(self, path: Path) -> dict[str, Any]:
        state = load_tensors(path)
        if state is None:
            raise UserError(f"'{path}' is truncated, damaged or not a checkpoint of SAEs; {_WHAT_TO_DO}")
        if state["header"] != self._header:
            raise UserError(f"'{path}' is a checkpoint of another run; {_WHAT_TO_DO}")
        return state

    def _complete(self) -> list[Path]:
        """The files of the last passes after which every process has written, in the order of processes. A kill may leave later ones of some."""
        together: dict[tuple[int, int], dict[int, Path]] = {}
        for path, (passes, process, of) in self._found().items():
            together.setdefault((passes, of), {})[process] = path
        whole = [key for key, files in together.items() if len(files) == key[1]]
        return [path for _, path in sorted(together[max(whole)].items())] if whole else []

    def _found(self) -> dict[Path, tuple[int, int, int]]:
        """File -> number of passes, process from 1, number of processes."""
        paths = self._folder.iterdir() if self._folder.is_dir() else ()
        matches = {path: match for path in paths if (match := _NAME.fullmatch(path.name))}
        return {path: (int(match[1]), int(match[2]), int(match[3])) for path, match in matches.items()}
