"""One rule for all formats: what bytes, lines, cells and types are read as, and what is refused with its place."""

import bz2
import gzip
import json
import lzma
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from lingact.errors import UserError
from lingact.files.folders import is_there
from lingact.files.records import Numeral, parse_json, read_json_object, read_json_rows, read_run_config
from lingact.files.tables import Table, read_delimited, read_jsonl, read_parquet, read_table
from lingact.files.text import read_lines, read_text

NO_LINE_ENDS = "\r \u2028 \u2029 \x85 \v \f \x1c \x1d \x1e"
"""What `str.splitlines` ends a line at, and we do not."""


def written(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def refused(read: Any, *given: Any) -> str:
    with pytest.raises(UserError) as caught:
        read(*given)
    return str(caught.value)


# --- bytes and lines -----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        ("a\nb\n", ["a", "b"]),
        ("a\r\nb\r\n", ["a", "b"]),
        ("a\r\nb\nc", ["a", "b", "c"]),
        ("a\rb\nc\r", ["a\rb", "c\r"]),
        (f"{NO_LINE_ENDS}\nb", [NO_LINE_ENDS, "b"]),
        ("\ufeffa\nb\ufeff\n", ["a", "b\ufeff"]),
        ("\n\na\n\n", ["", "", "a", ""]),
        ("", []),
        ("\ufeff", []),
        ("\n", [""]),
        ("x" * 3_000_000, ["x" * 3_000_000]),
    ],
)
def test_only_a_line_feed_ends_a_line(content: str, lines: list[str], tmp_path: Path) -> None:
    assert read_lines(written(tmp_path / "t", content)) == lines


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a\nä".encode("latin-1"), ", line 2: not UTF-8 (byte 2 is 0xE4)"),
        (b"\xef\xbb\xbfa\n\xff", ", line 2: not UTF-8 (byte 5 is 0xFF)"),
        ("a\u20ac".encode()[:-1], ", line 1: not UTF-8 (byte 1 is 0xE2); it is truncated or in another encoding"),
        (b"\xed\xa0\x80", ", line 1: not UTF-8 (byte 0 is 0xED)"),  # half a surrogate pair as bytes
        ("a".encode("utf-16"), " is not UTF-8 but UTF-16 (byte 0 is 0xFF); convert it first"),
        (b"\xfe\xff\x00a", " is not UTF-8 but UTF-16 (byte 0 is 0xFE)"),
        ("a".encode("utf-32"), " is not UTF-8 but UTF-32 (byte 0 is 0xFF)"),
        ("a\nb".encode("utf-16-le"), ", line 1: a NUL byte"),
        (b"a\nb\0c", ", line 2: a NUL byte"),
        ("a\nねこ".encode("iso-2022-jp"), ", line 2: an escape of ISO-2022, an encoding of Japanese, Korean and Chinese"),
        ("a\n가".encode("iso-2022-kr"), ", line 2: an escape of ISO-2022"),
        (b"a\r\nb\r\r\n", ", line 2: it ends in two carriage returns"),
        (b"language,score\rit,1\r", ": its lines end in carriage returns alone"),
        ("a\n\ufeffb\n".encode(), ", line 2: a second byte-order mark (U+FEFF); were files concatenated?"),
        ("\ufeff\ufeffa\n".encode(), ", line 1: a second byte-order mark"),
        (gzip.compress(b"a", mtime=0), " is compressed (gzip); unpack it first"),
        (bz2.compress(b"a"), " is compressed (bzip2)"),
        (lzma.compress(b"a"), " is compressed (xz)"),
        (b"PK\x03\x04", " is compressed (ZIP, like Excel workbooks)"),
    ],
)
def test_bytes_that_are_no_utf8_text_are_refused(content: bytes, message: str, tmp_path: Path) -> None:
    path = written(tmp_path / "t", content)
    assert refused(read_text, path).startswith(f"{path}{message}")


def test_what_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    assert refused(read_text, tmp_path) == f"{tmp_path} cannot be read (Is a directory)"
    assert refused(read_lines, tmp_path / "none") == f"{tmp_path / 'none'} cannot be read (No such file or directory)"


