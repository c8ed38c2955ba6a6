"""Packages that work on numbers and files load no framework: measured in a fresh interpreter, import by import."""

import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
CONTRACT = "Pure packages load no framework"

PROBE = """
import importlib, pkgutil, sys
roots, forbidden = (text.split(",") for text in sys.argv[1:])
for root in roots:
    package = importlib.import_module(root)
    for name in [root, *(found.name for found in pkgutil.walk_packages(getattr(package, "__path__", ()), root + "."))]:
        importlib.import_module(name)
        loaded = sorted(set(forbidden) & set(sys.modules))
        if loaded:
            sys.exit(f"{name} loads {', '.join(loaded)}")
        print(name)
"""


def contract() -> dict[str, list[str]]:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]
    (found,) = (each for each in contracts if each["name"] == CONTRACT)
    return found


def probe(roots: list[str], forbidden: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", PROBE, ",".join(roots), ",".join(forbidden)], capture_output=True, text=True, check=False)


def test_pure_packages_load_no_framework() -> None:
    """In one process: if all of them together load none, none does alone."""
    roots = contract()["source_modules"]
    found = probe(roots, contract()["forbidden_modules"])
    assert found.returncode == 0, found.stderr
    assert set(roots) <= set(found.stdout.split())


def test_the_probe_sees_a_framework() -> None:
    assert probe(["lingact.data.tokens"], ["torch"]).stderr.strip() == "lingact.data.tokens loads torch"
