"""Adapters (peft): attach, save, load, switch off, take off; and the hashes that tell which model an adapter belongs to.

Everything is refused before peft touches the model, which it changes in place. Only such kinds are taken as leave the base weights alone and
start at the base model, bit for bit.
"""

import copy
import hashlib
import json
import math
import re
import shutil
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from lingact.config.training import MOVE_THE_BASE, Ia3Adapter, LohaAdapter, LokrAdapter, LoraAdapter, OftAdapter, PeftConfig, VeraAdapter
from lingact.errors import UserError
from lingact.files.folders import put_in_place, temporary_beside
from lingact.models.adapter_places import adapter_places
from lingact.models.adapter_sources import IDENTITY, SETTINGS, WEIGHTS, find_adapter
from lingact.models.finite import describe, nonfinite

if TYPE_CHECKING:
    import peft as peft_library
    from peft import PeftModel

KINDS = ("LORA", "VERA", "IA3", "LOHA", "LOKR", "OFT")
"""What peft calls the kinds that are taken; DoRA and rsLoRA are LORA."""
_WRAPPED = "base_model.model."
_KEPT_INSIDE = ("base_layer", "original_module")
"""Where peft's wrappers keep what they wrap."""
_CHANGE_NOTHING = {
    *("base_model_name_or_path", "revision", "task_type", "inference_mode", "auto_mapping", "peft_version"),
    *("init_lora_weights", "init_weights", "save_projection"),
}
"""Settings of peft that say where an adapter comes from or how it began."""


def weights_hash(model: nn.Module) -> str:
    """sha256 over the base weights in name order: name, dtype, shape and bytes. The same with and without an adapter around them."""
    return _hash(_split(model)[0])


def adapter_hash(model: "PeftModel") -> str:
    """sha256 over what the adapter does: its weights in name order, also those never trained (VeRA), and its settings (alpha, ...)."""
    settings = {name: value for name, value in model.active_peft_config.to_dict().items() if name not in _CHANGE_NOTHING and value is not None}
    told = json.dumps(settings, sort_keys=True, default=lambda value: sorted(value) if isinstance(value, set) else str(value))
    return hashlib.sha256(f"{_hash(_split(model)[1])} {told}".encode()).hexdigest()


def _split(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """State of the base, under the names that it has without an adapter, and of the adapter."""
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
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())  # pyrefly: ignore[bad-argument-type]
    return digest.hexdigest()


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

    where, targets = adapter_places(model, blocks, peft)
    with torch.random.fork_rng(), _calm_peft():
        torch.manual_seed(seed)
        wrapped = get_peft_model(model, _settings_of(peft, where, targets, seed))
    _settle_magnitudes(wrapped)
    return wrapped


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


@contextmanager
def _calm_peft() -> Iterator[None]:
    """Silence a warning: peft 0.21 asks transformers 5.23 by a deprecated name."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        yield


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


# --- loading -------------------------------------------------------------------------------------------------------------------------------------


def check_adapter(model: nn.Module, adapter: str, *, base_sha256: str | None = None) -> Path:
    """Refuse an adapter that cannot be put on a model, without touching the model. Reads safetensors only.

    Args:
        model: without an adapter.
        adapter: as `find_adapter` takes it.
        base_sha256: the model's `weights_hash` where it is known; None: compute it.

    Returns:
        The adapter's folder, to be loaded later.

    Raises:
        UserError: not there, not an adapter, damaged, of another model, or of a kind that changes the base.
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


def load_adapter(model: nn.Module, adapter: str, *, base_sha256: str | None = None) -> "PeftModel":
    """Put a saved adapter around the model, in place and frozen, after `check_adapter`, whose arguments and errors it has."""
    from peft import PeftModel

    folder = check_adapter(model, adapter, base_sha256=base_sha256)
    with _calm_peft():
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


def _settings(folder: Path) -> dict[str, Any]:
    try:
        settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    except ValueError:
        raise UserError(f"adapter: '{folder / SETTINGS}' is not JSON; it is cut off or of something else") from None
    if not isinstance(settings, dict) or "peft_type" not in settings:
        raise UserError(f"adapter: '{folder / SETTINGS}' is not a PEFT configuration: it has no peft_type")
    return settings


