"""Whether a saved adapter can be put on a model. Everything is checked before PEFT touches the model, which it changes in place."""

import copy
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Required, TypedDict

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from lingact.config.training import MOVE_THE_BASE
from lingact.errors import UserError
from lingact.models.adapter_hashes import weights_hash
from lingact.models.adapter_sources import IDENTITY, SETTINGS, WEIGHTS, find_adapter
from lingact.models.finite import describe, nonfinite
from lingact.runtime.compat.peft import no_deprecation_warning

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class AdapterSettings(TypedDict, total=False):
    """The part of PEFT's `adapter_config.json` that is checked."""

    peft_type: Required[str]
    base_model_name_or_path: str | None
    init_lora_weights: bool | str
    bias: str | None
    kasa_config: dict[str, Any] | None
    layer_replication: list[list[int]] | None


KINDS = ("LORA", "VERA", "IA3", "LOHA", "LOKR", "OFT")
"""The kinds that lingact accepts, under PEFT's names. DoRA and rsLoRA are LORA."""


def check_adapter(model: nn.Module, adapter: str, *, base_sha256: str | None = None) -> Path:
    """Refuse an adapter that cannot be put on a model, without changing the model. Only safetensors are read.

    Args:
        model: without an adapter.
        adapter: as `find_adapter` takes it.
        base_sha256: the model's `weights_hash` if it is known. None: compute it.

    Returns:
        The adapter's folder, to be loaded later.

    Raises:
        UserError: the adapter does not exist, is not one, is damaged, belongs to another model, or is of a kind that changes the base model.
    """
    from peft import PeftModel

    assert not isinstance(model, PeftModel), "take the other adapter off first"
    folder = find_adapter(adapter)
    settings = _settings(folder)
    _refuse_changed_base(folder, settings)
    shapes = _shapes(folder)
    _refuse_mismatched(model, folder, base_sha256)
    _refuse_misfit(model, folder, settings, shapes)
    _refuse_nonfinite(folder, settings)
    return folder


def _settings(folder: Path) -> AdapterSettings:
    try:
        settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    except ValueError:
        raise UserError(f"adapter: '{folder / SETTINGS}' is not JSON; it is truncated or not an adapter's configuration") from None
    if not isinstance(settings, dict) or "peft_type" not in settings:
        raise UserError(f"adapter: '{folder / SETTINGS}' is not a PEFT configuration: it has no peft_type")
    return AdapterSettings(**settings)


def _refuse_changed_base(folder: Path, settings: AdapterSettings) -> None:
    """Refuse adapters that, switched off, do not give the base model: other kinds, and LoRA that came with changed base weights."""
    if settings["peft_type"] not in KINDS:
        raise UserError(
            f"adapter: '{folder}' is of the kind {settings['peft_type']}; lingact accepts kinds that leave no trace when they are switched off: "
            f"{', '.join(KINDS)}"
        )
    initial, bias = str(settings.get("init_lora_weights")), settings.get("bias") or "none"
    if initial.partition("_niter_")[0] in MOVE_THE_BASE:
        raise UserError(
            f"adapter: '{folder}' was initialised by {initial}, which changes the base weights, so that the adapter switched off would not give the "
            "base model. Save it as plain LoRA: peft's save_pretrained(..., path_initial_model_for_weight_conversion=...)"
        )
    if bias != "none" or settings.get("kasa_config") or settings.get("layer_replication"):
        raise UserError(
            f"adapter: '{folder}' changes the base model itself (bias, kasa_config or layer_replication in its {SETTINGS}), so that switching it off "
            "would not give the base model; train one without"
        )


