"""Everything that analyze.py can measure, base against adapter, run against run, and all of it again from what was saved."""

import json
import math
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy.stats import spearmanr

from lingact.activations.edited_losses import CausalLosses
from lingact.activations.measurement import load_measurement
from lingact.files.states import load_state, save_state
from lingact.models.lm import LanguageModel
from lingact.workflows import analyze
from tests.helpers.figures import drawn
from tests.helpers.processes import Start
from tests.helpers.tiers import first_of

LANGUAGES = ("languages.high=[zh,es]", "languages.low=[ml,hi]")
CODES, OTHERS = ("en", "zh", "es", "ml", "hi"), ("zh", "es", "ml", "hi")
FULL = ("measures=full", "measures.causal.sentences=6", "measures.spliced.sentences=6", "measures.features.random_tokens=1024")
SCORES = {"zh": 0.45, "es": 0.6, "ml": 0.3, "hi": 0.35}


def read(folder: Path, name: str) -> pd.DataFrame:
    return pd.read_csv(folder / "tables" / f"{name}.csv")


def summary(folder: Path) -> dict[str, float]:
    return json.loads((folder / "summary.json").read_text())


def page(folder: Path) -> str:
    """The report without its pictures."""
    return re.sub(r"base64,[^\"]*", "", (folder / "report.html").read_text())


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def scores(runs: Path) -> Path:
    path = runs / "scores.csv"
    path.write_text("language,benchmark,score,n\n" + "".join(f"{code},arc,{score},50\n" for code, score in SCORES.items()))
    return path


@pytest.fixture(scope="module")
def full(start: Start, runs: Path, scores: Path) -> Path:
    """A run of everything."""
    with drawn():
        assert start("analyze", runs / "full", "tracking=none", *LANGUAGES, "corpus.max_sentences=40", *FULL, f"scores={scores}") == 0
    return runs / "full"


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model cannot be loaded."""
    monkeypatch.setattr("lingact.workflows.setup.load_model", lambda *_: pytest.fail("the model was loaded"))


# --- everything ----------------------------------------------------------------------------------------------------------------------------------

TABLES = {
    "gaps": {"gap_by_layer", "gap_by_range"},
    "held-out SAEs": {"gap_by_layer_heldout", "gap_by_range_heldout"},
    "random_sae": {"gap_by_layer_random", "gap_by_range_random", "gap_trained_minus_random"},
    "measures": {"gap_by_measure"},
    "confounds": {"confounds"},
    "shuffled_labels": {"shuffled_labels"},
    "similarity": {"similarity", "separation"},
    "features": {"language_features", "language_features_random", "language_feature_rates"},
    "spliced": {"spliced"},
    "causal": {"causal", "selectivity"},
    "scores": {"correlation", "scores", "side_by_side", "side_by_side_correlation"},
}
FIGURES = {
    *("gap_heatmap", "gap_heatmap_heldout", "gap_heatmap_random", "gap_groups", "measures", "confounds", "similarity", "separation"),
    *("feature_counts", "feature_rates", "spliced", "causal_matrix", "dose_response", "scores", "side_by_side"),
}
CHAPTERS = [
    "Gaps by the measuring SAEs, measured per token",
    "Gaps by the held-out SAEs, measured per token",
    "Gaps by the random-direction SAEs, measured per token",
    "Other measures of activation",
    "Confounds: text, norms and the fit of the SAEs",
    "Controls",
    "Similarity of representations",
    "Language-specific features",
    "Causal checks",
    "Benchmark scores",
    "What a reviewer would ask",
]


def test_a_full_run_leaves_every_table_and_figure(full: Path) -> None:
    assert {path.stem for path in (full / "tables").iterdir()} == set().union(*TABLES.values())
    assert {path.stem for path in (full / "figures").iterdir()} == FIGURES
    assert all(len(read(full, name)) for names in TABLES.values() for name in names)
    found = summary(full)
    assert all(math.isfinite(value) for value in found.values())
    heads = {key.partition("/")[0] for key in found}
    assert heads == {"gap", "heldout", "random", "measure", "spliced", "control", "similarity", "features", "causal", "correlation"}
    assert {f"measure/{name}/ml" for name in ("reference_active", "norm_matched")} <= set(found)


def test_a_full_report_has_every_chapter_cards_and_the_reviewers_questions(full: Path) -> None:
    text = page(full)
    assert re.findall(r"<h2>(.*?)</h2>", text) == CHAPTERS
    shown = read(full, "language_feature_rates").drop_duplicates(["layer", "latent"])
    assert len(re.findall("<article>", text)) == len(shown) > 0
    marked = re.findall(r"<mark>([^<]*)</mark>", text)
    assert len(marked) >= len(shown)
    assert all(marked)
    assert "Is it only the norm of the residual?" in text
    assert "not in this run" not in text, "a full run answers all that an analysis can"
    assert not re.search(r"\bnan\b", text, re.IGNORECASE)


def test_scores_meet_the_gaps_of_their_languages(full: Path) -> None:
    gaps = {code: summary(full)[f"gap/{code}/all"] for code in OTHERS}
    expected = spearmanr([gaps[code] for code in OTHERS], [SCORES[code] for code in OTHERS]).statistic
    assert summary(full)["correlation/arc/spearman"] == pytest.approx(expected)
    table = read(full, "correlation")
    assert set(table["n"]) == {4}
    beside = read(full, "side_by_side").set_index("language")
    assert beside["score_arc"].to_dict() == SCORES
    assert beside["gap"].to_dict() == pytest.approx(gaps)


# --- from what was saved -------------------------------------------------------------------------------------------------------------------------

OF_PASSES = {"spliced", "causal", "selectivity"}


@pytest.fixture(scope="module")
def rebuilt(full: Path, start: Start, runs: Path, scores: Path) -> Path:
    """Tables and report of the full run again, without the model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lingact.workflows.setup.load_model", lambda *_: pytest.fail("the model was loaded"))
        assert start("analyze", runs / "rebuilt", "tracking=none", f"stats={full}", f"scores={scores}") == 0
    return runs / "rebuilt"


