"""Share an adapter or SAEs on the Hugging Face hub: their files, their configuration, and a card that says what was measured and what was not.

`lingact share RUN owner/name` writes the files into `RUN/hub/`, where they can be read first (`--dry-run`), and pushes them in one commit.
"""

import argparse
import hashlib
import json
import re
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from lingact.catalogue.licences import licence_of
from lingact.cli import share_saes
from lingact.cli.share_paths import shareable
from lingact.config.jobs import SCHEMAS
from lingact.config.validation import validate
from lingact.errors import UserError
from lingact.files.atomic import write_atomically, write_json
from lingact.files.folders import folder_lock, put_in_place, temporary_beside
from lingact.files.records import read_json_object, read_run_config
from lingact.hub.huggingface import ON_THE_HUB, why_offline
from lingact.models.adapter_sources import IDENTITY, PRIVATE, SETTINGS, WEIGHTS
from lingact.runtime.program import command, program
from lingact.runtime.tracking import read_manifest

if TYPE_CHECKING:
    from huggingface_hub import ModelInfo

_SENT = (WEIGHTS, SETTINGS, IDENTITY, "manifest.json", "config.yaml", "README.md")
"""The files that are pushed with an adapter. Other files in the folder are not."""
_OF_ANY_PAGE = {".gitattributes", ".gitignore", "README.md", "LICENSE"}
"""Files that a repository may have before something is pushed to it."""
_MANIFEST = ("job", "status", "started", "seed", "git", "versions", "hardware", "identity", "wall_seconds", "peak_memory_bytes")
"""The parts of a run's manifest that are published. Its command is not, since that contains paths on this machine."""


def main(arguments: list[str]) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="lingact share",
        description="Push the adapter of a finished training run, or SAEs of one's own, to the Hugging Face hub, with a card.",
        epilog="It needs a token with write permission, from `hf auth login`. Others load an adapter by its name: lingact eval adapter=owner/name. "
        "The card of SAEs says how to load these.",
    )
    parser.add_argument(
        "run", type=Path, metavar="RUN", help="run folder of lingact train or saes; the pushed files are in its folder hub/ afterwards"
    )
    parser.add_argument("name", metavar="owner/name", help="its name on the hub")
    parser.add_argument("--set", action="append", default=[], metavar="NAME", help="of a run of lingact saes: only this set (may be repeated)")
    parser.add_argument("--eval", type=Path, metavar="RUN", help="run folder of lingact eval whose results for this adapter go into the card")
    parser.add_argument(
        "--license", metavar="ID", help="the hub's name of the base model's licence (gemma, apache-2.0, ...), if lingact does not know it"
    )
    parser.add_argument("--base-model", metavar="owner/name", help="the base model on the hub, if the run read it from a folder")
    parser.add_argument("--private", action="store_true", help="make the repository private")
    parser.add_argument("--replace", action="store_true", help="push even if the repository contains something else")
    parser.add_argument("--dry-run", action="store_true", help="write everything into RUN/hub/ and push nothing")
    given = parser.parse_args(arguments)
    try:
        terms = {"licence": given.license, "base_model": given.base_model}
        if read_manifest(given.run)["job"] == "saes":
            if given.eval is not None:
                raise UserError("--eval: is for adapters; leave it out")
            folder, aside = write_sae_package(given.run, given.name, sets=given.set, **terms)
        else:
            if given.set:
                raise UserError("--set: is for runs of lingact saes; leave it out")
            folder, aside = write_package(given.run, given.name, evaluation=given.eval, **terms)
        sys.stdout.write(f"written: {folder} (the card is README.md)\n")
        if aside is not None:
            sys.stdout.write(f"kept: {aside} (what was there before)\n")
        if not given.dry_run:
            sys.stdout.write(f"pushed: {push(folder, given.name, private=given.private, replace=given.replace)}\n")
    except UserError as error:
        sys.stderr.write(f"sharing: {error}\n")
        return 2
    return 0


# --- what is pushed ------------------------------------------------------------------------------------------------------------------------------


