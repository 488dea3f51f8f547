from __future__ import annotations

import pytest

from fitkit.core.errors import ConfigurationError
from fitkit.distributed.rank_info import RankInfo, find_rank_info, first_host

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
