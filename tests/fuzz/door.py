"""A command in this process, up to where its work would begin; and what has to hold of its answer."""

import io
import os
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from lingact.cli import main as cli
from lingact.config.jobs import SCHEMAS
from lingact.config.validation import validate_config
from tests.helpers.paths import CONF, ROOT

from .configurations import LEAST, SMALL, Command, keys

JARGON = re.compile(
    r"pydantic|omegaconf|DictConfig|ListConfig|ConfigKeyError|validation error|Traceback|NoneType|<class|object at 0x|AnyNode|AnyUrl|\[type=|hydra\.errors|Errno|full_key"
)
NOT_FINITE = ("nan", "inf", "-inf", ".nan", "1e999", "1e400", "[nan]")
UNPRINTABLE = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029]")


@dataclass(frozen=True)
class Answer:
    """What a command says."""

    code: Any
    out: str
    err: str
    raised: str | None = None


def small_run(job: str) -> dict[str, Any]:
    """The configuration of a small run, as a run folder keeps it."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), job_name=job, version_base="1.3"):
        composed = compose(job, list(SMALL[job]))
    return validate_config(SCHEMAS[job], composed).model_dump(mode="json")


@contextmanager
def _streams() -> Iterator[tuple[io.TextIOWrapper, io.TextIOWrapper]]:
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", errors=errors, write_through=True) for errors in ("strict", "backslashreplace"))
    with redirect_stdout(out), redirect_stderr(err):
        yield out, err


def knock(command: Command) -> Answer:
    """Give a command with plan=true, which ends before any work."""
    argv = [*command.after(LEAST), "plan=true"]
    code, raised = None, None
    with mock.patch.object(sys, "argv", [str(ROOT / f"{command.job}.py"), *argv]), mock.patch.dict(os.environ), _streams() as streams:
        try:
            code = cli.main(command.job, CONF, argv)
        except SystemExit as ended:
            code = 0 if ended.code is None else ended.code
        except Exception as error:  # noqa: BLE001 (collected, so that one run tells all)
            ours = [
                f"{Path(frame.filename).name}:{frame.lineno} {frame.name}"
                for frame in traceback.extract_tb(error.__traceback__)
                if "/lingact/" in frame.filename
            ]
            raised = f"{type(error).__name__}: {str(error)[:300]} ({', '.join(ours[-3:])})"
    GlobalHydra.instance().clear()
    out, err = (stream.buffer.getvalue().decode(errors="backslashreplace") for stream in streams)  # pyrefly: ignore[missing-attribute]
    return Answer(code, out, err, raised)


def complaint(command: Command, answer: Answer) -> str | None:
    """What is wrong with an answer; None where nothing is."""
    if answer.raised:
        return f"ends in {answer.raised}"
    if answer.code not in (0, 2):
        return f"exit code {answer.code}: {answer.err[:300]}"
    if "Traceback" in answer.err + answer.out:
        return f"shows a traceback: {answer.err[:300]}"
    if answer.code == 0:
        # A plan of the command's is followed by ours.
        odd = [text for text in command.arguments if text.partition("=")[2].lower() in NOT_FINITE and not text.startswith("plan=")]
        return f"takes a number that is not finite: {odd}" if odd else None
    if answer.out:
        return f"says something on stdout beside its message: {answer.out[:300]!r}"
    if answer.err.startswith("usage:"):
        return None
    return message_complaint(command, answer.err)


def message_complaint(command: Command, message: str) -> str | None:
    """What is wrong with a refusal: a header, and a line for each problem that names a key, a file or a flag."""
    header, *lines = message.removesuffix("\n").split("\n")
    if header != f"{command.job}.py:" or not lines:
        return f"is not a message: {message[:300]!r}"
    given = {part.lstrip("+~") for text in command.whole for part in re.split(r"[=\s]", text)}
    names = {key.path for key in keys(command.job)} | given - {""} | {"hydra", "'", "conf/", "resume", "configuration", "--"}
    for line in lines:
        if not line.startswith("  ") or not line.strip():
            return f"a problem has more than one line: {message[:400]!r}"
        if not any(name in line for name in names):
            return f"names nothing: {line[:300]!r}"
        if found := JARGON.search(line):
            return f"speaks of {found[0]!r}: {line[:300]!r}"
        if UNPRINTABLE.search(line):
            return f"sends control characters to the terminal: {line[:300]!r}"
        if len(line) > 3000:
            return f"is {len(line)} characters long: {line[:200]!r}"
    return None
