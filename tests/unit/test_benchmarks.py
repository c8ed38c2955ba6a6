"""The table of benchmarks against the task files of the installed lm-eval and ours; nothing is downloaded."""

import math
from pathlib import Path
from typing import Any

import lm_eval.tasks
import pytest
import yaml
from lm_eval.tasks._yaml_loader import load_yaml

from lingact.catalogue.benchmarks import FAMILIES, ORIGINS, TEXT_SOURCES, entry, family
from lingact.catalogue.languages import LANGUAGES
from lingact.config.base import asset
from lingact.config.tasks import TasksConfig
from lingact.errors import UserError
from lingact.evaluation import task_files
from lingact.report.benchmark_page import page
from tests.helpers.paths import CONF, ROOT

TEN = tuple(LANGUAGES)[:10]
HARNESS = Path(lm_eval.tasks.__file__).parent
SETS = {path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in sorted((CONF / "tasks").glob("*.yaml"))}
LACKING = {
    **dict.fromkeys(("micro_arc", "micro_mmlu", "micro_hellaswag", "arc", "arc_whole", "hellaswag", "mmlu"), ""),
    **dict.fromkeys(("belebele", "global_piqa", "global_piqa_local"), ""),
    "arc_human": "zh ru es it id mr ml hi",
    "arc_indic": "zh ru es it id ca",
    "global_mmlu": "ca mr ml",
    "truthfulqa": "en",
    "include": "en ca mr",
    "xstorycloze": "it mr ml",
    "multiblimp": "zh id ml",
    "indicparam": "en zh ru es it id ca ml hi",
    "mmlu_original": "zh ru es it id ca mr ml hi",
}
"""Benchmark -> languages of the paper for which the installed task files have no task."""
Found = dict[str, dict[str, list[task_files.TaskSource]]]


def found_in(names: list[str]) -> Found:
    """Benchmark -> language -> its tasks."""
    rest = {"missing": "skip", "items": "shared", "limit": None, "fewshot": None, "batch_size": 1}
    config, files = TasksConfig.model_validate({"benchmarks": names, "own": {}} | rest), {}
    return {name: {code: task_files.task_sources(name, config, code, files) for code in TEN} for name in names}


@pytest.fixture(scope="module")
def found() -> Found:
    return found_in(list(FAMILIES))


def test_which_languages_each_benchmark_lacks(found: Found) -> None:
    assert {name: " ".join(code for code, sources in by_language.items() if not sources) for name, by_language in found.items()} == LACKING


