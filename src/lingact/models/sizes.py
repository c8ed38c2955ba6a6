"""How large a model is and how much work it is to run, before it is downloaded.

The model's own class is built from its config.json on PyTorch's meta device, where tensors have shapes and no values. So whatever transformers can
build can be planned, and a new architecture needs no code here. accelerate's `init_empty_weights` would do the same as `torch.device("meta")`, which
needs no further dependency.
"""

import json
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from lingact.config.model import ModelConfig
from lingact.config.training import PeftConfig
from lingact.errors import UserError
from lingact.models.adapter_places import adapter_places, linear_modules
from lingact.models.lm import find_blocks
from lingact.models.model_files import describe_model

_KEPT = 8
"""Models of which the sizes are kept: a sweep may have several."""
_NOT_BUILT = (StrictDataclassError, AttributeError, ImportError, KeyError, RuntimeError, TypeError, UserError, ValueError, ZeroDivisionError)
"""What transformers raises over a config.json that it cannot build a causal language model from; loading the model then says why."""


@dataclass(frozen=True)
class ModelSizes:
    """What the memory and time of a pass follow from."""

    architecture: str
    """As transformers calls it (`model_type`)."""
    weights: int
    """All that is loaded; tied weights count once."""
    layers: int
    d_model: int
    vocabulary: int
    """Logits of a token."""
    heads: int
    """Attention heads; 0 for models without attention."""
    rotated: int
    """Numbers of a token's queries and keys together."""
    linear: tuple[tuple[int, int], ...]
    """Inputs and outputs of the linear modules of one block, the largest where blocks differ."""
    linear_work: int
    """Floating-point operations of all blocks for one token, beside `attention_work`."""
    attention_work: int
    """Floating-point operations of all blocks for one token and each token of its window: attention compares each with all before it masks."""
    logit_work: int
    """Floating-point operations of one token's logits."""

    @property
    def d_mlp(self) -> int:
        """Width of the widest layer of a block."""
        return max(max(each) for each in self.linear)

    def forward(self, length: float) -> float:
        """Floating-point operations of all blocks for one token.

        Args:
            length: tokens of its window.
        """
        return self.linear_work + self.attention_work * length


def sizes_of(model: ModelConfig) -> tuple[ModelSizes, str] | None:
    """The model's sizes and where its config.json was read; None where there is none, or transformers cannot build a language model from it.

    Raises:
        UserError: the file is damaged.
    """
    described = describe_model(model)
    if described is None:
        return None
    found = _measured(json.dumps(described.entries, sort_keys=True))
    return None if found is None else (found, described.how)


def check_places(model: ModelConfig, peft: PeftConfig) -> None:
    """Refuse an adapter that the model's modules do not allow. Nothing is refused where the modules are not known before the model is loaded.

    Raises:
        UserError: a block or module that the model does not have, or that does not allow this kind of adapter or its rank.
    """
    described = describe_model(model)
    built = None if described is None else _built(json.dumps(described.entries, sort_keys=True))
    if built is not None:
        adapter_places(*built, peft)


@lru_cache(maxsize=_KEPT)
def _built(entries: str) -> tuple[PreTrainedModel, nn.ModuleList] | None:
    """The model without weights, and its blocks.

    Args:
        entries: its config.json.
    """
    found = json.loads(entries)
    with suppress(*_NOT_BUILT):
        config = CONFIG_MAPPING[found["model_type"]].from_dict(found)
        with torch.device("meta"):
            # As matrix products that can be counted; the fused kernels for attention and mixtures of experts cannot. A model's own code is not run.
            plain = {"attn_implementation": "eager", "experts_implementation": "batched_mm"}
            model = AutoModelForCausalLM.from_config(config, **plain, trust_remote_code=False)
        return model, find_blocks(model, config.get_text_config().num_hidden_layers)
    return None


@lru_cache(maxsize=_KEPT)
def _measured(entries: str) -> ModelSizes | None:
    built = _built(entries)
    if built is None:
        return None
    model, blocks = built
    text = model.config.get_text_config()
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    embedded = embedding.get_parameter("weight")
    logits = embedded if head is None else head.get_parameter("weight")
    heads, of_keys, of_head = _heads(text, embedded.shape[1])
    linear = max((tuple(size for _, _, size in linear_modules(block)) for block in blocks), key=lambda sizes: sum(i * o for i, o in sizes))
    by_token, by_pair = _work(model, blocks)
    return ModelSizes(
        architecture=model.config.model_type,
        weights=sum(parameter.numel() for parameter in model.parameters()),
        layers=len(blocks),
        d_model=embedded.shape[1],
        vocabulary=logits.shape[0],
        heads=heads,
        rotated=(heads + of_keys) * of_head,
        linear=linear,
        linear_work=by_token,
        attention_work=by_pair,
        logit_work=2 * logits.numel(),
    )


def _heads(text: PretrainedConfig, d_model: int) -> tuple[int, int, int]:
    """Heads of queries, heads of keys, and numbers of a head; 0 each without attention."""
    heads = getattr(text, "num_attention_heads", None) or 0
    if not heads:
        return 0, 0, 0
    return heads, getattr(text, "num_key_value_heads", None) or heads, getattr(text, "head_dim", None) or d_model // heads


def _work(model: PreTrainedModel, blocks: nn.ModuleList) -> tuple[int, int]:
    """Floating-point operations of the blocks' forward pass: for a token, and for a token and each token of its window."""
    decoder = model.get_decoder()

    def counted(length: int) -> int:
        ids = torch.zeros(1, length, dtype=torch.long, device="meta")
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            decoder(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
        return counter.get_total_flops()

    try:
        short, long = counted(2), counted(4)
    except (NotImplementedError, RuntimeError):  # the pass depends on values, which the meta device does not have: linear modules alone
        return 2 * sum(i * o for block in blocks for _, _, (i, o) in linear_modules(block)), 0
    # Of n tokens: by_token * n + by_pair * n^2.
    by_pair = max(0, (long - 2 * short) // 8)
    return (short - 4 * by_pair) // 2, by_pair
