"""A run and its results: folder, manifest, tables, figures, summary, and the same in Weights & Biases.

Files are written atomically, so that a reader never sees an incomplete one. Of the processes of a distributed run, only the first one writes files
and prints.
"""

import contextlib
import hashlib
import json
import math
import os
import platform
import re
import resource
import secrets
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import yaml
from tqdm import tqdm

from lingact.config.base import ConfigSection
from lingact.config.jobs import TrackingConfig, without_machine
from lingact.errors import UserError
from lingact.files.atomic import full_disk, write_atomically, write_json
from lingact.files.earlier import RENAMED_FOLDERS, first_keys
from lingact.files.folders import TOKEN, leftovers
from lingact.files.records import read_json_object
from lingact.hub.wandb_artifacts import has_key
from lingact.hub.wandb_limits import ROWS, artifact_name, shortened, table_key, variable_problems
from lingact.runtime import interrupts
from lingact.runtime.environment import first_process
from lingact.runtime.program import command_line, program

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

DPI = 160
"""Dots per inch of saved figures."""
_PACKAGES = ("torch", "transformers", "sae-lens", "peft", "pytorch-lightning", "lm-eval", "hydra-core", "wandb", "numpy", "lingact")
STATUSES = ("running", "complete", "interrupted", "failed")
"""Values of a manifest's `status`."""
_PARTS = ("tables", "figures", "stats", "stats/contexts", *RENAMED_FOLDERS, *RENAMED_FOLDERS.values(), "checkpoints", "answers", "samples", "results")
"""Subfolders of a run folder that files are written to."""
RUN_FILES = {"config.yaml", "manifest.json", "summary.json", "report.html", "card.md", "wandb", "adapter", "sae", *_PARTS}
"""Names in a run folder that belong to the run. Any others belong to the user."""


def remove_leftovers(folder: Path, token: str | None) -> None:
    """Remove temporary files of an earlier part of the run that was killed. Their names contain the token in its manifest.

    Args:
        folder: the run folder. It and the folders of a run in it are searched, but not the folders below.
        token: None: the run was made by a version without tokens, and nothing is removed.
    """
    if token is None:
        return
    for place in (folder, *(folder / name for name in _PARTS)):
        for path in leftovers(place, token):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def finite_summary(values: dict[str, float]) -> dict[str, float]:
    """The summary with each number that is not finite replaced by `<key>/undefined: 1`."""
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


class Hardware(TypedDict):
    """The machine of a run, as the manifest describes it."""

    machine: str
    cpus: int | None
    threads: int
    gpus: list[str]


def _hardware() -> Hardware:
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {"machine": platform.machine(), "cpus": os.cpu_count(), "threads": torch.get_num_threads(), "gpus": gpus}


def differences(there: Any, here: Any, prefix: str = "") -> list[str]:
    """The differences between two configurations or identities, a line for each value."""
    if isinstance(there, dict) and isinstance(here, dict):
        return [line for key in dict.fromkeys([*there, *here]) for line in differences(there.get(key), here.get(key), f"{prefix}.{key}".lstrip("."))]
    return [] if there == here else [f"{prefix}: {_brief(there)} there, {_brief(here)} here"]


def _brief(value: object) -> str:
    """A value as a user would write it; a hash is shortened."""
    is_hash = isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value)
    return value[:12] if is_hash else json.dumps(value, ensure_ascii=False)


@contextlib.contextmanager
def _staging_in(folder: Path) -> Iterator[None]:
    """Let W&B keep its copies of uploads in the run folder instead of the user's home, unless the user has chosen a folder."""
    if "WANDB_DATA_DIR" in os.environ:
        yield
        return
    os.environ["WANDB_DATA_DIR"] = str(folder.absolute() / "wandb")
    try:
        yield
    finally:
        del os.environ["WANDB_DATA_DIR"]


