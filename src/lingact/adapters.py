"""LoRA adapters (peft): attach, save, load, switch off; and the hashes that tell which model an adapter belongs to.

Everything is refused before peft touches the model, which it changes in place.
"""

import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lingact.config import PeftConfig
from lingact.errors import UserError
from lingact.languages import nearest

if TYPE_CHECKING:
    from peft import PeftModel

WEIGHTS, SETTINGS, IDENTITY = "adapter_model.safetensors", "adapter_config.json", "lingact.json"
_WRAPPED = "base_model.model."
_OURS = re.compile(r"\.lora_|\.modules_to_save\.")


def weights_hash(model: nn.Module) -> str:
    """sha256 over the base weights in name order: name, dtype, shape and bytes. The same with and without an adapter around them."""
    return _hash((_base_name(name), value) for name, value in model.state_dict().items() if not _OURS.search(name))


def adapter_hash(model: "PeftModel") -> str:
    """sha256 over the adapter's weights in name order."""
    return _hash((name, value) for name, value in model.state_dict().items() if _OURS.search(name))


def _base_name(name: str) -> str:
    return name.removeprefix(_WRAPPED).replace(".base_layer.", ".")


def _hash(tensors: Iterable[tuple[str, Tensor]]) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(tensors, key=lambda pair: pair[0]):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())  # pyrefly: ignore[bad-argument-type]
    return digest.hexdigest()


@contextmanager
def base_behaviour(model: nn.Module) -> Iterator[None]:
    """While open, the model answers as without its adapter; nothing happens to a model that has none."""
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


