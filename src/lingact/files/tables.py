"""Read tables from users. The same rules hold for all formats, and no value is converted silently.

Lines. Empty lines are not rows.

Cells. TSV has no quoting: a quotation mark is an ordinary character, and a tab ends a cell. CSV has the quoting of RFC 4180, within a line. In every
format, a cell that contains a tab or a line feed is refused, because it usually comes from merged rows.

Types. Where a text is expected, numbers, booleans and nested values are refused. Names (sentence ids, documents, item ids) may also be whole numbers,
which become their decimal digits. A null, a missing key and an empty cell of Parquet are missing values. Only requested columns are checked.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lingact.errors import UserError
from lingact.files.records import Numeral, json_reason, parse_json
from lingact.files.text import read_lines

if TYPE_CHECKING:
    import pyarrow

_PACKED = (".gz", ".bz2", ".xz", ".zst", ".zip")
_CSV_CELL = re.compile(r'(?: *"((?:[^"]+|"")*+)" *|( *[^" ,][^,]*| *))(,|\Z)')
_FORBIDDEN = {"\t": "a tab", "\n": "a line break", "\0": "a NUL character"}
_NAMED = 5
"""A message names at most so many places."""


# --- tables --------------------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Table:
    """Rows with named cells, and the place of each row in its file."""

    name: str
    """The table's name in messages."""
    columns: tuple[str, ...]
    """All columns that any row has."""
    rows: Sequence[Mapping[str, Any]]
    places: Sequence[str]
    """Place of each row, such as `line 3`."""

    def texts(self, column: str) -> list[str | None]:
        """The texts of a column as they are in the file; None for a row that has none.

        Raises:
            UserError: a value is not a text, or contains a separator; the message names the places.
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
        """The names in a column (NFC, stripped); None if no row has one.

        Raises:
            UserError: a value is not a name, is blank, or is missing although other rows have one; the message names the places.
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
    """Refuse a column whose name differs from the wanted one only in case or blanks, because it would be ignored.

    Args:
        name: name of the file, for the message.
        columns: names of the columns that exist.

    Raises:
        UserError: the message names the column.
    """
    there = list(columns)
    close = [column for column in there if column.strip().casefold() == wanted]
    if close and wanted not in there:
        raise UserError(f"{name} has a column '{close[0]}', but names are read from '{wanted}'; rename it to that, or to something else")


def text_problem(value: object) -> str | None:
    """Why a value is not a text; None if it is one."""
    if not isinstance(value, str) or isinstance(value, Numeral):
        return f"is {kind_of(value)}, not a text; give the text itself"
    return next((f"contains {what}: were rows or cells merged?" for mark, what in _FORBIDDEN.items() if mark in value), None)


def name_problem(value: object) -> str | None:
    """Why a value is not a name; None if it is one. Whole numbers are names."""
    if value is None:
        return "is missing, but other rows have it; give it in all rows or in none"
    if isinstance(value, bool) or not isinstance(value, str | int) or (isinstance(value, Numeral) and not value.removeprefix("-").isdigit()):
        return f"is {kind_of(value)}; give a text or a whole number"
    if not as_name(value):
        return "is blank; name it, or leave the column out"
    return text_problem(as_name(value))


def as_name(value: str | int | None) -> str:
    """A name in the form in which names are compared: NFC, stripped."""
    return unicodedata.normalize("NFC", str(value)).strip()


def kind_of(value: object) -> str:
    """The kind of a value, in the terms of JSON."""
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean (true or false)"
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
        wanted: columns that are checked; no other columns of a Parquet file are read.

    Raises:
        UserError: as in `read_text`; or a line is not JSON, rows differ in length, a column comes twice, or the ending is not supported.
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
    raise UserError(f"{path} ends in '{path.suffix}'; supported are .jsonl, .csv, .tsv, .parquet, and folders of <code>.txt files")


def read_jsonl(path: Path) -> Table:
    """A JSONL file with an object in each line.

    Raises:
        UserError: as in `read_text`; or a line is not an object.
    """
    rows, places = [], []
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except ValueError as error:
            raise UserError(
                f"{path}, line {number}: not JSON ({json_reason(error)}); every line must be one object with a key per language code"
            ) from None
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {number}: {kind_of(row)}; every line must be one object with a key per language code")
        rows.append(row)
        places.append(f"line {number}")
    return Table(str(path), tuple(dict.fromkeys(key for row in rows for key in row)), rows, places)


