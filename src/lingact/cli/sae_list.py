"""`--list-saes`: print the SAEs that sae-lens has for a model."""

from importlib.metadata import version

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lingact.cli.compose import first_line, try_compose
from lingact.errors import UserError
from lingact.models.sae_sources import sae_rows
from lingact.runtime.terminal import note, show


def list_saes(job: str, overrides: list[str]) -> None:
    """Print the SAEs in sae-lens's releases for the model that the command chooses.

    Raises:
        UserError: the command chooses no model, or there are no SAEs for it.
    """
    composed, refused = try_compose(job, overrides)
    if refused:
        raise UserError("\n".join(refused.values()))
    try:
        name = OmegaConf.select(composed, "model.name")
    except OmegaConfBaseException as error:
        raise UserError(f"model.name: {first_line(error)}") from None
    if not isinstance(name, str):
        raise UserError("model.name: names no model; choose an option of conf/model/, or write model.name=NAME")
    rows, elsewhere = sae_rows(name)
    others = f" SAEs at places other than the outputs of blocks, which cannot be measured: {elsewhere}." if elsewhere else ""
    if not rows:
        raise UserError(f"sae-lens {version('sae-lens')} has no suitable SAEs for '{name}'.{others} For your own write sae.measuring.release=FOLDER")
    for release in dict.fromkeys(row["release"] for row in rows):
        show([{key: value for key, value in row.items() if key != "release"} for row in rows if row["release"] == release], title=release)
    several = " * stands for a number that differs between layers or can be chosen; then name an id for each layer: "
    several += '"sae.measuring.id={0: ..., 1: ...}".'
    print()
    note(
        f"releases that sae-lens {version('sae-lens')} has for {name}. To measure with one: sae.measuring.release=RELEASE "
        f"\"sae.measuring.id='ID'\", or an option of conf/sae/.{several if any('*' in row['id'] for row in rows) else ''}{others}"
    )
