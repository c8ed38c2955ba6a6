"""The results of training: rows for the terminal, tables, sentences, and the report of train.py."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from lingact.activations.measurement import ADAPTER, BASE
from lingact.analysis.changes import OVER_BASE
from lingact.config.jobs import TrainConfig
from lingact.report.page import Card, Section, measured_facts, write_report
from lingact.report.phrases import Cells, Row, name_of, plain, reading_gaps, rows_by, sae_set_title, share_of, with_interval
from lingact.statistics.bootstrap import Resampling

Frames = Mapping[str, pd.DataFrame]
"""The tidy tables of `changes`, by name."""
_WORSE = 0.2
"""Mean repetition is mentioned if it is this far above the base model's."""
_DICTIONARY = (
    "The SAEs are those of the base model, and an adapter may move features out of their sight. lingact saes init=RUN adapter=RUN shows how much of "
    "the change is the dictionary's: it refits SAEs to the adapted model, beside the same ones trained as much on the base model (refit.csv)."
)


def train_rows(frames: Frames, codes: Sequence[str]) -> list[dict[str, str]]:
    """One row per language, set of SAEs and range of layers, then the gap closed over the layers of the loss. Narrow enough for a terminal.

    Every row contains the cautions: norm-matched gap, FVU and L0.
    """
    rows = []
    for code in codes:
        for sae_set, own in _by_sae_set(frames["change_by_range"], code):
            for label in _ranges(frames):
                gaps = {"before": plain(own[label, "gap_before"]["estimate"], "+.2f")}
                rows.append({"lang": code, "SAEs": sae_set, "measure": f"gap {label}", **gaps, **_after(own, label), **_cautions(own, label)})
            rows.append({"lang": code, "SAEs": sae_set, "measure": "gap closed", "before": "", **_closed(own), **_cautions(own, "all")})
    return rows


def _full_rows(frames: Frames, codes: Sequence[str]) -> list[dict[str, str]]:
    """`train_rows` for a page: every number but FVU and L0 has its interval."""
    rows = []
    for code in codes:
        for sae_set, own in _by_sae_set(frames["change_by_range"], code):
            for label in _ranges(frames):
                row = {"language": code, "SAEs": sae_set, "measure": f"gap {label}", "before": with_interval(own[label, "gap_before"])}
                rows.append(row | _after(own, label) | {"gain": share_of(own[label, "gain"])} | _fit(own, label) | _cautions(own, label))
            row = {"language": code, "SAEs": sae_set, "measure": "gap closed", "before": ""} | _closed(own)
            rows.append(row | {"gain": share_of(own["all", "gain"])} | _fit(own, "all") | _cautions(own, "all"))
    return rows


def _layer_rows(frames: Frames, codes: Sequence[str]) -> list[dict[str, str]]:
    table = frames["change_by_layer"]
    rows = []
    for code in codes:
        for sae_set, own in _by_sae_set(table, code, "layer"):
            for layer in dict.fromkeys(table["layer"]):
                row = {"language": code, "SAEs": sae_set, "layer": str(layer), "before": with_interval(own[layer, "gap_before"])}
                row |= _after(own, layer) | {"overshoot": with_interval(own[layer, "overshoot"])}
                rows.append(row | _fit(own, layer) | _cautions(own, layer))
    return rows


def _bystander_rows(frames: Frames, codes: Sequence[str]) -> list[dict[str, str]]:
    bits = rows_by(frames["bits"], "language", "variant", "quantity")
    rows = []
    for code in codes:
        for sae_set, own in _by_sae_set(frames["change_by_range"], code):
            closed = _closed(own)
            row = {"language": code, "SAEs": sae_set, "gap closed": closed["after"], "norm-matched": closed["norm-matched"]} | _cautions(own, "all")
            rows.append(row | {"bits per byte, after / base": with_interval(bits[code, OVER_BASE, "bits_per_byte"], digits=3, signed=False)})
    return rows


