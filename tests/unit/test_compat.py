"""Patches and private parts of libraries: each is documented, and each test here fails when its library no longer needs the patch.

What to do then: use the library directly, and delete the function, its test and its entry below.
"""

import ast
import importlib
import inspect
import itertools
import json
import pkgutil
import signal
import socket
import subprocess
import sys
import time
import tomllib
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.requirements import Requirement
from torch import nn

from lingact.runtime import compat
from tests.helpers.paths import CONF, ROOT

SOURCE = Path(compat.__path__[0]).parents[1]
MODULES = [importlib.import_module(f"{compat.__name__}.{found.name}") for found in pkgutil.iter_modules(compat.__path__)]
ENTRIES = {
    name: function
    for module in MODULES
    for name, function in inspect.getmembers(module, inspect.isfunction)
    if inspect.unwrap(function).__module__ == module.__name__ and not name.startswith("_")
}


# --- every patch is there and says why ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(ENTRIES))
def test_every_entry_names_versions_reason_and_issue_and_has_a_test(name: str) -> None:
    text = inspect.getdoc(ENTRIES[name]) or ""
    assert all(f"\n{part}: " in text for part in ("Versions", "Reason", "Upstream"))
    assert f"test_{name}_is_needed" in globals()


def uses(tree: ast.Module) -> set[str]:
    """Imports of `unittest.mock`, of private modules and of private names, and private attributes that the module does not define itself."""
    found = set()
    own = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    own |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    own |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
            found |= {name for name in names if (name.startswith("_") and not name.startswith("__")) or name == "mock"}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if "mock" in alias.name or any(part.startswith("_") for part in alias.name.split("."))}
        elif isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__") and node.attr not in own:
            found.add(node.attr)
    return found - {"_target_"}  # a key of Hydra's configuration


def test_nothing_else_patches_a_library_or_uses_its_private_parts() -> None:
    assert uses(ast.parse("from unittest.mock import patch\nimport a._b\nfrom a import _c\nx._d\nself._e = 1\nself._e")) == {
        "mock",
        "a._b",
        "_c",
        "_d",
    }
    elsewhere = [path for path in SOURCE.rglob("*.py") if not path.is_relative_to(Path(compat.__path__[0]))]
    found = {str(path.relative_to(SOURCE)): uses(ast.parse(path.read_text(encoding="utf-8"))) for path in elsewhere}
    assert not {path: names for path, names in found.items() if names}


# --- Hydra ----------------------------------------------------------------------------------------------------------------------------------------


def test_composer_is_needed() -> None:
    import hydra
    import hydra.core

    public = [hydra, *(importlib.import_module(found.name) for found in pkgutil.iter_modules(hydra.core.__path__, "hydra.core."))]
    assert not [module for module in public if "Hydra" in vars(module) and module.__name__ != "hydra.core.global_hydra"]
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        assert compat_of("hydra").composer().config_loader is not None


def test_returned_value_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    from hydra.core.utils import JobReturn, JobStatus

    problem = ValueError("no")
    job = JobReturn(overrides=[], status=JobStatus.FAILED)
    job.return_value = problem
    with pytest.raises(ValueError, match="no"):
        _ = job.return_value
    assert "Error executing job" in capsys.readouterr().err
    assert compat_of("hydra").returned_value(job) is problem
    assert not capsys.readouterr().err


# --- Hugging Face ---------------------------------------------------------------------------------------------------------------------------------


def test_offline_is_needed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import datasets
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    asked: list[str] = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *_, **__: asked.append(host) or (_ for _ in ()).throw(socket.gaierror()))

    def load(*errors: type[Exception]) -> None:
        with pytest.raises(errors):
            hf_hub_download("nobody/nothing", "config.json", cache_dir=tmp_path)

    monkeypatch.setattr(time, "sleep", lambda _: None)  # between retries
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # too late: the client has been imported
    load(LocalEntryNotFoundError, RuntimeError)  # huggingface-hub before 1.29 tries again with a client that it has closed
    assert asked
    asked.clear()
    with compat_of("huggingface").offline():
        load(LocalEntryNotFoundError)
        assert datasets.config.HF_HUB_OFFLINE
    assert not asked
    assert not datasets.config.HF_HUB_OFFLINE


def test_attention_implementation_is_needed(lm: Any) -> None:
    assert not hasattr(lm.model.config, "attn_implementation")
    assert not hasattr(lm.model, "get_attn_implementation")
    assert compat_of("huggingface").attention_implementation(lm.model) == "eager"
    assert compat_of("huggingface").attention_implementation(nn.Linear(1, 1)) is None


