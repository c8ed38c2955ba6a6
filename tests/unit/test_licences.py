"""Licences that follow from the base model."""

import pytest

from lingact.catalogue.licences import licence_of, notice_of


@pytest.mark.parametrize(
    ("model", "licence"),
    [
        ("google/gemma-2-2b", "gemma"),
        ("google/gemma-3-1b-pt", "gemma"),
        ("google/gemma-7b-it", "gemma"),
        ("google/gemma-99-2b", None),
        ("meta-llama/Llama-3.1-8B", "llama3.1"),
        ("meta-llama/Meta-Llama-3.1-8B", "llama3.1"),
        ("meta-llama/Meta-Llama-3-8B", "llama3"),
        ("Qwen/Qwen3-1.7B-Base", "apache-2.0"),
        ("Qwen/Qwen2.5-3B", None),
        ("gpt2", "mit"),
        ("openai-community/gpt2-large", "mit"),
        ("someone/google/gemma-2-2b", None),
        ("someone/gpt2", None),
    ],
)
def test_licences_are_known_by_the_models_name_or_not_at_all(model: str, licence: str | None) -> None:
    assert licence_of(model) == licence


def test_licences_that_want_words_get_them() -> None:
    assert "Gemma Terms of Use" in (notice_of("gemma") or "")
    assert (notice_of("llama3.1") or "").startswith("Built with Llama. Llama 3.1 is licensed under the Llama 3.1 Community License, Copyright © Meta")
    assert notice_of("apache-2.0") is None
