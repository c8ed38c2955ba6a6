"""The hub's cache: what has arrived damaged is deleted, and nothing else."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import constants

from lingact.errors import UserError
from lingact.hub.huggingface import HubItem, from_the_hub
from tests.helpers.folders import snapshot

ITEM = HubItem("model 'a/b'", "a/b", "model", "or leave it out")


@pytest.fixture
def blobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the item's files lie in a cache."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    folder = tmp_path / "models--a--b" / "blobs"
    folder.mkdir(parents=True)
    return folder


def blob(folder: Path, content: bytes, *, damaged: bool) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / hashlib.sha256(content).hexdigest()
    path.write_bytes(b"?" + content[1:] if damaged else content)
    return path


def load(does: Callable[[], object]) -> None:
    """Something of the item, which arrives and then cannot be read."""
    with from_the_hub(ITEM):
        does()
        raise OSError("the client says what it likes")


def test_only_what_has_just_arrived_damaged_is_deleted(blobs: Path, tmp_path: Path) -> None:
    blob(blobs, b"earlier", damaged=True)
    blob(blobs, b"earlier and whole", damaged=False)
    seen: list[dict[str, str]] = []

    def arrives() -> None:
        fresh = blob(blobs, b"now", damaged=True)
        blob(blobs, b"now and whole", damaged=False)
        (blobs / ("0" * 64 + ".incomplete")).write_bytes(b"another process is at it")
        (blobs / "notes.txt").write_text("mine")
        blob(tmp_path / "models--a--c" / "blobs", b"another item", damaged=True)
        seen.append(snapshot(tmp_path))
        seen[0].pop(str(fresh.relative_to(tmp_path)))

    with pytest.raises(UserError, match=r"model 'a/b': the download is damaged .* and was deleted"):
        load(arrives)
    assert snapshot(tmp_path) == seen[0]


def test_what_arrived_a_moment_before_is_left_alone(blobs: Path, tmp_path: Path) -> None:
    path = blob(blobs, b"of another process", damaged=True)
    os.utime(path)
    before = snapshot(tmp_path)
    with pytest.raises(UserError, match="cannot be loaded"):
        load(lambda: None)
    assert snapshot(tmp_path) == before


def test_what_replaces_a_whole_file_by_a_damaged_one_is_deleted(blobs: Path) -> None:
    path = blob(blobs, b"weights", damaged=False)

    def arrives() -> None:
        path.unlink()
        blob(blobs, b"weights", damaged=True)

    with pytest.raises(UserError, match="damaged"):
        load(arrives)
    assert not path.exists()
