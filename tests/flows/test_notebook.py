"""The notebook of the Python interface runs, and shows what it says."""

import importlib.util
import json
from pathlib import Path

import pytest

NOTEBOOKS = Path(__file__).parents[2] / "docs" / "notebooks"


@pytest.mark.slow
def test_notebook_runs(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("execute", NOTEBOOKS / "execute.py")
    assert spec is not None
    assert spec.loader is not None
    execute = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(execute)
    kept = json.loads((NOTEBOOKS / "python_interface.ipynb").read_text(encoding="utf-8"))
    found, names = execute.executed(kept, tmp_path)
    for old, new in zip(kept["cells"], found["cells"], strict=True):
        assert [output["output_type"] for output in old.get("outputs", [])] == [output["output_type"] for output in new.get("outputs", [])]
    of_run = names["gaps"].set_index(["name", "layer"])["gap"]
    in_memory = names["measured"].table("gap_by_layer").set_index(["name", "layer"])["gap"]
    assert of_run[in_memory.index].tolist() == pytest.approx(in_memory.tolist(), rel=1e-4)
