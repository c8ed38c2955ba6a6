"""The model card of a shared adapter: what it is, how it was trained, what was measured, and what was not."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from lingact.catalogue.benchmarks import ALL
from lingact.catalogue.licences import notice_of
from lingact.errors import UserError
from lingact.evaluation.scores import difference_rows
from lingact.files.run_tables import read_tables
from lingact.report.evaluation import notices_of_tables
from lingact.report.phrases import markdown_table, name_of, with_interval
from lingact.report.training import train_tables, training_text
from lingact.runtime.tracking import read_manifest

Config = Mapping[str, Any]
"""A section of a configuration or manifest, as its file holds it."""
_OF_TRAINING = ("change_by_layer", "change_by_range", "retention", "bits")
"""Tables of a training run that the card shows."""
_KINDS = {"lora": "LoRA", "vera": "VeRA", "ia3": "IA3", "loha": "LoHa", "lokr": "LoKr", "oft": "OFT"}


@dataclass(frozen=True)
class BenchmarkResults:
    """The results of an evaluation of the adapter."""

    config: Config
    tables: Mapping[str, pd.DataFrame]
    label: str
    """The name of the adapter's recipe in the tables."""
    seeds: int
    """Number of adapters of that recipe."""


@dataclass(frozen=True)
class _Part:
    """A part of the card: an introduction, text, notices, and tables in Markdown with their headings."""

    lead: str
    text: str
    notices: Sequence[str]
    tables: Sequence[tuple[str, str]]


def read_benchmark_results(run: Path, config: Config, adapter_sha256: str) -> BenchmarkResults:
    """The results of an evaluation for one adapter.

    Args:
        run: run folder of eval.py.
        config: its configuration.
        adapter_sha256: `adapter_hash` of the adapter, which identifies it whatever its name was.

    Raises:
        UserError: another adapter was evaluated, or tables are missing.
    """
    identity, tables = read_manifest(run)["identity"], read_tables(run)
    names = {part.partition(" ")[2] or "adapter": entry for part, entry in identity.items() if part == "adapter" or part.startswith("adapter ")}
    own = [name for name, entry in names.items() if entry["sha256"] == adapter_sha256]
    if not own:
        asked = ", ".join(f"'{entry['name']}'" for entry in names.values()) or "the base model alone"
        raise UserError(f"--eval: '{run}' is an evaluation of {asked}, not of this adapter; name an evaluation of this adapter, or leave --eval out")
    if not {"differences", "accuracy", "contamination"} <= tables.keys():
        raise UserError(f"--eval: '{run}' has no complete tables any more; evaluate again, or leave --eval out")
    labels = dict.fromkeys(map(str, tables["differences"]["model"]))
    label = max((label for label in labels if own[0] == label or own[0].startswith(f"{label}_seed")), key=len)
    return BenchmarkResults(config, tables, label, sum(name == label or name.startswith(f"{label}_seed") for name in names))


