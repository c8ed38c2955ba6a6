"""Hashes of a model without its adapter, and of the adapter alone. They show which model an adapter belongs to."""

import hashlib
import json

import torch
from torch import Tensor, nn

_WRAPPED = "base_model.model."
_KEPT_INSIDE = ("base_layer", "original_module")
"""Where PEFT's wrappers keep the wrapped module."""
_CHANGE_NOTHING = {
    *("base_model_name_or_path", "revision", "task_type", "inference_mode", "auto_mapping", "peft_version"),
    *("init_lora_weights", "init_weights", "save_projection"),
}
"""Settings of PEFT that say where an adapter comes from or how it was initialised, but do not change what it does."""


def weights_hash(model: nn.Module) -> str:
    """sha256 over the base weights in name order: name, dtype, shape and bytes. The same with and without an adapter."""
    return _hash(_split(model)[0])


def adapter_hash(model: nn.Module) -> str:
    """sha256 over the adapter of a model: its weights in name order, also those that are never trained (VeRA), and its settings (alpha, ...)."""
    from peft import PeftModel

    assert isinstance(model, PeftModel)
    settings = {name: value for name, value in model.active_peft_config.to_dict().items() if name not in _CHANGE_NOTHING and value is not None}
    described = json.dumps(settings, sort_keys=True, default=lambda value: sorted(value) if isinstance(value, set) else str(value))
    return hashlib.sha256(f"{_hash(_split(model)[1])} {described}".encode()).hexdigest()


def _split(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The state of the base model, under the names that it has without an adapter, and the state of the adapter."""
    from peft import PeftModel
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    state = model.state_dict()
    if not isinstance(model, PeftModel):
        return state, {}
    wrappers = {name for name, module in model.named_modules() if isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper))}
    base, adapter = {}, {}
    for name, value in state.items():
        steps = name.split(".")
        added = any(".".join(steps[:at]) in wrappers and steps[at] not in _KEPT_INSIDE for at in range(1, len(steps)))
        if added or not name.startswith(_WRAPPED):
            adapter[name] = value
        else:
            base[".".join(step for step in steps if step not in _KEPT_INSIDE).removeprefix(_WRAPPED)] = value
    return base, adapter


def _hash(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
