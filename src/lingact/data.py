"""Training batches: the same aligned sentences in the target languages and in the reference."""

from collections.abc import Iterator
from typing import Any

import pytorch_lightning as pl
import torch

from lingact.corpus import ParallelCorpus
from lingact.tokens import TokenBatch, Tokens, Window


class AlignedBatches:
    """`count` batches of aligned sentences, one `TokenBatch` per language in each.

    Every epoch is a new permutation of the sentences, fixed by the seed; a batch may straddle two epochs, so that all sentences come
    equally often, and every language of a batch shows the same sentences. Position can be saved and restored, also in mid-epoch.
    """

    def __init__(self, tokens: Tokens, corpus: ParallelCorpus, *, sentences: int, count: int, seed: int) -> None:
        self.tokens = tokens
        self.sentences = sentences
        self.count = count
        self.seed = seed
        self.position = 0
        self.corpus_size = len(corpus.ids)
        self.windows: dict[str, list[list[Window]]] = {}
        for code, texts in corpus.texts.items():
            by_sentence: list[list[Window]] = [[] for _ in texts]
            for window in tokens.windows(texts):
                by_sentence[window.sentence].append(window)
            self.windows[code] = by_sentence

    def __len__(self) -> int:
        return self.count

    def sentences_of(self, index: int) -> list[int]:
        """The sentences of batch `index`."""
        chosen = []
        for place in range(index * self.sentences, (index + 1) * self.sentences):
            epoch, within = divmod(place, self.corpus_size)
            order = torch.randperm(self.corpus_size, generator=torch.Generator().manual_seed(self.seed * 1_000_003 + epoch))
            chosen.append(int(order[within]))
        return chosen

    def __iter__(self) -> Iterator[dict[str, TokenBatch]]:
        while self.position < self.count:
            chosen = self.sentences_of(self.position)
            self.position += 1
            yield {
                code: self.tokens.collate([window for sentence in chosen for window in by_sentence[sentence]])
                for code, by_sentence in self.windows.items()
            }
        self.position = 0

    def state_dict(self) -> dict[str, Any]:
        """Position in the sequence of batches."""
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved position."""
        self.position = state["position"]


class AlignedData(pl.LightningDataModule):
    """Hands the batches to Lightning."""

    def __init__(self, batches: AlignedBatches) -> None:
        super().__init__()
        self.batches = batches

    def train_dataloader(self) -> AlignedBatches:
        """The batches, whose position Lightning saves and restores."""
        return self.batches

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:  # noqa: ARG002 (Lightning's signature)
        """Batches move where they are used."""
        return batch
