"""Scores are lm-eval's: its own command line answers the same questions of the same files, for the base model and for an adapter."""

import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub.constants
import numpy as np
import pytest
import torch
import yaml

from lingact.cli import main as cli
from lingact.config.base import asset
from lingact.config.tasks import TasksConfig
from lingact.config.training import LoraAdapter
from lingact.errors import UserError
from lingact.evaluation.tasks import TaskInstance, load_tasks
from lingact.models.adapter_hashes import weights_hash
from lingact.models.adapters import attach_adapter, save_adapter
from tests.helpers import hub
from tests.helpers.paths import CONF
from tests.helpers.processes import forked

CODES = ("en", "ml")
MICRO = ("micro_arc", "micro_hellaswag")
HUB = ("arc", "hellaswag", "mmlu", "belebele", "global_piqa")
TASKS = [
    *(f"{name}_{code}" for name in MICRO for code in CODES),
    *("arc_challenge", "arc_ml", "hellaswag", "hellaswag_ml", "m_mmlu_en", "m_mmlu_ml"),
    *("belebele_eng_Latn", "belebele_mal_Mlym", "global_piqa_parallel_cloze_eng_latn", "global_piqa_parallel_cloze_mal_mlym"),
]
MODEL, MICRO_TASKS = Path(asset("microworld/model")), Path(asset("microworld/tasks"))
BATCH = 16
Run = dict[str, Any]


@dataclass(frozen=True)
class Told:
    """What one program says of one model: its results file, and for each task its documents."""

    results: dict[str, Any]
    samples: dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the data of all tasks under the names that task files give them."""
    folder = tmp_path_factory.mktemp("files")
    hub.write_hub(folder, CODES)
    for name in MICRO:
        for code in CODES:
            (folder / f"{name}_{code}.jsonl").symlink_to(MICRO_TASKS / f"{name}_{code}.jsonl")
    return folder


@pytest.fixture(scope="module", autouse=True)
def here(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """In that folder, without touching the user's cache of data sets."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(files)
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that changes answers."""
    from transformers import Gemma2ForCausalLM

    model = Gemma2ForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    sha256 = weights_hash(model)
    targets = ("q_proj", "down_proj")
    peft = LoraAdapter(kind="lora", r=2, alpha=4, dropout=0.1, use_rslora=False, use_dora=False, init="default", targets=targets, layers="all")
    wrapped = attach_adapter(model, model.model.layers, peft, seed=1)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.linspace(-0.3, 0.3, parameter.numel()).reshape(parameter.shape))
    folder = tmp_path_factory.mktemp("trained") / "adapter"
    save_adapter(wrapped, folder, str(MODEL), sha256)
    return folder


@pytest.fixture(scope="module")
def ours(files: Path, adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Told]:
    """What we say of `base` and `adapter`."""
    folder = tmp_path_factory.mktemp("ours") / "run"
    assert cli.main("eval", CONF, _arguments(folder, f"adapter={adapter}")) == 0
    return {name: _ours(folder, name) for name in ("base", "adapter")}


@pytest.fixture(scope="module", params=[pytest.param(name, marks=pytest.mark.slow) for name in ("base", "adapter")])
def both(
    request: pytest.FixtureRequest, files: Path, adapter: Path, ours: dict[str, Told], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Told, Told]:
    """What we say of a model, and what lm-eval's command line says of it."""
    work = tmp_path_factory.mktemp("theirs")
    model = f"pretrained={MODEL},dtype=float32" + (f",peft={adapter}" if request.param == "adapter" else "")
    code = forked(partial(_command_line, files, work / "out", model), work / "log")
    assert code == 0, (work / "log").read_text()[-2000:]
    return ours[request.param], _theirs(work / "out")


def _command_line(files: Path, out: Path, model: str) -> int:
    """lm-eval's command line in this process, which is to be one of its own."""
    warnings.simplefilter("default")  # its own process: peft calls transformers by a name that is deprecated
    from lm_eval.__main__ import cli_evaluate

    arguments = ["--model", "hf", "--model_args", model, "--tasks", ",".join(TASKS), "--include_path", str(MICRO_TASKS)]
    arguments += ["--batch_size", str(BATCH), "--device", "cpu", "--output_path", str(out), "--log_samples"]
    os.chdir(files)
    datasets.config.HF_DATASETS_CACHE = out.parent / f"{out.name}_cache"
    sys.argv = ["lm_eval", "run", *arguments]
    cli_evaluate()
    return 0


def _arguments(folder: Path, *more: str) -> list[str]:
    asked = [f"tasks.benchmarks=[{','.join((*MICRO, *HUB))}]", "tasks.items=all", f"tasks.batch_size={BATCH}"]
    where = [f"hydra.run.dir={folder}", "languages.high=[]", "languages.low=[ml]", "device=cpu", "tracking=none", "cache=null"]
    return [*asked, *where, "text_split=null", "resamples=100", *more]


