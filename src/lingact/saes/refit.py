"""What refitted SAEs change: gaps of a language with each dictionary on its own model."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from lingact.activations.measurement import ADAPTER, BASE, Measurement
from lingact.analysis.measures import Draws, StatsByLanguage, quotient, value
from lingact.saes.quality import Intervals, View
from lingact.statistics.bootstrap import interval


def refit_table(measured: Measurement, names: Sequence[str], reference: str, targets: Sequence[str], intervals: Intervals) -> pd.DataFrame:
    """One row per set, choice of SAEs, target language and layer: the gap `1 - A / A_reference` before and after tuning, and its change.

    Reference and target are measured on the same model. `unchanged`: both models by the SAEs as they were; `continued`: both by the SAEs that were
    trained further on the base model; `refit`: the base model by these, the adapted one by those that were trained further on it, with the same
    tokens in the same order. What `unchanged` and `continued` see and `refit` does not is in the dictionary, not in the model.

    Args:
        names: the sets that were refitted; `measured` has `<name>`, `<name>_base` and `<name>_adapted`.
    """
    frames = []
    for name in names:
        views: dict[str, tuple[View, View]] = {
            "unchanged": ((name, BASE), (name, ADAPTER)),
            "continued": ((f"{name}_base", BASE), (f"{name}_base", ADAPTER)),
            "refit": ((f"{name}_base", BASE), (f"{name}_adapted", ADAPTER)),
        }
        for saes, both in views.items():
            before, after = ({code: stats for code, stats in measured.of(*view).items() if code in (reference, *targets)} for view in both)
            for code in targets:
                stats = before[code]
                resampling = stats.resampling(None)
                weights = resampling.weights(intervals.resamples, intervals.seed)
                gaps = {"before": _gap(before, code, reference, weights), "after": _gap(after, code, reference, weights)}
                gaps["change"] = gaps["after"] - gaps["before"]
                for quantity, draws in gaps.items():
                    estimate, low, high = interval(draws, intervals.confidence, resampling.clusters)
                    place = {"sae_set": name, "saes": saes, "language": code, "layer": stats.layers, "quantity": quantity} | resampling.columns
                    frames.append(pd.DataFrame(place | {"estimate": estimate, "lo": low, "hi": high}))
    return pd.concat(frames, ignore_index=True)


def refit_summary(table: pd.DataFrame) -> dict[str, float]:
    """`refit/<set>/<language>/<layer>`: how much the gap changes by tuning, by refitted SAEs."""
    wanted = table[(table["saes"] == "refit") & (table["quantity"] == "change")]
    return {f"refit/{row['sae_set']}/{row['language']}/{row['layer']}": row["estimate"] for row in wanted.to_dict("records")}


def _gap(stats: StatsByLanguage, code: str, reference: str, weights: np.ndarray) -> Draws:
    own, others = (value(stats[each], "mean", weights, "token") for each in (code, reference))
    return 1 - quotient(own, others)
