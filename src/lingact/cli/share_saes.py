"""What `lingact share` pushes of a run of `lingact saes`: its sets in sae-lens's format, with a card."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from lingact.cli.share_paths import shareable
from lingact.config.continued import SETS
from lingact.config.jobs import SaesConfig
from lingact.errors import UserError
from lingact.files.atomic import write_atomically, write_json
from lingact.files.records import read_json_object

WEIGHTS, SETTINGS = "sae_weights.safetensors", "cfg.json"
"""Files of an SAE."""
_PRIVATE = {"tracking"}


def chosen_sets(run: Path, wanted: list[str]) -> list[str]:
    """The sets to push: those that are named, or all.

    Raises:
        UserError: the run does not have one.
    """
    there = sorted(path.name for path in (run / SETS).iterdir() if path.is_dir()) if (run / SETS).is_dir() else []
    if not there:
        raise UserError(f"'{run}' has no SAEs, or they were removed; name the folder of a finished run of lingact saes")
    if unknown := [name for name in wanted if name not in there]:
        raise UserError(f"--set: '{run}' has no set {', '.join(unknown)}; it has {', '.join(there)}")
    return wanted or there


def write_sets(run: Path, folder: Path, sets: list[str], config: SaesConfig, manifest: Mapping[str, Any], base: str, licence: str) -> None:
    """Write everything to be pushed into a folder.

    Args:
        manifest: of the run, its public parts.
        base: the base model on the hub.
        licence: of the base model, by its name on the hub.
    """
    from lingact.files.run_tables import read_tables
    from lingact.report.saes import shared_card  # imports pandas

    for name in sets:
        for place in sorted((run / SETS / name).glob("layer_*")):
            (folder / name / place.name).mkdir(parents=True)
            shutil.copyfile(place / WEIGHTS, folder / name / place.name / WEIGHTS)
            settings = read_json_object(place / SETTINGS, "train the SAEs again")
            about = settings.get("metadata", {}) | {"model_name": base}
            write_json(folder / name / place.name / SETTINGS, settings | {"metadata": about})
    plain = config.model_dump(mode="json", exclude=_PRIVATE)
    known = manifest["identity"]
    plain = shareable(plain | {"model": plain["model"] | {"name": base}}, known)
    write_json(folder / "manifest.json", shareable(manifest, {}))
    write_atomically(folder / "config.yaml", yaml.safe_dump(plain, sort_keys=False, allow_unicode=True))
    write_atomically(folder / "README.md", shared_card(config, read_tables(run), sets, base, licence))
