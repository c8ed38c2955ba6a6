"""Run the code cells of a notebook and keep what they show: `python docs/notebooks/execute.py NOTEBOOK`.

The cells run in this interpreter, in an empty folder, so that no kernel has to be installed. What a cell prints and the value of its last line are
its outputs; progress bars are not.
"""

import ast
import contextlib
import io
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path


def executed(notebook: dict, folder: Path) -> tuple[dict, dict[str, object]]:
    """The notebook with new outputs, and the names that its cells have defined.

    Args:
        notebook: as it is in the file (nbformat 4).
        folder: where the cells run.
    """
    names: dict[str, object] = {"__name__": "__main__"}
    cells, count = [], 0
    with contextlib.chdir(folder):
        for cell in notebook["cells"]:
            new = {}
            if cell["cell_type"] == "code":
                count += 1
                outputs = list(_outputs("".join(cell["source"]), names, count, folder))
                new = {"outputs": outputs, "execution_count": count}
            cells.append(cell | new)
    return notebook | {"cells": cells}, names


def _outputs(source: str, names: dict[str, object], count: int, folder: Path) -> Iterator[dict]:
    tree = ast.parse(source)
    end = tree.body[-1] if tree.body else None
    last = ast.Expression(end.value) if isinstance(end, ast.Expr) else None
    if last is not None:
        tree.body.pop()
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, f"cell {count}", "exec"), names)
        value = eval(compile(last, f"cell {count}", "eval"), names) if last is not None else None
    if printed.getvalue():
        yield {"output_type": "stream", "name": "stdout", "text": _lines(printed.getvalue().replace(f"{folder}/", ""))}
    if value is not None:
        data = {"text/plain": _lines(repr(value))}
        if hasattr(value, "to_html"):
            data["text/html"] = _lines(value.to_html())
        yield {"output_type": "execute_result", "execution_count": count, "data": data, "metadata": {}}


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


if __name__ == "__main__":
    os.environ["COLUMNS"] = "120"
    path = Path(sys.argv[1]).absolute()
    with tempfile.TemporaryDirectory() as empty:
        found, _ = executed(json.loads(path.read_text(encoding="utf-8")), Path(empty).resolve())
    path.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
