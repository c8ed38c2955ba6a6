"""Aligned text: the same sentences in several languages, read from files or the hub, split by sentence id."""

import csv
import hashlib
import io
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import regex
from jaxtyping import Int

from lingact.config import FilesCorpus, HubCorpus, Splits
from lingact.errors import UserError
from lingact.languages import LANGUAGES, nearest

_WORD_BOUNDARY, _WORDLIKE = regex.compile(r"(?wV1)\b"), regex.compile(r"[\p{L}\p{N}]")
Split = Literal["train", "dev", "heldout", "all"]
ID_COLUMN = "unit"
"""Column with sentence ids, if a file has it. (`id` would be Indonesian.)"""


def split_in_halves(ids: Sequence[str]) -> Int[np.ndarray, " sentence"]:
    """0 where a sentence serves discovery, 1 where it serves confirmation. It follows from the sentence id alone."""
    return np.array([hashlib.sha256(f"half {sentence_id}".encode()).digest()[0] & 1 for sentence_id in ids], np.int64)


@dataclass(frozen=True)
class ParallelCorpus:
    """Sentences aligned by `ids`: `texts[code][i]` says in that language what `texts[other][i]` says in another."""

    name: str
    ids: tuple[str, ...]
    texts: dict[str, tuple[str, ...]]

    @property
    def sha256(self) -> str:
        """Hash of ids and texts, whatever file they came from."""
        content = json.dumps([self.ids, sorted(self.texts.items())], ensure_ascii=False)
        return hashlib.sha256(content.encode()).hexdigest()

    @cached_property
    def halves(self) -> Int[np.ndarray, " sentence"]:
        """`split_in_halves` of the ids."""
        return split_in_halves(self.ids)

    def sample(self, at_most: int) -> Int[np.ndarray, " chosen"]:
        """Places of at most so many sentences, ascending: the first ones in the order of a hash of the ids, so that no order of the file matters."""
        order = sorted(range(len(self.ids)), key=lambda place: hashlib.sha256(f"sample {self.ids[place]}".encode()).digest())
        return np.array(sorted(order[:at_most]))

    def select(self, keep: list[int]) -> "ParallelCorpus":
        """The sentences at the given places."""
        return ParallelCorpus(self.name, tuple(self.ids[i] for i in keep), {c: tuple(t[i] for i in keep) for c, t in self.texts.items()})

    def speaking(self, codes: tuple[str, ...]) -> "ParallelCorpus":
        """The same sentences in the given languages only."""
        return ParallelCorpus(self.name, self.ids, {code: self.texts[code] for code in codes})

    def split(self, name: Split, shares: Splits) -> "ParallelCorpus":
        """The sentences of a split. Who is in it follows from the sentence id alone, so it stays when sentences are added.

        Raises:
            UserError: no sentence is in it.
        """
        if name == "all":
            return self

        def place(sentence_id: str) -> str:
            lot = int(hashlib.sha256(sentence_id.encode()).hexdigest()[:8], 16) / 16**8
            return "train" if lot < shares.train else "dev" if lot < shares.train + shares.dev else "heldout"

        keep = [i for i, sentence_id in enumerate(self.ids) if place(sentence_id) == name]
        if not keep:
            raise UserError(
                f"corpus '{self.name}' has {len(self.ids)} sentences and none of them in the split '{name}'; give more text or a larger "
                "share in corpus.splits"
            )
        return self.select(keep)


def words_of(text: str) -> list[str]:
    """Words by Unicode's word boundaries (UAX #29): stretches with a letter or digit; every Han character is one."""
    return [part for part in _WORD_BOUNDARY.split(text) if _WORDLIKE.search(part)]


def word_count(text: str) -> int:
    """Number of `words_of` a text."""
    return len(words_of(text))


def load_corpus(config: FilesCorpus | HubCorpus, codes: tuple[str, ...]) -> ParallelCorpus:
    """The corpus in the given languages.

    Raises:
        UserError: what is missing, empty, ragged or doubled, and where.
    """
    corpus = _from_files(config, codes) if isinstance(config, FilesCorpus) else _from_hub(config, codes)
    return corpus.select(list(range(len(corpus.ids)))[: config.max_sentences])


def _from_files(config: FilesCorpus, codes: tuple[str, ...]) -> ParallelCorpus:
    path = config.path
    if not path.exists():
        siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UserError(
            f"corpus.path: '{path}' does not exist{nearest(path.name, siblings)} Give a JSONL, CSV or TSV file or a folder of <code>.txt files"
        )
    if path.is_dir():
        rows = _folder_rows(path, codes)
    elif path.suffix == ".jsonl":
        rows = _jsonl_rows(path)
    elif path.suffix in (".csv", ".tsv"):
        rows = _table_rows(path)
    else:
        raise UserError(f"corpus.path: '{path}' ends in '{path.suffix}'; .jsonl, .csv, .tsv or a folder of <code>.txt files are read")
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
    seen: dict[tuple[str, ...], int] = {}
    for i, row in enumerate(rows, start=1):
        texts = tuple(row[code] for code in codes)
        if texts in seen:
            raise UserError(
                f"corpus '{name}': row {i} repeats row {seen[texts]} in every language; remove duplicates, they would count twice in every interval"
            )
        seen[texts] = i
    return ParallelCorpus(name, ids, {code: tuple(row[code] for row in rows) for code in codes})


def _from_hub(config: HubCorpus, codes: tuple[str, ...]) -> ParallelCorpus:
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError

    by_id: dict[str, dict[str, str]] = {}
    for code in codes:
        try:
            rows: Any = load_dataset(config.dataset, LANGUAGES[code].flores, split=config.split, revision=config.revision)
        except DatasetNotFoundError as error:
            raise UserError(
                f"corpus '{config.dataset}' cannot be read: {str(error).splitlines()[0]} If it is gated, accept its conditions on its hub "
                "page and run `hf auth login`"
            ) from None
        except ConnectionError:
            raise UserError(
                f"corpus '{config.dataset}' is not in the cache and the hub cannot be reached; connect once, or use corpus=files corpus.path=..."
            ) from None
        for row in rows:
            by_id.setdefault(str(row[config.id_column]), {})[code] = row[config.text_column]
    return _aligned(config.dataset, [{ID_COLUMN: key, **texts} for key, texts in by_id.items()], codes)