def _by_sae_set(table: pd.DataFrame, code: str, place: str = "range") -> list[tuple[str, Cells]]:
    """Cells of one language by place and quantity, for every set of SAEs."""
    own = table[table["language"] == code]
    return [(sae_set, rows_by(own[own["sae_set"] == sae_set], place, "quantity")) for sae_set in dict.fromkeys(own["sae_set"])]


def _ranges(frames: Frames) -> list[str]:
    return [label for label in dict.fromkeys(frames["change_by_range"]["range"]) if label != "loss"]


def _after(own: Cells, place: str | int) -> dict[str, str]:
    return {"after": with_interval(own[place, "gap_after"]), "norm-matched": with_interval(own[place, "gap_after_norm_matched"])}


def _closed(own: Cells) -> dict[str, str]:
    return {"after": with_interval(own["loss", "gap_closed"]), "norm-matched": with_interval(own["loss", "gap_closed_norm_matched"])}


def _fit(own: Cells, place: str | int) -> dict[str, str]:
    return {"FVU": "->".join(plain(own[place, name]["estimate"], ".2f") for name in ("fvu_before", "fvu_after"))}


def _cautions(own: Cells, place: str | int) -> dict[str, str]:
    return {
        "FVU, after / base": with_interval(own[place, "fvu_ratio"], signed=False),
        "L0": "->".join(plain(own[place, name]["estimate"], ".0f") for name in ("l0_before", "l0_after")),
    }


def retention_rows(frames: Frames) -> list[dict[str, str]]:
    """One row per measure of retention of the reference, with the value for no change and a column for each set of SAEs."""
    names = {
        "activation": ("activation, after / base", "1"),
        "activation_worst_layer": ("activation, largest change at a layer", "0"),
        "profile": ("feature profile, cosine (no interval)", "1"),
        "bits_per_byte": ("bits per byte, after / base", "1"),
        "kl": ("KL(base || adapter), nats per token", "0"),
    }
    kept = frames["retention"]
    cells = rows_by(kept, "quantity", "sae_set")
    sae_sets = list(dict.fromkeys(kept["sae_set"]))
    rows = []
    for quantity in dict.fromkeys(kept["quantity"]):
        own = {sae_set: cells[quantity, sae_set] for sae_set in sae_sets}
        label, unchanged = names[quantity]
        digits = 4 if quantity == "kl" else 3
        values = {
            sae_set: plain(cell["estimate"], ".3f") if quantity == "profile" else with_interval(cell, digits=digits, signed=False)
            for sae_set, cell in own.items()
        }
        rows.append({"measure": label, "unchanged": unchanged} | values)
    return rows


def bits_rows(frames: Frames, codes: Sequence[str]) -> list[dict[str, str]]:
    """One row per language: bits per byte of base and adapter, and their ratio."""
    cells = rows_by(frames["bits"], "language", "variant", "quantity")
    headings = {BASE: "base", ADAPTER: "adapter", OVER_BASE: "after / base"}
    return [
        {"lang": code} | {name: with_interval(cells[code, variant, "bits_per_byte"], digits=3, signed=False) for variant, name in headings.items()}
        for code in codes
    ]


def train_tables(frames: Frames, codes: Sequence[str], reference: str) -> dict[str, pd.DataFrame]:
    """The tables of the report of a training run, by title: trained languages, retention, other languages, bits per byte.

    Args:
        frames: tidy tables of `changes`.
        codes: trained languages.
        reference: code of the reference.
    """
    measured = list(dict.fromkeys(frames["change_by_range"]["language"]))
    others = [code for code in measured if code not in (*codes, reference)]
    cells = rows_by(frames["bits"], "language", "variant", "quantity")
    sentences = {
        code: {f"per sentence, {variant}": with_interval(cells[code, variant, "bits_per_sentence"], signed=False) for variant in (BASE, ADAPTER)}
        for code in measured
    }
    bits = [row | sentences[row["lang"]] for row in bits_rows(frames, measured)]
    return {
        "Trained languages": pd.DataFrame(_full_rows(frames, codes)),
        "Retention of the reference": pd.DataFrame(retention_rows(frames)),
        "Languages that were not trained": pd.DataFrame(_bystander_rows(frames, others)),
        "Bits per byte (compare within a language only) and per sentence": pd.DataFrame(bits).rename(columns={"lang": "language"}),
        "Trained languages, layer by layer": pd.DataFrame(_layer_rows(frames, codes)),
    }


