"""Where SAEs come from: SAELens's releases, repositories on the hub, and folders in the formats of the releases; and which SAEs a model has."""

import functools
import json
import re
import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict
from zipfile import BadZipFile

import yaml

from lingact.catalogue.languages import nearest
from lingact.errors import UserError
from lingact.hub.huggingface import HubItem, from_the_hub
from lingact.runtime.compat.sae_lens import loaders_read, shapes_from_cache, sparsify_autoencoder
from lingact.runtime.program import command

if TYPE_CHECKING:
    from lingact.models.sae import Sae

_LAYER = re.compile(r"(?<=layer_)\d+|(?<=layer)\d+|(?<=blocks\.)\d+|(?<=^l)\d+(?=[ram]_)")
"""The layer number in the ids of releases."""
_VARIANT = re.compile(r"(?<=average_l0_)\d+|(?<=trainer_)\d+(?:_step_\d+)?")
"""What distinguishes SAEs of one place and width in the ids of large releases."""
_OTHER_NAMES = {"gpt2": "gpt2-small", "mistral-7b-v0.1": "mistral-7b", "meta-llama-3.1-8b": "llama-3.1-8b"}
"""Models that have other names in SAELens than on the hub."""


# --- releases of SAELens ------------------------------------------------------------------------------------------------------------


class ReleasedSae(TypedDict):
    """One SAE of a release, as SAELens's table describes it."""

    id: str
    path: str
    l0: NotRequired[float | None]


class Release(TypedDict):
    """A release, as SAELens's table describes it; the fields that are read here."""

    repo_id: str
    model: str
    conversion_func: str
    saes: list[ReleasedSae]


@functools.cache
def releases() -> dict[str, Release]:
    """SAELens's table of releases by name, read without importing SAELens (which takes ten seconds)."""
    spec = find_spec("sae_lens")
    assert spec is not None
    assert spec.origin is not None
    text = (Path(spec.origin).parent / "pretrained_saes.yaml").read_text(encoding="utf-8")
    return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def same_model(one: str, other: str) -> bool:
    """Whether two names mean the same model, in whichever repository and under whichever name of SAELens."""
    return _plain(one) == _plain(other)


def _plain(name: str) -> str:
    short = name.rsplit("/", 1)[-1].lower()
    return _OTHER_NAMES.get(short, short)


def sae_rows(model: str) -> tuple[list[dict[str, str]], int]:
    """The SAEs that SAELens's releases have for a model.

    Args:
        model: hub id.

    Returns:
        A row for each release and id pattern of SAEs on the output of a block, those with most layers first: `release`, `id` (`*` is a number that
        differs between layers, or can be chosen), `layers`, and `L0` if the release names it. And the number of SAEs on other places (attention,
        MLP, transcoders), which lingact does not measure.
    """
    found: list[tuple[int, dict[str, str]]] = []
    elsewhere = 0
    for release, about in sorted(releases().items()):
        if not same_model(about["model"], model):
            continue
        patterns: dict[str, list[tuple[int, float | None]]] = defaultdict(list)
        for each in about["saes"]:
            if (layer := _LAYER.search(each["id"])) and _on_residuals(release, about, each):
                pattern = each["id"][: layer.start()] + "{layer}" + each["id"][layer.end() :]
                patterns[_VARIANT.sub("*", pattern)].append((int(layer[0]), each.get("l0")))
            else:
                elsewhere += 1
        for pattern, saes in sorted(patterns.items()):
            layers, l0s = sorted({layer for layer, _ in saes}), [l0 for _, l0 in saes if l0]
            l0 = f"{min(l0s):g}" + (f" to {max(l0s):g}" if max(l0s) > min(l0s) else "") if l0s else ""
            found.append((len(layers), {"release": release, "id": pattern, "layers": ranges(layers), "L0": l0}))
    return [row for _, row in sorted(found, key=lambda one: -one[0])], elsewhere