def _ours(folder: Path, name: str) -> Told:
    results = json.loads((folder / "results" / f"{name}.json").read_text())
    return Told(results, {task: _lines(folder / "samples" / f"{name}_{task}.jsonl") for task in results["results"]})


def _theirs(out: Path) -> Told:
    (results,) = out.rglob("results_*.json")
    return Told(json.loads(results.read_text()), {task: _lines(*out.rglob(f"samples_{task}_20*.jsonl")) for task in TASKS})


def _lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


METRICS = ("acc,none", "acc_stderr,none", "acc_norm,none", "acc_norm_stderr,none")


def test_scores_equal_those_of_its_command_line(both: tuple[Told, Told]) -> None:
    ours, theirs = both
    assert list(ours.results["results"]) == [*TASKS]
    for task in TASKS:
        mine, its = ours.results["results"][task], theirs.results["results"][task]
        assert {metric: mine[metric] for metric in METRICS if metric in mine} == {metric: its[metric] for metric in METRICS if metric in its}, task
        assert mine.keys() <= its.keys()


def test_documents_prompts_and_answers_equal_those_of_its_command_line(both: tuple[Told, Told]) -> None:
    ours, theirs = both
    for task in TASKS:
        its = sorted(theirs.samples[task], key=lambda sample: sample["doc_id"])
        mine = ours.samples[task]
        for name in ("doc_id", "doc_hash", "prompt_hash", "target_hash", "acc"):
            assert [record[name] for record in mine] == [sample[name] for sample in its], (task, name)
        if "acc_norm" in its[0]:
            assert [record["acc_norm"] for record in mine] == [sample["acc_norm"] for sample in its], task
        asked = [[[part["arg_0"], part["arg_1"]] for part in sample["arguments"].values()] for sample in its]
        assert [[[record["prompt"], choice] for choice in record["choices"]] for record in mine] == asked, task
        scores = [float(score) for sample in its for score, _ in sample["filtered_resps"]]
        # It reads each prompt with each option, and batches across tasks, so that the last places of a float32 differ.
        assert [score for record in mine for score in record["loglikelihood"]] == pytest.approx(scores, abs=1e-4), task


@pytest.mark.slow
def test_the_comparison_can_fail(ours: dict[str, Told]) -> None:
    """Enough documents, answers that are neither all right nor all wrong, two measures that differ, and an adapter that changes all of it."""
    base, adapter = ours["base"], ours["adapter"]
    for told in (base, adapter):
        scores = told.results["results"]
        assert all(score["sample_len"] >= hub.ITEMS for score in scores.values())
        assert all(0 < score["acc,none"] < 1 for score in scores.values())
        assert len({score["acc,none"] for score in scores.values()}) > 5
        assert sum(score["acc,none"] != score["acc_norm,none"] for score in scores.values() if "acc_norm,none" in score) > 5
    changed = [task for task in TASKS if base.results["results"][task] != adapter.results["results"][task]]
    assert len(changed) > len(TASKS) // 2
    for task in TASKS:
        before, after = (np.array([score for record in told.samples[task] for score in record["loglikelihood"]]) for told in (base, adapter))
        assert np.abs(before - after).max() > 0.1, task


def test_results_are_read_by_its_own_tools(both: tuple[Told, Told], tmp_path: Path) -> None:
    from lm_eval.utils import get_file_datetime, get_latest_filename, get_results_filenames, make_table

    ours, theirs = both
    file = "results_2026-01-31T12-00-00.000000.json"
    (tmp_path / file).write_text(json.dumps(ours.results))
    assert get_results_filenames([str(tmp_path / file), "samples_arc_ml_2026-01-31T12-00-00.000000.jsonl"]) == [str(tmp_path / file)]
    assert get_latest_filename([file]) == file
    assert get_file_datetime(file).startswith("2026-01-31T12-00-00.000000")
    tables = [_table(make_table(results)) for results in (json.loads((tmp_path / file).read_text()), theirs.results)]
    assert tables[0] == [row for row in tables[1] if row[4] != "acc_bytes"]
    assert len(tables[0]) == 2 * len(TASKS) - 2  # MMLU has one measure
    for name in ("versions", "n-shot", "n-samples", "higher_is_better", "lm_eval_version", "transformers_version"):
        mine, its = ours.results[name], theirs.results[name]
        assert mine == ({task: its[task] for task in TASKS} if isinstance(its, dict) else its), name


