"""lingact saes from its command line on the small toy model: what it leaves, what others read of it, mistakes, kills."""

import json
import os
import pkgutil
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from sae_lens import SAE

from lingact.cli import main as cli
from lingact.saes import trainers
from lingact.saes.engine import Reader
from tests.helpers.disk import limited
from tests.helpers.paths import CONF
from tests.helpers.processes import Start, killed_at, launch

SETS = "sets={a: {mix: {en: .6, hi: .4}}, b: {mix: equal, width: 24}}"
SMALL = (
    *("saes.width=32", "saes.k=4", "saes.tokens=6000", "saes.batch_tokens=128", "saes.buffer_tokens=512", "saes.context=32", "saes.layers=[0,2]"),
    *("quality.tokens=1000", "quality.spliced_tokens=100", "resamples=200", "tracking=none", "text.epochs=20", "batch_tokens=512"),
)


@pytest.fixture(scope="module")
def text(small_toy_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """English, Hindi and Malayalam, a document for every three sentences."""
    rows = [json.loads(line) for line in (small_toy_model / "corpus.jsonl").read_text(encoding="utf-8").splitlines()]
    path = tmp_path_factory.mktemp("text") / "text.jsonl"
    lines = [
        json.dumps({"language": code, "text": row[code], "source": "toy", "document": place // 3}, ensure_ascii=False)
        for place, row in enumerate(rows)
        for code in ("en", "hi", "ml")
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def given(small_toy_model: Path, text: Path) -> list[str]:
    return [f"model.name={small_toy_model}/model", f"text.path={text}", SETS, *SMALL]


@pytest.fixture(scope="module")
def made(given: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saes") / "run"
    assert cli.main("saes", CONF, [*given, f"hydra.run.dir={folder}"]) == 0
    return folder


def found(folder: Path) -> dict[str, bytes]:
    """All that a run found."""
    files = [folder / "summary.json", *sorted((folder / "tables").iterdir()), *sorted((folder / "sae").rglob("*.*"))]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files if path.is_file()}


def test_what_it_leaves(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = json.loads((made / "summary.json").read_text())
    for name in ("a", "b"):
        for layer in (0, 2):
            assert 0 <= summary[f"dead/{name}/{layer}"] <= 1
            for code in ("en", "hi", "ml"):
                assert summary[f"fvu/{name}/{code}/{layer}"] > 0
                assert summary[f"l0/{name}/{code}/{layer}"] > 0
    fit = pd.read_csv(made / "tables" / "fit.csv")
    assert (fit["lo"] <= fit["estimate"]).all()
    assert (fit["documents"] >= 2).all()
    assert fit["estimate"].notna().all()
    shares = pd.read_csv(made / "tables" / "text.csv").groupby(["sae_set", "language"])["share"].sum()
    assert shares["a", "en"] == pytest.approx(0.6, abs=0.01)
    assert ("a", "ml") not in shares.index
    assert shares["b"].tolist() == pytest.approx([1 / 3] * 3, abs=0.01)
    recovered = pd.read_csv(made / "tables" / "recovered.csv")
    assert set(recovered["language"]) == {"en", "hi", "ml"}
    card = (made / "card.md").read_text()
    assert "Width 24, k 4, seed 0. Text: en 33.3%, hi 33.3%, ml 33.3%." in card
    assert "SAEs by language" in (made / "report.html").read_text()
    assert cli.main("saes", CONF, [f"resume={made}"]) == 0
    assert "is complete; nothing to do" in capsys.readouterr().out


def test_sae_lens_and_the_other_jobs_read_the_sets(made: Path, arguments: Callable[..., list[str]], small_toy_model: Path, tmp_path: Path) -> None:
    sae = SAE.load_from_disk(made / "sae" / "b" / "layer_2")
    assert (sae.cfg.architecture(), sae.cfg.d_sae) == ("jumprelu", 24)
    assert sae.cfg.metadata.model_name == f"{small_toy_model}/model"
    folder = tmp_path / "run"
    given = [text for text in arguments("analyze", folder) if not text.startswith("sae.")]
    given += [f"sae={made}/sae/a", "languages.high=[]", "languages.low=[hi]", "tracking=none"]
    assert cli.main("analyze", CONF, given) == 0
    assert set(pd.read_csv(folder / "tables" / "gap_by_layer.csv")["layer"]) == {0, 2}


def test_refitting_to_an_adapter(made: Path, start: Start, given: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = ["lang=hi", "languages.high=[]", "languages.low=[hi]", "tracking=none"]
    assert start("train", tmp_path / "train", *chosen) == 0
    kept = [text for text in given if text.partition("=")[0] not in ("sets", "saes.width", "saes.k", "saes.layers", "saes.context")]
    kept += [f"adapter={tmp_path}/train", "saes.tokens=3000"]
    folder = tmp_path / "refit"
    capsys.readouterr()
    assert cli.main("saes", CONF, [*kept, f"init={made}/sae/b", f"hydra.run.dir={folder}"]) == 0
    assert "Change of the gap by the adapter" in capsys.readouterr().out
    assert sorted(path.name for path in (folder / "sae").iterdir()) == ["b_adapted", "b_base"]
    assert SAE.load_from_disk(folder / "sae" / "b_adapted" / "layer_2").cfg.d_sae == 24
    refit = pd.read_csv(folder / "tables" / "refit.csv")
    cells = refit.set_index(["saes", "quantity", "layer"])["estimate"]
    assert set(refit["language"]) == {"hi"}
    for saes in ("unchanged", "continued", "refit"):
        for layer in (0, 2):
            assert cells[saes, "change", layer] == pytest.approx(cells[saes, "after", layer] - cells[saes, "before", layer])
    assert cells["continued", "before", 2] == cells["refit", "before", 2], "both see the base model by the same SAEs"
    assert cells["continued", "after", 2] != cells["refit", "after", 2]
    assert json.loads((folder / "summary.json").read_text())["refit/b/hi/2"] == pytest.approx(cells["refit", "change", 2])
    fit = pd.read_csv(folder / "tables" / "fit.csv")
    assert set(zip(fit["sae_set"], fit["model"], strict=True)) == {("b", "base"), ("b", "adapter"), ("b_base", "base"), ("b_adapted", "adapter")}
    assert "Refitted to the adapter" in (folder / "report.html").read_text()


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (["init=nowhere"], "init: 'nowhere' is neither a run folder of lingact saes nor a set in one"),
        (["adapter=nowhere"], "adapter: SAEs are refitted to an adapter, so that there have to be some; give init=FOLDER"),
        (["init={made}", "saes.width=64"], "saes.width: with init= it comes from the run that made the SAEs; leave it out"),
        (["init={made}", "adapter=nowhere"], "adapter: there is no folder 'nowhere'"),
    ],
)
def test_mistakes_of_refitting(
    changed: list[str], told: str, made: Path, given: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = [text for text in given if text.partition("=")[0] not in ("sets", "saes.width", "saes.k", "saes.layers", "saes.context")]
    own = [text.replace("{made}", str(made)) for text in changed]
    assert cli.main("saes", CONF, [*kept, *own, f"hydra.run.dir={tmp_path / 'run'}"]) == 2
    assert told in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ("sets={a: {mix: {en: .6, hi: .5}}}", "the shares add up to 1.1"),
        ("sets={a: {mix: {en: .6, zh: .4}}}", "the text has no zh; it has en, hi, ml"),
        ("sets={a/b: {mix: equal}}", "sets"),
        ("sets={}", "no set given"),
        ("saes.layers=[3]", "saes.layers: [3] out of range; the model has layers 0 to 2"),
        ("saes.k=32", "set 'a' would have 32 active latents (k) of 32 (width)"),
        ("text.path=nowhere", "text.path: 'nowhere' does not exist"),
        ("saes.tokens=600000", "text: too little text: en has"),
        ("saes.buffer_tokens=100", "saes.buffer_tokens: it is 100; to shuffle, it has to hold at least four batches (512 tokens)"),
        ("saes.architecture=gated", "saes.architecture"),
    ],
)
def test_mistakes(changed: str, told: str, given: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key = changed.partition("=")[0]
    kept = [text for text in given if text.partition("=")[0] != key]
    assert cli.main("saes", CONF, [*kept, changed, f"hydra.run.dir={tmp_path / 'run'}"]) == 2
    assert told in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()


def test_the_plan_is_shown(given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main("saes", CONF, [*given, "plan=true"]) == 0
    printed = capsys.readouterr().out
    assert "4 SAEs with gradients and Adam's two moments" in printed
    assert "training" in printed


@pytest.mark.parametrize(
    ("where", "call", "said"),
    [
        ("lingact.runtime.tensor_files.write_atomically", 2, "checkpoints/passes_2.process_1_of_1.ckpt' could not be written: File too large"),
        ("sae_lens.saes.batchtopk_sae.BatchTopKTrainingSAE.save_inference_model", 2, ""),
    ],
    ids=["checkpoint", "SAE"],
)
def test_a_full_disk_loses_nothing(
    where: str, call: int, said: str, given: list[str], made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    owner, _, name = where.rpartition(".")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(where, limited(getattr(pkgutil.resolve_name(owner), name), call, 2000))
        assert cli.main("saes", CONF, [*given, "saes.checkpoint_minutes=1e-6", f"hydra.run.dir={folder}"]) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert said in message
    assert "what was saved before is intact. Free some space, then: " in message
    assert message.endswith(f"resume={folder}")
    assert cli.main("saes", CONF, [f"resume={folder}"]) == 0
    assert found(folder) == found(made)


def test_a_kill_while_the_sets_are_written_changes_nothing(given: list[str], made: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    first = [*given, "saes.checkpoint_minutes=1e-6", f"hydra.run.dir={folder}"]
    # The second file of the second SAE is missing.
    assert killed_at(2, trainers, "write_json", lambda: cli.main("saes", CONF, first)) == -signal.SIGKILL
    assert [path.name for path in sorted((folder / "sae").rglob("*layer_*"))] == [".layer_2.unfinished", "layer_0"]
    assert cli.main("saes", CONF, [f"resume={folder}"]) == 0
    assert found(folder) == found(made)
    assert not list((folder / "sae").rglob(".*"))
    assert not list((folder / "checkpoints").iterdir()), "it is no longer needed, and large"


def test_a_kill_changes_nothing(given: list[str], made: Path, tmp_path: Path) -> None:
    first = [*given, "saes.checkpoint_minutes=1e-6", f"hydra.run.dir={tmp_path / 'run'}"]
    again: Callable[[], list[str]] = lambda: [f"resume={tmp_path / 'run'}"] if (tmp_path / "run" / "config.yaml").exists() else first  # noqa: E731
    for count in (5, 6):
        assert killed_at(count, Reader, "read", lambda: cli.main("saes", CONF, again())) == -signal.SIGKILL
    assert list((tmp_path / "run" / "checkpoints").glob("passes_*.process_1_of_1.ckpt"))
    assert cli.main("saes", CONF, again()) == 0
    assert found(tmp_path / "run") == found(made)


def test_two_processes_find_the_same(given: list[str], made: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "lingact.saes", *given, "devices=2", f"hydra.run.dir={tmp_path / 'run'}"]
    assert launch(command, tmp_path / "log").wait() == 0
    assert found(tmp_path / "run") == found(made)


@pytest.mark.slow
def test_two_processes_that_are_interrupted_go_on_to_the_same(given: list[str], made: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = launch([sys.executable, "-m", "lingact.saes", *given, "devices=2", f"hydra.run.dir={folder}"], tmp_path / "log")
    while process.poll() is None and not (folder / "checkpoints").is_dir():
        if "SAEs:" in (tmp_path / "log").read_text():
            process.send_signal(signal.SIGTERM)
            break
        time.sleep(0.01)
    assert process.wait() in (130, 0)
    assert launch([sys.executable, "-m", "lingact.saes", f"resume={folder}"], tmp_path / "log").wait() == 0
    assert found(folder) == found(made)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_kills_at_random_moments_change_nothing(given: list[str], tmp_path: Path) -> None:
    """Five kills, or as many as LINGACT_KILLS says."""
    command, longer = [sys.executable, "-m", "lingact.saes"], [*given, "saes.checkpoint_minutes=1e-6", "saes.tokens=30000"]
    undisturbed, folder = tmp_path / "undisturbed", tmp_path / "run"
    began = time.monotonic()
    assert launch([*command, *longer, f"hydra.run.dir={undisturbed}"], tmp_path / "log").wait() == 0
    duration, moments, killed = time.monotonic() - began, random.Random(1), 0

    def arguments() -> list[str]:
        return [f"resume={folder}"] if (folder / "config.yaml").exists() else [*longer, f"hydra.run.dir={folder}"]

    for _ in range(int(os.environ.get("LINGACT_KILLS", "5"))):
        process, end = launch([*command, *arguments()], tmp_path / "log"), time.monotonic() + moments.uniform(0.5, 0.9) * duration
        while process.poll() is None and time.monotonic() < end:
            time.sleep(0.002)
        process.kill()
        ending = process.wait()
        assert ending in (-signal.SIGKILL, 0)
        killed += ending != 0
    assert killed >= 2
    assert launch([*command, *arguments()], tmp_path / "log").wait() == 0
    assert found(folder) == found(undisturbed)
