"""Choices in a configuration that only the model or its SAEs can judge."""

from collections.abc import Sequence

from lingact.config.measures import Statistics
from lingact.errors import UserError


def check_ranges(layers: Sequence[int], settings: Statistics) -> None:
    """Refuse a named range without a measured layer.

    Raises:
        UserError: with the measured ones.
    """
    for name, chosen in (("early", settings.early), ("deep", settings.deep)):
        if chosen != "third" and not set(chosen) & set(layers):
            raise UserError(f"statistics.{name}: none of the layers {list(chosen)} is measured; measured are {list(layers)}")
