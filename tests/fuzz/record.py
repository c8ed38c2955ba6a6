"""All generated configurations and corpora as real commands, and a table of how each has ended.

    python -m tests.fuzz.record OUT.csv                   from the root of the repository
    python -m tests.fuzz.record OUT.csv --part 1/2        every other one, beside `--part 2/2` in another terminal

What the table has already is not done again, so a record that was broken off goes on. Both parts may write one table.
"""

import argparse
import csv
import fcntl
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from .commands import Ending, command_of, give, read_back
from .configurations import Command
from .corpora import Example
from .test_configurations import all_commands
from .test_corpora import all_examples

COLUMNS = ("number", "kind", "job", "arguments", "what", "exit_code", "seconds", "first_line", "wrong")


def everything() -> list[Command | Example]:
    """Three hundred configurations and two hundred corpora."""
    return [*all_commands(), *all_examples()]


def done(table: Path) -> set[int]:
    """Numbers of what has been tried."""
    if not table.is_file():
        return set()
    with table.open(encoding="utf-8", newline="") as file:
        return {int(row["number"]) for row in csv.DictReader(file)}


def try_one(number: int, example: Command | Example) -> dict[str, object]:
    """A row of the table."""
    base = Path(tempfile.mkdtemp(prefix="lingact-fuzz-"))
    try:
        ending: Ending = give(example, base)
        wrong = ending.complaint
        if wrong is None and ending.code == 0 and isinstance(example, Example):
            wrong = read_back(example, base)
    finally:
        shutil.rmtree(base)
    job, arguments = command_of(example)
    what, kind = (example.what, example.kind) if isinstance(example, Example) else (" ".join(map(repr, example.arguments))[:300], "configuration")
    code = "none" if ending.code is None else ending.code
    values = (number, kind, job, " ".join(map(repr, arguments))[:1000], what, code, f"{ending.seconds:.1f}", ending.line[:300], wrong or "")
    return dict(zip(COLUMNS, values, strict=True))


def add(table: Path, row: dict[str, object]) -> None:
    """Append a row, whole, beside other processes that do the same."""
    with table.open("a", encoding="utf-8", newline="") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        writer = csv.DictWriter(file, COLUMNS)
        if file.tell() == 0:
            writer.writeheader()
        writer.writerow({name: value.encode(errors="backslashreplace").decode() if isinstance(value, str) else value for name, value in row.items()})


def main(arguments: Sequence[str]) -> int:
    """Try what is left. Returns 1 where something was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path)
    parser.add_argument("--part", default="1/1")
    asked = parser.parse_args(arguments)
    part, parts = map(int, asked.part.split("/"))
    tried = done(asked.table)
    for number, example in enumerate(everything()):
        if number % parts == part - 1 and number not in tried:
            row = try_one(number, example)
            add(asked.table, row)
            said = f"{number} {row['exit_code']} {row['seconds']} s {row['what']}{'  WRONG: ' if row['wrong'] else ''}{row['wrong']}\n"
            sys.stdout.write(said.encode(errors="backslashreplace").decode())
            sys.stdout.flush()
    with asked.table.open(encoding="utf-8", newline="") as file:
        return 1 if any(row["wrong"] for row in csv.DictReader(file)) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
