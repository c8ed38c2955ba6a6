"""Training batches: the same aligned sentences in the target languages and in the reference."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

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
    """Their places in the corpus, over all processes."""
    texts: dict[str, TokenBatch]
    """This process's share of the sentences, the same ones in every language."""


class AlignedBatches(Dataset[AlignedBatch]):
    """`count` batches of aligned sentences.

    Every epoch is a new permutation of the sentences, fixed by the seed. A batch takes the next sentences of it and may reach into the next epoch, so
    that counts of any two sentences differ by at most one. Every language has the same sentences. Process r of n takes every n-th sentence of a
    batch, beginning with number r. Neither the number of processes nor that of workers changes which sentences a step uses. The position can be saved
    and restored in the middle of an epoch.

    Args:
        corpus: the languages to train on, including the reference.
        sentences: sentences per batch, over all processes.
        workers: processes that prepare batches ahead of time; 0: none.
        predicted_share: share of the positions whose next token is predicted (`TokenBatch.thinned`), drawn anew for every batch from the seed.
    """

    def __init__(
        self, tokens: Tokens, corpus: ParallelCorpus, *, sentences: int, count: int, seed: int, workers: int = 0, predicted_share: float = 1.0
    ) -> None:
        self.tokens = tokens
        self.sentences = sentences
        self.count = count
        self.seed = seed
        self.workers = workers
        self.predicted_share = predicted_share
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
        """The sentences of batch `index`, over all processes."""
        places = range(index * self.sentences, (index + 1) * self.sentences)
        return [self._order(epoch)[within] for epoch, within in (divmod(place, len(self.ids)) for place in places)]

    def __getitem__(self, index: int) -> AlignedBatch:
        """Batch `index`."""
        sentences = self.sentences_of(index)
        own = sentences[self.rank :: self.processes]
        texts = {code: self.tokens.collate([w for sentence in own for w in windows[sentence]]) for code, windows in self.windows.items()}
        if self.predicted_share < 1:
            phase = torch.rand(len(self.ids), generator=torch.Generator().manual_seed(self.seed * 1_000_003 + index), dtype=torch.float64)
            texts = {code: batch.thinned(self.predicted_share, phase[batch.sentence]) for code, batch in texts.items()}
        return AlignedBatch(torch.tensor(sentences), texts)

    def __iter__(self) -> Iterator[AlignedBatch]:
        rest = range(self.position, self.count)
        for batch in DataLoader(self, batch_size=None, sampler=rest, num_workers=self.workers):
            self.position += 1
            yield batch
        self.position = 0

    def state_dict(self) -> dict[str, int]:
        """How many batches were used, not counting those that workers have prepared."""
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue from a saved position."""
        self.position = state["position"]


class AlignedData(pl.LightningDataModule):
    """Gives the batches to Lightning."""

    def __init__(self, batches: AlignedBatches) -> None:
        super().__init__()
        self.batches = batches

    def train_dataloader(self) -> AlignedBatches:
        """The batches, whose position Lightning saves and restores."""
        if self.trainer is not None:
            self.batches.rank, self.batches.processes = self.trainer.global_rank, self.trainer.world_size
        return self.batches

    def transfer_batch_to_device(self, batch: AlignedBatch, device: torch.device, dataloader_idx: int) -> AlignedBatch:  # noqa: ARG002 (Lightning's signature)
        """Leave the batch on the CPU; its tensors are moved where they are used."""
        return batch