class Run:
    """An open run. Made by `open_run`."""

    def __init__(self, folder: Path, config: dict[str, Any], manifest: dict[str, Any], tracker: Any, *, first: bool) -> None:
        self.folder = folder
        self.tracker = tracker
        """The W&B run; with mode=disabled one that does nothing."""
        self.first = first
        """Whether this is the process that writes. The other processes of a distributed run only train."""
        self._manifest = manifest
        self._parts: dict[str, Any] = {"configuration": first_keys(without_machine(config))}

    def identify(self, **identity: object) -> None:
        """Record model, SAEs, corpus, adapter and tasks (name, revision, hash) in the manifest.

        Raises:
            UserError: an earlier part of the run used something else.
        """
        known = self._manifest["identity"]
        found = json.loads(json.dumps(identity))
        if changed := [line for part in known.keys() & found for line in differences(known[part], found[part], part)]:
            raise UserError(
                f"'{self.folder}' was started with other inputs ({'; '.join(sorted(changed))}); restore them, or start a new run in another folder"
            )
        known.update(found)
        self._parts.update(found)
        self._write_manifest()

    @property
    def header(self) -> dict[str, str]:
        """Hashes of everything that the run depends on: its configuration, and everything recorded by `identify` so far."""
        return {name: hashlib.sha256(json.dumps(part, sort_keys=True).encode()).hexdigest() for name, part in self._parts.items()}

    def _write_manifest(self) -> None:
        if self.first:
            write_json(self.folder / "manifest.json", self._manifest)

    def progress(self, step: int, values: dict[str, float]) -> None:
        """Log how far the run is, with W&B alone."""
        with surviving_tracking():
            self.tracker.log({"passes": step} | values)

    def table(self, name: str, frame: "pd.DataFrame") -> None:
        """`tables/<name>.csv` and a W&B table."""
        import wandb

        write_atomically(self.folder / "tables" / f"{name}.csv", frame.to_csv(index=False))
        if self.tracker.disabled:  # wandb.Table spends half a second on checking cells, and the table would be dropped
            return
        # W&B infers the type of a column from its first row, and accepts None for an empty cell but not pandas' NA.
        rows = frame.astype(object).where(frame.notna(), None)  # pyrefly: ignore[bad-argument-type]
        with surviving_tracking(), _staging_in(self.folder):
            key = table_key(name, str(self._manifest.get("wandb", "")))
            self.tracker.log({key: wandb.Table(dataframe=rows.head(ROWS), allow_mixed_types=True)})

    def figure(self, name: str, figure: "Figure") -> Path:
        """`figures/<name>.png` and a W&B image. Returns the file."""
        import io

        import wandb

        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=DPI, bbox_inches="tight")
        path = self.folder / "figures" / f"{name}.png"
        write_atomically(path, buffer.getvalue())
        with surviving_tracking():
            self.tracker.log({f"figures/{name}": wandb.Image(str(path))})
        return path

    def summary(self, values: dict[str, float]) -> dict[str, float]:
        """`summary.json` and the W&B summary, with the same keys. Returns what was written."""
        finite = finite_summary(values)
        write_json(self.folder / "summary.json", finite)
        with surviving_tracking():
            self.tracker.summary.update(finite)
        return finite

    def artifact(self, parts: Sequence[str], kind: str, files: Iterable[Path], below: Path | None = None) -> None:
        """Log files as a W&B artifact. Its name is made from the parts.

        Args:
            below: the folder from which files are named; None: each by its own name.
        """
        import wandb

        with surviving_tracking(), _staging_in(self.folder):
            artifact = wandb.Artifact(artifact_name(*parts), type=kind)
            for file in files:  # `add_dir` would print a message
                # Mutable files would be copied into the user's home until they are uploaded.
                name = file.name if below is None else file.relative_to(below).as_posix()
                artifact.add_file(str(file.absolute()), name=name, policy="immutable")
            self.tracker.log_artifact(artifact)

    def close(self, status: str, seconds: float) -> None:
        """Write the final status, wall seconds and peak memory."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        self._manifest.update(status=status, wall_seconds=round(seconds, 1), peak_memory_bytes=peak)
        self._write_manifest()


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a run folder.

    Raises:
        UserError: the folder is not one, or the manifest is damaged.
    """
    path = folder / "manifest.json"
    if not path.is_file():
        programs = f"{program('train')}, {program('analyze')} or {program('eval')}"
        raise UserError(f"'{folder}' is not a run folder: it has no manifest.json; name a folder that {programs} made")
    otherwise = "restore it, or move it away: the run can be resumed without it"
    manifest = read_json_object(path, otherwise, needed=("job", "status"))
    kinds = {"identity": dict, "temporary": str, "wandb": str}
    if not all(isinstance(manifest.get(key, kind()), kind) for key, kind in kinds.items()):
        raise UserError(f"'{path}' cannot be read: it is truncated or not a lingact file; {otherwise}")
    return manifest


