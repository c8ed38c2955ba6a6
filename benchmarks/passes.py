"""What does measuring cost beside reading? Tokens per second of `measure`, and of the model's forward pass over the same batches alone."""

import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from benchmarks.embedded import BATCH_TOKENS, embedded
from lingact.activations.passes import measure
from lingact.data.corpus import ParallelCorpus
from lingact.models.lm import LanguageModel
from lingact.runtime.terminal import show

SENTENCES, ROUNDS = 100, 5


@torch.no_grad()
def read(lm: LanguageModel, corpus: ParallelCorpus) -> None:
    """The forward pass to the last block, without the logits, which measuring leaves out too."""
    for texts in corpus.texts.values():
        for batch in lm.tokens.batches(lm.tokens.windows(texts), BATCH_TOKENS):
            lm.residuals(batch, (len(lm.blocks) - 1,))


def main() -> None:
    """Print medians, smallest and largest over the rounds, in CPU time of one thread; ratios are to the forward pass in the same round."""
    lm, sae_sets, corpus = embedded(SENTENCES)
    tokens = sum(lm.tokens.count(texts) for texts in corpus.texts.values())
    measured = partial(measure, lm, corpus=corpus, batch_tokens=BATCH_TOKENS, identity={})
    passes: dict[str, Callable[[], object]] = {
        "forward pass": partial(read, lm, corpus),
        "one set of SAEs": partial(measured, {"measuring": sae_sets["measuring"]}),
        "two sets of SAEs": partial(measured, sae_sets),
    }
    seconds = np.empty((ROUNDS + 1, len(passes)))
    for row in seconds:
        for place, run in enumerate(passes.values()):
            start = time.process_time()
            run()
            row[place] = time.process_time() - start
    seconds = seconds[1:]  # the first round warms up
    rows = []
    for name, own in zip(passes, seconds.T, strict=True):
        ratios = own / seconds[:, 0]
        row = {"pass": name, "tokens per CPU second": f"{tokens / np.median(own):.0f}", "times the forward pass": f"{np.median(ratios):.2f}"}
        rows.append(row | {"smallest": f"{ratios.min():.2f}", "largest": f"{ratios.max():.2f}"})
    show(rows, title=f"{len(corpus.texts)} languages, {SENTENCES} sentences, {tokens} tokens, {ROUNDS} rounds")


if __name__ == "__main__":
    main()
