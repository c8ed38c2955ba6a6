"""Aligned text from files: JSONL, CSV, TSV, Parquet, or a folder of `<code>.txt`."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from lingact.catalogue.languages import LANGUAGES, nearest
from lingact.config.data import CORPUS_FORMATS, FilesCorpus
from lingact.data.corpus import ParallelCorpus
from lingact.data.text import plain
from lingact.errors import UserError
from lingact.files.folders import is_there
from lingact.files.tables import Table, read_table, refuse_other_case
from lingact.files.text import read_lines

ID_COLUMN = "unit"
"""Column with sentence ids, if a file has it. (`id` would be Indonesian.)"""
DOCUMENT_COLUMN = "document"
"""Column with the document of each sentence, if a file has it."""


def from_files(config: FilesCorpus, codes: tuple[str, ...]) -> ParallelCorpus:
    """The corpus of a file or folder.

    Raises:
        UserError: what is missing, empty or ragged, and where.
    """
    path = config.path
    if not is_there(path):
        siblings = [entry.name for entry in path.parent.iterdir()] if is_there(path.parent) and path.parent.is_dir() else []
        hint = nearest(path.name, siblings) or "."
        raise UserError(f"corpus.path: '{path}' does not exist{hint} Give {CORPUS_FORMATS}")
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
    return aligned_corpus(str(path), texts, table.names(ID_COLUMN), table.names(DOCUMENT_COLUMN), table.places)


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


def aligned_corpus(
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
