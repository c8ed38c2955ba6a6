"""The report says what the numbers say, stands alone, and lets nobody's text become markup."""

import base64
import re
from html.parser import HTMLParser
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from lingact.analysis import tables
from lingact.analysis.tables import Disparities
from lingact.config.data import LanguagesConfig
from lingact.config.jobs import AnalyzeConfig, EvalConfig, TrainConfig
from lingact.config.validation import validate
from lingact.files.atomic import write_json
from lingact.report import evaluation, gaps, training
from lingact.report.page import Card, Section, measured_facts, run_facts, write_report
from lingact.report.phrases import reading_gaps
from lingact.statistics.bootstrap import Resampling
from tests.helpers.paths import CONF

HOSTILE = "<script>alert('x')</script>\"&/a b"
LANGUAGES = {"reference": "en", "high": ["zh", "es"], "low": ["ml", "hi", "id"]}


def shipped(option: str) -> dict[str, Any]:
    """An option as it stands in `conf/`."""
    return yaml.safe_load((CONF / f"{option}.yaml").read_text(encoding="utf-8"))


JOB: dict[str, Any] = {
    "seed": 3,
    "device": "cpu",
    "batch_tokens": 64,
    "model": {"name": HOSTILE, "revision": None, "dtype": "float32", "attention": "eager", "context": 64},
    "sae": {"measuring": {"release": "r", "id": "layer_{layer}"}, "heldout": None, "layers": "all"},
    "corpus": {"kind": "files", "path": HOSTILE, "max_sentences": None, "splits": {"train": 0.5, "dev": 0.25, "heldout": 0.25}},
    "languages": LANGUAGES,
    "statistics": {"pooling": "token", "resamples": 1000, "block": None, "confidence": 0.95, "early": "third", "deep": "third"},
    "tracking": {"mode": "disabled", "project": "p", "entity": None, "group": None, "tags": []},
}
TRAIN = JOB | {
    "lang": ["ml"],
    "split": "heldout",
    "cache": None,
    "loss": shipped("loss/gap_and_retention"),
    "peft": shipped("peft/lora"),
    "optim": shipped("optim/adamw"),
    "trainer": shipped("trainer/default"),
}
ANALYZE = JOB | {
    "devices": 1,
    "nodes": 1,
    "split": "all",
    "adapter": None,
    "measures": {
        "gap": "mean",
        "top_k": 10,
        "parts": [],
        "similarity": {"sentences": 10},
        "features": {"min_rate": 0.01, "per_layer": 5, "alpha": 0.05, "random_tokens": 800, "cards": 1},
        "spliced": {"sentences": 2},
        "causal": {"mode": "scale", "doses": [0], "features": "language_specific", "per_language": 1, "layers": "all", "draws": 1, "sentences": 2},
        "random_sae": {"draws": 2},
    },
    "scores": [],
    "stats": [],
    "compare": [],
    "shard": "1/1",
}
EVAL = {key: JOB[key] for key in ("seed", "device", "batch_tokens", "model", "corpus", "languages", "tracking")} | {
    "devices": 1,
    "nodes": 1,
    "adapter": None,
    "tasks": {"benchmarks": ["micro_arc"], "own": {}, "missing": "refuse", "items": "shared", "limit": None, "fewshot": None, "batch_size": 1},
    "text_split": None,
    "contamination": {"words": 8, "share": 0.5},
    "resamples": 1000,
    "block": None,
    "confidence": 0.95,
    "power": 0.8,
    "cache": None,
}
IDENTITY = {"model": "ab" * 32, "corpus": "cd" * 32, "context": "64", "masking": "special tokens out"}


class Page(HTMLParser):
    """Tags with their attributes, and the text outside scripts and styles."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run folder with a manifest and a figure."""
    identity = {
        "model": {"name": HOSTILE, "revision": None, "sha256": "ab" * 32, "dtype": "float32"},
        "sae": {
            "measuring": {"release": "micro", "id": "layer_{layer}", "layers": [0], "sha256": "ef" * 32, "architecture": ["jumprelu"], "width": [64]}
        },
        "corpus": {"name": "x.jsonl", "sha256": "cd" * 32, "sentences": 9},
        "adapter": None,
    }
    manifest = {"job": "analyze", "status": "running", "command": f"analyze.py corpus.path={HOSTILE}", "started": "2026-01-01T00:00:00Z"}
    manifest |= {"seed": 3, "git": None, "identity": identity}
    write_json(tmp_path / "manifest.json", manifest)
    Image.new("RGB", (320, 8)).save(tmp_path / "gap_heatmap.png")
    return tmp_path


