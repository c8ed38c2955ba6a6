"""Language-specific latents: found on one half of the sentences, confirmed on the other.

A latent is a candidate of a language if it is strongest there (nu), fires almost only there (LAPE), often enough, and not on random tokens.
Candidates are chosen for large values, so values on the same half would be biased. The other half tests every candidate.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int
from scipy.special import entr
from scipy.stats import beta, hypergeom

from lingact.activations.feature_stats import CONFIRMATION, DISCOVERY
from lingact.analysis.measures import StatsByLanguage
from lingact.catalogue.languages import LANGUAGES
from lingact.config.data import LanguagesConfig
from lingact.errors import UserError
from lingact.statistics.bootstrap import Resampling, benjamini_hochberg

PerLatent = Float[np.ndarray, "language d_sae"]


@dataclass(frozen=True)
class Criteria:
    """Criteria by which a latent is a candidate of a language, and a candidate a confirmed feature."""

    min_rate: float = 0.005
    """Fires on at least this share of the language's tokens."""
    max_lape: float | None = None
    """Largest entropy of the rates over languages, in nats. None: log 2, that of a latent shared evenly by two languages; with fewer than four
    languages half of the largest possible entropy, since nearly every latent would pass log 2."""
    max_random: float = 0.1
    """Fires on random tokens at no more than this multiple of its rate in the language."""
    per_layer: int = 5
    """Candidates of a language at a layer; they are the strongest by nu."""
    alpha: float = 0.05
    """False discovery rate (Benjamini-Hochberg) over all candidates of the analysis."""

    def lape_limit(self, languages: int) -> float:
        """The limit for this number of languages."""
        return min(float(np.log(2)), 0.5 * float(np.log(languages))) if self.max_lape is None else self.max_lape


_COLUMNS: dict[str, str] = {
    "language": "object", "layer": "int64", "latent": "int64", "nu": "float64", "nu_confirmed": "float64", "lape": "float64",
    "rate": "float64", "rate_other": "float64", "other": "object", "rate_random": "float64", "passed": "bool", "p": "float64", "q": "float64",
    "confirmed": "bool", "n": "int64", "resampled": "object", "units": "int64",
}  # fmt: skip


# --- measures of one layer -------------------------------------------------------------------------------------------------------------------------


def nu(mean: PerLatent) -> PerLatent:
    """Monolinguality: mean activation per token on a language minus the average of the other languages' means (arXiv 2505.05111)."""
    count = len(mean)
    return mean - (mean.sum(axis=0) - mean) / (count - 1)


def lape(rates: PerLatent) -> Float[np.ndarray, " d_sae"]:
    """Entropy over languages, in nats, of the firing rates normalised to sum 1; nan for a latent that never fires.

    Language activation probability entropy: defined for neurons in arXiv 2402.16438, applied to SAE latents in arXiv 2507.11230. 0: the latent fires
    on one language only; log of the number of languages: it fires equally often on all.
    """
    total = rates.sum(axis=0)
    return entr(np.divide(rates, total, where=total > 0, out=np.full_like(rates, np.nan))).sum(axis=0)


def more_sentences_p(own: Int[np.ndarray, " test"], other: Int[np.ndarray, " test"], sentences: int) -> Float[np.ndarray, " test"]:
    """One-sided Fisher exact p that a latent fires in more sentences of one language than of another, of `sentences` each.

    The sentences are translations of each other. So a latent tends to fire on both or neither, the two counts differ less than independent ones
    would, and the test is conservative.
    """
    return hypergeom.sf(own - 1, 2 * sentences, own + other, sentences)


@dataclass(frozen=True)
class _Half:
    """Statistics of one layer on one half of the sentences."""

    rates: PerLatent
    mean: PerLatent
    fired: Int[np.ndarray, "language d_sae"]


def _half(stats: StatsByLanguage, row: int, half: int) -> _Half:
    tokens = np.array([s.tokens[s.halves == half].sum() for s in stats.values()])[:, None]
    firing, profile, fired = (np.stack([getattr(s, name)[row][half] for s in stats.values()]) for name in ("firing", "profile", "fired"))
    return _Half(firing / tokens, profile / tokens, fired)