def _table(text: str) -> list[tuple[str, ...]]:
    """Its rows, with the name of the task in each."""
    rows, task = [], ""
    for line in text.strip().splitlines()[2:]:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        task = cells[0] or task
        rows.append((task, *cells[1:]))
    return rows


# --- examples before the question ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def ask() -> Callable[..., dict[str, TaskInstance]]:
    """Task name -> its questions, of benchmarks in languages."""

    def load(benchmarks: Sequence[str], codes: Sequence[str] = CODES, **more: Any) -> dict[str, TaskInstance]:
        given = {"benchmarks": tuple(benchmarks), "own": {}, "missing": "refuse", "items": "all", "limit": None, "fewshot": None, "batch_size": BATCH}
        return {instance.entry.task: instance for instance in load_tasks(TasksConfig.model_validate(given | more), codes).instances}

    return load


def test_examples_are_those_that_lm_eval_takes(ask: Callable[..., dict[str, TaskInstance]]) -> None:
    import lm_eval.tasks

    names = ["arc_challenge", "m_mmlu_ml", "hellaswag_ml", "belebele_mal_Mlym"]
    instance = ask(["arc"], ["en"], fewshot=2) | ask(["mmlu", "hellaswag", "belebele"], ["ml"], fewshot=2)
    shelf = Path(lm_eval.tasks.__file__).parent
    folders = ("arc", "okapi/mmlu_multilingual", "okapi/hellaswag_multilingual", "belebele")
    manager = lm_eval.tasks.TaskManager(include_path=[str(shelf / folder) for folder in folders], include_defaults=False)
    # Its model that answers at random, since only what it is asked counts here.
    theirs = lm_eval.simple_evaluate(model="dummy", tasks=names, num_fewshot=2, task_manager=manager, bootstrap_iters=0)
    assert theirs is not None
    for name in names:
        its = sorted(theirs["samples"][name], key=lambda sample: sample["doc_id"])
        asked = [[tuple(pair) for pair in sample["arguments"]] for sample in its]
        assert [[request.args for request in question.requests] for question in instance[name].questions] == asked, name
        assert len(asked) == hub.ITEMS
        for question in instance[name].questions:
            *examples, last = question.requests[0].args[0].split("\n\n")
            assert len(examples) == 2
            assert not any(example.startswith(last) for example in examples)


def test_a_task_that_would_show_its_own_answers_is_refused(ask: Callable[..., dict[str, TaskInstance]]) -> None:
    problem = r"'global_piqa_parallel_cloze_eng_latn' has no examples but its own questions \('test'\), answers included; use tasks\.fewshot=0"
    with pytest.raises(UserError, match=problem):
        ask(["global_piqa"], fewshot=2)


# --- where lm-eval's tasks are fixed ---------------------------------------------------------------------------------------------------------------


def test_whole_arc_keeps_brackets_and_finds_the_answer_behind_an_empty_option(ask: Callable[..., dict[str, TaskInstance]]) -> None:
    cut, whole = ask(["arc"])["arc_ml"], ask(["arc_whole"])["lingact_arc_ml"]
    rows = hub.m_arc("ml", "test")
    for place, (row, theirs, ours) in enumerate(zip(rows, cut.questions, whole.questions, strict=True)):
        options = [row[f"option_{letter}"] for letter in "abcde" if row[f"option_{letter}"]]
        right = row[f"option_{row['answer'].lower()}"].strip()
        prompts, choices, gold = _asked(whole, ours)
        assert prompts == {f"Question: {row['instruction'].strip()}\nAnswer:"}
        assert choices == [f" {option.strip()}" for option in options]
        assert choices[gold] == f" {right}"
        if place not in (2, 5, 6, 7):  # as lm-eval's, where there is nothing to fix
            assert _asked(cut, theirs) == (prompts, choices, gold)
    assert "[sic]" in whole.questions[2].requests[0].args[0]
    assert "[" not in cut.questions[2].requests[0].args[0]
    assert (_asked(cut, cut.questions[5])[2], _asked(whole, whole.questions[5])[2]) == (3, 2)  # of three options
    assert (_asked(cut, cut.questions[6])[2], _asked(whole, whole.questions[6])[2]) == (2, 1)
    assert "[" in _asked(whole, whole.questions[7])[1][0]
    assert len(_asked(whole, whole.questions[3])[1]) == 5


