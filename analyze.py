"""python analyze.py --help shows what it does and what it takes."""

from pathlib import Path

from lingact.cli.main import launch

if __name__ == "__main__":
    launch("analyze", Path(__file__).parent / "conf")
