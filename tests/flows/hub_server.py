"""An imitation of the Hugging Face hub: as much of it as the client asks when it fetches models and data sets. It serves this machine only."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
_FILE = re.compile(r"(?:/datasets)?/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
_ASKED = re.compile(r"/api/(?:models|datasets)/([^/]+/[^/]+)(?:/(revision|tree|paths-info)/([^/]+)(/.*)?)?")
_REVISION = re.compile(r"/(?:resolve|revision|tree|paths-info)/([^/]+)")
_LARGE = (".safetensors", ".npz", ".pt", ".parquet")
"""Files that the hub keeps beside git and names by their sha256."""
REFUSALS = {
    "gated": (401, "GatedRepo", "Access to it is restricted. You must have access to it and be authenticated to access it. Please log in."),
    "not asked for": (403, "GatedRepo", "Access to it is restricted and you are not in the authorized list. Visit its page to ask for access."),
    "unknown": (404, "RepoNotFound", "Repository not found"),
    "unknown or private": (401, "RepoNotFound", "Repository not found"),
}


@dataclass
class HubServer:
    """What it holds, what it refuses, and what it was asked."""

    root: Path
    """Models and data sets, as folders `owner/name`."""
    url: str = ""
    refuses: dict[str, str] = field(default_factory=dict)
    """Model or data set -> why it is not given, one of `REFUSALS`."""
    drops: dict[str, int] = field(default_factory=dict)
    """File name -> after how many bytes the connection breaks, the first time that the file is sent."""
    damages: set[str] = field(default_factory=set)
    """Names of files of which a byte is wrong when they arrive."""
    stalls: bool = False
    """It takes connections and does not answer."""
    asked: list[str] = field(default_factory=list)
    """Method and path of all requests, in order."""
    closing: threading.Event = field(default_factory=threading.Event)

    def files(self, name: str) -> list[dict[str, Any]]:
        """Files of a model or data set as the hub lists them."""
        folder = self.root / name
        found = [file for file in sorted(folder.rglob("*")) if file.is_file()]
        return [{"type": "file", "oid": _oid(file), "size": file.stat().st_size, "path": file.relative_to(folder).as_posix()} for file in found]


def _oid(file: Path) -> str:
    content = file.read_bytes()
    if file.suffix in _LARGE:
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, server: HubServer, *arguments: Any) -> None:
        self.hub = server
        super().__init__(*arguments)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Nothing."""

    def do_HEAD(self) -> None:
        self._serve()

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(f"{self.command} {path}")
        if self.hub.stalls:
            self.hub.closing.wait()
            self.close_connection = True
        elif path == "/":
            self._answer(200, b"")
        elif why := next((why for name, why in self.hub.refuses.items() if f"/{name}" in path), None):
            status, code, message = REFUSALS[why]
            self._answer(status, b"", {"X-Error-Code": code, "X-Error-Message": message})
        elif (found := _REVISION.search(path)) and found[1] not in ("main", COMMIT):
            self._answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
        elif found := _FILE.fullmatch(path):
            self._file(self.hub.root / found[1] / found[3])
        elif (found := _ASKED.fullmatch(path)) and (self.hub.root / found[1]).is_dir():
            self._json(self._described(found[1], found[2], (found[4] or "").strip("/"), body))
        else:
            self._answer(404, b"", {"X-Error-Code": "RepoNotFound"})

    def _described(self, name: str, what: str | None, below: str, body: bytes) -> Any:
        files = self.hub.files(name)
        if what == "paths-info":
            text = body.decode()
            wanted = json.loads(text)["paths"] if text.startswith("{") else parse_qs(text)["paths"]
            return [file for file in files if file["path"] in wanted]
        if what == "tree":
            return [file for file in files if not below or file["path"].startswith(f"{below}/")]
        about = {"_id": "0", "id": name, "author": name.split("/")[0], "sha": COMMIT, "lastModified": "2026-01-01T00:00:00.000Z", "tags": []}
        about |= {"private": False, "gated": False, "disabled": False, "downloads": 0, "likes": 0, "createdAt": "2026-01-01T00:00:00.000Z"}
        return about | {"siblings": [{"rfilename": file["path"]} for file in files]}

    def _file(self, file: Path) -> None:
        if not file.is_file():
            self._answer(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        content, oid = file.read_bytes(), _oid(file)
        headers = {"ETag": f'"{oid}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if file.suffix in _LARGE:
            headers |= {"X-Linked-Etag": f'"{oid}"', "X-Linked-Size": str(len(content))}
        if file.name in self.hub.damages:
            content = content[:-1] + bytes([content[-1] ^ 1])
        begin = re.match(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if begin:
            headers |= {"Content-Range": f"bytes {begin[1]}-{len(content) - 1}/{len(content)}"}
        breaks = self.hub.drops.pop(file.name, None) if self.command == "GET" else None
        self._answer(206 if begin else 200, content[int(begin[1]) if begin else 0 :], headers, breaks)

    def _json(self, content: Any) -> None:
        self._answer(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _answer(self, status: int, content: bytes, headers: dict[str, str] | None = None, breaks: int | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[:breaks])
        if breaks is not None:
            self.close_connection = True


@contextmanager
def serving(root: Path) -> Iterator[HubServer]:
    """A hub with these models and data sets, as long as the block lasts."""
    hub = HubServer(root)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, hub)) as server:
        server.daemon_threads = True
        hub.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            hub.closing.set()
            server.shutdown()
            thread.join()
