"""What noise a share of the predicted positions adds to the gradient, and what time it saves: python -m benchmarks.shares [MODEL DATA].

The variance between batches is there in any case. A share is worth its noise if the sum of both, times the seconds of a step, is smaller than with
all positions: that is the computing time for a gradient of a given precision.
"""

import os
import sys
import time

import torch

from benchmarks.setting import Setting, load, random_saes, text
from benchmarks.steps import CODES, SENTENCES, loss_of
from lingact.activations.functional import combine
from lingact.runtime.terminal import show
from lingact.training.batches import AlignedBatches

SHARES, BATCHES, WARM_UP, LEARNING_RATE = (0.5, 0.25, 0.125), 10, 12, 1e-4


def main() -> None:
    """Print the table."""
    os.environ["TQDM_DISABLE"] = "1"
    model, data = sys.argv[1:3] if len(sys.argv) > 2 else (None, None)
    setting = Setting(model=model, data=data, sentences=SENTENCES * (BATCHES + WARM_UP))
    lm, corpus = load(setting), text(setting)
    count = len(lm.blocks)
    saes = random_saes(lm, corpus, setting.width, (count // 3, 2 * count // 3))
    loss = loss_of(lm, saes, corpus, batch_tokens=512)
    retention = loss.loss.retention
    weights = {"gap": loss.loss.gap.weight, "retention": retention.kl, "norm": retention.norm, "fit": retention.fit, "target_kl": retention.target_kl}

    def gradient(number: int, share: float) -> tuple[torch.Tensor, float]:
        made = AlignedBatches(lm.tokens, corpus.speaking(CODES), sentences=SENTENCES, count=BATCHES + WARM_UP, seed=0, predicted_share=share)
        loss.loss = loss.loss.model_copy(update={"predicted_share": share})
        lm.model.zero_grad()
        start = time.perf_counter()
        combine(loss.terms(made[number], part=SENTENCES // 2), weights).total.backward()
        taken = time.perf_counter() - start
        return torch.cat([p.grad.flatten() for p in lm.model.parameters() if p.grad is not None]), taken

    optimiser = torch.optim.AdamW([p for p in lm.model.parameters() if p.requires_grad], lr=LEARNING_RATE)
    for number in range(WARM_UP):  # at its beginning an adapter has no KL
        gradient(BATCHES + number, 1.0)
        optimiser.step()
    whole = [gradient(number, 1.0) for number in range(BATCHES)]
    mean = torch.stack([each for each, _ in whole]).mean(dim=0)
    between = sum(float((each - mean).square().sum()) for each, _ in whole) / (BATCHES - 1)
    seconds = sum(taken for _, taken in whole) / BATCHES
    rows = [{"share": "1", "seconds a step": f"{seconds:.2f}", "added variance": "0", "time for equal precision": "1"}]
    for share in SHARES:
        found = [gradient(number, share) for number in range(BATCHES)]
        added = sum(float((each - all_).square().sum()) for (each, _), (all_, _) in zip(found, whole, strict=True)) / BATCHES / between
        taken = sum(taken for _, taken in found) / BATCHES
        rows.append(
            {"share": f"{share}", "seconds a step": f"{taken:.2f}", "added variance": f"{added:.3f}"}
            | {"time for equal precision": f"{taken / seconds * (1 + added):.2f}"}
        )
    show(rows, title=f"gradient of the default loss, {BATCHES} batches of {SENTENCES} sentences, length {float(mean.norm()):.3g}")


if __name__ == "__main__":
    main()
