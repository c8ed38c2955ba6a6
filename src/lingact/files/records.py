r"""Reading the tables, lines and JSON that a user gives: one rule for all formats, so that what is read is what stands in the file.

Bytes. Text files are UTF-8, with or without a byte-order mark at the beginning. Other encodings, compressed files, NUL bytes and byte-order marks at
the beginning of other lines are refused. Of encodings in seven bits ISO-2022 is told by its escapes; UTF-7 and HZ look like text.

Lines. Only `\n` and `\r\n` end a line. A lone `\r`, U+2028, U+2029, U+0085, VT and FF are characters of a text; `\r\r\n` and files whose lines
all end in `\r` are refused. Empty lines are no rows of a table; in line-aligned files they are lines.

Cells. TSV has no quoting: a quotation mark is a character, a tab ends a cell. CSV has the quoting of RFC 4180 within a line. No cell of any format
may hold a tab or a line feed, because that is what merged rows look like; it is refused with its line.

Types. A text is a text: numbers, truth values and nested values are refused with their type. Names (sentence ids, documents, item ids) may also be
whole numbers, which stand for their decimal digits. A null, a key that is not there and a cell of Parquet without a value are missing. Only columns
that are asked for are judged.

JSON. Keys that come twice in one object, half surrogate pairs and what Python cannot hold are refused. `NaN` and `Infinity`, which Python's writer
makes of missing numbers, are numbers like others, so they are refused where a text is needed.
"""

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lingact.errors import UserError
from lingact.files.earlier import present_keys

