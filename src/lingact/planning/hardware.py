"""The device that a run would use and its host: how much memory they have, and how fast they are."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from lingact.models.devices import resolve_device
from lingact.planning.inputs import Number
from lingact.planning.memory import Memory, total
from lingact.planning.work import Pass

LIBRARIES = 0.8e9
"""Bytes of Python and the libraries, as measured."""
CUDA = 0.6e9
"""Bytes that CUDA takes for itself on a device: a guess."""
_ROWS = 512
"""Tokens that are multiplied at once when the speed of a CPU is measured."""
UTILISATION = {"cuda": 0.35, "cpu": 0.5}
"""Share of the speed of a matrix product that whole passes reach. That of a CPU is about what `benchmarks/README.md` shows, the other one a guess."""


@dataclass(frozen=True)
class Hardware:
    """The device that a run would use, and its host."""

    name: str
    kind: str
    """cpu or cuda."""
    memory: Number
    """Bytes of the device; on a CPU those of the host."""
    host: Number
    """Bytes of memory of the machine, or of what a container may use of it."""
    speed: dict[str, float]
    """dtype -> floating-point operations a second of a matrix product: one that a layer of the model makes, on a CPU; a large one elsewhere."""

    def needed(self, memory: Memory) -> dict[str, tuple[Number, Number]]:
        """Which memory -> bytes needed at the peak, and bytes there are."""
        if self.kind == "cpu":
            return {"machine": (memory.device_peak + memory.host_peak + LIBRARIES, self.host)}
        host = LIBRARIES + max(memory.host_peak, total(memory.loading))
        return {"device": (memory.device_peak + CUDA, self.memory), "host": (host, self.host)}

    def lacks(self, memory: Memory) -> dict[str, tuple[Number, Number]]:
        """The same, of the memory that is too small."""
        return {what: sizes for what, sizes in self.needed(memory).items() if sizes[0] > sizes[1]}

    def seconds(self, work: Pass, dtype: str) -> Number:
        """About how long a pass takes."""
        return (work.model / self.speed[dtype] + work.single / self.speed["float32"]) / UTILISATION[self.kind]


def look(device: str, dtypes: set[str], widths: tuple[int, int]) -> Hardware:
    """The hardware that the run would use, with the speed of a matrix product in each dtype; measuring one takes up to 0.15 s.

    Args:
        widths: what a layer of the model reads and gives.

    Raises:
        UserError: the device does not exist.
    """
    where = resolve_device(device)
    speed = {dtype: _speed(where, getattr(torch, dtype), widths) for dtype in dtypes}
    if where.type == "cpu":
        return Hardware(f"{os.cpu_count()} CPU cores", "cpu", _host_memory(), _host_memory(), speed)
    about = torch.cuda.get_device_properties(where)
    return Hardware(about.name, where.type, float(about.total_memory), _host_memory(), speed)


def _speed(device: torch.device, dtype: torch.dtype, widths: tuple[int, int]) -> Number:
    rows, inner, outer = (_ROWS, *widths) if device.type == "cpu" else (4096, 4096, 4096)
    a, b = (torch.ones(*shape, dtype=dtype, device=device) for shape in ((rows, inner), (inner, outer)))
    if device.type == "cuda":
        a @ b  # the first product also loads libraries
        torch.cuda.synchronize(device)
    best, end = float("inf"), time.perf_counter() + 0.15
    while time.perf_counter() < end:
        started = time.perf_counter()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - started)
        if best > 0.1:
            break
    return 2 * rows * inner * outer / best


def _host_memory() -> Number:
    """Bytes of this machine, or of what the container may use of it."""
    total_bytes = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    limit = Path("/sys/fs/cgroup/memory.max")
    given = limit.read_text(encoding="utf-8").strip() if limit.is_file() else "max"
    return total_bytes if given == "max" else min(total_bytes, float(given))
