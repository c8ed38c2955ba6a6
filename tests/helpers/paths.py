"""Where the checkout and its configurations are."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
CONF = ROOT / "conf"
