"""Split the log ratio of a language's activation to the reference's into norm, dictionary and remainder. Accounting: it names no cause."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from lingact.activations.attribution_sums import MEASURES, NORMS, OWN, TOKEN_NORM, AttributionSums
from lingact.analysis.measures import Draws, Pooling, Ratio, pooled
from lingact.analysis.tables import named_ranges
from lingact.config.measures import Statistics
from lingact.statistics.bootstrap import Resampling, interval

PARTS = ("norm", "dictionary", "remainder", "total")
ORDERS = ("norm_first", "dictionary_first", "mean")
"""Orders in which norm and dictionary are equalised, and the mean of both (Shapley 1953)."""


@dataclass(frozen=True)
class Accounts:
    """The sums with draws of the documents."""

    sums: AttributionSums
    reference: str
    statistics: Statistics
    resampling: Resampling
    seed: int

    @property
    def languages(self) -> list[str]:
        """All but the reference."""
        return [code for code in self.sums.tokens if code != self.reference]

    def parts(self, code: str, measure: str, set_a: str, set_b: str) -> dict[tuple[str, str], Draws]:
        """(order, part) -> draws, natural logarithms.

        With D(s, n) the log ratio by set s with norms n (own or equal), the total D(a, own) is the sum of
        norm_first: norm D(a, own) - D(a, equal), dictionary D(a, equal) - D(b, equal), remainder D(b, equal);
        dictionary_first: dictionary D(a, own) - D(b, own), norm D(b, own) - D(b, equal), the same remainder.
        """
        own_a, equal_a, own_b, equal_b = (self._log_ratio(code, name, state) for name in (set_a, set_b) for state in (OWN, measure))
        both = {
            "norm_first": {"norm": own_a - equal_a, "dictionary": equal_a - equal_b},
            "dictionary_first": {"norm": own_b - equal_b, "dictionary": own_a - own_b},
        }
        both["mean"] = {part: (both["norm_first"][part] + both["dictionary_first"][part]) / 2 for part in ("norm", "dictionary")}
        whole = {"remainder": equal_b, "total": own_a}
        return {(order, part): (found | whole)[part] for order, found in both.items() for part in PARTS}

    def norm(self, code: str, kind: str) -> Draws:
        """Mean norm of a language's residuals."""
        return self._pooled(self.sums.norms[code][NORMS.index(kind)], code)

    def _log_ratio(self, code: str, sae_set: str, state: str) -> Draws:
        own, others = (self._pooled(self.sums.of(sae_set, state, each), each) for each in (code, self.reference))
        ratio = np.divide(own, others, where=others > 0, out=np.full(own.shape, np.nan))
        return np.log(ratio, where=ratio > 0, out=np.full(ratio.shape, np.nan))

    def _pooled(self, numerator: np.ndarray, code: str) -> Draws:
        pooling: Pooling = self.statistics.pooling
        weights = self.resampling.weights(self.statistics.resamples, self.seed)
        return pooled(Ratio(numerator, self.sums.tokens[code][None], np.ones(numerator.shape[1], bool)), weights, pooling)


def attribution_table(accounts: Accounts) -> pd.DataFrame:
    """One row per language, layer, measure, pair of sets, part and order, in natural logarithms, with intervals over documents.

    Factors that equalise norms are those of the whole sample in every resample. Of two sets of one mix, which differ by their seed alone, there is
    the dictionary part: what chance makes of it.
    """
    frames = []
    for code in accounts.languages:
        for measure in (*MEASURES, TOKEN_NORM):
            for set_a, set_b, of_chance in _pairs(accounts.sums):
                for (order, part), draws in accounts.parts(code, measure, set_a, set_b).items():
                    if of_chance and part != "dictionary":
                        continue
                    place = {"language": code, "layer": accounts.sums.layers, "measure": measure, "set_a": set_a, "set_b": set_b, "part": part}
                    frames.append(pd.DataFrame(place | {"order": order} | _cells(accounts, draws)))
    return pd.concat(frames, ignore_index=True)


