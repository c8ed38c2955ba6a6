"""Ways of doing the same job, measured in turn in one run: a process for each way, which is idle while another one runs."""

import ctypes
import gc
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


def measure_ways(ways: Mapping[str, Prepare], setting: Setting, rounds: int) -> dict[str, Measured]:
    """Every way in every round, one after the other; and once before, which warms up and shows the peak of memory."""
    context = multiprocessing.get_context("spawn")
    workers = {}
    for name, prepare in ways.items():
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(prepare, setting, theirs), daemon=True)
        process.start()
        theirs.close()  # so that the end of the process is noticed
        ours.recv()
        workers[name] = process, ours
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    peaks, results = dict.fromkeys(ways, 0.0), {}
    for number in range(rounds + 1):
        for name, (_process, pipe) in workers.items():
            pipe.send("go")
            took, peak, results[name] = pipe.recv()
            peaks[name] = max(peaks[name], peak)
            seconds[name] += [took] if number else []
    for process, pipe in workers.values():
        pipe.send("end")
        process.join()
    return {name: Measured(seconds[name], peaks[name], results[name]) for name in ways}


def _work(prepare: Prepare, setting: Setting, pipe: Any) -> None:
    run = prepare(setting)
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what loading has freed is given back
    Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak begins anew
    before = _peak_mib()
    pipe.send("ready")
    while pipe.recv() == "go":
        start = time.perf_counter()
        result = run()
        pipe.send((time.perf_counter() - start, _peak_mib() - before, result))


def _peak_mib() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024