def _on_residuals(release: str, about: Release, sae: ReleasedSae) -> bool:
    """Whether an SAE reads the output of a block, according to the table."""
    place = f"{sae['id']} {sae['path']}"
    match about["conversion_func"]:
        case "gemma_2":
            return "-res" in about["repo_id"] and "embedding" not in place
        case "llama_scope" | "llama_scope_r1_distill":
            return re.match(r"l\d+r_", sae["id"]) is not None
        case "qwen_scope" | "goodfire":
            return True
        case "temporal":
            return False  # reads whole sequences, not one vector
    return "resid_post" in place or ("-res-" in release and "resid_pre" not in place and "resid_mid" not in place)


def ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers as ranges, such as `0-3, 7`."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)


def _how_to_list() -> str:
    return f"{command('analyze')} --list-saes model=... shows the releases for a model"


def check_release(release: str, ids: dict[int, str]) -> None:
    """Refuse releases and ids that are not in SAELens's table, before anything is downloaded.

    Args:
        ids: layer -> SAE id.

    Raises:
        UserError: there is no such release, or it lacks an id; with the nearest names, or the layers that it has.
    """
    if sae_folder(release):
        return
    about = releases().get(release)
    if about is None:
        if "/" in release:
            return
        raise UserError(
            f"sae: '{release}' is neither a folder nor a release of sae-lens{nearest(release, releases()) or '.'} Releases have names such as "
            f"gemma-scope-2b-pt-res-canonical; {_how_to_list()}"
        )
    known = {each["id"] for each in about["saes"]}
    lacking = {layer: sae_id for layer, sae_id in ids.items() if sae_id not in known}
    if not lacking:
        return
    having = sorted(layer for layer, sae_id in ids.items() if sae_id in known)
    first = next(iter(lacking.values()))
    if having:
        advice = f"it has this id for the layers {ranges(having)}. Write sae.layers={str(having).replace(' ', '')}, or choose other SAEs"
    else:
        advice = f"no layer has it{nearest(first, known) or '.'} {_how_to_list()}"
    raise UserError(f"sae: the release '{release}' has no '{first}' (layer {ranges(sorted(lacking))}): {advice}")


# --- loading -------------------------------------------------------------------------------------------------------------------------------------


def load_sae(release: str, sae_id: str, device: str) -> "Sae":
    """Load one SAE in float32 with SAELens's loaders.

    Args:
        release: a release of SAELens, a folder, or a repository on the hub. Folders and repositories have SAELens's format or that of a release.
        sae_id: id in the release, or path in the folder or repository.

    Raises:
        UserError: it does not exist, cannot be downloaded, or is damaged.
    """
    with warnings.catch_warnings():
        # `sae.load_dictionaries` checks what the first two warn of. The third says that the release has a shorter name.
        for about in ("[\\s\\S]*non-empty model_from_pretrained_kwargs", "norm_scaling_factor not found", "You are loading an SAE using the Hugg"):
            warnings.filterwarnings("ignore", message=about, category=UserWarning)
        folder = sae_folder(release)
        return _from_folder(folder, sae_id, device, folder.name) if folder is not None else _from_release(release, sae_id, device)


def _from_release(release: str, sae_id: str, device: str) -> "Sae":
    from huggingface_hub import snapshot_download
    from sae_lens import SAE

    repository = releases().get(release, {"repo_id": release})["repo_id"]
    item = HubItem(f"sae '{release}' '{sae_id}' ({repository})", repository, "model", "or choose other SAEs")
    with from_the_hub(item), shapes_from_cache():
        if release in releases():
            return SAE.from_pretrained(release, sae_id, device=device, dtype="float32")
        folder = Path(snapshot_download(release, allow_patterns=[sae_id, f"{sae_id}/*"]))
        return _from_folder(folder, sae_id, device, release)


# --- folders -------------------------------------------------------------------------------------------------------------------------------------


def sae_folder(release: str) -> Path | None:
    """The folder, if the release is one."""
    path = Path(release).expanduser()
    return path if path.is_absolute() or path.is_dir() else None


