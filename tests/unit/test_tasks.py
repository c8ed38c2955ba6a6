"""Which items are asked: by hand, by properties over random orders of rows, and on small files of the user's."""

import itertools
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from lingact.catalogue.benchmarks import entry, family
from lingact.config.tasks import OwnItems, TasksConfig
from lingact.errors import UserError
from lingact.evaluation.selection import Shared, TaskItems, allot, choose, corresponding
from lingact.evaluation.task_files import TaskSource
from lingact.evaluation.task_items import fact_names
from lingact.evaluation.tasks import TaskInstance, Tasks, load_tasks

calmly = settings(max_examples=100, deadline=None, derandomize=True, database=None)

# --- in proportion -------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "limit", "expected"),
    [
        ({"a": 50, "b": 30, "c": 20}, 10, {"a": 5, "b": 3, "c": 2}),
        ({"a": 6, "b": 3, "c": 1}, 3, {"a": 2, "b": 1, "c": 0}),  # 1.8, 0.9, 0.3
        ({"a": 5, "b": 4, "c": 3}, 4, {"a": 2, "b": 1, "c": 1}),  # 1.67, 1.33, 1
        ({"c": 1, "b": 1, "a": 1}, 2, {"c": 0, "b": 1, "a": 1}),  # a tie: by name, not by place
        ({"a": 3, "b": 1}, 2, {"a": 2, "b": 0}),  # 1.5, 0.5
        ({"b": 3, "a": 1}, 2, {"b": 1, "a": 1}),
        ({"a": 2, "b": 3}, 5, {"a": 2, "b": 3}),
        ({"a": 2, "b": 3}, 9, {"a": 2, "b": 3}),
        ({"a": 2, "b": 3}, None, {"a": 2, "b": 3}),
        ({}, 3, {}),
    ],
)
def test_allotting_by_largest_remainders(sizes: dict[str, int], limit: int | None, expected: dict[str, int]) -> None:
    assert allot(sizes, limit) == expected


@calmly
@given(st.dictionaries(st.text("abcdef", min_size=1, max_size=2), st.integers(1, 40), min_size=1), st.integers(1, 200))
def test_allotted_are_so_many_in_all_and_each_within_one_of_its_share(sizes: dict[str, int], limit: int) -> None:
    taken, total = allot(sizes, limit), sum(sizes.values())
    assert sum(taken.values()) == min(limit, total)
    assert taken.keys() == sizes.keys()
    assert all(0 <= taken[name] <= size and abs(taken[name] - min(limit, total) * size / total) < 1 for name, size in sizes.items())


# --- the same items in every language -----------------------------------------------------------------------------------------------------------


def language(code: str, keys: Sequence[str | None] | str, strata: str | None = None, proofs: str | None = None, task: str = "") -> TaskItems:
    """Documents named by single letters."""
    nothing = [None] * len(keys)
    return TaskItems(code, list(keys), list(strata) if strata else nothing, list(proofs) if proofs else nothing, task or f"quiz_{code}")


def chosen_names(tasks: Sequence[TaskItems], *, limit: int | None, only_shared: bool = True) -> list[list[str | None]]:
    """What is chosen, in the order of the documents."""
    _, places = choose(tasks, limit=limit, only_shared=only_shared)
    assert all(sorted(set(own)) == own for own in places)
    return [[task.keys[place] for place in own] for task, own in zip(tasks, places, strict=True)]


def test_languages_get_the_same_items_in_whatever_order_they_have_them() -> None:
    forward, backward, turned = chosen_names([language("en", "abcdefgh"), language("es", "hgfedcba"), language("hi", "cdefghab")], limit=3)
    assert len(set(forward)) == 3
    assert backward == forward[::-1]
    assert set(turned) == set(forward)
    assert chosen_names([language("en", "hgfedcba")], limit=3) == [backward]


def test_more_items_are_the_same_ones_and_others() -> None:
    chosen = [set(chosen_names([language("en", "abcdefgh")], limit=limit)[0]) for limit in range(1, 9)]
    assert [len(names) for names in chosen] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert all(few < many for few, many in itertools.pairwise(chosen))
    assert chosen_names([language("en", "abcdefgh")], limit=3) != [["a", "b", "c"]], "no prefix of the data: those are sorted by subject"


