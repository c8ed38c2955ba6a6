"""What configuration, the model's config.json and the SAEs' cfg.json tell before anything is loaded: whether they go together.

Nothing is downloaded, no weights are read and no heavy library is imported, so that a mistake ends within two seconds and before there is a run
folder. What is found out again later, from what was really loaded, is found out by the same functions.
"""

import ctypes
import json
import re
from collections.abc import Callable, Collection
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lingact.catalogue.languages import nearest
from lingact.config.choices import check_ranges
from lingact.config.jobs import AnalyzeConfig, EvalConfig, Seeded, TrainConfig
from lingact.config.model import ModelConfig, SaeConfig, SaeSet
from lingact.config.training import LohaAdapter, LokrAdapter, LoraAdapter, OftAdapter, PeftConfig
from lingact.errors import UserError
from lingact.files.records import read_json_object
from lingact.hub.huggingface import ON_THE_HUB
from lingact.models.adapter_sources import expand_adapters, find_adapter, lies_elsewhere
from lingact.models.sae_sources import check_release, refuse_no_sae, sae_folder
from lingact.models.shapes import Facts, facts_of, linear_modules, module_names

Config = TrainConfig | AnalyzeConfig | EvalConfig
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")


def problems(config: Any, *, here: bool) -> list[str]:
    """Everything that is wrong, a line each.

    Args:
        config: of one of the three jobs.
        here: the job runs on this machine, so that its devices are known.
    """
    found: list[str] = []

    def tried(check: Callable[[], Any]) -> Any:
        try:
            return check()
        except UserError as error:
            found.extend(line for line in str(error).splitlines() if line not in found)
        return None

    if isinstance(config, AnalyzeConfig):
        tried(lambda: check_analysis(config))
        if config.stats or config.compare:
            return found  # no model is loaded
    if here:
        tried(lambda: check_device(config))
    for adapter in tried(lambda: _adapters(config)) or ():
        if not lies_elsewhere(adapter):
            tried(lambda adapter=adapter: find_adapter(adapter))
    tried(lambda: check_folder(config.model))
    facts = tried(lambda: facts_of(config.model)) or Facts()
    tried(lambda: check_context(config.model, facts))
    tried(lambda: check_attention(config.model, facts))
    if isinstance(config, EvalConfig):
        return found
    layers = _layers(config, facts, tried)
    for spec in (config.sae.measuring, config.sae.heldout):
        if spec is not None and layers is not None:
            tried(lambda spec=spec: check_saes(spec, layers, facts.d_model))
    if layers is not None:
        tried(lambda: check_ranges(layers, config.statistics))
        tried(lambda: check_layers_named(config, layers))
    if isinstance(config, TrainConfig):
        tried(lambda: substitutes(config))
        tried(lambda: check_adapter_places(config.peft, facts))
    return found


def _adapters(config: Config) -> list[str]:
    """Those that are to be loaded, those of a sweep one by one."""
    if isinstance(config, EvalConfig):
        return expand_adapters(config.adapter)
    return [config.adapter] if isinstance(config, AnalyzeConfig) and config.adapter is not None else []


def _layers(config: TrainConfig | AnalyzeConfig, facts: Facts, tried: Callable[[Callable[[], Any]], Any]) -> tuple[int, ...] | None:
    """The measured layers; None where they are not known."""
    if facts.layers is not None:
        return tried(lambda: chosen_layers(config.sae, facts.layers or 0))
    return None if config.sae.layers == "all" else tuple(sorted(config.sae.layers))


# --- the model --------------------------------------------------------------------------------------------------------------------------------------


def check_folder(config: ModelConfig) -> None:
    """Refuse a folder that holds no model, or none in safetensors.

    Raises:
        UserError: with the nearest name.
    """
    path = Path(config.name)
    if not path.is_dir() and not path.is_absolute() and ON_THE_HUB.fullmatch(config.name):
        return
    if not (path / "config.json").is_file():
        siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UserError(f"model.name: no model in the folder '{path}' (no config.json){nearest(path.name, siblings)}")
    single, index = (path / name for name in _WEIGHTS)
    if index.is_file() and not single.is_file():
        missing = sorted({file for file in _shards(index) if not (path / file).is_file()})
        if missing:
            raise UserError(f"model '{config.name}' is not complete: there is no '{missing[0]}', which its {index.name} names; get it again")
    elif not single.is_file() and not any(path.glob("*.safetensors")):
        raise UserError(no_safetensors(config.name))


