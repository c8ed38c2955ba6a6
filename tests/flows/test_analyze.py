"""analyze.py from the command line to the run folder, on the small toy model: the core run, shards, interruption, bad input."""

import itertools
import json
import math
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from safetensors.numpy import load_file, save_file

from lingact.activations.measurement import load_measurement
from lingact.analysis import tables
from lingact.analysis.measures import MEASURES
from lingact.cli import main as cli
from lingact.config.data import LanguagesConfig
from lingact.config.measures import Statistics
from lingact.files.states import load_state, save_state
from lingact.models.lm import LanguageModel
from tests.helpers.paths import CONF
from tests.helpers.processes import Start, killed_at
from tests.helpers.tiers import first_of

PAPER = LanguagesConfig(reference="en", high=("zh", "ru", "es", "it"), low=("id", "ca", "mr", "ml", "hi"))
FEW = ("tracking=none", "corpus.max_sentences=24", "languages.high=[zh,es]", "languages.low=[ml,hi]", "batch_tokens=256")
CODES = ("en", "zh", "es", "ml", "hi")


@pytest.fixture(scope="module")
def analyzed(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A core run with W&B offline."""
    folder = tmp_path_factory.mktemp("runs") / "analyzed"
    assert start("analyze", folder, "tracking=offline", "corpus.max_sentences=40") == 0
    return folder


@pytest.fixture(scope="module")
def undisturbed(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A core run of few sentences in many batches."""
    folder = tmp_path_factory.mktemp("runs") / "undisturbed"
    assert start("analyze", folder, *FEW) == 0
    assert all(load_state(folder / "stats" / f"{code}.safetensors")[2][1] >= 2 for code in CODES), "several batches in every language"
    return folder


def status(folder: Path) -> str:
    return json.loads((folder / "manifest.json").read_text())["status"]


def same_results(one: Path, other: Path) -> bool:
    """The same raw statistics, tables and summary, to the last bit."""
    states = [{path.name: load_state(path) for path in (folder / "stats").glob("*.safetensors")} for folder in (one, other)]
    files = [{path.name: path.read_bytes() for path in [folder / "summary.json", *(folder / "tables").iterdir()]} for folder in (one, other)]
    assert states[0].keys() == states[1].keys()
    for name, (header, arrays, steps) in states[0].items():
        other_header, other_arrays, other_steps = states[1][name]
        assert (header, steps, arrays.keys()) == (other_header, other_steps, other_arrays.keys())
        assert all(np.array_equal(arrays[key], other_arrays[key]) for key in arrays)
    return files[0] == files[1]


def never(*_: object, **__: object) -> None:
    pytest.fail("the model was loaded")


# --- what a run leaves ---------------------------------------------------------------------------------------------------------------------------


def test_the_run_folder_is_complete(analyzed: Path) -> None:
    there = {str(path.relative_to(analyzed)) for path in analyzed.rglob("*") if path.is_file() and path.parts[len(analyzed.parts)] != "wandb"}
    sae_sets = ("", "_heldout")
    made = {f"tables/gap_by_{by}{sae_set}.csv" for by in ("layer", "range") for sae_set in sae_sets} | {
        "tables/gap_by_measure.csv",
        "tables/confounds.csv",
    }
    drawn = {f"figures/{name}.png" for name in ("gap_heatmap", "gap_heatmap_heldout", "gap_groups", "measures", "confounds")}
    raw = {"stats/index.json", *(f"stats/{code}.safetensors" for code in PAPER.all)}
    assert there == {"config.yaml", "manifest.json", "summary.json", "report.html"} | made | drawn | raw
    assert list((analyzed / "wandb").glob("offline-run-*/*.wandb"))
    assert status(analyzed) == "complete"


def test_the_summary_has_the_agreed_keys_and_only_finite_numbers(analyzed: Path) -> None:
    summary = json.loads((analyzed / "summary.json").read_text())
    assert all(math.isfinite(value) for value in summary.values())
    names = {*PAPER.high, *PAPER.low, "low", "high", "low_vs_high"}
    places = ("0", "1", "2", "early", "deep", "all", "early_max", "deep_max", "all_max")
    gaps = {f"{sae_set}gap/{name}/{place}" for sae_set in ("", "heldout/") for name in names for place in places}
    by_measure = {f"measure/{measure}/{name}" for measure in MEASURES.keys() - {"reference_active", "norm_matched"} for name in names}
    assert set(summary) == gaps | by_measure
    assert summary["measure/mean/hi"] == summary["gap/hi/all"]
    assert summary["gap/hi/all"] == pytest.approx(np.mean([summary[f"gap/hi/{layer}"] for layer in range(3)]))
    assert summary["gap/low/all_max"] == max(summary[f"gap/low/{layer}"] for layer in range(3))


COLUMNS = {
    "gap_by_layer": "name layer n resampled units activation gap lo hi band_lo band_hi effect p wider p_holm p_bh",
    "gap_by_range": "name range statistic n resampled units gap lo hi p wider p_holm",
    "gap_by_measure": "measure name place n resampled units value reference_value gap lo hi",
    "confounds": "language layer quantity n resampled units estimate lo hi",
}


@pytest.mark.parametrize("name", COLUMNS)
def test_tables_are_tidy(name: str, analyzed: Path) -> None:
    table = pd.read_csv(analyzed / "tables" / f"{name}.csv")
    assert " ".join(table.columns) == COLUMNS[name]
    keys = [column for column in table.columns if column in ("name", "language", "layer", "range", "statistic", "measure", "place", "quantity")]
    assert not table.duplicated(keys).any()
    assert set(table["n"]) == {40}


def test_tables_can_be_rebuilt_from_the_saved_statistics(analyzed: Path) -> None:
    stats = load_measurement(analyzed / "stats")[0].of("measuring", "base")
    settings = Statistics(pooling="token", resamples=100, confidence=0.95, early="third", deep="third", block=None)
    rebuilt = tables.layer_table(tables.disparities(stats, PAPER, settings, seed=0))
    pd.testing.assert_frame_equal(rebuilt, pd.read_csv(analyzed / "tables" / "gap_by_layer.csv"), check_dtype=False)
    hindi, english = (stats[code].activation[1].sum() / stats[code].tokens.sum() for code in ("hi", "en"))
    summary = json.loads((analyzed / "summary.json").read_text())
    assert summary["gap/hi/1"] == pytest.approx(1 - hindi / english)


# --- shards --------------------------------------------------------------------------------------------------------------------------------------


def test_a_measure_that_statistics_lack_is_refused(undisturbed: Path, start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ("measures.parts=[by_reference]", "measures.gap=norm_matched", "tracking=none")
    assert start("analyze", tmp_path / "run", f"stats=[{undisturbed}]", *given) == 2
    assert (
        f"measures.gap=norm_matched: the run in '{undisturbed}' did not measure the part by_reference, which it needs; choose "
        in capsys.readouterr().err
    )
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def shards(start: Start, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folders = [tmp_path_factory.mktemp("shards") / f"shard_{place}" for place in (1, 2)]
    assert [start("analyze", folder, *FEW, f"shard={place}/2") for place, folder in enumerate(folders, start=1)] == [0, 0]
    return folders


def listed(folders: list[Path]) -> str:
    return f"[{','.join(map(str, folders))}]"


def test_pieces_put_together_are_the_whole(
    shards: list[Path], undisturbed: Path, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (first, one), (second, other) = map(load_measurement, (folder / "stats" for folder in shards))
    assert (one, other) == ((0, 2), (1, 2))
    whole, merged = load_measurement(undisturbed / "stats")[0], first.merge(second)
    for code in CODES:
        for name, array in merged.arrays(code).items():
            expected = whole.arrays(code)[name]
            if array.dtype == np.int64:
                assert np.array_equal(array, expected), name
            else:
                np.testing.assert_allclose(array, expected, rtol=1e-12, atol=1e-12, err_msg=name)
    monkeypatch.setattr("lingact.workflows.setup.load_model", never)
    assert start("analyze", tmp_path / "merged", "tracking=none", f"stats={listed(shards[::-1])}") == 0
    names = sorted(path.name for path in (undisturbed / "tables").iterdir())
    assert sorted(path.name for path in (tmp_path / "merged" / "tables").iterdir()) == names
    for name in names:
        ours, theirs = (pd.read_csv(folder / "tables" / name) for folder in (tmp_path / "merged", undisturbed))
        pd.testing.assert_frame_equal(ours, theirs, rtol=1e-12, atol=1e-12)


def test_blocks_are_drawn_from_what_was_measured_by_sentences(
    undisturbed: Path, start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert start("analyze", tmp_path / "blocks", f"stats=[{undisturbed}]", "statistics.block=4", "tracking=none") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "24 sentences, intervals by paired bootstrap over 6 blocks of neighbouring sentences" in said
    assert "intervals from only 6 blocks of neighbouring sentences are rough" in said
    one, other = (pd.read_csv(folder / "tables" / "gap_by_range.csv") for folder in (undisturbed, tmp_path / "blocks"))
    assert set(zip(one["resampled"], one["units"], one["wider"], strict=True)) == {("sentences", 24, 1.0)}
    assert set(zip(other["resampled"], other["units"], strict=True)) == {("blocks", 6)}
    assert other["gap"].tolist() == one["gap"].tolist()
    page = (tmp_path / "blocks" / "report.html").read_text(encoding="utf-8")
    assert "paired bootstrap over 6 blocks of neighbouring sentences" in page
    assert (
        f"With blocks resampled, standard errors are {pd.read_csv(tmp_path / 'blocks' / 'tables' / 'gap_by_layer.csv')['wider'].median():.2f} times"
        in page
    )
    assert "as if they were independent" not in page


def test_too_few_blocks_are_told_before_anything_is_measured(start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert start("analyze", tmp_path / "run", *FEW, "statistics.block=1000") == 2
    assert "24 sentences in 1 block: intervals draw whole blocks of neighbouring sentences" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run" / "stats").exists()


def test_statistics_from_before_places_were_kept_have_no_blocks(
    undisturbed: Path, start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = shutil.copytree(undisturbed, tmp_path / "old")
    index = json.loads((old / "stats" / "index.json").read_text())
    (old / "stats" / "index.json").write_text(json.dumps({key: value for key, value in index.items() if key not in ("documents", "rows")}))
    assert start("analyze", tmp_path / "blocks", f"stats=[{old}]", "statistics.block=4", "tracking=none") == 2
    assert "do not say which sentences are neighbours" in " ".join(capsys.readouterr().err.split())
    assert start("analyze", tmp_path / "again", f"stats=[{old}]", "tracking=none") == 0
    assert (tmp_path / "again" / "tables" / "gap_by_layer.csv").read_bytes() == (undisturbed / "tables" / "gap_by_layer.csv").read_bytes()


def test_a_shard_is_left_alone_when_it_is_complete(shards: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert status(shards[0]) == "complete"
    assert not (shards[0] / "report.html").exists()
    assert cli.main("analyze", CONF, [f"resume={shards[0]}"]) == 0
    assert "is complete; nothing to do" in capsys.readouterr().out


@pytest.mark.parametrize(("chosen", "seen"), [((0, 0), "shard_1: 1/2, "), ((1,), "shard_2: 2/2")], ids=["twice", "missing"])
def test_pieces_that_make_no_whole_are_refused(
    chosen: tuple[int, ...], seen: str, shards: list[Path], start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [shards[place] for place in chosen]
    assert start("analyze", tmp_path / "merged", "tracking=none", f"stats={listed(given)}") == 2
    message = capsys.readouterr().err
    assert "these are not all shards of one analysis" in message
    assert seen in message
    assert "name every shard once, from 1/2 to 2/2" in message
    assert not (tmp_path / "merged").exists()


@pytest.mark.slow
def test_pieces_of_different_analyses_do_not_merge(shards: list[Path], start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert start("analyze", tmp_path / "other", *FEW, "shard=2/2", "batch_tokens=128") == 0
    capsys.readouterr()
    assert start("analyze", tmp_path / "merged", "tracking=none", f"stats={listed([shards[0], tmp_path / 'other'])}") == 2
    assert "does not belong here; it differs in batch_tokens: 128 / 256" in capsys.readouterr().err
    assert not (tmp_path / "merged").exists()


def test_a_shard_is_not_compared(shards: list[Path], undisturbed: Path, start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert start("analyze", tmp_path / "run", *FEW, f"compare={listed([undisturbed, shards[1]])}") == 2
    assert "shard_2' contains only shard 2 of 2" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


# --- interruption --------------------------------------------------------------------------------------------------------------------------------


def at_call(number: int, does: Callable[[], Any]) -> Callable[..., Any]:
    """A forward pass; at the call of this number the given happens instead."""
    real, calls = LanguageModel.residuals, itertools.count(1)

    def residuals(*given: Any, **named: Any) -> Any:
        return does() if next(calls) == number else real(*given, **named)

    return residuals


def counted(calls: "itertools.count[int]") -> Callable[..., Any]:
    """A forward pass that counts."""
    real = LanguageModel.residuals

    def residuals(*given: Any, **named: Any) -> Any:
        next(calls)
        return real(*given, **named)

    return residuals


def interrupt() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("number", first_of([1, 3, 8]))
def test_an_interrupted_run_goes_on_as_if_nothing_had_been(
    number: int, start: Start, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    monkeypatch.setattr("lingact.runtime.resumable_passes.SAVE_EVERY", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(LanguageModel, "residuals", at_call(number, interrupt))
        assert start("analyze", folder, *FEW) == 130
    assert f"To go on: python analyze.py resume={folder}" in capsys.readouterr().err
    assert status(folder) == "interrupted"
    assert not (folder / "summary.json").exists()
    kept = sum(load_state(path)[2][0] for path in (folder / "stats").glob("*.safetensors"))
    assert kept == number - 1
    seen = itertools.count()
    with monkeypatch.context() as patch:
        patch.setattr(LanguageModel, "residuals", counted(seen))
        assert cli.main("analyze", CONF, [f"resume={folder}"]) == 0
    total = sum(load_state(path)[2][1] for path in (folder / "stats").glob("*.safetensors"))
    assert next(seen) == total - kept, "what was saved is not measured again"
    assert same_results(folder, undisturbed)


def test_a_killed_run_goes_on_as_if_nothing_had_been(start: Start, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr("lingact.runtime.resumable_passes.SAVE_EVERY", 0.0)
        assert killed_at(5, LanguageModel, "residuals", lambda: start("analyze", folder, *FEW)) == -signal.SIGKILL
    assert status(folder) == "running", "nobody could write anything else"
    assert sum(load_state(path)[2][0] for path in (folder / "stats").glob("*.safetensors")) == 4
    assert cli.main("analyze", CONF, [f"resume={folder}"]) == 0
    assert status(folder) == "complete"
    assert same_results(folder, undisturbed)


@pytest.mark.parametrize("entry", first_of(["model", "sae/measuring", "corpus", "masking"]))
def test_statistics_of_something_else_are_not_continued(
    entry: str, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr("lingact.runtime.resumable_passes.SAVE_EVERY", 0.0)
        patch.setattr(LanguageModel, "residuals", at_call(2, interrupt))
        assert start("analyze", folder, *FEW) == 130
    path = folder / "stats" / "en.safetensors"
    header, arrays, steps = load_state(path)
    save_state(path, header | {entry: "another"}, arrays, range(steps[0]), steps[1])
    changed = path.read_bytes()
    assert cli.main("analyze", CONF, [f"resume={folder}"]) == 2
    assert f"en.safetensors' does not belong here; it differs in {entry}: another / " in capsys.readouterr().err
    assert path.read_bytes() == changed


# --- bad input -----------------------------------------------------------------------------------------------------------------------------------


def own_text(folder: Path, rows: list[dict[str, str]]) -> list[str]:
    """Overrides for a corpus of these sentences."""
    path = folder / "text.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return ["corpus=files", f"corpus.path={path}", "languages.high=[]", "languages.low=[hi]", "tracking=none"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"en": "A dog.", "hi": "एक कुत्ता।"}], "1 sentence is too few for an interval; give at least two sentences in the split"),
        ([{"en": "A dog."}, {"en": "A cat."}], "has no hi; it has en"),
        (
            [{"en": "A dog.", "hi": "एक कुत्ता।"}, {"en": "A cat."}],
            "is ragged: line 2 lacks hi (1 in all); every sentence needs a text in every language",
        ),
    ],
    ids=["one_sentence", "no_language", "a_single_sentence_in_a_language"],
)
def test_a_corpus_that_cannot_be_measured_is_refused(
    rows: list[dict[str, str]], message: str, start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert start("analyze", tmp_path / "run", *own_text(tmp_path, rows)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


NOTHING = [{"en": "A dog.", "hi": "<bos>"}, {"en": "A cat.", "hi": "बिल्ली।"}]


def test_a_text_without_tokens_is_refused_before_measuring(
    start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LanguageModel, "residuals", at_call(1, lambda: pytest.fail("measuring has begun")))
    assert start("analyze", tmp_path / "run", *own_text(tmp_path, NOTHING)) == 2
    assert "sentence 1 of the corpus ('<bos>') has no token left after tokenisation; remove it in every language" in capsys.readouterr().err


def test_a_text_without_tokens_leaves_nothing_behind(start: Start, tmp_path: Path) -> None:
    assert start("analyze", tmp_path / "run", *own_text(tmp_path, NOTHING)) == 2
    assert not (tmp_path / "run").exists()


def test_long_texts_are_split_and_counted(start: Start, tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "en.txt").write_text("A dog.\n" + "The sky is blue. " * 200 + "\nYes.\n", encoding="utf-8")
    (tmp_path / "text" / "id.txt").write_text("Anjing.\n" + "Langit biru. " * 200 + "\nYa.\n", encoding="utf-8")
    given = ["corpus=files", f"corpus.path={tmp_path / 'text'}", "languages.high=[]", "languages.low=[id]", "tracking=none", "sae.heldout=null"]
    assert start("analyze", tmp_path / "run", *given, "sae.layers=[1]") == 0
    english = load_measurement(tmp_path / "run" / "stats")[0].of("measuring", "base")["en"]
    assert english.windows[[0, 2]].tolist() == [1, 1]
    assert english.windows[1] == math.ceil(english.tokens[1] / 511), "a window holds 512 tokens, BOS among them"
    assert english.windows[1] > 1
    confounds = pd.read_csv(tmp_path / "run" / "tables" / "confounds.csv")
    windows = confounds[(confounds.quantity == "windows_per_sentence") & (confounds.language == "en")].estimate.item()
    assert windows == pytest.approx(english.windows.sum() / 3)
    assert windows > 1
    report = (tmp_path / "run" / "report.html").read_text()
    assert re.search(rf"no: they are split into windows, [^<]*{windows:.2f}", report)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["shard=5/4"], "shard: '5/4' is not k/n with k from 1 to n"),
        (["shard=2/4", "measures=full"], "shard: shards cannot measure further parts"),
        (["measures.gap=norm_matched"], "gap=norm_matched needs the part by_reference"),
        (["measures.parts=[causal]"], "the part causal needs the part features"),
        (["languages.high=[]", "languages.low=[]"], "there is nothing to compare 'en' with"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_makes_no_sense_is_refused_at_the_door(
    overrides: list[str], message: str, start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lingact.workflows.setup.load_model", never)
    assert start("analyze", tmp_path / "run", *FEW, *overrides) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("measures.causal.features={9:[1]}", "measures.causal: layers [9] are not measured; measured are [0, 1, 2]"),
        ("measures.causal.features={1:[3,640]}", "measures.causal.features: layer 1 has latents 0 to 63; there is no 640"),
        ("statistics.early=[9]", "statistics.early: none of the layers [9] is measured"),
        ("sae.layers=[0,3]", "sae.layers: [3] out of range; the model has layers 0 to 2"),
    ],
)
def test_what_the_model_lacks_is_refused_before_measuring(
    override: str, message: str, start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LanguageModel, "residuals", at_call(1, lambda: pytest.fail("measuring has begun")))
    causal = ["measures.parts=[causal]"] if "causal" in override else []
    assert start("analyze", tmp_path / "run", *FEW, *causal, override) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def attributing(small_toy_model: Path) -> tuple[str, ...]:
    sets = f"attribution=[{small_toy_model}/sae,{small_toy_model}/sae_heldout]"
    return ("tracking=none", "corpus.max_sentences=24", "languages.high=[es]", "languages.low=[hi,ml]", "batch_tokens=256", sets)


@pytest.fixture(scope="module")
def attributed(start: Start, attributing: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("attributed") / "run"
    assert start("analyze", folder, *attributing) == 0
    return folder


def test_a_difference_is_attributed_to_norm_and_dictionary(attributed: Path, start: Start, tmp_path: Path) -> None:
    table = pd.read_csv(attributed / "tables" / "attribution.csv")
    columns = "language layer measure set_a set_b part order estimate lo hi documents n resampled units"
    assert " ".join(table.columns) == columns
    assert set(table["part"]) == {"norm", "dictionary", "remainder", "total"}
    assert (set(table["set_a"]), set(table["set_b"])) == ({"sae"}, {"sae_heldout"})
    gaps = pd.read_csv(attributed / "tables" / "gap_by_layer.csv").set_index(["name", "layer"])["gap"]
    total = table[(table["part"] == "total") & (table["measure"] == "mean") & (table["order"] == "mean")].set_index(["language", "layer"])
    for place, estimate in total["estimate"].items():
        assert np.exp(estimate) == pytest.approx(1 - gaps[place], rel=1e-6), "set A is the measuring set"
    wide = table.pivot_table(index=["language", "layer", "measure", "order"], columns="part", values="estimate")
    assert np.allclose(wide["norm"] + wide["dictionary"] + wide["remainder"], wide["total"])
    norms = pd.read_csv(attributed / "tables" / "norms.csv")
    assert (norms.loc[norms["language"] == "en", "ratio"] == 1).all()
    known = pd.read_csv(attributed / "tables" / "confounds.csv")
    known = known[known["quantity"] == "residual_norm"].astype({"layer": int}).set_index(["language", "layer"])["estimate"]
    for row in norms[norms["norm"] == "raw"].to_dict("records"):
        assert row["estimate"] == pytest.approx(known[row["language"], row["layer"]])
    summary = json.loads((attributed / "summary.json").read_text())
    assert summary["attribution/hi/1/total"] == pytest.approx(total["estimate"]["hi", 1])
    identity = json.loads((attributed / "manifest.json").read_text())["identity"]["attribution"]
    assert [each["width"] for each in identity.values()] == [[each] for each in widths_of(attributed)]
    page = (attributed / "report.html").read_text()
    assert "Attribution to norm and dictionary" in page
    assert "nobody knows whether a dictionary part is of the mix or of chance" in page
    # From the saved sums alone.
    assert start("analyze", tmp_path / "again", f"stats=[{attributed}]", "tracking=none") == 0
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "again" / "tables" / "attribution.csv"), table)


def widths_of(run: Path) -> list[int]:
    """Latents of both sets."""
    folders = [Path(folder) for (folder,) in yaml.safe_load((run / "config.yaml").read_text())["attribution"]]
    return [json.loads((folder / "layer_0" / "cfg.json").read_text())["d_sae"] for folder in folders]


@pytest.mark.parametrize("number", first_of([20, 14]))
def test_an_interrupted_attribution_goes_on(
    number: int, attributed: Path, attributing: tuple[str, ...], start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr("lingact.runtime.resumable_passes.SAVE_EVERY", 0.0)
        # The sample and both passes come after what is always measured.
        measured = sum(load_state(path)[2][1] for path in (attributed / "stats").glob("*.safetensors"))
        patch.setattr(LanguageModel, "residuals", at_call(measured + number, interrupt))
        assert start("analyze", folder, *attributing) == 130
    assert sum(load_state(path)[2][0] for path in (folder / "stats" / "attribution").rglob("*.safetensors"))
    assert cli.main("analyze", CONF, [f"resume={folder}"]) == 0
    for path in (attributed / "tables").iterdir():
        assert (folder / "tables" / path.name).read_bytes() == path.read_bytes(), path.name


def test_seeds_of_a_mix_say_what_chance_makes(attributing: tuple[str, ...], small_toy_model: Path, start: Start, tmp_path: Path) -> None:
    """The second seed of each mix is a copy whose latents read a little less."""
    for name in ("sae", "sae_heldout"):
        shutil.copytree(small_toy_model / name, tmp_path / "other" / name)
        for path in (tmp_path / "other" / name).glob("layer_*/sae_weights.safetensors"):
            weights = load_file(path)
            save_file(weights | {"W_enc": 0.9 * weights["W_enc"]}, path)
    sets = "attribution=[[{0}/sae,{1}/sae],[{0}/sae_heldout,{1}/sae_heldout]]".format(small_toy_model, tmp_path / "other")
    assert start("analyze", tmp_path / "run", *attributing[:-1], sets) == 0
    table = pd.read_csv(tmp_path / "run" / "tables" / "attribution.csv")
    pairs = table.groupby(["set_a", "set_b"], sort=False)["part"].unique().map(set).to_dict()
    other, first = "other/sae", f"{small_toy_model.name}/sae"
    assert pairs == {
        (first, f"{first}_heldout"): {"norm", "dictionary", "remainder", "total"},
        (other, f"{other}_heldout"): {"norm", "dictionary", "remainder", "total"},
        (first, other): {"dictionary"},
        (f"{first}_heldout", f"{other}_heldout"): {"dictionary"},
    }
    effects = pd.read_csv(tmp_path / "run" / "tables" / "dictionary_effects.csv")
    assert set(effects["seeds"]) == {2}
    assert (effects["seed_spread"] > 0).all()
    assert effects["beyond_seeds"].isin([True, False]).all()
    assert "about 22% of the pairs would exceed the spread of 2 seeds" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("attribution=[{sae}]", "attribution: 1 given; name two folders of SAEs, attribution=[SET_A,SET_B]"),
        ("attribution={sae}", "attribution: 1 given; name two folders of SAEs, attribution=[SET_A,SET_B]"),
        ("attribution=[{sae},{sae}_heldout,{sae}]", "attribution: 3 given; name two folders of SAEs, attribution=[SET_A,SET_B]"),
        ("attribution=[[],[{sae}]]", "attribution: the first mix has 0 folders and the second 1; name as many SAE seeds of one as of the other"),
        ("attribution=[[{sae},{sae}_heldout],nowhere]", "attribution: the first mix has 2 folders and the second 1"),
        ("attribution=[{sae},{sae}]", "attribution: named twice: {sae}"),
        ("attribution=[{sae},{sae}/../sae]", "attribution: named twice"),
        ("attribution=[{sae},nowhere]", "attribution: there is no folder 'nowhere'; name one with SAEs in layer_<n>, such as RUN/sae/SET of lingact saes"),
        ("attribution=[{sae},{sae}/layer_0]", "attribution: no SAE in '{sae}/layer_0/layer_0' (no sae_weights.safetensors"),
        ("attribution=[{sae},{wide}]", "attribution: SAE {wide} layer_0 reads vectors of 48, the model's residual stream has"),
        ("attribution=[{sae},{sae}_heldout] shard=1/2", "shard: shards cannot be attributed"),
        ("attribution=[{sae},{sae}_heldout] stats=[nowhere]", "attribution: not used with stats=, which needs no model"),
    ],
)  # fmt: skip
def test_mistakes_of_attribution(
    given: str, told: str, start: Start, small_toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wide = tmp_path / "wide"
    shutil.copytree(small_toy_model / "sae", wide)
    for path in wide.glob("layer_*/cfg.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"d_in": 48}))
    monkeypatch.setattr("lingact.workflows.setup.load_model", never)

    def filled(text: str) -> str:
        return text.replace("{sae}", f"{small_toy_model}/sae").replace("{wide}", str(wide))

    assert start("analyze", tmp_path / "run", *filled(given).split()) == 2
    assert filled(told) in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()


def test_an_sae_that_cannot_be_attributed_to_is_refused_before_measuring(
    small_toy_model: Path, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(small_toy_model / "sae", tmp_path / "spoiled")
    path = tmp_path / "spoiled" / "layer_1" / "sae_weights.safetensors"
    weights = load_file(path)
    save_file(weights | {"W_enc": np.full_like(weights["W_enc"], np.nan)}, path)
    monkeypatch.setattr(LanguageModel, "residuals", at_call(1, lambda: pytest.fail("measuring has begun")))
    assert start("analyze", tmp_path / "run", *FEW, f"attribution=[{small_toy_model}/sae,{tmp_path}/spoiled]") == 2
    assert "the SAE of layer 1" in capsys.readouterr().err
