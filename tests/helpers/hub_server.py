"""An imitation of the Hugging Face hub: as much of it as the client asks when it fetches models and data sets, or pushes a model.

It serves this machine only.
"""

import base64
import hashlib
import json
import re
import threading
import time
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
_UPLOADED = re.compile(r"/large/([0-9a-f]{64})")
_PUSHED = re.compile(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/main|/([^/]+/[^/]+)\.git/info/lfs/objects/batch")
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
    slow: dict[str, float] = field(default_factory=dict)
    """File name -> seconds before it is sent."""
    damages: set[str] = field(default_factory=set)
    """Names of files of which a byte is wrong when they arrive."""
    writers: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Token -> owners in whose name it may push."""
    private: set[str] = field(default_factory=set)
    """Models that were made to be private."""
    commits: list[tuple[str, list[str]]] = field(default_factory=list)
    """Model and files of every commit, in order."""
    uploaded: dict[str, bytes] = field(default_factory=dict)
    """Large files by their sha256, before a commit says what they are."""
    stalls: bool = False
    """It takes connections and does not answer."""
    asked: list[str] = field(default_factory=list)
    """Method and path of all requests, in order."""
    closing: threading.Event = field(default_factory=threading.Event)

    def files(self, name: str) -> list[dict[str, Any]]:
        """Files of a model or data set as the hub lists them."""
        folder = self.root / name
        found = [file for file in sorted(folder.rglob("*")) if file.is_file()]
        listed = [{"type": "file", "oid": _oid(file), "size": file.stat().st_size, "path": file.relative_to(folder).as_posix()} for file in found]
        large = [
            {"lfs": {"oid": one["oid"], "sha256": one["oid"], "size": one["size"], "pointerSize": 134}} if len(one["oid"]) == 64 else {}
            for one in listed
        ]
        return [one | more for one, more in zip(listed, large, strict=True)]


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

    def do_PUT(self) -> None:
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
        elif found := _UPLOADED.fullmatch(path):
            self.hub.uploaded[hashlib.sha256(body).hexdigest()] = body
            self._answer(200, b"")
        elif path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif found := _PUSHED.fullmatch(path):
            self._push(found[1] or found[3], found[2] or "batch", body)
        elif (found := _REVISION.search(path)) and not re.fullmatch(r"main|[0-9a-f]{40}", found[1]):  # any commit is this one
            self._answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
        elif (found := _FILE.fullmatch(path)) and (self.hub.root / found[1]).is_dir():
            self._file(self.hub.root / found[1] / found[3])
        elif (found := _ASKED.fullmatch(path)) and (self.hub.root / found[1]).is_dir():
            deep = parse_qs(urlsplit(self.path).query).get("recursive", ["false"])[0].lower() in ("true", "1")
            self._json(self._described(found[1], found[2], (found[4] or "").strip("/"), body, deep=deep))
        else:
            self._answer(404, b"", {"X-Error-Code": "RepoNotFound"})

    def _described(self, name: str, what: str | None, below: str, body: bytes, *, deep: bool) -> Any:
        files = self.hub.files(name)
        if what == "paths-info":
            text = body.decode()
            wanted = json.loads(text)["paths"] if text.startswith("{") else parse_qs(text)["paths"]
            return [file for file in files if file["path"] in wanted]
        if what == "tree":
            found = [file for file in files if not below or file["path"].startswith(f"{below}/")]
            if deep:
                return found
            depth = len(Path(below).parts) + 1
            folders = dict.fromkeys("/".join(Path(file["path"]).parts[:depth]) for file in found if len(Path(file["path"]).parts) > depth)
            own = [file for file in found if len(Path(file["path"]).parts) == depth]
            return own + [{"type": "directory", "oid": "0" * 40, "size": 0, "path": folder} for folder in folders]
        about = {"_id": "0", "id": name, "author": name.split("/")[0], "sha": COMMIT, "lastModified": "2026-01-01T00:00:00.000Z", "tags": []}
        about |= {"private": False, "gated": False, "disabled": False, "downloads": 0, "likes": 0, "createdAt": "2026-01-01T00:00:00.000Z"}
        return about | {"private": name in self.hub.private, "siblings": [{"rfilename": file["path"]} | file for file in files]}

    def _may_write(self, owner: str) -> bool:
        """Whether whoever asks may push in that name; otherwise they are told that they may not."""
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token not in self.hub.writers:
            self._json({"error": "Invalid username or password."}, 401)
        elif owner not in self.hub.writers[token]:
            self._json({"error": f'You don\'t have the rights to create a model under the namespace "{owner}"'}, 403)
        return owner in self.hub.writers.get(token, ())

    def _create(self, wanted: dict[str, Any]) -> None:
        name = f"{wanted['organization']}/{wanted['name']}"
        if not self._may_write(wanted["organization"]):
            return
        exists = (self.hub.root / name).is_dir()
        if not exists:
            (self.hub.root / name).mkdir(parents=True)
            (self.hub.root / name / ".gitattributes").write_text("*.safetensors filter=lfs diff=lfs merge=lfs -text\n")
            # Clients before huggingface-hub 2 say it the second way.
            self.hub.private |= {name} if wanted.get("visibility") == "private" or wanted.get("private") else set()
        self._json({"url": f"{self.hub.url}/{name}"} | ({"error": "You already created this model repo"} if exists else {}), 409 if exists else 200)

    def _push(self, name: str, what: str, body: bytes) -> None:
        if not self._may_write(name.split("/")[0]):
            return
        folder = self.hub.root / name
        if what == "preupload":
            there = {file["path"]: file["oid"] for file in self.hub.files(name)}
            wanted = [file["path"] for file in json.loads(body)["files"]]
            modes = {path: "lfs" if path.endswith(_LARGE) else "regular" for path in wanted}
            self._json({"files": [{"path": p, "uploadMode": m, "shouldIgnore": False, "oid": there.get(p)} for p, m in modes.items()]})
        elif what == "batch":
            objects = [one | {"actions": {"upload": {"href": f"{self.hub.url}/large/{one['oid']}"}}} for one in json.loads(body)["objects"]]
            self._json({"transfer": "basic", "objects": objects})
        else:
            files = [line["value"] for line in map(json.loads, body.splitlines()) if line["key"] in ("file", "lfsFile")]
            for file in files:
                content = base64.b64decode(file["content"]) if "content" in file else self.hub.uploaded[file["oid"]]
                (folder / file["path"]).parent.mkdir(parents=True, exist_ok=True)
                (folder / file["path"]).write_bytes(content)
            self.hub.commits.append((name, sorted(file["path"] for file in files)))
            self._json({"commitUrl": f"{self.hub.url}/{name}/commit/{COMMIT}", "commitOid": COMMIT, "success": True})

    def _file(self, file: Path) -> None:
        if not file.is_file():
            self._answer(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        time.sleep(self.hub.slow.get(file.name, 0))
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

    def _json(self, content: Any, status: int = 200) -> None:
        self._answer(status, json.dumps(content).encode(), {"Content-Type": "application/json"})

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
