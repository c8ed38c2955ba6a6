"""`sae=FOLDER`: SAEs of one's own, as `lingact saes` leaves them, in place of an option of the group `sae`."""

from pathlib import Path

from hydra.core.override_parser.types import ChoiceSweep, Override

from lingact.cli.compose import options_of, parse_overrides, quoted
from lingact.config.continued import SETS
from lingact.config.model import layers_in
from lingact.errors import UserError
from lingact.files.folders import listed

_HELDOUT = "sae.heldout={release:???,id:'layer_{layer}',width:null}"
"""What keys of `sae.heldout` change. The option `own` has none."""
_OF_EACH_JOB = "sae.layers='${layers_in:${sae.measuring.release}}'"


def with_sae_folders(job: str, overrides: list[str]) -> list[str]:
    """The overrides, with `sae=FOLDER` written as `sae=own sae.measuring.release=FOLDER` and the layers that the folder has.

    In a sweep, `sae=A,B`, each job has the layers of its folder. Layers that the command names stay, and so does what it says of `sae.heldout`.

    Raises:
        UserError: there is no such folder, or it is not a set of SAEs.
    """
    if job == "saes":
        return overrides
    known, found = set(options_of("sae")), []
    keys = [text.partition("=")[0].lstrip("+") for text in overrides]
    for text in overrides:
        parsed, _ = parse_overrides([text])
        named = _values(parsed[0]) if parsed and parsed[0].key_or_group == "sae" and not parsed[0].is_delete() else []
        folders = [Path(value) for value in named if value and value not in known and ("/" in value or Path(value).is_dir())]
        if not folders:
            found.append(text)
            continue
        if len(folders) < len(named):
            raise UserError(f"{text}: folders and options of the group sae do not go together in a sweep; give one job for each")
        layers = {_layers(folder) for folder in folders}
        found += ["sae=own", f"sae.measuring.release={','.join(map(quoted, folders))}"]
        if any(key.startswith("sae.heldout.") for key in keys):
            found.insert(0, _HELDOUT)  # before what changes them
        if "sae.layers" not in keys:
            found.append(f"sae.layers=[{','.join(map(str, *layers))}]" if len(layers) == 1 else _OF_EACH_JOB)
    return found


def _values(override: Override) -> list[str]:
    """The value, or those of a sweep, without quotes."""
    value = override.value()
    return [str(getattr(each, "text", each)) for each in (value.list if isinstance(value, ChoiceSweep) else [value])]


def _layers(folder: Path) -> tuple[int, ...]:
    """The layers of a set.

    Raises:
        UserError: the folder is not one.
    """
    if not folder.is_dir():
        raise UserError(f"sae: there is no folder '{folder}'; name a set of lingact saes (RUN/{SETS}/SET), or an option of conf/sae/")
    if layers := layers_in(str(folder)):
        return tuple(layers)
    sets = sorted(path.name for path in (folder / SETS).iterdir() if path.is_dir()) if (folder / SETS).is_dir() else []
    other = f"name one of its sets: {', '.join(str(folder / SETS / name) for name in sets)}" if sets else "name a folder that has"
    raise UserError(f"sae: '{folder}' has no layer_<n> (there: {listed([path.name for path in folder.iterdir()])}); {other}")
