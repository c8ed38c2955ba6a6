"""Examples as real commands: what they end in, how long they take, what they leave."""

import json
import os
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import configurations
from .configurations import Command
from .corpora import Example, Truth, snapshot
from .door import ROOT, message_complaint, small_run

LONGEST = 1200
"""Seconds until a command counts as hanging."""
MEMORY = 14 * 2**30
"""Bytes of address space of a command, so that one that wants too much fails alone."""
_SMALL_TEXT = ("tracking=none", "sae.layers=[0]", "sae.heldout=null", "statistics.resamples=100", "languages.high=[]")


@dataclass(frozen=True)
class Ending:
    """How a command has ended."""

    code: int | None
    """None: it was still running after `LONGEST`."""
    seconds: float
    line: str
    """The first line of its message."""
    complaint: str | None


def command_of(example: Command | Example) -> tuple[str, list[str]]:
    """The job and its arguments."""
    if isinstance(example, Command):
        return example.job, example.whole
    others = ",".join(code for code in example.codes if code != "en")
    match example.kind:
        case "corpus":
            return "analyze", [*_SMALL_TEXT, "corpus=files", f"corpus.path={example.path}", f"languages.low=[{others}]"]
        case "scores":
            return "analyze", [*_SMALL_TEXT, "corpus.max_sentences=4", f"languages.low=[{others}]", f"scores=[{example.path}]"]
        case _:
            own = ["tasks=files", f"tasks.own.mine.path='{example.path}'", "tasks.items=all"]
            return "eval", [*own, "tracking=none", "languages.high=[]", f"languages.low=[{others}]", "text_split=null", "resamples=100", "cache=null"]


def lay_out(example: Command | Example, stage: Path) -> None:
    """The folder that the command is given in."""
    if isinstance(example, Command):
        configurations.lay_out(stage, example.job, small_run(example.job))
        return
    for name, content in example.files.items():
        (stage / name).parent.mkdir(parents=True, exist_ok=True)
        (stage / name).write_bytes(content)


def give(example: Command | Example, base: Path) -> Ending:
    """Run it in a folder of its own below `base`, which is to be empty."""
    stage, home = base / "a" / "b" / "stage", base / "home"
    stage.mkdir(parents=True)
    home.mkdir()
    lay_out(example, stage)
    job, arguments = command_of(example)
    before = snapshot(base / "a")
    outside = {
        "HOME": str(home),
        "TMPDIR": str(home),
        "XDG_CACHE_HOME": str(home / ".cache"),
        "MPLCONFIGDIR": str(home / ".cache" / "matplotlib"),
        "HF_HOME": str(home / ".cache" / "huggingface"),
    }
    fixed = {
        "PYTHONPATH": str(ROOT / "src"),
        "PYTHONDONTWRITEBYTECODE": "1",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "120",
        "WANDB_SILENT": "true",
    }
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB", "PYTEST", "COV"))} | outside | fixed
    started = time.monotonic()
    try:
        done = subprocess.run(
            (sys.executable, str(ROOT / f"{job}.py"), *arguments), cwd=stage, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=LONGEST, check=False, preexec_fn=_limited,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return Ending(None, LONGEST, "", f"was still running after {LONGEST} s")
    except ValueError as error:  # a NUL byte, which no shell can pass on either
        return Ending(2, 0.0, f"cannot be given: {error}", None)
    seconds = time.monotonic() - started
    out, err = done.stdout.decode(errors="backslashreplace"), done.stderr.decode(errors="backslashreplace")
    lines = [line for line in err.splitlines() if line.strip()]
    line = next((line.strip() for line in lines[lines.index(f"{job}.py:") + 1 :]), "") if f"{job}.py:" in lines else (lines or [""])[-1][:200]
    found = _complaint(example, job, done.returncode, out, err) or _touched(example, base, before, done.returncode)
    return Ending(done.returncode, seconds, line, found)


def _limited() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _complaint(example: Command | Example, job: str, code: int, out: str, err: str) -> str | None:
    if "Traceback (most recent call last)" in err + out:
        return f"exit code {code} with a traceback: {err.strip().splitlines()[-1][:300]}"
    if code not in (0, 2):
        return f"exit code {code}: {err[-300:]}"
    if "Warning:" in err:
        return f"shows a library's warning: {next(line for line in err.splitlines() if 'Warning:' in line)[:300]}"
    if code == 0:
        return "is read, though nothing in it may be" if isinstance(example, Example) and example.truth is None else None
    # One sentence is read and then too few for an interval; so are scores of a few languages.
    if (
        isinstance(example, Example)
        and example.has_to_be_read
        and (example.kind == "questions" or (example.kind == "corpus" and len(example.truth.texts["en"]) > 1))
    ):
        return f"is refused: {err[-300:]}"
    if err.startswith("usage:"):
        return None
    refusal = err[err.find(f"{job}.py:\n") :]  # behind what progress bars have left
    return message_complaint(example if isinstance(example, Command) else Command(job, ((example.path, *example.files),)), refusal)


def _touched(example: Command | Example, base: Path, before: dict[str, str], code: int) -> str | None:
    """What the command has changed that is not a run's, or left behind beside it."""
    after = snapshot(base / "a")
    resumed = [
        text.removeprefix("resume=").strip("'\"").rstrip("/")
        for text in (example.arguments if isinstance(example, Command) else ())
        if text.startswith("resume=")
    ]
    own = [f"b/stage/{name}/" for name in resumed if name and (base / "a/b/stage" / name / "config.yaml").is_file()]
    changed = [name for name, held in before.items() if after.get(name) != held and not name.startswith(tuple(own))]
    if changed:
        return f"changes what was there: {changed[:5]}"
    new = [name for name in after if name not in before]
    if code == 2 and any(after[name] != "folder" for name in new):
        return f"is refused and leaves {[name for name in new if after[name] != 'folder'][:5]}"
    runs = [
        path.parent.relative_to(base / "a").as_posix() + "/" for pattern in ("manifest.json", "sweep.csv") for path in (base / "a").rglob(pattern)
    ]
    caches = [
        f"b/stage/{text.partition('=')[2]}/" for text in (example.arguments if isinstance(example, Command) else ()) if text.startswith("cache=")
    ]
    beside = [name for name in new if after[name] != "folder" and not name.startswith((*runs, *caches, *own))]
    if beside:
        return f"leaves files outside its run folder: {beside[:5]}"
    at_home = [name for name, held in snapshot(base / "home").items() if held != "folder" and not name.startswith((".cache", ".config"))]
    return f"leaves files at home or among temporary ones: {at_home[:5]}" if at_home else None


def read_back(example: Example, base: Path) -> str | None:
    """Of a run that has read a corpus: whether it has read what stands there, by the hash in its manifest."""
    from lingact.data.corpus import ParallelCorpus

    truth: Truth = example.truth
    manifests = [json.loads(path.read_text(encoding="utf-8")) for path in base.rglob("manifest.json")]
    if example.kind != "corpus" or not manifests:
        return None
    found: dict[str, Any] = manifests[0]["identity"]["corpus"]
    ids = truth.ids or tuple(f"row-{i:06d}" for i in range(1, len(truth.texts["en"]) + 1))
    texts = {code: truth.texts[code] for code in example.codes}
    right = ParallelCorpus("", ids, texts, documents=truth.documents).sha256
    return None if found["sha256"] == right else f"has read {found['sentences']} sentences that are not what stands there"
