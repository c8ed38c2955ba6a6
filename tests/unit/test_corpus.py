"""Aligned text from files: what is read, who is in which split, and what is refused."""

import json
import unicodedata
from pathlib import Path

import datasets
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from lingact.config.data import FilesCorpus, Splits
from lingact.data.corpus import ParallelCorpus
from lingact.data.sources import load_corpus, load_training_text
from lingact.data.text import plain
from lingact.errors import UserError

SHARES = Splits(train=0.5, dev=0.2, heldout=0.3)
TEXTS = {"en": ("A dog.", "Two, or three.", "It says \u2028 no.\r \v \f"), "id": ("Anjing.", "Dua, atau tiga.", "Katanya \x85 \u2029\r tidak.")}
DOCUMENTS = ("7", "7", "Zürich")
calmly = settings(max_examples=200, deadline=None, derandomize=True, database=None)


def read(path: Path, codes: tuple[str, ...] = ("en", "id"), limit: int | None = None) -> ParallelCorpus:
    return load_corpus(FilesCorpus(kind="files", path=path, max_sentences=limit, splits=SHARES), codes)


def jsonl(path: Path, rows: list[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def quoted(text: str) -> str:
    return f'"{text}"'


def as_file(kind: str, folder: Path) -> Path:
    rows = list(zip(TEXTS["en"], TEXTS["id"], DOCUMENTS, strict=True))
    path = folder / f"text.{kind}"
    match kind:
        case "jsonl":
            path.write_bytes(b"".join(json.dumps({"en": en, "id": other, "document": name}).encode() + b"\r\n" for en, other, name in rows))
        case "csv":
            path.write_bytes(("en,id,document\n" + "".join(f"{quoted(en)},{quoted(other)},{name}\n" for en, other, name in rows)).encode())
        case "tsv":
            path.write_bytes(("\ufeffen\tid\tdocument\r\n" + "".join(f"{en}\t{other}\t{name}\r\n" for en, other, name in rows)).encode())
        case "parquet":
            listed = [{"en": en, "id": other, "document": name, "number": i, "note": None} for i, (en, other, name) in enumerate(rows)]
            datasets.Dataset.from_list(listed).to_parquet(path)
        case "folder":
            path.mkdir()
            for name, texts in {**TEXTS, "document": DOCUMENTS}.items():
                (path / f"{name}.txt").write_bytes(("\n".join(texts) + "\n").encode())
    return path


@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv", "parquet", "folder"])
def test_every_format_gives_the_same_corpus(kind: str, tmp_path: Path) -> None:
    # `id` is Indonesian, and other line breaks than the newline stay inside a text.
    corpus = read(as_file(kind, tmp_path))
    assert corpus.texts == TEXTS
    assert corpus.ids == ("row-000001", "row-000002", "row-000003")
    assert corpus.documents == corpus.units == DOCUMENTS
    assert corpus.rows == (0, 1, 2)
    assert corpus.sha256 == ParallelCorpus("elsewhere", corpus.ids, dict(reversed(TEXTS.items())), documents=DOCUMENTS).sha256
    assert corpus.sha256 != corpus.speaking(("en",)).sha256


def test_a_stray_carriage_return_does_not_shift_a_language(tmp_path: Path) -> None:
    (tmp_path / "en.txt").write_bytes(b"A dog.\rIt barks.\nRain.\nSnow.\n")
    (tmp_path / "id.txt").write_bytes(b"Anjing.\nHujan.\r\nSalju.\n")
    assert read(tmp_path).texts == {"en": ("A dog.\rIt barks.", "Rain.", "Snow."), "id": ("Anjing.", "Hujan.", "Salju.")}
    (tmp_path / "en.txt").write_bytes(b"A dog.\rRain.\rSnow.\r")
    with pytest.raises(UserError, match=r"en\.txt: its lines end in carriage returns alone"):
        read(tmp_path)


def test_a_quotation_mark_in_tsv_merges_no_rows(tmp_path: Path) -> None:
    (tmp_path / "t.tsv").write_text('en\tid\n"The cat sleeps.\tKucing tidur.\nRain.\tHujan."\nSnow.\tSalju.\n', encoding="utf-8")
    assert read(tmp_path / "t.tsv").texts == {"en": ('"The cat sleeps.', "Rain.", "Snow."), "id": ("Kucing tidur.", 'Hujan."', "Salju.")}


@pytest.mark.parametrize(
    "column", [pa.array([30, 10, 20]), pa.array(["30", "10", "20"]).dictionary_encode(), pa.array(["30", "10", "20"], pa.string_view())]
)
def test_ids_of_parquet_are_read_whatever_their_type(column: pa.Array, tmp_path: Path) -> None:
    """Who is in which split follows from them, and not from the order of the rows."""
    texts = {"en": pa.array(["c", "a", "b"]), "id": pa.array(["C", "A", "B"])}
    parquet.write_table(pa.table({"unit": column, **texts}), tmp_path / "t.parquet")
    corpus = read(tmp_path / "t.parquet")
    assert dict(zip(corpus.ids, corpus.texts["en"], strict=True)) == {"30": "c", "10": "a", "20": "b"}
    parquet.write_table(pa.table({"unit": pa.array([1.0, 2.0, 3.0]), **texts}), tmp_path / "t.parquet")
    with pytest.raises(UserError, match=r"t\.parquet: the column 'unit' has the type double; give text"):
        read(tmp_path / "t.parquet")


def test_whole_numbers_are_ids_in_every_format(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"unit": 2, "en": "a", "id": "b", "document": 11}\n{"unit": "1", "en": "c", "id": "d", "document": "11"}\n')
    (tmp_path / "t.csv").write_text("unit,en,id,document\n2,a,b,11\n 1 ,c,d,11\n")
    for name, content in (("unit", "2\n1\n"), ("en", "a\nc\n"), ("id", "b\nd\n"), ("document", "11\n11\n")):
        (tmp_path / f"{name}.txt").write_text(content)
    for path in (tmp_path / "t.jsonl", tmp_path / "t.csv", tmp_path):
        corpus = read(path)
        assert (corpus.ids, corpus.documents) == (("2", "1"), ("11", "11"))


def test_documents_come_with_their_sentences(tmp_path: Path) -> None:
    rows = [{"en": f"{i}.", "id": f"-{i}", "document": f"d{i // 4}"} for i in range(12)]
    corpus = read(jsonl(tmp_path / "t.jsonl", [*rows, rows[5]]), limit=6)
    assert corpus.documents == ("d0", "d0", "d0", "d0", "d1", "d1"), "max_sentences may cut a document"
    assert (corpus.left_out, corpus.identity["documents"]) == (1, 2)
    whole = read(tmp_path / "t.jsonl")
    parts = [set(whole.split(name, SHARES).documents or ()) for name in ("train", "dev", "heldout") if _has(whole, name)]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 3
    assert read(jsonl(tmp_path / "t.jsonl", [{"en": "a", "id": "b"}])).documents is None


def test_ids_come_from_the_column_unit(tmp_path: Path) -> None:
    rows = [{"unit": "b-1", "en": "One.", "id": "Satu.", "xx": "?"}, {"unit": "a-2", "en": "Two.", "id": "Dua."}]
    path = jsonl(tmp_path / "t.jsonl", [*rows, {"unit": "c-3", "en": "Three.", "id": "Tiga."}])
    assert read(path).ids == ("b-1", "a-2", "c-3")
    assert read(path, limit=2).texts == {"en": ("One.", "Two."), "id": ("Satu.", "Dua.")}


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
        ("t.csv", b"en,id\na\n", "{path}, line 2: 1 cells, but the header has 2; quote cells that contain the separator"),
        ("t.tsv", b"en\tid\na\tb\tc\n", "{path}, line 2: 3 cells, but the header has 2"),
        ("t.csv", b"en,id,en\na,b,c\n", "{path}: the header names en more than once"),
        ("t.csv", b'en,id\na,"' + b"b" * 200_000, "{path}, line 2: a quoted cell does not end within its line"),
        ("t.jsonl", b'{"unit": "x", "en": "a", "id": "b"}\n{"unit": "x", "en": "c", "id": "d"}\n', "has sentence ids more than once: x; ids in 'unit' must be distinct"),
        ("t.parquet", b"PAR1 and then nothing", "{path} is not a readable Parquet file ("),
        ("t.jsonl", "{'en': 'é'}".encode("latin-1"), "{path}, line 1: not UTF-8 (byte 8 is 0xE9); it is truncated or in another encoding: convert it"),
        ("t.jsonl", b'{"en": "a", "id": "b", "unit": "x"}\n{"en": "c", "id": "d"}\n', "{path}, line 2: unit is missing, but other rows have it"),
        ("t.jsonl", b'{"en": "a", "id": "b", "document": "x"}\n\n{"en": "c", "id": "d"}\n', "{path}, line 3: document is missing, but other rows have it"),
        ("t.csv", b"en,id,document\na,b, \n", "{path}, line 2: document is blank; name it, or leave the column out"),
        ("t.csv", b"en,id,unit\na,b,1\nc,d,\n", "{path}, line 3: unit is blank"),
        ("t.jsonl", b'{"en": "a", "id": "b", "document": 1.5}\n', "{path}, line 1: document is the number 1.5; give a text or a whole number"),
        ("t.jsonl", b'{"en": "a", "id": "b", "unit": true}\n', "{path}, line 1: unit is a boolean"),
        ("t.jsonl", b'{"en": "a", "id": null}\n', "corpus '{path}' is ragged: line 1 lacks id"),
        ("t.jsonl", b'{"en": "a", "id": "\\u200b\\ufeff"}\n', "corpus '{path}' is ragged: line 1 lacks id"),
        ("t.jsonl", b'{"en": "a", "id": "b\\nc"}\n', "{path}, line 1: id contains a line break: were rows or cells merged?"),
        ("t.jsonl", b'{"en": "a\\tb", "id": "b"}\n', "{path}, line 1: en contains a tab: were rows or cells merged?"),
        ("t.csv", b'en,id\na,b\n"c\td",e\n', "{path}, line 3: en contains a tab"),
        ("t.csv", b'en,id\n"a,b\nc,d\n"e,f\n', "{path}, line 2: a quoted cell does not end within its line"),
        ("t.jsonl", b'{"en": "\\ud83d", "id": "b"}\n', "{path}, line 1: not JSON (half a surrogate pair (\\ud83d), which is no character)"),
        ("t.jsonl", b'{"en": "a", "en": "b", "id": "c"}\n', '{path}, line 1: not JSON (the key "en" comes twice in one object)'),
        ("t.jsonl", b'{"en": "a", "id": NaN}\n', "{path}, line 1: id is the number nan, not a text"),
        ("t.jsonl", '{"en": "a"}'.encode("utf-16"), "{path} is not UTF-8 but UTF-16"),
        ("t.jsonl", b'{"en": "a", "id": "b"}\n{"en": "a\0", "id": "b"}\n', "{path}, line 2: a NUL byte"),
        ("t.jsonl.gz", b"", "{path} is compressed ('.gz'); unpack it first"),
        ("t.jsonl", b'{"unit": "Z\\u00fc", "en": "a", "id": "b"}\n{"unit": "Zu\\u0308", "en": "c", "id": "d"}\n', "has sentence ids more than once: Zü;"),
        ("t.csv", b"Unit,en,id\nx,a,b\n", "corpus '{path}' has a column 'Unit', but names are read from 'unit'; rename it to that, or to something else"),
        ("t.tsv", b"en\tid\tDOCUMENT\na\tb\tx\n", "corpus '{path}' has a column 'DOCUMENT', but names are read from 'document'"),
        ("t.jsonl", b'{"en": "a", "id": "b"}\n{"en": "c", "id": "d", " unit": 1}\n', "corpus '{path}' has a column ' unit', but names are read from 'unit'"),
        ("t.txt", b"a\n", "{path} ends in '.txt'; supported are .jsonl, .csv, .tsv, .parquet, and folders of <code>.txt files"),
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
    for name, count in (("en", 2), ("id", 2), ("document", 3)):
        (tmp_path / f"{name}.txt").write_text("a\n" * count)
    with pytest.raises(UserError, match=r"same number of lines, found en\.txt 2, id\.txt 2, document\.txt 3"):
        read(tmp_path)
    (tmp_path / "document.txt").rename(tmp_path / "Document.txt")
    with pytest.raises(UserError, match="has a column 'Document', but names are read from 'document'"):
        read(tmp_path)
    (tmp_path / "Document.txt").unlink()
    (tmp_path / "document.txt").write_text("a\n \n")
    with pytest.raises(UserError, match="line 2: document is blank"):
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


# One text in two spellings each: what Unicode calls equivalent, what it ignores, and what has replaced what.
SPELLINGS = {
    "decomposed": ("Über señor Ё 각", unicodedata.normalize("NFD", "Über señor Ё 각")),
    "composed nukta": ("\u0938\u0921\u093c\u0915", "\u0938\u095c\u0915"),
    "composed nukta of Bengali": ("\u09a1\u09bc", "\u09dc"),
    "order of marks": ("a\u0323\u0307", "a\u0307\u0323"),
    "half width": ("\uff76\uff9e", "ガ"),
    "soft hyphen": ("Donaudampf", "Donau\u00addampf"),
    "zero-width space": ("สวัสดี", "สวัส\u200bดี"),
    "ZWNJ": ("\u0d05\u0d35\u0d28\u0d4d\u200c", "\u0d05\u0d35\u0d28\u0d4d"),
    "byte-order mark inside": ("a b", "\ufeffa \ufeffb"),
    "variation selector": ("\u2764\ufe0f", "\u2764"),
    "direction marks": ("\u200e(\u05d0)\u200f", "(\u05d0)"),
    "eyelash ra": ("\u0926\u0941\u0938\u0931\u094d\u092f\u093e", "\u0926\u0941\u0938\u0930\u094d\u200d\u092f\u093e"),
    "khanda ta": ("\u0989\u09ce\u09b8", "\u0989\u09a4\u09cd\u200d\u09b8"),
    "au of Malayalam": ("\u0d15\u0d4c", "\u0d15\u0d46\u0d57"),
    **{
        f"chillu {unicodedata.name(new).rpartition(' ')[2]}": (f"\u0d05{new}\u0d2a", f"\u0d05{old}\u0d4d\u200d\u0d2a")
        for new, old in zip(
            "\u0d7a\u0d7b\u0d7c\u0d7d\u0d7e\u0d7f\u0d54\u0d55\u0d56", "\u0d23\u0d28\u0d30\u0d32\u0d33\u0d15\u0d2e\u0d2f\u0d34", strict=True
        )
    },
}


@pytest.mark.parametrize("spellings", SPELLINGS.values(), ids=SPELLINGS)
def test_sentences_are_the_same_however_unicode_writes_them(spellings: tuple[str, str], tmp_path: Path) -> None:
    one, other = spellings
    assert one != other
    assert plain(one) == plain(other)
    assert plain(plain(one)) == plain(one)
    corpus = read(jsonl(tmp_path / "t.jsonl", [{"en": one, "id": "x"}, {"en": other, "id": "x"}]))
    assert (corpus.texts["en"], corpus.left_out) == ((one,), 1), "doubles; what stays stands as in the file"
    assert corpus.without(ParallelCorpus("j", ("y",), {"en": (other,)})).ids == ()


@pytest.mark.parametrize(
    "pair",
    [("\u0d05\u0d35\u0d7b", "\u0d05\u0d35\u0d28\u0d4d"), ("\u0930\u094d\u092f", "\u0931\u094d\u092f"), ("Müller", "Muller"), ("a b", "ab"), ("\u0d7b", "\u0d7c")],
    ids=["chillu and virama", "reph and eyelash", "umlaut", "space", "two chillus"],
)  # fmt: skip
def test_other_words_stay_others(pair: tuple[str, str]) -> None:
    assert plain(pair[0]) != plain(pair[1])


@calmly
@given(st.text(st.characters(exclude_characters="\u200d", exclude_categories=["Cs"])), st.data())
def test_no_normal_form_and_no_ignorable_character_makes_another_text(text: str, data: st.DataObject) -> None:
    expected = plain(text)
    assert plain(expected) == expected
    assert {plain(unicodedata.normalize(form, text)) for form in ("NFC", "NFD", "NFKC", "NFKD")} == {expected}
    at = data.draw(st.integers(0, len(text)))
    assert plain(text[:at] + "\u00ad\u200c\ufe0e" + text[at:]) == expected


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