# --- discovery and confirmation --------------------------------------------------------------------------------------------------------------------


def find_features(
    stats: StatsByLanguage,
    random_rates: dict[int, Float[np.ndarray, " d_sae"]] | None,
    criteria: Criteria = Criteria(),
    *,
    block: int | None = None,
) -> pd.DataFrame:
    """Candidates of every language at every layer, and which of them are confirmed.

    A candidate is confirmed if, on the confirmation half, its nu is positive and larger than for any other language, it fires on a larger share of
    the language's tokens than of `other`'s, and it fires in more of the language's sentences, by Fisher's exact test at false discovery rate
    `criteria.alpha` over all candidates.

    Args:
        stats: statistics of one SAE set and variant, for at least two languages over the same sentences.
        random_rates: layer -> firing rates on random tokens (`contexts.random_token_rates`); random-token filter after arXiv 2604.03532. None: the
            filter is not applied and `rate_random` is nan.
        block: as in `Statistics.block`. Sentences of a document or block are not independent evidence, so the test uses the sample size
            `Resampling.effective`, as if all sentences of a document or block said the same.

    Returns:
        One row per language, layer and latent, sorted by language (as in `stats`), layer and descending nu: language, layer, latent, nu (discovery),
        nu_confirmed, lape (discovery), rate and rate_other (per token, confirmation), other (the other language in which the latent fires in most
        sentences on discovery), rate_random, passed (False: as strong as the candidates, but also fires on random tokens; not tested), p, q,
        confirmed, n (sentences of the confirmation half), resampled (documents, blocks or sentences), units (how many of these it has).

    Raises:
        UserError: fewer than two languages, or a half without sentences.
    """
    layers = _check(stats)
    resampling = _confirming(stats, block)
    rows = []
    for row, layer in enumerate(layers):
        noise = random_rates[layer] if random_rates is not None else None
        rows += _layer_rows(tuple(stats), layer, _half(stats, row, DISCOVERY), _half(stats, row, CONFIRMATION), noise, criteria, resampling)
    found = pd.DataFrame(rows, columns=list(_COLUMNS)).astype(_COLUMNS)
    found["q"] = benjamini_hochberg(np.array(found["p"])).tolist()
    found["confirmed"] &= found["q"] <= criteria.alpha
    order = {code: place for place, code in enumerate(stats)}
    return found.sort_values("language", kind="stable", key=lambda column: column.map(order), ignore_index=True)


def _confirming(stats: StatsByLanguage, block: int | None) -> Resampling:
    """The resampling of the confirmation half."""
    first = next(iter(stats.values()))
    return first.resampling(block).part(np.flatnonzero(first.halves == CONFIRMATION))


def _check(stats: StatsByLanguage) -> tuple[int, ...]:
    """Refuse statistics of too few languages or sentences. Returns the layers."""
    if len(stats) < 2:
        raise UserError(f"language-specific features need at least two languages to compare, not {len(stats)}; name more languages")
    first = next(iter(stats.values()))
    counts = [int((first.halves == half).sum()) for half in (DISCOVERY, CONFIRMATION)]
    if not all(counts):
        raise UserError(
            f"language-specific features are found on one half of the sentences and confirmed on the other; the halves have {counts[0]} and "
            f"{counts[1]} sentences. Give more sentences, or use measures=core"
        )
    return first.layers


