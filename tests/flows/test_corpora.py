"""Training on one corpus and judging on another, and corpora of pairs: what is read, left out and recorded, and what an evaluation knows of it."""

import json
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pytest

from lingact.cli import main as cli
from lingact.workflows import train
from tests.helpers import hub
from tests.helpers.paths import CONF
from tests.helpers.processes import Start

FEW = ("lang=ml", "languages.high=[]", "languages.low=[ml]", "tracking=none", "trainer.steps=2")


def rows_of(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def interrupted(run: Path) -> list[str]:
    """What goes on with it, as if it had not come to the end of its training."""
    (run / "checkpoints/trained.json").unlink(missing_ok=True)
    manifest = run / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"complete"', '"interrupted"'))
    return [f"resume={run}"]


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, tuple[str, ...]]]:
    """The sentences of each training run, language by language."""
    seen = []

    class Watched(train.AlignedBatches):
        def __init__(self, tokens: Any, corpus: Any, **rest: Any) -> None:
            seen.append(corpus.texts)
            super().__init__(tokens, corpus, **rest)

    monkeypatch.setattr(train, "AlignedBatches", Watched)
    return seen


def test_one_corpus_trains_and_another_judges(
    start: Start, small_toy_model: Path, tmp_path: Path, read: list[dict[str, tuple[str, ...]]], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = rows_of(small_toy_model / "corpus.jsonl")
    measured, new = rows[:60], rows[60:120]  # `start` measures on the first sixty
    both = [{"unit": f"twice-{i}", "en": row["en"].upper(), "ml": f"{row['ml']} {i}"} for i, row in enumerate(measured)]
    path, run = tmp_path / "other.jsonl", tmp_path / "run"
    write(path, [{key: row[key] for key in ("unit", "en", "ml")} for row in new + both])
    chosen = ["corpus@train_corpus=files", f"train_corpus.path={path}"]
    assert start("train", run, *FEW, *chosen) == 0

    (texts,) = read
    assert set(texts) == {"en", "ml"}
    assert set(texts["en"]) < {row["en"] for row in new}
    assert 15 < len(texts["en"]) < 45, "half of sixty"
    identity = json.loads((run / "manifest.json").read_text())["identity"]
    assert identity["corpus"]["sentences"] == 60
    assert (identity["train_corpus"]["name"], identity["train_corpus"]["sentences"]) == (str(path), len(texts["en"]))
    assert 15 < identity["train_corpus"]["also_measured_on"] < 45
    dev_and_heldout = pd.read_csv(run / "tables/change_by_layer.csv")["n"].iloc[0]
    assert dev_and_heldout < 60, "a split of the measured corpus"

    # The run goes on with the same sentences, and with no others.
    assert cli.main("train", CONF, [*interrupted(run), *chosen]) == 0
    assert read[1] == texts
    capsys.readouterr()
    assert cli.main("train", CONF, [*interrupted(run), "corpus@train_corpus=microworld"]) == 2
    assert "train_corpus.path" in capsys.readouterr().err
    write(path, new)
    assert cli.main("train", CONF, interrupted(run)) == 2
    assert "was started with other inputs (train_corpus.also_measured_on: " in capsys.readouterr().err


@pytest.mark.slow
def test_pairs_train_and_an_evaluation_knows_what_was_read(
    start: Start, small_toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: list[dict[str, tuple[str, ...]]]
) -> None:
    rows = rows_of(small_toy_model / "corpus.jsonl")[:160]
    pairs = [{"translation": {"en": row["en"], "ml": row["ml"]}} for row in rows[40:]]
    hub.write_dataset(tmp_path / "Helsinki-NLP/opus-100", {"en-ml": {"train": pairs}}, "parquet", "{part}/{split}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    assert start("train", tmp_path / "run", *FEW, "corpus@train_corpus=opus_100") == 0
    (texts,) = read
    assert set(texts["ml"]) < {row["ml"] for row in rows[60:]}, "what is measured was left out"

    write(tmp_path / "text.jsonl", rows)
    model = [f"model.name={small_toy_model}/model", "tracking=none", "device=cpu", "cache=null", "resamples=100", "text_split=all"]
    few = ["languages.high=[]", "languages.low=[ml]", "tasks.benchmarks=[micro_arc]", "tasks.limit=4", f"adapter={tmp_path / 'run'}"]
    assert cli.main("eval", CONF, [*model, *few, f"corpus.path={tmp_path / 'text.jsonl'}", f"hydra.run.dir={tmp_path / 'eval'}"]) == 0
    table = pd.read_csv(tmp_path / "eval/tables/contamination.csv")
    assert set(table["corpus"]) == {"Helsinki-NLP/opus-100"}
    of_text = table.query("benchmark == 'text' and language == 'ml'").iloc[0]
    assert (of_text["n"], of_text["whole"]) == (len({row["ml"] for row in rows}), len(texts["ml"]))


@pytest.mark.slow
def test_an_analysis_of_pairs_compares_a_language_with_its_own_pair(small_toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = rows_of(small_toy_model / "corpus.jsonl")
    own = {"ml": rows[:40], "hi": rows[40:100]}
    iso3 = {"ml": "mal", "hi": "hin"}
    pairs = {f"{iso3[code]}-eng": {"test": [{"sentence1": row[code], "sentence2": row["en"]} for row in part]} for code, part in own.items()}
    hub.write_dataset(tmp_path / "mteb/tatoeba-bitext-mining", pairs, "jsonl.gz", "{split}/{part}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    model = [
        f"model.name={small_toy_model}/model",
        f"sae.measuring.release={small_toy_model}/sae",
        f"sae.heldout.release={small_toy_model}/sae_heldout",
    ]
    swept = ["-m", *model, "corpus=tatoeba", "tracking=none", "statistics.resamples=100", "languages.high=[]", "languages.low=[ml],[hi]"]
    assert cli.main("analyze", CONF, [*swept, f"hydra.sweep.dir={tmp_path / 'sweep'}"]) == 0
    for number, code in enumerate(own):
        corpus = json.loads((tmp_path / f"sweep/{number}/manifest.json").read_text())["identity"]["corpus"]
        assert (corpus["name"], corpus["sentences"]) == (f"mteb/tatoeba-bitext-mining/{iso3[code]}-eng", len(own[code]))
        gaps = pd.read_csv(tmp_path / f"sweep/{number}/tables/gap_by_layer.csv")
        assert code in set(gaps["name"])
        assert set(gaps["n"]) == {len(own[code])}
