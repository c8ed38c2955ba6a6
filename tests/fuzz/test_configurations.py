"""Generated command lines at the door, in one process: a plan or one readable refusal, and no file touched."""

import os
from functools import cache
from pathlib import Path

import pytest

from . import configurations
from .configurations import Command, lay_out
from .corpora import snapshot
from .door import complaint, knock, small_run
from .draw import examples

PARTS = {"ten": slice(0, None, 30), **{f"part {part}": slice(part, None, 6) for part in range(6)}}
"""Which of the commands; `make test` gives ten of them."""


@cache
def all_commands() -> list[Command]:
    """Three hundred."""
    return examples(configurations.commands(), 300, lambda command: [(command.job, shard) for shard in command.shards])


@pytest.mark.parametrize("part", [pytest.param(part, marks=[] if part == "ten" else pytest.mark.slow) for part in PARTS])
def test_the_door(part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("WANDB_API_KEY", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    stages = {}
    for job in configurations.JOBS:
        stages[job] = tmp_path / job
        stages[job].mkdir()
        lay_out(stages[job], job, small_run(job))
    before = {job: snapshot(stage) for job, stage in stages.items()}
    wrong = []
    for command in all_commands()[PARTS[part]]:
        monkeypatch.chdir(stages[command.job])
        found = complaint(command, knock(command))
        there = Path.cwd()
        after = snapshot(stages[command.job])
        if after != before[command.job]:
            found = f"{found or ''} touches {sorted(dict(after.items() ^ before[command.job].items()))}"
            before[command.job] = after
        if there != stages[command.job]:
            found = f"{found or ''} changes the working folder to {there}"
        if found:
            wrong.append(f"{command.job}.py {list(command.arguments)}\n    {found}")
    assert {path.name for path in tmp_path.iterdir()} == set(configurations.JOBS), "nothing at home"
    assert not wrong, f"{len(wrong)}:\n" + "\n".join(wrong)


@pytest.mark.slow
def test_examples_do_not_depend_on_what_is_imported() -> None:
    """The commands of the tests and of the record are those that were tried in one process."""
    first = all_commands()
    all_commands.cache_clear()
    os.urandom(1)
    assert all_commands() == first
