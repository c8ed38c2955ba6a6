"""Recipes against each other: differences that are planted, worked out by hand, or refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from lingact.activations.feature_stats import FeatureStats
from lingact.activations.measurement import ADAPTER, BASE, NORM_MATCHED, Measurement
from lingact.analysis.changes import Variants, change
from lingact.analysis.contrasts import Numbers, Trained, pair_table, recipe_table
from lingact.config.data import LanguagesConfig
from lingact.config.measures import Statistics
from lingact.errors import UserError
from lingact.files.atomic import write_json
from lingact.report import sweep
from lingact.report.recipes import recipes_text, wide_recipes
from lingact.statistics.bootstrap import Resampling
from tests.helpers.sums import keep, stats_of

LANGUAGES = LanguagesConfig(reference="en", high=("es",), low=("hi",))
SETTINGS = Statistics(pooling="token", resamples=300, confidence=0.95, early="third", deep="third")
SENTENCES = 60


def judged(closed: float, *, seed: int = 0, count: int = SENTENCES, adapter: bool = True, header: dict[str, str] | None = None) -> Measurement:
    """Hindi has half of English's activation at two layers, of which the adapter closes a share; how much in which sentence depends on the seed.

    The noise of the base model is common to all.
    """
    common, own = np.random.default_rng(99), np.random.default_rng(seed)
    tokens = common.integers(3, 12, count)
    english = tokens * common.gamma(20, 0.5, (2, count))
    hindi = 0.5 * english * (1 + 0.3 * common.standard_normal((1, count)))
    after = hindi + closed * (0.5 * english) * (1 + 0.2 * own.standard_normal((2, count)))
    levels = {"en": (english, 0.98 * english), "hi": (hindi, after), "es": (english, english)}
    known = {"model": "m", "sae/measuring": "s", "sentences": "x", "adapter": f"a{closed}{seed}"} | (header or {})
    stats = {}
    for code, (before, changed) in levels.items():
        for variant, activation in ((BASE, before), *(((ADAPTER, changed), (NORM_MATCHED, changed)) if adapter else ())):
            spoken = {"nll": tokens * 2.0, "kl": tokens * (0.0 if variant == BASE else 0.01), "predicted": tokens}
            made: FeatureStats = stats_of(activation, tokens, **spoken)
            made.header.update(known | {"sae_set": "measuring", "variant": variant, "language": code})
            stats["measuring", variant, code] = made
    return Measurement(stats)


class Runs(dict[str, Measurement]):
    """Run folders by name; what is put in is written into its folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def add(self, more: dict[str, Measurement]) -> None:
        for name, measured in more.items():
            keep(measured, self.folder / name, next(iter(measured.stats.values())).sentence_ids)
            self[name] = measured


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runs:
    monkeypatch.chdir(tmp_path)
    return Runs(tmp_path)


def trained(recipe: str, name: str, layers: tuple[int, ...] | str = "all", targets: tuple[str, ...] = ("hi",)) -> Trained:
    return Trained(recipe, Path(name), targets, layers)  # pyrefly: ignore[bad-argument-type]


def test_a_planted_difference_is_found_with_its_size(runs: Runs) -> None:
    runs.add({f"{name}{seed}": judged(closed, seed=seed) for name, closed in (("a", 0.9), ("b", 0.5)) for seed in range(3)})
    table = recipe_table([trained(name[0], name) for name in runs], LANGUAGES, SETTINGS, 0).set_index(["language", "quantity"])
    row = table.loc[("hi", "gap_closed")]
    assert row[["one", "other", "sae_set", "n", "seeds_one", "seeds_other", "covers"]].tolist() == [
        *("a", "b", "measuring", SENTENCES, 3, 3, "sentences and seeds")
    ]
    assert row["value_one"] == pytest.approx(0.9, abs=0.02)
    assert row["estimate"] == pytest.approx(row["value_one"] - row["value_other"])
    assert row["lo"] < 0.4 < row["hi"]
    assert row["hi"] - row["lo"] < 0.2
    assert row["p_holm"] < 0.001
    assert table.loc[("en", "activation"), ["estimate", "lo", "hi", "p"]].tolist() == pytest.approx([0, 0, 0, 1], abs=1e-12)
    assert set(table.loc["en"].index) == {"activation", "activation_worst_layer", "bits_per_byte", "kl"}
    assert (table.loc[("hi", "fvu_ratio"), "estimate"], table.loc[("hi", "fvu_ratio"), "p"]) == (0, 1)