def check_tracking(config: TrackingConfig) -> None:
    """Refuse settings with which W&B would prompt, or fail when the run is opened.

    Raises:
        UserError: online without a key, or environment variables that the client does not accept.
    """
    problems = list(variable_problems(config.mode))
    if config.mode == "online" and not has_key():
        problems.append(
            "tracking=wandb needs a Weights & Biases key, but none is set; run `wandb login`, set WANDB_API_KEY, or use tracking=offline "
            "(later `wandb sync`) or tracking=none"
        )
    if problems:
        raise UserError("\n".join(problems))


@contextlib.contextmanager
def surviving_tracking() -> Iterator[None]:
    """Continue the run when W&B fails, because all files are in the run folder. A full disk still ends the run.

    The client raises many kinds of errors without a common base class, some of them private. So its errors are recognised by the module that
    raised them. Errors of lingact pass through.
    """
    try:
        yield
    except Exception as error:
        raised_in = {str(frame.f_globals.get("__name__")).partition(".")[0] for frame, _ in traceback.walk_tb(error.__traceback__)}
        if full_disk(error) is not None or "wandb" not in raised_in:
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        tqdm.write(f"Weights & Biases did not accept something, and the run continues without it: {reason}", file=sys.stderr)


@contextlib.contextmanager
def open_run(job: str, config: ConfigSection, tracking: TrackingConfig, folder: Path) -> Iterator[Run]:
    """Open the run folder and the W&B run, and close both with the right status in any case.

    On rank > 0 nothing is opened or written.

    Args:
        job: train, analyze or eval.
        config: the validated configuration, written as `config.yaml`.
        folder: the run folder, made if it does not exist. A resumed run has to use the same model, SAEs and corpus.

    Raises:
        UserError: the manifest of the earlier part is damaged.
    """
    import wandb

    started = time.monotonic()
    plain = config.model_dump(mode="json")
    if not first_process():
        yield Run(folder, plain, {"identity": {}}, wandb.init(mode="disabled"), first=False)
        return
    earlier = read_manifest(folder) if (folder / "manifest.json").is_file() else {}
    identity = earlier.get("identity", {})
    remove_leftovers(folder, earlier.get("temporary"))
    write_atomically(folder / "config.yaml", yaml.safe_dump(plain, sort_keys=False, allow_unicode=True))
    commit = _git("rev-parse", "HEAD")
    manifest: dict[str, Any] = {
        "job": job,
        "command": command_line(),
        "status": "running",
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "seed": plain["seed"],
        "git": {"commit": commit, "dirty": bool(_git("status", "--porcelain", "--untracked-files=no")) if commit else None},
        "versions": _versions(),
        "hardware": _hardware(),
        "identity": identity,
        "temporary": TOKEN,
        # The agent of a W&B sweep chooses the id of the run.
        "wandb": earlier.get("wandb") or os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4),
    }
    # Before W&B is started, which takes a second, so that the folder is marked as a run's at once.
    write_json(folder / "manifest.json", manifest)
    try:
        tracker = wandb.init(
            # A resumed run is resumed at W&B as well.
            id=manifest["wandb"],
            resume="allow" if tracking.mode == "online" else None,
            mode=tracking.mode,
            project=tracking.project,
            entity=tracking.entity,
            group=tracking.group,
            tags=[job, *tracking.tags],
            name=shortened(f"{job}-{folder.name}"),
            job_type=job,
            dir=str(folder),
            config=plain,
            settings=wandb.Settings(silent=True, console="off", disable_code=True, disable_git=True),
        )
    except (wandb.Error, ValueError) as error:
        raise UserError(f"tracking: Weights & Biases cannot open the run: {error}; or use tracking=offline or tracking=none") from error
    run = Run(folder, plain, manifest, tracker, first=True)
    status = "failed"
    try:
        yield run
        status = "complete"
    except KeyboardInterrupt:
        status = "interrupted"
        raise
    finally:
        # If a full disk ended the run, the manifest may not fit either; the first error has to be reported.
        with contextlib.nullcontext() if status == "complete" else contextlib.suppress(OSError), interrupts.deferred():
            run.close(status, time.monotonic() - started)
        with surviving_tracking():
            tracker.finish(exit_code=0 if status == "complete" else 1)
