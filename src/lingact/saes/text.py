"""Read running text: texts with their language, source and document, from JSONL or plain files that may be compressed."""

import gzip
import hashlib
import json
import lzma
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path

from lingact.catalogue.languages import LANGUAGES
from lingact.config.saes import FilesText, HubText, RunningTextConfig
from lingact.data.hub_rows import hub_rows
from lingact.errors import UserError
from lingact.files.records import json_reason, parse_json

_LINE_BYTES = 1_000_000
"""Longest line. A longer one is a whole book, or no text."""
_COMPRESSED = (".gz", ".xz")
_DAMAGED = (OSError, EOFError, lzma.LZMAError)


@dataclass(frozen=True)
class Document:
    """Texts that belong together."""

    texts: tuple[str, ...]
    source: str
    """Empty where the file does not say."""


@dataclass(frozen=True)
class RunningText:
    """Documents by language, in the order of the files, and which of them no SAE may see."""

    training: dict[str, list[Document]]
    heldout: dict[str, list[Document]]
    name: str
    """The path, or the data set."""
    sha256: str


def read_running_text(config: FilesText | HubText) -> RunningText:
    """Read the whole text. Documents are held out by a hash of their name, so that a text that grows moves none to the other side.

    Raises:
        UserError: a file is missing, damaged, empty, or has a line that is no text; or a language is not known.
    """
    origin = str(config.path) if isinstance(config, FilesText) else config.dataset
    by_language: dict[str, dict[str, tuple[str, list[str]]]] = {}
    digest = hashlib.sha256()
    for code, text, source, name in _of_files(config) if isinstance(config, FilesText) else _of_the_hub(config):
        digest.update(json.dumps([code, name, source, text], ensure_ascii=False).encode())
        by_language.setdefault(code, {}).setdefault(name, (source, []))[1].append(text)
    if not by_language:
        raise UserError(f"text: '{origin}' has no text; give a text a line, or a row")
    training: dict[str, list[Document]] = {}
    heldout: dict[str, list[Document]] = {}
    for code, documents in sorted(by_language.items()):
        for name, (source, texts) in documents.items():
            side = heldout if _is_heldout(code, name, config.heldout) else training
            side.setdefault(code, []).append(Document(tuple(texts), source))
    return RunningText(training, heldout, origin, digest.hexdigest())


_Found = tuple[str, str, str, str]
"""Language, text, source and name of the document."""


def _of_files(config: FilesText) -> Iterator[_Found]:
    for file in _files(config.path):
        for place, row in _rows(file, config):
            yield _checked(row, place, config, row.get(config.language, _code_of(file)))


def _of_the_hub(config: HubText) -> Iterator[_Found]:
    """So many characters of each language; rows without text are left out."""
    for code in config.languages:
        subset, files = config.of_language(config.subset, code), config.of_language(config.files, code)
        part = f"configuration '{subset}'" if files is None else f"files '{files}'"
        given = {"what": "text", "instead": "or use text.path=FOLDER", "streamed": True, "files": files}
        read = 0
        with hub_rows(config, subset, [config.text], code, **given, further=[config.source, config.document]) as rows:
            for number, row in enumerate(rows, start=1):
                if row[config.text] is None or (isinstance(row[config.text], str) and not row[config.text].strip()):
                    continue
                yield _checked(row, f"text '{config.dataset}', {part}, row {number}", config, code)
                read += len(row[config.text])
                if read >= config.characters:
                    break


def _is_heldout(code: str, name: str, share: float) -> bool:
    return int.from_bytes(hashlib.sha256(f"{code}/{name}".encode()).digest()[:8]) < share * 2**64


def _files(path: Path) -> list[Path]:
    """The files to read, in order of their names."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(f"text.path: '{path}' does not exist; name a file (.jsonl or .txt, also .gz or .xz) or a folder of them")
    found = [file for file in sorted(path.iterdir()) if file.is_file() and _kind(file) in (".jsonl", ".txt")]
    if not found:
        raise UserError(f"text.path: the folder '{path}' has no .jsonl or .txt file (also .gz or .xz)")
    return found


def _kind(file: Path) -> str:
    """`.jsonl` or `.txt`, of the file inside if it is compressed."""
    return (Path(file.stem) if file.suffix in _COMPRESSED else file).suffix


def _code_of(file: Path) -> str | None:
    """The language that a file is named by."""
    code = file.name.partition(".")[0]
    return code if code in LANGUAGES else None


def _rows(file: Path, config: FilesText) -> Iterator[tuple[str, dict[str, object]]]:
    """The lines that are not empty, as objects."""
    kind = _kind(file)
    if kind not in (".jsonl", ".txt"):
        raise UserError(f"text.path: '{file}' ends neither in .jsonl nor in .txt (also .gz or .xz)")
    for number, line in _lines(file):
        place = f"{file}, line {number}"
        if kind == ".txt":
            yield place, {config.text: line}
            continue
        try:
            row = parse_json(line)
        except ValueError as error:
            raise UserError(f"{place}: not JSON ({json_reason(error)}); the file is truncated or damaged") from None
        if not isinstance(row, dict):
            raise UserError(f"{place}: not an object with the key '{config.text}'")
        yield place, row


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    try:
        match file.suffix:
            case ".gz":
                with gzip.open(file, "rb") as stream:
                    yield from _decoded(stream, file)
            case ".xz":
                with lzma.open(file, "rb") as stream:
                    yield from _decoded(stream, file)
            case _:
                with file.open("rb") as stream:
                    yield from _decoded(stream, file)
    except _DAMAGED as error:
        raise UserError(f"{file} cannot be read ({error}); it is truncated or damaged") from None


def _decoded(stream: BufferedIOBase, file: Path) -> Iterator[tuple[int, str]]:
    number = 0
    while line := stream.readline(_LINE_BYTES + 1):
        number += 1
        place = f"{file}, line {number}"
        if len(line) > _LINE_BYTES:
            raise UserError(f"{place}: longer than {_LINE_BYTES:,} bytes; give a paragraph a line")
        if b"\0" in line:
            raise UserError(f"{place}: a NUL byte; the file is UTF-16 or not text: give UTF-8 text")
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip("\r\n")
        except UnicodeDecodeError as error:
            raise UserError(f"{place}: not UTF-8 (byte {error.start} of the line is 0x{line[error.start]:02X}); convert the file") from None
        if text.strip():
            yield number, text


def _checked(row: Mapping[str, object], place: str, config: RunningTextConfig, code: object) -> _Found:
    text = row.get(config.text)
    if not isinstance(text, str):
        raise UserError(f"{place}: no text in the column '{config.text}' (text.text); columns: {', '.join(row)}")
    if not text.strip():
        raise UserError(f"{place}: the text is empty")
    if not isinstance(code, str):
        column = config.language if isinstance(config, FilesText) else ""
        raise UserError(f"{place}: no language; give the column '{column}' (text.language), or name the file by its language, such as ml.jsonl")
    if code not in LANGUAGES:
        raise UserError(f"{place}: '{code}' is not a language code that lingact knows; use those of docs/glossary.md, such as ml")
    source, document = row.get(config.source), row.get(config.document)
    name = hashlib.sha256(text.encode()).hexdigest() if document is None else f"{source}/{document}"
    return code, text, "" if source is None else str(source), name
