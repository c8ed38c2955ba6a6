"""Long passes over text that survive being killed: their state is saved as they go and continued from there."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
from tqdm import tqdm

from lingact.errors import UserError
from lingact.tracking import write_atomically

SAVE_EVERY = 15.0
"""Seconds between saves: what a killed run loses at most, beside the step that it was in."""
Step = TypeVar("Step")


def resumable(
    path: Path | None,
    header: dict[str, str],
    state: dict[str, np.ndarray],
    steps: Sequence[Step],
    add: Callable[[Step], None],
    *,
    tokens: Callable[[Step], int],
    bar: tqdm,
) -> None:
    """Run `add` on every step that is not in `state` yet.

    Args:
        path: where the state is kept (safetensors), saved every `SAVE_EVERY` seconds and at the end; what is there already is continued.
            None: nothing is saved.
        header: identity of everything the numbers depend on.
        state: arrays that `add` changes in place.
        steps: the same ones in the same order each time.
        tokens: how much of the bar a step is.
        bar: from `token_bar`; finished steps advance it at once.

    Raises:
        UserError: the file at `path` is of something else.
    """
    done = restore(path, header, state) if path is not None and path.is_file() else 0
    bar.update(sum(tokens(step) for step in steps[:done]))
    # What was measured by an earlier process says nothing about the speed of this one.
    bar.unpause()
    saved = time.monotonic()
    for number, step in enumerate(steps[done:], start=done + 1):
        add(step)
        bar.update(tokens(step))
        if path is not None and number < len(steps) and time.monotonic() - saved > SAVE_EVERY:
            save_state(path, header, state, (number, len(steps)))
            saved = time.monotonic()
    if path is not None and done < len(steps):
        save_state(path, header, state, (len(steps), len(steps)))


@contextmanager
def token_bar(total: int, title: str) -> Iterator[tqdm]:
    """A progress bar in tokens, with tokens per second and time left."""
    with tqdm(total=total, desc=title, unit="tok", unit_scale=True, leave=False, dynamic_ncols=True, smoothing=0.1) as bar:
        yield bar


def save_state(path: Path, header: dict[str, str], state: dict[str, np.ndarray], steps: tuple[int, int]) -> None:
    """Write the state of a pass, atomically, with the number of steps that are in it and of all there are."""
    from safetensors.numpy import save

    # save() wants every array in memory of its own, in C order.
    arrays = {name: np.ascontiguousarray(array) for name, array in state.items()}
    write_atomically(path, save(arrays, metadata={"header": json.dumps(header, sort_keys=True), "steps": json.dumps(steps)}))


def load_state(path: Path) -> tuple[dict[str, str], dict[str, np.ndarray], tuple[int, int]]:
    """Header, arrays, and how many steps of how many are in a saved state.

    Raises:
        UserError: the file is not there, damaged, or not one of ours.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise UserError(f"'{path}' is not there; the run has not saved these statistics")
    try:
        with safe_open(path, framework="numpy") as file:
            described = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        return json.loads(described["header"]), arrays, tuple(json.loads(described["steps"]))
    except (SafetensorError, KeyError, ValueError) as error:
        raise UserError(f"'{path}' cannot be read as statistics of lingact ({error}); it is cut off or of something else: delete it") from None


def restore(path: Path, header: dict[str, str], state: dict[str, np.ndarray]) -> int:
    """Copy a saved state into `state`. Returns the number of steps in it.

    Raises:
        UserError: it is of something else.
    """
    found, arrays, steps = load_state(path)
    refuse_strangers(found, header, f"'{path}'")
    if {name: array.shape for name, array in arrays.items()} != {name: array.shape for name, array in state.items()}:
        raise UserError(f"'{path}' has other statistics than this run would make; delete it or name another folder")
    for name, array in arrays.items():
        state[name][...] = array
    return steps[0]


def refuse_strangers(found: dict[str, str], wanted: dict[str, str], name: str) -> None:
    """Raise unless both headers are the same.

    Raises:
        UserError: with the entries that differ.
    """
    differing = [f"{key}: {found.get(key)} / {wanted.get(key)}" for key in sorted(found.keys() | wanted.keys()) if found.get(key) != wanted.get(key)]
    if differing:
        raise UserError(f"{name} does not belong here; it differs in {'; '.join(differing)}")
