"""The tables of a run folder. Those of earlier versions get the names of this version."""

from pathlib import Path

import pandas as pd

from lingact.errors import UserError
from lingact.files.earlier import RENAMED_COLUMNS, RENAMED_TABLES


def table_files(run: Path) -> dict[str, Path]:
    """Name of each table of a run folder -> its file, in alphabetical order of the files."""
    return {RENAMED_TABLES.get(path.stem, path.stem): path for path in sorted((run / "tables").glob("*.csv"))}


def read_run_table(path: Path) -> pd.DataFrame:
    """A table of a run. Only empty cells are missing values, because words such as `nan` may be language codes.

    Raises:
        UserError: it is damaged.
    """
    try:
        table = pd.read_csv(path, keep_default_na=False, na_values=[""])
    except (OSError, ValueError) as error:  # pandas' own errors are ValueErrors
        raise UserError(f"'{path}' cannot be read ({str(error).strip()}); put it back, or let the run make it again") from None
    return table.rename(columns=RENAMED_COLUMNS)


def read_tables(run: Path) -> dict[str, pd.DataFrame]:
    """All tables of a run folder by name.

    Raises:
        UserError: one is damaged.
    """
    return {name: read_run_table(path) for name, path in table_files(run).items()}
