"""Analysis and evaluation in several processes: what comes out is what one process gives."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file

from lingact.cli import main as cli
from lingact.evaluation.answers import AnswerCache
from tests.helpers.paths import CONF, ROOT
from tests.helpers.processes import Start, bars_of, launch, processes_of

FEW = ("languages.high=[]", "languages.low=[ml,hi]", "tracking=none")
FULL = (
    *FEW,
    "measures=full",
    "sae.layers=[0,1]",
    "batch_tokens=512",
    "measures.similarity.sentences=20",
    "measures.features.random_tokens=512",
    "measures.spliced.sentences=6",
    "measures.causal.sentences=6",
    "measures.causal.draws=1",
)
"""Every pass there is, over several batches each."""


def summary(folder: Path) -> dict[str, float]:
    return json.loads((folder / "summary.json").read_text())


def same_analysis(found: Path, expected: Path) -> None:
    """Identical counts, sums but for rounding, and so the same tables."""
    files = [{str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} for folder in (found, expected)]
    assert files[0] == files[1]
    for path in sorted((expected / "stats").rglob("*.safetensors")):
        theirs, ours = load_file(path), load_file(found / path.relative_to(expected))
        assert ours.keys() == theirs.keys()
        for name, array in theirs.items():
            if array.dtype.kind == "i":
                assert np.array_equal(ours[name], array), f"{path.name}: {name}"
            else:
                np.testing.assert_allclose(ours[name], array, rtol=1e-12, atol=1e-12 * np.abs(array).max(initial=0), err_msg=f"{path.name}: {name}")
    for path in sorted((expected / "tables").iterdir()):
        pd.testing.assert_frame_equal(pd.read_csv(found / "tables" / path.name), pd.read_csv(path), rtol=1e-9, atol=1e-12)
    assert summary(found) == pytest.approx(summary(expected), rel=1e-9)
    for name in ("contexts.json", "links.json", "index.json"):
        assert (found / "stats" / name).read_bytes() == (expected / "stats" / name).read_bytes()


@pytest.mark.slow
def test_two_tasks_of_slurm_analyse_as_one_process_does(
    tasks_of_slurm: Callable[..., list[int | None]], arguments: Callable[..., list[str]], start: Start, tmp_path: Path
) -> None:
    assert start("analyze", tmp_path / "one", *FULL) == 0
    assert tasks_of_slurm("analyze", arguments("analyze", tmp_path / "two", *FULL)) == [0, 0]
    same_analysis(tmp_path / "two", tmp_path / "one")


@pytest.mark.slow
def test_two_processes_analyse_as_one_does(arguments: Callable[..., list[str]], start: Start, small_toy_model: Path, tmp_path: Path) -> None:
    folder, log = tmp_path / "two", tmp_path / "log"
    everything = (*FULL, f"attribution=[{small_toy_model}/sae,{small_toy_model}/sae_heldout]")
    command = [sys.executable, str(ROOT / "analyze.py"), *arguments("analyze", folder, *everything, "devices=2")]
    process = launch(command, log)
    assert start("analyze", tmp_path / "one", *everything) == 0  # meanwhile
    assert process.wait() == 0, log.read_text()
    said = bars_of(log)
    bars = {"SAEs", "sampling", "reference statistics en", "measuring", "random tokens", "contexts", "splicing", "intervening"}
    bars |= {"residual norms", "attribution"}
    assert "measuring" in said
    assert said <= bars, "nothing else is said; a short bar may be gone before it is drawn"
    same_analysis(folder, tmp_path / "one")
    assert not processes_of(folder)
    # The processes belong to no configuration of the results.
    assert cli.main("analyze", CONF, [f"resume={folder}", "devices=3"]) == 0
    assert cli.main("analyze", CONF, [f"resume={folder}", "devices=3", "batch_tokens=1"]) == 2


def test_two_tasks_of_slurm_evaluate_as_one_process_does(
    tasks_of_slurm: Callable[..., list[int | None]],
    small_toy_model: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    put = AnswerCache.put

    def noted(self: AnswerCache, identity: dict[str, Any], answers: dict[str, Any]) -> None:
        with (tmp_path / f"kept_by_{os.environ.get('SLURM_PROCID', 'one')}").open("a") as file:
            file.write(f"{identity.get('task', 'text')}\n")
        put(self, identity, answers)

    monkeypatch.setattr(AnswerCache, "put", noted)
    few = [*FEW, f"model.name={small_toy_model}/model", f"corpus.path={small_toy_model}/corpus.jsonl", "corpus.max_sentences=60"]
    few += ["resamples=100", "tasks.limit=4", "cache=null"]
    assert cli.main("eval", CONF, [*few, f"hydra.run.dir={tmp_path / 'one'}"]) == 0
    alone = capfd.readouterr()
    assert tasks_of_slurm("eval", [*few, f"hydra.run.dir={tmp_path / 'two'}"]) == [0, 0]
    together = capfd.readouterr()
    assert together.out.replace("/two", "/one") == alone.out, "the first one alone talks"
    alone_kept, *kept = ((tmp_path / f"kept_by_{who}").read_text().split() for who in ("one", 0, 1))
    assert sorted(kept[0] + kept[1]) == sorted(alone_kept), "nothing is asked twice"
    assert (len(kept[0]), len(kept[1])) == (6, 4)  # nine tasks, and the text, whose sums the first one keeps
    folders = [tmp_path / name for name in ("one", "two")]
    files = [{str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()} for folder in folders]
    assert files[0].keys() == files[1].keys()
    for name, path in files[0].items():
        if name not in ("manifest.json", "report.html"):
            assert files[1][name].read_bytes() == path.read_bytes(), name
