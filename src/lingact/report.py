"""What a run found, in words and tables: rows for the terminal and one self-contained `report.html`. Every sentence is computed from the numbers."""

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from lingact.compare import ALL
from lingact.config import AnalyzeConfig, EvalConfig, Job, LanguagesConfig, Statistics, TrainConfig
from lingact.languages import LANGUAGES
from lingact.tracking import DPI, read_manifest, write_atomically

BY_LAYER, BY_RANGE = "Gap by layer", "Gap by range of layers"
"""Titles under which `write_analysis` looks for `tables.layer_table` and `tables.range_table`."""
_LONG = 30
"""Tables with more rows are folded away."""
Cells = dict[tuple[Any, ...], dict[Any, Any]]
"""Rows of a tidy table by some of their columns."""
_CAPTIONS = {
    "gap_heatmap": "Gap of each language at each layer; the reference is the zero of the scale.",
    "gap_groups": "Gap of the language groups over the layers.",
    "confounds": "What else differs between the languages and could pass for weak features.",
    "change": "Gap of the trained languages before and after training; the reference is frozen at the base model.",
    "loss": "Raw value of each loss term during training.",
    "accuracy": "Benchmark accuracy of the base model.",
    "differences": "Difference in benchmark accuracy, adapter minus base.",
}


@dataclass(frozen=True)
class Section:
    """A part of the page."""

    heading: str
    figures: dict[str, Path]
    """PNG files by name; the page embeds them."""
    tables: dict[str, pd.DataFrame]
    """Frames by title."""
    text: str = ""
    """Paragraphs, with blank lines between them."""


# --- terminal rows -------------------------------------------------------------------------------------------------------------------------------


def gap_rows(ranges: pd.DataFrame, languages: LanguagesConfig, *, statistic: str = "mean") -> list[dict[str, str]]:
    """One row per language and group, with the gap over each range of layers.

    Args:
        ranges: `tables.range_table`.
        statistic: mean over the layers of the range, or max.
    """
    cells = _cells(ranges[ranges["statistic"] == statistic], "name", "range")
    of = dict.fromkeys(languages.high, "high") | dict.fromkeys(languages.low, "low")
    rows = []
    for name in dict.fromkeys(ranges["name"]):
        row = (
            {"language": name, "name": LANGUAGES[name].name, "group": of.get(name, "")}
            if name in LANGUAGES
            else {"language": name, "name": "", "group": "all"}
        )
        rows.append(row | {label: _with_interval(cells[name, label], "gap") for label in dict.fromkeys(ranges["range"])})
    return rows


