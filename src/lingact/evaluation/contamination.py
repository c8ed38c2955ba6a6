"""Did training text hold what a benchmark asks? By table (benchmarks made of the very text of a corpus), and by word sequences that both have."""

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
from lingact.data.corpus import ParallelCorpus, folded, load_corpus, load_training_text, words_of
from lingact.errors import UserError

_LABEL = 3
"""Sentences of fewer words (`Question:`, `Answer:`) belong to the form of an item, not to what it says."""
_SENTENCE_END = regex.compile(r"[\n:;\N{FULLWIDTH COLON}\N{FULLWIDTH SEMICOLON}\p{Sentence_Terminal}]+")

Words = tuple[str, ...]


def content_words(text: str) -> Words:
    """The words of a text, `folded`, without its labels; of a text that has nothing else, all words.

    Sentences are not kept apart: in text made from templates the one that is shared says nothing without the one beside it.
    """
    sentences = [tuple(words_of(part)) for part in _SENTENCE_END.split(folded(text))]
    content = [words for words in sentences if len(words) >= _LABEL] or sentences
    return tuple(word for words in content for word in words)


def _sequences(words: Words, length: int) -> list[Words]:
    return [words[at : at + length] for at in range(len(words) - length + 1)]


def known_share(items: Sequence[str], training: Sequence[str], *, words: int) -> Float[np.ndarray, " item"]:
    """Share of each item's word sequences that one of the training texts has, too. An item shorter than `words` is one sequence, whole.

    After the overlap checks of GPT-3 (Brown et al. 2020, appendix C: sequences of 13 words) and PaLM (Chowdhery et al. 2022, section 8: the share of
    an item's sequences of 8 words).
    """
    asked = [content_words(item) for item in items]
    read = [content_words(text) for text in training]
    lengths = {min(words, len(item)) for item in asked}
    known = {length: {sequence for text in read for sequence in _sequences(text, length)} for length in lengths}
    shares = np.zeros(len(items))
    for place, item in enumerate(asked):
        length = min(words, len(item))
        if length:
            shares[place] = np.mean([sequence in known[length] for sequence in _sequences(item, length)])
    return shares


def same_source(benchmark: str, corpus: str) -> str | None:
    """The text that both a benchmark and a corpus are made of, as far as the table of benchmarks and the corpus's name tell; None: none."""
    sources = FAMILIES[benchmark].sources if benchmark in FAMILIES else ()
    return next((source for source in sources if re.search(TEXT_SOURCES[source], corpus, re.IGNORECASE)), None)


def training_corpus(training: Mapping[str, Any]) -> Mapping[str, Any]:
    """The section of a training run's configuration that says what it was trained on."""
    return training.get("train_corpus") or training["corpus"]


def training_text(training: Mapping[str, Any]) -> ParallelCorpus:
    """The sentences that an adapter was trained on, in its target and reference languages.

    Args:
        training: configuration of the training run.

    Raises:
        UserError: they are not to be had any more.
    """
    try:
        described = TypeAdapter(CorpusConfig).validate_python(training_corpus(training))
        measured = TypeAdapter(CorpusConfig).validate_python(training["corpus"])
        codes = (training["languages"]["reference"], *training["lang"])
    except (ValidationError, KeyError, TypeError) as error:
        raise UserError(f"its configuration does not tell its text: {str(error).splitlines()[0]}") from None
    if training.get("train_corpus"):
        return load_training_text(described, codes, load_corpus(measured, codes))[0]
    return load_corpus(described, codes).split("train", described.splits)


def contamination_table(
    asked: Mapping[tuple[str, str], Sequence[str]], training: Mapping[str, Sequence[str]], corpus: str, *, words: int, share: float
) -> tuple[pd.DataFrame, dict[tuple[str, str], Float[np.ndarray, " item"]]]:
    """What the training text knows of the items.

    Args:
        asked: (benchmark, language) -> each item's question with its right answer.
        training: language -> training sentences; empty where they are not to be had.
        corpus: name of the training corpus.
        words: length of the sequences.
        share: from which on an item counts as known.

    Returns:
        One row per benchmark and language: n (items), same_source (told by names, also for languages that were not trained on: translations of a
        leaked text are no less leaked), and where there is training text any (items with a known sequence), known (with at least `share` of their
        sequences known: leaked, or of the same template) and whole (with all of them); and each item's share.
    """
    rows, shares = [], {}
    for (benchmark, code), texts in asked.items():
        row = {"benchmark": benchmark, "language": code, "corpus": corpus, "words": words, "n": len(texts)}
        row |= {"any": None, "known": None, "whole": None, "same_source": same_source(benchmark, corpus)}
        if code in training:
            shares[benchmark, code] = own = known_share(texts, training[code], words=words)
            row |= {"any": int((own > 0).sum()), "known": int((own >= share).sum()), "whole": int((own == 1).sum())}
        rows.append(row)
    return pd.DataFrame(rows).astype({"any": "Int64", "known": "Int64", "whole": "Int64"}), shares
