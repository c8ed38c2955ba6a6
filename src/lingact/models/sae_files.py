"""What SAEs' names and settings say before they are loaded: whether they are there, fit the model, and how wide they are."""

import re
from pathlib import Path
from typing import TypedDict, cast

from lingact.config.model import SaeSet, sae_set_in
from lingact.errors import UserError
from lingact.files.records import read_json_object
from lingact.models.sae_sources import check_release, refuse_no_sae, sae_folder


class SaeSettings(TypedDict, total=False):
    """The entries of an SAE's cfg.json that are used before it is loaded."""

    architecture: str
    d_in: int
    d_sae: int


def read_settings(spec: SaeSet, sae_id: str) -> SaeSettings:
    """The settings of an SAE in a folder, those of the right type; empty where it has no cfg.json.

    Raises:
        UserError: the file is damaged.
    """
    path = Path(spec.release).expanduser() / sae_id / "cfg.json"
    entries = read_json_object(path, "put it back, or choose other SAEs") if path.is_file() else {}
    kinds = {"architecture": str, "d_in": int, "d_sae": int}
    return cast("SaeSettings", {name: entries[name] for name, kind in kinds.items() if isinstance(entries.get(name), kind)})


def check_saes(spec: SaeSet, layers: tuple[int, ...], d_model: int | None) -> None:
    """Refuse ids and folders that do not exist, and SAEs of another width than the model's, as far as their settings are on this machine.

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
        d_in = read_settings(spec, sae_id).get("d_in")
        if d_model is not None and d_in is not None and d_in != d_model:
            raise UserError(wrong_width(f"{spec.release} {sae_id}", d_in, d_model))


def check_set_in(folder: Path, layers: tuple[int, ...] | None, d_model: int | None, key: str) -> None:
    """Refuse a folder that does not exist, or that has not an SAE of the model's width for each of these layers.

    Args:
        layers: None: not known.
        d_model: None: not known.
        key: that messages name.

    Raises:
        UserError: with the first layer that is wrong.
    """
    if not folder.is_dir():
        raise UserError(f"{key}: there is no folder '{folder}'; name one with SAEs in layer_<n>, such as RUN/sae/SET of lingact saes")
    try:
        check_saes(sae_set_in(folder), layers or (), d_model)
    except UserError as error:
        raise UserError(f"{key}: {error}") from None


def wrong_width(name: str, d_in: int, d_model: int) -> str:
    """The message on an SAE of another model."""
    return f"SAE {name} reads vectors of {d_in}, the model's residual stream has {d_model}; choose SAEs made for this model"


def check_thresholds(spec: SaeSet, layers: tuple[int, ...]) -> None:
    """Refuse SAEs without thresholds, as far as their settings are on this machine.

    Raises:
        UserError: with the first of these layers.
    """
    for layer in layers:
        kind = read_settings(spec, spec.id_of(layer)).get("architecture")
        if kind is not None and kind != "jumprelu":
            raise UserError(no_threshold(layer, kind))


def no_threshold(layer: int, kind: str) -> str:
    """The message on a surrogate gradient for SAEs that have no threshold."""
    return f"loss.gap.gradient=straight_through needs JumpReLU SAEs; layer {layer} has '{kind}'. Use loss.gap.gradient=jumprelu"


_WIDTH_IN_NAME = re.compile(r"(?:width_|-w|-v5-)(\d+)(k|m)(?![a-z0-9])")
_TIMES_IN_NAME = re.compile(r"_(\d+)x\b")
_THOUSANDS = {65: 2**16, 131: 2**17, 262: 2**18, 524: 2**19}
"""Widths that names give in thousands; the others are in units of 1024."""


def width_of(spec: SaeSet, d_model: int) -> tuple[int | None, str]:
    """Latents of an SAE of the set, and how they are known: from a local folder's cfg.json, the names of release and id, or the preset.

    Raises:
        UserError: the cfg.json is damaged.
    """
    layer = 0 if isinstance(spec.id, str) else next(iter(spec.id))
    sae_id = spec.id_of(layer)
    if (width := read_settings(spec, sae_id).get("d_sae")) is not None:
        return width, "its cfg.json"
    name = f"{spec.release} {sae_id}"
    if found := _WIDTH_IN_NAME.search(name):
        number = int(found[1])
        return number * 2**20 if found[2] == "m" else _THOUSANDS.get(number, number * 1024), "its name"
    if found := _TIMES_IN_NAME.search(name):
        return int(found[1]) * d_model, "its name"
    return spec.width, "conf/sae/" if spec.width else "not known"
