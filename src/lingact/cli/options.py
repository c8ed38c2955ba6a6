"""The folders from which the options of jobs (`model=...`, `loss=...`) are read."""

from importlib.resources import files
from pathlib import Path

from lingact.errors import UserError


def package_options() -> Path:
    """The package's options: `lingact/conf` if it was installed, `conf/` at the top of a checkout."""
    package = Path(str(files("lingact")))
    installed = package / "conf"
    return installed if installed.is_dir() else package.parents[1] / "conf"


def own_options(given: Path | str | None, beside: Path | None) -> Path | None:
    """The user's options, which take precedence over the package's; None: there are none.

    Args:
        given: a folder that the user names.
        beside: the folder to use if none is named and this one exists.

    Raises:
        UserError: the named folder does not exist.
    """
    if given is not None:
        if not Path(given).is_dir():
            raise UserError(f"--config-dir: '{given}' is not a folder; name one with options as in conf/, such as FOLDER/model/mine.yaml")
        return Path(given)
    if beside is None or not beside.is_dir() or beside.resolve() == package_options().resolve():
        return None
    return beside