def _from_folder(folder: Path, sae_id: str, device: str, name: str) -> "Sae":
    """An SAE from local files, in SAELens's format or in that of a release. Some loaders take the width from the repository's name."""
    from safetensors import SafetensorError

    path, read = folder / sae_id, refuse_no_sae(folder, sae_id)
    try:
        return read(folder, sae_id, device, name)
    except (json.JSONDecodeError, BadZipFile, OSError, RuntimeError, KeyError, TypeError, ValueError, ArithmeticError, SafetensorError) as error:
        raise UserError(f"the SAE in '{path}' cannot be read: {(str(error).splitlines() or [type(error).__name__])[0]}") from error


def refuse_no_sae(folder: Path, sae_id: str) -> Callable[[Path, str, str, str], "Sae"]:
    """The function that reads the SAE of this id.

    Raises:
        UserError: the folder has no such SAE; with what it has.
    """
    path = folder / sae_id
    read = next((reader for name, reader in _READERS.items() if (path / name).is_file()), None)
    if path.name.endswith(".sae.pt") and path.is_file():
        read = functools.partial(_as_released, "qwen_scope")
    if read is None:
        siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        hint = nearest(path.name, siblings) or "."
        raise UserError(f"no SAE in '{path}' (no {', '.join(_READERS)}){hint} There: {', '.join(sorted(siblings)[:8]) or 'nothing'}")
    return read


def source_of(release: str, sae_id: str) -> str:
    """Where an SAE's weights were read from, for messages: the file, or release and repository."""
    folder = sae_folder(release)
    if folder is None:
        repository = releases().get(release, {"repo_id": release})["repo_id"]
        return f"'{sae_id}' of the release '{release}' ({repository})" if repository != release else f"'{sae_id}' of '{release}'"
    path = folder / sae_id
    return f"'{next((path / name for name in _WEIGHTS if (path / name).is_file()), path)}'"


def _own(folder: Path, sae_id: str, device: str, _name: str) -> "Sae":
    from sae_lens import SAE

    return SAE.load_from_disk(folder / sae_id, device=device, dtype="float32")


def _sparsify(folder: Path, sae_id: str, device: str, _name: str) -> "Sae":
    from sae_lens import SAE

    about = json.loads((folder / sae_id / "cfg.json").read_text(encoding="utf-8"))
    if about.get("transcode") or about.get("activation", "topk") != "topk":
        raise ValueError("lingact reads only top-k autoencoders of sparsify")
    return SAE.load_from_disk(folder / sae_id, device=device, dtype="float32", converter=sparsify_autoencoder)


def _as_released(kind: str, folder: Path, sae_id: str, device: str, name: str) -> "Sae":
    """Read with SAELens's loader for a repository, from a folder instead."""
    from sae_lens import SAE
    from sae_lens.loading import pretrained_sae_loaders as loaders

    def convert(path: str | Path, device: str, cfg_overrides: dict[str, Any] | None) -> tuple[dict[str, Any], dict[str, Any]]:  # noqa: ARG001 (the loader takes folder and id)
        loader = loaders.NAMED_PRETRAINED_SAE_LOADERS[kind]
        with loaders_read(folder):
            settings, weights, _ = loader(name, sae_id, device, force_download=False, cfg_overrides=cfg_overrides)
        return settings, weights

    sae = SAE.load_from_disk(folder / sae_id, device=device, dtype="float32", converter=convert)
    if sae.cfg.normalize_activations == "expected_average_only_in" and kind == "llama_scope":
        # As from_pretrained does it with the factor in SAELens's table, which comes from the same file.
        scale = json.loads((folder / sae_id / "hyperparams.json").read_text(encoding="utf-8"))["dataset_average_activation_norm"]["in"]
        sae.fold_activation_norm_scaling_factor(sae.cfg.d_in**0.5 / scale)
    return sae


_READERS: dict[str, Callable[[Path, str, str, str], "Sae"]] = {
    "sae_weights.safetensors": _own,
    "sae.safetensors": _sparsify,
    "params.npz": functools.partial(_as_released, "gemma_2"),
    "params.safetensors": functools.partial(_as_released, "gemma_3"),
    "hyperparams.json": functools.partial(_as_released, "llama_scope"),
}
"""File that identifies a format -> function that reads it."""
_WEIGHTS = (*(name for name in _READERS if name != "hyperparams.json"), "checkpoints/final.safetensors")
"""Files of weights in these formats."""
