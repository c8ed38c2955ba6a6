"""What the public's machines run: commands of the Makefile, the Pythons that the package names, actions of a fixed version."""

import re
import tomllib
from typing import Any

import pytest
import yaml

from tests.helpers.paths import ROOT

WORKFLOWS = {path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in sorted((ROOT / ".github" / "workflows").glob("*.yml"))}
STEPS = {f"{name}/{job}": about["steps"] for name, workflow in WORKFLOWS.items() for job, about in workflow["jobs"].items()}


@pytest.mark.parametrize("job", STEPS)
def test_every_make_target_is_there(job: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    asked = [target for step in STEPS[job] for target in re.findall(r"\bmake ([a-z-]+)", step.get("run", ""))]
    assert set(asked) <= targets


@pytest.mark.parametrize("job", STEPS)
def test_actions_have_a_version(job: str) -> None:
    used = [step["uses"] for step in STEPS[job] if "uses" in step]
    assert used
    assert all(re.fullmatch(r"[\w-]+/[\w-]+@v\d+\.\d+\.\d+", name) for name in used)


def test_all_pythons_of_the_package_are_tested() -> None:
    about: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = re.findall(r"Python :: (3\.\d+)", " ".join(about["classifiers"]))
    assert WORKFLOWS["ci"]["jobs"]["test"]["strategy"]["matrix"]["python"] == named