def test_whole_arc_takes_quotes_and_backslashes(ask: Callable[..., dict[str, TaskInstance]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = hub.m_arc("hi", "test")[:3]
    odd = ['it\'s "so"', "\\frac{1}{2}", "{{x}} {% if %}", "true"]
    rows[1] |= {f"option_{letter}": option for letter, option in zip("abcd", odd, strict=True)} | {"answer": "C"}
    hub.write_dataset(tmp_path / "alexandrainst/m_arc", {"hi": dict.fromkeys(("train", "validation", "test"), rows)}, "jsonl")
    monkeypatch.chdir(tmp_path)
    instance = ask(["arc_whole"], ["hi"])["lingact_arc_hi"]
    assert _asked(instance, instance.questions[1])[1:] == ([f" {option}" for option in odd], 2)


def _asked(instance: TaskInstance, question: Any) -> tuple[set[str], list[str], int]:
    """Prompts, which are all the same, options, and the right one's place."""
    gold: Any = instance.task.doc_to_target(question.document)
    return {request.args[0] for request in question.requests}, [request.args[1] for request in question.requests], gold


def test_chinese_hellaswag_is_asked_like_the_other_languages(
    ask: Callable[..., dict[str, TaskInstance]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = hub.m_hellaswag("zh", "val")
    paired = json.loads(json.dumps(plain))
    for row in paired[1::4]:
        row["endings"] = [{"zh": ending, "en": "something else"} for ending in row["endings"]]
    paired[3]["endings"][1] = {"en": "something else", "zh": paired[3]["endings"][1]}
    _put_into_cache(tmp_path / "hub", "alexandrainst/m_hellaswag", {"data/zh/val.jsonl": paired})
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    hub.write_dataset(tmp_path / "files/alexandrainst/m_hellaswag", {"ml": {"val": plain}}, "jsonl")
    (tmp_path / "files").mkdir(exist_ok=True)
    monkeypatch.chdir(tmp_path / "files")
    chinese, model = ask(["hellaswag"], ["zh"])["lingact_hellaswag_zh"], ask(["hellaswag"], ["ml"])["hellaswag_ml"]
    assert len(chinese.questions) == hub.ITEMS
    assert [_asked(chinese, question) for question in chinese.questions] == [_asked(model, question) for question in model.questions]
    assert {_asked(chinese, question)[2] for question in chinese.questions} == {0, 1, 2, 3}
    assert [question.document["id"] for question in chinese.questions] == [row["id"] for row in plain]
    assert list(chinese.task.higher_is_better()) == list(model.task.higher_is_better())


def test_chinese_hellaswag_that_is_not_to_be_had_says_so(
    ask: Callable[..., dict[str, TaskInstance]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"the data of 'lingact_hellaswag_zh' \(alexandrainst/m_hellaswag, CC BY-NC 4\.0\) cannot be loaded: "):
        ask(["hellaswag"], ["zh"])


def _put_into_cache(cache: Path, name: str, files: Mapping[str, hub.Rows]) -> None:
    """A data set as the hub's client keeps what it has downloaded."""
    place, commit = cache / f"datasets--{name.replace('/', '--')}", "0" * 40
    for file, rows in files.items():
        hub.write_rows(place / "snapshots" / commit / file, rows)
    (place / "refs").mkdir()
    (place / "refs/main").write_text(commit)


def test_indic_arc_understands_numbers_for_answers(
    ask: Callable[..., dict[str, TaskInstance]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = hub.ai2_arc("hi", "test")
    for place in (1, 6):  # numbers for letters
        rows[place]["answerKey"] = str("ABCD".index(rows[place]["answerKey"]) + 1)
    hub.write_dataset(tmp_path / "sarvamai/arc-challenge-indic", {"hi": {"validation": rows, "test": rows}}, "parquet")
    monkeypatch.chdir(tmp_path)
    instance = ask(["arc_indic"], ["hi"])["lingact_arc_indic_hi"]
    asked = [_asked(instance, question) for question in instance.questions]
    assert [gold for _, _, gold in asked] == [place % 4 for place in range(hub.ITEMS)]
    assert [choices for _, choices, _ in asked] == [[f" {text}" for text in row["choices"]["text"]] for row in rows]
    assert [prompts for prompts, _, _ in asked] == [{f"Question: {row['question']}\nAnswer:"} for row in rows]
    assert rows[4]["choices"]["label"] == list("1234")


def test_fixed_tasks_ask_for_the_same_measures_as_those_they_stand_for() -> None:
    import lm_eval.tasks

    shelf = Path(lm_eval.tasks.__file__).parent
    for ours, theirs in (("arc/_arc", "okapi/arc_multilingual/_arc_yaml"), ("hellaswag/lingact_hellaswag_zh.yaml", "hellaswag/hellaswag.yaml")):
        mine, its = (_plain(file) for file in (Path(asset("tasks")) / ours, shelf / theirs))
        assert mine["metric_list"] == its["metric_list"]


def _plain(file: Path) -> dict[str, Any]:
    return yaml.safe_load("\n".join(line for line in file.read_text(encoding="utf-8").splitlines() if "!function" not in line))
