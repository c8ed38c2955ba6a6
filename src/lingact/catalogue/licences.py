"""The licences of models, as far as they are known here, and what they ask to be said; both are written in `assets/licences.yaml`."""

import functools
import re
from importlib.resources import files

import yaml
from pydantic import BaseModel, ConfigDict


class Licences(BaseModel):
    """Expressions are tried in the order of the file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    models: dict[str, str]
    """Regular expression of the beginning of a hub id -> what the hub calls the licence."""
    notices: dict[str, str]
    """Regular expression of a licence -> its notice, with places for the expression's groups."""


@functools.cache
def _licences() -> Licences:
    text = (files("lingact") / "assets" / "licences.yaml").read_text(encoding="utf-8")
    return Licences.model_validate(yaml.safe_load(text))


def licence_of(model: str) -> str | None:
    """The hub's name of a model's licence; None where it is not known here.

    Args:
        model: hub id.
    """
    return next((licence for beginning, licence in _licences().models.items() if re.match(beginning, model)), None)


def notice_of(licence: str) -> str | None:
    """What a licence wants to be said beside what is made from its model; None: no words of its own."""
    found = ((re.fullmatch(expression, licence), notice) for expression, notice in _licences().notices.items())
    return next((notice.format(*match.groups()) for match, notice in found if match), None)