def test_recompute_activations_is_needed(lm: Any) -> None:
    requirements = map(Requirement, tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"])
    assert next(each.specifier for each in requirements if each.name == "transformers").contains("5.22.2")
    for on in (True, False):  # any warning fails the test
        compat_of("huggingface").recompute_activations(lm.model, on=on)
        assert any(getattr(module, "gradient_checkpointing", False) for module in lm.model.modules()) is on


# --- Lightning and DDP ----------------------------------------------------------------------------------------------------------------------------


def test_checkpoint_of_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pytorch_lightning as pl

    class Model(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(1, 1)

        def training_step(self, batch: torch.Tensor, _: int) -> torch.Tensor:
            return self.layer(batch).sum()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:  # noqa: ARG002 (Lightning's signature)
            monkeypatch.setattr(self.trainer.strategy, "barrier", lambda name=None: waited.append(name))
            states.append(compat_of("lightning").checkpoint_of(self.trainer))
            assert not waited
            self.trainer.save_checkpoint(tmp_path / "last.ckpt")

    waited: list[str | None] = []
    states: list[dict[str, Any]] = []
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=1, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False
    )
    model = Model()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(model, torch.utils.data.DataLoader([torch.ones(1)]))
    assert waited == ["Trainer.save_checkpoint"]  # every process has to come here
    assert not hasattr(trainer, "dump_checkpoint")
    assert states[0]["global_step"] == 1
    assert states[0]["state_dict"]["layer.weight"].data_ptr() == model.layer.weight.data_ptr()


def test_started_processes_is_needed() -> None:
    from lightning_fabric.strategies import DDPStrategy
    from lightning_fabric.strategies.launchers.subprocess_script import _ChildProcessObserver

    victim = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    child = subprocess.Popen([sys.executable, "-c", "raise SystemExit(1)"])
    child.wait()
    # Lightning's thread, with another process in the place of this one.
    _ChildProcessObserver(main_pid=victim.pid, child_processes=[child])._run()
    assert victim.wait(30) == -signal.SIGKILL
    assert compat_of("lightning").started_processes(DDPStrategy(accelerator=None)) == []


def test_leave_out_of_ddp_is_needed() -> None:
    from torch import distributed
    from torch.nn.parallel import DistributedDataParallel

    assert not [name for name in inspect.signature(DistributedDataParallel.__init__).parameters if "ignore" in name]
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        model = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1, device="meta"))  # that cannot be broadcast
        with pytest.raises((RuntimeError, NotImplementedError, ValueError)):
            DistributedDataParallel(model)
        compat_of("lightning").leave_out_of_ddp(model, ["1.weight", "1.bias"])
        DistributedDataParallel(model)
    finally:
        distributed.destroy_process_group()


# --- PEFT -----------------------------------------------------------------------------------------------------------------------------------------


def test_no_deprecation_warning_is_needed(lm: Any) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import PreTrainedModel

    renamed = hasattr(PreTrainedModel, "is_activation_checkpointing")  # from transformers 5.23 on
    with pytest.warns(FutureWarning, match="is_gradient_checkpointing") if renamed else nullcontext():
        get_peft_model(lm.model, LoraConfig(target_modules=["q_proj"])).unload()
    with compat_of("peft").no_deprecation_warning():  # any other warning fails the test
        get_peft_model(lm.model, LoraConfig(target_modules=["q_proj"]))


# --- lm-eval --------------------------------------------------------------------------------------------------------------------------------------


def test_no_bars_is_needed(capsys: pytest.CaptureFixture[str], tmp_path: Path, lm: Any) -> None:
    from lm_eval.models.huggingface import HFLM

    model = HFLM(pretrained=lm.model, tokenizer=lm.tokenizer, batch_size=2, max_length=32)
    task = small_task(tmp_path)
    capsys.readouterr()

    def drawn() -> str:
        task.build_all_requests()
        model.loglikelihood(task.instances)
        return capsys.readouterr().err

    assert not [name for name in inspect.signature(task.build_all_requests).parameters if "tqdm" in name]
    shown = drawn()
    assert "Running loglikelihood requests" in shown
    assert shown.count("100%") == 3  # documents, requests, options
    with compat_of("lm_eval").no_bars():
        assert drawn().count("100%") == 1


def test_templates_compiled_once_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    import lm_eval.utils

    def compiled() -> int:
        times = itertools.count()
        with monkeypatch.context() as counting:
            generate = lm_eval.utils.env.compile
            counting.setattr(lm_eval.utils.env, "compile", lambda *given: next(times) is not None and generate(*given))
            texts = [lm_eval.utils.apply_template("{{a}}!", {"a": number}) for number in range(3)]
        assert texts == ["0!", "1!", "2!"]
        return next(times)

    assert compiled() == 3
    with compat_of("lm_eval").templates_compiled_once():
        assert compiled() == 1


