"""What the card of a shared adapter says without results, of controls, and of several seeds."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from lingact.config.jobs import TrainConfig
from lingact.config.validation import validate
from lingact.errors import UserError
from lingact.files.atomic import write_json
from lingact.files.run_tables import read_tables
from lingact.report.model_card import model_card, read_benchmark_results

from .test_report import TRAIN

MANIFEST: dict[str, Any] = {
    "started": "2026-11-25T13:21:57Z",
    "git": {"commit": "ab" * 20, "dirty": True},
    "versions": {"python": "3.11.7", "lingact": "0.1.0"},
    "hardware": {"machine": "x86_64", "cpus": 2, "gpus": ["NVIDIA H100"]},
    "wall_seconds": 119.0,
    "identity": {
        "model": {"revision": "cd" * 20, "sha256": "ef" * 32, "dtype": "bfloat16", "attention": "eager"},
        "sae": {"measuring": {"release": "scope", "id": "layer_{layer}", "sha256": "12" * 32}},
        "corpus": {"sha256": "34" * 32, "sentences": 900},
    },
}


def card(**changes: Any) -> str:
    """The card of an adapter of which nothing was measured."""
    config = validate(TrainConfig, TRAIN).model_dump(mode="json")
    config |= {"model": config["model"] | {"name": "google/gemma-2-2b"}} | changes
    return model_card("jane/ml", "gemma", config, MANIFEST, "", {}, None)


def test_it_says_how_the_base_model_is_loaded_and_what_it_was_made_with() -> None:
    text = card()
    loaded = f'"google/gemma-2-2b", revision="{"cd" * 20}", dtype="bfloat16", attn_implementation="eager"'
    assert f"AutoModelForCausalLM.from_pretrained({loaded})" in text
    assert f"lingact eval adapter=jane/ml model.name=google/gemma-2-2b model.revision={'cd' * 20} model.dtype=bfloat16" in text
    assert "| Hardware | NVIDIA H100; 2 minutes, measuring included |" in text
    assert f"| Code | lingact at commit {'ab' * 6}, with local changes |" in text
    assert "The code had local changes that are not in any commit." in text
    assert text.count("**None.**") == 2


def test_a_control_says_that_it_is_one() -> None:
    assert "control" not in card().partition("## Use")[0]
    loss = validate(TrainConfig, TRAIN).model_dump(mode="json")["loss"]
    assert "**It is a control (`random_features`): it shows" in card(loss=loss | {"control": "random_features"})
    text = card(loss=loss | {"gap": loss["gap"] | {"weight": 0}})
    assert "without a loss term for the activation of features, for comparison" in text


def test_limits_follow_from_what_was_done() -> None:
    same = "other sentences of its training corpus"
    assert same in card()
    corpus = {"kind": "hub", "dataset": "owner/other", "licence": "CC BY 4.0", "splits": {"train": 0.9}}
    text = card(train_corpus=corpus)
    assert same not in text
    assert "\ndatasets:\n- owner/other\n" in text
    alone = "The result was measured only with the SAEs of the loss."
    assert alone in card(split="dev")
    assert alone in card(sae=validate(TrainConfig, TRAIN).model_dump(mode="json")["sae"] | {"heldout": None})


@pytest.fixture
def evaluated(tmp_path: Path) -> Path:
    """An evaluation of two seeds of one recipe and one of another, as far as it matters here."""
    names = {"lang ml_seed0": "1", "lang ml_seed1": "2", "lang ml, r 8": "3"}
    identity = {f"adapter {name}": {"name": f"runs/{name}", "sha256": sha256} for name, sha256 in names.items()}
    write_json(tmp_path / "manifest.json", {"job": "eval", "status": "complete", "identity": {"model": {}, **identity}})
    (tmp_path / "tables").mkdir()
    for name in ("differences", "accuracy", "contamination"):
        pd.DataFrame({"model": ["lang ml", "lang ml, r 8"], "language": ["nan", "ml"]}).to_csv(tmp_path / "tables" / f"{name}.csv", index=False)
    return tmp_path


def test_seeds_are_told_by_what_they_are_not_by_their_names(evaluated: Path) -> None:
    found = {sha256: read_benchmark_results(evaluated, {}, sha256) for sha256 in "123"}
    assert {sha256: (benchmarks.label, benchmarks.seeds) for sha256, benchmarks in found.items()} == {
        "1": ("lang ml", 2),
        "2": ("lang ml", 2),
        "3": ("lang ml, r 8", 1),
    }
    assert list(found["1"].tables["differences"]["language"]) == ["nan", "ml"]  # codes of languages, not missing values
    with pytest.raises(UserError, match=r"is an evaluation of 'runs/lang ml_seed0', .*, not of this adapter; name an evaluation of this adapter"):
        read_benchmark_results(evaluated, {}, "4")


@pytest.mark.parametrize("content", [b"", b'a,b\n1,2,3,4\n"', b"a\n\xff\n"], ids=["empty", "ragged", "no text"])
def test_a_damaged_table_is_refused_with_its_path(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "accuracy.csv").write_bytes(content)
    with pytest.raises(UserError, match=r"^'.*/tables/accuracy\.csv' cannot be read \(.*\); put it back"):
        read_tables(tmp_path)
