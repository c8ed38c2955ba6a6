"""train.py from the command line to the run folder, on the small toy model."""

import csv
import json
import math
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM

from lingact.cli import main as cli
from lingact.config.model import ModelConfig
from lingact.models import adapter_hashes, adapter_sources, adapters
from lingact.models.lm import LanguageModel, load_model
from lingact.training.base_targets import Reference
from lingact.training.batch_loss import BatchLoss
from lingact.training.batches import AlignedBatches
from lingact.workflows import train
from tests.helpers.paths import CONF
from tests.helpers.processes import Start

PROBE = ["The sky is blue.", "എന്റെ വീട്."]
TARGET = "lang=ml"


def toy_model(folder: Path) -> LanguageModel:
    return load_model(ModelConfig(name=str(folder / "model"), revision=None, dtype="float32", attention="eager", context=512), "cpu")


@torch.no_grad()
def answers(lm: LanguageModel) -> list[Tensor]:
    """Residuals of every layer, and the logits."""
    residuals, predictions = lm.residuals(lm.tokens.collate(lm.tokens.windows(PROBE)), (0, 1, 2), predict=True)
    assert predictions is not None
    return [*residuals.values(), predictions.logits()]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def adapter_bytes(folder: Path) -> bytes:
    return (folder / "adapter" / adapter_sources.WEIGHTS).read_bytes()


def manifest(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "manifest.json").read_text())


@pytest.fixture(scope="module")
def trained(start: Start, tmp_path_factory: pytest.TempPathFactory, small_toy_model: Path) -> tuple[Path, dict[str, Any]]:
    """An undisturbed run with W&B offline, and what its model was like when the adapter was saved."""
    folder, seen = tmp_path_factory.mktemp("runs") / "undisturbed", {}
    real = train.save_adapter

    def watched(model: PeftModel, *rest: Any) -> None:
        lm = toy_model(small_toy_model)
        lm.model, lm.blocks = model, model.get_base_model().model.layers
        seen.update(base=adapter_hashes.weights_hash(model), on=answers(lm), training=model.training)
        with adapters.base_behaviour(model):
            seen["off"] = answers(lm)
        real(model, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "save_adapter", watched)
        assert start("train", folder, TARGET) == 0
    return folder, seen


def test_the_base_model_is_untouched_and_the_adapter_can_be_switched_off(trained: tuple[Path, dict[str, Any]], small_toy_model: Path) -> None:
    folder, seen = trained
    lm = toy_model(small_toy_model)
    assert seen["base"] == adapter_hashes.weights_hash(lm.model) == manifest(folder)["identity"]["model"]["sha256"]
    assert same(seen["off"], answers(lm))
    assert not same(seen["on"], seen["off"])
    assert not seen["training"]


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft 0.21 asks transformers 5.23
def test_the_adapter_loads_with_plain_peft(trained: tuple[Path, dict[str, Any]], small_toy_model: Path) -> None:
    folder, seen = trained
    lm = toy_model(small_toy_model)
    model = AutoModelForCausalLM.from_pretrained(small_toy_model / "model", dtype=torch.float32, attn_implementation="eager")
    lm.model = PeftModel.from_pretrained(model, folder / "adapter").eval()
    lm.blocks = model.model.layers
    assert same(answers(lm), seen["on"])