_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "ZIP, as are Excel's workbooks",
}
_OTHER_ENCODINGS = {b"\xff\xfe\x00\x00": "UTF-32", b"\x00\x00\xfe\xff": "UTF-32", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
_PACKED = (".gz", ".bz2", ".xz", ".zst", ".zip")
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_CSV_CELL = re.compile(r'(?: *"((?:[^"]+|"")*+)" *|( *[^" ,][^,]*| *))(,|\Z)')
_NO_TEXT = {
    "\0": "a NUL byte; it is UTF-16 or no text at all: give UTF-8 text",
    "\n\ufeff": "a second byte-order mark (U+FEFF); were files put together? Take it out",
    "\x1b$": "the escape by which ISO-2022 begins Japanese, Korean or Chinese; it is in another encoding: convert it to UTF-8",
    "\r\r\n": "it ends in two carriage returns; its line ends were converted twice: convert them to line feeds",
}
_FORBIDDEN = {"\t": "a tab", "\n": "a line break", "\0": "a NUL character"}
_NAMED = 5
"""So many places are named in a message."""


class Numeral(str):
    """A number in JSON, as it is written there."""

    __slots__ = ()


# --- bytes and lines -----------------------------------------------------------------------------------------------------------------------------


def read_text(path: Path) -> str:
    """The content of a UTF-8 file without its byte-order mark.

    Raises:
        UserError: it cannot be read, or is something else.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from None
    for begin, what in _COMPRESSED.items():
        if content.startswith(begin):
            raise UserError(f"{path} is compressed ({what}); unpack it first")
    for begin, what in _OTHER_ENCODINGS.items():
        if content.startswith(begin):
            raise UserError(f"{path} is not UTF-8 but {what} (byte 0 is 0x{content[0]:02X}); convert it first")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        at = error.start + (3 if content.startswith(b"\xef\xbb\xbf") else 0)
        line = content.count(b"\n", 0, at) + 1
        raise UserError(
            f"{path}, line {line}: not UTF-8 (byte {at} is 0x{content[at]:02X}); it is cut off or in another encoding: convert it"
        ) from None
    for mark, what in _NO_TEXT.items():
        if (at := (lines := f"\n{text}").find(mark)) >= 0:
            line = lines.count("\n", 0, at + 1)
            raise UserError(f"{path}, line {line}: {what}")
    if "\r" in text and "\n" not in text:
        raise UserError(f"{path}: its lines end in carriage returns alone, as on old Macs; convert them to line feeds")
    return text


def read_lines(path: Path) -> list[str]:
    r"""The lines of a UTF-8 file. Only `\n` and `\r\n` end a line.

    Raises:
        UserError: as `read_text`.
    """
    *ended, last = read_text(path).split("\n")
    return [line.removesuffix("\r") for line in ended] + ([last] if last else [])


def is_there(path: Path) -> bool:
    """Whether there is such a file or folder; also for names that no file can have, at which `Path.exists` raises."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


# --- JSON ----------------------------------------------------------------------------------------------------------------------------------------


class _TwiceError(ValueError):
    """A key comes twice."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise _TwiceError(f"the key {json.dumps(twice)} comes twice in one object")
    return found


def parse_json(text: str, *, as_written: bool = False) -> Any:
    """The value of a JSON text.

    Args:
        as_written: numbers come as `Numeral`.

    Raises:
        ValueError: it is not JSON, or JSON that does not mean one thing; with a reason of one line.
    """
    numbers: dict[str, Any] = dict.fromkeys(("parse_int", "parse_float", "parse_constant"), Numeral) if as_written else {}
    try:
        found = json.loads(text, object_pairs_hook=_object, **numbers)
    except (json.JSONDecodeError, _TwiceError):
        raise
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except ValueError:
        raise ValueError("a number has too many digits") from None
    if _SURROGATE.search(text):
        try:
            json.dumps(found, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"half a surrogate pair (\\u{ord(error.object[error.start]):04x}), which is no character") from None
    return found


def _reason(error: ValueError) -> str:
    return error.msg if isinstance(error, json.JSONDecodeError) else str(error)


def read_json(path: Path) -> Any:
    """The value of a JSON file that lingact or a library has written.

    Raises:
        ValueError: it is damaged.
        OSError: it cannot be read.
    """
    return parse_json(path.read_bytes().decode("utf-8-sig"))


def read_json_object(path: Path, otherwise: str, needed: Collection[str] = ()) -> dict[str, Any]:
    """The object in a JSON file that lingact or a library has written.

    Args:
        otherwise: what a user can do where it is damaged.
        needed: keys that it must have.

    Raises:
        UserError: it is damaged, or something else.
    """
    return _object_of(path, read_json, otherwise, needed)


def read_run_config(path: Path, otherwise: str, needed: Collection[str] = ()) -> dict[str, Any]:
    """The configuration of a run, from its config.yaml, with the keys of this version; otherwise as `read_json_object`."""
    return present_keys(_object_of(path, lambda path: yaml.safe_load(path.read_text(encoding="utf-8")), otherwise, needed))


def _object_of(path: Path, read: Callable[[Path], Any], otherwise: str, needed: Collection[str]) -> dict[str, Any]:
    try:
        found = read(path)
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        found = None
    if not isinstance(found, dict) or not set(needed) <= found.keys():
        raise damaged(path, otherwise)
    return found


def damaged(path: Path, otherwise: str) -> UserError:
    """What is said of a file of lingact's that is not as it was written."""
    return UserError(f"'{path}' cannot be read: it is cut off or of something else; {otherwise}")


def read_json_rows(path: Path, *, as_written: bool = False) -> list[tuple[str, Any]]:
    """The values of a JSONL file, or of the list in a JSON file, each with the place to name it by.

    Args:
        as_written: numbers come as `Numeral`.

    Raises:
        UserError: as `read_text`; or a line is not JSON.
    """
    text = read_text(path)
    if text.lstrip().startswith("["):
        try:
            return [(f"{path}, item {number}", value) for number, value in enumerate(parse_json(text, as_written=as_written), start=1)]
        except ValueError as error:
            # JSONL may begin with a list, too: then the second line is too much for the first reading.
            if not (isinstance(error, json.JSONDecodeError) and error.msg == "Extra data"):
                line = f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
                raise UserError(f"{path}{line}: not JSON ({_reason(error)}); the file is cut off or damaged") from None
    found = []
    for number, line in enumerate(read_lines(path), start=1):
        if line.strip():
            try:
                found.append((f"{path}, line {number}", parse_json(line, as_written=as_written)))
            except ValueError as error:
                raise UserError(f"{path}, line {number}: not JSON ({_reason(error)}); the file is cut off or damaged") from None
    return found


# --- tables --------------------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Table:
    """Rows with named cells, and where each of them stands."""

    name: str
    """As messages call it."""
    columns: tuple[str, ...]
    """All that some row has."""
    rows: Sequence[Mapping[str, Any]]
    places: Sequence[str]
    """Of each row: `line 3`."""

    def texts(self, column: str) -> list[str | None]:
        """The texts of a column as they stand in the file; None where a row has none.

        Raises:
            UserError: one is no text, or holds a separator, with all such places.
        """
        found, problems = [], []
        for place, row in zip(self.places, self.rows, strict=True):
            text = row.get(column)
            problem = None if text is None else text_problem(text)
            found.append(text)
            if problem:
                problems.append(f"{place}: {column} {problem}")
        self._refuse(problems)
        return found

    def names(self, column: str) -> list[str] | None:
        """The names in a column (NFC, without blanks around them); None where no row has one.

        Raises:
            UserError: one is no name, blank, or missing where other rows have one, with all such places.
        """
        given = [row.get(column) for row in self.rows]
        if all(value is None for value in given):
            return None
        problems = [f"{place}: {column} {problem}" for place, value in zip(self.places, given, strict=True) if (problem := name_problem(value))]
        self._refuse(problems)
        return [as_name(value) for value in given]

    def _refuse(self, problems: Sequence[str]) -> None:
        if problems:
            more = f"; and {len(problems) - _NAMED} more" if len(problems) > _NAMED else ""
            raise UserError(f"{self.name}, {'; '.join(problems[:_NAMED])}{more}")


def refuse_other_case(name: str, columns: Iterable[str], wanted: str) -> None:
    """Raise where a column is meant to be the wanted one and written otherwise: it would be passed over, and what stands in it lost.

    Args:
        name: of the file, for the message.
        columns: names that are there.

    Raises:
        UserError: with the column.
    """
    there = list(columns)
    close = [column for column in there if column.strip().casefold() == wanted]
    if close and wanted not in there:
        raise UserError(f"{name} has '{close[0]}', and names are read from '{wanted}'; write it so, or name it something else")


def text_problem(value: object) -> str | None:
    """Why a value is no text; None where it is one."""
    if not isinstance(value, str) or isinstance(value, Numeral):
        return f"is {kind_of(value)}, not a text; give the text itself"
    return next((f"holds {what}: were rows or cells merged?" for mark, what in _FORBIDDEN.items() if mark in value), None)


def name_problem(value: object) -> str | None:
    """Why a value is no name; None where it is one. Whole numbers are."""
    if value is None:
        return "is missing, and other rows have it; give it in all rows or in none"
    if isinstance(value, bool) or not isinstance(value, str | int) or (isinstance(value, Numeral) and not value.removeprefix("-").isdigit()):
        return f"is {kind_of(value)}; give a text or a whole number"
    if not as_name(value):
        return "is blank; name it, or leave the column out"
    return text_problem(as_name(value))


def as_name(value: str | int | None) -> str:
    """A name as it is compared: NFC, without blanks around it."""
    return unicodedata.normalize("NFC", str(value)).strip()


def kind_of(value: object) -> str:
    """What a value is, in the words of JSON."""
    match value:
        case None:
            return "null"
        case bool():
            return "a truth value (true or false)"
        case Numeral():
            return f"the number {value:.20}"
        case int():
            return f"the whole number {value}"
        case float():
            return f"the number {value}"
        case str():
            return "a text"
        case list():
            return "a list"
        case dict():
            return "an object"
    return f"of the type {type(value).__name__}"


def read_table(path: Path, wanted: Collection[str]) -> Table:
    """A JSONL, CSV, TSV or Parquet file, by its ending.

    Args:
        wanted: columns that are judged; of Parquet no other one is read.

    Raises:
        UserError: as `read_text`; a line is not JSON, rows are ragged, a column comes twice, or the ending is another one.
    """
    match path.suffix.lower():
        case ".jsonl":
            return read_jsonl(path)
        case ".csv" | ".tsv":
            return read_delimited(path)
        case ".parquet":
            return read_parquet(path, wanted)
        case ending if ending in _PACKED:
            raise UserError(f"{path} is compressed ('{ending}'); unpack it first")
    raise UserError(f"{path} ends in '{path.suffix}'; .jsonl, .csv, .tsv, .parquet or a folder of <code>.txt files are read")


def read_jsonl(path: Path) -> Table:
    """A JSONL file: an object a line.

    Raises:
        UserError: as `read_text`; or a line is something else.
    """
    rows, places = [], []
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except ValueError as error:
            raise UserError(
                f"{path}, line {number}: not JSON ({_reason(error)}); every line must be one object with a key per language code"
            ) from None
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {number}: {kind_of(row)}; every line must be one object with a key per language code")
        rows.append(row)
        places.append(f"line {number}")
    return Table(str(path), tuple(dict.fromkeys(key for row in rows for key in row)), rows, places)


def read_delimited(path: Path, *, strip: bool = False) -> Table:
    """A CSV file, or by its ending TSV. Names in the header are without blanks around them.

    Args:
        strip: cells are, too.

    Raises:
        UserError: as `read_text`; rows of another length than the header, a quotation mark that is left open, a name twice in the header.
    """
    tabs = path.suffix.lower() == ".tsv"
    lines = ((number, line) for number, line in enumerate(read_lines(path), start=1) if line.strip(" "))
    cut = ((number, line.split("\t") if tabs else _csv_cells(line, f"{path}, line {number}")) for number, line in lines)
    _, header = next(cut, (0, []))
    header = [name.strip("\ufeff \t\xa0") for name in header]
    doubled = [name for name, count in Counter(header).items() if name and count > 1]
    if doubled:
        raise UserError(f"{path}: the header names {', '.join(doubled)} more than once; every column needs a name of its own")
    rows, places = [], []
    for number, cells in cut:
        if [cell.strip() for cell in cells] == header:
            raise UserError(f"{path}, line {number}: the header again; were files put together? Take it out")
        if len(cells) != len(header):
            hint = "a tab ends a cell, and nothing can quote it" if tabs else "quote cells that contain the separator"
            raise UserError(f"{path}, line {number}: {len(cells)} cells where the header has {len(header)}; {hint}")
        rows.append(dict(zip(header, (cell.strip() for cell in cells) if strip else cells, strict=True)))
        places.append(f"line {number}")
    return Table(str(path), tuple(header), rows, places)


def _csv_cells(line: str, where: str) -> list[str]:
    cells, at = [], 0
    while True:
        found = _CSV_CELL.match(line, at)
        if not found:
            raise UserError(
                f"{where}: a quoted cell does not end before its line does, or goes on behind its quotation mark; write a quotation mark inside "
                'a quoted cell twice (""), and no line break'
            )
        quoted, bare, end = found.groups()
        cells.append(quoted.replace('""', '"') if quoted is not None else bare or "")
        if not end:
            return cells
        at = found.end()


def read_parquet(path: Path, wanted: Collection[str]) -> Table:
    """The wanted columns of a Parquet file.

    Raises:
        UserError: it is damaged; or one of the columns is neither text nor whole numbers.
    """
    import pyarrow
    from pyarrow import parquet

    try:
        # Not `read_table`, which makes columns of the names of folders.
        with parquet.ParquetFile(path, page_checksum_verification=True) as file:
            names = file.schema_arrow.names
            chosen = [name for name in dict.fromkeys(names) if name in wanted]
            doubled = [name for name in chosen if names.count(name) > 1]
            if doubled:
                raise UserError(f"{path}: {', '.join(doubled)} is the name of more than one column; every column needs a name of its own")
            for name in chosen:
                _refuse_type(path, name, file.schema_arrow.field(name).type)
            table = file.read(columns=chosen)
            if chosen and table.num_rows != file.metadata.num_rows:
                raise UserError(f"{path} is not a Parquet file that can be read (it says {file.metadata.num_rows} rows and has {table.num_rows})")
            columns = dict(_decoded(path, table))
            count = table.num_rows if chosen else min(1, file.metadata.num_rows)
    except (pyarrow.ArrowException, OSError, LookupError, OverflowError, ValueError) as error:
        said = str(error).splitlines() or [type(error).__name__]
        raise UserError(f"{path} is not a Parquet file that can be read ({said[0]})") from None
    rows = [{name: values[place] for name, values in columns.items()} for place in range(count)]
    return Table(str(path), tuple(names), rows, [f"row {place}" for place in range(1, count + 1)])


def _refuse_type(path: Path, name: str, given: Any) -> None:
    from pyarrow import types

    kind = given.value_type if types.is_dictionary(given) else given
    fit = (types.is_string, types.is_large_string, types.is_string_view, types.is_integer, types.is_null)
    if not any(fits(kind) for fits in fit):
        raise UserError(f"{path}: the column '{name}' has the type {given}; give text (ids and documents may be whole numbers)")


def _decoded(path: Path, table: Any) -> Iterator[tuple[str, list[Any]]]:
    for name, column in zip(table.column_names, table.columns, strict=True):
        try:
            yield name, column.to_pylist()
        except UnicodeDecodeError:
            raise UserError(f"{path}: the column '{name}' holds text that is not UTF-8; write the file again") from None