def test_it_is_paired(runs: Runs) -> None:
    """Each gap closed is uncertain by the base's noise, which both share: their difference is far more certain."""
    runs.add({"a": judged(0.9), "b": judged(0.8)})
    row = recipe_table([trained("a", "a"), trained("b", "b")], LANGUAGES, SETTINGS, 0).set_index(["language", "quantity"]).loc[("hi", "gap_closed")]
    draws = [change(Variants.of(runs[name], "measuring"), "hi", LANGUAGES, SETTINGS, (0, 2), 0).closed for name in ("a", "b")]
    assert [row["lo"], row["hi"]] == pytest.approx(np.quantile((draws[0] - draws[1])[1:], [0.025, 0.975]))
    alone = [np.subtract(*np.quantile(own[1:], [0.975, 0.025])) for own in draws]
    assert row["hi"] - row["lo"] < 0.5 * np.hypot(*alone)
    assert row["covers"] == "sentences"


def test_the_same_twice_is_no_difference(runs: Runs) -> None:
    runs.add({f"{name}{seed}": judged(0.7, seed=seed) for name in "ab" for seed in range(2)})
    table = recipe_table([trained(name[0], name) for name in runs], LANGUAGES, SETTINGS, 0)
    assert not table["estimate"].any()
    assert (table["p"] == 1).all()
    assert (table["p_holm"] == 1).all()


def test_gaps_are_closed_over_the_layers_of_all_losses(runs: Runs) -> None:
    runs.add({"a": judged(0.9), "b": judged(0.5)})
    one, both, every = (recipe_table([trained("a", "a", (0,)), trained("b", "b", layers)], LANGUAGES, SETTINGS, 0) for layers in ((0,), (2,), "all"))
    pd.testing.assert_frame_equal(both, every)
    closed = [table.set_index("quantity").loc["gap_closed", "value_one"] for table in (one, both)]
    wanted = [change(Variants.of(runs["a"], "measuring"), "hi", LANGUAGES, SETTINGS, layers, 0).closed[0] for layers in ((0,), (0, 2))]
    assert closed == pytest.approx(wanted)


def test_holm_goes_over_all_pairs_of_recipes_for_the_same_languages(runs: Runs) -> None:
    runs.add({"a": judged(0.9), "b": judged(0.8), "c": judged(0.79), "d": judged(0.5)})
    given = [trained(name, name) for name in "abc"] + [trained("d", "d", targets=("es",))]
    table = recipe_table(given, LANGUAGES, SETTINGS, 0)
    closed = table[table["quantity"] == "gap_closed"]
    assert closed[["one", "other"]].to_numpy().tolist() == [["a", "b"], ["a", "c"], ["b", "c"]], "d was trained for another language"
    assert closed["p_holm"].max() >= closed["p"].max()
    assert closed["p_holm"].min() == pytest.approx(3 * closed["p"].min())


def test_recipes_that_were_not_judged_alike_are_refused(runs: Runs) -> None:
    runs.add({"a": judged(0.9), "few": judged(0.9, count=30), "base": judged(0.9, adapter=False), "other": judged(0.9, header={"model": "n"})})
    for name, message in (
        ("few", "'a' and 'few' differ in sentence ids; recipes are compared on one base model"),
        ("other", "'a' and 'other' differ in model; "),
        ("base", "'base' has measured no adapter; to compare recipes, give runs of lingact train"),
    ):
        with pytest.raises(UserError, match=message):
            recipe_table([trained("a", "a"), trained("b", name)], LANGUAGES, SETTINGS, 0)
    with pytest.raises(UserError, match="'a' has not measured ml "):
        recipe_table([trained("a", "a", targets=("hi", "ml"))], LANGUAGES, SETTINGS, 0)
    with pytest.raises(UserError, match="'a' has not measured de "):
        recipe_table([trained("a", "a")], LanguagesConfig(reference="de", high=("es",), low=("hi",)), SETTINGS, 0)


def test_blocks_need_the_places_of_the_sentences(runs: Runs) -> None:
    runs.add({"a": judged(0.9), "b": judged(0.8)})
    blocks = SETTINGS.model_copy(update={"block": 5})
    with pytest.raises(UserError, match=r"statistics.block=5: the statistics in 'a' do not say which sentences are neighbours"):
        recipe_table([trained("a", "a"), trained("b", "b")], LANGUAGES, blocks, 0)
    for name, first in (("a", 0), ("b", 3)):
        index = Path(name, "stats", "index.json")
        write_json(index, json.loads(index.read_text()) | {"rows": list(range(first, first + SENTENCES))})
    with pytest.raises(UserError, match="'a' and 'b' differ in places of the sentences in the source"):
        recipe_table([trained("a", "a"), trained("b", "b")], LANGUAGES, blocks, 0)


def test_a_gap_that_was_not_there_cannot_be_compared(runs: Runs) -> None:
    runs.add({name: judged(0.9) for name in "ab"})
    table = recipe_table([trained("a", "a", targets=("es",)), trained("b", "b", targets=("es",))], LANGUAGES, SETTINGS, 0).set_index("quantity")
    assert table.loc["gap_closed", ["estimate", "lo", "hi", "p", "p_holm"]].isna().all()
    assert table.loc["fvu_ratio", "p"] == 1


