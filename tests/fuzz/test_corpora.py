"""What is read is what stands in the file, or nothing is: generated corpora, scores and questions, whole and damaged."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from lingact.analysis.score_files import read_scores
from lingact.config.data import FilesCorpus, Splits
from lingact.config.tasks import OwnItems, TasksConfig
from lingact.data.sources import load_corpus
from lingact.errors import UserError
from lingact.evaluation.tasks import load_tasks

from . import corpora
from .corpora import Asked, Example, Questions, Scores, Truth
from .draw import examples

PARTS = 4


@cache
def all_examples() -> list[Example]:
    """Two hundred."""
    return [
        *examples(corpora.undamaged(), 40, lambda example: [repr(example)]),
        *examples(corpora.damaged(), 90, lambda example: [example.way]),
        *examples(corpora.scores(), 30, lambda example: [example.way]),
        *examples(corpora.questions(), 40, lambda example: [example.way]),
    ]


def lay_out(example: Example, folder: Path) -> Path:
    """Write an example's files. Returns the path to be named."""
    for name, content in example.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder / example.path


def read_corpus(path: Path, codes: tuple[str, ...], truth: Truth | None) -> Truth:
    found = load_corpus(FilesCorpus(kind="files", path=path, max_sentences=None, splits=Splits(train=0.5, dev=0.2, heldout=0.3)), codes)
    nameless = truth is not None and truth.ids is None and all(name.startswith("row-") for name in found.ids)
    return Truth(found.texts, None if nameless else found.ids, found.documents)


def read_score_file(path: Path, _codes: tuple[str, ...], _truth: object) -> Scores:
    found = read_scores([path]).to_dict("records")
    return {(row["benchmark"], row["language"]): (row["score"], row["n"] if row["n"] == row["n"] and row["n"] is not None else None) for row in found}


def read_questions(path: Path, codes: tuple[str, ...], _truth: object) -> Questions:
    own = OwnItems(kind="items", path=str(path), split_by=None)
    config = TasksConfig(benchmarks=(), own={"quiz": own}, missing="refuse", items="all", limit=None, fewshot=None, batch_size="auto")
    found: Questions = {}
    for instance in load_tasks(config, codes).instances:
        asked: list[Asked] = []
        for question in instance.questions:
            texts, choices = zip(*(request.args for request in question.requests), strict=True)
            assert len(set(texts)) == 1
            assert all(choice.startswith(" ") for choice in choices)
            asked.append((texts[0], tuple(choice[1:] for choice in choices), int(instance.task.doc_to_target(question.document))))  # pyrefly: ignore
        found[instance.entry.language] = asked
    return found


READERS: dict[str, Callable[[Path, tuple[str, ...], Any], Any]] = {"corpus": read_corpus, "scores": read_score_file, "questions": read_questions}


def outcome(example: Example, folder: Path) -> str | None:
    """What is wrong with how an example is read; None where nothing is."""
    path = lay_out(example, folder)
    before = corpora.snapshot(folder)
    try:
        found = READERS[example.kind](path, example.codes, example.truth)
    except UserError as error:
        message = str(error)
        if example.has_to_be_read:
            return f"is refused: {message}"
        unnamed = [line for line in message.splitlines() if not any(str(folder / name) in line for name in (example.path, *example.files))]
        return f"is refused without its name, or in pieces: {message!r}" if unnamed or not message else None
    except Exception as error:  # noqa: BLE001 (collected, so that one run tells all)
        return f"ends in {type(error).__name__}: {str(error)[:200]}"
    finally:
        assert corpora.snapshot(folder) == before, f"{example}: a file was touched"
    if example.truth is None:
        return f"is read, though nothing in it may be: {str(found)[:300]}"
    return None if found == example.truth else f"is read as {str(found)[:300]} where it says {str(example.truth)[:300]}"


@pytest.mark.parametrize("part", range(PARTS))
def test_what_is_read_is_what_stands_there(part: int, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    wrong = []
    for number, example in enumerate(all_examples()[part::PARTS]):
        folder = tmp_path / str(number)
        folder.mkdir()
        if problem := outcome(example, folder):
            wrong.append(f"{example}\n    {problem}")
    assert not wrong, f"{len(wrong)}:\n" + "\n".join(wrong)
    assert not recwarn.list