def _shards(index: Path) -> list[str]:
    try:
        return [str(file) for file in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"model: '{index}' cannot be read: it is truncated or not an index of weights; get it again") from None


def no_safetensors(name: str) -> str:
    """The message on a model in another format."""
    reason = "has no weights in safetensors format, and reading other formats can run code"
    return f"model '{name}' {reason}; convert it, or choose another model or revision"


def check_context(config: ModelConfig, facts: Facts) -> None:
    """Refuse windows that are longer than what the model takes.

    Raises:
        UserError: with what it takes.
    """
    if facts.positions is not None and config.context > facts.positions:
        raise UserError(f"model.context is {config.context}; '{config.name}' takes at most {facts.positions} tokens")


def check_attention(config: ModelConfig, facts: Facts) -> None:
    """Refuse an attention implementation that the model, this machine or the dtype does not go with.

    Raises:
        UserError: with what goes.
    """
    if facts.soft_caps and config.attention == "sdpa":
        raise UserError(f"model.attention: sdpa leaves out the soft caps of '{config.name}'; use model.attention=eager")
    if config.attention == "flash_attention_2":
        if find_spec("flash_attn") is None and find_spec("kernels") is None:
            raise UserError(f"model.attention: {config.attention} is not installed here; use model.attention=sdpa or eager")
        if config.dtype == "float32":
            raise UserError("model.attention: flash_attention_2 computes in half precision only; use model.dtype=bfloat16, or model.attention=sdpa")


# --- the device -------------------------------------------------------------------------------------------------------------------------------------


def check_device(config: Seeded) -> None:
    """Refuse a CUDA device that is not there, more processes than devices, and half precision where there is none.

    Raises:
        UserError: with what is there.
    """
    precision = config.trainer.precision if isinstance(config, TrainConfig) else ""
    if not config.device.startswith("cuda") and precision != "16-mixed":
        return
    count = 0 if config.device == "cpu" else cuda_devices()
    if count is None:
        return
    _, _, number = config.device.partition(":")
    if config.device.startswith("cuda") and int(number or 0) >= count:
        raise UserError(device_missing(config.device, count))
    if precision == "16-mixed" and count == 0:
        raise UserError("trainer.precision: 16-mixed needs a CUDA device, which is not there or not chosen; use bf16-mixed or 32-true")
    key, processes = ("trainer.devices", config.trainer) if isinstance(config, TrainConfig) else ("devices", config)
    wanted = getattr(processes, "devices", 1)
    if config.device == "cuda" and wanted > count:
        raise UserError(f"{key} is {wanted}, and {count} CUDA devices are visible; give at most {count}")


def device_missing(device: str, count: int) -> str:
    """The message on a device that is not there."""
    return f"device: '{device}' is not there; {count} CUDA devices are visible. Use device=auto or device=cpu"


def cuda_devices() -> int | None:
    """How many CUDA devices torch would see, without importing it (which takes seconds); None where only torch can tell (ROCm)."""
    spec = find_spec("torch")
    version = Path(spec.origin).with_name("version.py") if spec and spec.origin else None
    if version is None or not version.is_file():
        return None
    told = dict(re.findall(r"^(cuda|hip): [^=]*= (.*)$", version.read_text(encoding="utf-8"), re.MULTILINE))
    if told.get("hip", "None") != "None" or "cuda" not in told:
        return None
    if told["cuda"] == "None":
        return 0  # torch was built without
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    return count.value if driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 else 0


# --- layers and SAEs --------------------------------------------------------------------------------------------------------------------------------


def chosen_layers(config: SaeConfig, block_count: int) -> tuple[int, ...]:
    """The layers to measure.

    Raises:
        UserError: a layer the model does not have.
    """
    if config.layers == "all":
        return tuple(range(block_count))
    beyond = [layer for layer in config.layers if layer >= block_count]
    if beyond:
        raise UserError(f"sae.layers: {beyond} out of range; the model has layers 0 to {block_count - 1}")
    return tuple(sorted(config.layers))


