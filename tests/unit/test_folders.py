"""Folders that are taken, temporary names, and what is left alone. Several processes are real ones."""

import errno
import fcntl
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import lingact
from lingact.errors import UserError
from lingact.files.atomic import write_atomically
from lingact.files.folders import (
    LOCK,
    TOKEN,
    claim,
    folder_lock,
    is_temporary,
    make_folders,
    move_aside,
    put_in_place,
    remove_empty,
    temporary_beside,
)
from lingact.runtime.tracking import read_manifest, remove_leftovers
from tests.helpers.folders import plant, snapshot, untouched

SOURCE = Path(lingact.__file__).parents[1]
FORK = multiprocessing.get_context("fork")


def together(count: int, work: Callable[[int], Any]) -> list[Any]:
    """What `work(number)` gives in each of so many processes that begin at once."""
    barrier, found = FORK.Barrier(count), FORK.SimpleQueue()

    def process(number: int) -> None:
        barrier.wait()
        found.put((number, work(number)))

    processes = [FORK.Process(target=process, args=(number,)) for number in range(count)]
    for each in processes:
        each.start()
    gathered = dict(found.get() for _ in processes)
    for each in processes:
        each.join()
    return [gathered[number] for number in range(count)]


# --- names of one's own --------------------------------------------------------------------------------------------------------------------------


def test_processes_that_ask_for_one_folder_get_one_each(tmp_path: Path) -> None:
    wanted = tmp_path / "outputs" / "train" / "2026-01-01_00-00-00"
    names = together(8, lambda _: claim(wanted)[0].name)
    assert sorted(names) == [wanted.name, *(f"{wanted.name}_{number}" for number in range(2, 9))]
    assert sorted(path.name for path in wanted.parent.iterdir()) == sorted(names)


def test_threads_that_ask_for_one_folder_get_one_each(tmp_path: Path) -> None:
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(claim(tmp_path / "run")[0])) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 8


@pytest.mark.parametrize("kind", ["file", "folder", "link", "dangling link"])
def test_a_name_that_something_has_is_not_claimed(kind: str, tmp_path: Path) -> None:
    there = tmp_path / "run"
    (tmp_path / "mine").mkdir()
    match kind:
        case "file":
            there.write_text("mine")
        case "folder":
            there.mkdir()
        case "link":
            there.symlink_to(tmp_path / "mine")
        case _:
            there.symlink_to(tmp_path / "gone")
    before = snapshot(tmp_path)
    assert claim(there) == (tmp_path / "run_2", [tmp_path / "run_2"])
    assert untouched(before, tmp_path)


def test_only_folders_that_were_made_are_removed_and_only_if_empty(tmp_path: Path) -> None:
    (tmp_path / "outputs").mkdir()
    folder, made = claim(tmp_path / "outputs" / "train" / "run")
    assert made == [folder, folder.parent]
    remove_empty(made)
    assert snapshot(tmp_path).keys() == {"outputs"}, "the user's empty folder stays"
    _, made = claim(folder)
    plant(folder.parent, "notes.txt")
    remove_empty(made)
    assert snapshot(tmp_path).keys() == {"outputs", "outputs/train", "outputs/train/notes.txt"}


def test_a_parent_that_another_process_removes_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, real, others = tmp_path / "a" / "b" / "run", Path.mkdir, ["a refused run"]

    def mkdir(path: Path, *given: Any, **more: Any) -> None:
        if path == folder and others:
            others.clear()
            remove_empty([folder.parent, folder.parent.parent])
        real(path, *given, **more)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    assert claim(folder)[0] == folder
    assert folder.is_dir()
    assert not others


def test_a_file_in_the_way_of_a_parent_is_an_error(tmp_path: Path) -> None:
    before = plant(tmp_path, "outputs")
    with pytest.raises(OSError, match="outputs"):
        make_folders(tmp_path / "outputs" / "train")
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    with pytest.raises(FileExistsError):
        make_folders(tmp_path / "link" / "train")
    assert untouched(before, tmp_path)


