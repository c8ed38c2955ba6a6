"""Where adapters come from: run folders, sweeps, PEFT folders, the hub, Weights & Biases; and what is known of how they were trained."""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from lingact.catalogue.languages import nearest
from lingact.config.base import asset
from lingact.errors import UserError
from lingact.files.earlier import present_keys
from lingact.hub.huggingface import HubItem, from_the_hub
from lingact.hub.wandb_artifacts import fetch_artifact

WEIGHTS, SETTINGS, IDENTITY = "adapter_model.safetensors", "adapter_config.json", "lingact.json"
"""Files of an adapter; the last says which model it belongs to, and how it was trained."""
ASSET = re.compile(r"\$\{asset:([^{}]+)\}")
"""How a file that the package carries is named in what is shared: its place differs from machine to machine."""
PRIVATE = {"tracking", "cache"}
"""Sections of a configuration that do not travel with an adapter."""
_IN_WANDB = re.compile(r"(?:[\w-][\w. -]*/){1,2}[\w.-]+:[\w.-]+")
_ON_THE_HUB = re.compile(r"([\w-][\w.-]*/[\w.-]+)(?:@([\w./-]+))?")


def expand_adapters(given: Sequence[str]) -> list[str]:
    """The adapters that a user means, one by one: a sweep folder of train.py stands for those of all its complete jobs, in their order.

    Raises:
        UserError: a sweep without a complete training job, or an adapter that is given twice.
    """
    found = [adapter for one in given for adapter in (_of_sweep(one) if (Path(one).expanduser() / ".jobs").is_dir() else [one])]
    seen: dict[str, str] = {}
    for adapter in found:
        folder = Path(adapter).expanduser()
        place = str(_run_folder(folder).resolve()) if folder.is_dir() else adapter
        if place in seen:
            also = "" if seen[place] == adapter else f" (as '{seen[place]}', too)"
            raise UserError(f"adapter: '{adapter}' is given twice{also}; give every adapter once, and a sweep without its single runs")
        seen[place] = adapter
    return found


def _of_sweep(sweep: str) -> list[str]:
    folder = Path(sweep).expanduser()
    complete, ended = [], []
    for path in (path for path in (folder / ".jobs").glob("*.json") if path.stem.isdecimal()):  # others are not the sweep's
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            number, status, where = record["job"], record["status"], Path(record["folder"])
        except (ValueError, KeyError, TypeError):
            raise UserError(f"adapter: '{path}' is no record of a job; it is cut off or of something else. Name the runs one by one") from None
        ended.append(status)
        if status == "complete":
            # By name: a sweep that was moved still has its jobs.
            complete.append((number, folder / where.name if (folder / where.name).is_dir() else where))
    runs = [run for _, run in sorted(complete)]
    without = [run for run in runs if not (run / "adapter" / SETTINGS).is_file()]
    if len(without) == len(runs):
        what = ", ".join(f"{ended.count(status)} {status}" for status in sorted(set(ended))) or "none has finished"
        raise UserError(f"adapter: the sweep '{sweep}' has no complete job of train.py (jobs: {what}); name a sweep of train.py, or resume its jobs")
    if without:
        raise UserError(f"adapter: '{without[0]}' of the sweep '{sweep}' is complete but has no adapter (any more); name the other runs one by one")
    return [str(run) for run in runs]


def _run_folder(folder: Path) -> Path:
    """The run folder of an adapter, if it has one: users name it or the `adapter/` in it."""
    return folder.parent if folder.name == "adapter" else folder


def training_of(place: Path) -> dict[str, Any] | None:
    """The configuration that train.py trained an adapter with: its run's, or what it carries; None for adapters that do not tell.

    Args:
        place: the adapter's folder, as `find_adapter` gives it.

    Raises:
        UserError: what tells it is damaged.
    """
    place = place.resolve()
    run = place.parent / "config.yaml"
    if place.name == "adapter" and run.is_file():
        return present_keys(_told(run, yaml.safe_load, "copy the adapter out of the run's folder"))
    if not (place / IDENTITY).is_file():
        return None
    training = _told(place / IDENTITY, json.loads, "delete it and do without what it tells").get("training")
    return _with_assets(present_keys(training)) if isinstance(training, dict) else None


def _told(path: Path, read: Callable[[str], Any], otherwise: str) -> dict[str, Any]:
    try:
        told = read(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        told = None
    if not isinstance(told, dict):
        raise UserError(f"adapter: '{path}' cannot be read: it is cut off or of something else; put it back, or {otherwise}")
    return told


def _with_assets(node: Any) -> Any:
    """With this machine's paths of what the package carries. Nothing else is looked up: the words may be a stranger's."""
    if isinstance(node, dict):
        return {key: _with_assets(value) for key, value in node.items()}
    found = ASSET.fullmatch(node) if isinstance(node, str) else None
    return asset(found[1]) if found else node


def find_adapter(adapter: str) -> Path:
    """The PEFT folder that a user means; what lies elsewhere is downloaded, safetensors only.

    An alias such as `latest` may mean another version at the next call, so what comes back is what to go on with.

    Args:
        adapter: a run folder of train.py (its `adapter/`), a PEFT folder, a hub id (`user/name`, or `user/name@revision`), or a W&B artifact
            (`entity/project/name:version` or `project/name:version`; a version such as v3, or an alias).

    Raises:
        UserError: there is none, or the hub or W&B does not give it.
    """
    folder = Path(adapter).expanduser()
    if folder.is_dir():
        inner = folder / "adapter"
        chosen = inner if (inner / SETTINGS).is_file() else folder
        if (chosen / SETTINGS).is_file():
            return chosen
        if (folder / "manifest.json").is_file():
            raise UserError(f"adapter: the run '{adapter}' has no adapter; name the folder of a finished train.py run")
        raise UserError(
            f"adapter: '{adapter}' is not an adapter: it has no {SETTINGS}; name a run folder of train.py, a PEFT folder, a hub id or a W&B artifact"
        )
    if folder.exists():
        raise UserError(f"adapter: '{adapter}' is a file; name the folder that it lies in")
    if _IN_WANDB.fullmatch(adapter):
        return fetch_artifact(adapter, needed=(SETTINGS, WEIGHTS), wanted=(SETTINGS, WEIGHTS, IDENTITY))
    on_the_hub = _ON_THE_HUB.fullmatch(adapter)
    if not on_the_hub:
        siblings = [entry.name for entry in folder.parent.iterdir()] if folder.parent.is_dir() else []
        raise UserError(f"adapter: there is no folder '{adapter}'{nearest(folder.name, siblings)}")
    return _from_the_hub(adapter, on_the_hub[1], on_the_hub[2])


def lies_elsewhere(adapter: str) -> bool:
    """Whether it may be on the hub or at W&B, and is no path here."""
    return not Path(adapter).expanduser().exists() and bool(_IN_WANDB.fullmatch(adapter) or _ON_THE_HUB.fullmatch(adapter))


def _from_the_hub(adapter: str, name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    item = HubItem(f"adapter: '{adapter}'", name, "model", "or name a folder (there is none of that name here)")
    with from_the_hub(item):
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=[SETTINGS, WEIGHTS, IDENTITY]))
    if not (folder / SETTINGS).is_file():
        raise UserError(f"adapter: '{adapter}' on the hub is not an adapter: it has no {SETTINGS}")
    return folder
