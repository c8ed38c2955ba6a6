# ruff: noqa: RUF001 (characters that look like others are what is tried)
"""Generated corpora, scores and questions: a known truth, written down in every format, and damaged in known ways or not."""

import csv
import gzip
import hashlib
import io
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

Rows = list[dict[str, Any]]

FORMATS = ("jsonl", "csv", "tsv", "parquet", "folder")
OPENINGS = {
    "en": ("A dog", "The sky is blue", "It rained all night", "We go to the market on Monday", "Bread", "nan", "null", "1.50", "=SUM(A1)", "#no comment"),
    "ml": ("ഒരു നായ", "ആകാശം നീലയാണ്", "രാത്രി മുഴുവൻ മഴ പെയ്തു", "ഞങ്ങൾ ചന്തയിൽ പോകുന്നു", "അപ്പം", "അവന്‍", "NA", "007"),
    "hi": ("एक कुत्ता", "आसमान नीला है", "रात भर बारिश हुई", "रोटी", "हम बाज़ार जाते हैं", "\u0928\u093c", "None"),
    "es": ("Un perro", "El cielo es azul", "Llovió toda la noche", "Pan", "¿Quién es", "¡Sí", "cafe\u0301", "ﬁn"),
}  # fmt: skip
CODES = tuple(OPENINGS)
ODD = {
    "quoted at the beginning": '"The cat" sleeps',
    "quotation mark at the beginning": '"The cat sleeps',
    "quoted as a whole": '"The cat sleeps"',
    "quotation mark inside": 'a 5" nail',
    "two quotation marks": 'say ""',
    "apostrophe": "it's",
    "comma": "red, green",
    "semicolon": "red; green",
    "backslash": r"a \n b \" c",
    "backslash at the end": "a\\",
    "zero-width": "a\u200bb\u200d",
    "right to left": "\u202eabc\u202c \u05d0",
    "emoji": "\U0001f469\u200d\U0001f680 flies",
    "not composed": "e\u0301 n\u0303",
    "private use": "\ue000",
    "not a character": "\ufffe \U0010ffff",
    "markup": "<b>&amp;</b>",
    "braces": "{lang} {0} %s ${seed}",
    "wide": "ＡＢＣ１２３",
}
"""Cells that every format can hold, and that have to be read."""
UNUSUAL = {
    "line feed": "one\ntwo",
    "carriage return": "one\rtwo",
    "CRLF": "one\r\ntwo",
    "tab": "one\ttwo",
    "NUL": "one\0two",
    "escape": "one\x1b[31mtwo",
    "vertical tab": "one\x0btwo",
    "form feed": "one\x0ctwo",
    "file separator": "one\x1ctwo",
    "next line": "one\x85two",
    "line separator": "one\u2028two",
    "paragraph separator": "one\u2029two",
    "byte-order mark inside": "one\ufefftwo",
    "huge": "word " * 40_000,
}
"""Cells that may be refused, but not changed."""


@dataclass(frozen=True)
class Truth:
    """What a file says."""

    texts: dict[str, tuple[str, ...]]
    ids: tuple[str, ...] | None
    documents: tuple[str, ...] | None


@dataclass(frozen=True)
class Example:
    """Files, and what has to come of reading them."""

    what: str
    kind: str
    """corpus, scores or questions."""
    path: str
    """Which of the files, or which folder, is named."""
    files: dict[str, bytes] = field(repr=False)
    truth: Any = field(repr=False)
    """The only thing that may be read. None: nothing may."""
    has_to_be_read: bool
    """Undamaged."""
    codes: tuple[str, ...]
    """The languages to read."""

    @property
    def way(self) -> str:
        """What has been done to which kind of file, wherever in it."""
        return f"{self.path}: {self.what.partition(' (')[0]}"

    def __repr__(self) -> str:
        return f"{self.kind} {self.path}: {self.what}"


# --- truth -----------------------------------------------------------------------------------------------------------------------------------------


@st.composite
def truths(draw: st.DrawFn, fewest: int = 1) -> Truth:
    count = draw(st.sampled_from([number for number in (1, 2, 3, 5, 12) if number >= fewest]))
    codes = ("en", "ml", *draw(st.sampled_from(((), ("hi",), ("es", "hi")))))
    first = draw(st.integers(0, 9))
    # A number at the end: sentences that differ in nothing else would be doubles.
    texts = {code: tuple(f"{OPENINGS[code][(first + place) % len(OPENINGS[code])]} {place}." for place in range(count)) for code in codes}
    ids = draw(st.sampled_from((None, "words", "numbers", "odd")))
    named = {"words": [f"s{i}" for i in range(count)], "numbers": [str(7 * i) for i in range(count)], "odd": [f"0{i}é / #{i}" for i in range(count)]}
    documents = tuple(f"d{(i + 1) // 2}" for i in range(count)) if draw(st.sampled_from((False, False, True))) else None
    return Truth(texts, None if ids is None else tuple(named[ids]), documents)


def rows_of(truth: Truth) -> Rows:
    """A row for each sentence."""
    columns: dict[str, tuple[Any, ...]] = {}
    if truth.ids is not None:
        columns["unit"] = truth.ids
    if truth.documents is not None:
        columns["document"] = truth.documents
    columns |= truth.texts
    return [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]


def with_cell(truth: Truth, code: str, place: int, cell: str) -> Truth:
    texts = {name: tuple(cell if (name, i) == (code, place) else text for i, text in enumerate(column)) for name, column in truth.texts.items()}
    return Truth(texts, truth.ids, truth.documents)


# --- writing ---------------------------------------------------------------------------------------------------------------------------------------


def to_jsonl(rows: Rows, newline: str = "\n", *, ascii_only: bool = False, last: bool = True) -> bytes:
    lines = newline.join(json.dumps(row, ensure_ascii=ascii_only) for row in rows)
    return (lines + (newline if last else "")).encode(errors="backslashreplace")  # half a surrogate pair only as an escape


