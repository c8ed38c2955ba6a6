"""Ways to score the options of benchmark questions."""

import io
from collections.abc import Callable

from tqdm import tqdm

from benchmarks.setting import Setting, items, load
from lingact.evaluation.loglikelihoods import answers_to, batch_size_for, harness_of
from lingact.evaluation.tasks import libraries_silenced, prompt_and_option

BATCH_SIZES = (1, 8)
"""lm-eval is tried with each, and the better one counts."""
Scores = list[tuple[float, bool, int]]
"""Log-likelihood, whether it is the likeliest continuation, and the option's bytes."""


def lingact(setting: Setting) -> Callable[[], Scores]:
    """As `eval.py` scores them, with the batch size that it chooses."""
    lm, tasks = load(setting), items(setting)
    size = batch_size_for(lm, tasks)
    harness = harness_of(lm, lm.model, size)

    def run() -> Scores:
        found: Scores = []
        for task in tasks:
            with tqdm(file=io.StringIO()) as bar:
                answers = answers_to(task.requests, harness, size, bar)["answers"]
            found += [
                (float(score), bool(greedy), len(prompt_and_option(request.args)[1].encode()))
                for (score, greedy), request in zip(answers, task.requests, strict=True)
            ]
        return found

    return run


def lm_eval(setting: Setting) -> Callable[[], Scores]:
    """lm-eval's own model class, with its cache of logits. What its command line does before and after is left out, in its favour."""
    from time import perf_counter

    from lm_eval.models.huggingface import HFLM

    lm, tasks = load(setting), items(setting)
    with libraries_silenced():
        models = {
            size: HFLM(pretrained=lm.model, tokenizer=lm.tokenizer, batch_size=size, max_length=lm.tokens.context)  # pyrefly: ignore[bad-argument-type]
            for size in BATCH_SIZES
        }

    def scored(size: int) -> Scores:
        found: Scores = []
        for task in tasks:
            with libraries_silenced():
                answers = models[size].loglikelihood(list(task.requests), disable_tqdm=True)
            found += [
                (score, greedy, len(prompt_and_option(request.args)[1].encode()))
                for (score, greedy), request in zip(answers, task.requests, strict=True)
            ]
        return found

    took: dict[int, float] = {}

    def run() -> Scores:
        """The first time, which is not counted, with each batch size."""
        for size in BATCH_SIZES if not took else ():
            start = perf_counter()
            scored(size)
            took[size] = perf_counter() - start
        return scored(min(took, key=took.__getitem__))

    return run


WAYS = {"lingact": lingact, "lm_eval": lm_eval}


def compared(ours: Scores, theirs: Scores) -> dict[str, str]:
    """How far apart the scores are, and how many of lm-eval's decisions differ."""
    apart = [abs(one[0] - other[0]) for one, other in zip(ours, theirs, strict=True)]
    greedy = sum(one[1] != other[1] for one, other in zip(ours, theirs, strict=True))
    return {"options": f"{len(ours)}", "largest difference": f"{max(apart):.1e}", "greedy in one only": f"{greedy}"}
