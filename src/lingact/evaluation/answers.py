"""The answers of models, stored by a hash of everything that they depend on.

lm-eval's own cache of answers is never used, because its key does not name the model.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from lingact.evaluation.prompt_activations import PromptActivations
from lingact.files.atomic import write_atomically
from lingact.files.records import read_json_object
from lingact.models.lm import LanguageModel
from lingact.runtime.compat.huggingface import attention_implementation

Identity = Mapping[str, str | int | Mapping[str, str] | None]
"""Everything that stored answers depend on."""
Answer = Sequence[float | bool]
"""Log-likelihood of an option in nats, and whether it is the likeliest continuation."""


class TaskAnswers(TypedDict):
    """The answers of one model to one task."""

    answers: Sequence[Answer]
    """One per option, in the order of the requests."""
    truncated: int
    """Prompts that were longer than the context and lost their beginning."""
    prompts: NotRequired[Sequence[PromptActivations]]
    """Of each option's prompt; once stored, of each question, with its first option."""


@dataclass(frozen=True)
class AnswerCache:
    """Stored answers: a file for each task and model, named by a hash of everything that the answers depend on."""

    folder: Path

    def get(self, identity: Identity) -> Any:  # the content of a JSON file
        """What is stored under this identity: `TaskAnswers`, or the cross-entropies of a text; None if nothing is.

        Raises:
            UserError: the file is damaged.
        """
        path = self._path(identity)
        if not path.is_file():
            return None
        kept = read_json_object(path, "delete it", needed=("identity", "answers"))
        return kept["answers"] if kept["identity"] == identity else None

    def put(self, identity: Identity, answers: TaskAnswers | Mapping[str, Sequence[float]]) -> None:
        """Store answers in one step: the file is complete, or is not there."""
        write_atomically(self._path(identity), json.dumps({"identity": identity, "answers": answers}))

    def _path(self, identity: Identity) -> Path:
        return self.folder / f"{hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()}.json"


def identity_of(lm: LanguageModel, adapter: str | None) -> dict[str, str | int | Mapping[str, str] | None]:
    """Everything but the questions that the answers of a model depend on.

    Args:
        lm: the model.
        adapter: hash of its weights; None: switched off, or there is none.
    """
    backend = getattr(lm.tokenizer, "backend_tokenizer", None)
    content = backend.to_str() if backend is not None else json.dumps(sorted(lm.tokenizer.get_vocab().items()))
    model: dict[str, str | int | Mapping[str, str] | None] = {
        name: lm.identity[name] for name in ("sha256", "dtype", "config_sha256") if name in lm.identity
    }
    return model | {
        "scored": "prompts once",  # each prompt with each option before, which rounded otherwise
        "attention": attention_implementation(lm.model),
        "adapter": adapter,
        "tokenizer": hashlib.sha256(content.encode()).hexdigest(),
        "device": lm.device.type,
        "context": lm.tokens.context,
        "versions": {name: version(name) for name in ("lingact", "lm-eval", "transformers", "torch", "peft")},
    }
