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
