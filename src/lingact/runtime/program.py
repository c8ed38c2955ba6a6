"""How this process was started, so that messages name the command that the user can type."""

import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

SCRIPT = "python {job}.py"
"""A script at the top of a checkout."""
INSTALLED = "lingact {job}"


class _Started:
    """State of this process."""

    form = INSTALLED
    line: Sequence[str] | None = None


@contextmanager
def started_as(form: str, line: Sequence[str] | None = None) -> Iterator[None]:
    """While open, messages name commands in this form.

    Args:
        form: `SCRIPT` or `INSTALLED`.
        line: the command with its arguments, where these are not the arguments of the process.
    """
    before = _Started.form, _Started.line
    _Started.form, _Started.line = form, line
    try:
        yield
    finally:
        _Started.form, _Started.line = before


def command(job: str) -> str:
    """The command that starts a job: `lingact train`, or `python train.py`."""
    return _Started.form.format(job=job)


def program(job: str) -> str:
    """The same without the interpreter: `lingact train`, or `train.py`."""
    return command(job).removeprefix("python ")


def requirement(extra: str) -> str:
    """The argument of pip that installs optional dependencies: `'lingact[ray]'`, or the same for a checkout."""
    return f"-e '.[{extra}]'" if _Started.form == SCRIPT else f"'lingact[{extra}]'"


def command_line() -> str:
    """The command as the user gave it, for the manifest."""
    started = Path(sys.argv[0])
    if started.name == "__main__.py":  # python -m lingact, python -m lingact.saes
        return shlex.join(_Started.line or [*dict.fromkeys(("lingact", started.parent.name)), *sys.argv[1:]])
    return shlex.join(_Started.line or [started.name, *sys.argv[1:]])


def repeatable() -> bool:
    """Whether another process with the same arguments would run the same job. False if a job is run from Python."""
    return _Started.line is None
