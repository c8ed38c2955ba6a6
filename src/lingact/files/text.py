r"""Read text files from users.

Bytes. Text files are UTF-8, with or without a byte-order mark at the beginning. Other encodings, compressed files, NUL bytes and byte-order marks at
the beginning of other lines are refused. Of the 7-bit encodings, ISO-2022 is recognised by its escapes; UTF-7 and HZ look like text.

Lines. Only `\n` and `\r\n` end a line. A lone `\r`, U+2028, U+2029, U+0085, VT and FF are ordinary characters; `\r\r\n` and files whose lines
all end in `\r` are refused.
"""

from pathlib import Path

from lingact.errors import UserError

_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "ZIP, like Excel workbooks",
}
_OTHER_ENCODINGS = {b"\xff\xfe\x00\x00": "UTF-32", b"\x00\x00\xfe\xff": "UTF-32", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
_NO_TEXT = {
    "\0": "a NUL byte; the file is UTF-16 or not text: give UTF-8 text",
    "\n\ufeff": "a second byte-order mark (U+FEFF); were files concatenated? Remove it",
    "\x1b$": "an escape of ISO-2022, an encoding of Japanese, Korean and Chinese; convert the file to UTF-8",
    "\r\r\n": "it ends in two carriage returns, because line ends were converted twice; convert them to line feeds",
}


# --- bytes and lines -----------------------------------------------------------------------------------------------------------------------------


def read_text(path: Path) -> str:
    """The content of a UTF-8 file without the byte-order mark.

    Raises:
        UserError: it cannot be read, or is not UTF-8 text.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from None
    for begin, what in _COMPRESSED.items():
        if content.startswith(begin):
            raise UserError(f"{path} is compressed ({what}); unpack it first")
    for begin, what in _OTHER_ENCODINGS.items():
        if content.startswith(begin):
            raise UserError(f"{path} is not UTF-8 but {what} (byte 0 is 0x{content[0]:02X}); convert it first")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        at = error.start + (3 if content.startswith(b"\xef\xbb\xbf") else 0)
        line = content.count(b"\n", 0, at) + 1
        raise UserError(
            f"{path}, line {line}: not UTF-8 (byte {at} is 0x{content[at]:02X}); it is truncated or in another encoding: convert it"
        ) from None
    for mark, what in _NO_TEXT.items():
        if (at := (lines := f"\n{text}").find(mark)) >= 0:
            line = lines.count("\n", 0, at + 1)
            raise UserError(f"{path}, line {line}: {what}")
    if "\r" in text and "\n" not in text:
        raise UserError(f"{path}: its lines end in carriage returns alone, as on old Macs; convert them to line feeds")
    return text


def read_lines(path: Path) -> list[str]:
    r"""The lines of a UTF-8 file. Only `\n` and `\r\n` end a line.

    Raises:
        UserError: as in `read_text`.
    """
    *ended, last = read_text(path).split("\n")
    return [line.removesuffix("\r") for line in ended] + ([last] if last else [])
