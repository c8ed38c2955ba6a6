"""Packages that work on numbers and files load no framework: measured in a fresh interpreter, import by import."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONTRACT = "Pure packages load no framework"

PROBE = """
import importlib, pkgutil, sys
root, *forbidden = sys.argv[1:]
package = importlib.import_module(root)
names = [root, *(found.name for found in pkgutil.walk_packages(getattr(package, "__path__", ()), root + "."))]
for name in names:
    importlib.import_module(name)
    loaded = sorted(set(forbidden) & set(sys.modules))
    if loaded:
        sys.exit(f"{name} loads {', '.join(loaded)}")
print(len(names))
"""


def contract() -> dict[str, list[str]]:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]
    (found,) = (each for each in contracts if each["name"] == CONTRACT)
    return found


def probe(name: str, *forbidden: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", PROBE, name, *forbidden], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", contract()["source_modules"])
def test_pure_package_loads_no_framework(name: str) -> None:
    found = probe(name, *contract()["forbidden_modules"])
    assert found.returncode == 0, found.stderr
    assert int(found.stdout) >= 1


def test_the_probe_sees_a_framework() -> None:
    assert probe("lingact.data.tokens", "torch").stderr.strip() == "lingact.data.tokens loads torch"
