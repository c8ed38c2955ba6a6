"""Ways to compute bits per byte."""

from collections.abc import Callable

import torch

from benchmarks.analysis import batches
from benchmarks.setting import BATCH_TOKENS, Setting, load, text
from lingact.evaluation.bits_per_byte import sentence_nats
from lingact.models.lm import embeddings_of
from lingact.models.next_tokens import LOGITS_AT_ONCE


def lingact(setting: Setting) -> Callable[[], float]:
    """As `eval.py` computes them."""
    lm, corpus = load(setting), text(setting)
    return lambda: float(sum(nats.sum() for nats in sentence_nats(lm, corpus, batch_tokens=BATCH_TOKENS, title="text").values()))


def floor(setting: Setting) -> Callable[[], float]:
    """The same forward passes to the last block, and the head's product in chunks: no cross-entropy."""
    lm = load(setting)
    given, head = batches(lm, setting), embeddings_of(lm.model)
    step, last = max(1, LOGITS_AT_ONCE // len(head)), len(lm.blocks) - 1

    @torch.no_grad()
    def run() -> float:
        for batch in given:
            residuals, _ = lm.residuals(batch, (last,))
            for states in residuals[last][batch.predicts].split(step):
                states @ head.T
        return 0.0

    return run


def lm_eval(setting: Setting) -> Callable[[], float]:
    """lm-eval's `loglikelihood_rolling`, a sentence at a time."""
    from lm_eval.models.huggingface import HFLM

    from lingact.evaluation.tasks import libraries_silenced

    lm, corpus = load(setting), text(setting)
    windows = [window.ids for texts in corpus.texts.values() for window in lm.tokens.windows(texts)]
    with libraries_silenced():
        model = HFLM(pretrained=lm.model, tokenizer=lm.tokenizer, batch_size=1, max_length=lm.tokens.context)  # pyrefly: ignore[bad-argument-type]
    requests = [(("", ""), ids[:1], ids[1:]) for ids in windows]
    return lambda: -sum(score for score, _ in model._loglikelihood_tokens(requests, disable_tqdm=True))


WAYS = {"lingact": lingact, "floor": floor, "lm_eval": lm_eval}
