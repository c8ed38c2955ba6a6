"""Adapters (PEFT): attach, save, load, switch off, take off.

Only kinds are accepted that leave the base weights unchanged and start exactly at the base model.
"""

import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lingact.config.training import Ia3Adapter, LohaAdapter, LokrAdapter, LoraAdapter, OftAdapter, PeftConfig, VeraAdapter
from lingact.files.folders import put_in_place, temporary_beside
from lingact.models.adapter_checks import check_adapter
from lingact.models.adapter_sources import IDENTITY
from lingact.models.preflight import check_blocks, check_modules
from lingact.runtime.compat.peft import no_deprecation_warning

if TYPE_CHECKING:
    import peft as peft_library
    from peft import PeftModel


@contextmanager
def base_behaviour(model: nn.Module) -> Iterator[None]:
    """While open, the model answers as without its adapter; nothing happens to a model that has none.

    The same bits as before the adapter was attached, except under autocast: there peft's VeRA, LoHa, LoKr and OFT layers hand on float32 where
    the plain module hands on the lower precision, switched off just as switched on.
    """
    from peft import PeftModel

    if not isinstance(model, PeftModel):
        yield
        return
    # Switching back on, peft makes every active adapter trainable; a loaded one was frozen.
    trainable = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    try:
        with model.disable_adapter():
            yield
    finally:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(trainable[name])