def test_strata_keep_their_proportion() -> None:
    tasks = [language("en", "abcdefghijkl", "xxxxxxxxyyyy"), language("es", "lkjihgfedcba", "yyyyxxxxxxxx")]
    for names in chosen_names(tasks, limit=3):
        assert (len(set("abcdefgh") & set(names)), len(set("ijkl") & set(names))) == (2, 1)
    for names in chosen_names(tasks, limit=6):
        assert (len(set("abcdefgh") & set(names)), len(set("ijkl") & set(names))) == (4, 2)


def test_a_limit_beyond_the_data_takes_all() -> None:
    assert chosen_names([language("en", "abc"), language("es", "cab")], limit=99) == [["a", "b", "c"], ["c", "a", "b"]]


def test_items_that_not_every_language_has() -> None:
    tasks = [language("en", "abcde"), language("es", "dcbax"), language("hi", "abcd")]
    assert corresponding(tasks) == Shared(("en", "es", "hi"), frozenset("abcd"))
    assert chosen_names(tasks, limit=None) == [list("abcd"), list("dcba"), list("abcd")]
    assert chosen_names(tasks, limit=None, only_shared=False) == [list("abcde"), list("dcbax"), list("abcd")]
    limited = chosen_names(tasks, limit=2, only_shared=False)
    assert limited == chosen_names(tasks, limit=2)
    assert set(limited[0]) <= set("abcd")
    assert len({tuple(sorted(map(str, names))) for names in limited}) == 1


def test_a_language_without_names_is_chosen_by_itself() -> None:
    tasks = [language("en", "abcdef"), language("mr", [None] * 6, "xxxxyy"), language("es", "fedcba")]
    shared, places = choose(tasks, limit=3, only_shared=True)
    assert shared == Shared(("en", "es"), frozenset("abcdef"))
    assert [5 - place for place in reversed(places[2])] == places[0]
    assert len([place for place in places[1] if place < 4]) == 2
    assert len([place for place in places[1] if place >= 4]) == 1
    _, whole = choose(tasks, limit=None, only_shared=True)
    assert whole[1] == [0, 1, 2, 3, 4, 5]


def test_one_unnamed_document_makes_its_language_unnamed() -> None:
    assert corresponding([language("en", "abcd"), language("mr", ["a", "b", "c", None]), language("es", "abcd")]) == Shared(
        ("en", "es"), frozenset("abcd")
    )
    assert corresponding([language("en", "ab"), language("mr", [None, None])]) is None


def test_one_language_alone_corresponds_to_itself() -> None:
    assert corresponding([language("en", "abc")]) == Shared(("en",), frozenset("abc"))
    assert corresponding([language("en", [None, None])]) is None


def test_a_language_whose_proofs_say_other_items_is_left_out() -> None:
    tasks = [language("en", "abcd", proofs="wxyz"), language("es", "dcba", proofs="zyxw"), language("hi", "abcd", proofs="xwyz")]
    shared, places = choose(tasks, limit=2, only_shared=True)
    assert shared == Shared(("en", "es"), frozenset("abcd"))
    assert [3 - place for place in reversed(places[1])] == places[0]
    assert len(places[2]) == 2
    alike = [language(code, "abcd") for code in ("en", "es", "hi")]
    assert corresponding(alike) == Shared(("en", "es", "hi"), frozenset("abcd")), "without proofs the names are believed"


def test_the_first_language_does_not_set_the_measure_against_the_others() -> None:
    tasks = [language("en", "abcd", proofs="xwyz"), language("es", "abcd", proofs="wxyz"), language("hi", "abcd", proofs="wxyz")]
    assert corresponding(tasks) == Shared(("es", "hi"), frozenset("abcd"))


def test_one_wrong_proof_in_a_hundred_is_forgiven_two_are_not() -> None:
    names = [f"n{i}" for i in range(200)]
    nothing = [None] * 200
    english = TaskItems("en", names, nothing, names)
    for wrong, agree in ((2, True), (3, False)):
        proofs = [*("?" * wrong), *names[wrong:]]
        assert (corresponding([english, TaskItems("es", names, nothing, proofs)]) is not None) is agree
    missing = [None] * 190
    assert corresponding([english, TaskItems("es", names, nothing, [*missing, "?", *names[191:]])]) is None, (
        "of ten that can be compared one is wrong"
    )


