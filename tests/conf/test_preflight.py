"""What configuration and config.json tell is told before anything is loaded: exit 2, no run folder, no heavy library, all problems at once."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import save_file

from lingact.cli import main as cli
from lingact.config.base import asset
from lingact.config.model import ModelConfig
from lingact.models.devices import _devices_of_driver, cuda_devices
from lingact.models.model_files import Facts, facts_of
from tests.helpers.paths import CONF, ROOT

MODEL, SAE = Path(asset("microworld/model")), Path(asset("microworld/sae"))
Refused = Callable[[str], list[str]]


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refused:
    """What a command is refused with, in an empty folder that stays as it is."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def run(command: str) -> list[str]:
        job, *overrides = command.split()
        before = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*"))
        assert cli.main(job, CONF, [*overrides, *(["lang=ml"] if job == "train" else []), "tracking=none"]) == 2
        assert sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*")) == before
        return [line.strip() for line in capsys.readouterr().err.splitlines()[1:]]

    return run


@pytest.mark.parametrize(
    ("command", "told"),
    [
        # of the issue
        ("train peft.layers=[99]", "peft.layers: 99; the model has the layers 0 to 5"),
        # of the kind
        ("train peft.targets=[q_prj]", "peft.targets: q_prj; did you mean 'q_proj'? The blocks have the linear modules down_proj, gate_proj, k_proj"),
        ("train peft.r=65", "peft.r: 65 is more than the rank that the matrix of k_proj can have (64); give at most 64"),
        ("train peft=loha peft.r=200", "peft.r: 200 is more than the rank that the matrix of k_proj can have (64); give at most 64"),
        ("train peft=oft peft.block_size=48", "peft.block_size: 48 does not divide the input width of down_proj (320), gate_proj (128)"),
        ("train loss.gap.layers=[6]", "loss.gap.layers: [6] out of range; measured are the layers [0, 1, 2, 3, 4, 5]"),
        ("train loss.gap.layers={4:1.0} sae.layers=[1,2]", "loss.gap.layers: [4] out of range; measured are the layers [1, 2]"),
        ("train loss.control=wrong_language languages.low=[ml] languages.high=[]", "loss.control=wrong_language needs one other language"),
        ("train sae.layers=[5,6]", "sae.layers: [6] out of range; the model has layers 0 to 5"),
        ("train statistics.early=[9]", "statistics.early: none of the layers [9] is measured; measured are [0, 1, 2, 3, 4, 5]"),
        ("analyze statistics.deep=[0] sae.layers=[1,2]", "statistics.deep: none of the layers [0] is measured; measured are [1, 2]"),
        ("analyze measures.causal.layers=[6]", "measures.causal: layers [6] are not measured"),
        ("analyze measures.causal.features={2:[3,512]}", "measures.causal.features: layer 2 has latents 0 to 511; there is no 512"),
        ("analyze model.context=513", "model.context is 513; '<model>' takes at most 512 tokens"),
        ("analyze model.attention=sdpa", "model.attention: sdpa leaves out the soft caps of '<model>'; use model.attention=eager"),
        ("analyze sae.measuring.id='layr_{layer}'", "no SAE in '<sae>/layr_0' (no sae_weights.safetensors"),
        ("analyze sae.measuring.id={0:layer_0,1:layer_1}", "sae: no id for layer 2 (given: 0, 1); add it, or name the layers in sae.layers"),
        ("analyze sae.heldout.release=gemma-scope-2b-pt-res-canonicle", "sae: 'gemma-scope-2b-pt-res-canonicle' is neither a folder nor a release"),
        ("analyze model.name=/no/model", "model.name: no model in the folder '/no/model' (no config.json)"),
        ("analyze model.name=./a/b/c", "model.name: no model in the folder 'a/b/c' (no config.json)"),
        ("analyze adapter=/no/adapter", "adapter: there is no folder '/no/adapter'"),
        ("eval adapter=[/no/adapter]", "adapter: there is no folder '/no/adapter'"),
        ("eval sae=microworld sae.layers=[9]", "sae.layers: [9] out of range; the model has layers 0 to 5"),
        ("eval sae=gpt2_resid_post", "sae"),
        ("eval model.context=513", "model.context is 513; '<model>' takes at most 512 tokens"),
        ("analyze languages.high=[] languages.low=[]", "languages: there is nothing to compare 'en' with"),
        ("analyze stats=[here]", "stats: 'here' has no statistics (no stats/index.json)"),
        ("analyze compare=[one,two]", "compare: 'one' has no statistics (no stats/index.json)"),
        # a model that is not on this machine: by its preset
        ("analyze model=gemma2_2b sae=gemma_scope_2b_16k sae.layers=[26]", "sae.layers: [26] out of range; the model has layers 0 to 25"),
        ("train model=gemma2_2b sae=gemma_scope_2b_16k peft.layers=[26]", "peft.layers: 26; the model has the layers 0 to 25"),
        ("train model=gpt2 sae=gpt2_resid_post peft.targets=[q_proj]", "peft.targets: q_proj"),
    ],
)  # fmt: skip
def test_told_at_the_door(command: str, told: str, refused: Refused) -> None:
    lines = refused(command)
    expected = told.replace("<model>", str(MODEL)).replace("<sae>", str(SAE))
    assert any(line.startswith(expected) for line in lines), lines


def test_a_sweep_to_compare_holds_its_statistics_in_its_jobs(tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "grid" / ".jobs").mkdir(parents=True)
    assert refused(f"analyze compare={tmp_path / 'grid'}") == [
        f"adapter: the sweep '{tmp_path / 'grid'}' has no complete job of train.py (jobs: none has finished); name a sweep of train.py, or resume its jobs"
    ]


