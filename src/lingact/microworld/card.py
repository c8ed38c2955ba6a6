"""The card of the toy model: its abilities and the fit of its SAEs, computed with lingact itself.

`python -m lingact.microworld.card` measures the embedded toy model and writes `card.json` and `card.md` next to it. It reports accuracy, bits, FVU
and L0 only. Activation gaps are measured by `python -m lingact.microworld.grid`, once the recipe is fixed.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from lingact.activations.measurement import BASE
from lingact.activations.passes import Wanted, measure
from lingact.analysis.changes import change_bits_table
from lingact.analysis.tables import confound_table
from lingact.config.base import asset
from lingact.config.data import LanguagesConfig
from lingact.config.measures import Statistics
from lingact.config.model import ModelConfig, SaeSet
from lingact.config.tasks import TasksConfig
from lingact.data.corpus import ParallelCorpus
from lingact.evaluation import compare
from lingact.evaluation.scorer import Scorer
from lingact.evaluation.tasks import load_tasks
from lingact.files.atomic import write_atomically, write_json
from lingact.microworld import LANGUAGES, world
from lingact.models.lm import LanguageModel, load_model
from lingact.models.sae import Dictionaries, load_dictionaries
from lingact.report.phrases import markdown_table
from lingact.statistics.bootstrap import interval

PAPER_LANGUAGES = LanguagesConfig(reference="en", high=("zh", "ru", "es", "it"), low=("id", "ca", "mr", "ml", "hi"))
STATISTICS = Statistics(pooling="token", resamples=2000, confidence=0.95, early="third", deep="third", block=None)
SEED = 0
_ITEMS = {"key": ["id"], "facts": True, "split_by": "kind"}
_EVERYTHING = {"missing": "refuse", "items": "all", "limit": None, "fewshot": None, "batch_size": 256}


def load_toy_model(folder: Path) -> LanguageModel:
    """The toy model's language model on the CPU."""
    context = json.loads((folder / "training.json").read_text())["recipe"]["context"]
    return load_model(ModelConfig(name=str(folder / "model"), revision=None, dtype="float32", attention="eager", context=context), "cpu")


def load_saes(folder: Path, lm: LanguageModel, name: str) -> Dictionaries:
    """A set of SAEs of the toy model: `sae` or `sae_heldout`."""
    return load_dictionaries(SaeSet(release=str(folder / name), id="layer_{layer}"), tuple(range(len(lm.blocks))), lm)[0]


def load_rows(folder: Path) -> ParallelCorpus:
    """The whole aligned corpus."""
    rows = [json.loads(line) for line in (folder / "corpus.jsonl").read_text(encoding="utf-8").splitlines()]
    return ParallelCorpus("microworld", tuple(row["unit"] for row in rows), {code: tuple(row[code] for row in rows) for code in LANGUAGES})


def accuracy(folder: Path, lm: LanguageModel) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Accuracy per language and kind of fact, pooled over the benchmarks, and the mean of the high-resource languages minus each language."""
    benchmarks = {f"micro_{name}": f"micro_{name}_{{lang}}" for name in world.BENCHMARKS}
    own = {name: {"kind": "lm_eval", "folder": folder / "tasks", "task": task, **_ITEMS} for name, task in benchmarks.items()}
    tasks = load_tasks(TasksConfig.model_validate({"benchmarks": [], "own": own, **_EVERYTHING}), LANGUAGES).instances
    with tqdm(total=sum(len(instance.requests) for instance in tasks), desc="benchmarks", unit=" options", leave=False) as bar:
        found = Scorer(lm, 256, None, bar).score(lm.model, tasks, None).items
    scores = compare.accuracy_table(found, model="base", confidence=STATISTICS.confidence)
    groups = compare.group_table(found, {"high": PAPER_LANGUAGES.high}, model="base", resamples=2000, confidence=STATISTICS.confidence, seed=SEED)
    return scores[scores.metric == "acc"], groups


def fit(lm: LanguageModel, saes: dict[str, Dictionaries], corpus: ParallelCorpus) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Bits by language, bits per aligned sentence minus the high-resource mean, and token counts, FVU, L0 and norms by SAE set, language and layer."""
    measured = measure(lm, saes, corpus, batch_tokens=4096, identity={"toy_model": "card"}, wanted=Wanted(language_model=True))
    stats = measured.of(next(iter(saes)), BASE)
    bits = change_bits_table(measured, next(iter(saes)), STATISTICS, SEED)
    confounds = pd.concat([confound_table(measured.of(name, BASE), STATISTICS, SEED).assign(sae_set=name) for name in saes], ignore_index=True)
    resampling = corpus.resampling(STATISTICS.block)
    weights = resampling.weights(STATISTICS.resamples, SEED)
    per_sentence = {code: weights @ np.asarray(s.nll) / np.log(2) / weights.sum(axis=1) for code, s in stats.items()}
    high = np.mean([per_sentence[code] for code in PAPER_LANGUAGES.high], axis=0)
    rows = []
    for code in PAPER_LANGUAGES.low:
        estimate, low, top = interval(per_sentence[code] - high, STATISTICS.confidence, resampling.clusters)
        rows.append({"language": code} | resampling.columns | {"estimate": estimate, "lo": low, "hi": top})
    return bits, pd.DataFrame(rows), confounds


