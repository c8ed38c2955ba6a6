"""What launchers say of a process: what is refused at once, and the one form that the rest is put into."""

import subprocess
import sys
import tempfile

import pytest

from lingact.errors import UserError
from lingact.runtime.environment import adopted, check_environment, first_host, first_process, shape, started_outside

TORCHRUN = {
    "RANK": "5",
    "LOCAL_RANK": "1",
    "GROUP_RANK": "1",
    "WORLD_SIZE": "8",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "gpu1",
    "MASTER_PORT": "29500",
    "TORCHELASTIC_RUN_ID": "none",
    "OMP_NUM_THREADS": "1",
}
SRUN = {
    "SLURM_JOB_ID": "424242",
    "SLURM_STEP_ID": "0",
    "SLURM_NTASKS": "8",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_STEP_NODELIST": "gpu[03-04]",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
}
BATCH = {"SLURM_JOB_ID": "424242", "SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_JOB_NAME": "train"}
"""A batch script: nothing of a step."""
OPEN_MPI = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_LOCAL_RANK": "1", "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}
POD = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "job-master-0", "MASTER_PORT": "23456"}
"""Of a PyTorchJob of Kubeflow: one process in each pod, and nothing of its place there."""


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        # torchrun
        ({"RANK": "1"}, "RANK is set but WORLD_SIZE is not"),
        ({"RANK": ""}, "RANK='' is not a number from 0 upwards"),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, "RANK='-1' is not a number"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2, but RANK is not set"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE='0' is not a number from 1 upwards"),
        ({"LOCAL_RANK": "0"}, "LOCAL_RANK is set but RANK is not"),
        ({"LOCAL_RANK": "gpu0"}, "LOCAL_RANK='gpu0' is not a number"),
        ({"GROUP_RANK": "1"}, "GROUP_RANK is set but RANK is not"),
        (TORCHRUN | {"RANK": "8"}, "RANK=8 is not among the 8 processes of WORLD_SIZE"),
        (TORCHRUN | {"LOCAL_RANK": "4"}, "LOCAL_RANK=4 is not among the 4 processes of this machine"),
        (TORCHRUN | {"LOCAL_WORLD_SIZE": "3"}, "WORLD_SIZE=8 is not a multiple of LOCAL_WORLD_SIZE=3"),
        (TORCHRUN | {"MASTER_PORT": "http"}, "MASTER_PORT='http' is not a port"),
        (TORCHRUN | {"MASTER_PORT": "70000"}, "MASTER_PORT='70000' is not a port"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "WORLD_SIZE=2, but MASTER_ADDR and MASTER_PORT are not set"),
        (POD | {"MASTER_ADDR": ""}, "WORLD_SIZE=2, but MASTER_ADDR is not set"),
        ({"STANDALONE_PORT": "any"}, "STANDALONE_PORT='any' is not a port"),
        # Slurm
        (BATCH, "SLURM_NTASKS=2: the job has 2 tasks, but this process was not started by srun"),
        (BATCH | {"SLURM_NTASKS": "two"}, "SLURM_NTASKS='two' is not a number"),
        (BATCH | {"SLURM_PROCID": "x"}, "SLURM_PROCID='x' is not a number"),
        ({"SLURM_STEP_NUM_TASKS": "2"}, "SLURM_STEP_NUM_TASKS=2, but SLURM_PROCID, SLURM_LOCALID, SLURM_NODEID not set"),
        (SRUN | {"SLURM_PROCID": "8"}, "SLURM_PROCID=8 is not among the 8 tasks"),
        (SRUN | {"SLURM_STEP_NUM_NODES": "3"}, "Slurm has started 8 tasks on 3 machines, with different numbers on them"),
        (SRUN | {"SLURM_STEP_TASKS_PER_NODE": "5,3"}, "with different numbers on them; use --ntasks-per-node"),
        # MPI, LSF
        (OPEN_MPI, r"mpirun \(Open MPI\) has started 2 processes \(OMPI_COMM_WORLD_SIZE\), each of which would do the whole run"),
        ({"PMI_SIZE": "4", "PMI_RANK": "0"}, r"mpiexec \(MPICH, Intel MPI\) has started 4 processes"),
        ({"MV2_COMM_WORLD_SIZE": "4", "MV2_COMM_WORLD_RANK": "0"}, r"mpirun \(MVAPICH2\) has started 4"),
        ({"JSM_NAMESPACE_SIZE": "6", "JSM_NAMESPACE_RANK": "2"}, r"jsrun \(LSF\) has started 6"),
        ({"PMI_SIZE": "many"}, "PMI_SIZE='many' is not a number"),
        # Kubernetes
        ({"PET_NNODES": "2", "PET_NODE_RANK": "0"}, "PET_NNODES=2 asks torchrun for several processes, but this one was not started by it"),
        ({"PET_NNODES": "1:4"}, "PET_NNODES=1:4 asks torchrun"),
        ({"PET_NPROC_PER_NODE": "8", "PET_NNODES": "1"}, "PET_NPROC_PER_NODE=8 asks torchrun"),
        (POD | {"PET_NPROC_PER_NODE": "2"}, "PET_NPROC_PER_NODE=2 asks torchrun"),
        # threads
        ({"OMP_NUM_THREADS": "all"}, "OMP_NUM_THREADS='all' is not a number of threads"),
        ({"OMP_NUM_THREADS": ""}, "OMP_NUM_THREADS='' is not"),
        ({"OMP_NUM_THREADS": "0"}, "OMP_NUM_THREADS='0' is not"),
        ({"MKL_NUM_THREADS": "2.5"}, r"MKL_NUM_THREADS='2\.5' is not"),
    ],
)
def test_what_cannot_be_is_refused(variables: dict[str, str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        check_environment(variables)


def test_all_that_cannot_be_read_is_told_at_once() -> None:
    with pytest.raises(UserError) as raised:
        check_environment({"RANK": "a", "WORLD_SIZE": "b", "MASTER_PORT": "c", "OMP_NUM_THREADS": "d"})
    assert len(str(raised.value).splitlines()) == 4


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"OMP_NUM_THREADS": "4,2"},
        BATCH | {"SLURM_NTASKS": "1"},
        BATCH | {"SLURM_JOB_NAME": "interactive"},
        BATCH | {"SLURM_JOB_NAME": "bash", "SLURM_STEP_NUM_TASKS": "2", "SLURM_PTY_PORT": "40000"},
        BATCH | {"SLURM_STEP_NUM_TASKS": "1"},
        {"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"},
        {"PMI_SIZE": "4"},
        {"JOB_COMPLETION_INDEX": "3"},
        {"PET_NNODES": "1", "PET_NPROC_PER_NODE": "auto"},
        {"LSB_JOBID": "7", "LSB_HOSTS": "a a b", "LSB_DJOB_NUMPROC": "3"},
        {"PBS_JOBID": "7", "PBS_NODEFILE": "/var/spool/nodes", "NCPUS": "4"},
        {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"},
        {"MASTER_ADDR": "elsewhere", "MASTER_PORT": "29500"},
    ],
    ids=str,
)
def test_a_process_alone(variables: dict[str, str]) -> None:
    check_environment(variables)
    assert adopted(variables) == {}
    assert first_process(variables)
    assert not started_outside(variables)
    assert "RANK" in variables or shape(2, 1, variables) == (2, 1)


