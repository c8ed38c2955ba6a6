"""Long passes over text that can be resumed and shared among processes: the state is saved at intervals, continued, and merged."""

import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from tqdm import tqdm

from lingact.errors import UserError
from lingact.files.states import read_state, refuse_mismatched, save_state
from lingact.runtime import distributed, interrupts
from lingact.runtime.distributed import all_reduce, broadcast, rank

SAVE_EVERY = 15.0
"""Seconds between saves. A killed run loses at most the work of this time and of one step."""
Step = TypeVar("Step")
Merge = Callable[[dict[str, np.ndarray]], None]
"""Adds the arrays of a state that includes other steps."""


def resumable(  # noqa: PLR0913 (the parts of a pass)
    path: Path | None,
    header: dict[str, str],
    state: dict[str, np.ndarray],
    steps: Sequence[Step],
    add: Callable[[Step], None],
    *,
    tokens: Callable[[Step], int],
    bar: tqdm,
    merge: Merge | None = None,
) -> None:
    """Run `add` on every step that is not in `state` yet.

    Several processes (`distributed.process_group`) share the steps, each with a file of its own next to `path`. In the end all have the state of all
    steps, and the first one writes it. An interrupted pass can be resumed with any number of processes.

    Args:
        path: file of the state (safetensors). It is saved every `SAVE_EVERY` seconds, after the current step when the pass is interrupted, and at
            the end. An existing state is continued. None: nothing is saved.
        header: hashes of everything that the numbers depend on.
        state: arrays that `add` changes in place; empty at first.
        steps: the same steps in the same order each time.
        tokens: the length of a step on the bar.
        bar: from `token_bar`; it starts at the steps that were done before.
        merge: adds a state of other steps to `state`. None: arrays of the same name are summed.

    Raises:
        UserError: the file at `path` belongs to another run, or another process has ended.
    """
    merge = merge or partial(add_up, state)
    own_rank, world = rank(), distributed.world()
    done = set(broadcast(restore(path, header, state, len(steps), merge) if path is not None and own_rank == 0 else set()))
    bar.update(sum(tokens(steps[number]) for number in done))
    # The steps that were done before say nothing about the speed of this process.
    bar.unpause()
    left = [number for number in range(len(steps)) if number not in done]
    own_path, own_steps = (path, set(done)) if own_rank == 0 else (path and _part_of(path, own_rank), set())
    saved = time.monotonic()

    def save() -> None:
        if own_path is not None:
            save_state(own_path, header, state, own_steps, len(steps))

    for start in range(0, len(left), world):
        turn = left[start : start + world]
        with saved_when_interrupted(save) if own_path is not None else nullcontext():
            if own_rank < len(turn):
                add(steps[turn[own_rank]])
                own_steps.add(turn[own_rank])
            bar.update(sum(tokens(steps[number]) for number in turn))
            if start + world < len(left) and time.monotonic() - saved > SAVE_EVERY:
                save()
                saved = time.monotonic()
    all_reduce(state, merge)
    if path is not None and left and own_rank == 0:
        save_state(path, header, state, range(len(steps)), len(steps))
        # Only files of current processes exist; those of earlier ones were merged and removed when the pass began.
        for other in range(1, world):
            _part_of(path, other).unlink(missing_ok=True)


@contextmanager
def saved_when_interrupted(save: Callable[[], None]) -> Iterator[None]:
    """Finish the block before a signal interrupts, and save after it. A half-done step is never saved.

    Raises:
        KeyboardInterrupt: a signal has arrived.
    """
    with interrupts.deferred():
        yield
        if interrupts.pending():
            save()


def add_up(state: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    """Add each array to the one of the same name."""
    for name, array in other.items():
        state[name] += array


@contextmanager
def token_bar(total: int, title: str) -> Iterator[tqdm]:
    """A progress bar in tokens, with speed and remaining time."""
    with tqdm(total=total, desc=title, unit="tok", unit_scale=True, leave=False, dynamic_ncols=True, smoothing=0.1) as bar:
        yield bar


def restore(path: Path, header: dict[str, str], state: dict[str, np.ndarray], total: int, merge: Merge) -> set[int]:
    """Load a saved state into an empty one. The parts that other processes have saved are merged into the same file.

    Returns:
        The numbers of the steps that it includes.

    Raises:
        UserError: it belongs to another run.
    """
    done: set[int] = set()
    parts = _parts(path)
    for file in [path] * path.is_file() + parts:
        found, arrays, numbers, of = read_state(file)
        refuse_mismatched(found, header, f"'{file}'")
        if of != total or {name: array.shape for name, array in arrays.items()} != {name: array.shape for name, array in state.items()}:
            raise UserError(f"'{file}' has other statistics than those of this run; delete it or name another folder")
        if numbers <= done:
            continue  # it was merged, and then its process was killed
        merge(arrays)
        done |= numbers
    if parts:
        save_state(path, header, state, done, total)
        for part in parts:  # they are merged, and their header says that this run made them
            part.unlink()
    return done


def _part_of(path: Path, process: int) -> Path:
    """The file of a process of rank > 0."""
    return path.with_name(f"{path.stem}.process{process}{path.suffix}")


def _parts(path: Path) -> list[Path]:
    name = re.compile(rf"{re.escape(path.stem)}\.process[1-9]\d*{re.escape(path.suffix)}")
    return sorted(part for part in path.parent.iterdir() if name.fullmatch(part.name)) if path.parent.is_dir() else []
