"""Runs that are killed, that find no space on the disk, whose folder is damaged, or that come back to another world than they left.

The slow tier kills runs at random moments: three, or as many as LINGACT_KILLS says.
"""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lingact.activations import passes
from lingact.cli import main as cli
from lingact.evaluation import tasks
from lingact.models import adapter_sources
from lingact.workflows import analyze, evaluate, train
from tests.helpers.disk import limited
from tests.helpers.paths import CONF, ROOT
from tests.helpers.processes import Start, killed_at, launch
from tests.helpers.tiers import first_of

ALONE = ("lang=ml", "tracking=none", "languages.high=[]", "languages.low=[ml,hi,mr]")


def manifest(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "manifest.json").read_text())


def results(folder: Path) -> dict[str, bytes]:
    """All that a training run found: adapter, summary and every table."""
    files = [folder / "adapter" / adapter_sources.WEIGHTS, folder / "summary.json", *sorted((folder / "tables").iterdir())]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def hidden(folder: Path) -> list[Path]:
    return list(folder.rglob(".*"))


def keyboard(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


@pytest.fixture(scope="module")
def undisturbed(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    assert start("train", folder, *ALONE) == 0
    return folder


# --- kills ---------------------------------------------------------------------------------------------------------------------------------------


def again(first: list[str], folder: Path) -> list[str]:
    """`resume=`; before anything was written there is nothing to resume, and the command is given again."""
    return [*first[:2], f"resume={folder}"] if (folder / "config.yaml").exists() else first


def kill(process: subprocess.Popen[bytes], moment: Callable[[], bool]) -> bool:
    """SIGKILL it at the moment. Returns whether it was still there."""
    while process.poll() is None and not moment():
        time.sleep(0.002)
    process.kill()
    assert process.wait() in (-signal.SIGKILL, 0)
    return process.returncode != 0


def finish(first: list[str], folder: Path) -> None:
    assert cli.main("train", CONF, again(first, folder)[2:]) == 0
    assert manifest(folder)["status"] == "complete"
    assert not hidden(folder)


def test_a_killed_run_goes_on_as_if_nothing_had_been(arguments: Callable[..., list[str]], undisturbed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    first = ["python", "train.py", *arguments("train", folder, *ALONE)]
    before_a_checkpoint = (1, train, "fit")
    after_one = (5, torch.optim.AdamW, "step")
    while_measuring = (6, passes, "count_tokens")
    for moment in (before_a_checkpoint, after_one, while_measuring):
        assert killed_at(*moment, lambda: cli.main("train", CONF, again(first, folder)[2:])) == -signal.SIGKILL
        assert manifest(folder)["status"] == "running"
        assert (folder / "checkpoints" / "last.ckpt").exists() is (moment is not before_a_checkpoint)
    assert (folder / "adapter" / adapter_sources.WEIGHTS).exists()
    finish(first, folder)
    assert results(folder) == results(undisturbed)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_kills_at_random_moments_change_nothing(command: Callable[..., list[str]], start: Start, tmp_path: Path) -> None:
    settings = (*ALONE, "peft.dropout=0.1")
    assert start("train", tmp_path / "undisturbed", *settings) == 0
    settings = (*settings, "trainer.workers=2")
    began = time.monotonic()
    assert launch(command(tmp_path / "timed", *settings), tmp_path / "log").wait() == 0
    duration = time.monotonic() - began
    left, moments, runs = int(os.environ.get("LINGACT_KILLS", "3")), random.Random(0), 0
    while left:
        folder = tmp_path / str(runs)
        first = command(folder, *settings)
        killed = True
        while left and killed:
            end = time.monotonic() + moments.uniform(0, duration)
            killed = kill(launch(again(first, folder), tmp_path / "log"), lambda end=end: time.monotonic() > end)
            left -= killed
        finish(first, folder)
        assert results(folder) == results(tmp_path / "undisturbed")
        runs += 1


@pytest.mark.slow
def test_sigterm_while_measuring_interrupts(start: Start, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, real = tmp_path / "run", train.measure

    def measure(*given: Any, **more: Any) -> Any:
        bar = iter(range(1000))
        count = given[0].tokens.count

        def counted(texts: Any) -> int:
            if next(bar) == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return count(texts)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(given[0].tokens, "count", counted)
            return real(*given, **more)

    with monkeypatch.context() as patch:
        patch.setattr(train, "measure", measure)
        assert start("train", folder, *ALONE) == 130
    assert manifest(folder)["status"] == "interrupted"
    assert (folder / "adapter" / adapter_sources.WEIGHTS).exists()
    assert cli.main("train", CONF, [f"resume={folder}"]) == 0
    assert results(folder) == results(undisturbed)


# --- no space ------------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "call", "said"),
    [
        ("lingact.runtime.tensor_files.write_atomically", 2, "'{folder}/checkpoints/last.ckpt' could not be written: File too large"),
        pytest.param("lingact.workflows.train.save_adapter", 1, "could not be written", marks=pytest.mark.slow),
        pytest.param("lingact.files.states.write_atomically", 3, "could not be written: File too large", marks=pytest.mark.slow),
    ],
    ids=["checkpoint", "adapter", "statistics"],
)
def test_what_does_not_fit_on_the_disk_ends_the_run_and_loses_nothing(
    where: str,
    call: int,
    said: str,
    start: Start,
    undisturbed: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "run"
    module, _, name = where.rpartition(".")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(where, limited(getattr(sys.modules[module], name), call, 10_000))
        assert start("train", folder, *ALONE) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert said.format(folder=folder) in message
    assert message.endswith(f"what was saved before is intact. Free some space, then: python train.py resume={folder}")
    assert manifest(folder)["status"] == "failed"
    assert not hidden(folder)
    assert not (folder / "summary.json").exists()
    assert (folder / "checkpoints" / "last.ckpt").exists()
    assert cli.main("train", CONF, [f"resume={folder}"]) == 0
    assert results(folder) == results(undisturbed)


@pytest.mark.slow
def test_a_process_that_may_write_little_says_so(command: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")  # Python would leave cut-off .pyc files of the package behind, which no later process can read
    folder, log = tmp_path / "run", tmp_path / "log"
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))  # noqa: E731
    assert launch(command(folder, *ALONE), log, preexec_fn=limit).wait() == 2
    said = log.read_text()
    assert "Traceback" not in said
    assert "could not be written" in said.splitlines()[-1]
    assert manifest(folder)["status"] == "failed"


def test_where_not_even_the_configuration_fits_nothing_is_left(start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lingact.runtime.tracking.write_atomically", limited(sys.modules["lingact.runtime.tracking"].write_atomically, 1, 100))
        assert start("train", tmp_path / "run", *ALONE) == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith("File too large; free some space and give the same command again")
    assert not (tmp_path / "run").exists()


# --- a folder that is damaged, and another world -------------------------------------------------------------------------------------------------


@pytest.fixture
def interrupted(start: Start, small_toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A run folder of an interrupted run that has a checkpoint, and the corpus that it reads."""
    corpus = tmp_path / "corpus.jsonl"
    shutil.copy(small_toy_model / "corpus.jsonl", corpus)
    with monkeypatch.context() as patch:
        patch.setattr(train, "save_adapter", keyboard)
        assert start("train", tmp_path / "run", *ALONE, f"corpus.path={corpus}", "corpus.max_sentences=null") == 130
    return tmp_path / "run", corpus


@pytest.mark.parametrize(
    ("name", "damage", "said"),
    [
        (
            "checkpoints/last.ckpt",
            lambda content: content[: len(content) // 2],
            "is truncated, damaged or not a checkpoint of train.py; restore the right one",
        ),
        pytest.param(
            "manifest.json",
            lambda content: content[:100],
            "manifest.json' cannot be read: it is truncated or not a lingact file; restore it, or move",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "config.yaml",
            lambda content: content[:3],
            "config.yaml' cannot be read: it is truncated or not a lingact file",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_damaged_file_is_named(
    name: str, damage: Callable[[bytes], bytes], said: str, interrupted: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = interrupted[0] / name
    path.write_bytes(damage(path.read_bytes()))
    before = {file: file.read_bytes() for file in interrupted[0].rglob("*") if file.is_file() and file.name != "manifest.json"}
    assert cli.main("train", CONF, [f"resume={interrupted[0]}"]) == 2
    assert said in capsys.readouterr().err
    assert {file: file.read_bytes() for file in before} == before


@pytest.mark.slow
def test_a_run_does_not_go_on_with_another_corpus(
    interrupted: tuple[Path, Path], start: Start, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, corpus = interrupted
    whole = corpus.read_text(encoding="utf-8").splitlines(keepends=True)
    corpus.write_text("".join(whole[:-20]), encoding="utf-8")
    monkeypatch.setattr(train, "fit", lambda *_: pytest.fail("training goes on"))
    for _ in range(2):
        assert cli.main("train", CONF, [f"resume={folder}"]) == 2
        assert start("train", folder, *ALONE, f"corpus.path={corpus}", "corpus.max_sentences=null") == 2
        for message in capsys.readouterr().err.split("train.py:")[1:]:
            assert f"'{folder}' was started with other inputs" in message
            assert f"corpus.sentences: {len(whole)} there, {len(whole) - 20} here" in message
    assert manifest(folder)["identity"]["corpus"]["sentences"] == len(whole)

    # Without the manifest the checkpoint still knows.
    monkeypatch.undo()
    (folder / "manifest.json").unlink()
    assert cli.main("train", CONF, [f"resume={folder}"]) == 2
    assert "is a checkpoint of another run (corpus: " in capsys.readouterr().err


def test_an_analysis_does_not_go_on_with_another_model(
    start: Start, small_toy_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "model"
    shutil.copytree(small_toy_model / "model", model)
    with monkeypatch.context() as patch:
        patch.setattr(analyze, "analysis_results", keyboard)
        assert start("analyze", tmp_path / "run", "tracking=none", f"model.name={model}") == 130
    weights = load_file(model / "model.safetensors")
    save_file({name: tensor * 1.01 for name, tensor in weights.items()}, model / "model.safetensors", metadata={"format": "pt"})
    assert cli.main("analyze", CONF, [f"resume={tmp_path / 'run'}"]) == 2
    assert "was started with other inputs (model.sha256: " in capsys.readouterr().err


@pytest.fixture
def adapter(undisturbed: Path, tmp_path: Path) -> Path:
    """A copy of an adapter for the small toy model."""
    return shutil.copytree(undisturbed / "adapter", tmp_path / "adapter")


def evaluated(small_toy_model: Path, adapter: Path) -> tuple[str, ...]:
    return (
        f"model.name={small_toy_model}/model",
        f"adapter={adapter}",
        "tasks.benchmarks=[micro_arc]",
        "tasks.limit=2",
        "tracking=none",
        "cache=null",
    )


def test_an_evaluation_does_not_go_on_with_another_adapter_or_other_tasks(
    adapter: Path, small_toy_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "save_samples", keyboard)
        assert (
            cli.main("eval", CONF, [*evaluated(small_toy_model, adapter), "languages.high=[]", "languages.low=[ml]", f"hydra.run.dir={folder}"])
            == 130
        )
    with monkeypatch.context() as patch:
        patch.setattr(tasks.Tasks, "identity", {"micro_arc_ml": {"items": 3, "sha256": "f" * 64}})
        assert cli.main("eval", CONF, [f"resume={folder}"]) == 2
    assert "was started with other inputs (tasks.micro_arc_" in capsys.readouterr().err
    weights = load_file(adapter / adapter_sources.WEIGHTS)
    save_file({name: torch.ones_like(tensor) for name, tensor in weights.items()}, adapter / adapter_sources.WEIGHTS, metadata={"format": "pt"})
    assert cli.main("eval", CONF, [f"resume={folder}"]) == 2
    assert "was started with other inputs (adapter.sha256: " in capsys.readouterr().err


@pytest.mark.parametrize("job", first_of(["eval", "analyze"]))
def test_an_adapter_of_another_model_is_refused(
    job: str, start: Start, adapter: Path, small_toy_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    identity = adapter / adapter_sources.IDENTITY
    identity.write_text(json.dumps({"base_model": "another", "base_sha256": "0" * 64}))
    if job == "eval":
        code = cli.main("eval", CONF, [*evaluated(small_toy_model, adapter), f"hydra.run.dir={tmp_path / 'run'}"])
    else:
        code = start("analyze", tmp_path / "run", f"adapter={adapter}", "tracking=none")
    assert code == 2
    assert "belongs to another model: it was trained on 'another'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


# --- beside the first process --------------------------------------------------------------------------------------------------------------------


BESIDE = """
import os, sys, types
from pathlib import Path
from lingact.cli.main import launch
from lingact.runtime.tracking import open_run

def run(config, folder):
    with open_run("train", config, config.tracking, folder) as run:
        run.identify(model={"name": "m"})
        print("here I am")
        print("here I am", file=sys.stderr)
        with Path("seen").open("a") as seen:
            seen.write(f"{'first' if run.first else 'beside'} {','.join(config.lang)} {folder.absolute()}\\n")
        if run.first and "RANK" not in os.environ:
            from lightning_fabric.plugins.environments import LightningEnvironment
            from lightning_fabric.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

            launcher = _SubprocessScriptLauncher(LightningEnvironment(), num_processes=2, num_nodes=1)
            launcher._call_children_scripts()
            assert [process.wait() for process in launcher.procs] == [0]
        if run.first:
            run.summary({"objective": 1.0})
    return 1.0

sys.modules["lingact.workflows.train"] = types.ModuleType("lingact.workflows.train")
sys.modules["lingact.workflows.train"].run = run
if __name__ == "__main__":
    launch("train", Path(CONF))
"""


@pytest.fixture
def several(small_toy_model: Path, tmp_path: Path) -> Callable[..., tuple[int, str, str, list[str]]]:
    """A train.py whose workflow only starts a process beside itself as Lightning does: code, output, errors, and who took part in what and where."""
    script = tmp_path / "several.py"
    script.write_text(BESIDE.replace("CONF", repr(str(CONF))))

    def run(*arguments: str, **environment: str) -> tuple[int, str, str, list[str]]:
        surroundings = {**os.environ, "PYTHONPATH": str(ROOT / "src"), **environment}
        ended = subprocess.run((sys.executable, str(script), *arguments), capture_output=True, text=True, env=surroundings, cwd=tmp_path, check=False)
        seen = (tmp_path / "seen").read_text().splitlines()
        (tmp_path / "seen").unlink()
        return ended.returncode, ended.stdout, ended.stderr, seen

    return run


@pytest.mark.slow
def test_lightning_may_start_processes_beside_each_job_and_none_of_them_talks_or_writes(several: Callable[..., Any], tmp_path: Path) -> None:
    code, out, err, seen = several("-m", "lang=ml,hi", "tracking=none", "hydra.sweep.dir=grid")
    assert (code, out.count("here I am"), err) == (0, 2, "here I am\n" * 2)
    assert seen == [f"{who} {lang} {tmp_path}/grid/{job}" for job, lang in ((0, "ml"), (1, "hi")) for who in ("first", "beside")]
    assert {path.name for path in tmp_path.iterdir()} == {"several.py", "grid"}
    assert {path.name for path in (tmp_path / "grid" / "0").iterdir()} == {"config.yaml", "manifest.json", "summary.json"}
    assert manifest(tmp_path / "grid" / "0")["status"] == "complete"

    folder = tmp_path / "grid" / "1"
    (folder / "manifest.json").write_text(json.dumps(manifest(folder) | {"status": "interrupted"}))
    code, out, err, seen = several("resume=grid/1")
    assert (code, out, err) == (0, "here I am\n", "here I am\n")
    assert seen == [f"first hi {folder}", f"beside hi {folder}"]


@pytest.mark.slow
def test_processes_of_torchrun_write_nothing_beside_the_first(several: Callable[..., Any], tmp_path: Path) -> None:
    command = ("lang=ml", "tracking=none", "hydra.run.dir=run")
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    assert several(*command, RANK="1", LOCAL_RANK="1", WORLD_SIZE="2", **meeting) == (0, "", "", [f"beside ml {tmp_path}/run"])
    assert {path.name for path in tmp_path.iterdir()} == {"several.py"}
