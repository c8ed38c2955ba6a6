"""The environment variables of launchers: they are checked before anything is loaded, and translated into one form.

Lightning would detect a launcher by itself, but mistakes a variable left over in a shell for one. So the launcher is determined here, by one rule:
first torchrun's names (RANK, WORLD_SIZE, ...; Kubernetes jobs also set them), then a step of `srun`; otherwise the process is alone, and starts the
others itself. Every function takes the variables as a mapping.
"""

import os
import re
import tempfile
from collections.abc import Iterator, Mapping

from lingact.errors import UserError
from lingact.files.folders import TEMPORARY

RUN_FOLDER = "LINGACT_RUN_FOLDER"
"""Variable that names the run folder for processes that a run starts."""
STARTED_BY_US = (RUN_FOLDER, TEMPORARY, "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Variables that are set for the processes that a run starts, and are removed after it."""
_FROM_0 = (
    *("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_STEP_ID", "SLURM_JOB_ID"),
    *("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "PMI_RANK", "MPI_LOCALRANKID", "MV2_COMM_WORLD_RANK", "JSM_NAMESPACE_RANK"),
)
_FROM_1 = (
    *("WORLD_SIZE", "LOCAL_WORLD_SIZE", "SLURM_NTASKS", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_NUM_NODES"),
    *("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE", "PMI_SIZE", "MPI_LOCALNRANKS", "MV2_COMM_WORLD_SIZE", "JSM_NAMESPACE_SIZE"),
)
_MPI = {
    "OMPI_COMM_WORLD": "mpirun (Open MPI)",
    "PMI": "mpiexec (MPICH, Intel MPI)",
    "MV2_COMM_WORLD": "mpirun (MVAPICH2)",
    "JSM_NAMESPACE": "jsrun (LSF)",
}
"""Prefixes of the variables _RANK and _SIZE -> the unsupported launcher that sets them."""
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
_INTERACTIVE = ("bash", "interactive")
"""Names that Slurm gives to allocations with a shell."""

Variables = Mapping[str, str]


# --- checks ---------------------------------------------------------------------------------------------------------------------------------------


def check_environment(variables: Variables) -> None:
    """Refuse variables that contradict each other, or on which a library would fail only after minutes.

    Raises:
        UserError: the message has a line for each problem.
    """
    problems = [*_unreadable(variables), *_no_room()]
    # Values that cannot be read cannot be compared.
    problems = problems or list(_contradictions(variables))
    if problems:
        raise UserError("\n".join(problems))


def _unreadable(variables: Variables) -> Iterator[str]:
    for names, lowest in ((_FROM_0, 0), (_FROM_1, 1)):
        for name in names:
            value = variables.get(name)
            if value is not None and not (re.fullmatch(r"[0-9]+", value) and int(value) >= lowest):
                yield f"{name}='{value}' is not a number from {lowest} upwards; unset it, or start with the launcher that sets it"
    for name in ("MASTER_PORT", "STANDALONE_PORT"):
        port = variables.get(name)
        if port is not None and not (re.fullmatch(r"[0-9]+", port) and 1 <= int(port) <= 65535):
            yield f"{name}='{port}' is not a port from 1 to 65535; unset it, or give the port of the first process"
    for name in _THREADS:
        threads = variables.get(name)
        if threads is not None and not re.fullmatch(r"\s*0*[1-9][0-9]*\s*(,\s*0*[1-9][0-9]*\s*)*", threads):
            yield f"{name}='{threads}' is not a number of threads from 1 upwards; unset it, or give one"


def _no_room() -> Iterator[str]:
    try:
        tempfile.gettempdir()
    except FileNotFoundError as error:
        yield f"no folder for temporary files: {error.strerror or error}; set TMPDIR to a writable one"


def _contradictions(variables: Variables) -> Iterator[str]:
    if _started_by_us(variables):
        return
    if "RANK" in variables:
        yield from _of_torchrun(variables)
    elif _is_step(variables):
        yield from _of_srun(variables)
    else:
        yield from _alone(variables)


def _of_torchrun(variables: Variables) -> Iterator[str]:
    if "WORLD_SIZE" not in variables:
        yield "RANK is set but WORLD_SIZE is not; start with torchrun, which sets both, or unset RANK"
        return
    rank, world = int(variables["RANK"]), int(variables["WORLD_SIZE"])
    if rank >= world:
        yield f"RANK={rank} is not among the {world} processes of WORLD_SIZE, which count from 0"
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if not variables.get(name)]
    if world > 1 and missing:
        yield f"WORLD_SIZE={world}, but {' and '.join(missing)} {'are' if len(missing) > 1 else 'is'} not set; start with torchrun, which sets all"
    if "LOCAL_RANK" not in variables:
        yield from _asked_of_torchrun(variables, ("PET_NPROC_PER_NODE",))
    place = _place(variables)
    local_rank, local_world = int(place["LOCAL_RANK"]), int(place["LOCAL_WORLD_SIZE"])
    if local_rank >= local_world:
        yield f"LOCAL_RANK={local_rank} is not among the {local_world} processes of this machine (LOCAL_WORLD_SIZE), which count from 0"
    if world % local_world:
        yield f"WORLD_SIZE={world} is not a multiple of LOCAL_WORLD_SIZE={local_world}; start the same number of processes on every machine"


def _of_srun(variables: Variables) -> Iterator[str]:
    missing = [name for name in ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID") if name not in variables]
    if missing:
        yield f"SLURM_STEP_NUM_TASKS={variables['SLURM_STEP_NUM_TASKS']}, but {', '.join(missing)} not set; start with srun, which sets all"
        return
    tasks, nodes = int(variables["SLURM_STEP_NUM_TASKS"]), int(variables.get("SLURM_STEP_NUM_NODES", "1"))
    if int(variables["SLURM_PROCID"]) >= tasks:
        yield f"SLURM_PROCID={variables['SLURM_PROCID']} is not among the {tasks} tasks of this step (SLURM_STEP_NUM_TASKS), which count from 0"
    per_node = {count.partition("(")[0] for count in variables.get("SLURM_STEP_TASKS_PER_NODE", "").split(",")}
    if tasks % nodes or len(per_node) > 1:
        yield f"Slurm has started {tasks} tasks on {nodes} machines, with different numbers on them; use --ntasks-per-node"


def _alone(variables: Variables) -> Iterator[str]:
    """Variables that are left over in a shell, or that ask for processes that were not started."""
    for name in ("LOCAL_RANK", "GROUP_RANK"):
        if name in variables:
            yield f"{name} is set but RANK is not; start with torchrun, which sets both, or unset {name}"
    if int(variables.get("WORLD_SIZE", "1")) > 1:
        yield f"WORLD_SIZE={variables['WORLD_SIZE']}, but RANK is not set; start with torchrun, which sets both, or unset WORLD_SIZE"
    for family, launcher in _MPI.items():
        if f"{family}_RANK" in variables and int(variables.get(f"{family}_SIZE", "1")) > 1:
            yield (
                f"{launcher} has started {variables[f'{family}_SIZE']} processes ({family}_SIZE), each of which would do the whole run; start with "
                "torchrun or srun, or let devices= (when training, trainer.devices=) start them"
            )
    tasks = variables.get("SLURM_NTASKS", "1")
    # In an interactive shell, the tasks are for commands that are started from it by srun.
    if int(tasks) > 1 and "SLURM_STEP_NUM_TASKS" not in variables and variables.get("SLURM_JOB_NAME") not in _INTERACTIVE:
        yield (
            f"SLURM_NTASKS={tasks}: the job has {tasks} tasks, but this process was not started by srun; write `srun` before the command for one run "
            "by all tasks, ask for --ntasks=1 (with --cpus-per-task) for one process, or unset SLURM_NTASKS"
        )
    yield from _asked_of_torchrun(variables, ("PET_NNODES", "PET_NPROC_PER_NODE"))


def _asked_of_torchrun(variables: Variables, names: tuple[str, ...]) -> Iterator[str]:
    """Variables that Kubernetes' training jobs set for torchrun, although torchrun did not start this process."""
    for name in names:
        asked = re.match(r"(?:\d+:)?(\d+)$", variables.get(name, ""))
        if asked and int(asked[1]) > 1:
            yield (
                f"{name}={variables[name]} asks torchrun for several processes, but this one was not started by it: each would do the whole run; "
                f"start with torchrun, or unset {name}"
            )


# --- one form -------------------------------------------------------------------------------------------------------------------------------------


def adopted(variables: Variables) -> dict[str, str]:
    """The variables to add so that torchrun's names are set, whichever launcher has started several processes. The input must have been checked."""
    if _started_by_us(variables):
        return {}
    if "RANK" in variables:
        return (
            {} if int(variables.get("WORLD_SIZE", "1")) == 1 else {name: value for name, value in _place(variables).items() if name not in variables}
        )
    if not _is_step(variables):
        return {}
    tasks, nodes = int(variables["SLURM_STEP_NUM_TASKS"]), int(variables.get("SLURM_STEP_NUM_NODES", "1"))
    names = {"RANK": "SLURM_PROCID", "LOCAL_RANK": "SLURM_LOCALID", "NODE_RANK": "SLURM_NODEID", "GROUP_RANK": "SLURM_NODEID"}
    added = {name: variables[theirs] for name, theirs in names.items()} | {"WORLD_SIZE": str(tasks), "LOCAL_WORLD_SIZE": str(tasks // nodes)}
    hosts = next((variables[name] for name in ("SLURM_STEP_NODELIST", "SLURM_NODELIST", "SLURM_JOB_NODELIST") if name in variables), "127.0.0.1")
    # Every task computes the same port without communication; two steps of one job have different ones.
    number = int(variables.get("SLURM_JOB_ID", "0")) + int(variables.get("SLURM_STEP_ID", "0"))
    meeting = {"MASTER_ADDR": first_host(hosts), "MASTER_PORT": str(15000 + number % 10000)}
    return added | {name: value for name, value in meeting.items() if name not in variables}


def first_host(hosts: str) -> str:
    """The first of Slurm's list of hosts: `gpu[03-05,9],cpu1` begins with `gpu03`."""
    return re.split(r"[ ,]", re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", hosts))[0]


def _started_by_us(variables: Variables) -> bool:
    """Whether Lightning has started this process, or starts others, from within a run of lingact."""
    return RUN_FOLDER in variables and "RANK" not in variables


def _is_step(variables: Variables) -> bool:
    """Whether `srun` has started this process as one of several. In a shell (`--pty`) it has not: what is started there is a single process."""
    return int(variables.get("SLURM_STEP_NUM_TASKS", "1")) > 1 and "SLURM_PTY_PORT" not in variables


def _place(variables: Variables) -> dict[str, str]:
    """The local ranks of a process that has RANK and WORLD_SIZE. Some jobs set only these two."""
    rank, world = variables["RANK"], variables["WORLD_SIZE"]
    if "LOCAL_RANK" in variables:
        size = variables.get("LOCAL_WORLD_SIZE", world)
        return {"LOCAL_RANK": variables["LOCAL_RANK"], "LOCAL_WORLD_SIZE": size, "GROUP_RANK": str(int(rank) // int(size))}
    if _is_step(variables) and "SLURM_LOCALID" in variables:
        size = str(max(1, int(variables["SLURM_STEP_NUM_TASKS"]) // int(variables.get("SLURM_STEP_NUM_NODES", "1"))))
        return {"LOCAL_RANK": variables["SLURM_LOCALID"], "LOCAL_WORLD_SIZE": size, "GROUP_RANK": variables.get("SLURM_NODEID", "0")}
    for mine, all_of_them in (("OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"), ("MPI_LOCALRANKID", "MPI_LOCALNRANKS")):
        if mine in variables and all_of_them in variables:
            size = variables[all_of_them]
            return {"LOCAL_RANK": variables[mine], "LOCAL_WORLD_SIZE": size, "GROUP_RANK": str(int(rank) // int(size))}
    # As in Kubernetes' training jobs: one process in each pod.
    return {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "GROUP_RANK": rank}


def first_process(variables: Variables = os.environ) -> bool:
    """Whether this is the only process, or the one of rank 0."""
    return all(variables.get(rank, "0") == "0" for rank in ("RANK", "LOCAL_RANK", "NODE_RANK"))


def started_outside(variables: Variables) -> bool:
    """Whether a launcher has started this process as one of several."""
    return "RANK" in variables and int(variables.get("WORLD_SIZE", "1")) > 1


def shape(devices: int, nodes: int, variables: Variables, *, section: str = "") -> tuple[int, int]:
    """The number of processes on each machine and the number of machines: as given, or as an external launcher has started them.

    Args:
        section: prefix of the two keys, such as `trainer.`.

    Raises:
        UserError: the two contradict each other, or the machines cannot find each other.
    """
    given = f"{section}devices={devices}, {section}nodes={nodes}"
    if "RANK" in variables:
        world = int(variables.get("WORLD_SIZE", "1"))
        local = int(variables.get("LOCAL_WORLD_SIZE", world))
        if devices * nodes not in (1, world):
            were = "1 process was" if world == 1 else f"{world} processes were"
            raise UserError(f"{given}: {were} started from outside (WORLD_SIZE); leave these out, or start {devices * nodes}")
        return local, world // local
    if RUN_FOLDER not in variables:
        place = int(variables.get("NODE_RANK", "0"))
        if place >= nodes:
            raise UserError(f"NODE_RANK={place}, but {section}nodes={nodes}, counted from 0; unset it, or give {section}nodes")
        missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if not variables.get(name)]
        if nodes > 1 and missing:
            raise UserError(
                f"{given}: the machines cannot find each other; start with torchrun or srun, or set {', '.join([*missing, 'NODE_RANK'])} on each"
            )
    return devices, nodes