def found() -> Disparities:
    """Malayalam falls short at all four layers, Hindi at two (not more than half), Indonesian lies above at three, Chinese and Spanish at none."""
    noise = np.random.default_rng(0).normal(0, 0.02, (500, 4))
    noise[0] = 0
    where = {"zh": [0, 0, 0, 0], "es": [0, 0, 0, 0], "ml": [0.3, 0.3, 0.3, 0.5], "hi": [0.3, 0.3, 0, 0], "id": [0, -0.2, -0.2, -0.2]}
    gaps = {code: np.array(levels) + noise for code, levels in where.items()}
    gaps |= {"low": np.mean([gaps[code] for code in ("ml", "hi", "id")], axis=0), "high": gaps["zh"]}
    gaps["low_vs_high"] = 1 - (1 - gaps["low"]) / (1 - gaps["high"])
    activations = {"en": np.full((500, 4), 10.0)} | {code: 10 * (1 - gaps[code]) for code in where}
    return Disparities((0, 1, 2, 3), {"early": [0], "deep": [3], "all": [0, 1, 2, 3]}, activations, gaps, Resampling.of_sentences(9), 0.95)


def change_frames(codes: tuple[str, ...] = ("ml", "hi"), closed: tuple[float, float, float] = (0.8, 0.7, 0.9)) -> dict[str, pd.DataFrame]:
    values = {"gap_before": -0.25, "gap_after": -0.05, "gap_after_norm_matched": -0.12, "gain": 0.2}
    values |= {"fvu_before": 0.1, "fvu_after": 0.14, "fvu_ratio": 1.4, "l0_before": 140.0, "l0_after": 144.0, "overshoot": 0.01}
    rows, layers = [], []
    for sae_set in ("measuring", "heldout"):
        for code in codes:
            key = {"sae_set": sae_set, "language": code, "n": 9}
            layers += [
                key | {"layer": layer, "quantity": name, "estimate": x, "lo": x - 0.03, "hi": x + 0.03}
                for layer in (2, 5)
                for name, x in values.items()
            ]
            for label in ("early", "deep", "all"):
                rows += [key | {"range": label, "quantity": name, "estimate": x, "lo": x - 0.03, "hi": x + 0.03} for name, x in values.items()]
            for name in ("gap_closed", "gap_closed_norm_matched"):
                rows.append(key | {"range": "loss", "quantity": name} | dict(zip(("estimate", "lo", "hi"), closed, strict=True)))
    kept = {"activation": 1.01, "profile": 0.998, "bits_per_byte": 1.012, "kl": 0.0123}
    return {
        "change_by_range": pd.DataFrame(rows),
        "change_by_layer": pd.DataFrame(layers),
        "retention": pd.DataFrame(
            {"sae_set": sae_set, "language": "en", "quantity": name, "n": 9, "estimate": x, "lo": x - 0.01, "hi": x + 0.01}
            for sae_set in ("measuring", "heldout")
            for name, x in kept.items()
        ),
        "bits": pd.DataFrame(
            {"language": code, "variant": variant, "quantity": quantity, "n": 9, "estimate": 0.5, "lo": 0.4, "hi": 0.6}
            for code in ("en", *codes)
            for variant, quantity in (*product(("base", "adapter"), ("bits_per_byte", "bits_per_sentence")), ("adapter_over_base", "bits_per_byte"))
        ),
    }


# --- rows ---


def test_gap_rows_carry_intervals_and_groups() -> None:
    languages = LanguagesConfig.model_validate(LANGUAGES)
    rows = {row["language"]: row for row in gaps.gap_rows(tables.range_table(found()), languages)}
    assert list(rows["ml"]) == ["language", "name", "group", "early", "deep", "all"]
    assert (rows["ml"]["name"], rows["ml"]["group"], rows["zh"]["group"], rows["low"]["name"]) == ("Malayalam", "low", "high", "")
    assert re.fullmatch(r"\+0\.30 \[0\.2\d, 0\.3\d\]", rows["ml"]["early"])
    assert rows["id"]["deep"].startswith("-0.20 [-0.2")
    assert rows["zh"]["all"].startswith("0.00 [-0.0")
    largest = {row["language"]: row for row in gaps.gap_rows(tables.range_table(found()), languages, statistic="max")}
    assert largest["ml"]["all"].startswith("+0.50")


