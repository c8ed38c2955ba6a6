"""Thirty of the generated configurations and corpora as real commands, in `make test` three; `record.py` tries all of them."""

from pathlib import Path

import pytest

from .commands import give, read_back
from .configurations import JOBS, Command, keys
from .corpora import Example
from .test_configurations import all_commands
from .test_corpora import all_examples


def chosen() -> list[Command | Example]:
    """Eighteen configurations with something else than a key in them, which are mostly refused at once, and five others; two files of each kind that
    have to be refused, and a corpus that has to be read."""
    known = {job: {key.path for key in keys(job)} for job in JOBS}
    odd = [command for command in all_commands() if any(text.partition("=")[0] not in known[command.job] for text in command.arguments)]
    others = [command for command in all_commands() if command not in odd]
    kinds = {name: [example for example in all_examples() if example.kind == name] for name in ("corpus", "scores", "questions")}
    whole = [example for example in kinds["corpus"] if example.has_to_be_read and len(example.truth.texts["en"]) > 1]
    refused = [example for name in kinds for example in [each for each in kinds[name] if each.truth is None][:2]]
    return [*odd[:: len(odd) // 18][:18], *others[:: len(others) // 5][:5], *refused, whole[0]]


@pytest.mark.slow  # test_configurations.py goes through the door in the fast tier
@pytest.mark.parametrize("number", range(30))
def test_command(number: int, tmp_path: Path) -> None:
    example = chosen()[number]
    ending = give(example, tmp_path)
    assert ending.complaint is None, f"{example}: {ending}"
    if isinstance(example, Example) and ending.code == 0:
        assert read_back(example, tmp_path) is None, str(example)