NAMES = ("RANK", "LOCAL_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        (TORCHRUN, ("5", "1", "1", "8", "4", "gpu1", "29500")),
        (SRUN, ("5", "1", "1", "8", "4", "gpu03", "19242")),
        (SRUN | {"SLURM_STEP_ID": "3", "MASTER_ADDR": "10.0.0.1"}, ("5", "1", "1", "8", "4", "10.0.0.1", "19245")),
        # In an allocation with a shell, too: what says so is the step.
        (SRUN | {"SLURM_JOB_NAME": "interactive"}, ("5", "1", "1", "8", "4", "gpu03", "19242")),
        (POD, ("1", "0", "1", "2", "1", "job-master-0", "23456")),
        # A wrapper under mpirun or srun that exports what torch itself reads.
        (OPEN_MPI | POD, ("1", "1", "0", "2", "2", "job-master-0", "23456")),
        (
            SRUN | {"RANK": "5", "WORLD_SIZE": "8", "MASTER_ADDR": "gpu03", "MASTER_PORT": "29500"},
            ("5", "1", "1", "8", "4", "gpu03", "29500"),
        ),
    ],
    ids=["torchrun", "srun", "srun, another step", "srun in salloc", "pod", "mpirun and a wrapper", "srun and a wrapper"],
)
def test_one_of_several(variables: dict[str, str], expected: tuple[str, ...]) -> None:
    check_environment(variables)
    found = variables | adopted(variables)
    assert tuple(found[name] for name in NAMES) == expected
    check_environment(found)
    assert adopted(found) == {}, "once is enough"
    assert started_outside(found)
    assert not first_process(found)