def to_csv(rows: Rows, newline: str = "\n", *, separator: str = ",", quoting: Any = csv.QUOTE_MINIMAL, last: bool = True) -> bytes:
    written = io.StringIO(newline="")
    writer = csv.writer(written, delimiter=separator, lineterminator=newline, quoting=quoting)
    writer.writerow(rows[0])
    writer.writerows(row.values() for row in rows)
    content = written.getvalue()
    return (content if last else content.removesuffix(newline)).encode()


def to_tsv(rows: Rows, newline: str = "\n", *, last: bool = True) -> bytes:
    lines = [rows[0], *(row.values() for row in rows)]
    return (newline.join("\t".join(map(str, cells)) for cells in lines) + (newline if last else "")).encode()


def to_parquet(rows: Rows, types: Callable[[str], Any] | None = None, **settings: Any) -> bytes:
    import pyarrow
    from pyarrow import parquet

    names = list(rows[0])
    arrays = [pyarrow.array([row[name] for row in rows], None if types is None else types(name)) for name in names]
    written = io.BytesIO()
    parquet.write_table(pyarrow.table(arrays, names=names), written, **settings)
    return written.getvalue()


def to_folder(truth: Truth, newline: str = "\n", *, last: bool = True) -> dict[str, bytes]:
    return {f"text/{code}.txt": (newline.join(texts) + (newline if last else "")).encode() for code, texts in truth.texts.items()}


def written(truth: Truth, form: str, newline: str = "\n", *, last: bool = True) -> dict[str, bytes]:
    """The files that a truth is in a format, in the simplest way."""
    rows = rows_of(truth)
    match form:
        case "jsonl":
            return {"text.jsonl": to_jsonl(rows, newline, last=last)}
        case "csv":
            return {"text.csv": to_csv(rows, newline, last=last)}
        case "tsv":
            return {"text.tsv": to_tsv(rows, newline, last=last)}
        case "parquet":
            return {"text.parquet": to_parquet(rows)}
        case _:
            return to_folder(truth, newline, last=last)


def path_of(form: str) -> str:
    return "text" if form == "folder" else f"text.{form}"


def without_names(truth: Truth, form: str) -> Truth:
    """A folder of texts has no ids and no documents."""
    return Truth(truth.texts, None, None) if form == "folder" else truth


# --- undamaged -------------------------------------------------------------------------------------------------------------------------------------


@st.composite
def undamaged(draw: st.DrawFn) -> Example:
    """Every way of writing a corpus that is right."""
    form = draw(st.sampled_from(FORMATS))
    truth = without_names(draw(truths()), form)
    odd = draw(st.sampled_from((None, *ODD)))
    if odd is not None:
        code = draw(st.sampled_from(tuple(truth.texts)))
        place = draw(st.integers(0, len(truth.texts[code]) - 1))
        truth = with_cell(truth, code, place, f"{ODD[odd]} {place}")
    newline, last, mark = draw(st.sampled_from(("\n", "\r\n"))), draw(st.booleans()), draw(st.sampled_from((False, False, True)))
    rows = rows_of(truth)
    files = written(truth, form, newline, last=last)
    how: list[str] = [] if odd is None else [odd]
    path = path_of(form)
    variant = draw(st.integers(0, 5))
    if form == "jsonl" and variant == 0:
        how, files = [*how, "ASCII only"], {path: to_jsonl(rows, newline, ascii_only=True, last=last)}
    elif form == "jsonl" and variant == 1:
        how, files = [*how, "blank lines"], {path: files[path].replace(b"}" + newline.encode(), b"}" + 2 * newline.encode())}
    elif form == "jsonl" and variant == 2:
        how, files = (
            [*how, "keys in another order in every other row"],
            {path: to_jsonl([dict(reversed(row.items())) if i % 2 else row for i, row in enumerate(rows)])},
        )
    elif form == "jsonl" and variant == 3 and truth.ids is not None and truth.ids[0] == "0":
        how, files = [*how, "ids are numbers"], {path: to_jsonl([row | {"unit": int(row["unit"])} for row in rows])}
    elif form == "csv" and variant in (0, 1):
        how, files = [*how, "every cell quoted"], {path: to_csv(rows, newline, quoting=csv.QUOTE_ALL, last=last)}
    elif form in ("csv", "tsv", "jsonl") and variant == 4:
        how, files = [*how, "another column"], written_rows([row | {"note": f"n{i}"} for i, row in enumerate(rows)], form)
    elif form == "parquet":
        name, content = draw(parquet_variants(rows, truth))
        how, files = [*how, name], {path: content}
    elif form == "folder" and variant == 0:
        how, files = [*how, "other files beside"], files | {"text/README.md": b"# text\n", "text/de.txt": b"eins\n", "text/.hidden.txt": b"x"}
    if form != "parquet":
        how += [*(["CRLF"] if newline == "\r\n" else []), *([] if last else ["no line end at the end"]), *(["byte-order mark"] if mark else [])]
        files = {name: (b"\xef\xbb\xbf" if mark and not name.endswith(".md") else b"") + content for name, content in files.items()}
    return Example(", ".join(how) or "as it should be", "corpus", path, files, truth, has_to_be_read=True, codes=tuple(truth.texts))


def written_rows(rows: Rows, form: str) -> dict[str, bytes]:
    writer = {"jsonl": to_jsonl, "csv": to_csv, "tsv": to_tsv, "parquet": to_parquet}[form]
    return {f"text.{form}": writer(rows)}


@st.composite
def parquet_variants(draw: st.DrawFn, rows: Rows, truth: Truth) -> tuple[str, bytes]:
    import pyarrow as pa

    whole = truth.ids is not None and truth.ids[0] == "0"
    number = {"int8": pa.int8(), "int64": pa.int64(), "uint32": pa.uint32(), "uint64": pa.uint64()}
    kinds = {
        "string": pa.string(),
        "large_string": pa.large_string(),
        "dictionary": pa.dictionary(pa.int32(), pa.string()),
        "string_view": pa.string_view(),
    }
    name = draw(st.sampled_from((*kinds, *(number if whole else ()), "a row a group", "gzip", "another column")))
    if name in number:
        return f"ids are {name}", to_parquet(
            [row | {"unit": int(row["unit"])} for row in rows], lambda column: number[name] if column == "unit" else None
        )
    if name in kinds:
        return name, to_parquet(rows, lambda _: kinds[name])
    if name == "another column":
        return name, to_parquet([row | {"score": 0.5, "seen": None, "nested": {"a": [1]}} for row in rows])
    return name, to_parquet(rows, **({"compression": "gzip"} if name == "gzip" else {"row_group_size": 1}))