def read_delimited(path: Path, *, strip: bool = False) -> Table:
    """A CSV file, or by its ending a TSV file. Names in the header are stripped.

    Args:
        strip: also strip the cells.

    Raises:
        UserError: as in `read_text`; or a row differs in length from the header, a quotation mark is not closed, or the header names a column twice.
    """
    tabs = path.suffix.lower() == ".tsv"
    lines = ((number, line) for number, line in enumerate(read_lines(path), start=1) if line.strip(" "))
    cut = ((number, line.split("\t") if tabs else _csv_cells(line, f"{path}, line {number}")) for number, line in lines)
    _, header = next(cut, (0, []))
    header = [name.strip("\ufeff \t\xa0") for name in header]
    doubled = [name for name, count in Counter(header).items() if name and count > 1]
    if doubled:
        raise UserError(f"{path}: the header names {', '.join(doubled)} more than once; every column needs its own name")
    rows, places = [], []
    for number, cells in cut:
        if [cell.strip() for cell in cells] == header:
            raise UserError(f"{path}, line {number}: this is the header again; were files concatenated? Remove it")
        if len(cells) != len(header):
            hint = "a tab always ends a cell and cannot be quoted" if tabs else "quote cells that contain the separator"
            raise UserError(f"{path}, line {number}: {len(cells)} cells, but the header has {len(header)}; {hint}")
        rows.append(dict(zip(header, (cell.strip() for cell in cells) if strip else cells, strict=True)))
        places.append(f"line {number}")
    return Table(str(path), tuple(header), rows, places)


def _csv_cells(line: str, where: str) -> list[str]:
    cells, at = [], 0
    while True:
        found = _CSV_CELL.match(line, at)
        if not found:
            raise UserError(
                f"{where}: a quoted cell does not end within its line, or text follows its closing quotation mark; double a quotation mark inside "
                'a quoted cell (""), and write no line break in it'
            )
        quoted, bare, end = found.groups()
        cells.append(quoted.replace('""', '"') if quoted is not None else bare or "")
        if not end:
            return cells
        at = found.end()


def read_parquet(path: Path, wanted: Collection[str]) -> Table:
    """The wanted columns of a Parquet file.

    Raises:
        UserError: it is damaged, or a column contains neither text nor whole numbers.
    """
    import pyarrow
    from pyarrow import parquet

    try:
        # pyarrow's `read_table` would also make columns from the names of folders.
        with parquet.ParquetFile(path, page_checksum_verification=True) as file:
            names = file.schema_arrow.names
            chosen = [name for name in dict.fromkeys(names) if name in wanted]
            doubled = [name for name in chosen if names.count(name) > 1]
            if doubled:
                raise UserError(f"{path}: {', '.join(doubled)} is the name of more than one column; every column needs its own name")
            for name in chosen:
                _refuse_type(path, name, file.schema_arrow.field(name).type)
            table = file.read(columns=chosen)
            if chosen and table.num_rows != file.metadata.num_rows:
                raise UserError(f"{path} is not a readable Parquet file (it declares {file.metadata.num_rows} rows and has {table.num_rows})")
            columns = dict(_decoded(path, table))
            count = table.num_rows if chosen else min(1, file.metadata.num_rows)
    except (pyarrow.ArrowException, OSError, LookupError, OverflowError, ValueError) as error:
        lines = str(error).splitlines() or [type(error).__name__]
        raise UserError(f"{path} is not a readable Parquet file ({lines[0]})") from None
    rows = [{name: values[place] for name, values in columns.items()} for place in range(count)]
    return Table(str(path), tuple(names), rows, [f"row {place}" for place in range(1, count + 1)])


def _refuse_type(path: Path, name: str, given: "pyarrow.DataType") -> None:
    from pyarrow import types

    kind = given.value_type if types.is_dictionary(given) else given
    fit = (types.is_string, types.is_large_string, types.is_string_view, types.is_integer, types.is_null)
    if not any(fits(kind) for fits in fit):
        raise UserError(f"{path}: the column '{name}' has the type {given}; give text (ids and documents may be whole numbers)")


def _decoded(path: Path, table: "pyarrow.Table") -> "Iterator[tuple[str, list[str | int | None]]]":
    for name, column in zip(table.column_names, table.columns, strict=True):
        try:
            yield name, column.to_pylist()
        except UnicodeDecodeError:
            raise UserError(f"{path}: the column '{name}' contains text that is not UTF-8; write the file again") from None
