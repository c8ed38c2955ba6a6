"""The installed command, the options that it finds, and jobs that are run from Python."""

import importlib.metadata
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from lingact.cli import command
from lingact.cli.main import installed_main, run_job
from lingact.cli.options import own_options, package_options
from lingact.errors import UserError
from tests.helpers.paths import CONF, ROOT

from .conftest import CORPUS, Runs

MAPPING = """
import json, sys
from setuptools import distutils
distribution = distutils.core.run_setup("setup.py", stop_after="config")
distribution.get_command_obj("egg_info").egg_base = sys.argv[1]  # not into the checkout
build = distribution.get_command_obj("build_py")
build.ensure_finalized()
print(json.dumps(sorted(build.get_output_mapping().values())))
"""
BUILD = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"


def python(*arguments: str, cwd: Path, path: Path = ROOT / "src") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(path), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run((sys.executable, *arguments), cwd=cwd, env=environment, capture_output=True, text=True, check=False)


# --- dispatch --------------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [0, 2, 130])
def test_a_signal_while_python_ends_does_not_change_the_exit_code(code: int, tmp_path: Path) -> None:
    """As Slurm sends one to a run that has just been completed."""
    script = f"import atexit, os, signal; atexit.register(os.kill, os.getpid(), signal.SIGUSR1); from lingact.cli.command import leave; leave({code})"
    assert python("-c", script, cwd=tmp_path).returncode == code


def test_help_names_every_command_and_loads_no_library(tmp_path: Path) -> None:
    code = (
        "import sys; from lingact.cli.command import dispatch; dispatch(['--help']); print(sorted({'hydra', 'torch', 'pydantic'} & set(sys.modules)))"
    )
    *text, loaded = python("-c", code, cwd=tmp_path).stdout.splitlines()
    assert loaded == "[]"
    assert [line.split()[1] for line in text if line.startswith("  lingact ")] == ["train", "analyze", "eval", "saes", "share"]


def test_an_unknown_command_ends_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.dispatch(["trian"]) == 2
    assert capsys.readouterr().err == "lingact:\n  no command 'trian'; did you mean 'train'? (commands: train, analyze, eval, saes, share)\n"


def test_the_script_is_declared() -> None:
    [script] = importlib.metadata.entry_points(group="console_scripts", name="lingact") or [None]
    declared = 'lingact = "lingact.cli.command:main"'
    assert declared in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert script is None or script.value == "lingact.cli.command:main"


# --- messages and options --------------------------------------------------------------------------------------------------------------------------


