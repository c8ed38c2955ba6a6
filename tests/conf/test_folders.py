"""Where a command may write: folders that are the user's are refused at the door, and nothing in them is touched."""

import json
import multiprocessing
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from lingact.cli import main as cli
from lingact.errors import UserError
from lingact.files.folders import LOCK, TOKEN, folder_lock
from lingact.runtime.environment import RUN_FOLDER
from tests.helpers.folders import plant, snapshot, untouched
from tests.helpers.paths import CONF

from .conftest import CORPUS, Runs

Train = Callable[..., int]
MINE = (".bashrc.20240101", "proj/.env.2", ".config.1/x")
"""Names that lingact once took for its own, at any depth."""


def run_of(folder: Path, job: str, status: str = "interrupted") -> None:
    """A run folder as an earlier version leaves it."""
    folder.mkdir(parents=True)
    saved = {"seed": 0, "device": "cpu", "model": {}, "languages": {}, "tracking": {}}
    (folder / "config.yaml").write_text(yaml.safe_dump(saved))
    (folder / "manifest.json").write_text(json.dumps({"job": job, "status": status}))


def here(place: Path) -> None:
    plant(place, *MINE)


def hidden(place: Path) -> None:
    plant(place / "mine", ".git/config", ".env")


def linked(place: Path) -> None:
    plant(place / "project", "notes.txt")
    (place / "mine").symlink_to("project")


def foreign_config(place: Path) -> None:
    plant(place / "mine", "data.csv")
    (place / "mine" / "config.yaml").write_text("seed: 1\nmodel: gpt2\n")


def foreign_manifest(place: Path) -> None:
    plant(place / "mine", "index.html")
    (place / "mine" / "config.yaml").write_text("theme: dark\n")
    (place / "mine" / "manifest.json").write_text('{"name": "app", "icons": []}')


def foreign_status(place: Path) -> None:
    run_of(place / "mine", "train", "queued")
    plant(place / "mine", "x")


def not_text(place: Path) -> None:
    plant(place / "mine", "x")
    (place / "mine" / "config.yaml").write_bytes(b"\xff\xfe\x00")
    (place / "mine" / "manifest.json").write_bytes(b"\xff\xfe\x00")


def copied_config(place: Path) -> None:
    run_of(place / "mine", "train")
    (place / "mine" / "manifest.json").unlink()
    plant(place / "mine", "thesis.tex")


def copied_config_and_names_of_ours(place: Path) -> None:
    copied_config(place)
    (place / "mine" / "thesis.tex").unlink()
    plant(place / "mine", "report.html", "summary.json", "adapter/adapter_model.safetensors")


def without_config(place: Path) -> None:
    run_of(place / "mine", "train")
    (place / "mine" / "config.yaml").unlink()


def names_of_ours(place: Path) -> None:
    plant(place / "mine", "tables/budget.csv", "report.html", "stats/x")


def empty_folders(place: Path) -> None:
    (place / "mine" / "photos").mkdir(parents=True)