def test_names_of_which_fewer_than_half_are_shared_are_no_names() -> None:
    assert corresponding([language("en", "abcd"), language("es", "cdef")]) == Shared(("en", "es"), frozenset("cd"))
    assert corresponding([language("en", "abcde"), language("es", "defgh")]) is None
    assert corresponding([language("en", "abcdefgh"), language("es", "ab")]) == Shared(("en", "es"), frozenset("ab")), "of the smaller one"
    shared, places = choose([language("en", "abcd"), language("es", "defg")], limit=None, only_shared=True)
    assert (shared, places) == (None, [[0, 1, 2, 3], [0, 1, 2, 3]]), "all that there are, though not shared"


def test_a_language_in_several_tasks_is_one_language() -> None:
    tasks = [
        language("en", "abcd", "xxxx", task="en_x"),
        language("en", "ef", "yy", task="en_y"),
        language("es", "dcba", "xxxx", task="es_x"),
        language("es", "fe", "yy", task="es_y"),
    ]
    names = chosen_names(tasks, limit=3)
    assert [len(own) for own in names] == [2, 1, 2, 1]
    assert (names[2], names[3]) == (names[0][::-1], names[1][::-1])
    unnamed = [language("en", [None] * 4, task="en_x"), language("en", [None] * 2, task="en_y")]
    assert [len(own) for own in choose(unnamed, limit=3, only_shared=True)[1]] == [2, 1]


@st.composite
def benchmarks(draw: st.DrawFn) -> tuple[list[list[str]], int, bool]:
    """Names of items in three languages, each of which lacks at most a few at random."""
    names = [f"{'xyz'[i % 3]}{i}" for i in range(draw(st.integers(2, 24)))]
    lacking = st.sets(st.sampled_from(names), max_size=len(names) // 6)
    return [sorted(set(names) - draw(lacking)) for _ in range(3)], draw(st.integers(1, 30)), draw(st.booleans())


def documents(names: Sequence[str], code: str) -> TaskItems:
    return TaskItems(code, list(names), [name[0] for name in names], [f"p{name}" for name in names])


@calmly
@given(benchmarks(), st.data())
def test_the_order_of_rows_never_changes_the_chosen_items(benchmark: tuple[list[list[str]], int, bool], data: st.DataObject) -> None:
    by_language, limit, only_shared = benchmark
    codes = ("en", "es", "hi")
    plain = chosen_names([documents(names, code) for names, code in zip(by_language, codes, strict=True)], limit=limit, only_shared=only_shared)
    shuffled = [documents(data.draw(st.permutations(names)), code) for names, code in zip(by_language, codes, strict=True)]
    again = chosen_names(shuffled, limit=limit, only_shared=only_shared)
    assert [sorted(map(str, names)) for names in again] == [sorted(map(str, names)) for names in plain]
    assert set(plain[0]) == set(plain[1]) == set(plain[2]), "the same ones in every language"
    assert len(plain[0]) == min(limit, len(set.intersection(*map(set, by_language))))


# --- the user's own items -----------------------------------------------------------------------------------------------------------------------

ITEMS: list[dict[str, Any]] = [
    {"id": "sky", "kind": "seen", "question": "What colour is the sky?", "choices": ["red", "blue", "green"], "answer": 1, "source": "w"},
    {"id": "sum", "kind": "counted", "question": "Two and three are", "choices": ["4", "5"], "answer": "5", "source": "x"},
    {"id": "dog", "kind": "seen", "question": "A dog is an", "choices": ["animal", "stone", "animal?", "hour"], "answer": "animal", "source": "y"},
]
SPANISH: list[dict[str, Any]] = [
    {"id": "dog", "kind": "seen", "question": "Un perro es", "choices": ["un animal", "una piedra"], "answer": 0},
    {"id": "sky", "kind": "seen", "question": "¿De qué color es el cielo?", "choices": ["azul", "rojo"], "answer": "azul"},
    {"id": "sea", "kind": "seen", "question": "El mar es de", "choices": ["agua", "pan"], "answer": "agua"},
]


def write(folder: Path, code: str, items: Sequence[dict[str, Any]]) -> None:
    (folder / f"quiz_{code}.jsonl").write_text("".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items), encoding="utf-8")