def test_train_rows_fit_a_terminal_and_carry_the_cautions() -> None:
    rows = training.train_rows(change_frames(), ("ml",))
    assert [(row["SAEs"], row["measure"]) for row in rows][:5] == [
        ("measuring", "gap early"), ("measuring", "gap deep"), ("measuring", "gap all"), ("measuring", "gap closed"), ("heldout", "gap early"),
    ]  # fmt: skip
    assert rows[0]["after"] == "-0.05 [-0.08, -0.02]"
    assert rows[3]["after"] == "+0.80 [0.70, 0.90]"
    assert all(row["norm-matched"] and row["FVU, after / base"] == "1.40 [1.37, 1.43]" and row["L0"] == "140->144" for row in rows)
    widths = [max(len(row[name]) for row in [*rows, {name: name}]) for name in rows[0]]
    assert sum(widths) + 2 * (len(widths) - 1) <= 110


def test_undefined_gap_closed_is_a_dash() -> None:
    frames = change_frames(closed=(np.nan, np.nan, np.nan))
    assert training.train_rows(frames, ("ml",))[3]["after"] == "-"
    assert "no layer of the loss had a gap" in training.training_text(frames, ("ml",), "en")


def test_retention_rows() -> None:
    rows = training.retention_rows(change_frames())
    assert rows[0] == {
        "measure": "activation, after / base",
        "unchanged": "1",
        "measuring": "1.010 [1.000, 1.020]",
        "heldout": "1.010 [1.000, 1.020]",
    }
    assert [row["unchanged"] for row in rows] == ["1", "1", "1", "0"]
    assert rows[1]["measuring"] == "0.998"
    assert rows[3]["measuring"] == "0.0123 [0.0023, 0.0223]"


def test_tables_of_the_page_carry_intervals() -> None:
    pages = training.train_tables(change_frames(("ml", "hi", "en")), ("ml",), "en")
    trained, others = pages["Trained languages"], pages["Languages that were not trained"]
    assert trained.loc[0, ["before", "after", "gain"]].tolist() == ["-0.25 [-0.28, -0.22]", "-0.05 [-0.08, -0.02]", "20% [17%, 23%]"]
    assert set(trained["FVU"]) == {"0.10->0.14"}
    assert others.to_dict("records")[0] == {
        "language": "hi",
        "SAEs": "measuring",
        "gap closed": "+0.80 [0.70, 0.90]",
        "norm-matched": "+0.80 [0.70, 0.90]",
        "FVU, after / base": "1.40 [1.37, 1.43]",
        "L0": "140->144",
        "bits per byte, after / base": "0.500 [0.400, 0.600]",
    }
    assert set(others["language"]) == {"hi"}, "neither the target nor the reference"
    by_layer = pages["Trained languages, layer by layer"]
    assert by_layer["layer"].tolist() == ["2", "5"] * 2
    assert set(by_layer["overshoot"]) == {"+0.01 [-0.02, 0.04]"}
    bits = next(table for title, table in pages.items() if title.startswith("Bits"))
    assert bits["language"].tolist() == ["ml", "hi", "en"]
    assert bits.loc[0, ["base", "after / base", "per sentence, adapter"]].tolist() == ["0.500 [0.400, 0.600]"] * 2 + ["0.50 [0.40, 0.60]"]


# --- words ---


def test_analysis_text_counts_languages() -> None:
    shown = found()
    text = gaps.analysis_text(tables.layer_table(shown), tables.range_table(shown), LanguagesConfig.model_validate(LANGUAGES), 0.95)
    low, high, counts, group = text.split(". ")
    assert low == (
        "Of 3 medium-to-low-resource languages, at more than half of the 4 layers: 1 (Malayalam) falls short of English; 1 (Indonesian) lies above "
        "English; 1 (Hindi) does neither"
    )
    assert high == "Of 2 high-resource languages, at more than half of the 4 layers: 2 (Chinese, Spanish) do neither"
    assert counts == "A layer counts if the language's 95% band, which is simultaneous over layers, excludes 0"
    assert "falls short of the high-resource group: gap +0.1" in group