def test_messages_name_the_command(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert installed_main("train", ["lang=ml", "sede=1", *CORPUS]) == 2
    assert capsys.readouterr().err == "lingact train:\n  sede: unknown key; did you mean 'seed'?\n"


def test_help_shows_the_command_and_the_folders(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "conf" / "model").mkdir(parents=True)
    (place / "conf" / "model" / "mine.yaml").write_text("name: mine\n", encoding="utf-8")
    assert installed_main("train", ["--help"]) == 0
    text = capsys.readouterr().out
    assert "\n  lingact train lang=ml " in text
    assert "python train.py" not in text
    assert "microworld, mine, pythia_70m" in text
    assert text.endswith(f"Options are read from conf, then {CONF}\n")


@pytest.mark.parametrize("flag", [(), ("--config-dir", "others")])
def test_the_users_options_are_found_first(place: Path, runs: Runs, flag: tuple[str, ...]) -> None:
    folder = place / (flag[1] if flag else "conf")
    (folder / "peft").mkdir(parents=True)
    own = yaml.safe_load((CONF / "peft" / "lora.yaml").read_text(encoding="utf-8")) | {"r": 3}
    for name in ("lora", "mine"):  # the second is new, the first replaces the package's
        (folder / "peft" / f"{name}.yaml").write_text(yaml.safe_dump(own), encoding="utf-8")
        assert installed_main("train", [*flag, "lang=ml", f"peft={name}", *CORPUS]) == 0
    assert [config.peft.r for config, _ in runs] == [3, 3]


def test_options_in_a_checkout_are_those_of_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert package_options().resolve() == CONF
    assert own_options(None, Path("conf")) is None


# --- from Python -----------------------------------------------------------------------------------------------------------------------------------


def test_a_job_from_python(place: Path, runs: Runs) -> None:
    folder = run_job("train", ["lang=ml", "seed=3", *CORPUS])
    [(config, used)] = runs
    assert (config.lang, config.seed) == (("ml",), 3)
    assert folder.samefile(used)
    assert run_job("train", [f"resume={folder}"]) == folder


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["lang=ml", "sede=1"], "sede: unknown key; did you mean 'seed'?"),
        (
            ["lang=ml", "plan=true", "languages.high=[]", "languages.low=[ml,hi]", "device=cpu"],
            "plan: true prints the plan and makes no run; leave it out to run the job",
        ),
        (
            ["lang=ml", "trainer.devices=2", "trainer.sentences=4"],
            "several processes can be started from the command line only; write lingact train there",
        ),
        (["resume=nowhere"], "name a folder that lingact train made"),
    ],
)
@pytest.mark.usefixtures("place", "runs")
def test_mistakes_from_python_raise(overrides: list[str], said: str) -> None:
    with pytest.raises(UserError) as refused:
        run_job("train", [*overrides, *(() if overrides[0].startswith("resume") else CORPUS)])
    assert said in str(refused.value)


# --- the wheel -------------------------------------------------------------------------------------------------------------------------------------


def test_the_wheel_has_every_file_of_the_package_and_the_options(tmp_path: Path) -> None:
    done = python("-W", "ignore", "-c", MAPPING, str(tmp_path), cwd=ROOT)
    files = {Path(name) for name in json.loads(done.stdout.splitlines()[-1])}
    listed = subprocess.run(("git", "ls-files", "src/lingact", "conf"), cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    assert {Path(name) for name in listed} - files == set()


@pytest.mark.slow
def test_the_wheel_works_in_an_empty_folder(tmp_path: Path) -> None:
    source, place, site = tmp_path / "source", tmp_path / "place", tmp_path / "site"
    listed = subprocess.run(("git", "ls-files", "-z"), cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    for name in filter(None, listed):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((ROOT / name).read_bytes())
    place.mkdir()
    built = python("-W", "ignore", "-c", BUILD, str(tmp_path), cwd=source)
    zipfile.ZipFile(tmp_path / built.stdout.split()[-1]).extractall(site)

    def lingact(*arguments: str) -> subprocess.CompletedProcess[str]:
        return python("-m", "lingact", *arguments, cwd=place, path=site)

    text = lingact("analyze", "--help").stdout
    assert "  lingact analyze corpus=files" in text
    assert text.endswith(f"Options are read from {site / 'lingact' / 'conf'}\n")
    (tmp_path / "mine" / "corpus").mkdir(parents=True)
    own = (CONF / "corpus" / "microworld.yaml").read_text(encoding="utf-8").replace("max_sentences: null", "max_sentences: 40")
    (tmp_path / "mine" / "corpus" / "few.yaml").write_text(own, encoding="utf-8")
    small = ("tracking=none", "sae.layers=[0]", "sae.heldout=null", "statistics.resamples=100", "languages.high=[]", "languages.low=[ml]")
    done = lingact("analyze", "--config-dir", str(tmp_path / "mine"), "corpus=few", *small, "hydra.run.dir=run")
    assert done.returncode == 0, done.stderr
    manifest = json.loads((place / "run" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["status"] == "complete"
    assert manifest["command"].startswith("lingact analyze --config-dir ")
    assert manifest["identity"]["corpus"]["sentences"] == 40
    assert lingact("analyze", "resume=nowhere").stderr.startswith("lingact analyze:\n")
