"""How long do the intervals take? 10,000 paired resamples of 10 languages, 26 layers and 1,000 sentences, against a loop over resamples."""

import time
from typing import Any

import numpy as np

from lingact.activations.feature_stats import FeatureStats
from lingact.analysis.tables import disparities, layer_table
from lingact.config.data import LanguagesConfig
from lingact.config.measures import Statistics
from lingact.runtime.terminal import show

LANGUAGES = LanguagesConfig(reference="en", high=("zh", "ru", "es", "it"), low=("id", "ca", "mr", "ml", "hi"))
LAYERS, SENTENCES, RESAMPLES, LOOPED, SEED, ROUNDS = 26, 1000, 10_000, 500, 0, 5


def random_stats(random: np.random.Generator) -> FeatureStats:
    """Sentences of 5 to 60 tokens with log-normal activations; sums that the gap does not read are zero."""
    tokens = random.integers(5, 60, SENTENCES)
    unread: dict[str, Any] = dict.fromkeys(("windows", "bytes", "words", "partial"), np.zeros(SENTENCES, np.int64))
    unread |= dict.fromkeys(("l0", "l2", "top_k", "norm", "square", "error", "residual"), np.zeros((LAYERS, SENTENCES)))
    return FeatureStats(
        header={},
        sentence_ids=tuple(map(str, range(SENTENCES))),
        halves=np.arange(SENTENCES) % 2,
        layers=tuple(range(LAYERS)),
        top_k_size=10,
        tokens=tokens,
        activation=tokens * random.lognormal(size=(LAYERS, SENTENCES)),
        **unread,
    )


def looped_gaps(stats: dict[str, FeatureStats]) -> dict[str, np.ndarray]:
    """Gap of every language by resample (rows) and layer, of `LOOPED` resamples, as one would write it down: draw sentences, sum, divide."""
    random = np.random.default_rng(SEED)
    gaps = {code: np.empty((LOOPED, LAYERS)) for code in stats if code != LANGUAGES.reference}
    for resample in range(LOOPED):
        drawn = random.integers(SENTENCES, size=SENTENCES)
        level = {code: s.activation[:, drawn].sum(axis=1) / s.tokens[drawn].sum() for code, s in stats.items()}
        for code, rows in gaps.items():
            rows[resample] = 1 - level[code] / level[LANGUAGES.reference]
    return gaps


def main() -> None:
    """Print CPU seconds of both and their ratio in the same round; the loop's are of a part of the resamples, scaled up."""
    random = np.random.default_rng(SEED)
    stats = {code: random_stats(random) for code in LANGUAGES.all}
    settings = Statistics(pooling="token", resamples=RESAMPLES, confidence=0.95, early="third", deep="third", block=None)
    rows = []
    for number in range(1, ROUNDS + 1):
        start = time.process_time()
        found = disparities(stats, LANGUAGES, settings, SEED)
        layer_table(found)
        middle = time.process_time()
        gaps = looped_gaps(stats)
        loop = (time.process_time() - middle) * RESAMPLES / LOOPED
        # Both draw from the same stream, so that they must find the same gaps.
        for code, expected in gaps.items():
            np.testing.assert_allclose(found.gaps[code][1 : LOOPED + 1], expected, rtol=1e-9)
        own = middle - start
        rows.append({"round": number, "lingact, s": f"{own:.2f}", "loop, s (extrapolated)": f"{loop:.1f}", "ratio": f"{loop / own:.1f}"})
    title = f"{RESAMPLES} resamples, {len(stats)} languages, {LAYERS} layers, {SENTENCES} sentences; loop timed on {LOOPED} resamples, seed {SEED}"
    show(rows, title=title)


if __name__ == "__main__":
    main()