def test_everything_at_once(refused: Refused) -> None:
    lines = refused("train sae.layers=[1,9] peft.layers=[8] peft.targets=[c_attn] model.context=600 model.attention=sdpa device=cuda:7")
    starts = ["device", "model.context", "model.attention", "sae.layers", "peft.layers"]
    assert [line.split()[0].rstrip(":") for line in lines][: len(starts)] == starts


def copied(folder: Path, **changes: Any) -> Path:
    """The embedded model's configuration with changes, and weights that nobody reads."""
    folder.mkdir()
    config = json.loads((MODEL / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    save_file({}, folder / "model.safetensors")
    return folder


def test_saes_of_another_model(refused: Refused, tmp_path: Path) -> None:
    model = copied(tmp_path / "wide", hidden_size=256)
    lines = refused(f"analyze model.name={model}")
    assert lines[0] == f"SAE {SAE} layer_0 reads vectors of 128, the model's residual stream has 256; choose SAEs made for this model"
    assert len(lines) == 2, "the held-out ones, too"


def test_a_model_of_fewer_layers_than_the_saes(refused: Refused, tmp_path: Path) -> None:
    assert refused(f"train model.name={copied(tmp_path / 'short', num_hidden_layers=2)} sae.layers=[2]") == [
        "sae.layers: [2] out of range; the model has layers 0 to 1"
    ]


def test_a_surrogate_gradient_without_thresholds(refused: Refused, tmp_path: Path) -> None:
    for layer in range(6):
        (tmp_path / f"sae/layer_{layer}").mkdir(parents=True)
        (tmp_path / f"sae/layer_{layer}/cfg.json").write_text(json.dumps({"architecture": "topk", "d_in": 128, "d_sae": 64}))
        save_file({}, tmp_path / f"sae/layer_{layer}/sae_weights.safetensors")
    assert refused(f"train loss=straight_through sae.measuring.release={tmp_path / 'sae'}") == [
        "loss.gap.gradient=straight_through needs JumpReLU SAEs; layer 0 has 'topk'. Use loss.gap.gradient=jumprelu"
    ]


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"), "has no weights in safetensors format"),
        (
            lambda folder: (folder / "config.json").write_text('{"num_hidden_layers": 6'),
            "config.json' cannot be read: it is truncated or not a lingact file",
        ),
        (lambda folder: (folder / "config.json").write_text("[1, 2]"), "config.json' cannot be read: it is truncated or not a lingact file"),
        (lambda folder: (folder / "config.json").unlink(), "no model in the folder"),
        (
            lambda folder: (
                (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
                and (folder / "model.safetensors.index.json").write_text(
                    json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}})
                )
            ),
            "is not complete: there is no 'model-00002-of-00002.safetensors', which its model.safetensors.index.json names",
        ),
    ],
    ids=["other format", "cut", "list", "none", "shard"],
)
def test_folders_that_hold_no_whole_model(spoil: Callable[[Path], object], told: str, refused: Refused, tmp_path: Path) -> None:
    folder = copied(tmp_path / "own")
    spoil(folder)
    [line] = refused(f"eval model.name={folder}")
    assert told in line


def test_a_configuration_that_leaves_things_out_refuses_nothing(tmp_path: Path) -> None:
    """Every architecture has values of its own for what its file does not tell."""
    folder = copied(tmp_path / "own")
    (folder / "config.json").write_text(json.dumps({"model_type": "gemma2"}))
    config = ModelConfig(name=str(folder), revision=None, dtype="float32", attention="sdpa", context=10_000)
    facts = facts_of(config)
    assert facts == Facts()


def test_half_precision_and_processes_without_cuda(refused: Refused) -> None:
    if cuda_devices() != 0:
        pytest.skip("there is a GPU")
    assert refused("train trainer.precision=16-mixed") == [
        "trainer.precision: 16-mixed needs a CUDA device; there is none, or device=cpu was given. Use bf16-mixed or 32-true"
    ]
    assert refused("analyze device=cuda") == ["device: 'cuda' is not there; 0 CUDA devices are visible. Use device=auto or device=cpu"]
    assert refused("train device=cpu trainer.precision=16-mixed")[0].startswith("trainer.precision: 16-mixed needs")


def test_the_number_of_devices_is_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    assert _devices_of_driver() in (None, torch.cuda.device_count())


def test_a_launcher_may_have_devices_that_this_machine_has_not(refused: Refused, tmp_path: Path) -> None:
    """Jobs for another machine are judged by everything but the devices of this one."""
    [line] = refused("train -m hydra/launcher=slurm device=cuda trainer.precision=16-mixed peft.layers=[99]")
    assert line == "peft.layers: 99; the model has the layers 0 to 5"


def test_nothing_heavy_is_imported(tmp_path: Path) -> None:
    heavy = ["torch", "transformers", "sae_lens", "peft", "pytorch_lightning", "lm_eval", "wandb", "pandas", "numpy", "matplotlib", "datasets"]
    code = f"""
import sys
from pathlib import Path
from lingact.cli import main as cli
asked = ["lang=ml", "peft.layers=[99]", "device=cuda", "sae.layers=[7]", "tracking=none"]
assert cli.main("train", Path({str(CONF)!r}), asked) == 2
print([name for name in {heavy} if name in sys.modules])
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run((sys.executable, "-c", code), capture_output=True, text=True, env=environment, cwd=tmp_path, check=True)
    assert done.stdout == "[]\n"
    assert list(tmp_path.iterdir()) == []
