"""The questions that a reviewer would ask of an analysis, with this run's answers; their text is in `assets/reviewer.yaml`."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import pandas as pd
import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter

from lingact.config.base import asset
from lingact.config.jobs import AnalyzeConfig
from lingact.report.phrases import span
from lingact.statistics.bootstrap import Resampling

Fact = Literal["adapter", "heldout", "scores", "sentences", "resampled"]


class Statement(BaseModel):
    """A text that is always shown, or only if a part of the analysis was asked for."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    text: str
    part: str | None = None
    """An entry of `measures.parts`; None: always shown."""


class Alternatives(BaseModel):
    """Texts among which a fact of the run chooses."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    by: Fact
    texts: dict[str, str]
    """Value of the fact -> text."""


class Question(BaseModel):
    """A question, and the parts of its answer."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    question: str
    answers: tuple[Statement | Alternatives, ...]


@functools.cache
def reviewer_questions() -> tuple[Question, ...]:
    """The questions of `assets/reviewer.yaml`, in their order there."""
    content = yaml.safe_load(Path(asset("reviewer.yaml")).read_text(encoding="utf-8"))
    return TypeAdapter(tuple[Question, ...]).validate_python(content)


def reviewer_table(config: AnalyzeConfig, resampling: Resampling, *, heldout: bool, windows: Mapping[str, float]) -> pd.DataFrame:
    """One row per question, with the answer of this run.

    Args:
        resampling: what the intervals resample.
        heldout: whether a second set of SAEs took part.
        windows: language -> windows per sentence.
    """
    sentences = "untrained" if config.adapter is None else "seen" if config.split in ("all", "train") else "unseen"
    facts: dict[Fact, str] = {
        "adapter": _yes_no(config.adapter is not None or bool(config.compare)),
        "heldout": _yes_no(heldout),
        "scores": _yes_no(bool(config.scores)),
        "sentences": sentences,
        "resampled": resampling.by,
    }
    values = {"split": config.split, "windows": span(pd.Series(windows))}
    rows = [(question.question, _answer(question, config.measures.parts, facts).format(**values)) for question in reviewer_questions()]
    return pd.DataFrame(rows, columns=["question", "answer"])


def _answer(question: Question, parts: tuple[str, ...], facts: Mapping[Fact, str]) -> str:
    texts_shown: list[str] = []
    for part in question.answers:
        match part:
            case Alternatives(by=by, texts=texts):
                texts_shown.append(texts[facts[by]])
            case Statement(part=None, text=text):
                texts_shown.append(text)
            case Statement(part=needed, text=text):
                texts_shown.append(text if needed in parts else f"not in this run; add {needed} to measures.parts, or use measures=full")
    return "; ".join(texts_shown)


def _yes_no(value: bool) -> str:
    return "yes" if value else "no"
