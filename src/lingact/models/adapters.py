"""Adapters (PEFT): attach, save, load, switch off, take off.

Only kinds are accepted that leave the base weights unchanged and start exactly at the base model.
"""

import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import torch
from torch import nn

from lingact.config.training import Ia3Adapter, LohaAdapter, LokrAdapter, LoraAdapter, OftAdapter, PeftConfig, VeraAdapter
from lingact.files.folders import put_in_place, temporary_beside
from lingact.models.adapter_checks import check_adapter
from lingact.models.adapter_places import adapter_places
from lingact.models.adapter_sources import IDENTITY
from lingact.runtime.compat.peft import no_deprecation_warning

if TYPE_CHECKING:
    import peft as peft_library
    from peft import PeftModel
    from transformers import PreTrainedModel


class _Places(TypedDict):
    """Where an adapter goes, as PEFT's settings take it."""

    target_modules: str
    task_type: str


class _Transposed(TypedDict, total=False):
    """The setting for weights that are stored transposed."""

    fan_in_fan_out: bool


@contextmanager
def base_behaviour(model: nn.Module) -> Iterator[None]:
    """While open, the model behaves as without its adapter. A model that has none is not changed.

    The output is the same to the last bit as before the adapter was attached, except under autocast: there PEFT's VeRA, LoHa, LoKr and OFT layers
    return float32, switched on or off, where the plain module returns the lower precision.
    """
    from peft import PeftModel
    from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    if not isinstance(model, PeftModel):
        yield
        return
    parts = [module for module in model.modules() if isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper))]
    if all(part.disable_adapters for part in parts):  # inside another such context
        yield
        return
    # When it switches an adapter on again, PEFT makes it trainable; a loaded one was not.
    trainable = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    tuner = model.base_model  # `model.disable_adapter()` does the same, but first walks through all modules several times
    assert isinstance(tuner, BaseTuner)
    tuner.disable_adapter_layers()
    try:
        yield
    finally:
        tuner.enable_adapter_layers()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(trainable[name])


def without_adapter(model: nn.Module) -> "PreTrainedModel":
    """The transformers model itself, inside its adapter if it has one. The adapter's modules stay in place."""
    from peft import PeftModel
    from transformers import PreTrainedModel

    base = model.get_base_model() if isinstance(model, PeftModel) else model
    assert isinstance(base, PreTrainedModel)
    return base


