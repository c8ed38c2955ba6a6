"""Contamination: is what a benchmark asks contained in the training text?

It is checked by the table of benchmarks, which knows the sources of benchmarks, and by word sequences that items and training text share.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import regex
from jaxtyping import Float
from pydantic import TypeAdapter, ValidationError

from lingact.catalogue.benchmarks import FAMILIES, TEXT_SOURCES
from lingact.config.data import CorpusConfig
from lingact.data.corpus import ParallelCorpus
from lingact.data.sources import load_corpus, load_training_text
from lingact.data.text import folded, words_of
from lingact.errors import UserError

_LABEL = 3
"""Sentences with fewer words, such as `Question:`, are labels of an item and not its content."""
_SENTENCE_END = regex.compile(r"[\n:;\N{FULLWIDTH COLON}\N{FULLWIDTH SEMICOLON}\p{Sentence_Terminal}]+")

Words = tuple[str, ...]


def content_words(text: str) -> Words:
    """The `folded` words of a text without its labels. All words if the text consists of labels.

    Sentences are joined: in text made from templates, a shared sentence alone is no overlap.
    """
    sentences = [tuple(words_of(part)) for part in _SENTENCE_END.split(folded(text))]
    content = [words for words in sentences if len(words) >= _LABEL] or sentences
    return tuple(word for words in content for word in words)


def _sequences(words: Words, length: int) -> list[Words]:
    return [words[at : at + length] for at in range(len(words) - length + 1)]


def known_share(items: Sequence[str], training: Sequence[str], *, words: int) -> Float[np.ndarray, " item"]:
    """Share of each item's word sequences that also occur in a training text. An item with fewer than `words` words is one sequence.

    After the overlap checks of GPT-3 (Brown et al. 2020, appendix C: sequences of 13 words) and PaLM (Chowdhery et al. 2022, section 8: the share of
    an item's sequences of 8 words).

    Args:
        items: texts of the items.
        training: texts that were trained on.
        words: length of the sequences.
    """
    item_words = [content_words(item) for item in items]
    training_words = [content_words(text) for text in training]
    lengths = {min(words, len(item)) for item in item_words}
    known = {length: {sequence for text in training_words for sequence in _sequences(text, length)} for length in lengths}
    shares = np.zeros(len(items))
    for place, item in enumerate(item_words):
        length = min(words, len(item))
        if length:
            shares[place] = np.mean([sequence in known[length] for sequence in _sequences(item, length)])
    return shares


def same_source(benchmark: str, corpus: str) -> str | None:
    """The source that a benchmark and a corpus share, by the table of benchmarks and the name of the corpus; None if there is none."""
    sources = FAMILIES[benchmark].sources if benchmark in FAMILIES else ()
    return next((source for source in sources if re.search(TEXT_SOURCES[source], corpus, re.IGNORECASE)), None)


def training_corpus(training: Mapping[str, Any]) -> Mapping[str, Any]:
    """The section of a training configuration that describes the training text."""
    return training.get("train_corpus") or training["corpus"]


def training_text(training: Mapping[str, Any]) -> ParallelCorpus:
    """The sentences that an adapter was trained on, in its target and reference languages.

    Args:
        training: configuration of the training run.

    Raises:
        UserError: they can no longer be read.
    """
    try:
        described = TypeAdapter(CorpusConfig).validate_python(training_corpus(training))
        measured = TypeAdapter(CorpusConfig).validate_python(training["corpus"])
        codes = (training["languages"]["reference"], *training["lang"])
    except (ValidationError, KeyError, TypeError) as error:
        raise UserError(f"its configuration does not describe its training text: {str(error).splitlines()[0]}") from None
    if training.get("train_corpus"):
        return load_training_text(described, codes, load_corpus(measured, codes))[0]
    return load_corpus(described, codes).split("train", described.splits)


def contamination_table(
    asked: Mapping[tuple[str, str], Sequence[str]], training: Mapping[str, Sequence[str]], corpus: str, *, words: int, share: float
) -> tuple[pd.DataFrame, dict[tuple[str, str], Float[np.ndarray, " item"]]]:
    """How many items overlap with the training text.

    Args:
        asked: (benchmark, language) -> each item's question with its right answer.
        training: language -> training sentences; empty if they cannot be read.
        corpus: name of the training corpus.
        words: length of the sequences.
        share: an item counts as known from this share of its sequences on.

    Returns:
        One row per benchmark and language, and the share of each item. Columns: n (items); same_source (also for languages that were not trained on,
        because a translation of a leaked text is leaked, too); with training text also any (items with at least one known sequence), known (items
        with at least `share` of their sequences known: leaked, or made from the same template) and whole (items with all sequences known).
    """
    rows, shares = [], {}
    for (benchmark, code), texts in asked.items():
        row: dict[str, str | int | None] = {"benchmark": benchmark, "language": code, "corpus": corpus, "words": words, "n": len(texts)}
        row |= {"any": None, "known": None, "whole": None, "same_source": same_source(benchmark, corpus)}
        if code in training:
            shares[benchmark, code] = own = known_share(texts, training[code], words=words)
            row |= {"any": int((own > 0).sum()), "known": int((own >= share).sum()), "whole": int((own == 1).sum())}
        rows.append(row)
    return pd.DataFrame(rows).astype({"any": "Int64", "known": "Int64", "whole": "Int64"}), shares