def _shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor in the adapter's file."""
    path = folder / WEIGHTS
    if not path.is_file():
        raise UserError(f"adapter: '{folder}' has no {WEIGHTS}; only safetensors are read")
    try:
        with safe_open(path, framework="pt") as tensors:
            return {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise UserError(f"adapter: '{path}' cannot be read, it is truncated or damaged: {error}") from None


def _refuse_mismatched(model: nn.Module, folder: Path, base_sha256: str | None) -> None:
    """Refuse an adapter whose `lingact.json` names another model."""
    path = folder / IDENTITY
    if not path.is_file():
        return
    try:
        recorded = json.loads(path.read_text(encoding="utf-8"))
        name, expected = recorded["base_model"], recorded["base_sha256"]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"adapter: '{path}' does not name base_model and base_sha256; it is truncated or not a lingact file") from None
    found = base_sha256 or weights_hash(model)
    if found != expected:
        raise UserError(
            f"adapter: '{folder}' belongs to another model: it was trained on '{name}' with weights {expected[:12]}, this model has "
            f"{found[:12]}. Use that model, with the same revision and dtype"
        )


def _refuse_misfit(model: nn.Module, folder: Path, settings: AdapterSettings, shapes: dict[str, tuple[int, ...]]) -> None:
    """Refuse an adapter whose weights do not have the names and shapes that this model needs."""
    another = f"adapter: '{folder}' belongs to another model ({settings.get('base_model_name_or_path') or 'unnamed'})"
    try:
        needed = _needed_shapes(model, folder)
    except ValueError as error:
        raise UserError(f"{another}: PEFT cannot put it on this one: {str(error).splitlines()[0]}") from None
    strange = shapes.keys() - needed.keys()
    if strange:
        raise UserError(f"{another}: this one has no place for its weight {min(strange)}")
    missing = needed.keys() - shapes.keys()
    if missing:
        raise UserError(
            f"adapter: '{folder / WEIGHTS}' lacks {len(missing)} of the weights that its {SETTINGS} announces, such as {min(missing)}; it "
            "is not complete"
        )
    for name, shape in sorted(shapes.items()):
        if shape != needed[name]:
            given, wanted = (" x ".join(map(str, sizes)) for sizes in (shape, needed[name]))
            raise UserError(f"{another}: its weight {name} is {given}, on this one it would be {wanted}")


def _refuse_nonfinite(folder: Path, settings: AdapterSettings) -> None:
    """Refuse weights and settings (alpha, ...) that are not finite."""
    advice = "its training overflowed, or the file is damaged. Train it again, or take an earlier checkpoint"
    numbers = sorted(name for name, value in _numbers(settings) if not math.isfinite(value))
    if numbers:
        raise UserError(f"adapter: '{folder / SETTINGS}' has no finite number in {', '.join(numbers)}; correct it, or train the adapter again")
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        spoiled = nonfinite((name, file.get_tensor(name)) for name in file.keys())  # noqa: SIM118 (not a dict)
    if spoiled:
        raise UserError(f"adapter: {describe(spoiled, dict.fromkeys(spoiled, str(folder / WEIGHTS)))}; {advice}")


def _numbers(node: object, path: str = "") -> Iterator[tuple[str, float]]:
    if isinstance(node, float):
        yield path, node
    for name, value in node.items() if isinstance(node, dict) else ():
        yield from _numbers(value, f"{path}.{name}" if path else str(name))


def _needed_shapes(model: nn.Module, folder: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the weights that an adapter with these settings has on this model. They are found on a copy without data."""
    from peft import LoraConfig, PeftModel, get_peft_model_state_dict
    from peft import PeftConfig as Settings

    settings = Settings.from_pretrained(str(folder))
    if isinstance(settings, LoraConfig):
        settings.init_lora_weights = True  # some initialisations need the data
    with torch.random.fork_rng(), no_deprecation_warning():
        wrapped = PeftModel(_without_data(model), settings)
    return {name: tuple(value.shape) for name, value in get_peft_model_state_dict(wrapped, save_embedding_layers=False).items()}


def _without_data(model: nn.Module) -> "PreTrainedModel":
    """A copy whose tensors are on the device `meta`."""
    from transformers import PreTrainedModel

    assert isinstance(model, PreTrainedModel)
    tensors = [*model.parameters(), *model.buffers()]
    meta = [nn.Parameter(t.to("meta"), requires_grad=False) if isinstance(t, nn.Parameter) else t.to("meta") for t in tensors]
    return copy.deepcopy(model, {id(tensor): empty for tensor, empty in zip(tensors, meta, strict=True)})
