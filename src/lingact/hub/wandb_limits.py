"""What Weights & Biases accepts: limits on names, which it reports only when a run is opened, uploaded or over; and its environment variables.

The client checks some of them (0.31: tags, project, run id, artifact names), the server the others. Names that a user gives are checked before a run
starts; names that lingact makes are shortened.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping

NAME, TAG, RUN_ID, ROWS = 128, 64, 64, 200_000
"""Most characters of names (of projects, entities, groups, runs and artifacts), of tags, and of run ids; most rows of a table."""
_IN_AN_ADDRESS = "/\\#?%:"
"""Names that are part of an address cannot contain these."""
_FORBIDDEN = {"project": _IN_AN_ADDRESS, "entity": _IN_AN_ADDRESS, "WANDB_RUN_ID": _IN_AN_ADDRESS + ";,'"}
_OFFLINE = ("offline", "dryrun", "disabled")
_MODES = ("online", "shared", "run", *_OFFLINE)
_PREFIX = "run-"


def name_problem(key: str, name: str, longest: int = NAME) -> str | None:
    """The problem with a name that the user has given; None if there is none."""
    if not name.strip() or name != name.strip():
        return f"'{name}' is blank, or begins or ends with a space"
    if len(name) > longest:
        return f"'{name[:20]}...' has {len(name)} characters; Weights & Biases allows 1 to {longest}"
    wrong = [char for char in name if char in _FORBIDDEN.get(key, "") or not char.isprintable()]
    if wrong:
        return f"{name!r} contains {json.dumps(wrong[0])}, which Weights & Biases does not allow; leave it out"
    return None


def shortened(name: str, longest: int = NAME) -> str:
    """The name itself. If it is too long, its beginning and a hash of the whole, so that different names stay different."""
    return name if len(name) <= longest else f"{name[: longest - 13]}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"


def artifact_name(*parts: str) -> str:
    """An artifact's name from its parts. Characters that are not allowed become `_`."""
    return shortened(re.sub(r"[^a-zA-Z0-9_.-]", "_", "-".join(parts)))


def table_key(name: str, run_id: str) -> str:
    """The key of a table. The client makes an artifact of the table, whose name also contains the run's id."""
    return shortened(f"tables/{name}", NAME - len(f"{_PREFIX}{run_id}-"))


def variable_problems(mode: str, variables: Mapping[str, str] = os.environ) -> Iterator[str]:
    """Problems with the client's environment variables, which it reads in any case, and contradictions between them and `tracking.mode`."""
    for key, longest in (("WANDB_PROJECT", NAME), ("WANDB_ENTITY", NAME), ("WANDB_RUN_GROUP", NAME), ("WANDB_NAME", NAME), ("WANDB_JOB_TYPE", TAG)):
        problem = name_problem(key.removeprefix("WANDB_").lower(), variables[key], longest) if key in variables else None
        if problem:
            yield f"{key}: {problem}, or unset {key}"
    if "WANDB_RUN_ID" in variables and (problem := name_problem("WANDB_RUN_ID", variables["WANDB_RUN_ID"], RUN_ID)):
        yield f"WANDB_RUN_ID: {problem}, or unset it"
    for tag in variables["WANDB_TAGS"].split(",") if "WANDB_TAGS" in variables else ():
        if problem := name_problem("tag", tag, TAG):
            yield f"WANDB_TAGS: {problem}, or unset it (tracking.tags=[...] are lingact's)"
    here = variables.get("WANDB_MODE")
    if here is not None and here not in _MODES:
        yield f"WANDB_MODE='{here}' is none of {', '.join(_MODES)}; unset it and choose tracking=offline, tracking=wandb or tracking=none"
    for key, allowed in (("WANDB_RESUME", ("allow", "must", "never", "auto", "true", "false", "True", "False")),):
        if key in variables and variables[key] not in allowed:
            yield f"{key}='{variables[key]}' is none of {', '.join(allowed[:4])}; unset it: resume=<run folder> also resumes the run there"
    api_key = variables.get("WANDB_API_KEY", "")
    if api_key != api_key.strip():
        yield "WANDB_API_KEY is blank, or begins or ends with a space or a line break; set it again, or unset it"
    disabled = variables.get("WANDB_DISABLED", "").lower() in ("true", "1", "yes", "on")
    if mode == "online" and (here in _OFFLINE or disabled):
        found = f"WANDB_MODE={here}" if here in _OFFLINE else f"WANDB_DISABLED={variables['WANDB_DISABLED']}"
        yield f"tracking=wandb means online, but {found} forbids it; unset it, or use tracking=offline or tracking=none"
    if mode != "online" and variables.get("WANDB_SWEEP_ID"):
        yield (
            f"an agent of the W&B sweep {variables['WANDB_SWEEP_ID']} has started this run (WANDB_SWEEP_ID), but would not get its results; "
            "put tracking=wandb into the sweep's command, as conf/sweep/ does"
        )
