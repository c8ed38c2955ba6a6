"""Which of the available layers, latents and languages a configuration chooses."""

import os.path
from collections.abc import Collection, Sequence
from pathlib import Path

from lingact.config.jobs import AnalyzeConfig, TrainConfig
from lingact.config.measures import Statistics
from lingact.config.model import SaeConfig
from lingact.config.saes import SaeTraining
from lingact.errors import UserError


def chosen_layers(config: SaeConfig | SaeTraining, block_count: int, key: str = "sae.layers") -> tuple[int, ...]:
    """The layers to measure, or to train SAEs for.

    Args:
        key: that messages name.

    Raises:
        UserError: a layer that the model does not have.
    """
    if config.layers == "all":
        return tuple(range(block_count))
    beyond = [layer for layer in config.layers if layer >= block_count]
    if beyond:
        raise UserError(f"{key}: {beyond} out of range; the model has layers 0 to {block_count - 1}")
    return tuple(sorted(config.layers))


def check_ranges(layers: Sequence[int], settings: Statistics) -> None:
    """Refuse a named range without a measured layer.

    Raises:
        UserError: the message lists the measured layers.
    """
    for name, chosen in (("early", settings.early), ("deep", settings.deep)):
        if chosen != "third" and not set(chosen) & set(layers):
            raise UserError(f"statistics.{name}: none of the layers {list(chosen)} is measured; measured are {list(layers)}")


def loss_layers(config: TrainConfig, layers: tuple[int, ...]) -> tuple[int, ...]:
    """The measured layers that are in the loss.

    Raises:
        UserError: a layer that is not measured.
    """
    chosen = config.loss.gap.layers
    if chosen == "all":
        return layers
    beyond = [layer for layer in chosen if layer not in layers]
    if beyond:
        raise UserError(f"loss.gap.layers: {beyond} out of range; measured are the layers {list(layers)}")
    return tuple(sorted(chosen))


def check_causal(config: AnalyzeConfig, layers: Collection[int], widths: dict[int, int]) -> None:
    """Refuse interventions on layers that are not measured and on latents that do not exist.

    Args:
        widths: number of latents by layer, where it is known.

    Raises:
        UserError: the message lists what can be chosen.
    """
    settings = config.measures.causal
    named = {} if isinstance(settings.features, str) else settings.features
    beyond = [layer for layer in (*named, *(() if settings.layers == "all" else settings.layers)) if layer not in layers]
    if beyond:
        raise UserError(f"measures.causal: layers {beyond} are not measured; measured are {list(layers)}")
    for layer in named:
        wide = [latent for latent in named[layer] if layer in widths and latent >= widths[layer]]
        if wide:
            raise UserError(f"measures.causal.features: layer {layer} has latents 0 to {widths[layer] - 1}; there is no {wide[0]}")


def substitutes(config: TrainConfig) -> dict[str, str]:
    """Under the control wrong_language: target -> the language whose text it is trained on; empty under any other control.

    That is the next language of the target's group that is not a target itself, or, if the group has none left, one of the other group.

    Raises:
        UserError: there are fewer such languages than targets.
    """
    if config.loss.control != "wrong_language":
        return {}
    languages, found = config.languages, {}
    for code in config.lang:
        own, other = (languages.low, languages.high) if code in languages.low else (languages.high, languages.low)
        after = own.index(code) + 1
        free = [c for c in (*own[after:], *own[:after], *other) if c not in config.lang and c not in found.values()]
        if not free:
            raise UserError(
                f"loss.control=wrong_language needs one other language for each target ({len(config.lang)}), but the study has "
                f"{len(languages.all) - 1 - len(config.lang)}; add some to languages.low or languages.high"
            )
        found[code] = free[0]
    return found


def set_names(mixes: Sequence[Sequence[Path]]) -> dict[Path, str]:
    """A name for each folder of SAEs: its own, with those of the folders above it, but for `sae`, as far as that tells them apart.

    Args:
        mixes: different folders.
    """
    paths = {folder: Path(os.path.normpath(folder.absolute())) for mix in mixes for folder in mix}
    for depth in range(max(len(path.parts) for path in paths.values())):
        above = {folder: [part for part in path.parts[-1 - depth : -1] if part != "sae"] for folder, path in paths.items()}
        names = {folder: "/".join([*above[folder], path.name]) for folder, path in paths.items()}
        if len(set(names.values())) == len(paths):
            return names
    raise AssertionError("a folder is named twice")
