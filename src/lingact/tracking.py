"""A run and what it leaves behind: folder, manifest, tables, figures, summary, and the same in Weights & Biases.

Every file is written beside its place and moved there, so that a reader never sees half of one.
"""

import json
import math
import os
import platform
import resource
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from lingact.config import Section, TrackingConfig
from lingact.errors import UserError

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

DPI = 160
"""Dots per inch of saved figures."""
_PACKAGES = ("torch", "transformers", "sae-lens", "peft", "pytorch-lightning", "lm-eval", "hydra-core", "wandb", "numpy", "lingact")


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    data = content.encode() if isinstance(content, str) else content
    try:
        unfinished.write_bytes(data)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_json(path: Path, content: object) -> None:
    """JSON, indented, non-ASCII kept."""
    write_atomically(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def finite_summary(values: dict[str, float]) -> dict[str, float]:
    """Finite numbers as they are; for an undefined one the key is left out and `<key>/undefined: 1` stands in its place."""
    return {key if math.isfinite(value) else f"{key}/undefined": float(value) if math.isfinite(value) else 1.0 for key, value in values.items()}


def _git(*arguments: str) -> str | None:
    try:
        return subprocess.run(("git", "-C", str(Path(__file__).parent), *arguments), capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _hardware() -> dict[str, Any]:
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {"machine": platform.machine(), "cpus": os.cpu_count(), "threads": torch.get_num_threads(), "gpus": gpus}


class Run:
    """An open run. Made by `open_run`."""

    def __init__(self, folder: Path, manifest: dict[str, Any], tracker: Any) -> None:
        self.folder = folder
        self.tracker = tracker
        """The W&B run; under mode=disabled an inert one."""
        self._manifest = manifest

    def identify(self, **identity: object) -> None:
        """Record who took part (model, SAEs, corpus, adapter, tasks: name, revision, hash) in the manifest."""
        self._manifest["identity"].update(identity)
        self._write_manifest()

    def _write_manifest(self) -> None:
        write_json(self.folder / "manifest.json", self._manifest)

    def table(self, name: str, frame: "pd.DataFrame") -> None:
        """`tables/<name>.csv` and a W&B table."""
        import wandb

        write_atomically(self.folder / "tables" / f"{name}.csv", frame.to_csv(index=False))
        # Empty cells: W&B settles a column's type by its first row and knows None, not pandas' NA.
        rows = frame.astype(object).where(frame.notna(), None)  # pyrefly: ignore[bad-argument-type]
        self.tracker.log({f"tables/{name}": wandb.Table(dataframe=rows, allow_mixed_types=True)})

    def figure(self, name: str, figure: "Figure") -> Path:
        """`figures/<name>.png` and a W&B image. Returns the file."""
        import io

        import wandb

        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=DPI, bbox_inches="tight")
        path = self.folder / "figures" / f"{name}.png"
        write_atomically(path, buffer.getvalue())
        self.tracker.log({f"figures/{name}": wandb.Image(str(path))})
        return path

    def summary(self, values: dict[str, float]) -> dict[str, float]:
        """`summary.json` and the W&B summary, with the same keys. Returns what was written."""
        finite = finite_summary(values)
        write_json(self.folder / "summary.json", finite)
        self.tracker.summary.update(finite)
        return finite

    def artifact(self, name: str, kind: str, folder: Path) -> None:
        """Log a folder as a W&B artifact."""
        import wandb

        artifact = wandb.Artifact(name, type=kind)
        for file in sorted(folder.iterdir()):  # `add_dir` would announce itself on the terminal
            artifact.add_file(str(file), name=file.name)
        self.tracker.log_artifact(artifact)

    def close(self, status: str, seconds: float) -> None:
        """Write the final status, wall seconds and peak memory."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        self._manifest.update(status=status, wall_seconds=round(seconds, 1), peak_memory_bytes=peak)
        self._write_manifest()


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a run folder.

    Raises:
        UserError: the folder is not one.
    """
    path = folder / "manifest.json"
    if not path.is_file():
        raise UserError(f"'{folder}' is not a run folder: it has no manifest.json; name a folder that train.py, analyze.py or eval.py made")
    return json.loads(path.read_text(encoding="utf-8"))


def check_tracking(config: TrackingConfig) -> None:
    """Refuse what would make W&B prompt.

    Raises:
        UserError: online without a key.
    """
    if config.mode != "online" or os.environ.get("WANDB_API_KEY"):
        return
    import netrc

    try:
        hosts = netrc.netrc().hosts
    except (OSError, netrc.NetrcParseError):
        hosts = {}
    if not any("wandb" in host for host in hosts):
        raise UserError(
            "tracking=wandb needs a Weights & Biases key and none is set; run `wandb login`, set WANDB_API_KEY, or use tracking=offline "
            "(later `wandb sync`) or tracking=none"
        )


@contextmanager
def open_run(job: str, config: Section, tracking: TrackingConfig, folder: Path) -> Iterator[Run]:
    """Open the run folder and the W&B run; close both with the right status whatever happens.

    Args:
        job: train, analyze or eval.
        config: the judged configuration, written as `config.yaml`.
        folder: the run folder, made if it is not there.
    """
    import wandb

    started = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    plain = config.model_dump(mode="json")
    write_atomically(folder / "config.yaml", yaml.safe_dump(plain, sort_keys=False, allow_unicode=True))
    commit = _git("rev-parse", "HEAD")
    manifest: dict[str, Any] = {
        "job": job,
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "status": "running",
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "seed": plain["seed"],
        "git": {"commit": commit, "dirty": bool(_git("status", "--porcelain", "--untracked-files=no")) if commit else None},
        "versions": _versions(),
        "hardware": _hardware(),
        "identity": {},
    }
    tracker = wandb.init(
        mode=tracking.mode,
        project=tracking.project,
        entity=tracking.entity,
        group=tracking.group,
        tags=[job, *tracking.tags],
        name=f"{job}-{folder.name}",
        job_type=job,
        dir=str(folder),
        config=plain,
        settings=wandb.Settings(silent=True, console="off", disable_code=True, disable_git=True),
    )
    run = Run(folder, manifest, tracker)
    run._write_manifest()
    status = "failed"
    try:
        yield run
        status = "complete"
    except KeyboardInterrupt:
        status = "interrupted"
        raise
    finally:
        run.close(status, time.monotonic() - started)
        tracker.finish(exit_code=0 if status == "complete" else 1)