@pytest.mark.parametrize(("shift", "verdict"), [(-0.9, "lies above"), (0.9, "falls short of")])
def test_analysis_text_follows_the_sign(shift: float, verdict: str) -> None:
    shown = found()
    shown.gaps["low_vs_high"] = shown.gaps["low_vs_high"] + shift
    text = gaps.analysis_text(tables.layer_table(shown), tables.range_table(shown), LanguagesConfig.model_validate(LANGUAGES), 0.95)
    assert f"group {verdict} the high-resource group" in text


@pytest.mark.parametrize(
    ("closed", "said"),
    [
        ((0.8, 0.7, 0.9), "80% [70%, 90%] of the gap was closed"),
        ((-0.8, -0.9, -0.7), "-80% [-90%, -70%] of the gap was closed, which means that the gap grew"),
        ((0.1, -0.2, 0.3), "no change of the gap is shown: 10% [-20%, 30%] closed"),
    ],
)
def test_training_text_follows_the_numbers(closed: tuple[float, float, float], said: str) -> None:
    text = training.training_text(change_frames(closed=closed), ("ml",), "en")
    assert f"Malayalam, measuring SAEs: {said}" in text
    assert "Malayalam, held-out SAEs" in text
    assert "FVU rose to 1.40 [1.37, 1.43] times the base model's (from 0.10 to 0.14)" in text
    assert "Bits per byte are 50.0% [40.0%, 60.0%] of the base model's." in text
    assert "changed its sign" not in text
    reference = "English, the reference: activation is 101.0% [100.0%, 102.0%] of the base model's; bits per byte are 101.2% [100.2%, 102.2%] of the "
    assert reference + "base model's; KL(base || adapter) is 0.0123 [0.0023, 0.0223] nats per token." in text


@pytest.mark.parametrize(("ratio", "said"), [(0.9, "fell to 0.90 [0.87, 0.93]"), (1.02, "shows no change: 1.02 [0.99, 1.05]")])
def test_training_text_claims_no_change_of_fvu_that_the_interval_does_not_carry(ratio: float, said: str) -> None:
    frames = change_frames()
    chosen = frames["change_by_range"]["quantity"] == "fvu_ratio"
    frames["change_by_range"].loc[chosen, ["estimate", "lo", "hi"]] = [ratio, ratio - 0.03, ratio + 0.03]
    assert f"FVU {said} times the base model's" in training.training_text(frames, ("ml",), "en")


def test_training_text_names_the_layers_where_the_gap_went_too_far() -> None:
    frames = change_frames()
    table = frames["change_by_layer"]
    table.loc[(table["layer"] == 5) & (table["quantity"] == "gap_after"), ["estimate", "lo", "hi"]] = [0.05, 0.02, 0.08]
    table.loc[(table["layer"] == 2) & (table["quantity"] == "gap_after"), ["estimate", "lo", "hi"]] = [0.02, -0.01, 0.05]
    text = training.training_text(frames, ("ml",), "en")
    assert "The gap (not norm-matched) changed its sign at layer 5 (measuring SAEs) and at layer 5 (held-out SAEs)." in text


def test_training_text_without_norm_matching_and_cross_entropies_is_silent_on_them() -> None:
    frames = change_frames()
    del frames["bits"]
    frames["retention"] = frames["retention"][frames["retention"]["quantity"] == "activation"]
    chosen = frames["change_by_range"]["quantity"] == "gap_closed_norm_matched"
    frames["change_by_range"].loc[chosen, ["estimate", "lo", "hi"]] = np.nan
    text = training.training_text(frames, ("ml",), "en")
    assert "nan" not in text
    assert ", norm-matched" not in text
    assert text.endswith("English, the reference: activation is 101.0% [100.0%, 102.0%] of the base model's.")


def continuations(adapter: float) -> pd.DataFrame:
    """Two prompts in two languages; the adapter's Malayalam repeats itself in this share, in one of the two."""
    return pd.DataFrame(
        {
            "language": code,
            "sentence_id": name,
            "prompt": "مرحبا <b>",
            "original": "രണ്ട്",
            "base": "two",
            "adapter": "" if code == "en" else HOSTILE,
            "repetition_base": 0.1,
            "repetition_adapter": adapter if (code, name) == ("ml", "s1") else 0.1,
        }
        for code in ("ml", "en")
        for name in ("s1", "s2")
    )


