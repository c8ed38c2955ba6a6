"""Pack texts into windows of equal length, a language at a time, its sources in equal parts."""

from collections.abc import Iterator, Sequence

import numpy as np

from lingact.data.tokens import Tokens
from lingact.saes.mix import Rows
from lingact.saes.text import Document

_TEXTS_AT_ONCE = 500


def packed(documents: Sequence[Document], tokens: Tokens, *, room: int, at_most: int, seed: int) -> tuple[Rows, dict[str, int]]:
    """Windows without BOS, one text after the other, and how many tokens each source gives.

    Args:
        documents: of one language.
        room: tokens of a window without BOS.
        at_most: windows; what comes after is not read.
        seed: of the order of the documents.
    """
    rows: list[int] = []
    by_source: dict[str, int] = {}
    for source, ids in _interleaved(documents, tokens, seed):
        take = ids[: at_most * room - len(rows)]
        rows += take
        by_source[source] = by_source.get(source, 0) + len(take)
        if len(rows) >= at_most * room:
            break
    count = len(rows) // room
    return np.array(rows[: count * room], dtype=np.int32).reshape(count, room), by_source


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
