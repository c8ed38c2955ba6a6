"""Long passes over text that survive being killed and are shared out over processes: states are saved as they go, continued, and put together."""

import hashlib
import json
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from tqdm import tqdm

from lingact.errors import UserError
from lingact.files.atomic import write_atomically
from lingact.files.earlier import present_entries
from lingact.runtime import distributed, interrupts
from lingact.runtime.distributed import all_reduce, broadcast, rank

SAVE_EVERY = 15.0
"""Seconds between saves: what a killed run loses at most, beside the step that it was in."""
Step = TypeVar("Step")
Merge = Callable[[dict[str, np.ndarray]], None]
"""Takes the arrays of a state of other steps in."""


def resumable(  # noqa: PLR0913 (all that a pass is made of)
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

    Several processes (`ranks.joined`) take turns in the steps, each with a file of its own beside `path`; in the end all have the state of all
    steps, and the first one writes it. An interrupted pass goes on with any number of processes.

    Args:
        path: where the state is kept (safetensors), saved every `SAVE_EVERY` seconds, when the pass is interrupted (which finishes the step) and at
            the end; what is there already is continued. None: nothing is saved.
        header: identity of everything the numbers depend on.
        state: arrays that `add` changes in place; of no step yet.
        steps: the same ones in the same order each time.
        tokens: how much of the bar a step is.
        bar: from `token_bar`; finished steps advance it at once.
        merge: takes the state of other steps into `state`. None: they are added up.

    Raises:
        UserError: the file at `path` is of something else, or another process has ended.
    """
    merge = merge or partial(add_up, state)
    place, world = rank(), distributed.world()
    done = set(broadcast(restore(path, header, state, len(steps), merge) if path is not None and place == 0 else set()))
    bar.update(sum(tokens(steps[number]) for number in done))
    # What was measured by an earlier process says nothing about the speed of this one.
    bar.unpause()
    left = [number for number in range(len(steps)) if number not in done]
    own, inside = (path, set(done)) if place == 0 else (path and _beside(path, place), set())
    saved = time.monotonic()

    def save() -> None:
        if own is not None:
            save_state(own, header, state, inside, len(steps))

    for start in range(0, len(left), world):
        turn = left[start : start + world]
        with saved_when_interrupted(save) if own is not None else nullcontext():
            if place < len(turn):
                add(steps[turn[place]])
                inside.add(turn[place])
            bar.update(sum(tokens(steps[number]) for number in turn))
            if start + world < len(left) and time.monotonic() - saved > SAVE_EVERY:
                save()
                saved = time.monotonic()
    all_reduce(state, merge)
    if path is not None and left and place == 0:
        save_state(path, header, state, range(len(steps)), len(steps))
        # Those of processes that are here now; others' were taken in, and removed, when the pass began.
        for other in range(1, world):
            _beside(path, other).unlink(missing_ok=True)


@contextmanager
def saved_when_interrupted(save: Callable[[], None]) -> Iterator[None]:
    """Finish the block before a signal interrupts, and then save; half of a step is never saved.

    Raises:
        KeyboardInterrupt: a signal has arrived.
    """
    with interrupts.held():
        yield
        if interrupts.pending():
            save()


def add_up(state: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    """Add the other arrays to those of the same names."""
    for name, array in other.items():
        state[name] += array


@contextmanager
def token_bar(total: int, title: str) -> Iterator[tqdm]:
    """A progress bar in tokens, with tokens per second and time left."""
    with tqdm(total=total, desc=title, unit="tok", unit_scale=True, leave=False, dynamic_ncols=True, smoothing=0.1) as bar:
        yield bar


def save_state(path: Path, header: dict[str, str], state: dict[str, np.ndarray], done: Collection[int], total: int) -> None:
    """Write the state of a pass, atomically, with the numbers of the steps that are in it and how many there are."""
    from safetensors.numpy import save

    # save() wants every array in memory of its own, in C order.
    arrays = {name: np.ascontiguousarray(array) for name, array in state.items()}
    described = {"header": json.dumps(header, sort_keys=True), "steps": json.dumps((len(done), total)), "sha256": digest(arrays)}
    if set(done) != set(range(len(done))):  # or else they are the first ones
        described["done"] = json.dumps(sorted(done))
    write_atomically(path, save(arrays, metadata=described))


def digest(arrays: Mapping[str, np.ndarray]) -> str:
    """sha256 of arrays, by which damages are noticed that the format does not notice."""
    found = hashlib.sha256()
    for name in sorted(arrays):
        found.update(name.encode())
        found.update(np.ascontiguousarray(arrays[name]).tobytes())
    return found.hexdigest()


def load_state(path: Path) -> tuple[dict[str, str], dict[str, np.ndarray], tuple[int, int]]:
    """Header, arrays, and how many steps of how many are in a saved state.

    Raises:
        UserError: the file is not there, damaged, or not one of ours.
    """
    header, arrays, done, total = _read(path)
    return header, arrays, (len(done), total)


def _read(path: Path) -> tuple[dict[str, str], dict[str, np.ndarray], set[int], int]:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise UserError(f"'{path}' is not there; the run has not saved these statistics")
    try:
        with safe_open(path, framework="numpy") as file:
            described = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        if described.get("sha256", digest(arrays)) != digest(arrays):  # earlier versions kept none
            raise ValueError("its numbers are not those that were saved")
        count, total = json.loads(described["steps"])
        done = set(json.loads(described["done"])) if "done" in described else set(range(count))
        return present_entries(json.loads(described["header"])), arrays, done, total
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"'{path}' cannot be read as statistics of lingact ({error}); it is cut off or of something else: delete it") from None


def restore(path: Path, header: dict[str, str], state: dict[str, np.ndarray], total: int, merge: Merge) -> set[int]:
    """Take a saved state into one of no step yet, and the parts that other processes have saved beside it; they become one file.

    Returns:
        The numbers of the steps in it.

    Raises:
        UserError: it is of something else.
    """
    done: set[int] = set()
    parts = _parts(path)
    for file in [path] * path.is_file() + parts:
        found, arrays, numbers, of = _read(file)
        refuse_mismatched(found, header, f"'{file}'")
        if of != total or {name: array.shape for name, array in arrays.items()} != {name: array.shape for name, array in state.items()}:
            raise UserError(f"'{file}' has other statistics than this run would make; delete it or name another folder")
        if numbers <= done:
            continue  # it was put into the whole, and then its process was killed
        merge(arrays)
        done |= numbers
    if parts:
        save_state(path, header, state, done, total)
        for part in parts:  # what was in them is in the whole, and their header says that this run made them
            part.unlink()
    return done


def steps_kept(folder: Path) -> int:
    """Steps of all passes whose states lie below the folder; files that cannot be read have none."""
    from safetensors import SafetensorError, safe_open

    kept = 0
    for path in sorted(folder.rglob("*.safetensors")):
        try:
            with safe_open(path, framework="numpy") as file:
                kept += json.loads((file.metadata() or {}).get("steps", "[0, 0]"))[0]
        except (OSError, SafetensorError, ValueError):
            continue
    return kept


def _beside(path: Path, place: int) -> Path:
    """Where another process than the first one keeps its part."""
    return path.with_name(f"{path.stem}.process{place}{path.suffix}")


def _parts(path: Path) -> list[Path]:
    name = re.compile(rf"{re.escape(path.stem)}\.process[1-9]\d*{re.escape(path.suffix)}")
    return sorted(part for part in path.parent.iterdir() if name.fullmatch(part.name)) if path.parent.is_dir() else []


def refuse_mismatched(found: dict[str, str], wanted: dict[str, str], name: str) -> None:
    """Raise unless both headers are the same.

    Raises:
        UserError: with the entries that differ.
    """
    differing = [f"{key}: {found.get(key)} / {wanted.get(key)}" for key in sorted(found.keys() | wanted.keys()) if found.get(key) != wanted.get(key)]
    if differing:
        raise UserError(f"{name} does not belong here; it differs in {'; '.join(differing)}")
