"""Read JSON from users, and the JSON and YAML that lingact has written.

Duplicate keys in an object, lone surrogates and values that Python cannot represent are refused. `NaN` and `Infinity`, which Python writes for
missing numbers, are read as numbers, so they are refused where a text is needed.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import yaml

from lingact.errors import UserError
from lingact.files.earlier import present_keys
from lingact.files.text import read_lines, read_text

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


class Numeral(str):
    """A number in JSON, exactly as written."""

    __slots__ = ()


# --- JSON ----------------------------------------------------------------------------------------------------------------------------------------


class _TwiceError(ValueError):
    """An object has a duplicate key."""


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise _TwiceError(f"the key {json.dumps(twice)} comes twice in one object")
    return found


def parse_json(text: str, *, as_written: bool = False) -> Any:
    """The value of a JSON text.

    Args:
        as_written: return numbers as `Numeral`.

    Raises:
        ValueError: it is not JSON, or ambiguous JSON; the message is one line.
    """
    try:
        number = Numeral if as_written else None
        found = json.loads(text, object_pairs_hook=_object, parse_int=number, parse_float=number, parse_constant=number)
    except (json.JSONDecodeError, _TwiceError):
        raise
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except ValueError:
        raise ValueError("a number has too many digits") from None
    if _SURROGATE.search(text):
        try:
            json.dumps(found, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"half a surrogate pair (\\u{ord(error.object[error.start]):04x}), which is no character") from None
    return found


def json_reason(error: ValueError) -> str:
    """The reason why `parse_json` refused a text."""
    return error.msg if isinstance(error, json.JSONDecodeError) else str(error)


def read_json(path: Path) -> Any:
    """The value of a JSON file that lingact or a library has written.

    Raises:
        ValueError: it is damaged.
        OSError: it cannot be read.
    """
    return parse_json(path.read_bytes().decode("utf-8-sig"))


def read_json_object(path: Path, otherwise: str, needed: Collection[str] = ()) -> dict[str, Any]:
    """The object in a JSON file that lingact or a library has written.

    Args:
        otherwise: what a user can do if it is damaged.
        needed: keys that it must have.

    Raises:
        UserError: it is damaged, or not such an object.
    """
    return _object_of(path, read_json, otherwise, needed)


def read_run_config(path: Path, otherwise: str, needed: Collection[str] = ()) -> dict[str, Any]:
    """The configuration in a run's config.yaml, with the keys of this version. Arguments and errors as in `read_json_object`."""
    return present_keys(_object_of(path, lambda path: yaml.safe_load(path.read_text(encoding="utf-8")), otherwise, needed))


def _object_of(path: Path, read: Callable[[Path], object], otherwise: str, needed: Collection[str]) -> dict[str, Any]:
    try:
        found = read(path)
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        found = None
    if not isinstance(found, dict) or not set(needed) <= found.keys():
        raise damaged(path, otherwise)
    return found


def damaged(path: Path, otherwise: str) -> UserError:
    """The error for a file that is damaged."""
    return UserError(f"'{path}' cannot be read: it is truncated or not a lingact file; {otherwise}")


def read_json_rows(path: Path, *, as_written: bool = False) -> list[tuple[str, Any]]:
    """The values of a JSONL file, or of the list in a JSON file, each with its location for messages.

    Args:
        as_written: return numbers as `Numeral`.

    Raises:
        UserError: as in `read_text`; or a line is not JSON.
    """
    text = read_text(path)
    if text.lstrip().startswith("["):
        try:
            return [(f"{path}, item {number}", value) for number, value in enumerate(parse_json(text, as_written=as_written), start=1)]
        except ValueError as error:
            # JSONL may also begin with a list. Then its second line is extra data for the parser of a single value.
            if not (isinstance(error, json.JSONDecodeError) and error.msg == "Extra data"):
                line = f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
                raise UserError(f"{path}{line}: not JSON ({json_reason(error)}); the file is truncated or damaged") from None
    found = []
    for number, line in enumerate(read_lines(path), start=1):
        if line.strip():
            try:
                found.append((f"{path}, line {number}", parse_json(line, as_written=as_written)))
            except ValueError as error:
                raise UserError(f"{path}, line {number}: not JSON ({json_reason(error)}); the file is truncated or damaged") from None
    return found
