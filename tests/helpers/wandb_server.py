"""An imitation of the W&B server: as much of it as the client asks when it fetches an artifact. It serves this machine only."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "k" * 40
ENTITY = "team"
_NAMED = re.compile(r"\b(?:query|mutation)\s+(\w+)")


def digest(content: bytes, algorithm: str = "md5") -> str:
    """As a manifest gives it."""
    import xxhash

    hasher = hashlib.md5(content) if algorithm == "md5" else xxhash.xxh128(content)
    return base64.b64encode(hasher.digest()).decode()


@dataclass
class Artifact:
    """A version of an artifact, of type `adapter`."""

    files: dict[str, bytes]
    algorithm: str = "md5"
    references: dict[str, str] = field(default_factory=dict)
    """Files that lie elsewhere: name -> address."""

    @property
    def manifest(self) -> dict[str, Any]:
        extra = {} if self.algorithm == "md5" else {"extra": {"alg": self.algorithm.upper()}}
        contents = {name: {"digest": digest(content, self.algorithm), "size": len(content)} | extra for name, content in self.files.items()}
        contents |= {name: {"digest": address, "ref": address, "size": 1} for name, address in self.references.items()}
        policy = {"storagePolicy": "wandb-storage-policy-v1", "storagePolicyConfig": {"storageLayout": "V2"}}
        return {"version": 1, **policy, "contents": contents}


@dataclass
class WandbServer:
    """What it holds, how it misbehaves, and what it was asked."""

    url: str = ""
    artifacts: dict[str, Artifact] = field(default_factory=dict)
    """By `project/name:version`; an alias is a second entry for the same artifact. All belong to `ENTITY`."""
    sends: dict[str, bytes] = field(default_factory=dict)
    """File name -> what is sent in the place of its content."""
    stalls: set[str] = field(default_factory=set)
    """GraphQL operations and file names (or `manifest`) that get no answer."""
    asked: list[str] = field(default_factory=list)
    """GraphQL operations and file names, in order."""
    closing: threading.Event = field(default_factory=threading.Event)

    def operation(self, name: str, variables: Mapping[str, Any]) -> dict[str, Any]:
        """`data` of the answer to a GraphQL operation."""
        match name:
            case "Viewer" | "GetDefaultEntity" | "GetViewer" | "query { viewer { id } }":
                return {"viewer": {"id": "VXNlcjox", "username": "someone", "entity": ENTITY, "flags": "{}", "teams": {"edges": []}}}
            case "ServerFeaturesQuery" | "ServerFeatures":
                return {"serverInfo": {"features": [{"name": "ARTIFACT_DIGEST_ALGORITHM", "isEnabled": True}]}}
            case "ArtifactMembershipByName":
                return {"project": self._membership(variables["entity"], variables["project"], variables["name"])}
            case "FetchArtifactManifest":
                address = f"{self.url}/manifest/{variables['id']}"
                return {"artifact": {"currentManifest": {"file": {"directUrl": address}}}}
        raise KeyError(name)

    def _membership(self, entity: str, project: str, name: str) -> dict[str, Any] | None:
        if entity != ENTITY or not any(key.startswith(f"{project}/") for key in self.artifacts):
            return None
        artifact = self.artifacts.get(f"{project}/{name}")
        if artifact is None:
            return {"artifactCollectionMembership": None}
        place = {"id": "UHJvamVjdDox", "internalId": "1", "name": project, "entity": {"name": entity}}
        collection, _, alias = name.partition(":")
        found = {
            "__typename": "Artifact",
            "id": self.id_of(artifact),
            "artifactSequence": {"__typename": "ArtifactSequence", "name": collection, "project": place},
            "versionIndex": 0,
            "artifactType": {"name": "adapter"},
            "description": None,
            "metadata": "{}",
            "ttlDurationSeconds": -2,
            "ttlIsInherited": True,
            "tags": [],
            "historyStep": None,
            "state": "COMMITTED",
            "size": sum(map(len, artifact.files.values())),
            "digest": "0" * 32,
            "digestAlgorithm": f"MANIFEST_{artifact.algorithm.upper()}",
            "commitHash": "0" * 20,
            "fileCount": len(artifact.files),
            "createdAt": "2026-01-01T00:00:00Z",
            "updatedAt": None,
            "aliases": [],
        }
        return {
            "artifactCollectionMembership": {
                "__typename": "ArtifactCollectionMembership",
                "id": "TWVtYmVyc2hpcDox",
                "versionIndex": 0,
                "createdAt": "2026-01-01T00:00:00Z",
                "aliases": [{"__typename": "ArtifactAlias", "id": "QWxpYXM6MQ==", "alias": alias}],
                "artifactCollection": {"__typename": "ArtifactSequence", "name": collection, "project": place},
                "artifact": found,
            }
        }

    def id_of(self, artifact: Artifact) -> str:
        """Base64, as W&B's; another one for every server, since the client remembers artifacts by it."""
        return base64.b64encode(f"{self.url} {id(artifact)}".encode()).decode()

    def leaves_waiting(self, name: str) -> bool:
        """Note what was asked for; of what gets no answer come back at the end only."""
        self.asked.append(name)
        return name in self.stalls and self.closing.wait()

    def with_id(self, identity: str) -> Artifact:
        return next(artifact for artifact in self.artifacts.values() if self.id_of(artifact) == identity)


class _Handler(BaseHTTPRequestHandler):
    def __init__(self, server: WandbServer, *arguments: Any) -> None:
        self.wandb = server
        super().__init__(*arguments)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Nothing."""

    def _answer(self, status: int, content: bytes, *, length: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content) if length is None else length))
        with suppress(ConnectionError):  # who asked may have given up
            self.end_headers()
            self.wfile.write(content)

    def _knows_key(self) -> bool:
        return self.headers.get("Authorization") == f"Basic {base64.b64encode(f'api:{KEY}'.encode()).decode()}"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self._knows_key():
            self._answer(401, b'{"errors":[{"message":"user is not logged in","extensions":{"code":"PERMISSION_ERROR"}}],"data":null}')
            return
        named = _NAMED.search(body["query"])
        name = named[1] if named else body["query"]
        if self.wandb.leaves_waiting(name):
            return
        try:
            answer = {"data": self.wandb.operation(name, body.get("variables") or {})}
        except KeyError:
            answer = {"data": None, "errors": [{"message": f"the imitation does not know {name}"}]}
        self._answer(200, json.dumps(answer).encode())

    def do_GET(self) -> None:
        kind, *rest = self.path.strip("/").split("/")
        if kind == "manifest":
            name, content = kind, json.dumps(self.wandb.with_id(rest[0].replace("%3D", "=")).manifest).encode()
        elif kind == "artifactsV2" and self._knows_key():
            name, hexdigest = rest[-1], rest[-2]
            contents = [(a, content) for a in self.wandb.artifacts.values() for other, content in a.files.items() if other == name]
            content = next(content for a, content in contents if base64.b64decode(digest(content, a.algorithm)).hex() == hexdigest)
        else:
            self._answer(403, b"{}")
            return
        if self.wandb.leaves_waiting(name):
            self._answer(404, b"{}")  # to nobody, or the client would go on trying
            return
        self._answer(200, self.wandb.sends.get(name, content), length=len(content))


@contextmanager
def serve() -> Iterator[WandbServer]:
    """An empty server on a free port of this machine."""
    wandb = WandbServer()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, wandb)) as server:
        server.daemon_threads = True
        wandb.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield wandb
        finally:
            wandb.closing.set()
            server.shutdown()
            thread.join()
