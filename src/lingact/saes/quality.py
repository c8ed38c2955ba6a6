"""How well SAEs fit each language, on documents that none of them was trained on."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations, permutations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool

from lingact.activations.feature_stats import FeatureStats
from lingact.activations.features import largest_dimensions
from lingact.activations.interventions import spliced_losses
from lingact.activations.measurement import ADAPTER, BASE, Measurement
from lingact.activations.passes import Wanted, measure
from lingact.activations.random_saes import pooled_sample
from lingact.analysis.effects import spliced_table
from lingact.analysis.measures import Draws, value
from lingact.config.saes import SaeMix
from lingact.data.corpus import ParallelCorpus
from lingact.errors import UserError
from lingact.models.adapters import base_behaviour
from lingact.models.lm import LanguageModel
from lingact.models.sae import Dictionaries
from lingact.saes.text import Document
from lingact.statistics.bootstrap import interval

RARE = 1e-4
"""A latent is rare if it fires on fewer of the held-out tokens."""
SHARED = 0.7
"""Cosine from which on two latents are said to have one direction."""
_SAMPLE_TOKENS = 8192
"""Tokens of all languages from which the variances of dimensions are taken."""
_ROWS_AT_ONCE = 4096
_FEWEST = 2
"""Documents, without which there is no interval."""


View = tuple[str, str]
"""A set of SAEs, and the model (`measurement.BASE`, or `ADAPTER`) on which it is judged."""


@dataclass(frozen=True)
class Intervals:
    """How intervals over documents are drawn."""

    resamples: int
    confidence: float
    seed: int


@dataclass(frozen=True)
class Judge:
    """What SAEs are judged with."""

    lm: LanguageModel
    sae_sets: dict[str, Dictionaries]
    batch_tokens: int
    identity: dict[str, str]
    """Hashes of model, SAEs and text."""
    folder: Path
    """Passes are stored there, so that an interrupted run goes on."""
    refit: frozenset[str] = frozenset()
    """Sets that were refitted to the adapter that the model carries: they are judged on the adapted model. Empty: the model has no adapter."""

    @property
    def views(self) -> list[View]:
        """The sets, each on its own model; where there are refitted ones, the others that they come from on both."""
        unchanged = [name for name in self.sae_sets if {f"{name}_base", f"{name}_adapted"} <= set(self.sae_sets)]
        own = [(name, ADAPTER if name in self.refit else BASE) for name in self.sae_sets]
        return [*own, *((name, ADAPTER) for name in unchanged)]

    def fit(self, corpora: Mapping[str, ParallelCorpus]) -> dict[str, Measurement]:
        """Statistics of each language."""
        excluded = self._largest_dimensions(corpora)
        return {
            code: measure(
                self.lm,
                self.sae_sets,
                corpus,
                batch_tokens=self.batch_tokens,
                identity=self.identity,
                wanted=Wanted(title=f"held-out {code}", excluded=excluded, adapter=bool(self.refit)),
                folder=self.folder / code,
            )
            for code, corpus in corpora.items()
        }

    def _largest_dimensions(self, corpora: Mapping[str, ParallelCorpus]) -> dict[int, Bool[np.ndarray, " d_model"]]:
        """Of each layer the dimensions of largest variance over all languages."""
        layers, share = tuple(next(iter(self.sae_sets.values()))), _SAMPLE_TOKENS // len(corpora)
        with base_behaviour(self.lm.model):
            samples = [pooled_sample(self.lm, corpus, layers, tokens=share, batch_tokens=self.batch_tokens) for corpus in corpora.values()]
        return {layer: largest_dimensions(torch.cat([sample[layer] for sample in samples])).numpy() for layer in layers}

    def recovered(self, corpora: Mapping[str, ParallelCorpus], intervals: Intervals) -> pd.DataFrame:
        """How much of the cross-entropy is kept when a reconstruction takes the residual's place, by language: `effects.spliced_table`."""
        on_base = {name: own for name, own in self.sae_sets.items() if name not in self.refit}
        frames = []
        for code, corpus in corpora.items():
            with base_behaviour(self.lm.model):
                frames.append(self._spliced(on_base, corpus, self.folder / code / "spliced.safetensors", intervals))
            if self.refit:
                refitted = {name: self.sae_sets[name] for name in sorted(self.refit)}
                frames.append(self._spliced(refitted, corpus, self.folder / code / "spliced_adapter.safetensors", intervals))
        return pd.concat(frames, ignore_index=True)

    def _spliced(self, sae_sets: dict[str, Dictionaries], corpus: ParallelCorpus, path: Path, intervals: Intervals) -> pd.DataFrame:
        losses = spliced_losses(self.lm, sae_sets, corpus, batch_tokens=self.batch_tokens, header=self.identity, path=path)
        return spliced_table(losses, corpus.resampling(None), **asdict(intervals))


