"""What every part of the configuration is made of."""

from importlib.resources import files
from typing import Annotated

from omegaconf import OmegaConf
from pydantic import BaseModel, BeforeValidator, ConfigDict

from lingact.catalogue.languages import language
from lingact.errors import UserError


def asset(path: str) -> str:
    """Absolute path of a file that the package carries; in YAML `${asset:microworld/model}`."""
    return str(files("lingact") / "assets" / path)


OmegaConf.register_new_resolver("asset", asset, replace=True)


def _known_code(code: object) -> object:
    # YAML 1.1 reads an unquoted `no` (Norwegian) as False.
    code = "no" if code is False else code
    if isinstance(code, str):
        try:
            language(code)
        except UserError as error:
            raise ValueError(str(error)) from None
    return code


def as_list(value: object) -> object:
    """A list of one thing may be given as that thing."""
    return [value] if isinstance(value, (str, bool)) else value


Code = Annotated[str, BeforeValidator(_known_code)]
Columns = Annotated[tuple[str, ...], BeforeValidator(as_list)]
Codes = Annotated[tuple[Code, ...], BeforeValidator(as_list)]


class ConfigSection(BaseModel):
    """A part of the configuration: immutable, unknown keys are errors, and numbers are finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
