"""Names that earlier versions of lingact used, so that the runs they made still open."""

from collections.abc import Mapping
from typing import Any

RENAMED_KEYS = {"piece": "shard", "leakage": "contamination"}
"""Configuration keys, or their first parts: old name -> name."""
_RENAMED_ENTRIES = {"meter": "sae_set", "meters": "sae_sets", "piece": "shard"}
RENAMED_COLUMNS = {"meter": "sae_set"}
RENAMED_TABLES = {"leakage": "contamination"}
RENAMED_FOLDERS = {"stats/yardstick": "stats/reference"}
"""Folders of a run."""


def present_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """A stored configuration with the keys of this version."""
    return {RENAMED_KEYS.get(key, key): value for key, value in config.items()}


def first_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with the keys it would have had in the first version; hashes are taken of these, so that a renamed key changes none."""
    first = {new: old for old, new in RENAMED_KEYS.items()}
    return {first.get(key, key): value for key, value in config.items()}


def present_entries(header: Mapping[str, Any]) -> dict[str, Any]:
    """A header or index of saved statistics with the entries of this version."""
    return {_RENAMED_ENTRIES.get(key, key): value for key, value in header.items()}


def renamed(key: str) -> str | None:
    """What a configuration key of an earlier version is called now; None if it is none."""
    first, dot, rest = key.partition(".")
    return RENAMED_KEYS[first] + dot + rest if first in RENAMED_KEYS else None
