"""Runs of earlier versions: what they wrote under former names is read under the present ones."""

import json
from pathlib import Path

import pandas as pd
import pytest
import yaml
from safetensors import safe_open
from safetensors.numpy import load_file, save

from lingact.cli import main as cli
from lingact.files.earlier import first_keys, present_keys
from lingact.models.lm import LanguageModel
from tests.helpers.paths import CONF
from tests.helpers.processes import Start

from .test_analyze import at_call, interrupt

FORMER = {"shard": "piece", "contamination": "leakage", "sae_set": "meter", "sae_sets": "meters"}
FEW = ("languages.high=[]", "languages.low=[ml]", "corpus.max_sentences=24", "tracking=none")
FULL = (
    *FEW,
    "measures=full",
    "measures.spliced.sentences=4",
    "measures.causal.sentences=4",
    "measures.features.random_tokens=200",
    "batch_tokens=256",
)


def rename_back(run: Path) -> None:
    """Give everything in a run folder the names that it had before."""
    path = run / "config.yaml"
    config = yaml.safe_load(path.read_text())
    config["model"]["shape"] = None
    path.write_text(yaml.safe_dump({FORMER.get(key, key): value for key, value in config.items()}, sort_keys=False))
    for path in run.glob("stats/**/index.json"):
        path.write_text(json.dumps({FORMER.get(key, key): value for key, value in json.loads(path.read_text()).items()}))
    for path in run.glob("stats/**/*.safetensors"):
        with safe_open(path, framework="numpy") as file:
            described = file.metadata()
        header = {FORMER.get(key, key): value for key, value in json.loads(described["header"]).items()}
        path.write_bytes(save(load_file(path), metadata=described | {"header": json.dumps(header, sort_keys=True)}))
    for path in run.glob("tables/*.csv"):
        pd.read_csv(path, keep_default_na=False, dtype=str).rename(columns=FORMER).to_csv(path, index=False)
    if (run / "stats/reference").is_dir():
        (run / "stats/reference").rename(run / "stats/yardstick")


def test_a_finished_analysis_opens(start: Start, tmp_path: Path) -> None:
    former, again = tmp_path / "former", tmp_path / "again"
    assert start("analyze", former, *FULL) == 0
    expected = {path.name: path.read_bytes() for path in (former / "tables").iterdir()}
    rename_back(former)
    assert (former / "stats/yardstick").is_dir()
    assert "piece" in yaml.safe_load((former / "config.yaml").read_text())
    assert start("analyze", again, "tracking=none", f"stats=[{former}]") == 0
    assert {path.name: path.read_bytes() for path in (again / "tables").iterdir()} == expected


@pytest.mark.slow
def test_an_interrupted_analysis_goes_on(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, whole = tmp_path / "run", tmp_path / "whole"
    assert start("analyze", whole, *FULL) == 0
    with monkeypatch.context() as patch:
        patch.setattr("lingact.runtime.resumable_passes.SAVE_EVERY", 0.0)
        patch.setattr(LanguageModel, "residuals", at_call(10, interrupt))
        assert start("analyze", run, *FULL) == 130
    rename_back(run)
    kept = (run / "stats/yardstick/en.safetensors").stat().st_mtime_ns
    assert cli.main("analyze", CONF, [f"resume={run}"]) == 0
    assert (run / "stats/yardstick/en.safetensors").stat().st_mtime_ns == kept, "what was there has not been measured again"
    for path in (whole / "tables").iterdir():
        assert (run / "tables" / path.name).read_bytes() == path.read_bytes(), path.name


@pytest.mark.parametrize(
    ("job", "typed", "now"),
    [("analyze", "piece=1/2", "shard"), ("eval", "leakage.words=3", "contamination.words"), ("analyze", "+piece=1/2", "shard")],
)
def test_a_former_key_that_is_typed_is_answered_with_the_new_name(job: str, typed: str, now: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(job, CONF, [typed, "tracking=none"]) == 2
    assert f"this key is called {now} now" in capsys.readouterr().err


@pytest.mark.parametrize("typed", ["model.shape=null", "+model.shape={layers:3}", "model.shape.layers=3"])
def test_a_key_that_is_gone_is_answered(typed: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main("analyze", CONF, [typed, "tracking=none"]) == 2
    assert "memory and time are planned from the model's own config.json; leave this key out" in capsys.readouterr().err


def test_a_key_that_is_gone_changes_no_hash() -> None:
    """What `model.shape` was in a preset is still part of the configuration's hash, and is not asked for when a stored configuration is read."""
    former = {
        "google/gemma-3-4b-pt": {
            "architecture": "gemma3",
            "layers": 34,
            "d_model": 2560,
            "d_mlp": 10240,
            "heads": 8,
            "kv_heads": 4,
            "head_dim": 256,
            "vocabulary": 262208,
            "positions": None,
            "tied": True,
            "beside": 419816304,
        },
        "/a/folder": None,
    }
    for name, shape in former.items():
        stored = {"piece": "1/1", "model": {"name": name, "context": 8, "shape": shape}}
        present = present_keys(stored)
        assert present == {"shard": "1/1", "model": {"name": name, "context": 8}}
        assert json.dumps(first_keys(present), sort_keys=True) == json.dumps(stored, sort_keys=True)
