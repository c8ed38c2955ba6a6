"""One self-contained HTML page."""

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import pandas as pd

from lingact.config.jobs import Job
from lingact.files.atomic import write_atomically
from lingact.runtime.tracking import DPI, read_manifest
from lingact.statistics.bootstrap import Resampling

_LONG = 30
"""Tables with more rows than this are folded."""
_CAPTIONS = {
    "fit": "Fraction of variance unexplained (FVU) by layer and language, a panel for each set.",
    "dead": "Share of latents that fire on none of the held-out tokens.",
    "attribution": "Log ratio of activation to the reference, split into norm, dictionary and remainder (bars); the line is their sum.",
    "gap_heatmap_random": "Gap of each language at each layer by SAEs with random directions, mean over the draws.",
    "gap_heatmap": "Gap of each language at each layer; the reference is the zero of the scale.",
    "gap_groups": "Gap of the language groups over the layers.",
    "confounds": "What else differs between the languages and could look like weak features.",
    "measures": "Gap by other measures of activation, mean over all layers; the sign can depend on the measure.",
    "similarity": "Similarity of translations to the reference over the layers, with shuffled pairs for comparison.",
    "separation": "How well one number per sentence tells a language from the reference (AUC; 0.5 is chance).",
    "feature_counts": "Language-specific features by language and layer, found on one half of the sentences and confirmed on the other.",
    "feature_rates": "How often the strongest language-specific features fire in every language (confirmation half).",
    "spliced": "Rise of the cross-entropy when the SAE's reconstruction replaces the residual at one layer.",
    "causal_matrix": "Change of the cross-entropy in every language (columns) when the features of one language (rows) are ablated.",
    "dose_response": "Change of the cross-entropy over the dose.",
    "scores": "Gap and benchmark score of each language, with uncorrected p.",
    "side_by_side": "Similarity, gap and benchmark scores of the same languages.",
    "trade_off": "The cost of closing the gap. Each point is a method; bars are ranges over seeds, hollow squares are controls.",
    "change": "Gap of the trained languages before and after training; the activation of the reference is that of the base model.",
    "loss": "Raw value of each loss term during training.",
    "accuracy": "Benchmark accuracy of the base model.",
    "differences": "Difference in benchmark accuracy, adapter minus base.",
}


class _Table(TypedDict):
    """A table as the template reads it."""

    title: str
    columns: list[dict[str, str]]
    rows: list[tuple[str, ...]]
    long: bool


@dataclass(frozen=True)
class Card:
    """A box on the page: a feature with its strongest contexts, or a prompt with its continuations."""

    title: str
    link: str | None
    """Address of a page about it; None: there is none."""
    facts: Sequence[str]
    contexts: Sequence[tuple[str, str, str, str]]
    """Label, text before, the token, text after."""


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
    cards: Sequence[Card] = ()


def run_facts(folder: Path) -> dict[str, str]:
    """Facts of a run, from its manifest: command, code, model, data."""
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
        # There are several SAEs by name, and one of everything else.
        several = found if found and all(isinstance(value, dict) for value in found.values()) else {"": found}
        label = {"sae": "SAEs,", "attribution": "SAEs of the attribution,"}.get(part, part)
        facts |= {f"{label} {name}".strip(): _identity(entry) for name, entry in several.items() if entry}
    return facts


def _identity(entry: Mapping[str, Any]) -> str:
    named = " ".join(str(entry[key]) for key in ("name", "release", "id") if entry.get(key))
    details = [f"{key} {_joined(entry[key])}" for key in ("revision", "dtype", "architecture", "width", "sentences") if entry.get(key)]
    digest = [f"sha256 {entry['sha256'][:16]}"] if entry.get("sha256") else []
    return "; ".join(part for part in (named, *details, *digest) if part)


def _joined(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def measured_facts(folder: Path, config: Job, identity: Mapping[str, str], resampling: Resampling) -> dict[str, str]:
    """`run_facts`, and how it was measured.

    Args:
        folder: of the run.
        config: of the run.
        identity: header of its statistics.
        resampling: what is resampled.
    """
    settings = config.statistics
    return run_facts(folder) | {
        "sentences measured": str(len(resampling.unit)),
        "resampled": str(resampling),
        "context": f"{identity['context']} tokens" if "context" in identity else "",
        "masking": identity.get("masking", ""),
        "pooling": settings.pooling,
        "confidence": f"{settings.confidence:.0%}, {settings.resamples:,} resamples",
    }


def write_report(folder: Path, title: str, lead: str, sections: Sequence[Section], facts: Mapping[str, str], *, reading: Sequence[str]) -> Path:
    """Write `report.html`: one file that needs no other files and no network.

    Args:
        folder: of the run.
        title: headline.
        lead: the main results; paragraphs with blank lines between them.
        sections: text, figures and tables.
        facts: about the run, shown at the head of the page; empty values are left out.
        reading: paragraphs on how to read the numbers.

    Returns:
        The path of the page.
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
                "cards": section.cards,
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


def _embedded(name: str, png: bytes) -> dict[str, str | int]:
    caption = next((caption for known, caption in _CAPTIONS.items() if name.startswith(known)), name.replace("_", " "))
    # Shown at its own size, so that letters have one size in all figures. Bytes 16 to 20 of a PNG are its width.
    width = int.from_bytes(png[16:20]) * 96 // DPI
    return {"caption": caption, "data": base64.b64encode(png).decode(), "width": width}


def _table(title: str, frame: pd.DataFrame) -> _Table:
    columns = [[_cell(value) for value in frame[name]] for name in frame]
    return {
        "title": title,
        "columns": [{"name": str(name), "kind": _kind(cells)} for name, cells in zip(frame, columns, strict=True)],
        "rows": list(zip(*columns, strict=True)),
        "long": len(frame) > _LONG,
    }


def _kind(cells: Sequence[str]) -> str:
    """The style of a column: numbers are aligned to the right, sentences are wrapped."""
    return "number" if all(_NUMBER.match(cell) for cell in cells) else "prose" if max(map(len, cells), default=0) > _PROSE else ""


_PROSE = 60
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
