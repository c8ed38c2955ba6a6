"""Aligned text: the same sentences in several languages, read from files or the hub, split by sentence id."""

import csv
import hashlib
import io
import json
import logging
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import regex
from jaxtyping import Int

from lingact.config import FilesCorpus, HubCorpus, OnTheHub, PairsCorpus, Splits
from lingact.errors import UserError
from lingact.hub import HubItem, from_the_hub
from lingact.inference import Resampling
from lingact.languages import LANGUAGES, nearest

_WORD_BOUNDARY, _WORDLIKE = regex.compile(r"(?wV1)\b"), regex.compile(r"[\p{L}\p{N}]")
Split = Literal["train", "dev", "heldout", "all"]
ID_COLUMN = "unit"
"""Column with sentence ids, if a file has it. (`id` would be Indonesian.)"""


def split_in_halves(units: Sequence[str]) -> Int[np.ndarray, " sentence"]:
    """0 where a sentence serves discovery, 1 where it serves confirmation. It follows from the sentence's unit (`ParallelCorpus.units`) alone."""
    return np.array([hashlib.sha256(f"half {unit}".encode()).digest()[0] & 1 for unit in units], np.int64)


def sample_places(ids: Sequence[str], at_most: int) -> Int[np.ndarray, " chosen"]:
    """Places of at most so many sentences, ascending: the first ones in the order of a hash of the ids, so that no order of the file matters."""
    order = sorted(range(len(ids)), key=lambda place: hashlib.sha256(f"sample {ids[place]}".encode()).digest())
    return np.array(sorted(order[:at_most]))


@dataclass(frozen=True)
class ParallelCorpus:
    """Sentences aligned by `ids`: `texts[code][i]` says in that language what `texts[other][i]` says in another."""

    name: str
    ids: tuple[str, ...]
    texts: dict[str, tuple[str, ...]]
    left_out: int = 0
    """Rows that were read and left out: doubles, and pairs that are no translations."""
    documents: tuple[str, ...] | None = None
    """The document that each sentence comes from; None where the source does not say. Sentences of one document are not independent."""
    rows: tuple[int, ...] | None = None
    """Each sentence's place in its source, from 0, by which sentences are neighbours. None: they stand in a row."""

    @property
    def units(self) -> tuple[str, ...]:
        """What each sentence is split by: its document, or where there is none the sentence itself."""
        return self.ids if self.documents is None else self.documents

    @property
    def identity(self) -> dict[str, str | int]:
        """What the manifest keeps of it."""
        counted = {} if self.documents is None else {"documents": len(set(self.documents))}
        return {"name": self.name, "sha256": self.sha256, "sentences": len(self.ids), "left_out": self.left_out} | counted

    @property
    def sha256(self) -> str:
        """Hash of ids, texts and documents if there are any, whatever file they came from."""
        content = json.dumps([self.ids, sorted(self.texts.items()), *([] if self.documents is None else [self.documents])], ensure_ascii=False)
        return hashlib.sha256(content.encode()).hexdigest()

    @cached_property
    def halves(self) -> Int[np.ndarray, " sentence"]:
        """`split_in_halves` of the units."""
        return split_in_halves(self.units)

    def resampling(self, block: int | None) -> Resampling:
        """What intervals draw: documents, or else blocks of so many neighbouring sentences, or else sentences."""
        return Resampling.of(len(self.ids), self.documents, self.rows, block)

    def sample(self, at_most: int) -> Int[np.ndarray, " chosen"]:
        """`sample_places` of the ids."""
        return sample_places(self.ids, at_most)

    def select(self, keep: list[int]) -> "ParallelCorpus":
        """The sentences at the given places."""
        documents = None if self.documents is None else tuple(self.documents[i] for i in keep)
        rows = tuple(keep) if self.rows is None else tuple(self.rows[i] for i in keep)
        texts = {code: tuple(text[i] for i in keep) for code, text in self.texts.items()}
        return replace(self, ids=tuple(self.ids[i] for i in keep), texts=texts, documents=documents, rows=rows)

    def speaking(self, codes: tuple[str, ...]) -> "ParallelCorpus":
        """The same sentences in the given languages only."""
        return replace(self, texts={code: self.texts[code] for code in codes})

    def without(self, other: "ParallelCorpus") -> "ParallelCorpus":
        """The sentences that the other corpus has in no language, whatever their case, width and spaces."""
        known = {code: {plain(text) for text in other.texts[code]} for code in self.texts if code in other.texts}
        return self.select([i for i in range(len(self.ids)) if not any(plain(self.texts[code][i]) in texts for code, texts in known.items())])

    def split(self, name: Split, shares: Splits) -> "ParallelCorpus":
        """The sentences of a split. Who is in it follows from the document's or else the sentence's id alone, so it stays when others are added.

        Raises:
            UserError: no sentence is in it.
        """
        if name == "all":
            return self

        def place(unit: str) -> str:
            lot = int(hashlib.sha256(unit.encode()).hexdigest()[:8], 16) / 16**8
            return "train" if lot < shares.train else "dev" if lot < shares.train + shares.dev else "heldout"

        keep = [i for i, unit in enumerate(self.units) if place(unit) == name]
        if not keep:
            raise UserError(
                f"corpus '{self.name}' has {len(self.ids)} sentences and none of them in the split '{name}'; give more text or a larger "
                "share in corpus.splits"
            )
        return self.select(keep)


