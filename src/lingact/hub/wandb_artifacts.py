"""Files from Weights & Biases: the user's key, and artifacts that are downloaded completely or not at all, without messages of the client."""

import base64
import errno
import hashlib
import json
import netrc
import os
import socket
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

from lingact.errors import UserError

if TYPE_CHECKING:
    from wandb.sdk.artifacts.artifact import Artifact
    from wandb.sdk.artifacts.artifact_manifest_entry import ArtifactManifestEntry

ANSWERS, STALLS = 15, 60
"""Seconds to wait for an answer of the server, and without progress of a download. The client itself would try silently for 20 minutes."""
_DEFAULT_SERVER = "https://api.forge.coreweave.com"
"""The client's default since 2026."""


def has_key() -> bool:
    """Whether the user has a key. The client is not asked, because it would write into the home folder."""
    return bool(os.environ.get("WANDB_API_KEY", "").strip() or netrc_key(os.environ.get("WANDB_BASE_URL", _DEFAULT_SERVER)))


def fetch_artifact(adapter: str, *, needed: Sequence[str], wanted: Sequence[str]) -> Path:
    """The folder of an artifact's files in the cache of W&B. They are downloaded unless they are there and intact.

    Args:
        adapter: entity/project/name:version.
        needed: files that it must have.
        wanted: files that are downloaded.

    Raises:
        UserError: there is no key, artifact or network, or a file is missing or was damaged on the way.
    """
    import wandb
    from wandb.env import get_base_url, get_cache_dir

    settings = wandb.setup(wandb.Settings(silent=True)).settings
    server = str(get_base_url(settings.base_url)).rstrip("/")
    key = os.environ.get("WANDB_API_KEY") or settings.api_key or netrc_key(server)
    if not key:
        raise UserError(
            f"adapter: '{adapter}' is not a folder here, and as a Weights & Biases artifact it cannot be fetched without a key for {server}; run "
            "`wandb login` or set WANDB_API_KEY"
        )
    cache = get_cache_dir() / "lingact"
    try:
        _refuse_unreachable(server)
        # With the key in hand the client does not ask for one.
        artifact = wandb.Api(timeout=ANSWERS, api_key=key).artifact(adapter)
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, ignore_cleanup_errors=True) as unfinished:
            return _fetch(adapter, artifact, Path(unfinished) / "files", cache, needed=needed, wanted=wanted)
    except UserError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):  # not an error of W&B
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"adapter: '{adapter}' is not a folder here, and it cannot be fetched as a Weights & Biases artifact from {server}: {reason}. Write "
            "entity/project/name:version, and see that the key (`wandb login` or WANDB_API_KEY) may read it"
        ) from error


def netrc_key(server: str) -> str | None:
    """The key that `wandb login` saved for this server, found as the client finds it."""
    host = urlsplit(server).netloc
    names = (host, "api.wandb.ai") if host == urlsplit(_DEFAULT_SERVER).netloc else (host,)  # two names of one server
    files = [os.environ["NETRC"]] if os.environ.get("NETRC") else ["~/.netrc", "~/_netrc"]
    for file in files:
        with suppress(OSError, netrc.NetrcParseError):
            known = netrc.netrc(Path(file).expanduser())
            return next((entry[2] for name in names if (entry := known.authenticators(name)) and entry[2]), None)
    return None


def _refuse_unreachable(server: str) -> None:
    """Raise the network's own error, because the client would only say that it was busy. A proxy is left to the client."""
    address = urlsplit(server)
    if address.scheme not in urllib.request.getproxies():
        port = address.port or (80 if address.scheme == "http" else 443)
        socket.create_connection((address.hostname, port), timeout=ANSWERS).close()


def _fetch(adapter: str, artifact: "Artifact", unfinished: Path, cache: Path, *, needed: Sequence[str], wanted: Sequence[str]) -> Path:
    """The folder in the cache with the files of an adapter. Its name is a hash of their digests.

    Args:
        unfinished: where the files are put until all are there and intact.
    """
    unfinished.mkdir()
    manifest = _while_it_comes(lambda: artifact.manifest, unfinished).entries
    entries = {name: manifest[name] for name in wanted if name in manifest}
    problems = [f"it has no {name}" for name in needed if name not in entries]
    problems += [f"its {name} is a link to {entry.ref}" for name, entry in entries.items() if entry.ref is not None]
    if problems:
        raise UserError(
            f"adapter: the Weights & Biases artifact '{adapter}' is not an adapter that can be read: {', '.join(problems)}; log "
            f"one that contains {' and '.join(needed)} themselves"
        )
    content = {name: entry.digest for name, entry in entries.items()}
    folder = cache / hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    if not _damaged(folder, entries):
        return folder
    for name in entries:
        # Without the client's cache, which accepts any file of the right size.
        _while_it_comes(lambda name=name: artifact.get_entry(name).download(root=str(unfinished), skip_cache=True), unfinished)
    if damaged := _damaged(unfinished, entries):
        raise ValueError(f"{damaged} was damaged during download: its digest is not the one in the artifact's manifest")
    # File by file and atomically, because another process may be reading or writing the same files.
    folder.mkdir(exist_ok=True)
    for name in entries:
        (unfinished / name).replace(folder / name)
    return folder


def _damaged(folder: Path, entries: "Mapping[str, ArtifactManifestEntry]") -> str | None:
    """The name of a file that does not exist or does not match its digest in the manifest."""
    import xxhash

    for name, entry in entries.items():
        hasher = {"MD5": hashlib.md5, "XXH128": xxhash.xxh128}[entry.extra.get("alg", "MD5")]
        path = folder / name
        if not path.is_file() or base64.b64encode(hasher(path.read_bytes()).digest()).decode() != entry.digest:
            return name
    return None


_Result = TypeVar("_Result")


def _while_it_comes(work: Callable[[], _Result], folder: Path) -> _Result:
    """The result of `work`. If the files in the folder stop growing, this gives up, and the thread is left running until the process ends."""
    done: Future[_Result] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except Exception as error:  # noqa: BLE001 (raised in the waiting thread)
            done.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    size, since = -1, time.monotonic()
    while not wait([done], timeout=0.1).done:
        now = 0
        for path in folder.iterdir():
            with suppress(FileNotFoundError):  # it just got its final name
                now += path.stat().st_size
        if now != size:
            size, since = now, time.monotonic()
        elif time.monotonic() - since > STALLS:
            raise TimeoutError(f"no data for {STALLS} seconds")
    return done.result()