def test_tables_and_report_are_rebuilt_without_the_model(full: Path, rebuilt: Path) -> None:
    names = {path.name for path in (full / "tables").iterdir()}
    assert {path.name for path in (rebuilt / "tables").iterdir()} == names
    differing = [name for name in sorted(names) if (full / "tables" / name).read_bytes() != (rebuilt / "tables" / name).read_bytes()]
    assert not {name.removesuffix(".csv") for name in differing} - OF_PASSES
    assert {path.name for path in (rebuilt / "figures").iterdir()} == {path.name for path in (full / "figures").iterdir()}
    assert summary(rebuilt) == pytest.approx(summary(full), rel=1e-12)
    cards = [re.findall(r"<article>.*?</article>", page(folder), re.DOTALL) for folder in (full, rebuilt)]
    assert cards[0] == cards[1]
    identities = [json.loads((folder / "manifest.json").read_text())["identity"] for folder in (full, rebuilt)]
    assert identities[0] == identities[1]


def test_tables_of_the_further_passes_are_rebuilt_to_the_byte(full: Path, rebuilt: Path) -> None:
    assert all((full / "tables" / f"{name}.csv").read_bytes() == (rebuilt / "tables" / f"{name}.csv").read_bytes() for name in OF_PASSES)


@pytest.mark.parametrize("name", sorted(OF_PASSES))
def test_tables_of_the_further_passes_are_rebuilt_in_some_order(name: str, full: Path, rebuilt: Path) -> None:
    one, other = (read(folder, name) for folder in (full, rebuilt))
    keys = [column for column in one.columns if column not in ("n", "estimate", "lo", "hi", "p", "p_holm")]
    pd.testing.assert_frame_equal(*(table.sort_values(keys, ignore_index=True) for table in (one, other)), rtol=1e-9, atol=1e-12)


