"""Ways of doing the same job, measured in turn in one run: a process for each way, which is idle while another one runs."""

import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.setting import Setting

Run = Callable[[], Any]
"""Does the job once. What it returns is compared between ways."""
Prepare = Callable[[Setting], Run]
"""Loads what the job needs; this is not measured."""


@dataclass(frozen=True)
class Measured:
    """One way over all rounds."""

    seconds: list[float]
    peak_mib: float
    """Resident memory at its peak, beyond what it was when all was loaded."""
    result: Any

    @property
    def row(self) -> dict[str, float]:
        """As it stands in the JSON file."""
        return {"seconds": statistics.median(self.seconds), "low": min(self.seconds), "high": max(self.seconds), "peak_mib": self.peak_mib}


def measure_ways(ways: Mapping[str, Prepare], setting: Setting, warm_up: Setting, rounds: int) -> dict[str, Measured]:
    """Every way in every round, one after the other.

    Args:
        warm_up: what each way does once before, which is not counted.
    """
    context = multiprocessing.get_context("spawn")
    workers = {}
    for name, prepare in ways.items():
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(prepare, setting, warm_up, theirs), daemon=True)
        process.start()
        theirs.close()  # so that the end of the process is noticed
        ours.recv()
        workers[name] = process, ours
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    peaks, results = {}, {}
    for _ in range(rounds):
        for name, (_process, pipe) in workers.items():
            pipe.send("go")
            took, peaks[name], results[name] = pipe.recv()
            seconds[name].append(took)
    for process, pipe in workers.values():
        pipe.send("end")
        process.join()
    return {name: Measured(seconds[name], peaks[name], results[name]) for name in ways}


def _work(prepare: Prepare, setting: Setting, warm_up: Setting, pipe: Any) -> None:
    if warm_up != setting:
        prepare(warm_up)()
    run = prepare(setting)
    pipe.send("ready")
    while pipe.recv() == "go":
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak begins anew
        before = _peak_mib()
        start = time.perf_counter()
        result = run()
        pipe.send((time.perf_counter() - start, _peak_mib() - before, result))


def _peak_mib() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024