def plain(text: str) -> str:
    """By which sentences are the same: without differences of case, width and spaces."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def words_of(text: str) -> list[str]:
    """Words by Unicode's word boundaries (UAX #29): stretches with a letter or digit; every Han character is one."""
    return [part for part in _WORD_BOUNDARY.split(text) if _WORDLIKE.search(part)]


def word_count(text: str) -> int:
    """Number of `words_of` a text."""
    return len(words_of(text))


def load_corpus(config: FilesCorpus | HubCorpus | PairsCorpus, codes: tuple[str, ...]) -> ParallelCorpus:
    """The corpus in the given languages, each sentence once.

    Args:
        codes: the reference first. Of pairs, the reference and one other.

    Raises:
        UserError: what is missing, empty or ragged, and where; or the hub does not give it.
    """
    match config:
        case FilesCorpus():
            corpus = _from_files(config, codes)
        case HubCorpus():
            corpus = _from_hub(config, codes)
        case PairsCorpus():
            corpus = _from_pairs(config, *codes)
    return corpus.select(list(range(len(corpus.ids)))[: config.max_sentences])


def load_training_text(
    corpus: FilesCorpus | HubCorpus | PairsCorpus, codes: tuple[str, ...], measured: ParallelCorpus
) -> tuple[ParallelCorpus, dict[str, str | int]]:
    """The split train of a corpus that is trained on while another one is measured on, and what the manifest keeps of it.

    Sentences that the measured one has, too, are left out: what judges must not have been trained on.

    Raises:
        UserError: as `load_corpus`; or nothing is left.
    """
    whole = load_corpus(corpus, codes)
    train = whole.split("train", corpus.splits)
    new = train.without(measured)
    if not new.ids:
        raise UserError(
            f"train_corpus: all {len(train.ids)} sentences of the split train of '{train.name}' are in the measured corpus '{measured.name}', too; "
            "train on another corpus, or leave train_corpus out to train on the split train of the measured one"
        )
    return new, new.identity | {"also_measured_on": len(train.ids) - len(new.ids)}


def _from_files(config: FilesCorpus, codes: tuple[str, ...]) -> ParallelCorpus:
    path = config.path
    if not path.exists():
        siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UserError(
            f"corpus.path: '{path}' does not exist{nearest(path.name, siblings)} Give a JSONL, CSV, TSV or Parquet file or a folder of <code>.txt"
        )
    if path.is_dir():
        rows = _folder_rows(path, codes)
    elif path.suffix == ".jsonl":
        rows = _jsonl_rows(path)
    elif path.suffix in (".csv", ".tsv"):
        rows = _table_rows(path)
    elif path.suffix == ".parquet":
        rows = _parquet_rows(path)
    else:
        raise UserError(f"corpus.path: '{path}' ends in '{path.suffix}'; .jsonl, .csv, .tsv, .parquet or a folder of <code>.txt files are read")
    return _aligned(str(path), rows, codes)


