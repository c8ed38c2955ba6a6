"""How long commands take that compute nothing: help, and a user's mistakes."""

import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.setting import Setting

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = {
    "lingact": ("analyze.py", "sae.layers=[99]"),
    "help": ("train.py", "--help"),
    "unknown_language": ("train.py", "lang=xx"),
    "missing_folder": ("eval.py", "model.name=./nowhere"),
    "no_such_device": ("train.py", "lang=ml", "device=cuda"),
    "plan": ("analyze.py", "plan=only"),
}


def _prepare(arguments: tuple[str, ...], _setting: Setting) -> Callable[[], int]:
    command = [sys.executable, str(ROOT / arguments[0]), *arguments[1:]]
    return lambda: subprocess.run(command, capture_output=True, check=False, cwd=tempfile.gettempdir()).returncode


WAYS = {name: partial(_prepare, arguments) for name, arguments in COMMANDS.items()}
