"""What models are made of, by arithmetic: number of weights, linear modules of a block, work for a token. No weights and no network needed."""

import contextlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from lingact.config.model import ModelConfig, SaeSet, Shape
from lingact.errors import UserError
from lingact.files.records import read_json_object

Number = int | float


@dataclass(frozen=True)
class _Family:
    """What shapes of an architecture have in common."""

    fused: bool = False
    """Queries, keys and values by one matrix."""
    gated: bool = True
    """Three matrices in the MLP, not two."""
    norms: int = 2
    """In a block, each as wide as the residual stream."""
    norms_of_heads: bool = False
    """Queries and keys are normalised, too."""
    biases: bool = False
    """In norms and linear modules of the blocks."""
    biases_of_inputs: bool = False
    """For queries, keys and values alone."""


_FAMILIES = {
    "gemma2": _Family(norms=4),
    "gemma3": _Family(norms=4, norms_of_heads=True),
    "gpt2": _Family(fused=True, gated=False, biases=True),
    "gpt_neox": _Family(fused=True, gated=False, biases=True),
    "llama": _Family(),
    "mistral": _Family(),
    "qwen2": _Family(biases_of_inputs=True),
    "qwen3": _Family(norms_of_heads=True),
}
_TRANSFORMERS_NAMES = {"gemma3_text": "gemma3"}
_CONFIG = "config.json"


def linear_modules(shape: Shape) -> list[tuple[int, int]]:
    """Inputs and outputs of every linear module of a block."""
    family, d = _FAMILIES[shape.architecture], shape.d_model
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    attention = [(d, queries + 2 * keys)] if family.fused else [(d, queries), (d, keys), (d, keys)]
    return [*attention, (queries, d), *[(d, shape.d_mlp)] * (2 if family.gated else 1), (shape.d_mlp, d)]


def block_weights(shape: Shape) -> int:
    """Number of weights of a block."""
    family, modules = _FAMILIES[shape.architecture], linear_modules(shape)
    norms = family.norms * shape.d_model * (2 if family.biases else 1) + (2 * shape.head_dim if family.norms_of_heads else 0)
    biases = sum(outputs for _, outputs in modules) if family.biases else (shape.heads + 2 * shape.kv_heads) * shape.head_dim
    return sum(i * o for i, o in modules) + norms + (biases if family.biases or family.biases_of_inputs else 0)


def weights(shape: Shape) -> int:
    """Number of weights of the whole model."""
    family = _FAMILIES[shape.architecture]
    embedding = shape.vocabulary * shape.d_model * (1 if shape.tied else 2) + (shape.positions or 0) * shape.d_model
    return embedding + shape.layers * block_weights(shape) + shape.d_model * (2 if family.biases else 1) + shape.beside


def block_work(shape: Shape, length: Number) -> Number:
    """Floating-point operations of a block's forward pass for one token.

    Args:
        length: tokens of the window; attention compares each with all, as the implementations do before they mask.
    """
    return 2 * sum(i * o for i, o in linear_modules(shape)) + 4 * shape.heads * shape.head_dim * length


def logit_work(shape: Shape) -> Number:
    """Floating-point operations of one token's logits."""
    return 2 * shape.vocabulary * shape.d_model


_GATED = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_MODULES = {
    "gpt2": ("c_attn", "c_proj", "c_fc", "c_proj"),
    "gpt_neox": ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"),
}


def module_names(architecture: str) -> tuple[str, ...]:
    """The last parts of the names of a block's linear modules, in the order of `linear_modules`. GPT-2 calls two of them the same."""
    return _MODULES.get(architecture, _GATED)


# --- where shapes are read -------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Facts:
    """What is known of a model before it is loaded. None: not known."""

    layers: int | None = None
    d_model: int | None = None
    positions: int | None = None
    """Tokens that it takes at most."""
    soft_caps: bool = False
    """Of the attention."""
    shape: Shape | None = None


