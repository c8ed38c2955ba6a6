"""Rows of a data set of the Hugging Face hub."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from lingact.config.data import OnTheHub
from lingact.errors import UserError
from lingact.hub.huggingface import HubItem, from_the_hub


@contextmanager
def hub_rows(  # noqa: PLR0913 (what, where from, and what to say)
    config: OnTheHub,
    subset: str | None,
    columns: Sequence[str],
    code: str,
    *,
    what: str,
    instead: str,
    files: str | None = None,
    further: Sequence[str] = (),
    streamed: bool = False,
) -> Iterator[Any]:
    """These columns of one configuration of a data set, or of some of its files, from the hub or what was downloaded before.

    Errors while they are read are told, too.

    Args:
        code: the language that messages name.
        what: the section, as messages name it: corpus, or text.
        instead: what else can be done.
        files: pattern of the files that are read; None: those of the configuration.
        further: columns that are taken if they are there.
        streamed: download only what is read. It is downloaded anew each time.

    Raises:
        UserError: the hub does not give it, or it has no such configuration or column.
    """
    from datasets import load_dataset
    from datasets.exceptions import DataFilesNotFoundError, DatasetBuildError

    named, part = f"{what} '{config.dataset}' ({config.licence})", f"'{subset if files is None else files}'"
    given: dict[str, Any] = {"split": config.split, "revision": config.revision, "streaming": streamed}
    if files is not None:
        given["data_files"] = {config.split: files}
    with _errors_only("datasets"), from_the_hub(HubItem(named, config.dataset, "dataset", instead)) as offline:
        try:
            rows = load_dataset(config.dataset, subset, **given)
        except DataFilesNotFoundError as error:
            if offline:
                raise
            raise UserError(f"{named} has nothing for {code}: no file {part}. Leave {code} out, or choose another {what}") from error
        except (ValueError, DatasetBuildError) as error:
            if offline and isinstance(error, ValueError):
                raise
            if "BuilderConfig" in str(error):
                raise UserError(f"{named} has nothing for {code}: no configuration {part}. Leave {code} out, or choose another {what}") from None
            raise UserError(f"{named} cannot be read: {str(error).splitlines()[0]}") from error
        there = rows.column_names or list(next(iter(rows), {}))
        absent = [column for column in columns if column not in there]
        if absent:
            raise UserError(f"{named} has no column {', '.join(absent)} in {part} (there: {', '.join(there)}); fix its section")
        yield rows.select_columns([*columns, *(column for column in dict.fromkeys(further) if column in there)])


@contextmanager
def _errors_only(logger: str) -> Iterator[None]:
    """Its warnings say that what was downloaded before is used."""
    its, level = logging.getLogger(logger), logging.getLogger(logger).level
    its.setLevel(logging.ERROR)
    try:
        yield
    finally:
        its.setLevel(level)