def small_task(folder: Path) -> Any:
    """A task of two items with two options each, read from its file."""
    from lm_eval.api.task import ConfigurableTask

    file = folder / "task.yaml"
    (folder / "data.json").write_text(json.dumps({"q": "A", "a": 0}) + "\n" + json.dumps({"q": "B", "a": 1}) + "\n")
    definition = {
        "task": "small", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(folder / "data.json")}, "cache_dir": str(folder)},
        "test_split": "test", "output_type": "multiple_choice", "doc_to_text": "{{q}}", "doc_to_choice": ["B", "C"], "doc_to_target": "a",
    }  # fmt: skip
    file.write_text(json.dumps(definition))
    return ConfigurableTask(config=compat_of("lm_eval").read_task_file(file))


def test_read_task_file_is_needed(tmp_path: Path) -> None:
    import lm_eval.tasks
    import lm_eval.utils

    assert not [name for module in (lm_eval.tasks, lm_eval.utils) for name in vars(module) if "load_yaml" in name]
    (tmp_path / "base.yaml").write_text("output_type: multiple_choice\nmetadata: {version: 1}\n")
    (tmp_path / "task.yaml").write_text("include: base.yaml\ntask: small\n")
    assert compat_of("lm_eval").read_task_file(tmp_path / "task.yaml") == {
        "task": "small",
        "output_type": "multiple_choice",
        "metadata": {"version": 1},
    }


# --- SAELens --------------------------------------------------------------------------------------------------------------------------------------


def test_shapes_from_cache_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import httpx
    import requests
    from huggingface_hub import constants
    from sae_lens.loading import pretrained_sae_loaders as loaders
    from safetensors.torch import save_file

    snapshot = tmp_path / "models--a--b" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (tmp_path / "models--a--b" / "refs").mkdir()
    (tmp_path / "models--a--b" / "refs" / "main").write_text("0" * 40)
    save_file({"w_enc": torch.zeros(2, 3)}, snapshot / "params.safetensors")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(loaders.time, "sleep", lambda _: None)
    asked: list[str] = []

    def refuse(*given: Any, **_: Any) -> None:
        asked.append(str(given))
        raise ConnectionError

    for client in (requests, httpx):
        monkeypatch.setattr(client, "get", refuse)
    assert constants.HF_HUB_OFFLINE  # and yet:
    with pytest.raises(ConnectionError):
        loaders.get_safetensors_tensor_shapes("a/b", "params.safetensors")
    assert asked
    with compat_of("sae_lens").shapes_from_cache():
        assert loaders.get_safetensors_tensor_shapes("a/b", "params.safetensors") == {"w_enc": [2, 3]}
    assert len(asked) == 1


def test_loaders_read_is_needed(tmp_path: Path) -> None:
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
    from sae_lens.loading import pretrained_sae_loaders as loaders

    (tmp_path / "layer_0").mkdir()
    (tmp_path / "layer_0" / "config.json").write_text(json.dumps({"model_name": "gemma-v3-1b-pt"}))
    with pytest.raises((OSError, ValueError)):  # a folder is no repository, and the hub cannot be asked
        loaders.hf_hub_download(str(tmp_path), "layer_0/config.json")
    with pytest.raises(LocalEntryNotFoundError):
        loaders.hf_hub_download("a/b", "layer_0/config.json", cache_dir=tmp_path)
    with compat_of("sae_lens").loaders_read(tmp_path):
        assert loaders.hf_hub_download("a/b", "layer_0/config.json") == str(tmp_path / "layer_0" / "config.json")
        assert loaders.hf_hub_download("a/b", "config.json", subfolder="layer_0") == str(tmp_path / "layer_0" / "config.json")
        with pytest.raises(EntryNotFoundError, match=r"other\.json' does not exist"):
            loaders.hf_hub_download("a/b", "other.json")


def test_sparsify_autoencoder_is_needed(tmp_path: Path) -> None:
    from sae_lens.loading.pretrained_sae_loaders import sparsify_disk_loader
    from safetensors.torch import save_file

    decoder = torch.arange(6.0).reshape(3, 2)  # a row for each latent, as sparsify writes it and SAELens wants it
    weights = {"encoder.weight": decoder.clone(), "encoder.bias": torch.zeros(3), "W_dec": decoder, "b_dec": torch.ones(2)}
    folder = tmp_path / "layers.0"
    folder.mkdir()
    save_file(weights, folder / "sae.safetensors")
    (folder / "cfg.json").write_text(json.dumps({"d_in": 2, "num_latents": 3, "k": 1, "normalize_decoder": True}))
    settings, weights = sparsify_disk_loader(folder, "cpu", None)
    assert not settings.get("apply_b_dec_to_input")
    assert weights["W_dec"].shape == (2, 3)
    settings, weights = compat_of("sae_lens").sparsify_autoencoder(folder, "cpu", None)
    assert settings["apply_b_dec_to_input"]
    assert weights["W_dec"].equal(decoder)


def compat_of(library: str) -> Any:
    """The module of a library."""
    return importlib.import_module(f"{compat.__name__}.{library}")
