from __future__ import annotations

import os

import pytest

from fitkit.core.errors import ConfigurationError
from fitkit.distributed.rank_info import RankInfo, find_local_rank, find_rank_info, first_host

SLURM = {
    "SLURM_STEP_ID": "0",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_JOB_ID": "123456",
    "SLURM_STEP_NODELIST": "node[02-03]",
}


def test_no_launcher():
    assert find_rank_info({}) is None
    assert (
        find_rank_info({key: value for key, value in SLURM.items() if key != "SLURM_STEP_ID"})
        is None
    )
    assert find_rank_info({**SLURM, "SLURM_NTASKS": "1", "SLURM_PROCID": "0"}) is None


def test_torchrun():
    environment = {"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1"}
    assert find_rank_info(environment) == RankInfo(3, 4, 1, "env://")
    assert find_rank_info({"WORLD_SIZE": "1"}) == RankInfo(0, 1, 0, "env://")


def test_torchrun_inside_a_step_of_slurm_counts():
    environment = {**SLURM, "WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}
    assert find_rank_info(environment) == RankInfo(1, 2, 1, "env://")


def test_srun():
    assert find_rank_info(SLURM) == RankInfo(3, 4, 1, "tcp://node02:23456")
    environment = {**SLURM, "MASTER_ADDR": "head", "MASTER_PORT": "29500"}
    assert find_rank_info(environment) == RankInfo(3, 4, 1, "tcp://head:29500")


def test_a_step_of_slurm_may_have_fewer_tasks_than_the_job():
    """As ``srun --ntasks=2`` in a job of four tasks."""
    step = {**SLURM, "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"}
    assert find_rank_info(step) == RankInfo(1, 2, 1, "tcp://node02:23456")
    assert find_rank_info({**step, "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}) is None


OMPI = {
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}
PMI = {"PMI_SIZE": "4", "PMI_RANK": "3", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}
MVAPICH = {name.replace("OMPI_", "MV2_"): value for name, value in OMPI.items()}
MASTER = {"MASTER_ADDR": "head", "MASTER_PORT": "29500"}
by_mpi = pytest.mark.parametrize("variables", [OMPI, PMI, MVAPICH])


@by_mpi
def test_mpirun(variables):
    assert find_rank_info({**variables, **MASTER}) == RankInfo(3, 4, 1, "tcp://head:29500")
    size, rank = list(variables)[:2]
    assert find_rank_info({**variables, **MASTER, size: "1", rank: "0"}) is None
    with pytest.raises(ConfigurationError, match=f"{rank} must be"):
        find_rank_info({**variables, **MASTER, rank: "4"})


@by_mpi
def test_mpirun_on_several_machines_needs_an_address(variables):
    with pytest.raises(ConfigurationError, match=r"set MASTER_ADDR .* and MASTER_PORT"):
        find_rank_info(variables)
    with pytest.raises(ConfigurationError, match="set MASTER_ADDR"):
        find_rank_info({**variables, "MASTER_PORT": "29500"})


@by_mpi
def test_mpirun_on_one_machine_needs_none(variables):
    local_size = list(variables)[3]
    port = 20000 + os.getppid() % 12000  # mpirun is the parent of all
    found = find_rank_info({**variables, local_size: "4"})
    assert found == RankInfo(3, 4, 1, f"tcp://localhost:{port}")


@by_mpi
def test_mpirun_inside_a_job_of_slurm_counts(variables):
    """Its processes inherit the variables of the daemon that starts them, one per machine."""
    daemon = {**SLURM, "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "0"}
    assert find_rank_info({**daemon, **variables}) == RankInfo(3, 4, 1, "tcp://node02:23456")


def test_without_the_local_rank_the_accelerators_decide(monkeypatch):
    assert find_local_rank({}, 5) == 5
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    assert find_local_rank({}, 5) == 1
    assert find_local_rank({"LOCAL_RANK": "3"}, 5) == 3
    cray = {"PMI_SIZE": "8", "PMI_RANK": "5", "PMI_LOCAL_RANK": "2", **MASTER}
    assert find_rank_info(cray).local_rank == 2
    del cray["PMI_LOCAL_RANK"]
    assert find_rank_info(cray).local_rank == 1


@pytest.mark.parametrize("rank", ["4", "-1", "x", ""])
def test_a_rank_that_cannot_be(rank):
    with pytest.raises(ConfigurationError, match="SLURM_PROCID must be"):
        find_rank_info({**SLURM, "SLURM_PROCID": rank})


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ("alpha", "alpha"),
        ("alpha,beta", "alpha"),
        ("node[003-007,9],other", "node003"),
        ("node[7,9]", "node7"),
        ("n[1-2]-ib,m", "n1-ib"),
        ("gpu-a1.cluster.org", "gpu-a1.cluster.org"),
    ],
)
def test_the_first_machine_of_a_list(nodes, expected):
    assert first_host(nodes) == expected


def test_a_list_that_cannot_be_read():
    with pytest.raises(ConfigurationError, match="set MASTER_ADDR"):
        first_host("")
