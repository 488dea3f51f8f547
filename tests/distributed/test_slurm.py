"""What ``srun`` does, done by hand: the same script, with no other launcher."""

from __future__ import annotations

import socket
import sys
import time

import pytest

pytestmark = [pytest.mark.ddp, pytest.mark.no_cover]


def free_job():
    """A job whose number leads to a port that nobody listens at."""
    for port in range(21000, 39000):
        with socket.socket() as one:
            try:
                one.bind(("localhost", port))
            except OSError:
                continue
        return port - 20000
    raise RuntimeError("no free port")


def as_srun(launcher, out, *arguments):
    """Two tasks of one step."""
    job = free_job()
    launches = []
    for rank in (0, 1):
        environment = {
            "SLURM_STEP_ID": "0",
            "SLURM_PROCID": str(rank),
            "SLURM_NTASKS": "2",
            "SLURM_LOCALID": str(rank),
            "SLURM_JOB_ID": str(job),
            "SLURM_STEP_NODELIST": "localhost",
        }
        command = [sys.executable]
        launches.append(launcher.start(out, *arguments, command=command, environment=environment))
    return [launch.wait() for launch in launches]


@pytest.mark.slow
def test_the_same_run(launcher, tmp_path, two, cases, kit):
    out = tmp_path / "out"
    ended = as_srun(launcher, out, *cases.trajectories["windows"])
    assert [one.code for one in ended] == [0, 0], ended
    for rank in (0, 1):
        kit.assert_equal(kit.result(out, rank), kit.result(two / "windows", rank))


@pytest.mark.slow
def test_an_error_of_the_first_task_is_told_by_the_second(launcher, tmp_path, kit):
    # The first task keeps the store through which the second hears of it.
    out = tmp_path / "out"
    how = ("--epochs", 200, "--delay", 0.005, "--strike", "raise", 0, 5)
    ended = as_srun(launcher, out, *how)
    assert all(one.code != 0 for one in ended)
    assert time.time() - kit.struck_at(out) < 10.0
    assert kit.error_of(out, 0)["text"] == "boom on purpose"
    assert "boom on purpose" in kit.error_of(out, 1)["text"]