def train_adapter_only(model: nn.Module) -> None:
    """Train mode for the adapter's layers, with their dropout; eval mode for everything of the base model."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    model.eval()
    for layer in [module for module in model.modules() if isinstance(module, BaseTunerLayer)]:
        layer.train()
        layer.get_base_layer().eval()


def attach_adapter(model: nn.Module, blocks: nn.ModuleList, peft: PeftConfig, seed: int) -> "PeftModel":
    """Put a new adapter around modules of the model's blocks, in place; at first it changes nothing.

    Args:
        blocks: the decoder blocks of this model.
        seed: of what is random in the adapter; the caller's random state is left as it was.

    Raises:
        UserError: a target module or layer that the model does not have, or a width that the blocks of OFT do not divide.
    """
    from peft import get_peft_model

    where, targets = _places(model, blocks, peft)
    with torch.random.fork_rng(), no_deprecation_warning():
        torch.manual_seed(seed)
        wrapped = get_peft_model(model, _settings_of(peft, where, targets, seed))
    _settle_magnitudes(wrapped)
    return wrapped


def _places(model: nn.Module, blocks: nn.ModuleList, peft: PeftConfig) -> tuple[str, dict[str, nn.Module]]:
    """Where the adapter goes.

    Returns:
        What the full names of the chosen modules begin with, a regular expression: the chosen blocks of this list and no other (vision towers). And
        the last parts of these names, each with one module that has it.
    """
    from transformers.pytorch_utils import Conv1D

    check_blocks(peft, len(blocks))
    layers = range(len(blocks)) if peft.layers == "all" else peft.layers
    linear = [(n.rsplit(".", 1)[-1], m) for layer in layers for n, m in blocks[layer].named_modules() if isinstance(m, (nn.Linear, Conv1D))]
    known = dict(sorted(linear, key=lambda named: named[0]))
    # GPT-2 has its weights the other way round.
    transposed = [name for name, module in known.items() if isinstance(module, Conv1D)]
    sizes: dict[str, tuple[int, int]] = {}
    for name, module in linear:
        each = module.weight.shape if isinstance(module, Conv1D) else module.weight.shape[::-1]
        # GPT-2 also has two modules of one name: what has to fit has to fit both.
        sizes[name] = min(sizes.get(name, (each[0], each[1])), (each[0], each[1]))
    chosen = check_modules(peft, dict(sorted(sizes.items())), transposed=transposed, model=type(model).__name__)
    path = next(name for name, module in model.named_modules() if module is blocks)
    return rf"{re.escape(path)}\.(?:{'|'.join(map(str, layers))})\.(?:.+\.)?", {name: known[name] for name in chosen}


def _settings_of(peft: PeftConfig, where: str, targets: dict[str, nn.Module], seed: int) -> "peft_library.PeftConfig":
    from peft import IA3Config, LoHaConfig, LoKrConfig, LoraConfig, OFTConfig, VeraConfig
    from transformers.pytorch_utils import Conv1D

    def named(names: Iterable[str]) -> str:
        return f"{where}(?:{'|'.join(map(re.escape, names))})"

    places: dict[str, Any] = {"target_modules": named(targets), "task_type": "CAUSAL_LM"}
    turned: dict[str, Any] = {"fan_in_fan_out": True} if any(isinstance(module, Conv1D) for module in targets.values()) else {}
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
                **turned,
            )
        case VeraAdapter():
            return VeraConfig(r=peft.r, vera_dropout=peft.dropout, d_initial=peft.d_initial, projection_prng_key=seed, **places, **turned)
        case Ia3Adapter():
            return IA3Config(feedforward_modules=named(peft.feedforward) if peft.feedforward else [], **places, **turned)
        case LohaAdapter():
            return LoHaConfig(r=peft.r, alpha=peft.alpha, **places)  # pyrefly: ignore[bad-argument-type]
        case LokrAdapter():
            return LoKrConfig(r=peft.r, alpha=peft.alpha, **places)  # pyrefly: ignore[bad-argument-type]
        case OftAdapter():
            # The series that stands in for Cayley's map by default is orthogonal only near the identity.
            return OFTConfig(oft_block_size=peft.block_size, use_cayley_neumann=False, **places)


def _settle_magnitudes(model: "PeftModel") -> None:
    """Compute DoRA's magnitudes again, now that its weights are in float32: those of a bfloat16 base were rounded, and not quite the base's."""
    from peft.tuners.lora import LoraLayer

    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            for name, magnitude in layer.lora_magnitude_vector.items():
                matrices = {"lora_A": layer.lora_A[name].weight, "lora_B": layer.lora_B[name].weight}
                magnitude.update_layer(base_layer=layer.get_base_layer(), scaling=layer.scaling[name], **matrices)  # pyrefly: ignore[not-callable]


def save_adapter(model: "PeftModel", folder: Path, base_model: str, base_sha256: str, training: Mapping[str, Any] | None = None) -> None:
    """Write the adapter in PEFT format, whole or not at all, with `lingact.json` saying which model it belongs to and how it was trained.

    Args:
        folder: becomes the adapter's folder. What has that name already is left as it is where it has the same files, or else moved aside
            (`<name>.before`): it may have been put there by hand.
        base_model: name of the base model, as a user would give it.
        base_sha256: `weights_hash` of the base model.
        training: the configuration that made it, by which seeds of one recipe are known; None for what no finished training made.
    """
    unfinished = temporary_beside(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished.mkdir()
    try:
        model.active_peft_config.base_model_name_or_path = base_model
        # False: with "auto" peft asks the hub whether the vocabulary has grown.
        model.save_pretrained(str(unfinished), safe_serialization=True, save_embedding_layers=False)
        identity = {"base_model": base_model, "base_sha256": base_sha256} | ({} if training is None else {"training": dict(training)})
        (unfinished / IDENTITY).write_text(json.dumps(identity, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        put_in_place(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def load_adapter(model: nn.Module, adapter: str, *, base_sha256: str | None = None) -> "PeftModel":
    """Put a saved adapter around the model, in place and frozen, after `check_adapter`, whose arguments and errors it has."""
    from peft import PeftModel

    folder = check_adapter(model, adapter, base_sha256=base_sha256)
    with no_deprecation_warning():
        return PeftModel.from_pretrained(model, str(folder), use_safetensors=True).eval()


def unload_adapter(model: "PeftModel") -> nn.Module:
    """Take the adapter off, in place. Returns the model that it was put on, which is as it was before."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    base = model.get_base_model()
    # peft's own `unload` would leave whole modules that were trained beside the adapter in the places of the base's.
    for name, module in list(base.named_modules()):
        if isinstance(module, AuxiliaryTrainingWrapper):
            base.set_submodule(name, module.original_module)
    model.base_model.unload()  # pyrefly: ignore[not-callable]
    vars(base).pop("peft_config", None)
    assert not any(isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper)) for module in base.modules())
    return base
