"""The model and its SAEs."""

import re
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator

from lingact.config.base import Code, ConfigSection, FieldsBefore
from lingact.config.limits import Count, Layers, Real, Text, Whole
from lingact.errors import UserError


def _auto_or_truth(value: object) -> object:
    # Before the union, whose branches would each complain.
    if value != "auto" and not isinstance(value, bool):
        raise ValueError(f"{value!r} is neither auto nor true or false")
    return value


class Shape(ConfigSection):
    """What a model's number of weights, and the memory and work that it takes, follow from."""

    architecture: Literal["gemma2", "gemma3", "gpt2", "gpt_neox", "llama", "mistral", "qwen2", "qwen3"]
    """What transformers calls it. Biases, norms and the kind of MLP follow from it."""
    layers: Count
    d_model: Count
    d_mlp: Count
    heads: Count
    kv_heads: Count
    """Heads of keys and values."""
    head_dim: Count
    vocabulary: Count
    """Rows of the embedding."""
    positions: Count | None
    """Learned positions. None: computed ones."""
    tied: bool
    """One matrix embeds tokens and predicts them."""
    beside: Annotated[int, Field(ge=0, lt=2**50)]
    """Weights that are loaded and read no text, such as a vision tower."""

    @field_validator("kv_heads")
    @classmethod
    def _divides_heads(cls, kv_heads: int, info: FieldsBefore) -> int:
        heads = info.data.get("heads", kv_heads)
        if heads % kv_heads:
            raise ValueError(f"it is {kv_heads}, which does not divide heads ({heads})")
        return kv_heads


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
    """Tokens per window, BOS included, from 2. Longer texts are split into windows."""
    trust_remote_code: bool = False
    training_shares: dict[Code, Annotated[Real, Field(gt=0, le=1e12)]] | None = None
    """Share of the training text by language, in any unit, where it is known; None: the share of public web pages stands in."""
    shape: Shape | None = None
    """For the plan, before anything is downloaded. None: read from the model's config.json, where it is on this machine."""


class SaeSet(ConfigSection):
    """One SAE per layer."""

    release: Text
    """sae-lens release, a local folder in sae-lens's or a release's format, or a hub repository in sae-lens's format."""
    id: Text | dict[Whole, Text]
    """SAE id, or path in the folder, with `{layer}` for the layer number, `{layer+1}` where SAEs are named by the block that reads them; or an id
    for each layer."""
    width: Count | None = None
    """Latents of an SAE, for the plan. None: not known before they are loaded."""

    @field_validator("id")
    @classmethod
    def _has_layer(cls, given: str | dict[int, str]) -> str | dict[int, str]:
        if isinstance(given, str) and not re.search(r"\{layer(\+1)?\}", given):
            raise ValueError(f"'{given}' has no {{layer}}; write the layer number's place, as in 'layer_{{layer}}/width_16k/canonical'")
        if not given:
            raise ValueError("no id given; write one with {layer}, or one for each layer")
        return given

    def id_of(self, layer: int) -> str:
        """The id of a layer's SAE.

        Raises:
            UserError: ids are given one by one, and none for this layer.
        """
        if isinstance(self.id, str):
            return self.id.replace("{layer}", str(layer)).replace("{layer+1}", str(layer + 1))
        if layer not in self.id:
            raise UserError(f"sae: no id for layer {layer} (given: {', '.join(map(str, self.id))}); add it, or name the layers in sae.layers")
        return self.id[layer]


class SaeConfig(ConfigSection):
    """The SAEs that measure, and the ones kept aside to check them."""

    measuring: SaeSet
    heldout: SaeSet | None
    """Other SAEs of the same layers, which training never sees."""
    layers: Layers
    """Layers to measure, each once; the SAE of layer l reads the output of block l."""