def train_rows(frames: Mapping[str, pd.DataFrame], codes: Sequence[str]) -> list[dict[str, str]]:
    """One row per language, set of SAEs and range of layers, then the gap closed over the layers of the loss.

    The cautions stand in every row: norm-matched gap, FVU and L0 before and after, and both sets of SAEs one below the other.
    """
    tidy = frames["change_by_range"]
    labels = [label for label in dict.fromkeys(tidy["range"]) if label != "loss"]
    rows = []
    for code in codes:
        for meter in dict.fromkeys(tidy["meter"]):
            own = _cells(tidy[(tidy["meter"] == meter) & (tidy["language"] == code)], "range", "quantity")
            for label in labels:
                gaps = {"before": f"{own[label, 'gap_before']['estimate']:+.2f}"}
                gaps |= {"after": _with_interval(own[label, "gap_after"]), "norm-matched": _with_interval(own[label, "gap_after_norm_matched"])}
                rows.append({"lang": code, "SAEs": meter, "measure": f"gap {label}", **gaps, **_cautions(own, label)})
            closed = {"before": "", "after": _with_interval(own["loss", "gap_closed"])}
            closed |= {"norm-matched": _with_interval(own["loss", "gap_closed_norm_matched"])}
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
    cells = _cells(kept, "quantity", "meter")
    return [
        {"measure": names[quantity][0], "unchanged": names[quantity][1]}
        | {meter: _with_interval(cells[quantity, meter], digits=3, signed=False) for meter in dict.fromkeys(kept["meter"])}
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


def _cells(frame: pd.DataFrame, *keys: str) -> Cells:
    """The rows of a tidy table by their keys."""
    return {tuple(record[key] for key in keys): record for record in frame.to_dict("records")}


def _with_interval(cell: Mapping[Any, Any], key: str = "estimate", *, digits: int = 2, signed: bool = True) -> str:
    if pd.isna(cell[key]):
        return "-"
    estimate, low, high = (round(float(cell[name]), digits) + 0.0 for name in (key, "lo", "hi"))  # + 0.0: no -0.00
    return f"{estimate:{'+' if signed and estimate else ''}.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


# --- words ---------------------------------------------------------------------------------------------------------------------------------------


def analysis_text(layers: pd.DataFrame, ranges: pd.DataFrame, languages: LanguagesConfig, confidence: float) -> str:
    """How many languages of each group fall short of the reference, or lie above it, at more than half of the layers; and the group comparison.

    Args:
        layers: `tables.layer_table`.
        ranges: `tables.range_table`.
    """
    count = layers["layer"].nunique()
    reference = _name(languages.reference)
    sentences = []
    for group, codes in (("medium-to-low-resource", languages.low), ("high-resource", languages.high)):
        found = {code: layers[layers["name"] == code] for code in codes}
        short = [code for code, own in found.items() if 2 * (own["lo"] > 0).sum() > count]
        above = [code for code, own in found.items() if 2 * (own["hi"] < 0).sum() > count]
        neither = [code for code in codes if code not in (*short, *above)]
        if codes:
            sentences.append(
                f"Of {len(codes)} {group} languages, those that fall short of {reference} at more than half of the {count} layers, with "
                f"{confidence:.0%} intervals that exclude 0: {_listed(short)}; those that lie above it in the same sense: {_listed(above)}; "
                f"neither: {_listed(neither)}."
            )
    overall = ranges[(ranges["name"] == "low_vs_high") & (ranges["range"] == "all") & (ranges["statistic"] == "mean")]
    for cell in overall.to_dict("records"):
        verdict = "falls short of" if cell["lo"] > 0 else "lies above" if cell["hi"] < 0 else "cannot be told apart from"
        sentences.append(
            f"Averaged over all layers the medium-to-low-resource group {verdict} the high-resource group: gap {_with_interval(cell, 'gap')}."
        )
    return " ".join(sentences)


def training_text(frames: Mapping[str, pd.DataFrame], codes: Sequence[str], reference: str) -> str:
    """What happened to each target's gap by each set of SAEs, and what it cost the reference."""
    cells = _cells(frames["change_by_range"], "meter", "language", "range", "quantity")
    kept = _cells(frames["retention"], "meter", "quantity")
    sentences = []
    for code in codes:
        for meter in dict.fromkeys(frames["change_by_range"]["meter"]):
            raw, matched = (cells[meter, code, "loss", quantity] for quantity in ("gap_closed", "gap_closed_norm_matched"))
            fvu_before, fvu_after = (cells[meter, code, "all", quantity]["estimate"] for quantity in ("fvu_before", "fvu_after"))
            fits = f"FVU went from {fvu_before:.2f} to {fvu_after:.2f}"
            if pd.isna(raw["estimate"]):
                said = "no layer of the loss had a gap whose interval excludes 0, so there was none to close"
            elif raw["lo"] <= 0 <= raw["hi"]:
                said = f"whether any of the gap was closed is open: {_share(raw)}, norm-matched {_share(matched)}"
            else:
                verb = "was closed" if raw["estimate"] > 0 else "was closed, which means that it grew"
                said = f"{_share(raw)} of the gap {verb}, norm-matched {_share(matched)}"
            sentences.append(f"{_name(code)}, {meter} SAEs: {said}; {fits}.")
    first = frames["retention"]["meter"].iloc[0]
    words = {"activation": "activation is {} of the base model's", "bits_per_byte": "bits per byte are {} of the base model's"}
    costs = [text.format(f"{kept[first, q]['estimate']:.1%}") for q, text in words.items() if (first, q) in kept]
    return " ".join(sentences) + f"\n\n{_name(reference)}, the reference: {'; '.join(costs)}."


def _share(cell: Mapping[Any, Any]) -> str:
    return f"{cell['estimate']:.0%} [{cell['lo']:.0%}, {cell['hi']:.0%}]"


def _name(code: str) -> str:
    return LANGUAGES[code].name if code in LANGUAGES else code


def _listed(codes: Sequence[str]) -> str:
    return f"{len(codes)} ({', '.join(map(_name, codes))})" if codes else "none"


def _how_sure(confidence: float, resamples: int, unit: str) -> str:
    return (
        f"Brackets, bands and bars hold the {confidence:.0%} interval of a paired bootstrap over {unit} ({resamples:,} resamples), which draws "
        f"the same {unit} for all that is compared. Each interval speaks for itself alone: where many are shown, about {1 - confidence:.0%} of "
        "them exclude 0 even if nothing is there."
    )


def _reading_gaps(settings: Statistics) -> list[str]:
    mean = "over all tokens" if settings.pooling == "token" else "within each sentence, then over sentences"
    return [
        (
            f"A gap is 1 minus the summed SAE activation of a language per token (mean {mean}), divided by that of the reference language on the "
            "same sentences. Positive: the language falls short. Negative: it lies above. 0: no difference."
        ),
        _how_sure(settings.confidence, settings.resamples, "sentences"),
        (
            "Cautions. Means are per token, and languages need different numbers of tokens to say the same (fertility), so a gap can come from the "
            "tokenizer. An SAE that fits a language worse (higher FVU) misreads its activation: less may mean a poorer dictionary, not weaker "
            "features. Raw activation grows with the norm of the residual, so mere loudness inflates it; compare the norms. All was found on this "
            "model, these SAEs and this corpus, and holds for no other without being measured there."
        ),
    ]


def _reading_scores(config: EvalConfig) -> list[str]:
    return [
        (
            "Accuracy is the share of items whose right option the model finds most likely; chance is what guessing would give. A difference is "
            "adapter minus base on the same items: positive means the adapter helped."
        ),
        "Accuracies carry Wilson intervals. " + _how_sure(config.confidence, config.resamples, "items"),
        (
            "Cautions. A difference whose interval includes 0 is no evidence of no effect: look at its width. "
            "All was found on this model and these items, and holds for no others without being measured there."
        ),
    ]


# --- pages ---------------------------------------------------------------------------------------------------------------------------------------


def write_analysis(folder: Path, config: AnalyzeConfig, pages: Sequence[Section], identity: Mapping[str, str], sentences: int) -> Path:
    """The report of analyze.py. Each section's tables include `tables.range_table` and `tables.layer_table` under `BY_RANGE` and `BY_LAYER`."""
    lead, sections = [], []
    for page in pages:
        ranges, layers = page.tables[BY_RANGE], page.tables[BY_LAYER]
        lead.append(f"By the {page.heading} SAEs: {analysis_text(layers, ranges, config.languages, config.statistics.confidence)}")
        rest = {title: frame for title, frame in page.tables.items() if title not in (BY_RANGE, BY_LAYER)}
        wide = {
            f"{BY_RANGE}, mean": pd.DataFrame(gap_rows(ranges, config.languages)),
            f"{BY_RANGE}, largest": pd.DataFrame(gap_rows(ranges, config.languages, statistic="max")),
            f"{BY_LAYER} (*: the interval excludes 0)": _wide_layers(layers),
        }
        sections.append(replace(page, heading=f"By the {page.heading} SAEs", tables=wide | rest))
    return write_report(
        folder,
        f"Activation gaps against {_name(config.languages.reference)}",
        "\n\n".join(lead),
        sections,
        _measured_facts(folder, config, identity, sentences),
        reading=_reading_gaps(config.statistics),
    )


def write_training(folder: Path, config: TrainConfig, pages: Sequence[Section], identity: Mapping[str, str], sentences: int) -> Path:
    """The report of train.py; the sections' texts lead the page."""
    title = f"Closing the activation gap of {', '.join(map(_name, config.lang))}"
    lead = "\n\n".join(page.text for page in pages if page.text)
    facts = _measured_facts(folder, config, identity, sentences)
    return write_report(folder, title, lead, [replace(page, text="") for page in pages], facts, reading=_reading_gaps(config.statistics))


def write_evaluation(folder: Path, config: EvalConfig, pages: Sequence[Section], differences: pd.DataFrame | None) -> Path:
    """The report of eval.py.

    Args:
        differences: `compare.difference_table`; None for the base model alone.
    """
    lead = "Accuracy of the base model alone; give adapter=<run folder> to compare."
    if differences is not None:
        pooled = differences[(differences["task"] == ALL) & (differences["kind"] == ALL) & (differences["metric"] == "acc")]
        better, worse = (list(pooled.loc[side, "language"]) for side in (pooled["lo"] > 0, pooled["hi"] < 0))
        rest = [code for code in pooled["language"] if code not in (*better, *worse)]
        lead = (
            f"Over all benchmarks together the adapter scores higher than the base model in {_listed(better)} of the {len(pooled)} languages and "
            f"lower in {_listed(worse)}, with {config.confidence:.0%} intervals that exclude 0; {_listed(rest)} cannot be told apart."
        )
    title = "Benchmarks, base model" if differences is None else "Benchmarks, adapter against base model"
    return write_report(folder, title, lead, pages, run_facts(folder), reading=_reading_scores(config))


def run_facts(folder: Path) -> dict[str, str]:
    """Who and what, from the manifest of a run folder."""
    manifest = read_manifest(folder)
    git = manifest.get("git") or {}
    facts = {"command": manifest["command"], "run folder": str(folder), "started": manifest["started"], "seed": str(manifest["seed"])}
    if git.get("commit"):
        facts["code"] = git["commit"][:12] + (", with local changes" if git.get("dirty") else "")
    tasks = manifest["identity"].get("tasks") or {}
    if tasks:
        facts["tasks"] = f"{len(tasks)}, with {sum(task['items'] for task in tasks.values())} items; their hashes are in manifest.json"
    for part, found in manifest["identity"].items():
        if part == "tasks":
            continue
        # SAEs come as several by name, the rest as one.
        several = found if found and all(isinstance(value, dict) for value in found.values()) else {"": found}
        label = {"sae": "SAEs,"}.get(part, part)
        facts |= {f"{label} {name}".strip(): _identity(entry) for name, entry in several.items() if entry}
    return facts


def _identity(entry: Mapping[str, Any]) -> str:
    named = " ".join(str(entry[key]) for key in ("name", "release", "id") if entry.get(key))
    details = [f"{key} {_joined(entry[key])}" for key in ("revision", "dtype", "architecture", "width", "sentences") if entry.get(key)]
    digest = [f"sha256 {entry['sha256'][:16]}"] if entry.get("sha256") else []
    return "; ".join(part for part in (named, *details, *digest) if part)


def _joined(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _measured_facts(folder: Path, config: Job, identity: Mapping[str, str], sentences: int) -> dict[str, str]:
    settings = config.statistics
    return run_facts(folder) | {
        "sentences measured": str(sentences),
        "context": f"{identity['context']} tokens" if "context" in identity else "",
        "masking": identity.get("masking", ""),
        "pooling": settings.pooling,
        "confidence": f"{settings.confidence:.0%}, {settings.resamples:,} resamples",
    }


def _wide_layers(layers: pd.DataFrame) -> pd.DataFrame:
    marked = (layers["lo"] > 0) | (layers["hi"] < 0)
    cells = layers.assign(cell=[f"{gap:+.2f}{'*' if mark else ''}" for gap, mark in zip(layers["gap"], marked, strict=True)])
    wide = cells.pivot_table(index="layer", columns="name", values="cell", aggfunc="first", sort=False)  # pyrefly: ignore[bad-argument-type]
    return wide.rename(columns=lambda name: name.replace("_", " ")).reset_index()


def write_report(folder: Path, title: str, lead: str, sections: Sequence[Section], facts: Mapping[str, str], *, reading: Sequence[str]) -> Path:
    """Write `report.html`: one file that needs no other and no network.

    Args:
        title: headline.
        lead: what was found; paragraphs, with blank lines between them.
        sections: figures, tables and text.
        facts: what stands in the page's head; empty values are left out.
        reading: paragraphs on how to read the numbers.
    """
    from jinja2 import Environment, PackageLoader

    environment = Environment(loader=PackageLoader("lingact"), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page = environment.get_template("report.html").render(
        title=title,
        lead=_paragraphs(lead),
        facts={name: value for name, value in facts.items() if value},
        reading=reading,
        sections=[
            {
                "heading": section.heading,
                "text": _paragraphs(section.text),
                "figures": [_embedded(name, path.read_bytes()) for name, path in section.figures.items()],
                "tables": [_table(name, frame) for name, frame in section.tables.items() if len(frame)],
            }
            for section in sections
        ],
    )
    path = folder / "report.html"
    write_atomically(path, page)
    return path


def _paragraphs(text: str) -> list[str]:
    return [part.strip() for part in text.split("\n\n") if part.strip()]


def _embedded(name: str, png: bytes) -> dict[str, Any]:
    caption = next((caption for known, caption in _CAPTIONS.items() if name.startswith(known)), name.replace("_", " "))
    # Shown at the size it was drawn for, so that letters are of one size in all figures. Bytes 16 to 20 of a PNG are its width.
    width = int.from_bytes(png[16:20]) * 96 // DPI
    return {"caption": caption, "data": base64.b64encode(png).decode(), "width": width}


def _table(title: str, frame: pd.DataFrame) -> dict[str, Any]:
    columns = [[_cell(value) for value in frame[name]] for name in frame]
    return {
        "title": title,
        "columns": [{"name": str(name), "number": all(_NUMBER.match(cell) for cell in cells)} for name, cells in zip(frame, columns, strict=True)],
        "rows": list(zip(*columns, strict=True)),
        "long": len(frame) > _LONG,
    }


_NUMBER = re.compile(r"[-+<]?[\d.]|-?$")


def _cell(value: object) -> str:
    if value is None or value is pd.NA or value != value:
        return "-"
    if not isinstance(value, float):
        return str(value)
    size = abs(value)
    return (
        "0" if size == 0 else f"{value:.1e}" if size < 0.001 else f"{value:.3f}" if size < 10 else f"{value:.1f}" if size < 1000 else f"{value:,.0f}"
    )
