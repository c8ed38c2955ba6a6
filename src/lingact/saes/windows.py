"""Pack texts into windows of equal length, a language at a time, its sources in equal parts."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from lingact.data.tokens import Tokens
from lingact.saes.mix import Rows
from lingact.saes.text import Document

_TEXTS_AT_ONCE = 500


@dataclass(frozen=True)
class Windows:
    """The windows of one language."""

    rows: Rows
    """Without BOS."""
    sources: tuple[str, ...]
    by_source: Int[np.ndarray, "window source"]
    """Tokens of each source in each window."""


def packed(documents: Sequence[Document], tokens: Tokens, *, room: int, at_most: int, seed: int) -> Windows:
    """Windows with one text after the other.

    Args:
        documents: of one language.
        room: tokens of a window without BOS.
        at_most: windows; what comes after is not read.
        seed: of the order of the documents.
    """
    rows: list[int] = []
    origin: list[str] = []
    for source, ids in _interleaved(documents, tokens, seed):
        rows += ids
        origin += [source] * len(ids)
        if len(rows) >= at_most * room:
            break
    count = min(at_most, len(rows) // room)
    names, places = np.unique(np.array(origin[: count * room], dtype=object).astype(str), return_inverse=True)
    by_source = (places.reshape(count, room, 1) == np.arange(len(names))).sum(axis=1)
    return Windows(np.array(rows[: count * room], dtype=np.int32).reshape(count, room), tuple(map(str, names)), by_source)


def _interleaved(documents: Sequence[Document], tokens: Tokens, seed: int) -> Iterator[tuple[str, list[int]]]:
    """Documents in random order, next always one of the source that has given least so far."""
    random = np.random.default_rng(seed)
    by_source: dict[str, list[Document]] = {}
    for place in random.permutation(len(documents)):
        by_source.setdefault(documents[place].source, []).append(documents[place])
    streams = {source: _encoded(own, tokens) for source, own in sorted(by_source.items())}
    given = dict.fromkeys(streams, 0)
    while streams:
        source = min(streams, key=lambda name: given[name])
        ids = next(streams[source], None)
        if ids is None:
            del streams[source]
            continue
        given[source] += len(ids)
        yield source, ids


def _encoded(documents: Sequence[Document], tokens: Tokens) -> Iterator[list[int]]:
    """The tokens of each document, its texts divided by line ends."""
    for start in range(0, len(documents), _TEXTS_AT_ONCE):
        texts = ["\n".join(document.texts) + "\n" for document in documents[start : start + _TEXTS_AT_ONCE]]
        for ids in tokens.tokenizer(texts, add_special_tokens=False, verbose=False).input_ids:
            tokens.refuse_beyond(ids, "in the text")
            yield ids
