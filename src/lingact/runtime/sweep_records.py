"""The record that each finished job leaves in the folder `.jobs/` of its sweep (`cli.sweep.JobRecords` writes it)."""

from pathlib import Path
from typing import TypedDict, cast

from lingact.files.records import read_json_object


class Record(TypedDict):
    """How a job ended."""

    job: int
    overrides: dict[str, str]
    status: str
    """complete, failed or refused."""
    problem: str | None
    """The message to the user, where it was refused."""
    folder: str


def records(folder: Path) -> list[Record]:
    """The records of a sweep's finished jobs, in their order.

    Raises:
        UserError: one is damaged.
    """
    return sorted((record for _, record in record_files(folder)), key=lambda record: record["job"])


def record_files(folder: Path) -> list[tuple[Path, Record]]:
    """The records with their files. Other files in the same folder are ignored.

    Raises:
        UserError: one is damaged.
    """
    otherwise, needed = "delete it to go on without that job", Record.__required_keys__
    paths = [path for path in (folder / ".jobs").glob("*.json") if path.stem.isdecimal()]
    return [(path, cast("Record", read_json_object(path, otherwise, needed))) for path in paths]
