"""Split the log ratio of a language's activation to the reference's into norm, dictionary and remainder. Accounting: it names no cause."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from lingact.activations.attribution_sums import MEASURES, NORMS, OWN, STATES, TOKEN_NORM, AttributionSums
from lingact.analysis.measures import Draws, Pooling, Ratio, pooled, quotient
from lingact.analysis.tables import named_ranges
from lingact.config.data import LanguagesConfig
from lingact.config.measures import Statistics
from lingact.statistics.bootstrap import Resampling, interval

PARTS = ("norm", "dictionary", "remainder", "total")
ORDERS = ("norm_first", "dictionary_first", "mean")
"""Orders in which norm and dictionary are equalised, and the mean of both (Shapley 1953)."""
WAYS = (*MEASURES, TOKEN_NORM)
"""Ways to equalise norms: the column `measure` of the tables."""
LogRatios = dict[tuple[str, str], Draws]
"""(set of SAEs, state of the residuals) -> draws of the log ratio of a language's activation to the reference's."""
Parts = dict[tuple[str, str], Draws]
"""(order, part) -> draws."""
BY_CHANCE = {2: 0.22, 3: 0.05, 4: 0.01}
"""Number of SAE seeds of each mix -> how often a mean over seeds exceeds `seed_spread` although the mixes do not differ, if the seeds' values are
independent and normally distributed and the documents' choice adds nothing."""


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

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """A set of the first mix and the one of the second mix in the same place: they differ by the mix, and by chance."""
        return list(zip(self.sums.set_a, self.sums.set_b, strict=True))

    @property
    def pairs_of_seeds(self) -> list[tuple[str, str]]:
        """Two sets of one mix: they differ by chance alone."""
        return [pair for mix in (self.sums.set_a, self.sums.set_b) for pair in combinations(mix, 2)]

    def log_ratios(self, code: str) -> LogRatios:
        """Natural logarithms; nan where either activation is 0."""
        found = {}
        for sae_set in (*self.sums.set_a, *self.sums.set_b):
            for state in STATES:
                own, others = (self._pooled(self.sums.of(sae_set, state, each), each, self.statistics.pooling) for each in (code, self.reference))
                ratio = quotient(own, others)
                found[sae_set, state] = np.log(ratio, where=ratio > 0, out=np.full(ratio.shape, np.nan))
        return found

    def norm(self, code: str, kind: str) -> Draws:
        """Mean norm of a language's residuals over all tokens, whatever the pooling: that is what the factors equalise."""
        return self._pooled(self.sums.norms[code][NORMS.index(kind)], code, "token")

    def cells(self, draws: Float[np.ndarray, "draw ..."]) -> dict[str, Any]:
        """Estimate and interval, with what was resampled. `documents` is missing where that was something else."""
        estimate, low, high = interval(draws, self.statistics.confidence, self.resampling.clusters)
        documents = self.resampling.count if self.resampling.by == "documents" else None
        return {"estimate": estimate, "lo": low, "hi": high, "documents": documents} | self.resampling.columns

    @cached_property
    def _weights(self) -> Float[np.ndarray, "draw sentence"]:
        return self.resampling.weights(self.statistics.resamples, self.seed)

    def _pooled(self, numerator: Float[np.ndarray, "layer sentence"], code: str, pooling: Pooling) -> Draws:
        return pooled(Ratio(numerator, self.sums.tokens[code][None], np.ones(numerator.shape[1], bool)), self._weights, pooling)


def parts_of(ratios: LogRatios, measure: str, set_a: str, set_b: str) -> Parts:
    """The parts of the log ratio by `set_a`, in natural logarithms.

    With D(s, n) the log ratio by set s with norms n (own or equal), the total D(a, own) is the sum of
    norm_first: norm D(a, own) - D(a, equal), dictionary D(a, equal) - D(b, equal), remainder D(b, equal);
    dictionary_first: dictionary D(a, own) - D(b, own), norm D(b, own) - D(b, equal), the same remainder.

    Args:
        ratios: of a language (`Accounts.log_ratios`).
        measure: how norms are equalised.
    """
    own_a, equal_a, own_b, equal_b = (ratios[name, state] for name in (set_a, set_b) for state in (OWN, measure))
    norm = {"norm_first": own_a - equal_a, "dictionary_first": own_b - equal_b}
    dictionary = {"norm_first": equal_a - equal_b, "dictionary_first": own_a - own_b}
    found: Parts = {}
    for order in ORDERS:
        both = (order,) if order != "mean" else tuple(norm)
        first = {"norm": np.mean([norm[each] for each in both], axis=0), "dictionary": np.mean([dictionary[each] for each in both], axis=0)}
        found |= {(order, part): draws for part, draws in (first | {"remainder": equal_b, "total": own_a}).items()}
    return found


def attribution_table(accounts: Accounts) -> pd.DataFrame:
    """One row per language, layer, measure, pair of sets, part and order, in natural logarithms, with intervals over documents.

    Factors that equalise norms are those of the whole sample in every resample. Of two sets of one mix, which differ by their seed alone, there is
    the dictionary part: what chance makes of it.
    """
    frames = []
    for code in accounts.languages:
        ratios = accounts.log_ratios(code)
        for measure in WAYS:
            for set_a, set_b in (*accounts.pairs, *accounts.pairs_of_seeds):
                wanted = PARTS if (set_a, set_b) in accounts.pairs else ("dictionary",)
                for (order, part), draws in parts_of(ratios, measure, set_a, set_b).items():
                    if part in wanted:
                        place = {"language": code, "layer": accounts.sums.layers, "measure": measure, "set_a": set_a, "set_b": set_b, "part": part}
                        frames.append(pd.DataFrame(place | {"order": order} | accounts.cells(draws)))
    return pd.concat(frames, ignore_index=True)