@pytest.mark.parametrize("seeds", [1, 3])
def test_intervals_cover_the_true_difference(seeds: int) -> None:
    """200 pairs of recipes that close .8 and .7 of a gap on 80 sentences, seeds of sd .03; seed fixed beforehand. One seed: about that adapter."""
    rng, weights = np.random.default_rng(20261128), Resampling.of_sentences(80).weights(300, 1) / 80
    hits = 0
    for _ in range(200):
        noise, numbers, truth = 0.2 * rng.standard_normal(80), {}, {}
        for name, level in (("a", 0.8), ("b", 0.7)):
            effects = level + 0.03 * rng.standard_normal(seeds)
            truth[name] = level if seeds > 1 else effects[0]
            own: list[Numbers] = [{("m", "hi", "gap_closed"): weights @ (effect + noise + 0.1 * rng.standard_normal(80))} for effect in effects]
            numbers[name] = own
        row = pair_table(numbers, dict.fromkeys("ab", frozenset({"hi"})), resampling=Resampling.of_sentences(80), confidence=0.95).iloc[0]
        hits += row["lo"] <= truth["a"] - truth["b"] <= row["hi"]
    assert 0.92 <= hits / 200 <= 0.985


# --- where they are told -------------------------------------------------------------------------------------------------------------------------


def job(sweep_folder: Path, number: int, loss: str, seed: int, *, config: dict[str, Any] | None = None) -> None:
    """A complete training job of a sweep; its statistics are to be put into its folder."""
    told = {"lang": ["hi"], "seed": seed, "languages": LANGUAGES.model_dump(mode="json"), "statistics": SETTINGS.model_dump(mode="json")}
    told |= {"loss": {"control": "none", "gap": {"weight": 1.0, "objective": loss, "layers": "all"}}} | (config or {})
    run = sweep_folder / str(number)
    run.mkdir(parents=True, exist_ok=True)
    (run / "config.yaml").write_text(yaml.safe_dump(told))
    write_json(run / "summary.json", {"gap_closed/hi": 0.5})
    record = {"job": number, "overrides": {"loss": loss, "seed": str(seed)}, "status": "complete", "problem": None, "folder": str(run)}
    write_json(sweep_folder / ".jobs" / f"{number}.json", record)


def test_a_sweep_ends_with_its_recipes_against_each_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = Runs(tmp_path)
    for number, (loss, closed, seed) in enumerate(
        (loss, closed, seed) for loss, closed in (("profile", 0.9), ("diffmean", 0.5)) for seed in range(2)
    ):
        runs.add({str(number): judged(closed, seed=seed)})
        job(tmp_path, number, loss, seed)
    sweep.write_tables(tmp_path)
    table = pd.read_csv(tmp_path / "recipes.csv")
    given = [trained(f"loss={loss}", str(tmp_path / str(number))) for number, loss in enumerate(["profile"] * 2 + ["diffmean"] * 2)]
    pd.testing.assert_frame_equal(table, recipe_table(given, LANGUAGES, SETTINGS, 0))
    row = table[table["quantity"] == "gap_closed"].iloc[0]
    assert (row["one"], row["other"], row["seeds_one"], row["covers"]) == ("loss=profile", "loss=diffmean", 2, "sentences and seeds")
    assert row["estimate"] == pytest.approx(0.4, abs=0.05)
    assert "gap closed by the measuring SAEs: 1 of 1" in " ".join(capsys.readouterr().out.split())
    assert "Difference in gap closed, norm-matched" in (tmp_path / "report.html").read_text()


def test_a_sweep_over_what_is_judged_says_why_there_is_no_test(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = Runs(tmp_path)
    runs.add({"0": judged(0.9), "1": judged(0.9, count=30)})
    for number, loss in enumerate(("profile", "diffmean")):
        job(tmp_path, number, loss, 0)
    sweep.write_tables(tmp_path)
    assert not (tmp_path / "recipes.csv").exists()
    assert "no paired test between recipes: compare: " in " ".join(capsys.readouterr().out.split())


def test_what_one_seed_cannot_tell_is_said() -> None:
    numbers: dict[str, list[Numbers]] = {
        name: [{("measuring", "hi", "gap_closed"): value + np.array([0.0, -0.01, 0.01, 0.0])}] for name, value in (("a", 0.9), ("b", 0.5))
    }
    table = pair_table(numbers, dict.fromkeys("ab", frozenset({"hi"})), resampling=Resampling.of_sentences(50), confidence=0.95)
    text = recipes_text(table, 0.95)
    assert "gap closed by the measuring SAEs: 1 of 1" in text
    assert "another seed may differ by more than the interval" in text
    [(title, rows)] = wide_recipes(table).items()
    assert title == "Difference in gap closed"
    assert rows.to_numpy().tolist() == [["a", "b", "hi", "+0.400 [0.400, 0.400]", "<.001"]]
