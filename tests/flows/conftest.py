"""Jobs through the real command line, on the small organism and few sentences."""

from collections.abc import Callable
from pathlib import Path

import pytest

from lingact import cli

CONF = Path(__file__).parents[2] / "conf"
Start = Callable[..., int]


@pytest.fixture(scope="session")
def start(small_organism: Path) -> Start:
    """`start("train", folder, overrides...)`: exit code of a run in that folder."""
    few = [
        f"model.name={small_organism}/model",
        f"sae.measuring.release={small_organism}/sae",
        f"sae.heldout.release={small_organism}/sae_heldout",
        f"corpus.path={small_organism}/corpus.jsonl",
        "corpus.max_sentences=60",
        "statistics.resamples=100",
    ]
    short = ["trainer.steps=7", "trainer.sentences=4", "trainer.checkpoint_every=2", "optim.warmup_steps=2", "cache=null"]

    def run(job: str, folder: Path | None, *overrides: str) -> int:
        where = [f"hydra.run.dir={folder}"] if folder else []
        flags = [text for text in overrides if text.startswith("-")]  # argparse wants them before the first override
        given = [text for text in overrides if text not in flags]
        return cli.main(job, CONF, [*flags, *few, *(short if job == "train" else []), *where, *given])

    return run
