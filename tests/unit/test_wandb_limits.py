"""Names and variables of Weights & Biases: judged where a user gave them, shortened where lingact makes them; and its failures end no run."""

import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from lingact.catalogue.languages import LANGUAGES
from lingact.config.base import ConfigSection
from lingact.config.jobs import TrackingConfig
from lingact.config.validation import validate
from lingact.errors import UserError
from lingact.hub.wandb_limits import artifact_name, shortened, table_key, variable_problems
from lingact.runtime.tracking import Run, check_tracking, open_run, surviving_tracking


def tracking(**given: object) -> TrackingConfig:
    return validate(TrackingConfig, {"mode": "offline", "project": "lingact", "entity": None, "group": None, "tags": [], **given})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"tags": ["t" * 65]}, r"tags: 't{20}\.\.\.' has 65 characters; Weights & Biases allows 1 to 64"),
        ({"tags": ["fine", ""]}, "tags: '' is blank"),
        ({"tags": ["a\nb"]}, r"tags: 'a\\nb' contains \"\\n\""),
        ({"project": "a/b"}, r"project: 'a/b' contains \"/\", which Weights & Biases does not allow"),
        ({"project": "50%"}, "project: '50%' contains \"%\""),
        ({"project": ""}, "project: '' is blank"),
        ({"project": "p" * 129}, "has 129 characters; Weights & Biases allows 1 to 128"),
        ({"entity": "my team/x"}, "entity: 'my team/x' contains"),
        ({"entity": " me"}, "entity: ' me' is blank, or begins or ends with a space"),
        ({"group": "g" * 129}, "group: .* has 129 characters"),
    ],
)
def test_what_a_user_gives_is_judged(given: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        tracking(**given)


def test_the_longest_that_is_taken() -> None:
    tracking(tags=["t" * 64, "മലയാളം"], project="p" * 128, group="a/b: c?" + "g" * 100, entity="e")


@pytest.mark.parametrize(
    ("mode", "variables", "said"),
    [
        ("offline", {"WANDB_TAGS": f"a,{'t' * 70}"}, "WANDB_TAGS: .* has 70 characters"),
        ("offline", {"WANDB_TAGS": "a,,b"}, "WANDB_TAGS: '' is blank"),
        ("offline", {"WANDB_RUN_ID": "a/b"}, "WANDB_RUN_ID: 'a/b' contains"),
        ("offline", {"WANDB_RUN_ID": ""}, "WANDB_RUN_ID: '' is blank"),
        ("offline", {"WANDB_RUN_ID": "r" * 65}, "WANDB_RUN_ID: .* has 65 characters"),
        ("disabled", {"WANDB_PROJECT": "a:b"}, "WANDB_PROJECT: 'a:b' contains"),
        ("disabled", {"WANDB_MODE": "of-line"}, "WANDB_MODE='of-line' is none of online"),
        ("offline", {"WANDB_RESUME": "yes"}, "WANDB_RESUME='yes' is none of allow, must, never, auto"),
        ("online", {"WANDB_API_KEY": "   "}, "WANDB_API_KEY is blank"),
        ("online", {"WANDB_API_KEY": f"{'k' * 40}\n"}, "WANDB_API_KEY is blank, or begins or ends with a space or a line break"),
        ("online", {"WANDB_MODE": "offline"}, "tracking=wandb means online, but WANDB_MODE=offline forbids it"),
        ("online", {"WANDB_DISABLED": "true"}, "tracking=wandb means online, but WANDB_DISABLED=true"),
        ("offline", {"WANDB_SWEEP_ID": "abc", "WANDB_RUN_ID": "xyz"}, "an agent of the W&B sweep abc has started this run"),
        ("disabled", {"WANDB_SWEEP_ID": "abc"}, "put tracking=wandb into the sweep's command"),
    ],
)
def test_variables_that_cannot_be_are_told(mode: str, variables: dict[str, str], said: str) -> None:
    (problem,) = variable_problems(mode, variables)
    assert re.search(said, problem)


def test_variables_that_may_be() -> None:
    agent = {"WANDB_SWEEP_ID": "abc", "WANDB_RUN_ID": "x1y2z3", "WANDB_PROJECT": "p", "WANDB_ENTITY": "e", "WANDB_API_KEY": "k" * 40}
    assert not list(variable_problems("online", agent))
    assert not list(
        variable_problems("offline", {"WANDB_MODE": "disabled", "WANDB_DIR": "/nowhere", "WANDB_DISABLED": "true", "WANDB_TAGS": "a,b c"})
    )


def test_a_blank_key_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_API_KEY", " ")
    with pytest.raises(UserError, match=r"WANDB_API_KEY is blank.*\n.*needs a Weights & Biases key, but none is set"):
        check_tracking(tracking(mode="online"))


def test_long_names_are_cut_and_still_differ() -> None:
    many = list(LANGUAGES)[:42]
    name, other = artifact_name("adapter", *many), artifact_name("adapter", *many[:-1], "xx")
    assert len(name) == len(other) == 128
    assert name != other
    assert name == artifact_name("adapter", *many), "the same every time"
    assert artifact_name("adapter", "ml", "hi") == "adapter-ml-hi"
    assert artifact_name("a b", "മ") == "a_b-_"
    assert shortened("x" * 128) == "x" * 128
    assert len(f"run-{'r' * 64}-{table_key('t' * 300, 'r' * 64)}") == 128


class Small(ConfigSection):
    """A job's configuration."""

    seed: int = 0


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """In a folder with a long name."""
    with open_run("train", Small(), tracking(tags=["t" * 64]), tmp_path / ("folder" * 30)) as opened:
        yield opened


def test_the_client_takes_what_lingact_makes(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "weights").write_bytes(b"w")
    run.artifact(("adapter", *(f"l{number}" for number in range(42))), "adapter", [tmp_path / "adapter" / "weights"])
    run.table("differences " + "of a recipe with a long name" * 5, pd.DataFrame({"a": [1]}))
    run.summary({"key/" + "k" * 300: 1.0})
    assert capsys.readouterr().err == ""


def test_copies_that_wait_for_upload_lie_in_the_run_folder(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_DATA_DIR", raising=False)
    for name in ("HOME", "XDG_DATA_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    run.table("gaps", pd.DataFrame({"gap": [0.5]}))
    assert not (tmp_path / "home").exists()
    assert any((run.folder / "wandb" / "artifacts" / "staging").iterdir())
    assert "WANDB_DATA_DIR" not in os.environ


def test_what_tracking_does_not_take_does_not_end_the_run(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run.artifact((), "adapter", [])  # no name
    assert capsys.readouterr().err.startswith("Weights & Biases did not accept something, and the run continues without it: ")
    assert run.summary({"a": 1.0}) == {"a": 1.0}
    full = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(OSError, match="No space"), surviving_tracking():
        raise full


def test_a_fault_of_ours_is_no_failure_of_tracking() -> None:
    with pytest.raises(KeyError, match="ours"), surviving_tracking():
        raise KeyError("ours")