def _layer_rows(
    codes: tuple[str, ...],
    layer: int,
    discovery: _Half,
    confirmation: _Half,
    noise: Float[np.ndarray, " d_sae"] | None,
    criteria: Criteria,
    resampling: Resampling,
) -> list[dict[str, object]]:
    """The rows of one layer; here `confirmed` says only whether the language also leads on the confirmation half."""
    found_nu, confirmed_nu, spread = nu(discovery.mean), nu(confirmation.mean), lape(discovery.rates)
    winner, leads = found_nu.argmax(axis=0), (confirmed_nu == confirmed_nu.max(axis=0)) & (confirmed_nu > 0)
    rows = []
    limit = criteria.lape_limit(len(codes))
    for place, code in enumerate(codes):
        eligible = (winner == place) & (found_nu[place] > 0) & (discovery.rates[place] >= criteria.min_rate) & (spread <= limit)
        passes = np.ones_like(eligible) if noise is None else noise <= criteria.max_random * discovery.rates[place]
        chosen = _strongest(eligible, passes, found_nu[place], criteria.per_layer)
        # The other language is also chosen on discovery, so that nothing on the confirmation half is selected by its value.
        others = np.where(np.arange(len(codes))[:, None] == place, -1, discovery.fired[:, chosen]).argmax(axis=0)
        p = more_sentences_p(*_as_independent(confirmation.fired[place, chosen], confirmation.fired[others, chosen], resampling))
        rows += [
            {
                "language": code,
                "layer": layer,
                "latent": latent,
                "nu": found_nu[place, latent],
                "nu_confirmed": confirmed_nu[place, latent],
                "lape": spread[latent],
                "rate": confirmation.rates[place, latent],
                "rate_other": confirmation.rates[other, latent],
                "other": codes[other],
                "rate_random": np.nan if noise is None else noise[latent],
                "passed": passes[latent],
                "p": chance if passes[latent] else np.nan,
                "q": np.nan,
                "confirmed": leads[place, latent] and confirmation.rates[place, latent] > confirmation.rates[other, latent],
            }
            | resampling.columns
            for latent, other, chance in zip(chosen, others, p, strict=True)
        ]
    return rows


def _strongest(
    eligible: Bool[np.ndarray, " d_sae"], passes: Bool[np.ndarray, " d_sae"], strength: Float[np.ndarray, " d_sae"], per_layer: int
) -> Int[np.ndarray, " chosen"]:
    """The strongest eligible latents, until `per_layer` of them pass."""
    order = np.flatnonzero(eligible)
    order = order[np.argsort(-strength[order], kind="stable")]
    before = np.cumsum(passes[order]) - passes[order]
    return order[before < per_layer]


# --- uses of confirmed features --------------------------------------------------------------------------------------------------------------------


def strongest_confirmed(features: pd.DataFrame, *, per_language: int) -> pd.DataFrame:
    """The confirmed rows with the largest `nu`, at most `per_language` for each language over all layers, in the order of `features`.

    They are ranked on the discovery half, because a selection on the confirmation half would bias its numbers.

    Activations grow with the norm of the residual, so layers with large norms are preferred.
    """
    confirmed = features[features["confirmed"]].sort_values("nu", ascending=False, kind="stable")
    return confirmed.groupby("language", sort=False).head(per_language).sort_index()


def chosen_latents(features: pd.DataFrame, *, per_language: int) -> dict[str, dict[int, list[int]]]:
    """Language -> layer -> latents of `strongest_confirmed`. A language without confirmed features is left out."""
    chosen: dict[str, dict[int, list[int]]] = {}
    for row in strongest_confirmed(features, per_language=per_language).to_dict("records"):
        chosen.setdefault(row["language"], {}).setdefault(row["layer"], []).append(row["latent"])
    return chosen


def rate_table(features: pd.DataFrame, stats: StatsByLanguage, *, confidence: float = 0.95, block: int | None = None) -> pd.DataFrame:
    """How often each feature fires in every language, on the confirmation half: one row per feature and measured language.

    Columns: language, layer, latent (the feature), measured (language), rate (share of tokens), n (sentences), resampled, units, estimate (share
    of sentences in whose first window it fires), lo, hi (Clopper and Pearson's exact interval of that share; of documents or blocks with the
    sample size `Resampling.effective`, as Korn and Graubard 1998 do). Tokens of a sentence are not independent, so `rate` has no interval of its own.
    """
    first = next(iter(stats.values()))
    resampling = _confirming(stats, block)
    sentences = len(resampling.unit)
    halves = {layer: _half(stats, first.layers.index(layer), CONFIRMATION) for layer in features["layer"].unique().tolist()}
    frames = []
    for feature in features[["language", "layer", "latent"]].to_dict("records"):
        half, latent = halves[feature["layer"]], feature["latent"]
        fired = half.fired[:, latent]
        lo, hi = _exact_interval(fired * (resampling.effective / sentences), resampling.effective, confidence)
        cells = {"measured": list(stats), "rate": half.rates[:, latent]} | resampling.columns | {"estimate": fired / sentences, "lo": lo, "hi": hi}
        frames.append(pd.DataFrame(feature | cells))
    columns = ["language", "layer", "latent", "measured", "rate", "n", "resampled", "units", "estimate", "lo", "hi"]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=columns)


