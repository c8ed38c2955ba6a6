"""Names that earlier versions of lingact used, so that their runs can still be opened."""

from collections.abc import Mapping
from typing import Any

RENAMED_KEYS = {"piece": "shard", "leakage": "contamination"}
"""Configuration keys, or their first parts: old name -> new name."""
_RENAMED_ENTRIES = {"meter": "sae_set", "meters": "sae_sets", "piece": "shard"}
REMOVED_KEYS = {"model.shape": "memory and time are planned from the model's own config.json; leave this key out"}
"""Configuration keys that were removed -> advice for users who give one."""
_ADDED_KEYS = {"loss": {"predicted_share": 1.0}}
"""Section of the configuration -> keys that were added, with what earlier runs did. With this value no hash depends on the key."""
_SHAPE_KEYS = ("architecture", "layers", "d_model", "d_mlp", "heads", "kv_heads", "head_dim", "vocabulary", "positions", "tied", "beside")
_SHAPES = {
    "google/gemma-2-2b": ("gemma2", 26, 2304, 9216, 8, 4, 256, 256000, None, True, 0),
    "google/gemma-2-9b": ("gemma2", 42, 3584, 14336, 16, 8, 256, 256000, None, True, 0),
    "google/gemma-3-1b-pt": ("gemma3", 26, 1152, 6912, 4, 1, 256, 262144, None, True, 0),
    "google/gemma-3-270m": ("gemma3", 18, 640, 2048, 4, 1, 256, 262144, None, True, 0),
    "google/gemma-3-4b-pt": ("gemma3", 34, 2560, 10240, 8, 4, 256, 262208, None, True, 419816304),
    "openai-community/gpt2": ("gpt2", 12, 768, 3072, 12, 12, 64, 50257, 1024, True, 0),
    "meta-llama/Llama-3.1-8B": ("llama", 32, 4096, 14336, 32, 8, 128, 128256, None, False, 0),
    "EleutherAI/pythia-70m-deduped": ("gpt_neox", 6, 512, 2048, 8, 8, 64, 50304, None, False, 0),
    "Qwen/Qwen3-1.7B-Base": ("qwen3", 28, 2048, 6144, 16, 8, 128, 151936, None, True, 0),
    "Qwen/Qwen3-8B-Base": ("qwen3", 36, 4096, 12288, 32, 8, 128, 151936, None, False, 0),
}
"""The value of `model.shape` in the presets of earlier versions, by model. Only hashes of configurations still depend on it."""
RENAMED_COLUMNS = {"meter": "sae_set"}
RENAMED_TABLES = {"leakage": "contamination"}
RENAMED_FOLDERS = {"stats/yardstick": "stats/reference"}
"""Folders of a run."""


def present_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """A stored configuration with the keys of this version."""
    present = {RENAMED_KEYS.get(key, key): value for key, value in config.items()}
    for path in REMOVED_KEYS:
        section, _, removed = path.partition(".")
        if isinstance(values := present.get(section), dict):
            present[section] = {key: value for key, value in values.items() if key != removed}
    for section, added in _ADDED_KEYS.items():
        if isinstance(values := present.get(section), dict):
            present[section] = added | values
    return present


def first_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with the keys of the first version. Hashes are computed from these, so that renaming a key changes none."""
    names = {new: old for old, new in RENAMED_KEYS.items()}
    first = {names.get(key, key): value for key, value in config.items()}
    if isinstance(model := first.get("model"), dict):
        shape = _SHAPES.get(model.get("name", ""))
        first["model"] = {**model, "shape": shape and dict(zip(_SHAPE_KEYS, shape, strict=True))}
    for section, added in _ADDED_KEYS.items():
        if isinstance(values := first.get(section), dict):
            first[section] = {key: value for key, value in values.items() if key not in added or value != added[key]}
    return first


def present_entries(header: Mapping[str, Any]) -> dict[str, Any]:
    """A header or index of saved statistics with the entries of this version."""
    return {_RENAMED_ENTRIES.get(key, key): value for key, value in header.items()}


def renamed(key: str) -> str | None:
    """The new name of a configuration key of an earlier version; None if it was not renamed."""
    first, dot, rest = key.partition(".")
    return RENAMED_KEYS[first] + dot + rest if first in RENAMED_KEYS else None


def removed(key: str) -> str | None:
    """Advice for users who give a configuration key that was removed; None if it was not."""
    return next((advice for old, advice in REMOVED_KEYS.items() if f"{key}.".startswith(f"{old}.")), None)