def test_names_that_no_file_can_have_are_not_there(tmp_path: Path) -> None:
    names = ["x" * 300, "a\0b", "none/x", "", "t"]
    written(tmp_path / "t", "")
    assert [is_there(tmp_path / name) for name in names] == [False, False, False, True, True]


# --- JSON ----------------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"a": 1, "a": 1}', 'the key "a" comes twice in one object'),
        ('{"b": {"a": 1, "a": 2}}', 'the key "a" comes twice in one object'),
        (r'"\ud83d"', r"half a surrogate pair (\ud83d), which is no character"),
        (r'{"a": ["x\uDE00y"]}', r"half a surrogate pair (\ude00), which is no character"),
        (r'{"\udc00": 1}', r"half a surrogate pair (\udc00), which is no character"),
        (r'"\ud83d \ude00"', r"half a surrogate pair (\ud83d), which is no character"),
        ("[" * 100_000 + "]" * 100_000, "it is nested too deeply"),
        ("1" * 5000, "a number has too many digits"),
        ("{'a': 1}", "Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
        ('"a\tb"', "Invalid control character at: line 1 column 3 (char 2)"),
        ("\ufeff1", "Unexpected UTF-8 BOM (decode using utf-8-sig): line 1 column 1 (char 0)"),
        ("", "Expecting value: line 1 column 1 (char 0)"),
    ],
)
def test_json_that_does_not_mean_one_thing_is_refused(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(reason)}$"):
        parse_json(text)


def test_whole_pairs_and_escaped_backslashes_are_text() -> None:
    assert parse_json(r'["\ud83d\ude00", "\\ud83d", "\u2028"]') == ["\U0001f600", "\\ud83d", "\u2028"]


def test_numbers_can_be_kept_as_they_are_written() -> None:
    found = parse_json('[12, 12.50, -0, 1e3, NaN, Infinity, true, "12"]', as_written=True)
    assert found == ["12", "12.50", "-0", "1e3", "NaN", "Infinity", True, "12"]
    assert [isinstance(value, Numeral) for value in found] == [True] * 6 + [False] * 2
    assert parse_json("[12, 12.50]") == [12, 12.5]


def test_rows_come_from_lines_and_from_a_list(tmp_path: Path) -> None:
    lines = written(tmp_path / "t.jsonl", '{"a": 1}\r\n\n{"a": 2}')
    assert read_json_rows(lines) == [(f"{lines}, line 1", {"a": 1}), (f"{lines}, line 3", {"a": 2})]
    listed = written(tmp_path / "t.json", '\ufeff [{"a": 1},\n "b"]')
    assert read_json_rows(listed) == [(f"{listed}, item 1", {"a": 1}), (f"{listed}, item 2", "b")]
    assert read_json_rows(written(tmp_path / "lists.jsonl", "[1]\n[2]\n"))[1][1] == [2]
    assert refused(read_json_rows, written(listed, '[{"a": 1},\n{"a":')).startswith(f"{listed}, line 2: not JSON (Expecting value)")
    assert refused(read_json_rows, written(listed, '[{"a": 1,\n"a": 2}]')).startswith(f'{listed}: not JSON (the key "a" comes twice')
    assert refused(read_json_rows, written(lines, '{"a": 1}\n{"a": "\\ud800"}')).startswith(f"{lines}, line 2: not JSON (half a surrogate pair")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b'{"b": 1}', b"\xff", b"a: [", b"[" * 2000, b"\0", b"2026-99-99"])
def test_a_damaged_file_of_a_run_is_refused_with_its_path(content: bytes, tmp_path: Path) -> None:
    path = written(tmp_path / "x.json", content)
    for read in (read_json_object, read_run_config):
        assert refused(read, path, "delete it", ["a"]) == f"'{path}' cannot be read: it is truncated or not a lingact file; delete it"
        assert refused(read, tmp_path, "delete it").startswith(f"'{tmp_path}' cannot be read")
    written(path, '{"a": 1}')
    assert read_json_object(path, "", ["a"]) == read_run_config(path, "", ["a"]) == {"a": 1}


