"""analyze.py from the command line to the run folder, on the small organism."""

import json
import math
from pathlib import Path

import pandas as pd
import pytest

from lingact import tables
from lingact.config import LanguagesConfig, Statistics
from lingact.stats import FeatureStats

from .conftest import Start

PAPER = LanguagesConfig(reference="en", high=("zh", "ru", "es", "it"), low=("id", "ca", "mr", "ml", "hi"))


@pytest.fixture(scope="module")
def analyzed(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "analyzed"
    assert start("analyze", folder, "tracking=offline", "corpus.max_sentences=40") == 0
    return folder


def test_the_run_folder_is_complete(analyzed: Path) -> None:
    there = {str(path.relative_to(analyzed)) for path in analyzed.rglob("*") if path.is_file()}
    assert {
        "config.yaml",
        "manifest.json",
        "summary.json",
        "report.html",
        "tables/gap_by_layer.csv",
        "tables/gap_by_range.csv",
        "tables/confounds.csv",
    } <= there
    assert {"tables/gap_by_layer_heldout.csv", "figures/gap_heatmap.png"} <= there
    assert sum(path.startswith("stats/") for path in there) == 2 * 10
    assert json.loads((analyzed / "manifest.json").read_text())["status"] == "complete"
    summary = json.loads((analyzed / "summary.json").read_text())
    assert all(math.isfinite(value) for value in summary.values())
    names = {*PAPER.high, *PAPER.low, "low", "high", "low_vs_high"}
    places = ("0", "1", "2", "early", "deep", "all", "early_max", "deep_max", "all_max")
    assert set(summary) == {f"{meter}gap/{name}/{place}" for meter in ("", "heldout/") for name in names for place in places}


def test_tables_can_be_rebuilt_from_the_saved_statistics(analyzed: Path) -> None:
    stats = {code: FeatureStats.load(analyzed / "stats" / f"measuring-base-{code}.safetensors") for code in PAPER.all}
    settings = Statistics(pooling="token", resamples=100, confidence=0.95, early="third", deep="third")
    rebuilt = tables.layer_table(tables.disparities(stats, PAPER, settings, seed=0))
    pd.testing.assert_frame_equal(rebuilt, pd.read_csv(analyzed / "tables" / "gap_by_layer.csv"), check_dtype=False)
    hindi, english = (stats[code].activation[1].sum() / stats[code].tokens.sum() for code in ("hi", "en"))
    summary = json.loads((analyzed / "summary.json").read_text())
    assert summary["gap/hi/1"] == pytest.approx(1 - hindi / english)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"en": "A dog.", "hi": "एक कुत्ता।"}], "1 sentence is too few for an interval; give at least two sentences in the split"),
        ([{"en": "A dog."}, {"en": "A cat."}], "has no hi; it has en"),
        ([{"en": "A dog.", "hi": "<bos>"}, {"en": "A cat.", "hi": "बिल्ली।"}], "has no token left after tokenisation"),
    ],
)
def test_a_corpus_that_cannot_be_measured_is_refused(
    rows: list[dict[str, str]], message: str, start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "text.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    given = ["corpus=files", f"corpus.path={path}", "languages.high=[]", "languages.low=[hi]", "tracking=none"]
    assert start("analyze", tmp_path / "run", *given) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_one_language_of_ones_own_text_with_long_paragraphs(start: Start, tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "en.txt").write_text("A dog.\n" + "The sky is blue. " * 200 + "\nYes.\n", encoding="utf-8")
    (tmp_path / "text" / "id.txt").write_text("Anjing.\n" + "Langit biru. " * 200 + "\nYa.\n", encoding="utf-8")
    given = ["corpus=files", f"corpus.path={tmp_path / 'text'}", "languages.high=[]", "languages.low=[id]", "tracking=none", "sae.heldout=null"]
    assert start("analyze", tmp_path / "run", *given, "sae.layers=[1]") == 0
    confounds = pd.read_csv(tmp_path / "run" / "tables" / "confounds.csv")
    windows = confounds[(confounds.quantity == "windows_per_sentence") & (confounds.language == "en")].estimate.item()
    assert windows > 1