def _as_independent(
    own: Int[np.ndarray, " test"], other: Int[np.ndarray, " test"], resampling: Resampling
) -> tuple[Int[np.ndarray, " test"], Int[np.ndarray, " test"], int]:
    """The counts and the number of sentences, scaled down to the sample size `Resampling.effective` and rounded conservatively."""
    count = int(resampling.effective)
    scale = count / len(resampling.unit)
    return np.floor(own * scale).astype(np.int64), np.minimum(np.ceil(other * scale).astype(np.int64), count), count


def _exact_interval(
    hits: Float[np.ndarray, " language"], count: float, confidence: float
) -> tuple[Float[np.ndarray, " language"], Float[np.ndarray, " language"]]:
    tail = (1 - confidence) / 2
    # Beta quantiles are undefined at the ends, where the interval ends at 0 or 1.
    missed = count - hits
    low = np.where(hits > 0, beta.ppf(tail, np.where(hits > 0, hits, 1), missed + 1), 0.0)
    high = np.where(missed > 0, beta.ppf(1 - tail, hits + 1, np.where(missed > 0, missed, 1)), 1.0)
    return low, high


# --- in words --------------------------------------------------------------------------------------------------------------------------------------


def features_text(features: pd.DataFrame, languages: LanguagesConfig, criteria: Criteria = Criteria()) -> str:
    """How many candidates there are, how many failed the random-token filter, and how many are confirmed, per language and layer."""
    if features.empty:
        return "No latent meets the criteria of a language-specific feature in any language."
    tested = features[features["passed"]]
    failed = len(features) - len(tested)
    sentences = [
        (
            f"{_counted(len(tested), 'candidate')} for language-specific features: strongest in one language by nu, LAPE at most "
            f"{criteria.lape_limit(len(languages.all)):.2f} nats, firing on at least {criteria.min_rate:.1%} of its tokens, at most "
            f"{criteria.per_layer} per language and layer."
        ),
        (
            "The random-token filter was not applied, so latents that respond to any unusual input may be among them."
            if features["rate_random"].isna().all()
            else f"{_counted(failed, 'otherwise eligible latent')} failed the random-token filter."
        ),
        (
            f"On the other half of the sentences ({features['n'].iloc[0]}) {int(tested['confirmed'].sum())} of {len(tested)} are confirmed (Fisher's "
            f"exact test{_scaled(features)}, false discovery rate {criteria.alpha:.0%})."
        ),
    ]
    own = {code: tested[tested["language"] == code] for code in languages.all}
    sentences += [_language_text(code, found) for code, found in own.items() if found["confirmed"].any()]
    unconfirmed = [code for code, found in own.items() if len(found) and not found["confirmed"].any()]
    without = [code for code, found in own.items() if found.empty]
    for codes, verdict in ((unconfirmed, "is confirmed"), (without, "is a candidate")):
        if codes:
            sentences.append(f"No latent of {_any_of([LANGUAGES[code].name for code in codes])} {verdict}.")
    return " ".join(sentences)


def _scaled(features: pd.DataFrame) -> str:
    by = str(features["resampled"].iloc[0])
    if by == "sentences":
        return ""
    return f" on counts as small as if all sentences of one of the {features['units'].iloc[0]} {by} said the same"


def _language_text(code: str, found: pd.DataFrame) -> str:
    by_layer = found.groupby("layer")["confirmed"].agg(["sum", "size"])
    layers = ", ".join(f"layer {layer}: {row['sum']} of {row['size']}" for layer, row in by_layer.iterrows())
    return f"{LANGUAGES[code].name}: {int(found['confirmed'].sum())} of {len(found)} ({layers})."


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _any_of(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"
