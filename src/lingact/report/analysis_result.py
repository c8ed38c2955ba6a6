"""The result of an analysis on one subject, and the settings that all subjects share."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypedDict

import numpy as np
import pandas as pd

from lingact.analysis.measures import StatsByLanguage
from lingact.config.data import LanguagesConfig
from lingact.config.measures import Statistics
from lingact.report.page import Card
from lingact.statistics.bootstrap import Resampling

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class BootstrapSettings(TypedDict):
    """Settings of a bootstrap, as keyword arguments."""

    resamples: int
    confidence: float
    seed: int


@dataclass(frozen=True)
class ReportSettings:
    """Settings that all subjects share."""

    languages: LanguagesConfig
    statistics: Statistics
    seed: int

    @property
    def bootstrap(self) -> BootstrapSettings:
        """Resamples, confidence and seed, for functions that take no configuration."""
        return {"resamples": self.statistics.resamples, "confidence": self.statistics.confidence, "seed": self.seed}

    def resampling(self, stats: StatsByLanguage, places: np.ndarray | None = None) -> Resampling:
        """What is resampled of the measured sentences, or of those at these places."""
        whole = next(iter(stats.values())).resampling(self.statistics.block)
        return whole if places is None else whole.part(places)


@dataclass(frozen=True)
class AnalysisResult:
    """The result on one subject: text, tables and figures."""

    heading: str
    text: str
    """Paragraphs, with blank lines between them."""
    lead: str = ""
    """The sentences that belong at the head of the page."""
    frames: dict[str, pd.DataFrame] = field(default_factory=dict)
    """Tidy tables by file name."""
    figures: "dict[str, Figure]" = field(default_factory=dict)
    """Figures by file name."""
    shown: dict[str, pd.DataFrame] = field(default_factory=dict)
    """Tables on the page by title."""
    cards: Sequence[Card] = ()
    printed: dict[str, pd.DataFrame] = field(default_factory=dict)
    """Tables for the terminal by title."""
    summary: dict[str, float] = field(default_factory=dict)
