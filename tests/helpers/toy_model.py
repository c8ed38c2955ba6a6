"""The small toy model of the tests, built once and kept between sessions under a digest of what it is made from."""

import fcntl
import hashlib
import json
import shutil
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import torch

from lingact.microworld.build import SMALL, build, identity
from tests.helpers.paths import ROOT

_SOURCES = ("microworld", "models", "data", "files")
"""The packages whose code the build runs."""
_LIBRARIES = ("numpy", "sae-lens", "tokenizers", "torch", "transformers")


def digest() -> str:
    """Hash of the recipe, the lexicons, the code, the libraries and what this processor computes with."""
    parts = [json.dumps(asdict(SMALL), sort_keys=True), identity(SMALL), torch.backends.cpu.get_cpu_capability(), str(torch.get_num_threads())]
    parts += [f"{name} {version(name)}" for name in _LIBRARIES]
    sources = sorted(path for package in _SOURCES for path in (ROOT / "src" / "lingact" / package).glob("*.py"))
    parts += [hashlib.sha256(path.read_bytes()).hexdigest() for path in sources]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def kept_toy_model(cache: Path) -> Path:
    """The folder of the toy model in `cache`: built if it is not there or not as it was built, by one process at a time. Not to be changed."""
    name = digest()
    folder, record = cache / name, cache / f"{name}.json"
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not record.exists() or json.loads(record.read_text()) != _contents(folder):
            for path in cache.iterdir():  # another digest's, or damaged
                if path.is_dir():
                    shutil.rmtree(path)
                elif path.name != "lock":
                    path.unlink()
            build(SMALL, folder, cache / "work")
            shutil.rmtree(cache / "work")
            record.write_text(json.dumps(_contents(folder)))
    return folder


def _contents(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
