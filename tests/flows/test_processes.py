"""Training in several processes, with workers, in lower precision and with a cache: what comes out is what one plain process gives."""

import itertools
import json
import multiprocessing
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor

from lingact.cli import main as cli
from lingact.config.model import ModelConfig
from lingact.config.training import LoraAdapter
from lingact.data.corpus import ParallelCorpus
from lingact.models import adapter_sources, adapters
from lingact.models.lm import LanguageModel, load_model
from lingact.workflows import train
from tests.helpers.paths import CONF
from tests.helpers.processes import Start, bars_of, launch, processes_of

SMALL = ("lang=ml", "tracking=none", "languages.high=[]", "languages.low=[ml]")
FIRST_LAYER = ("loss=gap_only", "loss.gap.layers=[0]", "trainer.steps=40")
"""The adapters of later layers get no gradient; and there is time for an interruption."""


def interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def losses(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "tables" / "loss.csv")


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter" / adapter_sources.WEIGHTS)


def status(folder: Path) -> str:
    return json.loads((folder / "manifest.json").read_text())["status"]


def results(folder: Path) -> dict[str, bytes]:
    """All that a run found."""
    found = [folder / "adapter" / adapter_sources.WEIGHTS, folder / "summary.json", *sorted((folder / "tables").iterdir())]
    return {path.name: path.read_bytes() for path in found}