def check_saes(spec: SaeSet, layers: tuple[int, ...], d_model: int | None) -> None:
    """Refuse ids and folders that are not there, and SAEs of another width than the model's, as far as their settings lie here.

    Raises:
        UserError: with the first layer that is wrong.
    """
    ids = {layer: spec.id_of(layer) for layer in layers}
    check_release(spec.release, ids)
    folder = sae_folder(spec.release)
    if folder is None:
        return
    for sae_id in ids.values():
        refuse_no_sae(folder, sae_id)
        d_in = cfg_of(spec, sae_id).get("d_in")
        if d_model is not None and isinstance(d_in, int) and d_in != d_model:
            raise UserError(wrong_width(f"{spec.release} {sae_id}", d_in, d_model))


def wrong_width(name: str, d_in: int, d_model: int) -> str:
    """The message on an SAE of another model."""
    return f"SAE {name} reads vectors of {d_in}, the model's residual stream has {d_model}; choose SAEs made for this model"


def cfg_of(spec: SaeSet, sae_id: str) -> dict[str, Any]:
    """The settings of an SAE in a folder; empty where it has none in such a file."""
    path = Path(spec.release).expanduser() / sae_id / "cfg.json"
    return read_json_object(path, "put it back, or take other SAEs") if path.is_file() else {}


def check_layers_named(config: TrainConfig | AnalyzeConfig, layers: tuple[int, ...]) -> None:
    """Refuse layers of loss or interventions that are not measured, and latents that the SAEs do not have.

    Raises:
        UserError: with the measured ones.
    """
    if isinstance(config, TrainConfig):
        loss_layers(config, layers)
        _check_gradient(config, layers)
    else:
        widths = {layer: cfg_of(config.sae.measuring, config.sae.measuring.id_of(layer)).get("d_sae") for layer in layers}
        check_causal(config, layers, {layer: width for layer, width in widths.items() if isinstance(width, int)})


def loss_layers(config: TrainConfig, layers: tuple[int, ...]) -> tuple[int, ...]:
    """The measured layers that are in the loss.

    Raises:
        UserError: one that is not measured.
    """
    chosen = config.loss.gap.layers
    if chosen == "all":
        return layers
    beyond = [layer for layer in chosen if layer not in layers]
    if beyond:
        raise UserError(f"loss.gap.layers: {beyond} out of range; measured are the layers {list(layers)}")
    return tuple(sorted(chosen))


def _check_gradient(config: TrainConfig, layers: tuple[int, ...]) -> None:
    if config.loss.gap.gradient != "straight_through" or config.loss.control == "random_features":
        return
    for layer in loss_layers(config, layers):
        kind = cfg_of(config.sae.measuring, config.sae.measuring.id_of(layer)).get("architecture")
        if kind is not None and kind != "jumprelu":
            raise UserError(no_threshold(layer, kind))


def no_threshold(layer: int, kind: str) -> str:
    """The message on a surrogate gradient that has nothing to open."""
    return f"loss.gap.gradient=straight_through needs JumpReLU SAEs; layer {layer} has '{kind}'. Use loss.gap.gradient=jumprelu"


def check_causal(config: AnalyzeConfig, layers: Collection[int], widths: dict[int, int]) -> None:
    """Refuse interventions on layers and latents that are not there.

    Args:
        widths: number of latents by layer, where it is known.

    Raises:
        UserError: with what is there.
    """
    settings = config.measures.causal
    named = {} if isinstance(settings.features, str) else settings.features
    beyond = [layer for layer in (*named, *(() if settings.layers == "all" else settings.layers)) if layer not in layers]
    if beyond:
        raise UserError(f"measures.causal: layers {beyond} are not measured; measured are {list(layers)}")
    for layer in named:
        wide = [latent for latent in named[layer] if layer in widths and latent >= widths[layer]]
        if wide:
            raise UserError(f"measures.causal.features: layer {layer} has latents 0 to {widths[layer] - 1}; there is no {wide[0]}")


# --- the adapter to be trained ----------------------------------------------------------------------------------------------------------------------


def check_blocks(peft: PeftConfig, count: int) -> None:
    """Refuse blocks that the model does not have.

    Raises:
        UserError: with those that it has.
    """
    layers = () if peft.layers == "all" else peft.layers
    outside = [layer for layer in layers if layer >= count]
    if outside or not (layers or peft.layers == "all"):
        raise UserError(f"peft.layers: {', '.join(map(str, outside)) or 'none given'}; the model has the layers 0 to {count - 1}")


