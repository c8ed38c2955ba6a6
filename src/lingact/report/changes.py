"""Before and after: what an adapter, or the step from one model to another, changed."""

from collections.abc import Mapping

import pandas as pd

from lingact.activations.measurement import Measurement
from lingact.analysis.changes import Variants, change_bits_table, change_frames
from lingact.figures.training import change_bars
from lingact.report.analysis_result import AnalysisResult, ReportSettings
from lingact.report.training import retention_rows, train_rows, training_text


def change_result(
    by_sae_set: Mapping[str, Variants], measured: Measurement | None, counted_layers: tuple[int, ...], settings: ReportSettings
) -> AnalysisResult:
    """The change of every language by an adapter, or from one model to another.

    Args:
        by_sae_set: set of SAEs -> statistics before and after.
        measured: for bits per byte and sentence; None if the two sides come from different runs.
        counted_layers: layers over which the gap closed is averaged.
        settings: languages and statistics.
    """
    codes = [code for code in settings.languages.all if code != settings.languages.reference]
    frames, summary = change_frames(by_sae_set, settings.languages, settings.statistics, counted_layers, codes, seed=settings.seed)
    if measured is not None:
        frames["bits"] = change_bits_table(measured, next(iter(by_sae_set)), settings.statistics, settings.seed)
    shown = {"Before and after": pd.DataFrame(train_rows(frames, codes)), "Retention of the reference": pd.DataFrame(retention_rows(frames))}
    text = training_text(frames, codes, settings.languages.reference)
    targets = frames["change_by_layer"][frames["change_by_layer"]["language"].isin(codes)]
    rows = shown["Before and after"]
    printed = shown | {"Before and after": rows[rows["measure"].isin(["gap all", "gap closed"])]}  # ranges of layers are on the page only
    return AnalysisResult("Before and after", text, text, frames, {"change": change_bars(targets)}, shown, summary=summary, printed=printed)
