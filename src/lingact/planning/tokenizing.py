"""How many tokens texts have: by the model's own tokenizer where it is on this machine, else by their bytes."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from lingact.config.model import ModelConfig
from lingact.models.model_files import file_here

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_BYTES_PER_TOKEN = {"gpt2": 2.0, "gpt_neox": 2.0}
_BYTES_PER_TOKEN_ELSEWHERE = 4.0
"""Of UTF-8 text in several scripts: a guess. The vocabularies of the byte-level models were made for English."""


@dataclass(frozen=True)
class TokenCounter:
    """Counts the tokens of texts."""

    tokenizer: "Tokenizer | None"
    bytes_per_token: float
    """A guess, where there is no tokenizer."""

    @property
    def how(self) -> str:
        """How tokens are known, as plans say it."""
        return "counted by the model's tokenizer" if self.tokenizer is not None else f"of {self.bytes_per_token:g} bytes a token (a guess)"

    def count(self, texts: Sequence[str], *, special: bool = True) -> list[float]:
        """Tokens of each text.

        Args:
            special: with those that the tokenizer adds to a text.
        """
        if self.tokenizer is None:
            return [len(text.encode()) / self.bytes_per_token for text in texts]
        return [float(len(found.ids)) for found in self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=special)]


def counter_of(model: ModelConfig, architecture: str) -> TokenCounter:
    """The counter for a model's tokens.

    Args:
        architecture: of the model, whose vocabulary decides how many bytes a token has.
    """
    path = file_here(model, "tokenizer.json")
    return TokenCounter(None if path is None else _loaded(str(path)), _BYTES_PER_TOKEN.get(architecture, _BYTES_PER_TOKEN_ELSEWHERE))


@lru_cache(maxsize=1)
def _loaded(path: str) -> "Tokenizer | None":
    """None where the file is damaged: loading the model says so."""
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(path)
    except Exception as error:  # tokenizers raises this very class
        if type(error) is not Exception:
            raise
        return None