def check_modules(peft: PeftConfig, sizes: dict[str, tuple[int, int]], *, transposed: Collection[str] = (), model: str) -> tuple[str, ...]:
    """The modules of a block that are adapted.

    Args:
        sizes: inputs and outputs of its linear modules by the last part of their names.
        transposed: those whose weights lie the other way round (GPT-2).
        model: as messages name it.

    Raises:
        UserError: a module that there is not, or one that the kind or its rank does not go with.
    """
    chosen = tuple(sizes) if peft.targets == "all" else peft.targets
    unknown = [target for target in chosen if target not in sizes]
    if unknown or not chosen:
        raise UserError(
            f"peft.targets: {', '.join(unknown) or 'none given'}{nearest(unknown[0], list(sizes)) if unknown else ''} The blocks have the linear "
            f"modules {', '.join(sizes)}"
        )
    if isinstance(peft, (LohaAdapter, LokrAdapter, OftAdapter)) and any(name in transposed for name in chosen):
        raise UserError(f"peft.kind: peft has no {peft.kind} for the modules of {model} (Conv1D); use lora, dora, vera or ia3")
    if isinstance(peft, OftAdapter):
        uneven = sorted({f"{name} ({sizes[name][0]})" for name in chosen if sizes[name][0] % peft.block_size})
        if uneven:
            raise UserError(f"peft.block_size: {peft.block_size} does not divide the input width of {', '.join(uneven)}; choose a divisor of all")
    if isinstance(peft, (LoraAdapter, LohaAdapter)):
        full = {name: min(sizes[name]) for name in chosen if peft.r > min(sizes[name])}
        if full:
            name, rank = min(full.items(), key=lambda one: one[1])
            raise UserError(f"peft.r: {peft.r} is more than the rank that the matrix of {name} can have ({rank}); give at most {rank}")
    return chosen


def check_adapter_places(peft: PeftConfig, facts: Facts) -> None:
    """`check_blocks` and `check_modules`, as far as the model's shape is known."""
    if facts.layers is not None:
        check_blocks(peft, facts.layers)
    if facts.shape is not None:
        names = module_names(facts.shape.architecture)
        sizes = dict(sorted(zip(names, linear_modules(facts.shape), strict=True)))
        transposed = names if facts.shape.architecture == "gpt2" else ()
        check_modules(peft, sizes, transposed=transposed, model=f"the architecture {facts.shape.architecture}")


def substitutes(config: TrainConfig) -> dict[str, str]:
    """Target -> the language whose text it is trained on under the control wrong_language: the next one of its group that is no target.

    Where the group has none left, one of the other group. Empty without that control.

    Raises:
        UserError: there are too few.
    """
    if config.loss.control != "wrong_language":
        return {}
    languages, found = config.languages, {}
    for code in config.lang:
        own, other = (languages.low, languages.high) if code in languages.low else (languages.high, languages.low)
        after = own.index(code) + 1
        free = [c for c in (*own[after:], *own[:after], *other) if c not in config.lang and c not in found.values()]
        if not free:
            raise UserError(
                f"loss.control=wrong_language needs as many languages that are no targets as there are targets ({len(config.lang)}), the study has "
                f"{len(languages.all) - 1 - len(config.lang)}; add some to languages.low or languages.high"
            )
        found[code] = free[0]
    return found


# --- the analysis -----------------------------------------------------------------------------------------------------------------------------------


def check_analysis(config: AnalyzeConfig) -> None:
    """Refuse an analysis of nothing, options that take no part in it, and runs that hold no statistics.

    Raises:
        UserError: with what to leave out or to name.
    """
    if len(config.languages.all) == 1:
        raise UserError(
            f"languages: there is nothing to compare '{config.languages.reference}' with; name languages in languages.high or languages.low"
        )
    ignored = [name for name, given in (("adapter", config.adapter), ("scores", config.scores if config.compare else None)) if given]
    if (config.compare or config.stats) and ignored:
        raise UserError(f"{', '.join(ignored)}: takes no part in {'compare' if config.compare else 'stats'}=, which needs no model; leave it out")
    # A sweep's jobs hold the statistics, and are looked for when they are compared.
    for folder in (*config.stats, *(run for run in config.compare if not (run / ".jobs").is_dir())):
        if not (folder / "stats" / "index.json").is_file():
            name = "compare" if config.compare else "stats"
            raise UserError(f"{name}: '{folder}' holds no statistics (no stats/index.json); name a run folder of analyze.py or train.py")
