"""The Hugging Face hub: whether it can be asked, whether what came is whole, and what to tell a user who cannot have something from it."""

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
"""A hub id: `owner/name`, or a name of the early days such as `gpt2`."""


@dataclass(frozen=True)
class HubItem:
    """Something that lies on the hub, as messages name it."""

    what: str
    """As in "model 'google/gemma-2-2b' (Gemma Terms of Use)"."""
    name: str
    """Hub id."""
    kind: Literal["model", "dataset"]
    otherwise: str
    """What else the user can do, as in "or leave it out"."""

    @property
    def page(self) -> str:
        """Address of its page, where terms are accepted."""
        from huggingface_hub.constants import ENDPOINT

        return f"{ENDPOINT}/{'datasets/' if self.kind == 'dataset' else ''}{self.name}"

    def cannot_be_had(self, error: BaseException, why_offline: str | None) -> UserError:
        """What to tell the user after this error.

        Args:
            why_offline: why the hub was not asked; None where it was.
        """
        from datasets.exceptions import DatasetNotFoundError
        from huggingface_hub import errors

        causes = list(_causes(error))

        def of(*kinds: type[BaseException]) -> bool:
            return any(isinstance(cause, kinds) for cause in causes)

        if why_offline:
            reason, advice = f"{why_offline}, and it was not downloaded before", f"Connect once so that it can be downloaded, {self.otherwise}"
        elif of(errors.GatedRepoError) or any(isinstance(cause, DatasetNotFoundError) and "gated" in str(cause) for cause in causes):
            reason, advice = "it is given to those who accept its terms", f"Accept them on {self.page} and run `hf auth login`"
        elif of(errors.RevisionNotFoundError):
            reason, advice = "it has no such revision", f"Look at {self.page} for its branches, tags and commits, or leave the revision null"
        elif of(DatasetNotFoundError, errors.RepositoryNotFoundError):
            reason = "the hub does not have it, or not for you"
            advice = f"Look at {self.page}; run `hf auth login` if you need to, {self.otherwise}"
        else:
            reason = _first_line(causes[-1] if type(causes[-1]).__module__.startswith("huggingface_hub") else error)
            advice = f"Try again, {self.otherwise}"
        return UserError(f"{self.what} cannot be had: {reason}. {advice}")


@contextmanager
def from_the_hub(item: HubItem) -> Iterator[str | None]:
    """While something is loaded that may lie on the hub. Local paths are left alone.

    Without a way to the hub what was downloaded before is taken, at once; the hub's client would look for a way for half a minute, each time anew.
    What is downloaded is compared with the hash that the hub gives for it.

    Yields:
        Why the hub is not asked; None where it is.

    Raises:
        UserError: the hub does not give it, or what came is damaged, with what to do.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import HTTPError as BrokenConnection  # of whatever the client speaks HTTP with

    if not ON_THE_HUB.fullmatch(item.name):
        yield None
        return
    there = _blobs(item)
    # A folder of that name is taken before the hub is; a part of it may still be looked for there.
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
    """The commit of a model in the cache that a branch or tag stands for; None for what does not come from the hub."""
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
    """Why the hub cannot be asked, found out at once; None where it can."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    return None if _answers(constants.ENDPOINT, constants.HF_HUB_ETAG_TIMEOUT) else f"there is no way to {constants.ENDPOINT}"


@functools.cache
def _answers(address: str, seconds: int) -> bool:
    """Whether there is anyone at an address. A refusal, an error or a certificate in doubt is an answer, for the hub's client to make sense of."""
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
    """The files of an item that are whole in the hub's cache, with inode and time of change."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE) / f"{item.kind}s--{item.name.replace('/', '--')}" / "blobs"
    found: dict[Path, tuple[int, int]] = {}
    for file in folder.iterdir() if folder.is_dir() else ():
        with suppress(FileNotFoundError):  # another process may be downloading, too
            known = file.stat()
            found[file] = (known.st_ino, known.st_mtime_ns)
    return {file: known for file, known in found.items() if file.suffix != ".incomplete"}


def _refuse_damaged(item: HubItem, there: Mapping[Path, tuple[int, int]], error: Exception | None) -> None:
    """Delete what was downloaded just now and is not what the hub has: the client compares no more than sizes, and would take it the next time.

    Args:
        there: what lay in the cache before, which is left alone.

    Raises:
        UserError: something was.
    """
    damaged = [file for file, known in _blobs(item).items() if there.get(file) != known and not _is_what_its_name_says(file)]
    for file in damaged:
        file.unlink(missing_ok=True)
    if damaged:
        raise UserError(f"{item.what}: what was downloaded is damaged (not what its hash says); it was deleted. Try again") from error


def _is_what_its_name_says(blob: Path) -> bool:
    """The hub's cache names files by their hash: sha256 of large ones, git's sha1 of others."""
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
