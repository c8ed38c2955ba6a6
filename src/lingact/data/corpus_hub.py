"""Aligned text from data sets of the Hugging Face hub."""

import functools
import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lingact.catalogue.languages import LANGUAGES
from lingact.config.base import asset
from lingact.config.data import HubCorpus, OnTheHub, PairsCorpus
from lingact.data.corpus import ParallelCorpus
from lingact.data.corpus_files import DOCUMENT_COLUMN, aligned_corpus
from lingact.data.hub_rows import hub_rows
from lingact.data.text import plain
from lingact.errors import UserError
from lingact.files.tables import Table, read_delimited, text_problem


def _rows(config: OnTheHub, subset: str, columns: Sequence[str], code: str) -> Any:
    """These columns of one configuration of a corpus."""
    with hub_rows(config, subset, columns, code, what="corpus", instead="or use corpus=files corpus.path=...") as rows:
        return rows


def from_hub(config: HubCorpus, codes: tuple[str, ...]) -> ParallelCorpus:
    """The corpus of a data set with one configuration per language; sentences belong together by id, or else by row.

    Raises:
        UserError: the hub does not give it, or it does not fit its configuration.
    """
    columns = [column for column in (config.id_column, config.text_column, config.document_column) if column is not None]
    texts: dict[str, dict[str, str | None]] = {}
    documents: dict[str, tuple[str, str]] = {}
    for code in codes:
        subset = getattr(LANGUAGES[code], config.subset)
        rows = _rows(config, subset, columns, code).to_list()
        table = Table(
            f"corpus '{config.dataset}', configuration '{subset}'", tuple(columns), rows, [f"row {number + 1}" for number in range(len(rows))]
        )
        ids = _ids(config, table)
        texts[code] = dict(zip(ids, table.texts(config.text_column), strict=True))
        of_these = _documents(config, table)
        for key, document in zip(ids, of_these, strict=True) if of_these else ():
            first, whose = documents.setdefault(key, (document, code))
            if document != first:
                raise UserError(
                    f"{table.name}: sentence {key} is of the document '{document}', and in {whose} of '{first}'; a sentence and its translations are "
                    "of one document. Do without documents: corpus.document_column=null"
                )
    ids = list(dict.fromkeys(key for column in texts.values() for key in column))
    if not ids:
        raise UserError(f"corpus '{config.dataset}' is empty")
    aligned = {code: [column.get(key) for key in ids] for code, column in texts.items()}
    of = [documents[key][0] for key in ids] if documents else None
    return aligned_corpus(config.dataset, aligned, ids, of, [f"row {number}" for number in range(1, len(ids) + 1)])


def _ids(config: HubCorpus, table: Table) -> list[str]:
    """Which sentences belong together."""
    if config.id_column is None:
        return [f"row-{number:06d}" for number in range(1, len(table.rows) + 1)]
    ids = table.names(config.id_column) or []
    if len(ids) < len(table.rows):
        raise UserError(f"{table.name}: the column '{config.id_column}' holds nothing; fix corpus.id_column")
    doubled = [key for key, count in Counter(ids).items() if count > 1]
    if doubled:
        raise UserError(f"{table.name} has sentence ids more than once: {', '.join(doubled[:5])}; fix corpus.id_column")
    return ids


def _documents(config: HubCorpus, table: Table) -> Sequence[str]:
    """The document of each sentence; nothing where the corpus tells none."""
    if config.document_column is not None:
        found = table.names(config.document_column)
        if found is None:
            raise UserError(f"{table.name}: the column '{config.document_column}' holds nothing; do without documents: corpus.document_column=null")
        return found
    if config.documents is None:
        return ()
    listed = _listed_documents(config.documents)
    if len(listed) != len(table.rows):
        raise UserError(
            f"{table.name} has {len(table.rows)} sentences, and the list of documents '{config.documents}' is of {len(listed)}; it is another "
            "version or split. Do without documents: corpus.documents=null"
        )
    return listed


@functools.cache
def _listed_documents(name: str) -> tuple[str, ...]:
    """The document of each sentence of a data set, by the package's list of documents and their lengths."""
    table = read_delimited(Path(asset(f"documents/{name}.tsv")))
    return tuple(str(row[DOCUMENT_COLUMN]) for row in table.rows for _ in range(int(row["sentences"])))


def from_pairs(config: PairsCorpus, reference: str, other: str) -> ParallelCorpus:
    """One pair of languages, so many pairs of sentences as are wanted."""
    here = [getattr(LANGUAGES[code], config.layout) for code in (reference, other)]
    if None in here:
        code = (reference, other)[here.index(None)]
        raise UserError(f"corpus '{config.dataset}' tells scripts and varieties not apart, so it has nothing for {code}; choose another corpus")
    if config.layout == "opus":
        subset = "-".join(sorted(here))
        rows = _rows(config, subset, ["translation"], other)
        sides: Iterable[Sequence[object]] = ([(row["translation"] or {}).get(code) for code in here] for row in rows)
    else:
        # English stands second, whichever of the two it is.
        order = (1, 0) if here[1] != "eng" else (0, 1)
        subset = "-".join(here[place] for place in order)
        columns = [f"sentence{order.index(place) + 1}" for place in (0, 1)]
        rows = _rows(config, subset, columns, other)
        sides = ([row[column] for column in columns] for row in rows)
    kept, read = _distinct(((_usable(own), _usable(translated)) for own, translated in sides), config.max_sentences)
    if not kept:
        raise UserError(f"corpus '{config.dataset}' has no translations in '{subset}'; choose another language or corpus")
    texts = {reference: tuple(pair[0] for pair in kept.values()), other: tuple(pair[1] for pair in kept.values())}
    return ParallelCorpus(f"{config.dataset}/{subset}", tuple(kept), texts, left_out=read - len(kept))


def _usable(side: object) -> str:
    """A side of a pair; nothing where it is no text or holds a separator, as here and there in what was collected from the web."""
    return side if isinstance(side, str) and text_problem(side) is None else ""


def _distinct(pairs: Iterable[tuple[str, str]], at_most: int | None) -> tuple[dict[str, tuple[str, str]], int]:
    """The first pairs of which neither side came before, and how many were gone through.

    What is blank or the same on both sides is no translation. The id follows from the reference's text, so that a sentence is in the same split
    whatever language it is paired with.
    """
    kept: dict[str, tuple[str, str]] = {}
    seen: tuple[set[str], set[str]] = (set(), set())
    read = 0
    for pair in pairs:
        if len(kept) == at_most:
            break
        read += 1
        own, translated = plain(pair[0]), plain(pair[1])
        if own and translated and own != translated and own not in seen[0] and translated not in seen[1]:
            seen[0].add(own)
            seen[1].add(translated)
            kept[hashlib.sha256(own.encode()).hexdigest()[:16]] = pair
    return kept, read