def asked(folder: Path, languages: Sequence[str] = ("en",), split_by: str | None = None, **changes: Any) -> Tasks:
    own = {"quiz": {"kind": "items", "path": f"{folder}/quiz_{{lang}}.jsonl", "split_by": split_by}}
    settings = {"benchmarks": [], "own": own, "missing": "refuse", "items": "shared", "limit": None, "fewshot": None, "batch_size": 1}
    return load_tasks(TasksConfig.model_validate(settings | changes), languages)


def one(folder: Path, items: Sequence[dict[str, Any]] = ITEMS, **changes: Any) -> TaskInstance:
    write(folder, "en", items)
    (instance,) = asked(folder, **changes).instances
    return instance


def test_own_items_become_questions(tmp_path: Path) -> None:
    instance = one(tmp_path, split_by="kind")
    assert (instance.entry.task, instance.entry.benchmark, instance.entry.language, instance.total, instance.shared) == (
        "quiz_en",
        "quiz",
        "en",
        3,
        3,
    )
    assert [(q.doc_id, q.item, q.kind) for q in instance.questions] == [(0, "quiz/sky", "seen"), (1, "quiz/sum", "counted"), (2, "quiz/dog", "seen")]
    asked_for = [[request.args for request in question.requests] for question in instance.questions]
    assert asked_for[0] == [("What colour is the sky?", " red"), ("What colour is the sky?", " blue"), ("What colour is the sky?", " green")]
    assert asked_for[1] == [("Two and three are", " 4"), ("Two and three are", " 5")]
    assert [instance.task.doc_to_target(question.document) for question in instance.questions] == [1, 1, 0]
    assert len(instance.requests) == 9
    assert instance.texts == ["What colour is the sky? blue", "Two and three are 5", "A dog is an animal"]


def test_without_a_column_of_kinds_there_are_none(tmp_path: Path) -> None:
    assert {question.kind for question in one(tmp_path).questions} == {None}
    with pytest.raises(
        UserError, match=r"quiz_en\.jsonl has no column 'kinds' \(tasks\.own\.quiz\.split_by; there: id, kind, question, choices, answer, s"
    ):
        one(tmp_path, split_by="kinds")


def test_only_shared_items_of_two_languages_are_asked(tmp_path: Path) -> None:
    write(tmp_path, "en", ITEMS)
    write(tmp_path, "es", SPANISH)
    english, spanish = asked(tmp_path, ("en", "es")).instances
    assert [question.item for question in english.questions] == ["quiz/sky", "quiz/dog"]
    assert [question.item for question in spanish.questions] == ["quiz/dog", "quiz/sky"]
    assert [question.doc_id for question in spanish.questions] == [0, 1]
    assert ((english.total, english.shared), (spanish.total, spanish.shared)) == ((3, 2), (3, 2))
    assert spanish.texts == ["Un perro es un animal", "¿De qué color es el cielo? azul"]
    english, spanish = asked(tmp_path, ("en", "es"), items="all").instances
    assert [question.item for question in spanish.questions] == ["quiz/dog", "quiz/sky", "quiz/sea"]
    (first, second) = asked(tmp_path, ("en", "es"), limit=1).instances
    assert first.questions[0].item == second.questions[0].item


def test_items_without_ids_are_asked_in_each_language_by_themselves(tmp_path: Path) -> None:
    for code, items in (("en", ITEMS), ("es", SPANISH)):
        write(tmp_path, code, [{name: value for name, value in item.items() if name != "id"} for item in items])
    english, spanish = asked(tmp_path, ("en", "es")).instances
    assert [question.item for question in (*english.questions, *spanish.questions)] == [None] * 6
    assert english.shared is None
    assert len(asked(tmp_path, ("en", "es"), limit=2).instances[1].questions) == 2


def test_questions_on_one_passage_are_one_fact() -> None:
    source = TaskSource(entry(family("belebele"), "hi"), Path("belebele_hin_Deva.yaml"), family("belebele"))
    rows = [{"link": "w/oslo", "question_number": 1}, {"link": "w/oslo", "question_number": 2}, {"link": "w/rome", "question_number": 1}]
    assert fact_names(source, rows, ["w/oslo 1", "w/oslo 2", "w/rome 1"]) == ["belebele/w/oslo", "belebele/w/oslo", "belebele/w/rome"]
    assert fact_names(source, rows, None)[1:] == ["belebele/hi/w/oslo", "belebele/hi/w/rome"], "in a language by itself"


