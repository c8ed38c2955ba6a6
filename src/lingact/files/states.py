"""Saved states of passes over text (safetensors): arrays, the identity of everything they depend on, and the steps that they include."""

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np

from lingact.errors import UserError
from lingact.files.atomic import write_atomically
from lingact.files.earlier import present_entries


def save_state(path: Path, header: dict[str, str], state: dict[str, np.ndarray], done: Collection[int], total: int) -> None:
    """Write the state of a pass atomically, with the numbers of the steps that it includes and how many steps there are."""
    from safetensors.numpy import save

    # save() needs arrays that own their memory, in C order.
    arrays = {name: np.ascontiguousarray(array) for name, array in state.items()}
    described = {"header": json.dumps(header, sort_keys=True), "steps": json.dumps((len(done), total)), "sha256": digest(arrays)}
    if set(done) != set(range(len(done))):  # otherwise these are simply the first steps
        described["done"] = json.dumps(sorted(done))
    write_atomically(path, save(arrays, metadata=described))


def digest(arrays: Mapping[str, np.ndarray]) -> str:
    """sha256 of arrays. It reveals damage that the file format does not detect."""
    found = hashlib.sha256()
    for name in sorted(arrays):
        found.update(name.encode())
        found.update(np.ascontiguousarray(arrays[name]).tobytes())
    return found.hexdigest()


def load_state(path: Path) -> tuple[dict[str, str], dict[str, np.ndarray], tuple[int, int]]:
    """The header and arrays of a saved state, how many steps it includes, and how many there are.

    Raises:
        UserError: the file does not exist, is damaged, or is not a lingact file.
    """
    header, arrays, done, total = read_state(path)
    return header, arrays, (len(done), total)


def read_state(path: Path) -> tuple[dict[str, str], dict[str, np.ndarray], set[int], int]:
    """The header and arrays of a saved state, the numbers of the steps that it includes, and how many steps the pass has.

    Raises:
        UserError: the file does not exist, is damaged, or is not a lingact file.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise UserError(f"'{path}' does not exist; the run has not saved these statistics")
    try:
        with safe_open(path, framework="numpy") as file:
            described = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        if described.get("sha256", digest(arrays)) != digest(arrays):  # earlier versions saved no digest
            raise ValueError("its numbers differ from those that were saved")
        count, total = json.loads(described["steps"])
        done = set(json.loads(described["done"])) if "done" in described else set(range(count))
        return present_entries(json.loads(described["header"])), arrays, done, total
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"'{path}' cannot be read as statistics of lingact ({error}); it is truncated or not a lingact file: delete it") from None


def steps_kept(folder: Path) -> int:
    """Finished steps of all passes whose states are in the folder. Files that cannot be read count as none."""
    from safetensors import SafetensorError, safe_open

    kept = 0
    for path in sorted(folder.rglob("*.safetensors")):
        try:
            with safe_open(path, framework="numpy") as file:
                kept += json.loads((file.metadata() or {}).get("steps", "[0, 0]"))[0]
        except (OSError, SafetensorError, ValueError):
            continue
    return kept


def refuse_mismatched(found: dict[str, str], wanted: dict[str, str], name: str) -> None:
    """Refuse a state with a different header.

    Raises:
        UserError: the message names the entries that differ.
    """
    differing = [f"{key}: {found.get(key)} / {wanted.get(key)}" for key in sorted(found.keys() | wanted.keys()) if found.get(key) != wanted.get(key)]
    if differing:
        raise UserError(f"{name} does not belong here; it differs in {'; '.join(differing)}")
