"""Validate a composed configuration and report all problems at once, in the user's words.

The first part of a key path is the folder under `conf/` with its options, if there is one.
"""

from collections.abc import Mapping
from typing import TypeVar, get_args

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ValidationError

from lingact.catalogue.languages import nearest
from lingact.config.base import ConfigSection
from lingact.errors import UserError
from lingact.files.earlier import removed, renamed

_SECTIONS = ("measures", "model", "sae", "corpus", "languages", "loss", "peft", "optim", "trainer", "tasks", "text", "tracking")
_FOLDERS = {**{name: name for name in _SECTIONS}, "train_corpus": "corpus"}
"""Section -> folder under conf/ with its options."""
_UNIONS = {("corpus",): 1, ("train_corpus",): 1, ("peft",): 1, ("text",): 1, ("tasks", "own"): 3}
"""Sections that have several kinds -> which step of an error's location names the kind."""
_HOW_TO_GIVE = {
    "lang": "write for instance lang=ml or lang=[ml,hi]",
    "tasks.own.mine.path": "write for instance \"tasks.own.mine.path='quiz_{lang}.jsonl'\", with both quotes",
    "tasks.own.mine.folder": "write tasks.own.mine.folder=FOLDER, with your lm-eval task files",
    "tasks.own.mine.task": "write for instance \"tasks.own.mine.task='quiz_{lang}'\", with both quotes",
    "sae.measuring.release": "write sae.measuring.release=FOLDER, with the SAEs in layer_<n>",
    "text.path": "write text.path=FILE (.jsonl or .txt, also .gz or .xz), or a folder of them",
    "text.languages": "write text.languages=[en,hi,ml]",
    "corpus.path": "write corpus.path=FILE, or corpus.path=FOLDER with one <code>.txt per language",
    "train_corpus.path": "write train_corpus.path=FILE, or train_corpus.path=FOLDER with one <code>.txt per language",
}


def _allowed_keys(schema: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """Field names where `location` points into the schema; empty where it leaves the models."""
    models = [schema]
    for step in location:
        annotation = next((model.model_fields[step].annotation for model in models if step in model.model_fields), None)
        if annotation is None:  # the kind of a union, or a key of a dictionary
            models = [model for model in models if "kind" in model.model_fields and step in get_args(model.model_fields["kind"].annotation)] or models
        else:
            models = [part for part in get_args(annotation) or (annotation,) if isinstance(part, type) and issubclass(part, BaseModel)]
    return list(models[0].model_fields) if models else []


def _without_kind(location: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """The location without the kind of a union, which users do not write."""
    place = next((place for section, place in _UNIONS.items() if location[: len(section)] == section), len(location))
    return location[:place] + location[place + 1 :]


_LONGEST = 200
"""A message repeats at most so many characters of a value."""


def problem_lines(error: ValidationError, schema: type[BaseModel]) -> list[str]:
    """One line per problem: key path, what was given, what is allowed, where to look."""
    lines = []
    for item in error.errors():
        steps = _without_kind(item["loc"])
        path = ".".join(part for part in steps if isinstance(part, str))
        folder = f" (options: conf/{_FOLDERS[item['loc'][0]]}/)" if item["loc"] and item["loc"][0] in _FOLDERS else ""
        message = "Input should be a path" if item["type"] == "path_type" else item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden" and (new := renamed(path)):
            lines.append(f"{path}: this key is called {new} now; write {new}=...")
        elif item["type"] == "extra_forbidden" and (advice := removed(path)):
            lines.append(f"{path}: {advice}")
        elif item["type"] == "extra_forbidden":
            lines.append(f"{path}: unknown key{nearest(str(item['loc'][-1]), _allowed_keys(schema, item['loc'][:-1]))}{folder}")
        elif item["type"] == "missing":
            lines.append(f"{path}: missing{'; ' + _HOW_TO_GIVE[path] if path in _HOW_TO_GIVE else ''}{folder}")
        elif item["type"] == "union_tag_invalid":
            lines.append(f"{path}.kind: '{item['ctx']['tag']}' is none of {item['ctx']['expected_tags']}{folder}")
        elif item["type"] == "value_error":
            lines.append(f"{path}: {message}{folder}" if path else message)
        else:
            hint = (
                nearest(str(item["input"]), [w.strip("' ") for w in item["ctx"]["expected"].replace(" or ", ",").split(",")])
                if item["type"] == "literal_error"
                else ""
            )
            given = repr(item["input"])
            given = given if len(given) <= _LONGEST else f"{given[:_LONGEST]}... ({len(given)} characters)"
            lines.append(f"{path}: {message}; got {given}{hint}{folder}")
    return lines


K = TypeVar("K")
S = TypeVar("S", bound=ConfigSection)


def _without_missing(section: Mapping[K, object]) -> dict[K, object]:
    """Plain values without those that are still `???`, so that they count as missing, not as wrong."""
    given = {key: value for key, value in section.items() if value != "???"}
    return {key: _without_missing(value) if isinstance(value, dict) else value for key, value in given.items()}


def validate(schema: type[S], plain: Mapping[str, object]) -> S:
    """A validated configuration, from plain values.

    Raises:
        UserError: with one line per problem.
    """
    try:
        return schema.model_validate(plain)
    except ValidationError as error:
        raise UserError("\n".join(problem_lines(error, schema))) from None


def validate_config(schema: type[S], composed: DictConfig) -> S:
    """A validated configuration, from a composed one.

    Raises:
        UserError: with one line per problem.
    """
    try:
        plain = OmegaConf.to_container(composed, resolve=True, throw_on_missing=False)
        assert isinstance(plain, dict)
    except OmegaConfBaseException as error:
        raise UserError(f"the configuration does not resolve: {str(error).splitlines()[0]}") from None
    return validate(schema, _without_missing({str(key): value for key, value in plain.items()}))