@pytest.mark.usefixtures("no_model")
def test_other_resamples_change_intervals_and_no_estimate(full: Path, start: Start, tmp_path: Path) -> None:
    assert start("analyze", tmp_path / "run", "tracking=none", f"stats={full}", "statistics.resamples=157") == 0
    for name, estimate in (("gap_by_layer", "gap"), ("gap_by_measure", "gap"), ("confounds", "estimate")):
        ours, theirs = read(tmp_path / "run", name), read(full, name)
        assert ours[estimate].equals(theirs[estimate])
        assert not ours["lo"].equals(theirs["lo"])
    assert not (tmp_path / "run" / "tables" / "correlation.csv").exists(), "scores are asked for anew"


@pytest.mark.parametrize("missing", first_of(["random_tokens.safetensors", "contexts.json", "spliced.safetensors", "causal.safetensors"]))
@pytest.mark.usefixtures("no_model")
def test_statistics_that_lack_a_part_are_refused(missing: str, full: Path, start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(full, tmp_path / "copy")
    (tmp_path / "copy" / "stats" / missing).unlink()
    assert start("analyze", tmp_path / "run", "tracking=none", f"stats={tmp_path / 'copy'}") == 2
    assert f"{missing}' does not exist; the run has not saved " in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("no_model")
def test_a_sum_that_an_earlier_version_did_not_keep(full: Path, start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The measure that needs it is refused and stands in no table; all others are as they were."""
    old = shutil.copytree(full, tmp_path / "old")
    for code in CODES:
        path = old / "stats" / f"{code}.safetensors"
        header, arrays, (_, steps) = load_state(path)
        save_state(path, header, {name: array for name, array in arrays.items() if not name.endswith("/norm_matched")}, range(steps), steps)
    given = ("tracking=none", f"stats={old}", "measures.parts=[by_reference]", "measures.gap=norm_matched")
    assert start("analyze", tmp_path / "refused", *given) == 2
    assert f"measures.gap=norm_matched: the statistics in '{old}' do not have it (an earlier version made them; " in capsys.readouterr().err
    assert start("analyze", tmp_path / "run", "tracking=none", f"stats={old}") == 0
    ours, theirs = read(tmp_path / "run", "gap_by_measure"), read(full, "gap_by_measure").query("measure != 'norm_matched'")
    assert len(ours) > 0
    assert ours[["name", "measure", "place", "gap"]].values.tolist() == theirs[["name", "measure", "place", "gap"]].values.tolist()


@pytest.mark.parametrize("partial", first_of(["hi.safetensors", "random_tokens.safetensors", "spliced.safetensors", "causal.safetensors"]))
@pytest.mark.usefixtures("no_model")
def test_statistics_that_are_not_finished_are_refused(
    partial: str, full: Path, start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(full, tmp_path / "copy")
    path = tmp_path / "copy" / "stats" / partial
    header, arrays, (_, steps) = load_state(path)
    save_state(path, header, arrays, range(steps - 1), steps)
    assert start("analyze", tmp_path / "run", "tracking=none", f"stats={tmp_path / 'copy'}") == 2
    message = capsys.readouterr().err
    assert f"{steps - 1} of {steps}" in message
    assert "resume=" in message
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_full_run_interrupted_again_and_again_ends_the_same(
    full: Path, start: Start, scores: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    monkeypatch.setattr("lingact.runtime.resumable_passes.SAVE_EVERY", 0.0)
    real, left = LanguageModel.residuals, [0]

    def residuals(*given: Any, **named: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return real(*given, **named)

    monkeypatch.setattr(LanguageModel, "residuals", residuals)
    monkeypatch.setattr(analyze, "publish", lambda *_, **__: None)
    begin: Callable[[], int] = lambda: start("analyze", folder, "tracking=none", *LANGUAGES, "corpus.max_sentences=40", *FULL, f"scores={scores}")  # noqa: E731
    interruptions, code = 0, 130
    while code == 130:
        left[0] = 6 if interruptions < 4 else 60
        code = begin()
        interruptions += code == 130
    assert code == 0
    assert interruptions >= 5
    for path in (full / "stats").rglob("*.safetensors"):
        header, arrays, steps = load_state(path)
        ours = load_state(folder / "stats" / path.relative_to(full / "stats"))
        assert (ours[0], ours[2]) == (header, steps)
        assert all(np.array_equal(ours[1][name], arrays[name]) for name in arrays), path
    for name in ("index.json", "contexts.json", "links.json"):
        assert (folder / "stats" / name).read_bytes() == (full / "stats" / name).read_bytes()


# --- before and after ----------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pair:
    """The same sentences measured without and with an adapter."""

    base: Path
    adapter: Path
    trained: Path


@pytest.fixture(scope="module")
def pair(start: Start, runs: Path) -> Pair:
    assert start("train", runs / "trained", "lang=ml", "tracking=none", *LANGUAGES) == 0
    few = ("tracking=none", *LANGUAGES, "corpus.max_sentences=24")
    assert start("analyze", runs / "base", *few) == 0
    assert start("analyze", runs / "adapter", *few, f"adapter={runs / 'trained'}") == 0
    return Pair(runs / "base", runs / "adapter", runs / "trained")


CHANGES = ("change_by_layer", "change_by_range", "retention", "bits")


def test_an_adapter_adds_before_and_after(pair: Pair) -> None:
    assert {path.stem for path in (pair.adapter / "tables").iterdir()} == {path.stem for path in (pair.base / "tables").iterdir()} | set(CHANGES)
    assert "<h2>Before and after</h2>" in page(pair.adapter)
    assert "<h2>Before and after</h2>" not in page(pair.base)
    found = summary(pair.adapter)
    per_language = ("gain", "gap_closed", "overshoot", "norm_matched/gap_closed", "fvu", "fvu_before")
    expected = {f"{sae_set}{key}/{code}" for sae_set in ("", "heldout/") for key in per_language for code in OTHERS}
    assert expected <= {key.removesuffix("/undefined") for key in found}
    for name in ("gap_by_layer", "gap_by_range", "confounds"):
        one, other = (read(folder, name) for folder in (pair.adapter, pair.base))
        one = one[one["quantity"] != "bits_per_sentence"].reset_index(drop=True) if "quantity" in one else one
        pd.testing.assert_frame_equal(one, other)


@pytest.fixture(scope="module")
def edited(pair: Pair, start: Start, runs: Path) -> Path:
    """The causal checks before and after tuning, and nothing else."""
    parts = ("measures.parts=[features,spliced,causal,random_sae]", "measures.random_sae.draws=2", "measures.causal.draws=1", *FULL[1:])
    few = ("corpus.max_sentences=40", "measures.spliced.sentences=2", "measures.causal.doses=[0.0]")
    assert start("analyze", runs / "edited", "tracking=none", *LANGUAGES, *parts, *few, f"adapter={pair.trained}") == 0
    return runs / "edited"


@pytest.mark.slow
def test_an_adapter_is_edited_as_the_base_model_is(edited: Path, pair: Pair, start: Start, tmp_path: Path) -> None:
    losses = {after: CausalLosses.load(edited / "stats" / f"causal{after}.safetensors") for after in ("", "_adapter")}
    assert losses[""].arms == losses["_adapter"].arms
    measured = load_measurement(edited / "stats")[0]
    assert measured.sae_sets == ("measuring", "heldout", "random1", "random2")
    assert {variant for sae_set, variant, _ in measured.stats if sae_set.startswith("random")} == {"base"}
    by_sentence = {variant: measured.of("measuring", variant)["ml"] for variant in ("base", "adapter")}
    assert losses[""].base["ml"].sum() != losses["_adapter"].base["ml"].sum()
    some = [by_sentence["base"].nll.tolist().index(pytest.approx(value, rel=1e-4)) for value in losses[""].base["ml"]]  # pyrefly: ignore
    assert losses["_adapter"].base["ml"].tolist() == pytest.approx(by_sentence["adapter"].nll[some].tolist(), rel=1e-4)  # pyrefly: ignore
    for name in ("spliced", "causal", "selectivity"):
        table = read(edited, name)
        assert list(dict.fromkeys(table["variant"])) == ["base", "adapter", "adapter_minus_base"]
        levels = [table.loc[table["variant"] == variant, "estimate"].to_numpy() for variant in dict.fromkeys(table["variant"])]
        np.testing.assert_allclose(levels[2], levels[1] - levels[0], atol=1e-12)
        assert np.abs(levels[2]).max() > 0
    assert "Selectivity, after minus before" in page(edited)


@pytest.mark.slow
@pytest.mark.usefixtures("no_model")
def test_edits_after_tuning_are_rebuilt_and_runs_without_them_still_open(edited: Path, start: Start, tmp_path: Path) -> None:
    assert start("analyze", tmp_path / "again", "tracking=none", f"stats={edited}") == 0
    for name in ("spliced", "causal", "selectivity", "gap_by_range_random", "gap_trained_minus_random"):
        assert (tmp_path / "again" / "tables" / f"{name}.csv").read_bytes() == (edited / "tables" / f"{name}.csv").read_bytes()
    old = shutil.copytree(edited, tmp_path / "old")
    for name in ("spliced", "causal"):
        (old / "stats" / f"{name}_adapter.safetensors").unlink()
    as_it_was(old)
    assert start("analyze", tmp_path / "opened", "tracking=none", f"stats={old}") == 0
    assert "variant" not in read(tmp_path / "opened", "causal")
    ranges = read(tmp_path / "opened", "gap_by_range_random")
    assert list(dict.fromkeys(zip(ranges["draw"], ranges["draws"], strict=True))) == [("1", 1), ("mean", 1)]


def as_it_was(run: Path) -> None:
    """A run folder as it was left before there were several draws of random directions: one, called `random`, and no key that says so."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    del config["measures"]["random_sae"]
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    index = json.loads((run / "stats" / "index.json").read_text())
    index["keys"] = [[sae_set.replace("random1", "random"), variant, code] for sae_set, variant, code in index["keys"] if sae_set != "random2"]
    index["header"]["sae/random"] = index["header"].pop("sae/random1")
    del index["header"]["sae/random2"]
    (run / "stats" / "index.json").write_text(json.dumps(index))
    for path in (run / "stats").glob("*.safetensors"):
        header, arrays, (done, steps) = load_state(path)
        header = {key.replace("random1", "random"): value for key, value in header.items() if key != "sae/random2"}
        arrays = {name.replace("random1/", "random/"): array for name, array in arrays.items() if not name.startswith("random2/")}
        save_state(path, header, arrays, range(done), steps)


@pytest.mark.parametrize("sae_set", ["measuring", "heldout"])
def test_gains_are_those_of_the_statistics_of_base_and_adapter(sae_set: str, pair: Pair) -> None:
    measured = load_measurement(pair.adapter / "stats")[0]
    table = read(pair.adapter, "change_by_layer")
    table = table[table["sae_set"] == sae_set].set_index(["language", "quantity", "layer"])["estimate"].sort_index()
    activation = {
        variant: {code: s.activation.sum(axis=1) / s.tokens.sum() for code, s in measured.of(sae_set, variant).items()}
        for variant in ("base", "adapter", "norm_matched")
    }
    assert set(table.index.get_level_values("language")) == set(CODES)
    for code in CODES:
        base, adapter, matched = (activation[variant][code] for variant in ("base", "adapter", "norm_matched"))
        reference = activation["base"]["en"]
        assert not np.allclose(base, adapter, rtol=1e-6), "training did something"
        np.testing.assert_allclose(table[code, "gain"], adapter / base - 1, rtol=1e-9)
        np.testing.assert_allclose(table[code, "gap_before"], 1 - base / reference, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(table[code, "gap_after"], 1 - adapter / reference, rtol=1e-9)
        np.testing.assert_allclose(table[code, "gap_after_norm_matched"], 1 - matched / reference, rtol=1e-9)


def test_the_adapter_changes_nothing_of_the_base(pair: Pair) -> None:
    one, other = (load_measurement(folder / "stats")[0] for folder in (pair.base, pair.adapter))
    for code in CODES:
        base, also = one.of("measuring", "base")[code].arrays(), other.of("measuring", "base")[code].arrays()
        assert all(np.array_equal(base[name], also[name]) for name in base)


@pytest.mark.usefixtures("no_model")
def test_comparing_base_and_adapter_runs_gives_the_adapter_runs_own_changes(pair: Pair, start: Start, tmp_path: Path) -> None:
    assert start("analyze", tmp_path / "run", "tracking=none", *LANGUAGES, f"compare=[{pair.base},{pair.adapter}]") == 0
    for name in ("change_by_layer", "change_by_range"):
        pd.testing.assert_frame_equal(read(tmp_path / "run", name), read(pair.adapter, name), check_exact=True)
    kept = read(pair.adapter, "retention")
    kept = kept[kept["quantity"] != "bits_per_byte"].reset_index(drop=True)  # the base run has no cross-entropies
    pd.testing.assert_frame_equal(read(tmp_path / "run", "retention"), kept, check_exact=True)
    numbers = summary(pair.adapter)
    assert all(numbers[key] == value for key, value in summary(tmp_path / "run").items())
    assert f"From {pair.base.name} to {pair.adapter.name}" in page(tmp_path / "run")


@pytest.mark.usefixtures("no_model")
def test_a_run_compared_with_itself_has_not_changed(pair: Pair, start: Start, tmp_path: Path) -> None:
    assert start("analyze", tmp_path / "run", "tracking=none", *LANGUAGES, f"compare=[{pair.base},{pair.base}]") == 0
    table = read(tmp_path / "run", "change_by_layer")
    gain, beyond = (table[table["quantity"] == quantity] for quantity in ("gain", "overshoot"))
    assert len(gain) == len(beyond) == 2 * len(CODES) * 3
    assert not gain[["estimate", "lo", "hi"]].to_numpy().any()
    assert not beyond["estimate"].any()
    assert table.loc[table["quantity"] == "gap_after_norm_matched", "estimate"].isna().all(), "there is no adapter to match"
    closed = read(tmp_path / "run", "change_by_range").query("quantity == 'gap_closed' and language != 'en'")["estimate"]
    assert closed.notna().any()
    assert not closed.dropna().any()
    found = summary(tmp_path / "run")
    assert {found[f"gain/{code}"] for code in OTHERS} == {0.0}
    assert found["norm_matched/gap_closed/ml/undefined"] == 1
    assert found["retention/activation"] == 1
    assert found["retention/profile"] == pytest.approx(1)
    assert "retention/kl" not in found


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["corpus.max_sentences=20"], "differ in sentences, corpus; a comparison needs the same sentences, languages, layers and SAEs"),
        pytest.param(["languages.low=[ml]"], "differ in languages, corpus, sentences; a comparison needs", marks=pytest.mark.slow),
        pytest.param(["sae.measuring.release={sae_heldout}"], "differ in sae/measuring; a comparison needs", marks=pytest.mark.slow),
        pytest.param(["sae.layers=[0,1]"], "differ in layers, sae/heldout, sae/measuring; a comparison needs", marks=pytest.mark.slow),
    ],
    ids=["corpus", "languages", "saes", "layers"],
)
def test_runs_that_are_not_comparable_are_refused(
    overrides: list[str],
    message: str,
    pair: Pair,
    start: Start,
    small_toy_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = [override.format(sae_heldout=small_toy_model / "sae_heldout") for override in overrides]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(analyze, "publish", lambda *_, **__: None)
        assert start("analyze", tmp_path / "other", "tracking=none", *LANGUAGES, "corpus.max_sentences=24", *given) == 0
    capsys.readouterr()
    assert start("analyze", tmp_path / "run", "tracking=none", *LANGUAGES, f"compare=[{pair.base},{tmp_path / 'other'}]") == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("no_model")
def test_what_is_no_run_is_refused(pair: Pair, start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def told(*overrides: str) -> str:
        assert start("analyze", tmp_path / "run", "tracking=none", *LANGUAGES, *overrides) == 2
        assert not (tmp_path / "run").exists()
        return capsys.readouterr().err

    (tmp_path / "empty").mkdir()
    assert "has no statistics" in told(f"compare=[{pair.base},{tmp_path / 'empty'}]")
    assert "has no statistics" in told(f"compare=[{tmp_path / 'nowhere'},{pair.base}]")
    assert "1 given; name two runs, compare=[BEFORE,AFTER]" in told(f"compare={pair.base}")
    assert "differ in sentences, corpus" in told(f"compare=[{pair.trained},{pair.base}]")
    assert "id not measured in" in told(f"compare=[{pair.base},{pair.base}]", "languages.low=[ml,hi,id]")
    assert f"stats: '{tmp_path / 'empty'}' has no statistics (no stats/index.json)" in told(f"stats={tmp_path / 'empty'}")
    assert f"stats: '{pair.trained}' is not a run of analyze.py" in told(f"stats={pair.trained}")


# --- scores --------------------------------------------------------------------------------------------------------------------------------------

HEAD = "language,benchmark,score\n"
REST = "zh,arc,0.5\nes,arc,0.6\nml,arc,0.3\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEAD + REST + "hin,arc,0.3\n", r"scores.csv, line 5: unknown language 'hin'; did you mean"),
        ("language,benchmark,accuracy\n" + REST, r"scores.csv has no column 'score' \(needed: language, benchmark, score; there: .*accuracy\)"),
        (HEAD + REST + "hi,arc,good\n", r"scores.csv, line 5: score 'good' is not a finite number; fix it, or leave the row out"),
        (HEAD + REST, r"'arc' has scores for 3 of the analysed languages, but a correlation needs 4 besides the reference; missing: hi"),
        (HEAD + REST + "en,arc,0.9\nru,arc,0.4\n", r"'arc' has scores for 3 of the analysed languages"),
    ],
    ids=["unknown_language", "unknown_column", "no_number", "too_few", "reference_and_strangers_do_not_count"],
)
@pytest.mark.usefixtures("no_model")
def test_scores_that_cannot_be_used_are_refused_before_measuring(
    text: str, message: str, start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "scores.csv"
    path.write_text(text)
    assert start("analyze", tmp_path / "run", "tracking=none", *LANGUAGES, f"scores={path}") == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "run").exists()


