"""Aligned text: the same sentences in several languages, read from files or the hub, split by sentence id."""

import functools
import hashlib
import json
import logging
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import regex
from jaxtyping import Int

from lingact.catalogue.languages import LANGUAGES, nearest
from lingact.config.base import asset
from lingact.config.data import FilesCorpus, HubCorpus, OnTheHub, PairsCorpus, Splits
from lingact.errors import UserError
from lingact.files.folders import is_there
from lingact.files.tables import Table, read_delimited, read_table, refuse_other_case, text_problem
from lingact.files.text import read_lines
from lingact.hub.huggingface import HubItem, from_the_hub
from lingact.statistics.bootstrap import Resampling

_WORD_BOUNDARY, _WORDLIKE = regex.compile(r"(?wV1)\b"), regex.compile(r"[\p{L}\p{N}]")
Split = Literal["train", "dev", "heldout", "all"]
ID_COLUMN = "unit"
"""Column with sentence ids, if a file has it. (`id` would be Indonesian.)"""
DOCUMENT_COLUMN = "document"
"""Column with the document of each sentence, if a file has it."""


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
        """The sentences that the other corpus has in no language, by what is `plain`."""
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


# Spellings of one letter that Unicode does not make equivalent, decomposed: consonant, virama and ZWJ, and the letter that replaced them.
_LETTERS = {
    # Chillus of Malayalam (The Unicode Standard, section 12.9, "Legacy Encoding of Chillus" and the table of it): n n r l l k, and m y lll of
    # Unicode 9.0, which had no sequence in use but are formed alike.
    "\u0d23\u0d4d\u200d": "\u0d7a",
    "\u0d28\u0d4d\u200d": "\u0d7b",
    "\u0d30\u0d4d\u200d": "\u0d7c",
    "\u0d32\u0d4d\u200d": "\u0d7d",
    "\u0d33\u0d4d\u200d": "\u0d7e",
    "\u0d15\u0d4d\u200d": "\u0d7f",
    "\u0d2e\u0d4d\u200d": "\u0d54",
    "\u0d2f\u0d4d\u200d": "\u0d55",
    "\u0d34\u0d4d\u200d": "\u0d56",
    # Eyelash ra of Marathi and Nepali, ra and rra (section 12.1, rule R5a).
    "\u0930\u094d\u200d": "\u0930\u093c\u094d",
    # Khanda ta of Bengali (section 12.2).
    "\u09a4\u09cd\u200d": "\u09ce",
}
_OLD_LETTERS = regex.compile("|".join(_LETTERS))
_INVISIBLE = regex.compile(r"\p{Default_Ignorable_Code_Point}+")


def folded(text: str) -> str:
    """A text as it is compared with others: without differences of case, of Unicode form, and of characters that are not seen. Spaces stay.

    NFKC_Casefold (The Unicode Standard, section 3.13, D146): canonical and compatibility forms are one (NFD, composed nukta, full width), and
    default-ignorable characters are nothing (ZWJ, ZWNJ, soft hyphen, zero-width space, byte-order mark, variation selectors). Before that, old
    sequences with ZWJ become the letters that have replaced them (`_LETTERS`), which no normalisation form does.
    """
    if text.isascii():
        return text.lower()
    new = _OLD_LETTERS.sub(lambda old: _LETTERS[old[0]], unicodedata.normalize("NFD", text))
    seen = _INVISIBLE.sub("", unicodedata.normalize("NFKC", new).casefold())
    return unicodedata.normalize("NFKC", _INVISIBLE.sub("", unicodedata.normalize("NFKC", seen).casefold()))