def test_the_page_is_current() -> None:
    assert page() == (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8"), "run python -m lingact.report.benchmark_page > docs/benchmarks.md"


def test_one_task_a_language_but_for_benchmarks_in_parts(found: Found) -> None:
    counts = {name: {code: len(sources) for code, sources in by_language.items() if sources} for name, by_language in found.items()}
    assert set(counts.pop("global_mmlu").values()) == {57}, "subjects"
    assert counts.pop("mmlu_original") == {"en": 57}
    assert counts.pop("include") == {"zh": 8, "ru": 8, "es": 4, "it": 6, "id": 5, "ml": 6, "hi": 8}, "domains"
    assert {count for by_language in counts.values() for count in by_language.values()} == {1}


def test_the_tasks_of_unlike_names_are_the_right_ones(found: Found) -> None:
    names = {
        ("arc", "en"): "arc_challenge",
        ("arc", "hi"): "arc_hi",
        ("hellaswag", "zh"): "lingact_hellaswag_zh",
        ("belebele", "zh"): "belebele_zho_Hans",
        ("belebele", "mr"): "belebele_mar_Deva",
        ("global_piqa", "zh"): "global_piqa_parallel_cloze_cmn_hans",
        ("global_piqa", "es"): "global_piqa_parallel_cloze_spa_latn_spai",
        ("global_piqa_local", "ml"): "global_piqa_nonparallel_cloze_mal_mlym",
        ("xstorycloze", "ca"): "xstorycloze_ca",
        ("multiblimp", "mr"): "multiblimp_mar",
        ("indicparam", "mr"): "indicparam_marathi",
    }
    for (name, code), task in names.items():
        assert [source.entry.task for source in found[name][code]] == [task]


def test_data_sets_are_those_that_the_task_files_name(found: Found) -> None:
    compared = set()
    for name, by_language in found.items():
        for code, source in ((code, source) for code, sources in by_language.items() for source in sources):
            definition: dict[str, Any] = load_yaml(source.file, resolve_func=False)
            assert definition["task"] == source.entry.task
            assert definition["output_type"] == "multiple_choice", f"{name} {code}"
            if definition["dataset_path"] != "json":  # the embedded ones
                assert source.entry.dataset == definition["dataset_path"], f"{name} {code}"
                compared.add(name)
    assert compared == set(FAMILIES) - {"micro_arc", "micro_mmlu", "micro_hellaswag"}


def test_metrics_are_computed_by_the_tasks_that_papers_quote(found: Found) -> None:
    for name in ("arc", "arc_human", "arc_indic", "hellaswag", "belebele", "mmlu", "global_piqa", "xstorycloze", "multiblimp"):
        for source in (source for sources in found[name].values() for source in sources):
            metrics = [metric["metric"] for metric in load_yaml(source.file, resolve_func=False)["metric_list"]]
            assert source.entry.metric in metrics, source.entry.task


@pytest.mark.parametrize("name", FAMILIES)
def test_every_row_says_what_the_data_are(name: str) -> None:
    kin = family(name)
    assert (kin.name, kin.title != "") == (name, True)
    assert set(kin.others) <= set(LANGUAGES)
    for code in LANGUAGES:
        row = entry(kin, code)
        assert (row.benchmark, row.language) == (name, code)
        assert row.licence
        assert row.dataset
        assert row.origin in ORIGINS
        assert row.metric in ("acc", "acc_norm")
        assert 0 < row.chance < 1
        assert "{" not in row.task
        folder = Path(asset(row.folder.removeprefix("lingact:"))) if row.folder.startswith("lingact:") else HARNESS / row.folder
        assert folder.is_dir()
    assert not math.isnan(kin.chance)


def test_what_is_different_about_a_language_is_in_its_row_alone() -> None:
    english, spanish = (entry(family("hellaswag"), code) for code in ("en", "es"))
    assert (english.dataset, english.licence, english.origin, english.key) == ("Rowan/hellaswag", "MIT", "original", ("#row",))
    assert (spanish.dataset, spanish.licence, spanish.origin, spanish.key) == ("alexandrainst/m_hellaswag", "CC BY-NC 4.0", "machine", ("id",))
    assert (spanish.note, english.note != "") == ("", True)


def test_a_misspelt_benchmark_is_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"no benchmark 'belebel'; did you mean 'belebele'\? \(known: micro_arc, .*, indicparam; add your own under"):
        family("belebel")


def test_corpora_that_leak_are_of_texts_that_some_benchmark_is_made_of() -> None:
    assert set(TEXT_SOURCES) == {source for kin in FAMILIES.values() for source in kin.sources}


# --- the sets in conf/tasks --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SETS)
def test_sets_name_benchmarks_of_the_table_or_own_ones(name: str) -> None:
    assert SETS[name]["benchmarks"] or SETS[name]["own"]
    assert set(SETS[name]["benchmarks"]) <= set(FAMILIES)


def test_sets_that_refuse_missing_languages_lack_none() -> None:
    strict = {name for name, shipped in SETS.items() if shipped.get("missing", SETS["micro"]["missing"]) == "refuse" and shipped["benchmarks"]}
    assert strict == {"micro", "paper", "belebele", "global_piqa"}
    assert not any(LACKING[benchmark] for name in strict for benchmark in SETS[name]["benchmarks"])


def test_the_human_set_holds_nothing_that_a_machine_had_a_hand_in(found: Found) -> None:
    by_origin = {name: {source.entry.origin for sources in found[name].values() for source in sources} for name in SETS["human"]["benchmarks"]}
    assert set().union(*by_origin.values()) == {"original", "human"}, by_origin
    assert {source.entry.origin for sources in found["global_piqa"].values() for source in sources} == {"original", "edited"}


@pytest.mark.parametrize("name", [name for name, shipped in SETS.items() if shipped["benchmarks"]])
def test_only_the_folders_of_a_set_are_read_and_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    plain = Path.read_bytes

    def counted(path: Path) -> bytes:
        read.append(path)
        return plain(path)

    monkeypatch.setattr(Path, "read_bytes", counted)
    found_in(SETS[name]["benchmarks"])
    kin = [FAMILIES[benchmark] for benchmark in SETS[name]["benchmarks"]]
    named = {folder for each in kin for folder in (each.folder, *(other.folder for other in each.others.values())) if folder}
    folders = {Path(asset(folder.removeprefix("lingact:"))) if folder.startswith("lingact:") else HARNESS / folder for folder in named}
    assert read
    assert HARNESS not in folders
    assert all(any(path.is_relative_to(folder) for folder in folders) for path in read)
    assert len(read) == len(set(read))
