"""How well SAEs fit each language, on documents that none of them was trained on."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import permutations
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from lingact.activations.feature_stats import FeatureStats
from lingact.activations.interventions import spliced_losses
from lingact.activations.measurement import BASE, Measurement
from lingact.activations.passes import Wanted, measure
from lingact.analysis.effects import spliced_table
from lingact.analysis.measures import value
from lingact.data.corpus import ParallelCorpus
from lingact.errors import UserError
from lingact.models.lm import LanguageModel
from lingact.models.sae import Dictionaries
from lingact.saes.text import Document
from lingact.statistics.bootstrap import interval

RARE = 1e-4
"""A latent is rare if it fires on fewer of the held-out tokens."""
SHARED = 0.7
"""Cosine from which on two latents are said to have one direction."""
_ROWS_AT_ONCE = 4096
_FEWEST = 2
"""Documents, without which there is no interval."""


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

    def fit(self, corpora: Mapping[str, ParallelCorpus]) -> dict[str, Measurement]:
        """Statistics of each language."""
        return {
            code: measure(
                self.lm,
                self.sae_sets,
                corpus,
                batch_tokens=self.batch_tokens,
                identity=self.identity,
                wanted=Wanted(title=f"held-out {code}"),
                folder=self.folder / code,
            )
            for code, corpus in corpora.items()
        }

    def recovered(self, corpora: Mapping[str, ParallelCorpus], intervals: Intervals) -> pd.DataFrame:
        """How much of the cross-entropy is kept when a reconstruction takes the residual's place, by language: `effects.spliced_table`."""
        frames = []
        for code, corpus in corpora.items():
            path = self.folder / code / "spliced.safetensors"
            losses = spliced_losses(self.lm, self.sae_sets, corpus, batch_tokens=self.batch_tokens, header=self.identity, path=path)
            frames.append(spliced_table(losses, corpus.resampling(None), **asdict(intervals)))
        return pd.concat(frames, ignore_index=True)


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


def fit_table(measured: Mapping[str, Measurement], intervals: Intervals) -> pd.DataFrame:
    """One row per set, language, layer and quantity (`fvu`, `explained_variance`, `l0`), with intervals over documents."""
    rows = []
    for code, found in measured.items():
        for sae_set in found.sae_sets:
            stats = found.of(sae_set, BASE)[code]
            resampling = stats.resampling(None)
            weights = resampling.weights(intervals.resamples, intervals.seed)
            fvu, l0 = (value(stats, measure, weights, "token") for measure in ("fvu", "l0"))
            for quantity, draws in (("fvu", fvu), ("explained_variance", 1 - fvu), ("l0", l0)):
                for column, layer in enumerate(stats.layers):
                    estimate, low, high = interval(draws[:, column], intervals.confidence, resampling.clusters)
                    place = {"sae_set": sae_set, "language": code, "layer": layer, "quantity": quantity}
                    rows.append(place | {"estimate": estimate, "lo": low, "hi": high, "documents": resampling.clusters})
    return pd.DataFrame(rows)


def latents_table(measured: Mapping[str, Measurement]) -> pd.DataFrame:
    """One row per set and layer, on the held-out tokens of all languages together.

    Shares of the latents that never fire (`dead`), that fire on fewer than `RARE` of the tokens, and that fire in one language alone.
    """
    rows = []
    first = next(iter(measured.values()))
    for sae_set in first.sae_sets:
        by_language: list[FeatureStats] = [found.of(sae_set, BASE)[code] for code, found in measured.items()]
        tokens = sum(int(stats.tokens.sum()) for stats in by_language)
        for column, layer in enumerate(by_language[0].layers):
            fired = np.stack([stats.firing[column].sum(axis=0) for stats in by_language])
            total = fired.sum(axis=0)
            shares = {"dead": total == 0, "rare": total < RARE * tokens, "one_language": (fired > 0).sum(axis=0) == 1}
            rows.append(
                {"sae_set": sae_set, "layer": layer, "latents": len(total), "tokens": tokens}
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
    """`fvu/<set>/<language>/<layer>`, `l0/...` and `dead/<set>/<layer>`."""
    wanted = fit[fit["quantity"].isin(["fvu", "l0"])]
    found = {f"{row['quantity']}/{row['sae_set']}/{row['language']}/{row['layer']}": row["estimate"] for row in wanted.to_dict("records")}
    return found | {f"dead/{row['sae_set']}/{row['layer']}": row["dead"] for row in latents.to_dict("records")}