REFUSED: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "here": (here, ".", "'.' contains other things (.bashrc.20240101, .config.1, corpus.jsonl, proj and 1 more), but a run needs its own folder"),
    "home": (here, "home", "contains other things (.bashrc.20240101, .config.1, corpus.jsonl, proj and 1 more)"),
    "hidden": (hidden, "mine", "'mine' contains other things (.env, .git)"),
    "link": (linked, "mine", "'mine' contains other things (notes.txt)"),
    "config of something else": (foreign_config, "mine", "'mine' contains other things (config.yaml, data.csv)"),
    "manifest of something else": (foreign_manifest, "mine", "'mine' contains other things (config.yaml, index.html, manifest.json)"),
    "status of something else": (foreign_status, "mine", "'mine' contains other things (config.yaml, manifest.json, x)"),
    "not text": (not_text, "mine", "'mine' contains other things (config.yaml, manifest.json, x)"),
    "config copied beside other things": (copied_config, "mine", "'mine' contains other things (config.yaml, thesis.tex)"),
    "config copied beside names of ours": (
        copied_config_and_names_of_ours,
        "mine",
        (
            "'mine' contains other things (adapter, config.yaml, report.html, summary.json), but a run needs its own folder; name a new or an empty "
            "folder; or continue the run that they belong to: python train.py resume=mine"
        ),
    ),
    "run without its config": (without_config, "mine", "'mine' contains a run without its config.yaml; put it back"),
    "names of ours": (names_of_ours, "mine", "'mine' contains other things (report.html, stats, tables)"),
    "empty folders": (empty_folders, "mine", "'mine' contains other things (photos)"),
    "file": (lambda place: plant(place, "mine"), "mine", "'mine' cannot be made, because 'mine' is not a folder"),
    "link to nowhere": (lambda place: (place / "mine").symlink_to("gone"), "mine", "'mine' cannot be made, because 'mine' is not a folder"),
    "run of another job": (lambda place: run_of(place / "mine", "eval"), "mine", "'mine' contains a run of eval.py; name a new or an empty folder"),
    "run with another configuration": (lambda place: run_of(place / "mine", "train"), "mine", "'mine' contains a run with another configuration"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_run_folder_with_other_things_is_refused(kind: str, train: Train, runs: Runs, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make, named, said = REFUSED[kind]
    make(place)
    before = snapshot(place)
    assert train("lang=ml", f"hydra.run.dir={place if named == 'home' else named}") == 2
    message = capsys.readouterr().err
    assert "hydra.run.dir: " in message
    assert said in message
    assert snapshot(place) == before
    assert not runs


def test_what_is_wrong_with_folder_and_values_is_told_at_once(train: Train, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = plant(place, *MINE)
    assert train("lang=xx", "sede=1", "hydra.run.dir=.") == 2
    message = capsys.readouterr().err
    assert all(said in message for said in ("unknown language 'xx'", "did you mean 'seed'", "hydra.run.dir: '.' contains other things"))
    assert untouched(before, place)


@pytest.mark.parametrize("kind", ["not there", "empty", "link to an empty one", "only what a killed process left"])
def test_a_folder_of_its_own_is_used(kind: str, train: Train, runs: Runs, place: Path) -> None:
    match kind:
        case "empty":
            (place / "run").mkdir()
        case "link to an empty one":
            (place / "scratch").mkdir()
            (place / "run").symlink_to("scratch")
        case "only what a killed process left":
            plant(place / "run", f".lingact.{TOKEN}.{'0' * 16}")
            (place / "run" / LOCK).touch()
    before = snapshot(place)
    assert train("lang=ml", "hydra.run.dir=run") == 0
    assert [folder for _, folder in runs] == [place / "run"]
    assert untouched({name: told for name, told in before.items() if not name.endswith(LOCK)}, place)
    assert not (place / "run" / LOCK).exists()


def test_a_run_goes_on_beside_what_the_user_has_put_there(train: Train, runs: Runs, place: Path) -> None:
    def interrupts(*_: object) -> None:
        raise KeyboardInterrupt

    runs.does = interrupts
    assert train("lang=ml", "hydra.run.dir=run") == 130
    before = plant(place / "run", "notes.txt", ".adapter.new.12/x", ".summary.json.1", "tables/mine.csv", ".git/config", "multirun.yaml", *MINE)
    before = {name: told for name, told in before.items() if name not in ("config.yaml", "manifest.json")}
    assert train("lang=ml", "hydra.run.dir=run") == 130
    runs.does = Runs.does
    assert cli.main("train", CONF, ["resume=run"]) == 0
    assert len(runs) == 3
    assert untouched(before, place / "run")


def test_a_refused_run_leaves_the_users_empty_folder(train: Train, runs: Runs, place: Path) -> None:
    def refuses(*_: object) -> None:
        raise UserError("no")

    runs.does = refuses
    (place / "mine").mkdir()
    before = snapshot(place)
    for where in ("mine", "mine/run", "new/deep/run"):
        assert train("lang=ml", f"hydra.run.dir={where}") == 2
        assert snapshot(place) == before
    assert train("-m", "lang=ml,hi", "hydra.sweep.dir=grid") == 2
    assert not list((place / "grid").glob("[01]"))


def test_a_refused_run_removes_nothing_that_came_meanwhile(train: Train, runs: Runs, place: Path) -> None:
    def refuses(_: object, folder: Path) -> None:
        plant(folder, "notes.txt")
        plant(folder.parent, "mine.txt")
        raise UserError("no")

    runs.does = refuses
    assert train("lang=ml", "hydra.run.dir=new/run") == 2
    assert (place / "new" / "run" / "notes.txt").exists()
    assert (place / "new" / "mine.txt").exists()


# --- two at once ---------------------------------------------------------------------------------------------------------------------------------


def apart(works: list[Callable[[], int]]) -> list[int]:
    """The exit codes of commands that begin at once, each in a process of its own."""
    context = multiprocessing.get_context("fork")
    barrier, codes = context.Barrier(len(works)), context.SimpleQueue()

    def process(number: int) -> None:
        barrier.wait()
        codes.put((number, works[number]()))

    processes = [context.Process(target=process, args=(number,)) for number in range(len(works))]
    for each in processes:
        each.start()
    found = dict(codes.get() for _ in processes)
    for each in processes:
        each.join()
    return [found[number] for number in range(len(works))]


@pytest.fixture
def same_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that stands still while folders are named."""
    import hydra.core.utils

    class Clock:
        @staticmethod
        def now() -> Any:
            return type("Now", (), {"strftime": staticmethod(lambda _: "2026-01-01_00-00-00")})

    monkeypatch.setattr(hydra.core.utils, "datetime", Clock)


@pytest.mark.slow
@pytest.mark.usefixtures("same_second")
def test_commands_of_one_second_never_share_a_folder(train: Train, place: Path) -> None:
    languages = ("ml", "hi", "ml", "hi")
    assert apart([lambda lang=lang: train(f"lang={lang}", "seed=7") for lang in languages]) == [0] * 4
    folders = sorted((place / "outputs" / "train").iterdir())
    assert [folder.name for folder in folders] == ["2026-01-01_00-00-00", *(f"2026-01-01_00-00-00_{number}" for number in (2, 3, 4))]
    there = sorted(yaml.safe_load((folder / "config.yaml").read_text())["lang"][0] for folder in folders)
    assert there == sorted(languages)
    for folder in folders:
        lang = yaml.safe_load((folder / "config.yaml").read_text())["lang"][0]
        assert f"gap_closed/{lang}" in json.loads((folder / "summary.json").read_text())


@pytest.mark.usefixtures("same_second")
def test_sweeps_of_one_second_never_share_a_folder(train: Train, place: Path) -> None:
    assert apart([lambda seed=seed: train("-m", "lang=ml,hi", f"seed={seed}") for seed in (0, 1)]) == [0, 0]
    folders = sorted((place / "outputs" / "train_sweeps").iterdir())
    assert [folder.name for folder in folders] == ["2026-01-01_00-00-00", "2026-01-01_00-00-00_2"]
    seeds = [{yaml.safe_load((folder / job / "config.yaml").read_text())["seed"] for job in "01"} for folder in folders]
    assert sorted(seeds, key=min) == [{0}, {1}]


def test_two_commands_with_one_named_folder_never_mix(train: Train, runs: Runs, place: Path) -> None:
    runs.does = lambda _config, _folder: time.sleep(0.2)
    codes = apart([lambda seed=seed: train("lang=ml", f"seed={seed}", "hydra.run.dir=run") for seed in (0, 1, 2)])
    assert sorted(codes) == [0, 2, 2]
    assert yaml.safe_load((place / "run" / "config.yaml").read_text())["seed"] == codes.index(0)


@pytest.fixture
def busy(train: Train, runs: Runs, place: Path) -> Iterator[Path]:
    """The folder of an interrupted run in which another process works now."""

    def interrupts(*_: object) -> None:
        raise KeyboardInterrupt

    runs.does = interrupts
    assert train("lang=ml", "hydra.run.dir=run") == 130
    runs.does = Runs.does
    runs.clear()
    with folder_lock(place / "run"):
        yield place / "run"


@pytest.mark.parametrize("command", [("resume=run",), ("lang=ml", "hydra.run.dir=run", *CORPUS)])
def test_a_run_that_another_process_works_on_is_refused(
    command: tuple[str, ...], busy: Path, runs: Runs, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = snapshot(place)
    assert cli.main("train", CONF, list(command)) == 2
    assert "run' is in use: another process is working in it; wait until it has ended" in capsys.readouterr().err
    assert snapshot(place) == before
    assert not runs


def test_processes_beside_the_first_do_not_lock_each_other_out(busy: Path, runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(RUN_FOLDER, str(busy))  # as Lightning starts them
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert cli.main("train", CONF, [f"resume={busy}"]) == 0
    assert len(runs) == 1


# --- sweeps --------------------------------------------------------------------------------------------------------------------------------------


def foreign_multirun(place: Path) -> None:
    (place / "grid").mkdir()
    (place / "grid" / "multirun.yaml").write_text("hydra: {job: {config_name: train}, callbacks: {}}\n")


def foreign_record(place: Path) -> None:
    plant(place / "grid", ".jobs/1.json")


SWEEPS: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "here": (here, ".", "'.' contains other things (.bashrc.20240101, .config.1, corpus.jsonl, proj and 1 more), but a sweep needs its own folder"),
    "multirun of something else": (foreign_multirun, "grid", "'grid' contains other things (multirun.yaml)"),
    "jobs of something else": (foreign_record, "grid", "'grid' contains other things (.jobs)"),
    "a run": (lambda place: run_of(place / "grid", "train"), "grid", "'grid' contains a run of train.py"),
    "files in the place of a job": (lambda place: plant(place / "grid", "1/notes.txt"), "grid", "'grid/1' contains other things (notes.txt)"),
}


@pytest.mark.parametrize("kind", SWEEPS)
def test_a_sweep_folder_with_other_things_is_refused(kind: str, train: Train, runs: Runs, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make, named, said = SWEEPS[kind]
    make(place)
    before = snapshot(place)
    assert train("-m", "lang=ml,hi", f"hydra.sweep.dir={named}") == 2
    message = capsys.readouterr().err
    assert f"hydra.sweep.dir: {said}" in message
    assert snapshot(place) == before
    assert not runs


@pytest.mark.slow
def test_a_sweep_goes_on_beside_what_the_user_has_put_there(train: Train, runs: Runs, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("-m", "lang=ml,hi", "hydra.sweep.dir=grid") == 0
    before = plant(place / "grid", "notes.txt", ".jobs/notes.txt", ".jobs/mine.json", "0/notes.txt", "2/x", *MINE)
    ours = ("multirun.yaml", "sweep.csv", "report.html", ".jobs/0.json", ".jobs/1.json")
    assert train("-m", "lang=ml,hi", "hydra.sweep.dir=grid") == 0
    assert len(runs) == 2
    assert untouched({name: told for name, told in before.items() if name not in ours}, place / "grid")
    capsys.readouterr()
    # A third job would have to go where the user has put something.
    before = snapshot(place)
    assert train("-m", "lang=ml,hi,[ml,hi]", "hydra.sweep.dir=grid") == 2
    assert "'grid/2' contains other things (x), but a run needs its own folder; name a new or an empty folder [job 2]" in capsys.readouterr().err
    assert snapshot(place) == before


def test_a_sweep_of_another_job_and_a_run_in_a_sweep_are_refused(train: Train, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("-m", "lang=ml,hi", "hydra.sweep.dir=grid") == 0
    before = snapshot(place)
    assert cli.main("eval", CONF, ["-m", "seed=0,1", "hydra.sweep.dir=grid", *CORPUS]) == 2
    assert "'grid' contains a sweep of train.py" in capsys.readouterr().err
    assert train("lang=ml", "hydra.run.dir=grid") == 2
    assert "'grid' contains a sweep, but a run needs its own folder" in capsys.readouterr().err
    assert snapshot(place) == before


def test_a_sweep_that_another_process_works_on_is_refused(train: Train, runs: Runs, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("-m", "lang=ml,hi", "hydra.sweep.dir=grid") == 0
    with folder_lock(place / "grid"):
        before = snapshot(place)
        assert train("-m", "lang=ml,hi", "hydra.sweep.dir=grid") == 2
        assert "'grid' is in use" in capsys.readouterr().err
        assert snapshot(place) == before
    assert len(runs) == 2


@pytest.mark.parametrize(
    ("subdir", "said"),
    [
        ("same", "2 jobs would share 'same'"),
        ("same/../same", "2 jobs would share 'same'"),
        (".", "'.' is not a folder below the sweep's"),
        ("../${hydra.job.num}", "'../0' is not a folder below the sweep's"),
        ("/tmp/${hydra.job.num}", "is not a folder below the sweep's"),
        (".jobs", "'.jobs' is not a folder below the sweep's"),
    ],
)
def test_jobs_of_a_sweep_have_a_folder_of_their_own_each(
    subdir: str, said: str, train: Train, runs: Runs, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = snapshot(place)
    assert train("-m", "lang=ml,hi", "hydra.sweep.dir=grid", f"hydra.sweep.subdir='{subdir}'") == 2
    message = capsys.readouterr().err
    assert "hydra.sweep.subdir: " in message
    assert said in message
    assert snapshot(place) == before
    assert not runs


# --- what Hydra would write itself ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("hydra.output_subdir=.hydra", "hydra.output_subdir: '.hydra' is not supported"),
        ("hydra.output_subdir=../..", "hydra.output_subdir: '../..' is not supported"),
        ("hydra.output_subdir=.", "hydra.output_subdir: '.' is not supported"),
        ("hydra.job.chdir=true", "hydra.job.chdir: true is not supported"),
        ("hydra.job.name=../../elsewhere", "hydra.job.name: '../../elsewhere' is not supported"),
        ("hydra.job.name=.config", "hydra.job.name: '.config' is not supported"),
        ("hydra/job_logging=default", "hydra.job_logging.handlers.file: only handlers that write to the terminal are supported"),
        ("+hydra.job_logging.handlers.mine={class: logging.handlers.RotatingFileHandler, filename: notes.txt}", "hydra.job_logging.handlers.mine: "),
        (
            "+hydra.hydra_logging.handlers.mine={class: logging.FileHandler, filename: notes.txt, mode: w}",
            "Hydra's classes, callbacks and messages cannot be changed",
        ),
        ("cache=notes.txt", "cache: 'notes.txt' cannot be made, because 'notes.txt' is not a folder"),
        ("cache=notes.txt/cache", "is not a folder; name another one"),
    ],
)
def test_nothing_is_written_beside_the_run(
    override: str, said: str, train: Train, runs: Runs, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = plant(place, "notes.txt", "config.yaml", ".hydra/config.yaml", "train.log")
    assert train("lang=ml", override) == 2
    assert said in capsys.readouterr().err
    assert snapshot(place) == before
    assert not runs


@pytest.mark.parametrize("override", ["hydra.output_subdir=null", "hydra.job.chdir=false", "hydra.job.name=my-train_2", "hydra/job_logging=disabled"])
def test_what_writes_nothing_may_be_set(override: str, train: Train, place: Path) -> None:
    before = snapshot(place)
    assert train("lang=ml", override, "hydra.run.dir=run") == 0
    assert {name for name in snapshot(place) if not name.startswith("run")} == before.keys()
