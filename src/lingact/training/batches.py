"""Training batches: the same aligned sentences in the target languages and in the reference."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pytorch_lightning as pl
import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lingact.data.corpus import ParallelCorpus
from lingact.data.tokens import TokenBatch, Tokens


@dataclass(frozen=True)
class AlignedBatch:
    """The sentences of one optimiser step."""

    sentences: Int[Tensor, " sentence"]
    """Their places in the corpus, of all processes."""
    texts: dict[str, TokenBatch]
    """Of this process: its share of the sentences, the same ones in every language."""


class AlignedBatches(Dataset[AlignedBatch]):
    """`count` batches of aligned sentences.

    The sampling: every epoch is a new permutation of the sentences, fixed by the seed. A batch takes the next ones, and may straddle two epochs, so
    that all sentences come equally often (within one) and every language shows the same sentences. Process r of n takes every n-th sentence of a
    batch, beginning with number r. Neither the number of processes nor that of workers changes which sentences a step sees. Position can be saved
    and restored, also in mid-epoch.

    Args:
        corpus: the languages to train on, the reference among them.
        sentences: in a batch, over all processes.
        workers: processes that put batches together ahead of time; 0: none.
    """

    def __init__(self, tokens: Tokens, corpus: ParallelCorpus, *, sentences: int, count: int, seed: int, workers: int = 0) -> None:
        self.tokens = tokens
        self.sentences = sentences
        self.count = count
        self.seed = seed
        self.workers = workers
        self.position = 0
        self.rank, self.processes = 0, 1
        self.ids = corpus.ids
        self.windows = {code: tokens.by_sentence(texts) for code, texts in corpus.texts.items()}
        self._order = lru_cache(maxsize=2)(self._permutation)

    def __len__(self) -> int:
        return self.count

    def _permutation(self, epoch: int) -> list[int]:
        return torch.randperm(len(self.ids), generator=torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)).tolist()

    def sentences_of(self, index: int) -> list[int]:
        """The sentences of batch `index`, of all processes."""
        places = range(index * self.sentences, (index + 1) * self.sentences)
        return [self._order(epoch)[within] for epoch, within in (divmod(place, len(self.ids)) for place in places)]

    def __getitem__(self, index: int) -> AlignedBatch:
        """Batch `index`."""
        sentences = self.sentences_of(index)
        own = sentences[self.rank :: self.processes]
        texts = {code: self.tokens.collate([w for sentence in own for w in windows[sentence]]) for code, windows in self.windows.items()}
        return AlignedBatch(torch.tensor(sentences), texts)

    def __iter__(self) -> Iterator[AlignedBatch]:
        rest = range(self.position, self.count)
        for batch in DataLoader(self, batch_size=None, sampler=rest, num_workers=self.workers):
            self.position += 1
            yield batch
        self.position = 0

    def state_dict(self) -> dict[str, Any]:
        """Position in the sequence of batches: what was handed out, whatever workers have ready."""
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
        if self.trainer is not None:
            self.batches.rank, self.batches.processes = self.trainer.global_rank, self.trainer.world_size
        return self.batches

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:  # noqa: ARG002 (Lightning's signature)
        """Batches move where they are used."""
        return batch
