"""Checkpoints of SAEs in training. Each process keeps those of its own SAEs."""

import re
from collections.abc import Mapping
from pathlib import Path

from lingact.errors import UserError
from lingact.runtime.distributed import all_gather, rank, world
from lingact.runtime.tensor_files import load_tensors, save_tensors
from lingact.saes.trainers import SetTrainer

_NAME = re.compile(r"passes_(\d+)\.process_(\d+)_of_(\d+)\.ckpt")
_WHAT_TO_DO = "restore the right one, or delete it: the run then starts over, with the same result"


class Checkpoints:
    """The checkpoints in a folder: of each process the last one, and for a moment the one before.

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
        for passes, other in self._own().items():
            if passes != done:
                other.unlink()

    def load(self, trainers: Mapping[str, SetTrainer]) -> int:
        """Continue from the last state that all processes have. Returns the number of its passes; 0 if there is none.

        Raises:
            UserError: it is damaged, of another run, or of another number of processes.
        """
        own = self._own()
        if not own and (others := sorted({int(count) for _, _, count in self._found().values()})):
            raise UserError(f"'{self._folder}' has checkpoints of {others[0]} processes; go on with devices={others[0]}, or {_WHAT_TO_DO}")
        done = max(set.intersection(*map(set, all_gather(list(own)))), default=0)
        if not done:
            return 0
        state = load_tensors(own[done])
        if state is None:
            raise UserError(f"'{own[done]}' is truncated, damaged or not a checkpoint of SAEs; {_WHAT_TO_DO}")
        if state["header"] != self._header:
            raise UserError(f"'{own[done]}' is a checkpoint of another run; {_WHAT_TO_DO}")
        for name, trainer in trainers.items():
            trainer.load(state["sets"][name])
        return done

    def remove(self) -> None:
        """Remove all: they are several times as large as the SAEs."""
        for path in self._found():
            path.unlink(missing_ok=True)

    def _own(self) -> dict[int, Path]:
        """Passes -> the file of this process."""
        found = self._found().items()
        return {int(passes): path for path, (passes, process, of) in found if (int(process), int(of)) == (rank() + 1, world())}

    def _found(self) -> dict[Path, tuple[str, str, str]]:
        paths = self._folder.iterdir() if self._folder.is_dir() else ()
        matches = {path: match.groups() for path in paths if (match := _NAME.fullmatch(path.name))}
        return {path: (passes, process, of) for path, (passes, process, of) in matches.items()}