def norm_table(accounts: Accounts) -> pd.DataFrame:
    """One row per language, layer and kind of norm (`NORMS`): the mean, and its ratio to the reference's, with intervals over documents."""
    frames = []
    for code in accounts.sums.tokens:
        for kind in NORMS:
            own = accounts.norm(code, kind)
            cells, ratio = accounts.cells(own), accounts.cells(quotient(own, accounts.norm(accounts.reference, kind)))
            beside = {"ratio": ratio["estimate"], "ratio_lo": ratio["lo"], "ratio_hi": ratio["hi"]}
            first = {name: cells.pop(name) for name in ("estimate", "lo", "hi")}
            place = {"language": code, "layer": accounts.sums.layers, "norm": kind}
            frames.append(pd.DataFrame(place | first | beside | cells))
    return pd.concat(frames, ignore_index=True)


def range_table(accounts: Accounts, languages: LanguagesConfig) -> pd.DataFrame:
    """One row per language or group, range of layers, measure and part: the mean over the layers, both orders and all pairs of seeds.

    A group's part is the mean over its languages.
    """
    ranges = named_ranges(accounts.sums.layers, accounts.statistics)
    groups = {group: codes for group, codes in (("low", languages.low), ("high", languages.high)) if codes}
    found: dict[tuple[str, str, str], dict[str, Float[np.ndarray, " draw"]]] = {}
    for code in accounts.languages:
        ratios = accounts.log_ratios(code)
        for measure in WAYS:
            mean = _mean_over_pairs(accounts, ratios, measure)
            for part in PARTS:
                for name, columns in ranges.items():
                    found.setdefault((name, measure, part), {})[code] = mean[part][:, columns].mean(axis=1)
    for draws in found.values():
        draws |= {group: np.mean([draws[code] for code in codes], axis=0) for group, codes in groups.items()}
    return pd.DataFrame(
        {"name": who, "range": name, "measure": measure, "part": part} | accounts.cells(draws[who])
        for who in (*accounts.languages, *groups)
        for (name, measure, part), draws in found.items()
    )


def _mean_over_pairs(accounts: Accounts, ratios: LogRatios, measure: str) -> dict[str, Draws]:
    """Part -> the mean of both orders and of all pairs of seeds."""
    by_pair = [parts_of(ratios, measure, set_a, set_b) for set_a, set_b in accounts.pairs]
    return {part: np.mean([parts["mean", part] for parts in by_pair], axis=0) for part in PARTS}


def dictionary_effects(accounts: Accounts) -> pd.DataFrame:
    """One row per language, layer and measure: the dictionary part, mean over pairs of seeds and over both orders, beside what seeds alone make.

    `seed_spread` is the largest dictionary part between two seeds of one mix. `beyond_seeds`: the interval over documents excludes 0 and the effect
    is larger than that. Both are missing where the mixes have one seed: then nobody knows whether a difference is of the mix or of chance. With few
    seeds the spread is a rough bound (`BY_CHANCE`).
    """
    frames = []
    mixes = {"set_a": " + ".join(accounts.sums.set_a), "set_b": " + ".join(accounts.sums.set_b)}
    for code in accounts.languages:
        ratios = accounts.log_ratios(code)
        for measure in WAYS:
            cells = accounts.cells(_mean_over_pairs(accounts, ratios, measure)["dictionary"])
            place = {"language": code, "layer": accounts.sums.layers, "measure": measure, **mixes, "seeds": len(accounts.pairs)}
            known: dict[str, Any] = {"seed_spread": None, "beyond_seeds": None}
            if accounts.pairs_of_seeds:
                chance = [parts_of(ratios, measure, one, other)["mean", "dictionary"][0] for one, other in accounts.pairs_of_seeds]
                spread = np.abs(chance).max(axis=0)
                known = {"seed_spread": spread, "beyond_seeds": _excludes_zero(cells) & (np.abs(cells["estimate"]) > spread)}
            frames.append(pd.DataFrame(place | cells | known))
    return pd.concat(frames, ignore_index=True)


def _excludes_zero(cells: Mapping[str, Any]) -> np.ndarray:
    return (cells["lo"] > 0) | (cells["hi"] < 0)


def attribution_summary(table: pd.DataFrame, accounts: Accounts) -> dict[str, float]:
    """`attribution/<language>/<layer>/<part>`: by the measure `mean`, the mean of both orders and of all pairs of seeds."""
    of_mixes = np.array([pair in accounts.pairs for pair in zip(table["set_a"], table["set_b"], strict=True)])
    wanted = table[of_mixes & (table["measure"] == "mean") & (table["order"] == "mean")]
    means = wanted.groupby(["language", "layer", "part"], sort=False)["estimate"].agg(lambda values: values.mean(skipna=False))
    rows = means.reset_index().to_dict("records")
    return {f"attribution/{row['language']}/{row['layer']}/{row['part']}": float(row["estimate"]) for row in rows}
