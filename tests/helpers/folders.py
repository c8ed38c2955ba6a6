"""What lies in a folder tree, so that a test can show that nothing of it was touched."""

import hashlib
import os
import stat
from pathlib import Path


def snapshot(folder: Path) -> dict[str, str]:
    """Path below the folder -> kind, permissions, time of change and content (size and sha256, or the target of a link). Links are not followed.

    Compared before and after, it tells what was made, removed, renamed, rewritten or touched. Of folders the time is left out: it changes with
    what is made in them, which the paths tell.
    """
    found: dict[str, str] = {}
    for root, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(root) / name
            known = path.lstat()
            described = f"{stat.filemode(known.st_mode)}"
            if path.is_symlink():
                described += f" -> {path.readlink()}"
            elif stat.S_ISREG(known.st_mode):
                described += f" {known.st_size} {hashlib.sha256(path.read_bytes()).hexdigest()} {known.st_mtime_ns}"
            found[str(path.relative_to(folder))] = described
    return found


def plant(folder: Path, *names: str) -> dict[str, str]:
    """Make files of these names, as a user may have them, each with its name as content. Returns the snapshot of the folder."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{name}, mine\n", encoding="utf-8")
    return snapshot(folder)


def untouched(before: dict[str, str], folder: Path) -> bool:
    """Whether all that was there still is, as it was; something may have been added."""
    after = snapshot(folder)
    return {name: after.get(name) for name in before} == before