def test_writers_of_one_file_never_mix(tmp_path: Path) -> None:
    contents = [str(number) * 200_000 for number in range(4)]

    def write(number: int) -> bool:
        for _ in range(10):
            write_atomically(tmp_path / "cache" / "answers.json", contents[number])
        return True

    assert together(4, write) == [True] * 4
    assert (tmp_path / "cache" / "answers.json").read_text() in contents
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["answers.json"]


def test_a_users_file_that_is_named_like_a_temporary_one_is_left_alone(tmp_path: Path) -> None:
    before = plant(
        tmp_path, f".table.csv.{os.getpid()}", ".table.csv.unfinished", "table.csv.tmp", ".adapter.new.1/x", f".lingact.{'0' * 16}.{'0' * 16}"
    )
    write_atomically(tmp_path / "table.csv", "a,b\n")
    assert untouched(before, tmp_path)
    assert (tmp_path / "table.csv").read_text() == "a,b\n"


def test_a_file_is_not_written_through_a_link(tmp_path: Path) -> None:
    before = plant(tmp_path, "mine.txt")
    (tmp_path / "summary.json").symlink_to(tmp_path / "mine.txt")
    write_atomically(tmp_path / "summary.json", "{}")
    assert untouched(before, tmp_path)
    assert not (tmp_path / "summary.json").is_symlink()


def test_temporary_names_differ_and_files_are_as_readable_as_others(tmp_path: Path) -> None:
    names = {temporary_beside(tmp_path / "x").name for _ in range(100)}
    assert len(names) == 100
    assert all(is_temporary(name) and TOKEN in name for name in names)
    write_atomically(tmp_path / "ours", "")
    (tmp_path / "plain").touch()
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_name_as_long_as_the_disk_takes_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 255)
    write_atomically(path, "whole")
    assert path.read_text() == "whole"


# --- what a killed run has left ------------------------------------------------------------------------------------------------------------------


def test_a_killed_runs_own_leftovers_are_removed_and_nothing_else(tmp_path: Path) -> None:
    token, other = "0123456789abcdef", "fedcba9876543210"
    ours = [f".lingact.{token}.{'1' * 16}", f"stats/.lingact.{token}.{'2' * 16}", f".lingact.{token}.{'3' * 16}/adapter_config.json"]
    before = plant(
        tmp_path, ".bashrc.20240101", "proj/.env.2", ".config.1/x", ".last.ckpt.4711", ".adapter.new.12/adapter_config.json",  # as earlier versions took away
        f"stats/.lingact.{other}.{'1' * 16}", f"mine/.lingact.{token}.{'1' * 16}", f".lingact.{token}.notes", f".lingact.{token}", "stats/ml.safetensors",
    )  # fmt: skip
    plant(tmp_path, *ours)
    remove_leftovers(tmp_path, token)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("token", [None, "", "*", "..", "0123456789abcde", "0123456789ABCDEF", "0123456789abcdef/.."])
def test_without_the_token_of_a_run_nothing_is_removed(token: str | None, tmp_path: Path) -> None:
    before = plant(tmp_path, f".lingact.{TOKEN}.{'1' * 16}", ".lingact..1", "x")
    remove_leftovers(tmp_path, token)
    assert snapshot(tmp_path) == before


# --- one process at a time -----------------------------------------------------------------------------------------------------------------------

HOLD = "import sys, time; from pathlib import Path; from lingact.files.folders import folder_lock\nwith folder_lock(Path(sys.argv[1])): print('in', flush=True); {then}"


