"""Does an analysis cost in proportion to tokens, layers and width? Each is made twice and four times as large."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

from benchmarks import analysis
from benchmarks.setting import Setting
from benchmarks.ways import Measured

TIMES = (1, 2, 4)
SENTENCES = 4


def _prepare(axis: str, times: int, setting: Setting) -> Callable[[], float]:
    small = replace(setting, sentences=SENTENCES, layers=4 if setting.model else 1)  # the embedded model has six
    return analysis.lingact(replace(small, **{axis: times * getattr(small, axis)}))


WAYS = {f"{axis} x {times}": partial(_prepare, axis, times) for axis in ("sentences", "layers", "width") for times in TIMES}


def table(found: Mapping[str, Measured]) -> list[dict[str, str]]:
    """Seconds of each size, and what a further unit costs: on a straight line the two figures are equal."""
    rows = []
    for axis in ("sentences", "layers", "width"):
        if not all(f"{axis} x {times}" in found for times in TIMES):
            continue
        one, two, four = (found[f"{axis} x {times}"].row["seconds"] for times in TIMES)
        first, second = two - one, (four - two) / 2
        whole = {f"x {times}": f"{value:.2f}" for times, value in zip(TIMES, (one, two, four), strict=True)}
        rows.append({"axis": axis} | whole | {"from 1 to 2": f"{first:.2f}", "from 2 to 4, half": f"{second:.2f}", "ratio": f"{second / first:.2f}"})
    return rows
