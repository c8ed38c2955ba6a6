"""Aligned text from files: what is read, who is in which split, and what is refused."""

import json
from pathlib import Path

import datasets
import pytest

from lingact.config import FilesCorpus, Splits
from lingact.corpus import ParallelCorpus, load_corpus, load_training_text, plain
from lingact.errors import UserError

SHARES = Splits(train=0.5, dev=0.2, heldout=0.3)
TEXTS = {"en": ("A dog.", "Two, or three.", "It says \u2028 no."), "id": ("Anjing.", "Dua, atau tiga.", "Katanya \x85 tidak.")}


def read(path: Path, codes: tuple[str, ...] = ("en", "id"), limit: int | None = None) -> ParallelCorpus:
    return load_corpus(FilesCorpus(kind="files", path=path, max_sentences=limit, splits=SHARES), codes)


def jsonl(path: Path, rows: list[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def quoted(text: str) -> str:
    return f'"{text}"'


def as_file(kind: str, folder: Path) -> Path:
    rows = list(zip(TEXTS["en"], TEXTS["id"], strict=True))
    path = folder / f"text.{kind}"
    match kind:
        case "jsonl":
            return jsonl(path, [{"en": en, "id": other} for en, other in rows])
        case "csv":
            path.write_text("en,id\n" + "".join(f"{quoted(en)},{quoted(other)}\n" for en, other in rows), encoding="utf-8")
        case "tsv":
            path.write_bytes(("\ufeffen\tid\r\n" + "".join(f"{en}\t{other}\r\n" for en, other in rows)).encode())
        case "parquet":
            datasets.Dataset.from_list([{"en": en, "id": other, "number": i, "note": None} for i, (en, other) in enumerate(rows)]).to_parquet(path)
        case "folder":
            path.mkdir()
            for code, texts in TEXTS.items():
                (path / f"{code}.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv", "parquet", "folder"])
def test_every_format_gives_the_same_corpus(kind: str, tmp_path: Path) -> None:
    # `id` is Indonesian, and other line breaks than the newline stay inside a text.
    corpus = read(as_file(kind, tmp_path))
    assert corpus.texts == TEXTS
    assert corpus.ids == ("row-000001", "row-000002", "row-000003")
    assert corpus.sha256 == ParallelCorpus("elsewhere", corpus.ids, dict(reversed(TEXTS.items()))).sha256
    assert corpus.sha256 != corpus.speaking(("en",)).sha256


def test_ids_come_from_the_column_unit(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "t.jsonl", [{"unit": "b-1", "en": "One.", "id": "Satu.", "xx": "?"}, {"unit": "a-2", "en": "Two.", "id": "Dua."}])
    assert read(path).ids == ("b-1", "a-2")
    assert read(path, limit=1).texts == {"en": ("One.",), "id": ("Satu.",)}


def test_blank_lines_between_rows_are_no_rows(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('\n{"en": "a", "id": "b"}\n\n{"en": "c", "id": "d"}\n')
    (tmp_path / "t.csv").write_text("en,id\n\na,b\nc,d\n\n")
    assert read(tmp_path / "t.jsonl").texts == read(tmp_path / "t.csv").texts == {"en": ("a", "c"), "id": ("b", "d")}


def long_corpus(count: int) -> ParallelCorpus:
    return ParallelCorpus("long", tuple(f"unit-{i}" for i in range(count)), {"en": tuple(f"Sentence {i}." for i in range(count))})


def test_splits_are_disjoint_complete_and_of_the_right_size() -> None:
    corpus = long_corpus(2000)
    parts = [corpus.split(name, SHARES) for name in ("train", "dev", "heldout")]
    ids = [part.ids for part in parts]
    assert sorted(i for part in ids for i in part) == sorted(corpus.ids)
    assert [len(part) / 2000 for part in ids] == pytest.approx([0.5, 0.2, 0.3], abs=0.05)
    assert all(text == f"Sentence {i.removeprefix('unit-')}." for part in parts for i, text in zip(part.ids, part.texts["en"], strict=True))
    assert corpus.split("all", SHARES) is corpus


def test_splits_stay_when_sentences_are_added_and_shuffled() -> None:
    few, many = long_corpus(100), long_corpus(300).select([*range(200, 300), *range(199, -1, -1)])
    assert (many.ids[0], many.texts["en"][0], many.ids[-1], many.texts["en"][-1]) == ("unit-200", "Sentence 200.", "unit-0", "Sentence 0.")
    for name in ("train", "dev", "heldout"):
        assert set(few.split(name, SHARES).ids) == set(many.split(name, SHARES).ids) & set(few.ids)


def test_an_empty_split_is_refused() -> None:
    corpus = long_corpus(1)
    empty = [name for name in ("train", "dev", "heldout") if not _has(corpus, name)]
    assert len(empty) == 2
    with pytest.raises(
        UserError, match=f"corpus 'long' has 1 sentences and none of them in the split '{empty[0]}'; give more text or a larger share"
    ):
        corpus.split(empty[0], SHARES)


def _has(corpus: ParallelCorpus, name: str) -> bool:
    try:
        return bool(corpus.split(name, SHARES).ids)
    except UserError:
        return False


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.jsonl", b"", "corpus '{path}' is empty; it needs one aligned sentence a line"),
        ("t.jsonl", b"\n\n", "corpus '{path}' is empty; it needs one aligned sentence a line"),
        ("t.csv", b"", "corpus '{path}' is empty; it needs one aligned sentence a line"),
        ("t.csv", b"en,id\n", "corpus '{path}' is empty; it needs one aligned sentence a line"),
        ("t.jsonl", b'{"en": "a", "id": "b"}\n{"en": "c"', "{path}, line 2: not JSON"),
        ("t.jsonl", b'["a", "b"]\n', "{path}, line 1: a list; every line must be one object with a key per language code"),
        ("t.jsonl", b'\n{"en": "a", "id": 3}\n', "{path}, line 2: id is the whole number 3, not a text; give the text itself"),
        ("t.jsonl", b'{"en": "a", "fr": "b"}\n', "corpus '{path}' has no id; it has en, fr. Add the missing text, or choose languages=... without them"),
        ("t.jsonl", b'{"english": "a"}\n', "corpus '{path}' has no en, id; it has no known language code among its keys english."),
        ("t.jsonl", b'{"en": "a", "id": "b"}\n{"en": "c", "id": " "}\n', "corpus '{path}' is ragged: line 2 lacks id (1 in all)"),
        ("t.jsonl", b'{"en": "a", "id": "b"}\n' + b'{"en": "c"}\n' * 6, "line 2 lacks id, line 3 lacks id, line 4 lacks id, line 5 lacks id, line 6 lacks id and more (6 in all)"),
        ("t.csv", b"en,id\na\n", "{path}, line 2: 1 cells where the header has 2; quote cells that contain the separator"),
        ("t.tsv", b"en\tid\na\tb\tc\n", "{path}, line 2: 3 cells where the header has 2"),
        ("t.csv", b"en,id,en\na,b,c\n", "{path}: the header names en more than once"),
        ("t.csv", b'en,id\na,"' + b"b" * 200_000, "{path}, line 2: a quoted cell does not end before its line does"),
        ("t.jsonl", b'{"unit": "x", "en": "a", "id": "b"}\n{"unit": "x", "en": "c", "id": "d"}\n', "has sentence ids more than once: x; ids in 'unit' must be distinct"),
        ("t.parquet", b"PAR1 and then nothing", "{path} is not a Parquet file that can be read ("),
        ("t.jsonl", "{'en': 'é'}".encode("latin-1"), "{path}, line 1: not UTF-8 (byte 8 is 0xE9); it is cut off or in another encoding: convert it"),
        ("t.txt", b"a\n", "{path} ends in '.txt'; .jsonl, .csv, .tsv, .parquet or a folder of <code>.txt files are read"),
    ],
)  # fmt: skip
def test_bad_files_are_refused(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read(path)
    assert message.replace("{path}", str(path)) in str(caught.value)


def test_a_missing_file_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    jsonl(tmp_path / "text.jsonl", [])
    with pytest.raises(
        UserError, match=r"corpus\.path: '.*/texts\.jsonl' does not exist; did you mean 'text\.jsonl'\? Give a JSONL, CSV, TSV or Parquet file"
    ):
        read(tmp_path / "texts.jsonl")


def test_a_folder_must_hold_every_language_with_as_many_lines(tmp_path: Path) -> None:
    (tmp_path / "en.txt").write_text("a\nb\n")
    with pytest.raises(UserError, match=r"has no id\.txt; found: en\.txt"):
        read(tmp_path)
    (tmp_path / "id.txt").write_text("a\nb\nc\n")
    with pytest.raises(UserError, match=r"line-aligned files must have the same number of lines, found en\.txt 2, id\.txt 3"):
        read(tmp_path)
    (tmp_path / "id.txt").write_text("a\n\n")
    with pytest.raises(UserError, match="line 2 lacks id"):
        read(tmp_path)
    for code in ("en", "id"):
        (tmp_path / f"{code}.txt").write_text("")
    with pytest.raises(UserError, match="is empty"):
        read(tmp_path)
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match=r"has no en\.txt; found: no \.txt file"):
        read(tmp_path / "none")