def attach_lora(model: nn.Module, peft: PeftConfig, seed: int) -> "PeftModel":
    """Put new LoRA weights around the model's target modules, in place; at first they change nothing.

    Args:
        seed: of the random half of the weights; the caller's random state is left as it was.

    Raises:
        UserError: a target module or layer that the model does not have.
    """
    from peft import LoraConfig, get_peft_model

    linear = {name.rsplit(".", 1)[-1] for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    unknown = [target for target in peft.targets if target not in linear]
    if unknown or not peft.targets:
        raise UserError(
            f"peft.targets: {', '.join(unknown) or 'none given'}{nearest(unknown[0], linear) if unknown else ''} The model has the linear "
            f"modules {', '.join(sorted(linear))}"
        )
    count = model.config.get_text_config().num_hidden_layers  # pyrefly: ignore[missing-attribute]
    layers = range(count) if peft.layers == "all" else peft.layers
    outside = [layer for layer in layers if layer >= count]
    if outside or not layers:
        raise UserError(f"peft.layers: {', '.join(map(str, outside)) or 'none given'}; the model has the layers 0 to {count - 1}")
    settings = LoraConfig(
        r=peft.r,
        lora_alpha=peft.alpha,  # pyrefly: ignore[bad-argument-type] (any number will do)
        lora_dropout=peft.dropout,
        target_modules=list(peft.targets),
        layers_to_transform=list(layers),
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(), _calm_peft():
        torch.manual_seed(seed)
        return get_peft_model(model, settings)


@contextmanager
def _calm_peft() -> Iterator[None]:
    """Silence two warnings: peft 0.21 asks transformers 5.23 by a deprecated name; and missing weights, which here are an error."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        warnings.filterwarnings("ignore", message="Found missing adapter keys", category=UserWarning)
        yield


def save_adapter(model: "PeftModel", folder: Path, base_model: str, base_sha256: str) -> None:
    """Write the adapter in PEFT format, whole or not at all, with `lingact.json` saying which model it belongs to.

    Args:
        folder: becomes the adapter's folder; an older adapter there is replaced.
        base_model: name of the base model, as a user would give it.
        base_sha256: `weights_hash` of the base model.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished, replaced = (folder.with_name(f".{folder.name}.{word}.{os.getpid()}") for word in ("new", "old"))
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        model.active_peft_config.base_model_name_or_path = base_model
        # False: with "auto" peft asks the hub whether the vocabulary has grown.
        model.save_pretrained(str(unfinished), safe_serialization=True, save_embedding_layers=False)
        (unfinished / IDENTITY).write_text(json.dumps({"base_model": base_model, "base_sha256": base_sha256}, indent=2) + "\n", encoding="utf-8")
        if folder.exists():
            folder.rename(replaced)
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)


def find_adapter(adapter: str) -> Path:
    """The PEFT folder that a user means: a run folder of train.py (its `adapter/`), a PEFT folder, or a hub id (downloaded, safetensors only).

    Raises:
        UserError: there is none, or the hub does not give it.
    """
    folder = Path(adapter).expanduser()
    if folder.is_dir():
        inner = folder / "adapter"
        chosen = inner if (inner / SETTINGS).is_file() else folder
        if (chosen / SETTINGS).is_file():
            return chosen
        if (folder / "manifest.json").is_file():
            raise UserError(f"adapter: the run '{adapter}' has no adapter; name the folder of a finished train.py run")
        raise UserError(f"adapter: '{adapter}' is not an adapter: it has no {SETTINGS}; name a run folder of train.py, a PEFT folder or a hub id")
    if folder.exists():
        raise UserError(f"adapter: '{adapter}' is a file; name the folder that it lies in")
    if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", adapter):
        siblings = [entry.name for entry in folder.parent.iterdir()] if folder.parent.is_dir() else []
        raise UserError(f"adapter: there is no folder '{adapter}'{nearest(folder.name, siblings)}")
    return _download(adapter)


def _download(adapter: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(adapter, allow_patterns=[SETTINGS, WEIGHTS, IDENTITY]))
    except OSError as error:
        raise UserError(
            f"adapter: '{adapter}' is neither a folder here nor an adapter that the hub gives: {str(error).strip().splitlines()[0]}"
        ) from error
    if not (folder / SETTINGS).is_file():
        raise UserError(f"adapter: '{adapter}' on the hub is not an adapter: it has no {SETTINGS}")
    return folder


def load_adapter(model: nn.Module, adapter: str, *, base_sha256: str | None = None) -> "PeftModel":
    """Put a saved adapter around the model, in place and frozen, after checking that it fits. Reads safetensors only.

    Args:
        adapter: run folder of train.py, PEFT folder or hub id.
        base_sha256: the model's `weights_hash` where it is known; None: compute it.

    Raises:
        UserError: not there, not an adapter, damaged, or of another model.
    """
    from peft import PeftModel, get_peft_model_state_dict

    folder = find_adapter(adapter)
    settings = _settings(folder)
    shapes = _shapes(folder)
    _refuse_stranger(model, folder, base_sha256)
    _refuse_misfit(model, folder, settings, shapes)
    with _calm_peft():
        wrapped = PeftModel.from_pretrained(model, str(folder), use_safetensors=True)
    wrapped.eval()
    missing = get_peft_model_state_dict(wrapped, save_embedding_layers=False).keys() - shapes.keys()
    if missing:
        raise UserError(
            f"adapter: '{folder / WEIGHTS}' lacks {len(missing)} of the weights that its {SETTINGS} announces, such as {min(missing)}; it "
            "is not complete"
        )
    return wrapped


def _settings(folder: Path) -> dict[str, Any]:
    try:
        settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    except ValueError:
        raise UserError(f"adapter: '{folder / SETTINGS}' is not JSON; it is cut off or of something else") from None
    if not isinstance(settings, dict) or "peft_type" not in settings:
        raise UserError(f"adapter: '{folder / SETTINGS}' is not a PEFT configuration: it has no peft_type")
    return settings


def _shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor in the adapter's file."""
    from safetensors import SafetensorError, safe_open

    path = folder / WEIGHTS
    if not path.is_file():
        raise UserError(f"adapter: '{folder}' has no {WEIGHTS}; only safetensors are read")
    try:
        with safe_open(path, framework="pt") as tensors:
            return {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise UserError(f"adapter: '{path}' cannot be read, it is cut off or damaged: {error}") from None


def _refuse_stranger(model: nn.Module, folder: Path, base_sha256: str | None) -> None:
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
    """Compare LoRA shapes with the model's modules; other adapter types are left to peft."""
    modules = dict(model.named_modules())
    another = f"adapter: '{folder}' belongs to another model ({settings.get('base_model_name_or_path') or 'unnamed'})"
    for name, shape in shapes.items():
        side = re.fullmatch(rf"(?:{re.escape(_WRAPPED)})(.+)\.lora_([AB])\.weight", name)
        if side is None:
            continue
        target, half = side.groups()
        if target not in modules:
            raise UserError(f"{another}: this one has no module {target}")
        module = modules[target]
        if isinstance(module, nn.Linear):
            wanted, given = (module.in_features, shape[1]) if half == "A" else (module.out_features, shape[0])
            if wanted != given:
                raise UserError(f"{another}: its weight for {target} is {given} wide, this model's {wanted}")
    if settings["peft_type"] == "LORA" and not any(".lora_" in name for name in shapes):
        raise UserError(f"adapter: '{folder / WEIGHTS}' holds no LoRA weights, though its {SETTINGS} announces some")
