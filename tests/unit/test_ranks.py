"""Processes that share a run: what they tell each other, and what becomes of the others when one ends. Each is a real one."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lingact.errors import UserError
from lingact.runtime import distributed

Apart = Callable[..., list[Any]]


def test_alone_everything_is_ones_own() -> None:
    state = {"sum": np.ones(2)}
    distributed.all_reduce(state, lambda _: pytest.fail("there is nobody else"))
    assert (distributed.rank(), distributed.world(), distributed.broadcast("a"), distributed.all_gather("a")) == (0, 1, "a", ["a"])
    with distributed.process_group(1, 1):
        assert distributed.world() == 1


def test_they_tell_each_other(apart: Apart) -> None:
    def work(rank: int) -> tuple[Any, ...]:
        return distributed.rank(), distributed.world(), distributed.broadcast({"from": rank}), distributed.all_gather(10 * rank)

    assert apart(3, work) == [(rank, 3, {"from": 0}, [0, 10, 20]) for rank in range(3)]


def test_states_are_merged_in_the_order_of_ranks_and_handed_out(apart: Apart) -> None:
    def work(rank: int) -> dict[str, list[Any]]:
        state = {"order": np.array([[rank]]), "sum": np.array([0.1 * rank]), "none": np.zeros((0, 2))}

        def merge(other: dict[str, np.ndarray]) -> None:
            state["order"][...] = 10 * state["order"] + other["order"]
            state["sum"] += other["sum"]

        distributed.all_reduce(state, merge)
        return {name: array.tolist() for name, array in state.items()}

    # ((0 * 10 + 1) * 10 + 2), and the sum that this order of additions has.
    assert apart(3, work) == [{"order": [[12]], "sum": [0.1 + 0.2], "none": []}] * 3


def test_a_tensor_is_handed_out(apart: Apart) -> None:
    def work(rank: int) -> list[float]:
        tensor = torch.full((2,), float(rank))
        distributed.broadcast_tensor(tensor, source=2)
        return tensor.tolist()

    assert apart(3, work) == [[2.0, 2.0]] * 3


@pytest.mark.parametrize(
    "wait", [lambda: distributed.broadcast(0), lambda: distributed.broadcast_tensor(torch.zeros(2), source=1)], ids=["value", "tensor"]
)
def test_who_waits_for_one_that_has_ended_is_told(wait: Callable[[], object], apart: Apart) -> None:
    def work(rank: int) -> None:
        if rank == 1:
            os._exit(9)
        wait()

    told, nothing = apart(2, work)
    assert isinstance(told, UserError)
    assert str(told).startswith("another process of this run ended too early")
    assert nothing is None


def test_who_waits_hears_of_an_interrupt(apart: Apart, tmp_path: Path) -> None:
    heard = tmp_path / "heard"

    def work(rank: int) -> None:
        if rank == 0:
            signal.signal(signal.SIGALRM, signal.default_int_handler)

            def wait() -> None:
                signal.setitimer(signal.ITIMER_REAL, 0.2)
                distributed.broadcast(0)

            with pytest.raises(KeyboardInterrupt):
                wait()
            heard.touch()
        while not heard.exists():  # for ever, where the first one is not interrupted before this one ends
            time.sleep(0.01)

    assert apart(2, work) == [None, None]


@pytest.mark.parametrize(
    ("end", "error", "words"),
    [
        ("exit 2", UserError, "process 2 of this run on this machine ended; its message is above"),
        ("exit 1", RuntimeError, "process 2 of this run on this machine ended"),
        ("exit 130", KeyboardInterrupt, "^$"),
        ("kill -9 $$", UserError, "process 2 of this run on this machine was killed by signal 9, as the system does when memory runs out"),
    ],
)
def test_the_end_of_a_process_is_heard_at_once_and_ends_the_others(end: str, error: type[BaseException], words: str) -> None:
    started: list[subprocess.Popen] = []

    def run() -> None:
        children: list[subprocess.Popen] = []
        # The first one ends when its input does, and not before both are on the list.
        first = subprocess.Popen(["sh", "-c", f"read -r _; {end}"], stdin=subprocess.PIPE)
        started.extend((first, subprocess.Popen(["sleep", "3000"])))
        with first, distributed.terminated_on_failure(lambda: children), distributed._watching(children):
            children += started
            assert first.stdin is not None
            first.stdin.close()
            time.sleep(3000)  # for ever, where it is not heard

    with pytest.raises(error, match=words):
        run()
    # Who is interrupted lets the others save their parts.
    assert started[1].returncode == -(signal.SIGTERM if error is KeyboardInterrupt else signal.SIGKILL)


def test_one_that_has_ended_before_it_is_on_the_list_is_heard_of_too() -> None:
    children: list[subprocess.Popen] = []
    with distributed._watching(children):
        child = subprocess.Popen(["sh", "-c", "exit 2"])
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        with pytest.raises(UserError, match="process 2 of this run on this machine ended"):
            distributed._watch_also(children, [child])


def test_the_end_of_others_is_nobodys_business() -> None:
    with distributed._watching([]):
        assert subprocess.run(["sh", "-c", "exit 2"], check=False).returncode == 2