def test_doubles_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = [("A dog.", "Anjing."), ("A dog.", "Seekor anjing."), ("a  DOG.", "\uff41njing."), ("Rain.", "Hujan."), ("A dog.", "Anjing.")]
    corpus = read(jsonl(tmp_path / "t.jsonl", [{"en": en, "id": other} for en, other in rows]))
    assert corpus.texts == {"en": ("A dog.", "A dog.", "Rain."), "id": ("Anjing.", "Seekor anjing.", "Hujan.")}, "one language may repeat"
    assert corpus.ids == ("row-000001", "row-000002", "row-000004"), "who is in which split does not move"
    assert (corpus.left_out, corpus.identity) == (2, {"name": corpus.name, "sha256": corpus.sha256, "sentences": 3, "left_out": 2})


def test_sentences_are_the_same_whatever_their_case_width_and_spaces() -> None:
    assert plain("  Straße\u00a0\uff11 \n") == plain("STRASSE 1") == "strasse 1"
    assert plain("resume") != plain("résumé")


def test_what_another_corpus_has_in_any_language_is_taken_away() -> None:
    train = ParallelCorpus("t", ("a", "b", "c"), {"en": ("One.", "Two.", "Three."), "ml": ("ഒന്ന്.", "രണ്ട്.", "മൂന്ന്.")})
    judged = ParallelCorpus("j", ("x", "y"), {"en": ("two.", "Four."), "ml": ("?", "മൂന്ന്."), "hi": ("ഒന്ന്.", "One.")})
    assert train.without(judged).ids == ("a",), "b for its English, c for its Malayalam; other languages say nothing"
    assert train.without(judged.speaking(("hi",))).ids == ("a", "b", "c")


def test_training_text_comes_from_the_split_train_without_what_is_measured(tmp_path: Path) -> None:
    rows = [{"unit": f"u{i}", "en": f"Sentence {i}.", "id": f"Kalimat {i}."} for i in range(40)]
    config = FilesCorpus(kind="files", path=jsonl(tmp_path / "t.jsonl", rows), max_sentences=None, splits=SHARES)
    train = load_corpus(config, ("en", "id")).split("train", SHARES)
    measured = ParallelCorpus("measured", ("m",), {"en": (train.texts["en"][3].upper(),), "hi": ("?",)})
    found, identity = load_training_text(config, ("en", "id"), measured)
    assert found.ids == tuple(sentence for place, sentence in enumerate(train.ids) if place != 3)
    assert identity == {**found.identity, "also_measured_on": 1}
    with pytest.raises(UserError, match=rf"^train_corpus: all {len(train.ids)} sentences of the split train of '.*' are in the measured corpus"):
        load_training_text(config, ("en", "id"), train)
