"""What a model's files say before it is loaded: its config.json, and whether its weights are complete and in safetensors format.

Nothing is downloaded and no heavy library is imported. For the models of `conf/model/` that are not on this machine, `assets/models/` has a
config.json with the published values that sizes follow from.
"""

import json
import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from lingact.catalogue.languages import nearest
from lingact.config.base import asset
from lingact.config.model import ModelConfig
from lingact.errors import UserError
from lingact.files.records import read_json_object
from lingact.hub.huggingface import ON_THE_HUB

_CONFIG = "config.json"
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")


@dataclass(frozen=True)
class Facts:
    """What is known of a model before it is loaded. None: not known."""

    layers: int | None = None
    d_model: int | None = None
    positions: int | None = None
    """Tokens that it takes at most."""
    soft_caps: bool = False
    """Whether its attention has soft caps."""


@dataclass(frozen=True)
class ModelDescription:
    """A model's config.json."""

    entries: dict[str, object]
    how: str
    """Where it was read, as plans say it."""

    @property
    def facts(self) -> Facts:
        """What it says outright. Values that a file leaves out are not guessed: every architecture has defaults of its own."""
        text = self.entries.get("text_config")
        inner = {**self.entries, **(text if isinstance(text, dict) else {})}

        def number(*names: str) -> int | None:
            return next((value for name in names if isinstance(value := inner.get(name), int) and value > 0), None)

        return Facts(
            number("num_hidden_layers", "n_layer"),
            number("hidden_size", "n_embd"),
            number("max_position_embeddings", "n_positions"),
            bool(inner.get("attn_logit_softcapping")),
        )


def describe_model(model: ModelConfig) -> ModelDescription | None:
    """The model's config.json: from its folder, from the hub's cache, or as lingact ships it; None where there is none.

    Raises:
        UserError: the file is damaged.
    """
    path, how = file_here(model, _CONFIG), f"its {_CONFIG}"
    if path is None and ON_THE_HUB.fullmatch(model.name):
        path, how = Path(asset(f"models/{model.name}/{_CONFIG}")), f"lingact's {_CONFIG}"
    if path is None or not path.is_file():
        return None
    entries = read_json_object(path, "it belongs to the model: put it back, or download it again")
    if not isinstance(entries.get("text_config", {}), dict):
        raise UserError(f"model.name: '{path}' is not a model's configuration: its text_config is not an object; download it again")
    return ModelDescription(entries, how)


def facts_of(model: ModelConfig) -> Facts:
    """What the model's config.json says, as far as there is one.

    Raises:
        UserError: the file is damaged.
    """
    found = describe_model(model)
    return Facts() if found is None else found.facts


def file_here(model: ModelConfig, name: str) -> Path | None:
    """A file of the model in its folder, or in the hub's cache; None where it is in neither."""
    if (Path(model.name) / name).is_file():
        return Path(model.name) / name
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(model.name, name, revision=model.revision)
    except HFValidationError:  # a path that does not exist
        return None
    return Path(cached) if isinstance(cached, str) else None


def read_ahead(model: ModelConfig) -> None:
    """Ask the system to read the weights that are on this machine, which goes on while libraries are imported. Nothing is read where it cannot."""
    config = file_here(model, _CONFIG)
    if config is None or not hasattr(os, "posix_fadvise"):  # macOS and Windows have none
        return
    for path in config.parent.glob("*.safetensors"):
        try:
            number = os.open(path, os.O_RDONLY)
        except OSError:  # loading says why
            continue
        try:
            os.posix_fadvise(number, 0, 0, os.POSIX_FADV_WILLNEED)
        finally:
            os.close(number)


def check_folder(config: ModelConfig) -> None:
    """Refuse a folder without a model, or with one that is not in safetensors format.

    Raises:
        UserError: with the nearest name.
    """
    path = Path(config.name)
    if not path.is_dir() and not path.is_absolute() and ON_THE_HUB.fullmatch(config.name):
        return
    if not (path / _CONFIG).is_file():
        siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UserError(f"model.name: no model in the folder '{path}' (no {_CONFIG}){nearest(path.name, siblings)}")
    single, index = (path / name for name in _WEIGHTS)
    if index.is_file() and not single.is_file():
        missing = sorted({file for file in shards_of(index).values() if not (path / file).is_file()})
        if missing:
            raise UserError(f"model '{config.name}' is not complete: there is no '{missing[0]}', which its {index.name} names; download it again")
    elif not single.is_file() and not any(path.glob("*.safetensors")):
        raise UserError(no_safetensors(config.name))


def shards_of(index: Path) -> dict[str, str]:
    """Tensor -> file, from the index of weights that are divided among several files.

    Raises:
        UserError: the index is damaged.
    """
    try:
        return {str(name): str(file) for name, file in json.loads(index.read_text(encoding="utf-8"))["weight_map"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"model: '{index}' cannot be read: it is truncated or not an index of weights; download it again") from None


def no_safetensors(name: str) -> str:
    """The message on a model in another format."""
    reason = "has no weights in safetensors format, and reading other formats can run code"
    return f"model '{name}' {reason}; convert it, or choose another model or revision"


def check_context(config: ModelConfig, facts: Facts) -> None:
    """Refuse windows that are longer than the model can read.

    Raises:
        UserError: with the longest that it can.
    """
    if facts.positions is not None and config.context > facts.positions:
        raise UserError(f"model.context is {config.context}; '{config.name}' takes at most {facts.positions} tokens")


def check_attention(config: ModelConfig, facts: Facts) -> None:
    """Refuse an attention implementation that does not work with the model, this machine or the dtype.

    Raises:
        UserError: with those that do.
    """
    if facts.soft_caps and config.attention == "sdpa":
        raise UserError(f"model.attention: sdpa leaves out the soft caps of '{config.name}'; use model.attention=eager")
    if config.attention == "flash_attention_2":
        if find_spec("flash_attn") is None and find_spec("kernels") is None:
            raise UserError(f"model.attention: {config.attention} is not installed here; use model.attention=sdpa or eager")
        if config.dtype == "float32":
            raise UserError("model.attention: flash_attention_2 computes in half precision only; use model.dtype=bfloat16, or model.attention=sdpa")