# --- tables --------------------------------------------------------------------------------------------------------------------------------------


def table(tmp_path: Path, ending: str, content: str) -> Table:
    return read_table(written(tmp_path / f"t.{ending}", content), {"en", "ml", "unit"})


def test_a_quotation_mark_in_tsv_is_a_character(tmp_path: Path) -> None:
    content = '"en"\tml\n"The cat sleeps.\tx\nIt said ""no"".\t"y"\n"\t"\n'
    found = table(tmp_path, "tsv", content.replace('"en"', "en"))
    assert [tuple(row.values()) for row in found.rows] == [('"The cat sleeps.', "x"), ('It said ""no"".', '"y"'), ('"', '"')]
    assert found.places == ["line 2", "line 3", "line 4"]


@pytest.mark.parametrize(
    ("line", "cells"),
    [
        ('a,"b, c"', ["a", "b, c"]),
        ('"a ""b"" c",', ['a "b" c', ""]),
        ('"","""" ', ["", '"']),
        ('5" x, 6" y', ['5" x', ' 6" y']),
        ('a, "b, c"', ["a", "b, c"]),
        (f'{NO_LINE_ENDS},"{NO_LINE_ENDS}"', [NO_LINE_ENDS, NO_LINE_ENDS]),
        ("a\x00b,c".replace("\x00", "\x01"), ["a\x01b", "c"]),
        ("x" * 200_000 + "," + '"' + "y" * 200_000 + '"', ["x" * 200_000, "y" * 200_000]),
    ],
)
def test_cells_of_csv(line: str, cells: list[str], tmp_path: Path) -> None:
    assert list(table(tmp_path, "csv", f"en,ml\n{line}\r\n").rows[0].values()) == cells


@pytest.mark.parametrize(
    ("ending", "content", "message"),
    [
        ("csv", 'en,ml\na,b\nc,"d\ne,f\ng",h\n', ", line 3: a quoted cell does not end within its line"),
        ("csv", 'en,ml\na,"b\n', ", line 2: a quoted cell does not end"),
        ("csv", 'en,ml\n"a" b,c\n', ", line 2: a quoted cell does not end within its line, or text follows its closing quotation mark"),
        ("csv", 'en,ml\n "a" b, c\n', ", line 2: a quoted cell"),
        ("csv", "en,ml\na,b,c\n", ", line 2: 3 cells, but the header has 2; quote cells that contain the separator"),
        ("csv", "en,ml\n\na\n", ", line 3: 1 cells, but the header has 2"),
        ("tsv", "en\tml\na\tb\tc\n", ", line 2: 3 cells, but the header has 2; a tab always ends a cell and cannot be quoted"),
        ("tsv", 'en\tml\n"a\tb"\tc\n', ", line 2: 3 cells, but the header has 2"),
        ("csv", " en,ml,en \n", ": the header names en more than once; every column needs its own name"),
        ("csv", "en,ml,\ufeffen\n", ": the header names en more than once"),
        ("jsonl", '\n["a"]\n', ", line 2: a list; every line must be one object"),
        ("jsonl", '{"en": "a"}\n"b"\n', ", line 2: a text; every line must be one object"),
        ("jsonl", '{"en": "a"} {"en": "b"}\n', ", line 1: not JSON (Extra data)"),
        ("jsonl", '{"en": "a", "en": "b"}\n', ', line 1: not JSON (the key "en" comes twice in one object)'),
        ("jsonl", '{"en": "a"}\n\ufeff{"en": "b"}\n', ", line 2: a second byte-order mark"),
        ("csv", "en,ml\na,b\n en ,ml\n", ", line 3: this is the header again; were files concatenated?"),
        ("tsv", "unit\ten\n1\ta\nunit\ten\n", ", line 3: this is the header again"),
        ("jsonl.gz", "", " is compressed ('.gz'); unpack it first"),
        ("xlsx", "", " ends in '.xlsx'; supported are .jsonl, .csv, .tsv, .parquet, and folders of <code>.txt files"),
    ],
)
def test_tables_that_are_refused(ending: str, content: str, message: str, tmp_path: Path) -> None:
    assert refused(table, tmp_path, ending, content).startswith(f"{tmp_path / 't'}.{ending}{message}")


