"""eval.py from its command line on the small toy model: seeds and recipes, kept answers, kills, overlap with the training text, and what follows."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from safetensors.torch import load_file, save_file

from lingact.cli import main as cli
from lingact.evaluation.answers import AnswerCache
from lingact.evaluation.scorer import Scorer
from lingact.models import adapter_sources
from tests.helpers.paths import CONF, ROOT
from tests.helpers.processes import Start, killed_at, launch

EMBEDDED = ROOT / "src" / "lingact" / "assets" / "microworld" / "tasks"
SMALL = ("languages.high=[es]", "languages.low=[ml,hi]")
SHORT = (*SMALL, "resamples=200", "tracking=none", "tasks.limit=12", "corpus.max_sentences=60")


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def frames(folder: Path) -> dict[str, pd.DataFrame]:
    return {path.stem: pd.read_csv(path) for path in sorted((folder / "tables").glob("*.csv"))}


def found(folder: Path) -> dict[str, bytes]:
    """All that an evaluation found."""
    files = [folder / "summary.json", *sorted(path for part in ("tables", "samples", "results") for path in (folder / part).iterdir())]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def seeds(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep: Malayalam, two seeds, and Hindi with one of them."""
    folder = tmp_path_factory.mktemp("sweep") / "sweep"
    few = ("languages.high=[]", "languages.low=[ml,hi]", "tracking=none", "trainer.steps=3", "split=dev")
    assert start("train", None, "-m", "lang=ml", "seed=0,1", f"hydra.sweep.dir={folder}", *few) == 0
    assert start("train", folder.parent / "hi", "lang=hi", *few) == 0
    return folder


