"""The model and its SAEs."""

import re
from pathlib import Path
from typing import Annotated, Literal

from omegaconf import OmegaConf
from pydantic import BeforeValidator, Field, field_validator

from lingact.config.base import Code, ConfigSection
from lingact.config.limits import Count, Layers, Real, Text, Whole
from lingact.errors import UserError


def _auto_or_truth(value: object) -> object:
    # Checked before the union, because each of its branches would report an error.
    if value != "auto" and not isinstance(value, bool):
        raise ValueError(f"{value!r} is neither auto nor true or false")
    return value


class ModelConfig(ConfigSection):
    """A Hugging Face causal language model."""

    name: Text
    """Hub id or local folder."""
    revision: Text | None
    """Branch, tag or commit on the hub; a commit makes the run reproducible."""
    dtype: Literal["float32", "bfloat16", "float16"]
    attention: Literal["eager", "sdpa", "flash_attention_2"]
    """Attention implementation; Gemma 2's soft caps need eager."""
    bos: Annotated[Literal["auto"] | bool, BeforeValidator(_auto_or_truth)] = "auto"
    """Whether texts begin with BOS; auto: as the tokenizer does it."""
    context: Annotated[Count, Field(ge=2)]
    """Tokens per window including BOS, at least 2. Longer texts are split into windows."""
    trust_remote_code: bool = False
    training_shares: dict[Code, Annotated[Real, Field(gt=0, le=1e12)]] | None = None
    """Each language's share of the training text, in any unit, if it is known; None: its share of public web pages is used instead."""


class SaeSet(ConfigSection):
    """One SAE per layer."""

    release: Text
    """sae-lens release, a local folder in sae-lens's or a release's format, or a hub repository in sae-lens's format."""
    id: Text | dict[Whole, Text]
    """SAE id, or path in the folder, with `{layer}` for the layer number, `{layer+1}` where SAEs are named by the block that reads them; or an id
    for each layer."""
    width: Count | None = None
    """Latents per SAE, used by the plan. None: unknown until the SAEs are loaded."""

    @field_validator("id")
    @classmethod
    def _has_layer(cls, given: str | dict[int, str]) -> str | dict[int, str]:
        if isinstance(given, str) and not re.search(r"\{layer(\+1)?\}", given):
            raise ValueError(f"'{given}' has no {{layer}}; mark the place of the layer number, as in 'layer_{{layer}}/width_16k/canonical'")
        if not given:
            raise ValueError("no id given; write one with {layer}, or one for each layer")
        return given

    def id_of(self, layer: int) -> str:
        """The id of a layer's SAE.

        Raises:
            UserError: ids are given for each layer, but not for this one.
        """
        if isinstance(self.id, str):
            return self.id.replace("{layer}", str(layer)).replace("{layer+1}", str(layer + 1))
        if layer not in self.id:
            raise UserError(f"sae: no id for layer {layer} (given: {', '.join(map(str, self.id))}); add it, or name the layers in sae.layers")
        return self.id[layer]


def sae_set_in(folder: Path) -> SaeSet:
    """The set that `lingact saes` leaves in a folder: `layer_<n>` for each layer."""
    return SaeSet(release=str(folder.absolute()), id="layer_{layer}")


def layers_in(folder: str) -> list[int]:
    """The layers of which a set in a folder has SAEs; in overrides `${layers_in:FOLDER}`."""
    return sorted(int(match[1]) for path in Path(folder).iterdir() if (match := re.fullmatch(r"layer_(\d+)", path.name)) and path.is_dir())


OmegaConf.register_new_resolver("layers_in", layers_in, replace=True)


class SaeConfig(ConfigSection):
    """The SAEs used for measuring, and held-out ones that check the results."""

    measuring: SaeSet
    heldout: SaeSet | None
    """Other SAEs of the same layers, which training never sees."""
    layers: Layers
    """Layers to measure, each once; the SAE of layer l reads the output of block l."""
