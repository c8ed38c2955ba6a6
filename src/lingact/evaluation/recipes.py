"""Which adapters are compared with the base model: those that differ in nothing but the seed of their training are one recipe."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lingact.config.jobs import without_machine
from lingact.models.adapter_sources import training_of

_ASIDE = ("seed", "tracking", "split", "statistics", "batch_tokens")
"""Of a training configuration, what makes no other adapter, beside what belongs to the machine."""
_LONGEST = 60


@dataclass(frozen=True)
class Candidate:
    """One adapter."""

    given: str
    """As the user named it, or the folder of a sweep's job."""
    name: str
    """In file names and tables; no two are alike."""
    place: Path
    """The folder where it lies now: a name such as `latest` may mean another one later."""
    training: Mapping[str, Any] | None
    """The configuration that it was trained with; None for adapters from elsewhere."""


@dataclass(frozen=True)
class Recipe:
    """Adapters of one training recipe, one for each seed."""

    label: str
    candidates: tuple[Candidate, ...]

    @property
    def targets(self) -> tuple[str, ...]:
        """The languages that they were trained for, as far as that is known."""
        return tuple((self.candidates[0].training or {}).get("lang", ()))


def find_recipes(places: Mapping[str, Path]) -> list[Recipe]:
    """The recipes behind what the user named, in that order.

    Args:
        places: adapter as the user named it -> its folder, as `find_adapter` gives it.

    Raises:
        UserError: a damaged configuration.
    """
    trainings = {adapter: training_of(place) for adapter, place in places.items()}
    together: dict[str, list[str]] = {}
    for adapter, training in trainings.items():
        recipe = f"given {adapter}" if training is None else json.dumps(_recipe(training), sort_keys=True)
        together.setdefault(recipe, []).append(adapter)
    labels = _labels([trainings[adapters[0]] for adapters in together.values()], [adapters[0] for adapters in together.values()])
    found, taken = [], set()
    for label, adapters in zip(labels, together.values(), strict=True):
        seeds = [(trainings[adapter] or {}).get("seed") for adapter in adapters]
        names = [label] if len(adapters) == 1 else [f"{label}_seed{seed}" for seed in seeds]
        names = [name if names.count(name) == 1 else f"{name}_{place}" for place, name in enumerate(names)]
        names = [_free(name, taken) for name in names]
        found.append(Recipe(label, tuple(Candidate(a, name, places[a], trainings[a]) for a, name in zip(adapters, names, strict=True))))
    return found


def _recipe(training: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in without_machine(dict(training)).items() if key not in _ASIDE}


def _labels(trainings: Sequence[Mapping[str, Any] | None], given: Sequence[str]) -> list[str]:
    """`adapter` where there is one recipe; else what tells them apart: the settings in which they differ, or how they were named."""
    if len(trainings) == 1:
        return ["adapter"]
    leaves = [_leaves(_recipe(training)) if training is not None else {} for training in trainings]
    differing = [key for key in dict.fromkeys(key for own in leaves for key in own) if len({own.get(key) for own in leaves}) > 1]
    told = [", ".join(f"{key.rpartition('.')[2]} {own[key]}" for key in differing if key in own) for own in leaves]
    labels = [
        text if text and len(text) <= _LONGEST else "_".join(part for part in Path(name).parts[-2:] if part != "/")
        for text, name in zip(told, given, strict=True)
    ]
    labels = [label.replace("/", "_") for label in labels]
    taken: set[str] = set()
    told = [label if labels.count(label) == 1 and label != "base" else f"{label} ({place})" for place, label in enumerate(labels)]
    return [_free(label, taken) for label in told]


def _free(name: str, taken: set[str]) -> str:
    """The name, or with a number behind it where it is taken; taken from now on."""
    names = (name, *(f"{name} ({place})" for place in range(len(taken) + 1)))
    free = next(each for each in names if each not in taken)
    taken.add(free)
    return free


def _leaves(node: Any, prefix: str = "") -> dict[str, str]:
    if isinstance(node, Mapping):
        return {path: value for key, part in node.items() for path, value in _leaves(part, f"{prefix}.{key}".lstrip(".")).items()}
    return {prefix: ",".join(map(str, node)) if isinstance(node, (list, tuple)) else str(node)}