def test_names_in_a_header_are_without_blanks_and_marks(tmp_path: Path) -> None:
    found = table(tmp_path, "csv", '\ufeffen , "ml",,\na,b,,\n')
    assert found.columns == ("en", "ml", "", "")
    assert [row["en"] for row in found.rows] == ["a"]


def test_stripped_cells_and_capital_endings(tmp_path: Path) -> None:
    path = written(tmp_path / "T.CSV", "en , ml\n a,\tb \n")
    assert read_table(path, ()).rows == [{"en": " a", "ml": "\tb "}]
    assert read_delimited(path, strip=True).rows == [{"en": "a", "ml": "b"}]


def test_texts_are_texts_and_null_is_missing(tmp_path: Path) -> None:
    found = table(tmp_path, "jsonl", '{"en": "a\\u2028", "score": NaN, "meta": {"x": [1]}}\n{"en": null}\n{"ml": "12"}\n')
    assert found.texts("en") == ["a\u2028", None, None]
    assert found.texts("ml") == [None, None, "12"]
    assert found.columns == ("en", "score", "meta", "ml")


def test_what_is_no_text_is_refused_with_line_column_and_type(tmp_path: Path) -> None:
    values = ["12", "1.5", "true", "[]", "{}", "NaN", r'"a\tb"', r'"a\nb"', r'"a\u0000b"']
    found = table(tmp_path, "jsonl", "".join(f'{{"en": {value}}}\n' for value in values))
    assert refused(found.texts, "en") == (
        f"{tmp_path / 't.jsonl'}, line 1: en is the whole number 12, not a text; give the text itself; line 2: en is the number 1.5, not a text; give "
        "the text itself; line 3: en is a boolean (true or false), not a text; give the text itself; line 4: en is a list, not a text; give the "
        "text itself; line 5: en is an object, not a text; give the text itself; and 4 more"
    )
    rest = Table("t", ("en",), found.rows[6:], found.places[6:])
    assert refused(rest.texts, "en") == (
        "t, line 7: en contains a tab: were rows or cells merged?; line 8: en contains a line break: were rows or cells merged?; line 9: en contains a NUL "
        "character: were rows or cells merged?"
    )


def test_whole_numbers_are_names_and_spellings_of_one_name_are_one(tmp_path: Path) -> None:
    found = table(tmp_path, "jsonl", '{"unit": 7}\n{"unit": "07"}\n{"unit": " Zu\\u0308rich\\n"}\n')
    assert found.names("unit") == ["7", "07", "Zürich"]
    assert found.names("document") is None


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("1.0", "line 2: unit is the number 1.0; give a text or a whole number"),
        ("false", "line 2: unit is a boolean (true or false); give"),
        ("[1]", "line 2: unit is a list; give"),
        ('" "', "line 2: unit is blank; name it, or leave the column out"),
        ('""', "line 2: unit is blank"),
        ("null", "line 2: unit is missing, but other rows have it; give it in all rows or in none"),
        (r'"a\tb"', "line 2: unit contains a tab"),
    ],
)
def test_what_is_no_name_is_refused(value: str, message: str, tmp_path: Path) -> None:
    found = table(tmp_path, "jsonl", f'{{"unit": "a"}}\n{{"unit": {value}}}\n')
    assert refused(found.names, "unit").startswith(f"{tmp_path / 't.jsonl'}, {message}")


def test_a_column_that_only_some_rows_have_is_refused_with_all_lines(tmp_path: Path) -> None:
    found = table(tmp_path, "jsonl", '{"en": "a"}\n' * 7 + '{"unit": 3}\n')
    message = refused(found.names, "unit")
    assert message.count("is missing, but other rows have it") == 5
    assert message.endswith("; and 2 more")


# --- Parquet -------------------------------------------------------------------------------------------------------------------------------------


def stored(path: Path, **columns: pa.Array) -> Path:
    parquet.write_table(pa.table(columns), path)
    return path


