"""Files and folders that are lingact's own: made under names that nobody else has, used by one process at a time, never mistaken for a user's.

lingact deletes only what the same run has created and knows by its exact name. Whatever else stands where it wants to write is left alone, moved to
another name, or refused.
"""

import errno
import fcntl
import filecmp
import itertools
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lingact.errors import UserError

TEMPORARY = "LINGACT_TEMPORARY"
"""Variable that tells processes started by a run which token the run's temporary names carry."""
TOKEN = os.environ.get(TEMPORARY) or secrets.token_hex(8)
"""Part of every temporary name of this process; the manifest keeps it, so that a run that goes on knows what the earlier part left."""
LOCK = ".lingact.lock"
"""A file that is locked, and there, while a process works in the folder."""
_TEMPORARY_NAME = re.compile(r"\.lingact\.[0-9a-f]{16}\.[0-9a-f]{16}")
_held: dict[int, tuple[Path, os.stat_result]] = {}
"""Descriptors of the locks that this process holds, with the folders and what they were when they were taken."""
# The lock belongs to the open file, which a forked child (a worker that loads data) shares: it must not outlive the process that took it.
os.register_at_fork(after_in_child=lambda: [os.close(_held.popitem()[0]) for _ in range(len(_held))])
_NOT_WRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS}
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
"""A file system without locks is used without."""
_NO_LOCK_FILE = {errno.EISDIR, errno.ELOOP, errno.ENXIO}
_NOT_OURS = "is not a lock that lingact has made; move it away, or name another folder"


def temporary_beside(path: Path) -> Path:
    """A name in the same folder that is nobody's: 128 random bits. Make it exclusively (mode "x", `mkdir`), so that a clash would raise.

    Raises:
        UserError: the folder is not this run's any more.
    """
    _refuse_moved(path)
    return path.with_name(f".lingact.{TOKEN}.{secrets.token_hex(8)}")


def is_temporary(name: str) -> bool:
    """Whether `temporary_beside` gives such names."""
    return _TEMPORARY_NAME.fullmatch(name) is not None


def leftovers(folder: Path, token: str) -> list[Path]:
    """What a killed process with this token was about to write into this folder; not into those below it."""
    if not re.fullmatch(r"[0-9a-f]{16}", token) or not folder.is_dir():
        return []
    return [path for path in folder.iterdir() if is_temporary(path.name) and path.name.startswith(f".lingact.{token}.")]


def claim(folder: Path) -> tuple[Path, list[Path]]:
    """Make a folder that was not there; where something has that name, under the next name that is free: `_2`, `_3` and so on.

    Making it is the claim: of several processes that ask for one name, also on several machines, each gets another folder.

    Returns:
        The folder, and all folders that were made, the innermost first.
    """
    made: list[Path] = []
    for number in itertools.count(1):
        own = folder if number == 1 else folder.with_name(f"{folder.name}_{number}")
        while True:
            made = [*make_folders(own.parent), *made]
            try:
                own.mkdir()
            except FileExistsError:
                break
            except FileNotFoundError:
                continue  # another process has removed the parent that it had made, and which was empty
            return own, [own, *made]
    raise AssertionError


def make_folders(folder: Path, attempts: int = 10) -> list[Path]:
    """Make a folder and its parents where they are not there. Returns those that were made here, the innermost first.

    Args:
        attempts: how often the parents may go away meanwhile.

    Raises:
        UserError: the file system has no place for new folders there, such as `/proc`.
    """
    missing = list(itertools.takewhile(lambda path: not path.is_dir(), (folder, *folder.parents)))
    made: list[Path] = []
    for path in reversed(missing):
        try:
            path.mkdir()
        except FileExistsError:
            if not path.is_dir():
                raise
        except FileNotFoundError:
            if attempts > 1:
                return [*make_folders(folder, attempts - 1), *made]  # another process has removed the parent that it had made
            raise UserError(f"'{folder}' cannot be made: the file system does not take a folder '{path}'; name another one") from None
        else:
            made.insert(0, path)
    return made


