"""What an analysis found on one subject, and the settings by which it is judged."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from lingact.analysis.measures import Stats
from lingact.config.data import LanguagesConfig
from lingact.config.measures import Statistics
from lingact.report.page import Card
from lingact.statistics.bootstrap import Resampling

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class ReportSettings:
    """How everything is judged."""

    languages: LanguagesConfig
    statistics: Statistics
    seed: int

    @property
    def bootstrap(self) -> dict[str, Any]:
        """Resamples, confidence and seed, for functions that take no configuration."""
        return {"resamples": self.statistics.resamples, "confidence": self.statistics.confidence, "seed": self.seed}

    def resampling(self, stats: Stats, places: np.ndarray | None = None) -> Resampling:
        """What is resampled of the sentences that were measured, or of those at some of their places."""
        whole = next(iter(stats.values())).resampling(self.statistics.block)
        return whole if places is None else whole.part(places)


@dataclass(frozen=True)
class AnalysisResult:
    """One subject of the report."""

    heading: str
    text: str
    """Paragraphs, with blank lines between them."""
    lead: str = ""
    """What of it belongs at the head of the page."""
    frames: dict[str, pd.DataFrame] = field(default_factory=dict)
    """Tidy tables by the name of their file."""
    figures: "dict[str, Figure]" = field(default_factory=dict)
    """By the name of their file."""
    shown: dict[str, pd.DataFrame] = field(default_factory=dict)
    """Tables of the report by title."""
    cards: Sequence[Card] = ()
    printed: dict[str, pd.DataFrame] = field(default_factory=dict)
    """Tables for the terminal by title."""
    summary: dict[str, float] = field(default_factory=dict)
