"""Statistics written down by hand instead of measured."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from lingact.activations.feature_stats import FeatureStats
from lingact.activations.measurement import Measurement
from lingact.files.states import save_state


def stats_of(activation: Any, tokens: Any, **other: Any) -> FeatureStats:
    """Statistics with the given sums; what is not given is of no interest. Layers are 0, 2, 4, ...; d_sae is 4, d_model 3."""
    activation, tokens = np.array(activation, float), np.array(tokens, np.int64)
    layers, count = activation.shape
    plain: dict[str, Any] = {name: np.ones((layers, count)) for name in ("norm", "square", "error", "l2", "top_k")}
    plain |= {"l0": np.ones((layers, count), np.int64), "residual": np.zeros((layers, 3)), "halves": np.arange(count) % 2, "top_k_size": 2}
    plain |= {"bytes": 2 * tokens, "windows": np.ones(count, np.int64), "words": np.ones(count, np.int64), "partial": np.zeros(count, np.int64)}
    plain |= {name: [np.zeros((2, 4), np.int64)] * layers for name in ("firing", "fired")} | {"profile": [np.ones((2, 4))] * layers}
    ids = tuple(f"s{place}" for place in range(count))
    return FeatureStats(header={}, sentence_ids=ids, layers=tuple(range(0, 2 * layers, 2)), tokens=tokens, activation=activation, **(plain | other))


def random_stats(seed: int, *, level: float = 10.0, count: int = 30, layers: int = 2) -> FeatureStats:
    """Sentences of 2 to 19 tokens, with an activation per token of about `level`."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(2, 20, count)
    return stats_of(tokens * rng.gamma(20, level / 20, (layers, count)), tokens)


def keep(measured: Measurement, run: Path, ids: tuple[str, ...]) -> None:
    """Write statistics where `measure.load_measurement` finds those of a run. Their headers have meter, variant and language; the rest is shared."""
    some = next(iter(measured.stats.values()))
    header = {key: value for key, value in some.header.items() if key not in ("sae_set", "variant", "language")}
    (run / "stats").mkdir(parents=True)
    index = {"header": header, "keys": [list(key) for key in measured.stats], "layers": list(some.layers), "top_k": some.top_k_size}
    index |= {"shard": [0, 1], "sentence_ids": list(ids), "vectors": {}}
    (run / "stats" / "index.json").write_text(json.dumps(index))
    for code in measured.languages:
        save_state(run / "stats" / f"{code}.safetensors", header | {"language": code}, measured.arrays(code), range(1), 1)


def four() -> dict[str, FeatureStats]:
    """Activations per token: en 10 and 20, es 12 and 10, it 4 and 30, hi 5 and 25; the same in every sentence."""
    levels = {"en": (10, 20), "es": (12, 10), "it": (4, 30), "hi": (5, 25)}
    tokens = np.array([3, 5, 2])
    return {code: stats_of(np.outer(level, tokens * (1 + (code == "hi"))), tokens * (1 + (code == "hi"))) for code, level in levels.items()}