def test_an_id_that_comes_twice_is_refused(tmp_path: Path) -> None:
    # Numbered in their order they would be paired with other items where another language has another order.
    write(tmp_path, "en", [{**ITEMS[i % 3], "id": name} for i, name in enumerate(["a", "b", " a", 7, "7"])])
    with pytest.raises(
        UserError, match=re.escape(f"{tmp_path / 'quiz_en.jsonl'}, line 3: the id 'a' is also that of line 1; every item needs its own id")
    ):
        asked(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"answer": 3}, "answer is 3; give the place of the right choice, from 0 to 1, or its text"),
        ({"answer": -1}, "answer is -1; give"),
        ({"answer": 1.0}, "answer is 1.0; give"),
        ({"answer": True}, "answer is a boolean (true or false); give"),
        ({"answer": None}, "answer is null; give"),
        ({"answer": "6"}, "answer is '6'; give"),
        ({"choices": ["5", "4", "5"]}, "answer is '5', which is the text of 2 choices; give the place of the right one, from 0 to 2"),
        ({"choices": ["5", "4", "5 "], "answer": 0}, "choices contains the right one, '5', more than once; remove the others"),
        ({"choices": [1.5, "4", "1.5"], "answer": 2}, "choices contains the right one, '1.5', more than once"),
        ({"question": "a\0b"}, "question is 'a\\x00b', which contains a NUL character"),
        ({"choices": ["5"]}, "choices must be a list of at least two texts or numbers"),
        ({"choices": ["", "5"]}, "choices must be a list of at least two texts or numbers; one is '', which is empty"),
        ({"choices": ["5", "\u200b"]}, "choices must be a list of at least two texts or numbers; one is '\\u200b', which is empty"),
        ({"choices": ["5", None]}, "choices must be a list of at least two texts or numbers; one is null"),
        ({"choices": "45"}, "choices must be a list of at least two texts or numbers"),
        (
            {"choices": [1, 2, 3], "answer": 1},
            "answer is the number 1, which is the place of one choice and the value of another; write the right choice as text",
        ),
        ({"choices": [0.5, 1.0, 0], "answer": 0}, "answer is the number 0, which is the place of one choice and the value of another"),
        ({"choices": [4, 5], "answer": 5}, "answer is 5; give the place of the right choice, from 0 to 1, or its text"),
        ({"question": None}, "question is null; give a text or a number"),
        ({"question": ["Two", "and"]}, "question is a list; give"),
        ({"question": float("nan")}, "question is the number NaN; give"),
        ({"question": " \n"}, "question is ' \\n', which is empty; give"),
        ({"question": False}, "question is a boolean (true or false); give"),
        ({"question": "\ud83d"}, "not JSON (half a surrogate pair (\\ud83d), which is no character)"),
        ({"id": 1.5}, "id is the number 1.5; give a text or a whole number"),
        ({"id": None}, "id is missing, but other rows have it; give it in all rows or in none"),
    ],
)
def test_items_that_cannot_be_asked_are_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "quiz_en.jsonl").write_text(json.dumps(ITEMS[0]) + "\n" + json.dumps(ITEMS[1] | changes) + "\n")
    with pytest.raises(UserError, match=re.escape(f"{tmp_path / 'quiz_en.jsonl'}, line 2: {message}")):
        asked(tmp_path)


@pytest.mark.parametrize(
    ("written", "text"),
    [("12", "12"), ("12.50", "12.50"), ("-0", "-0"), ("1e3", "1e3"), ('"12"', "12"), ('"\u00b2"', "\u00b2"), ('"7"', "7"), ('"{{answer}}"', "{{answer}}"), ('"\u0667"', "\u0667"), ('"[1, 2]"', "[1, 2]")],
)  # fmt: skip
@pytest.mark.parametrize("place", [0, 1])
def test_numbers_and_figures_are_asked_as_they_are_written(written: str, text: str, place: int, tmp_path: Path) -> None:
    """lm-eval takes what a template makes of them for the place of a choice, if the first item asks it for the whole benchmark."""
    lines = [json.dumps(ITEMS[0]), f'{{"id": 7, "question": {written}, "choices": ["99", {written}, 5.0], "answer": 2}}']
    (tmp_path / "quiz_en.jsonl").write_text("\n".join(lines[:: 1 if place else -1]))
    (instance,) = asked(tmp_path).instances
    question = instance.questions[place]
    assert [request.args for request in question.requests] == [(text, " 99"), (text, f" {text}"), (text, " 5.0")]
    assert instance.texts[place] == f"{text} 5.0"
    assert question.item == "quiz/7"
    assert instance.texts[1 - place] == "What colour is the sky? blue"