def heldout_corpora(documents: Mapping[str, Sequence[Document]], lm: LanguageModel, tokens: int) -> dict[str, ParallelCorpus]:
    """Of each language so many documents that they have about `tokens` tokens, or all; at least two.

    Raises:
        UserError: a language has fewer than two held-out documents.
    """
    found = {}
    for code, own in documents.items():
        texts: list[str] = []
        names: list[str] = []
        count = 0
        for number, document in enumerate(own):
            if count >= tokens and number >= _FEWEST:
                break
            texts += document.texts
            names += [f"{code}-{number}"] * len(document.texts)
            count += lm.tokens.count(document.texts)
        if len(set(names)) < _FEWEST:
            raise UserError(f"text: {code} has {len(set(names))} held-out documents; give more text, or a larger text.heldout")
        ids = tuple(f"{code}-{place}" for place in range(len(texts)))
        found[code] = ParallelCorpus(f"held-out {code}", ids, {code: tuple(texts)}, documents=tuple(names))
    return found


def fit_table(measured: Mapping[str, Measurement], views: Sequence[View], intervals: Intervals) -> pd.DataFrame:
    """One row per set and model, language, layer and quantity, with intervals over documents.

    Quantities: `fvu`, `explained_variance` (1 - FVU), both about the language's mean residual; the same with `_without_largest`, over all dimensions
    but the 1 % of largest variance; `l0`, active latents of a token.
    """
    rows = []
    for code, found in measured.items():
        for sae_set, model in views:
            stats = found.of(sae_set, model)[code]
            fvu, without, l0 = (_draws(stats, measure, intervals) for measure in ("fvu", "fvu_without_largest", "l0"))
            quantities = {"fvu": fvu, "explained_variance": 1 - fvu, "fvu_without_largest": without, "l0": l0}
            quantities["explained_variance_without_largest"] = 1 - without
            for quantity, draws in quantities.items():
                place = {"sae_set": sae_set, "model": model, "language": code, "quantity": quantity}
                rows += [place | row for row in _estimates(stats, draws, intervals)]
    columns = ["sae_set", "model", "language", "layer", "quantity", "estimate", "lo", "hi", "documents"]
    return pd.DataFrame(rows)[columns]


def mix_effects_table(measured: Mapping[str, Measurement], sets: Mapping[str, SaeMix], intervals: Intervals) -> pd.DataFrame:
    """One row per pair of mixes, language and layer: FVU with `mix_a` minus FVU with `mix_b`, the mean over their SAE seeds.

    Sets of one mix, width and k are its seeds; a mix is named by the first of them. `seed_spread` is the largest difference between two seeds of one
    of the two mixes, and `beyond_seeds` says whether the interval over documents excludes 0 and the effect is larger than that. Both are missing
    where a mix has one seed: then nobody knows whether a difference is of the mix or of chance.
    """
    groups: dict[str, list[str]] = {}
    for name, mix in sets.items():
        alike = next((first for first in groups if _same_mix(sets[first], mix)), name)
        groups.setdefault(alike, []).append(name)
    rows = []
    for code, found in measured.items():
        stats = {name: found.of(name, BASE)[code] for name in sets}
        fvu = {name: _draws(each, "fvu", intervals) for name, each in stats.items()}
        for mix_a, mix_b in combinations(groups, 2):
            if (sets[mix_a].width, sets[mix_a].k) != (sets[mix_b].width, sets[mix_b].k):
                continue
            own = [np.stack([fvu[name] for name in groups[mix]]) for mix in (mix_a, mix_b)]
            seeds = min(map(len, own))
            spread = np.max([np.ptp(draws[:, 0], axis=0) for draws in own], axis=0)
            for column, row in enumerate(_estimates(stats[mix_a], own[0].mean(axis=0) - own[1].mean(axis=0), intervals)):
                beyond = (row["lo"] > 0 or row["hi"] < 0) and abs(row["estimate"]) > spread[column]
                known = {"seed_spread": spread[column], "beyond_seeds": beyond} if seeds > 1 else {"seed_spread": None, "beyond_seeds": None}
                rows.append({"mix_a": mix_a, "mix_b": mix_b, "language": code, "quantity": "fvu", "seeds": seeds} | row | known)
    return pd.DataFrame(rows)