def loss_text(config: TrainConfig, substitutes: Mapping[str, str]) -> str:
    """What a reader has to know about the loss before its effects.

    Args:
        config: of the run.
        substitutes: target -> the language whose text it was trained on instead.
    """
    gap, retention = config.loss.gap, config.loss.retention
    sentences = [
        f"{name_of(code)} itself was not trained on: its text was replaced by text in {name_of(other)} (control)."
        for code, other in substitutes.items()
    ]
    in_loss = ["the norm-matched gap"] if gap.weight > 0 and gap.norm_matched else []
    in_loss += ["the FVU of the measuring SAEs"] if retention.fit > 0 else []
    in_loss += ["the targets' next-token distributions"] if retention.target_kl > 0 else []
    if in_loss:
        listed = " and ".join([", ".join(in_loss[:-1]), in_loss[-1]] if in_loss[1:] else in_loss)
        sentences.append(f"The loss contains {listed}, so these are no independent check. The held-out SAEs are one.")
    return " ".join(sentences)


def training_text(frames: Frames, codes: Sequence[str], reference: str) -> str:
    """How the gap of each trained language changed by each set of SAEs, and what this cost the reference.

    Args:
        frames: tidy tables of `changes`.
        codes: trained languages.
        reference: code of the reference.
    """
    bits = rows_by(frames["bits"], "language", "variant", "quantity") if "bits" in frames else {}
    paragraphs = []
    for code in codes:
        by_sae_set = _by_sae_set(frames["change_by_range"], code)
        sentences = [f"{name_of(code)}, {sae_set_title(sae_set)} SAEs: {_verdict(own)}; {_fvu_change(own)}." for sae_set, own in by_sae_set]
        overshot = _overshot(frames, code)
        if overshot:
            sentences.append(f"The gap (not norm-matched) changed its sign at {' and at '.join(overshot)}.")
        if (code, OVER_BASE, "bits_per_byte") in bits:
            sentences.append(f"Bits per byte are {_percent(bits[code, OVER_BASE, 'bits_per_byte'])} of the base model's.")
        paragraphs.append(" ".join(sentences))
    kept = rows_by(frames["retention"], "sae_set", "quantity")
    first = frames["retention"]["sae_set"].iloc[0]
    phrases = {"activation": "activation is {} of the base model's", "bits_per_byte": "bits per byte are {} of the base model's"}
    costs = [text.format(_percent(kept[first, quantity])) for quantity, text in phrases.items() if (first, quantity) in kept]
    if (first, "kl") in kept:
        costs.append(f"KL(base || adapter) is {with_interval(kept[first, 'kl'], digits=4, signed=False)} nats per token")
    return "\n\n".join([*paragraphs, f"{name_of(reference)}, the reference: {'; '.join(costs)}."])


def _verdict(own: Cells) -> str:
    raw, matched = own["loss", "gap_closed"], own["loss", "gap_closed_norm_matched"]
    if pd.isna(raw["estimate"]):
        return "no layer of the loss had a gap whose interval excludes 0, so there was no gap to close"
    at_base_norm = f", norm-matched {share_of(matched)}" if pd.notna(matched["estimate"]) else ""
    if raw["lo"] <= 0 <= raw["hi"]:
        return f"no change of the gap is shown: {share_of(raw)} closed{at_base_norm}"
    verb = "was closed" if raw["estimate"] > 0 else "was closed, which means that the gap grew"
    return f"{share_of(raw)} of the gap {verb}{at_base_norm}"