def test_processes_that_a_run_has_started_are_left_alone() -> None:
    child = {"LINGACT_RUN_FOLDER": "/run", "LOCAL_RANK": "1", "NODE_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "40000"}
    check_environment(child)
    assert adopted(child) == {}
    assert not first_process(child)
    assert shape(2, 1, child) == (2, 1)


def test_how_many_they_are() -> None:
    assert shape(2, 3, {"MASTER_ADDR": "a", "MASTER_PORT": "1", "NODE_RANK": "2"}) == (2, 3)
    assert shape(1, 1, TORCHRUN) == shape(8, 1, TORCHRUN) == shape(4, 2, TORCHRUN) == (4, 2)
    alone = {"RANK": "0", "WORLD_SIZE": "1"}
    assert shape(1, 1, alone) == (1, 1)
    for devices, nodes, variables, said in (
        (3, 1, TORCHRUN, r"trainer\.devices=3, trainer\.nodes=1: 8 processes were started from outside \(WORLD_SIZE\); leave these out, or start 3$"),
        (2, 1, alone, "1 process was started from outside"),
        (1, 1, {"NODE_RANK": "1"}, r"NODE_RANK=1, but trainer\.nodes=1"),
        (1, 2, {"NODE_RANK": "2"}, r"NODE_RANK=2, but trainer\.nodes=2"),
        (1, 2, {}, r"trainer\.nodes=2: the machines cannot find each other; .* set MASTER_ADDR, MASTER_PORT, NODE_RANK on each"),
    ):
        with pytest.raises(UserError, match=said):
            shape(devices, nodes, variables, section="trainer.")


@pytest.mark.parametrize(
    ("hosts", "first"),
    [("gpu[03-05,9],cpu1", "gpu03"), ("gpu7", "gpu7"), ("a1,b[2-3]", "a1"), ("rack-2-node[1,4]", "rack-2-node1"), ("a b", "a")],
)
def test_the_first_host(hosts: str, first: str) -> None:
    assert first_host(hosts) == first


def test_without_a_folder_for_temporary_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/nowhere/at/all"])
    with pytest.raises(UserError, match=r"no folder for temporary files: .*; set TMPDIR"):
        check_environment({})


def test_judging_takes_no_library() -> None:
    """Lightning reads ranks when it is imported, and would fail there."""
    script = (
        "import sys, lingact.runtime.environment; print(sorted({'torch', 'pytorch_lightning', 'lightning_fabric', 'hydra'} & sys.modules.keys()))"
    )
    assert subprocess.run((sys.executable, "-c", script), capture_output=True, text=True, check=True).stdout == "[]\n"
