"""Real jobs among the user's files: they write into their run folder and the cache, and touch nothing else."""

from pathlib import Path

import pytest

from lingact.cli import main as cli
from lingact.models import adapter_sources
from lingact.workflows import train
from tests.helpers.folders import plant, snapshot, untouched
from tests.helpers.paths import CONF
from tests.helpers.processes import Start

pytestmark = pytest.mark.draws
MINE = (".bashrc.20240101", "proj/.env.2", ".config.1/x", "wandb/run.1", "lightning_logs/version_0/x", ".hydra/config.yaml", "checkpoints/last.ckpt")
FEW = ("languages.high=[]", "languages.low=[ml]")
JOBS = {
    "train": ("lang=ml", *FEW, "trainer.steps=3", "trainer.checkpoint_every=1", "cache=cache"),
    "analyze": (*FEW, "corpus.max_sentences=40", "split=all"),
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with files of the user's."""
    (tmp_path / "here").mkdir()
    plant(tmp_path / "here", *MINE)
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.mark.parametrize("job", JOBS)
def test_a_job_writes_into_its_run_folder_and_the_cache(job: str, start: Start, here: Path) -> None:
    before = snapshot(here)
    assert start(job, None, *JOBS[job]) == 0
    after = snapshot(here)
    new = {name for name in after.keys() - before.keys() if not name.startswith((f"outputs/{job}/", "cache/"))}
    assert untouched(before, here)
    assert new == {"outputs", f"outputs/{job}"} | ({"cache"} if job == "train" else set())
    assert not [name for name in after if ".lingact." in name], "neither lock nor anything unfinished"


def test_an_evaluation_writes_into_its_run_folder_and_the_cache(start: Start, small_toy_model: Path, here: Path) -> None:
    before = snapshot(here)
    given = [*FEW, "resamples=100", "tasks.limit=4", "corpus.max_sentences=40", "cache=cache", f"model.name={small_toy_model}/model"]
    assert cli.main("eval", CONF, [*given, f"corpus.path={small_toy_model}/corpus.jsonl"]) == 0
    assert untouched(before, here)
    new = {name for name in snapshot(here).keys() - before.keys() if not name.startswith(("outputs/eval/", "cache/answers/"))}
    assert new == {"outputs", "outputs/eval", "cache", "cache/answers"}


@pytest.mark.slow
def test_an_adapter_that_was_put_there_by_hand_is_neither_judged_nor_lost(
    start: Start, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stops(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train, "measure_change", stops)
        assert start("train", here / "run", *JOBS["train"], "tracking=none") == 130
    weights = here / "run" / "adapter" / adapter_sources.WEIGHTS
    first = weights.read_bytes()
    weights.write_bytes(b"better ones, by hand")
    mine = plant(here / "run" / "adapter", "notes.txt", "below/x")
    rest = plant(here / "run", "tables/mine.csv", "stats/.lingact.mine", "checkpoints/best.ckpt", ".adapter.old.1/x", *MINE[:4])
    capsys.readouterr()
    assert cli.main("train", CONF, [f"resume={here / 'run'}"]) == 2
    assert f"'{weights}' cannot be read" in capsys.readouterr().err
    assert snapshot(here / "run" / "adapter") == mine
    (here / "run" / "adapter").rename(here / "mine")
    assert cli.main("train", CONF, [f"resume={here / 'run'}"]) == 0, "made again from the last checkpoint"
    assert weights.read_bytes() == first
    assert snapshot(here / "mine") == mine
    ours = ("adapter", "config.yaml", "manifest.json", "stats/", "checkpoints/last.ckpt", "checkpoints/trained.json")
    assert untouched({name: told for name, told in rest.items() if not name.startswith(ours) or name == "stats/.lingact.mine"}, here / "run")