@pytest.mark.parametrize(
    "kind",
    [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string()), pa.dictionary(pa.int8(), pa.large_string())],
    ids=str,
)
def test_every_text_type_of_arrow_is_text(kind: pa.DataType, tmp_path: Path) -> None:
    path = stored(tmp_path / "t.parquet", en=pa.array(["a", None, "c\u2028"]).cast(kind), other=pa.array([1.5, 2.5, None]))
    found = read_parquet(path, {"en"})
    assert found.texts("en") == ["a", None, "c\u2028"]
    assert found.columns == ("en", "other")
    assert found.places == ["row 1", "row 2", "row 3"]


NUMBERS = pa.array([3, 10])


@pytest.mark.parametrize(
    "column", [NUMBERS, NUMBERS.cast(pa.int8()), NUMBERS.cast(pa.uint64()), NUMBERS.dictionary_encode()], ids=lambda c: str(c.type)
)
def test_whole_numbers_of_parquet_are_names_and_no_texts(column: pa.Array, tmp_path: Path) -> None:
    found = read_parquet(stored(tmp_path / "t.parquet", unit=column), {"unit"})
    assert found.names("unit") == ["3", "10"]
    assert "row 1: unit is the whole number 3, not a text" in refused(found.texts, "unit")


@pytest.mark.parametrize(
    "column",
    [pa.array([1.0]), pa.array([True]), pa.array([b"a"]), pa.array([["a"]]), pa.array([{"a": 1}]), pa.array([0], pa.date32()), pa.array([0], pa.timestamp("ms"))],
    ids=lambda column: str(column.type),
)  # fmt: skip
def test_other_types_of_parquet_are_refused_with_the_type_where_they_are_asked_for(column: pa.Array, tmp_path: Path) -> None:
    path = stored(tmp_path / "t.parquet", unit=column, en=pa.array(["a"]))
    assert refused(read_parquet, path, {"unit"}).startswith(f"{path}: the column 'unit' has the type {str(column.type).partition('<')[0]}")
    assert read_parquet(path, {"en"}).texts("en") == ["a"]


def test_parquet_with_holes_doubled_names_and_other_bytes(tmp_path: Path) -> None:
    path = stored(tmp_path / "unit=3.parquet", en=pa.array(["a", "b"]), unit=pa.array([1, None]), empty=pa.nulls(2))
    found = read_parquet(path, {"en", "unit", "empty"})
    assert found.names("empty") is None
    assert "row 2: unit is missing, but other rows have it" in refused(found.names, "unit")
    parquet.write_table(pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["en", "en"]), path)
    assert refused(read_parquet, path, {"en"}) == f"{path}: en is the name of more than one column; every column needs its own name"
    parquet.write_table(
        pa.table({"en": pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xff")])}), path
    )
    assert refused(read_parquet, path, {"en"}) == f"{path}: the column 'en' contains text that is not UTF-8; write the file again"


def test_parquet_that_is_damaged(tmp_path: Path) -> None:
    whole = stored(tmp_path / "t.parquet", en=pa.array([str(i) for i in range(500)])).read_bytes()
    for content in (b"", b"PAR1", whole[:-100], whole[:40] + bytes(60) + whole[100:], json.dumps({"en": "a"}).encode()):
        path = written(tmp_path / "cut.parquet", content)
        assert refused(read_parquet, path, {"en"}).startswith(f"{path} is not a readable Parquet file (")


def test_a_folder_with_a_telling_name_makes_no_column(tmp_path: Path) -> None:
    (tmp_path / "unit=3").mkdir()
    found = read_parquet(stored(tmp_path / "unit=3" / "t.parquet", en=pa.array(["a"])), {"en", "unit"})
    assert (found.columns, found.names("unit")) == (("en",), None)


def test_jsonl_of_many_keys_keeps_their_order(tmp_path: Path) -> None:
    assert read_jsonl(written(tmp_path / "t.jsonl", '{"b": 1, "a": 2}\n{"c": 3, "a": 4}')).columns == ("b", "a", "c")
