"""Thirty of the generated configurations and corpora as real commands; `record.py` tries all of them."""

from pathlib import Path

import pytest

from .commands import give, read_back
from .configurations import Command
from .corpora import Example
from .test_configurations import all_commands
from .test_corpora import all_examples


def chosen() -> list[Command | Example]:
    """Twenty-three configurations, evenly; two files of each kind that have to be refused, and a corpus that has to be read."""
    kinds = {name: [example for example in all_examples() if example.kind == name] for name in ("corpus", "scores", "questions")}
    whole = [example for example in kinds["corpus"] if example.has_to_be_read]
    refused = [example for name in kinds for example in [each for each in kinds[name] if each.truth is None][:2]]
    return [*all_commands()[5::13][:23], *refused, whole[0]]


@pytest.mark.parametrize("number", range(30))
def test_command(number: int, tmp_path: Path) -> None:
    example = chosen()[number]
    ending = give(example, tmp_path)
    assert ending.complaint is None, f"{example}: {ending}"
    if isinstance(example, Example) and ending.code == 0:
        assert read_back(example, tmp_path) is None, str(example)