@pytest.mark.parametrize(
    ("share", "shares", "said"),
    [
        (0.3, "Malayalam 10% and 20%, English 10% and 10%", ""),
        (0.9, "Malayalam 10% and 50%", "more than the base model: Malayalam (1 of 2)."),
    ],
)
def test_repetition_is_told_without_a_claim(share: float, shares: str, said: str) -> None:
    text = training.continuation_section(continuations(share)).text
    assert text.startswith("2 prompts in each language were continued greedily")
    assert "too few for intervals or claims" in text
    assert shares in text
    assert said in text
    assert ("repeats itself" in text) == bool(said)


def test_continuations_stand_on_the_page_as_text(folder: Path) -> None:
    pages = [training.continuation_section(continuations(0.3))]
    html = training.write_training(folder, validate(TrainConfig, TRAIN), pages, IDENTITY, Resampling.of_sentences(9)).read_text(encoding="utf-8")
    assert "<script" not in html
    assert html.count("<bdi>مرحبا &lt;b&gt;<mark>രണ്ട്</mark></bdi>") == 4  # bdi: the order of a script from right to left is its own
    text = Page(html).text
    assert text.count("(nothing)") == 2
    assert "repetition: base 10%, adapter 30%" in text


# --- pages ---


def written_page(folder: Path) -> str:
    wide = gaps.wide_layers(tables.layer_table(found()))
    sentences = pd.DataFrame({"sentence": [HOSTILE], "gap": [np.nan]})
    card = Card(HOSTILE, None, ["a fact"], [("ml 3.0", HOSTILE, "tok", "after")])
    section = Section("Gaps", {"gap_heatmap": folder / "gap_heatmap.png"}, {"By layer": wide, HOSTILE: sentences}, cards=[card])
    config = validate(AnalyzeConfig, ANALYZE)
    facts = measured_facts(folder, config, IDENTITY, Resampling.of_sentences(9))
    path = write_report(folder, "Gaps", "lead", [section], facts, reading=reading_gaps(config.statistics, Resampling.of_sentences(9)))
    assert path == folder / "report.html"
    return path.read_text(encoding="utf-8")


def test_page_stands_alone(folder: Path) -> None:
    html = written_page(folder)
    page = Page(html)
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "base", "form"}
    sources = [value for _, attributes in page.tags for name, value in attributes.items() if name in ("src", "href", "srcset", "data", "action")]
    assert len(sources) == 1
    assert all(source and source.startswith("data:image/png;base64,") for source in sources)
    assert "http" not in html
    assert "url(" not in html
    assert "@import" not in html
    assert base64.b64decode(sources[0].split(",")[1]) == (folder / "gap_heatmap.png").read_bytes()
    assert next(attributes["width"] for tag, attributes in page.tags if tag == "img") == "192"  # 320 dots at 160 per inch
    assert sorted(path.name for path in folder.iterdir()) == ["gap_heatmap.png", "manifest.json", "report.html"]


def test_page_lets_no_text_become_markup(folder: Path) -> None:
    html = written_page(folder)
    assert "<script" not in html
    assert Page(html).text.count(HOSTILE) == 6  # command, model, a table's title and its cell, a card's title and context


def test_page_has_its_facts_and_cautions(folder: Path) -> None:
    text = Page(written_page(folder)).text
    for said in (
        "sha256 abababababababab",
        "micro layer_{layer}; architecture jumprelu; width 64; sha256 ef",
        "95%, 1,000 resamples",
        "Positive: the language falls short",
        "fertility",
        "grows with the residual norm",
        "+0.50*",
    ):
        assert said in text
    assert "None" not in text


def test_what_the_loss_worked_on_is_no_check_of_it() -> None:
    plain = TRAIN["loss"] | {"gap": TRAIN["loss"]["gap"] | {"norm_matched": False}, "retention": TRAIN["loss"]["retention"] | {"target_kl": 0.0}}
    all_of_them, one = (training.loss_text(validate(TrainConfig, TRAIN | {"loss": loss}), {}) for loss in (TRAIN["loss"], plain))
    held = "the norm-matched gap, the FVU of the measuring SAEs and the targets' next-token distributions"
    assert all_of_them == f"The loss contains {held}, so these are no independent check. The held-out SAEs are one."
    assert one == "The loss contains the FVU of the measuring SAEs, so these are no independent check. The held-out SAEs are one."
    free = plain | {"retention": plain["retention"] | {"fit": 0.0}}
    assert training.loss_text(validate(TrainConfig, TRAIN | {"loss": free}), {}) == ""
    instead = training.loss_text(validate(TrainConfig, TRAIN | {"loss": free}), {"ml": "hi"})
    assert instead == "Malayalam itself was not trained on: its text was replaced by text in Hindi (control)."