def test_the_run_folder_is_complete(trained: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = trained
    there = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert {"config.yaml", "manifest.json", "summary.json", "report.html", "adapter/adapter_config.json", "checkpoints/last.ckpt"} <= there
    assert {"tables/change_by_layer.csv", "tables/change_by_range.csv", "tables/retention.csv", "tables/bits.csv", "tables/loss.csv"} <= there
    assert any(path.startswith("figures/") for path in there)
    studied = ("en", "zh", "ru", "es", "it", "id", "ca", "mr", "ml", "hi")
    assert {path for path in there if path.startswith("stats/")} == {"stats/index.json", *(f"stats/{code}.safetensors" for code in studied)}
    assert any(re.search(r"wandb/offline-run-.*\.wandb$", path) for path in there)
    assert not [path for path in there if "/." in f"/{path}"], "nothing unfinished"
    found = manifest(folder)
    assert found["status"] == "complete"
    assert set(found) >= {"job", "command", "seed", "git", "versions", "hardware", "identity", "wall_seconds", "peak_memory_bytes"}
    assert set(found["identity"]) >= {"model", "sae", "corpus"}
    assert yaml.safe_load((folder / "config.yaml").read_text())["lang"] == ["ml"]
    loss = pd.read_csv(folder / "tables" / "loss.csv")
    assert loss.step.tolist() == list(range(7))
    assert (loss.filter(like="loss/weighted/").sum(axis=1) - loss["loss/total"]).abs().max() < 1e-5
    assert loss["loss/raw/retention"][0] == pytest.approx(0, abs=1e-6), "a new adapter changes nothing"


def test_the_summary_has_the_agreed_keys_and_only_finite_numbers(trained: tuple[Path, dict[str, Any]]) -> None:
    summary = json.loads((trained[0] / "summary.json").read_text())
    assert all(isinstance(value, float | int) and math.isfinite(value) for value in summary.values())
    per_language = ("gain", "gap_closed", "overshoot", "norm_matched/gap_closed", "fvu")
    agreed = {f"{key}/ml" for key in per_language} | {f"retention/{key}" for key in ("activation", "profile", "bits_per_byte", "kl")}
    present = {key.removesuffix("/undefined") for key in summary}
    assert agreed | {f"heldout/{key}" for key in agreed} | {"objective"} <= present
    assert summary["retention/kl"] > 0
    assert abs(summary["retention/bits_per_byte"] - 1) < 0.5
    table = pd.read_csv(trained[0] / "tables" / "change_by_layer.csv")
    gain = table[(table.sae_set == "measuring") & (table.language == "ml") & (table.quantity == "gain")].estimate.mean()
    assert summary["gain/ml"] == pytest.approx(gain)


def test_the_checkpoint_holds_the_adapter_alone(trained: tuple[Path, dict[str, Any]]) -> None:
    checkpoint = torch.load(trained[0] / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 7  # the last step is kept, whatever checkpoint_every is
    assert len(checkpoint["state_dict"]) == 2 * 7 * 3  # A and B of seven projections in three layers
    assert all(".lora_" in name for name in checkpoint["state_dict"])
    assert len(checkpoint["optimizer_states"][0]["state"]) == 2 * 7 * 3


def test_a_complete_run_is_left_alone(trained: tuple[Path, dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    before = manifest(trained[0])
    assert cli.main("train", CONF, [f"resume={trained[0]}"]) == 0
    assert "is complete; nothing to do" in capsys.readouterr().out
    assert manifest(trained[0]) == before


def keyboard(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def at_step(number: int, does: Callable[[], None]) -> Callable[..., Any]:
    """AdamW's step; the given one does something else before."""
    real, steps = torch.optim.AdamW.step, iter(range(1, 1000))

    def step(self: torch.optim.AdamW, closure: Callable[[], Any] | None = None) -> Any:
        if next(steps) == number:
            does()
        return real(self, closure)

    return step


@pytest.mark.parametrize(
    ("does", "step"),
    [
        pytest.param(keyboard, 6, marks=pytest.mark.slow),
        (lambda: os.kill(os.getpid(), signal.SIGTERM), 4),
        pytest.param(keyboard, 1, marks=pytest.mark.slow),
    ],
    ids=["ctrl_c", "sigterm", "before_any_checkpoint"],
)
def test_an_interrupted_run_goes_on_as_if_nothing_had_been(
    does: Callable[[], None], step: int, start: Start, trained: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", at_step(step, does))
        assert start("train", folder, TARGET, "tracking=none") == 130
    assert manifest(folder)["status"] == "interrupted"
    assert not (folder / "summary.json").exists()
    assert (folder / "checkpoints" / "last.ckpt").exists() is (step > 2)
    assert cli.main("train", CONF, [f"resume={folder}"]) == 0
    assert manifest(folder)["status"] == "complete"
    assert adapter_bytes(folder) == adapter_bytes(trained[0])
    assert (folder / "tables" / "loss.csv").read_text() == (trained[0] / "tables" / "loss.csv").read_text()
    assert json.loads((folder / "summary.json").read_text()) == json.loads((trained[0] / "summary.json").read_text())


def test_a_sweep_leaves_complete_runs_and_a_table(start: Start, tmp_path: Path) -> None:
    code = start(
        "train",
        None,
        "-m",
        "lang=ml,hi",
        "tracking=none",
        "languages.high=[]",
        "languages.low=[ml,hi]",
        "trainer.steps=3",
        f"hydra.sweep.dir={tmp_path / 'grid'}",
    )
    assert code == 0
    folders = [tmp_path / "grid" / str(number) for number in range(2)]
    assert [manifest(folder)["status"] for folder in folders] == ["complete", "complete"]
    assert all((folder / "adapter" / adapter_sources.WEIGHTS).exists() for folder in folders)
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in folders]
    with (tmp_path / "grid" / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["job"], row["lang"], row["status"]) for row in rows] == [("0", "ml", "complete"), ("1", "hi", "complete")]
    assert [row.get("objective") for row in rows] == [str(summary["objective"]) if "objective" in summary else None for summary in summaries]


@pytest.mark.slow
def test_methods_are_compared_in_one_table(start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = ("experiment=method_comparison", TARGET, "loss=gap_and_retention,lm_only", "seed=0", "trainer.steps=2", "tracking=none")
    assert start("train", None, *chosen, f"hydra.sweep.dir={tmp_path}") == 0
    rows = pd.read_csv(tmp_path / "sweep.csv")
    assert rows[["loss", "seed", "status"]].to_numpy().tolist() == [["gap_and_retention", 0, "complete"], ["lm_only", 0, "complete"]]
    assert {"objective", "gap_closed/ml", "retention/kl"} <= set(rows)
    terms = [set(pd.read_csv(tmp_path / str(job) / "tables" / "loss.csv").filter(like="raw/")) for job in range(2)]
    held = {"loss/raw/retention", "loss/raw/norm", "loss/raw/fit"}
    assert terms == [held | {"loss/raw/gap", "loss/raw/target_kl"}, held | {"loss/raw/target_lm"}]
    assert not any(str(column).startswith("heldout/") for column in rows), "methods are chosen without the held-out SAEs"
    tested = pd.read_csv(tmp_path / "recipes.csv")
    assert set(zip(tested["one"], tested["other"], strict=True)) == {("loss=gap_and_retention", "loss=lm_only")}
    row = tested[tested["quantity"] == "gap_closed"].iloc[0]
    assert [row["value_one"], row["value_other"]] == pytest.approx(rows["gap_closed/ml"].tolist())
    assert row["estimate"] == pytest.approx(rows["gap_closed/ml"][0] - rows["gap_closed/ml"][1])
    assert "Recipes against each other" in (tmp_path / "report.html").read_text()
    again = ("tracking=none", "seed=0", f"compare={tmp_path}")
    assert start("analyze", tmp_path / "compared", *again) == 0
    by_name = pd.read_csv(tmp_path / "compared" / "tables" / "recipes.csv")
    same = ["language", "sae_set", "quantity", "n", "value_one", "estimate", "lo", "hi", "p", "p_holm", "covers"]
    pd.testing.assert_frame_equal(by_name[same], tested[same])
    assert start("analyze", tmp_path / "runs", *again[:2], f"compare=[{tmp_path / '0'},{tmp_path / '1'}]") == 0
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "runs" / "tables" / "recipes.csv"), by_name)
    capsys.readouterr()
    assert start("analyze", tmp_path / "alone", *again[:2], f"compare=[{tmp_path / '0'},{tmp_path / '1'},{tmp_path / 'compared'}]") == 2
    assert "compared' has no statistics" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "alone").exists()


def seen_by_training(start: Start, folder: Path, *overrides: str, whole: bool = False) -> tuple[BatchLoss, AlignedBatches, Reference]:
    """What a run of one step trains with, and the reference as it is before any control. It stops before that step unless it is `whole`."""
    seen: dict[str, Any] = {}

    def watched(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **rest: Any) -> Any:
            seen[name] = real(*args, **rest)
            return seen[name]

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in ("BatchLoss", "AlignedBatches", "cached_reference"):
            patch.setattr(train, name, watched(name, getattr(train, name)))
        if not whole:
            patch.setattr(train, "fit", keyboard)
        assert start("train", folder, TARGET, "tracking=none", "trainer.steps=1", *overrides) == (0 if whole else 130)
    return seen["BatchLoss"], seen["AlignedBatches"], seen["cached_reference"]


def test_layers_and_controls_reach_the_loss(start: Start, tmp_path: Path) -> None:
    plain, own, reference = seen_by_training(start, tmp_path / "plain", "loss.gap.layers={2: 1.0, 0: 3.0}")
    assert plain.layers == (0, 2)
    assert plain.layer_weights.tolist() == [0.75, 0.25]
    assert plain.targets is reference

    random, text, _ = seen_by_training(start, tmp_path / "random", "loss=random_features", "loss.gap.layers=[0,2]")
    for layer, trained in plain.dictionaries.items():
        directions = (trained.sae.W_dec, random.dictionaries[layer].sae.W_dec)
        assert torch.nn.functional.cosine_similarity(*directions).abs().mean() < 0.3
        torch.testing.assert_close(directions[0].norm(dim=1), directions[1].norm(dim=1), rtol=1e-4, atol=1e-5)
    assert random.targets.tokens.tolist() == reference.tokens.tolist()
    assert not torch.allclose(random.targets.total, reference.total, rtol=0.1), "the targets are those of the random SAEs"
    assert text.windows == own.windows

    shuffled, text, before = seen_by_training(start, tmp_path / "shuffled", "loss=shuffled_pairs")
    assert text.windows == own.windows
    assert sorted(shuffled.targets.tokens.tolist()) == sorted(before.tokens.tolist())
    assert shuffled.targets.tokens.tolist() != before.tokens.tolist()

    _, text, _ = seen_by_training(start, tmp_path / "wrong", "loss=wrong_language", whole=True)
    assert text.windows["en"] == own.windows["en"]
    assert manifest(tmp_path / "wrong")["identity"]["training_text"] == {"ml": "hi"}
    assert "Malayalam itself was not trained on: its text was replaced by text in Hindi" in (tmp_path / "wrong" / "report.html").read_text()
    _, hindi, _ = seen_by_training(start, tmp_path / "hindi", "lang=hi")
    assert text.windows["ml"] == hindi.windows["hi"], "hi stands behind ml in the study"


def test_no_memory_is_a_message(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.00 GiB")

    monkeypatch.setattr(train, "measure_change", full)
    assert start("train", tmp_path / "run", TARGET, "tracking=none", "trainer.steps=1") == 2
    assert "out of memory: CUDA out of memory. Tried to allocate 3.00 GiB" in capsys.readouterr().err
    assert manifest(tmp_path / "run")["status"] == "failed"


def test_a_fault_leaves_a_failed_run(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # That the process then ends with 1 and its traceback is shown in tests/conf.
    monkeypatch.setattr(torch.optim.AdamW, "step", at_step(2, lambda: 1 / 0))
    with pytest.raises(ZeroDivisionError):
        start("train", tmp_path / "run", TARGET, "tracking=none")
    assert manifest(tmp_path / "run")["status"] == "failed"
    assert not (tmp_path / "run" / "adapter").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("corpus.max_sentences=3", "in the split"),
        ("loss.gap.layers=[]", "loss.gap.layers: no layer given"),
        ("loss=wrong_language lang=[zh,ru,es,it,id,ca,mr,ml]", r"needs one other language for each target \(8\), .* has 1"),
        ("loss.gap.layers=[5]", r"loss.gap.layers: \[5\] out of range; measured are the layers \[0, 1, 2\]"),
        ("sae.layers=[0,3]", r"sae.layers: \[3\] out of range; the model has layers 0 to 2"),
        ("peft.targets=[q_prj]", r"peft.targets: q_prj; did you mean 'q_proj'\?"),
        ("statistics.early=[9]", r"statistics.early: none of the layers \[9\] is measured"),
    ],
)
def test_what_does_not_fit_is_refused_before_training(
    override: str, message: str, start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.optim.AdamW, "step", at_step(1, lambda: pytest.fail("training has begun")))
    assert start("train", tmp_path / "run", TARGET, "tracking=none", *override.split()) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "run").exists()
