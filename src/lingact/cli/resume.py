"""`resume=FOLDER`: continue an interrupted run."""

from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from lingact.cli.checks import process_problems
from lingact.cli.compose import compose, parse_overrides, try_compose
from lingact.cli.run import print_plans, run_locked
from lingact.cli.run_folders import contradictions, saved_config
from lingact.config.jobs import SCHEMAS, JobConfig
from lingact.config.validation import validate, validate_config
from lingact.errors import UserError
from lingact.runtime.program import command, program
from lingact.runtime.tracking import read_manifest


def resume(job: str, folder: Path, overrides: list[str]) -> Path | None:
    """Continue a run in its folder, with its own configuration.

    Returns:
        The folder; None if only the plan was printed.

    Raises:
        UserError: it is not a run folder, or the overrides contradict its configuration.
    """
    saved = saved_config(folder)
    if saved is None:
        raise UserError(f"resume: '{folder}' is not a run folder: it has no config.yaml; name a folder that {program(job)} made")
    made_by = read_manifest(folder)["job"] if (folder / "manifest.json").is_file() else job
    if made_by != job:
        raise UserError(f"resume: '{folder}' was made by {program(made_by)}; write {command(made_by)} resume={folder}")
    # The saved configuration has no key `plan`, which is not part of a run.
    plan = try_compose(job, overrides)[0].get("plan", "check")
    try:
        config: JobConfig = validate(SCHEMAS[job], saved | {"plan": plan})
    except UserError as error:
        raise UserError(
            "\n".join(f"resume: '{folder / 'config.yaml'}' does not fit this version: {line}" for line in str(error).split("\n"))
        ) from None
    if overrides:
        problems, changed = _apply_overrides(job, saved, overrides)
        if problems or changed is None:
            raise UserError("\n".join([*problems, f"resume uses the configuration of '{folder}'; leave these out, or start a new run"]))
        config = changed
    if problems := process_problems(config):
        raise UserError("\n".join(problems))
    if config.plan == "only":
        print_plans([config])
        return None
    run_locked(job, config, folder, "resume")
    return folder


def _apply_overrides(job: str, saved: dict[str, Any], overrides: list[str]) -> tuple[list[str], JobConfig | None]:
    """The problems with overrides of a resumed run, and the configuration with which it continues; None if that is not valid.

    A run may continue with other values of keys that belong to the machine, such as the device, but not of others.
    """
    composed, refused = try_compose(job, overrides)
    if refused:
        return list(refused.values()), None
    parsed, _ = parse_overrides(overrides)
    of_hydra = [f"{override.input_line}: cannot be combined with resume" for override in parsed if override.key_or_group.startswith("hydra")]
    untouched = compose(job, [])
    changed = OmegaConf.create(saved)
    for override in parsed:
        key = override.package or override.key_or_group.replace("/", ".")
        # An experiment has no section of its own; it changes values in others.
        sections = [key] if OmegaConf.select(composed, key) is not None else [name for name in saved if composed.get(name) != untouched.get(name)]
        for section in sections:
            OmegaConf.update(changed, section, OmegaConf.select(composed, section), merge=False)
    try:
        here = validate_config(SCHEMAS[job], changed)
    except UserError as error:
        return [*of_hydra, *str(error).split("\n")], None
    return [*of_hydra, *contradictions(saved, here)], here
