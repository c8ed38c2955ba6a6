"""From text to batches of token ids, with a mask of the tokens that count."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lingact.errors import UserError

_AT_ONCE = 500
"""Texts encoded at a time."""


@dataclass(frozen=True)
class Window:
    """A stretch of one sentence that fits the context, BOS included where the model expects one."""

    sentence: int
    ids: list[int]
    first: bool = True
    """The sentence begins here."""


@dataclass(frozen=True)
class TokenBatch:
    """Windows of similar length, padded on the right."""

    ids: Int[Tensor, "batch seq"]
    attention: Bool[Tensor, "batch seq"]
    """False on padding."""
    keep: Bool[Tensor, "batch seq"]
    """True on the tokens that statistics and losses count: no padding, no BOS, no other special token."""
    sentence: Int[Tensor, " batch"]
    """Place of each window's sentence in the corpus."""
    first: Bool[Tensor, " batch"]
    """True on the first window of a sentence."""
    drawn: Bool[Tensor, "batch seq"] | None = None
    """True on the positions whose next token is predicted; None: all before a kept token."""

    def to(self, device: torch.device | str) -> "TokenBatch":
        """The same batch on another device."""
        ids, attention, keep, sentence, first = (x.to(device) for x in (self.ids, self.attention, self.keep, self.sentence, self.first))
        return TokenBatch(ids, attention, keep, sentence, first, self.drawn.to(device) if self.drawn is not None else None)

    def thinned(self, share: float, phase: Float[Tensor, " batch"]) -> "TokenBatch":
        """The same batch, of whose next tokens only a share is predicted: every k-th of a window, k = 1 / share, beginning at a place drawn for it.

        Args:
            share: above 0, at most 1.
            phase: uniform between 0 and 1, for each window. So each position is chosen with probability `share`, in whatever parts a batch is read.
        """
        place = self.predicts.double().cumsum(dim=1)
        chosen = (phase[:, None] + place * share).floor() > (phase[:, None] + (place - 1) * share).floor()
        return replace(self, drawn=self.predicts & chosen)

    def split(self, sentences: int) -> "list[TokenBatch]":
        """Parts of at most so many sentences, in order, each no wider than its longest window. A sentence's windows stay together."""
        part = (self.first.cumsum(0) - 1) // sentences
        return [self._rows(part == number) for number in range(int(part[-1]) + 1)]

    def _rows(self, chosen: Bool[Tensor, " batch"]) -> "TokenBatch":
        width = int(self.attention[chosen].sum(dim=1).max())
        ids, attention, keep = (x[chosen, :width] for x in (self.ids, self.attention, self.keep))
        drawn = self.drawn[chosen, :width] if self.drawn is not None else None
        return TokenBatch(ids, attention, keep, self.sentence[chosen], self.first[chosen], drawn)

    def size(self) -> int:
        """Tokens that are no padding."""
        return int(self.attention.sum())

    @property
    def kept_sentence(self) -> Int[Tensor, " token"]:
        """The sentence of each kept token, in the order of `x[keep]`."""
        return self.sentence[:, None].expand_as(self.ids)[self.keep]

    @property
    def predictable(self) -> Bool[Tensor, "batch seq"]:
        """True on all positions before a kept token."""
        return torch.nn.functional.pad(self.keep[:, 1:], (0, 1))

    @property
    def predicts(self) -> Bool[Tensor, "batch seq"]:
        """True on the positions whose next token is predicted."""
        return self.drawn if self.drawn is not None else self.predictable

    @property
    def target(self) -> Int[Tensor, " predicted"]:
        """The token that follows each of these positions."""
        return self.ids.roll(-1, dims=1)[self.predicts]

    @property
    def predicted_sentence(self) -> Int[Tensor, " predicted"]:
        """The sentence of each of these positions."""
        return self.sentence[:, None].expand_as(self.ids)[self.predicts]

    @property
    def kept_row(self) -> Int[Tensor, " token"]:
        """The row of each kept token, in the order of `x[keep]`."""
        return torch.arange(len(self.ids), device=self.ids.device)[:, None].expand_as(self.ids)[self.keep]


