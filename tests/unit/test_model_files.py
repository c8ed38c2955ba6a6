"""What is done with a model's files before it is loaded."""

import os
from pathlib import Path

import pytest

from lingact.config.model import ModelConfig
from lingact.models.model_files import read_ahead


def model(folder: Path) -> ModelConfig:
    return ModelConfig(name=str(folder), revision=None, dtype="float32", attention="sdpa", context=16)


def test_weights_are_read_ahead_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("config.json", "model-1.safetensors", "model-2.safetensors", "pytorch_model.bin"):
        (tmp_path / name).write_text("{}")
    asked: list[str] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda number, *_: asked.append(Path(f"/proc/self/fd/{number}").readlink().name), raising=False)
    monkeypatch.setattr(os, "POSIX_FADV_WILLNEED", 3, raising=False)
    before = len(list(Path("/proc/self/fd").iterdir()))
    read_ahead(model(tmp_path))
    assert sorted(asked) == ["model-1.safetensors", "model-2.safetensors"]
    assert len(list(Path("/proc/self/fd").iterdir())) == before, "no file stays open"


def test_nothing_is_read_ahead_where_there_is_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read_ahead(model(tmp_path / "nowhere"))
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "broken.safetensors").symlink_to(tmp_path / "gone")
    read_ahead(model(tmp_path))
    monkeypatch.delattr(os, "posix_fadvise", raising=False)
    read_ahead(model(tmp_path))