def _cell(row: Any) -> str:
    """The estimate of a row with its interval."""
    return f"{row.estimate:.2f} [{row.lo:.2f}, {row.hi:.2f}]"


def _accuracy_rows(scores: pd.DataFrame, groups: pd.DataFrame) -> pd.DataFrame:
    pooled = scores[scores.task == compare.ALL]
    rows = []
    for code in LANGUAGES:
        own = pooled[pooled.language == code].set_index("kind")
        below = groups[(groups.language == code) & (groups.kind == "read")]
        rows.append(
            {
                "language": code,
                "read": _cell(own.loc["read"]),
                "n": own.loc["read", "n"],
                "transfer": _cell(own.loc["transfer"]),
                "n ": own.loc["transfer", "n"],
                "high-resource mean minus it, read": _cell(below.iloc[0]) if len(below) else "",
            }
        )
    return pd.DataFrame(rows)


def _layer_rows(confounds: pd.DataFrame, sae_set: str, quantity: str) -> pd.DataFrame:
    chosen = confounds[(confounds.sae_set == sae_set) & (confounds.quantity == quantity)]
    wide = chosen.pivot_table(index="layer", columns="language", values="estimate", sort=False).round(3 if quantity == "fvu" else 1)
    return wide[list(LANGUAGES)].reset_index()


def write_card(folder: Path) -> None:
    """Measure the toy model and write `card.json` (numbers) and `card.md` (readable)."""
    training = json.loads((folder / "training.json").read_text())
    lm, corpus = load_toy_model(folder), load_rows(folder)
    saes = {name: load_saes(folder, lm, name) for name in ("sae", "sae_heldout")}
    scores, groups = accuracy(folder, lm)
    bits, harder, confounds = fit(lm, saes, corpus)
    recipe, losses = training["recipe"], training["loss_every_10_steps"]
    every = max(1, len(losses) // 12)
    frames = {"accuracy": scores, "high_minus_language": groups, "bits": bits, "bits_minus_high": harder, "fit": confounds}
    write_json(
        folder / "card.json",
        {"recipe": recipe, "identity": training["identity"]} | {name: json.loads(frame.to_json(orient="records")) for name, frame in frames.items()},
    )
    shares = pd.DataFrame(
        {
            "language": list(LANGUAGES),
            "documents read": [f"{recipe['shares'][code]:.1%}" for code in LANGUAGES],
            "SAEs' documents": [f"{recipe['dictionary_shares'][code]:.1%}" for code in LANGUAGES],
        }
    )
    per_sentence = bits[bits.quantity == "bits_per_sentence"].set_index("language")
    tokens = confounds[(confounds.sae_set == "sae") & (confounds.quantity == "tokens_per_sentence")].set_index("language")
    shares["tokens a sentence"] = [f"{tokens.loc[code, 'estimate']:.1f}" for code in LANGUAGES]
    shares["bits a sentence"] = [_cell(per_sentence.loc[code]) for code in LANGUAGES]
    above = harder.set_index("language")
    shares["above the high-resource mean"] = [_cell(above.loc[code]) if code in above.index else "" for code in LANGUAGES]
    curve = pd.DataFrame({"step": [10 * i for i in range(0, len(losses), every)], "loss (nats a token)": losses[::every]})
    text = f"""# The microworld toy model, {training["identity"]}

A demonstration and a test bench, made by `python -m lingact.microworld.build` from seed {recipe["seed"]}. What is found on it is said of it alone.
Intervals are 95 % bootstraps over sentences or facts (Wilson for accuracies).

**Model**: Gemma-2 classes, {recipe["layers"]} layers, width {recipe["hidden_size"]}, vocabulary {recipe["vocabulary"]} (BPE with byte fallback), context {recipe["context"]};
{recipe["steps"]} steps of {recipe["batch_rows"] * recipe["row_tokens"]} tokens, AdamW, peak learning rate {recipe["lr"]}, bfloat16 autocast on one CPU thread.
**SAEs**: batch-top-k saved as JumpReLU by sae-lens, one a layer. Measuring: {recipe["sae"]["width"]} latents, k {recipe["sae"]["k"]}. Held out: {recipe["sae_heldout"]["width"]} latents, k {recipe["sae_heldout"]["k"]}.
Both read {recipe["dictionary_tokens"]:,} distinct tokens of an English-dominated mixture.

## Mixture and reading

{markdown_table(shares)}

## Benchmarks: accuracy, chance 0.25

Read facts stand in the language's reading matter in other frames than the question's; transfer facts stand in other languages' only.

{markdown_table(_accuracy_rows(scores, groups))}

## SAE fit on the aligned corpus

FVU of the measuring SAEs, per layer and language:

{markdown_table(_layer_rows(confounds, "sae", "fvu"))}

FVU of the held-out SAEs:

{markdown_table(_layer_rows(confounds, "sae_heldout", "fvu"))}

L0 of the measuring SAEs:

{markdown_table(_layer_rows(confounds, "sae", "l0"))}

## Loss

{markdown_table(curve)}
"""
    write_atomically(folder / "card.md", text)


if __name__ == "__main__":
    write_card(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(asset("microworld")))