def remove_empty(folders: Iterable[Path]) -> None:
    """Remove folders that this process has made, the innermost first, as far as they are empty."""
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()


@contextmanager
def taken(folder: Path) -> Iterator[None]:
    """While open, no other process works in this folder. The lock ends with the process, however that ends.

    Raises:
        UserError: another process does, or the folder cannot be written to.
    """
    descriptor = _locked(folder)
    _held[descriptor] = folder.absolute(), folder.stat()
    try:
        yield
    finally:
        if still_taken(folder):
            with suppress(OSError):  # the folder may be gone
                (folder / LOCK).unlink()
        del _held[descriptor]
        os.close(descriptor)


def still_taken(path: Path) -> bool:
    """Whether the folder that this process has taken, and that the path is or lies in, is still the same. True where it has taken none there.

    It may have been moved or removed meanwhile, and another run may have made one of that name, or taken the very same one without our lock.
    """
    for descriptor, (folder, known) in _held.items():
        if not path.absolute().is_relative_to(folder):
            continue
        try:
            return os.path.samestat(os.fstat(descriptor), (folder / LOCK).stat())
        except OSError:  # there is no lock (any more)
            return folder.is_dir() and os.path.samestat(known, folder.stat())
    return True


def _refuse_moved(path: Path) -> None:
    """Refuse to write into a folder that is not the one any more that this process has taken: two runs would be mixed.

    Raises:
        UserError: with the folder.
    """
    if not still_taken(path):
        folder = next(folder for folder, _ in _held.values() if path.absolute().is_relative_to(folder))
        raise UserError(
            f"'{folder}' was moved or removed while this process worked in it, or another one has taken it; to go on, resume it where it is now"
        )


def _locked(folder: Path) -> int:
    path = folder / LOCK
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        except OSError as error:
            if error.errno in _NOT_WRITABLE:
                raise UserError(f"'{folder}' is not writable; name another folder, or change its permissions") from None
            if error.errno in _NO_LOCK_FILE:
                raise UserError(f"'{path}' {_NOT_OURS}") from None
            raise
        known = os.fstat(descriptor)
        if not stat.S_ISREG(known.st_mode) or known.st_size:
            os.close(descriptor)
            raise UserError(f"'{path}' {_NOT_OURS}")
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                os.close(descriptor)
                raise UserError(f"'{folder}' is in use: another process is working in it; wait until it has ended, or name another folder") from None
            if error.errno not in _NO_LOCKS:
                os.close(descriptor)
                raise
        # Its last holder may have removed it since it was opened.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        os.close(descriptor)


def move_aside(path: Path) -> Path:
    """Give what stands there, of whatever kind, another name that is free: `<name>.before`, `<name>.before_2` and so on. Returns it."""
    for number in itertools.count(1):
        other = path.with_name(f"{path.name}.before{'' if number == 1 else f'_{number}'}")
        try:
            if path.is_dir() and not path.is_symlink():
                other.mkdir()
            else:
                other.open("xb").close()
        except FileExistsError:
            continue
        return path.replace(other)  # onto what was made a moment ago, which is empty
    raise AssertionError


def put_in_place(finished: Path, folder: Path) -> Path | None:
    """Give a finished folder the name that it is to have. What has that name already is moved aside, unless it has the same files.

    Args:
        finished: made by this process, in the same parent.

    Returns:
        Where what was there before is now; None where it stayed, or nothing was there.
    """
    files = [file.relative_to(finished) for file in finished.rglob("*") if file.is_file()]
    if all((folder / file).is_file() and filecmp.cmp(finished / file, folder / file, shallow=False) for file in files):
        shutil.rmtree(finished)
        return None
    aside = move_aside(folder) if os.path.lexists(folder) else None
    finished.rename(folder)
    return aside


def listed(names: Iterable[str], most: int = 4) -> str:
    """The first few names, as messages give them, and how many more there are."""
    names = sorted(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def is_there(path: Path) -> bool:
    """Whether there is such a file or folder; also for names that no file can have, at which `Path.exists` raises."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False
