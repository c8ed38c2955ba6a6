"""A place to start jobs from: an empty folder with a small corpus, a fake workflow, no W&B key."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from lingact.cli import main as cli
from lingact.config.base import ConfigSection
from lingact.files.atomic import write_json
from tests.helpers.paths import CONF

CORPUS = ["corpus=files", "corpus.path=corpus.jsonl"]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory."""
    (tmp_path / "corpus.jsonl").write_text('{"en": "A dog.", "ml": "ഒരു നായ.", "hi": "एक कुत्ता।"}\n', encoding="utf-8")
    (tmp_path / "tasks").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("NETRC", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    return tmp_path


class Runs(list[tuple[ConfigSection, Path]]):
    """What the fake workflow was called with; `does` is what it does beyond leaving a complete run."""

    does: Callable[[ConfigSection, Path], None] = staticmethod(lambda _config, _folder: None)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Runs:
    """A train workflow that takes no time; the command line before it is the real one."""
    calls = Runs()

    def run(config: ConfigSection, folder: Path) -> float:
        calls.append((config, folder))
        (folder / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")), encoding="utf-8")
        write_json(folder / "manifest.json", {"job": "train", "status": "running"})
        calls.does(config, folder)
        write_json(folder / "summary.json", {"objective": 0.5, f"gap_closed/{config.lang[0]}": 0.75, "gain/x": 1.0})
        write_json(folder / "manifest.json", {"job": "train", "status": "complete"})
        return 0.5

    workflow = ModuleType("lingact.workflows.train")
    vars(workflow)["run"] = run
    monkeypatch.setitem(sys.modules, "lingact.workflows.train", workflow)
    return calls


@pytest.fixture
def train(place: Path, runs: Runs) -> Callable[..., int]:
    """`python train.py ...` in this process, with the small corpus."""
    return lambda *arguments: cli.main("train", CONF, [*arguments, *CORPUS])