def model_card(
    name: str,
    licence: str,
    config: Config,
    manifest: Config,
    caution: str,
    tables: Mapping[str, pd.DataFrame],
    benchmarks: BenchmarkResults | None,
) -> str:
    """The card in Markdown, with the front matter that the hub reads.

    Args:
        name: hub id of the adapter.
        licence: of the base model, by its name on the hub.
        config: of the training run, without private parts; the name of the model is the base model's hub id.
        manifest: of the training run, without private parts.
        caution: what has to be known about the loss (`training.loss_text`).
        tables: of the training run; empty if they are missing.
        benchmarks: results of an evaluation; None: no benchmark was asked.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("lingact"), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    model, identity, targets = config["model"], manifest["identity"]["model"], config["lang"]
    base, reference = model["name"], config["languages"]["reference"]
    loaded = {"revision": identity["revision"], "dtype": identity["dtype"], "attn_implementation": identity["attention"]}
    overrides = {"name": base, "revision": identity["revision"], "dtype": identity["dtype"], "attention": identity["attention"]}
    overrides |= {"context": model["context"]}
    measured = set(_OF_TRAINING) <= tables.keys()
    return environment.get_template("model_card.md").render(
        name=name,
        base_model=base,
        licence=licence,
        notice=notice_of(licence),
        iso_codes=list(dict.fromkeys(code.partition("_")[0] for code in (reference, *targets))),
        datasets=list(dict.fromkeys(corpus["dataset"] for corpus in _corpora(config) if "dataset" in corpus)),
        kind=config["peft"]["kind"],
        title=f"{_KINDS[config['peft']['kind']]} adapter of {base} for {_names(targets)}",
        what=_what(config),
        loading=", ".join([f'"{base}"', *(f'{key}="{value}"' for key, value in loaded.items() if value is not None)]),
        overrides=" ".join(f"model.{key}={value}" for key, value in overrides.items() if value is not None),
        base_sha256=identity["sha256"],
        dtype=identity["dtype"],
        facts=_facts(config, manifest),
        training=_training_part(config, caution, tables) if measured else None,
        evaluation=_benchmark_part(benchmarks, config) if benchmarks else None,
        limits=_limits(config, manifest, benchmarks),
    )


def _names(codes: Sequence[str]) -> str:
    """`Malayalam, Hindi and Marathi`."""
    words = [name_of(code) for code in codes]
    return " and ".join([", ".join(words[:-1]), words[-1]] if words[1:] else words)


def _corpora(config: Config) -> list[Config]:
    """The corpus that was trained on and the one that was measured on; a single one if they are the same."""
    return [config[key] for key in ("train_corpus", "corpus") if config.get(key)]


def _what(config: Config) -> str:
    targets, reference = _names(config["lang"]), name_of(config["languages"]["reference"])
    gap, control = config["loss"]["gap"], config["loss"]["control"]
    purpose = (
        f"It was trained to bring the activation of sparse-autoencoder (SAE) features on {targets} text closer to that on its {reference} translation"
        if gap["weight"] > 0
        else f"It was trained on {targets} text without a loss term for the activation of features, for comparison"
    )
    text = f"An adapter made with lingact. {purpose}. The base weights are unchanged: with the adapter switched off, the model is the base model."
    if control != "none":
        text += f" **It is a control (`{control}`): it shows what such training does by itself, and is not meant for use.**"
    return text


def _facts(config: Config, manifest: Config) -> list[tuple[str, str]]:
    """How it was trained, as names and facts."""
    identity, loss, peft, trainer = manifest["identity"], config["loss"], config["peft"], config["trainer"]
    terms = {**loss["retention"], "target_lm": loss["target_lm"]}
    weights = ", ".join(f"{term} {terms[term]:g}" for term in ("kl", "lm", "activation", "norm", "fit", "target_kl", "target_lm") if terms[term])
    limit = f"; KL kept below {terms['limit']:g} nats" if terms["limit"] is not None else ""
    settings = ", ".join(f"{key} {_plain(value)}" for key, value in peft.items() if key != "kind")
    saes = [f"{sae_set}: {entry['release']}, {_plain(entry['id'])}, sha256 {entry['sha256'][:12]}" for sae_set, entry in identity["sae"].items()]
    git, hardware = manifest["git"], manifest["hardware"]
    texts = [identity[key] for key in ("train_corpus", "corpus") if key in identity]
    corpora = [
        f"{_named(corpus)} ({text['sentences']} sentences, sha256 {text['sha256'][:12]}; share for training {corpus['splits']['train']:g})"
        for corpus, text in zip(_corpora(config), texts, strict=False)
    ]
    devices = ", ".join(hardware["gpus"]) or f"{hardware['cpus']} CPU cores ({hardware['machine']})"
    return [
        ("Languages", f"{', '.join(config['lang'])}; reference {config['languages']['reference']}"),
        ("Gap term", f"{loss['gap']['objective']}, weight {loss['gap']['weight']:g}, layers {_plain(loss['gap']['layers'])}"),
        ("Retention terms (weights)", (weights or "none") + limit),
        ("Control", loss["control"]),
        ("SAEs", "; ".join(saes)),
        ("Adapter", f"{peft['kind']}: {settings}"),
        ("Text", "; measured on ".join(corpora)),
        ("Steps", f"at most {trainer['steps']}, of {trainer['sentences']} aligned sentences; {trainer['precision']}"),
        ("Optimiser", f"AdamW, learning rate {config['optim']['lr']:g}, weight decay {config['optim']['weight_decay']:g}"),
        ("Seed", str(config["seed"])),
        ("Versions", ", ".join(f"{name} {number}" for name, number in manifest["versions"].items())),
        ("Hardware", f"{devices}; {manifest['wall_seconds'] / 60:.0f} minutes, measuring included"),
        ("Code", f"lingact at commit {git['commit'][:12]}{', with local changes' if git['dirty'] else ''}" if git["commit"] else "no commit known"),
        ("Date", manifest["started"][:10]),
    ]


def _named(corpus: Config) -> str:
    licence = f", {corpus['licence']}" if corpus.get("licence") else ""
    return f"{corpus['dataset']} on the hub{licence}" if "dataset" in corpus else str(corpus["path"])


def _plain(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _training_part(config: Config, caution: str, tables: Mapping[str, pd.DataFrame]) -> _Part:
    settings, reference = config["statistics"], config["languages"]["reference"]
    first = tables["change_by_range"].iloc[0]
    count, by = first["n"], first.get("resampled", "sentences")  # tables of earlier versions have no such column; they resampled sentences
    resampled = by if by == "sentences" else f"{first['units']} {by}"
    lead = (
        f"Base model and adapter on {count} aligned sentences of the split `{config['split']}`, {_SPLITS[config['split']]}. Brackets show "
        f"{settings['confidence']:.0%} intervals of a paired bootstrap over {resampled} ({settings['resamples']:,} resamples). A gap is 1 - a / r, "
        f"where a is the SAE activation of a language and r that of {name_of(reference)} under the base model, on translations of the same "
        "sentences. It is positive if the language falls short and negative if it lies above. Gap closed is the share of the gap that is gone, over "
        "the layers of the loss. Norm-matched: residuals are scaled to the norms of the base model, so that a change of norms alone closes nothing. "
        "FVU is the share of variance that the SAEs do not explain. If it grows, the SAEs read the residual less well."
    )
    if "heldout" in set(tables["change_by_range"]["sae_set"]):
        lead += " The held-out SAEs were not used in training."
    shown = train_tables(tables, config["lang"], reference)
    shown.pop("Trained languages, layer by layer")
    return _Part(
        lead,
        "\n\n".join(text for text in (caution, training_text(tables, config["lang"], reference)) if text),
        (),
        [(heading, markdown_table(frame)) for heading, frame in shown.items() if len(frame)],
    )


_SPLITS = {
    "heldout": "which was used neither for training nor, as intended, for any choice",
    "dev": "on which settings may have been chosen, so that the results are no evidence for claims",
}


def _benchmark_part(benchmarks: BenchmarkResults, config: Config) -> _Part:
    asked, settings = benchmarks.config["tasks"], benchmarks.config
    own = {
        name: frame[frame["model"] == benchmarks.label]
        for name, frame in benchmarks.tables.items()
        if name in ("differences", "bits", "contamination")
    }
    differences = own["differences"]
    limit = f", {asked['limit']} items of each" if asked["limit"] is not None else ""
    shots = "as many examples as each task says" if asked["fewshot"] is None else f"{asked['fewshot']} examples"
    subject = (
        "this adapter"
        if benchmarks.seeds == 1
        else f"the mean over {benchmarks.seeds} adapters that differ only in their seed, of which this is one; the intervals cover the choice of "
        "seeds"
    )
    names = list(dict.fromkeys(differences.loc[differences["task"] != ALL, "task"]))
    lead = (
        f"Accuracy with the adapter minus accuracy of the base model on the same items of {', '.join(names)}{limit}; {shots}. The numbers are "
        f"for {subject}. Brackets show {settings['confidence']:.0%} intervals. *Detectable* is the smallest true difference that would have been "
        f"found in {settings['power']:.0%} of such experiments. p (Holm) is corrected over all languages, benchmarks and recipes of that evaluation."
    )
    tables = {"All benchmarks together": pd.DataFrame(difference_rows(differences, None)).fillna("-")}
    single = differences[
        (differences["task"] != ALL) & (differences["kind"] == ALL) & (differences["metric"] == "acc") & (differences["languages"] == 1)
    ]
    rows = [
        {"benchmark": row["task"], "language": row["language"], "items": row["n"], "base": f"{row['base']:.3f}", "adapter": f"{row['adapter']:.3f}"}
        | {"difference": with_interval(row, digits=3)}
        for row in single.to_dict("records")
    ]
    tables["Each benchmark"] = pd.DataFrame(rows)
    if "bits" in own:
        shown = [
            {"language": row["language"], "sentences": row["n"], "bits per byte, adapter over base": with_interval(row, digits=4, signed=False)}
            for row in own["bits"].to_dict("records")
        ]
        tables["Held-out text (1: unchanged; lower is better)"] = pd.DataFrame(shown)
    # The place where the evaluation looked for the training text is private to its machine.
    contamination = own["contamination"].assign(corpus=_named(_corpora(config)[0]))
    contamination["reason"] = contamination["reason"].where(contamination["reason"].isna(), "it was not available")
    notices = notices_of_tables({"accuracy": benchmarks.tables["accuracy"], "contamination": contamination})
    return _Part(lead, "", notices, [(heading, markdown_table(frame)) for heading, frame in tables.items() if len(frame)])


def _limits(config: Config, manifest: Config, benchmarks: BenchmarkResults | None) -> list[str]:
    """What was not tested, and what the numbers do not show."""
    reference, known = config["languages"]["reference"], {*config["lang"], config["languages"]["reference"]}
    others = [code for code in (*config["languages"]["high"], *config["languages"]["low"]) if code not in known]
    found = [
        (
            "The gap is a proxy. It is measured with SAEs that were themselves trained mostly on text in high-resource languages. A smaller gap does "
            "not make a better model, and raw activation grows with the residual norm. Compare the norm-matched gap, the held-out SAEs and the "
            "benchmarks."
        ),
        (
            f"Intervals cover the choice of text and items. This is one training run (seed {config['seed']}): they do not cover other seeds, corpora "
            "or base models."
        ),
        (
            "Not tested: free generation and instructions, safety, bias, long contexts, dialects, quantised weights, and anything but the text and "
            "tasks named above."
        ),
        (
            f"Trained languages: {_names(config['lang'])}. Reference: {name_of(reference)}. Measured, but not trained: {_names(others) or 'none'}. "
            "All other languages are untested."
        ),
    ]
    if not config.get("train_corpus"):
        found.append("It was measured on other sentences of its training corpus. Other kinds of text were not measured.")
    if config["sae"]["heldout"] is None or config["split"] == "dev":
        found.append("The result was measured only with the SAEs of the loss.")
    if benchmarks is None:
        found.append("No benchmark was asked.")
    if manifest["git"]["dirty"]:
        found.append("The code had local changes that are not in any commit.")
    return found