class Tokens:
    """Cuts texts into windows and windows into batches.

    Args:
        context: tokens per window, BOS included.
        rows: of the model's embedding: larger ids are refused. None: the tokenizer has no others.

    Raises:
        UserError: the context leaves no room, or BOS is no row of the embedding.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, context: int, rows: int | None = None) -> None:
        self.tokenizer = tokenizer
        self.context = context
        self.rows = rows
        empty = tokenizer("").input_ids
        self.prefix = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None and empty[:1] == [tokenizer.bos_token_id] else []
        self.room = context - len(self.prefix)
        if self.room < 1:
            raise UserError(f"model.context is {context}, which leaves no room for text behind the BOS token; give more")
        self.refuse_beyond(self.prefix, "at the beginning of every text")
        # Padding is masked, so any row will do; many tokenizers have no such token, or one beyond the embedding.
        pad = tokenizer.pad_token_id
        self.pad = pad if pad is not None and pad >= 0 and (rows is None or pad < rows) else 0
        self.special = torch.tensor(sorted(tokenizer.all_special_ids), dtype=torch.long)

    def refuse_beyond(self, ids: Sequence[int], where: str) -> None:
        """Refuse tokens that the model has no embedding for.

        Args:
            where: they stand, as messages say it.

        Raises:
            UserError: with the first of them.
        """
        if self.rows is None or max(ids, default=0) < self.rows:
            return
        beyond = next(token for token in ids if token >= self.rows)
        raise UserError(
            f"the tokenizer gives the token {beyond} ({self.tokenizer.convert_ids_to_tokens(beyond)!r}) {where}, and the model's embedding ends at "
            f"{self.rows - 1}: the tokenizer is of another model, or was extended without it. Put the model's own tokenizer into its folder"
        )

    @cached_property
    def known(self) -> list[int]:
        """The ids of all tokens that the model has an embedding for, ascending."""
        return sorted(token for token in set(self.tokenizer.get_vocab().values()) if self.rows is None or token < self.rows)

    @cached_property
    def partial(self) -> Bool[Tensor, " vocabulary"]:
        """True on the tokens that stand for a part of a character: byte fallback, or pieces of a byte-level vocabulary."""
        # Vocabularies may have holes, so that there are larger ids than tokens.
        tokens = self.tokenizer.convert_ids_to_tokens(list(range(max(self.known, default=-1) + 1)))
        fallback = torch.tensor([bool(re.fullmatch(r"<0x[0-9A-F]{2}>", token or "")) for token in tokens])
        if fallback.any():
            return fallback
        decoded = self.tokenizer.batch_decode([[i] for i in range(len(tokens))])
        return torch.tensor(["\N{REPLACEMENT CHARACTER}" in text for text in decoded])

    def windows(self, texts: Sequence[str]) -> list[Window]:
        """Windows of all texts in order; `sentence` is the place in `texts`.

        Raises:
            UserError: a text without a token that counts.
        """
        special = set(self.special.tolist())
        windows = []
        # Not verbose: a text longer than the context is nothing to warn of, it is cut below.
        # Some at a time: the tokenizer's encodings are far larger than the ids.
        parts = (list(texts[start : start + _AT_ONCE]) for start in range(0, len(texts), _AT_ONCE))
        encoded = (ids for part in parts for ids in self.tokenizer(part, add_special_tokens=False, verbose=False).input_ids)
        for sentence, ids in enumerate(encoded):
            if all(token in special for token in ids):
                raise UserError(
                    f"sentence {sentence + 1} of the corpus ({texts[sentence]!r}) has no token left after tokenisation; remove it in every language"
                )
            self.refuse_beyond(ids, f"in sentence {sentence + 1} of the corpus ({texts[sentence]!r})")
            windows += [Window(sentence, self.prefix + ids[start : start + self.room], first=start == 0) for start in range(0, len(ids), self.room)]
        return windows

    def by_sentence(self, texts: Sequence[str]) -> list[list[Window]]:
        """The windows of each text."""
        found: list[list[Window]] = [[] for _ in texts]
        for window in self.windows(texts):
            found[window.sentence].append(window)
        return found

    def count(self, texts: Sequence[str]) -> int:
        """Tokens of all windows of the texts."""
        return sum(len(window.ids) for window in self.windows(texts))

    def collate(self, windows: Sequence[Window]) -> TokenBatch:
        """One batch of the given windows."""
        width = max(len(window.ids) for window in windows)
        ids = torch.full((len(windows), width), self.pad)
        attention = torch.zeros((len(windows), width), dtype=torch.bool)
        for row, window in enumerate(windows):
            ids[row, : len(window.ids)] = torch.tensor(window.ids)
            attention[row, : len(window.ids)] = True
        keep = attention & ~torch.isin(ids, self.special)
        sentence, first = ([getattr(window, name) for window in windows] for name in ("sentence", "first"))
        return TokenBatch(ids, attention, keep, torch.tensor(sentence), torch.tensor(first))

    def batches(self, windows: Sequence[Window], batch_tokens: int) -> Iterator[TokenBatch]:
        """All windows, bucketed by length, at most `batch_tokens` padded tokens a batch (a longer window goes alone)."""
        batch: list[Window] = []
        for window in sorted(windows, key=lambda w: (len(w.ids), w.sentence)):
            if batch and (len(batch) + 1) * len(window.ids) > batch_tokens:
                yield self.collate(batch)
                batch = []
            batch.append(window)
        if batch:
            yield self.collate(batch)