def files(folder: Path) -> dict[str, int]:
    """All files below a folder, and when each was written."""
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def same_training(one: Path, other: Path) -> None:
    pd.testing.assert_frame_equal(losses(one), losses(other), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(adapter(one), adapter(other), rtol=1e-3, atol=1e-5)


@pytest.fixture(scope="module")
def one(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process, without anything of what is tried here."""
    folder = tmp_path_factory.mktemp("one") / "run"
    assert start("train", folder, *SMALL) == 0
    return folder


# --- two processes -------------------------------------------------------------------------------------------------------------------------------


def test_two_tasks_of_slurm_train_as_one_process_does(
    tasks_of_slurm: Callable[..., list[int | None]], arguments: Callable[..., list[str]], one: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert tasks_of_slurm("train", arguments("train", folder, *SMALL, "trainer.devices=2")) == [0, 0], capfd.readouterr().err
    assert status(folder) == "complete"
    assert files(folder).keys() == files(one).keys()
    same_training(folder, one)
    found, expected = (json.loads((run / "summary.json").read_text()) for run in (folder, one))
    assert found == pytest.approx(expected, rel=1e-2, abs=1e-3)


@pytest.mark.slow
def test_two_processes_train_as_one_does(command: Callable[..., list[str]], one: Path, tmp_path: Path) -> None:
    folder, log = tmp_path / "run", tmp_path / "log"
    assert launch(command(folder, *SMALL, "trainer.devices=2"), log).wait() == 0, log.read_text()
    assert not processes_of(folder)
    said = bars_of(log)
    assert said <= {"SAEs", "base model, en", "base model, ml", "measuring"}, "nothing else is said; a short bar may be gone before it is drawn"
    assert status(folder) == "complete"
    assert files(folder).keys() == files(one).keys()
    same_training(folder, one)
    found, expected = (json.loads((run / "summary.json").read_text()) for run in (folder, one))
    assert found == pytest.approx(expected, rel=1e-2, abs=1e-3)


@pytest.mark.slow
def test_two_processes_that_share_the_weights_are_interrupted_together_and_go_on(
    command: Callable[..., list[str]], start: Start, tmp_path: Path
) -> None:
    folder, log = tmp_path / "run", tmp_path / "log"
    checkpoint = folder / "checkpoints" / "last.ckpt"

    def interrupted(command: list[str], interrupt: Callable[[subprocess.Popen[bytes]], None]) -> None:
        before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        process = launch(command, log, start_new_session=True)
        while not checkpoint.exists() or checkpoint.stat().st_mtime_ns == before:
            assert process.poll() is None, log.read_text()
            time.sleep(0.01)
        assert len(processes_of(folder)) == 2
        interrupt(process)
        assert process.wait() == 130, log.read_text()
        assert status(folder) == "interrupted"
        assert not processes_of(folder)
        said = log.read_text().splitlines()[-1]
        steps = torch.load(checkpoint, weights_only=True)["global_step"]
        assert said == f"Interrupted at step {steps} of 40; kept: {steps} steps. To go on: python train.py resume={folder}"

    first = command(folder, *SMALL, *FIRST_LAYER, "trainer.devices=2", "trainer.strategy=fsdp")
    resume = [*first[:2], f"resume={folder}"]
    interrupted(first, lambda process: process.send_signal(signal.SIGTERM))  # as a scheduler does, to the first one alone
    interrupted(resume, lambda process: os.killpg(process.pid, signal.SIGINT))  # as Ctrl-C does, to both
    assert launch(resume, log).wait() == 0, log.read_text()
    assert start("train", tmp_path / "one", *SMALL, *FIRST_LAYER) == 0
    same_training(folder, tmp_path / "one")


@pytest.fixture
def group() -> Iterator[None]:
    """A process group of this process alone."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("group")
def test_a_sharded_model_answers_as_before_with_its_adapter_whole(lm: LanguageModel, corpus: ParallelCorpus) -> None:
    settings = LoraAdapter(
        kind="lora", r=2, alpha=2.0, dropout=0.0, use_rslora=False, use_dora=False, init="default", targets=("q_proj",), layers="all"
    )
    lm.model = adapters.attach_adapter(lm.model, lm.blocks, settings, seed=0)
    batch = lm.tokens.collate(lm.tokens.windows(corpus.texts["en"]))
    (one,), (before, _) = lm.residuals(batch, (1,))[0].values(), lm.residuals(batch, (0, 2), predict=True)
    lm.shard()
    assert {isinstance(parameter, DTensor) for parameter in lm.model.parameters() if not parameter.requires_grad} == {True}
    assert {isinstance(parameter, DTensor) for parameter in lm.model.parameters() if parameter.requires_grad} == {False}
    residuals, predictions = lm.residuals(batch, (1,))  # a pass that would end early
    assert torch.equal(residuals[1], one)
    assert predictions is None
    after, _ = lm.residuals(batch, (0, 2), predict=True)
    assert all(torch.equal(after[layer], before[layer]) for layer in (0, 2))


FAR_TOO_FAR = """
from pathlib import Path
import torch
from lingact.cli.main import launch

real = torch.optim.AdamW.step

def step(self, closure=None):
    loss = real(self, closure)
    with torch.no_grad():
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.mul_(1e30)
    return loss

torch.optim.AdamW.step = step
if __name__ == "__main__":
    launch("train", Path(CONF))
"""
"""A train.py that diverges, which no configuration that is allowed makes the small model do."""


@pytest.mark.slow
def test_two_processes_that_diverge_say_so_once(command: Callable[..., list[str]], tmp_path: Path) -> None:
    folder, log, script = tmp_path / "run", tmp_path / "log", tmp_path / "train.py"
    script.write_text(FAR_TOO_FAR.replace("CONF", repr(str(CONF))))
    python, _, *arguments = command(folder, *SMALL, "trainer.devices=2")
    assert launch([python, str(script), *arguments], log).wait() == 2, log.read_text()
    assert not processes_of(folder)
    assert log.read_text().count("training stopped at step 1") == 1
    assert "Traceback" not in log.read_text()
    assert status(folder) == "failed"
    assert (folder / "checkpoints" / "last_good" / adapter_sources.WEIGHTS).exists()


# --- workers, precision, cache -------------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_workers_change_nothing_not_even_after_an_interruption(
    start: Start, one: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, real, steps = tmp_path / "run", torch.optim.AdamW.step, itertools.count(1)

    def step(self: torch.optim.AdamW, closure: Callable[[], Any] | None = None) -> Any:
        if next(steps) == 4:
            raise KeyboardInterrupt
        return real(self, closure)

    monkeypatch.delenv("TOKENIZERS_PARALLELISM")  # without it the tokenizers may warn of forks
    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    assert start("train", folder, *SMALL, "trainer.workers=2") == 130
    assert not multiprocessing.active_children()
    assert cli.main("train", CONF, [f"resume={folder}"]) == 0
    assert not multiprocessing.active_children()
    assert results(folder) == results(one)
    said = capfd.readouterr().err
    assert "fork" not in said
    assert "arning" not in said


@pytest.mark.slow
@pytest.mark.parametrize(("override", "dtype"), [("trainer.precision=bf16-mixed", "float32"), ("model.dtype=bfloat16", "bfloat16")])
def test_in_bfloat16_training_is_nearly_the_same(override: str, dtype: str, start: Start, one: Path, small_toy_model: Path, tmp_path: Path) -> None:
    assert start("train", tmp_path / "run", *SMALL, override) == 0
    # Rounding adds up from step to step, first in the norm term, which is the square of a small change and weighs 30 times.
    ours, plain = losses(tmp_path / "run"), losses(one)
    for name, steps in (("loss/total", 2), ("loss/raw/gap", 3)):
        assert ours[name][:steps].to_numpy() == pytest.approx(plain[name][:steps].to_numpy(), rel=0.05)
    assert (ours["loss/total"][:3] != plain["loss/total"][:3]).all()
    assert {tensor.dtype for tensor in adapter(tmp_path / "run").values()} == {torch.float32}
    lm = load_model(ModelConfig(name=f"{small_toy_model}/model", revision=None, dtype=dtype, attention="eager", context=512), "cpu")
    adapters.load_adapter(lm.model, str(tmp_path / "run"))


@pytest.mark.slow
def test_a_cache_saves_the_pass_over_the_text_and_changes_nothing(start: Start, one: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    cache = tmp_path / "cache"

    def trained(name: str, *overrides: str) -> str:
        """What it said."""
        assert start("train", tmp_path / name, *SMALL, f"cache={cache}", *overrides) == 0
        return capfd.readouterr().err

    def begun(name: str, *overrides: str) -> str:
        """What it said up to its first step."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(train, "fit", interrupt)
            assert start("train", tmp_path / name, *SMALL, f"cache={cache}", *overrides) == 130
        return capfd.readouterr().err

    assert "base model, en" in trained("first")
    kept = files(cache)
    assert kept
    assert "base model," not in trained("second")
    assert "base model," not in begun("other_seed", "seed=5", "trainer.steps=1")
    assert files(cache) == kept
    assert results(tmp_path / "first") == results(tmp_path / "second") == results(one)
    assert "base model, en" in begun("other_sentences", "corpus.max_sentences=50", "trainer.steps=1")
    assert files(cache).keys() > kept.keys()