def _jsonl_rows(path: Path) -> list[dict[str, str]]:
    rows = []
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}, line {number}: not JSON ({error.msg}); every line must be one object with a key per language code") from None
        if not isinstance(row, dict) or not all(isinstance(value, str) for value in row.values()):
            raise UserError(f"{path}, line {number}: every line must be one object whose values are texts")
        rows.append(row)
    return rows


def _table_rows(path: Path) -> list[dict[str, str]]:
    reader = csv.reader(io.StringIO(_text(path), newline=""), delimiter="\t" if path.suffix == ".tsv" else ",")
    header = next(reader, [])
    doubled = [name for name, count in Counter(header).items() if count > 1]
    if doubled:
        raise UserError(f"{path}: the header names {', '.join(doubled)} more than once; every column needs a name of its own")
    rows = []
    try:
        for cells in reader:
            if cells and len(cells) != len(header):
                raise UserError(
                    f"{path}, line {reader.line_num}: {len(cells)} cells where the header has {len(header)}; quote cells that contain the separator"
                )
            if cells:
                rows.append(dict(zip(header, cells, strict=True)))
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: {error}; is a quotation mark left open?") from None
    return rows


def _parquet_rows(path: Path) -> list[dict[str, str]]:
    import pyarrow
    from pyarrow import parquet

    try:
        schema = parquet.read_schema(path)
        texts = [column.name for column in schema if pyarrow.types.is_string(column.type) or pyarrow.types.is_large_string(column.type)]
        return [{name: text or "" for name, text in row.items()} for row in parquet.read_table(path, columns=texts).to_pylist()]
    except pyarrow.ArrowException as error:
        raise UserError(f"{path} is not a Parquet file that can be read ({str(error).splitlines()[0]})") from None


def _folder_rows(path: Path, codes: tuple[str, ...]) -> list[dict[str, str]]:
    columns = {}
    for code in codes:
        file = path / f"{code}.txt"
        if not file.is_file():
            raise UserError(f"{path} has no {code}.txt; found: {', '.join(sorted(f.name for f in path.glob('*.txt'))) or 'no .txt file'}")
        columns[code] = _lines(file)
    lengths = {code: len(lines) for code, lines in columns.items()}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{code}.txt {length}" for code, length in lengths.items())
        raise UserError(f"{path}: line-aligned files must have the same number of lines, found {listed}")
    return [dict(zip(columns, lines, strict=True)) for lines in zip(*columns.values(), strict=True)]


def _lines(path: Path) -> list[str]:
    # Not str.splitlines: texts may hold other line breaks, such as U+2028.
    text = _text(path)
    return text.removesuffix("\n").split("\n") if text else []


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 (byte {error.start}); convert it first") from None


def _aligned(name: str, rows: list[dict[str, str]], codes: tuple[str, ...]) -> ParallelCorpus:
    if not rows:
        raise UserError(f"corpus '{name}' is empty; it needs one aligned sentence a line")
    columns = {key for row in rows for key in row}
    absent = [code for code in codes if code not in columns]
    if absent:
        there = [code for code in LANGUAGES if code in columns]
        raise UserError(
            f"corpus '{name}' has no {', '.join(absent)}; it has "
            f"{', '.join(there) or 'no known language code among its keys ' + ', '.join(sorted(columns))}. "
            "Add the missing text, or choose languages=... without them"
        )
    ragged = [(i, code) for i, row in enumerate(rows, start=1) for code in codes if not row.get(code, "").strip()]
    if ragged:
        listed = ", ".join(f"row {i} lacks {code}" for i, code in ragged[:5])
        raise UserError(
            f"corpus '{name}' is ragged: {listed}{' and more' if len(ragged) > 5 else ''} ({len(ragged)} in all); every sentence needs a "
            "text in every language"
        )
    ids = tuple(row.get(ID_COLUMN) or f"row-{i:06d}" for i, row in enumerate(rows, start=1))
    doubled = [key for key, count in Counter(ids).items() if count > 1]
    if doubled:
        raise UserError(f"corpus '{name}' has sentence ids more than once: {', '.join(doubled[:5])}; ids in '{ID_COLUMN}' must be distinct")
    # Doubles would count twice in every interval, and come into two splits.
    first = {tuple(plain(row[code]) for code in codes): i for i, row in reversed(list(enumerate(rows)))}
    found = ParallelCorpus(name, ids, {code: tuple(row[code] for row in rows) for code in codes}, left_out=len(rows) - len(first))
    return found.select(sorted(first.values()))


