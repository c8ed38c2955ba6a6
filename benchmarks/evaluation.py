"""What does an evaluation cost beside lm-eval's own? Setting up the tasks, and answering their questions, in CPU seconds of one process each.

Each round runs lingact and lm-eval one after the other, each in a process of its own; the ratio is of the same round.
"""

import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.embedded import CONF
from lingact.runtime.terminal import show

TASKS = Path(__file__).resolve().parents[1] / "src" / "lingact" / "assets" / "microworld" / "tasks"
LANGUAGES = ("en", "zh", "ru", "es", "it", "id", "ca", "mr", "ml", "hi")
NAMES = [f"micro_{name}_{code}" for name in ("arc", "mmlu", "hellaswag") for code in LANGUAGES]
ROUNDS, BATCH = 3, 64
MODELS = 2
"""How often all questions are answered: base and one adapter, as it were."""


def lingact() -> tuple[float, float, float]:
    """CPU seconds of the set-up and of the answers; the sum of all accuracies."""
    from hydra import compose, initialize_config_dir
    from tqdm import tqdm

    from lingact.config.jobs import EvalConfig
    from lingact.config.validation import validate_config
    from lingact.evaluation.answers import AnswerCache
    from lingact.evaluation.scorer import Scorer
    from lingact.evaluation.tasks import load_tasks
    from lingact.models.lm import load_model

    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = validate_config(EvalConfig, compose("eval", ["device=cpu"]))
    lm = load_model(config.model, config.device)
    import lm_eval.tasks  # noqa: F401 (not counted here, nor there)

    began = time.process_time()
    instance = load_tasks(config.tasks, LANGUAGES).instances
    ready = time.process_time()
    with tempfile.TemporaryDirectory() as folder, tqdm(disable=True) as bar:
        runs = [Scorer(lm, BATCH, AnswerCache(Path(folder)), bar).score(lm.model, instance, f"{number}") for number in range(MODELS)]
    return ready - began, time.process_time() - ready, sum(run.items["acc"].sum() for run in runs)


def harness() -> tuple[float, float, float]:
    """The same by lm-eval."""
    import logging

    from hydra import compose, initialize_config_dir
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from lingact.config.jobs import EvalConfig
    from lingact.config.validation import validate_config
    from lingact.models.lm import load_model

    logging.disable(logging.WARNING)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = validate_config(EvalConfig, compose("eval", ["device=cpu"]))
    lm = load_model(config.model, config.device)
    os.chdir(TASKS)  # its data files are named relative to the current folder
    began = time.process_time()
    manager = TaskManager(include_path=str(TASKS))
    manager.load(NAMES)
    ready = time.process_time()
    total = 0.0
    for _ in range(MODELS):
        model = HFLM(pretrained=lm.model, tokenizer=lm.tokenizer, batch_size=BATCH, max_length=config.model.context)  # pyrefly: ignore[bad-argument-type]
        found = simple_evaluate(model, tasks=NAMES, task_manager=manager, bootstrap_iters=0)
        assert found is not None
        total += sum(row["acc"] for rows in found["samples"].values() for row in rows)
    return ready - began, time.process_time() - ready, total


def apart(work: Callable[[], tuple[float, float, float]]) -> tuple[float, float, float]:
    """The result of work in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work)


def main() -> None:
    """Print the table."""
    rounds = [(apart(lingact), apart(harness)) for _ in range(ROUNDS)]
    assert len({total for ours, theirs in rounds for total in (ours[2], theirs[2])}) == 1, "both count the same right answers"
    rows = []
    for place, name in enumerate((f"set-up of {len(NAMES)} tasks", f"all questions, {MODELS} models")):
        ours, theirs = ([pair[which][place] for pair in rounds] for which in (0, 1))
        ratios = sorted(mine / other for mine, other in zip(ours, theirs, strict=True))
        row = {"CPU seconds": name, "lingact": f"{min(ours):.2f} to {max(ours):.2f}", "lm-eval": f"{min(theirs):.2f} to {max(theirs):.2f}"}
        rows.append(row | {"ratio": f"{statistics.median(ratios):.2f}", "smallest": f"{ratios[0]:.2f}", "largest": f"{ratios[-1]:.2f}"})
    show(rows, title=f"{ROUNDS} rounds, ratios of the same round")


if __name__ == "__main__":
    main()