@pytest.fixture(scope="module")
def base_arguments(small_toy_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    cache = tmp_path_factory.mktemp("cache")
    return [*SHORT, f"model.name={small_toy_model}/model", f"corpus.path={small_toy_model}/corpus.jsonl", f"cache={cache}"]


def test_seeds_of_a_recipe_are_one_and_recipes_several(
    seeds: Path, base_arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert cli.main("eval", CONF, [*base_arguments, f"adapter=[{seeds},{seeds.parent}/hi]", f"hydra.run.dir={folder}"]) == 0
    tables = frames(folder)
    differences = tables["differences"]
    assert differences.groupby("model", sort=False)["seeds"].unique().map(list).to_dict() == {"lang ml": [2], "lang hi": [1]}
    assert set(tables["accuracy"]["model"]) == {"base", "lang ml_seed0", "lang ml_seed1", "lang hi"}
    summary = json.loads((folder / "summary.json").read_text())
    both = {label: summary[f"acc/all/ml/{label}/delta"] for label in ("lang ml", "lang hi")}
    acc = tables["accuracy"].query("task == 'all' and language == 'ml' and kind == 'all' and metric == 'acc'").set_index("model")["estimate"]
    assert both["lang ml"] == pytest.approx((acc["lang ml_seed0"] + acc["lang ml_seed1"]) / 2 - acc["base"])
    assert both["lang hi"] == pytest.approx(acc["lang hi"] - acc["base"])
    assert set(tables["bits"]["model"]) == {"lang ml", "lang hi"}
    assert {path.name for path in (folder / "figures").glob("differences*")} == {"differences_lang ml.png", "differences_lang hi.png"}
    printed = capsys.readouterr().out
    assert "Accuracy, 'lang ml' against base, 95% interval (random effects of 2 seeds and items); 12 items of each benchmark" in printed
    assert "only 12 items of each benchmark were asked, the same ones in every language" in " ".join(printed.split())
    # The same items in every language.
    asked = {(path.stem.rpartition("_")[0], path.stem[-2:]): [row["item"] for row in rows_of(path)] for path in folder.glob("samples/base_*")}
    for benchmark in ("base_micro_arc", "base_micro_mmlu", "base_micro_hellaswag"):
        assert len({tuple(sorted(items)) for (name, _), items in asked.items() if name == benchmark}) == 1
        assert len(asked[benchmark, "ml"]) == 12


def test_an_untrained_adapter_changes_exactly_nothing(seeds: Path, base_arguments: list[str], tmp_path: Path) -> None:
    adapter = shutil.copytree(seeds / "0" / "adapter", tmp_path / "adapter")
    weights = load_file(adapter / adapter_sources.WEIGHTS)
    save_file(
        {name: tensor * ("lora_B" not in name) for name, tensor in weights.items()}, adapter / adapter_sources.WEIGHTS, metadata={"format": "pt"}
    )
    assert cli.main("eval", CONF, [*base_arguments, f"adapter={adapter}", f"hydra.run.dir={tmp_path / 'run'}"]) == 0
    tables = frames(tmp_path / "run")
    assert (tables["differences"][["estimate", "won", "lost"]] == 0).all(axis=None)
    assert (tables["differences"]["lo"] == -tables["differences"]["hi"]).all()
    assert (tables["differences"][["p", "p_bootstrap", "p_holm", "p_bh"]] == 1).all(axis=None)
    assert (tables["bits"][["estimate", "lo", "hi", "p"]] == 1).all(axis=None)
    assert not (tables["differences"]["mde"] <= 0).any()
    assert len(tables["changed"]) == 0


@pytest.mark.slow
def test_answers_are_kept_and_belong_to_their_model(seeds: Path, base_arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = [*base_arguments, f"cache={tmp_path / 'cache'}", f"adapter={seeds}/0"]
    assert cli.main("eval", CONF, [*given, f"hydra.run.dir={tmp_path / 'first'}"]) == 0
    asked: list[str] = []
    real = Scorer._answer

    def answer(self: Scorer, model: Any, instance: Any) -> Any:
        asked.append(instance.entry.task)
        return real(self, model, instance)

    monkeypatch.setattr(Scorer, "_answer", answer)
    assert cli.main("eval", CONF, [*given, f"hydra.run.dir={tmp_path / 'second'}"]) == 0
    assert asked == []
    assert found(tmp_path / "first") == found(tmp_path / "second")
    assert cli.main("eval", CONF, [*given[:-1], f"adapter={seeds}/1", f"hydra.run.dir={tmp_path / 'third'}"]) == 0
    assert len(asked) == 12, "three benchmarks in four languages, the other adapter only"
    assert found(tmp_path / "third")["results/base.json"] == found(tmp_path / "first")["results/base.json"]
    assert found(tmp_path / "third")["samples/adapter_micro_arc_ml.jsonl"] != found(tmp_path / "first")["samples/adapter_micro_arc_ml.jsonl"]


@pytest.mark.slow
def test_another_scale_is_another_adapter(seeds: Path, base_arguments: list[str], tmp_path: Path) -> None:
    """The same weights with a thousandth of alpha: its answers are its own, and next to the base model's."""
    changed = shutil.copytree(seeds / "0" / "adapter", tmp_path / "changed")
    settings = json.loads((changed / adapter_sources.SETTINGS).read_text())
    (changed / adapter_sources.SETTINGS).write_text(json.dumps(settings | {"lora_alpha": settings["lora_alpha"] / 1000}))
    ratios = {}
    for name, adapter in (("as trained", seeds / "0" / "adapter"), ("changed", changed)):
        folder = tmp_path / f"run {name}".replace(" ", "_")
        assert cli.main("eval", CONF, [*base_arguments, f"adapter={adapter}", f"hydra.run.dir={folder}"]) == 0
        ratios[name] = frames(folder)["bits"].set_index("language")["estimate"]
    assert abs(ratios["changed"]["ml"] - 1) < abs(ratios["as trained"]["ml"] - 1) / 100


def test_a_copy_is_no_second_seed(seeds: Path, base_arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = shutil.copytree(seeds / "0", tmp_path / "copy")
    assert cli.main("eval", CONF, [*base_arguments, f"adapter=[{seeds}/0,{copy}]", f"hydra.run.dir={tmp_path / 'run'}"]) == 2
    assert f"'{copy}' is the same adapter as '{seeds}/0'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_text_that_was_trained_on_is_not_held_out(seeds: Path, base_arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = [*base_arguments, f"adapter={seeds}/0", "tasks.benchmarks=[micro_arc]"]
    for split in ("heldout", "train"):
        assert cli.main("eval", CONF, [*given, f"text_split={split}", f"hydra.run.dir={tmp_path / split}"]) == 0
        said = " ".join(capsys.readouterr().out.split())
        assert ("sentences for bits per byte in ml were trained on, so they are not held out" in said) == (split == "train")
    rows = frames(tmp_path / "train")["contamination"].query("benchmark == 'text'").set_index("language")
    assert (rows.loc["ml", "whole"], rows.loc["ml", "n"]) == (rows.loc["en", "n"], rows.loc["en", "n"])


def again(first: list[str], folder: Path) -> list[str]:
    return [f"resume={folder}"] if (folder / "config.yaml").exists() else first


@pytest.mark.slow
def test_a_killed_evaluation_goes_on_as_if_nothing_had_been(seeds: Path, base_arguments: list[str], tmp_path: Path) -> None:
    given = [*base_arguments, "cache=null", f"adapter={seeds}/0"]
    undisturbed, folder = tmp_path / "undisturbed", tmp_path / "run"
    assert cli.main("eval", CONF, [*given, f"hydra.run.dir={undisturbed}"]) == 0
    first = [*given, f"hydra.run.dir={folder}"]
    for kept in (5, 10):  # the sixth of each process is not written
        assert killed_at(6, AnswerCache, "put", lambda: cli.main("eval", CONF, again(first, folder))) == -signal.SIGKILL
        assert len(list((folder / "answers").glob("*.json"))) == kept
    assert cli.main("eval", CONF, again(first, folder)) == 0
    assert json.loads((folder / "manifest.json").read_text())["status"] == "complete"
    assert found(folder) == found(undisturbed)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_kills_of_an_evaluation_at_random_moments_change_nothing(seeds: Path, base_arguments: list[str], tmp_path: Path) -> None:
    """Two kills, or as many as LINGACT_KILLS says."""
    given = [*base_arguments, "cache=null", f"adapter={seeds}/0"]
    undisturbed, folder = tmp_path / "undisturbed", tmp_path / "run"
    began = time.monotonic()
    command = [sys.executable, str(ROOT / "eval.py")]
    assert launch([*command, *given, f"hydra.run.dir={undisturbed}"], tmp_path / "log").wait() == 0
    duration = time.monotonic() - began
    first = [*given, f"hydra.run.dir={folder}"]
    moments = random.Random(1)
    for _ in range(int(os.environ.get("LINGACT_KILLS", "2"))):
        process, end = launch([*command, *again(first, folder)], tmp_path / "log"), time.monotonic() + moments.uniform(0, duration)
        while process.poll() is None and time.monotonic() < end:
            time.sleep(0.002)
        process.kill()
        assert process.wait() in (-signal.SIGKILL, 0)
    assert cli.main("eval", CONF, again(first, folder)) == 0
    assert json.loads((folder / "manifest.json").read_text())["status"] == "complete"
    assert found(folder) == found(undisturbed)


def test_benchmarks_that_stand_in_the_training_text_are_told(
    seeds: Path, base_arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run says that it was trained on a corpus into which half of the Malayalam questions were written."""
    tasks = rows_of(EMBEDDED / "micro_arc_ml.jsonl")
    run = shutil.copytree(seeds / "0", tmp_path / "0")
    leaked = [f"{task['query']} {task['choices'][task['gold']]}" for task in tasks[::2]]
    rows = [{"unit": f"leak-{i}", "en": f"Nothing of it stands here {i}.", "ml": text, "hi": f"कुछ नहीं {i} है"} for i, text in enumerate(leaked)]
    corpus = tmp_path / "leaky.jsonl"
    corpus.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    config = (run / "config.yaml").read_text(encoding="utf-8")
    old = next(line for line in config.splitlines() if line.strip().startswith("path:"))
    config = config.replace(old, f"{old.partition('path:')[0]}path: {corpus}")
    config = config.replace("train: 0.5", "train: 0.98").replace("dev: 0.2", "dev: 0.01").replace("heldout: 0.3", "heldout: 0.01")
    assert "train: 0.98" in config
    (run / "config.yaml").write_text(config, encoding="utf-8")
    given = [text for text in base_arguments if not text.startswith("tasks.limit")]
    assert cli.main("eval", CONF, [*given, f"adapter={run}", "tasks.benchmarks=[micro_arc]", f"hydra.run.dir={tmp_path / 'run'}"]) == 0
    row = frames(tmp_path / "run")["contamination"].set_index(["benchmark", "language"]).loc[("micro_arc", "ml")]
    assert row["n"] == len(tasks)
    assert abs(row["whole"] - len(leaked)) <= 2, "all but what fell into dev and held-out"
    printed = " ".join(capsys.readouterr().out.split())
    assert f"OVERLAP: {int(row['known'])} of {len(tasks)} items of micro_arc (ml)" in printed
    assert "Without them, the difference is" in printed
    # It is shown beside the difference without them.
    items, base = (pd.DataFrame(rows_of(tmp_path / "run" / "samples" / f"{name}_micro_arc_ml.jsonl")) for name in ("adapter", "base"))
    assert row["estimate"] == pytest.approx((items["acc"] - base["acc"]).mean())


@pytest.mark.slow
def test_an_adapter_from_elsewhere_does_not_say_what_it_read(
    seeds: Path, base_arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = shutil.copytree(seeds / "0" / "adapter", tmp_path / "elsewhere")
    told = json.loads((adapter / adapter_sources.IDENTITY).read_text())
    assert told.pop("training")["lang"] == ["ml"]
    (adapter / adapter_sources.IDENTITY).write_text(json.dumps(told))
    assert cli.main("eval", CONF, [*base_arguments, f"adapter={adapter}", "text_split=null", f"hydra.run.dir={tmp_path / 'run'}"]) == 0
    assert "the adapter does not come with the configuration of its training" in " ".join(capsys.readouterr().out.split())
    assert "bits" not in frames(tmp_path / "run")


def test_all_adapters_are_judged_before_the_first_question(
    seeds: Path, base_arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stranger = shutil.copytree(seeds / "0" / "adapter", tmp_path / "stranger")
    (stranger / adapter_sources.IDENTITY).write_text(json.dumps({"base_model": "another", "base_sha256": "0" * 64}))
    monkeypatch.setattr(Scorer, "score", None)
    assert cli.main("eval", CONF, [*base_arguments, f"adapter=[{seeds}/0,{stranger}]", f"hydra.run.dir={tmp_path / 'run'}"]) == 2
    assert "belongs to another model: it was trained on 'another'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_whole_chain(seeds: Path, start: Start, base_arguments: list[str], small_toy_model: Path, tmp_path: Path) -> None:
    """train -> eval with activations -> analyze with the correlation; the file of scores does as well as the folder."""
    languages = ("languages.high=[zh,es]", "languages.low=[ca,hi,ml]", "tracking=none")
    given = [text for text in base_arguments if not text.startswith(("languages", "tracking"))]
    folder = tmp_path / "eval"
    saes = (
        "sae=microworld",
        *(f"sae.{name}.release={small_toy_model}/{place}" for name, place in (("measuring", "sae"), ("heldout", "sae_heldout"))),
    )
    assert cli.main("eval", CONF, [*given, *languages, *saes, "sae.layers=[0,2]", f"adapter={seeds}/0", f"hydra.run.dir={folder}"]) == 0
    prompts = pd.read_csv(folder / "tables" / "prompt_activations.csv")
    assert len(prompts) == 2 * 3 * 6 * 12 * 2 * 2, "two models, three benchmarks, six languages, twelve items, two sets of SAEs, two layers"
    first = prompts.query("model == 'adapter' and task == 'micro_arc_ml' and sae_set == 'heldout' and layer == 2").set_index("doc_id")
    for row in rows_of(folder / "samples" / "adapter_micro_arc_ml.jsonl"):
        assert first.loc[row["doc_id"], "activation"] == row["activations"]["activation"]["heldout"]["2"]
    assert (first["activation"] > 0).all()
    tables = []
    for name, scores in (("folder", folder), ("file", folder / "tables" / "scores.csv")):
        assert start("analyze", tmp_path / name, f"scores={scores}", *languages) == 0
        tables.append(pd.read_csv(tmp_path / name / "tables" / "correlation.csv"))
    pd.testing.assert_frame_equal(*tables)
    assert {"micro_arc", "micro_mmlu", "micro_hellaswag", "all"} == set(tables[0]["benchmark"])
    assert set(tables[0]["n"]) == {5}


def test_help_is_quick_and_names_the_commands() -> None:
    done = subprocess.run((sys.executable, str(ROOT / "eval.py"), "--help"), capture_output=True, text=True, check=True)
    assert "adapter=FOLDER tasks=paper" in done.stdout


@pytest.mark.parametrize("whole", ["tasks=paper", "tasks=human tasks.limit=3"])
def test_sets_of_the_table_are_found_without_the_hub(
    whole: str, base_arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = cli.main("eval", CONF, [*base_arguments, *whole.split(), f"hydra.run.dir={tmp_path / 'run'}"])
    said = capsys.readouterr().err
    assert code == 2
    assert "cannot be loaded" in said
    assert "Connect once so that it can be downloaded" in said
    assert not (tmp_path / "run").exists()
