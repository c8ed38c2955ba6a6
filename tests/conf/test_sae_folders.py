"""`sae=FOLDER` in place of an option."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from lingact.cli.checks import read_config
from lingact.cli.compose import compose, composing, expand_sweep, parse_overrides
from lingact.cli.resume import _apply_overrides
from lingact.cli.sae_folders import with_sae_folders
from lingact.config.jobs import AnalyzeConfig
from lingact.config.model import SaeConfig, SaeSet
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
    for given in (["sae=microworld", "+x=1"], ["sae="], ["sae=null"], ["~sae"]):
        assert with_sae_folders("analyze", given) == given
    folder = planted(tmp_path / "s", 4, 9)
    assert with_sae_folders("analyze", [f"sae={folder}", "sae.layers=[4]"])[-1] == "sae.layers=[4]"
    monkeypatch.chdir(tmp_path)
    assert with_sae_folders("train", ["sae=s"])[1] == "sae.measuring.release='s'"


def jobs(overrides: list[str]) -> list[tuple[str, list[int]]]:
    """Folder and layers of each job of a sweep."""
    composed = [compose("analyze", job).sae for job in expand_sweep(parse_overrides(with_sae_folders("analyze", overrides))[0])]
    return [(sae.measuring.release, list(sae.layers)) for sae in composed]


def test_folders_of_a_sweep(tmp_path: Path) -> None:
    a, b, c = (planted(tmp_path / name, *layers) for name, layers in (("a", (1, 2)), ("b", (1, 2)), ("c, d", (3,))))
    assert with_sae_folders("analyze", [f"sae={a},{b}"]) == ["sae=own", f"sae.measuring.release='{a}','{b}'", "sae.layers=[1,2]"]
    assert jobs([f"sae={a},'{c}'"]) == [(str(a), [1, 2]), (str(c), [3])], "each has its own layers"
    assert jobs([f"sae={a},'{c}'", "sae.layers=[2],[1]"]) == [(str(folder), [layer]) for folder in (a, c) for layer in (2, 1)]
    with pytest.raises(UserError, match="do not go together"):
        with_sae_folders("analyze", [f"sae={a},microworld"])


def test_another_folder_is_held_out(tmp_path: Path) -> None:
    a, b = planted(tmp_path / "a", 1), planted(tmp_path / "b", 1)
    for given in ([f"sae={a}", f"sae.heldout.release={b}"], [f"sae.heldout.release={b}", f"sae={a}"]):
        config = read_config("analyze", compose("analyze", with_sae_folders("analyze", given)), None)
        assert isinstance(config, AnalyzeConfig)
        assert config.sae == SaeConfig(
            measuring=SaeSet(release=str(a), id="layer_{layer}"), heldout=SaeSet(release=str(b), id="layer_{layer}"), layers=(1,)
        )
    assert compose("analyze", with_sae_folders("analyze", [f"sae={a}"])).sae.heldout is None


def test_a_run_goes_on_with_the_folder_given_again(tmp_path: Path) -> None:
    folder = planted(tmp_path / "s", 4, 1)
    saved = read_config("analyze", compose("analyze", with_sae_folders("analyze", [f"sae={folder}"])), None).model_dump(mode="json")
    again = with_sae_folders("analyze", [f"sae={folder}"])
    assert _apply_overrides("analyze", saved, again)[0] == []
    other = with_sae_folders("analyze", [f"sae={planted(tmp_path / 'other', 4)}"])
    assert any("sae" in problem for problem in _apply_overrides("analyze", saved, other)[0])


def test_what_is_no_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"sae: there is no folder 'no/where'; name a set of lingact saes"):
        with_sae_folders("analyze", ["sae=no/where"])
    run = tmp_path / "run"
    planted(run / "sae" / "equal", 4)
    with pytest.raises(UserError, match=r"has no layer_<n> \(there: sae\); name one of its sets: .*run/sae/equal"):
        with_sae_folders("analyze", [f"sae={run}"])
