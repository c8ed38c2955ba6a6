"""Data that are not to be had: a hub that refuses, is silent or is not there, and files that are damaged. And a hub that gives them."""

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
import pytest
import yaml

from lingact.cli import main as cli
from tests.helpers import hub
from tests.helpers.hub_server import HubServer, serving
from tests.helpers.paths import CONF, ROOT
from tests.helpers.processes import unused_port

FEW = ["tracking=none", "device=cpu", "text_split=null", "cache=null", "resamples=100", "languages.high=[]"]
MANY = """
import json, sys
from pathlib import Path
from lingact.cli import main as cli
for arguments in json.loads(sys.argv[2]):
    print("exit code", cli.main("eval", Path(sys.argv[1]), arguments), file=sys.stderr, flush=True)
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[HubServer]:
    hub.write_hub(tmp_path / "hub", ("en", "ml"))
    with serving(tmp_path / "hub") as server:
        yield server


def evaluation(*arguments: str) -> list[str]:
    return [str(ROOT / "eval.py"), *FEW, "languages.low=[ml]", *arguments]


@pytest.mark.slow
def test_what_the_hub_refuses(server: HubServer, process: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    server.refuses = {
        "facebook/belebele": "gated",
        "mrlbenchmarks/global-piqa-parallel": "not asked for",
        "allenai/ai2_arc": "unknown",
        "alexandrainst/m_mmlu": "unknown or private",
        "alexandrainst/m_hellaswag": "not asked for",
    }
    runs = [[*FEW, "languages.low=[ml]", f"tasks={name}"] for name in ("belebele", "global_piqa")]
    runs += [[*FEW, "languages.low=[ml]", f"tasks.benchmarks=[{name}]"] for name in ("arc", "mmlu")]
    runs += [[*FEW, "languages.low=[en]", f"languages.reference={code}", "tasks.benchmarks=[hellaswag]"] for code in ("ml", "zh")]
    done = process(server.url, "-c", MANY, str(CONF), json.dumps(runs))
    answers = [
        ("belebele_eng_Latn", "facebook/belebele", "CC BY-SA 4.0", True),
        ("global_piqa_parallel_cloze_eng_latn", "mrlbenchmarks/global-piqa-parallel", "CC BY-SA 4.0, no training", True),
        ("arc_challenge", "allenai/ai2_arc", "CC BY-SA 4.0", False),
        ("m_mmlu_en", "alexandrainst/m_mmlu", "CC BY-NC 4.0", False),
        ("hellaswag_ml", "alexandrainst/m_hellaswag", "CC BY-NC 4.0", True),
        ("lingact_hellaswag_zh", "alexandrainst/m_hellaswag", "CC BY-NC 4.0", True),
    ]
    said = []
    for task, name, licence, gated in answers:
        page = f"{server.url}/datasets/{name}"
        terms = f"it is only available to those who accept its terms. Accept them on {page} and run `hf auth login`"
        nobody = f"it does not exist on the hub, or you have no access. Look at {page}; run `hf auth login` if you need to, or leave it out"
        said.append(f"tasks: the data of '{task}' ({name}, {licence}) cannot be loaded: {terms if gated else nobody}")
    assert done.stderr.splitlines() == [line for text in said for line in ("eval.py:", f"  {text}", "exit code 2")]
    assert done.stdout == ""
    assert list((tmp_path / "here").rglob("*")) == []


@pytest.mark.slow
def test_no_hub_at_all(process: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    address = f"http://127.0.0.1:{unused_port()}"
    done = process(address, *evaluation("tasks=belebele"))
    problem = f"cannot reach {address}, and it was not downloaded before. Connect once so that it can be downloaded, or leave it out"
    # Nothing of the client's retries, which take half a minute.
    assert done.stderr == f"eval.py:\n  tasks: the data of 'belebele_eng_Latn' (facebook/belebele, CC BY-SA 4.0) cannot be loaded: {problem}\n"
    assert (done.returncode, done.stdout) == (2, "")
    assert list((tmp_path / "here").rglob("*")) == []


@pytest.mark.slow
def test_a_hub_that_does_not_answer(server: HubServer, process: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    server.stalls = True
    done = process(server.url, *evaluation("tasks=belebele"), HF_HUB_ETAG_TIMEOUT="1")
    assert f"cannot be loaded: cannot reach {server.url}, and it was not downloaded before" in done.stderr
    assert (len(done.stderr.splitlines()), done.returncode, done.stdout) == (2, 2, "")
    assert [asked for asked in server.asked if "belebele" in asked] == []
    assert list((tmp_path / "here").rglob("*")) == []


@pytest.mark.slow
def test_a_hub_that_gives_and_then_is_gone(server: HubServer, process: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    done = process(server.url, *evaluation("tasks=belebele", f"hydra.run.dir={tmp_path / 'first'}"))
    assert done.returncode == 0, done.stderr
    rows = {f"belebele_{hub.FLORES[code]}": hub.belebele(code, "test") for code in ("en", "ml")}
    for task, expected in rows.items():
        records = [json.loads(line) for line in (tmp_path / "first/samples" / f"base_{task}.jsonl").read_text().splitlines()]
        assert [record["gold"] for record in records] == [int(row["correct_answer_num"]) - 1 for row in expected]
        assert all(row["flores_passage"] in record["prompt"] for row, record in zip(expected, records, strict=True))
    assert [asked for asked in server.asked if asked.startswith("GET") and asked.endswith("test.jsonl")] != []

    # What was downloaded is enough from now on, at once and without a word about it.
    done = process(f"http://127.0.0.1:{unused_port()}", *evaluation("tasks=belebele", f"hydra.run.dir={tmp_path / 'second'}"))
    assert done.returncode == 0, done.stderr
    assert "etrying" not in done.stderr
    assert "cached" not in done.stderr
    first, second = ((tmp_path / run / "samples/base_belebele_mal_Mlym.jsonl").read_text() for run in ("first", "second"))
    assert first == second


# --- in this process -----------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """`refused(overrides...)`: what is said of an evaluation that the user has to fix."""

    def run(*arguments: str) -> str:
        given = [*FEW, f"hydra.run.dir={tmp_path / 'run'}", *arguments]
        low = [] if any(text.startswith("languages.low") for text in arguments) else ["languages.low=[ml]"]
        code = cli.main("eval", CONF, [*given, *low])
        printed = capsys.readouterr()
        assert (code, printed.out) == (2, "")
        assert not (tmp_path / "run").exists()
        head, *lines = printed.err.splitlines()
        assert head == "eval.py:"
        return "\n".join(line.removeprefix("  ") for line in lines)

    return run


def test_a_language_that_a_benchmark_lacks(refused: Callable[..., str]) -> None:
    assert refused("tasks.benchmarks=[micro_arc,arc_human,xstorycloze]", "languages.low=[ml,ca]") == (
        "tasks: 'arc_human' lacks ml; it has en, ca. Leave out those languages (languages.high, languages.low) or the benchmark, or use "
        "tasks.missing=skip\n"
        "tasks: 'xstorycloze' lacks ml; it has en, zh, ru, es, id, ca, hi, ar, eu, my, sw, te. Leave out those languages (languages.high, languages.low) or the "
        "benchmark, or use tasks.missing=skip"
    )


def test_an_unknown_benchmark(refused: Callable[..., str]) -> None:
    said = refused("tasks.benchmarks=[micro_arc,helaswag]")
    assert "no benchmark 'helaswag'; did you mean 'hellaswag'? (known: micro_arc, " in said
    assert len(said.splitlines()) == 1


ITEM = {"id": "a", "question": "Two and two are", "choices": ["four", "five"], "answer": "four"}


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (json.dumps(ITEM) + "\n" + json.dumps(ITEM)[:-9], "quiz_ml.jsonl, line 2: not JSON ("),
        (
            json.dumps({"prompt": "?", "choices": ["a", "b"]}),
            "quiz_ml.jsonl, line 1: an item must be an object with question, choices and answer (there: prompt",
        ),
        (json.dumps(ITEM | {"answer": "six"}), "line 1: answer is 'six'; give the place of the right choice, from 0 to 1, or its text"),
        (json.dumps(ITEM | {"answer": 2}), "line 1: answer is 2; give the place of the right choice, from 0 to 1, or its text"),
        (json.dumps(ITEM | {"choices": ["four"]}), "line 1: choices must be a list of at least two texts or numbers"),
        ("", "quiz_ml.jsonl' has no items"),
    ],
    ids=["cut off", "keys", "answer", "place", "choices", "empty"],
)
def test_own_items_that_cannot_be_asked(refused: Callable[..., str], tmp_path: Path, content: str, problem: str) -> None:
    (tmp_path / "quiz_en.jsonl").write_text(json.dumps(ITEM))
    (tmp_path / "quiz_ml.jsonl").write_text(content)
    said = refused("tasks=files", f"tasks.own.mine.path='{tmp_path}/quiz_{{lang}}.jsonl'")
    assert problem in said
    assert len(said.splitlines()) == 1


def test_own_items_that_are_not_there(refused: Callable[..., str], tmp_path: Path) -> None:
    path = f"tasks.own.mine.path='{tmp_path}/quiz_{{lang}}.jsonl'"
    assert refused("tasks=files", path) == f"tasks.own.mine.path: there is no file '{tmp_path}/quiz_en.jsonl', and none for any other language"
    (tmp_path / "quiz_en.jsonl").write_text(json.dumps(ITEM))
    assert refused("tasks=files", path).startswith("tasks: 'mine' lacks ml; it has en.")


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A folder with a task of the user's in English and Malayalam."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    for code in ("en", "ml"):
        task = {"task": f"quiz_{code}", "output_type": "multiple_choice", "dataset_path": "json", "test_split": "test"}
        task |= {"dataset_kwargs": {"data_files": {"test": f"{code}.jsonl"}}, "doc_to_text": "{{question}}", "doc_to_target": 0}
        (folder / f"{code}.yaml").write_text(yaml.safe_dump(task | {"doc_to_choice": "{{choices}}"}))
        (folder / f"{code}.jsonl").write_text(json.dumps(ITEM))
    return folder


def test_an_own_task_by_the_wrong_name(refused: Callable[..., str], own: Path) -> None:
    said = refused("tasks=lm_eval", f"tasks.own.mine.folder={own}", "tasks.own.mine.task='quizz_{lang}'")
    assert said == f"tasks.own.mine: '{own}' has no task 'quizz_en'; did you mean 'quiz_en'? (there: quiz_en, quiz_ml)"


def test_an_own_task_without_its_data(refused: Callable[..., str], own: Path) -> None:
    (own / "ml.jsonl").unlink()
    said = refused("tasks=lm_eval", f"tasks.own.mine.folder={own}", "tasks.own.mine.task='quiz_{lang}'")
    assert said == f"tasks: '{own}/ml.yaml' names the data file '{own}/ml.jsonl', which is not there"


def test_an_own_task_whose_data_lack_a_column(refused: Callable[..., str], own: Path) -> None:
    (own / "ml.jsonl").write_text(json.dumps({"question": "?", "options": ["a", "b"]}))
    said = refused("tasks=lm_eval", f"tasks.own.mine.folder={own}", "tasks.own.mine.task='quiz_{lang}'")
    assert said == "tasks: 'quiz_ml' does not fit its data (UndefinedError: 'choices' is undefined); fix one or the other, or leave the task out"


def test_more_examples_than_there_are(refused: Callable[..., str], own: Path) -> None:
    for file in own.glob("*.yaml"):
        task = yaml.safe_load(file.read_text())
        task["dataset_kwargs"]["data_files"]["train"] = task["dataset_kwargs"]["data_files"]["test"]
        file.write_text(yaml.safe_dump(task | {"training_split": "train"}))
    said = refused("tasks=lm_eval", f"tasks.own.mine.folder={own}", "tasks.own.mine.task='quiz_{lang}'", "tasks.fewshot=2")
    assert said.startswith("tasks: 'quiz_en' does not fit its data (ValueError: Sample larger than population")


def test_a_part_that_the_data_lack(refused: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.write_dataset(tmp_path / "facebook/belebele", {"eng_Latn": {"test": hub.belebele("en", "test")}}, "jsonl")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    said = refused("tasks=belebele", "languages.low=[ml]")
    assert said.startswith("tasks: 'belebele_mal_Mlym' does not fit its data (ValueError: ")


def test_data_that_are_cut_off(refused: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = {hub.FLORES[code]: {"test": hub.belebele(code, "test")} for code in ("en", "ml")}
    hub.write_dataset(tmp_path / "facebook/belebele", parts, "jsonl")
    file = tmp_path / "facebook/belebele/data/eng_Latn/test.jsonl"
    file.write_bytes(file.read_bytes()[:-40])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    said = refused("tasks=belebele")
    assert said.startswith("tasks: 'belebele_eng_Latn' does not fit its data (DatasetGenerationError: ")
