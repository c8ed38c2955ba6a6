"""Every gate of `make check` fails on a planted fault, and says where it is."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

FAULTS = {
    "unused import": ("lint", "src/lingact/losses.py", "import json\n", "F401"),
    "print": ("lint", "src/lingact/losses.py", "print(1)\n", "T201"),
    "blanket except": ("lint", "tests/conf/test_planted.py", "try:\n    pass\nexcept Exception:\n    pass\n", "BLE001"),
    "format": ("style", "src/lingact/losses.py", "PLANTED = {'a':1}\n", "would be reformatted"),
    "wrong type": ("types", "src/lingact/losses.py", '\nPLANTED: int = "one"\n', "bad-assignment"),
    "wrong type in a test": ("types", "tests/conf/test_planted.py", '"""Planted."""\n\nPLANTED: int = "one"\n', "bad-assignment"),
    "missing attribute": ("types", "src/lingact/losses.py", "\nPLANTED = torch.zeroes\n", "missing-attribute"),
    "upward import": ("layers", "src/lingact/losses.py", "\nfrom lingact import workflows\n", "lingact.losses -> lingact.workflows"),
    "sideways import": ("layers", "src/lingact/losses.py", "\nfrom lingact import corpus\n", "lingact.losses -> lingact.corpus"),
    "framework in arithmetic": ("layers", "src/lingact/losses.py", "\nimport wandb\n", "lingact.losses -> wandb"),
    "module without a place": ("layers", "src/lingact/planted.py", '"""Planted."""\n', "planted"),
}


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The code base, without what only runs need."""
    for name in ("src", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info", "assets", "golden"))
    for name in ("pyproject.toml", "constraints.txt", "Makefile", "train.py", "analyze.py", "eval.py"):
        shutil.copy2(ROOT / name, tmp_path / name)
    return tmp_path


@pytest.mark.parametrize(("gate", "file", "text", "said"), FAULTS.values(), ids=FAULTS.keys())
def test_gate(copy: Path, gate: str, file: str, text: str, said: str) -> None:
    path = copy / file
    path.write_text((path.read_text(encoding="utf-8") if path.exists() else "") + text, encoding="utf-8")
    # -o: the environment is there already.
    command = ("make", "--directory", str(copy), f"VENV={sys.prefix}", f"PYTHON={sys.executable}", "-o", f"{sys.prefix}/.installed-dev", gate)
    environment = {**os.environ, "PYTHONPATH": str(copy / "src"), "COLUMNS": "200", "NO_COLOR": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode != 0, f"'{gate}' let it pass"
    assert said in done.stdout + done.stderr


def test_checks_change_nothing(copy: Path) -> None:
    """Not even a file that could be mended."""
    (copy / "src/lingact/losses.py").write_text("import json\nx = {'a':1}\n", encoding="utf-8")
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*") if path.is_file()}
    for gate in ("lint", "style", "types", "layers"):
        command = ("make", "--directory", str(copy), f"VENV={sys.prefix}", "-o", f"{sys.prefix}/.installed-dev", gate)
        subprocess.run(command, capture_output=True, env={**os.environ, "PYTHONPATH": str(copy / "src"), "PYTHONDONTWRITEBYTECODE": "1"}, check=False)
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("*") if path.is_file()} == before