def test_an_answer_is_a_place_or_the_text_of_a_choice(tmp_path: Path) -> None:
    def right(choices: list[Any], answer: Any) -> int:
        (tmp_path / "quiz_en.jsonl").write_text(json.dumps({"question": "?", "choices": choices, "answer": answer}))
        (instance,) = asked(tmp_path).instances
        return instance.task.doc_to_target(instance.questions[0].document)  # pyrefly: ignore[bad-return]

    assert right(["1", "2", "3"], 1) == 1, "a number is a place where choices are texts"
    assert right(["1", "2", "3"], "1") == 0
    assert right([1, 2, 3], "3") == 2
    assert right([0, 1], 1) == 1, "place and value are one"
    assert right(["4", 5, 5.5], 0) == 0
    assert right(["Z\u00fcrich", "Bern"], "Zu\u0308rich") == 0, "another Unicode form of the same text"
    assert right(["A", "a"], "a") == 1, "the very text goes before one of another case"


def test_all_items_that_cannot_be_asked_are_told_at_once(tmp_path: Path) -> None:
    write(tmp_path, "en", [ITEMS[0], *[{"question": "?"}] * 2, *[ITEMS[0] | {"answer": 9}] * 13])
    with pytest.raises(UserError) as caught:
        asked(tmp_path)
    lines = str(caught.value).splitlines()
    assert [line.partition(": ")[2].split(": ")[0].rpartition(", ")[2] for line in lines[:3]] == ["line 2", "line 3", "line 4"]
    assert lines[-1].endswith("quiz_en.jsonl: and 3 more items")


def test_only_the_columns_that_are_asked_for_are_judged(tmp_path: Path) -> None:
    write(tmp_path, "en", [ITEMS[0] | {"source": 1.5, "more": {"x": [1]}}, ITEMS[1] | {"source": None, "more": "text"}])
    assert [question.item for question in asked(tmp_path).instances[0].questions] == ["quiz/sky", "quiz/sum"]
    for item, kind in ((ITEMS[0] | {"kind": 3}, "3"), (ITEMS[0] | {"kind": "Zu\u0308"}, "Z\u00fc")):
        write(tmp_path, "en", [item])
        assert [question.kind for question in asked(tmp_path, split_by="kind").instances[0].questions] == [kind]
    write(tmp_path, "en", [ITEMS[0], {name: value for name, value in ITEMS[1].items() if name != "kind"}])
    with pytest.raises(UserError, match=r"line 2: kind is missing, but other rows have it"):
        asked(tmp_path, split_by="kind")


def test_ids_under_a_name_in_other_letters_are_not_passed_over(tmp_path: Path) -> None:
    write(tmp_path, "en", [{"ID" if name == "id" else name: value for name, value in item.items()} for item in ITEMS])
    with pytest.raises(UserError, match=r"quiz_en\.jsonl has a column 'ID', but names are read from 'id'"):
        asked(tmp_path)


@pytest.mark.parametrize("ending", ["csv", "yaml", "parquet", "ndjson"])
def test_a_file_of_items_that_is_no_json_is_refused_by_its_name(ending: str, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=rf"quiz_{{lang}}\.{ending}' ends neither in \.jsonl nor in \.json"):
        OwnItems(kind="items", path=str(tmp_path / f"quiz_{{lang}}.{ending}"), split_by=None)
    assert OwnItems(kind="items", path="quiz_{lang}.JSONL", split_by=None).path == "quiz_{lang}.JSONL"


def test_items_without_the_columns_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"line 1: an item must be an object with question, choices and answer \(there: question, answer\)"):
        one(tmp_path, [{"question": "?", "answer": 0}])
    (tmp_path / "quiz_en.jsonl").write_text("[1, 2]")
    with pytest.raises(UserError, match=r"item 1: an item must be an object with question, choices and answer\n.*item 2: an item must be"):
        asked(tmp_path)


