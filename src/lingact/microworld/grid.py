"""Sign and size of the activation gaps over a grid of SAE recipes and measures that was declared before any gap was measured.

`python -m lingact.microworld.grid` trains the SAEs of the grid on the embedded toy model and writes `grid.csv` and `grid.md` next to its card. The
grid changes one property of the shipped recipe at a time: width, k, and the text of the SAEs.
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from lingact.activations.measurement import BASE, Measurement
from lingact.activations.passes import measure
from lingact.analysis.measures import Pooling, value
from lingact.config.base import asset
from lingact.files.atomic import write_atomically
from lingact.files.folders import folder_lock, make_folders
from lingact.microworld.card import PAPER_LANGUAGES, SEED, STATISTICS, load_rows, load_saes, load_toy_model
from lingact.microworld.dictionaries import harvest, train_dictionary
from lingact.microworld.recipe import DictionaryRecipe, Recipe
from lingact.report.phrases import markdown_table
from lingact.statistics.bootstrap import interval

GRID_MEASURES: dict[str, tuple[str, Pooling]] = {
    "per token": ("mean", "token"),
    "mean of sentence means": ("mean", "sentence"),
    "sum per sentence": ("per_sentence", "token"),
    "per byte": ("per_byte", "token"),
    "L0": ("l0", "token"),
}
"""The grid's measures -> their names in `analysis/measures.py`, and pooling."""


@dataclass(frozen=True)
class Cell:
    """One recipe of the grid."""

    name: str
    spec: DictionaryRecipe
    balanced: bool = False
    """Train the SAEs on equal shares of all languages instead of the English-dominated mixture."""


def declared_grid(recipe: Recipe) -> list[Cell]:
    """Six recipes: the shipped one, and five that differ from it in one property each."""
    shipped = recipe.sae
    return [
        Cell("shipped", shipped),
        Cell("half as wide", replace(shipped, width=shipped.width // 2)),
        Cell("twice as wide", replace(shipped, width=shipped.width * 2)),
        Cell("half the k", replace(shipped, k=shipped.k // 2)),
        Cell("twice the k", replace(shipped, k=shipped.k * 2)),
        Cell("balanced languages", shipped, balanced=True),
    ]


def gaps(name: str, measured: Measurement) -> pd.DataFrame:
    """Gap of every language in every measure: mean over layers with its interval, and the number of layers whose interval excludes 0, by sign."""
    stats = measured.of("sae", BASE)
    resampling = next(iter(stats.values())).resampling(STATISTICS.block)
    weights = resampling.weights(STATISTICS.resamples, SEED)
    rows = []
    for measure_name, (chosen, pooling) in GRID_MEASURES.items():
        values = {code: value(s, chosen, weights, pooling) for code, s in stats.items()}
        reference = values[PAPER_LANGUAGES.reference]
        for code in (*PAPER_LANGUAGES.high, *PAPER_LANGUAGES.low):
            draws = 1 - values[code] / reference
            _, low, high = interval(draws, STATISTICS.confidence, resampling.clusters)
            mean, mean_low, mean_high = interval(draws.mean(axis=1), STATISTICS.confidence, resampling.clusters)
            rows.append(
                {"recipe": name, "measure": measure_name, "language": code}
                | resampling.columns
                | {"layers": draws.shape[1]}
                | {"short": int((low > 0).sum()), "above": int((high < 0).sum())}
                | {"gap": float(mean), "lo": float(mean_low), "hi": float(mean_high)}
            )
    return pd.DataFrame(rows)


def run(folder: Path, work: Path) -> None:
    """Train, measure and write the grid; finished SAEs in `work` are kept.

    Raises:
        UserError: another process works in `work`.
    """
    make_folders(work)
    with folder_lock(work):
        _run(folder, work)


def _run(folder: Path, work: Path) -> None:
    recipe = Recipe()
    lm, corpus = load_toy_model(folder), load_rows(folder)
    equal = dict.fromkeys(recipe.shares, 1 / len(recipe.shares))
    frames = []
    for cell in declared_grid(recipe):
        if cell.name == "shipped":
            saes = load_saes(folder, lm, "sae")
        else:
            residuals = harvest(recipe, lm, equal if cell.balanced else recipe.dictionary_shares, work / f"residuals-{cell.balanced}.npy")
            out = work / cell.name.replace(" ", "_")
            out.mkdir(exist_ok=True)
            for layer in range(recipe.layers):
                train_dictionary(cell.spec, residuals[layer], layer, recipe.seed, recipe.context, out / f"layer_{layer}")
            saes = load_saes(work, lm, out.name)
        measured = measure(lm, {"sae": saes}, corpus, batch_tokens=4096, identity={"toy_model": "grid"})
        stats = measured.of("sae", BASE)
        once = np.ones((1, len(corpus.ids)))
        fvu = value(stats["en"], "fvu", once, "token")[0]
        frames.append(gaps(cell.name, measured).assign(fvu_en_worst=fvu.max(), l0_en=value(stats["en"], "l0", once, "token").mean()))
    found = pd.concat(frames, ignore_index=True)
    write_atomically(folder / "grid.csv", found.to_csv(index=False, float_format="%.5f"))
    write_atomically(folder / "grid.md", readable(found))


def readable(found: pd.DataFrame) -> str:
    """Mean gap over layers by recipe and measure, a column per language; a star where the interval excludes 0."""
    star = np.where((found.lo > 0) | (found.hi < 0), "*", "")
    cells = found.assign(cell=[f"{gap:+.2f}{mark}" for gap, mark in zip(found.gap, star, strict=True)])
    wide = cells.pivot_table(index=["recipe", "measure"], columns="language", values="cell", aggfunc="first", sort=False).reset_index()  # pyrefly: ignore[bad-argument-type]
    layers = found[(found.recipe == "shipped") & (found.measure == "per token")]
    counts = layers[["language", "layers", "short", "above"]]
    return f"""# Activation gaps of the toy model over the declared grid

Gap against English, mean over all layers, on the whole aligned corpus ({int(found.n.iloc[0])} sentences). Positive: the language activates the SAEs less than
English. `*`: the 95 % interval (paired bootstrap over {found.resampled.iloc[0]}) excludes 0. Found on this toy model alone.

{markdown_table(wide)}

Shipped recipe, per token: layers whose interval excludes 0, by sign.

{markdown_table(counts)}
"""


if __name__ == "__main__":
    run(Path(asset("microworld")), Path(sys.argv[1]) if len(sys.argv) > 1 else Path("outputs/microworld/grid"))