def test_training_page(folder: Path) -> None:
    frames = change_frames()
    text = training.training_text(frames, ("ml",), "en")
    page = Section("Held-out sentences", {}, training.train_tables(frames, ("ml",), "en"), text)
    html = Page(
        training.write_training(folder, validate(TrainConfig, TRAIN), [page], IDENTITY, Resampling.of_sentences(9)).read_text(encoding="utf-8")
    )
    assert html.text.count("80% [70%, 90%] of the gap was closed") == 2
    assert "Closing the activation gap of Malayalam" in html.text
    assert "Languages that were not trained" in html.text
    assert "per sentence, adapter" in html.text


def test_evaluation_page(folder: Path) -> None:
    rows = [("ml", 0.2, 0.1, 0.3, 0.001, 1), ("hi", -0.2, -0.3, -0.1, 0.2, 1), ("id", 0.0, -0.1, 0.1, 1.0, 1), ("low", 0.01, -0.02, 0.04, 1.0, 3)]
    columns = ["language", "estimate", "lo", "hi", "p_holm", "languages"]
    differences = pd.DataFrame(rows, columns=columns).assign(
        task="all", kind="all", metric="acc", model="adapter", mde=0.07, p=[0.0001, 0.04, 0.6, 0.04]
    )
    page = Section("By language", {}, {"Accuracy": pd.DataFrame({"language": ["ml"], "p": ["<.001"]})})
    config = validate(EvalConfig, EVAL)
    text = Page(evaluation.write_evaluation(folder, config, [page], ["half of it is guessed"], differences).read_text(encoding="utf-8")).text
    assert "higher than the base model in 1 (Malayalam) of the 3 languages and significantly lower in 1 (Hindi)" in text
    assert "After Holm's correction, 1 (Malayalam) remains" in text
    assert (
        "In the others (Indonesian) no difference is shown: with these items, only a difference of at least 0.070 to 0.070 would have been found in 80%"
        in text
    )
    assert "Pooled over languages: medium-to-low-resource (3) +0.010 [-0.020, +0.040], p 0.04, detectable 0.070." in text
    assert "Note: half of it is guessed." in text
    text = Page(evaluation.write_evaluation(folder, config, [page], [], None).read_text(encoding="utf-8")).text
    assert "base model alone" in text


def test_many_tasks_are_one_fact(folder: Path) -> None:
    tasks = {f"arc_{code}": {"items": 20, "sha256": "12" * 32} for code in ("ml", "hi")}
    write_json(
        folder / "manifest.json",
        {"job": "eval", "status": "running", "command": "eval.py", "started": "now", "seed": 0}
        | {"identity": {"tasks": tasks, "adapter": {"name": "/out/a[1]'s"}}},
    )
    facts = run_facts(folder)
    assert facts["tasks"].startswith("2, with 40 items")
    assert facts["adapter"] == "/out/a[1]'s"


def test_numbers_are_rounded_and_to_the_right(folder: Path) -> None:
    frame = pd.DataFrame({"name": ["a", "b"], "x": [0.123456, np.nan], "n": [1200, 3], "tiny": [0.00001234, 12345.6], "missing": [pd.NA, None]})
    section = Section("s", {}, {"t": frame, "empty": frame.head(0)}, "one\n\ntwo")
    html = write_report(folder, "T", "lead", [section], {"fact": "", "other": "1"}, reading=["r"]).read_text(encoding="utf-8")
    cells = re.findall(r'<td( class="number")?>([^<]*)</td>', html)
    assert [text for _, text in cells] == ["a", "0.123", "1200", "1.2e-05", "-", "b", "-", "3", "12,346", "-"]
    assert [bool(number) for number, _ in cells[:5]] == [False, True, True, True, True]
    assert html.count("<table>") == 1
    assert "<dt>fact" not in html
    assert html.count("<p>one</p>") == html.count("<p>two</p>") == 1


def test_long_tables_are_folded_away(folder: Path) -> None:
    section = Section("s", {}, {"long": pd.DataFrame({"x": range(31)}), "short": pd.DataFrame({"x": range(30)})})
    html = write_report(folder, "T", "lead", [section], {}, reading=[]).read_text(encoding="utf-8")
    assert html.count("<details>") == 1