def facts_of(model: ModelConfig) -> Facts:
    """From the model's config.json where it is on this machine, else from the preset; nothing is taken as usual that a file leaves out.

    Raises:
        UserError: the file is damaged.
    """
    path = _config_here(model)
    if path is None:
        shape = model.shape
        return Facts() if shape is None else Facts(shape.layers, shape.d_model, shape.positions, shape=shape)
    told = _read(path)
    inner = {**told, **told.get("text_config", {})}

    def number(*names: str) -> int | None:
        return next((value for name in names if isinstance(value := inner.get(name), int) and value > 0), None)

    positions = number("max_position_embeddings", "n_positions")
    return Facts(
        number("num_hidden_layers", "n_layer"),
        number("hidden_size", "n_embd"),
        positions,
        bool(inner.get("attn_logit_softcapping")),
        shape_of(model)[0],
    )


def _read(path: Path) -> dict[str, Any]:
    told = read_json_object(path, "it belongs to the model: put it back, or download it again")
    if not isinstance(told.get("text_config", {}), dict):
        raise UserError(f"model.name: '{path}' is not a model's configuration: its text_config is no object; download it again")
    return told


def shape_of(model: ModelConfig) -> tuple[Shape | None, str]:
    """The model's shape and how it is known: from its own config.json where that is on this machine, else from the preset.

    Returns:
        None where neither tells, or the architecture is another one.
    """
    path = _config_here(model)
    if path is not None:
        told = _read(path)
        # A model that reads pictures, too, has a configuration for each part; the tower's size is not told there.
        beside = model.shape.beside if model.shape and "text_config" in told else 0
        with contextlib.suppress(ValidationError, TypeError):  # a file may leave out what is as usual
            return _shape_from({**told, **told.get("text_config", {}), "model_type": told.get("model_type")}, beside), f"its {_CONFIG}"
    return model.shape, "conf/model/" if model.shape else "not known"


def _config_here(model: ModelConfig) -> Path | None:
    """The model's config.json in its folder, or in the hub's cache."""
    if (Path(model.name) / _CONFIG).is_file():
        return Path(model.name) / _CONFIG
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(model.name, _CONFIG, revision=model.revision)
    except HFValidationError:  # a path of nothing
        return None
    return Path(cached) if isinstance(cached, str) else None


def _shape_from(told: dict[str, Any], beside: int) -> Shape | None:
    """From transformers' names, of which GPT-2 has its own."""
    named = str(told.get("model_type"))
    architecture: Any = _TRANSFORMERS_NAMES.get(named, named)
    if architecture not in get_args(Shape.model_fields["architecture"].annotation):
        return None

    def first(*names: str) -> Any:
        return next((told[name] for name in names if told.get(name) is not None), None)

    d_model, heads = first("hidden_size", "n_embd"), first("num_attention_heads", "n_head")
    untied = architecture in ("gpt_neox", "llama", "mistral", "qwen2", "qwen3")
    return Shape(
        architecture=architecture,
        layers=first("num_hidden_layers", "n_layer"),
        d_model=d_model,
        d_mlp=first("intermediate_size", "n_inner") or 4 * d_model,
        heads=heads,
        kv_heads=first("num_key_value_heads") or heads,
        head_dim=first("head_dim") or d_model // heads,
        vocabulary=first("vocab_size"),
        positions=first("n_positions") if architecture == "gpt2" else None,
        tied=told.get("tie_word_embeddings", not untied),
        beside=beside,
    )


_WIDTH_IN_NAME = re.compile(r"(?:width_|-w|-v5-)(\d+)(k|m)(?![a-z0-9])")
_TIMES_IN_NAME = re.compile(r"_(\d+)x\b")
_THOUSANDS = {65: 2**16, 131: 2**17, 262: 2**18, 524: 2**19}
"""Widths that names give in thousands; the others are in units of 1024."""


def width_of(spec: SaeSet, d_model: int) -> tuple[int | None, str]:
    """Latents of an SAE of the set and how they are known: from a local folder's cfg.json, the names of release and id, or the preset."""
    layer = 0 if isinstance(spec.id, str) else next(iter(spec.id))
    local = Path(spec.release) / spec.id_of(layer) / "cfg.json"
    if local.is_file():
        return read_json_object(local, "put it back, or take other SAEs").get("d_sae"), "its cfg.json"
    name = f"{spec.release} {spec.id_of(layer)}"
    if found := _WIDTH_IN_NAME.search(name):
        number = int(found[1])
        return number * 2**20 if found[2] == "m" else _THOUSANDS.get(number, number * 1024), "its name"
    if found := _TIMES_IN_NAME.search(name):
        return int(found[1]) * d_model, "its name"
    return spec.width, "conf/sae/" if spec.width else "not known"
