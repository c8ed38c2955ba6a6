"""Under which licence models come, as far as it is known here; what is trained on a model follows it."""

import re

_MODELS = (
    (r"google/gemma-(2b|7b|2-|3-)", "gemma"),
    (r"meta-llama/(Meta-)?Llama-3-", "llama3"),
    (r"meta-llama/(Meta-)?Llama-3\.1-", "llama3.1"),
    (r"meta-llama/Llama-3\.2-", "llama3.2"),
    (r"meta-llama/Llama-3\.3-", "llama3.3"),
    (r"Qwen/Qwen3-", "apache-2.0"),
    (r"mistralai/Mistral-7B-", "apache-2.0"),
    (r"EleutherAI/pythia-", "apache-2.0"),
    (r"(openai-community/)?gpt2(-|$)", "mit"),
)
"""Beginning of a hub id, and what the hub calls the licence on the model's page."""
_GEMMA = (
    "Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms. Its use restrictions hold for this adapter, "
    "too."
)


def licence_of(model: str) -> str | None:
    """The hub's name of a model's licence; None where it is not known here.

    Args:
        model: hub id.
    """
    return next((licence for beginning, licence in _MODELS if re.match(beginning, model)), None)


def notice_of(licence: str) -> str | None:
    """What a licence wants to be said beside what is made from its model; None: no words of its own."""
    if licence == "gemma":
        return _GEMMA
    llama = re.fullmatch(r"llama(\d.*)", licence)
    if llama is None:
        return None
    return (
        f"Built with Llama. Llama {llama[1]} is licensed under the Llama {llama[1]} Community License, Copyright © Meta Platforms, Inc. All Rights "
        "Reserved. It wants the names of models that were made with it to begin with Llama, and its acceptable use policy to be kept."
    )