def hold(folder: Path, then: str = "time.sleep(3000)") -> subprocess.Popen[str]:
    """A process that works in the folder."""
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    process = subprocess.Popen((sys.executable, "-c", HOLD.format(then=then), str(folder)), stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    assert process.stdout.readline() == "in\n"
    return process


def test_a_folder_is_taken_while_a_process_lives_and_free_when_it_is_killed(tmp_path: Path) -> None:
    before = plant(tmp_path, "config.yaml")
    with hold(tmp_path) as process:
        with pytest.raises(UserError, match=f"'{re.escape(str(tmp_path))}' is in use: another process is working in it"), folder_lock(tmp_path):
            pass
        process.send_signal(signal.SIGKILL)
    assert (tmp_path / LOCK).exists(), "what a killed process cannot take away"
    with folder_lock(tmp_path):
        pass
    assert snapshot(tmp_path) == before


def test_a_forked_child_does_not_keep_the_folder(tmp_path: Path) -> None:
    forks = "import os; end, start = os.pipe(); pid = os.fork(); (os.write(start, b'!'), time.sleep(3000)) if pid == 0 else os.read(end, 1)"
    then = f"{forks}; print(pid, flush=True); os.kill(os.getpid(), 9)"
    with hold(tmp_path, then) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
    assert process.returncode == -signal.SIGKILL
    os.kill(child, 0)  # is alive
    with folder_lock(tmp_path):
        os.kill(child, signal.SIGKILL)


def test_of_many_at_once_one_works_at_a_time(tmp_path: Path) -> None:
    def work(number: int) -> int:
        done = 0
        for _ in range(100):
            try:
                with folder_lock(tmp_path):
                    (tmp_path / "only").touch(exist_ok=False)  # raises where another one is in here, too
                    (tmp_path / "only").unlink()
                    done += 1
            except UserError:
                time.sleep(0.0005 * number)
        return done

    assert sum(together(4, work)) > 0
    assert list(tmp_path.iterdir()) == []


def test_a_lock_file_that_its_last_holder_removes_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, others = fcntl.flock, ["a run that has just ended"]

    def flock(descriptor: int, operation: int) -> None:
        if others:
            others.clear()
            (tmp_path / LOCK).unlink()
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    with folder_lock(tmp_path):
        assert (tmp_path / LOCK).exists(), "or else the next one would lock another file"
        with pytest.raises(UserError, match="is in use"), folder_lock(tmp_path):
            pass


@pytest.mark.parametrize("kind", ["moved", "removed", "moved, and another run there", "another run there without our lock"])
def test_nothing_is_written_into_a_folder_that_is_not_the_one_that_was_taken(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    with folder_lock(folder):
        write_atomically(folder / "tables" / "a.csv", "mine")
        match kind:
            case "removed":
                shutil.rmtree(folder)
            case "another run there without our lock":
                (folder / LOCK).unlink()
            case _:
                folder.rename(tmp_path / "moved")
        if "another" in kind:
            folder.mkdir(exist_ok=True)
            (folder / LOCK).touch()
        before = snapshot(tmp_path)
        with pytest.raises(UserError, match=f"'{re.escape(str(folder))}' was moved or removed while this process worked in it, or another process"):
            write_atomically(folder / "tables" / "b.csv", "mine")
        write_atomically(tmp_path / "cache" / "c", "elsewhere")
        (tmp_path / "cache" / "c").unlink()
        (tmp_path / "cache").rmdir()
    assert snapshot(tmp_path) == before, "nor is another run's lock removed"


def test_a_folder_whose_lock_was_deleted_is_worked_in_all_the_same(tmp_path: Path) -> None:
    with folder_lock(tmp_path):
        (tmp_path / LOCK).unlink()
        write_atomically(tmp_path / "a", "mine")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("kind", ["folder", "link", "link to nowhere", "file with something in it", "pipe"])
def test_what_bears_the_name_of_the_lock_and_is_none_is_refused_and_stays(kind: str, tmp_path: Path) -> None:
    folder, lock = tmp_path / "run", tmp_path / "run" / LOCK
    folder.mkdir()
    (tmp_path / "mine").write_text("mine")
    match kind:
        case "folder":
            lock.mkdir()
        case "link":
            lock.symlink_to("../mine")
        case "link to nowhere":
            lock.symlink_to("gone")
        case "pipe":
            os.mkfifo(lock)
        case _:
            lock.write_text("mine")
    before = snapshot(tmp_path) if kind != "pipe" else {}
    with pytest.raises(UserError, match=f"'{re.escape(str(lock))}' is not a lock of lingact's; move it away"), folder_lock(folder):
        pass
    assert lock.is_fifo() if kind == "pipe" else snapshot(tmp_path) == before


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_disk_without_locks_is_used_without(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)
    with folder_lock(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_the_same_process_cannot_take_it_twice_either(tmp_path: Path) -> None:
    with folder_lock(tmp_path), pytest.raises(UserError, match="is in use"), folder_lock(tmp_path):
        pass
    with folder_lock(tmp_path):
        pass


def test_a_folder_that_cannot_be_written_to_is_told(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="is not writable"), folder_lock(tmp_path):
        pass
    tmp_path.chmod(0o700)


# --- what is in the place ------------------------------------------------------------------------------------------------------------------------


def finished(tmp_path: Path) -> Path:
    folder = temporary_beside(tmp_path / "adapter")
    plant(folder, "weights", "below/settings")
    return folder


def test_a_finished_folder_gets_its_name(tmp_path: Path) -> None:
    assert put_in_place(finished(tmp_path), tmp_path / "adapter") is None
    assert snapshot(tmp_path).keys() == {"adapter", "adapter/weights", "adapter/below", "adapter/below/settings"}


def test_the_same_files_stay_with_what_lies_beside_them(tmp_path: Path) -> None:
    put_in_place(finished(tmp_path), tmp_path / "adapter")
    before = plant(tmp_path, "adapter/notes.txt")
    assert put_in_place(finished(tmp_path), tmp_path / "adapter") is None
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("kind", ["other files", "file", "link", "dangling link", "empty folder"])
def test_what_is_there_is_moved_aside_and_never_lost(kind: str, tmp_path: Path) -> None:
    folder, mine = tmp_path / "adapter", tmp_path / "mine"
    plant(tmp_path, "mine/weights", "adapter.before")
    match kind:
        case "other files":
            plant(folder, "weights", "notes.txt")
        case "file":
            folder.write_text("mine")
        case "link":
            folder.symlink_to(mine)
        case "dangling link":
            folder.symlink_to(tmp_path / "gone")
        case _:
            folder.mkdir()
    before = snapshot(tmp_path)
    assert put_in_place(finished(tmp_path), folder) == tmp_path / "adapter.before_2"
    moved = {name.replace("adapter.before_2", "adapter", 1): told for name, told in snapshot(tmp_path).items() if not re.match("adapter(/|$)", name)}
    assert moved == before
    assert (folder / "below" / "settings").is_file()


def test_names_that_are_aside_already_are_not_taken_again(tmp_path: Path) -> None:
    for number in range(3):
        plant(tmp_path, "hub/README.md")
        (tmp_path / "hub" / "README.md").write_text(str(number))
        move_aside(tmp_path / "hub")
    assert [(tmp_path / f"hub.before{end}" / "README.md").read_text() for end in ("", "_2", "_3")] == ["0", "1", "2"]


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="a file system of Linux")
def test_a_place_where_no_folder_can_be_made_is_refused() -> None:
    with pytest.raises(UserError, match=r"'/proc/x/y' cannot be made: the file system does not allow a folder '/proc/x'; name another one"):
        make_folders(Path("/proc/x/y"))


def test_what_stands_in_the_place_of_a_file_or_folder_is_named_and_stays(tmp_path: Path) -> None:
    (tmp_path / "report.html").mkdir()
    plant(tmp_path, "tables")
    before = snapshot(tmp_path)
    with pytest.raises(UserError, match=r"report\.html' cannot be written, because a folder has that name; move that folder away"):
        write_atomically(tmp_path / "report.html", "x")
    with pytest.raises(UserError, match=r"gaps\.csv' cannot be written, because a file has the name of its folder"):
        write_atomically(tmp_path / "tables" / "gaps.csv", "x")
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("wrong", [{"identity": None}, {"identity": []}, {"temporary": 5}, {"wandb": 7}], ids=str)
def test_a_manifest_of_other_types_is_refused(wrong: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps({"job": "train", "status": "interrupted", "identity": {}, "temporary": "a"} | wrong))
    with pytest.raises(UserError, match=r"manifest\.json' cannot be read: it is truncated or not a lingact file"):
        read_manifest(tmp_path)
