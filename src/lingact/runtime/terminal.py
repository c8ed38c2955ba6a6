"""The only module that prints tables: plain aligned text of at most 110 columns, in which nothing is truncated."""

import re
import shutil
import textwrap
from collections.abc import Mapping, Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

COLUMNS = 110
_GAP = 2
_WIDEST = 44
"""A longer cell is continued on the next line."""
_NUMBER = re.compile(r"-|nan|[-+<]?[\d.].*")
_PATH = re.compile(r".*[/\\][^\d\s].*")  # not 40/23


def show(rows: Sequence[Mapping[str, object]], *, title: str = "", fixed: int = 1) -> None:
    """Print rows as a table, with numbers aligned to the right and words to the left.

    A single row that is too wide for a line, or that names files, is printed as `key: value` lines, so that paths stay whole and can be copied.
    Columns that do not fit next to each other follow below in further blocks.

    Args:
        rows: cells by column name; a missing one stays blank.
        title: a line above the table.
        fixed: how many leading columns each further block repeats.
    """
    cells = [{name: _text(value) for name, value in row.items()} for row in rows]
    names = list(dict.fromkeys(name for row in cells for name in row))
    width = min(COLUMNS, shutil.get_terminal_size((COLUMNS, 24)).columns)
    console = Console(width=width, highlight=False, soft_wrap=True)
    if title:
        console.print(Text(f"\n{title}", style="bold"))
    if not names:
        return
    blocks = _blocks(names, {name: _width(name, cells) for name in names}, fixed, width)
    if len(cells) == 1 and (len(blocks) > 1 or any(_PATH.fullmatch(value) for value in cells[0].values())):
        label = max(map(cell_len, names)) + 1
        for name, value in cells[0].items():
            console.print(Text(f"{name + ':':<{label}} {value}"))
        return
    for number, block in enumerate(blocks):
        if number:
            console.print()
        with console.capture() as captured:
            console.print(_table(block, cells), soft_wrap=False)
        console.print(Text.from_ansi("\n".join(line.rstrip() for line in captured.get().splitlines())))


def note(text: str) -> None:
    """Print an important sentence, wrapped at spaces only, so that paths stay whole."""
    width = min(COLUMNS, shutil.get_terminal_size((COLUMNS, 24)).columns)
    lines = textwrap.fill(text, width, initial_indent="Note: ", subsequent_indent="      ", break_long_words=False, break_on_hyphens=False)
    Console(highlight=False, soft_wrap=True).print(Text(lines))


def _text(value: object) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _width(name: str, cells: Sequence[Mapping[str, str]]) -> int:
    return max(cell_len(name), *(min(_WIDEST, cell_len(row.get(name, ""))) for row in cells))


def _blocks(names: list[str], widths: Mapping[str, int], fixed: int, width: int) -> list[list[str]]:
    """Column names by block; every block begins with the fixed ones."""
    lead, rest = names[:fixed], names[fixed:]
    blocks = [list(lead)]
    for name in rest:
        if len(blocks[-1]) > len(lead) and sum(widths[column] + _GAP for column in (*blocks[-1], name)) - _GAP > width:
            blocks.append(list(lead))
        blocks[-1].append(name)
    return blocks


def _table(names: Sequence[str], cells: Sequence[Mapping[str, str]]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold")
    for name in names:
        values = [row.get(name, "") for row in cells]
        numeric = all(_NUMBER.fullmatch(value) for value in values if value) and any(values)
        table.add_column(Text(name), justify="right" if numeric else "left", overflow="fold", max_width=max(_WIDEST, cell_len(name)))
    for row in cells:
        # Text, not str: rich would read `[ml, hi]` as markup.
        table.add_row(*(Text(row.get(name, "")) for name in names))
    return table