def test_missing_files_are_refused_or_skipped(tmp_path: Path) -> None:
    write(tmp_path, "en", ITEMS)
    with pytest.raises(UserError, match=r"'quiz' lacks es, hi; it has en\. Leave out those languages"):
        asked(tmp_path, ("en", "es", "hi"))
    skipping = asked(tmp_path, ("en", "es", "hi"), missing="skip")
    assert skipping.skipped == {"quiz": ("es", "hi")}
    assert [instance.entry.language for instance in skipping.instances] == ["en"]
    with pytest.raises(UserError, match="none of quiz has any of the languages es, hi; choose others"):
        asked(tmp_path, ("es", "hi"), missing="skip")
    (tmp_path / "quiz_en.jsonl").unlink()
    with pytest.raises(UserError, match=r"tasks\.own\.quiz\.path: there is no file '.*/quiz_en\.jsonl', and none for any other language"):
        asked(tmp_path)


# --- what is asked, hashed ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"question": "What colour is the sea?"}, False),
        ({"choices": ["red", "blue", "grey"]}, False),
        ({"choices": ["green", "blue", "red"]}, False),
        ({"answer": 2}, False),
        ({"answer": "blue"}, True),
        ({"source": "elsewhere"}, True),
        ({"kind": "heard"}, True),
        ({"id": "heaven"}, True),
    ],
    ids=["question", "option", "order of options", "right answer", "answer as text", "other column", "kind", "id"],
)
def test_the_hash_follows_from_what_is_asked_and_nothing_else(changes: dict[str, Any], same: bool, tmp_path: Path) -> None:
    plain = one(tmp_path)
    again = one(tmp_path, [ITEMS[0] | changes, *ITEMS[1:]])
    assert len(plain.sha256) == 64
    assert (plain.sha256 == again.sha256) is same


def test_the_hash_is_of_the_chosen_questions(tmp_path: Path) -> None:
    whole = one(tmp_path)
    few = one(tmp_path, limit=2)
    assert whole.sha256 != few.sha256
    places = [question.doc_id for question in few.questions]
    other = next(place for place in range(3) if place not in places)
    changed = [item | {"question": "Something else?"} if place == other else item for place, item in enumerate(ITEMS)]
    assert one(tmp_path, changed, limit=2).sha256 == few.sha256
    assert asked(tmp_path, limit=2).identity == {"quiz_en": {"items": 2, "sha256": few.sha256}}


# --- examples before the question ---------------------------------------------------------------------------------------------------------------


def as_task_file(folder: Path, **changes: Any) -> Tasks:
    """The English items through a task file of lm-eval's kind."""
    write(
        folder,
        "en",
        [item | {"answer": item["choices"].index(item["answer"]) if isinstance(item["answer"], str) else item["answer"]} for item in ITEMS],
    )
    write(folder, "examples", [{"question": "Snow is", "choices": ["white", "hot"], "answer": 0}])
    definition = {
        "task": "quiz_en",
        "output_type": "multiple_choice",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": "quiz_en.jsonl", "train": "quiz_examples.jsonl"}},
        "test_split": "test",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
    }
    fewshot = changes.pop("fewshot", None)
    (folder / "quiz_en.yaml").write_text(yaml.safe_dump(definition | changes))
    own = {"quiz": {"kind": "lm_eval", "folder": folder, "task": "quiz_{lang}", "key": ["id"], "facts": True, "split_by": None}}
    return asked(folder, own=own, fewshot=fewshot)


def test_task_files_whose_questions_are_numbers_name_the_item(tmp_path: Path) -> None:
    """Their templates go through lm-eval, to which a number is the place of a choice."""
    folder = tmp_path / "later"
    folder.mkdir()
    with (
        patched(ITEMS, 1, {"question": "12"}),
        pytest.raises(UserError, match=r"'quiz_en' does not fit item 2 of its data \(AssertionError: .*: 12\)"),
    ):
        as_task_file(folder)
    with (
        patched(ITEMS, 0, {"question": "1"}),
        pytest.raises(
            UserError, match=r"'quiz_en' has questions that are numbers \(item 1: 1\), which lm-eval takes for the place of a ch.*item 2 is"
        ),
    ):
        as_task_file(tmp_path)
    with patched(ITEMS, 0, {"question": "12"}):
        (instance,) = as_task_file(tmp_path, doc_to_text="Question: {{question}}").instances
    assert instance.questions[0].requests[0].args[0] == "Question: 12"