# --- from the hub ---------------------------------------------------------------------------------------------------------------------------------


def _rows(config: OnTheHub, subset: str, columns: Sequence[str], code: str) -> Any:
    """The rows of one configuration of a data set, from the hub or what was downloaded before."""
    from datasets import load_dataset
    from datasets.exceptions import DatasetBuildError

    what = f"corpus '{config.dataset}' ({config.licence})"
    with _errors_only("datasets"), from_the_hub(HubItem(what, config.dataset, "dataset", "or use corpus=files corpus.path=...")) as offline:
        try:
            rows = load_dataset(config.dataset, subset, split=config.split, revision=config.revision)
        except (ValueError, DatasetBuildError) as error:
            if offline and isinstance(error, ValueError):
                raise
            if "BuilderConfig" in str(error):
                raise UserError(f"{what} has nothing for {code}: no configuration '{subset}'. Leave {code} out, or choose another corpus") from None
            raise UserError(f"{what} cannot be read: {str(error).splitlines()[0]}") from error
    absent = [column for column in columns if column not in rows.column_names]
    if absent:
        raise UserError(f"{what} has no column {', '.join(absent)} in '{subset}' (there: {', '.join(rows.column_names)}); mend its section")
    return rows


@contextmanager
def _errors_only(logger: str) -> Iterator[None]:
    """Its warnings say that what was downloaded before is used."""
    its, level = logging.getLogger(logger), logging.getLogger(logger).level
    its.setLevel(logging.ERROR)
    try:
        yield
    finally:
        its.setLevel(level)


def _from_hub(config: HubCorpus, codes: tuple[str, ...]) -> ParallelCorpus:
    by_id: dict[str, dict[str, str]] = {}
    columns = [config.text_column] if config.id_column is None else [config.id_column, config.text_column]
    for code in codes:
        subset = getattr(LANGUAGES[code], config.subset)
        for number, row in enumerate(_rows(config, subset, columns, code), start=1):
            key = f"row-{number:06d}" if config.id_column is None else str(row[config.id_column])
            by_id.setdefault(key, {})[code] = row[config.text_column] or ""
    return _aligned(config.dataset, [{ID_COLUMN: key, **texts} for key, texts in by_id.items()], codes)


def _from_pairs(config: PairsCorpus, reference: str, other: str) -> ParallelCorpus:
    """One pair of languages, so many pairs of sentences as are wanted."""
    here = [getattr(LANGUAGES[code], config.layout) for code in (reference, other)]
    if None in here:
        code = (reference, other)[here.index(None)]
        raise UserError(f"corpus '{config.dataset}' tells scripts and varieties not apart, so it has nothing for {code}; choose another corpus")
    if config.layout == "opus":
        subset = "-".join(sorted(here))
        rows = _rows(config, subset, ["translation"], other)
        sides: Iterable[Sequence[str | None]] = ([row["translation"][code] for code in here] for row in rows)
    else:
        # English stands second, whichever of the two it is.
        order = (1, 0) if here[1] != "eng" else (0, 1)
        subset = "-".join(here[place] for place in order)
        columns = [f"sentence{order.index(place) + 1}" for place in (0, 1)]
        rows = _rows(config, subset, columns, other)
        sides = ([row[column] for column in columns] for row in rows)
    kept, read = _distinct(((own or "", translated or "") for own, translated in sides), config.max_sentences)
    if not kept:
        raise UserError(f"corpus '{config.dataset}' has no translations in '{subset}'; choose another language or corpus")
    texts = {reference: tuple(pair[0] for pair in kept.values()), other: tuple(pair[1] for pair in kept.values())}
    return ParallelCorpus(f"{config.dataset}/{subset}", tuple(kept), texts, left_out=read - len(kept))


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
