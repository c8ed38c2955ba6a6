"""Aligned text: the same sentences in several languages, and how they are split."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
from jaxtyping import Int

from lingact.config.data import Splits
from lingact.data.text import plain
from lingact.errors import UserError
from lingact.statistics.bootstrap import Resampling

Split = Literal["train", "dev", "heldout", "all"]


def split_in_halves(units: Sequence[str]) -> Int[np.ndarray, " sentence"]:
    """0 where a sentence serves discovery, 1 where it serves confirmation. It follows from the sentence's unit (`ParallelCorpus.units`) alone."""
    return np.array([hashlib.sha256(f"half {unit}".encode()).digest()[0] & 1 for unit in units], np.int64)


def sample_places(ids: Sequence[str], at_most: int) -> Int[np.ndarray, " chosen"]:
    """Places of at most so many sentences, ascending: the first ones in the order of a hash of the ids, so that no order of the file matters."""
    order = sorted(range(len(ids)), key=lambda place: hashlib.sha256(f"sample {ids[place]}".encode()).digest())
    return np.array(sorted(order[:at_most]))


@dataclass(frozen=True)
class ParallelCorpus:
    """Sentences aligned by `ids`: `texts[code][i]` says in that language what `texts[other][i]` says in another."""

    name: str
    ids: tuple[str, ...]
    texts: dict[str, tuple[str, ...]]
    left_out: int = 0
    """Rows that were read and left out: doubles, and pairs that are no translations."""
    documents: tuple[str, ...] | None = None
    """The document that each sentence comes from; None where the source does not say. Sentences of one document are not independent."""
    rows: tuple[int, ...] | None = None
    """Each sentence's place in its source, from 0, by which sentences are neighbours. None: they stand in a row."""

    @property
    def units(self) -> tuple[str, ...]:
        """What each sentence is split by: its document, or where there is none the sentence itself."""
        return self.ids if self.documents is None else self.documents

    @property
    def identity(self) -> dict[str, str | int]:
        """What the manifest keeps of it."""
        counted = {} if self.documents is None else {"documents": len(set(self.documents))}
        return {"name": self.name, "sha256": self.sha256, "sentences": len(self.ids), "left_out": self.left_out} | counted

    @property
    def sha256(self) -> str:
        """Hash of ids, texts and documents if there are any, whatever file they came from."""
        content = json.dumps([self.ids, sorted(self.texts.items()), *([] if self.documents is None else [self.documents])], ensure_ascii=False)
        return hashlib.sha256(content.encode()).hexdigest()

    @cached_property
    def halves(self) -> Int[np.ndarray, " sentence"]:
        """`split_in_halves` of the units."""
        return split_in_halves(self.units)

    def resampling(self, block: int | None) -> Resampling:
        """What intervals draw: documents, or else blocks of so many neighbouring sentences, or else sentences."""
        return Resampling.of(len(self.ids), self.documents, self.rows, block)

    def sample(self, at_most: int) -> Int[np.ndarray, " chosen"]:
        """`sample_places` of the ids."""
        return sample_places(self.ids, at_most)

    def select(self, keep: list[int]) -> "ParallelCorpus":
        """The sentences at the given places."""
        documents = None if self.documents is None else tuple(self.documents[i] for i in keep)
        rows = tuple(keep) if self.rows is None else tuple(self.rows[i] for i in keep)
        texts = {code: tuple(text[i] for i in keep) for code, text in self.texts.items()}
        return replace(self, ids=tuple(self.ids[i] for i in keep), texts=texts, documents=documents, rows=rows)

    def speaking(self, codes: tuple[str, ...]) -> "ParallelCorpus":
        """The same sentences in the given languages only."""
        return replace(self, texts={code: self.texts[code] for code in codes})

    def without(self, other: "ParallelCorpus") -> "ParallelCorpus":
        """The sentences that the other corpus has in no language, by what is `plain`."""
        known = {code: {plain(text) for text in other.texts[code]} for code in self.texts if code in other.texts}
        return self.select([i for i in range(len(self.ids)) if not any(plain(self.texts[code][i]) in texts for code, texts in known.items())])

    def split(self, name: Split, shares: Splits) -> "ParallelCorpus":
        """The sentences of a split. Who is in it follows from the document's or else the sentence's id alone, so it stays when others are added.

        Raises:
            UserError: no sentence is in it.
        """
        if name == "all":
            return self

        def place(unit: str) -> str:
            lot = int(hashlib.sha256(unit.encode()).hexdigest()[:8], 16) / 16**8
            return "train" if lot < shares.train else "dev" if lot < shares.train + shares.dev else "heldout"

        keep = [i for i, unit in enumerate(self.units) if place(unit) == name]
        if not keep:
            raise UserError(
                f"corpus '{self.name}' has {len(self.ids)} sentences and none of them in the split '{name}'; give more text or a larger "
                "share in corpus.splits"
            )
        return self.select(keep)
