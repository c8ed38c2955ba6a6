"""Sweeps whose jobs run beside each other, through Hydra's launchers: they finish and end in one table."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from tests.helpers.paths import ROOT
from tests.helpers.processes import Start, launch

FEW = ("languages.high=[]", "languages.low=[ml]", "tracking=none", "sae.layers=[0]", "sae.heldout=null")


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["parallel", "slurm_trial"])
def test_the_jobs_of_a_sweep_run_beside_each_other(
    launcher: str, arguments: Callable[..., list[str]], start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert start("analyze", tmp_path / "measured", *FEW) == 0
    monkeypatch.chdir(tmp_path)  # some launchers leave files where they are started
    varied = (
        "-m",
        f"hydra/launcher={launcher}",
        f"stats=[{tmp_path}/measured]",
        "statistics.confidence=0.5,0.9",
        f"hydra.sweep.dir={tmp_path}/sweep",
    )
    command = [sys.executable, str(ROOT / "analyze.py"), *arguments("analyze", None, *FEW, *varied)]
    log = tmp_path / "log"
    assert launch(command, log).wait() == 0, log.read_text()
    jobs = pd.read_csv(tmp_path / "sweep" / "sweep.csv")
    assert jobs["statistics.confidence"].tolist() == [0.5, 0.9]
    assert (jobs["status"] == "complete").all()
    found = [json.loads((tmp_path / "sweep" / str(job) / "summary.json").read_text())["gap/low/all"] for job in range(2)]
    assert jobs["gap/low/all"].tolist() == pytest.approx(found)
