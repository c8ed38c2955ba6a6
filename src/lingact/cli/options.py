"""Where the options of jobs (`model=...`, `loss=...`) are read from."""

from importlib.resources import files
from pathlib import Path

from lingact.errors import UserError


def package_options() -> Path:
    """The package's own: `lingact/conf` where it was installed, `conf/` at the top of a checkout."""
    package = Path(str(files("lingact")))
    installed = package / "conf"
    return installed if installed.is_dir() else package.parents[1] / "conf"


def own_options(given: Path | str | None, beside: Path | None) -> Path | None:
    """The user's, which are found before the package's; None: there are none.

    Args:
        given: a folder that the user names.
        beside: used where none is named, if it exists.

    Raises:
        UserError: the folder that is named does not exist.
    """
    if given is not None:
        if not Path(given).is_dir():
            raise UserError(f"--config-dir: '{given}' is not a folder; name one with options as in conf/, such as FOLDER/model/mine.yaml")
        return Path(given)
    if beside is None or not beside.is_dir() or beside.resolve() == package_options().resolve():
        return None
    return beside
