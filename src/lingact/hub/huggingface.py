"""The Hugging Face hub: whether it can be reached, whether downloads are intact, and the messages for downloads that fail."""

import functools
import hashlib
import re
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from threading import Thread
from typing import Literal
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from lingact.errors import UserError
from lingact.runtime.compat.huggingface import offline

ON_THE_HUB = re.compile(r"[\w-][\w.-]*/[\w.-]+|[\w-][\w.-]*")
"""A hub id: `owner/name`, or an old one without owner, such as `gpt2`."""


@dataclass(frozen=True)
class HubItem:
    """A repository on the hub, as messages name it."""

    what: str
    """How messages begin, such as "model 'google/gemma-2-2b' (Gemma Terms of Use)"."""
    name: str
    """Hub id."""
    kind: Literal["model", "dataset"]
    otherwise: str
    """What else the user can do, such as "or leave it out"."""

    @property
    def page(self) -> str:
        """Address of its page, where its terms can be accepted."""
        from huggingface_hub.constants import ENDPOINT

        return f"{ENDPOINT}/{'datasets/' if self.kind == 'dataset' else ''}{self.name}"

    def cannot_be_had(self, error: BaseException, why_offline: str | None) -> UserError:
        """The error for the user after this error of the client.

        Args:
            why_offline: why the hub was not asked. None if it was.
        """
        from datasets.exceptions import DatasetNotFoundError
        from huggingface_hub import errors

        causes = list(_causes(error))

        def of(*kinds: type[BaseException]) -> bool:
            return any(isinstance(cause, kinds) for cause in causes)

        if why_offline:
            reason, advice = f"{why_offline}, and it was not downloaded before", f"Connect once so that it can be downloaded, {self.otherwise}"
        elif of(errors.GatedRepoError) or any(isinstance(cause, DatasetNotFoundError) and "gated" in str(cause) for cause in causes):
            reason, advice = "it is only available to those who accept its terms", f"Accept them on {self.page} and run `hf auth login`"
        elif of(errors.RevisionNotFoundError):
            reason, advice = "it has no such revision", f"Look at {self.page} for its branches, tags and commits, or leave the revision null"
        elif of(DatasetNotFoundError, errors.RepositoryNotFoundError):
            reason = "it does not exist on the hub, or you have no access"
            advice = f"Look at {self.page}; run `hf auth login` if you need to, {self.otherwise}"
        else:
            reason = _first_line(causes[-1] if type(causes[-1]).__module__.startswith("huggingface_hub") else error)
            advice = f"Try again, {self.otherwise}"
        return UserError(f"{self.what} cannot be loaded: {reason}. {advice}")


@contextmanager
def from_the_hub(item: HubItem) -> Iterator[str | None]:
    """For loading something that may be on the hub. Nothing changes for local paths.

    If the hub cannot be reached, earlier downloads are used at once; the hub's client would retry for half a minute for every file. Downloads are
    compared with the hash that the hub has for them.

    Yields:
        Why the hub is not asked. None if it is.

    Raises:
        UserError: the download failed or is damaged; with what to do.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import HTTPError as BrokenConnection  # of the client's HTTP library, whichever it is

    if not ON_THE_HUB.fullmatch(item.name):
        yield None
        return
    there = _blobs(item)
    # A local folder of that name has precedence; a part of it may still be looked for on the hub.
    with nullcontext() if Path(item.name).exists() else _offline_where_no_hub() as reason:
        try:
            yield reason
        except Exception as error:
            _refuse_damaged(item, there, error)
            if isinstance(error, UserError) or not isinstance(error, (OSError, BrokenConnection, *((ValueError,) if reason else ()))):
                raise
            raise item.cannot_be_had(error, reason) from error
        else:
            if not constants.HF_HUB_OFFLINE:
                _refuse_damaged(item, there, None)


def commit_of(name: str, revision: str | None) -> str | None:
    """The commit of a branch or tag of a cached model. None for a model that is not from the hub."""
    from huggingface_hub import try_to_load_from_cache

    found = None if Path(name).exists() else try_to_load_from_cache(name, "config.json", revision=revision)
    return Path(found).parent.name if isinstance(found, str) else None


@contextmanager
def _offline_where_no_hub() -> Iterator[str | None]:
    from huggingface_hub import constants

    reason = why_offline()
    if reason is None or constants.HF_HUB_OFFLINE:
        yield reason
    else:
        with offline():
            yield reason


def why_offline() -> str | None:
    """Why the hub is not reachable. None if it is."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    return None if _answers(constants.ENDPOINT, constants.HF_HUB_ETAG_TIMEOUT) else f"cannot reach {constants.ENDPOINT}"


@functools.cache
def _answers(address: str, seconds: int) -> bool:
    """Whether a server answers at this address. A refusal, an error or an invalid certificate is an answer, which the client will report."""
    answered: list[bool] = []

    def ask() -> None:
        try:
            with urlopen(Request(address, method="HEAD"), timeout=seconds):
                answered.append(True)
        except HTTPError as error:
            error.close()
            answered.append(True)
        except URLError as error:
            answered.append(isinstance(error.reason, ssl.SSLError))
        except (OSError, HTTPException) as error:
            answered.append(not isinstance(error, TimeoutError))

    thread = Thread(target=ask, daemon=True)  # the time limit is for each of a host's addresses
    thread.start()
    thread.join(seconds)
    return answered == [True]


def _blobs(item: HubItem) -> dict[Path, tuple[int, int]]:
    """Complete files of a repository in the hub's cache, with inode and time of change."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE) / f"{item.kind}s--{item.name.replace('/', '--')}" / "blobs"
    found: dict[Path, tuple[int, int]] = {}
    for file in folder.iterdir() if folder.is_dir() else ():
        with suppress(FileNotFoundError):  # another process may be downloading as well
            known = file.stat()
            found[file] = (known.st_ino, known.st_mtime_ns)
    return {file: known for file, known in found.items() if file.suffix != ".incomplete"}


def _refuse_damaged(item: HubItem, there: Mapping[Path, tuple[int, int]], error: Exception | None) -> None:
    """Delete new downloads that do not match their hash. The client compares only sizes, and would use them the next time.

    Args:
        there: files that were in the cache before, which are left alone.

    Raises:
        UserError: a file was damaged.
    """
    damaged = [file for file, known in _blobs(item).items() if there.get(file) != known and not _is_what_its_name_says(file)]
    for file in damaged:
        file.unlink(missing_ok=True)
    if damaged:
        raise UserError(f"{item.what}: the download is damaged (it does not match its hash) and was deleted. Try again") from error


def _is_what_its_name_says(blob: Path) -> bool:
    """Whether a file of the cache matches the hash in its name: sha256 for large files, git's sha1 for others."""
    name, size = blob.name, blob.stat().st_size
    if not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", name):
        return True
    with blob.open("rb") as file:
        begun = (lambda: hashlib.sha1(b"blob %d\0" % size)) if len(name) == 40 else hashlib.sha256
        return hashlib.file_digest(file, begun).hexdigest() == name


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__