def plain(text: str) -> str:
    """By which sentences are the same: `folded`, with one space where there are any."""
    return " ".join(folded(text).split())


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
    if not is_there(path):
        siblings = [entry.name for entry in path.parent.iterdir()] if is_there(path.parent) and path.parent.is_dir() else []
        hint = nearest(path.name, siblings) or "."
        raise UserError(f"corpus.path: '{path}' does not exist{hint} Give a JSONL, CSV, TSV or Parquet file or a folder of <code>.txt")
    table = _folder(path, codes) if path.is_dir() else read_table(path, {*codes, ID_COLUMN, DOCUMENT_COLUMN})
    if not table.rows:
        raise UserError(f"corpus '{path}' is empty; it needs one aligned sentence a line")
    absent = [code for code in codes if code not in table.columns]
    if absent:
        there = [code for code in LANGUAGES if code in table.columns]
        raise UserError(
            f"corpus '{path}' has no {', '.join(absent)}; it has "
            f"{', '.join(there) or 'no known language code among its keys ' + ', '.join(sorted(table.columns))}. "
            "Add the missing text, or choose languages=... without them"
        )
    for name in (ID_COLUMN, DOCUMENT_COLUMN):
        there = [file.stem for file in path.glob("*.txt")] if path.is_dir() else table.columns
        refuse_other_case(f"corpus '{path}'", there, name)
    texts = {code: table.texts(code) for code in codes}
    return _aligned(str(path), texts, table.names(ID_COLUMN), table.names(DOCUMENT_COLUMN), table.places)


def _folder(path: Path, codes: tuple[str, ...]) -> Table:
    """Line-aligned `<code>.txt`, and `unit.txt` and `document.txt` where they are there."""
    columns = {}
    for name in (*codes, ID_COLUMN, DOCUMENT_COLUMN):
        file = path / f"{name}.txt"
        if file.is_file():
            columns[name] = read_lines(file)
        elif name in codes:
            raise UserError(f"{path} has no {name}.txt; found: {', '.join(sorted(f.name for f in path.glob('*.txt'))) or 'no .txt file'}")
    lengths = {name: len(lines) for name, lines in columns.items()}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name}.txt {length}" for name, length in lengths.items())
        raise UserError(f"{path}: line-aligned files must have the same number of lines, found {listed}")
    rows = [dict(zip(columns, lines, strict=True)) for lines in zip(*columns.values(), strict=True)]
    return Table(str(path), tuple(columns), rows, [f"line {number}" for number in range(1, len(rows) + 1)])


def _aligned(
    name: str, given: Mapping[str, Sequence[str | None]], ids: Sequence[str] | None, documents: Sequence[str] | None, places: Sequence[str]
) -> ParallelCorpus:
    """A corpus of columns: every text is there, no id comes twice, doubles are left out."""
    compared = {code: [plain(text or "") for text in column] for code, column in given.items()}
    ragged = [f"{place} lacks {code}" for i, place in enumerate(places) for code in given if not compared[code][i]]
    if ragged:
        raise UserError(
            f"corpus '{name}' is ragged: {', '.join(ragged[:5])}{' and more' if len(ragged) > 5 else ''} ({len(ragged)} in all); every sentence "
            "needs a text in every language"
        )
    kept = tuple(f"row-{i:06d}" for i in range(1, len(places) + 1)) if ids is None else tuple(ids)
    doubled = [key for key, count in Counter(kept).items() if count > 1]
    if doubled:
        raise UserError(f"corpus '{name}' has sentence ids more than once: {', '.join(doubled[:5])}; ids in '{ID_COLUMN}' must be distinct")
    # Doubles would count twice in every interval, and come into two splits.
    first = {said: i for i, said in reversed(list(enumerate(zip(*compared.values(), strict=True))))}
    texts = {code: tuple(text or "" for text in column) for code, column in given.items()}
    found = ParallelCorpus(name, kept, texts, left_out=len(kept) - len(first), documents=None if documents is None else tuple(documents))
    return found.select(sorted(first.values()))


# --- from the hub ---------------------------------------------------------------------------------------------------------------------------------


def _rows(config: OnTheHub, subset: str, columns: Sequence[str], code: str) -> Any:
    """These columns of one configuration of a data set, from the hub or what was downloaded before."""
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
    return rows.select_columns(list(columns))


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
    return _aligned(config.dataset, aligned, ids, of, [f"row {number}" for number in range(1, len(ids) + 1)])


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


def _from_pairs(config: PairsCorpus, reference: str, other: str) -> ParallelCorpus:
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
