"""Where in a model an adapter can go: which blocks, and which of their linear modules."""

import re
from collections.abc import Collection
from typing import TYPE_CHECKING

from lingact.catalogue.languages import nearest
from lingact.config.training import LohaAdapter, LokrAdapter, LoraAdapter, OftAdapter, PeftConfig
from lingact.errors import UserError

if TYPE_CHECKING:
    from torch import nn


def check_blocks(peft: PeftConfig, count: int) -> None:
    """Refuse blocks that the model does not have.

    Raises:
        UserError: with those that it has.
    """
    layers = () if peft.layers == "all" else peft.layers
    outside = [layer for layer in layers if layer >= count]
    if outside or not (layers or peft.layers == "all"):
        raise UserError(f"peft.layers: {', '.join(map(str, outside)) or 'none given'}; the model has the layers 0 to {count - 1}")


def check_modules(peft: PeftConfig, sizes: dict[str, tuple[int, int]], *, transposed: Collection[str] = (), model: str) -> tuple[str, ...]:
    """The modules of a block that are adapted.

    Args:
        sizes: inputs and outputs of the block's linear modules by the last part of their names.
        transposed: those whose weights are stored transposed (GPT-2).
        model: the model as messages name it.

    Raises:
        UserError: a module that does not exist, or that does not allow this kind of adapter or its rank.
    """
    chosen = tuple(sizes) if peft.targets == "all" else peft.targets
    unknown = [target for target in chosen if target not in sizes]
    if unknown or not chosen:
        raise UserError(
            f"peft.targets: {', '.join(unknown) or 'none given'}{nearest(unknown[0], list(sizes)) if unknown else ''} The blocks have the linear "
            f"modules {', '.join(sizes)}"
        )
    if isinstance(peft, (LohaAdapter, LokrAdapter, OftAdapter)) and any(name in transposed for name in chosen):
        raise UserError(f"peft.kind: peft has no {peft.kind} for the modules of {model} (Conv1D); use lora, dora, vera or ia3")
    if isinstance(peft, OftAdapter):
        uneven = sorted({f"{name} ({sizes[name][0]})" for name in chosen if sizes[name][0] % peft.block_size})
        if uneven:
            raise UserError(f"peft.block_size: {peft.block_size} does not divide the input width of {', '.join(uneven)}; choose a divisor of all")
    if isinstance(peft, (LoraAdapter, LohaAdapter)):
        full = {name: min(sizes[name]) for name in chosen if peft.r > min(sizes[name])}
        if full:
            name, rank = min(full.items(), key=lambda one: one[1])
            raise UserError(f"peft.r: {peft.r} is more than the rank that the matrix of {name} can have ({rank}); give at most {rank}")
    return chosen


def linear_modules(block: "nn.Module") -> list[tuple[str, "nn.Module", tuple[int, int]]]:
    """The linear modules of a block: the last part of its name, the module, and its inputs and outputs. GPT-2 has two of one name."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    found: list[tuple[str, nn.Module, tuple[int, int]]] = []
    for name, module in block.named_modules():
        if isinstance(module, nn.Linear):
            found.append((name.rsplit(".", 1)[-1], module, (module.in_features, module.out_features)))
        elif isinstance(module, Conv1D):
            found.append((name.rsplit(".", 1)[-1], module, (module.weight.shape[0], module.weight.shape[1])))
    return found


def adapter_places(model: "nn.Module", blocks: "nn.ModuleList", peft: PeftConfig) -> tuple[str, dict[str, "nn.Module"]]:
    """Where an adapter goes.

    Returns:
        A regular expression for the beginning of the chosen modules' full names, which matches in the chosen blocks of this list and nowhere else
        (vision towers); and the last parts of these names, each with one module that has it.

    Raises:
        UserError: a block or module that the model does not have, or that does not allow this kind of adapter or its rank.
    """
    from transformers.pytorch_utils import Conv1D

    check_blocks(peft, len(blocks))
    layers = range(len(blocks)) if peft.layers == "all" else peft.layers
    linear = [found for layer in layers for found in linear_modules(blocks[layer])]
    known = {name: module for name, module, _ in sorted(linear, key=lambda found: found[0])}
    transposed = [name for name, module in known.items() if isinstance(module, Conv1D)]
    sizes: dict[str, tuple[int, int]] = {}
    for name, _, size in linear:
        # Where modules share a name, what has to fit has to fit all of them.
        sizes[name] = min(sizes.get(name, size), size)
    chosen = check_modules(peft, dict(sorted(sizes.items())), transposed=transposed, model=type(model).__name__)
    path = next(name for name, module in model.named_modules() if module is blocks)
    return rf"{re.escape(path)}\.(?:{'|'.join(map(str, layers))})\.(?:.+\.)?", {name: known[name] for name in chosen}
