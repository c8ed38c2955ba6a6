"""SAEs that are trained further: their sets and their shape come from the run that made them."""

from pathlib import Path

from lingact.config.jobs import SaesConfig
from lingact.config.validation import validate
from lingact.errors import UserError
from lingact.files.records import read_run_config

OF_INIT = ("layers", "architecture", "width", "k", "sparsity", "context")
"""Keys of `saes` that come from the run."""
SETS = "sae"
"""Folder of the sets in a run's."""


def with_init(config: SaesConfig) -> SaesConfig:
    """The configuration with the sets of `init`, and with the shape of its SAEs. Without `init` it stays as it is.

    Raises:
        UserError: `init` is neither a run of `lingact saes` nor a set in one, or is not complete.
    """
    if config.init is None:
        return config
    run, names = _run_of(config.init)
    saved = validate(SaesConfig, read_run_config(run / "config.yaml", "name another run, or train the SAEs again", needed=("saes", "sets")))
    if saved.model.name != config.model.name:
        raise UserError(f"init: the SAEs in '{config.init}' are of '{saved.model.name}', and the model is '{config.model.name}'; choose one of them")
    sets = {name: mix for name, mix in saved.seeded_sets.items() if names is None or name in names}
    shape = {key: getattr(saved.saes, key) for key in OF_INIT}
    return config.model_copy(update={"sets": sets, "saes": config.saes.model_copy(update=shape)})


def trained_names(name: str, *, refit: bool) -> dict[str, bool]:
    """The names under which a set is trained, and whether that is on the adapted model."""
    return {f"{name}_base": False, f"{name}_adapted": True} if refit else {name: False}


def trained_sets(config: SaesConfig) -> dict[str, tuple[str, bool]]:
    """The sets that a run leaves -> the set of the configuration that each is of, and whether it is trained on the adapted model."""
    refit = config.adapter is not None
    return {trained: (name, adapted) for name in config.seeded_sets for trained, adapted in trained_names(name, refit=refit).items()}


def folder_of_set(config: SaesConfig, name: str) -> Path:
    """The folder with the SAEs of a set of `init`."""
    assert config.init is not None
    return _run_of(config.init)[0] / SETS / name


def _run_of(folder: Path) -> tuple[Path, set[str] | None]:
    """The run, and which of its sets are meant; None: all."""
    if (folder / SETS).is_dir() and (folder / "config.yaml").is_file():
        return folder, None
    if folder.parent.name == SETS and (folder.parent.parent / "config.yaml").is_file() and folder.is_dir():
        return folder.parent.parent, {folder.name}
    raise UserError(f"init: '{folder}' is neither a run folder of lingact saes nor a set in one (RUN/{SETS}/SET); name such a folder")
