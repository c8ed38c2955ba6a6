"""Libraries of Hugging Face: huggingface-hub, datasets, transformers."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from unittest.mock import patch

if TYPE_CHECKING:
    from torch import nn


@contextmanager
def offline() -> Iterator[None]:
    """While open, the clients read their caches and do not connect to the hub.

    Versions: huggingface-hub 1.0 to 2.4, datasets 4.0 to 5.2.
    Reason: both read HF_HUB_OFFLINE once, when they are imported, and offer no switch afterwards. Without it a client retries for half a minute for
    every file when the hub cannot be reached.
    Upstream: https://github.com/huggingface/transformers/pull/42308, where the maintainer of the client names this patch as the way to do it.
    """
    import datasets
    from huggingface_hub import constants

    with patch.object(constants, "HF_HUB_OFFLINE", True), patch.object(datasets.config, "HF_HUB_OFFLINE", True):
        yield


def attention_implementation(model: "nn.Module") -> str | None:
    """Which implementation of attention a model uses, such as `eager`; None for models that do not choose one.

    Versions: transformers 5.0 to 5.23.
    Reason: the implementation can be set by a public method (`set_attn_implementation`), but only read by a private attribute.
    Upstream: none known; https://github.com/huggingface/transformers/pull/38974 made the setter public.
    """
    return getattr(getattr(model, "config", None), "_attn_implementation", None)


def recompute_activations(model: "nn.Module", *, on: bool) -> None:
    """Let the blocks of a model recompute their activations in the backward pass (on), or keep them (off).

    Versions: transformers 5.4 to 5.23.
    Reason: before 5.23 the methods have another name, which warns from 5.23 on.
    Upstream: not a fault; from `transformers>=5.23` on, `activation_checkpointing_enable` and `activation_checkpointing_disable` do it.
    """
    verb = "enable" if on else "disable"
    (getattr(model, f"activation_checkpointing_{verb}", None) or getattr(model, f"gradient_checkpointing_{verb}"))()
