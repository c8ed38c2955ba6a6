"""Passes that are killed go on where their last save was, and refuse what is not theirs."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from lingact.errors import UserError
from lingact.files.states import load_state, save_state
from lingact.runtime import resumable_passes
from lingact.runtime.resumable_passes import restore, resumable, token_bar
from tests.helpers.folders import plant, snapshot, untouched

HEADER = {"model": "m"}
STEPS = (3, 1, 4, 1, 5, 9)


def new_state() -> dict[str, np.ndarray]:
    return {"sum": np.zeros(2), "count": np.zeros(1, np.int64)}


def adding(state: dict[str, np.ndarray], *, until: int = len(STEPS)) -> tuple[Callable[[int], None], list[int]]:
    """What a step does to the state, interrupted at the step after `until` of them; and the steps that were done."""
    done: list[int] = []

    def add(step: int) -> None:
        if len(done) == until:
            raise KeyboardInterrupt
        state["sum"] += step / 7
        state["count"] += 1
        done.append(step)

    return add, done


def go(path: Path | None, state: dict[str, np.ndarray], *, until: int = len(STEPS), header: dict[str, str] = HEADER) -> tuple[list[int], float]:
    """Run the pass. Returns the steps that were done, and where the bar stood at the end."""
    add, done = adding(state, until=until)
    with token_bar(sum(STEPS), "passing") as bar:
        with contextlib.suppress(KeyboardInterrupt):
            resumable(path, header, state, STEPS, add, tokens=lambda step: step, bar=bar)
        return done, bar.n


@pytest.mark.parametrize("until", range(len(STEPS)))
def test_an_interrupted_pass_goes_on_where_it_was(until: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resumable_passes, "SAVE_EVERY", -1.0)
    path, undisturbed = tmp_path / "state.safetensors", new_state()
    go(None, undisturbed)
    done, bar = go(path, new_state(), until=until)
    assert (done, bar) == (list(STEPS[:until]), sum(STEPS[:until]))
    if until:
        assert load_state(path)[2] == (until, len(STEPS))
    state = new_state()
    done, bar = go(path, state)
    assert (done, bar) == (list(STEPS[until:]), sum(STEPS)), "the bar counts what an earlier process did"
    assert all(np.array_equal(state[name], undisturbed[name]) for name in state)
    assert load_state(path)[2] == (len(STEPS), len(STEPS))
    assert [entry.name for entry in tmp_path.iterdir()] == ["state.safetensors"], "nothing unfinished is left"


def test_a_finished_pass_does_nothing_more(tmp_path: Path) -> None:
    path, state = tmp_path / "state.safetensors", new_state()
    go(path, new_state())
    before = path.stat().st_mtime_ns
    done, bar = go(path, state)
    assert (done, bar) == ([], sum(STEPS))
    assert path.stat().st_mtime_ns == before
    assert state["count"] == len(STEPS)


def test_saves_are_no_more_frequent_than_asked(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    go(path, new_state(), until=5)
    assert not path.exists(), "five steps take less than SAVE_EVERY"
    done, _ = go(path, new_state())
    assert done == list(STEPS)
    assert path.exists()


def test_without_a_path_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resumable_passes, "SAVE_EVERY", -1.0)
    monkeypatch.chdir(tmp_path)
    done, bar = go(None, new_state())
    assert (done, bar) == (list(STEPS), sum(STEPS))
    assert list(tmp_path.iterdir()) == []


def test_files_that_are_named_like_parts_are_left_alone(tmp_path: Path) -> None:
    before = plant(
        tmp_path, "state.process_notes.safetensors", "state.process0.safetensors", "state.processes.safetensors", "xstate.process1.safetensors"
    )
    path = tmp_path / "state.safetensors"
    go(path, new_state(), until=3)
    go(path, new_state())
    assert untouched(before, tmp_path)


def test_a_part_of_another_run_is_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "state.process1.safetensors"
    save_state(path, {"model": "other"}, new_state(), [1], len(STEPS))
    before = snapshot(tmp_path)
    with pytest.raises(UserError, match=r"state.process1.safetensors' does not belong here"):
        go(tmp_path / "state.safetensors", new_state())
    assert snapshot(tmp_path) == before


def test_a_state_of_something_else_is_refused_before_any_step(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    go(path, new_state(), header={"model": "m", "corpus": "c"})
    before = path.read_bytes()
    state = new_state()
    with pytest.raises(UserError, match=r"state.safetensors' does not belong here; it differs in corpus: c / None; model: m / other$"):
        go(path, state, header={"model": "other"})
    assert not state["count"].any()
    assert path.read_bytes() == before


@pytest.mark.parametrize("other", [{"sum": np.zeros(3), "count": np.zeros(1, np.int64)}, {"sum": np.zeros(2)}], ids=["shape", "names"])
def test_a_state_with_other_arrays_is_refused(other: dict[str, np.ndarray], tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    save_state(path, HEADER, other, range(2), len(STEPS))
    with pytest.raises(UserError, match="has other statistics than those of this run; delete it or name another folder"):
        restore(path, HEADER, new_state(), len(STEPS), lambda _: None)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_file_that_was_cut_off_is_refused(share: float, tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    go(path, new_state())
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(
        UserError, match=r"state.safetensors' cannot be read as statistics of lingact .*; it is truncated or not a lingact file: delete it"
    ):
        go(path, new_state())


def test_a_bit_that_has_changed_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    go(path, new_state())
    whole = path.read_bytes()
    path.write_bytes(whole[:-3] + bytes([whole[-3] ^ 64]) + whole[-2:])
    with pytest.raises(UserError, match=r"cannot be read as statistics of lingact \(its numbers differ from those that were saved\)"):
        go(path, new_state())


def test_a_file_of_another_program_is_refused(tmp_path: Path) -> None:
    save_file({"sum": np.zeros(2)}, tmp_path / "weights.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="cannot be read as statistics of lingact"):
        load_state(tmp_path / "weights.safetensors")
    with pytest.raises(UserError, match=r"nowhere.safetensors' does not exist; the run has not saved these statistics"):
        load_state(tmp_path / "nowhere.safetensors")


def test_arrays_come_back_as_they_were_whatever_their_layout(tmp_path: Path) -> None:
    table = np.arange(6.0).reshape(2, 3)
    state = {"turned": table.T, "strided": np.arange(10)[::3], "none": np.zeros((0, 4))}
    save_state(tmp_path / "state.safetensors", HEADER, state, range(1), 2)
    header, arrays, steps = load_state(tmp_path / "state.safetensors")
    assert (header, steps) == (HEADER, (1, 2))
    for name, array in state.items():
        assert arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(arrays[name], array)


# --- several processes ---------------------------------------------------------------------------------------------------------------------------


def shares(
    apart: Callable[..., list[Any]], world: int, path: Path | None, *, until: int = len(STEPS)
) -> list[tuple[list[int], dict[str, np.ndarray]]]:
    """Of each process: the steps that it did, and the state that it has in the end."""

    def work(_: int) -> tuple[list[int], dict[str, np.ndarray]]:
        state = new_state()
        return go(path, state, until=until)[0], state

    return apart(world, work)


@pytest.mark.parametrize("world", [2, 3, 7])
def test_processes_take_turns_and_all_have_the_whole(world: int, apart: Callable[..., list[Any]], tmp_path: Path) -> None:
    path, alone = tmp_path / "state.safetensors", new_state()
    go(None, alone)
    found = shares(apart, world, path)
    assert [done for done, _ in found] == [list(STEPS[rank::world]) for rank in range(world)]
    for _, state in found:
        assert np.array_equal(state["count"], alone["count"])
        assert np.array_equal(state["sum"], found[0][1]["sum"]), "to the last bit"
        np.testing.assert_allclose(state["sum"], alone["sum"], rtol=1e-15)
    _, kept, steps = load_state(path)
    assert steps == (6, 6)
    assert np.array_equal(kept["sum"], found[0][1]["sum"])
    assert [entry.name for entry in tmp_path.glob("state*")] == ["state.safetensors"]


@pytest.mark.parametrize(("before", "after"), [(3, 2), (2, 3), (3, 1), (1, 3)])
def test_an_interrupted_pass_goes_on_with_another_number_of_processes(
    before: int, after: int, apart: Callable[..., list[Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resumable_passes, "SAVE_EVERY", -1.0)
    path = tmp_path / "state.safetensors"
    interrupted = shares(apart, before, path, until=1)
    assert sorted(step for done, _ in interrupted for step in done) == sorted(STEPS[:before])
    parts = {part: part.read_bytes() for part in tmp_path.glob("state.process*")}
    assert len(parts) == before - 1
    found = shares(apart, after, path)
    assert sorted(step for done, _ in found for step in done) == sorted(STEPS[before:]), "none twice"
    assert all(state["count"] == len(STEPS) for _, state in found)
    assert not list(tmp_path.glob("state.process*"))
    # A kill behind the last save would have left them.
    for part, content in parts.items():
        part.write_bytes(content)
    ((done, state),) = shares(apart, 1, path)
    assert (done, state["count"]) == ([], len(STEPS))
    assert not list(tmp_path.glob("state.process*"))