def train_adapter_only(model: nn.Module) -> None:
    """Put the adapter's layers, with their dropout, into train mode, and the base model into eval mode."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    model.eval()
    for layer in [module for module in model.modules() if isinstance(module, BaseTunerLayer)]:
        layer.train()
        layer.get_base_layer().eval()


def attach_adapter(model: nn.Module, blocks: nn.ModuleList, peft: PeftConfig, seed: int) -> "PeftModel":
    """Put a new adapter around modules of the model's blocks, in place. At first it does not change the output.

    Args:
        blocks: the decoder blocks of this model.
        seed: seed of the adapter's random weights. The caller's random state is not changed.

    Raises:
        UserError: the model does not have a target module or layer, or a width is not a multiple of OFT's block size.
    """
    from peft import get_peft_model

    where, targets = adapter_places(model, blocks, peft)
    with torch.random.fork_rng(), no_deprecation_warning():
        torch.manual_seed(seed)
        wrapped = get_peft_model(model, _settings_of(peft, where, targets, seed))
    _update_magnitudes(wrapped)
    return wrapped


def _settings_of(peft: PeftConfig, where: str, targets: dict[str, nn.Module], seed: int) -> "peft_library.PeftConfig":
    from peft import IA3Config, LoHaConfig, LoKrConfig, LoraConfig, OFTConfig, VeraConfig
    from transformers.pytorch_utils import Conv1D

    def named(names: Iterable[str]) -> str:
        return f"{where}(?:{'|'.join(map(re.escape, names))})"

    places: _Places = {"target_modules": named(targets), "task_type": "CAUSAL_LM"}
    transposed: _Transposed = {"fan_in_fan_out": True} if any(isinstance(module, Conv1D) for module in targets.values()) else {}
    match peft:
        case LoraAdapter():
            return LoraConfig(
                r=peft.r,
                lora_alpha=peft.alpha,  # pyrefly: ignore[bad-argument-type] (any number will do)
                lora_dropout=peft.dropout,
                use_rslora=peft.use_rslora,
                use_dora=peft.use_dora,
                init_lora_weights=True if peft.init == "default" else peft.init,
                **places,
                **transposed,
            )
        case VeraAdapter():
            return VeraConfig(r=peft.r, vera_dropout=peft.dropout, d_initial=peft.d_initial, projection_prng_key=seed, **places, **transposed)
        case Ia3Adapter():
            return IA3Config(feedforward_modules=named(peft.feedforward) if peft.feedforward else [], **places, **transposed)
        case LohaAdapter():
            return LoHaConfig(r=peft.r, alpha=peft.alpha, **places)  # pyrefly: ignore[bad-argument-type]
        case LokrAdapter():
            return LoKrConfig(r=peft.r, alpha=peft.alpha, **places)  # pyrefly: ignore[bad-argument-type]
        case OftAdapter():
            # PEFT's default, a series instead of Cayley's map, is orthogonal only near the identity.
            return OFTConfig(oft_block_size=peft.block_size, use_cayley_neumann=False, **places)


def _update_magnitudes(model: "PeftModel") -> None:
    """Compute DoRA's magnitudes again, now that its weights are in float32. Those of a bfloat16 base were rounded and changed the output."""
    from peft.tuners.lora import LoraLayer
    from peft.tuners.lora.dora import DoraLinearLayer

    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            for name, magnitude in layer.lora_magnitude_vector.items():
                matrices = {"lora_A": layer.lora_A[name].weight, "lora_B": layer.lora_B[name].weight}
                assert isinstance(magnitude, DoraLinearLayer)
                magnitude.update_layer(base_layer=layer.get_base_layer(), scaling=layer.scaling[name], **matrices)


def save_adapter(model: nn.Module, folder: Path, base_model: str, base_sha256: str, training: Mapping[str, Any] | None = None) -> None:
    """Write the adapter in PEFT format, completely or not at all. `lingact.json` says which model it belongs to and how it was trained.

    Args:
        model: a model with an adapter.
        folder: becomes the adapter's folder. A folder of that name is left as it is if it has the same files. Otherwise it is moved to
            `<name>.before`, because a user may have put it there.
        base_model: name of the base model, as a user would give it.
        base_sha256: `weights_hash` of the base model.
        training: the configuration that it was trained with, by which seeds of one recipe are recognised. None if its training is not finished.
    """
    from peft import PeftModel

    assert isinstance(model, PeftModel)
    unfinished = temporary_beside(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished.mkdir()
    try:
        model.active_peft_config.base_model_name_or_path = base_model
        # False: with "auto" PEFT asks the hub whether the vocabulary has grown.
        model.save_pretrained(str(unfinished), safe_serialization=True, save_embedding_layers=False)
        identity = {"base_model": base_model, "base_sha256": base_sha256} | ({} if training is None else {"training": dict(training)})
        (unfinished / IDENTITY).write_text(json.dumps(identity, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        put_in_place(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def load_adapter(model: nn.Module, adapter: str, *, base_sha256: str | None = None) -> "PeftModel":
    """Put a saved adapter around the model, in place and not trainable. Arguments and errors are those of `check_adapter`, which it calls first."""
    from peft import PeftModel

    folder = check_adapter(model, adapter, base_sha256=base_sha256)
    with no_deprecation_warning():
        return PeftModel.from_pretrained(model, str(folder), use_safetensors=True).eval()


def unload_adapter(model: "PeftModel") -> nn.Module:
    """Take the adapter off, in place. Returns the model as it was before the adapter was put on."""
    from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    base = model.get_base_model()
    # PEFT's `unload` does not restore modules that were trained as a whole (`modules_to_save`).
    for name, module in list(base.named_modules()):
        if isinstance(module, AuxiliaryTrainingWrapper):
            base.set_submodule(name, module.original_module)
    tuner = model.base_model
    assert isinstance(tuner, BaseTuner)
    tuner.unload()
    vars(base).pop("peft_config", None)
    assert not any(isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper)) for module in base.modules())
    return base
