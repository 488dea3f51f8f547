"""Process groups of every kind: NCCL's alone, one that the program has made, one with a time-out.

NCCL itself has never run here: ``device_group.py`` stands in for it, on a simulated accelerator.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytestmark = [pytest.mark.ddp, pytest.mark.slow]

SCRIPT = Path(__file__).with_name("groups_run.py")
TIMEOUT = 1.5
# A failure watch looks once a second; the rest is what processes of two cores take.
SECONDS_TO_HEAR = 3.0


@pytest.fixture(scope="module")
def plans(shared_launcher, tmp_path_factory, kit):
    """What each rank of a plan found, by plan, name and rank; each plan is run once."""
    done = {}

    def run(plan):
        if plan not in done:
            out = tmp_path_factory.mktemp(plan)
            command = [*kit.torchrun(2), str(SCRIPT), str(out), plan]
            done[plan] = out, shared_launcher.run_command(out / "run", command)
        return done[plan]

    def found(plan, name, rank):
        out, ended = run(plan)
        path = out / f"{name}{rank}.json"
        assert path.exists(), ended.output
        return json.loads(path.read_text())

    found.ended = lambda plan: run(plan)[1]
    return found


PLANS = ("device", "no-host", "program", "fitkit")  # each takes two processes of its own
BOTH = pytest.mark.parametrize("rank", [0, 1])


@pytest.mark.parametrize("plan", PLANS)
def test_every_program_ends_as_it_should(plan, plans):
    ended = plans.ended(plan)
    assert ended.code == 0, ended.output
    assert "terminate called" not in ended.output


# ---- groups that take no host tensors -----------------------------------------------------------


@BOTH
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_training_on_a_device_group_is_that_on_the_host(strategy, rank, plans):
    found, expected = plans("device", strategy, rank), plans("no-host", strategy, rank)
    assert found["history"] == expected["history"]
    assert found["weights"] == expected["weights"]
    assert (found["places"], expected["places"]) == (["sim:0"], ["cpu"])


@BOTH
def test_sharded_training_is_that_with_whole_models(rank, plans):
    found, expected = (plans("device", name, rank) for name in ("fsdp", "ddp"))
    assert found["history"]["loss"] == pytest.approx(expected["history"]["loss"], rel=1e-6)


@BOTH
def test_tensors_of_the_device_go_through_the_default_group(rank, plans):
    wanted = {"allreduce", "broadcast", "allgather", "reduce_scatter"}
    assert set(plans("device", "seen", rank)["collectives"]) == wanted


@BOTH
@pytest.mark.parametrize(("plan", "kind"), [("device", "sim"), ("no-host", "cpu")])
def test_a_sharded_run_goes_on_bit_for_bit_where_its_parameters_are(plan, kind, rank, plans):
    assert plans(plan, "resume", rank) == {
        "same logs": True,
        "same weights": True,
        "same averages": True,
        "meshes of moments": [kind],
        "steps": ["cpu"],
    }


# ---- failures -----------------------------------------------------------------------------------


def test_a_rank_that_waits_for_a_kernel_hears_of_a_failure(plans):
    found = plans("device", "failed", 0)
    assert found["error"] == "RuntimeError: the communicator was aborted"
    assert found["seconds"] < SECONDS_TO_HEAR
    assert found["first"] == "rank 1 failed, and with it the run: ValueError: boom on purpose"
    assert found["later"].startswith(f"RankError: {found['first']}")
    assert plans("device", "failed", 1)["error"] == "boom on purpose"


@BOTH
def test_communicators_are_aborted_once(rank, plans):
    assert plans("device", "aborted", rank) == {"times": 1}


def test_in_a_group_of_the_program_a_failure_is_heard_while_the_process_goes_on(plans):
    found = plans("program", "failed", 0)
    assert found["seconds"] < 2.0
    assert found["first"] == "rank 1 failed, and with it the run: ValueError: boom on purpose"


@BOTH
def test_a_group_of_the_program_is_left_alone(rank, plans):
    assert plans("program", "own", rank) == {"sum": 2.0}


@BOTH
def test_ranks_that_share_a_device_are_one_sentence_on_all(rank, plans):
    error = plans("device", "shared", rank)["error"]
    assert error.startswith("ConfigurationError: ranks 0 and 1 share the device sim:0 of the mach")


# ---- time-outs ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("plan", "name"), [("no-host", "late"), ("fitkit", "late"), ("fitkit", "beside")]
)
def test_a_collective_fails_after_the_time_out(plan, name, plans):
    found = plans(plan, name, 0)
    assert "Timed out waiting 1500ms" in found["error"]
    assert TIMEOUT <= found["seconds"] < TIMEOUT + 1.0
