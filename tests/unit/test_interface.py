"""The Python interface: what `import lingact` costs, runs that are opened, texts that are measured in memory."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import lingact
from lingact.activations.measurement import BASE
from lingact.activations.passes import measure as read
from lingact.analysis.tables import disparities, layer_table
from lingact.config.data import LanguagesConfig
from lingact.config.measures import Statistics
from lingact.data.corpus import ParallelCorpus
from lingact.errors import UserError
from lingact.models.lm import LanguageModel
from lingact.models.sae import Dictionaries


def test_import_is_light_and_names_are_there() -> None:
    code = (
        "import sys, lingact; print(len([name for name in ('torch', 'numpy', 'pandas', 'transformers') if name in sys.modules]), "
        "all(callable(getattr(lingact, name)) for name in lingact.__all__), 'torch' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["0", "True", "False"]


def test_other_names_are_not_there() -> None:
    with pytest.raises(AttributeError, match="no attribute 'open_runs'"):
        lingact.open_runs  # noqa: B018


# --- runs ----------------------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def former(tmp_path: Path) -> Path:
    """A run folder of an earlier version, under its names."""
    (tmp_path / "tables").mkdir()
    (tmp_path / "manifest.json").write_text(json.dumps({"job": "eval", "status": "complete", "identity": {}}))
    (tmp_path / "config.yaml").write_text("seed: 3\npiece: 1/1\n")
    (tmp_path / "summary.json").write_text(json.dumps({"gap/ml/0": 0.5, "gap/no/0": None}))
    (tmp_path / "tables" / "leakage.csv").write_text("meter,language,share\nmeasuring,nan,0.5\nmeasuring,,\n")
    (tmp_path / "tables" / "gap_by_layer.csv").write_text("name,layer,gap\nml,0,0.5\n")
    return tmp_path


def test_a_run_of_an_earlier_version_opens_under_the_new_names(former: Path) -> None:
    run = lingact.open_run(str(former))
    assert run.manifest["job"] == "eval"
    assert run.config == {"seed": 3, "shard": "1/1"}
    assert run.summary == {"gap/ml/0": 0.5, "gap/no/0": None}
    assert run.tables == ("gap_by_layer", "contamination")
    table = run.table("contamination")
    assert list(table.columns) == ["sae_set", "language", "share"]
    assert table["language"].tolist()[0] == "nan", "a word, not a missing value"
    assert table.isna().sum().tolist() == [0, 1, 1]


def test_an_unknown_table_lists_those_that_there_are(former: Path) -> None:
    with pytest.raises(UserError, match=r"no table 'gap_by_layers'; did you mean 'gap_by_layer'\? \(tables: gap_by_layer, contamination\)"):
        lingact.open_run(former).table("gap_by_layers")


def test_other_folders_and_unfinished_runs_are_told(former: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a run folder"):
        lingact.open_run(tmp_path / "tables")
    (former / "summary.json").unlink()
    with pytest.raises(UserError, match="has no summary"):
        _ = lingact.open_run(former).summary


# --- in memory -----------------------------------------------------------------------------------------------------------------------------------

SETTINGS = lingact.MeasureSettings(context=64, batch_tokens=256, resamples=100, seed=5)


def test_texts_in_memory_give_the_tables_of_the_analysis(lm: LanguageModel, dictionaries: Dictionaries, corpus: ParallelCorpus) -> None:
    saes = {layer: dictionary.sae for layer, dictionary in dictionaries.items()}
    lm.model.train()
    found = lingact.measure(lm.model, saes, corpus.texts, "en", tokenizer=lm.tokenizer, settings=SETTINGS)
    assert lm.model.training, "the model is given back as it was"
    lm.model.eval()
    rows = ParallelCorpus("rows", tuple(f"row-{number:06d}" for number in range(1, 13)), corpus.texts)
    stats = read(lm, {"measuring": dictionaries}, rows, batch_tokens=256, identity={}).of("measuring", BASE)
    others = tuple(code for code in corpus.texts if code != "en")
    statistics = Statistics(pooling="token", resamples=100, confidence=0.95, early="third", deep="third")
    expected = layer_table(disparities(stats, LanguagesConfig(reference="en", high=(), low=others), statistics, 5))
    expected = expected[expected["name"].isin(others)].reset_index(drop=True)
    pd.testing.assert_frame_equal(found.table("gap_by_layer"), expected)
    assert found.tables == ("gap_by_layer", "gap_by_range", "gap_by_measure", "confounds")
    assert set(found.table("gap_by_range")["name"]) == set(others)
    assert found.summary["gap/es/0"] == expected[(expected["name"] == "es") & (expected["layer"] == 0)]["gap"].item()
    with pytest.raises(UserError, match="the measurement has no table 'gaps'"):
        found.table("gaps")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"texts": {"en": ["a", "b"]}}, "at least one other language"),
        ({"texts": {"en": ["a", "b"], "es": ["c"]}}, "but the numbers differ: en 2, es 1"),
        ({"texts": {"en": ["a", "b"], "es": "cd"}}, "es is a single text"),
        ({"texts": {"en": ["a"], "es": ["c"]}}, "at least two sentences in texts"),
        ({"texts": {"en": ["a", "b"], "xx": ["c", "d"]}}, "unknown language 'xx'"),
        ({"reference": "ml"}, "reference 'ml'"),
        ({"tokenizer": None}, "give tokenizer="),
        ({"saes": {}}, "none given"),
        ({"saes": "layer 7"}, r"layers \[7\] do not exist; the model has layers 0 to 2"),
    ],
)
def test_mistakes_are_told(lm: LanguageModel, dictionaries: Dictionaries, change: dict[str, Any], said: str) -> None:
    given: dict[str, Any] = {
        "texts": {"en": ["a", "b"], "es": ["c", "d"]},
        "reference": "en",
        "tokenizer": lm.tokenizer,
        "saes": {0: dictionaries[0].sae},
    }
    given |= change
    if given["saes"] == "layer 7":
        given["saes"] = {7: dictionaries[0].sae}
    with pytest.raises(UserError, match=said):
        lingact.measure(lm.model, settings=SETTINGS, **given)