def norm_table(accounts: Accounts) -> pd.DataFrame:
    """One row per language, layer and kind of norm (`NORMS`): the mean, and its ratio to the reference's, with intervals over documents."""
    frames = []
    for code in accounts.sums.tokens:
        for kind in NORMS:
            own = accounts.norm(code, kind)
            ratio = _cells(accounts, own / accounts.norm(accounts.reference, kind))
            beside = {"ratio": ratio["estimate"], "ratio_lo": ratio["lo"], "ratio_hi": ratio["hi"]}
            place = {"language": code, "layer": accounts.sums.layers, "norm": kind}
            frames.append(pd.DataFrame(place | _cells(accounts, own) | beside))
    return pd.concat(frames, ignore_index=True)


def range_parts(accounts: Accounts, measure: str = "mean") -> pd.DataFrame:
    """One row per language, range of layers and part: the mean over the layers of the range, order `mean`, first seeds."""
    set_a, set_b = accounts.sums.set_a[0], accounts.sums.set_b[0]
    rows: list[dict[str, Any]] = []
    for code in accounts.languages:
        found = accounts.parts(code, measure, set_a, set_b)
        for name, columns in named_ranges(accounts.sums.layers, accounts.statistics).items():
            for part in PARTS:
                draws = found["mean", part][:, columns].mean(axis=1)
                estimate, low, high = interval(draws, accounts.statistics.confidence, accounts.resampling.clusters)
                rows.append({"language": code, "range": name, "part": part, "estimate": float(estimate), "lo": float(low), "hi": float(high)})
    return pd.DataFrame(rows)


def dictionary_effects(accounts: Accounts) -> pd.DataFrame:
    """One row per language, layer and measure: the dictionary part, mean over pairs of seeds and over both orders, beside what seeds alone make.

    `seed_spread` is the largest dictionary part between two seeds of one mix. `beyond_seeds`: the interval over documents excludes 0 and the effect
    is larger than that. Both are missing where neither mix has a second seed: then nobody knows whether a difference is of the mix or of chance.
    """
    frames = []
    pairs = list(_pairs(accounts.sums))
    for code in accounts.languages:
        for measure in (*MEASURES, TOKEN_NORM):
            parts = [(of_chance, accounts.parts(code, measure, a, b)["mean", "dictionary"]) for a, b, of_chance in pairs]
            effects = np.stack([draws for of_chance, draws in parts if not of_chance])
            chance = [np.abs(draws[0]) for of_chance, draws in parts if of_chance]
            cells = _cells(accounts, effects.mean(axis=0))
            place = {"language": code, "layer": accounts.sums.layers, "measure": measure, "seeds": len(effects)}
            if chance:
                spread = np.max(chance, axis=0)
                beyond = ((cells["lo"] > 0) | (cells["hi"] < 0)) & (np.abs(cells["estimate"]) > spread)
                known = {"seed_spread": spread, "beyond_seeds": beyond}
            else:
                known = {"seed_spread": None, "beyond_seeds": None}
            frames.append(pd.DataFrame(place | cells | known))
    return pd.concat(frames, ignore_index=True)


def _pairs(sums: AttributionSums) -> Iterator[tuple[str, str, bool]]:
    """Pairs of sets, and whether they differ by their seed alone."""
    for set_a, set_b in zip(sums.set_a, sums.set_b, strict=False):
        yield set_a, set_b, False
    for own in (sums.set_a, sums.set_b):
        for one, other in combinations(own, 2):
            yield one, other, True


def _cells(accounts: Accounts, draws: Draws) -> dict[str, Any]:
    estimate, low, high = interval(draws, accounts.statistics.confidence, accounts.resampling.clusters)
    return {"estimate": estimate, "lo": low, "hi": high, "documents": accounts.resampling.count, "resampled": accounts.resampling.by}


def attribution_summary(table: pd.DataFrame) -> dict[str, float]:
    """`attribution/<language>/<layer>/<part>`, by the measure `mean`, the mean of both orders, and the first pair of sets."""
    first = table.iloc[0]
    shown = (table["measure"] == "mean") & (table["order"] == "mean")
    wanted = table[shown & (table["set_a"] == first["set_a"]) & (table["set_b"] == first["set_b"])]
    return {f"attribution/{row['language']}/{row['layer']}/{row['part']}": row["estimate"] for row in wanted.to_dict("records")}
