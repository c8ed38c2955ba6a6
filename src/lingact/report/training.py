"""What training did, in words and tables: the terminal's rows and the report of train.py."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from lingact.config import TrainConfig
from lingact.report.page import Section, measured_facts, write_report
from lingact.report.words import Cells, cells_by, name_of, reading_gaps, share_of, with_interval


def train_rows(frames: Mapping[str, pd.DataFrame], codes: Sequence[str]) -> list[dict[str, str]]:
    """One row per language, set of SAEs and range of layers, then the gap closed over the layers of the loss.

    The cautions stand in every row: norm-matched gap, FVU and L0 before and after, and both sets of SAEs one below the other.
    """
    tidy = frames["change_by_range"]
    labels = [label for label in dict.fromkeys(tidy["range"]) if label != "loss"]
    rows = []
    for code in codes:
        for meter in dict.fromkeys(tidy["meter"]):
            own = cells_by(tidy[(tidy["meter"] == meter) & (tidy["language"] == code)], "range", "quantity")
            for label in labels:
                gaps = {"before": f"{own[label, 'gap_before']['estimate']:+.2f}"}
                gaps |= {"after": with_interval(own[label, "gap_after"]), "norm-matched": with_interval(own[label, "gap_after_norm_matched"])}
                rows.append({"lang": code, "SAEs": meter, "measure": f"gap {label}", **gaps, **_cautions(own, label)})
            closed = {"before": "", "after": with_interval(own["loss", "gap_closed"])}
            closed |= {"norm-matched": with_interval(own["loss", "gap_closed_norm_matched"])}
            rows.append({"lang": code, "SAEs": meter, "measure": "gap closed", **closed, **_cautions(own, "all")})
    return rows


def _cautions(own: Cells, label: str) -> dict[str, str]:
    value = {quantity: own[label, quantity]["estimate"] for quantity in ("gain", "fvu_before", "fvu_after", "l0_before", "l0_after")}
    return {
        "gain": f"{value['gain']:+.0%}",
        "FVU": f"{value['fvu_before']:.2f}->{value['fvu_after']:.2f}",
        "L0": f"{value['l0_before']:.0f}->{value['l0_after']:.0f}",
    }


def retention_rows(frames: Mapping[str, pd.DataFrame]) -> list[dict[str, str]]:
    """One row per reading of how the reference language fared, with a column for each set of SAEs and what no change would be."""
    names = {
        "activation": ("activation, after / base", "1"),
        "profile": ("feature profile, cosine", "1"),
        "bits_per_byte": ("bits per byte, after / base", "1"),
        "kl": ("KL(base || adapter), nats per token", "0"),
    }
    kept = frames["retention"]
    cells = cells_by(kept, "quantity", "meter")
    return [
        {"measure": names[quantity][0], "unchanged": names[quantity][1]}
        | {meter: with_interval(cells[quantity, meter], digits=3, signed=False) for meter in dict.fromkeys(kept["meter"])}
        for quantity in dict.fromkeys(kept["quantity"])
    ]


def train_tables(frames: Mapping[str, pd.DataFrame], codes: Sequence[str]) -> dict[str, pd.DataFrame]:
    """The report's tables of a training run: targets, retention, languages that were not trained, bits."""
    others = [code for code in dict.fromkeys(frames["change_by_range"]["language"]) if code not in codes]
    spill = [row for row in train_rows(frames, others) if row["measure"] == "gap all"]
    bits = frames["bits"].pivot_table(index="language", columns=["quantity", "variant"], values="estimate", sort=False)
    bits.columns = [f"{quantity.replace('_', ' ')}, {variant}" for quantity, variant in bits.columns]
    return {
        "Trained languages": pd.DataFrame(train_rows(frames, codes)),
        "Retention of the reference": pd.DataFrame(retention_rows(frames)),
        "Languages that were not trained, all layers": pd.DataFrame(spill),
        "Bits (per byte: compare within a language only)": bits.reset_index(),
    }


def training_text(frames: Mapping[str, pd.DataFrame], codes: Sequence[str], reference: str) -> str:
    """What happened to each target's gap by each set of SAEs, and what it cost the reference."""
    cells = cells_by(frames["change_by_range"], "meter", "language", "range", "quantity")
    kept = cells_by(frames["retention"], "meter", "quantity")
    sentences = []
    for code in codes:
        for meter in dict.fromkeys(frames["change_by_range"]["meter"]):
            raw, matched = (cells[meter, code, "loss", quantity] for quantity in ("gap_closed", "gap_closed_norm_matched"))
            fvu_before, fvu_after = (cells[meter, code, "all", quantity]["estimate"] for quantity in ("fvu_before", "fvu_after"))
            fits = f"FVU went from {fvu_before:.2f} to {fvu_after:.2f}"
            if pd.isna(raw["estimate"]):
                said = "no layer of the loss had a gap whose interval excludes 0, so there was none to close"
            elif raw["lo"] <= 0 <= raw["hi"]:
                said = f"whether any of the gap was closed is open: {share_of(raw)}, norm-matched {share_of(matched)}"
            else:
                verb = "was closed" if raw["estimate"] > 0 else "was closed, which means that it grew"
                said = f"{share_of(raw)} of the gap {verb}, norm-matched {share_of(matched)}"
            sentences.append(f"{name_of(code)}, {meter} SAEs: {said}; {fits}.")
    first = frames["retention"]["meter"].iloc[0]
    words = {"activation": "activation is {} of the base model's", "bits_per_byte": "bits per byte are {} of the base model's"}
    costs = [text.format(f"{kept[first, q]['estimate']:.1%}") for q, text in words.items() if (first, q) in kept]
    return " ".join(sentences) + f"\n\n{name_of(reference)}, the reference: {'; '.join(costs)}."


def write_training(folder: Path, config: TrainConfig, pages: Sequence[Section], identity: Mapping[str, str], sentences: int) -> Path:
    """The report of train.py; the sections' texts lead the page."""
    title = f"Closing the activation gap of {', '.join(map(name_of, config.lang))}"
    lead = "\n\n".join(page.text for page in pages if page.text)
    facts = measured_facts(folder, config, identity, sentences)
    return write_report(folder, title, lead, [replace(page, text="") for page in pages], facts, reading=reading_gaps(config.statistics))