# --- damaged ---------------------------------------------------------------------------------------------------------------------------------------


@st.composite
def damaged(draw: st.DrawFn) -> Example:
    """A corpus that something has happened to."""
    form = draw(st.sampled_from(FORMATS))
    truth = without_names(draw(truths(fewest=2)), form)
    way = draw(st.sampled_from((unusual_cell, wrong_bytes, wrong_bytes, wrong_structure, wrong_structure, wrong_structure)))
    return draw(way(form, truth))


@st.composite
def unusual_cell(draw: st.DrawFn, form: str, truth: Truth) -> Example:
    name = draw(st.sampled_from(tuple(UNUSUAL)))
    code = draw(st.sampled_from(tuple(truth.texts)))
    place = draw(st.integers(0, len(truth.texts[code]) - 1))
    truth = with_cell(truth, code, place, f"{UNUSUAL[name]} {place}")
    return Example(
        f"{name} ({code}, row {place})", "corpus", path_of(form), written(truth, form), truth, has_to_be_read=False, codes=tuple(truth.texts)
    )


def before_the_last_line(shard: bytes) -> Callable[[bytes], bytes]:
    def insert(content: bytes) -> bytes:
        start = content.rstrip(b"\n").rfind(b"\n") + 1
        return content[:start] + shard + content[start:]

    return insert


