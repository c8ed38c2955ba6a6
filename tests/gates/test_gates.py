"""Every gate of `make check` fails on a planted fault, and says where it is."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT

FAULTS = {
    "lint": [
        ("src/lingact/activations/functional.py", "import json\n", "F401"),
        ("src/lingact/activations/functional.py", "print(1)\n", "T201"),
        ("tests/conf/test_planted.py", "try:\n    pass\nexcept Exception:\n    pass\n", "BLE001"),
    ],
    "style": [("src/lingact/activations/functional.py", "PLANTED = {'a':1}\n", "would be reformatted")],
    "types": [
        ("src/lingact/activations/functional.py", '\nPLANTED: int = "one"\n', "functional.py"),
        ("tests/conf/test_planted.py", '"""Planted."""\n\nPLANTED: int = "one"\n', "test_planted.py"),
        ("src/lingact/evaluation/compare.py", "\nPLANTED = np.zeroes\n", "missing-attribute"),
    ],
    "layers": [
        ("src/lingact/activations/functional.py", "\nfrom lingact import workflows\n", "lingact.activations.functional -> lingact.workflows"),
        ("src/lingact/statistics/paired.py", "\nfrom lingact.data import corpus\n", "lingact.statistics.paired -> lingact.data.corpus"),
        ("src/lingact/analysis/tables.py", "\nimport wandb\n", "lingact.analysis.tables -> wandb"),
    ],
    "layers without a place": [("src/lingact/planted.py", '"""Planted."""\n', "planted")],
}
"""Gate -> faults, each with what is said of it."""


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The code base, without what only runs need."""
    for name in ("src", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info", "assets", "golden"))
    for name in ("pyproject.toml", "constraints.txt", "Makefile", "train.py", "analyze.py", "eval.py"):
        shutil.copy2(ROOT / name, tmp_path / name)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("gate", FAULTS)
def test_gate(copy: Path, gate: str) -> None:
    for file, text, _ in FAULTS[gate]:
        path = copy / file
        path.write_text((path.read_text(encoding="utf-8") if path.exists() else "") + text, encoding="utf-8")
    # -o: the environment is there already.
    command = (
        "make",
        "--directory",
        str(copy),
        f"VENV={sys.prefix}",
        f"PYTHON={sys.executable}",
        "-o",
        f"{sys.prefix}/.installed-dev",
        gate.split()[0],
    )
    environment = {**os.environ, "PYTHONPATH": str(copy / "src"), "COLUMNS": "200", "NO_COLOR": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode != 0, f"'{gate}' let it pass"
    for file, _, said in FAULTS[gate]:
        assert said in done.stdout + done.stderr, f"'{gate}' let {file} pass"


@pytest.mark.slow
def test_checks_change_nothing(copy: Path) -> None:
    """Not even a file that could be fixed. (The check of types has no such mode.)"""
    (copy / "src/lingact/activations/functional.py").write_text("import json\nx = {'a':1}\n", encoding="utf-8")
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*") if path.is_file()}
    for gate in ("lint", "style", "layers"):
        command = ("make", "--directory", str(copy), f"VENV={sys.prefix}", "-o", f"{sys.prefix}/.installed-dev", gate)
        subprocess.run(command, capture_output=True, env={**os.environ, "PYTHONPATH": str(copy / "src"), "PYTHONDONTWRITEBYTECODE": "1"}, check=False)
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("*") if path.is_file()} == before
