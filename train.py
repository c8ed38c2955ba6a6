"""python train.py --help shows what it does and what it takes."""

from pathlib import Path

from lingact.cli.main import launch

if __name__ == "__main__":
    launch("train", Path(__file__).parent / "conf")
