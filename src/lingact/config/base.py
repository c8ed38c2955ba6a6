"""Base class and types of every section of the configuration."""

from importlib.resources import files
from typing import Annotated, Any, Protocol, runtime_checkable

from omegaconf import OmegaConf
from pydantic import BaseModel, BeforeValidator, ConfigDict

from lingact.catalogue.languages import language
from lingact.errors import UserError


def asset(path: str) -> str:
    """Absolute path of a file in the package; in YAML `${asset:microworld/model}`."""
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
    """A single value becomes a list of one."""
    return [value] if isinstance(value, (str, bool)) else value


Code = Annotated[str, BeforeValidator(_known_code)]
Columns = Annotated[tuple[str, ...], BeforeValidator(as_list)]
Codes = Annotated[tuple[Code, ...], BeforeValidator(as_list)]


@runtime_checkable
class FieldsBefore(Protocol):
    """The fields that were validated before this one. pydantic's own type (`ValidationInfo`) cannot be checked at run time."""

    @property
    def data(self) -> dict[str, Any]:
        """Those that are valid, by name."""
        ...

    @property
    def field_name(self) -> str | None:
        """The field being validated."""
        ...


class ConfigSection(BaseModel):
    """A part of the configuration: immutable, unknown keys are errors, and numbers are finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
