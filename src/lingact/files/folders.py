"""lingact's own files and folders: they get unique names, are used by one process at a time, and are never confused with those of a user.

lingact deletes only what the same run has created and knows by its exact name. Anything else in its place is left alone, renamed, or refused.
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
"""Environment variable by which processes that a run starts learn the token in the run's temporary names."""
TOKEN = os.environ.get(TEMPORARY) or secrets.token_hex(8)
"""Part of every temporary name of this process. The manifest keeps it, so that a resumed run recognises what its earlier part left behind."""
LOCK = ".lingact.lock"
"""A file that exists and is locked while a process works in the folder."""
_TEMPORARY_NAME = re.compile(r"\.lingact\.[0-9a-f]{16}\.[0-9a-f]{16}")
_locks: dict[int, tuple[Path, os.stat_result]] = {}
"""Descriptors of the locks that this process holds -> the folder, and its identity when it was locked."""
# The lock belongs to the open file, which a forked child (a worker that loads data) shares. It must not outlive the process that took it.
os.register_at_fork(after_in_child=lambda: [os.close(_locks.popitem()[0]) for _ in range(len(_locks))])
_NOT_WRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS}
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
"""Errors of a file system without locks, which is used without them."""
_NO_LOCK_FILE = {errno.EISDIR, errno.ELOOP, errno.ENXIO}
_NOT_OURS = "is not a lock of lingact's; move it away, or name another folder"


def temporary_beside(path: Path) -> Path:
    """A unique name in the same folder, with 128 random bits. Create it exclusively (mode "x", `mkdir`), so that a collision raises.

    Raises:
        UserError: the folder no longer belongs to this run.
    """
    _refuse_moved(path)
    return path.with_name(f".lingact.{TOKEN}.{secrets.token_hex(8)}")


def is_temporary(name: str) -> bool:
    """Whether this is a name of the form that `temporary_beside` gives."""
    return _TEMPORARY_NAME.fullmatch(name) is not None


def leftovers(folder: Path, token: str) -> list[Path]:
    """Temporary files in this folder of a killed process with this token. Subfolders are not searched."""
    if not re.fullmatch(r"[0-9a-f]{16}", token) or not folder.is_dir():
        return []
    return [path for path in folder.iterdir() if is_temporary(path.name) and path.name.startswith(f".lingact.{token}.")]


def claim(folder: Path) -> tuple[Path, list[Path]]:
    """Make a new folder. If something has that name, it gets the next free one: `_2`, `_3` and so on.

    Several processes that ask for one name, even on several machines, each get a different folder.

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
                continue  # another process has removed the empty parent that it had made
            return own, [own, *made]
    raise AssertionError


def make_folders(folder: Path, attempts: int = 10) -> list[Path]:
    """Make a folder and its parents if they do not exist. Returns those that were made here, the innermost first.

    Args:
        attempts: how often to try if other processes remove the parents meanwhile.

    Raises:
        UserError: the file system allows no new folders there, as in `/proc`.
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
            raise UserError(f"'{folder}' cannot be made: the file system does not allow a folder '{path}'; name another one") from None
        else:
            made.insert(0, path)
    return made


def remove_empty(folders: Iterable[Path]) -> None:
    """Remove folders that this process has made, the innermost first, if they are empty."""
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """While open, no other process works in this folder. The lock ends with the process, even if it is killed.

    Raises:
        UserError: another process works there, or the folder is not writable.
    """
    descriptor = _acquired(folder)
    _locks[descriptor] = folder.absolute(), folder.stat()
    try:
        yield
    finally:
        if still_locked(folder):
            with suppress(OSError):  # the folder may have been removed
                (folder / LOCK).unlink()
        del _locks[descriptor]
        os.close(descriptor)


def still_locked(path: Path) -> bool:
    """Whether the folder that this process has locked, and that contains the path, is still the same. True if it has locked none there.

    The folder may have been moved or removed meanwhile. Another run may have made one of that name, or locked the same one after our lock was lost.
    """
    for descriptor, (folder, known) in _locks.items():
        if not path.absolute().is_relative_to(folder):
            continue
        try:
            return os.path.samestat(os.fstat(descriptor), (folder / LOCK).stat())
        except OSError:  # there is no lock, or it was removed
            return folder.is_dir() and os.path.samestat(known, folder.stat())
    return True


def _refuse_moved(path: Path) -> None:
    """Refuse to write into a folder that is no longer the one that this process has locked, because two runs would be mixed.

    Raises:
        UserError: the message names the folder.
    """
    if not still_locked(path):
        folder = next(folder for folder, _ in _locks.values() if path.absolute().is_relative_to(folder))
        raise UserError(
            f"'{folder}' was moved or removed while this process worked in it, or another process is using it; resume the run where it is now"
        )


def _acquired(folder: Path) -> int:
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
        # The process that held it before may have removed it since it was opened.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        os.close(descriptor)


def move_aside(path: Path) -> Path:
    """Rename a file, folder or link to a free name: `<name>.before`, `<name>.before_2` and so on. Returns the new path."""
    for number in itertools.count(1):
        other = path.with_name(f"{path.name}.before{'' if number == 1 else f'_{number}'}")
        try:
            if path.is_dir() and not path.is_symlink():
                other.mkdir()
            else:
                other.open("xb").close()
        except FileExistsError:
            continue
        return path.replace(other)  # the file or folder that was made above, which is empty
    raise AssertionError


def put_in_place(finished: Path, folder: Path) -> Path | None:
    """Give a finished folder its final name. Anything that has that name already is moved aside, unless it has the same files.

    Args:
        finished: a folder that this process has made in the same parent.

    Returns:
        The new path of what had the name before; None if it had the same files, or there was nothing.
    """
    files = [file.relative_to(finished) for file in finished.rglob("*") if file.is_file()]
    if all((folder / file).is_file() and filecmp.cmp(finished / file, folder / file, shallow=False) for file in files):
        shutil.rmtree(finished)
        return None
    aside = move_aside(folder) if os.path.lexists(folder) else None
    finished.rename(folder)
    return aside


def listed(names: Iterable[str], most: int = 4) -> str:
    """The first few names for a message, and how many more there are."""
    names = sorted(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def is_there(path: Path) -> bool:
    """Whether the file or folder exists. Unlike `Path.exists`, it does not raise for names that no file can have."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False
