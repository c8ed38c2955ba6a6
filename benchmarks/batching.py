"""Do the results depend on the batch size? Every decision "latent j fires on token t", made in batches of different sizes, bit by bit."""

import sys

import numpy as np
import torch
from scipy.stats import chi2

from benchmarks.embedded import BATCH_TOKENS, embedded
from lingact.activations.features import kept_residuals
from lingact.activations.measurement import Measurement
from lingact.activations.passes import measure
from lingact.models.lm import LanguageModel
from lingact.models.sae import Dictionaries
from lingact.runtime.terminal import show

OTHERS = (512, 64, 1)
"""Compared with `BATCH_TOKENS`. 64: a few sentences a batch; 1: every sentence alone, without padding."""
ALONE = 100
"""A pass for each sentence takes long: at most so many."""


@torch.no_grad()
def active(lm: LanguageModel, saes: Dictionaries, texts: tuple[str, ...], batch_tokens: int) -> dict[int, np.ndarray]:
    """Sentence -> bool [token, layer, d_sae]: what fires."""
    found = {}
    for batch in lm.tokens.batches(lm.tokens.windows(texts), batch_tokens):
        assert batch.first.all(), "a sentence longer than the context"
        residuals, _ = kept_residuals(lm, batch, tuple(saes))
        fires = torch.stack([sae.encode(residuals[layer]) > 0 for layer, sae in saes.items()], dim=1)
        rows = fires.split(batch.keep.sum(dim=1).tolist())
        found |= {sentence: row.numpy() for sentence, row in zip(batch.sentence.tolist(), rows, strict=True)}
    return found


def count_differences(one: Measurement, other: Measurement) -> dict[str, int]:
    """Sum of the absolute differences of the counts that the tables are made of; two flips of a latent may cancel here."""
    pairs = [(s, other.stats[key]) for key, s in one.stats.items()]
    firing = sum(int(np.abs(a - b).sum()) for s, t in pairs for a, b in zip(s.firing, t.firing, strict=True))
    return {"firing counts differ by": firing, "L0 differs by": sum(int(np.abs(s.l0 - t.l0).sum()) for s, t in pairs)}


def main() -> None:
    """Print, for each batch size, decisions, flips and the upper end of their exact 95 % interval (Poisson), in parts per million."""
    lm, sae_sets, corpus = embedded(int(sys.argv[1]) if sys.argv[1:] else 300)
    saes = sae_sets["measuring"]
    rows = []
    for batch_tokens in OTHERS:
        part = corpus.select(list(range(min(len(corpus.ids), ALONE)))) if batch_tokens == 1 else corpus
        flips = decisions = 0
        for texts in part.texts.values():
            one, other = (active(lm, saes, texts, size) for size in (BATCH_TOKENS, batch_tokens))
            flips += sum(int((fires != other[sentence]).sum()) for sentence, fires in one.items())
            decisions += sum(fires.size for fires in one.values())
        measured = [measure(lm, {"measuring": saes}, part, batch_tokens=size, identity={}) for size in (BATCH_TOKENS, batch_tokens)]
        row = {"batch tokens": f"{BATCH_TOKENS} / {batch_tokens}", "sentences": len(part.ids), "decisions": decisions, "flips": flips}
        row |= {"per million": f"{1e6 * flips / decisions:.3f}", "at most": f"{1e6 * chi2.ppf(0.975, 2 * flips + 2) / 2 / decisions:.3f}"}
        rows.append(row | count_differences(*measured))
    show(rows, title=f"{len(corpus.texts)} languages, 6 layers of 512 latents")


if __name__ == "__main__":
    main()