LINES, TABLES, TEXT = ("jsonl", "csv", "tsv"), ("csv", "tsv"), ("jsonl", "csv", "tsv", "folder")
SAME, OTHER = True, False
"""Whether the damaged file still says the same, so that it may be read, or not."""
BYTES: dict[str, tuple[tuple[str, ...], bool, Callable[[bytes], bytes]]] = {
    "UTF-16": (TEXT, SAME, lambda content: content.decode().encode("utf-16")),
    "UTF-16 without a mark": (TEXT, SAME, lambda content: content.decode().encode("utf-16-le")),
    "UTF-16, big-endian": (TEXT, SAME, lambda content: b"\xfe\xff" + content.decode().encode("utf-16-be")),
    "UTF-32": (TEXT, SAME, lambda content: content.decode().encode("utf-32")),
    "a byte of Latin-1": (TEXT, OTHER, lambda content: b"\xe9.".join(content.rsplit(b".", 1))),
    "cut within a character": (TEXT, OTHER, lambda content: content.rstrip(b"\n") + "മ".encode()[:2]),
    "cut within a line": (LINES, OTHER, lambda content: content[: content.rstrip(b"\n").rfind(b"\n") + 4]),
    "two byte-order marks": (TEXT, SAME, lambda content: b"\xef\xbb\xbf\xef\xbb\xbf" + content),
    "a byte-order mark before the last line": (TEXT, SAME, before_the_last_line(b"\xef\xbb\xbf")),
    "a surrogate in UTF-8": (TEXT, OTHER, before_the_last_line(b"\xed\xa0\x80")),
    "NUL bytes at the end": (FORMATS, SAME, lambda content: content + bytes(64)),
    "the end of a DOS file": (FORMATS, SAME, lambda content: content + b"\x1a"),
    "gzip": (FORMATS, SAME, lambda content: gzip.compress(content, mtime=0)),
    "empty": (FORMATS, OTHER, lambda _: b""),
    "nothing but a byte-order mark": (TEXT, OTHER, lambda _: b"\xef\xbb\xbf"),
    "nothing but line ends": (TEXT, OTHER, lambda _: b"\n\n\n"),
    "CR alone ends lines": (TEXT, SAME, lambda content: content.replace(b"\n", b"\r")),
    "CR CR LF": (TEXT, SAME, lambda content: content.replace(b"\n", b"\r\r\n")),
    "a CR before the last line": (TEXT, SAME, before_the_last_line(b"\r")),
    "a quotation mark before the last line": (("csv", "jsonl"), OTHER, before_the_last_line(b'"')),
    "twice the same": (LINES, SAME, lambda content: content + content),
    "HTML": (("jsonl", "csv", "tsv", "parquet"), OTHER, lambda _: b"<!DOCTYPE html>\n<html>404</html>\n"),
    "a pointer of git-lfs": (
        ("jsonl", "csv", "tsv", "parquet"),
        OTHER,
        lambda _: b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n",
    ),
    "half of it": (("parquet",), OTHER, lambda content: content[: len(content) // 2]),
}


@st.composite
def wrong_bytes(draw: st.DrawFn, form: str, truth: Truth) -> Example:
    name = draw(st.sampled_from([name for name, (formats, *_) in BYTES.items() if form in formats]))
    _, same, change = BYTES[name]
    files = written(truth, form)
    which = draw(st.sampled_from(tuple(files)))
    changed = change(files[which])
    may_be_read = truth if same or changed == files[which] else None
    what = f"{name} ({which})"
    return Example(what, "corpus", path_of(form), files | {which: changed}, may_be_read, has_to_be_read=False, codes=tuple(truth.texts))


# Where something is wrong: the truth, a language, a row and the rows as they are written -> the files, and what may be read.
Change = Callable[[Truth, str, int, Rows], tuple[dict[str, bytes], Truth | None]]


def put(column: str | None, value: Any, *, truly: str | None = None, everywhere: bool = False, form: str = "jsonl") -> Change:
    """Another value in a column, or in the language's: may be read as the text `truly`, or not at all."""

    def change(truth: Truth, code: str, place: int, rows: Rows) -> tuple[dict[str, bytes], Truth | None]:
        name = column or code
        changed = [row | ({name: value} if everywhere or i == place else {}) for i, row in enumerate(rows)]
        files = written_rows([{key: row.get(key, f"x{i}") for key in {name: None, **row}} for i, row in enumerate(changed)], form)
        if column == "note":
            return files, truth
        if column == "unit" and everywhere and not value:
            return files, nameless(truth)
        if truly is None or everywhere:
            return files, None
        return files, with_cell(truth, code, place, truly) if column is None else None

    return change


def raw(form: str, edit: Callable[[bytes, str, int], bytes], *, same: bool = False) -> Change:
    """An edit of the written file."""

    def change(truth: Truth, code: str, place: int, rows: Rows) -> tuple[dict[str, bytes], Truth | None]:
        content = written_rows(rows, form)[f"text.{form}"]
        edited = edit(content, code, place)
        return {f"text.{form}": edited}, truth if same or edited == content else None

    return change


def line(edit: Callable[[bytes, str], bytes], *, header: bool = False, shift: int = 0) -> Callable[[bytes, str, int], bytes]:
    """An edit of one line: the row's, or the header."""

    def change(content: bytes, code: str, place: int) -> bytes:
        lines = content.split(b"\n")
        number = 0 if header else place + shift
        lines[number] = edit(lines[number], code)
        return b"\n".join(lines)

    return change


def every_row(edit: Callable[[dict[str, Any], str, int, int], dict[str, Any]], form: str, *, same: bool = False) -> Change:
    """An edit of rows: of each with the language, the place of the damage, and its own."""

    def change(truth: Truth, code: str, place: int, rows: Rows) -> tuple[dict[str, bytes], Truth | None]:
        edited = [edit(row, code, place, i) for i, row in enumerate(rows)]
        return written_rows(edited, form), truth if same or edited == rows else None

    return change


def without(row: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != name}


def renamed(row: dict[str, Any], old: str, new: str) -> dict[str, Any]:
    return {new if key == old else key: value for key, value in row.items()}


def with_ids(row: dict[str, Any], value: Any) -> dict[str, Any]:
    return {"unit": value, **without(row, "unit")}


NAN, INFINITE = float("nan"), float("inf")
STRUCTURE: dict[str, dict[str, Change]] = {
    "jsonl": {
        "a number for a text": put(None, 12, truly="12"),
        "a fraction for a text": put(None, 0.5),
        "true for a text": put(None, True),
        "null for a text": put(None, None),
        "a list for a text": put(None, ["a"]),
        "an object for a text": put(None, {"text": "a"}),
        "NaN for a text": put(None, NAN),
        "infinity for a text": put(None, INFINITE),
        "half a surrogate pair": put(None, "a \ud83d b"),
        "the other half of a surrogate pair": put(None, "\udc00"),
        "half a surrogate pair in an id": put("unit", "\ud83d"),
        "half a surrogate pair in another column": put("note", "\ud83d"),
        "half a surrogate pair in a name": every_row(lambda row, _, __, i: row | ({"\ud83d": "a"} if i == 0 else {}), "jsonl", same=True),
        "an empty text": put(None, ""),
        "nothing but spaces": put(None, " \u3000\t "),
        "nothing but a zero-width space": put(None, "\u200b", truly="\u200b"),
        "a fraction for an id": put("unit", 0.5),
        "a whole fraction for an id": put("unit", 1.0),
        "true for an id": put("unit", True),
        "null for an id": put("unit", None),
        "null for every id": put("unit", None, everywhere=True),
        "a list for an id": put("unit", [1]),
        "an empty id": put("unit", ""),
        "the same id everywhere": put("unit", "same", everywhere=True),
        "null for a document": put("document", None),
        "an empty document": put("document", ""),
        "a list for a document": put("document", ["d"]),
        "a fraction for a document": put("document", 2.5),
        "a number in another column": put("note", 3),
        "NaN in another column": put("note", NAN),
        "an object in another column": put("note", {"a": [1]}),
        "null in another column": put("note", None),
        "a text that only one row lacks": every_row(lambda row, code, place, i: without(row, code) if i == place else row, "jsonl"),
        "a language that is not there": every_row(lambda row, code, *_: without(row, code), "jsonl"),
        "upper-case names": every_row(lambda row, *_: {key.upper(): value for key, value in row.items()}, "jsonl", same=True),
        "names with a space": every_row(lambda row, *_: {f" {key}": value for key, value in row.items()}, "jsonl", same=True),
        "an id that only one row has": every_row(lambda row, _, place, i: with_ids(row, "s") if i == place else without(row, "unit"), "jsonl"),
        "a document that only one row has": every_row(lambda row, _, place, i: {**row, "document": "d"} if i == place else without(row, "document"), "jsonl"),
        "a name twice": raw("jsonl", line(lambda text, code: text[:-1] + f', "{code}": "another"}}'.encode())),
        "a name twice with one value": raw("jsonl", line(lambda text, _: text[:-1] + b", " + text[1:]), same=True),
        "two objects in a line": raw("jsonl", line(lambda text, _: text + b" " + text), same=True),
        "no line end between objects": raw("jsonl", lambda content, *_: content.replace(b"}\n{", b"}{"), same=True),
        "one array": raw("jsonl", lambda content, *_: b"[" + content.strip().replace(b"}\n", b"},\n") + b"]", same=True),
        "laid out": raw("jsonl", lambda content, *_: content.replace(b", ", b",\n  "), same=True),
        "a list for a row": raw("jsonl", line(lambda *_: b'["a", "b"]')),
        "a text for a row": raw("jsonl", line(lambda *_: b'"a"')),
        "a number for a row": raw("jsonl", line(lambda *_: b"3")),
        "null for a row": raw("jsonl", line(lambda *_: b"null")),
        "an empty row": raw("jsonl", line(lambda *_: b"{}")),
        "a comment": raw("jsonl", line(lambda text, _: text + b" // a dog"), same=True),
        "single quotes": raw("jsonl", line(lambda text, _: text.replace(b'"', b"'")), same=True),
        "a comma at the end": raw("jsonl", line(lambda text, _: text[:-1] + b",}"), same=True),
        "a number of 5,000 digits": raw("jsonl", line(lambda text, _: text[:-1] + b', "note": ' + b"1" * 5000 + b"}"), same=True),
        "nested 100,000 deep": raw("jsonl", line(lambda text, _: text[:-1] + b', "note": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"), same=True),
        "a control character": raw("jsonl", line(lambda text, _: text[:-2] + b'\x01"}')),
    },
    "csv": {
        "separated by semicolons": raw("csv", lambda content, *_: content.replace(b",", b";"), same=True),
        "separated by tabs": raw("csv", lambda content, *_: content.replace(b",", b"\t"), same=True),
        "a cell more": raw("csv", line(lambda text, _: text + b",more", shift=1)),
        "an empty cell more": raw("csv", line(lambda text, _: text + b",", shift=1), same=True),
        "a cell less": raw("csv", line(lambda text, _: text.rpartition(b",")[0], shift=1)),
        "an empty cell more everywhere": raw("csv", lambda content, *_: content.replace(b"\n", b",\n"), same=True),
        "an empty cell more below the header": raw("csv", lambda content, *_: content.partition(b"\n")[0] + b"\n" + content.partition(b"\n")[2].replace(b"\n", b",\n"), same=True),
        "a name twice": raw("csv", lambda content, code, _: content.replace(b"\n", f",{code}\n".encode(), 1).replace(b".\n", b".,x\n")),
        "no header": raw("csv", lambda content, *_: content.partition(b"\n")[2]),
        "only a header": raw("csv", lambda content, *_: content.partition(b"\n")[0] + b"\n"),
        "a header again": raw("csv", line(lambda text, _: text, shift=1)),
        "upper-case header": raw("csv", line(lambda text, _: text.upper(), header=True), same=True),
        "a line of spaces": raw("csv", line(lambda text, _: text + b"\n   ", shift=1), same=True),
        "an empty line": raw("csv", line(lambda text, _: text + b"\n", shift=1), same=True),
        "a line of separators": raw("csv", line(lambda text, _: text + b"\n" + b"," * text.count(b","), shift=1), same=True),
        "a comment": raw("csv", line(lambda text, _: text + b"\n# a comment", shift=1), same=True),
        "a quotation mark left open": raw("csv", line(lambda text, _: b'"' + text, shift=1)),
        "text behind a closing quotation mark": raw("csv", line(lambda text, _: b'"x" y' + text, shift=1)),
        "a language that is not there": every_row(lambda row, code, *_: without(row, code), "csv"),
        "an empty text": put(None, "", form="csv"),
        "nothing but spaces": put(None, "  ", form="csv"),
        "an empty id": put("unit", "", form="csv"),
        "the same id everywhere": put("unit", "same", everywhere=True, form="csv"),
        "an empty document": put("document", "", form="csv"),
        "no id anywhere": put("unit", "", everywhere=True, form="csv"),
    },
    "tsv": {
        "separated by commas": raw("tsv", lambda content, *_: content.replace(b"\t", b","), same=True),
        "separated by spaces": raw("tsv", lambda content, *_: content.replace(b"\t", b"    "), same=True),
        "a cell more": raw("tsv", line(lambda text, _: text + b"\tmore", shift=1)),
        "a cell less": raw("tsv", line(lambda text, _: text.rpartition(b"\t")[0], shift=1)),
        "an empty cell more everywhere": raw("tsv", lambda content, *_: content.replace(b"\n", b"\t\n"), same=True),
        "two tabs": raw("tsv", line(lambda text, _: text.replace(b"\t", b"\t\t"), shift=1), same=True),
        "a name twice": raw("tsv", lambda content, code, _: content.replace(b"\n", f"\t{code}\n".encode(), 1).replace(b".\n", b".\tx\n")),
        "no header": raw("tsv", lambda content, *_: content.partition(b"\n")[2]),
        "a quotation mark in front": raw("tsv", line(lambda text, _: b'"' + text, shift=1)),
        "quotation marks in front of two rows": raw("tsv", lambda content, *_: content.replace(b"\n", b'\n"', 2)),
        "written as CSV": raw("tsv", lambda content, *_: content.replace(b"\t", b'"\t"').replace(b"\n", b'"\n"'), same=True),
        "a language that is not there": every_row(lambda row, code, *_: without(row, code), "tsv"),
        "an empty text": put(None, "", form="tsv"),
        "an empty id": put("unit", "", form="tsv"),
        "an empty document": put("document", "", form="tsv"),
    },
}  # fmt: skip


@st.composite
def wrong_structure(draw: st.DrawFn, form: str, truth: Truth) -> Example:
    code = draw(st.sampled_from(tuple(truth.texts)))
    place = draw(st.integers(0, len(truth.texts[code]) - 1))
    table: dict[str, Change] = {"parquet": PARQUET, "folder": FOLDER}.get(form) or STRUCTURE[form]
    name = draw(st.sampled_from(tuple(table)))
    files, may_be_read = table[name](truth, code, place, rows_of(truth))
    return Example(f"{name} ({code}, row {place})", "corpus", path_of(form), files, may_be_read, has_to_be_read=False, codes=tuple(truth.texts))


# --- Parquet ---------------------------------------------------------------------------------------------------------------------------------------


def typed(
    column: str | None, kind: Callable[[Any], Any], values: Callable[[int], Any], *, truly: Callable[[Truth, str], Truth] | None = None
) -> Change:
    """A column of another Arrow type: of the language, or of the given name. It may be read as what is `truly` there, or not at all."""

    def change(truth: Truth, code: str, _: int, rows: Rows) -> tuple[dict[str, bytes], Truth | None]:
        import pyarrow

        name = column or code
        changed = [{name: None} | row | {name: values(i)} for i, row in enumerate(rows)]
        return {"text.parquet": to_parquet(changed, lambda other: kind(pyarrow) if other == name else None)}, truly(truth, code) if truly else None

    return change


def as_it_is(truth: Truth, _: str) -> Truth:
    return truth


def nameless(truth: Truth, _: str = "") -> Truth:
    """A column in which nothing stands may count as none."""
    return Truth(truth.texts, None, truth.documents)


def numbered(truth: Truth, code: str) -> Truth:
    return Truth(truth.texts | {code: tuple(map(str, range(len(truth.texts[code]))))}, truth.ids, truth.documents)


def not_text(truth: Truth, code: str, place: int, rows: Rows) -> tuple[dict[str, bytes], None]:
    """A string column with bytes that are no UTF-8."""
    import pyarrow

    cells = [b"\xff\xfe" if i == place else str(row[code]).encode() for i, row in enumerate(rows)]
    table = pyarrow.table({name: [row[name] for row in rows] for name in rows[0]})
    bad = pyarrow.array(cells, pyarrow.binary()).view(pyarrow.string())
    return {"text.parquet": parquet_bytes(table.set_column(table.column_names.index(code), code, bad))}, None


def twice_a_column(truth: Truth, code: str, place: int, rows: Rows) -> tuple[dict[str, bytes], None]:
    import pyarrow

    names = [*rows[0], code]
    arrays = [pyarrow.array([row[name] for row in rows]) for name in rows[0]]
    return {"text.parquet": parquet_bytes(pyarrow.Table.from_arrays([*arrays, pyarrow.array(["x"] * len(rows))], names=names))}, None


def parquet_bytes(table: Any) -> bytes:
    from pyarrow import parquet

    stream = io.BytesIO()
    parquet.write_table(table, stream)
    return stream.getvalue()


PARQUET: dict[str, Change] = {
    "texts are numbers": typed(None, lambda pa: pa.int64(), lambda i: i, truly=numbered),
    "texts are fractions": typed(None, lambda pa: pa.float64(), float),
    "texts are bytes": typed(None, lambda pa: pa.binary(), lambda i: b"\xff%d" % i),
    "texts are lists": typed(None, lambda pa: pa.list_(pa.string()), lambda i: [str(i)]),
    "texts are objects": typed(None, lambda pa: pa.struct([("a", pa.string())]), lambda i: {"a": str(i)}),
    "texts are null": typed(None, lambda pa: pa.null(), lambda _: None),
    "a text is null": typed(None, lambda pa: pa.string(), lambda i: None if i == 0 else str(i)),
    "texts are truths": typed(None, lambda pa: pa.bool_(), bool),
    "texts are instants": typed(None, lambda pa: pa.timestamp("s"), lambda i: i),
    "ids are fractions": typed("unit", lambda pa: pa.float64(), float),
    "ids are truths": typed("unit", lambda pa: pa.bool_(), lambda i: i == 0),
    "ids are bytes": typed("unit", lambda pa: pa.binary(), lambda i: b"\xff%d" % i),
    "ids are days": typed("unit", lambda pa: pa.date32(), lambda i: i),
    "ids are decimals": typed("unit", lambda pa: pa.decimal128(9, 2), lambda i: i),
    "ids are lists": typed("unit", lambda pa: pa.list_(pa.int64()), lambda i: [i]),
    "an id is null": typed("unit", lambda pa: pa.string(), lambda i: None if i == 0 else str(i)),
    "a number for an id is null": typed("unit", lambda pa: pa.int64(), lambda i: None if i == 0 else i),
    "ids are null": typed("unit", lambda pa: pa.null(), lambda _: None, truly=nameless),
    "the same id everywhere": typed("unit", lambda pa: pa.int64(), lambda _: 0),
    "documents are fractions": typed("document", lambda pa: pa.float32(), float),
    "a document is null": typed("document", lambda pa: pa.string(), lambda i: None if i == 0 else str(i)),
    "another column is bytes": typed("note", lambda pa: pa.binary(), lambda _: b"\xff", truly=as_it_is),
    "another column holds objects": typed("note", lambda pa: pa.struct([("a", pa.int8())]), lambda i: {"a": i}, truly=as_it_is),
    "bytes that are no text": not_text,
    "a name twice": twice_a_column,
    "no rows": lambda _truth, _code, _place, rows: ({"text.parquet": parquet_bytes(_table(rows).slice(0, 0))}, None),
    "a language that is not there": every_row(lambda row, code, *_: without(row, code), "parquet"),
    "JSON under this name": lambda truth, _code, _place, rows: ({"text.parquet": to_jsonl(rows)}, truth),
}  # fmt: skip


def _table(rows: Rows) -> Any:
    import pyarrow

    return pyarrow.Table.from_pylist(rows)


# --- folders ---------------------------------------------------------------------------------------------------------------------------------------


def of_one(edit: Callable[[list[str], int], list[str]], *, same: bool = False) -> Change:
    """An edit of the lines of one language."""

    def change(truth: Truth, code: str, place: int, _: Rows) -> tuple[dict[str, bytes], Truth | None]:
        lines = edit(list(truth.texts[code]), place)
        return to_folder(truth) | {f"text/{code}.txt": "".join(f"{text}\n" for text in lines).encode()}, truth if same else None

    return change


FOLDER: dict[str, Change] = {
    "a line more": of_one(lambda lines, place: [*lines[:place], "more", *lines[place:]]),
    "an empty line at the end": of_one(lambda lines, _: [*lines, ""], same=True),
    "an empty line": of_one(lambda lines, place: [*lines[:place], "", *lines[place:]]),
    "a line less": of_one(lambda lines, place: [*lines[:place], *lines[place + 1 :]]),
    "an empty line for a text": of_one(lambda lines, place: [*lines[:place], "", *lines[place + 1 :]]),
    "a CR at the end of one line": of_one(lambda lines, place: [*lines[:place], lines[place] + "\r\r", *lines[place + 1 :]], same=True),
    "a CR for a line end": of_one(lambda lines, _: ["\r".join(lines)], same=True),
    "a CR and a line less": of_one(lambda lines, place: [*lines[:place], "a\rb", *lines[place + 2 :]]),
    "a language that is not there": lambda truth, code, *_: ({name: text for name, text in to_folder(truth).items() if name != f"text/{code}.txt"}, None),
    "upper-case names": lambda truth, *_: ({f"text/{name[5:7].upper()}.txt": text for name, text in to_folder(truth).items()}, truth),
    "another ending": lambda truth, *_: ({f"text/{name[5:7]}.text": text for name, text in to_folder(truth).items()}, truth),
    "a folder in a text's place": lambda truth, code, *_: (
        {name if name != f"text/{code}.txt" else f"text/{code}.txt/a": text for name, text in to_folder(truth).items()},
        None,
    ),
}  # fmt: skip


# --- scores ----------------------------------------------------------------------------------------------------------------------------------------

Scores = dict[tuple[str, str], tuple[float, int | None]]
"""(benchmark, language) -> score and number of items."""


@st.composite
def scores(draw: st.DrawFn) -> Example:
    """A file of benchmark scores, right or damaged."""
    benchmarks = draw(st.sampled_from((("arc",), ("arc", "my quiz, v2"), ("ആർക്", '5" nails'))))
    counted = draw(st.booleans())
    codes = ("es", "it", "id", "hi", "ml")
    truth: Scores = {
        (name, code): (0.25 + i / 16 + j / 4, 100 + i if counted else None) for j, name in enumerate(benchmarks) for i, code in enumerate(codes)
    }
    rows: Rows = [
        {"language": code, "benchmark": name, "score": repr(score)} | ({"n": str(n)} if counted else {}) for (name, code), (score, n) in truth.items()
    ]
    name = draw(st.sampled_from(tuple(SCORES)))
    content, has_to_be_read, same = SCORES[name](rows)
    return Example(f"{name} ({len(rows)} rows)", "scores", "scores.csv", {"scores.csv": content}, truth if same else None, has_to_be_read, codes)


def score_cell(column: str, value: str) -> Callable[[Rows], tuple[bytes, bool, bool]]:
    return lambda rows: (to_csv([*rows[:-1], rows[-1] | {column: value}]), False, False)


SCORES: dict[str, Callable[[Rows], tuple[bytes, bool, bool]]] = {
    "as it should be": lambda rows: (to_csv(rows), True, True),
    "CRLF": lambda rows: (to_csv(rows, "\r\n"), True, True),
    "byte-order mark": lambda rows: (b"\xef\xbb\xbf" + to_csv(rows), True, True),
    "every cell quoted": lambda rows: (to_csv(rows, quoting=csv.QUOTE_ALL), True, True),
    "no line end at the end": lambda rows: (to_csv(rows, last=False), True, True),
    "columns in another order": lambda rows: (to_csv([dict(reversed(row.items())) for row in rows]), True, True),
    "another column": lambda rows: (to_csv([row | {"note": "a, b"} for row in rows]), True, True),
    "called task": lambda rows: (to_csv([renamed(row, "benchmark", "task") for row in rows]), True, True),
    "spaces after commas": lambda rows: (to_csv(rows).replace(b",", b", "), False, True),
    "percent signs": lambda rows: (to_csv([row | {"score": f"{row['score']}%"} for row in rows]), False, False),
    "commas for points": lambda rows: (to_csv([row | {"score": row["score"].replace(".", ",")} for row in rows]), False, False),
    "not a number": score_cell("score", "nan"),
    "infinite": score_cell("score", "inf"),
    "too large": score_cell("score", "1e999"),
    "a word": score_cell("score", "good"),
    "no score": score_cell("score", ""),
    "underscores": score_cell("score", "0_1.5"),
    "digits of another script": score_cell("score", "०.५"),
    "half an item": score_cell("n", "0.5"),
    "an endless number of items": score_cell("n", "inf"),
    "more items than a number can hold": score_cell("n", "1e30"),
    "an unknown language": score_cell("language", "xx"),
    "no language": score_cell("language", ""),
    "no benchmark": score_cell("benchmark", ""),
    "NUL in a name": lambda rows: (to_csv([*rows[:-1], rows[-1] | {"score": "0.5\0"}]), False, False),
    "twice the same": lambda rows: (to_csv(rows) + to_csv(rows), False, False),
    "a language twice": lambda rows: (to_csv([*rows, rows[-1]]), False, False),
    "a name twice": lambda rows: (to_csv(rows).replace(b"score", b"score,score").replace(b",0.", b",0.1,0."), False, False),
    "no scores": lambda rows: (to_csv([without(row, "score") for row in rows]), False, False),
    "a cell more": lambda rows: (to_csv(rows).rstrip(b"\n") + b",1\n", False, False),
    "a cell more everywhere": lambda rows: (to_csv(rows).replace(b"\n", b",7\n"), False, False),
    "a cell more in every row": lambda rows: (b"\n".join(line if i == 0 else b"x," + line for i, line in enumerate(to_csv(rows).rstrip().split(b"\n"))), False, False),
    "a cell less": lambda rows: (to_csv(rows).rpartition(b",")[0] + b"\n", False, False),
    "semicolons": lambda rows: (to_csv(rows).replace(b",", b";"), False, True),
    "UTF-16": lambda rows: (to_csv(rows).decode().encode("utf-16"), False, True),
    "a byte of Latin-1": lambda rows: (to_csv(rows) + b"hi,\xe9,0.5\n", False, False),
    "a quotation mark left open": lambda rows: (to_csv(rows).replace(b"hi", b'"hi', 1), False, False),
    "empty": lambda _: (b"", False, False),
    "only a header": lambda rows: (to_csv(rows).partition(b"\n")[0] + b"\n", False, False),
    "CR alone ends lines": lambda rows: (to_csv(rows).replace(b"\n", b"\r"), False, True),
    "a comment": lambda rows: (b"# scores\n" + to_csv(rows), False, True),
    "an empty line": lambda rows: (to_csv(rows).replace(b"\n", b"\n\n", 2), False, True),
}  # fmt: skip


# --- questions -------------------------------------------------------------------------------------------------------------------------------------

Asked = tuple[str, tuple[str, ...], int]
"""Question, choices, the right one's place."""
Questions = dict[str, list[Asked]]
"""By language."""
TEXTS = ("What is red?", "12 - 7 =", "?", "ആര്?", "¿Qué {{x}} {% raw %}?", "a\nb", '"quoted"', "  two  spaces", "🍞")


@st.composite
def questions(draw: st.DrawFn) -> Example:
    """Questions of one's own in two languages, right or damaged in one."""
    count, first = draw(st.sampled_from((2, 3, 8))), draw(st.integers(0, 8))
    asked: list[Asked] = [(f"{TEXTS[(first + i) % len(TEXTS)]} ({i})", (f"a{i}", f"b {i}", "c"), i % 3) for i in range(count)]
    name = draw(st.sampled_from(tuple(QUESTIONS)))
    shared = draw(st.booleans()) or name.startswith("an id")
    change, right = QUESTIONS[name]
    rows: Rows = [
        ({"id": f"q{i}"} if shared else {}) | {"question": text, "choices": list(choices), "answer": right}
        for i, (text, choices, right) in enumerate(asked)
    ]
    changed = change(rows)
    content = to_jsonl(changed) if isinstance(changed, list) else changed
    truth: Questions | None = None if right is None else {"en": asked, "ml": [*asked[:-1], right(asked[-1])]}
    files = {"quiz_en.jsonl": to_jsonl(rows), "quiz_ml.jsonl": content}
    return Example(
        f"{name} ({count} rows{', with ids' if shared else ''})", "questions", "quiz_{lang}.jsonl", files, truth, name in UNDAMAGED, ("en", "ml")
    )


def same(asked: Asked) -> Asked:
    return asked


def last(**values: Any) -> Callable[[Rows], Rows]:
    return lambda rows: [*rows[:-1], rows[-1] | values]


QUESTIONS: dict[str, tuple[Callable[[Rows], Rows | bytes], Callable[[Asked], Asked] | None]] = {
    "as it should be": (lambda rows: rows, same),
    "answers by their texts": (lambda rows: [row | {"answer": row["choices"][row["answer"]]} for row in rows], same),
    "byte-order mark": (lambda rows: b"\xef\xbb\xbf" + to_jsonl(rows), same),
    "CRLF": (lambda rows: to_jsonl(rows, "\r\n"), same),
    "ASCII only": (lambda rows: to_jsonl(rows, ascii_only=True), same),
    "a list of items": (lambda rows: json.dumps(rows, indent=1).encode(), same),
    "another column": (lambda rows: [row | {"note": i} for i, row in enumerate(rows)], same),
    "a question that is a number": (last(question=12), lambda asked: ("12", asked[1], asked[2])),
    "a question that is a number in words": (last(question="12"), lambda asked: ("12", asked[1], asked[2])),
    "a question that is a superscript": (last(question="²"), lambda asked: ("²", asked[1], asked[2])),
    "a question that is a digit of another script": (last(question="൧"), lambda asked: ("൧", asked[1], asked[2])),
    "a question that looks like a list": (last(question="[1, 2]"), lambda asked: ("[1, 2]", asked[1], asked[2])),
    "a question that looks like a truth": (last(question="True"), lambda asked: ("True", asked[1], asked[2])),
    "choices that are numbers": (last(choices=[10, 20, 30]), lambda asked: (asked[0], ("10", "20", "30"), asked[2])),
    "choices that are numbers in words": (last(choices=["1", "02", "3.0"]), lambda asked: (asked[0], ("1", "02", "3.0"), asked[2])),
    "an answer that is a number in words": (last(choices=["2", "1", "0"], answer="0"), lambda asked: (asked[0], ("2", "1", "0"), 2)),
    "a question that is a fraction": (last(question=0.5), lambda asked: ("0.5", asked[1], asked[2])),
    "a question that is null": (last(question=None), None),
    "a question that is a list": (last(question=["a"]), None),
    "a question that is a truth": (last(question=True), None),
    "a question that is no number": (last(question=NAN), None),
    "no question": (last(question=""), lambda asked: ("", asked[1], asked[2])),
    "half a surrogate pair": (last(question="a \ud83d"), None),
    "half a surrogate pair in a choice": (last(choices=["a", "\udc00", "c"]), None),
    "one choice": (last(choices=["a"], answer=0), None),
    "no choices": (last(choices=[]), None),
    "choices in one text": (last(choices="abc"), None),
    "an empty choice": (last(choices=["a", "", "c"]), None),
    "a choice that is null": (last(choices=["a", None, "c"]), None),
    "a choice twice": (last(choices=["a", "a", "c"], answer="a"), None),
    "an answer beyond the choices": (last(answer=3), None),
    "an answer from the end": (last(answer=-1), None),
    "an answer that is a fraction": (last(answer=1.0), lambda asked: (asked[0], asked[1], 1)),
    "an answer that is true": (last(answer=True), None),
    "an answer that is null": (last(answer=None), None),
    "an answer that is no choice": (last(answer="z"), None),
    "a letter for an answer": (last(answer="A"), None),
    "no answer": (lambda rows: [*rows[:-1], without(rows[-1], "answer")], None),
    "an id twice": (lambda rows: [*rows[:-1], rows[-1] | {"id": "q0"}], None),
    "an id in one row": (lambda rows: [*[without(row, "id") for row in rows[:-1]], rows[-1] | {"id": "q"}], None),
    "an id that is a list": (last(id=["q"]), None),
    "an id that is null": (last(id=None), None),
    "a name twice": (lambda rows: to_jsonl(rows)[:-2] + b', "answer": 0, "answer": 1}\n', None),
    "no JSON": (lambda rows: to_jsonl(rows)[:-3], None),
    "a number for a row": (lambda rows: to_jsonl(rows) + b"7\n", None),
    "nested 100,000 deep": (lambda rows: to_jsonl(rows) + b"[" * 100_000 + b"]" * 100_000 + b"\n", None),
    "a number of 5,000 digits": (lambda rows: to_jsonl(rows)[:-2] + b', "note": ' + b"1" * 5000 + b"}\n", same),
    "empty": (lambda _: b"", None),
    "UTF-16": (lambda rows: to_jsonl(rows).decode().encode("utf-16"), same),
    "columns of several types": (lambda rows: [row | {"note": value} for row, value in zip(rows, (1, "a", [1], {"b": 1}, None, 2.5, True, "z"), strict=False)], same),
    "CR alone ends lines": (lambda rows: to_jsonl(rows).replace(b"\n", b"\r"), same),
    "a row twice": (lambda rows: [*rows, rows[-1]], None),
}  # fmt: skip
UNDAMAGED = tuple(QUESTIONS)[:15]


# --- the folder tree -------------------------------------------------------------------------------------------------------------------------------


def snapshot(folder: Path) -> dict[str, str]:
    """Every file, folder and link below a folder, by name: what it holds."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            held = f"-> {path.readlink()}"
        elif path.is_file():
            held = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            held = "folder" if path.is_dir() else "other"
        found[os.fsencode(path.relative_to(folder)).decode(errors="backslashreplace")] = held
    return found