def _refuse_changed_base(folder: Path, settings: dict[str, Any]) -> None:
    """Adapters of other kinds, and LoRA that came with changed base weights: switched off, they would not give the base model."""
    if settings["peft_type"] not in KINDS:
        raise UserError(
            f"adapter: '{folder}' is of the kind {settings['peft_type']}; taken are kinds that leave no trace when switched off: {', '.join(KINDS)}"
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
        raise UserError(f"adapter: '{path}' cannot be read, it is cut off or damaged: {error}") from None


def _refuse_mismatched(model: nn.Module, folder: Path, base_sha256: str | None) -> None:
    """Compare the identities, where the adapter carries one."""
    path = folder / IDENTITY
    if not path.is_file():
        return
    try:
        recorded = json.loads(path.read_text(encoding="utf-8"))
        name, expected = recorded["base_model"], recorded["base_sha256"]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"adapter: '{path}' does not name base_model and base_sha256; it is cut off or of something else") from None
    found = base_sha256 or weights_hash(model)
    if found != expected:
        raise UserError(
            f"adapter: '{folder}' belongs to another model: it was trained on '{name}' with weights {expected[:12]}, this model has "
            f"{found[:12]}. Use that model, with the same revision and dtype"
        )


def _refuse_misfit(model: nn.Module, folder: Path, settings: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> None:
    """Compare names and shapes of the adapter's weights with those that it needs on this model."""
    another = f"adapter: '{folder}' belongs to another model ({settings.get('base_model_name_or_path') or 'unnamed'})"
    try:
        needed = _needed_shapes(model, folder)
    except ValueError as error:
        raise UserError(f"{another}: peft cannot put it on this one: {str(error).splitlines()[0]}") from None
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


def _refuse_nonfinite(folder: Path, settings: dict[str, Any]) -> None:
    """Weights and settings (alpha, ...) that are no finite numbers."""
    advice = "its training overflowed, or the file is damaged. Train it again, or take an earlier checkpoint"
    numbers = sorted(name for name, value in _numbers(settings) if not math.isfinite(value))
    if numbers:
        raise UserError(f"adapter: '{folder / SETTINGS}' has no finite number in {', '.join(numbers)}; put the right one there, or train it again")
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        spoiled = nonfinite((name, file.get_tensor(name)) for name in file.keys())  # noqa: SIM118 (not a dict)
    if spoiled:
        raise UserError(f"adapter: {describe(spoiled, dict.fromkeys(spoiled, str(folder / WEIGHTS)))}; {advice}")


def _numbers(node: Any, path: str = "") -> Iterator[tuple[str, float]]:
    if isinstance(node, float):
        yield path, node
    for name, value in node.items() if isinstance(node, dict) else ():
        yield from _numbers(value, f"{path}.{name}" if path else str(name))


def _needed_shapes(model: nn.Module, folder: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the weights that an adapter of these settings has on this model, found on a copy without data."""
    from peft import PeftConfig as Settings
    from peft import PeftModel, get_peft_model_state_dict

    settings = Settings.from_pretrained(str(folder))
    if settings.peft_type == "LORA":
        settings.init_lora_weights = True  # pyrefly: ignore[missing-attribute] (some ways to begin need the data)
    with torch.random.fork_rng(), _calm_peft():
        wrapped = PeftModel(_without_data(model), settings)  # pyrefly: ignore[bad-argument-type]
    return {name: tuple(value.shape) for name, value in get_peft_model_state_dict(wrapped, save_embedding_layers=False).items()}


def _without_data(model: nn.Module) -> nn.Module:
    """A copy whose tensors are on the device `meta`."""
    tensors = [*model.parameters(), *model.buffers()]
    meta = [nn.Parameter(t.to("meta"), requires_grad=False) if isinstance(t, nn.Parameter) else t.to("meta") for t in tensors]
    return copy.deepcopy(model, {id(tensor): empty for tensor, empty in zip(tensors, meta, strict=True)})
