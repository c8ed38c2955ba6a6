"""What may be published of a configuration: no path of this machine."""

import re
from collections.abc import Mapping
from pathlib import PureWindowsPath
from typing import Any

from lingact.config.base import asset


def shareable(node: Any, known: Mapping[str, Any], key: str = "") -> Any:
    """A configuration or identity without paths on this machine.

    Files of the package are named as in `conf/`, `${asset:...}`, so that other machines find them. Of other paths only the last part is kept,
    followed by words that make it an invalid path, and a hash that distinguishes files of the same name.

    Args:
        known: identity of the contents of the section.
        key: name of the value; a `path` is always local.
    """
    if isinstance(node, Mapping):
        below = {name: known[name] if isinstance(known.get(name), Mapping) else known for name in node}
        return {name: shareable(value, below[name], str(name)) for name, value in node.items()}
    if isinstance(node, (list, tuple)):
        return [shareable(value, known) for value in node]
    if not isinstance(node, str):
        return node
    carried = asset("")
    if node.startswith(carried):
        return f"${{asset:{node.removeprefix(carried).lstrip('/')}}}"
    if key == "path" or re.match(r"[/~\\]|\.{1,2}[/\\]|[A-Za-z]:[/\\]", node):
        sha256 = f", sha256 {known['sha256'][:12]}" if "sha256" in known else ""
        return f"{PureWindowsPath(node).name} (not shared{sha256})"  # takes both kinds of slashes
    return node
