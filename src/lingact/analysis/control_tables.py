"""Tables of random directions, for each draw and on average, and of the difference to the trained SAEs. Pure functions of draws.

Sentences are resampled together for all draws and the trained SAEs; `crossed` covers the choice of the directions.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float

from lingact.analysis.tables import GROUP_GAPS, Disparities, layer_table, range_table
from lingact.statistics.bootstrap import benjamini_hochberg, holm
from lingact.statistics.crossed import crossed_difference, crossed_mean
from lingact.statistics.paired import Crossed

MEAN = "mean"
"""Value of the column `draw` for the mean over the draws."""


def draws_by_layer(found: Sequence[Disparities]) -> pd.DataFrame:
    """`tables.layer_table` of every draw (`draw` 1, 2, ...; `draws` 1) and of their mean (`draw` mean; `draws` is their number).

    The mean's interval and p cover sentences and draws (`crossed.crossed_mean`), or only sentences if there is one draw. The mean has no simultaneous
    band. Its `activation`, `effect` and `wider` are means over the draws.
    """
    tables = [layer_table(own) for own in found]
    mean = _averaged(tables, "activation", "effect", "wider").assign(band_lo=np.nan, band_hi=np.nan)
    gaps = {name: np.stack([own.gaps[name] for own in found]) for name in found[0].gaps}
    cells = [_over_draws(draws[:, :, row], found[0]) for draws in gaps.values() for row in range(len(found[0].layers))]
    mean = _filled(mean, cells)
    families = mean.groupby(mean["name"].isin(GROUP_GAPS))["p"]
    mean["p_holm"] = families.transform(lambda p: holm(p.to_numpy(float)))
    mean["p_bh"] = families.transform(lambda p: benjamini_hochberg(p.to_numpy(float)))
    return _stacked(tables, mean)


def draws_by_range(found: Sequence[Disparities]) -> pd.DataFrame:
    """`tables.range_table` of every draw and of their mean, as in `draws_by_layer`."""
    tables = [range_table(own) for own in found]
    cells = []
    for name in found[0].gaps:
        for members in found[0].ranges.values():
            draws = np.stack([own.gaps[name][:, members] for own in found])
            cells += [_over_draws(draws.mean(axis=2), found[0]), _over_draws(draws.max(axis=2), found[0])]
    mean = _filled(_averaged(tables, "wider"), cells)
    mean.loc[mean["statistic"] == "max", "p"] = np.nan
    mean["p_holm"] = mean.groupby(mean["name"].isin(GROUP_GAPS))["p"].transform(lambda p: holm(p.to_numpy(float)))
    return _stacked(tables, mean)


def trained_minus_random(trained: Disparities, found: Sequence[Disparities]) -> pd.DataFrame:
    """The trained SAEs' gap minus that of random directions, on the same resamples: one row per language or group and range, means over its layers.

    `trained`, `random`: the gaps (`random`: mean over the draws). `lo`, `hi`, `p`: of the difference `estimate`, over sentences and draws. The
    trained SAEs are treated as fixed. `p_holm`: corrected over languages and ranges; groups are a separate family of tests.
    """
    rows = []
    for name in trained.gaps:
        for label, members in trained.ranges.items():
            own = trained.gaps[name][:, members].mean(axis=1)
            random = np.stack([draw.gaps[name][:, members].mean(axis=1) for draw in found])
            difference = crossed_difference(own[None], random, resampling=trained.resampling, confidence=trained.confidence)
            levels = {"trained": float(own[0]), "random": float(random[:, 0].mean())}
            row = {"name": name, "range": label} | trained.resampling.columns | {"draws": len(found)} | levels
            rows.append(row | {"estimate": difference.estimate.value, "lo": difference.estimate.lo, "hi": difference.estimate.hi, "p": difference.p})
    table = pd.DataFrame(rows)
    return table.assign(p_holm=table.groupby(table["name"].isin(GROUP_GAPS))["p"].transform(lambda p: holm(p.to_numpy(float))))


def mean_rows(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of the mean over the draws, with the same columns as for other SAEs."""
    return table[table["draw"] == MEAN].drop(columns=["draw", "draws"]).reset_index(drop=True)


def draws_summary(layers: pd.DataFrame, ranges: pd.DataFrame) -> dict[str, float]:
    """`tables.gap_summary` of the mean over the draws."""
    by_layer, by_range = mean_rows(layers), mean_rows(ranges)
    summary = {f"gap/{row['name']}/{row['layer']}": float(row["gap"]) for row in by_layer.to_dict("records")}
    for row in by_range.to_dict("records"):
        summary[f"gap/{row['name']}/{row['range']}" + ("_max" if row["statistic"] == "max" else "")] = float(row["gap"])
    return summary


def _over_draws(draws: Float[np.ndarray, "unit draw"], found: Disparities) -> Crossed:
    return crossed_mean(draws, resampling=found.resampling, confidence=found.confidence)


def _averaged(tables: Sequence[pd.DataFrame], *columns: str) -> pd.DataFrame:
    return tables[0].assign(**{column: np.mean([table[column] for table in tables], axis=0) for column in columns})


def _filled(table: pd.DataFrame, cells: Sequence[Crossed]) -> pd.DataFrame:
    estimates = [cell.estimate for cell in cells]
    columns = {"gap": [each.value for each in estimates], "lo": [each.lo for each in estimates], "hi": [each.hi for each in estimates]}
    return table.assign(**columns, p=[cell.p for cell in cells])


def _stacked(tables: Sequence[pd.DataFrame], mean: pd.DataFrame) -> pd.DataFrame:
    named = [(str(place), 1, table) for place, table in enumerate(tables, start=1)]
    whole = pd.concat([table.assign(draw=draw, draws=draws) for draw, draws, table in (*named, (MEAN, len(tables), mean))], ignore_index=True)
    return whole[["draw", "draws", *whole.columns.drop(["draw", "draws"])]]
