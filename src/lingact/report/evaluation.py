"""Did it help? The report of eval.py."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from lingact.compare import ALL
from lingact.config import EvalConfig
from lingact.report.page import Section, run_facts, write_report
from lingact.report.words import how_sure, listed


def _reading_scores(config: EvalConfig) -> list[str]:
    return [
        (
            "Accuracy is the share of items whose right option the model finds most likely; chance is what guessing would give. A difference is "
            "adapter minus base on the same items: positive means the adapter helped."
        ),
        "Accuracies carry Wilson intervals. " + how_sure(config.confidence, config.resamples, "items"),
        (
            "Cautions. A difference whose interval includes 0 is no evidence of no effect: look at its width. "
            "All was found on this model and these items, and holds for no others without being measured there."
        ),
    ]


def write_evaluation(folder: Path, config: EvalConfig, pages: Sequence[Section], differences: pd.DataFrame | None) -> Path:
    """The report of eval.py.

    Args:
        differences: `compare.difference_table`; None for the base model alone.
    """
    lead = "Accuracy of the base model alone; give adapter=<run folder> to compare."
    if differences is not None:
        pooled = differences[(differences["task"] == ALL) & (differences["kind"] == ALL) & (differences["metric"] == "acc")]
        better, worse = (list(pooled.loc[side, "language"]) for side in (pooled["lo"] > 0, pooled["hi"] < 0))
        rest = [code for code in pooled["language"] if code not in (*better, *worse)]
        lead = (
            f"Over all benchmarks together the adapter scores higher than the base model in {listed(better)} of the {len(pooled)} languages and "
            f"lower in {listed(worse)}, with {config.confidence:.0%} intervals that exclude 0; {listed(rest)} cannot be told apart."
        )
    title = "Benchmarks, base model" if differences is None else "Benchmarks, adapter against base model"
    return write_report(folder, title, lead, pages, run_facts(folder), reading=_reading_scores(config))
