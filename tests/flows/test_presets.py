"""The presets for real models go through the same loaders: here they are pointed at small local files in the same formats."""

import json
from pathlib import Path

import pytest

from lingact.cli import main as cli
from tests.helpers.paths import CONF


def local(toy_model: Path) -> list[str]:
    return [
        f"model.name={toy_model}/model",
        "model.context=128",
        f"sae.measuring.release={toy_model}/sae",
        "sae.measuring.id='layer_{layer}'",
        f"sae.heldout.release={toy_model}/sae_heldout",
        "sae.heldout.id='layer_{layer}'",
        "corpus=files",
        f"corpus.path={toy_model}/corpus.jsonl",
        "corpus.max_sentences=40",
        "statistics.resamples=100",
        "device=cpu",
    ]


def test_gemma_presets_analyze_a_local_gemma(small_toy_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    presets = ["model=gemma2_2b", "sae=gemma_scope_2b_16k"]
    assert cli.main("analyze", CONF, [*presets, *local(small_toy_model), f"hydra.run.dir={folder}"]) == 0
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["identity"]["model"]["dtype"] == "bfloat16"
    assert manifest["identity"]["sae"]["measuring"]["layers"] == [0, 1, 2]


@pytest.mark.slow
def test_the_gemma_experiment_trains_a_local_gemma(small_toy_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    few = ["trainer.steps=2", "trainer.sentences=2", "trainer.checkpoint_every=1", "optim.warmup_steps=1"]
    assert (
        cli.main("train", CONF, ["experiment=gemma2_2b", "lang=ml", "train_corpus=null", *local(small_toy_model), *few, f"hydra.run.dir={folder}"])
        == 0
    )
    assert json.loads((folder / "manifest.json").read_text())["status"] == "complete"
    assert (folder / "adapter" / "adapter_model.safetensors").is_file()


def test_without_the_hub_the_presets_fail_at_once_with_advice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    here = tmp_path / "two.jsonl"
    codes = ("en", "zh", "ru", "es", "it", "id", "ca", "mr", "ml", "hi")
    here.write_text("".join(json.dumps({code: f"{code} {i}" for code in codes}) + "\n" for i in range(2)), encoding="utf-8")
    presets = ["model=gemma2_2b", "sae=gemma_scope_2b_16k", "plan=false"]
    assert cli.main("analyze", CONF, [*presets, "corpus=files", f"corpus.path={here}", f"hydra.run.dir={folder}"]) == 2
    said = capsys.readouterr().err
    assert "google/gemma-2-2b" in said
    assert "licence" in said
    assert not folder.exists()
