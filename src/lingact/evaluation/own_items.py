"""Benchmark items that the user has written: a JSONL file with question, choices and answer."""

import functools
from collections import Counter
from collections.abc import Sequence

from lingact.data.text import plain
from lingact.errors import UserError
from lingact.evaluation.task_files import NAMED_AT_MOST, Document, TaskDefinition, TaskSource, data_rows, in_memory
from lingact.files.records import Numeral
from lingact.files.tables import Table, kind_of, refuse_other_case


def own_definition(source: TaskSource) -> TaskDefinition:
    """The lm-eval task for a JSONL file of the user.

    Raises:
        UserError: the file cannot be read, or with all items that cannot be asked.
    """
    rows, problems = [], []
    columns = [name for name in ("id", source.family.kind) if name and name not in ("question", "choices", "answer")]
    read = data_rows(source.file, as_written=True)
    for where, row in read:
        try:
            rows.append(_own_item(row))
        except ValueError as error:
            problems.append(f"{where}: {error}")
    if not problems:
        refuse_other_case(str(source.file), dict.fromkeys(key for _, row in read for key in row), "id")
        table = Table(str(source.file), (), [row for _, row in read], [where.removeprefix(f"{source.file}, ") for where, _ in read])
        for column in columns:
            names = table.names(column)
            if names is None and column == source.family.kind:
                there = ", ".join(dict.fromkeys(key for row in table.rows for key in row))
                problems.append(f"{source.file} has no column '{column}' (tasks.own.{source.entry.benchmark}.split_by; there: {there})")
            if column == "id" and (twice := [key for key, count in Counter(names or ()).items() if count > 1]):
                first, second, *_ = (place for place, name in zip(table.places, names or (), strict=True) if name == twice[0])
                problems.append(f"{source.file}, {second}: the id '{twice[0]}' is also that of {first}; every item needs its own id")
            for row, name in zip(rows, names or (), strict=bool(names)):
                row[column] = name
    if problems:
        more = [f"{source.file}: and {len(problems) - NAMED_AT_MOST} more items"] if len(problems) > NAMED_AT_MOST else []
        raise UserError("\n".join(f"tasks: {problem}" for problem in [*problems[:NAMED_AT_MOST], *more]))
    # Column names, not templates: lm-eval would take the rendered text `12` or `²` for the place of a choice.
    return {
        "task": source.entry.task,
        "output_type": "multiple_choice",
        "custom_dataset": functools.partial(in_memory, {"test": rows}),
        "test_split": "test",
        "doc_to_text": "question",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "num_fewshot": 0,
        "metric_list": [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm")],
        "metadata": {"version": 1.0},
    }


def _own_item(row: object) -> Document:
    """The item in the form that is asked: question and choices as texts, the answer as a place.

    Numbers in question and choices are kept as they are written. An answer that is a number is the place of the right choice; an answer that is a
    text is the right choice itself.

    Raises:
        ValueError: it cannot be asked.
    """
    if not isinstance(row, dict) or not {"question", "choices", "answer"} <= row.keys():
        there = f" (there: {', '.join(row)})" if isinstance(row, dict) else ""
        raise ValueError(f"an item must be an object with question, choices and answer{there}")
    question, choices = row["question"], row["choices"]
    if not _is_asked(question):
        raise ValueError(f"question is {_shown(question)}; give a text or a number")
    if not isinstance(choices, list) or len(choices) < 2 or not all(_is_asked(choice) for choice in choices):
        strange = next((f"; one is {_shown(choice)}" for choice in choices if not _is_asked(choice)), "") if isinstance(choices, list) else ""
        raise ValueError(f"choices must be a list of at least two texts or numbers{strange}")
    texts, place = [str(choice) for choice in choices], _place_of_answer(row["answer"], choices)
    if sum(text.strip() == texts[place].strip() for text in texts) > 1:
        raise ValueError(f"choices contains the right one, '{texts[place]}', more than once; remove the others")
    return {"question": str(question), "choices": texts, "answer": place}


def _place_of_answer(answer: object, choices: Sequence[str]) -> int:
    allowed = f"give the place of the right choice, from 0 to {len(choices) - 1}, or its text"
    if isinstance(answer, Numeral):
        place = int(answer) if answer.isdecimal() and len(answer) < 10 else -1
        if not 0 <= place < len(choices):
            raise ValueError(f"answer is {answer}; {allowed}")
        if any(isinstance(choice, Numeral) and float(choice) == place and other != place for other, choice in enumerate(choices)):
            raise ValueError(
                f"answer is the number {answer}, which is the place of one choice and the value of another; write the right choice as text"
            )
        return place
    if not isinstance(answer, str):
        raise ValueError(f"answer is {_shown(answer)}; {allowed}")
    places = [place for place, choice in enumerate(choices) if choice == answer]
    places = places or [place for place, choice in enumerate(choices) if plain(choice) == plain(answer)]
    if len(places) > 1:
        raise ValueError(
            f"answer is '{answer}', which is the text of {len(places)} choices; give the place of the right one, from 0 to {len(choices) - 1}"
        )
    if not places:
        raise ValueError(f"answer is '{answer}'; {allowed}")
    return places[0]


def _is_asked(value: object) -> bool:
    """Whether it is a text that is not empty, or a finite number."""
    if isinstance(value, Numeral):
        return any(figure.isdigit() for figure in value)
    return isinstance(value, str) and bool(plain(value)) and "\0" not in value


def _shown(value: object) -> str:
    if isinstance(value, str) and "\0" in value:
        return f"{value!r}, which contains a NUL character"
    return f"{value!r}, which is empty" if isinstance(value, str) and not isinstance(value, Numeral) else kind_of(value)
