"""The licences of models, as far as they are known, and the notices that they require. Both are in `assets/licences.yaml`."""

import functools
import re
from importlib.resources import files

import yaml
from pydantic import BaseModel, ConfigDict


class Licences(BaseModel):
    """Expressions are tried in the order of the file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    models: dict[str, str]
    """Regular expression for the beginning of a hub id -> the hub's name of the licence."""
    notices: dict[str, str]
    """Regular expression for a licence -> its notice, with placeholders for the expression's groups."""


@functools.cache
def _licences() -> Licences:
    text = (files("lingact") / "assets" / "licences.yaml").read_text(encoding="utf-8")
    return Licences.model_validate(yaml.safe_load(text))


def licence_of(model: str) -> str | None:
    """The hub's name of a model's licence; None if it is not in the table.

    Args:
        model: hub id.
    """
    return next((licence for beginning, licence in _licences().models.items() if re.match(beginning, model)), None)


def notice_of(licence: str) -> str | None:
    """The notice that a licence requires for works derived from its model; None if it requires none."""
    found = ((re.fullmatch(expression, licence), notice) for expression, notice in _licences().notices.items())
    return next((notice.format(*match.groups()) for match, notice in found if match), None)