@contextmanager
def patched(items: list[dict[str, Any]], place: int, changes: dict[str, Any]) -> Iterator[None]:
    before = items[place]
    items[place] = before | changes
    try:
        yield
    finally:
        items[place] = before


@pytest.mark.parametrize(
    "content",
    [b"task: quiz_en\n\xff", b"task: quiz_en\na: [", b"task: quiz_en\n- a", b"task: quiz_en\ninclude: none.yaml", b"task: quiz_\xff\n", b"task: quiz_en\ndataset_path: json\ndataset_kwargs: {data_files: 3}"],
)  # fmt: skip
def test_task_files_that_are_damaged_are_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "quiz_en.yaml").write_bytes(content)
    (tmp_path / "gone.yaml").symlink_to(tmp_path / "none")
    own = {"quiz": {"kind": "lm_eval", "folder": tmp_path, "task": "quiz_{lang}", "key": ["id"], "facts": True, "split_by": None}}
    with pytest.raises(UserError, match=r"^tasks"):
        asked(tmp_path, own=own)


def test_examples_from_the_questions_themselves_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"tasks\.fewshot: 'quiz_en' has no examples but its own questions \('test'\), answers included; use tasks\.few"
    ):
        as_task_file(tmp_path, fewshot=2)
    with pytest.raises(UserError, match=r"tasks\.fewshot: 'quiz_en' has no examples"):
        as_task_file(tmp_path, num_fewshot=1)
    assert len(as_task_file(tmp_path, fewshot=0).instances[0].questions) == 3


@pytest.mark.parametrize("splits", [{"fewshot_split": "test"}, {"test_split": None, "validation_split": "test"}], ids=["named", "validation"])
def test_where_the_asked_question_is_left_out_others_may_be_its_examples(splits: dict[str, str | None], tmp_path: Path) -> None:
    (instance,) = as_task_file(tmp_path, **splits, fewshot=2).instances
    for question in instance.questions:
        own, prompt = question.document["question"], question.requests[0].args[0]
        assert prompt.endswith(f"\n\n{own}")
        assert [prompt.count(item["question"]) for item in ITEMS] == [1, 1, 1]


def test_examples_from_the_questions_under_another_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'quiz_en' has no examples but its own questions \('test'\)"):
        as_task_file(tmp_path, test_split=None, validation_split="test", fewshot_split="test", fewshot=2)
    samples = [{"question": "Ice is", "choices": ["cold", "hot"], "answer": 0}]
    (instance,) = as_task_file(tmp_path, fewshot_config={"samples": samples, "sampler": "first_n"}, fewshot=1).instances
    assert instance.questions[2].requests[0].args == ("Ice is cold\n\nA dog is an", " animal")


def test_examples_from_a_split_of_their_own_stand_before_the_question(tmp_path: Path) -> None:
    (instance,) = as_task_file(tmp_path, training_split="train", fewshot=1).instances
    assert instance.questions[0].requests[1].args == ("Snow is white\n\nWhat colour is the sky?", " blue")
    assert instance.texts[0] == "What colour is the sky? blue", "the example is no part of what the item asks"
    assert instance.questions[0].item == "yours/sky", "facts have one name in all benchmarks"
    (plain,) = as_task_file(tmp_path, training_split="train").instances
    assert plain.questions[0].requests[1].args == ("What colour is the sky?", " blue")
    assert plain.sha256 != instance.sha256


def test_a_task_that_says_no_examples_gets_none(tmp_path: Path) -> None:
    (instance,) = as_task_file(tmp_path, training_split="train", num_fewshot=0, fewshot=1).instances
    assert instance.questions[0].requests[0].args[0] == "What colour is the sky?"


def test_tasks_that_are_not_multiple_choice_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'quiz_en' has the output type generate_until; only multiple_choice tasks are compared item by item"):
        as_task_file(tmp_path, output_type="generate_until", doc_to_choice=None)
