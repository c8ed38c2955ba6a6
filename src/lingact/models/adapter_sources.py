"""Where adapters come from: run folders, sweeps, PEFT folders, the hub, Weights & Biases; and how they were trained, as far as that is known."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lingact.catalogue.languages import nearest
from lingact.config.base import asset
from lingact.errors import UserError
from lingact.files.earlier import present_keys
from lingact.files.records import read_json_object, read_run_config
from lingact.hub.huggingface import HubItem, from_the_hub
from lingact.hub.wandb_artifacts import fetch_artifact
from lingact.runtime.program import program
from lingact.runtime.sweep_records import records

WEIGHTS, SETTINGS, IDENTITY = "adapter_model.safetensors", "adapter_config.json", "lingact.json"
"""Files of an adapter. The last one says which model it belongs to and how it was trained."""
ASSET = re.compile(r"\$\{asset:([^{}]+)\}")
"""How shared files name an asset of the package, whose path differs between machines."""
PRIVATE = {"tracking", "cache"}
"""Sections of a configuration that are not shared with an adapter."""
_IN_WANDB = re.compile(r"(?:[\w-][\w. -]*/){1,2}[\w.-]+:[\w.-]+")
_ON_THE_HUB = re.compile(r"([\w-][\w.-]*/[\w.-]+)(?:@([\w./-]+))?")


def expand_adapters(given: Sequence[str]) -> list[str]:
    """The adapters that a user names, one by one. A sweep folder of train.py stands for the adapters of its complete jobs, in their order.

    Raises:
        UserError: a sweep has no complete training job, or an adapter is given twice.
    """
    found = [adapter for one in given for adapter in (_adapters_of_sweep(one) if (Path(one).expanduser() / ".jobs").is_dir() else [one])]
    seen: dict[str, str] = {}
    for adapter in found:
        folder = Path(adapter).expanduser()
        place = str(_run_folder(folder).resolve()) if folder.is_dir() else adapter
        if place in seen:
            also = "" if seen[place] == adapter else f" (as '{seen[place]}', too)"
            raise UserError(f"adapter: '{adapter}' is given twice{also}; give every adapter once, and a sweep without its single runs")
        seen[place] = adapter
    return found


def _adapters_of_sweep(sweep: str) -> list[str]:
    folder = Path(sweep).expanduser()
    jobs = records(folder)
    runs = [Path(job["folder"]) for job in jobs if job["status"] == "complete"]
    # By name, so that the jobs of a sweep that was moved are found.
    runs = [folder / run.name if (folder / run.name).is_dir() else run for run in runs]
    without = [run for run in runs if not (run / "adapter" / SETTINGS).is_file()]
    if len(without) == len(runs):
        ended = [job["status"] for job in jobs]
        what = ", ".join(f"{ended.count(status)} {status}" for status in sorted(set(ended))) or "none has finished"
        job = program("train")
        raise UserError(f"adapter: the sweep '{sweep}' has no complete job of {job} (jobs: {what}); name a sweep of {job}, or resume its jobs")
    if without:
        raise UserError(f"adapter: '{without[0]}' of the sweep '{sweep}' is complete but no longer has an adapter; name the other runs one by one")
    return [str(run) for run in runs]


def _run_folder(folder: Path) -> Path:
    """The run folder of an adapter if it has one. Users name it, or the `adapter/` in it."""
    return folder.parent if folder.name == "adapter" else folder


def training_of(place: Path) -> dict[str, Any] | None:
    """The configuration that an adapter was trained with, from its run or from its `lingact.json`. None if neither is there.

    Args:
        place: the adapter's folder, as `find_adapter` gives it.

    Raises:
        UserError: the file of the configuration is damaged.
    """
    place = place.resolve()
    run = place.parent / "config.yaml"
    if place.name == "adapter" and run.is_file():
        return read_run_config(run, "put it back, or copy the adapter out of the run's folder")
    if not (place / IDENTITY).is_file():
        return None
    training = read_json_object(place / IDENTITY, "put it back, or delete it to go on without it").get("training")
    return {key: _with_assets(value) for key, value in present_keys(training).items()} if isinstance(training, dict) else None


def _with_assets(node: Any) -> Any:
    """Replace the names of assets by their paths on this machine. Nothing else is resolved, because the file may come from anybody."""
    if isinstance(node, dict):
        return {key: _with_assets(value) for key, value in node.items()}
    found = ASSET.fullmatch(node) if isinstance(node, str) else None
    return asset(found[1]) if found else node


def find_adapter(adapter: str) -> Path:
    """The PEFT folder that a user names. Adapters on the hub or at W&B are downloaded (safetensors only).

    An alias such as `latest` may mean another version at the next call, so use the returned folder from then on.

    Args:
        adapter: a run folder of train.py (its `adapter/`), a PEFT folder, a hub id (`user/name`, or `user/name@revision`), or a W&B artifact
            (`entity/project/name:version` or `project/name:version`; a version such as v3, or an alias).

    Raises:
        UserError: there is none, or it cannot be downloaded.
    """
    folder = Path(adapter).expanduser()
    if folder.is_dir():
        inner = folder / "adapter"
        chosen = inner if (inner / SETTINGS).is_file() else folder
        if (chosen / SETTINGS).is_file():
            return chosen
        if (folder / "manifest.json").is_file():
            raise UserError(f"adapter: the run '{adapter}' has no adapter; name the folder of a finished {program('train')} run")
        raise UserError(
            f"adapter: '{adapter}' is not an adapter: it has no {SETTINGS}; name a run folder of {program('train')}, a PEFT folder, a hub id or a "
            "W&B artifact"
        )
    if folder.exists():
        raise UserError(f"adapter: '{adapter}' is a file; name its folder")
    if _IN_WANDB.fullmatch(adapter):
        return fetch_artifact(adapter, needed=(SETTINGS, WEIGHTS), wanted=(SETTINGS, WEIGHTS, IDENTITY))
    on_the_hub = _ON_THE_HUB.fullmatch(adapter)
    if not on_the_hub:
        siblings = [entry.name for entry in folder.parent.iterdir()] if folder.parent.is_dir() else []
        raise UserError(f"adapter: there is no folder '{adapter}'{nearest(folder.name, siblings)}")
    return _from_the_hub(adapter, on_the_hub[1], on_the_hub[2])


def lies_elsewhere(adapter: str) -> bool:
    """Whether an adapter is not a local path and may be on the hub or at W&B."""
    return not Path(adapter).expanduser().exists() and bool(_IN_WANDB.fullmatch(adapter) or _ON_THE_HUB.fullmatch(adapter))


def _from_the_hub(adapter: str, name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    item = HubItem(f"adapter: '{adapter}'", name, "model", "or name a folder (there is none of that name here)")
    with from_the_hub(item):
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=[SETTINGS, WEIGHTS, IDENTITY]))
    if not (folder / SETTINGS).is_file():
        raise UserError(f"adapter: '{adapter}' on the hub is not an adapter: it has no {SETTINGS}")
    return folder