def _fvu_change(own: Cells) -> str:
    ratio, before, after = (own["all", quantity] for quantity in ("fvu_ratio", "fvu_before", "fvu_after"))
    change = "rose to" if ratio["lo"] > 1 else "fell to" if ratio["hi"] < 1 else "shows no change:"
    return f"FVU {change} {with_interval(ratio, signed=False)} times the base model's (from {before['estimate']:.2f} to {after['estimate']:.2f})"


def _overshot(frames: Frames, code: str) -> list[str]:
    """`layers 4, 5 (measuring SAEs)`: where the intervals before and after lie on opposite sides of 0."""
    found = []
    for sae_set, own in _by_sae_set(frames["change_by_layer"], code, "layer"):
        layers = [layer for layer in dict.fromkeys(layer for layer, _ in own) if _crossed(own[layer, "gap_before"], own[layer, "gap_after"])]
        if layers:
            found.append(f"layer{'s' if len(layers) > 1 else ''} {', '.join(map(str, layers))} ({sae_set_title(sae_set)} SAEs)")
    return found


def _crossed(before: Row, after: Row) -> bool:
    return before["lo"] > 0 > after["hi"] or before["hi"] < 0 < after["lo"]


def _percent(cell: Row) -> str:
    """`101.2% [100.8%, 101.5%]`."""
    return f"{cell['estimate']:.1%} [{cell['lo']:.1%}, {cell['hi']:.1%}]"


def continuation_section(table: pd.DataFrame) -> Section:
    """Prompts with their original continuation in the corpus and those by base model and adapter (`continuations.continuation_table`)."""
    cards = []
    for row in table.to_dict("records"):
        written = [(label, row["prompt"], row[label] or "(nothing)", "") for label in ("original", "base", "adapter")]
        facts = [f"repetition: base {row['repetition_base']:.0%}, adapter {row['repetition_adapter']:.0%}"]
        cards.append(Card(f"{name_of(row['language'])}, {row['sentence_id']}", None, facts, written))
    return Section("Continuations", {}, {}, _continuation_text(table), cards)


def _continuation_text(table: pd.DataFrame) -> str:
    means, more = [], []
    for code, own in table.groupby("language", sort=False):
        base, adapter = own["repetition_base"], own["repetition_adapter"]
        means.append(f"{name_of(str(code))} {base.mean():.0%} and {adapter.mean():.0%}")
        if adapter.mean() - base.mean() > _WORSE:
            more.append(f"{name_of(str(code))} ({int((adapter > base).sum())} of {len(own)})")
    prompts = table["sentence_id"].nunique()
    text = (
        f"{prompts} prompts in each language were continued greedily by base model and adapter. They are too few for intervals or claims; read the "
        f"texts. Share of new tokens in repeated trigrams, base model and adapter: {', '.join(means)}."
    )
    return text + (f" In these texts, the adapter repeats itself more than the base model: {', '.join(more)}." if more else "")


def write_training(folder: Path, config: TrainConfig, pages: Sequence[Section], identity: Mapping[str, str], resampling: Resampling) -> Path:
    """Write the report of train.py. The texts of the sections are at the head of the page.

    Args:
        folder: of the run.
        config: of the run.
        pages: the sections.
        identity: header of the statistics.
        resampling: what is resampled.

    Returns:
        The path of the page.
    """
    title = f"Closing the activation gap of {', '.join(map(name_of, config.lang))}"
    lead = "\n\n".join(page.text for page in pages if page.text)
    facts = measured_facts(folder, config, identity, resampling)
    reading = [*reading_gaps(config.statistics, resampling), _DICTIONARY]
    return write_report(folder, title, lead, [replace(page, text="") for page in pages], facts, reading=reading)
