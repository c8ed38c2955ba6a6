"""Group adapters into recipes: adapters that differ only in the seed of their training are one recipe."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lingact.config.jobs import without_machine
from lingact.models.adapter_sources import training_of

_IGNORED = ("seed", "tracking", "split", "statistics", "batch_tokens")
"""Keys of a training configuration that do not make a different recipe. Those that describe the machine are left out, too."""
_LONGEST = 60
"""Characters of a label."""


@dataclass(frozen=True)
class Adapter:
    """An adapter and how it was trained."""

    given: str
    """The name that the user gave, or the folder of a job of a sweep."""
    name: str
    """Its name in file names and tables; unique."""
    place: Path
    """Its folder. A name such as `latest` may mean another folder later."""
    training: Mapping[str, Any] | None
    """The configuration that it was trained with; None for adapters that lingact did not train."""


@dataclass(frozen=True)
class Recipe:
    """The adapters of one training recipe, one for each seed."""

    label: str
    adapters: tuple[Adapter, ...]

    @property
    def targets(self) -> tuple[str, ...]:
        """The languages that they were trained for; empty if that is not known."""
        return tuple((self.adapters[0].training or {}).get("lang", ()))


def find_recipes(places: Mapping[str, Path]) -> list[Recipe]:
    """The recipes of some adapters, in the order in which the adapters were given.

    Args:
        places: name of an adapter as the user gave it -> its folder, from `find_adapter`.

    Raises:
        UserError: the configuration of a training run is damaged.
    """
    trainings = {adapter: training_of(place) for adapter, place in places.items()}
    together: dict[str, list[str]] = {}
    for adapter, training in trainings.items():
        recipe = f"given {adapter}" if training is None else json.dumps(_recipe(training), sort_keys=True)
        together.setdefault(recipe, []).append(adapter)
    labels = _labels([trainings[adapters[0]] for adapters in together.values()], [adapters[0] for adapters in together.values()])
    found: list[Recipe] = []
    taken: set[str] = set()
    for label, adapters in zip(labels, together.values(), strict=True):
        seeds = [(trainings[adapter] or {}).get("seed") for adapter in adapters]
        names = [label] if len(adapters) == 1 else [f"{label}_seed{seed}" for seed in seeds]
        names = [name if names.count(name) == 1 else f"{name}_{place}" for place, name in enumerate(names)]
        names = [_free(name, taken) for name in names]
        found.append(Recipe(label, tuple(Adapter(given, name, places[given], trainings[given]) for given, name in zip(adapters, names, strict=True))))
    return found


def _recipe(training: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in without_machine(dict(training)).items() if key not in _IGNORED}


def _labels(trainings: Sequence[Mapping[str, Any] | None], given: Sequence[str]) -> list[str]:
    """`adapter` for a single recipe; otherwise the settings in which the recipes differ, or the names that the user gave."""
    if len(trainings) == 1:
        return ["adapter"]
    leaves = [_leaves(_recipe(training)) if training is not None else {} for training in trainings]
    differing = [key for key in dict.fromkeys(key for own in leaves for key in own) if len({own.get(key) for own in leaves}) > 1]
    differences = [", ".join(f"{key.rpartition('.')[2]} {own[key]}" for key in differing if key in own) for own in leaves]
    labels = [
        text if text and len(text) <= _LONGEST else "_".join(part for part in Path(name).parts[-2:] if part != "/")
        for text, name in zip(differences, given, strict=True)
    ]
    labels = [label.replace("/", "_") for label in labels]
    taken: set[str] = set()
    numbered = [label if labels.count(label) == 1 and label != "base" else f"{label} ({place})" for place, label in enumerate(labels)]
    return [_free(label, taken) for label in numbered]


def _free(name: str, taken: set[str]) -> str:
    """The name, with a number appended if it is taken. It is added to the names that are taken."""
    names = (name, *(f"{name} ({place})" for place in range(len(taken) + 1)))
    free = next(each for each in names if each not in taken)
    taken.add(free)
    return free


def _leaves(node: object, prefix: str = "") -> dict[str, str]:
    """Dotted path -> value, for every value of a nested configuration."""
    if isinstance(node, Mapping):
        return {path: value for key, part in node.items() for path, value in _leaves(part, f"{prefix}.{key}".lstrip(".")).items()}
    return {prefix: ",".join(map(str, node)) if isinstance(node, (list, tuple)) else str(node)}
