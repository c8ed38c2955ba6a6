"""Types of configuration values, with sensible bounds.

Every number is finite, and booleans are not numbers. A value outside its bounds would break something or mean nothing. For example, float32 keeps
seven digits, so of two terms whose weights are further apart than that, one would be lost; and a size above a billion fits into no memory.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

LARGEST = 10**9
"""Largest size or count."""
SMALLEST_FACTOR, LARGEST_FACTOR = 1e-6, 1e6
"""Bounds of weights and factors."""
MOST_LAYERS = 10_000
_UNWRITABLE = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")
"""Control characters and lone surrogates, which stand for bytes of a command line that are not UTF-8."""


def _no_boolean(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError(f"{str(value).lower()} is not a number")
    return value


def _plain_zero(value: float) -> float:
    return value + 0.0  # -0.0 is 0.0


def _zero_or_factor(value: float) -> float:
    if value != 0 and not SMALLEST_FACTOR <= value <= LARGEST_FACTOR:
        raise ValueError(f"it is {value:g}; give 0, or a number from {SMALLEST_FACTOR:g} to {LARGEST_FACTOR:g}")
    return value


Whole = Annotated[int, BeforeValidator(_no_boolean), Field(ge=0, le=LARGEST)]
"""0, 1, 2, ..."""
Count = Annotated[int, BeforeValidator(_no_boolean), Field(gt=0, le=LARGEST)]
"""1, 2, 3, ..."""
Seed = Annotated[int, BeforeValidator(_no_boolean), Field(ge=0, lt=2**32)]
"""Libraries accept no larger ones."""
Real = Annotated[float, BeforeValidator(_no_boolean), AfterValidator(_plain_zero), Field(allow_inf_nan=False)]
Share = Annotated[Real, Field(gt=0, le=1)]
Factor = Annotated[Real, Field(ge=SMALLEST_FACTOR, le=LARGEST_FACTOR)]
Weight = Annotated[Real, AfterValidator(_zero_or_factor)]
"""0, or a factor."""
Dropout = Annotated[Real, Field(ge=0, lt=1)]
Processors = Annotated[Count, Field(le=MOST_LAYERS)]
"""A number of devices or machines."""

# --- statistics ------------------------------------------------------------------------------------------------------------------------------------

Resamples = Annotated[Count, Field(ge=100, le=100_000)]
"""With fewer than 100, the ends of intervals are mostly luck; with 100,000, the weights of a thousand sentences take 0.8 GB."""
Confidence = Annotated[Real, Field(ge=0.5, lt=1)]
Power = Annotated[Real, Field(ge=0.5, lt=1)]


def check_resamples(resamples: int, confidence: float) -> None:
    """Refuse an interval whose ends lie beyond the outermost resamples, because its width would depend on their number.

    Raises:
        ValueError: the message says how many resamples are needed.
    """
    outside = resamples * (1 - confidence) / 2
    if outside < 1 - 1e-9:
        needed = 2 / (1 - confidence)
        raise ValueError(
            f"an interval of {confidence:.6g} needs at least {needed:.0f} resamples, one beyond each end, but there are {resamples}; give more "
            "resamples or a lower confidence"
        )


# --- texts -----------------------------------------------------------------------------------------------------------------------------------------


def _written(value: str) -> str:
    if not value.strip():
        raise ValueError("it is blank; give a value, or leave the key as it is")
    if _UNWRITABLE.search(value):
        raise ValueError(f"{value!r} contains characters that cannot be written")
    return value


def _no_number(value: object) -> object:
    if isinstance(value, (int, float)):
        # For instance a commit of digits only.
        raise ValueError(f"{str(value).lower()} is read as a number or a boolean; if it is a name, quote it inside: \"key='...'\"")
    return value


def _place(value: object) -> object:
    if isinstance(value, (str, Path)):
        # An empty path would mean the current folder.
        _written("" if isinstance(value, str) and not value.strip() else str(value))
    return value


Text = Annotated[str, BeforeValidator(_no_number), AfterValidator(_written)]
"""Not blank."""
Place = Annotated[Path, BeforeValidator(_place)]


def _device(value: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", value, re.ASCII):
        raise ValueError(f"'{value}' is unknown; use auto, cpu, cuda or cuda:N")
    return value


Device = Annotated[str, AfterValidator(_device)]


# --- lists -----------------------------------------------------------------------------------------------------------------------------------------


def distinct(values: Collection[object], what: str) -> None:
    """Refuse an empty collection and duplicates.

    Raises:
        ValueError: the message names the first duplicate.
    """
    if not values:
        raise ValueError(f"no {what} given")
    seen: set[object] = set()
    for value in values:
        if value in seen:
            raise ValueError(f"the {what} {value} is named twice")
        seen.add(value)


def _is_layer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MOST_LAYERS


def _layer_numbers(value: object, word: str) -> object:
    if value == word:
        return value
    if not isinstance(value, Sequence) or isinstance(value, str) or not all(map(_is_layer, value)):
        raise ValueError(f"{value!r} is neither {word} nor a list of layer numbers, from 0 upwards, such as [0,5]")
    distinct(value, "layer")
    return tuple(value)


def _all_or_layers(value: object) -> object:
    return _layer_numbers(value, "all")


def _third_or_layers(value: object) -> object:
    return _layer_numbers(value, "third")


def _layers_or_weights(value: object) -> object:
    if not isinstance(value, Mapping):
        return _all_or_layers(value)
    weights = {int(key) if isinstance(key, str) and key.isdecimal() else key: weight for key, weight in value.items()}
    wrong = [key for key in weights if not _is_layer(key)]
    if wrong or not weights:
        raise ValueError(f"{wrong[0]!r} is not a layer number" if wrong else "no layer given")
    for layer, weight in weights.items():
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not SMALLEST_FACTOR <= weight <= LARGEST_FACTOR:
            raise ValueError(f"the weight of layer {layer} is {weight!r}; give a number from {SMALLEST_FACTOR:g} to {LARGEST_FACTOR:g}")
    return weights


def _all_or_names(value: object) -> object:
    names = [value] if isinstance(value, str) and value != "all" else value
    if isinstance(names, (list, tuple)):
        distinct(names, "module")
    return names


def _word_or_latents(value: object) -> object:
    if not isinstance(value, Mapping):
        return value
    found = {int(key) if isinstance(key, str) and key.isdecimal() else key: latents for key, latents in value.items()}
    distinct(list(found), "layer")
    for layer, latents in found.items():
        numbers = isinstance(latents, (list, tuple)) and all(isinstance(each, int) and not isinstance(each, bool) and each >= 0 for each in latents)
        if not _is_layer(layer) or not numbers:
            raise ValueError(f"{layer}: {latents!r} is not a layer number with a list of latent numbers, such as {{2: [17,40]}}")
        distinct(latents, "latent")
    return found


Layers = Annotated[Literal["all"] | tuple[int, ...], BeforeValidator(_all_or_layers)]
LayerRange = Annotated[Literal["third"] | tuple[int, ...], BeforeValidator(_third_or_layers)]
WeightedLayers = Annotated[Literal["all"] | tuple[int, ...] | dict[int, float], BeforeValidator(_layers_or_weights)]
Modules = Annotated[Literal["all"] | tuple[Text, ...], BeforeValidator(_all_or_names)]
Latents = Annotated[Literal["language_specific"] | dict[int, tuple[int, ...]], BeforeValidator(_word_or_latents)]
