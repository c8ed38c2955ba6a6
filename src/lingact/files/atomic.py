"""Writing files atomically, and recognising a full disk."""

import errno
import json
import os
import re
from pathlib import Path

from lingact.errors import UserError
from lingact.files.folders import temporary_beside

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# safetensors has an error of its own, and torch's writer of archives does not say why it failed.
_FULL_WITHOUT_ERRNO = re.compile(rf"\(os error ({'|'.join(map(str, _FULL))})\)|PytorchStreamWriter failed|unexpected pos \d+")


def write_atomically(path: Path, content: str | bytes | memoryview) -> None:
    """Write a file whole or not at all; on return it has reached the disk.

    Raises:
        OSError: with the file's name, which the error of a full disk lacks.
        UserError: the file is in a run folder that no longer belongs to this run.
    """
    unfinished = temporary_beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UserError(f"'{path}' cannot be written, because a file has the name of its folder; move that file away") from None
    try:
        with unfinished.open("xb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except IsADirectoryError:
        raise UserError(f"'{path}' cannot be written, because a folder has that name; move that folder away") from None
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        unfinished.unlink(missing_ok=True)


def full_disk(error: BaseException) -> str | None:
    """What could not be written, if the error or its cause is a full disk, a quota or a limit on file sizes; None for other errors."""
    if isinstance(error, OSError) and error.errno in _FULL:
        name = f"'{error.filename}'" if error.filename else "a file"
        return f"{name} could not be written: {error.strerror}"
    if _FULL_WITHOUT_ERRNO.search(str(error)):
        return f"a file could not be written: {error}"
    cause = error.__cause__ or error.__context__
    return full_disk(cause) if cause else None


def write_json(path: Path, content: object) -> None:
    """Write indented JSON. Non-ASCII characters are not escaped."""
    write_atomically(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
