"""`sae=FOLDER` in place of an option."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from lingact.cli.compose import compose, composing
from lingact.cli.sae_folders import with_sae_folders
from lingact.errors import UserError
from tests.helpers.paths import CONF


@pytest.fixture(autouse=True)
def options() -> Iterator[None]:
    with composing("analyze", CONF):
        yield


def planted(folder: Path, *layers: int) -> Path:
    for layer in layers:
        (folder / f"layer_{layer}").mkdir(parents=True)
    return folder


@pytest.mark.parametrize("name", ["equal", "with space", "with,comma", "it's"])
def test_a_folder_stands_for_its_saes(name: str, tmp_path: Path) -> None:
    folder = planted(tmp_path / name, 9, 4)
    escaped = str(folder).replace("'", "\\'")
    found = compose("analyze", with_sae_folders("analyze", [f"sae='{escaped}'" if name != "equal" else f"sae={folder}", "seed=1"]))
    assert found.sae.measuring.release == str(folder)
    assert list(found.sae.layers) == [4, 9]
    assert found.seed == 1


def test_options_and_named_layers_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert with_sae_folders("analyze", ["sae=microworld", "+x=1"]) == ["sae=microworld", "+x=1"]
    folder = planted(tmp_path / "s", 4, 9)
    assert with_sae_folders("analyze", [f"sae={folder}", "sae.layers=[4]"])[-1] == "sae.layers=[4]"
    monkeypatch.chdir(tmp_path)
    assert with_sae_folders("train", ["sae=s"])[1] == "sae.measuring.release='s'"


def test_folders_of_a_sweep(tmp_path: Path) -> None:
    a, b, c = (planted(tmp_path / name, *layers) for name, layers in (("a", (1, 2)), ("b", (1, 2)), ("c", (3,))))
    assert with_sae_folders("analyze", [f"sae={a},{b}"]) == ["sae=own", f"sae.measuring.release='{a}','{b}'", "sae.layers=[1,2]"]
    with pytest.raises(UserError, match="SAEs of different layers"):
        with_sae_folders("analyze", [f"sae={a},{c}"])
    with pytest.raises(UserError, match="do not go together"):
        with_sae_folders("analyze", [f"sae={a},microworld"])


def test_what_is_no_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"sae: there is no folder 'no/where'; name a set of lingact saes"):
        with_sae_folders("analyze", ["sae=no/where"])
    run = tmp_path / "run"
    planted(run / "sae" / "equal", 4)
    with pytest.raises(UserError, match=r"has no layer_<n> \(there: sae\); name one of its sets: .*run/sae/equal"):
        with_sae_folders("analyze", [f"sae={run}"])