def evaluated(folder: Path) -> Path:
    """What eval.py leaves of accuracies, with rows that must not be taken."""
    rows = [
        {"model": model, "task": task, "language": code, "kind": kind, "metric": metric, "n": 50, "estimate": score * (task == "arc" or 0.5) + shift}
        for task in ("arc", "all")
        for code, score in {**SCORES, "en": 0.9}.items()
        for model, kind, metric, shift in (
            ("base", "all", "acc", 0),
            ("base", "read", "acc", 1),
            ("base", "all", "acc_norm", 2),
            ("adapter", "all", "acc", 3),
        )
    ]
    (folder / "tables").mkdir(parents=True)
    pd.DataFrame(rows).to_csv(folder / "tables" / "accuracy.csv", index=False)
    return folder


@pytest.mark.usefixtures("no_model")
def test_scores_of_an_evaluation_run(full: Path, start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ("tracking=none", f"stats={full}")
    assert start("analyze", tmp_path / "run", *given, f"scores={evaluated(tmp_path / 'evaluated')}") == 0
    pd.testing.assert_frame_equal(
        read(tmp_path / "run", "correlation")
        .query("benchmark == 'arc' and control == 'none'")[["place", "method", "estimate", "p"]]
        .reset_index(drop=True),
        read(full, "correlation").query("control == 'none'")[["place", "method", "estimate", "p"]].reset_index(drop=True),
    )
    assert set(read(tmp_path / "run", "scores")["benchmark"]) == {"arc", "all"}
    capsys.readouterr()
    (tmp_path / "empty").mkdir()
    assert start("analyze", tmp_path / "other", *given, f"scores={tmp_path / 'empty'}") == 2
    assert "it has no tables/accuracy.csv; give the folder of a finished run of eval.py, or a CSV file" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