def write_package(run: Path, name: str, *, evaluation: Path | None, licence: str | None, base_model: str | None) -> tuple[Path, Path | None]:
    """Write everything to be pushed into the run's folder `hub/`. If that exists with other contents, which may be a user's, it is moved aside.

    Args:
        run: run folder of train.py.
        name: hub id for the adapter.
        evaluation: run folder of eval.py; None: the card says that no benchmark was run.
        licence: the hub's name of the licence; None: that of the base model, if it is known.
        base_model: hub id of the base model; None: the model name in the run's configuration.

    Returns:
        The folder, and the new path of the folder that was moved aside.

    Raises:
        UserError: the run is not complete, or something that the card has to say is not known.
    """
    _refuse_no_name(name)
    (trained, manifest), adapter = _finished(run, "train"), run / "adapter"
    if not (adapter / WEIGHTS).is_file():
        raise UserError(f"'{run}' has no adapter, or it was removed; name the folder of a finished training run")
    evaluated = _finished(evaluation, "eval")[0].model_dump(mode="json") if evaluation is not None else None
    config = trained.model_dump(mode="json", exclude=PRIVATE)
    base = _base_model(config["model"]["name"], base_model)
    terms = _licence(base, licence)

    from lingact.files.run_tables import read_tables
    from lingact.report.model_card import model_card, read_benchmark_results  # imports pandas
    from lingact.report.training import loss_text

    known = manifest["identity"] | {"model": manifest["identity"]["model"] | {"name": base}}
    asked = read_benchmark_results(evaluation, evaluated, _adapter_sha256(run)) if evaluation is not None and evaluated is not None else None
    config = shareable(config | {"model": config["model"] | {"name": base}}, known)
    manifest = shareable({key: manifest[key] for key in _MANIFEST} | {"identity": known}, {})
    caution = loss_text(trained, known.get("training_text", {}))
    card = model_card(name, terms, config, manifest, caution, read_tables(run), asked)

    folder = run / "hub"
    with folder_lock(run):
        unfinished = temporary_beside(folder)
        unfinished.mkdir()
        try:
            shutil.copyfile(adapter / WEIGHTS, unfinished / WEIGHTS)
            settings = read_json_object(adapter / SETTINGS, "put it back, or train again")
            write_json(unfinished / SETTINGS, settings | {"base_model_name_or_path": base})
            write_json(unfinished / IDENTITY, {"base_model": base, "base_sha256": known["model"]["sha256"], "training": config})
            write_json(unfinished / "manifest.json", manifest)
            write_atomically(unfinished / "config.yaml", yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
            write_atomically(unfinished / "README.md", card)
            return folder, put_in_place(unfinished, folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)


def write_sae_package(run: Path, name: str, *, sets: list[str], licence: str | None, base_model: str | None) -> tuple[Path, Path | None]:
    """As `write_package`, for a run of `lingact saes`.

    Args:
        sets: to push; none: all.
    """
    _refuse_no_name(name)
    config, manifest = _finished(run, "saes")
    chosen = share_saes.chosen_sets(run, sets)
    base = _base_model(config.model.name, base_model)
    terms = _licence(base, licence)
    public = {key: manifest[key] for key in _MANIFEST}
    public["identity"] = manifest["identity"] | {"model": manifest["identity"]["model"] | {"name": base}}
    folder = run / "hub"
    with folder_lock(run):
        unfinished = temporary_beside(folder)
        unfinished.mkdir()
        try:
            share_saes.write_sets(run, unfinished, chosen, config, public, base, terms)
            return folder, put_in_place(unfinished, folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)


def _refuse_no_name(name: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
        problem = "" if "/" in name else "it has no owner"
    except HFValidationError as error:
        problem = str(error).splitlines()[0].rstrip(".")
    if problem:
        raise UserError(f"'{name}' is not a valid name on the hub ({problem}); write owner/name, as in jane/gemma-2-2b-malayalam")


def _finished(run: Path, job: str) -> tuple[Any, dict[str, Any]]:
    """Configuration and manifest of a complete run.

    Raises:
        UserError: it is not complete, of another job, or of another version.
    """
    manifest = read_manifest(run)
    if manifest["job"] != job:
        raise UserError(f"'{run}' was made by {program(manifest['job'])}; name a run folder of {program(job)}")
    if manifest["status"] != "complete":
        raise UserError(f"'{run}' is not complete (status: {manifest['status']}); finish it first: {command(job)} resume={run}")
    saved = read_run_config(run / "config.yaml", "put it back")
    try:
        return validate(SCHEMAS[job], saved), manifest
    except UserError as error:
        raise UserError(f"'{run / 'config.yaml'}' does not fit this version: {str(error).splitlines()[0]}") from None


def _base_model(name: str, given: str | None) -> str:
    """Hub id of the base model."""
    if given is None and (Path(name).expanduser().exists() or not ON_THE_HUB.fullmatch(name)):
        raise UserError(f"the base model is the folder '{name}', which nobody else has; give its name on the hub: --base-model owner/name")
    if given is not None and not ON_THE_HUB.fullmatch(given):
        raise UserError(f"--base-model: '{given}' is not a valid name on the hub; write owner/name")
    return given or name


def _licence(base: str, given: str | None) -> str:
    if given is not None and not re.fullmatch(r"[a-z][a-z0-9.-]*", given):
        raise UserError(f"--license: '{given}' is not a licence name of the hub; write for instance gemma, llama3.1, apache-2.0 or mit")
    found = given or licence_of(base)
    if found is None:
        raise UserError(
            f"the licence of '{base}' is not known here, and that of its adapter depends on it; look it up on its page and write --license ID"
        )
    return found


def _adapter_sha256(run: Path) -> str:
    """The hash by which evaluations identify the adapter, from the run's own measurements."""
    index = run / "stats" / "index.json"
    try:
        return json.loads(index.read_text(encoding="utf-8"))["header"]["adapter"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"'{index}' does not say which adapter was measured, so --eval cannot be checked; put it back, or leave --eval out") from None


# --- pushing -------------------------------------------------------------------------------------------------------------------------------------


def push(folder: Path, name: str, *, private: bool, replace: bool) -> str:
    """Push a folder of `write_package` to the hub in one commit. Returns the address of the commit.

    Args:
        private: make the repository private.
        replace: push even if the repository contains something else.

    Raises:
        UserError: there is no token, no connection to the hub, no permission, or something else of that name.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, get_token
    from huggingface_hub.errors import HTTPError, RepositoryNotFoundError

    if get_token() is None:
        raise UserError("there is no token for the hub; make one with write permission in the hub's settings and run `hf auth login`")
    if offline := why_offline():
        raise UserError(f"nothing was pushed: {offline}. The folder '{folder}' is ready; give the same command again with a connection")
    hub = HfApi()
    try:
        try:
            there = hub.model_info(name, files_metadata=True)
        except RepositoryNotFoundError:
            there = None
        if there is not None:
            _refuse_others(there, folder, private=private, replace=replace)
        hub.create_repo(name, private=private or None, exist_ok=True)
        # `upload_folder` may push several commits, and somebody who loads in between would get only some of the files.
        adapter = (folder / WEIGHTS).is_file()
        sent = [folder / name for name in _SENT] if adapter else [path for path in folder.rglob("*") if path.is_file()]
        files = [CommitOperationAdd(path.relative_to(folder).as_posix(), path) for path in sorted(sent)]
        message = f"{'Adapter' if adapter else 'SAEs'} trained with lingact"
        commit = hub.create_commit(name, files, commit_message=message, parent_commit=there.sha if there else None)
    except (HTTPError, OSError, RuntimeError) as error:
        raise _not_taken(name, error) from error
    return str(commit.commit_url)


def _refuse_others(there: "ModelInfo", folder: Path, *, private: bool, replace: bool) -> None:
    """Refuse to overwrite something else, and to publish what was meant to be private."""
    if private and not there.private:
        raise UserError(f"'{there.id}' already exists and is public; make it private on its page, or leave --private out")
    files = {file.rfilename: file for file in there.siblings or ()}
    own = next(path for path in sorted(folder.rglob("*.safetensors")))
    held = files[name].lfs if (name := own.relative_to(folder).as_posix()) in files else None
    if not replace and files.keys() - _OF_ANY_PAGE and (held is None or held.sha256 != hashlib.sha256(own.read_bytes()).hexdigest()):
        raise UserError(
            f"'{there.id}' already exists with other contents ({', '.join(sorted(files.keys() - _OF_ANY_PAGE)[:4])}); choose another name, or "
            "write --replace to push this in its place"
        )


def _not_taken(name: str, error: Exception) -> UserError:
    """The error for the user after the hub refused the push, or did not answer."""
    from huggingface_hub.errors import HfHubHTTPError

    refusal = error if isinstance(error, HfHubHTTPError) else error.__cause__ or error  # uploads wrap the original error
    status = refusal.response.status_code if isinstance(refusal, HfHubHTTPError) else None
    if status == 401:
        why = "the hub does not accept the token; run `hf auth login` with a valid one"
    elif status == 403:
        why = f"the token may not write there; use one with write permission for '{name.partition('/')[0]}', or another owner"
    elif status == 412:
        why = "somebody else pushed to it at the same time; look at it and give the same command again"
    else:
        reason = next((line.strip() for line in str(refusal).splitlines() if line.strip()), type(refusal).__name__)
        why = f"{reason.rstrip('.')}. Give the same command again"
    return UserError(f"'{name}' was not pushed: {why}")