def _same_mix(one: SaeMix, other: SaeMix) -> bool:
    return (one.mix, one.width, one.k) == (other.mix, other.width, other.k)


def _draws(stats: FeatureStats, measure: str, intervals: Intervals) -> Draws:
    """The measure in the sample (row 0) and in resamples of the documents, the same for every set."""
    return value(stats, measure, stats.resampling(None).weights(intervals.resamples, intervals.seed), "token")


def _estimates(stats: FeatureStats, draws: Draws, intervals: Intervals) -> list[dict[str, Any]]:
    """One row per layer."""
    documents = stats.resampling(None).clusters
    found = (interval(draws[:, column], intervals.confidence, documents) for column in range(len(stats.layers)))
    return [
        {"layer": layer, "estimate": float(estimate), "lo": float(low), "hi": float(high), "documents": documents}
        for layer, (estimate, low, high) in zip(stats.layers, found, strict=True)
    ]


def latents_table(measured: Mapping[str, Measurement], views: Sequence[View]) -> pd.DataFrame:
    """One row per set, model and layer, on the held-out tokens of all languages together.

    Shares of the latents that never fire (`dead`), that fire on fewer than `RARE` of the tokens, and that fire in one language alone.
    """
    rows = []
    for sae_set, model in views:
        by_language: list[FeatureStats] = [found.of(sae_set, model)[code] for code, found in measured.items()]
        tokens = sum(int(stats.tokens.sum()) for stats in by_language)
        for column, layer in enumerate(by_language[0].layers):
            fired = np.stack([stats.firing[column].sum(axis=0) for stats in by_language])
            total = fired.sum(axis=0)
            shares = {"dead": total == 0, "rare": total < RARE * tokens, "one_language": (fired > 0).sum(axis=0) == 1}
            rows.append(
                {"sae_set": sae_set, "model": model, "layer": layer, "latents": len(total), "tokens": tokens}
                | {name: float(chosen.mean()) for name, chosen in shares.items()}
            )
    return pd.DataFrame(rows)


def overlap_table(sae_sets: Mapping[str, Dictionaries]) -> pd.DataFrame:
    """One row per ordered pair of sets and layer: how near the nearest decoder direction of set_b is to each of set_a.

    `mean_cosine`: mean over latents of the largest cosine. `shared`: share of the latents for which it is at least `SHARED`.
    """
    rows = []
    for set_a, set_b in permutations(sae_sets, 2):
        for layer, dictionary in sae_sets[set_a].items():
            a, b = (torch.nn.functional.normalize(each.sae.W_dec, dim=-1) for each in (dictionary, sae_sets[set_b][layer]))
            nearest = torch.cat([(part @ b.T).amax(dim=1) for part in a.split(_ROWS_AT_ONCE)])
            measured = {"mean_cosine": float(nearest.mean()), "shared": float((nearest >= SHARED).float().mean())}
            rows.append({"set_a": set_a, "set_b": set_b, "layer": layer} | measured)
    return pd.DataFrame(rows)


def summary_of(fit: pd.DataFrame, latents: pd.DataFrame) -> dict[str, float]:
    """`fvu/<set>/<language>/<layer>`, `l0/...` and `dead/<set>/<layer>`, of each set on its own model."""
    wanted = fit[fit["quantity"].isin(["fvu", "l0"])].drop_duplicates(["sae_set", "language", "layer", "quantity"])
    found = {f"{row['quantity']}/{row['sae_set']}/{row['language']}/{row['layer']}": row["estimate"] for row in wanted.to_dict("records")}
    return found | {f"dead/{row['sae_set']}/{row['layer']}": row["dead"] for row in latents.drop_duplicates(["sae_set", "layer"]).to_dict("records")}
